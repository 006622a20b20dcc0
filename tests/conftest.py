"""What the tests share: the program as a real command, in a folder of its own, and one finished debug run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

Program = Callable[..., subprocess.CompletedProcess[str]]


def run_command(
    *arguments: str, cwd: Path, script: str = "main.py", **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python main.py ARGUMENTS` in the folder `cwd`, with nobody at a terminal."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / script), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},  # several tests run at once: one thread each
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


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
    done = run_command("--preset", "debug", "--run-name", "first", cwd=cwd)
    assert done.returncode == 0, done.stderr
    (cwd / "stdout.txt").write_text(done.stdout)
    return cwd / "checkpoints" / "first"
