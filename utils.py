"""The machine a run sits on: its memory and devices, its seeds, files that are whole or not there, who is running.

Importing this module loads no torch, so that refusals come at once.
"""

import fcntl
import gc
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
CHECKSUM = b"\nsha256 "  # between the content of a file and its checksum


class RunError(Exception):
    """What ends a run and can be told in one line, with the exit code of the program."""

    exit_code = 1


class BadRequestError(RunError):
    """What was asked for cannot be done here."""

    exit_code = 2


class UnusableFileError(RunError):
    """A file is damaged, or is not what it should be."""

    exit_code = 3


class DivergedError(RunError):
    """Training left the finite numbers."""

    exit_code = 4


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop; no Exception, so that whoever goes on after errors stops all the same."""

    def __init__(self, number: int) -> None:
        # What a cluster sends before it takes a node, SIGUSR1, counts as the SIGTERM that follows.
        self.exit_code = 128 + (signal.SIGTERM if number == signal.SIGUSR1 else number)


def stop_on_signals() -> None:
    """Let the first SIGINT, SIGTERM or SIGUSR1 raise Interrupted, and the second end the process at once.

    There is nothing to save at that moment: what is to be kept has been written after each epoch, in files that are
    whole at any moment.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise Interrupted(number)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back while something short is done, such as the last note of a run that is being stopped."""
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def physical_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_memory(n_bytes: int) -> None:
    """Raise BadRequestError if this machine has less physical memory than that."""
    there_is = physical_memory()
    if n_bytes > there_is:
        raise BadRequestError(
            f"the data need {n_bytes / 2**30:,.1f} GiB of memory and this machine has {there_is / 2**30:,.1f} GiB: "
            "lower --num-train, --num-val, --num-test or --lattice-size"
        )


def select_device(name: str, index: int | None = None) -> "torch.device":
    """The device of that name; `auto` takes the first that there is of cuda, mps, cpu. The index counts GPUs.

    Raises:
        BadRequestError: this machine has no such device.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise BadRequestError(f"--device {name}: not on this machine; use --device auto")
    if name == "cuda" and index is not None:
        torch.cuda.set_device(index)
        return torch.device(name, index)
    return torch.device(name)


def require_compiler(device: "torch.device") -> None:
    """Raise BadRequestError if torch.compile would miss a C++ compiler, which it needs on the CPU."""
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise BadRequestError("--compile: this machine has no C++ compiler: install g++, or do without")


def seed_everything(seed: int) -> None:
    """Seed torch's generators, which draw initial weights and dropout. All else is handed a generator of its own."""
    import torch

    torch.manual_seed(seed)


def say(text: str) -> None:
    """Print a line for whoever listens; if nobody does any more (`| head`), the run goes on in silence."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    """Print a line on stderr, if anybody listens: what is told there changes no exit code."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def leave(code: int) -> NoReturn:
    """End the program without a last search for garbage among all that torch has, which takes half a second."""
    gc.freeze()
    sys.exit(code)


@contextmanager
def timed(name: str, timings: dict[str, float]) -> Iterator[None]:
    """Note how many seconds the block takes."""
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 3)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that is, at any moment, the old one or the new one, whole: also after a crash or a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder, such as a file's new one, on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_checked(path: Path, content: bytes) -> None:
    """Write a file as write_atomic does, and after its content the SHA-256 of it, for read_checked to find damage.

    What comes last disturbs no reader of zip archives, which torch's files are: torch.load reads the file as it is.
    """
    write_atomic(path, content + CHECKSUM + hashlib.sha256(content).hexdigest().encode())


def read_checked(path: Path) -> bytes:
    """The content of a file of write_checked.

    Raises:
        UnusableFileError: the file is damaged, or another one.
    """
    content, _, checksum = path.read_bytes().rpartition(CHECKSUM)
    if checksum != hashlib.sha256(content).hexdigest().encode():
        raise UnusableFileError(f"{path} is damaged")
    return content


def require_free(folder: Path, overwrite: bool = False) -> None:
    """Raise BadRequestError unless a run may be written there: into a new folder or, with `overwrite`, a run's."""
    if folder.is_symlink() or folder.is_file():
        raise BadRequestError(f"{folder} is a link or a file: remove it, or choose another --run-name")
    if not folder.exists():
        return
    names = {entry.name for entry in folder.iterdir()}
    if all(name == ".lock" or name.endswith(".tmp") for name in names):  # of a run that was cut off before it began
        overwrite = True
    if ".lock" in names:
        with (folder / ".lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadRequestError(
                    f"{folder} is being written by process {lock.read().strip()}: wait, or choose another --run-name"
                ) from None
    if not overwrite:
        raise BadRequestError(
            f"{folder} exists already: --resume {folder.name} goes on with it, --overwrite replaces it, "
            "another --run-name keeps it"
        )
    if names and ".lock" not in names:  # whatever it is, main.py did not make it
        raise BadRequestError(f"{folder} is not the folder of a run and is left alone: choose another --run-name")


@contextmanager
def claim_folder(folder: Path, overwrite: bool = False) -> Iterator[None]:
    """Make a run's folder, or with `overwrite` take an earlier one's, and hold it against other processes.

    Raises:
        BadRequestError: as from require_free, also if another process comes first in this moment.
    """
    require_free(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        require_free(folder, overwrite)
    # The kernel lets go of a lock when its process ends, however it ends: a killed run does not block the next.
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadRequestError(
                f"{folder} has just been taken by another process: choose another --run-name"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        for left_over in folder.glob(".*.tmp"):  # by a process that was killed while it wrote
            left_over.unlink()
        yield


def empty_folder(folder: Path) -> None:
    """Remove an earlier run from a claimed folder."""
    for entry in folder.iterdir():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def provenance() -> dict[str, Any]:
    """Where a number came from: the commit, and the versions and machine that may make equal runs differ."""
    here = Path(__file__).parent
    changes = _git(here, "status", "--porcelain", "--", "*.py", "requirements.txt")  # no text, no results
    return {
        "git_commit": _git(here, "rev-parse", "HEAD"),
        "git_dirty": None if changes is None else changes != "",
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "pid": os.getpid(),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, or no repository: a copied folder works as well
        return None
    return done.stdout.strip()
