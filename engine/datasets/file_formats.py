# Machinery: keep, and skip at first.
"""Read and write files with examples: .npz archives of arrays, and .csv tables with a header."""

import csv
import io
import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from engine.interface.base_config import Config
from engine.interface.base_problem import Columns, Problem, Splits
from engine.interface.returned_values import PREDICTED
from engine.machine.atomic_files import write_atomic
from engine.machine.errors import UnusableFileError
from engine.machine.hardware import physical_memory
from engine.options.fields import NUMBER
from engine.options.suggestions import Known, suggest

# Files in these formats are not read. The suffix, or the first bytes, and the section of the page with a recipe.
OTHER_FORMATS = [
    ((".npy",), b"\x93NUMPY", "npy-files"),
    ((".h5", ".hdf5", ".hdf"), b"\x89HDF", "hdf5"),
    ((".pt", ".pth"), None, "pytorch-files"),
    ((".pkl", ".pickle", ".p"), b"\x80", "pickles"),
    ((".txt", ".dat", ".out"), None, "text-files"),
]
PROVENANCE = "provenance"  # the array of a file that says how its data were generated
RECIPES = "docs/data-files.md"

MOST_ARRAYS = 2_000  # in one file
MOST_AT_ONCE = 2**26  # bytes

NUMBERS = "biuf"  # the kinds of dtypes that are accepted: Booleans, signed and unsigned integers, floats
TEXT = "U"  # a kind that a problem can read, and has to convert to numbers


def read_columns(problem: Problem[Any], config: Config, path: str) -> Columns:
    """Read all examples of a file. The problem checks and converts them.

    Raises:
        UnusableFileError: the file is missing or damaged, or does not contain what the problem needs.
    """
    texts: dict[str, Any] = {}
    try:
        if not Path(path).is_file():
            missing = f"no such file in {Path(path).absolute().parent}: give its path with --data"
            raise ValueError("is not a regular file" if Path(path).exists() else missing)
        _refuse_other_formats(path)
        reader = READERS.get(Path(path).suffix.lower(), _Archive)(path)
        texts = reader.texts
        columns = problem.read(config, reader)
        if not isinstance(columns, Mapping):
            raise ValueError(f"read returned {type(columns).__name__}: return a dictionary of arrays")
        require_columns(columns)
        return columns
    except Exception as error:  # a damaged or malicious file can make a reader raise almost any exception
        reason = error.args[0] if isinstance(error, KeyError) and error.args else str(error) or repr(error)
        about = "".join(
            f"; {name} has the dtype {dtype}, which is text: choose other columns, or convert it in read"
            for name, dtype in texts.items()
            if name in str(reason) or "could not convert" in str(reason)
        )
        raise UnusableFileError(f"{path}: {' '.join(str(reason).split())}{about}") from None


def _refuse_other_formats(path: str) -> None:
    """Raise ValueError if a file has another format. Pickles are never loaded, because they can run code."""
    suffix = Path(path).suffix.lower()
    with Path(path).open("rb") as file:
        start = file.read(8)
    for suffixes, magic, section in OTHER_FORMATS:
        if suffix in suffixes or (magic is not None and start.startswith(magic)):
            kind = suffix if suffix in suffixes else suffixes[0]
            raise ValueError(f"is a {kind} file, and must be .npz or .csv: {RECIPES}#{section} converts it")
    if start.startswith(b"\x1f\x8b"):
        raise ValueError("is compressed by gzip: unpack it with gunzip, and give the .npz or .csv file in it")
    if suffix not in READERS and not zipfile.is_zipfile(path):
        raise ValueError(f"is not a zip file, as .npz files are, and has no suffix .csv: see {RECIPES}")


def require_columns(columns: Columns) -> None:
    """Raise ValueError unless the columns are arrays of finite numbers with one entry per example."""
    if not columns:
        raise ValueError("there are no arrays")
    lengths = {name: len(column) if column.ndim else None for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        shapes = ", ".join(f"{name} {column.shape}" for name, column in columns.items())
        raise ValueError(f"the arrays have different first axes: {shapes}; give one entry per example")
    if 0 in lengths.values():
        raise ValueError("there are no examples")
    for name, column in columns.items():
        if not isinstance(name, str) or name.startswith(PREDICTED):
            raise ValueError(f"a column has the name {name!r}: use a text that does not begin with {PREDICTED}")
        if column.dtype.kind not in NUMBERS:
            raise ValueError(f"{name} has the dtype {column.dtype}: it must contain numbers")
        if column.dtype.kind == "f" and not (finite := np.isfinite(column)).all():
            first = int(np.argmin(finite.reshape(len(column), -1).all(axis=1)))
            raise ValueError(f"{name} is infinite or not a number in example {first}: remove such examples")


class _CarefulFile(io.FileIO):
    """A file of which not too much is read at once: the list of arrays in a zip file can claim gigabytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = Path(str(self.name)).stat().st_size - self.tell()
        if size > MOST_AT_ONCE:
            raise ValueError("its list of arrays is damaged")
        return super().read(size)


class _Archive(Mapping[str, NDArray[Any]]):
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
                raise KeyError(_unknown("array", name, {each: _described(archive, each) for each in self.names[:21]}))
            self._claim(archive, name)
            with archive.open(f"{name}.npy") as file:
                array = np.asarray(npy.read_array(file, allow_pickle=False))
            if array.dtype.kind == TEXT:
                self.texts[name] = array.dtype
            return array

    def read_all(self) -> dict[str, NDArray[Any]]:
        """All arrays. None is read if they do not fit in memory together."""
        with self._opened() as archive:
            for name in self.names:
                self._claim(archive, name)
        return dict(self)

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


class _Table(Mapping[str, NDArray[Any]]):
    """The columns of a .csv file with a header: (N,) float64 or, if all cells begin with a letter, text."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.texts: dict[str, Any] = {}  # the dtypes of the columns that have been looked up and are text
        if 8 * Path(path).stat().st_size > physical_memory():  # text takes several times as much
            raise ValueError("is too large for the memory of this machine: convert it to .npz in parts")
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            unquoted = re.sub('"[^"]*"', "", file.read(2**16))  # a quoted name may contain other delimiters
            self.delimiter = max(",;\t", key=unquoted.partition("\n")[0].count)
            file.seek(0)
            rows = csv.reader(file, delimiter=self.delimiter)
            self.names = [name.strip() for name in next(rows, [])]
            if not any(self.names):
                raise ValueError("the first line is empty; it must name the columns")
            if repeated := [name for name, n in Counter(self.names).items() if n > 1]:
                if all(NUMBER.fullmatch(name) for name in self.names):
                    raise ValueError(f"the first line has numbers, and must name the columns: see {RECIPES}#tables")
                raise ValueError(f"two columns are named {min(repeated)!r}; rename one")
            for row in rows:  # numpy.loadtxt accepts longer rows, whose values may be in the wrong columns
                if len(row) != len(self.names) and "".join(row).strip():
                    raise ValueError(f"line {rows.line_num} has {len(row)} cells and the header has {len(self.names)}")

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.names:
            raise KeyError(_unknown("column", name, {each: each for each in self.names}))
        options = {"delimiter": self.delimiter, "quotechar": '"', "comments": None, "encoding": "utf-8-sig"}
        place = self.names.index(name)
        with Path(self.path).open(encoding="utf-8-sig") as file:
            next(csv.reader(file, delimiter=self.delimiter))  # skip the header, which may have several lines
            if not (rest := file.read()).strip():
                raise ValueError("there are no rows below the header")
        try:
            return np.loadtxt(io.StringIO(rest), usecols=place, ndmin=1, **options)  # type: ignore[call-overload,no-any-return]
        except ValueError as error:
            rows = (row for row in csv.reader(io.StringIO(rest), delimiter=self.delimiter) if any(row))
            cells = [row[place].strip() for row in rows]
            wrong = [i for i, cell in enumerate(cells) if not cell[:1].isalpha()]
            if wrong and len(wrong) < len(cells) / 2:
                where = f"row {wrong[0] + 1} below the header has {cells[wrong[0]]!r}"
                raise ValueError(f"column {name!r} has text, and {where}: correct the file") from None
            if not wrong:
                self.texts[name] = np.array(cells).dtype
                return np.array(cells)
            raise ValueError(f"column {name!r}: {error}; choose other columns, or correct the file") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


# To add a format, write a class like _Table, and add its suffix. Files with another suffix are read as .npz archives.
READERS: dict[str, Callable[[str], Any]] = {".csv": _Table}


def _unknown(kind: str, name: str, described: dict[str, str]) -> str:
    """Words that name a missing array, the nearest one, and those that are there."""
    listed = ", ".join(list(described.values())[:20]) + (", ..." if len(described) > 20 else "") or f"no {kind}s"
    advice = suggest(name, [Known(each, (each,)) for each in described], "")
    return f"no {kind} {name!r}; {f'{advice} ' if advice else ''}the file has {listed}"


def write_columns(path: Path, splits: Splits, provenance: Mapping[str, Any]) -> None:
    """Write all examples to an .npz file for --data: training, validation and test, in this order.

    The file also says how they were generated, as JSON in an array of one string, which --data ignores.
    """
    columns: dict[str, Any] = {name: np.concatenate([split[name] for split in splits]) for name in splits.train}
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
        return _Archive(io.BytesIO(content)).read_all()
    except Exception as error:  # a damaged or malicious file can make a reader raise almost any exception
        raise UnusableFileError(" ".join(str(error).split())[:200]) from None
