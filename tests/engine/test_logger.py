"""The record of a run: complete files, strict JSON, how the run ended, and what a terminal shows."""

import contextlib
import dataclasses
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine.hardware
from engine.config import LogConfig, TrainConfig, load_config
from engine.errors import DivergedError
from engine.files import write_json
from engine.signals import Interrupted
from logger import NullLogger, RunLogger, hash_without_seed
from tests.conftest import DEBUG, TOY, environment, read
from tests.toy import PROBLEM, ToyConfig
from utils import timed

ROW = {"epoch": 1, "step": 10, "train_loss": 0.5, "val_loss": 0.25, "val_mae": 0.1, "learning_rate": 0.001}


def test_epoch_metrics_are_a_complete_file_after_every_epoch(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, PROBLEM, ToyConfig())
    for epoch in range(1, 4):
        logger.log_epoch({**ROW, "epoch": epoch})
        assert read(tmp_path, "epoch_metrics.json") == [{**ROW, "epoch": i} for i in range(1, epoch + 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "epoch_metrics.json", "run_info.json"]


def test_a_number_that_json_lacks_is_an_error_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"r2": 1.0})
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"r2": value})
    assert json.loads(path.read_text()) == {"r2": 1.0}
    assert list(tmp_path.iterdir()) == [path]


def test_the_record_holds_config_and_provenance_from_the_start(tmp_path: Path) -> None:
    RunLogger(tmp_path, PROBLEM, ToyConfig(seed=5))
    assert load_config(ToyConfig, tmp_path / "config.json") == ToyConfig(seed=5)
    info = read(tmp_path, "run_info.json")
    assert info["status"] == "running"
    assert info["problem"] == "tests.toy"
    assert info["pid"] == os.getpid()
    assert info["torch"] == torch.__version__
    assert set(info) >= {"argv", "git_commit", "git_dirty", "python", "numpy", "platform", "started", "timings"}


def test_only_changed_code_makes_a_commit_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    provenance = engine.hardware.provenance
    code, result = tmp_path / "engine" / "hardware.py", tmp_path / "results.json"
    monkeypatch.setattr(engine.hardware, "__file__", str(code))
    assert provenance()["git_commit"] is None
    git("init")
    code.parent.mkdir()
    for path in (code, result):
        path.write_text("1")
    git("add", ".")
    git("commit", "-m", "all")
    assert len(provenance()["git_commit"]) == 40
    result.write_text("2")
    assert provenance()["git_dirty"] is False
    code.write_text("2")
    assert provenance()["git_dirty"] is True


@pytest.mark.parametrize(
    ("error", "status"), [(Interrupted(2), "interrupted"), (DivergedError(), "diverged"), (OSError(), "failed")]
)
def test_the_record_says_how_a_run_ended(error: BaseException, status: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), RunLogger(tmp_path, PROBLEM, ToyConfig()):
        raise error
    assert read(tmp_path, "run_info.json")["status"] == status


def test_the_record_of_a_finished_run_has_its_timings(tmp_path: Path) -> None:
    timings: dict[str, float] = {}
    with RunLogger(tmp_path, PROBLEM, ToyConfig(), timings=timings), timed("data", timings):
        pass
    info = read(tmp_path, "run_info.json")
    assert info["status"] == "finished"
    assert info["timings"] == timings
    assert timings["data"] >= 0


def test_weights_are_saved_with_config_and_shapes_as_tensors_and_plain_values(tmp_path: Path) -> None:
    shapes: dict[str, Any] = {"inputs": [[2], []], "target": []}
    logger = RunLogger(tmp_path, PROBLEM, ToyConfig(), shapes=shapes)
    logger.log_weights("best", 7, torch.nn.Linear(2, 3).state_dict())
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    assert content["epoch"] == 7
    assert content["shapes"] == shapes
    assert content["config"]["model"]["hidden"] == 16
    assert content["model"]["weight"].shape == (3, 2)


def test_without_checkpoints_no_weights_are_saved(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, PROBLEM, ToyConfig(log=LogConfig(checkpoints=False)))
    logger.log_weights("best", 1, {})
    logger.log_checkpoint({})
    assert not list(tmp_path.glob("*.pt"))


def test_the_checkpoint_before_the_last_is_kept(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, PROBLEM, ToyConfig())
    for epoch in (1, 2, 3):
        logger.log_checkpoint({"epoch": epoch})
    epochs = [torch.load(tmp_path / f"{name}.pt", weights_only=True)["epoch"] for name in ("previous", "last")]
    assert epochs == [2, 3]


def test_arrays_are_saved_without_objects(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, PROBLEM, ToyConfig())
    logger.log_arrays("predictions", {"a": np.arange(3), "b": np.eye(2)})
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["a", "b"]
        np.testing.assert_array_equal(arrays["b"], np.eye(2))
    with pytest.raises(ValueError, match="Object"):
        logger.log_arrays("objects", {"a": np.array([{}])})
    assert not (tmp_path / "objects.npz").exists()


def test_the_null_logger_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logger = NullLogger()
    logger.log_epoch(ROW)
    logger.log_weights("best", 1, {})
    logger.log_checkpoint({})
    logger.note(a=1)
    assert not list(tmp_path.iterdir())


def test_runs_that_only_differ_in_their_seed_are_in_one_group() -> None:
    base = ToyConfig()
    same = dataclasses.replace(base, seed=7, log=LogConfig(run_name="b"))
    other = dataclasses.replace(base, train=TrainConfig(lr=0.1))
    assert hash_without_seed(base) == hash_without_seed(same) != hash_without_seed(other)


def test_the_summary_is_an_aligned_table_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "--run-name", "a b"])
    logger = RunLogger(tmp_path, PROBLEM, ToyConfig(seed=7), timings={"data": 1.25})
    logger.note(git_commit="0123456789abcdef", git_dirty=True, processes=2)
    network, mean = {"loss": 1.0, "mae": 0.125, "r2": 0.5}, {"loss": 2.0, "mae": 0.5, "r2": -1e-5}
    results = {"test": network, "baselines": {"mean": mean}, "best_epoch": 3, "epochs_trained": 5}
    header, rule, *rows, blank, command, origin = logger.summary(results, n_test=1234).split("\n")
    assert {len(line) for line in (header, rule, *rows)} == {len(header)}
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in (header, *rows)] == [
        ["on 1,234 test examples", "mae", "r2"],
        ["mlp-d3, epoch 3 of 5", "0.125", "0.5"],
        ["mean", "0.5", "-1e-05"],
    ]
    assert blank == ""
    assert command == "`python main.py --run-name 'a b'`, in 2 processes  "
    assert origin == "commit 0123456789, with changes; seed 7; data 1.2 s"


def read_all(terminal: int) -> bytes:
    """What was written to the other end of a pseudo-terminal until that was closed."""
    content = b""
    with contextlib.suppress(OSError):  # how Linux reports that the other end is closed; other systems return b""
        while chunk := os.read(terminal, 4096):
            content += chunk
    os.close(terminal)
    return content


def test_without_a_terminal_every_epoch_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = RunLogger(tmp_path, PROBLEM, ToyConfig(train=TrainConfig(epochs=5)))
    for epoch in (1, 2):
        logger.log_epoch({**ROW, "epoch": epoch})
    shown = capsys.readouterr()
    losses = "train loss 0.5, val loss 0.25, val mae 0.1"
    assert shown.out == f"epoch 1/5: {losses}\nepoch 2/5: {losses}\n"
    assert shown.err == ""


def test_a_terminal_shows_a_bar_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 40))
    with os.fdopen(child, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with RunLogger(tmp_path, PROBLEM, ToyConfig(train=TrainConfig(epochs=5))) as logger:
            for epoch in range(1, 6):
                logger.log_epoch({**ROW, "epoch": epoch})
    shown = read_all(parent).decode()
    assert "training:" in shown
    assert "5/5" in shown
    assert max(map(len, shown.replace("\r", "\n").split("\n"))) <= 40
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_terminal_gets_a_bar_and_a_file_gets_lines(toy_run: Path, tmp_path: Path) -> None:
    lines = (toy_run.parent.parent / "stdout.txt").read_text()
    assert [f"epoch {epoch}/5: train loss" in lines for epoch in range(1, 6)] == [True] * 5

    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 40))
    with subprocess.Popen(
        [sys.executable, *TOY, *DEBUG],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=child,
        text=True,
    ) as done:
        os.close(child)
        shown = read_all(parent).decode()
        assert done.stdout is not None
        output = done.stdout.read()
    assert done.returncode == 0
    assert "training:" in shown
    assert "5/5" in shown
    assert max(map(len, shown.replace("\r", "\n").split("\n"))) <= 40
    assert "epoch 1/5" not in output
    assert "| mean" in output
