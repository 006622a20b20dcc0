"""Evaluation of Ising runs on new data: other sizes and temperatures, files, and the accuracy of the preset `exact`."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import main
from engine.evaluation.evaluation_request import parse_args
from engine.interface.base_problem import Columns
from engine.machine.errors import BadRequestError, RunError
from engine.run_folder.run_request import parse_args as parse_main
from evaluate import evaluate_run, load_run, new_data
from ising import lattice
from ising.exact import T_CRITICAL
from problem import PROBLEM
from tests.conftest import plot_nothing, run_command

SMALL = "--num-train 500 --num-val 50 --num-test 50 --epochs 2 --device cpu"
RUNS = {
    "cnn": f"--preset exact --channels 4 {SMALL}",
    "wide": f"--architecture cnn --kernel-size 6 --batch-size 50 {SMALL}",
    "phase": "--preset debug --task phase --epochs 2 --device cpu",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two convolutional networks and a classifier of phases."""
    cwd = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        plot_nothing(patch)
        for name, line in RUNS.items():
            main.run(PROBLEM, parse_main(PROBLEM, line.split()).config, Path("checkpoints") / name)
    return cwd


@pytest.fixture(autouse=True)
def _beside_the_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)


def evaluated(line: str) -> dict[str, Any]:
    return evaluate_run(parse_args(line.split()))


@pytest.mark.figures
def test_the_written_results_are_those_of_the_new_data(capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated("cnn --lattice-size 12 --num-test 300")
    place = Path("checkpoints/cnn/evaluations")
    assert json.loads((place / "L12-num-test300.json").read_text(encoding="utf-8")) == result
    assert (place / "L12-num-test300.png").read_bytes().startswith(b"\x89PNG")
    assert {"lattice_size", "n", "metrics", "by_temperature", "check", "worst_total_error"} <= set(result)
    assert (result["n_unseen"], result["metrics_unseen"]) == (300, result["metrics"])  # all of another size
    assert (result["lattice_size"], result["n"]) == (12, 300)
    _, model = load_run("checkpoints/cnn")
    columns, _ = new_data(parse_args(["cnn", "--lattice-size", "12", "--num-test", "300"]))
    errors = 144 * model(torch.tensor(columns["spins"])).double().numpy() - lattice.energy(columns["spins"])
    assert result["metrics"]["mae"] == pytest.approx(np.abs(errors).mean() / 144, rel=1e-3)
    assert result["worst_total_error"] == pytest.approx(np.abs(errors).max(), rel=1e-3)
    assert sum(row["n"] for row in result["by_temperature"]) == 300
    assert f"worst_total_error {result['worst_total_error']:.4g}" in capsys.readouterr().out


def test_configurations_of_a_file_are_evaluated_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spins = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (40, 6, 6))
    np.savez(tmp_path / "hot.npz", spins=spins, temperatures=np.full(40, 1e3))
    result = evaluated(f"cnn --data {tmp_path / 'hot.npz'}")
    assert (result["lattice_size"], result["n"]) == (6, 40)
    assert Path("checkpoints/cnn/evaluations/hot.json").exists()
    np.savez(tmp_path / "cold.npz", spins=spins, temperatures=np.full(40, 1.0))  # wrong temperatures
    evaluated(f"cnn --data {tmp_path / 'cold.npz'}")
    assert "warning: the configurations are not in equilibrium" in capsys.readouterr().err


def test_the_number_of_sweeps_is_automatic_for_the_new_lattice_size() -> None:
    assert parse_args(["cnn", "--lattice-size", "32"]).config.data.sweeps is None  # type: ignore[attr-defined]
    assert parse_args(["cnn", "--sweeps", "7"]).config.data.sweeps == 7  # type: ignore[attr-defined]


def test_a_lattice_smaller_than_the_kernels_is_refused(tmp_path: Path) -> None:
    small: Columns = {"spins": np.ones((3, 4, 4), np.int8), "temperatures": np.ones(3)}
    np.savez(tmp_path / "small.npz", spins=small["spins"], temperatures=small["temperatures"])
    for extra in ("--lattice-size 4", f"--data {tmp_path / 'small.npz'}"):
        with pytest.raises(BadRequestError, match="kernels are 6 sites wide"):
            evaluated(f"wide {extra}")


def test_a_classifier_is_compared_with_bayes_rule() -> None:
    folder = Path("checkpoints/phase")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert list(results["baselines"]) == ["majority", "magnetization", "bayes"]
    assert list(results["test"]) == ["loss", "accuracy"]
    assert {"val_loss", "val_accuracy"} < set(
        json.loads((folder / "epoch_metrics.json").read_text(encoding="utf-8"))[0]
    )
    result = evaluated("phase --num-test 400")
    assert 0.5 < result["metrics"]["accuracy"] <= 1
    assert result["bayes"]["accuracy"] > 0.8
    share = np.mean([row["temperature"] < T_CRITICAL for row in result["by_temperature"] for _ in range(row["n"])])
    assert result["majority"]["accuracy"] == pytest.approx(max(share, 1 - share), abs=0.05)
    assert result["majority"]["loss"] == pytest.approx(math.log(2), abs=0.05)
    assert "worst_total_error" not in result
    assert evaluated("phase --num-test 50 --temp-max 2 --name cold")["n"] == 50  # one phase


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("cnn --lattice-size 15", ["--lattice-size 15", "a multiple of 2"]),
        ("cnn --temp-min 3 --temp-max 2", ["--temp-min 3.0", "--temp-max 2.0"]),
        ("cnn --data x.npz --lattice-size 6", ["--lattice-size does nothing with --data", "drop"]),
    ],
)
def test_a_bad_request_is_refused_in_one_line(line: str, named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_args(line.split())
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1)
    assert all(words in error for words in named), error


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("phase --lattice-size 16", r"--lattice-size 16: .*\(16, 16\).*mlp-L8.*\(8, 8\)"),
        ("cnn --lattice-size 1024 --num-test 10000000", "GiB of memory.*--num-test"),
        ("cnn --lattice-size 16 --sweeps 1 --num-test 3000", "not in equilibrium.*--sweeps"),
    ],
)
def test_bad_requests_that_are_detected_later_are_refused_too(line: str, named: str) -> None:
    with pytest.raises(RunError, match=named) as error:
        evaluated(line)
    assert error.value.exit_code == 2


@pytest.mark.slow
def test_the_preset_exact_predicts_every_energy_level_at_every_size(tmp_path: Path) -> None:
    done = run_command("--preset", "exact", "--device", "cpu", "--run-name", "exact", cwd=tmp_path, script="main.py")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "checkpoints" / "exact"
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["test"]["exact_fraction"] == 1
    for size in (4, 64):
        done = run_command(
            "exact", "--lattice-size", str(size), "--num-test", "100", cwd=tmp_path, script="evaluate.py"
        )
        assert done.returncode == 0, done.stderr
        result = json.loads((folder / "evaluations" / f"L{size}-num-test100.json").read_text(encoding="utf-8"))
        assert result["metrics"]["exact_fraction"] == 1
        assert result["worst_total_error"] < 1
