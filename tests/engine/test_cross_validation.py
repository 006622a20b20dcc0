"""Sweeps with --folds: every example of a file is tested once, and errors know that the training sets overlap."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.many_runs.comparison import differences, estimate, over_seeds, verdict
from engine.many_runs.cross_validation import by_fold
from engine.run_folder.saved_run import read_run
from evaluate import load_run
from tests.conftest import read
from tests.toy import PROBLEM

SweepRun = Callable[..., int]

LINE = [
    "--preset",
    "debug",
    "--epochs",
    "2",
    "--data",
    "f.npz",
    "--num-train",
    "60",
    "--num-val",
    "12",
    "--batch-size",
    "20",
]
SWEEP = Path("checkpoints/cv")


@pytest.fixture
def columns(sweep_in_process: SweepRun) -> dict[str, Any]:
    """The arrays of the file f.npz in the working folder: 100 examples in 20 groups."""
    generated = PROBLEM.generate(PROBLEM.presets["debug"], 100, np.random.SeedSequence(3))
    arrays: dict[str, Any] = {**generated, "chain": np.repeat(np.arange(20), 5)}
    np.savez("f.npz", **arrays)
    return arrays


def out_of_fold() -> list[dict[str, str]]:
    with (SWEEP / "out_of_fold.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_example_is_tested_once_by_a_network_that_has_not_seen_it(
    sweep_in_process: SweepRun, columns: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep_in_process("cv", *LINE, "--folds", "4", "--group", "chain", "--seeds", "2") == 0
    rows = out_of_fold()
    assert list(rows[0]) == ["row", "setting", "seed", "fold", "target", "prediction"]
    assert [(int(row["seed"]), int(row["row"])) for row in rows] == [(s, i) for s in (42, 43) for i in range(100)]
    np.testing.assert_allclose([float(row["target"]) for row in rows[:100]], columns["values"], rtol=1e-8)
    for row in rows[::7]:
        config, model = load_run(SWEEP / f"seed{row['seed']}-fold{row['fold']}")
        assert (config.data.fold, config.seed) == (int(row["fold"]), int(row["seed"]))
        i = int(row["row"])
        expected = float(model(*map(_tensor, (columns["points"][i : i + 1], columns["signs"][i : i + 1]))))
        assert float(row["prediction"]) == pytest.approx(expected, rel=1e-5)
    folds = {(row["seed"], int(row["row"]) // 5, row["fold"]) for row in rows}
    assert len(folds) == 2 * 20  # each chain is in one fold

    shown = capsys.readouterr().out
    summary = read(SWEEP, "summary.json")
    (setting,) = summary["settings"].values()
    assert list(setting["runs"]) == [f"{seed}-fold{k}" for seed in (42, 43) for k in (1, 2, 3, 4)]
    found = setting["metrics"]["test_mae"]
    values = np.array(list(found["values"].values()))
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-12)
    # each fold has 25 test examples, and 60 training examples, whatever else was left
    assert found["standard_error"] == pytest.approx(values.std(ddof=1) * math.sqrt(1 / 8 + 25 / 60), rel=1e-9)
    assert "Nadeau and Bengio" in shown
    assert "| standard deviation |" in shown


def _tensor(array: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(array))


def test_an_interrupted_cross_validation_is_continued_with_the_same_folds(
    sweep_in_process: SweepRun, columns: dict[str, Any]
) -> None:
    line = ("cv", *LINE, "--folds", "5")
    assert sweep_in_process(*line) == 0
    before = (SWEEP / "out_of_fold.csv").read_bytes()
    for path in (SWEEP / "seed42-fold2").iterdir():
        path.unlink() if path.is_file() else None
    (SWEEP / "out_of_fold.csv").unlink()
    assert sweep_in_process(*line) == 0
    assert (SWEEP / "out_of_fold.csv").read_bytes() == before
    table = by_fold({"s": [run for k in range(1, 6) if (run := read_run(SWEEP / f"seed42-fold{k}")) is not None]})
    assert table.columns == ("test_mae", *(f"fold {k}" for k in range(1, 6)), "standard deviation")
    assert float(table.rows[0][6]) == pytest.approx(np.std([float(x) for x in table.rows[0][1:6]], ddof=1), rel=0.01)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--folds 3 --fold 1", "--fold: a sweep tests all folds"),
        ("--folds 3 --search lr=0.1,0.2 --trials 2", "--folds does nothing with --search"),
        ("--seeds 2 --grid folds=2,3", "--grid folds=2,3: cannot be varied"),
        ("--data none --folds 3", "--folds does nothing without --data"),
        ("--fold 3 --seeds 2", "--fold: a sweep tests all folds"),
    ],
)
def test_a_request_without_a_meaning_is_refused(
    line: str, message: str, sweep_in_process: SweepRun, columns: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = LINE if "none" not in line else LINE[:4]
    assert sweep_in_process("cv", *words, *line.split()) == 2
    assert message in capsys.readouterr().err


def test_errors_contain_the_overlap_of_training_sets() -> None:
    """By hand: the values 1, 2, 3, 4, 5 have the variance 2.5; five folds have the overlap 1 / 4."""
    values = {f"1-fold{k}": float(k) for k in range(1, 6)}
    found = estimate(values, overlap=1 / 4)
    assert found.standard_error == pytest.approx(math.sqrt(2.5 * (1 / 5 + 1 / 4)), rel=1e-12)
    plain = over_seeds({key: {"test_mae": value} for key, value in values.items()})
    shifted = over_seeds({key: {"test_mae": value + 1 + 0.5 * value} for key, value in values.items()}, 1 / 4)
    (difference,) = differences(plain, shifted).values()
    assert difference.standard_error == pytest.approx(math.sqrt(0.25 * 2.5 * (1 / 5 + 1 / 4)), rel=1e-12)


def test_folds_that_only_look_independent_give_no_verdict() -> None:
    """Differences of 1.0 ± 0.34: significant for independent runs, and not for the folds of one file."""
    values = {f"1-fold{k}": x for k, x in enumerate((0.1, 0.4, 1.3, 1.2, 2.0), 1)}
    assert verdict(estimate(values), "max") == "better"
    assert verdict(estimate(values, overlap=1 / 4), "max") == "no significant difference"
