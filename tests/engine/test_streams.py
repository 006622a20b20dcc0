"""Streams that cannot be written: the run continues, and its files are complete. Only output is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEBUG, ROOT, TOY, Program, environment, read
from utils import print_line, warn

RUN = (*DEBUG, "--run-name", "r")
SHELL = f"exec {sys.executable} -W error {' '.join((*TOY, *RUN))}"


def run_in_shell(redirection: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"({SHELL}) {redirection}"],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirection",
    [
        "<&- >&- 2>&-",
        "2>&1 | head -n 1",
        pytest.param(
            ">/dev/full 2>&1", marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="only on Linux")
        ),
    ],
)
def test_a_run_does_not_need_its_streams(redirection: str, toy_run: Path, tmp_path: Path) -> None:
    done = run_in_shell(redirection, tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    folder = tmp_path / "checkpoints" / "r"
    assert read(folder, "run_info.json")["status"] == "finished"
    assert {path.name for path in folder.iterdir()} == {path.name for path in toy_run.iterdir()}
    for name in ("results.json", "epoch_metrics.json", "predictions.npz"):
        assert (folder / name).read_bytes() == (toy_run / name).read_bytes()
    assert (folder / ".lock").read_bytes() == b""  # no output


@pytest.mark.slow
def test_characters_that_stdout_cannot_encode_are_escaped(toy: Program, tmp_path: Path) -> None:
    (tmp_path / "ü").mkdir()
    done = toy("--save-data", "ü/a.npz", LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("examples in \\udcc3\\udcbc/a.npz\n")


def test_lines_are_lost_after_the_reader_of_a_pipe_has_gone_and_the_exit_code_is_that_of_the_command() -> None:
    code = "import utils; utils.print_line('a' * 9); utils.warn('b'); utils.print_line('c')"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"b\n")


def test_a_pipe_that_is_full_does_not_block_if_it_was_opened_so() -> None:
    code = "import utils\nfor _ in range(300): utils.print_line('a' * 999)"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(reader)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_streams_nothing_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    print_line("a")
    warn("b")
