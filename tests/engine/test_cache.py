"""The cache of generated data: it returns the same data, and different data have different file names."""

import importlib
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import SeedSequence
from numpy.typing import NDArray

from engine.datasets import cache
from engine.datasets.cache import cache_path
from engine.datasets.code_hash import code_hash
from engine.datasets.file_formats import read_columns
from engine.datasets.splits import fingerprint, get_splits, load_data
from engine.interface.base_config import OF_FILES, Config, options_with
from engine.interface.base_problem import Columns, Problem
from engine.machine import repository
from tests.conftest import Program, environment
from tests.toy import PROBLEM, ToyConfig, ToyDataConfig, ToyModelConfig, ToyProblem

CONFIG = ToyConfig(data=ToyDataConfig(num_train=70, num_val=20, num_test=10))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def path_of(config: ToyConfig = CONFIG, problem: Problem[Any] = PROBLEM) -> Path:
    path = cache_path(problem, config)
    assert path is not None
    return path


def changed(**values: Any) -> ToyConfig:
    return replace(CONFIG, data=replace(CONFIG.data, **values))


# ------------------------------------------------------------------------------------------------- writing and reading


def test_data_are_generated_once() -> None:
    generated, source = get_splits(PROBLEM, CONFIG)
    path = path_of()
    assert source == f"generated and kept in {path}"
    assert path.parent == Path("cache")
    assert path.name.startswith("toy-seed42-")
    assert path.suffix == ".npz"
    found, source = get_splits(PROBLEM, CONFIG)
    assert source == f"read from {path}"
    assert fingerprint(found) == fingerprint(generated)


ARRAYS: dict[str, NDArray[Any]] = {
    "float16": np.array([0.1, -0.0, 65504], np.float16),
    "float32": np.array([[1e-45, 3e38], [0.1, -0.0], [1, 2]], np.float32),
    "float64": np.array([5e-324, 1 / 3, -1e308]),
    "longdouble": np.array([1, 2, 3], np.longdouble) / 3,
    "int8": np.array([-128, 0, 127], np.int8),
    "int64": np.array([-(2**63), 0, 2**63 - 1]),
    "uint16": np.array([0, 1, 65535], np.uint16),
    "uint64": np.array([0, 1, 2**64 - 1], np.uint64),
    "bool": np.array([True, False, True]),
    "big-endian": np.array([1, 2, 3], ">i4"),
    "several dimensions": np.arange(3 * 2 * 4 * 5, dtype=np.int16).reshape(3, 2, 4, 5),
    "Fortran order": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "not contiguous": np.arange(24.0).reshape(3, 8)[:, ::3],
    "no numbers": np.zeros((3, 0)),
    "a name/with dots.npy": np.arange(3),
}


def test_arrays_of_any_type_are_restored_bit_for_bit() -> None:
    splits = {"train": ARRAYS, "val": {name: array[:2] for name, array in ARRAYS.items()}, "test": {"o": np.arange(4)}}
    cache.store(Path("cache/x.npz"), splits)
    found = cache.load(Path("cache/x.npz"))
    assert list(found) == list(splits)
    for before, after in zip(splits.values(), found.values(), strict=True):
        assert set(before) == set(after)
        for name, array in before.items():
            assert after[name].dtype == array.dtype, name
            assert after[name].shape == array.shape, name
            assert after[name].tobytes() == array.tobytes(), name


def test_integers_are_compressed() -> None:
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (1000, 64))
    cache.store(Path("cache/x.npz"), {"train": {"signs": signs}})
    assert Path("cache/x.npz").stat().st_size < 0.3 * signs.nbytes


def test_the_second_run_of_a_command_trains_on_the_same_data(toy_in_process: Any) -> None:
    for name, source in (("a", "generated and kept in cache/"), ("b", "read from cache/")):
        assert toy_in_process("--preset", "debug", "--device", "cpu", "--epochs", "1", "--run-name", name) == 0
        assert f'"data_source": "{source}' in Path(f"checkpoints/{name}/run_info.json").read_text(encoding="utf-8")
    results = [Path(f"checkpoints/{name}/results.json").read_bytes() for name in ("a", "b")]
    assert results[0] == results[1]


def test_no_cache_neither_reads_nor_writes() -> None:
    without = changed(cache=False)
    generated, source = get_splits(PROBLEM, without)
    assert source == "generated"
    assert not Path("cache").exists()
    get_splits(PROBLEM, CONFIG)
    path_of().write_bytes(b"something else")
    assert fingerprint(get_splits(PROBLEM, without)[0]) == fingerprint(generated)
    assert path_of().read_bytes() == b"something else"


# ------------------------------------------------------------------------------------------------------------ faults


def test_damaged_data_are_generated_again(capsys: pytest.CaptureFixture[str]) -> None:
    generated, _ = get_splits(PROBLEM, CONFIG)
    path = path_of()
    complete = path.read_bytes()
    damaged = [complete[:end] for end in np.linspace(0, len(complete) - 1, 10, dtype=int)]
    for offset in np.linspace(0, len(complete) - 1, 20, dtype=int):
        damaged.append(complete[:offset] + bytes([complete[offset] ^ 4]) + complete[offset + 1 :])
    for content in damaged:
        path.write_bytes(content)
        again, source = get_splits(PROBLEM, CONFIG)
        assert source.startswith("generated")
        printed = capsys.readouterr()
        assert printed.err == f"warning: {path} is damaged: generating these data again\n"
        assert printed.out == ""
        assert fingerprint(again) == fingerprint(generated)
        assert path.read_bytes() == complete


def test_data_that_cannot_be_cached_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    Path("cache").write_text("a file where the folder should be", encoding="utf-8", newline="\n")
    splits, source = get_splits(PROBLEM, CONFIG)
    assert source == "generated"
    assert len(splits.train["points"]) == 70
    assert "warning: the data could not be cached: " in capsys.readouterr().err
    assert Path("cache").read_text(encoding="utf-8") == "a file where the folder should be"


def test_a_full_disk_only_causes_a_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_checked", full)
    assert get_splits(PROBLEM, CONFIG)[1] == "generated"
    line = capsys.readouterr().err
    assert line == "warning: the data could not be cached: [Errno 28] No space left on device\n"


@pytest.mark.slow
def test_two_processes_can_generate_the_same_data_at_once(tmp_path: Path) -> None:
    start = [sys.executable, "-W", "error", "-m", "tests.toy", "--preset", "debug", "--save-data"]
    processes = [
        subprocess.Popen([*start, name], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
        for name in ("one.npz", "two.npz")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    one, two = (read_columns(PROBLEM, CONFIG, name) for name in ("one.npz", "two.npz"))
    for name, column in one.items():
        np.testing.assert_array_equal(two[name], column)
    assert len(list(Path("cache").iterdir())) == 1


@pytest.mark.slow
def test_the_terminal_shows_where_the_data_came_from(toy: Program) -> None:
    for expected in ("generated and kept in cache/", "read from cache/"):
        done = toy("--preset", "debug", "--num-train", "300", "--save-data", "x.npz", "--overwrite")
        assert done.returncode == 0, done.stderr
        assert f"data {expected}" in done.stdout


# ------------------------------------------------------------------------------------- how the name depends on options


def test_the_name_depends_on_every_option_that_affects_the_data() -> None:
    changes: dict[str, Any] = {
        "num_train": 71,
        "num_val": 21,
        "num_test": 11,
        "num_calibration": 12,
        "dimension": 4,
        "spread": 1.5,
        "rounds": 2,
        "corrupt": True,
    }
    of_files = {option.path[-1] for option in options_with(ToyConfig, *OF_FILES).values()}
    assert set(changes) | {"cache", "file", *of_files} == {field.name for field in fields(ToyDataConfig)}
    configs = [CONFIG, *(changed(**{name: value}) for name, value in changes.items())]
    paths = {path_of(replace(config, seed=seed)) for config in configs for seed in (1, 2)}
    assert len(paths) == 2 * len(configs)
    assert path_of(changed(points_key="x")) == path_of(CONFIG)


def test_the_name_does_not_depend_on_other_options() -> None:
    for config in (
        replace(CONFIG, absolute=True),
        replace(CONFIG, model=ToyModelConfig(kind="pooled", hidden=7)),
        replace(CONFIG, train=replace(CONFIG.train, lr=0.5, batch_size=7)),
        replace(CONFIG, log=replace(CONFIG.log, run_name="a"), device="cpu", threads=1, compile=True),
        changed(cache=False),
    ):
        assert path_of(config) == path_of()


def test_problems_do_not_share_their_data() -> None:
    class Other(ToyProblem):
        pass

    assert path_of(problem=Other()) != path_of()


# ---------------------------------------------------------------------------------------- how the name depends on code

FILES = {
    "generator.py": '''"""The examples."""

from typing import TYPE_CHECKING

from helper import scale

if TYPE_CHECKING:
    import hinted
else:
    SHIFT = 0

N = 2  # coordinates


def generate(config, n, seed):
    """Random points."""
    import numpy as np

    # uniform
    points = scale(np.random.default_rng(seed).uniform(size=(n, N)))
    return {"points": points, "signs": np.ones(n, np.int8), "values": (points**2).sum(axis=1)}


if __name__ == "__main__":
    print(generate)
''',
    "helper.py": '''"""A helper."""


def scale(points):
    return FACTOR * points


FACTOR = 3
''',
    "net.py": "WIDTH = 8\n",
    "hinted.py": "class Hint: ...\n",
    "small.py": '''"""A problem in several files."""

import generator
from tests.toy import ToyProblem


class Small(ToyProblem):
    generate = staticmethod(generator.generate)

    def network(self, config, input_shapes, target_shape):
        import net

        return super().network(config, input_shapes, target_shape)


PROBLEM = Small()
''',
}


class Folder:
    """A folder with a problem of several files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name, content in FILES.items():
            (path / name).write_text(content, encoding="utf-8", newline="\n")

    def edit(self, name: str, old: str, new: str) -> None:
        content = (self.path / name).read_text(encoding="utf-8")
        assert old in content
        (self.path / name).write_text(content.replace(old, new), encoding="utf-8", newline="\n")

    def problem(self, name: str = "small") -> Problem[Any]:
        """Import the problem as a new process would."""
        for module in (name, *(Path(file).stem for file in FILES), "package", "package.gen", "package.more"):
            sys.modules.pop(module, None)
        importlib.invalidate_caches()
        problem: Problem[Any] = importlib.import_module(name).PROBLEM
        return problem


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Folder:
    path = tmp_path_factory.mktemp("problem")
    monkeypatch.syspath_prepend(str(path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would be reused after an edit within a second
    return Folder(path)


def test_data_are_generated_again_after_the_generator_was_edited(folder: Folder) -> None:
    before, _ = get_splits(folder.problem(), CONFIG)
    folder.edit("helper.py", "FACTOR = 3", "FACTOR = 5")
    after, source = get_splits(folder.problem(), CONFIG)
    assert source.startswith("generated")
    np.testing.assert_allclose(after.train["points"], before.train["points"] * 5 / 3)
    folder.edit("helper.py", "FACTOR = 5", "FACTOR = 3")
    again, source = get_splits(folder.problem(), CONFIG)
    assert source.startswith("read from")
    assert fingerprint(again) == fingerprint(before)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("generator.py", "N = 2", "N = 3"),
        ("generator.py", "uniform(size", "normal(size"),
        ("generator.py", "from helper import scale", "from helper import FACTOR, scale"),
        ("helper.py", "FACTOR = 3", "FACTOR = 4"),
    ],
)
def test_the_name_depends_on_the_code_of_the_generator(name: str, old: str, new: str, folder: Folder) -> None:
    before = path_of(problem=folder.problem())
    folder.edit(name, old, new)
    assert path_of(problem=folder.problem()) != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("generator.py", "# uniform", "# uniform in a square"),
        ("generator.py", "    # uniform\n", ""),
        ("generator.py", '"""Random points."""', '"""Uniform points in a square."""'),
        ("generator.py", '"""The examples."""\n', ""),
        ("generator.py", "size=(n, N)", "size=(\n        n,\n        N,\n    )"),
        ("generator.py", "print(generate)", "print(N)"),
        ("generator.py", "    import hinted", "    import hinted as h"),
        ("helper.py", '"""A helper."""', '"""Scales points."""'),
        ("helper.py", "FACTOR = 3", "FACTOR = 3  # chosen by hand"),
        ("hinted.py", "...", "pass"),
        ("generator.py", "SHIFT = 0", "SHIFT = 1"),  # which the generator does not use
        ("net.py", "WIDTH = 8", "WIDTH = 16"),
        ("small.py", "import net", "import net as network"),
    ],
)
def test_the_name_does_not_depend_on_other_code_or_comments(name: str, old: str, new: str, folder: Folder) -> None:
    before = path_of(problem=folder.problem())
    folder.edit(name, old, new)
    assert path_of(problem=folder.problem()) == before


ONE_FILE = '''"""A problem in one file."""

import numpy as np
import net
from helper import FACTOR
from tests.toy import ToyProblem

TIMES = np.arange(3)
WIDTHS = {"narrow": 8}


class Kind:
    A = 1

    def shift(self):
        return self.A


class Base(ToyProblem):
    offset = 0

    def __init__(self):
        self.kind = Kind()

    def points(self, rng, n):
        return rng.normal(size=(n, 3)) + self.offset + self.kind.shift()

    def network(self, config, input_shapes, target_shape):
        return net.create(WIDTHS["narrow"])


class Single(Base):
    presets = {}

    def generate(self, config, n, seed):
        return {"points": FACTOR * self.points(np.random.default_rng(seed), n) + TIMES}

    def metrics(self, config, columns, predictions, targets):
        return {"mae": 0}


np.seterr(all="ignore")
PROBLEM = Single()
'''


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("np.arange(3)", "np.arange(3.0)", True),  # a constant
        ("offset = 0", "offset = 1", True),  # an attribute of a base class
        ("rng.normal(", "rng.uniform(", True),  # a method of a base class
        ("A = 1", "A = 2", True),  # an attribute of a class that a used method creates
        ("return self.A", "return -self.A", True),
        ("self.kind = Kind()", "self.kind = Kind() or 0", True),
        ('all="ignore"', 'all="raise"', True),  # a call at the top level
        ("from helper import FACTOR", "from helper import scale as FACTOR", True),
        ("class Base(ToyProblem)", "class Base(ToyProblem, object)", True),
        ('"narrow": 8', '"narrow": 9', False),
        ('WIDTHS["narrow"])', 'WIDTHS["narrow"] + 1)', False),
        ('{"mae": 0}', '{"mae": 1}', False),
        ("presets = {}", 'presets = {"debug": None}', False),
        ("import net\n", "import net, copy\n", False),
    ],
)
def test_the_name_depends_on_what_the_generator_uses_of_its_file(
    old: str, new: str, changes: bool, folder: Folder
) -> None:
    (folder.path / "single.py").write_text(ONE_FILE, encoding="utf-8", newline="\n")
    before = path_of(problem=folder.problem("single"))
    folder.edit("single.py", old, new)
    assert (path_of(problem=folder.problem("single")) != before) == changes


def test_the_name_depends_on_the_imports_that_the_generator_uses(folder: Folder) -> None:
    (folder.path / "single.py").write_text(ONE_FILE, encoding="utf-8", newline="\n")
    before = path_of(problem=folder.problem("single"))
    folder.edit("net.py", "WIDTH = 8", "WIDTH = 16")  # only the network uses it
    assert path_of(problem=folder.problem("single")) == before
    folder.edit("helper.py", "FACTOR = 3", "FACTOR = 4")
    assert path_of(problem=folder.problem("single")) != before


PACKAGE = {
    "__init__.py": "",
    "gen.py": """from tests.toy import ToyProblem

from . import more
from .sub.constants import N


class Packaged(ToyProblem):
    def generate(self, config, n, seed):
        return more.generate(N, n, seed)


PROBLEM = Packaged()
""",
    "more.py": "def generate(k, n, seed):\n    return {}\n",
    "sub/__init__.py": "",
    "sub/constants.py": "from ..other.values import N\n",
    "other/__init__.py": "A = 1\n",
    "other/values.py": "N = 3\n",
}


def test_relative_imports_are_followed(folder: Folder) -> None:
    for name, content in PACKAGE.items():
        path = folder.path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="\n")
    names = [path_of(problem=folder.problem("package.gen"))]
    for name in ("more.py", "sub/constants.py", "other/values.py"):
        with (folder.path / "package" / name).open("a") as file:
            file.write("B = 2\n")
        names.append(path_of(problem=folder.problem("package.gen")))
    assert len(set(names)) == len(names)


def test_a_copy_of_the_code_in_another_folder_has_the_same_hash(folder: Folder, tmp_path: Path) -> None:
    first = code_hash(folder.problem().generate)
    other = tmp_path / "copy"
    other.mkdir()
    copy = Folder(other)
    sys.path.insert(0, str(other))
    try:
        problem = copy.problem()
        assert Path(str(sys.modules["generator"].__file__)).parent == other
        assert code_hash(problem.generate) == first
    finally:
        sys.path.remove(str(other))


def test_the_hash_does_not_depend_on_shared_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_hash(PROBLEM.generate)
    monkeypatch.setattr(repository, "NOT_HASHED", ("trainer.py",))
    assert code_hash(PROBLEM.generate) != before  # it is imported by the file of the problem


def test_without_a_source_file_nothing_is_cached() -> None:
    names: dict[str, Any] = {}
    exec("def generate(config, n, seed):\n    return PROBLEM.generate(config, n, seed)", {"PROBLEM": PROBLEM}, names)

    class Interactive(ToyProblem):
        def generate(self, config: Config, n: int, seed: SeedSequence) -> Columns:
            raise NotImplementedError

    Interactive.generate = staticmethod(names["generate"])  # type: ignore[method-assign]
    assert cache_path(Interactive(), CONFIG) is None
    assert get_splits(Interactive(), CONFIG)[1] == "generated"
    assert not Path("cache").exists()


def test_cached_data_are_checked_like_generated_ones(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = load_data(PROBLEM, CONFIG), load_data(PROBLEM, CONFIG)
    assert second.source.startswith("read from")
    assert (first.sha256, first.checks) == (second.sha256, second.checks)
    assert capsys.readouterr().out.count("values within") == 6
