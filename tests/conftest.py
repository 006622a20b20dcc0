"""What the tests share: the program as a real command, in a folder of its own, and one finished debug run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent

Program = Callable[..., subprocess.CompletedProcess[str]]

# The smallest whole run, on the one device that computes the same everywhere.
DEBUG = ("--preset", "debug", "--device", "cpu")

settings.register_profile("any machine", deadline=None)  # a slow machine is no failure
settings.load_profile("any machine")


def run_command(
    *arguments: str, cwd: Path, script: str = "main.py", **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python main.py ARGUMENTS` in the folder `cwd`, with nobody at a terminal and no W&B settings of the user's."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / script), *arguments],
        cwd=cwd,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},  # several tests run at once: one thread each
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def wait_for(words: str, lines: IO[str]) -> None:
    """Read what a program prints up to a line with these words; it must print them before it ends."""
    assert any(words in line for line in iter(lines.readline, ""))


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Runs the program in a fresh folder: `program("--epochs", "3")`."""

    def run(*arguments: str, script: str = "main.py", **environment: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, cwd=tmp_path, script=script, **environment)

    return run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished debug run: to read, not to write."""
    cwd = tmp_path_factory.mktemp("finished")
    done = run_command(*DEBUG, "--run-name", "first", cwd=cwd)
    assert done.returncode == 0, done.stderr
    (cwd / "stdout.txt").write_text(done.stdout)
    return cwd / "checkpoints" / "first"
