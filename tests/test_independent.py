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
    case = independent.summarize("multispin", 8, [1e-3, 2e-3, 3e-3], np.random.default_rng(0).random((2, 3, 100)))
    assert independent.cost(case)[0] == pytest.approx(2)


def test_the_table_compares_the_fastest_of_both_sides_within_repetitions() -> None:
    def case(name: str, milliseconds: float, error: float) -> dict[str, Any]:
        drift = np.array([1e-3, 2e-3, 5e-3])  # the speed of the machine changes; this cancels in ratios
        taus = {"tau_energy": (0.5, 0.5 * error), "tau_magnetization": (0, 0)}
        return {"size": 8, "name": name, "seconds_per_step": milliseconds * drift, **taus, "energy_z": -2.5}

    cases = [case("multispin", 9, 0.01), case("multispin series", 2, 0.1), case("wolff", 3, 0.01)]
    cases += [case("mcising Wolff", 8, 0.0), case("mcising Metropolis", 9, 0.0)]
    cases[2]["flips_per_step"] = 1e3
    lines = independent.table({"independent": {"cases": cases, "scale": 1}}).splitlines()
    assert "| best of other packages / best of this project | 4.00 ± 0.40: mcising Wolff / multispin series |" in lines
    assert "- time of multispin / time of multispin series: 4.50 ± 0.45 at L = 8" in lines
    assert "- ns per flipped spin of wolff: 6000.0 at L = 8" in lines
    assert "- largest deviation of a mean energy from the exact one: 2.5 standard errors" in lines
