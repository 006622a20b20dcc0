"""W&B: what real runs log, and that no failure of W&B costs a run more than a minute."""

import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine.interface.base_config import LogConfig
from logger import RunLogger
from tests.conftest import DEBUG, HANG, TOY, Program, environment, read, read_all, wait_for
from tests.toy import PROBLEM, ToyConfig

ROW = {"epoch": 1, "step": 10, "train_loss": 0.5, "val_loss": 0.25, "val_mae": 0.1, "learning_rate": 0.001}
STATE = {"epoch": 1, "rows": [ROW], "weights": {}, "best_epoch": 1, "best_weights": {}}


def wandb_records(folder: Path) -> Iterator[Any]:
    """Read the records of an offline run from its LevelDB log: blocks of 32 KiB, fragments with a 7-byte header."""
    from wandb.proto import wandb_internal_pb2

    parse = vars(wandb_internal_pb2)["Record"].FromString
    path = max(folder.glob("wandb/offline-run-*/*.wandb"))  # the latest
    data, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a complete record, or the last fragment of one
            yield parse(record)
            record = b""


def history_row(record: Any) -> dict[str, Any]:
    return {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}


@pytest.mark.slow
def test_wandb_gets_one_row_per_epoch_the_config_and_the_summary(toy: Program, tmp_path: Path) -> None:
    done = toy(*DEBUG, "--wandb", "--run-name", "w", WANDB_MODE="offline")
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
            history.append(history_row(record))
        elif kind == "summary":
            summary |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}
        elif kind == "run":
            run = record.run
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "metric":
            steps[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    rows = read(folder, "epoch_metrics.json")
    assert [{key: row[key] for key in rows[0]} for row in history] == rows
    assert steps == {"epoch": "", "*": "epoch"}
    results = read(folder, "results.json")
    assert {key: summary[f"test_{key}"] for key in results["test"]} == results["test"]
    assert {key: summary[f"test_unseen_{key}"] for key in results["test_unseen"]} == results["test_unseen"]
    assert summary["best_epoch"] == results["best_epoch"]
    saved = {key: value for key, value in read(folder, "config.json").items() if key != "format"}
    assert {key: config[key] for key in saved} == saved
    assert run is not None
    assert run.project == "toy"
    assert (run.display_name, list(run.tags)) == ("w", ["mlp", "d3", "adamw", "cosine"])
    assert re.fullmatch("mlp-d3-[0-9a-f]{8}", run.run_group)
    assert read(folder, "run_info.json")["wandb_id"] == run.run_id


@pytest.mark.slow
def test_the_environment_variables_of_wandb_are_honoured(toy: Program, tmp_path: Path) -> None:
    variables = {"ENTITY": "us", "PROJECT": "p", "NAME": "n", "RUN_GROUP": "g", "TAGS": "a,b", "NOTES": "as before"}
    (tmp_path / "logs").mkdir()
    environ = {f"WANDB_{name}": value for name, value in variables.items()}
    done = toy(*DEBUG, "--wandb", "--run-name", "w", WANDB_MODE="offline", WANDB_DIR=str(tmp_path / "logs"), **environ)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "checkpoints" / "w" / "wandb").exists()
    run = next(record.run for record in wandb_records(tmp_path / "logs") if record.WhichOneof("record_type") == "run")
    found = (run.entity, run.project, run.display_name, run.run_group, ",".join(run.tags), run.notes)
    assert found == tuple(variables.values())


@pytest.mark.slow
def test_a_resumed_run_continues_its_wandb_run(toy: Program, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "w"
    assert toy(*DEBUG, "--wandb", "--run-name", "w", WANDB_MODE="offline").returncode == 0
    first = read(folder, "run_info.json")["wandb_id"]
    assert first
    assert toy("--resume", "w", "--epochs", "7", WANDB_MODE="offline").returncode == 0
    assert read(folder, "run_info.json")["wandb_id"] == first
    records = list(wandb_records(folder))
    assert {record.run.run_id for record in records if record.WhichOneof("record_type") == "run"} == {first}
    logged = [history_row(record) for record in records if record.WhichOneof("record_type") == "history"]
    assert [row["epoch"] for row in logged] == [6, 7]
    # A run that is resumed without W&B keeps the id of its W&B run.
    assert toy("--resume", "w", "--epochs", "8", "--no-wandb").returncode == 0
    assert read(folder, "run_info.json")["wandb_id"] == first


class Server(ThreadingHTTPServer):
    """A server that answers as the client of W&B expects when a run begins. While it is silent, it does not answer."""

    daemon_threads = True

    def __init__(self, *, silent: bool) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.silent, self.asked = threading.Event(), threading.Event()
        if silent:
            self.silent.set()
        self.environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}", "WANDB_API_KEY": "0" * 40}
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.asked.set()
        if self.server.silent.is_set():
            time.sleep(1000)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data: dict[str, Any] = {"serverInfo": {"features": []}, "viewer": {"id": "u", "entity": "me", "flags": "{}"}}
        if b"upsertBucket" in body:
            project = {"id": "cA==", "name": "toy", "entity": {"id": "ZQ==", "name": "me"}}
            name = json.loads(body)["variables"]["name"]
            bucket = {"id": "YQ==", "name": name, "displayName": name, "config": "{}", "project": project}
            data = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        answer = json.dumps({} if "file_stream" in self.path else {"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST  # noqa: N815 - the name that the server looks for

    def log_message(self, *_: object) -> None: ...


def start(name: str, server: Server, cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *TOY, *DEBUG, *arguments, "--wandb", "--run-name", name],
        cwd=cwd,
        env=environment(**server.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


@pytest.mark.slow
def test_a_server_that_does_not_answer_does_not_stop_a_run(tmp_path: Path) -> None:
    # Three runs wait at the same time: for a silent server, for an unreachable one, and for one that becomes silent in
    # epoch 5.
    silent, unreachable, falling = Server(silent=True), Server(silent=True), Server(silent=False)
    unreachable.shutdown()
    unreachable.server_close()
    runs = {
        "silent": start("silent", silent, tmp_path),
        "unreachable": start("unreachable", unreachable, tmp_path),
        "falling": start("falling", falling, tmp_path, "--epochs", "50"),
    }
    wait_for("epoch 5/50", runs["falling"].stdout)
    falling.silent.set()
    for name, process in runs.items():
        output, error = process.communicate(timeout=HANG)
        assert process.returncode == 0, error
        assert "warning: no W&B" in error or name == "falling"
        assert "checkpoints/" + name in output
        n_epochs = 50 if name == "falling" else 5
        info = read(tmp_path / "checkpoints" / name, "run_info.json")
        assert info["status"] == "finished"
        assert bool(info["wandb_id"]) == (name == "falling")
        assert len(read(tmp_path / "checkpoints" / name, "epoch_metrics.json")) == n_epochs


@pytest.mark.slow
def test_ctrl_c_while_wandb_connects_interrupts_the_run(tmp_path: Path) -> None:
    server = Server(silent=True)
    with start("w", server, tmp_path) as process:
        assert process.stderr is not None
        assert server.asked.wait(HANG)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=HANG)
        assert process.returncode == 130
    assert error.endswith("interrupted: python -m tests.toy --resume w continues after the last completed epoch\n")
    assert read(tmp_path / "checkpoints" / "w", "run_info.json")["status"] == "interrupted"


@pytest.mark.slow
def test_wandb_without_login_prints_a_warning_and_does_not_prompt(tmp_path: Path) -> None:
    parent, child = pty.openpty()  # in a terminal, W&B would ask what to do
    with subprocess.Popen(
        [sys.executable, *TOY, *DEBUG, "--wandb", "--run-name", "w"],
        cwd=tmp_path,
        env=environment(HOME=str(tmp_path), WANDB_API_KEY=""),
        stdin=child,
        stdout=subprocess.DEVNULL,
        stderr=child,
    ) as process:
        os.close(child)
        end = threading.Timer(HANG, process.kill)  # if it waits for an answer
        end.start()
        shown = read_all(parent).decode()
        end.cancel()
        assert process.wait(HANG) == 0, shown
    assert "warning: no W&B (RuntimeError('not logged in: run `wandb login`, or set WANDB_MODE=offline'))" in shown
    assert "(1)" not in shown
    assert read(tmp_path / "checkpoints" / "w", "run_info.json")["wandb_id"] is None
    assert len(read(tmp_path / "checkpoints" / "w", "epoch_metrics.json")) == 5


def test_wandb_that_is_not_installed_causes_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes `import wandb` fail
    with RunLogger(tmp_path, PROBLEM, ToyConfig(log=LogConfig(wandb=True))) as logger:
        logger.log_epoch(ROW)
        logger.log_state(STATE)
    error = capsys.readouterr().err
    assert error.startswith("warning: no W&B (")
    assert error.endswith(f"); logging continues in {tmp_path}\n")
    assert read(tmp_path, "epoch_metrics.json") == [ROW]


@pytest.mark.slow
def test_wandb_is_not_imported_unless_requested(toy: Program) -> None:
    done = toy(*DEBUG, "--epochs", "1", PYTHONVERBOSE="1")
    assert done.returncode == 0
    assert "import 'torch'" in done.stderr
    assert "import 'wandb" not in done.stderr


def test_wandb_that_fails_during_a_run_causes_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def log(self, row: object, step: int) -> None:
            raise ConnectionError("lost")

    with RunLogger(tmp_path, PROBLEM, ToyConfig()) as logger:
        logger.wandb = Broken()
        logger.log_epoch(ROW)
        logger.log_epoch(ROW)
        logger.log_state(STATE)
    assert capsys.readouterr().err.count("warning: no W&B (ConnectionError('lost'))") == 1
    assert read(tmp_path, "epoch_metrics.json") == [ROW]


def test_wandb_that_fails_at_the_end_does_not_change_how_a_run_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def finish(self, exit_code: int) -> None:
            raise OSError("no space")

    with RunLogger(tmp_path, PROBLEM, ToyConfig()) as logger:
        logger.wandb = Broken()
    assert "warning: no W&B (OSError('no space'))" in capsys.readouterr().err
    assert read(tmp_path, "run_info.json")["status"] == "finished"
