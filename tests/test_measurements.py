"""Observables and classifiers of the experiments, in cases where results and errors are known."""

from typing import Any

import numpy as np
import pytest

from engine.overlap import select
from experiments import critical_temperature, label_shift
from experiments.classifiers import between, log_odds, relabelled
from experiments.common import case_seed
from ising import exact, lattice, statistics
from ising.exact import T_CRITICAL


def row_of_normal_variables(n: int, seed: int) -> dict[str, Any]:
    """The moments of n normally distributed magnetisations of unit variance: <m^2> = 1 and U_4 = 0."""
    m = np.random.default_rng(seed).standard_normal(n)
    moments = np.stack([m**2, m**4])
    covariance = (np.cov(moments) / n).tolist()
    return {"case": ["sample", 8, 2.0, n], "means": moments.mean(axis=1).tolist(), "covariance": covariance}


def test_the_covariance_of_the_observables_is_their_scatter_between_samples() -> None:
    n = 2000
    data = critical_temperature.measurements([row_of_normal_variables(n, seed) for seed in range(1000)])
    # To first order, U_4 is the mean of -(m^4 / 3 - 2 m^2 + 1), which has variance 8 / 3. The variance of m^2 is 2. For
    # normal variables, their covariance is -(15 - 3) / 3 + 2 (3 - 1) = 0.
    expected = np.array([[8 / 3, 0], [0, 2]])
    for covariance in (np.cov(data.values.T), data.covariances.mean(axis=0)):
        np.testing.assert_allclose(covariance * n, expected, atol=0.35)
    assert abs(data.values[:, 0].mean()) < 5 / n  # the bias, about -3.5 / n, is much smaller than the error
    assert data.values[:, 1].mean() == pytest.approx(1, abs=4 * np.sqrt(2 / (1000 * n)))


def test_near_tc_the_covariance_is_the_scatter_between_samples() -> None:
    rows = [
        {"case": ["sample", 8, T_CRITICAL, n], **critical_temperature.sample(8, T_CRITICAL, n)}
        for n in range(1000, 1200)  # n is part of the seed
    ]
    data = critical_temperature.measurements(rows)
    propagated = data.covariances.mean(axis=0)
    np.testing.assert_allclose(
        np.cov(data.values.T) / propagated, np.ones((2, 2)), atol=0.45
    )  # 4 standard errors of 200 samples
    assert propagated[0, 1] / np.sqrt(propagated[0, 0] * propagated[1, 1]) > 0.8


def test_the_pilot_finds_the_temperature_of_a_binder_cumulant() -> None:
    for edge in critical_temperature.EDGES:
        temperature = critical_temperature.explore(8, edge, 2000)["temperature"]
        m = lattice.magnetization(exact.sample(8, temperature, 20_000, seed=1))
        assert statistics.binder_cumulant(m) == pytest.approx(edge, abs=0.03)


def test_labels_move_and_spins_do_not() -> None:
    columns = {"spins": np.ones((2, 4, 4), np.int8), "temperatures": np.array([2.25, 2.35])}
    moved = relabelled(columns, 0.1)
    np.testing.assert_allclose(moved["temperatures"] < T_CRITICAL, [True, True])  # both are below T_c + 0.1
    np.testing.assert_array_equal(moved["spins"], columns["spins"])


def test_every_case_has_its_own_test_configurations() -> None:
    cases = [(name, 1.0, shift, 8, seed) for name in ("cnn", "bayes") for shift in (0.0, 0.1) for seed in (1, 2, 3)]
    seeds = {case_seed(*case) for case in cases}
    assert len(seeds | {seed + 1 for seed in seeds}) == 2 * len(cases)
    one, two = (between(2.0, 2.5, 4, seed, num_test=50).test["spins"] for seed in sorted(seeds)[:2])
    assert not np.array_equal(one, two)


def test_errors_of_probabilities_are_the_scatter_between_test_sets() -> None:
    # P(T) of logistic regression falls within a bin, which must not count as noise.
    splits = between(1.8, 2.8, 8, 1, num_train=2000, num_val=10)
    curves = []
    for seed in range(60):
        test = between(2.0, 2.6, 8, 100 + seed, num_test=2000).test
        curves.append(label_shift.binned(test["temperatures"], log_odds("magnetization", 1, splits, test)))
    p, error = (np.array([[*curve[key]] for curve in curves]) for key in ("p", "error"))
    # The mean temperature of a bin differs between test sets. Correct P(T) for this with its slope.
    t = np.array([curve["t"] for curve in curves])
    slopes = np.gradient(p.mean(axis=0), t.mean(axis=0))
    scatter = (p - slopes * (t - t.mean(axis=0))).std(axis=0, ddof=1)
    assert np.mean(scatter / error.mean(axis=0)) == pytest.approx(1, abs=4 * np.sqrt(1 / (2 * 60 * 20)))


def test_classifiers_away_from_tc_see_no_configuration_near_it() -> None:
    splits = between(1.2, 3.4, 4, 5, num_train=500)
    far = label_shift.away_from_tc(splits.train)
    assert 0 < len(far["spins"]) < 500
    assert not ((far["temperatures"] >= 1.8) & (far["temperatures"] <= 2.8)).any()
    np.testing.assert_array_equal(
        far["spins"], select(splits.train, np.isin(splits.train["temperatures"], far["temperatures"]))["spins"]
    )
