"""One run in several processes, as torchrun starts them: the same curve, one writer, and an end when one dies."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import Group, group_from_environment
from tests.conftest import DEBUG, ROOT, run_command, wait_for

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

# A last batch of one example, of which the second process gets nothing, and numbers that two does not divide.
UNEVEN = [*DEBUG, "--num-train", "226", "--num-val", "51", "--num-test", "50", "--batch-size", "45", "--dropout", "0"]


def torchrun(n: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, str(n), str(ROOT / "main.py"), *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_one_two_and_three_processes_give_one_curve(tmp_path: Path) -> None:
    alone = run_command(*UNEVEN, "--grad-clip", "0.5", "--run-name", "1", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    expected = read(tmp_path / "checkpoints" / "1", "epoch_metrics.json")
    for n in (2, 3):
        done = torchrun(n, *UNEVEN, "--grad-clip", "0.5", "--run-name", str(n), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 1/5") == 1  # the first process speaks for all
        folder = tmp_path / "checkpoints" / str(n)
        for row, one in zip(read(folder, "epoch_metrics.json"), expected, strict=True):
            assert row == pytest.approx(one, rel=2e-5, abs=1e-7)
        assert read(folder, "run_info.json")["processes"] == n
        assert read(folder, "run_info.json")["data_sha256"] == read(folder.parent / "1", "run_info.json")["data_sha256"]


def test_dropout_differs_between_processes_and_not_between_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert torchrun(2, *DEBUG, "--epochs", "2", "--run-name", name, cwd=tmp_path).returncode == 0
    a, b = ((tmp_path / "checkpoints" / name / "epoch_metrics.json").read_bytes() for name in "ab")
    assert a == b


def test_a_run_of_two_processes_goes_on_in_one_and_in_two(tmp_path: Path) -> None:
    assert torchrun(2, *UNEVEN, "--run-name", "r", cwd=tmp_path).returncode == 0
    assert run_command("--resume", "r", "--epochs", "7", cwd=tmp_path).returncode == 0
    done = torchrun(2, "--resume", "r", "--epochs", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on after epoch 7 of 8" in done.stdout
    assert torchrun(2, "--resume", "r", cwd=tmp_path).stdout.count("is finished") == 1
    assert len(read(tmp_path / "checkpoints" / "r", "epoch_metrics.json")) == 8


def test_a_request_that_is_refused_ends_all_processes(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "r").mkdir(parents=True)
    (tmp_path / "checkpoints" / "r" / ".lock").write_text("")
    (tmp_path / "checkpoints" / "r" / "config.json").write_text("")
    done = torchrun(2, *DEBUG, "--run-name", "r", cwd=tmp_path)
    assert done.returncode != 0
    assert "exists already" in done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_process_dies_the_others_end_and_the_run_can_go_on(rank: int, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*TORCHRUN, "2", str(ROOT / "main.py"), *DEBUG, "--epochs", "3000", "--run-name", "r"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        wait_for("epoch 2/", process.stdout)
        workers = [
            int(path.name)
            for path in Path("/proc").iterdir()
            if path.name.isdigit() and f"PPid:\t{process.pid}\n" in (path / "status").read_text()
        ]
        ranks = {
            int(found[1]): worker
            for worker in workers
            if (found := re.search(r"\0RANK=(\d+)", (Path("/proc") / str(worker) / "environ").read_text()))
        }
        start = time.monotonic()
        os.kill(ranks[rank], signal.SIGKILL)
        assert process.wait(60) != 0
        assert time.monotonic() - start < 60
        for worker in workers:
            with pytest.raises(ProcessLookupError):
                os.kill(worker, 0)
    folder = tmp_path / "checkpoints" / "r"
    n_epochs = len(read(folder, "epoch_metrics.json"))
    assert read(folder, "run_info.json")["status"] in (("running",) if rank == 0 else ("failed", "interrupted"))
    with subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "--resume", "r"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as again:
        assert again.stdout is not None
        found = next(filter(None, (re.match(r"going on after epoch (\d+)", line) for line in again.stdout)))
        again.kill()
    assert int(found[1]) in (n_epochs - 1, n_epochs)


def test_parts_of_a_batch_are_the_batch() -> None:
    for n in (0, 1, 5, 64):
        batch = torch.arange(n)
        for size in (1, 2, 3, 7):
            parts = [Group(rank, size).part(batch) for rank in range(size)]
            assert torch.equal(torch.cat(parts), batch)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_group_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert group_from_environment() == Group(0, 1, 0)
    for name, value in {"MASTER_ADDR": "somewhere", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert group_from_environment() == Group(5, 8, 1)
    assert not group_from_environment().first
