"""Data as files: what was drawn is found again or made again, and files from elsewhere are used or refused in words."""

import dataclasses
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from config import DataConfig
from data import Split, fingerprint
from datafiles import cache_path, divide, get_splits, read_configurations, write_configurations
from ising import exact
from tests.conftest import DEBUG, ROOT, Program
from utils import BadRequestError, UnusableFileError

SMALL = DataConfig(lattice_size=6, num_train=30, num_val=20, num_test=10, sweeps=5, temp_min=2)
TINY = ("--preset", "debug", "--num-train", "300", "--num-val", "100", "--num-test", "100", "--epochs", "1")


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------------------------------------ cache


def test_data_are_drawn_once() -> None:
    drawn, source = get_splits(SMALL, seed=1)
    path = cache_path(SMALL, seed=1)
    assert source == f"drawn with multispin and kept in {path}"
    found, source = get_splits(SMALL, seed=1)
    assert source == f"taken from {path}"
    assert fingerprint(found) == fingerprint(drawn)
    assert found.train.spins.dtype == np.int8
    assert path.stat().st_size < 3000  # 60 lattices of 36 spins, a bit a spin, and a temperature each


def test_no_cache_neither_reads_nor_writes() -> None:
    without = dataclasses.replace(SMALL, cache=False)
    drawn, source = get_splits(without, seed=1)
    assert source == "drawn with multispin"
    assert not Path("cache").exists()
    get_splits(SMALL, seed=1)
    cache_path(SMALL, seed=1).write_bytes(b"something else")
    assert fingerprint(get_splits(without, seed=1)[0]) == fingerprint(drawn)


def test_all_that_shapes_the_data_is_in_the_name() -> None:
    changes: dict[str, Any] = {
        "lattice_size": 8,
        "num_train": 31,
        "num_val": 21,
        "num_test": 11,
        "temp_min": 2.1,
        "temp_max": 3.9,
        "sweeps": 6,
        "sampler": "numpy",
    }
    assert set(changes) | {"cache", "file"} == {field.name for field in dataclasses.fields(DataConfig)}
    configs = [SMALL, *(dataclasses.replace(SMALL, **{name: value}) for name, value in changes.items())]
    assert len({cache_path(config, seed) for config in configs for seed in (1, 2)}) == 2 * len(configs)


def test_the_name_tells_sweeps_as_they_were_done() -> None:
    automatic = dataclasses.replace(SMALL, sweeps=None)
    assert cache_path(automatic, 1) == cache_path(dataclasses.replace(SMALL, sweeps=100), 1)


def test_damaged_data_are_drawn_again(capsys: pytest.CaptureFixture[str]) -> None:
    drawn, _ = get_splits(SMALL, seed=1)
    path = cache_path(SMALL, seed=1)
    whole = path.read_bytes()
    damaged = [whole[:end] for end in np.linspace(0, len(whole) - 1, 10, dtype=int)]
    for offset in np.linspace(0, len(whole) - 1, 40, dtype=int):
        damaged.append(whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1 :])
    for content in damaged:
        path.write_bytes(content)
        again, source = get_splits(SMALL, seed=1)
        assert source.startswith("drawn")
        assert f"warning: {path} is damaged: drawing these data again" in capsys.readouterr().out
        assert fingerprint(again) == fingerprint(drawn)
        assert path.read_bytes() == whole


def test_data_that_cannot_be_kept_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    Path("cache").write_text("a file where the folder should be")
    _, source = get_splits(SMALL, seed=1)
    assert source == "drawn with multispin"
    assert "warning: the data could not be kept" in capsys.readouterr().out


def test_two_processes_may_draw_the_same_data_at_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, str(ROOT / "main.py"), *TINY[:8], "--save-data", name], cwd=tmp_path)
        for name in ("one.npz", "two.npz")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    one, two = (read_configurations(tmp_path / name) for name in ("one.npz", "two.npz"))
    np.testing.assert_array_equal(one.spins, two.spins)
    assert [path.name[:10] for path in (tmp_path / "cache").iterdir()] == ["L8-seed42-"]


def test_the_run_tells_where_its_data_came_from(program: Program, tmp_path: Path) -> None:
    for expected in ("drawn with multispin and kept in cache/", "taken from cache/"):
        done = program(*TINY, "--run-name", "a", *(["--overwrite"] if "taken" in expected else []))
        assert done.returncode == 0, done.stderr
        assert f"data {expected}" in done.stdout
        assert f'"data_source": "{expected}' in (tmp_path / "checkpoints/a/run_info.json").read_text()


def test_without_numba_the_reference_draws(program: Program, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "numba.py").write_text("raise ImportError('no LLVM on this machine')")
    environment = {"PYTHONPATH": str(tmp_path / "broken")}
    done = program(*TINY, "--run-name", "a", **environment)
    assert done.returncode == 0, done.stderr
    assert "Numba cannot be imported (no LLVM on this machine): drawing with the sampler numpy" in done.stdout
    numpy_alone = program(*TINY, "--run-name", "b", "--sampler", "numpy")
    assert "data taken from cache/" in numpy_alone.stdout  # the same data, under the same name
    assert "cannot be imported" not in numpy_alone.stdout


# --------------------------------------------------------------------------------------------------- from elsewhere


def written(content: dict[str, Any]) -> Path:
    path = Path("data.npz")
    np.savez(path, **content)
    return path


def good(n: int = 500, size: int = 8) -> dict[str, NDArray[Any]]:
    spins = np.concatenate([exact.sample(size, temperature, n // 2, seed=1) for temperature in (2.0, 3.0)])
    return {"spins": spins, "temperatures": np.repeat([2.0, 3.0], n // 2)}


def test_what_is_saved_can_be_read() -> None:
    splits, _ = get_splits(SMALL, seed=1)
    write_configurations(Path("x.npz"), splits)
    split = read_configurations("x.npz")
    np.testing.assert_array_equal(split.spins, np.concatenate([part.spins for part in splits]))
    np.testing.assert_array_equal(split.temperatures, np.concatenate([part.temperatures for part in splits]))


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.float32])
def test_spins_may_be_any_numbers(kind: type) -> None:
    content = good(10)
    split = read_configurations(written({**content, "spins": content["spins"].astype(kind)}))
    assert split.spins.dtype == np.int8
    np.testing.assert_array_equal(split.spins, content["spins"])


def test_division_is_by_lot_and_without_replacement() -> None:
    n, size = 1000, 8
    spins = np.random.default_rng(2).choice(np.array([-1, 1], np.int8), (n, size, size))
    whole = Split(spins, np.linspace(1, 4, n))
    config = DataConfig(num_train=600, num_val=200, num_test=100)
    splits = divide(whole, config, seed=3)
    assert [len(part.spins) for part in splits] == [600, 200, 100]
    temperatures = np.concatenate([part.temperatures for part in splits])
    assert len(np.unique(temperatures)) == 900
    for part in splits:
        places = np.searchsorted(whole.temperatures, part.temperatures)
        np.testing.assert_array_equal(part.spins, whole.spins[places])
        assert part.temperatures.mean() == pytest.approx(2.5, abs=0.3)  # from everywhere in the file
    assert fingerprint(divide(whole, config, seed=3)) == fingerprint(splits) != fingerprint(divide(whole, config, 4))


def test_a_run_on_data_from_elsewhere(program: Program) -> None:
    path = written(good())
    done = program(*TINY, "--data", str(path), "--run-name", "a")
    assert done.returncode == 0, done.stderr
    assert f"data taken from {path}" in done.stdout
    again = program("--config", "checkpoints/a/config.json", "--run-name", "b")
    assert again.returncode == 0, again.stderr
    results = [Path(f"checkpoints/{name}/results.json").read_bytes() for name in ("a", "b")]
    assert results[0] == results[1]
    assert not Path("cache").exists()


def test_data_from_elsewhere_out_of_equilibrium_are_used_with_a_warning(program: Program) -> None:
    content = good()
    done = program(*TINY, "--data", str(written({**content, "temperatures": content["temperatures"] + 0.5})))
    assert done.returncode == 0, done.stderr
    assert "warning: the train split is not in equilibrium" in done.stdout


def test_more_than_there_is_and_other_lattices_are_refused() -> None:
    split = Split(np.ones((10, 16, 16), np.int8), np.ones(10))
    with pytest.raises(BadRequestError, match=r"f\.npz has 16 x 16 lattices: say --lattice-size 16"):
        divide(split, DataConfig(file="f.npz", num_train=1, num_val=1, num_test=1), seed=0)
    with pytest.raises(BadRequestError, match=r"f\.npz has 10 configurations and 11 are asked for: lower --num-train"):
        divide(split, DataConfig(file="f.npz", lattice_size=16, num_train=9, num_val=1, num_test=1), seed=0)


class Trap:
    """What leaves a file behind if it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("trapped",)


def claiming(shape: str) -> bytes:
    """An .npz file whose spins claim that shape and are not there."""
    head = f"{{'descr': '|i1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("spins.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode())
        archive.writestr("temperatures.npy", b"")
    return buffer.getvalue()


UNUSABLE: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "empty": (b"", "not a zip file"),
    "text": (b"spins", "not a zip file"),
    "no temperatures": ({"spins": np.ones((3, 4, 4), np.int8)}, "temperatures"),
    "objects": ({**good(4), "temperatures": np.array([1.0, None, 2.0, 3.0])}, "temperatures are no numbers but object"),
    "code": ({**good(4), "spins": np.array([Trap(), 1])}, "spins are no numbers but object"),
    "text for spins": ({**good(4), "spins": np.array(["up", "down"])}, "spins are no numbers"),
    "zeros and ones": ({**good(4), "spins": (good(4)["spins"] + 1) // 2}, "spins must be -1 or +1"),
    "not a number": ({**good(4), "spins": np.full((4, 8, 8), np.nan)}, "spins must be -1 or +1"),
    "one lattice": ({"spins": np.ones((8, 8)), "temperatures": np.ones(8)}, "(N, L, L)"),
    "rectangles": ({"spins": np.ones((3, 8, 6)), "temperatures": np.ones(3)}, "(N, L, L)"),
    "no lattice": ({"spins": np.ones((0, 8, 8)), "temperatures": np.ones(0)}, "(N, L, L)"),
    "odd": ({"spins": np.ones((3, 5, 5)), "temperatures": np.ones(3)}, "5 x 5"),
    "too few temperatures": ({**good(4), "temperatures": np.ones(3)}, "(3,)"),
    "no temperature": ({**good(4), "temperatures": np.array([1, 2, np.nan, 3])}, "positive and at most"),
    "absolute zero": ({**good(4), "temperatures": np.array([1, 2, 0, 3])}, "positive and at most"),
    "too hot": ({**good(4), "temperatures": np.array([1, 2, 1e160, 3])}, "positive and at most"),
    "infinite halves": ({**good(4), "temperatures": np.array([1, 2, np.inf, 3], np.float16)}, "positive and at most"),
    "no numbers for a shape": (claiming("(True, True, True)"), "spins"),
    "unbalanced": (claiming("(((((("), "data.npz"),
    "endless": (claiming(f"({10**400},)"), "data.npz"),
    "deep": (claiming("-" * 9000), "data.npz"),
    "9 TiB": (claiming("(9895604649984,)"), "9,216.0 GiB"),
    "less than it claims": (claiming("(100, 8, 8)"), "not as large as they claim"),
    "a number that is none": (claiming("(-1, 8, 8)"), "not as large as they claim"),
    "a head that is none": (claiming("(__import__('os').mkdir('trapped'), 8)"), "spins"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_files_are_refused(name: str) -> None:
    content, message = UNUSABLE[name]
    path = Path("data.npz")
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        written(content)
    with pytest.raises(UnusableFileError) as refusal:
        read_configurations(path)
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert not Path("trapped").exists()


def test_a_file_cut_short_anywhere_is_refused() -> None:
    path = written(good(10))
    whole = path.read_bytes()
    for end in np.linspace(0, len(whole) - 1, 50, dtype=int):
        path.write_bytes(whole[:end])
        with pytest.raises(UnusableFileError):
            read_configurations(path)


def test_a_flipped_byte_is_refused_or_does_no_harm() -> None:
    path = written(good(10))
    whole, split = path.read_bytes(), read_configurations(path)
    for offset in np.linspace(0, len(whole) - 1, 300, dtype=int):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        try:
            found = read_configurations(path)
        except UnusableFileError:
            continue
        np.testing.assert_array_equal(found.spins, split.spins)
        np.testing.assert_array_equal(found.temperatures, split.temperatures)


def test_a_second_spins_beside_the_array_is_no_trouble() -> None:
    path = written(good(4))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("spins", "not these")
    np.testing.assert_array_equal(read_configurations(path).spins, good(4)["spins"])


def test_save_data_leaves_links_alone(program: Program, tmp_path: Path) -> None:
    (tmp_path / "run.npz").write_text("precious")
    (tmp_path / "link.npz").symlink_to("run.npz")
    done = program(*TINY[:8], "--save-data", "link.npz", "--overwrite")
    assert (done.returncode, "is no plain .npz file" in done.stderr) == (2, True)
    assert (tmp_path / "run.npz").read_text() == "precious"
    assert (tmp_path / "link.npz").is_symlink()


def test_a_damaged_numba_cache_does_not_stop_a_run(program: Program, tmp_path: Path) -> None:
    kept = {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    assert program(*TINY[:8], "--save-data", "one.npz", **kept).returncode == 0
    for path in (tmp_path / "numba").rglob("*.nbi"):
        path.write_bytes(b"")
    done = program(*TINY[:8], "--no-cache", "--save-data", "two.npz", **kept)
    assert done.returncode == 0, done.stderr
    assert "drawing with the sampler numpy" in done.stdout


def test_an_error_is_one_line_whatever_the_file_is_called(program: Program) -> None:
    done = program(*DEBUG, "--data", "a\nb.npz")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["missing.npz", ".", "data.npz"])
def test_an_unusable_file_ends_the_run_with_3(name: str, program: Program) -> None:
    Path("data.npz").write_bytes(b"PK")
    done = program(*DEBUG, "--data", name)
    assert done.returncode == 3
    assert done.stderr.startswith(f"main.py: error: {name}: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(Path().glob("checkpoints/*/config.json"))


def test_save_data_writes_and_trains_nothing(program: Program, tmp_path: Path) -> None:
    done = program("--num-train", "100", "--num-val", "50", "--num-test", "50", "--save-data", "out.npz")
    assert done.returncode == 0, done.stderr
    assert "200 configurations in out.npz" in done.stdout
    assert not (tmp_path / "checkpoints").exists()
    assert read_configurations(tmp_path / "out.npz").spins.shape == (200, 8, 8)

    before = (tmp_path / "out.npz").read_bytes()
    refused = program("--num-train", "100", "--seed", "1", "--save-data", "out.npz")
    assert (refused.returncode, "--overwrite replaces it" in refused.stderr) == (2, True)
    assert (tmp_path / "out.npz").read_bytes() == before
    assert program("--num-train", "100", "--seed", "1", "--save-data", "out.npz", "--overwrite").returncode == 0
    assert (tmp_path / "out.npz").read_bytes() != before
    assert program("--save-data", "no/folder/out.npz").returncode == 2
