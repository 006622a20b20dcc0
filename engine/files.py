"""Atomic writes, files with a checksum, and a lock that only lets one process write to the folder of a run."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engine.errors import BadRequestError, UnusableFileError

CHECKSUM = b"\nsha256 "  # separates the content of a file from its checksum


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file such that it has, at any moment, its old or its new content, even after a crash or a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the content has to be on the disk before the file gets its name
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Write the list of names in a folder to the disk, for example after a file has been renamed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
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
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise UnusableFileError(f"{path} is damaged ({error}): remove it to continue without it") from None


def require_free(folder: Path, overwrite: bool = False) -> None:
    """Raise BadRequestError unless a run may be written to the folder.

    The folder has to be new. With `overwrite`, it may also be the folder of an earlier run.
    """
    if folder.is_symlink() or folder.is_file():
        raise BadRequestError(f"{folder} is a link or a file: remove it, or choose another --run-name")
    if not folder.exists():
        return
    names = {entry.name for entry in folder.iterdir()}
    if all(name == ".lock" or name.endswith(".tmp") for name in names):  # from a run that was killed when it started
        overwrite = True
    if ".lock" in names:
        with (folder / ".lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # fails if lock_run holds the lock in another process
            except BlockingIOError:
                raise BadRequestError(
                    f"{folder} is being written by process {lock.read().strip()}: wait, or choose another --run-name"
                ) from None
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
        BadRequestError: see require_free. Also raised if another process uses the folder at the same moment.
    """
    removed = f"{folder} has just been removed by another process: run the command again"
    try:
        require_free(folder, overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            require_free(folder, overwrite)
        lock = (folder / ".lock").open("a")
    except FileNotFoundError:
        raise BadRequestError(removed) from None
    # The kernel releases the lock when the process ends, even if it is killed: that does not block the next run.
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadRequestError(
                f"{folder} has just been locked by another process: choose another --run-name"
            ) from None
        if os.fstat(lock.fileno()).st_nlink == 0:  # the file was removed after it had been opened here
            raise BadRequestError(removed)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        for left_over in folder.glob(".*.tmp"):  # from a process that was killed while it was writing
            left_over.unlink()
        try:
            yield
        finally:
            with suppress(OSError):  # while the folder is being removed, another process may begin to use it
                if [entry.name for entry in folder.iterdir()] == [".lock"]:
                    (folder / ".lock").unlink()
                    folder.rmdir()


def empty_folder(folder: Path) -> None:
    """Remove all files of an earlier run from a locked folder, except the lock."""
    for entry in folder.iterdir():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
