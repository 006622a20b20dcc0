"""Runs of commit 6bbe7fc (tests/second_version) still load, resume, compare and evaluate as they did then.

The options of all of them are OPTIONS. The commands were

    python main.py OPTIONS --run-name finished
    python evaluate.py finished --num-test 100 --temp-min 2 --temp-max 3 --name near_tc
    python sweep.py sweep OPTIONS --seeds 2 --grid lr=0.001,0.01
    python evaluate.py sweep --num-test 100
    python main.py OPTIONS --epochs 6 --replay --run-name interrupted    SIGINT after epoch 3
    python main.py --resume interrupted                                  on a copy: `resumed` has what it wrote

Locks, figures and the checkpoints of the sweep are left out. `--replay` has been removed since.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import evaluate
import main
import runs
import sweep
from engine.interface.base_config import load_config, to_json
from engine.run_folder.run_request import parse_args
from problem import PROBLEM
from tests.conftest import ROOT, read
from tests.engine.conftest import OneProcess

SAVED = ROOT / "tests" / "second_version"
SIZES = ("--num-train", "200", "--num-val", "50", "--num-test", "50", "--batch-size", "50")
# The commands had `--preset debug`, whose values have changed since. Those of an empty config have not, but the epochs.
OPTIONS = ("--config", "empty.json", "--hidden", "8", *SIZES, "--device", "cpu", "--threads", "1")
PROGRAMS: dict[str, Callable[[], None]] = {
    "main.py": lambda: main.main(PROBLEM),
    "evaluate.py": evaluate.main,
    "runs.py": runs.main,
    "sweep.py": sweep.main,
}

Command = Callable[..., str]


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `checkpoints`, with copies of the runs, in the working folder of the test. It also has empty.json."""
    monkeypatch.chdir(tmp_path)
    Path("empty.json").write_text("{}", encoding="utf-8")
    shutil.copytree(SAVED, "checkpoints")
    for config in Path("checkpoints").glob("**/config.json"):
        config.with_name(".lock").touch()
    return Path("checkpoints")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs a command in this process, `command("runs.py", "sweep")`, and returns what it prints."""

    def run(program: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as end:
            PROGRAMS[program]()
        captured = capsys.readouterr()
        assert end.value.code == 0, captured.err
        return captured.out

    return run


def assert_equal_predictions(folder: Path, expected: Path) -> None:
    """Compare the predictions of two runs, up to the rounding errors of different machines."""
    found, arrays = (np.load(each / "predictions.npz") for each in (folder, expected))
    assert set(found.files) == {*arrays.files, "baseline_magnetization"}  # which is newer
    for name in arrays.files:
        assert found[name] == pytest.approx(arrays[name], rel=1e-4, abs=1e-6), name


def machine_computes_the_same(command: Command) -> bool:
    """Whether the first three epochs of `interrupted` give, on this machine, the same numbers to the last bit."""
    command("main.py", *OPTIONS, "--epochs", "6", "--run-name", "whole")
    rows = read(Path("checkpoints/whole"), "epoch_metrics.json")
    return bool(rows[:3] == read(SAVED / "interrupted", "epoch_metrics.json"))


def test_a_run_is_resumed_to_the_same_bytes(saved: Path, command: Command) -> None:
    out = command("main.py", "--resume", "interrupted")
    assert "continuing after epoch 3 of 6" in out
    assert_equal_predictions(saved / "interrupted", SAVED / "resumed")
    if machine_computes_the_same(command):
        name = "epoch_metrics.json"
        assert (saved / "interrupted" / name).read_bytes() == (SAVED / "resumed" / name).read_bytes()
        results, expected = (read(folder, "results.json") for folder in (saved / "interrupted", SAVED / "resumed"))
        for key in ("baselines", "baselines_unseen"):
            del results[key]["magnetization"]
        assert results == expected


def test_a_finished_run_has_nothing_to_resume_and_can_be_made_longer(saved: Path, command: Command) -> None:
    before = (saved / "finished" / "last.pt").read_bytes()
    assert "nothing to resume" in command("main.py", "--resume", "finished")
    assert (saved / "finished" / "last.pt").read_bytes() == before
    assert "continuing after epoch 5 of 6" in command("main.py", "--resume", "finished", "--epochs", "6")
    assert [row["epoch"] for row in read(saved / "finished", "epoch_metrics.json")] == [1, 2, 3, 4, 5, 6]


def test_a_config_starts_an_equal_run(saved: Path, command: Command) -> None:
    command("main.py", "--config", "checkpoints/finished/config.json", "--run-name", "again")
    assert_equal_predictions(saved / "again", SAVED / "finished")
    compared = command("runs.py", "compare", "again", "finished")
    assert "hidden" not in compared  # no option differs
    assert "epochs" not in compared


def test_evaluations_give_the_same_numbers(saved: Path, command: Command) -> None:
    name = "L8-num-test100-seed44"
    before = read(saved / "finished/evaluations", "near_tc.json"), read(saved / "sweep/evaluations", f"{name}.json")
    command("evaluate.py", "finished", "--num-test", "100", "--temp-min", "2", "--temp-max", "3", "--name", "near_tc")
    command("evaluate.py", "sweep", "--num-test", "100")
    now = read(saved / "finished/evaluations", "near_tc.json"), read(saved / "sweep/evaluations", f"{name}.json")
    for key in ("data_sha256", "weights_sha256", "n_unseen"):
        assert now[0][key] == before[0][key]
    assert now[0]["metrics"] == pytest.approx(before[0]["metrics"], rel=1e-4)
    assert now[1]["table"] == before[1]["table"]


def test_runs_are_listed_and_compared(saved: Path, command: Command) -> None:
    listed = command("runs.py")
    lines = {line.split()[0]: line for line in listed.splitlines() if line}
    assert "epochs=5" in lines["finished"]
    assert "4/4 finished" in lines["sweep/"]
    assert "best lr=0.01" in lines["sweep/"]
    assert "3/6" in lines["interrupted"]
    # A run with `replay` in its config.json has the same setting as one without it.
    config = read(saved / "finished", "config.json")
    shutil.copytree(saved / "finished", saved / "other")
    (saved / "other" / "config.json").write_text(json.dumps({**config, "seed": 43, "replay": True}), encoding="utf-8")
    assert "(n = 2)" in command("runs.py", "compare", "finished", "other")
    assert "--lr 0.01" not in command("runs.py", "compare", "sweep/lr0.001-*")


def test_a_sweep_is_continued_with_another_seed(saved: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "Pool", OneProcess)
    monkeypatch.setattr(sweep, "redirect_output", lambda path: None)
    command("sweep.py", "sweep", *OPTIONS, "--epochs", "5", "--seeds", "3", "--grid", "lr=0.001,0.01", "--workers", "1")
    settings = read(saved / "sweep", "summary.json")["settings"]
    assert [list(each["runs"]) for each in settings.values()] == [["42", "43", "44"]] * 2
    assert read(saved / "sweep/lr0.001-seed42", "run_info.json") == read(
        SAVED / "sweep/lr0.001-seed42", "run_info.json"
    )  # it was not trained again


def test_a_key_that_is_missing_has_the_default_of_6bbe7fc(tmp_path: Path) -> None:
    """Also if a default has changed since: config.json has had a format number from then on."""
    path = tmp_path / "config.json"
    path.write_text("{}", encoding="utf-8")
    config = load_config(PROBLEM.config_type, path)
    assert parse_args(PROBLEM, ["--config", str(path)], prog="main.py").config == config
    defaults = read(SAVED / "finished", "config.json")  # it has all keys
    del defaults["replay"]
    defaults["model"]["hidden"] = [128, 64, 32]
    defaults["train"] |= {"epochs": 100, "batch_size": 64, "fresh": False, "betas": None}  # the last two are newer
    defaults["model"]["initial_scale"] = 1.0  # and so is this one
    defaults["data"] |= {"num_train": 10_000, "num_val": 2_000, "num_test": 2_000, "num_calibration": None}
    defaults |= {"log": {**defaults["log"], "run_name": None}, "device": "auto", "threads": None}
    assert json.loads(to_json(config)) == {"format": 1, **defaults}
