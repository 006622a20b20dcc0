# Machinery: keep, and skip at first.
"""Intervals around predictions, from the errors of a network on calibration examples (split conformal prediction).

The calibration examples chose nothing: neither the weights nor the best epoch. If a new example comes from the same
distribution, its target is in the interval with the chosen probability or slightly more, whatever the network is (Lei
et al. 2018, J. Am. Stat. Assoc. 113, 1094). This holds for all new examples together, not for each of them.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.interface.returned_values import PREDICTED
from engine.machine.errors import BadRequestError

CALIBRATION = "calibration"  # the name of the arrays in the folder of a run
LEVEL = 0.9  # of the intervals whose coverage is measured on the test split

Arrays = Mapping[str, NDArray[Any]]


def interval(calibration: Arrays, new: Arrays, level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of the intervals that contain new targets with probability `level`: each (N, ...), in physical units.

    They have the same width everywhere or, if the network predicts a standard deviation, are proportional to it.

    Args:
        calibration: `targets` and `predictions` of the calibration examples, (n, ...), and perhaps `predicted_std`.
        new: the same for new examples, without `targets`.

    Raises:
        BadRequestError: there are too few calibration examples, or the target is not a quantity.
    """
    targets, predictions = calibration["targets"], calibration["predictions"]
    is_class = targets.dtype.kind != "f" or bool(((targets == 0) | (targets == 1)).all())
    if is_class or targets.shape != predictions.shape:
        raise BadRequestError("--interval: the target is a class, which has no interval: leave it out")
    scale, new_scale = calibration.get(f"{PREDICTED}std"), new.get(f"{PREDICTED}std")
    errors = np.abs(targets - predictions) / (1.0 if scale is None else scale)
    half = smallest_that_covers(errors, level) * (1.0 if new_scale is None else new_scale)
    return np.asarray(new["predictions"] - half), np.asarray(new["predictions"] + half)


def smallest_that_covers(errors: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """The k-th smallest of n errors, with k = (n + 1) level, rounded up: (n, ...) -> (...).

    A further error from the same distribution is at most as large with probability k / (n + 1).
    """
    n = len(errors)
    k = math.ceil((n + 1) * level - 1e-9)
    if k > n:
        raise BadRequestError(
            f"--interval {level:g}: needs at least {math.ceil(level / (1 - level) - 1e-9)} calibration examples, and "
            f"there are {n}: raise --num-calibration, or lower the level"
        )
    return np.asarray(np.sort(errors, axis=0)[k - 1])


def coverage(calibration: Arrays, test: Arrays) -> dict[str, float]:
    """The fraction of test targets in intervals of the level LEVEL, as a metric. Empty if there are no intervals.

    Targets of several components have an interval for each of them.
    """
    try:
        low, high = interval(calibration, test, LEVEL)
    except BadRequestError:
        return {}
    inside = (low <= test["targets"]) & (test["targets"] <= high)
    return {f"coverage_{100 * LEVEL:.0f}": float(inside.mean())}
