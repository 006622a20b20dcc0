# Machinery: keep, and skip at first.
"""The lock that lets only one process write to the folder of a run."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from engine.machine.atomic_files import UNSUPPORTED, inside
from engine.machine.errors import BadRequestError, BusyError, UnusableFileError
from engine.machine.terminal import warn
from engine.run_folder.saved_run import read_info

if TYPE_CHECKING:
    from filelock import FileLock


def require_free(folder: Path, overwrite: bool = False) -> None:
    """Raise BadRequestError unless a run may be written to the folder.

    The folder has to be new. With `overwrite`, it may also be the folder of an earlier run.
    """
    if folder.parent.is_symlink() and not folder.parent.is_dir():
        raise BadRequestError(f"{folder.parent} is a link to a missing folder: remove the link, or restore the folder")
    if folder.is_symlink() or folder.is_file():
        raise BadRequestError(f"{folder} is a link or a file: remove it, or choose another --run-name")
    if not folder.exists():
        return
    if (folder / "sweep.json").exists():
        raise BadRequestError(f"{folder} is a sweep, so it is kept: choose another --run-name")
    names = {entry.name for entry in folder.iterdir()}
    if all(name == ".lock" or name.endswith(".tmp") for name in names):  # from a run that was killed when it started
        overwrite = True
    if ".lock" in names:
        lock = _lock(folder)  # fails if lock_run holds the lock in another process
        if lock is not None:
            lock.release()
    if not overwrite:
        raise BadRequestError(
            f"{folder} exists already: --resume {folder.name} continues it, --overwrite replaces it, "
            "another --run-name keeps it"
        )
    if names and not {".lock", "run_info.json"} & names:
        raise BadRequestError(f"{folder} is not the folder of a run, so it is kept: choose another --run-name")


@contextmanager
def lock_run(folder: Path, overwrite: bool = False) -> Iterator[None]:
    """Create the folder of a run, and lock it against other processes while the block runs.

    With `overwrite`, the folder may already exist. If nothing is written to it, it is removed at the end.

    Raises:
        BadRequestError: see require_free.
        BusyError: another process uses the folder.
    """
    removed = f"{folder} has just been removed by another process: run the command again"
    try:
        require_free(folder, overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            require_free(folder, overwrite)
        lock = _lock(folder)
    except (FileNotFoundError, FileExistsError):  # the folder was removed, or removed and created again
        if not folder.parent.is_dir():
            raise
        raise BusyError(removed) from None
    if lock is None:
        warn(f"warning: the file system cannot lock {folder}: do not use this --run-name in two processes at once")
    elif not (folder / ".lock").exists():  # another process has removed it after it had been opened here
        lock.release()
        raise BusyError(removed)
    try:
        for left_over in folder.glob(".*.tmp"):  # from a process that was killed while it was writing
            left_over.unlink()
        yield
    finally:
        _remove_unused(folder)
        if lock is not None:
            lock.release()
            if os.name == "nt":  # Windows does not remove an open file
                _remove_unused(folder)


def _remove_unused(folder: Path) -> None:
    with suppress(OSError):  # while the folder is being removed, another process may begin to use it
        if [entry.name for entry in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()


def _lock(folder: Path) -> "FileLock | None":
    """Lock a folder against other processes. The result is None if its file system has no locks.

    The system releases the lock when the process ends, even if it is killed: that does not block the next run.

    Raises:
        BusyError: another process holds the lock.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(inside(folder, ".lock"), timeout=0, preserve_lock_file=True)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(f"{folder} is being written by {_writer(folder)}: wait, or choose another --run-name") from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return None
    return lock


def _writer(folder: Path) -> str:
    try:
        info = read_info(folder)
    except UnusableFileError:
        info = {}
    return f"process {info['pid']}" if info.get("status") == "running" and "pid" in info else "another process"


def empty_folder(folder: Path) -> None:
    """Remove all files of an earlier run from a locked folder, except the lock."""
    for entry in folder.iterdir():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
