"""W&B: what real runs log, read back; and that no failure of it costs a run more than a minute."""

import json
import os
import re
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

from config import ExperimentConfig, LogConfig
from logger import RunLogger
from tests.conftest import DEBUG, ROOT, Program

ROW = {"epoch": 1, "step": 10, "train_loss": 0.5, "val_loss": 0.25, "val_mae": 0.1, "learning_rate": 0.001}


def info(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run_info.json").read_text())
    return content


def wandb_records(folder: Path) -> Iterator[Any]:
    """The records of an offline run, from its LevelDB log: blocks of 32 KiB, fragments with a 7-byte header."""
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


def test_a_resumed_run_goes_on_with_the_same_wandb_run(program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "w"
    assert program(*DEBUG, "--wandb", "--run-name", "w", WANDB_MODE="offline").returncode == 0
    first = info(folder)["wandb_id"]
    assert program("--resume", "w", "--epochs", "7", WANDB_MODE="offline").returncode == 0
    assert info(folder)["wandb_id"] == first
    records = list(wandb_records(folder))
    assert {record.run.run_id for record in records if record.WhichOneof("record_type") == "run"} == {first}
    logged = [
        {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["epoch"] for row in logged] == [6, 7]
    # Without --wandb a run forgets nothing of its W&B run.
    assert program("--resume", "w", "--epochs", "8", "--no-wandb").returncode == 0
    assert info(folder)["wandb_id"] == first


class Server(ThreadingHTTPServer):
    """Says what W&B's client wants to hear when a run begins; falls silent when it is told to."""

    daemon_threads = True

    def __init__(self, silent: bool) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.silent = threading.Event()
        if silent:
            self.silent.set()
        self.environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}", "WANDB_API_KEY": "0" * 40}
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        if self.server.silent.is_set():
            time.sleep(300)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data: dict[str, Any] = {"serverInfo": {"features": []}, "viewer": {"id": "u", "entity": "me", "flags": "{}"}}
        if b"upsertBucket" in body:
            project = {"id": "cA==", "name": "ising", "entity": {"id": "ZQ==", "name": "me"}}
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


@pytest.mark.parametrize("fault", ["silent", "unreachable"])
def test_a_server_that_does_not_answer_costs_less_than_a_minute(fault: str, program: Program, tmp_path: Path) -> None:
    server = Server(silent=True)
    if fault == "unreachable":
        server.shutdown()
        server.server_close()
    start = time.monotonic()
    done = program(*DEBUG, "--wandb", "--run-name", "w", **server.environment)
    assert time.monotonic() - start < 60
    assert done.returncode == 0, done.stderr
    assert "warning: no W&B" in done.stderr
    folder = tmp_path / "checkpoints" / "w"
    assert info(folder)["status"] == "finished"
    assert len(json.loads((folder / "epoch_metrics.json").read_text())) == 5


def test_a_server_that_falls_silent_costs_less_than_a_minute(tmp_path: Path) -> None:
    server = Server(silent=False)
    with subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *DEBUG, "--epochs", "50", "--wandb", "--run-name", "w"],
        cwd=tmp_path,
        env={**os.environ, **server.environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = iter(process.stdout.readline, "")
        assert any("epoch 5/50" in line for line in lines)
        server.silent.set()
        start = time.monotonic()
        assert any("epoch 50/50" in line for line in lines)
        process.communicate()
        assert process.returncode == 0
        assert time.monotonic() - start < 60
    folder = tmp_path / "checkpoints" / "w"
    assert info(folder)["status"] == "finished"
    assert info(folder)["wandb_id"]
    assert len(json.loads((folder / "epoch_metrics.json").read_text())) == 50


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


def test_a_sweep_makes_commands_that_main_understands(tmp_path: Path) -> None:
    import yaml
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "sweep.yaml").read_text())
    for k in (0, -1):
        chosen = {name: {"value": spec.get("values", [0.003])[k]} for name, spec in sweep["parameters"].items()}
        arguments = create_sweep_command_args({"args": chosen})["args_no_equals"]
        *command, last = create_sweep_command(list(sweep["command"]))
        assert last == "${args_no_equals}"
        done = subprocess.run(
            [*command, *arguments, "--print-config"],
            cwd=ROOT,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        config = json.loads(done.stdout)
        assert config["model"]["hidden"] == [int(width) for width in chosen["hidden"]["value"].split()]
        assert config["train"]["lr"] == 0.003
        assert config["train"]["batch_size"] == chosen["batch-size"]["value"]
        assert config["log"]["wandb"] is True
    assert sweep["metric"]["name"] in ROW
