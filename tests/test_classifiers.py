"""The analysis of confusion.py and extremes.py: ideal classifiers, peaks, thresholds and their limits."""

import numpy as np
import pytest
from numpy.polynomial import Polynomial

from experiments import confusion, extremes
from experiments.classifiers import best_thresholds
from ising import exact, lattice
from ising.exact import T_CRITICAL


def test_thresholds_make_as_few_errors_as_possible() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(6, size=50).astype(float)  # with ties
    above = rng.random((50, 20)) < (values[:, None] + np.arange(20) - 5) / 15
    thresholds, accuracies = best_thresholds(values, above)
    for k in range(20):
        all_accuracies = [((values > level) == above[:, k]).mean() for level in np.arange(-0.5, 6)]
        assert accuracies[k] == pytest.approx(max(all_accuracies))
        assert ((values > thresholds[k]) == above[:, k]).mean() == pytest.approx(accuracies[k])


def test_bayes_rule_at_8x8_is_that_of_the_density_of_states() -> None:
    low, high = 1.5, 3.5
    row = confusion.ideal(8, low, high)
    t = low + (high - low) * (np.arange(1000) + 0.5) / 1000
    _, p = exact.energy_distribution(t, 8)
    labels = confusion.trial_temperatures(low, high)
    expected = [np.maximum(p[t < label].sum(axis=0), p[t > label].sum(axis=0)).sum() / 1000 for label in labels]
    np.testing.assert_allclose(row["accuracies"], expected, atol=1e-9)
    assert row["peaks"]["the same, from the fit"] == confusion.peak(np.array(expected), low, high)
    fine = np.linspace(2.2, 2.4, 20_001)
    assert row["peaks"]["maximum of C / T²"] == pytest.approx(
        fine[(exact.kaufman(fine, 8)[1] / fine**2).argmax()], abs=0.001
    )


def test_errors_of_bayes_rule_are_those_of_a_thermometer() -> None:
    low, high = 1.8, 2.8  # far from the ends, the fraction of errors is sqrt(2 / pi) sigma / range
    labels = confusion.trial_temperatures(low, high)
    sigma = labels / (32 * np.sqrt(exact.kaufman(labels, 32)[1]))
    expected = np.sqrt(2 / np.pi) * sigma / (high - low)
    errors = 1 - np.array(confusion.ideal(32, low, high)["accuracies"])
    chosen = confusion.middle(labels, low, high)
    np.testing.assert_allclose(errors[chosen], expected[chosen], rtol=0.03)


def test_the_peak_of_a_w_and_the_extrapolation() -> None:
    labels = confusion.trial_temperatures(1, 4)
    w = 1 - 0.1 * np.exp(-(((labels - 1.4) / 0.3) ** 2)) - 0.1 * np.exp(-(((labels - 3.3) / 0.5) ** 2))
    top = labels[np.where(confusion.middle(labels, 1, 4), w, 0).argmax()]
    assert confusion.peak(w, 1, 4) == pytest.approx(top, abs=0.1)
    curve = Polynomial([1, 0, -3, 0.5])(labels - 2.4)
    assert confusion.peak(curve, 1, 4) == pytest.approx(2.4, abs=1e-3)
    sizes = np.array([32.0, 64, 128])
    t_c, error = confusion.extrapolate(sizes, 2.2 + 3 / sizes, np.full(3, 0.01))
    assert t_c == pytest.approx(2.2)
    assert error == pytest.approx(0.01 * np.sqrt(3 / 2))  # variance: sum x^2 / (3 sum x^2 - (sum x)^2)
    assert confusion.extrapolate(sizes, 2.2 + 3 / sizes**2, np.ones(3), 2.0)[0] == pytest.approx(2.2)


def test_the_error_of_a_mean_is_the_larger_one() -> None:
    rows = [{"peak": 2.0, "error": 0.3}, {"peak": 2.2, "error": 0.4}]
    assert confusion.combined(rows) == pytest.approx((2.1, 0.25))
    assert confusion.combined([{**row, "error": 0.01} for row in rows])[1] == pytest.approx(0.1)
    assert confusion.combined(rows[:1]) == (2.0, 0.3)


def test_extreme_configurations_are_ground_states_and_random_spins() -> None:
    columns = extremes.extremes(16, 1000, np.random.default_rng(0))
    is_cold = columns["temperatures"] < T_CRITICAL
    assert 400 < is_cold.sum() < 600
    m = lattice.magnetization(columns["spins"])
    assert set(m[is_cold]) == {-1, 1}
    assert np.abs(m[~is_cold]).max() < 5.5 / 16
    assert np.mean(m[~is_cold] ** 2) == pytest.approx(1 / 256, rel=0.35)


def test_thresholds_and_temperatures_of_the_infinite_lattice() -> None:
    for t in (1.5, 2.0, 2.26):
        assert extremes.temperature_of("m", float(exact.yang_magnetization(t))) == pytest.approx(t)
    assert extremes.temperature_of("m", 0.5) == pytest.approx(T_CRITICAL - 0.5**8 / 2.2, abs=1e-4)
    for t in (1.5, 2.5, 4.0):
        assert extremes.temperature_of("e", -float(exact.onsager_energy(t))) == pytest.approx(t)


def test_the_crossing_and_the_threshold_of_a_known_curve() -> None:
    rng = np.random.default_rng(0)
    t = rng.uniform(2, 3, 4000)
    values = 2.4 - t + 0.1 * rng.standard_normal(4000)
    assert extremes.crossing(t, 1 / (1 + np.exp(8 * (t - 2.4)))) == pytest.approx(2.4, abs=0.01)
    found = extremes.threshold(values, values > 0.1, t)
    assert found["value"] == pytest.approx(0.1, abs=0.01)
    assert found["agreement"] == 1
    assert found["crossing"] == pytest.approx(2.3, abs=0.03)
