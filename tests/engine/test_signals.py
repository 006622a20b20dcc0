"""Signals: the first one stops a run, which prints how to resume it; the second one ends the process at once."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import main
from engine.machine.signals import (
    STOP_SIGNALS,
    Interrupted,
    second_interrupt_at_once,
    stop_on_signals,
    uninterrupted,
)
from engine.run_folder import checkpoints
from evaluate import load_run
from tests.conftest import DEBUG, HANG, ROOT, TOY, environment, read, start_command, wait_for
from tests.toy import PROBLEM, ToyProblem
from trainer import Trainer

Run = Callable[..., int]

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143, "SIGHUP": 129}


def raise_in_epoch(number: int, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a signal arrive at the beginning of an epoch."""
    train_epoch = Trainer.train_epoch

    def train(trainer: Trainer) -> float:
        if trainer.epoch == epoch:
            signal.raise_signal(number)
        return train_epoch(trainer)

    monkeypatch.setattr(Trainer, "train_epoch", train)


@pytest.mark.parametrize("name", CODES)
def test_a_signal_stops_a_run_that_is_resumed_to_the_same_result(
    name: str,
    toy_run: Path,
    toy_in_process: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path("checkpoints") / "i"
    with monkeypatch.context() as patch:
        raise_in_epoch(getattr(signal, name), 3, patch)
        assert toy_in_process(*DEBUG, "--run-name", "i") == CODES[name]
    hint = "python toy.py --resume i continues after the last completed epoch"
    assert capsys.readouterr().err == f"toy.py: interrupted: {hint}\n"
    assert read(folder, "run_info.json")["status"] == "interrupted"
    assert [row["epoch"] for row in read(folder, "epoch_metrics.json")] == [1, 2]
    assert toy_in_process("--resume", "i") == 0
    assert "continuing after epoch 2 of 5" in capsys.readouterr().out
    for file in ("epoch_metrics.json", "results.json", "predictions.npz"):
        assert (folder / file).read_bytes() == (toy_run / file).read_bytes()


def test_an_interrupted_run_without_checkpoints_prints_that_it_cannot_be_resumed(
    toy_in_process: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_in_epoch(signal.SIGINT, 2, monkeypatch)
    assert toy_in_process(*DEBUG, "--no-checkpoints", "--run-name", "i") == 130
    error = capsys.readouterr().err
    assert error.startswith("toy.py: interrupted: its metrics are in checkpoints/i; it cannot be resumed")
    assert "--no-checkpoints" in error


@pytest.mark.slow
@pytest.mark.parametrize("name", CODES)
def test_a_signal_stops_a_command(name: str, tmp_path: Path) -> None:
    with start_command(*DEBUG, "--epochs", "3000", "--run-name", "i", cwd=tmp_path) as process:
        assert process.stderr is not None
        wait_for("epoch 2/", process.stdout)
        process.send_signal(getattr(signal, name))
        error = process.stderr.read()
    assert process.returncode == CODES[name]
    hint = "python -m tests.toy --resume i continues after the last completed epoch"
    assert error == f"toy.py: interrupted: {hint}\n"
    folder = tmp_path / "checkpoints" / "i"
    assert read(folder, "run_info.json")["status"] == "interrupted"
    n_epochs = len(read(folder, "epoch_metrics.json"))
    assert 2 <= n_epochs < 3000
    config, _ = load_run(folder)
    assert config.train.epochs == 3000
    assert checkpoints.load(folder / "last.pt", config)["epoch"] in (n_epochs - 1, n_epochs)


def test_a_second_signal_stops_at_once() -> None:
    code = """
import time
from engine.machine.signals import Interrupted, stop_on_signals
stop_on_signals()
try:
    print("ready", flush=True)
    time.sleep(1000)
except Interrupted:
    print("first", flush=True)
    time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        for line, number in (("ready\n", signal.SIGTERM), ("first\n", signal.SIGINT)):
            assert process.stdout.readline() == line
            process.send_signal(number)
        assert process.wait(HANG) == -signal.SIGINT


def test_a_second_interrupt_ends_compiled_code_at_once() -> None:
    code = """
import itertools
from engine.machine.signals import second_interrupt_at_once, stop_on_signals
stop_on_signals()
with second_interrupt_at_once():
    print("ready", flush=True)
    sum(itertools.repeat(0, 10**13))  # takes hours, and runs no handler
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG) == -signal.SIGINT


def test_interrupts_have_their_handler_again_after_a_block() -> None:
    stop_on_signals()
    with second_interrupt_at_once():
        pass
    for _ in range(2):
        stop_on_signals()
        with pytest.raises(Interrupted), second_interrupt_at_once():
            signal.raise_signal(signal.SIGINT)


class InterruptedProblem(ToyProblem):
    """The toy problem, in which a signal arrives while the data are generated."""

    def generate(self, config, n, seed):  # type: ignore[no-untyped-def]
        if n > 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().generate(config, n, seed)


def test_an_interrupt_before_the_first_file_leaves_nothing_to_resume(
    toy_in_process: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tests.toy.PROBLEM", InterruptedProblem())
        assert toy_in_process(*DEBUG, "--run-name", "i") == 130
    assert capsys.readouterr().err == "toy.py: interrupted: nothing was saved yet\n"
    assert list(Path("checkpoints").iterdir()) == []
    assert toy_in_process("--resume", "i") == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert toy_in_process(*DEBUG, "--epochs", "1", "--run-name", "i") == 0  # it does not block the name


@pytest.mark.slow
def test_an_interrupt_while_data_are_generated_stops_a_command(tmp_path: Path) -> None:
    with start_command("--num-train", "5000000", "--no-cache", "--run-name", "i", cwd=tmp_path) as process:
        assert process.stderr is not None
        while not (tmp_path / "checkpoints" / "i" / ".lock").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "toy.py: interrupted: nothing was saved yet\n"
    assert process.returncode == 130


@pytest.mark.slow
def test_a_run_under_nohup_continues_when_its_terminal_is_closed(tmp_path: Path) -> None:
    parent, child = pty.openpty()
    command = (*TOY, *DEBUG, "--epochs", "300", "--run-name", "i")
    # A new session, of which the terminal is the controlling terminal: closing it sends SIGHUP.
    process = subprocess.Popen(
        ["nohup", sys.executable, *command],
        cwd=tmp_path,
        env=environment(),
        stdin=child,
        stdout=subprocess.PIPE,
        stderr=child,
        text=True,
        start_new_session=True,
    )
    os.close(child)
    with process:
        metrics = tmp_path / "checkpoints" / "i" / "epoch_metrics.json"
        while not metrics.exists():
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGHUP)
        os.close(parent)  # from now on, writing to stderr fails
        assert process.wait(HANG) == 0
    assert len(read(metrics.parent, "epoch_metrics.json")) == 300


def test_ctrl_c_in_a_notebook_interrupts_a_run_that_can_be_resumed(
    toy_in_process: Run, toy_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = replace(PROBLEM.presets["debug"], device="cpu"), Path("checkpoints") / "i"
    with monkeypatch.context() as patch:
        raise_in_epoch(signal.SIGINT, 3, patch)
        with pytest.raises(KeyboardInterrupt):  # a notebook has the handler of Python
            main.run(PROBLEM, config, folder)
    assert read(folder, "run_info.json")["status"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    main.run(PROBLEM, config, folder, resume=True)
    assert (folder / "results.json").read_bytes() == (toy_run / "results.json").read_bytes()


def test_a_run_works_in_a_thread_which_cannot_handle_signals(toy_in_process: Run, toy_run: Path) -> None:
    folder = Path("checkpoints") / "i"
    with ThreadPoolExecutor(1) as pool:
        pool.submit(main.run, PROBLEM, replace(PROBLEM.presets["debug"], device="cpu"), folder).result()
    assert (folder / "results.json").read_bytes() == (toy_run / "results.json").read_bytes()


def test_an_interactive_session_keeps_its_handlers_after_a_command(
    toy_in_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    monkeypatch.setenv("MPLBACKEND", "svg")
    assert toy_in_process(*DEBUG, "--run-name", "i") == 0
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert os.environ["MPLBACKEND"] == "svg"


def test_signals_are_delayed_during_a_block_and_delivered_after_it(toy_in_process: Run) -> None:
    stop_on_signals()  # the fixture restores the handlers
    done = []
    with pytest.raises(Interrupted) as caught:  # noqa: PT012 - the block inside continues
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            done.append("block")
        done.append("after")
    assert done == ["block"]
    assert caught.value.exit_code == 143
    assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_DFL}  # the next one stops at once
