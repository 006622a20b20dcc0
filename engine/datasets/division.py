# Machinery: keep, and skip at first.
"""Divide the examples of a file into splits: at random, with whole groups, by a limit, or for cross-validation.

A division only depends on the file, the options and the seed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

from engine.interface.base_config import DataConfig
from engine.interface.base_problem import Columns
from engine.machine.errors import BadRequestError
from engine.machine.terminal import print_line

Indices = NDArray[np.integer]


class Division(NamedTuple):
    """The indices of the examples in each split."""

    train: Indices
    val: Indices
    test: Indices
    calibration: Indices


def divide(n: int, others: Columns, config: DataConfig, seed: int) -> Division:
    """Divide n examples into splits of the sizes in the config. No example is in two splits.

    If the size of the validation or test split is None, it is 10 % of the examples. If the size of the training split
    is None, it gets all remaining examples. With `config.group`, examples with equal values of that column stay
    together, so that the sizes are not exactly those in the config. If limits or folds choose the test, 10 % are a
    fraction of the examples that remain.

    Args:
        others: the columns that the config names for groups and limits, each (n,).

    Raises:
        BadRequestError: there are too few examples or groups.
    """
    groups = None if config.group is None else np.unique(others[config.group], return_inverse=True)[1]
    n_units = n if groups is None else int(groups.max()) + 1  # units are examples, or groups of them
    weights = np.ones(n_units, dtype=np.int64) if groups is None else np.bincount(groups)
    order = default_rng(seed).permutation(n_units)
    is_test = _chosen_for_test(others, config, order, weights, groups)
    pool = order if is_test is None else order[~is_test[order]]
    if config.fold is not None:  # the networks of a cross-validation do not share their validation examples
        pool = default_rng([seed, config.fold]).permutation(pool)
    sizes = _sizes(config, n_examples=int(weights[pool].sum()), is_test_chosen=is_test is not None)
    parts = _parts(pool, sizes, None if groups is None else weights)
    if is_test is not None:
        test = order[is_test[order]]
        parts.insert(2, test if groups is not None or config.folds is not None else test[: config.num_test])
    if groups is None:
        return Division(*parts)
    _require_groups(config, parts, n_units)
    shares = ", ".join(
        f"{len(part)} for {name}" for name, part in zip(Division._fields, parts, strict=True) if len(part)
    )
    print_line(f"groups by {config.group}: {shares}")
    return Division(*(np.flatnonzero(np.isin(groups, part)) for part in parts))


def _chosen_for_test(
    others: Columns, config: DataConfig, order: Indices, weights: Indices, groups: Indices | None
) -> NDArray[np.bool_] | None:
    """Whether each unit is in the test, (units,), if limits or folds decide it. None: any unit may be."""
    if config.folds is not None:
        if config.fold is None:
            raise BadRequestError(
                f"--folds {config.folds}: give --fold with the number of the part to test, or use sweep.py, which "
                "tests all of them"
            )
        if config.folds > len(order):
            kind = "examples" if groups is None else f"values of {config.group}"
            raise BadRequestError(f"--folds {config.folds}: the file has {len(order)} {kind}: give at most as many")
        return np.asarray(_folds(order, weights, config.folds) == config.fold - 1)
    if config.test_above is None and config.test_below is None:
        return None
    is_outside = np.zeros(int(weights.sum()), dtype=bool)
    given = []
    for flag, limit, sign in (("--test-above", config.test_above, 1), ("--test-below", config.test_below, -1)):
        if limit is not None:
            values = others[limit[0]]
            if values.dtype.kind not in "biuf":
                raise BadRequestError(f"{flag} {' '.join(limit)}: {limit[0]} is text: name a column of numbers")
            is_outside |= sign * values > sign * float(limit[1])
            given.append(f"{flag} {' '.join(limit)} ({limit[0]} is from {values.min():g} to {values.max():g})")
    if is_outside.all() or not is_outside.any():
        share = "all examples are" if is_outside.all() else "no example is"
        raise BadRequestError(f"{' and '.join(given)}: {share} beyond: give another value")
    if groups is None:
        return is_outside
    n_outside = np.bincount(groups, weights=is_outside)
    if (both := np.flatnonzero((n_outside > 0) & (n_outside < weights))).size:
        example = others[str(config.group)][groups == both[0]][0]
        raise BadRequestError(f"{' and '.join(given)}: {config.group} {example} has examples on both sides: drop one")
    return np.asarray(n_outside > 0)


def _folds(order: Indices, weights: Indices, n: int) -> Indices:
    """The fold of each unit, (units,). The largest groups come first, each into the fold with the fewest examples."""
    folds = np.empty(len(order), dtype=np.int64)
    if (weights == 1).all():
        folds[order] = np.arange(len(order)) % n
        return folds
    loads = np.zeros(n)
    for unit in order[np.argsort(-weights[order], kind="stable")]:
        folds[unit] = loads.argmin()
        loads[folds[unit]] += weights[unit]
    return folds


def _sizes(config: DataConfig, n_examples: int, *, is_test_chosen: bool) -> list[int | None]:
    """The numbers of examples for training, validation, the test unless it is chosen, and calibration. None: the rest.

    Raises:
        BadRequestError: there are fewer examples.
    """
    tenth = max(1, n_examples // 10)
    others = [tenth if config.num_val is None else config.num_val]
    if not is_test_chosen:
        others.append(tenth if config.num_test is None else config.num_test)
    others.append(config.num_calibration or 0)
    if (requested := (config.num_train or 1) + sum(others)) > n_examples:
        where = " outside of the test" if is_test_chosen else ""
        names = ["--num-train", "--num-val", *([] if is_test_chosen else ["--num-test"])]
        names += ["--num-calibration"] if config.num_calibration else []
        raise BadRequestError(
            f"--data {config.file} has {n_examples:,} examples{where}, and {requested:,} are requested: lower "
            f"{', '.join(names[:-1])} or {names[-1]}"
        )
    return [config.num_train, *others]


def _parts(order: Indices, sizes: Sequence[int | None], weights: Indices | None) -> list[Indices]:
    """Divide units, in this order, into parts with these numbers of examples or, with weights, at most as many.

    A part is larger if even the smallest unit is. Every part gets a unit if there are enough of them.
    """
    if weights is None:
        others = sum(size for size in sizes[1:] if size is not None)
        ends = np.cumsum([len(order) - others if sizes[0] is None else sizes[0], *sizes[1:]])
        return np.split(order[: ends[-1]], ends[:-1])
    parts, n_others = [], sum(size != 0 for size in sizes)
    for size in [*sizes[1:], sizes[0]]:  # what is left is for training
        chosen: list[int] = []
        total = 0
        n_others -= size != 0
        for unit in order:
            if (size is None or total + weights[unit] <= size) and len(chosen) < len(order) - n_others:
                chosen.append(unit)
                total += weights[unit]
        if size != 0 and not chosen and len(order):
            chosen = [order[weights[order].argmin()]]
        parts.append(np.array(chosen, dtype=np.int64))
        order = order[~np.isin(order, chosen)]
    return [parts[-1], *parts[:-1]]


def _require_groups(config: DataConfig, parts: Sequence[Indices], n_groups: int) -> None:
    """Raise BadRequestError if a split that is needed has no group."""
    needed = [*parts[:3], *([parts[3]] if config.num_calibration else [])]
    if any(len(part) == 0 for part in needed):
        raise BadRequestError(
            f"--group {config.group}: it has {n_groups} values, which are too few for {len(needed)} splits: give a "
            "column with more values, or smaller splits"
        )
