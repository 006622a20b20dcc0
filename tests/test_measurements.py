"""Observables and classifiers of the experiments, in cases where results and errors are known."""

import numpy as np
import pytest

from engine.datasets.overlap import select
from experiments import critical_temperature, label_shift
from experiments.classifiers import between, log_odds, relabelled
from experiments.common import case_seed
from ising import exact, lattice, statistics
from ising.exact import T_CRITICAL


def test_near_tc_the_covariance_is_the_scatter_between_samples() -> None:
    steps = range(20, 40)  # the number of steps is part of the seed
    data = critical_temperature.measurements(
        [{"case": ["sample", 8, T_CRITICAL, n], **critical_temperature.sample(8, T_CRITICAL, n)} for n in steps]
    )
    whitening = np.linalg.inv(np.linalg.cholesky(data.covariances))
    mean = np.average(data.values, axis=0, weights=steps)
    deviations = np.einsum("nij,nj->ni", whitening, data.values - mean)
    np.testing.assert_allclose(np.cov(deviations.T), np.eye(4), atol=5 * (2 / len(steps)) ** 0.5)
    error = np.sqrt(np.diag(data.covariances.mean(axis=0)) / len(steps))
    m = lattice.magnetization(exact.sample(8, T_CRITICAL, 200_000, seed=1))
    assert mean[1] == pytest.approx(np.mean(m**2), abs=5 * np.hypot(error[1], np.std(m**2) / 200_000**0.5))


def test_the_search_finds_the_temperature_of_a_binder_cumulant() -> None:
    for edge in critical_temperature.EDGES:
        temperature = critical_temperature.explore(8, edge, 60)["temperature"]
        m = lattice.magnetization(exact.sample(8, temperature, 50_000, seed=1))
        assert statistics.binder_cumulant(m) == pytest.approx(edge, abs=0.01)


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
    curves, n_sets = [], 40
    for seed in range(n_sets):
        test = between(2.0, 2.6, 8, 100 + seed, num_test=2000).test
        curves.append(label_shift.binned(test["temperatures"], log_odds("magnetization", 1, splits, test)))
    p, error = (np.array([[*curve[key]] for curve in curves]) for key in ("p", "error"))
    # The mean temperature of a bin differs between test sets. Correct P(T) for this with its slope.
    t = np.array([curve["t"] for curve in curves])
    slopes = np.gradient(p.mean(axis=0), t.mean(axis=0))
    scatter = (p - slopes * (t - t.mean(axis=0))).std(axis=0, ddof=1)
    assert np.mean(scatter / error.mean(axis=0)) == pytest.approx(1, abs=4 * np.sqrt(1 / (2 * n_sets * 20)))


def test_classifiers_away_from_tc_see_no_configuration_near_it() -> None:
    splits = between(1.2, 3.4, 4, 5, num_train=500)
    far = label_shift.away_from_tc(splits.train)
    assert 0 < len(far["spins"]) < 500
    assert not ((far["temperatures"] >= 1.8) & (far["temperatures"] <= 2.8)).any()
    np.testing.assert_array_equal(
        far["spins"], select(splits.train, np.isin(splits.train["temperatures"], far["temperatures"]))["spins"]
    )
