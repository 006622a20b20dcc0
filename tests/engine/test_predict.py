"""predict.py: what it writes for files whose targets need not be known, and what it refuses."""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import main
import predict as command
from engine.datasets.splits import load_data
from engine.evaluation.prediction_request import parse_args
from engine.learning.intervals import interval
from engine.learning.prediction import predict
from engine.machine.errors import BadRequestError, UnusableFileError
from engine.many_runs.sweep_request import parse_args as parse_plan
from engine.many_runs.sweeps import open_sweep
from engine.run_folder.run_request import parse_args as parse_run
from evaluate import load_run
from tests.conftest import plot_nothing
from tests.toy import PROBLEM

DEBUG = "--preset debug --device cpu --epochs 2"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has calibration examples, a sweep of two seeds, and a file without targets."""
    cwd = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        plot_nothing(patch)
        for line in ("--num-calibration 60 --run-name r", "--run-name plain"):
            config = parse_run(PROBLEM, [*DEBUG.split(), *line.split()]).config
            main.run(PROBLEM, config, Path("checkpoints") / str(config.log.run_name))
        for name, line in (("seeds", "--seeds 2"), ("grid", "--seeds 1 --grid hidden=4,8")):
            request = parse_plan([name, *DEBUG.split(), *line.split(), "--problem", "tests.toy"])
            assert request.plan is not None
            sweep = open_sweep(request.folder, request.plan)
            while planned := next(sweep.open_runs(()), None):
                main.run(PROBLEM, planned.config, sweep.folder / planned.name)
        np.savez("new.npz", **new_examples(), names=np.array([f"point {i}" for i in range(30)]))
    return cwd


@pytest.fixture(autouse=True)
def _beside_the_runs(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)


def new_examples() -> dict[str, Any]:
    rng = np.random.default_rng(9)
    return {"points": rng.uniform(-1, 1, (30, 3)).astype(np.float32), "signs": rng.choice([-1, 1], 30)}


def predicted(line: str) -> dict[str, NDArray[Any]]:
    return command.predict_file(parse_args([*line.split(), "--device", "cpu", "--overwrite"]))


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_those_of_the_network_in_the_order_of_the_file() -> None:
    found = predicted("r --data new.npz --output out.csv")
    expected = predict(PROBLEM, *load_run("r"), new_examples())
    np.testing.assert_array_equal(found["prediction"], expected)
    rows = rows_of("out.csv")
    assert list(rows[0]) == ["names", "row", "prediction"]
    assert [row["names"] for row in rows] == [f"point {i}" for i in range(30)]
    assert [int(row["row"]) for row in rows] == list(range(30))
    np.testing.assert_allclose([float(row["prediction"]) for row in rows], expected, rtol=1e-8)
    predicted("r --data new.npz --output out.npz")
    with np.load("out.npz") as arrays:
        np.testing.assert_array_equal(arrays["prediction"], expected)
        assert arrays["names"][3] == "point 3"


def test_an_interval_comes_from_the_calibration_examples() -> None:
    found = predicted("r --data new.npz --output out.csv --interval 0.8")
    config, model = load_run("r")
    splits = load_data(PROBLEM, config)
    assert len(splits.calibration["points"]) == 60
    calibration = {
        "targets": splits.calibration["values"],
        "predictions": predict(PROBLEM, config, model, splits.calibration),
    }
    low, high = interval(calibration, {"predictions": found["prediction"]}, 0.8)
    np.testing.assert_allclose(found["low"], low, rtol=1e-6)
    np.testing.assert_allclose(found["high"], high, rtol=1e-6)
    assert list(rows_of("out.csv")[0]) == ["names", "row", "prediction", "low", "high"]


def test_a_sweep_predicts_the_mean_of_its_networks_and_their_spread() -> None:
    found = predicted("seeds --data new.npz --output out.csv")
    each = [predict(PROBLEM, *load_run(f"seeds/seed{seed}"), new_examples()) for seed in (42, 43)]
    np.testing.assert_allclose(found["prediction"], np.mean(each, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["spread"], np.abs(each[1] - each[0]) / np.sqrt(2), rtol=1e-9)
    assert list(rows_of("out.csv")[0]) == ["names", "row", "prediction", "spread"]


def test_a_setting_of_a_sweep_is_chosen_by_its_label() -> None:
    request = parse_args(["grid", "--data=new.npz", "--output=out.npz", "--overwrite", "--setting=--hidden 8"])
    expected = predict(PROBLEM, *load_run("grid/hidden8-seed42"), new_examples())
    np.testing.assert_array_equal(command.predict_file(request)["prediction"], expected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("r --output o.csv", "--data is missing: give the file to read"),
        ("r --data new.npz", "--output is missing: give the file to write"),
        ("r --data new.npz --output o.txt", "--output o.txt: must end with .csv or .npz"),
        ("r --data new.npz --output nowhere/o.csv", "the folder does not exist or is not writable"),
        ("r --data new.npz --output new.npz", "--output new.npz: is the file of --data"),
        ("r --data new.npz --output o.csv --interval 1", "--interval 1: must be a probability between 0 and 1"),
        ("r --data new.npz --output o.csv --setting x", "--setting does nothing with a run"),
        ("seeds --data new.npz --output o.csv --interval 0.9", "--interval does nothing with a sweep"),
        ("grid --data new.npz --output o.csv", "has 2 settings: give --setting with one of '--hidden 4', '--hidden 8'"),
        ("grid --data new.npz --output o.csv --setting=7", "--setting 7: no such setting: give one of '--hidden 4'"),
        ("nosuch --data new.npz --output o.csv", "nosuch: not a run: give the name of a run or a sweep"),
        ("r --data new.npz --output o.csv --num-test 5", "--num-test: no such option"),
    ],
)
def test_a_bad_request_is_refused_in_one_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_args(line.split())
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_an_existing_file_is_only_replaced_if_asked() -> None:
    Path("kept.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(BadRequestError, match=r"--output kept\.csv: exists already; --overwrite replaces it"):
        parse_args(["r", "--data", "new.npz", "--output", "kept.csv"])
    assert Path("kept.csv").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        (
            "plain --data new.npz --output o.csv --interval 0.9",
            BadRequestError,
            "train it again with --num-calibration",
        ),
        ("r --data new.npz --output o.csv --interval 0.99", BadRequestError, "needs at least 99 calibration examples"),
        ("r --data lost.npz --output o.csv", UnusableFileError, "lost.npz: no such file"),
        ("r --data bad.npz --output o.csv", UnusableFileError, "bad.npz: no array 'signs'"),
        ("r --data wide.npz --output o.csv", BadRequestError, "this network .* only accepts"),
        ("r --data nan.npz --output o.csv", UnusableFileError, "points is infinite or not a number in example 2"),
    ],
)
def test_nothing_is_written_if_the_examples_cannot_be_predicted(
    line: str, error: type[Exception], message: str
) -> None:
    good = new_examples()
    np.savez("bad.npz", points=good["points"])
    np.savez("wide.npz", points=np.ones((30, 4)), signs=good["signs"])
    np.savez("nan.npz", points=np.where(np.arange(30)[:, None] == 2, np.nan, good["points"]), signs=good["signs"])
    with pytest.raises(error, match=message):
        predicted(line)
    assert not Path("o.csv").exists()


def test_rows_with_missing_values_are_left_out_if_asked() -> None:
    good = new_examples()
    np.savez("nan.npz", points=np.where(np.arange(30)[:, None] == 2, np.nan, good["points"]), signs=good["signs"])
    found = predicted("r --data nan.npz --output out.csv --drop-missing")
    assert found["row"].tolist() == [0, 1, *range(3, 30)]
    expected = predict(PROBLEM, *load_run("r"), good)
    np.testing.assert_array_equal(found["prediction"], expected[found["row"]])


def test_the_command_writes_the_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        sys, "argv", ["predict.py", "r", "--data", "new.npz", "--output", "final.csv", "--device", "cpu"]
    )
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 0
    assert "30 predictions in final.csv: names, row, prediction" in capsys.readouterr().out
    assert len(rows_of("final.csv")) == 30
