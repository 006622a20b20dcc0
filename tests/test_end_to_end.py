"""The program as its users run it: real commands, whole runs, the same again."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config import PRESETS, load_config
from data import make_splits
from evaluate import load_run
from ising import lattice
from tests.conftest import DEBUG, ROOT, Program, run_command
from utils import UnusableFileError

DETERMINISTIC = ("epoch_metrics.json", "results.json")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_a_run_leaves_what_it_promises(finished_run: Path) -> None:
    assert {path.name for path in finished_run.iterdir()} == {
        ".lock",
        "config.json",
        "run_info.json",
        "epoch_metrics.json",
        "results.json",
        "predictions.npz",
        "best.pt",
        "last.pt",
        "previous.pt",
        "figures",
    }
    rows = read(finished_run, "epoch_metrics.json")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert list(rows[0]) == [
        *("epoch", "step", "train_loss"),
        *("val_loss", "val_mae", "val_rmse", "val_r2", "val_exact_fraction", "learning_rate"),
    ]
    results = read(finished_run, "results.json")
    assert list(results) == ["test", "baselines", "best_epoch", "epochs_trained", "equilibrium"]
    assert list(results["baselines"]) == ["mean", "pair_products", "symmetric_correlators"]
    for metrics in (results["test"], *results["baselines"].values()):
        assert list(metrics) == ["loss", "mae", "rmse", "r2", "exact_fraction"]
    assert set(results["equilibrium"]) == {"train", "val", "test"}
    info = read(finished_run, "run_info.json")
    assert info["status"] == "finished"
    assert info["device"] in ("cpu", "cuda", "mps")
    assert list(info["timings"]) == ["data", "training", "baselines", "figures"]
    assert re.fullmatch("[0-9a-f]{64}", info["data_sha256"])


def test_a_run_does_not_wait_for_the_compiler_that_it_does_not_use(tmp_path: Path) -> None:
    code = f"import sys, main; sys.argv[1:] = {DEBUG}; main.main(); sys.exit('torch._dynamo' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False).returncode == 0
    assert list((tmp_path / "checkpoints").glob("*/results.json"))


def test_the_results_are_those_of_the_best_weights_on_the_test_split(finished_run: Path) -> None:
    config, model = load_run(finished_run)
    results = read(finished_run, "results.json")
    rows = read(finished_run, "epoch_metrics.json")
    assert results["best_epoch"] == min(rows, key=lambda row: row["val_loss"])["epoch"]
    test = make_splits(config.data, config.seed).test
    with torch.inference_mode():
        predicted = model(torch.from_numpy(test.spins)).double().numpy()
    true = lattice.energy(test.spins) / 64
    assert np.abs(predicted - true).mean() == pytest.approx(results["test"]["mae"], rel=1e-5)
    assert (np.abs(predicted - true) * 64 < 2).mean() == results["test"]["exact_fraction"]


def test_the_last_words_are_a_table_for_the_journal_and_the_path(finished_run: Path) -> None:
    output = (finished_run.parent.parent / "stdout.txt").read_text()
    table, facts, path = output.strip().split("\n\n")[-3:]
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1  # aligned
    assert all(line.startswith("| ") and line.endswith(" |") for line in (lines[0], *lines[2:]))
    assert re.fullmatch(r"\|:-+\|(-+:\|)+", lines[1])
    mae = read(finished_run, "results.json")["test"]["mae"]
    assert f"{mae:.4g}" in lines[2]
    assert "`python " in facts
    assert "seed 42" in facts
    assert "training" in facts
    assert path == "checkpoints/first"


def test_the_same_command_and_its_config_give_the_same_again(finished_run: Path) -> None:
    cwd = finished_run.parent.parent
    for name, arguments in (
        ("second", DEBUG),
        ("third", ("--config", "checkpoints/first/config.json", "--no-checkpoints")),
    ):
        done = run_command(*arguments, "--run-name", name, cwd=cwd)
        assert done.returncode == 0, done.stderr
        again = cwd / "checkpoints" / name
        for file in DETERMINISTIC:
            assert (again / file).read_bytes() == (finished_run / file).read_bytes()
        assert read(again, "run_info.json")["data_sha256"] == read(finished_run, "run_info.json")["data_sha256"]
        assert (again / "best.pt").exists() == ("--no-checkpoints" not in arguments)


def test_another_seed_is_another_experiment(finished_run: Path) -> None:
    cwd = finished_run.parent.parent
    done = run_command("--config", "checkpoints/first/config.json", "--run-name", "again", "--seed", "7", cwd=cwd)
    assert done.returncode == 0, done.stderr
    again = cwd / "checkpoints" / "again"
    assert load_config(again / "config.json").seed == 7
    assert read(again, "run_info.json")["data_sha256"] != read(finished_run, "run_info.json")["data_sha256"]
    assert (again / "epoch_metrics.json").read_bytes() != (finished_run / "epoch_metrics.json").read_bytes()


def test_a_config_of_a_named_run_asks_for_another_name(finished_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    done = run_command("--config", "checkpoints/first/config.json", cwd=finished_run.parent.parent)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert "--run-name" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


def test_options_reach_a_whole_run_and_overwrite_replaces_it(program: Program, tmp_path: Path) -> None:
    line = (
        "--preset debug --device cpu --lattice-size 4 --num-train 300 --epochs 60 --patience 2 --lr 0.05 --hidden 16 8"
    )
    line += " --architecture residual_mlp --temp-min 2 --temp-max 3 --activation relu --optimizer sgd --scheduler none"
    line += " --run-name r"
    assert program(*line.split()).returncode == 0
    folder = tmp_path / "checkpoints" / "r"
    first = read(folder, "results.json")
    assert first["epochs_trained"] == len(read(folder, "epoch_metrics.json")) < 60
    (folder / "left_over.txt").write_text("")
    done = program(*line.split(), "--overwrite", "--epochs", "6")
    assert done.returncode == 0, done.stderr
    assert read(folder, "results.json")["epochs_trained"] <= 6
    assert not (folder / "left_over.txt").exists()
    config, model = load_run(folder)
    assert config.model.architecture == "residual_mlp"
    assert model(torch.ones(3, 4, 4, dtype=torch.int8)).shape == (3,)


def test_runs_without_a_name_do_not_meet(program: Program, tmp_path: Path) -> None:
    assert program(*DEBUG, "--epochs", "1").returncode == 0
    assert program(*DEBUG, "--epochs", "1").returncode == 0
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert len(names) == 2
    assert all(re.fullmatch(r"mlp-L8-seed42-\d{8}-\d{6}-\d{6}", name) for name in names)


def test_divergence_is_told_and_kept(program: Program, tmp_path: Path) -> None:
    done = program(*DEBUG, "--optimizer", "sgd", "--lr", "1e20", "--run-name", "d")
    assert done.returncode == 4
    assert done.stderr.startswith("main.py: error: loss or gradient is not finite")
    assert done.stderr.count("\n") == 1
    assert read(tmp_path / "checkpoints" / "d", "run_info.json")["status"] == "diverged"


def test_a_disk_that_cannot_be_written(program: Program, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder of the runs should be")
    done = program(*DEBUG, "--run-name", "a")
    assert done.returncode == 5
    assert done.stderr.startswith("main.py: error: ")
    assert done.stderr.count("\n") == 1
    assert "checkpoints" in done.stderr


def test_print_config_prints_it_and_does_nothing_else(program: Program, tmp_path: Path) -> None:
    done = program("--preset", "large", "--lr", "0.5", "--print-config")
    assert done.returncode == 0
    (tmp_path / "c.json").write_text(done.stdout)
    assert load_config(tmp_path / "c.json").train.lr == 0.5
    assert load_config(tmp_path / "c.json").data == PRESETS["large"].data
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_two_threads_compute_the_same_twice(program: Program, tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert program(*DEBUG, "--run-name", name, "--threads", "2").returncode == 0
    one, other = (tmp_path / "checkpoints" / name for name in ("one", "other"))
    assert read(one, "run_info.json")["threads"] == 2
    for name in DETERMINISTIC:
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_reader_that_leaves_early_does_not_stop_the_run(tmp_path: Path) -> None:
    command = f"{sys.executable} {ROOT / 'main.py'} {' '.join(DEBUG)} --run-name piped | head -1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("data drawn with multispin")
    assert done.stderr == ""
    assert read(tmp_path / "checkpoints" / "piped", "run_info.json")["status"] == "finished"


def test_a_locale_without_unicode(program: Program) -> None:
    done = program(*DEBUG, "--epochs", "1", LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "other network", "no json"])
def test_a_run_that_cannot_be_loaded_is_refused(damage: str, finished_run: Path, tmp_path: Path) -> None:
    config = (finished_run / "config.json").read_text()
    weights: bytes | None = (finished_run / "best.pt").read_bytes()
    assert weights is not None
    if damage == "other network":
        config = config.replace("64,\n      32", "64,\n      33")
    if damage == "no json":
        config = "{"
    (tmp_path / "config.json").write_text(config)
    if damage != "missing":
        (tmp_path / "best.pt").write_bytes({"empty": b"", "truncated": weights[:-100]}.get(damage, weights))
    with pytest.raises(UnusableFileError) as caught:
        load_run(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
