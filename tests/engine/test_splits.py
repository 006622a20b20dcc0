"""The data of a run: generating, checking and saving them, and refusing them before memory is allocated."""

import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import SeedSequence
from numpy.typing import NDArray

from engine.datasets.file_formats import read_columns
from engine.datasets.generation import generate_split
from engine.datasets.splits import fingerprint, get_splits, load_data, report_check, require_memory_for, save_data
from engine.interface.base_config import Config, replace_unchecked
from engine.interface.base_problem import Check, Columns, Splits
from engine.machine import hardware
from engine.machine.errors import BadRequestError, ProblemError
from tests.conftest import Program
from tests.toy import PROBLEM, ToyConfig, ToyDataConfig, ToyProblem

CONFIG = ToyConfig(data=ToyDataConfig(num_train=70, num_val=20, num_test=10))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def changed(config: ToyConfig = CONFIG, **values: Any) -> ToyConfig:
    return replace(config, data=replace(config.data, **values))


# --------------------------------------------------------------------------------------------------------- generated


def test_splits_have_the_requested_sizes_and_types() -> None:
    splits, _ = get_splits(PROBLEM, CONFIG)
    assert [split["points"].shape for split in splits] == [(70, 3), (20, 3), (10, 3)]
    for split in splits:
        dtypes = {name: column.dtype for name, column in split.items()}
        assert dtypes == {"points": np.float32, "signs": np.int8, "values": np.float64, "is_far": np.bool_}


def test_data_are_a_function_of_config_and_seed() -> None:
    def hashed(config: ToyConfig) -> str:
        return fingerprint(get_splits(PROBLEM, changed(config, cache=False))[0])

    assert hashed(CONFIG) == hashed(CONFIG)
    assert hashed(CONFIG) != hashed(replace(CONFIG, seed=1))
    assert hashed(CONFIG) != hashed(changed(spread=2.0))


def test_no_split_depends_on_the_size_of_another() -> None:
    one, _ = get_splits(PROBLEM, CONFIG)
    other, _ = get_splits(PROBLEM, changed(num_train=99, num_test=30))
    for name, column in one.val.items():
        np.testing.assert_array_equal(other.val[name], column)


def test_splits_have_independent_seeds() -> None:
    splits, _ = get_splits(PROBLEM, changed(num_val=70, num_test=70))
    points = np.concatenate([split["points"] for split in splits])
    assert len(np.unique(points, axis=0)) == 210


class Wrong(ToyProblem):
    """Its generator returns `result`, which a test sets."""

    result: Any

    def generate(self, config: ToyConfig, n: int, seed: SeedSequence) -> Columns:
        result: Columns = self.result
        return result


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"a": np.ones(4)}, r"generate returned arrays of the shapes a \(4,\) for n = 5: every first axis must be n"),
        ({"a": np.ones(5), "b": np.ones((3, 5))}, r"the shapes a \(5,\), b \(3, 5\) for n = 5"),
        ({"a": np.ones(5), "b": np.array(1.0)}, r"the shapes a \(5,\), b \(\) for n = 5"),
        ((np.ones(5), np.ones(5)), "generate returned tuple: return a dictionary of named arrays"),
        ({"a": [1, 2, 3, 4, 5]}, "generate returned list for 'a': return NumPy arrays"),
        ({}, "for n = 5: every first axis must be n"),
        ({"a": np.array([1, 2, np.nan, 4, 5])}, "generate: a is infinite or not a number in example 2"),
        ({"a": np.array([[1, np.inf]] * 5)}, "generate: a is infinite or not a number in example 0"),
        ({"a": np.array(["x"] * 5)}, "generate: a has the dtype <U1: it must contain numbers"),
        ({"a": np.array([None] * 5)}, "generate: a has the dtype object: it must contain numbers"),
    ],
)
def test_invalid_results_of_a_generator_are_refused(result: Any, message: str) -> None:
    problem = Wrong()
    problem.result = result
    with pytest.raises(ProblemError, match=message):
        generate_split(problem, CONFIG, 5, SeedSequence(0))


def test_wrong_data_are_not_cached() -> None:
    problem = Wrong()
    problem.result = {"a": np.full(70, np.nan)}
    with pytest.raises(ProblemError):
        get_splits(problem, CONFIG)
    assert not Path("cache").exists()


@pytest.mark.parametrize("name", ["absolute", "model", "train", "seed", "device"])
def test_a_generator_may_not_use_options_that_the_cache_ignores(name: str) -> None:
    class Curious(ToyProblem):
        def generate(self, config: ToyConfig, n: int, seed: SeedSequence) -> Columns:
            getattr(config, name)
            return super().generate(config, n, seed)

    with pytest.raises(
        ProblemError, match=f"generate uses config.{name}: it may only use config.data and config.threads"
    ):
        get_splits(Curious(), CONFIG)


def test_a_generator_may_use_its_options_and_the_number_of_threads() -> None:
    class Threaded(ToyProblem):
        def generate(self, config: ToyConfig, n: int, seed: SeedSequence) -> Columns:
            assert config.threads == 3
            assert config.data == CONFIG.data
            return super().generate(config, n, seed)

    get_splits(Threaded(), replace(CONFIG, threads=3))


# ----------------------------------------------------------------------------------------------- without a generator


class FromFile(ToyProblem):
    """It cannot generate examples."""

    generate = ToyProblem.__mro__[1].generate  # type: ignore[attr-defined]


def test_a_problem_without_a_generator_needs_a_file() -> None:
    for refused in (get_splits, require_memory_for):
        with pytest.raises(BadRequestError, match="--data: give a file with the examples; toy cannot generate any"):
            refused(FromFile(), CONFIG)
    save_data(PROBLEM, CONFIG, Path("x.npz"))
    assert get_splits(FromFile(), changed(file="x.npz"))[1] == "read from x.npz"


def test_generated_data_need_their_sizes() -> None:
    with pytest.raises(BadRequestError, match="--num-train, --num-val, --num-test none: give a number, or a file"):
        get_splits(PROBLEM, Config())


# ------------------------------------------------------------------------------------------------------------ memory


@pytest.fixture
def _no_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the generator fail unless it is called for empty columns."""
    generate = ToyProblem.generate

    def only_shapes(self: ToyProblem, config: ToyConfig, n: int, seed: SeedSequence) -> Columns:
        assert n == 0, "examples were generated"
        return generate(self, config, n, seed)

    monkeypatch.setattr(ToyProblem, "generate", only_shapes)


@pytest.mark.usefixtures("_no_examples")
def test_data_that_do_not_fit_in_memory_are_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(num_train=2**30, num_val=2**29, num_test=2**29, dimension=10)
    # Per example 10 float32 coordinates, an int8 sign, a float64 value and a bool: 50 bytes, five times.
    monkeypatch.setattr(hardware, "physical_memory", lambda: 7 * 2**30)
    message = (
        r"the data need 500\.0 GiB of memory and this machine or job has 7\.0 GiB: "
        "lower --num-train, --num-val or --num-test, or the size of an example"
    )
    with pytest.raises(BadRequestError, match=message):
        require_memory_for(PROBLEM, config)
    monkeypatch.setattr(hardware, "physical_memory", lambda: 500 * 2**30)
    require_memory_for(PROBLEM, config)


@pytest.mark.usefixtures("_no_examples")
def test_the_check_of_memory_does_not_allocate_the_data() -> None:
    tracemalloc.start()
    with pytest.raises(BadRequestError, match="GiB of memory"):
        require_memory_for(PROBLEM, changed(num_train=10**15, dimension=10**6))
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_the_check_of_memory_skips_data_from_a_file() -> None:
    require_memory_for(PROBLEM, changed(num_train=10**15, file="x.npz"))


def test_data_and_checks_need_no_more_memory_than_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(num_train=40_000, num_val=1000, num_test=1000, dimension=20, cache=False)
    needed: list[int] = []
    monkeypatch.setattr("engine.datasets.splits.require_memory", lambda n_bytes, *_: needed.append(n_bytes))
    require_memory_for(PROBLEM, config)
    tracemalloc.start()
    data = load_data(PROBLEM, config)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(column.nbytes for column in data.train.values()) < peak < needed[0]


# ------------------------------------------------------------------------------------------------------------ checks


def test_the_result_of_a_check_is_printed_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    data = load_data(PROBLEM, CONFIG)
    assert data.sha256 == fingerprint(Splits(data.train, data.val, data.test))
    assert set(data.checks) == {"train", "val", "test"}
    assert all(set(numbers) == {"worst"} for numbers in data.checks.values())
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == f"data {data.source}"
    assert [line.partition(": values within")[0] for line in lines[1:]] == ["train", "val", "test"]
    assert printed.err == ""


def test_a_fault_of_generated_data_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadRequestError, match="the train split: the values are not those of the points"):
        load_data(PROBLEM, changed(corrupt=True))
    assert capsys.readouterr().err == ""


def test_a_fault_of_data_from_a_file_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    columns: dict[str, Any] = dict(PROBLEM.generate(changed(corrupt=True), 100, SeedSequence(0)))
    np.savez("x.npz", **columns)
    data = load_data(PROBLEM, changed(file="x.npz"))
    assert len(data.train["points"]) == 70
    lines = capsys.readouterr().err.splitlines()
    splits = ("train", "val", "test")
    assert lines == [f"warning: the {name} split: the values are not those of the points" for name in splits]


def test_a_check_without_fault_or_summary_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    report_check("train", Check({"a": 1.0}), is_external=False)
    assert capsys.readouterr() == ("", "")


def test_a_batch_that_is_larger_than_the_training_split_of_a_file_is_refused() -> None:
    save_data(PROBLEM, CONFIG, Path("x.npz"))
    config = ToyConfig(data=ToyDataConfig(num_train=70, num_val=20, num_test=10, file="x.npz"))
    load_data(PROBLEM, config)
    sizes = dict.fromkeys(("num_train", "num_val", "num_test"))
    data: Any = replace_unchecked(config.data, **sizes)
    automatic = replace_unchecked(config, data=data, train=replace(config.train, batch_size=81))
    with pytest.raises(BadRequestError, match="--batch-size 81 is above 80 training examples: lower it"):
        load_data(PROBLEM, automatic)


def test_targets_that_are_all_equal_are_refused() -> None:
    class Constant(ToyProblem):
        shape: tuple[int, ...]

        def target(self, config: ToyConfig, columns: Columns) -> NDArray[Any]:
            return np.full((len(columns["values"]), *self.shape), 7.0)

    for Constant.shape, message in (((), "all training targets are 7: use"), ((2,), "have the same target: use")):
        with pytest.raises(BadRequestError, match=f"{message} data with at least two different targets"):
            load_data(Constant(), CONFIG)


# --------------------------------------------------------------------------------------------------------- save_data


def test_save_data_writes_the_examples_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    save_data(PROBLEM, CONFIG, Path("x.npz"))
    assert "100 examples in x.npz" in capsys.readouterr().out
    splits, _ = get_splits(PROBLEM, CONFIG)
    for name, column in read_columns(PROBLEM, CONFIG, "x.npz").items():
        np.testing.assert_array_equal(column, np.concatenate([split[name] for split in splits]))


def test_save_data_replaces_a_file_only_with_overwrite() -> None:
    save_data(PROBLEM, CONFIG, Path("x.npz"))
    before = Path("x.npz").read_bytes()
    with pytest.raises(BadRequestError, match=r"--save-data x\.npz: exists already; --overwrite replaces it"):
        save_data(PROBLEM, replace(CONFIG, seed=1), Path("x.npz"))
    assert Path("x.npz").read_bytes() == before
    save_data(PROBLEM, replace(CONFIG, seed=1), Path("x.npz"), overwrite=True)
    assert Path("x.npz").read_bytes() != before


@pytest.mark.usefixtures("_no_examples")
@pytest.mark.parametrize("name", ["a.json", ".", "folder.npz", "link.npz", "no/such/folder/x.npz", "file/x.npz"])
def test_save_data_only_writes_regular_files(name: str) -> None:
    Path("precious.npz").write_text("precious", encoding="utf-8", newline="\n")
    Path("link.npz").symlink_to("precious.npz")
    Path("folder.npz").mkdir()
    Path("file").write_text("", encoding="utf-8", newline="\n")
    with pytest.raises(BadRequestError, match=rf"^--save-data {name}: .*give (the path of|another path)"):
        save_data(PROBLEM, CONFIG, Path(name), overwrite=True)
    assert Path("precious.npz").read_text(encoding="utf-8") == "precious"
    assert Path("link.npz").is_symlink()


@pytest.mark.usefixtures("_no_examples")
def test_save_data_refuses_a_read_only_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(BadRequestError, match="the folder does not exist or is not writable; give another path"):
        save_data(PROBLEM, CONFIG, Path("x.npz"))


def test_wrong_data_are_not_saved() -> None:
    with pytest.raises(BadRequestError, match="not those of the points"):
        save_data(PROBLEM, changed(corrupt=True), Path("x.npz"))
    assert not Path("x.npz").exists()


@pytest.mark.slow
def test_the_command_saves_data_and_trains_nothing(toy: Program) -> None:
    sizes = ("--num-train", "100", "--num-val", "50", "--num-test", "50")
    done = toy(*sizes, "--save-data", "out.npz")
    assert done.returncode == 0, done.stderr
    assert "200 examples in out.npz" in done.stdout
    assert not Path("checkpoints").exists()
    before = Path("out.npz").read_bytes()
    refused = toy(*sizes, "--seed", "1", "--save-data", "out.npz")
    assert (refused.returncode, "--overwrite replaces it" in refused.stderr) == (2, True)
    assert Path("out.npz").read_bytes() == before


# ---------------------------------------------------------------------------------------------------- data from a file


def test_a_run_with_data_from_a_file_can_be_repeated_from_its_config(
    toy_in_process: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    save_data(PROBLEM, changed(num_train=270, cache=False), Path("some.npz"))
    start = ("--preset", "debug", "--device", "cpu", "--epochs", "1", "--num-test", "30")
    assert toy_in_process(*start, "--data", "some.npz", "--run-name", "a") == 0
    assert "data read from some.npz" in capsys.readouterr().out
    assert toy_in_process("--config", "checkpoints/a/config.json", "--run-name", "b") == 0
    results = [Path(f"checkpoints/{name}/results.json").read_bytes() for name in ("a", "b")]
    assert results[0] == results[1]
    assert not Path("cache").exists()


# ------------------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_equal_for_equal_data_only() -> None:
    def splits(**columns: Any) -> Splits:
        return Splits({"a": np.arange(6), **columns}, {}, {})

    reference = fingerprint(splits())
    assert fingerprint(splits()) == reference
    assert fingerprint(splits(a=np.arange(12)[::2] // 2)) == reference  # does not depend on the layout in memory
    changes: list[Splits] = [
        splits(a=np.arange(1, 7)),
        splits(a=np.arange(6).reshape(2, 3)),
        splits(a=np.arange(6, dtype=np.int32)),
        splits(b=np.arange(6)),
        Splits({"b": np.arange(6)}, {}, {}),
        Splits({"a": np.arange(5)}, {"a": np.arange(5, 6)}, {}),
    ]
    assert len({reference, *map(fingerprint, changes)}) == 1 + len(changes)
