"""Nothing is lost: runs that are killed, interrupted, short of disk, or damaged go on to what they would have been."""

import dataclasses
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoint
from config import ExperimentConfig, ModelConfig
from evaluate import load_run
from tests.conftest import DEBUG, ROOT, Program, run_command, wait_for
from utils import CHECKSUM, UnusableFileError, read_checked, write_checked

SAME = ("epoch_metrics.json", "results.json")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def resume(cwd: Path, name: str, *arguments: str) -> str:
    """What a resumed run prints; it must succeed."""
    done = run_command("--resume", name, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(folder: Path) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = torch.load(folder / "best.pt", weights_only=True)["model"]
    return saved


# ------------------------------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize(("mode", "ending", "fewest"), [("writes", -9, 80), ("full", 5, 55), ("moments", -9, 30)])
def test_a_run_that_is_cut_off_anywhere_goes_on_to_the_same_end(mode: str, ending: int, fewest: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cut_off", mode],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cuts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [cut for cut in cuts if cut["differ"] or cut["then"] not in ([0], [2, 0])] == []
    assert [cut for cut in cuts if cut["first"] not in (ending, 0)] == []
    assert sum(cut["first"] == ending for cut in cuts) >= fewest
    assert {cut["epochs"] for cut in cuts} >= {0, 1, 2, 3, 4} or mode == "moments"


# -------------------------------------------------------------------------------------------------------- interrupted


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_a_signal_stops_a_run_that_says_how_to_go_on(name: str, code: int, finished_run: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *DEBUG, "--epochs", "3000", "--run-name", "i"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        wait_for("epoch 2/", process.stdout)
        process.send_signal(getattr(signal, name))
        error = process.stderr.read()
    assert process.returncode == code
    assert error == "main.py: interrupted: python main.py --resume i goes on after the last whole epoch\n"
    folder = tmp_path / "checkpoints" / "i"
    assert read(folder, "run_info.json")["status"] == "interrupted"
    n_epochs = len(read(folder, "epoch_metrics.json"))
    assert 2 <= n_epochs < 3000
    assert load_run(folder)[0].train.epochs == 3000
    assert checkpoint.load(folder / "last.pt", ExperimentConfig(model=ModelConfig(hidden=(64, 32))))["epoch"] in (
        n_epochs - 1,
        n_epochs,
    )


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    code = """
import time, utils
utils.stop_on_signals()
try:
    print("ready", flush=True)
    time.sleep(60)
except utils.Interrupted:
    print("first", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line, number in (("ready\n", signal.SIGTERM), ("first\n", signal.SIGINT)):
            assert process.stdout.readline() == line
            process.send_signal(number)
        assert process.wait(10) == -signal.SIGINT


def test_an_interrupt_before_there_is_anything(tmp_path: Path) -> None:
    line = ["--lattice-size", "64", "--sweeps", "10000000", "--run-name", "i"]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *line], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while not (tmp_path / "checkpoints" / "i" / ".lock").exists():
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == "main.py: interrupted: there was nothing to keep yet\n"
    done = run_command("--resume", "i", cwd=tmp_path)
    assert done.returncode == 2
    assert "nothing to go on with" in done.stderr


def test_a_disk_that_fills_up_while_saving_leaves_the_earlier_checkpoint(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "first"
    shutil.copytree(finished_run, folder)
    shutil.copytree(finished_run.parent.parent / "cache", tmp_path / "cache")
    before = read_checked(folder / "last.pt")
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "--resume", "first", "--epochs", "7"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
    )
    assert done.returncode == 5
    assert done.stderr.startswith("main.py: error: ")
    assert done.stderr.count("\n") == 1
    assert before in (read_checked(path) for path in folder.glob("*.pt"))
    assert read(folder, "run_info.json")["status"] == "failed"
    assert "going on after epoch 5 of 7" in resume(tmp_path, "first")


# ------------------------------------------------------------------------------------------------------------ resumed


def test_what_a_run_is_may_not_change_and_how_it_goes_on_may(program: Program, tmp_path: Path) -> None:
    assert program(*DEBUG, "--run-name", "r").returncode == 0
    folder = tmp_path / "checkpoints" / "r"
    before = contents(folder)
    for flags, told in (
        (["--lr", "0.5"], ["--lr 0.5", "0.001"]),
        (["--hidden", "8", "4"], ["--hidden 8 4", "64 32"]),
        (["--epochs", "4"], ["--epochs 4", "5"]),
        (["--seed", "1"], ["--seed 1", "42"]),
        (["--run-name", "s"], ["--run-name s", "r"]),
        (["--overwrite"], ["--overwrite"]),
        (["--preset", "small"], ["--preset"]),
        (["--epochs", "0"], ["--epochs 0"]),
    ):
        done = program("--resume", "r", *flags)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        for words in told:
            assert words in done.stderr
    assert contents(folder) == before

    # What agrees with the run is no contradiction; a finished one stays as it is.
    assert "is finished" in resume(tmp_path, "checkpoints/r", "--lr", "0.001", "--run-name", "r", "--threads", "1")
    assert contents(folder) == before

    output = resume(tmp_path, "r", "--epochs", "7")
    assert "going on after epoch 5 of 7" in output
    rows = read(folder, "epoch_metrics.json")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert rows[:5] == json.loads(before[folder / "epoch_metrics.json"])
    assert rows[5]["learning_rate"] > rows[4]["learning_rate"]  # on the longer schedule
    info = read(folder, "run_info.json")
    assert info["status"] == "finished"
    assert [earlier["status"] for earlier in info["earlier"]] == ["finished"]
    assert read(folder, "config.json")["train"]["epochs"] == 7


def test_a_run_that_was_stopped_early_stays_so(program: Program, tmp_path: Path) -> None:
    stopped = program(*DEBUG, "--epochs", "60", "--patience", "1", "--lr", "0.1", "--run-name", "r")
    assert stopped.returncode == 0
    folder = tmp_path / "checkpoints" / "r"
    before = (folder / "results.json").read_bytes()
    assert json.loads(before)["epochs_trained"] < 60
    assert "is finished" in resume(tmp_path, "r")
    assert "is finished" in resume(tmp_path, "r", "--epochs", "100")
    assert (folder / "results.json").read_bytes() == before


def test_there_may_be_nothing_to_go_on_with(program: Program, tmp_path: Path) -> None:
    for name in ("nobody", "checkpoints/nobody", "", ".", "..", "no\nbody"):
        done = program("--resume", name)
        assert done.returncode == 2
        assert done.stderr.startswith("main.py: error: --resume")
        assert done.stderr.count("\n") == 1
    assert program(*DEBUG, "--epochs", "1", "--no-checkpoints", "--run-name", "n").returncode == 0
    done = program("--resume", "n")
    assert done.returncode == 2
    assert "--no-checkpoints" in done.stderr


def test_data_that_have_changed_are_noticed(program: Program, tmp_path: Path) -> None:
    sizes = ["--num-train", "100", "--num-val", "50", "--num-test", "50", "--epochs", "2", "--batch-size", "10"]
    assert program(*sizes[:6], "--save-data", "a.npz").returncode == 0
    assert program(*sizes, "--data", "a.npz", "--run-name", "r").returncode == 0
    assert program(*sizes[:6], "--seed", "1", "--save-data", "a.npz", "--overwrite").returncode == 0
    done = program("--resume", "r", "--epochs", "3")
    assert done.returncode == 3
    assert "data are no longer those" in done.stderr


def test_one_process_writes_a_run(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *DEBUG, "--epochs", "3000", "--run-name", "r"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        wait_for("epoch 1/", process.stdout)
        done = run_command("--resume", "r", cwd=tmp_path)
        process.kill()
    assert done.returncode == 2
    assert f"is being written by process {process.pid}" in done.stderr


# ------------------------------------------------------------------------------------------------------------ damaged

CONFIG = ExperimentConfig(model=ModelConfig(hidden=(64, 32)))  # what a debug run has of a network


def test_fifty_flipped_bytes_and_fifty_cuts_are_noticed(finished_run: Path, tmp_path: Path) -> None:
    whole = (finished_run / "last.pt").read_bytes()
    path = tmp_path / "last.pt"
    path.write_bytes(whole)
    assert checkpoint.load(path, CONFIG)["epoch"] == 5
    for k in range(50):
        offset = k * (len(whole) - 1) // 49
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << k % 8
        for content in (bytes(damaged), whole[:offset]):
            path.write_bytes(content)
            with pytest.raises(UnusableFileError, match=r"last\.pt"):
                checkpoint.load(path, CONFIG)


@pytest.mark.parametrize("damage", ["flipped", "empty", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage: str, finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "first"
    shutil.copytree(finished_run, folder)
    whole = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes({"flipped": whole[:5000] + b"?" + whole[5001:]}.get(damage, b""))
    if damage == "gone":
        (folder / "last.pt").unlink()
    (folder / "run_info.json").write_text((folder / "run_info.json").read_text().replace("finished", "running"))
    (folder / "best.pt").write_bytes(b"damaged as well")
    done = run_command("--resume", "first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on after epoch 4 of 5" in done.stdout
    assert ("warning: checkpoints/first/last.pt is damaged" in done.stderr) == (damage != "gone")
    for name in SAME:
        assert (folder / name).read_bytes() == (finished_run / name).read_bytes()
    before = weights(finished_run)
    assert all(torch.equal(value, before[name]) for name, value in weights(folder).items())
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes(b"")
    done = run_command("--resume", "first", "--epochs", "6", cwd=tmp_path)
    assert done.returncode == 3
    assert "last.pt is damaged" in done.stderr


class Harm:
    """Whoever unpickles this runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_checkpoint_runs_no_code(finished_run: Path, tmp_path: Path) -> None:
    harmful = Harm(f"touch {tmp_path / 'harm'}")
    buffer = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "config": harmful}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(harmful)):
        write_checked(tmp_path / "last.pt", content)
        with pytest.raises(UnusableFileError, match="no checkpoint of this program"):
            checkpoint.load(tmp_path / "last.pt", CONFIG)
    assert not (tmp_path / "harm").exists()


def test_checkpoints_of_other_programs_and_other_networks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, CONFIG, {"epoch": 3})
    assert checkpoint.load(path, CONFIG)["epoch"] == 3
    other = dataclasses.replace(CONFIG, model=ModelConfig(hidden=(64, 33)))
    with pytest.raises(UnusableFileError, match="another network"):
        checkpoint.load(path, other)
    for content in ({"format": checkpoint.FORMAT}, [1], {"epoch": 3}):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_checked(path, buffer.getvalue())
        with pytest.raises(UnusableFileError, match="no checkpoint of this program"):
            checkpoint.load(path, CONFIG)
    newer = {"format": checkpoint.FORMAT + 1, "config": dataclasses.asdict(CONFIG)}
    buffer = io.BytesIO()
    torch.save(newer, buffer)
    write_checked(path, buffer.getvalue())
    with pytest.raises(UnusableFileError, match="format 4, and this program reads 3"):
        checkpoint.load(path, CONFIG)


def test_torch_reads_a_checkpoint_as_it_is(finished_run: Path) -> None:
    raw = (finished_run / "last.pt").read_bytes()
    assert raw.startswith(b"PK")
    assert CHECKSUM in raw[-100:]
    saved = torch.load(finished_run / "last.pt", weights_only=True)
    assert saved["epoch"] == 5
    assert saved["rows"] == read(finished_run, "epoch_metrics.json")
