# Machinery: keep, and skip at first.
"""Read the examples of a file of --data, whatever its format is. The problem checks and converts them."""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from engine.datasets.archives import NUMBERS, RECIPES, TEXT, Archive
from engine.datasets.tables import Table
from engine.interface.base_config import Config
from engine.interface.base_problem import Columns, FileColumns, Problem
from engine.interface.returned_values import PREDICTED, target_array
from engine.machine.errors import BadRequestError, UnusableFileError
from engine.machine.terminal import print_line

C = TypeVar("C", bound=Config)

TIMES_IN_A_ROW = 5  # of equal values, on average, in a column that looks like the number of a chain

# Files in these formats are not read. The suffix, or the first bytes, and the section of the page with a recipe.
OTHER_FORMATS = [
    ((".npy",), b"\x93NUMPY", "npy-files"),
    ((".h5", ".hdf5", ".hdf"), b"\x89HDF", "hdf5"),
    ((".pt", ".pth"), None, "pytorch-files"),
    ((".pkl", ".pickle", ".p"), b"\x80", "pickles"),
]


class FromFile(NamedTuple):
    """The examples of a file."""

    columns: Columns
    rows: NDArray[np.int64]  # their positions in the file, from 0, without those that --drop-missing leaves out
    others: Columns  # further columns (N,) of any type, by name


class _Lookups(FileColumns):
    """The arrays of a file, and the names of those that have been looked up."""

    def __init__(self, reader: Archive | Table) -> None:
        self.reader, self.used = reader, set[str]()

    def __getitem__(self, name: str) -> NDArray[Any]:
        found = self.reader[name]
        self.used.add(name)
        return found

    def is_text(self, name: str) -> bool:
        return self.reader.is_text(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.reader)

    def __len__(self) -> int:
        return len(self.reader)


def read_columns(problem: Problem[Any], config: Config, path: str) -> Columns:
    """Read all examples of a file. The problem checks and converts them.

    Raises:
        UnusableFileError: the file is missing or damaged, or does not contain what the problem needs.
    """
    with _opened(config, path) as file:
        return _examples(problem.read, config, file).columns


def read_to_divide(problem: Problem[Any], config: Config, path: str) -> FromFile:
    """Read all examples of a file, and in `others` the columns by which they are divided. Errors: as read_columns."""
    data = config.data
    names = [limit[0] for limit in (data.test_above, data.test_below) if limit is not None]
    with _opened(config, path) as file:
        found = _examples(problem.read, config, file, [*names, *([data.group] if data.group is not None else [])])
        left_out = [name for name in file if name not in file.used and file.is_text(name)]
    if left_out:
        print_line(f"text columns left out: {', '.join(left_out)}")
    if data.group is None:
        _report_chains(file, found, target_array(problem, config, found.columns))
    return found


def read_to_predict(problem: Problem[Any], config: Config, path: str) -> FromFile:
    """Read the inputs of all examples of a file, and in `others` the columns that the problem does not use.

    Errors: as read_columns.
    """
    with _opened(config, path) as file:
        return _examples(problem.read_inputs, config, file, identify=True)


def complete_config(problem: Problem[Any], config: C) -> C:
    """The config with what follows from its file of --data: see Problem.complete. Errors: as read_columns."""
    if config.data.file is None or type(problem).complete is Problem.complete:
        return config
    with _opened(config, config.data.file, is_silent=True) as file:  # it is read again as data
        return cast(C, problem.complete(config, file))


@contextmanager
def _opened(config: Config, path: str, *, is_silent: bool = False) -> Iterator[_Lookups]:
    """Open a file. Any error while it is read becomes one that names it, except that of a bad request."""
    file: _Lookups | None = None
    try:
        with redirect_stdout(None) if is_silent else nullcontext():
            file = _Lookups(_reader(path, config.data.drop_missing))
        yield file
    except BadRequestError:
        raise
    except Exception as error:  # a damaged or malicious file can make a reader raise almost any exception
        reason = error.args[0] if isinstance(error, KeyError) and error.args else str(error) or repr(error)
        about = "".join(
            f"; {name} has the dtype {dtype}, which is text: choose other columns, or convert it in read"
            for name, dtype in (file.reader.texts if file is not None else {}).items()
            if name in str(reason) or "could not convert" in str(reason)
        )
        raise UnusableFileError(f"{path}: {' '.join(str(reason).split())}{about}") from None


def _reader(path: str, drop_missing: bool) -> Archive | Table:
    """A reader for a file. Pickles are never loaded, because they can run code."""
    if not Path(path).is_file():
        missing = f"no such file in {Path(path).absolute().parent}: give its path with --data"
        raise ValueError("is not a regular file" if Path(path).exists() else missing)
    suffix = Path(path).suffix.lower()
    with Path(path).open("rb") as opened:
        start = opened.read(8)
    for suffixes, magic, section in OTHER_FORMATS:
        if suffix in suffixes or (magic is not None and start.startswith(magic)):
            kind = suffix if suffix in suffixes else suffixes[0]
            raise ValueError(f"is a {kind} file, and must be .npz or .csv: {RECIPES}#{section} converts it")
    if start.startswith(b"\x1f\x8b"):
        raise ValueError("is compressed by gzip: unpack it with gunzip, and give the .npz or .csv file in it")
    if suffix == ".npz" and not zipfile.is_zipfile(path):
        raise ValueError(f"is not a zip file, as .npz files are: see {RECIPES}")
    return Archive(path) if suffix == ".npz" or _has_arrays(path) else Table(path, drop_missing)


def _has_arrays(path: str) -> bool:
    """Whether this is an .npz archive under another name. Workbooks are zip files, too."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def _examples(
    read: Callable[[Any, FileColumns], Columns],
    config: Config,
    file: _Lookups,
    further: Sequence[str] = (),
    *,
    identify: bool = False,
) -> FromFile:
    """Let the problem read a file, look up further columns, and leave out the examples with missing values.

    Args:
        identify: also look up all columns that the problem has not used and that have one value per example.
    """
    columns = read(config, file)
    if not isinstance(columns, Mapping):
        raise ValueError(f"read returned {type(columns).__name__}: return a dictionary of arrays")
    n = _n_examples(columns)
    others = {name: columns[name] if name in columns else file[name] for name in further}
    for name, other in others.items():
        if other.shape != (n,):
            raise ValueError(f"{name} has the shape {other.shape}: it must have one value per example, ({n},)")
    rows = np.arange(n)
    if config.data.drop_missing:
        missing = np.logical_or.reduce([_is_missing(each) for each in (*columns.values(), *others.values())])
        rows = np.flatnonzero(~missing)
    if identify:
        others = {name: each for name, each in file.reader.unused(file.used).items() if each.shape == (n,)}
    if len(rows) < n:
        print_line(f"{n - len(rows):,} of {n:,} rows left out, because values are missing")
        columns, others = ({name: each[rows] for name, each in some.items()} for some in (columns, others))
    require_columns(columns)
    return FromFile(columns, rows, others)


def _is_missing(column: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a value of each example is missing: (N, ...) -> (N,)."""
    if column.dtype.kind == TEXT:
        return np.asarray(column == "")
    if column.dtype.kind != "f":
        return np.zeros(len(column), dtype=bool)
    return np.asarray(np.isnan(column).reshape(len(column), -1).any(axis=1))


def _report_chains(file: _Lookups, found: FromFile, target: NDArray[Any]) -> None:
    """Name columns by which examples seem to belong together, such as the number of a chain or a subject."""
    names = []
    for name in dict.fromkeys([*found.columns, *file]):
        with suppress(Exception):  # a column that is not used may be wrong
            column = found.columns[name] if name in found.columns else file.reader[name][found.rows]
            is_target = np.array_equal(column, target) or (column.dtype.kind == TEXT and name in file.used)
            if not is_target and _looks_like_chains(column):
                names.append(name)
    if names:
        print_line(
            f"{', '.join(names)}: few values, each many times in a row: if examples with equal values are related, "
            f"--group {names[0]} keeps them in one split"
        )


def _looks_like_chains(column: NDArray[Any]) -> bool:
    """Whether a column (N,) of texts or whole numbers has at least three values, each several times in a row."""
    if column.ndim != 1 or (column.dtype.kind != TEXT and not np.array_equal(column, np.round(column))):
        return False
    n_series = 1 + int((column[1:] != column[:-1]).sum())
    return n_series * TIMES_IN_A_ROW <= len(column) and len(np.unique(column)) > 2


def _n_examples(columns: Columns) -> int:
    """The number of examples. Raise ValueError unless there are some, and it is that of all columns."""
    if not columns:
        raise ValueError("there are no arrays")
    lengths = {len(column) if column.ndim else None for column in columns.values()}
    if len(lengths) > 1 or None in lengths:
        shapes = ", ".join(f"{name} {column.shape}" for name, column in columns.items())
        raise ValueError(f"the arrays have different first axes: {shapes}; give one entry per example")
    if 0 in lengths:
        raise ValueError("there are no examples")
    return len(next(iter(columns.values())))


def require_columns(columns: Columns) -> None:
    """Raise ValueError unless the columns are arrays of finite numbers with one entry per example."""
    _n_examples(columns)
    for name, column in columns.items():
        if not isinstance(name, str) or name.startswith(PREDICTED):
            raise ValueError(f"a column has the name {name!r}: use a text that does not begin with {PREDICTED}")
        if column.dtype.kind not in NUMBERS:
            raise ValueError(f"{name} has the dtype {column.dtype}: it must contain numbers")
        if column.dtype.kind == "f" and not (finite := np.isfinite(column)).all():
            first = int(np.argmin(finite.reshape(len(column), -1).all(axis=1)))
            fix = "--drop-missing leaves out such examples" if np.isnan(column[first]).any() else "remove such examples"
            raise ValueError(f"{name} is infinite or not a number in example {first}: {fix}")
