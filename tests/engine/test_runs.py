"""Whole runs: the files that they write, that they can be repeated bit for bit, and how they end."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import main
from engine.datasets.splits import get_splits
from engine.interface.base_config import load_config
from engine.interface.base_problem import Check, Columns
from engine.run_folder.run_request import parse_args
from evaluate import load_run
from tests.conftest import DEBUG, Program, read
from tests.toy import PROBLEM, ToyConfig, ToyProblem

Run = Callable[..., int]

REPRODUCIBLE = ("epoch_metrics.json", "results.json", "predictions.npz", "train_inputs.npy")

RUNS = Path("checkpoints")


# -------------------------------------------------------------------------------------------------- the files of a run


def test_a_run_writes_all_documented_files(toy_run: Path) -> None:
    assert {path.name for path in toy_run.iterdir()} == {
        *(".lock", "config.json", "run_info.json", "epoch_metrics.json", "results.json", "predictions.npz"),
        *("best.pt", "last.pt", "previous.pt", "train_inputs.npy", "figures"),
    }
    assert {path.name for path in (toy_run / "figures").iterdir()} == {"training_curves.png", "parity.png"}
    rows = read(toy_run, "epoch_metrics.json")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in rows] == [4, 8, 12, 16, 20]
    assert list(rows[0]) == [
        *("epoch", "step", "train_loss", "val_loss", "val_mae", "val_rmse", "val_r2", "learning_rate"),
    ]
    results = read(toy_run, "results.json")
    assert list(results) == [
        *("test", "baselines", "n_test", "n_unseen", "test_unseen", "baselines_unseen"),
        *("checks", "best_epoch", "epochs_trained"),
    ]
    assert list(results["baselines"]) == ["mean"]
    for metrics in (results["test"], *results["baselines"].values()):
        assert list(metrics) == ["loss", "mae", "rmse", "r2"]
    assert set(results["checks"]) == {"train", "val", "test"}
    info = read(toy_run, "run_info.json")
    assert info["status"] == "finished"
    assert info["problem"] == "tests.toy"
    assert info["device"] == "cpu"
    assert info["argv"][1:] == [*DEBUG, "--run-name", "first"]
    assert list(info["timings"]) == ["data", "baselines", "training", "figures"]
    assert re.fullmatch("[0-9a-f]{64}", info["data_sha256"])
    cached = [path.name for path in (toy_run.parent.parent / "cache").iterdir()]
    assert len(cached) == 1
    assert info["data_source"].endswith(f"cache/{cached[0]}")


def test_the_arrays_that_figures_need_are_saved(toy_run: Path) -> None:
    config = load_config(ToyConfig, toy_run / "config.json")
    test = get_splits(PROBLEM, config)[0].test
    with np.load(toy_run / "predictions.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {
            *("targets", "predictions", "baseline_mean", "signs", "values", "is_far"),
            *(f"example_{name}" for name in ("points", "signs", "values", "is_far", "targets", "predictions")),
        }
        assert np.array_equal(arrays["targets"], test["values"])
        for name in ("signs", "values", "is_far"):  # the columns with one number per example
            assert np.array_equal(arrays[name], test[name])
            assert np.array_equal(arrays[f"example_{name}"], test[name][:6].reshape(2, 3))
        assert np.array_equal(arrays["example_points"], test["points"][:6].reshape(2, 3, 3))
        assert np.array_equal(arrays["example_predictions"], arrays["predictions"][:6].reshape(2, 3))


def test_the_results_are_those_of_the_best_weights_on_the_test_split(toy_run: Path) -> None:
    config, model = load_run(toy_run)
    results, rows = read(toy_run, "results.json"), read(toy_run, "epoch_metrics.json")
    assert results["best_epoch"] == min(rows, key=lambda row: row["val_loss"])["epoch"]
    splits, _ = get_splits(PROBLEM, config)
    with torch.inference_mode():
        predicted = model(*map(torch.tensor, PROBLEM.inputs(config, splits.test))).double().numpy()
    errors = predicted - splits.test["values"]
    assert np.abs(errors).mean() == pytest.approx(results["test"]["mae"], rel=1e-5)
    assert np.sqrt((errors**2).mean()) == pytest.approx(results["test"]["rmse"], rel=1e-5)
    baseline = np.abs(splits.test["values"] - splits.train["values"].mean()).mean()
    assert results["baselines"]["mean"]["mae"] == pytest.approx(baseline, rel=1e-5)


def test_the_output_ends_with_a_table_the_command_and_the_folder(toy_run: Path) -> None:
    output = (toy_run.parent.parent / "stdout.txt").read_text(encoding="utf-8")
    table, facts, path = output.strip().split("\n\n")[-3:]
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1  # aligned
    assert all(line.startswith("| ") and line.endswith(" |") for line in (lines[0], *lines[2:]))
    assert re.fullmatch(r"\|:-+\|(-+:\|)+", lines[1])
    assert "on 50 test examples" in lines[0]
    mae = read(toy_run, "results.json")["test"]["mae"]
    assert f"{mae:.4g}" in lines[2]
    assert f"`python -m tests.toy {' '.join(DEBUG)} --run-name first`" in facts
    assert "seed 42" in facts
    assert "training" in facts
    assert path == "checkpoints/first"


# ----------------------------------------------------------------------------------------------------- reproducibility


@pytest.mark.parametrize("from_config", [False, True])
def test_the_same_command_and_its_config_give_the_same_bytes(
    from_config: bool, toy_run: Path, toy_in_process: Run
) -> None:
    arguments = ["--config", str(toy_run / "config.json"), "--no-checkpoints"] if from_config else DEBUG
    assert toy_in_process(*arguments, "--run-name", "again") == 0
    again = RUNS / "again"
    for file in REPRODUCIBLE:
        assert (again / file).read_bytes() == (toy_run / file).read_bytes()
    assert read(again, "run_info.json")["data_sha256"] == read(toy_run, "run_info.json")["data_sha256"]
    assert (again / "best.pt").exists() == (not from_config)


def test_another_seed_gives_other_data_and_results(toy_run: Path, toy_in_process: Run) -> None:
    assert toy_in_process("--config", str(toy_run / "config.json"), "--run-name", "again", "--seed", "7") == 0
    again = RUNS / "again"
    assert load_config(ToyConfig, again / "config.json").seed == 7
    assert read(again, "run_info.json")["data_sha256"] != read(toy_run, "run_info.json")["data_sha256"]
    assert (again / "epoch_metrics.json").read_bytes() != (toy_run / "epoch_metrics.json").read_bytes()


def test_two_threads_give_the_same_bytes_twice(toy_in_process: Run) -> None:
    # The steps are large enough for two threads to share them.
    line = [*DEBUG, "--hidden", "4096", "--batch-size", "200", "--epochs", "3", "--threads", "2"]
    for name in ("one", "other"):
        assert toy_in_process(*line, "--run-name", name) == 0
        assert read(RUNS / name, "run_info.json")["threads"] == 2
        assert torch.get_num_threads() == 2
    for file in REPRODUCIBLE:
        assert (RUNS / "one" / file).read_bytes() == (RUNS / "other" / file).read_bytes()


# -------------------------------------------------------------------------------------------------- names and overwrite


def test_the_config_of_a_named_run_needs_another_name(
    toy_run: Path, toy_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(toy_run, RUNS / "first")
    before = {path: path.stat().st_mtime_ns for path in RUNS.rglob("*")}
    assert toy_in_process("--config", "checkpoints/first/config.json") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for words in ("exists already", "--resume first", "--overwrite", "--run-name"):
        assert words in error
    assert {path: path.stat().st_mtime_ns for path in RUNS.rglob("*")} == before


def test_options_reach_a_whole_run_and_overwrite_replaces_it(toy_in_process: Run) -> None:
    line = "--preset debug --device cpu --dimension 2 --num-train 300 --epochs 60 --patience 2 --lr 0.05 --hidden 8"
    line += " --kind pooled --spread 2 --optimizer sgd --scheduler none --absolute --run-name r"
    assert toy_in_process(*line.split()) == 0
    folder = RUNS / "r"
    assert read(folder, "results.json")["epochs_trained"] == len(read(folder, "epoch_metrics.json")) < 60
    (folder / "left_over.txt").write_text("", encoding="utf-8", newline="\n")
    assert toy_in_process(*line.split(), "--overwrite", "--epochs", "6") == 0
    assert read(folder, "results.json")["epochs_trained"] <= 6
    assert not (folder / "left_over.txt").exists()
    config, model = load_run(folder)
    assert config == parse_args(PROBLEM, [*line.split(), "--epochs", "6"], prog="toy.py").config
    assert (config.model.kind, config.data.dimension, config.absolute) == ("pooled", 2, True)
    assert model(torch.rand(3, 2), torch.ones(3, dtype=torch.int8)).shape == (3,)
    with np.load(folder / "predictions.npz") as arrays:
        assert arrays["targets"].min() >= 0
        assert 1 < np.abs(arrays["example_points"]).max() <= 2


def test_runs_without_a_name_get_different_names(toy_in_process: Run) -> None:
    for _ in range(2):
        assert toy_in_process(*DEBUG, "--epochs", "1") == 0
    names = [path.name for path in RUNS.iterdir()]
    assert len(names) == 2
    assert all(re.fullmatch(r"mlp-d3-seed42-\d{8}-\d{6}-\d{6}", name) for name in names)


# -------------------------------------------------------------------------------------------------------- other endings


def test_a_run_that_diverges_has_exit_code_4_and_is_marked(
    toy_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy_in_process(*DEBUG, "--optimizer", "sgd", "--lr", "1e20", "--run-name", "d") == 4
    error = capsys.readouterr().err
    assert error.startswith("toy.py: error: the loss is not finite in epoch 1")
    assert error.count("\n") == 1
    assert read(RUNS / "d", "run_info.json")["status"] == "diverged"


def test_a_disk_that_cannot_be_written_gives_exit_code_5(
    toy_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    RUNS.write_text("a file where the folder of the runs should be", encoding="utf-8", newline="\n")
    assert toy_in_process(*DEBUG, "--run-name", "a") == 5
    error = capsys.readouterr().err
    assert error.startswith("toy.py: error: ")
    assert error.count("\n") == 1
    assert "checkpoints" in error
    assert "writable" in error


def test_print_config_prints_the_config_and_does_nothing_else(
    toy_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy_in_process("--preset", "debug", "--lr", "0.5", "--print-config") == 0
    assert list(Path.cwd().iterdir()) == []
    Path("c.json").write_text(capsys.readouterr().out, encoding="utf-8", newline="\n")
    config = load_config(ToyConfig, "c.json")
    assert config.train.lr == 0.5
    assert config.data == PROBLEM.presets["debug"].data


# ----------------------------------------------------------------------------------------------------- as real commands


def blas_threads() -> set[int]:
    """The numbers of threads of all loaded libraries for linear algebra, apart from those that cannot be set."""
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_problems_use_one_thread_for_linear_algebra(tmp_path: Path) -> None:
    found: dict[str, set[int]] = {}

    class Observed(ToyProblem):
        """The toy problem, which records the number of threads in the methods that may use linear algebra."""

        def generate(self, config: Any, n: int, seed: Any) -> Columns:
            found["generate"] = blas_threads()
            return super().generate(config, n, seed)

        def check(self, config: ToyConfig, columns: Columns) -> Check:
            found["check"] = blas_threads()
            return super().check(config, columns)

        def baselines(self, config: ToyConfig, train: Columns, test: Columns) -> Any:
            found["baselines"] = blas_threads()
            return super().baselines(config, train, test)

    config = replace(PROBLEM.presets["debug"], device="cpu", threads=1)
    with threadpool_limits(2, user_api="blas"):  # as on a machine with two cores
        if blas_threads() != {2}:
            pytest.skip("the number of threads cannot be set")
        main.run(Observed(), replace(config, data=replace(config.data, cache=False)), tmp_path / "r")
        assert blas_threads() == {2}
    assert found == {"generate": {1}, "check": {1}, "baselines": {1}}


@pytest.mark.slow
def test_settings_of_python_do_not_matter(toy: Program, toy_run: Path, tmp_path: Path) -> None:
    settings = {"PYTHONOPTIMIZE": "2", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "error"}
    done = toy(*DEBUG, "--run-name", "r", **settings)
    assert (done.returncode, done.stderr) == (0, "")
    results = tmp_path / "checkpoints" / "r" / "results.json"
    assert results.read_bytes() == (toy_run / "results.json").read_bytes()
