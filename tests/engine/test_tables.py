"""Text tables: what is read, what is assumed with a line, and what is refused because it has two meanings."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.datasets import tables
from engine.datasets.tables import Table


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(content: str | bytes, *, drop_missing: bool = False) -> Table:
    Path("x.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return Table("x.csv", drop_missing)


def columns(content: str | bytes, *, drop_missing: bool = False) -> dict[str, list[float | str]]:
    return {name: column.tolist() for name, column in table(content, drop_missing=drop_missing).items()}


XY = {"x": [1.0, -3.0], "y": [2.5, 4e3]}

SAME: dict[str, str | bytes] = {
    "commas": "x,y\n1,2.5\n-3,4e3\n",
    "semicolons": "x;y\n1;2.5\n-3;4e3\n",
    "tabs": "x\ty\n1\t2.5\n-3\t4e3\n",
    "white space": "  x    y\n  1    2.5\n -3    4e3 \n",
    "no last line end": "x,y\n1,2.5\n-3,4e3",
    "Windows line ends": "x,y\r\n1,2.5\r\n-3,4e3\r\n",
    "old Mac line ends": "x,y\r1,2.5\r-3,4e3\r",
    "a BOM": b"\xef\xbb\xbfx,y\n1,2.5\n-3,4e3\n",
    "UTF-16": "x,y\n1,2.5\n-3,4e3\n".encode("utf-16"),
    "quotes": '"x","y"\n"1","2.5"\n-3,"4e3"\n',
    "spaces": ' x , "y" \n 1 , 2.5 \n-3, "4e3"\n',
    "blank lines": "\n\nx,y\n\n1,2.5\n\n-3,4e3\n\n",
    "sep=": "sep=;\nx;y\n1;2.5\n-3;4e3\n",
    "sep= and a tab": "sep=\t\nx\ty\n1\t2.5\n-3\t4e3\n",
    "comments": "# measured today, setup A\n# x in K\nx,y\n1,2.5\n-3,4e3\n",
    "numpy.savetxt": "# x,y\n1,2.5\n-3,4e3\n",
    "numpy.savetxt with spaces": "# x y\n1 2.5\n-3 4e3\n",
    "numpy.savetxt with quotes": '# "x","y"\n1,2.5\n-3,4e3\n',
    "decimal commas": "x;y\n1,0;2,5\n-3;4e3\n",
    "decimal commas and tabs": "x\ty\n1\t2,5\n-3,0\t4000\n",
    "a delimiter at the end": "x,y,\n1,2.5,\n-3,4e3,\n",
    "a delimiter at the end of rows": "x,y\n1,2.5,\n-3,4e3,\n",
}


@pytest.mark.parametrize("name", SAME)
def test_one_table_in_many_forms(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = table(SAME[name])
    assert {name: column.tolist() for name, column in found.items()} == XY
    assert all(column.dtype == np.float64 for column in found.values())
    assert capsys.readouterr().out == ""


# What is read with a line: the content, the columns, and words of the line.
ASSUMED: dict[str, tuple[str | bytes, Any, str]] = {
    "Windows-1252": ("T (°C),é\n1,2\n".encode("cp1252"), {"T (°C)": [1.0], "é": [2.0]}, "is not UTF-8 (byte 3)"),
    "no names": ("1 2.5\n-3 4e3\n", {"column1": [1.0, -3.0], "column2": [2.5, 4e3]}, "columns are column1 to column2"),
    "no names, and a comment": ("# run 7\n1,2\n", {"column1": [1.0], "column2": [2.0]}, "the first line has no names"),
    "no names, and text": (
        "5.1,setosa\n7.0,virginica\n4.9,setosa\n",
        {"column1": [5.1, 7.0, 4.9], "column2": ["setosa", "virginica", "setosa"]},
        "the first line has no names",
    ),
    "rows of a spreadsheet": ("x,y\n1,2.5\n-3,4e3\n,\n,\n", XY, "2 empty rows at the end left out"),
    "the index of pandas": (",x,y\n0,1,2.5\n1,-3,4e3\n", XY, "the first column has no name: left out"),
    "the same read again": ("Unnamed: 0,x,y\n0,1,2.5\n1,-3,4e3\n", XY, "the first column has no name"),
    "an index of text": (",x,y\nA-7,1,2.5\nB-9,-3,4e3\n", XY, "the first column has no name"),
}


@pytest.mark.parametrize("name", ASSUMED)
def test_what_is_assumed_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, expected, line = ASSUMED[name]
    assert columns(content) == expected
    shown = capsys.readouterr().out
    assert line in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ('"x, in m";y\n1;2\n', ["x, in m", "y"]),
        ('"x, in m","y;z;w"\n1,2\n', ["x, in m", "y;z;w"]),
        ('"x\nin m";y\n1;2\n', ["x\nin m", "y"]),
        ('"the ""best"" x";y\n1;2\n', ['the "best" x', "y"]),
        ("λ;β\n1;2\n", ["λ", "β"]),
        ("wave,400,401\nsun,1,2\nmoon,3,4\n", None),
        ("400,401,y\n1,2,3\n", ["400", "401", "y"]),
        ("x (in K)\n7\n", ["x (in K)"]),
        ("5 inch,y\n1,2\n", ["5 inch", "y"]),
    ],
)
def test_names_may_contain_any_character(content: str, names: list[str] | None) -> None:
    if names is not None:
        assert list(table(content)) == names
        return
    with pytest.raises(ValueError, match=r"line 1 has 400 above numbers: if it is an example, add a line of names"):
        table(content)


def test_columns_of_text_and_of_numbers_with_missing_values() -> None:
    content = "name,kind,mass\nNA,a,1\nproton,,?\nmuon,b,nan\n"
    found = table(content, drop_missing=True)
    assert [found.is_text(name) for name in found] == [True, True, False]
    assert found["name"].tolist() == ["NA", "proton", "muon"]  # it could be sodium
    assert found["kind"].tolist() == ["a", "", "b"]
    assert [math.isnan(mass) for mass in found["mass"]] == [False, True, True]
    strict = table(content)
    with pytest.raises(ValueError, match="column 'mass' has no value in line 3: correct the file, or --drop-missing"):
        strict["mass"]
    with pytest.raises(ValueError, match="column 'kind' has no value in line 3"):
        strict["kind"]
    assert strict.is_text("kind")


def test_lines_are_those_of_the_file() -> None:
    content = '# a comment\n\nsep=,\nx,y\n1,2\n"4","two\nlines"\n\n5,\n'
    with pytest.raises(ValueError, match="column 'y' has numbers, and line 7 has 'two"):
        table(content.replace("5,", "5,6\n7,8"))["y"]
    with pytest.raises(ValueError, match="column 'y' has no value in line 9"):
        table(content)["y"]


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "the file is empty"),
    "only blank lines": ("\n\n", "the file is empty"),
    "only a header": ("x,y\n\n", "there are no rows below the header"),
    "repeated names": ("x,y,x\n1,2,3\n", "two columns are named 'x'; rename one"),
    "a name is missing": ("x,,y\n1,2,3\n", "column 2 has no name in line 1"),
    "a short row": ("x,y\n1,2\n3\n", "line 3 has 1 cells, and line 1 has 2 names"),
    "a long row": ("x,y\n1,2\n\n3,4,5\n", "line 4 has 3 cells, and line 1 has 2 names"),
    "row names of R": ('"x" "y"\n"1" 5 6\n"2" 7 8\n', r"write.csv\(..., row.names = FALSE\)"),
    "a comment in the data": ("x,y\n1,2\n# warmer\n3,4\n", "line 3 has 1 cells"),
    "an open quote": ('x,y\n"1,2\n3,4\n', "line 3 has 1 cells, and line 1 has 2 names"),
    "thousands or decimals": ("x;y\n1,234;5\n2,345;6\n", "line 2 has 1,234, which may be 1.234 or 1234"),
    "commas and points": ("x;y\n0,5;1.5\n", "line 2 has 0,5, and line 2 has 1.5: use one decimal separator"),
    "binary": (b"x,y\n1,\0\n", "is neither a text file nor an .npz archive"),
    "a workbook": (b"PK\x03\x04...", "is a workbook, or a zip file: save the sheet as CSV"),
    "an old workbook": (b"\xd0\xcf\x11\xe0...", "is a workbook"),
    "a long cell": (f"x,y\n1,{'9' * 200_000}\n", "field larger than field limit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_table_or_has_two_meanings_is_refused(name: str) -> None:
    content, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        table(content)


BAD_COLUMNS = {
    "text among numbers": ("x\n1\n2\nheavy\n", "column 'x' has numbers, and line 4 has 'heavy'"),
    "underscores": ("x\n1\n2\n1_0\n", "line 4 has '1_0'"),
    "infinity": ("x\n1\ninf\n", r"column 'x' is infinite in line 3 \(inf\)"),
    "out of range": ("x\n1\n1e999\n", r"infinite in line 3 \(1e999\)"),
    "no values": ("y,x\n1,\n2,NA\n", "column 'x' has no values: leave it out"),
    "an empty row": ("y,x\n1,2\n,\n3,4\n", "column 'x' has no value in line 3"),
}


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_a_column_is_only_refused_when_it_is_looked_up(name: str) -> None:
    content, message = BAD_COLUMNS[name]
    found = table(content)
    with pytest.raises(ValueError, match=message):
        found["x"]


def test_an_unknown_column_is_named_with_the_nearest_one() -> None:
    with pytest.raises(KeyError, match=r"no column 'mass'; did you mean Mass\? the file has Mass, charge"):
        table("Mass,charge\n1,2\n")["mass"]


def test_unused_columns_keep_their_text() -> None:
    found = table(",id,x\na,007,1\nb,008,2\n")
    assert {name: column.tolist() for name, column in found.unused({"x"}).items()} == {
        "index": ["a", "b"],
        "id": ["007", "008"],
    }


def test_a_table_that_is_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "physical_memory", lambda: 8 * 9 - 1)
    with pytest.raises(ValueError, match="is too large for the memory of this machine"):
        table("x,y\n1,22\n")


CELL = st.one_of(st.integers().map(str), st.text(alphabet='ab ,;"\n#').map(str.strip))


@given(st.sampled_from(",;\t"), st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=2, max_size=6))
def test_what_a_csv_writer_writes_is_read(delimiter: str, rows: list[list[str]]) -> None:
    assume(any(map(any, rows)))
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([["first", "second"], *rows])
    found = table(buffer.getvalue())
    kept = rows[: len(found.lines)]
    assert not any(cell for row in rows[len(kept) :] for cell in row)
    assert list(found.cells.values()) == list(zip(*kept, strict=True))
