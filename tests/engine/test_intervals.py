"""Split-conformal intervals: their ends, and how often they contain the target."""

import numpy as np
import pytest
from numpy.random import default_rng

from engine.learning.intervals import coverage, interval, smallest_that_covers
from engine.machine.errors import BadRequestError


@pytest.mark.parametrize(("level", "expected"), [(0.9, 9.0), (0.5, 5.0), (0.05, 1.0), (0.85, 9.0)])
def test_the_error_of_the_right_rank_is_chosen(level: float, expected: float) -> None:
    errors = default_rng(0).permutation(np.arange(1.0, 10.0))  # 1 ... 9, so that ranks are k = 10 level
    assert smallest_that_covers(errors, level) == expected


def test_too_few_calibration_examples_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(
        BadRequestError, match=r"--interval 0\.9: needs at least 9 calibration examples, and there are 8"
    ):
        smallest_that_covers(np.arange(8.0), 0.9)
    with pytest.raises(BadRequestError, match="needs at least 99 "):
        smallest_that_covers(np.arange(98.0), 0.99)


def test_the_interval_is_around_the_prediction_and_as_wide_as_the_predicted_deviation() -> None:
    calibration = {"targets": np.arange(9.0), "predictions": np.zeros(9)}
    low, high = interval(calibration, {"predictions": np.array([10.0, 20.0])}, 0.8)  # the eighth error is 7
    assert (low.tolist(), high.tolist()) == ([3.0, 13.0], [17.0, 27.0])
    scaled = {**calibration, "predicted_std": np.full(9, 2.0)}
    low, high = interval(scaled, {"predictions": np.zeros(2), "predicted_std": np.array([2.0, 4.0])}, 0.8)
    assert high.tolist() == [7.0, 14.0]
    assert low.tolist() == [-7.0, -14.0]


def test_components_have_intervals_of_their_own() -> None:
    targets = np.stack([np.arange(9.0), 100 * np.arange(9.0)], axis=1)
    low, high = interval({"targets": targets, "predictions": 0 * targets}, {"predictions": np.zeros((1, 2))}, 0.9)
    assert (low.tolist(), high.tolist()) == ([[-8.0, -800.0]], [[8.0, 800.0]])


def test_classes_have_no_intervals() -> None:
    """Also if two classes are the numbers 0.0 and 1.0, and predictions are log-odds."""
    numbers = {"targets": np.arange(20) % 3, "predictions": np.arange(20) % 3}
    log_odds = {"targets": np.arange(20.0) % 2, "predictions": np.linspace(-5, 5, 20)}
    for classes in (numbers, log_odds):
        with pytest.raises(BadRequestError, match="the target is a class, which has no interval"):
            interval(classes, classes, 0.9)
        assert coverage(classes, classes) == {}


@pytest.mark.parametrize("n", [19, 100, 99])
def test_the_mean_coverage_is_the_one_that_follows_from_exchangeability(n: int) -> None:
    """It is exactly k / (n + 1) for continuous errors, whatever the network predicts: here, it ignores the inputs."""
    rng, found = default_rng(1), []
    for _ in range(2000):
        targets = rng.standard_t(3, n + 50) + rng.uniform(0, 5, n + 50)
        calibration = {"targets": targets[:n], "predictions": np.zeros(n)}
        found.append(coverage(calibration, {"targets": targets[n:], "predictions": np.zeros(50)})["coverage_90"])
    expected = np.ceil((n + 1) * 0.9) / (n + 1)
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - expected) < 4 * error  # 4 standard errors, at a fixed seed
    assert error < 0.002
