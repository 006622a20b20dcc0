"""Files with examples: written files can be read, and other files are read correctly or refused in one line."""

import gzip
import io
import json
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.datasets import file_formats as engine_io
from engine.datasets.file_formats import from_npz, read_columns, require_columns, to_npz, write_columns
from engine.datasets.splits import divide, fingerprint, get_splits
from engine.interface.base_config import DataConfig
from engine.interface.base_problem import Columns
from engine.machine.errors import BadRequestError, UnusableFileError
from tests.toy import PROBLEM, ToyConfig, ToyDataConfig, ToyProblem


class Plain(ToyProblem):
    """It accepts all arrays of a file unchanged."""

    def read(self, config: ToyConfig, columns: Columns) -> Columns:
        return dict(columns)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(content: str | bytes | dict[str, Any], name: str = "") -> str:
    """Write a file with this content, and return its path."""
    if isinstance(content, dict):
        np.savez(name or "x.npz", **content)
        return name or "x.npz"
    name = name or ("x.csv" if isinstance(content, str) else "x.npz")
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def plain(path: str) -> Columns:
    return read_columns(Plain(), ToyConfig(), path)


def points(path: str) -> Columns:
    return read_columns(PROBLEM, ToyConfig(), path)


def good(n: int = 10) -> dict[str, NDArray[Any]]:
    """Arrays that the toy problem accepts."""
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(n, 3)).astype(np.float32)
    return {"points": x, "signs": np.ones(n, np.int8), "values": (x**2).sum(axis=1).astype(np.float64)}


def refusal(path: str, problem: ToyProblem = PROBLEM) -> str:
    """The line of the error with which a file is refused."""
    with pytest.raises(UnusableFileError) as caught:
        read_columns(problem, ToyConfig(), path)
    assert caught.value.exit_code == 3
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


# -------------------------------------------------------------------------------------------------------------- .npz


def test_written_data_can_be_read() -> None:
    config = ToyConfig(data=ToyDataConfig(num_train=100, num_val=20, num_test=10, cache=False))
    splits, _ = get_splits(PROBLEM, config)
    write_columns(Path("x.npz"), splits, {"seed": 42})
    columns = plain("x.npz")
    assert set(columns) == {"points", "signs", "values", "is_far"}
    for name, column in columns.items():
        expected = np.concatenate([split[name] for split in splits])
        assert column.dtype == expected.dtype
        np.testing.assert_array_equal(column, expected)


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", ">i8", "f2", "f4", ">f8", "g"])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2, 4), (3, 0)])
def test_arrays_of_any_number_type_and_shape_are_read(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    found = plain(written({"a": array}))["a"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_compressed_and_fortran_ordered_arrays_are_read() -> None:
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    np.savez_compressed("x.npz", a=array)
    np.testing.assert_array_equal(plain("x.npz")["a"], array)


def test_an_array_is_only_read_when_it_is_looked_up() -> None:
    content = {**good(4), "note": np.array(["text", "of", "no", "use"])}
    assert set(points(written(content))) == {"points", "signs", "values"}


def test_a_member_of_the_archive_that_is_not_an_array_is_ignored() -> None:
    path = written({"a": np.arange(3)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a", "not this")
    np.testing.assert_array_equal(plain(path)["a"], np.arange(3))


def test_arrays_may_have_any_name() -> None:
    arrays = {name: np.arange(3) for name in ("file", "allow_pickle", "self", "a/b", "\u0142")}
    Path("names.npz").write_bytes(to_npz(arrays))
    with np.load("names.npz", allow_pickle=False) as found:
        assert {name: found[name].tolist() for name in found.files} == {name: [0, 1, 2] for name in arrays}
    assert to_npz(arrays) == Path("names.npz").read_bytes()


def test_a_missing_array_is_named_with_the_nearest_one() -> None:
    content = good(4)
    content["value"] = content.pop("values")
    listed = "points (4, 3) float32, signs (4,) int8"
    assert refusal(written(content)).endswith(
        f"no array 'values'; did you mean value? the file has {listed}, value (4,) float64"
    )
    del content["value"]
    assert refusal(written(content)).endswith(f"no array 'values'; the file has {listed}")
    many = {f"column{i}": np.ones(4) for i in range(30)}
    assert refusal(written(many)).endswith("column18 (4,) float64, column19 (4,) float64, ...")


class Trap:
    """Makes a folder if it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("trapped",)


def claiming(shape: str, content: bytes = b"", version: int = 1) -> bytes:
    """An .npz file in which the header of the array `points` has this shape."""
    head = f"{{'descr': '|i1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        head_length = len(head).to_bytes(2, "little")
        archive.writestr("points.npy", b"\x93NUMPY" + bytes([version, 0]) + head_length + head.encode() + content)
        archive.writestr("signs.npy", b"")
    return buffer.getvalue()


UNUSABLE: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "empty": (b"", "not a zip file"),
    "text": (b"points", "not a zip file"),
    "only a beginning": (b"PK\x03\x04", "not a zip file"),
    "no arrays": ({}, "no array 'points'; the file has no arrays"),
    "objects": ({**good(4), "values": np.array([1.0, None, 2.0, 3.0])}, "values contains Python objects, which are"),
    "code": ({**good(4), "points": np.array([Trap(), 1])}, "docs/data-files.md#pickles converts them"),
    "a header of version 3": (claiming("(1,)", b"\x01", version=3), "header has the version 3.0, and must have 1.0 or"),
    "packed by gzip": (gzip.compress(b"PK"), "is compressed by gzip: unpack it with gunzip"),
    "text for numbers": ({**good(4), "points": np.array(["up", "down"])}, "points has the dtype <U4"),
    "complex numbers": ({**good(4), "values": np.ones(4) * 1j}, "values has the dtype complex128"),
    "dates": ({**good(4), "values": np.zeros(4, "M8[s]")}, "values has the dtype datetime64[s]"),
    "records": ({**good(4), "values": np.zeros(4, "i4,f8")}, "values has the dtype"),
    "refused by the problem": ({**good(4), "points": np.ones(4)}, "points have the shape (4,), and must be (N, d)"),
    "counts that differ": (
        {**good(4), "values": np.ones(3)},
        "different first axes: points (4, 3), signs (4,), values",
    ),
    "a single number": ({**good(4), "values": np.array(1.0)}, "different first axes"),
    "no examples": (good(0), "there are no examples"),
    "not a number": (
        {**good(4), "values": np.array([1, 2, np.nan, 3])},
        "values is infinite or not a number in exampl",
    ),
    "infinite": (
        {**good(4), "values": np.array([1, 2, -np.inf, 3])},
        "not a number in example 2: remove such examples",
    ),
    "nothing there": (claiming("(100, 3)"), "points is not as large as it claims"),
    "less than it claims": (claiming("(100, 3)", b"\x01" * 299), "points is not as large as it claims"),
    "more than it claims": (claiming("(100, 3)", b"\x01" * 301), "points is not as large as it claims"),
    "9 TiB": (claiming("(9895604649984,)"), "points is not as large as it claims"),
    "booleans for a shape": (claiming("(True, True)"), "points"),
    "a negative length": (claiming("(-1, 8)"), "points is not as large as it claims"),
    "two negative lengths": (claiming("(-2, -2)", b"\x01" * 4), ""),
    "unbalanced brackets": (claiming("(((((("), ""),
    "an endless length": (claiming(f"({10**400},)"), ""),
    "a deep expression": (claiming("-" * 9000), ""),
    "code for a shape": (claiming("(__import__('os').mkdir('trapped'), 8)"), ""),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_archive_is_refused(name: str) -> None:
    content, message = UNUSABLE[name]
    assert message in refusal(written(content))
    assert not Path("trapped").exists()


@pytest.mark.parametrize("n", [1, 2])
def test_large_arrays_are_refused_before_memory_is_allocated(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_io, "physical_memory", lambda: 4 * 10**6 - 1)
    path = written({f"a{i}": np.zeros(10**6 // n, np.int8) for i in range(n)})
    tracemalloc.start()
    with pytest.raises(UnusableFileError, match=rf"a{n - 1} claims too much for the memory .*: 0\.0 GiB in all"):
        plain(path)
    assert tracemalloc.get_traced_memory()[1] < 1.5 * 10**6
    tracemalloc.stop()


def test_all_arrays_are_compared_with_the_memory_before_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_io, "physical_memory", lambda: 4 * 10**6 - 1)
    content = Path(written({f"a{i}": np.zeros(10**5, np.int8) for i in range(10)})).read_bytes()
    tracemalloc.start()
    with pytest.raises(UnusableFileError, match=r"a9 claims too much for the memory of this machine: 0\.0 GiB in all"):
        from_npz(content)
    assert tracemalloc.get_traced_memory()[1] < 3 * 10**5
    tracemalloc.stop()


def test_archives_that_would_take_for_ever_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_io, "MOST_ARRAYS", 3)
    assert "4 arrays, and at most 3 are read" in refusal(written({f"a{i}": np.zeros(2) for i in range(4)}))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("points.npy", b"x")
    assert "compressed in a way that NumPy does not use" in refusal(written(buffer.getvalue()))
    monkeypatch.setattr(engine_io, "MOST_AT_ONCE", 100)
    assert "its list of arrays is damaged" in refusal(written({"points": np.zeros(2)}))


def test_a_table_that_is_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("x.csv").write_text("a,b\n" + "1,2\n" * 100, encoding="utf-8")
    monkeypatch.setattr(engine_io, "physical_memory", lambda: 1000)
    with pytest.raises(UnusableFileError, match="too large for the memory of this machine"):
        plain("x.csv")


def test_a_header_of_gigabytes_is_not_read() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points.npy", b"\x93NUMPY\x02\x00" + (2**27).to_bytes(4, "little") + b" " * 2**27)
    tracemalloc.start()
    assert "header" in refusal(written(buffer.getvalue()))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_truncated_file_is_refused() -> None:
    path = written(good())
    complete = Path(path).read_bytes()
    for end in np.linspace(0, len(complete) - 1, 50, dtype=int):
        refusal(written(complete[:end]))


def test_a_flipped_bit_is_detected_or_does_not_matter() -> None:
    path = written(good())
    complete, before = Path(path).read_bytes(), points(path)
    for offset in np.linspace(0, len(complete) - 1, 300, dtype=int):
        written(complete[:offset] + bytes([complete[offset] ^ 1]) + complete[offset + 1 :])
        try:
            found = points(path)
        except UnusableFileError:
            continue
        for name, column in before.items():
            np.testing.assert_array_equal(found[name], column)


@pytest.mark.parametrize(("suffixes", "magic", "section"), engine_io.OTHER_FORMATS)
def test_other_formats_are_recognised_by_suffix_or_content(
    suffixes: tuple[str, ...], magic: bytes | None, section: str
) -> None:
    for name in (*(f"x{suffix}" for suffix in suffixes), f"X{suffixes[0].upper()}"):
        assert refusal(written(b"content", name)).endswith(
            f"must be .npz or .csv: docs/data-files.md#{section} converts it"
        )
    if magic is not None:
        assert f"is a {suffixes[0]} file" in refusal(written(magic + b"...", "x.npz"))


def test_a_pickle_is_never_loaded() -> None:
    for name in ("x.pkl", "x.npz", "x.npy", "x.pt", "x.csv"):
        refusal(written(pickle.dumps(Trap()), name))
        assert not Path("trapped").exists()


def test_how_data_were_made_is_no_column() -> None:
    splits, _ = get_splits(PROBLEM, ToyConfig(data=ToyDataConfig(cache=False)))
    write_columns(Path("x.npz"), splits, {"seed": 42})
    assert "provenance" not in plain("x.npz")
    assert json.loads(str(np.load("x.npz")["provenance"])) == {"seed": 42}


def test_paths_that_are_not_files_are_refused() -> None:
    Path("folder.npz").mkdir()
    assert refusal("folder.npz").endswith("is not a regular file")
    os.mkfifo("pipe.npz")
    assert refusal("pipe.npz").endswith("is not a regular file")
    assert refusal(".").endswith("is not a regular file")
    for name in ("missing.npz", "missing.csv"):
        assert refusal(name) == f"{name}: no such file in {Path.cwd()}: give its path with --data"


# -------------------------------------------------------------------------------------------------------------- .csv

XY = {"x": [1.0, -3.0], "y": [2.5, 4e3]}

TABLES: dict[str, str | bytes] = {
    "commas": "x,y\n1,2.5\n-3,4e3\n",
    "semicolons": "x;y\n1;2.5\n-3;4e3\n",
    "tabs": "x\ty\n1\t2.5\n-3\t4e3\n",
    "no last line end": "x,y\n1,2.5\n-3,4e3",
    "Windows line ends": "x,y\r\n1,2.5\r\n-3,4e3\r\n",
    "a BOM": b"\xef\xbb\xbfx,y\n1,2.5\n-3,4e3\n",
    "quotes": '"x","y"\n"1","2.5"\n-3,"4e3"\n',
    "spaces": " x , y \n 1 , 2.5 \n-3, 4e3\n",
    "blank lines": "x,y\n\n1,2.5\n\n-3,4e3\n\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_common_formats_of_tables_are_read(name: str) -> None:
    content = TABLES[name]
    columns = plain(written(content, "x.csv"))
    assert {name: column.tolist() for name, column in columns.items()} == XY
    assert all(column.dtype == np.float64 for column in columns.values())


def test_the_suffix_may_have_capital_letters() -> None:
    assert set(plain(written("x,y\n1,2\n", "X.CSV"))) == {"x", "y"}


def test_a_table_of_one_column_and_one_row_is_read() -> None:
    assert plain(written("x\n7\n"))["x"].tolist() == [7.0]


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ('"x, in m";y', ["x, in m", "y"]),
        ('"x, in m","y;z;w"', ["x, in m", "y;z;w"]),
        ('"x\nin m";y', ["x\nin m", "y"]),
        ('"the ""best"" x";y', ['the "best" x', "y"]),
        ("#x;y", ["#x", "y"]),
        ("\u03b1;\u03b2", ["\u03b1", "\u03b2"]),
    ],
)
def test_quoted_names_may_contain_any_character(header: str, names: list[str]) -> None:
    delimiter = "," if '","' in header else ";"
    columns = plain(written(f"{header}\n1{delimiter}2\n"))
    assert {name: column.tolist() for name, column in columns.items()} == {names[0]: [1.0], names[1]: [2.0]}


class TwoColumns(ToyProblem):
    """It reads two columns of a table."""

    def read(self, config: ToyConfig, columns: Columns) -> Columns:
        return {"mass": columns["mass"], "charge": columns["charge"]}


def test_columns_that_are_not_looked_up_may_hold_text() -> None:
    columns = read_columns(TwoColumns(), ToyConfig(), written("name,mass,charge\nelectron,0.511,-1\nmuon,105.7,-1\n"))
    assert columns["mass"].tolist() == [0.511, 105.7]


BAD_TABLES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "the first line is empty; it must name the columns"),
    "only commas": (",,\n1,2,3\n", "the first line is empty; it must name the columns"),
    "blank first line": ("\nmass,charge\n1,2\n", "the first line is empty; it must name the columns"),
    "only a header": ("mass,charge\n", "there are no rows below the header"),
    "only blank rows": ("mass,charge\n\n\n", "there are no rows below the header"),
    "a name that is nearly right": (
        *("Mass,charges\n1,2\n",),
        "no column 'mass'; did you mean Mass? the file has Mass, charges",
    ),
    "other names": ("x,y\n1,2\n", "no column 'mass'; the file has x, y"),
    "no header": ("1,2\n3,4\n", "no column 'mass'; the file has 1, 2"),
    "no header, and equal numbers": ("1;-1;1\r\n1;1;-1\r\n", "the first line has numbers, and must name the columns"),
    "repeated names": ("mass,charge,mass\n1,2,3\n", "two columns are named 'mass'; rename one"),
    "text": ("mass,charge\n1,2\n3,heavy\n", "column 'charge': could not convert string 'heavy' to float64"),
    "an empty cell": ("mass,charge\n1,\n", "column 'charge': could not convert string ''"),
    "digits with underscores": ("mass,charge\n1,1_0\n", "column 'charge': could not convert string '1_0'"),
    "a decimal comma": ("mass;charge\n1,5;2\n", "column 'mass': could not convert string '1,5'"),
    "a comment": ("mass,charge\n# units: MeV,e\n1,2\n", "column 'mass': could not convert string '# units: MeV'"),
    "NaN": ("mass,charge\n1,2\nnan,2\n", "mass is infinite or not a number in example 1: remove such examples"),
    "infinity": ("mass,charge\n1,inf\n", "charge is infinite or not a number in example 0"),
    "out of range": ("mass,charge\n1e999,2\n", "mass is infinite or not a number in example 0"),
    "a short row": ("mass,charge\n1,2\n3\n", "line 3 has 1 cells and the header has 2"),
    "a long row": ("mass,charge\n1,2\n\n3,4,5\n", "line 4 has 3 cells and the header has 2"),
    "a thousands separator": ("mass,charge\n1,000,2\n", "line 2 has 3 cells and the header has 2"),
    "an open quote": ('"mass,charge\n1,2\n', ""),
    "not UTF-8": (b"mass,charge\n1,\xff\n", "can't decode byte 0xff"),
    "UTF-16": ("mass,charge\n1,2\n".encode("utf-16"), "can't decode byte 0xff"),
    "a zip archive": (b"PK\x03\x04\n", "no column 'mass'"),
    "a long cell": (f"mass,charge\n1,{'9' * 200_000}\n", "field larger than field limit"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_an_unusable_table_is_refused(name: str) -> None:
    content, message = BAD_TABLES[name]
    assert message in refusal(written(content, "x.csv"), TwoColumns())


# ----------------------------------------------------------------------------------------------------------- columns


def test_columns_are_arrays_of_finite_numbers_with_one_entry_per_example() -> None:
    require_columns({"a": np.ones((3, 2)), "b": np.array([True, False, True]), "c": np.zeros((3, 0))})
    for columns, fault in (
        ({}, "there are no arrays"),
        ({"a": np.ones(3), "b": np.ones((2, 3))}, "different first axes: a \\(3,\\), b \\(2, 3\\)"),
        ({"a": np.array(1)}, "different first axes"),
        ({"a": np.ones((0, 3))}, "there are no examples"),
        ({"a": np.array(["x"])}, "a has the dtype <U1: it must contain numbers"),
        ({"a": np.array([[[0.0]], [[np.inf]]])}, "a is infinite or not a number in example 1"),
    ):
        with pytest.raises(ValueError, match=fault):
            require_columns(columns)


# ------------------------------------------------------------------------------------------------------------ divide


def numbered(n: int) -> Columns:
    return {"number": np.arange(n), "double": 2.0 * np.arange(n)[:, None]}


def test_the_division_is_random_and_without_replacement() -> None:
    config = DataConfig(num_train=600, num_val=200, num_test=100)
    splits = divide(numbered(1000), config, seed=3)
    assert [len(split["number"]) for split in splits] == [600, 200, 100]
    assert len(np.unique(np.concatenate([split["number"] for split in splits]))) == 900
    for split in splits:
        np.testing.assert_array_equal(split["double"], 2.0 * split["number"][:, None])
        assert split["number"].mean() == pytest.approx(500, abs=100)  # from all parts of the file
    assert fingerprint(divide(numbered(1000), config, seed=3)) == fingerprint(splits)
    assert fingerprint(divide(numbered(1000), config, seed=4)) != fingerprint(splits)


@pytest.mark.parametrize(
    ("n", "given", "sizes"),
    [
        (1000, (None, None, None), [800, 100, 100]),
        (100, (None, None, None), [80, 10, 10]),
        (109, (None, None, None), [89, 10, 10]),
        (9, (None, None, None), [7, 1, 1]),
        (3, (None, None, None), [1, 1, 1]),
        (100, (50, None, None), [50, 10, 10]),
        (100, (None, 30, None), [60, 30, 10]),
        (100, (None, None, 30), [60, 10, 30]),
        (100, (None, 40, 59), [1, 40, 59]),
        (100, (80, 10, None), [80, 10, 10]),
        (100, (1, 1, 1), [1, 1, 1]),
        (100, (98, 1, 1), [98, 1, 1]),
    ],
)
def test_default_sizes_are_80_10_and_10_percent(n: int, given: tuple[int | None, ...], sizes: list[int]) -> None:
    num_train, num_val, num_test = given
    config = DataConfig(num_train=num_train, num_val=num_val, num_test=num_test)
    assert [len(split["number"]) for split in divide(numbered(n), config, seed=0)] == sizes


@pytest.mark.parametrize(
    ("n", "given", "requested"),
    [(10, (9, 1, 1), 11), (2, (None, None, None), 3), (100, (90, None, None), 110), (100, (None, 50, 50), 101)],
)
def test_a_request_for_too_many_examples_is_refused(n: int, given: tuple[int | None, ...], requested: int) -> None:
    num_train, num_val, num_test = given
    config = DataConfig(file="f.npz", num_train=num_train, num_val=num_val, num_test=num_test)
    with pytest.raises(
        BadRequestError, match=rf"--data f\.npz has {n} examples, and {requested} are requested: lower --num"
    ):
        divide(numbered(n), config, seed=0)
