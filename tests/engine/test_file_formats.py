"""Files with examples: written files can be read, and other files are read correctly or refused in one line."""

import gzip
import io
import json
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.datasets import archives as engine_io
from engine.datasets import file_formats
from engine.datasets.archives import from_npz, to_npz, write_columns
from engine.datasets.file_formats import read_columns, read_to_divide, require_columns
from engine.datasets.splits import get_splits
from engine.interface.base_problem import Columns, Problem
from engine.machine.errors import UnusableFileError
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


@pytest.mark.parametrize(("suffixes", "magic", "section"), file_formats.OTHER_FORMATS)
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


class Texts(ToyProblem):
    """It reads the columns that the default `read` of a problem reads."""

    read = Problem.read


def test_text_is_left_out_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    written({**good(30), "names": np.array(["a"] * 30)})
    found = read_to_divide(Texts(), ToyConfig(), "x.npz")
    assert set(found.columns) == {"points", "signs", "values"}
    assert "text columns left out: names\n" in capsys.readouterr().out


def test_a_column_that_looks_like_chains_gets_a_line_that_names_group(capsys: pytest.CaptureFixture[str]) -> None:
    chains, mixed = np.repeat(np.arange(10), 10), np.tile(np.arange(10), 10)
    for column, is_found in ((chains, True), (chains.astype(str), True), (mixed, False), (chains + 0.5, False)):
        written({**good(100), "chain": column})
        read_to_divide(PROBLEM, ToyConfig(), "x.npz")
        assert ("--group chain keeps them in one split" in capsys.readouterr().out) == is_found
    group = replace(ToyConfig(), data=ToyDataConfig(file="x.npz", group="chain"))
    written({**good(100), "chain": chains})
    assert read_to_divide(PROBLEM, group, "x.npz").others["chain"].tolist() == chains.tolist()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "chian"}, "no array 'chian'; did you mean chain?"),
        ({"group": "points"}, r"points has the shape (10, 3): it must have one value per example, (10,)"),
        ({"test_above": ("temperature", "2")}, "no array 'temperature'"),
    ],
)
def test_a_division_by_a_column_that_is_not_there_is_refused(options: dict[str, Any], message: str) -> None:
    written({**good(), "chain": np.arange(10)})
    config = replace(ToyConfig(), data=ToyDataConfig(file="x.npz", **options))
    with pytest.raises(UnusableFileError) as caught:
        read_to_divide(PROBLEM, config, "x.npz")
    assert message in str(caught.value)


def test_examples_with_missing_values_are_dropped_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    arrays = good()
    arrays["points"][3, 1] = arrays["values"][5] = np.nan
    written({**arrays, "chain": np.array(["a"] * 7 + [""] + ["b"] * 2)})
    config = replace(ToyConfig(), data=ToyDataConfig(file="x.npz", drop_missing=True, group="chain"))
    found = read_to_divide(PROBLEM, config, "x.npz")
    assert found.rows.tolist() == [0, 1, 2, 4, 6, 8, 9]
    np.testing.assert_array_equal(found.columns["values"], arrays["values"][found.rows])
    assert found.others["chain"].tolist() == ["a"] * 5 + ["b"] * 2
    assert "3 of 10 rows left out, because values are missing" in capsys.readouterr().out
    assert "values is infinite or not a number in example 5: --drop-missing" in refusal("x.npz", Nan())


class Nan(ToyProblem):
    """It reads only the values."""

    def read(self, config: ToyConfig, columns: Columns) -> Columns:
        return {"values": columns["values"]}


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
