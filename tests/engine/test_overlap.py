"""Test examples that occur in training are found, and are left out of the metrics on unseen examples."""

import hashlib
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import engine.datasets.overlap
import main
from engine.datasets.overlap import HASH_FORMAT, are_comparable, hash_inputs, load_hashes, save_hashes, select, unseen
from engine.datasets.splits import get_splits, save_data
from engine.evaluation.evaluation_request import parse_args
from engine.interface.base_problem import Columns
from engine.machine.errors import ProblemError
from engine.run_folder.run_request import parse_args as parse_main
from evaluate import evaluate_run
from tests.conftest import DEBUG, read, run_command, run_ranks
from tests.toy import PROBLEM, ToyConfig, ToyProblem

Array = NDArray[Any]
Run = Callable[..., int]

CONFIG = replace(PROBLEM.presets["debug"], device="cpu")
# A run with 25 different points: some of its test examples are in its training split, and others are not.
REPEATED = [*DEBUG, "--dimension", "2", "--rounds", "0", "--spread", "2", "--num-train", "20", "--batch-size", "10"]
RUN = Path("checkpoints") / "r"

UNKNOWN = "it is not known which examples occur in the training data"


class Columnwise(ToyProblem):
    """Its inputs are all columns, sorted by name."""

    def inputs(self, config: ToyConfig, columns: Columns) -> tuple[Array, ...]:
        return tuple(columns[name] for name in sorted(columns))


def hashes(**columns: Array) -> list[int]:
    return [int(value) for value in hash_inputs(Columnwise(), CONFIG, columns)]


def parsed(*arguments: str) -> ToyConfig:
    config = parse_main(PROBLEM, list(arguments), prog="toy.py").config
    assert isinstance(config, ToyConfig)
    return config


def is_seen(config: ToyConfig) -> NDArray[np.bool_]:
    """Whether each test example occurs in the training split, from a comparison of all pairs of examples."""
    splits, _ = get_splits(PROBLEM, config)
    train, test = (np.column_stack([each["points"], each["signs"]]) for each in (splits.train, splits.test))
    seen: NDArray[np.bool_] = (test[:, None] == train[None]).all(axis=2).any(axis=1)
    return seen


# -------------------------------------------------------------------------------------------------------------- hashes


def test_equal_inputs_have_equal_hashes_and_different_inputs_do_not() -> None:
    x = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    found = hash_inputs(Columnwise(), CONFIG, {"x": np.concatenate([x, x[::-1]])})
    assert found.shape == (2000,)
    assert found.dtype == np.uint64
    np.testing.assert_array_equal(found[:1000], found[:999:-1])
    assert len(set(found.tolist())) == 1000
    changed = x.copy()
    changed[:, 2] = np.nextafter(changed[:, 2], np.float32(9))  # by one bit
    assert not set(hashes(x=changed)) & set(found.tolist())


def test_hashes_do_not_depend_on_the_dtype_of_a_file() -> None:
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32).astype(np.float64)
    assert hashes(x=x) == hashes(x=x.astype(np.float32)) == hashes(x=x.astype(">f8"))
    assert hashes(x=x) == hashes(x=np.asfortranarray(x)) == hashes(x=np.repeat(x, 2, axis=0)[::2])
    k = np.arange(50) % 2
    assert hashes(k=k) == hashes(k=k.astype(np.int8)) == hashes(k=k.astype(">u2")) == hashes(k=k.astype(bool))
    assert len(set(hashes(k=np.array([255, -1, 2**40])))) == 3


def test_hashes_do_not_depend_on_the_sign_of_zero() -> None:
    assert len(set(hashes(x=np.array([[0.0, 1.0], [-0.0, 1.0]])))) == 1
    assert len(set(hashes(x=np.array([[0.0, 1.0], [0.0, -1.0]])))) == 2


def test_values_that_only_differ_in_float64_are_different() -> None:
    times = 1_700_000_000 + 60.0 * np.arange(1440)  # seconds since 1970: float32 has steps of 128
    tiny = 2.5e-48 * np.arange(400)  # float32 only has 0 there
    for values in (times, tiny):
        assert len(set(hashes(x=values))) == len(values)


def test_runs_of_older_versions_are_only_comparable_without_floating_point_inputs() -> None:
    old, new = {"hash_format": None}, {"hash_format": HASH_FORMAT}
    floats, integers = [np.zeros(3)], [np.zeros(3, np.int8)]
    assert [are_comparable(*each) for each in ((old, floats), (old, integers), (new, floats))] == [False, True, True]


def test_hashes_depend_on_all_inputs_and_their_shapes() -> None:
    a, b = np.array([1.0, 1.0, 2.0, 1.0]), np.array([5, 6, 5, 5], np.int8)
    first, other_b, other_a, again = hashes(a=a, b=b)
    assert first == again
    assert len({first, other_b, other_a}) == 3
    assert hashes(a=a, b=a[::-1])[1:3] != hashes(a=a[::-1], b=a)[1:3]
    numbers = np.arange(16.0)
    shapes: list[tuple[int, ...]] = [(1, 16), (1, 4, 4), (1, 2, 8), (1, 16, 1)]
    assert len({hashes(x=numbers.reshape(shape))[0] for shape in shapes}) == 4
    assert len({*hashes(x=np.zeros(1)), *hashes(x=np.zeros(1, int)), *hashes(x=np.zeros((1, 2)))}) == 3


def test_hashes_do_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"x": np.random.default_rng(0).normal(size=(10, 3)), "y": np.arange(10), "z": np.zeros((10, 0))}
    at_once = hashes(**columns)
    for numbers in (1, 12, 39):
        monkeypatch.setattr(engine.datasets.overlap, "NUMBERS_PER_CHUNK", numbers)
        assert hashes(**columns) == at_once
    assert hashes(x=np.zeros((0, 3))) == []


def test_examples_are_unseen_if_their_hash_is_not_among_those_of_training() -> None:
    train, new = np.array([3, 1, 2**64 - 1, 1], np.uint64), np.array([1, 4, 2**64 - 1, 2**64 - 2], np.uint64)
    assert unseen(train, new).tolist() == [False, True, False, True]
    assert unseen(train[:0], new).all()
    columns = {"x": np.arange(8).reshape(4, 2), "y": np.arange(4)}
    assert {name: column.tolist() for name, column in select(columns, unseen(train, new)).items()} == {
        "x": [[2, 3], [6, 7]],
        "y": [1, 3],
    }


def test_hashes_are_the_same_on_every_machine_and_in_every_version() -> None:
    """An evaluation compares hashes with those that another version of the program may have written."""
    content = b"[('int', (2,)), ('float', ())]" + struct.pack("<qqd", 1, -1, 0.5)
    expected = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    assert hashes(k=np.array([[1, -1]], np.int8), x=np.array([0.5])) == [expected]


def test_damage_of_the_file_is_detected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, values = tmp_path / "train_inputs.npy", np.array([1, 2**63, 2**64 - 1], np.uint64)
    save_hashes(tmp_path, values)
    assert [file.name for file in tmp_path.iterdir()] == ["train_inputs.npy"]
    for loaded in (load_hashes(tmp_path), np.load(path)):
        assert loaded is not None
        assert loaded.dtype == np.uint64
        np.testing.assert_array_equal(loaded, values)
    assert capsys.readouterr() == ("", "")
    content = path.read_bytes()
    for damaged in (content[:-70], content[:100], b"", content.replace(b"\x80", b"\x81")):
        path.write_bytes(damaged)
        assert load_hashes(tmp_path) is None
        assert capsys.readouterr().err == f"warning: {path} is damaged: {UNKNOWN}\n"
    path.unlink()
    assert load_hashes(tmp_path) is None
    assert capsys.readouterr() == (f"there is no {path}: {UNKNOWN}\n", "")


# ---------------------------------------------------------------------------------------------------------------- runs


def test_metrics_on_unseen_examples_match_a_direct_calculation(
    toy_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy_in_process(*REPEATED, "--run-name", "r") == 0
    results = read(RUN, "results.json")
    config = parsed(*REPEATED)
    new = ~is_seen(config)
    assert (results["n_test"], results["n_unseen"]) == (50, int(new.sum()))
    assert 0 < new.sum() < 50
    with np.load(RUN / "predictions.npz") as arrays:
        targets = arrays["targets"][new]
        rows = {"network": arrays["predictions"][new], "mean": arrays["baseline_mean"][new]}
    found = {"network": results["test_unseen"], **results["baselines_unseen"]}
    assert list(found) == ["network", "mean"]
    for name, predictions in rows.items():
        errors = predictions - targets
        assert found[name]["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-12)
        assert found[name]["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-12)
        r2 = 1 - (errors**2).sum() / ((targets - targets.mean()) ** 2).sum()
        assert found[name]["r2"] == pytest.approx(r2, rel=1e-12)
        assert found[name]["loss"] > 0
    assert results["test_unseen"]["mae"] != results["test"]["mae"]
    shown = capsys.readouterr().out
    assert f"The inputs of {50 - new.sum()} of the 50 test examples also occur in training. Without these:" in shown
    last_table = shown[shown.index(f"| on {new.sum()} test examples") :]
    assert f"{results['test_unseen']['mae']:.4g}" in last_table
    assert f"{results['baselines_unseen']['mean']['mae']:.4g}" in last_table


def test_without_repeated_examples_both_metrics_are_equal_and_there_is_one_table(toy_run: Path) -> None:
    results = read(toy_run, "results.json")
    assert (results["n_test"], results["n_unseen"]) == (50, 50)
    assert results["test_unseen"] == results["test"]
    assert results["baselines_unseen"] == results["baselines"]
    output = (toy_run.parent.parent / "stdout.txt").read_text(encoding="utf-8")
    assert output.count("| mean") == 1
    assert "occur in training" not in output
    assert len(set(np.load(toy_run / "train_inputs.npy").tolist())) == 200


def test_without_unseen_examples_there_are_no_metrics_on_them(
    toy_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy_in_process(*DEBUG, "--dimension", "1", "--rounds", "0", "--run-name", "r") == 0
    results = read(RUN, "results.json")
    assert (results["n_test"], results["n_unseen"]) == (50, 0)
    assert (results["test_unseen"], results["baselines_unseen"]) == (None, None)
    shown = capsys.readouterr()
    assert shown.out.count("| mean") == 1
    assert "The inputs of 50 of the 50 test examples also occur in training.\n" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    "error", [ProblemError("one class"), ValueError("one\nclass"), ZeroDivisionError("one class"), float("nan")]
)
def test_a_metric_that_fails_on_the_unseen_examples_does_not_stop_the_run(
    error: Exception | float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Strict(ToyProblem):
        def metrics(self, config: ToyConfig, columns: Columns, predictions: Array, targets: Array) -> dict[str, float]:
            metrics = super().metrics(config, columns, predictions, targets)
            if len(targets) == 50:
                return metrics
            if isinstance(error, Exception):
                raise error
            return metrics | {"mae": error}

    monkeypatch.chdir(tmp_path)
    config = parsed(*REPEATED)
    main.run(Strict(), config, RUN)
    results = read(RUN, "results.json")
    assert 0 < results["n_unseen"] < results["n_test"]
    assert (results["test_unseen"], results["baselines_unseen"]) == (None, None)
    assert results["test"]["mae"] > 0
    assert read(RUN, "run_info.json")["status"] == "finished"
    warning = capsys.readouterr().err
    reason = r"one\\?n?.?class" if isinstance(error, Exception) else "metrics of the network: mae is nan: .*"
    assert re.fullmatch(rf"warning: no metrics for the \d+ examples that do not occur in training: {reason}\n", warning)


def test_a_resumed_run_has_the_same_bytes_even_if_an_older_version_started_it(toy_in_process: Run) -> None:
    assert toy_in_process(*REPEATED, "--run-name", "r") == 0
    names = ("results.json", "train_inputs.npy")
    before = [(RUN / name).read_bytes() for name in names]
    (RUN / "train_inputs.npy").unlink()
    info = RUN / "run_info.json"
    info.write_text(info.read_text(encoding="utf-8").replace('"finished"', '"running"'), encoding="utf-8", newline="\n")
    assert toy_in_process("--resume", "r") == 0
    assert [(RUN / name).read_bytes() for name in names] == before


@pytest.mark.slow
def test_two_processes_find_the_same_examples(tmp_path: Path) -> None:
    assert run_command(*REPEATED, "--run-name", "one", cwd=tmp_path).returncode == 0
    done = run_ranks(2, *REPEATED, "--run-name", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("also occur in training") == 1
    one, two = (tmp_path / "checkpoints" / name for name in ("one", "two"))
    assert (one / "train_inputs.npy").read_bytes() == (two / "train_inputs.npy").read_bytes()
    assert read(one, "results.json")["n_unseen"] == read(two, "results.json")["n_unseen"] < 50


# --------------------------------------------------------------------------------------------------------- evaluations


def evaluated(line: str) -> dict[str, Any]:
    """Run an evaluation, and return its result, which is also in its file."""
    request = parse_args(line.split())
    result = evaluate_run(request)
    assert read(request.folder / "evaluations", f"{request.name}.json") == result
    return result


@pytest.fixture
def beside_a_run(toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a copy of the run `first`, in which no test example occurs in training."""
    shutil.copytree(toy_run.parent.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("beside_a_run")
def test_the_training_data_of_a_run_are_found_in_any_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    train = get_splits(PROBLEM, CONFIG)[0].train
    columns: dict[str, Any] = {name: column.astype(np.float64) for name, column in train.items()}
    np.savez("train.npz", **columns)
    result = evaluated("first --data train.npz")
    assert (result["n"], result["n_unseen"], result["metrics_unseen"]) == (200, 0, None)
    assert capsys.readouterr().err == (
        "warning: the inputs of 200 of these 200 examples also occur in the training data\n"
    )


@pytest.mark.usefixtures("beside_a_run")
def test_unseen_examples_of_a_file_are_evaluated_separately(capsys: pytest.CaptureFixture[str]) -> None:
    save_data(PROBLEM, CONFIG, Path("all.npz"))
    result = evaluated("first --data all.npz")
    assert (result["n"], result["n_unseen"]) == (300, 100)
    splits, _ = get_splits(PROBLEM, CONFIG)
    unseen_columns: dict[str, Any] = {
        name: np.concatenate([splits.val[name], splits.test[name]]) for name in splits.val
    }
    np.savez("unseen.npz", **unseen_columns)
    expected = evaluated("first --data unseen.npz --name unseen")
    assert result["metrics_unseen"] == pytest.approx(expected["metrics"], rel=1e-6)
    assert expected["metrics_unseen"] == expected["metrics"]
    line = capsys.readouterr().err
    assert line.startswith("warning: the inputs of 200 of these 300 examples also occur in the training data")
    assert "; the other 100: loss " in line
    assert f", mae {result['metrics_unseen']['mae']:.4g}, " in line
    assert line.count("\n") == 1


@pytest.mark.usefixtures("beside_a_run")
def test_new_data_are_unseen(capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated("first --num-test 60")
    assert (result["n"], result["n_unseen"]) == (60, 60)
    assert result["metrics_unseen"] == result["metrics"]
    assert "occur" not in capsys.readouterr().out
    # With the seed of the run, the first examples are those of its test split.
    assert evaluated("first --num-test 50 --seed 42 --name test")["n_unseen"] == 50


@pytest.mark.usefixtures("beside_a_run")
@pytest.mark.parametrize("damage", [None, b"", b"\x93NUMPY"])
def test_a_run_without_its_training_inputs_is_evaluated(
    damage: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("checkpoints/first/train_inputs.npy")
    path.unlink() if damage is None else path.write_bytes(damage)
    result = evaluated("first --num-test 60")
    assert (result["n_unseen"], result["metrics_unseen"]) == (None, None)
    assert result["metrics"]["mae"] > 0
    shown = capsys.readouterr()
    assert shown.out.count(UNKNOWN) == (damage is None)
    assert shown.err == ("" if damage is None else f"warning: {path} is damaged: {UNKNOWN}\n")
