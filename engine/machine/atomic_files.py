# Machinery: keep, and skip at first.
"""Write files: atomically, with a checksum, and never through a link in a run. Also a lock for which processes wait."""

import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from engine.machine.errors import UnusableFileError
from engine.machine.foreign_files import is_file, read_bytes

# The errors of file systems, mostly network file systems, that do not support locks or fsync of folders.
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}

CHECKSUM = b"\nsha256 "  # separates the content of a file from its checksum


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file such that it has, at any moment, its old or its new content, even after a crash or a power cut.

    Raises:
        OSError: the file cannot be written.
    """
    # Processes of two containers can have the same number, and a name that can be guessed could be a link.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the content has to be on the disk before the file gets its name
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def inside(folder: Path, name: str) -> Path:
    """The path of a file or folder, such as `figures/parity.png`, in a run or a sweep. Folders in between are created.

    Raises:
        UnusableFileError: a part of the name is a link, which could lead anywhere if somebody else made it. The folder
            itself may be a link, unless it is that of a run in a sweep.
    """
    paths = [folder.joinpath(*Path(name).parts[:k]) for k in range(len(Path(name).parts) + 1)]
    for path in paths if is_file(folder.parent / "sweep.json") else paths[1:]:
        if path.is_symlink():
            raise UnusableFileError(f"{path} is a link, and nothing is written through it: remove it")
        if path not in (folder, paths[-1]):
            path.mkdir(exist_ok=True)
    return paths[-1]


def append_inside(folder: Path, name: str) -> IO[bytes]:
    """Open a file in a run or a sweep to append to it, without a buffer.

    Raises:
        UnusableFileError: it is a link, not a regular file, or has another name, too (a hard link).
    """
    path = inside(folder, name)
    if path.exists() and not (path.is_file() and path.stat().st_nlink == 1):
        raise UnusableFileError(f"{path} is not a regular file of its own: remove it")
    return path.open("ab", buffering=0)


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
    content, _, checksum = read_bytes(path).rpartition(CHECKSUM)
    if checksum != hashlib.sha256(content).hexdigest().encode():
        raise UnusableFileError(f"{path} is damaged")
    return content


@contextmanager
def wait_for_lock(path: Path) -> Iterator[bool]:
    """Hold the lock of a file while the block runs. Wait as long as another process, on any machine, holds it.

    The file may not be a link. If the file system has no locks, the block runs without one, and is given False.
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
