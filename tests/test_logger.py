"""What is kept of a run: whole files, strict JSON, W&B when it is there, a terminal of any kind."""

import contextlib
import dataclasses
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from config import ExperimentConfig, LogConfig, TrainConfig, load_config
from logger import RunLogger, without_seed, write_json
from tests.conftest import DEBUG, ROOT, Program
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


def test_wandb_that_breaks_off_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def log(self, row: object, step: int) -> None:
            raise ConnectionError("lost")

    with RunLogger(tmp_path, ExperimentConfig()) as logger:
        logger.wandb = Broken()
        logger.log_epoch(ROW)
        logger.log_epoch(ROW)
    assert capsys.readouterr().err.count("warning: no W&B (ConnectionError('lost'))") == 1
    assert json.loads((tmp_path / "epoch_metrics.json").read_text()) == [ROW, ROW]


def test_weights_are_tensors_and_plain_values(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, ExperimentConfig())
    logger.log_weights("best", 7, torch.nn.Linear(2, 3).state_dict())
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    assert content["epoch"] == 7
    assert content["config"]["model"]["hidden"] == (128, 64, 32)
    assert content["model"]["weight"].shape == (3, 2)


def wandb_records(folder: Path) -> Iterator[Any]:
    """The records of an offline run, from its LevelDB log: blocks of 32 KiB, fragments with a 7-byte header."""
    from wandb.proto import wandb_internal_pb2

    parse = vars(wandb_internal_pb2)["Record"].FromString
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last fragment of one
            yield parse(record)
            record = b""


def test_wandb_gets_one_row_an_epoch_the_config_and_the_summary(program: Program, tmp_path: Path) -> None:
    done = program(*DEBUG, "--wandb", "--run-name", "w", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "checkpoints" / "w"
    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    config: dict[str, Any] = {}
    steps: dict[str, str] = {}
    run = None
    for record in wandb_records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            history.append({item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
        elif kind == "summary":
            summary |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}
        elif kind == "run":
            run = record.run
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "metric":
            steps[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    rows = json.loads((folder / "epoch_metrics.json").read_text())
    assert [{key: row[key] for key in rows[0]} for row in history] == rows
    assert steps == {"epoch": "", "*": "epoch"}
    results = json.loads((folder / "results.json").read_text())
    assert {key: summary[f"test_{key}"] for key in results["test"]} == results["test"]
    assert config["train"]["lr"] == 0.001
    assert config["seed"] == 42
    assert run is not None
    assert (run.display_name, list(run.tags)) == ("w", ["mlp", "adamw", "cosine"])
    assert re.fullmatch("mlp-L8-[0-9a-f]{8}", run.run_group)
    assert info(folder)["wandb_id"] == run.run_id


def test_runs_that_differ_in_their_seed_alone_are_of_one_group() -> None:
    base = ExperimentConfig()
    same = dataclasses.replace(base, seed=7, log=LogConfig(run_name="b"))
    other = dataclasses.replace(base, train=TrainConfig(lr=0.1))
    assert without_seed(base) == without_seed(same) != without_seed(other)


def test_wandb_without_login_is_a_warning_and_no_prompt(program: Program, tmp_path: Path) -> None:
    done = program(*DEBUG, "--wandb", "--run-name", "w", HOME=str(tmp_path), WANDB_API_KEY="")
    assert done.returncode == 0, done.stderr
    assert "warning: no W&B" in done.stderr
    assert info(tmp_path / "checkpoints" / "w")["wandb_id"] is None
    assert len(json.loads((tmp_path / "checkpoints" / "w" / "epoch_metrics.json").read_text())) == 5


def test_wandb_that_is_not_installed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes `import wandb` fail
    with RunLogger(tmp_path, ExperimentConfig(log=LogConfig(wandb=True))) as logger:
        logger.log_epoch(ROW)
    assert "warning: no W&B" in capsys.readouterr().err
    assert json.loads((tmp_path / "epoch_metrics.json").read_text()) == [ROW]


def test_wandb_is_not_imported_unless_asked_for(program: Program) -> None:
    done = program(*DEBUG, "--epochs", "1", PYTHONVERBOSE="1")
    assert "import 'torch'" in done.stderr
    assert "import 'wandb" not in done.stderr


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
