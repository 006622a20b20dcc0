"""How the examples of a file are divided into splits."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.datasets.division import Division, divide
from engine.interface.base_config import DataConfig
from engine.machine.errors import BadRequestError


def parts_of(n: int, seed: int = 0, others: Any = None, **options: Any) -> Division:
    division = divide(n, others or {}, DataConfig(file="f.npz", **options), seed)
    together = np.concatenate(division)
    assert len(np.unique(together)) == len(together)  # no example is in two splits
    assert together.min(initial=0) >= 0
    assert together.max(initial=0) < n
    return division


def as_lists(division: Division) -> list[list[int]]:
    return [part.tolist() for part in division]


# ----------------------------------------------------------------------------------------------------------- at random


def test_the_division_is_random_and_a_function_of_the_seed() -> None:
    options = {"num_train": 600, "num_val": 200, "num_test": 100}
    division = parts_of(1000, 3, **options)
    assert [len(part) for part in division] == [600, 200, 100, 0]
    for part in division[:3]:
        assert part.mean() == pytest.approx(500, abs=100)  # from all parts of the file
    assert as_lists(parts_of(1000, 3, **options)) == as_lists(division)
    assert as_lists(parts_of(1000, 4, **options)) != as_lists(division)


def test_old_runs_keep_their_division() -> None:
    assert as_lists(parts_of(10)) == [[4, 6, 2, 7, 3, 5, 9, 0], [8], [1], []]  # as in all earlier versions


@pytest.mark.parametrize(
    ("n", "given", "sizes"),
    [
        (1000, (None, None, None), [800, 100, 100]),
        (109, (None, None, None), [89, 10, 10]),
        (9, (None, None, None), [7, 1, 1]),
        (3, (None, None, None), [1, 1, 1]),
        (100, (50, None, None), [50, 10, 10]),
        (100, (None, 30, None), [60, 30, 10]),
        (100, (None, None, 30), [60, 10, 30]),
        (100, (None, 40, 59), [1, 40, 59]),
        (10, (8, 1, 1), [8, 1, 1]),
    ],
)
def test_sizes_that_are_not_given_are_a_tenth_and_the_rest(
    n: int, given: tuple[int | None, ...], sizes: list[int]
) -> None:
    division = parts_of(n, num_train=given[0], num_val=given[1], num_test=given[2])
    assert [len(part) for part in division[:3]] == sizes


def test_calibration_examples_come_from_training_and_leave_the_test_as_it_is() -> None:
    without, with_some = parts_of(100, num_train=60), parts_of(100, num_train=60, num_calibration=15)
    assert as_lists(with_some)[:3] == as_lists(without)[:3]
    assert len(with_some.calibration) == 15
    assert len(parts_of(100, num_calibration=15).train) == 65


@pytest.mark.parametrize(
    ("n", "options", "requested", "advice"),
    [
        (10, {"num_train": 9, "num_val": 1, "num_test": 1}, 11, "lower --num-train, --num-val or --num-test"),
        (2, {}, 3, "lower --num-train"),
        (100, {"num_val": 50, "num_test": 50}, 101, "lower --num-train"),
        (100, {"num_calibration": 90}, 111, "lower --num-train, --num-val, --num-test or --num-calibration"),
    ],
)
def test_a_request_for_too_many_examples_is_refused(n: int, options: Any, requested: int, advice: str) -> None:
    with pytest.raises(BadRequestError, match=rf"f\.npz has {n} examples, and {requested} are requested: {advice}"):
        parts_of(n, **options)


# -------------------------------------------------------------------------------------------------------------- groups


def groups_in(division: Division, groups: NDArray[Any]) -> list[set[Any]]:
    return [set(groups[part].tolist()) for part in division if len(part)]


@pytest.mark.parametrize("kind", [str, float, int])
@pytest.mark.parametrize("options", [{}, {"num_calibration": 15}, {"folds": 5, "fold": 2}])
def test_a_group_is_in_one_split(kind: type, options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(5)
    groups: NDArray[Any] = rng.integers(0, 40, 400).astype(kind)
    for seed in range(5):
        division = parts_of(400, seed, {"chain": groups}, group="chain", **options)
        found = groups_in(division, groups)
        assert sum(map(len, found)) == len(set.union(*found)) == 40
        assert sum(map(len, division)) == 400
        if "folds" not in options:
            assert len(division.test) == pytest.approx(40, abs=12)
            assert len(division.val) == pytest.approx(40, abs=12)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith(
        f"groups by chain: {len(found[0])} for train, {len(found[1])} for val, {len(found[2])} for"
    )


def test_a_large_group_is_used_for_training() -> None:
    groups = np.repeat([0, 1, 2], [900, 50, 50])
    for seed in range(10):
        assert 0 in groups[parts_of(1000, seed, {"g": groups}, group="g").train]


@pytest.mark.parametrize(
    ("groups", "options"),
    [
        ([1, 1, 1, 1], {}),
        ([1, 1, 2, 2], {}),
        ([1, 1, 2, 3], {"num_calibration": 1}),
    ],
)
def test_too_few_groups_are_refused(groups: list[int], options: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError, match=r"--group g: it has \d values, which are too few for [34] splits"):
        parts_of(4, 0, {"g": np.array(groups)}, group="g", **options)


# -------------------------------------------------------------------------------------------------------------- limits


def test_the_test_has_all_examples_beyond_a_limit() -> None:
    x = np.arange(100.0)[::-1]
    above = parts_of(100, 0, {"x": x}, test_above=("x", "79"))
    assert set(x[above.test]) == set(range(80, 100))
    assert [len(part) for part in above] == [72, 8, 20, 0]
    both = parts_of(100, 0, {"x": x}, test_above=("x", "89.5"), test_below=("x", "1e1"))
    assert set(x[both.test]) == {*range(10), *range(90, 100)}
    assert len(parts_of(100, 0, {"x": x}, test_above=("x", "79"), num_test=5).test) == 5


def test_a_limit_with_groups() -> None:
    x, groups = np.arange(100.0), np.repeat(np.arange(20), 5)
    division = parts_of(100, 0, {"x": x, "g": groups}, test_above=("x", "79"), group="g")
    assert groups_in(division, groups)[2] == {16, 17, 18, 19}
    assert len(groups_in(division, groups)[0]) == 15
    with pytest.raises(BadRequestError, match=r"--test-above x 77 .*: g 15 has examples on both sides: drop one"):
        parts_of(100, 0, {"x": x, "g": groups}, test_above=("x", "77"), group="g")


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"test_above": ("x", "99")}, r"--test-above x 99 \(x is from 0 to 99\): no example is beyond"),
        ({"test_below": ("x", "100")}, r"--test-below x 100 \(x is from 0 to 99\): all examples are beyond"),
        ({"test_above": ("name", "1")}, "--test-above name 1: name is text"),
        (
            {"test_above": ("x", "0")},
            "has 1 examples outside of the test, and 2 are requested: lower --num-train or --num-val",
        ),
    ],
)
def test_a_limit_that_leaves_no_split_is_refused(limit: dict[str, Any], message: str) -> None:
    others = {"x": np.arange(100.0), "name": np.array(["a"] * 100)}
    with pytest.raises(BadRequestError, match=message):
        parts_of(100, 0, others, **limit)


# --------------------------------------------------------------------------------------------------------------- folds


@pytest.mark.parametrize("group", [None, "g"])
def test_every_example_is_tested_once(group: str | None) -> None:
    groups = np.random.default_rng(1).integers(0, 23, 103)
    for seed in (0, 1):
        parts = [parts_of(103, seed, {"g": groups}, folds=4, fold=k, group=group) for k in (1, 2, 3, 4)]
        tests = [part.test for part in parts]
        assert sorted(np.concatenate(tests)) == list(range(103))
        assert all(abs(len(test) - 25.75) < 6 for test in tests)
        assert len({tuple(sorted(part.val)) for part in parts}) == 4  # also other examples for validation
    assert as_lists(parts_of(103, 0, folds=4, fold=1)) != as_lists(parts_of(103, 1, folds=4, fold=1))


def test_folds_have_equal_sizes_whatever_the_groups_are() -> None:
    groups = np.repeat(np.arange(7), [40, 20, 20, 40, 20, 20, 40])
    sizes = [len(parts_of(200, 2, {"g": groups}, folds=2, fold=k, group="g").test) for k in (1, 2)]
    assert sizes == [100, 100]


def test_folds_without_a_fold_or_with_too_few_examples_are_refused() -> None:
    with pytest.raises(
        BadRequestError, match="--folds 3: give --fold with the number of the part to test, or use sweep"
    ):
        parts_of(10, folds=3)
    with pytest.raises(BadRequestError, match="--folds 11: the file has 10 examples"):
        parts_of(10, folds=11, fold=1)
    with pytest.raises(BadRequestError, match="--folds 4: the file has 3 values of g"):
        parts_of(9, 0, {"g": np.arange(9) % 3}, folds=4, fold=1, group="g")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 3, "fold": 4}, "--fold 4: must be at most --folds 3"),
        ({"folds": 3, "test_above": ("x", "1")}, "--test-above and --folds both choose the test"),
        ({"test_below": ("x", "one")}, "--test-below x one: must be the name of a column and a number"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)
