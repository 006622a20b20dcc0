"""Atomic writes, files with a checksum, and a lock that only lets one process write to the folder of a run."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import BadRequestError, BusyError, UnusableFileError
from utils import warn

if TYPE_CHECKING:
    from filelock import FileLock

# The errors of file systems, mostly network file systems, that do not support locks or fsync of folders.
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}

CHECKSUM = b"\nsha256 "  # separates the content of a file from its checksum


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file such that it has, at any moment, its old or its new content, even after a crash or a power cut.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the content has to be on the disk before the file gets its name
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace(source: Path, target: Path) -> None:
    """Rename a file, which replaces the target, and write the new name to the disk.

    On Windows, this fails while another process reads one of the files. It is therefore tried for about a second.
    """
    for seconds in (0.01, 0.05, 0.2, 0.8):
        try:
            source.replace(target)
            break
        except PermissionError:
            time.sleep(seconds)
    else:
        source.replace(target)
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Write the list of names in a folder to the disk, if its file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON atomically. Raises ValueError for NaN and infinity, which JSON does not allow."""
    write_atomic(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_checked(path: Path, content: bytes) -> None:
    """Write a file atomically, followed by the SHA-256 of its content. read_checked uses it to detect damage.

    Readers of zip archives, such as torch.load and numpy.load, ignore bytes that follow the archive.
    """
    write_atomic(path, with_checksum(content))


def with_checksum(content: bytes) -> bytes:
    """The bytes of a file that write_checked writes."""
    return content + CHECKSUM + hashlib.sha256(content).hexdigest().encode()


def read_checked(path: Path) -> bytes:
    """Read the content of a file that write_checked wrote.

    Raises:
        UnusableFileError: the file is damaged, or another program wrote it.
    """
    content, _, checksum = path.read_bytes().rpartition(CHECKSUM)
    if checksum != hashlib.sha256(content).hexdigest().encode():
        raise UnusableFileError(f"{path} is damaged")
    return content


def read_info(folder: Path) -> dict[str, Any]:
    """Read the run_info.json of a run. The result is empty if there is no such file.

    Raises:
        UnusableFileError: the file is damaged.
    """
    path = folder / "run_info.json"
    try:
        return dict(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, TypeError) as error:
        raise UnusableFileError(f"{path} is damaged ({error}): remove it to continue without it") from None


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

    lock = FileLock(folder / ".lock", timeout=0, preserve_lock_file=True)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(f"{folder} is being written by {_writer(folder)}: wait, or choose another --run-name") from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return None
    return lock


@contextmanager
def wait_for_lock(path: Path) -> Iterator[bool]:
    """Hold the lock of a file while the block runs. Wait as long as another process, on any machine, holds it.

    If the file system has no locks, the block runs without one, and is given False.
    """
    from filelock import FileLock

    lock = FileLock(path, preserve_lock_file=True)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    try:
        yield lock.is_locked
    finally:
        lock.release()


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
