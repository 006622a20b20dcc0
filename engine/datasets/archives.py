# Machinery: keep, and skip at first.
"""Read and write .npz archives of arrays. Objects are never unpickled, because unpickling can run code."""

import io
import json
import math
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from engine.interface.base_problem import Columns, FileColumns
from engine.machine.atomic_files import write_atomic
from engine.machine.errors import UnusableFileError
from engine.machine.hardware import physical_memory
from engine.options.suggestions import unknown_name

RECIPES = "docs/data-files.md"

PROVENANCE = "provenance"  # the array of a file that says how its data were generated

MOST_ARRAYS = 2_000  # in one file
MOST_AT_ONCE = 2**26  # bytes

NUMBERS = "biuf"  # the kinds of dtypes that are accepted: Booleans, signed and unsigned integers, floats
TEXT = "U"  # a kind that a problem can read, and has to convert to numbers


class _CarefulFile(io.FileIO):
    """A file of which not too much is read at once: the list of arrays in a zip file can claim gigabytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = Path(str(self.name)).stat().st_size - self.tell()
        if size > MOST_AT_ONCE:
            raise ValueError("its list of arrays is damaged")
        return super().read(size)


class Archive(FileColumns):
    """The arrays of an .npz file. An array is checked and read when it is looked up. Objects are never unpickled."""

    def __init__(self, file: str | IO[bytes]) -> None:
        self.file = file
        with self._opened() as archive:
            infos = archive.infolist()
        entries = {each.filename: each for each in infos if each.filename.endswith(".npy")}
        if len(entries) > MOST_ARRAYS:
            raise ValueError(f"it has {len(entries):,} arrays, and at most {MOST_ARRAYS:,} are read")
        if any(each.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for each in entries.values()):
            raise ValueError("an array is compressed in a way that NumPy does not use")
        self.names = [name.removesuffix(".npy") for name in entries if name != f"{PROVENANCE}.npy"]
        self.sizes: dict[str, int] = {}  # in bytes, of the arrays that have been looked up
        self.texts: dict[str, Any] = {}  # the dtypes of those that are text
        self.most = physical_memory() / 4  # for the arrays, a copy, and temporary arrays of checks

    def __getitem__(self, name: str) -> NDArray[Any]:
        with self._opened() as archive:
            if name not in self.names:
                raise KeyError(
                    unknown_name("array", name, {each: _described(archive, each) for each in self.names[:21]})
                )
            self._claim(archive, name)
            with archive.open(f"{name}.npy") as file:
                array = np.asarray(npy.read_array(file, allow_pickle=False))
            if array.dtype.kind == TEXT:
                self.texts[name] = array.dtype
            return array

    def is_text(self, name: str) -> bool:
        """Whether an array is text, from its header."""
        return self._header(name)[1].kind == TEXT

    def unused(self, used: Collection[str]) -> dict[str, NDArray[Any]]:
        """The arrays (N,) that are not among those with these names."""
        return {name: self[name] for name in self.names if name not in used and len(self._header(name)[0]) == 1}

    def read_all(self) -> dict[str, NDArray[Any]]:
        """All arrays. None is read if they do not fit in memory together."""
        with self._opened() as archive:
            for name in self.names:
                self._claim(archive, name)
        return dict(self)

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The shape and the dtype of an array."""
        with self._opened() as archive, archive.open(f"{name}.npy") as file:
            return _read_header(file)[:2]

    def _claim(self, archive: zipfile.ZipFile, name: str) -> None:
        """Raise ValueError if an array, with those that have been looked up before, would not fit in memory."""
        self.sizes[name] = _size(archive, name)
        if sum(self.sizes.values()) > self.most:
            claimed = f"{sum(self.sizes.values()) / 2**30:,.1f} GiB"
            raise ValueError(f"{name} claims too much for the memory of this machine: {claimed} in all")

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        if isinstance(self.file, str):
            with _CarefulFile(self.file) as file, zipfile.ZipFile(file) as archive:
                yield archive
        else:
            with zipfile.ZipFile(self.file) as archive:
                yield archive

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """The shape and the dtype in the header of an array, and the length of the header in bytes."""
    start = io.BytesIO(file.read(2**14))  # a header may claim a length of gigabytes
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if (version := npy.read_magic(start)) not in readers:
        raise ValueError(f"its header has the version {version[0]}.{version[1]}, and must have 1.0 or 2.0")
    shape, _, dtype = readers[version](start)
    return shape, dtype, start.tell()


def _described(archive: zipfile.ZipFile, name: str) -> str:
    """An array as `name (N, L, L) int8`, from its header. If the header is damaged, only its name."""
    try:
        with archive.open(f"{name}.npy") as file:
            shape, dtype, _ = _read_header(file)
    except Exception:  # a damaged file can make a reader raise almost any exception
        return name
    return f"{name} {shape} {dtype}"


def _size(archive: zipfile.ZipFile, name: str) -> int:
    """The size of an array in bytes. Raise ValueError unless it has numbers, and the size that its header claims."""
    with archive.open(f"{name}.npy") as file:
        shape, dtype, length = _read_header(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind == "O":
            raise ValueError(f"{name} contains Python objects, which are never loaded: {RECIPES}#pickles converts them")
        if dtype.kind not in NUMBERS + TEXT:
            raise ValueError(f"{name} has the dtype {dtype}: it must contain numbers")
        if size != archive.getinfo(f"{name}.npy").file_size - length:
            raise ValueError(f"{name} is not as large as it claims")
        return size


def write_columns(path: Path, splits: Sequence[Columns], provenance: Mapping[str, Any]) -> None:
    """Write all examples to an .npz file for --data: training, validation and test, in this order.

    The file also says how they were generated, as JSON in an array of one string, which --data ignores.
    """
    columns: dict[str, Any] = {name: np.concatenate([split[name] for split in splits if split]) for name in splits[0]}
    columns[PROVENANCE] = np.array(json.dumps(provenance, indent=2))
    write_atomic(path, to_npz(columns))


def to_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The content of an .npz file with some arrays. Equal arrays give equal bytes, and any name is allowed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            # Even fast compression makes arrays of integers much smaller. Floats hardly get smaller.
            method = zipfile.ZIP_STORED if array.dtype.kind == "f" else zipfile.ZIP_DEFLATED
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), method, compresslevel=1
            )  # no timestamp
    return buffer.getvalue()


def from_npz(content: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of numbers in the content of an .npz file, by name.

    Raises:
        UnusableFileError: the content is damaged, or has arrays of anything other than numbers.
    """
    try:
        return Archive(io.BytesIO(content)).read_all()
    except Exception as error:  # a damaged or malicious file can make a reader raise almost any exception
        raise UnusableFileError(" ".join(str(error).split())[:200]) from None
