"""The benchmark of independent configurations, checked on chains with a known autocorrelation time."""

from typing import Any

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


def test_the_cost_is_twice_the_longer_autocorrelation_time() -> None:
    energies = float(exact.kaufman(exact.T_CRITICAL, 8)[0]) + 0.1 * autoregressive(0.8, 5, 20_000)
    series = np.stack([energies, autoregressive(0.5, 5, 20_000)])
    case = independent.summarize("other", 8, [0.9e-3, 1e-3, 1e-3, 1e-3, 5e-3], series)
    milliseconds, error = independent.cost(case)
    assert milliseconds == pytest.approx(9, abs=4 * error)
    assert 0.1 < error < 0.5
    assert abs(case["energy_z"]) < 4


def test_a_configuration_of_multispin_costs_one_step() -> None:
    case = independent.summarize(independent.OURS, 8, [1e-3, 2e-3, 3e-3], np.random.default_rng(0).random((2, 3, 100)))
    assert independent.cost(case)[0] == pytest.approx(2)


def test_the_fastest_is_multispin_or_the_best_of_the_others_or_neither() -> None:
    def case(milliseconds: float, error: float) -> dict[str, Any]:
        drift = np.array([1e-3, 2e-3, 5e-3])  # the speed of the machine changes; this cancels in ratios
        return {"seconds_per_step": milliseconds * drift, "tau_energy": (0.5, 0.5 * error), "tau_magnetization": (0, 0)}

    cases = {independent.OURS: case(1, 0.1), "a": case(2, 0), "b": case(4, 0)}
    assert independent.fastest(cases) == f"{independent.OURS}, by a factor of 2.00 ± 0.20"
    assert independent.fastest(cases | {"a": case(0.5, 0), "b": case(0.6, 0)}) == "a, by a factor of 2.00 ± 0.20"
    assert independent.fastest(cases | {"a": case(0.9, 0)}) == f"{independent.OURS} and a agree within three errors"
