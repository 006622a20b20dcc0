"""What is kept of a run: whole files, strict JSON, W&B when it is there, a terminal of any kind."""

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

import pytest
import torch

import utils
from config import ExperimentConfig, LogConfig, TrainConfig, load_config
from logger import RunLogger, without_seed, write_json
from tests.conftest import DEBUG, ROOT
from utils import DivergedError, Interrupted, timed

ROW = {"epoch": 1, "step": 10, "train_loss": 0.5, "val_loss": 0.25, "val_mae": 0.1, "learning_rate": 0.001}


def info(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run_info.json").read_text())
    return content


def test_epoch_metrics_are_a_whole_file_after_every_epoch(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, ExperimentConfig())
    for epoch in range(1, 4):
        logger.log_epoch({**ROW, "epoch": epoch})
        rows = json.loads((tmp_path / "epoch_metrics.json").read_text())
        assert rows == [{**ROW, "epoch": i} for i in range(1, epoch + 1)]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_number_that_json_does_not_have_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"r2": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"r2": float("nan")})
    assert json.loads(path.read_text()) == {"r2": 1.0}


def test_provenance_is_there_from_the_start(tmp_path: Path) -> None:
    RunLogger(tmp_path, ExperimentConfig(seed=5))
    assert load_config(tmp_path / "config.json") == ExperimentConfig(seed=5)
    kept = info(tmp_path)
    assert kept["status"] == "running"
    assert kept["pid"] == os.getpid()
    assert kept["torch"] == torch.__version__
    assert set(kept) >= {"argv", "git_commit", "git_dirty", "python", "numpy", "platform", "started", "timings"}


def test_only_changed_code_makes_a_commit_a_changed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(utils, "__file__", str(tmp_path / "utils.py"))
    assert utils.provenance()["git_commit"] is None
    git("init")
    for name in ("utils.py", "results.json"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-m", "all")
    (tmp_path / "results.json").write_text("2")
    assert not utils.provenance()["git_dirty"]
    (tmp_path / "utils.py").write_text("2")
    assert utils.provenance()["git_dirty"]


@pytest.mark.parametrize(
    ("error", "status"), [(Interrupted(2), "interrupted"), (DivergedError(), "diverged"), (OSError(), "failed")]
)
def test_the_record_says_how_a_run_ended(error: BaseException, status: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), RunLogger(tmp_path, ExperimentConfig()):
        raise error
    assert info(tmp_path)["status"] == status
    timings: dict[str, float] = {}
    with RunLogger(tmp_path, ExperimentConfig(), timings), timed("data", timings):
        pass
    assert info(tmp_path)["status"] == "finished"
    assert info(tmp_path)["timings"] == timings
    assert timings["data"] >= 0


def test_weights_are_tensors_and_plain_values(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, ExperimentConfig())
    logger.log_weights("best", 7, torch.nn.Linear(2, 3).state_dict())
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    assert content["epoch"] == 7
    assert content["config"]["model"]["hidden"] == (128, 64, 32)
    assert content["model"]["weight"].shape == (3, 2)


def test_runs_that_differ_in_their_seed_alone_are_of_one_group() -> None:
    base = ExperimentConfig()
    same = dataclasses.replace(base, seed=7, log=LogConfig(run_name="b"))
    other = dataclasses.replace(base, train=TrainConfig(lr=0.1))
    assert without_seed(base) == without_seed(same) != without_seed(other)


def test_a_terminal_gets_a_bar_and_a_file_gets_lines(finished_run: Path, tmp_path: Path) -> None:
    lines = (finished_run.parent.parent / "stdout.txt").read_text()
    assert [f"epoch {epoch}/5: train loss" in lines for epoch in range(1, 6)] == [True] * 5

    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 40))
    shown = b""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *DEBUG],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=child,
        text=True,
    ) as done:
        os.close(child)
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed; elsewhere it is b""
            while chunk := os.read(parent, 4096):
                shown += chunk
        os.close(parent)
        assert done.stdout is not None
        output = done.stdout.read()
    assert done.returncode == 0
    assert b"training:" in shown
    assert b"5/5" in shown
    assert max(map(len, shown.decode().replace("\r", "\n").split("\n"))) <= 40
    assert "epoch 1/5" not in output
