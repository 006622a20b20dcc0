"""Complete runs of the Ising experiment: their files, the effect of options, and reproducibility."""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from engine.datasets.overlap import hash_inputs
from engine.datasets.splits import get_splits
from engine.interface.base_config import load_config
from engine.machine.errors import BadRequestError
from engine.run_folder.run_request import parse_args
from evaluate import load_run
from experiments.common import evaluated, unseen_of
from ising import lattice
from problem import PROBLEM
from tests.conftest import DEBUG, ROOT, environment, read, run_and_look_for_compiler, run_command
from tests.test_docs import blocks, section

REPRODUCIBLE = ("epoch_metrics.json", "results.json", "predictions.npz", "train_inputs.npy")


def run_here(*arguments: str) -> Path:
    """Run the experiment in this process, in the working folder; return the folder of the run."""
    command = parse_args(PROBLEM, list(arguments), prog="main.py")
    folder = Path("checkpoints", str(command.config.log.run_name)).absolute()
    main.run(PROBLEM, command.config, folder, overwrite=command.overwrite)
    return folder


def test_a_run_writes_all_results(finished_run: Path) -> None:
    rows = read(finished_run, "epoch_metrics.json")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert list(rows[0]) == [
        *("epoch", "step", "train_loss"),
        *("val_loss", "val_mae", "val_rmse", "val_r2", "val_exact_fraction", "learning_rate"),
    ]
    results = read(finished_run, "results.json")
    assert list(results) == [
        *("test", "baselines", "n_test", "n_unseen", "test_unseen", "baselines_unseen"),
        *("checks", "best_epoch", "epochs_trained"),
    ]
    assert list(results["baselines"]) == ["mean", "magnetization", "pair_products", "symmetric_correlators"]
    for metrics in (results["test"], *results["baselines"].values()):
        assert list(metrics) == ["loss", "mae", "rmse", "r2", "exact_fraction"]
    assert list(results["checks"]) == ["train", "val", "test"]
    for numbers in results["checks"].values():
        assert list(numbers) == ["energy_z", "chi2_per_dof", "largest_bin_z"]
    info = read(finished_run, "run_info.json")
    assert (info["status"], info["problem"]) == ("finished", "problem")
    figures = ("training_curves", "error_by_temperature", "parity", "configurations")
    assert {path.name for path in (finished_run / "figures").iterdir()} == {f"{name}.png" for name in figures}


def test_predictions_are_saved_with_the_data_of_the_figures(finished_run: Path) -> None:
    test = get_splits(PROBLEM, load_config(PROBLEM.config_type, finished_run / "config.json"))[0].test
    with np.load(finished_run / "predictions.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) >= {
            *("targets", "predictions", "temperatures", "example_spins", "example_temperatures"),
            *(f"baseline_{name}" for name in ("mean", "magnetization", "pair_products", "symmetric_correlators")),
        }
        assert np.array_equal(arrays["targets"], lattice.energy(test["spins"]) / 64)
        assert np.array_equal(arrays["temperatures"], test["temperatures"])
        shape = arrays["example_temperatures"].shape
        assert arrays["example_spins"].shape == (*shape, 8, 8)
        for spins, temperature in zip(
            arrays["example_spins"].reshape(-1, 8, 8), arrays["example_temperatures"].ravel(), strict=True
        ):
            (i,) = np.flatnonzero(test["temperatures"] == temperature)
            assert np.array_equal(test["spins"][i], spins)


def test_the_results_are_those_of_the_best_weights_on_the_test_split(finished_run: Path) -> None:
    config, model = load_run(finished_run)
    results, rows = read(finished_run, "results.json"), read(finished_run, "epoch_metrics.json")
    assert results["best_epoch"] == min(rows, key=lambda row: row["val_loss"])["epoch"]
    test = get_splits(PROBLEM, config)[0].test
    with torch.inference_mode():
        predicted = model(torch.tensor(test["spins"])).double().numpy()
    true = lattice.energy(test["spins"]) / 64
    assert np.abs(predicted - true).mean() == pytest.approx(results["test"]["mae"], rel=1e-5)
    assert (np.abs(predicted - true) * 64 < 2).mean() == results["test"]["exact_fraction"]


def test_options_take_effect_in_a_complete_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = "--preset debug --device cpu --lattice-size 4 --num-train 300 --epochs 60 --patience 2 --lr 0.05"
    line += " --hidden 16 8 --architecture residual_mlp --temp-min 2 --temp-max 3 --activation relu"
    line += " --optimizer sgd --scheduler none --run-name r"
    folder = run_here(*line.split())
    assert read(folder, "results.json")["epochs_trained"] == len(read(folder, "epoch_metrics.json")) < 60
    config, model = load_run(folder)
    assert config == parse_args(PROBLEM, line.split(), prog="main.py").config
    assert (config.model.architecture, config.model.hidden) == ("residual_mlp", (16, 8))
    assert model(torch.ones(3, 4, 4, dtype=torch.int8)).shape == (3,)
    with np.load(folder / "predictions.npz") as arrays:
        assert 2 <= arrays["temperatures"].min() < 2.1
        assert 2.9 < arrays["temperatures"].max() <= 3


def test_the_phase_can_be_learned_instead_of_the_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = "--preset debug --device cpu --task phase --lattice-size 4 --num-train 300 --epochs 2 --run-name p"
    results = read(run_here(*line.split()), "results.json")
    assert list(results["baselines"]) == ["majority", "magnetization", "bayes"]
    for metrics in (results["test"], *results["baselines"].values()):
        assert list(metrics) == ["loss", "accuracy"]
    assert results["baselines"]["bayes"]["loss"] < results["baselines"]["majority"]["loss"]


def test_cold_configurations_that_occur_in_training_do_not_count_as_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = "--preset debug --device cpu --temp-min 0.5 --temp-max 1.5 --run-name cold"
    folder = run_here(*line.split())
    results = read(folder, "results.json")
    config, model = load_run(folder)
    splits = get_splits(PROBLEM, config)[0]
    in_training = {spins.tobytes() for spins in splits.train["spins"]}
    new = np.array([spins.tobytes() not in in_training for spins in splits.test["spins"]])
    assert (results["n_test"], results["n_unseen"]) == (500, int(new.sum()))
    assert 0 < new.sum() < 250  # most configurations are in a ground state, and both ground states occur in training
    energies = lattice.energy(splits.test["spins"])
    assert not new[energies == -128].any()
    with np.load(folder / "predictions.npz") as arrays:
        errors = np.abs(arrays["predictions"] - arrays["targets"])[new]
        baseline = np.abs(arrays["baseline_mean"] - arrays["targets"])[new]
    assert results["test_unseen"]["mae"] == pytest.approx(errors.mean(), rel=1e-12)
    assert results["test_unseen"]["exact_fraction"] == (errors * 64 < 2).mean()
    assert results["baselines_unseen"]["mean"]["mae"] == pytest.approx(baseline.mean(), rel=1e-12)

    unseen = unseen_of(splits.test, splits.train)  # the selection in the experiments
    np.testing.assert_array_equal(unseen["spins"], splits.test["spins"][new])
    assert evaluated(config, model, unseen) == pytest.approx(results["test_unseen"], rel=1e-5)
    assert len(unseen_of(splits.train, splits.train)["spins"]) == 0
    # Temperatures are real numbers: together with its temperature, no configuration occurs twice.
    with_temperature = replace(config, model=replace(config.model, input_temperature=True))
    assert len(set(hash_inputs(PROBLEM, with_temperature, splits.train).tolist())) == 2000


@pytest.mark.slow
def test_the_command_gives_the_same_bytes_in_another_process(finished_run: Path, tmp_path: Path) -> None:
    done = run_command(*DEBUG, "--run-name", "second", cwd=tmp_path, script="main.py")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"`python {ROOT / 'main.py'} {' '.join(DEBUG)} --run-name second`" in done.stdout
    for file in REPRODUCIBLE:
        again = tmp_path / "checkpoints" / "second" / file
        assert again.read_bytes() == (finished_run / file).read_bytes()
    done = run_command("--resume", "second", "--epochs", "6", cwd=tmp_path, script="main.py")
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch 5 of 6" in done.stdout


@pytest.mark.slow
def test_the_numbers_of_a_run_do_not_depend_on_the_threads_that_the_environment_asks_for(
    finished_run: Path, tmp_path: Path
) -> None:
    done = run_command(*DEBUG, "--threads", "1", "--run-name", "r", cwd=tmp_path, script="main.py", OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    for name in REPRODUCIBLE:  # those of one thread
        assert (tmp_path / "checkpoints" / "r" / name).read_bytes() == (finished_run / name).read_bytes()


# A user that the system does not know: Python then finds no home folder without HOME.
UNKNOWN_USER = """
import pwd
def getpwuid(uid):
    raise KeyError(uid)
pwd.getpwuid = getpwuid
"""


@pytest.mark.slow
def test_a_missing_home_folder_leaves_no_folder_with_a_strange_name(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "cache", "checkpoints", "__pycache__", "tests"))
    (copy / "ising" / "__pycache__").touch()  # Numba cannot write there
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "sitecustomize.py").write_text(UNKNOWN_USER, encoding="utf-8", newline="\n")
    env = environment(
        PYTHONPATH=os.pathsep.join(map(str, (tmp_path / "user", copy))),
        PYTHONDONTWRITEBYTECODE="1",
        WANDB_MODE="offline",
    )
    del env["HOME"]
    code = "import ising.multispin; from examples.potential import PROBLEM; from main import main; main(PROBLEM)"
    command = [sys.executable, "-c", code, *DEBUG, "--wandb", "--run-name", "r"]
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in cwd.iterdir()) == ["cache", "checkpoints"]


@pytest.mark.slow
def test_a_run_does_not_load_the_compiler_which_takes_a_second(tmp_path: Path) -> None:
    assert run_and_look_for_compiler("problem", tmp_path) == 0


@pytest.mark.slow
def test_fine_tuning_on_a_larger_lattice_as_in_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = blocks(section("docs/usage.md", "Start from another run"), "sh")[0].splitlines()
    start = run_here(*shlex.split(first)[2:])
    tuned = run_here(*shlex.split(second)[2:])
    assert read(tuned, "results.json")["test"]["exact_fraction"] == 1
    assert read(tuned, "run_info.json")["init_from"]["epoch"] == read(start, "results.json")["best_epoch"]
    random = run_here(*shlex.split(second)[2:], *["--init-from", "none", "--lr", "0.1", "--run-name", "random"])
    assert read(random, "results.json")["test"]["exact_fraction"] < 0.5
    with pytest.raises(BadRequestError, match="--init-from exact: that run has --architecture cnn --channels 32"):
        run_here(*["--preset", "debug", "--init-from", "exact", "--run-name", "r"])
