"""Helpers and fixtures that the tests share. They run programs as commands, each in a separate folder."""

import atexit
import contextlib
import gc
import json
import os
import platform
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest
from filelock import FileLock
from hypothesis import settings

from engine.machine.signals import STOP_SIGNALS
from tests.forks import FIGURES, MODULES, ForkServer

ROOT = Path(__file__).parent.parent

Program = Callable[..., subprocess.CompletedProcess[str]]

HANG = 300.0  # seconds after which a test gives up waiting; it does not measure how fast a machine is

# The smallest complete run, on the CPU, which every machine has.
DEBUG = ("--preset", "debug", "--device", "cpu")

TOY = ("-m", "tests.toy")  # the arguments of `python` that run the toy problem, on which engine/ is tested

IS_LINUX = platform.system() == "Linux"

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")

# Several tests run at once. Threads of torch that wait for a core make small steps up to 70 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Commands in the background of a shell ignore Ctrl-C, and so would the programs that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("any machine", deadline=None)  # do not fail on a slow machine
settings.load_profile("any machine")


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command: the modules of the repository, no W&B settings of the user, and one thread."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


@cache
def fork_server(*modules: str) -> ForkServer:
    """A process that runs commands for the tests of this process. It imports all programs, or only `modules`."""
    server = ForkServer(environment(), modules or MODULES)
    atexit.register(server.stop)
    return server


def run_command(
    *arguments: str, cwd: Path, script: str | tuple[str, ...] = TOY, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run `python SCRIPT ARGUMENTS` in the folder `cwd`, without a terminal. A str is a file of the repository.

    On Linux, it is a fork of a process that has loaded torch: see forks.py. If variables are changed that a program
    reads when it starts, it is a new process.
    """
    start = (str(ROOT / script),) if isinstance(script, str) else script
    if IS_LINUX and all(name.startswith(("PATH", "PYTHONPATH", "WANDB", "SLURM", FIGURES)) for name in changes):
        return fork_server().run(arguments, start, cwd=cwd, env=environment(**changes))
    return run_process(*arguments, cwd=cwd, script=script, **changes)


def run_ranks(
    n: int, *arguments: str, cwd: Path, script: str | tuple[str, ...] = TOY
) -> subprocess.CompletedProcess[str]:
    """Run the same command in n processes, which form a group as those of torchrun do."""
    start = (str(ROOT / script),) if isinstance(script, str) else script
    if IS_LINUX:
        return fork_server().run(arguments, start, cwd=cwd, env=environment(), ranks=n)
    return run_process(*start, *arguments, cwd=cwd, script=(*TORCHRUN, str(n)))


def run_process(
    *arguments: str, cwd: Path, script: str | tuple[str, ...] = TOY, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Like run_command, but always in a new process."""
    start = (str(ROOT / script),) if isinstance(script, str) else script
    return subprocess.run(
        [sys.executable, "-W", "error", *start, *arguments],
        cwd=cwd,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=HANG,
        check=False,
    )


def run_and_look_for_compiler(problem: str, cwd: Path, **changes: str) -> int:
    """Run the debug preset of the problem in a module, in the folder `cwd`.

    Returns:
        The exit code or, after a run without an error, 1 if the run has loaded torch.compile.
    """
    code = f"""
import sys
from main import main
from {problem} import PROBLEM
sys.argv[1:] = {DEBUG}
try:
    main(PROBLEM)
except SystemExit as end:
    sys.exit(end.code or "torch._dynamo" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment(**changes), check=False).returncode


def start_command(*arguments: str, cwd: Path, script: tuple[str, ...] = TOY, **options: Any) -> subprocess.Popen[str]:
    """Start `python SCRIPT ARGUMENTS` in the folder `cwd`, and do not wait for its end."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [sys.executable, *script, *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment(), stdin=subprocess.DEVNULL, encoding="utf-8", **options)


def wait_for(words: str, lines: IO[str] | None) -> None:
    """Read the output of a program up to a line that contains `words`. Fail if the program ends before."""
    assert lines is not None
    assert any(words in line for line in iter(lines.readline, ""))


def read(folder: Path, name: str) -> Any:
    """Read a JSON file of a run."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def read_all(terminal: int) -> bytes:
    """Read what is written to the other end of a pseudo-terminal until that end is closed."""
    content = b""
    with contextlib.suppress(OSError):  # how Linux reports that the other end is closed; other systems return b""
        while chunk := os.read(terminal, 4096):
            content += chunk
    os.close(terminal)
    return content


@pytest.fixture(autouse=True)
def restored_handlers() -> Iterator[None]:
    """Restore the signal handlers after a test that has called a program in this process."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def plot_nothing(patch: pytest.MonkeyPatch) -> None:
    """Let runs and evaluations in this process plot no figures, which takes half a second."""
    patch.setattr("engine.run_folder.figures_of_run.draw", lambda make, file_type="png": {})
    patch.setattr("engine.many_runs.report.draw", lambda make, file_type="png": defaultdict(lambda: b"<svg></svg>"))


@pytest.fixture(autouse=True)
def without_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plot nothing in tests that are not marked with `figures`, nor in the forks that they start."""
    if "figures" not in request.keywords:
        plot_nothing(monkeypatch)
        monkeypatch.setenv(FIGURES, "none")


@pytest.fixture
def toy(tmp_path: Path) -> Program:
    """A function that runs the program of the toy problem in a new folder: `toy("--epochs", "3")`."""

    def run(*arguments: str, script: str | tuple[str, ...] = TOY, **changes: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, cwd=tmp_path, script=script, **changes)

    return run


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder whose content one of the processes that run the tests makes for all of them."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


def finished_once(factory: pytest.TempPathFactory, script: str | tuple[str, ...], name: str) -> Path:
    """The folder of a finished debug run."""

    def make(cwd: Path) -> None:
        done = run_command(*DEBUG, "--run-name", "first", cwd=cwd, script=script, **{FIGURES: "all"})
        assert done.returncode == 0, done.stderr
        (cwd / "stdout.txt").write_text(done.stdout, encoding="utf-8", newline="\n")

    return made_once(factory, name, make) / "checkpoints" / "first"


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished debug run of the toy problem. Tests must not change it."""
    return finished_once(tmp_path_factory, TOY, "finished-toy")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished debug run of the Ising experiment. Tests must not change it."""
    return finished_once(tmp_path_factory, "main.py", "finished-ising")


@pytest.fixture
def toy_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """A function that runs the program of the toy problem in this process, without figures, and returns its exit code.

    A run takes a tenth of a second. The new folder in which it runs is the working directory of the test.
    """
    import torch

    import main
    from tests import toy

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["toy.py", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main(toy.PROBLEM)
        return int(end.value.code or 0)

    monkeypatch.chdir(tmp_path)
    n_threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(n_threads)
    gc.unfreeze()  # the program calls gc.freeze when it ends
