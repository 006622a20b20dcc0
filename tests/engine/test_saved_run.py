"""Runs as their files describe them: also damaged ones, those of sweeps, and those of earlier versions."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.interface.base_config import load_config, to_dict
from engine.many_runs.groups import find_groups
from engine.options.config_values import flatten, setting_of
from engine.run_folder.find_run import find_runs
from engine.run_folder.saved_run import Run, read_run
from tests.conftest import ROOT, read
from tests.toy import PROBLEM, ToyConfig


@pytest.fixture
def run(toy_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may change."""
    return Path(shutil.copytree(toy_run, tmp_path / "checkpoints" / "first"))


def record_of(folder: Path) -> Run:
    record = read_run(folder)
    assert record is not None
    return record


def test_a_finished_run_has_its_metrics(toy_run: Path) -> None:
    record = record_of(toy_run)
    assert (record.name, record.label, record.problem, record.seed) == ("first", "mlp-d3", "tests.toy", 42)
    assert (record.status, record.epochs, record.epochs_planned) == ("finished", 5, 5)
    assert record.main_metric == ("mae", "min")
    assert record.changed == {
        "data.num_train": 200,
        "data.num_val": 50,
        "data.num_test": 50,
        "train.epochs": 5,
        "train.lr": 0.01,
    }
    metrics, results = record.metrics(), read(toy_run, "results.json")
    assert metrics["test_mae"] == results["test"]["mae"]
    assert metrics["val_mae"] == read(toy_run, "epoch_metrics.json")[results["best_epoch"] - 1]["val_mae"]
    assert "train_loss" not in metrics


def test_an_unfinished_run_has_validation_metrics_only(run: Path) -> None:
    (run / "run_info.json").write_text('{"status": "diverged"}', encoding="utf-8", newline="\n")
    rows = read(run, "epoch_metrics.json")[:3]
    (run / "epoch_metrics.json").write_text(json.dumps(rows), encoding="utf-8", newline="\n")
    record = record_of(run)
    assert (record.status, record.epochs, record.is_finished) == ("diverged", 3, False)
    assert record.metrics()["val_loss"] == min(row["val_loss"] for row in rows)
    assert "test_mae" not in record.metrics()


def test_a_run_of_an_earlier_version_has_defaults(run: Path) -> None:
    (run / "run_info.json").unlink()
    record = record_of(run)
    assert (record.status, record.label, record.problem, record.changed) == ("unknown", "first", "problem", None)
    assert record.main_metric == ("mae", "min")


@pytest.mark.parametrize("name", ["config.json", "run_info.json", "results.json", "epoch_metrics.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"test": 1, "seed": [], "main_metric": 3}', b"3"])
def test_a_damaged_file_is_no_traceback(name: str, content: bytes, run: Path) -> None:
    (run / name).write_bytes(content)
    record = record_of(run)
    assert record.status == ("finished" if name == "epoch_metrics.json" else "damaged")
    assert record.epochs == 5
    assert record.is_finished == bool(record.test_metrics()) == (record.status == "finished")
    assert record.epochs_planned in (5, None)
    assert record.main_metric == ("mae", "min") or name == "results.json"
    assert record.changed is None or record.changed["train.lr"] == 0.01
    assert (record.seed in (42, None), record.label in ("mlp-d3", "first"), len(record.date) in (0, 25)) == (True,) * 3


def test_runs_are_found_in_a_folder_and_in_its_sweeps(run: Path) -> None:
    root = run.parent
    for name in ("width/seed10", "width/seed2", "folder/seed3"):
        shutil.copytree(run, root / name)
    (root / "width" / "sweep.json").write_text("{}", encoding="utf-8", newline="\n")
    (root / "file").touch()
    for name in ("one", "two"):
        (root / "width" / name).symlink_to(root / "width")  # 2^40 paths lead to the runs
    (root / "loop").symlink_to("loop")
    (root / "beyond").symlink_to("first/config.json/x")
    (root / "folder" / "sweep.json").symlink_to("x" * 300)
    assert [record.name for record in find_runs(root)] == ["first", "width/seed2", "width/seed10"]
    assert [record.name for record in find_runs(root / "width")] == ["width/seed2", "width/seed10"]
    assert find_runs(root / "missing") == []
    assert read_run(root / "width") is None
    assert read_run(root / "file") is None


def test_a_setting_does_not_depend_on_the_seed_and_the_machine(toy_run: Path) -> None:
    config = to_dict(load_config(ToyConfig, toy_run / "config.json"))
    left_out = set(flatten(config)) - set(flatten(setting_of(config)))
    assert left_out == {
        *("seed", "log.run_name", "log.wandb", "log.checkpoints", "data.cache"),
        *("device", "threads", "compile"),
    }
    assert flatten(config)["train.lr"] == PROBLEM.presets["debug"].train.lr


def test_reading_runs_loads_neither_numpy_nor_pydantic() -> None:
    heavy = "torch numpy pydantic scipy"
    code = f"import sys, engine.many_runs.comparison; sys.exit(bool(set({heavy.split()}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_data_file_is_named_by_its_content(toy_in_process: Callable[..., int]) -> None:
    """Runs with copies of a file have one setting, and form a mean. Runs with another file of that name do not."""
    sizes = ("--num-train", "40", "--num-val", "20", "--num-test", "20")
    train = (*sizes, "--batch-size", "20", "--epochs", "1")
    assert toy_in_process(*sizes, "--save-data", "a.npz") == 0
    Path("moved").mkdir()
    shutil.copy("a.npz", "moved/b.npz")
    for seed, file in ((1, "a.npz"), (2, "moved/b.npz")):
        assert toy_in_process(*train, "--data", file, "--seed", str(seed), "--run-name", f"r{seed}") == 0
    assert toy_in_process(*sizes, "--seed", "9", "--save-data", "a.npz", "--overwrite") == 0
    assert toy_in_process(*train, "--data", "a.npz", "--seed", "3", "--run-name", "r3") == 0
    first, second, third = find_runs(Path("checkpoints"))
    assert first.setting == second.setting != third.setting
    assert sorted(map(len, find_groups(["r*"]).values())) == [1, 2]
