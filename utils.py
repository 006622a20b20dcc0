"""The machine a run sits on: its memory and devices, its seeds, files that are whole or not there, who is running.

Importing this module loads no torch, so that refusals come at once.
"""

import fcntl
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


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


def require_memory(n_bytes: int) -> None:
    """Raise BadRequestError if this machine has less physical memory than that."""
    there_is = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if n_bytes > there_is:
        raise BadRequestError(
            f"the data need {n_bytes / 2**30:,.1f} GiB of memory and this machine has {there_is / 2**30:,.1f} GiB: "
            "lower --num-train, --num-val, --num-test or --lattice-size"
        )


def select_device(name: str) -> "torch.device":
    """The device of that name; `auto` takes the first that there is of cuda, mps, cpu.

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
    return torch.device(name)


def seed_everything(seed: int) -> None:
    """Seed torch's generators, which draw initial weights and dropout. All else is handed a generator of its own."""
    import torch

    torch.manual_seed(seed)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that is, at any moment, the old one or the new one, whole: also after a crash or a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def claim_folder(folder: Path, overwrite: bool = False) -> Iterator[None]:
    """Make a run's folder and hold it, so that no other process writes there; with `overwrite`, empty it first.

    Raises:
        BadRequestError: the folder is a link, holds an earlier run, is none of a run, or is another process's.
    """
    if folder.is_symlink():
        raise BadRequestError(f"{folder} is a symbolic link: remove it, or choose another --run-name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise BadRequestError(f"{folder} is a file: remove it, or choose another --run-name") from None
        existed = True
    else:
        existed = False
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise BadRequestError(
                f"{folder} is being written by process {lock.read().strip()}: wait, or choose another --run-name"
            ) from None
        if existed:
            _empty(folder, overwrite)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _empty(folder: Path, overwrite: bool) -> None:
    content = [entry for entry in folder.iterdir() if entry.name != ".lock"]
    if content and not overwrite:
        raise BadRequestError(f"{folder} exists already: --overwrite replaces it, another --run-name keeps it")
    if content and not (folder / "config.json").is_file():
        raise BadRequestError(f"{folder} is not the folder of a run and is left alone: choose another --run-name")
    for entry in content:
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def provenance() -> dict[str, Any]:
    """Where a number came from: the commit, and the versions and machine that may make equal runs differ."""
    here = Path(__file__).parent
    packages = ("torch", "numpy", "wandb", "tqdm", "pydantic", "matplotlib")
    return {
        "git_commit": _git(here, "rev-parse", "HEAD"),
        "git_dirty": bool(_git(here, "status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "platform": platform.platform(),
        "pid": os.getpid(),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, or no repository: a copied folder works as well
        return None
    return done.stdout.strip()
