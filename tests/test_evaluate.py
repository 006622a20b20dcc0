"""A saved run on new data: what is new about them, what is written, what is refused."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import make_splits
from evaluate import load_run, new_data, parse_args
from ising import lattice
from tests.conftest import Program, run_command

SMALL = ("--num-train", "500", "--num-val", "50", "--num-test", "50", "--epochs", "2", "--channels", "4")
CNN = ("--preset", "exact", *SMALL, "--device", "cpu", "--run-name", "cnn")
PHASE = ["--preset", "debug", "--task", "phase", "--epochs", "2", "--device", "cpu", "--run-name", "phase"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small convolutional network and a classifier of phases have been trained."""
    cwd = tmp_path_factory.mktemp("runs")
    for arguments in (CNN, PHASE):
        done = run_command(*arguments, cwd=cwd)
        assert done.returncode == 0, done.stderr
    return cwd


@pytest.fixture
def evaluate(runs: Path) -> Program:
    """`python evaluate.py ARGUMENTS` beside the runs."""

    def run(*arguments: str, **environment: str) -> Any:
        return run_command(*arguments, cwd=runs, script="evaluate.py", **environment)

    return run


def test_new_data_are_new_and_what_is_written_is_true_of_them(runs: Path, evaluate: Program) -> None:
    done = evaluate("cnn", "--lattice-size", "12", "--num-test", "300")
    assert done.returncode == 0, done.stderr
    place = runs / "checkpoints" / "cnn" / "evaluations"
    result = json.loads((place / "L12.json").read_text())
    assert (place / "L12.png").read_bytes().startswith(b"\x89PNG")
    assert {"lattice_size", "n", "metrics", "by_temperature", "equilibrium", "worst_error"} <= set(result)
    assert (result["lattice_size"], result["n"]) == (12, 300)
    weights = runs / "checkpoints" / "cnn" / "best.pt"
    assert result["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert {"git_commit", "torch", "seed", "data"} <= set(result)

    config, model = load_run(runs / "checkpoints" / "cnn")
    request = parse_args([str(runs / "checkpoints" / "cnn"), "--lattice-size", "12", "--num-test", "300"])
    assert request.config.seed == config.seed + 1
    split, _ = new_data(request)
    errors = 144 * model(torch.from_numpy(split.spins)).double().numpy() - lattice.energy(split.spins)
    assert result["metrics"]["mae"] == pytest.approx(np.abs(errors).mean() / 144, rel=1e-3)
    assert result["worst_error"] == pytest.approx(np.abs(errors).max(), rel=1e-3)
    assert sum(row["n"] for row in result["by_temperature"]) == 300
    assert f"{result['metrics']['mae']:.4g}" in done.stdout

    again = evaluate("cnn", "--num-test", "50", "--name", "again")  # at the size of training
    assert again.returncode == 0, again.stderr
    seen = make_splits(config.data, config.seed)
    fresh, _ = new_data(parse_args([str(runs / "checkpoints" / "cnn"), "--num-test", "50"]))
    assert not any(np.array_equal(fresh.temperatures[:50], each.temperatures[:50]) for each in seen)


def test_configurations_from_elsewhere(runs: Path, evaluate: Program, tmp_path: Path) -> None:
    spins = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (40, 6, 6))
    np.savez(tmp_path / "hot.npz", spins=spins, temperatures=np.full(40, 1e3))
    done = evaluate("cnn", "--data", str(tmp_path / "hot.npz"))
    assert done.returncode == 0, done.stderr
    result = json.loads((runs / "checkpoints" / "cnn" / "evaluations" / "hot.json").read_text())
    assert (result["lattice_size"], result["n"]) == (6, 40)
    np.savez(tmp_path / "cold.npz", spins=spins, temperatures=np.full(40, 1.0))  # which these are not
    done = evaluate("cnn", "--data", str(tmp_path / "cold.npz"))
    assert done.returncode == 0
    assert "warning: the new split is not in equilibrium" in done.stdout


def test_sweeps_are_as_the_new_lattice_needs(runs: Path) -> None:
    folder = runs / "checkpoints" / "sweeps"
    shutil.copytree(runs / "checkpoints" / "cnn", folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"sweeps": null', '"sweeps": 100'))
    assert parse_args([str(folder), "--lattice-size", "32"]).config.data.sweeps is None
    assert parse_args([str(folder), "--sweeps", "7"]).config.data.sweeps == 7


def test_a_lattice_smaller_than_the_kernels_is_refused(evaluate: Program, runs: Path, tmp_path: Path) -> None:
    arguments = ("--architecture", "cnn", "--kernel-size", "6", *SMALL, "--device", "cpu", "--run-name", "wide")
    done = run_command(*arguments, "--batch-size", "50", cwd=runs)
    assert done.returncode == 0, done.stderr
    np.savez(tmp_path / "small.npz", spins=np.ones((3, 4, 4), np.int8), temperatures=np.ones(3))
    for extra in (("--lattice-size", "4"), ("--data", str(tmp_path / "small.npz"))):
        done = evaluate("wide", *extra)
        assert done.returncode == 2
        assert "kernels are 6 sites wide" in done.stderr
    (runs / "checkpoints" / "wide" / "evaluations").write_text("in the way")
    done = evaluate("wide")
    assert done.returncode == 5
    assert "cannot be written" in done.stderr


def test_a_classifier_is_held_against_bayes(runs: Path, evaluate: Program) -> None:
    folder = runs / "checkpoints" / "phase"
    results = json.loads((folder / "results.json").read_text())
    assert list(results["baselines"]) == ["majority", "magnetization", "bayes"]
    assert list(results["test"]) == ["loss", "accuracy"]
    rows = json.loads((folder / "epoch_metrics.json").read_text())
    assert {"val_loss", "val_accuracy"} < set(rows[0])
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert figures == {"training_curves.png", "phase_by_temperature.png", "configurations.png"}
    done = evaluate("phase", "--num-test", "400")
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "evaluations" / "L8.json").read_text())
    assert 0.5 < result["metrics"]["accuracy"] <= 1
    assert result["bayes"]["accuracy"] > 0.9
    assert "worst_error" not in result
    assert evaluate("phase", "--num-test", "50", "--temp-max", "2", "--name", "cold").returncode == 0  # one phase


@pytest.mark.parametrize(
    ("line", "code", "named"),
    [
        ("nobody", 2, ["nobody", "is no run"]),
        ("phase --lattice-size 16", 2, ["--lattice-size 16", "mlp", "8", "cnn"]),
        ("cnn --lattice-size 15", 2, ["--lattice-size 15", "a multiple of 2"]),
        ("cnn --num-test 0", 2, ["--num-test 0", "at least 1"]),
        ("cnn --temp-min 3 --temp-max 2", 2, ["--temp-min 3.0", "--temp-max 2.0"]),
        ("cnn --lattice-size 1024 --num-test 10000000", 2, ["GiB of memory", "--num-test"]),
        ("cnn --lattice-size 16 --sweeps 1 --num-test 3000", 2, ["not in equilibrium", "--sweeps"]),
        ("cnn --data x.npz --num-test 5", 2, ["--num-test does nothing with --data", "drop"]),
        ("cnn --data missing.npz", 3, ["missing.npz", "No such file"]),
        ("cnn --name ../x", 2, ["--name ../x", "letter"]),
        ("cnn --epochs 5", 2, ["--epochs"]),
        ("cnn --name=", 2, ["--name", "letter"]),
        ("x" * 300, 2, ["is no run"]),
        ("cnn --device tpu", 2, ["tpu", "cpu"]),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    line: str, code: int, named: list[str], runs: Path, evaluate: Program
) -> None:
    before = {path: path.read_bytes() for path in (runs / "checkpoints").rglob("*") if path.is_file()}
    done = evaluate(*line.split())
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("evaluate.py: error: ")
    assert done.stderr.count("\n") == 1
    assert all(words in done.stderr for words in named), done.stderr
    assert {path: path.read_bytes() for path in (runs / "checkpoints").rglob("*") if path.is_file()} == before


def test_a_damaged_run_is_refused(runs: Path, evaluate: Program) -> None:
    folder = runs / "checkpoints" / "damaged"
    shutil.copytree(runs / "checkpoints" / "cnn", folder)
    content = bytearray((folder / "best.pt").read_bytes())
    content[200] ^= 1
    (folder / "best.pt").write_bytes(content)
    done = evaluate("damaged")
    assert done.returncode == 3
    assert "best.pt is damaged" in done.stderr
    shutil.copy(folder / "last.pt", folder / "best.pt")  # whole, but another thing
    done = evaluate("damaged")
    assert done.returncode == 3
    assert "best.pt has no weights of this network" in done.stderr
    (folder / "best.pt").unlink()
    assert evaluate("damaged").returncode == 3


def test_the_preset_exact_finds_the_level_of_every_configuration_at_every_size(
    program: Program, tmp_path: Path
) -> None:
    done = program("--preset", "exact", "--device", "cpu", "--run-name", "exact")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "checkpoints" / "exact"
    assert json.loads((folder / "results.json").read_text())["test"]["exact_fraction"] == 1
    for size in (4, 32, 64):
        done = program("exact", "--lattice-size", str(size), "--num-test", "100", script="evaluate.py")
        assert done.returncode == 0, done.stderr
        result = json.loads((folder / "evaluations" / f"L{size}.json").read_text())
        assert result["metrics"]["exact_fraction"] == 1
        assert result["worst_error"] < 1
