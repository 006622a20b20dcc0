# Machinery: keep, and skip at first.
"""Read files that somebody else may have made. Whatever they contain, reading them ends, and does not fill the memory.

All files of runs and sweeps are read here. Those with arrays and weights are unpacked by file_formats.py and
checkpoints.py, which compare the sizes that they claim with the memory, and never run code from them.
"""

import json
import math
import stat
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.machine.errors import UnusableFileError

MOST_BYTES = 2**20  # of a JSON file: a thousand times the usual size of a config
MOST_BYTES_OF_LIST = 2**26  # of a JSON file that grows: epoch_metrics.json has 350 bytes for each epoch
DEEPEST = 32  # levels of lists and dictionaries inside each other; the files of this program have up to 6
MOST_VALUES = 2**23  # on one level of a file
CONTAINERS = {dict, OrderedDict, list, tuple}  # of JSON and of checkpoints


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The content of a file. A link is followed.

    Args:
        most: the size of the largest file that is read, in bytes; None: a quarter of the memory of this machine or job.

    Raises:
        FileNotFoundError, NotADirectoryError: the file is missing.
        UnusableFileError: it cannot be read, or is too large; or it is not a regular file, but for example a pipe,
            which could make a reader wait for ever.
    """
    try:
        return _read_regular(path, most)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:  # for example, a link in a loop, or to a name that is too long
        raise UnusableFileError(f"{path}: {error.strerror}") from None


def _read_regular(path: Path, most: int | None) -> bytes:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UnusableFileError(f"{path}: is {'a folder' if path.is_dir() else 'not a regular file'}")
    if most is None:
        from engine.machine.hardware import physical_memory

        most = physical_memory() // 4
    # A file with holes can claim more than the disk has. Some files of the system claim 0, and have no end.
    limit = found.st_size or min(most, MOST_BYTES)
    with path.open("rb") as file:
        content = b"" if limit > most else file.read(limit + 1)
    if limit > most or (len(content) > limit and not found.st_size):
        raise UnusableFileError(f"{path}: is larger than {most:,} bytes")
    return content


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """The content of a JSON file: dictionaries, lists, text, and finite numbers.

    Raises:
        FileNotFoundError, NotADirectoryError: the file is missing.
        UnusableFileError: it cannot be read, is not a regular file, is too large, or has other content.
    """
    try:
        content = json.loads(read_bytes(path, most))
        for value in leaves(content):
            if type(value) is float and not math.isfinite(value):
                raise ValueError(f"{value} is not a finite number")
            if type(value) is int and abs(value) >= 2**64:  # some are too large to become floats
                raise ValueError("an integer has more than 64 bits")
    except (ValueError, RecursionError) as error:
        raise UnusableFileError(f"{path} is damaged ({error})") from None
    return content


def leaves(content: Any) -> list[Any]:
    """All values in dictionaries, lists and tuples inside each other, level by level.

    Raises:
        ValueError: there are too many levels or values.
    """
    level, found = [content], []
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for value in level:
            if type(value) not in CONTAINERS:
                found.append(value)
                continue
            inner += value.values() if isinstance(value, dict) else value
            if len(inner) > MOST_VALUES:
                raise ValueError("it has too many values")
        if not inner:
            return found
        level = inner
    raise ValueError("it is nested too deeply")


def is_file(path: Path) -> bool:
    """Whether there is a regular file. Also false, and no error, if the path leads through links that lead nowhere."""
    with suppress(OSError, ValueError):
        return path.is_file()
    return False
