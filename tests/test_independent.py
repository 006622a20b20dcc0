"""The time per independent configuration in the benchmark, on chains with a known autocorrelation time."""

import numpy as np
import pytest

from benchmarks import independent
from ising import exact


def autoregressive(phi: float, n_chains: int, n_steps: int) -> independent.Floats:
    """AR(1) chains in equilibrium, with tau = (1 + phi) / (2 (1 - phi))."""
    noise = np.random.default_rng(0).standard_normal((n_steps, n_chains))
    series = np.empty_like(noise)
    series[0] = noise[0] / np.sqrt(1 - phi**2)
    for step in range(1, n_steps):
        series[step] = phi * series[step - 1] + noise[step]
    return series.T


def test_the_cost_is_the_time_for_two_of_the_longer_autocorrelation_time() -> None:
    energies = float(exact.kaufman(exact.T_CRITICAL, 8)[0]) + 0.1 * autoregressive(0.8, 5, 20_000)
    series = np.stack([energies, autoregressive(0.5, 5, 20_000)])
    case = independent.summarize("other", 8, [0.9e-3, 1e-3, 1e-3, 1e-3, 5e-3], series)
    milliseconds, error = independent.cost(case)
    assert milliseconds == pytest.approx(9, abs=4 * error)
    assert 0.1 < error < 0.5
    assert abs(case["energy_z"]) < 4


def test_a_configuration_of_ours_costs_one_step() -> None:
    case = independent.summarize(independent.OURS, 8, [1e-3, 2e-3, 3e-3], np.random.default_rng(0).random((2, 3, 100)))
    assert independent.cost(case)[0] == pytest.approx(2)


def test_the_leader_is_compared_with_the_next_if_it_is_ours_and_with_ours_otherwise() -> None:
    times = {independent.OURS: (1.0, 0.1), "a": (2.0, 0.0), "b": (4.0, 0.0)}
    assert independent.leader(times) == f"{independent.OURS}, 2.00 ± 0.20 times"
    assert independent.leader(times | {"a": (0.5, 0.0), "b": (0.6, 0.0)}) == "a, 2.00 ± 0.20 times"
