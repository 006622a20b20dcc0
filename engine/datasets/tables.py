# Machinery: keep, and skip at first.
"""Read text tables: .csv files and their kin, as spreadsheets, NumPy and pandas write them.

A table is read as people mean it where it has one meaning. Where it has two, an error says how to decide.
"""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.interface.base_problem import FileColumns
from engine.machine.hardware import physical_memory
from engine.machine.terminal import print_line
from engine.options.suggestions import unknown_name

WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # the first bytes of .xlsx and .ods, and of .xls
MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-"}  # cells of a column of numbers, in lower case
UNNAMED = {"", "Unnamed: 0"}  # pandas writes its index without a name, and reads it with the second one

# In files with decimal commas. 1,234 may also be a thousand and more.
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
DECIMAL_POINT = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")


class _Row(NamedTuple):
    """The cells of a row without white space around them, and the line of the file where it ends."""

    line: int
    cells: list[str]


class Table(FileColumns):
    """The columns of a text table by name, (N,) float64 or text. Each is converted when it is looked up.

    Args:
        drop_missing: do not refuse missing values: return NaN among numbers, and empty text.

    Raises:
        ValueError: it is not a table, or has two meanings. The message names the line of the file.
    """

    def __init__(self, path: str, drop_missing: bool = False) -> None:
        self.drop_missing = drop_missing
        self.texts: dict[str, Any] = {}  # the dtypes of the columns that have been looked up and are text
        self.converted: dict[str, NDArray[np.float64] | None] = {}  # columns of numbers; None: text
        names, rows = _table(*_rows_of(_text_of(path)))
        self.lines = [row.line for row in rows]
        columns = list(zip(*(row.cells for row in rows), strict=True))
        self.index: dict[str, NDArray[Any]] = {}  # a first column without a name
        if names.cells[0] in UNNAMED and len(columns) > 1:
            print_line("the first column has no name: left out, as an index")
            self.index = {"index": np.array(columns[0])}
        named = names.cells[len(self.index) :]
        if "" in named:
            place = len(self.index) + named.index("") + 1
            raise ValueError(f"column {place} has no name in line {names.line}: give it one")
        if repeated := [name for name, n in Counter(named).items() if n > 1]:
            raise ValueError(f"two columns are named {min(repeated)!r}; rename one")
        self.cells = dict(zip(named, columns[len(self.index) :], strict=True))

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.cells:
            raise KeyError(unknown_name("column", name, {each: each for each in self.cells}))
        cells, numbers = self.cells[name], self._converted(name)
        found = np.array(cells) if numbers is None else numbers
        is_missing = found == "" if numbers is None else np.isnan(found)
        if is_missing.all():
            raise ValueError(f"column {name!r} has no values: leave it out")
        if is_missing.any() and not self.drop_missing:
            line = self.lines[int(np.argmax(is_missing))]
            raise ValueError(
                f"column {name!r} has no value in line {line}: correct the file, or --drop-missing leaves such rows out"
            )
        if numbers is None:
            self.texts[name] = found.dtype
        elif np.isinf(numbers).any():
            i = int(np.argmax(np.isinf(numbers)))
            raise ValueError(f"column {name!r} is infinite in line {self.lines[i]} ({cells[i]}): correct the file")
        return found

    def is_text(self, name: str) -> bool:
        """Whether at least half of the cells of a column that are not missing are text."""
        try:
            return self._converted(name) is None
        except ValueError:
            return False

    def unused(self, used: Collection[str]) -> dict[str, NDArray[Any]]:
        """The columns that are not among those with these names as text, and the index."""
        return self.index | {name: np.array(cells) for name, cells in self.cells.items() if name not in used}

    def __iter__(self) -> Iterator[str]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    def _converted(self, name: str) -> NDArray[np.float64] | None:
        """The numbers of a column, NaN where they are missing, or None if it is text.

        Raises:
            ValueError: most cells are numbers, and others are not.
        """
        if name not in self.converted:
            self.converted[name] = self._convert(name)
        return self.converted[name]

    def _convert(self, name: str) -> NDArray[np.float64] | None:
        cells = self.cells[name]
        if (fast := _as_numbers(cells)) is not None:
            return fast
        numbers = [float("nan") if cell.lower() in MISSING else _number(cell) for cell in cells]
        wrong = [i for i, number in enumerate(numbers) if number is None]
        if not wrong:
            return np.array(numbers, dtype=np.float64)
        if len(wrong) >= sum(number is not None and not math.isnan(number) for number in numbers):
            return None
        where = f"line {self.lines[wrong[0]]} has {cells[wrong[0]]!r}"
        raise ValueError(f"column {name!r} has numbers, and {where}: correct the file, or choose other columns")


def _text_of(path: str) -> str:
    """The content of a text file, with line feeds as line ends."""
    if 8 * Path(path).stat().st_size > physical_memory():  # its cells take several times as much
        raise ValueError("is too large for the memory of this machine: convert it to .npz in parts")
    content = Path(path).read_bytes()
    if content.startswith(WORKBOOKS):
        raise ValueError("is a workbook, or a zip file: save the sheet as CSV, and give that file")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16")
    elif b"\0" in content:
        raise ValueError("is neither a text file nor an .npz archive of arrays: see docs/data-files.md")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            print_line(f"{path} is not UTF-8 (byte {error.start}): read as Windows-1252, a Latin alphabet")
            text = content.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _rows_of(text: str) -> tuple[list[_Row], str, str]:
    """The rows of a text that are not blank, the last comment before them, and the delimiter."""
    start, skipped, comment, delimiter = 0, 0, "", ""
    while (end := text.find("\n", start)) >= 0:
        line = text[start:end].strip()
        if line.startswith("sep=") and len(line) <= 5 and not delimiter:
            delimiter = line[4:] or "\t"  # strip has removed the tab
        elif line.startswith("#"):
            comment = line.lstrip("# ")
        elif line:
            break
        skipped, start = skipped + 1, end + 1
    text = text[start:]
    delimiter = delimiter or _delimiter(text)
    if delimiter == " ":  # any white space
        text = "\n".join(" ".join(line.split()) for line in text.split("\n"))
    # A space after a delimiter may stand before a quote, and is then not part of the cell.
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=delimiter != "\t")
    has_spaces, rows = " " in text, []
    try:
        for cells in reader:
            if len(cells) > 1 or (cells and cells[0].strip()):
                stripped = list(map(str.strip, cells)) if has_spaces else cells
                rows.append(_Row(skipped + reader.line_num, stripped))
    except csv.Error as error:
        raise ValueError(f"line {skipped + reader.line_num}: {error}") from None
    return rows, comment, delimiter


def _delimiter(text: str) -> str:
    """The delimiter of a table: the most frequent one in its first line or, without any, white space, or a comma."""
    unquoted = re.sub('"[^"]*"', "x", text[: 2**16])  # a quoted name may contain others
    plain = [*filter(str.strip, unquoted.split("\n")[:100]), "", ""][:2]
    counts = {each: plain[0].count(each) for each in ";\t,"}
    if (counts[";"] or counts["\t"]) and re.search(r"\d,\d", plain[0]):
        del counts[","]  # a decimal comma
    found = max(counts, key=lambda each: counts[each])
    if counts[found]:
        return found
    n_names, n_cells = (len(line.split()) for line in plain)
    return " " if n_names > 1 and n_cells in (0, n_names, n_names + 1) else ","  # R does not name its row names


def _table(rows: list[_Row], comment: str, delimiter: str) -> tuple[_Row, list[_Row]]:
    """The names of the columns, and rows with as many cells, in which numbers have a decimal point."""
    if not rows:
        raise ValueError("there is no table in it: the file is empty")
    rows = _without_empty_rows(rows)
    if delimiter != ",":
        rows = _with_decimal_points(rows)
    if _is_example(rows):
        own = next(csv.reader([comment], delimiter=delimiter, skipinitialspace=True), [])
        own = [name.strip() for name in own]
        if len(own) == len(rows[0].cells) and all(_number(name) is None and name for name in own):
            names = _Row(rows[0].line - 1, own)
        else:
            names = _Row(rows[0].line, [f"column{i + 1}" for i in range(len(rows[0].cells))])
            print_line(f"the first line has no names: the columns are {names.cells[0]} to {names.cells[-1]}")
    else:
        names, *rows = rows
    if not rows:
        raise ValueError("there are no rows below the header")
    return _rectangular(names, rows)


def _without_empty_rows(rows: list[_Row]) -> list[_Row]:
    """Drop the rows at the end whose cells are all empty: spreadsheets write them."""
    n = len(rows)
    while n > 1 and not any(rows[n - 1].cells):
        n -= 1
    if n < len(rows):
        print_line(f"{len(rows) - n} empty rows at the end left out")
    return rows[:n]


def _with_decimal_points(rows: list[_Row]) -> list[_Row]:
    """Replace decimal commas. Raise ValueError if they could be separators of thousands."""
    commas = [(row.line, cell) for row in rows for cell in row.cells if "," in cell and DECIMAL_COMMA.fullmatch(cell)]
    thousands = [(row.line, cell) for row in rows for cell in row.cells if "," in cell and THOUSANDS.fullmatch(cell)]
    decimals = [each for each in commas if not THOUSANDS.fullmatch(each[1])]
    points = [(row.line, cell) for row in rows for cell in row.cells if "." in cell and DECIMAL_POINT.fullmatch(cell)]
    if thousands and not decimals:
        line, cell = thousands[0]
        meanings = f"{cell.replace(',', '.', 1)} or {cell.replace(',', '')}"
        raise ValueError(f"line {line} has {cell}, which may be {meanings}: write numbers without separators")
    if decimals and points:
        one, other = decimals[0], points[0]
        raise ValueError(f"line {one[0]} has {one[1]}, and line {other[0]} has {other[1]}: use one decimal separator")
    if not decimals:
        return rows
    return [
        _Row(row.line, [cell.replace(",", ".") if DECIMAL_COMMA.fullmatch(cell) else cell for cell in row.cells])
        for row in rows
    ]


def _is_example(rows: Sequence[_Row]) -> bool:
    """Whether the first row is an example, and does not name the columns.

    Raises:
        ValueError: it could be either.
    """
    first, others = rows[0].cells, [row.cells for row in rows[1:101]]
    are_numbers = [_number(cell) is not None for cell in first]
    if not any(are_numbers):
        return False
    if all(is_number or cell.lower() in MISSING for is_number, cell in zip(are_numbers, first, strict=True)):
        return True
    below = [{row[i] for row in others if i < len(row) and row[i]} for i in range(len(first))]
    kinds = [bool(cells) and all(_number(cell) is not None for cell in cells) for cells in below]
    if kinds != are_numbers:
        return False
    if all(cell in cells for cell, cells, is_number in zip(first, below, are_numbers, strict=True) if not is_number):
        return True
    raise ValueError(
        f"line {rows[0].line} has {first[are_numbers.index(True)]} above numbers: if it is an example, add a line of "
        "names above it; if it has the names, begin them with a letter"
    )


def _rectangular(names: _Row, rows: list[_Row]) -> tuple[_Row, list[_Row]]:
    """Drop empty cells at the end of all rows. Raise ValueError unless all rows then have as many cells as names."""
    n = len(names.cells)
    while n > 1 and not names.cells[n - 1] and not any(cell for row in rows for cell in row.cells[n - 1 : n]):
        n -= 1
    if all(len(row.cells) == n + 1 and row.cells[n] for row in rows) and len(rows) > 1:
        raise ValueError(
            f"every row has {n + 1} cells and line {names.line} has {n} names: if R wrote the file, write it with "
            "write.csv(..., row.names = FALSE)"
        )
    for row in rows:
        if len(row.cells) != n:
            if len(row.cells) < n or any(row.cells[n:]):
                raise ValueError(f"line {row.line} has {len(row.cells)} cells, and line {names.line} has {n} names")
            del row.cells[n:]
    return _Row(names.line, names.cells[:n]), rows


def _number(cell: str) -> float | None:
    """The value of a cell, or None if it is not a number. Python's float() also accepts underscores."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _as_numbers(cells: Sequence[str]) -> NDArray[np.float64] | None:
    """All cells as numbers, or None if some are not: the fast way for most columns."""
    if "_" in "".join(cells):
        return None
    try:
        return np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        return None
