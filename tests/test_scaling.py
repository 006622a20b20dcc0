"""Errors and observables against processes and lattices where they are known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ising import exact, lattice, scaling
from ising.exact import T_CRITICAL


def autoregressive(memory: float, shape: tuple[int, int], seed: int) -> NDArray[np.float64]:
    """x_t = memory x_{t-1} + noise, in equilibrium, whose autocorrelation is memory^t: (chains, steps)."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    noise[:, 1:] *= np.sqrt(1 - memory**2)
    series = noise.copy()
    for t in range(1, shape[1]):
        series[:, t] += memory * series[:, t - 1]
    return series


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9, 0.97])
def test_autocorrelation_time_and_its_error(memory: float) -> None:
    # tau = 1/2 + sum_t memory^t = (1 + memory) / (2 (1 - memory))
    expected = (1 + memory) / (2 * (1 - memory))
    estimates = np.array(
        [scaling.autocorrelation_time(autoregressive(memory, (4, 20_000), seed)) for seed in range(20)]
    )
    deviations = (estimates[:, 0] - expected) / estimates[:, 1]
    assert np.abs(deviations).max() < 4
    assert 0.5 < deviations.std() < 1.5  # the error is the scatter


def test_autocorrelation_time_of_one_chain() -> None:
    series = autoregressive(0.8, (1, 50_000), seed=1)
    assert scaling.autocorrelation_time(series[0]) == scaling.autocorrelation_time(series)


def test_autocorrelation_time_refuses_what_it_cannot_tell() -> None:
    with pytest.raises(ValueError, match="constant"):
        scaling.autocorrelation_time(np.ones((2, 1000)))
    with pytest.raises(ValueError, match="200 steps are too few"):
        scaling.autocorrelation_time(autoregressive(0.99, (2, 200), seed=2))
    with pytest.raises(ValueError, match="to and fro"):
        scaling.autocorrelation_time(np.resize([1.0, -1.0], 1000))


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    samples = np.random.default_rng(3).exponential(size=1000)
    value, error = scaling.jackknife(lambda x: float(x.mean()), samples, n_blocks=1000)
    assert value == pytest.approx(samples.mean(), rel=1e-12)
    assert error == pytest.approx(samples.std(ddof=1) / np.sqrt(1000), rel=1e-9)


def test_jackknife_removes_the_bias_of_a_variance() -> None:
    samples = np.random.default_rng(4).standard_normal(40)
    value, _ = scaling.jackknife(lambda x: float(x.var()), samples, n_blocks=40)
    assert value == pytest.approx(samples.var(ddof=1), rel=1e-12)


def test_jackknife_keeps_samples_together() -> None:
    x = np.random.default_rng(5).standard_normal(500)
    value, error = scaling.jackknife(lambda a, b: float((a - b).mean()), x, x - 1)
    assert value == pytest.approx(1)
    assert error == pytest.approx(0, abs=1e-12)


def test_observables_4x4_are_those_of_enumeration() -> None:
    spins = exact.enumerate_configurations()
    weights = np.exp(-lattice.energy(spins) / T_CRITICAL)
    weights /= weights.sum()
    m = lattice.magnetization(spins)
    m1, m2, m4 = (float(weights @ np.abs(m) ** k) for k in (1, 2, 4))
    drawn = exact.sample(4, T_CRITICAL, 100_000, seed=6)
    energies, magnetizations = lattice.energy(drawn).astype(np.float64), lattice.magnetization(drawn)
    for (value, error), expected in (
        (scaling.jackknife(scaling.binder_cumulant, magnetizations), 1 - m4 / (3 * m2**2)),
        (
            scaling.jackknife(lambda m: scaling.susceptibility(m, T_CRITICAL, 16), magnetizations),
            16 * (m2 - m1**2) / T_CRITICAL,
        ),
        (
            scaling.jackknife(lambda e: scaling.specific_heat(e, T_CRITICAL, 16), energies),
            float(exact.kaufman(T_CRITICAL, 4)[1]),
        ),
    ):
        assert abs(value - expected) < 4 * error
        assert error < 0.02 * abs(expected)


def test_binder_cumulant_of_order_and_disorder() -> None:
    assert scaling.binder_cumulant(np.array([-1.0, 1.0, 1.0])) == pytest.approx(2 / 3)
    gaussian = np.random.default_rng(7).standard_normal(1_000_000)
    assert scaling.binder_cumulant(gaussian) == pytest.approx(0, abs=0.01)


def curves_that_fall_together(kappa: float | None, noise: float, seed: int, stretch: bool = False) -> scaling.Curves:
    """tanh(x) or L^kappa cosh(x / 2), with corrections, at sizes from 8 to 64, for T_c = 2.3 and nu = 1.2."""
    sizes, places = np.repeat([8, 16, 32, 64], 15), np.tile(np.linspace(-1, 1, 15), 4)
    factor = np.log(sizes) if stretch else np.ones(len(sizes))
    temperatures = 2.3 + places / factor / sizes ** (1 / 1.2)
    function = np.tanh(places) if kappa is None else np.cosh(places / 2)
    values = sizes ** (kappa or 0.0) * (function + (0.5 + 0.3 * places) * sizes**-1.75)
    errors = np.full(len(sizes), noise) * np.abs(values).mean()
    values = values + errors * np.random.default_rng(seed).standard_normal(len(sizes))
    return scaling.Curves(sizes, temperatures, values, errors, kappa and kappa + 0.1, factor if stretch else 1.0)


@pytest.mark.parametrize("stretch", [False, True])
def test_scaling_finds_what_curves_were_made_of(stretch: bool) -> None:
    observables = [curves_that_fall_together(kappa, 1e-7, 0, stretch=stretch) for kappa in (None, -0.25, 1.75)]
    fit = scaling.fit_scaling(observables, degree=11)
    assert fit.t_c == pytest.approx(2.3, abs=1e-6)
    assert fit.nu == pytest.approx(1.2, abs=1e-5)
    np.testing.assert_allclose(fit.exponents, [-0.25, 1.75], atol=1e-5)
    for coefficients in fit.coefficients:  # of which those of the background follow those of x^k, x^2 / L and x^3 / L
        np.testing.assert_allclose(coefficients[14:16], [0.5, 0.3], atol=0.01)


def test_errors_of_scaling_are_the_scatter_of_its_results() -> None:
    fits = [scaling.fit_scaling([curves_that_fall_together(None, 0.02, seed)], 5) for seed in range(40)]
    assert np.mean([fit.chi2_per_dof for fit in fits]) == pytest.approx(1, abs=0.15)
    curves = curves_that_fall_together(None, 0.02, seed=100)

    def draw(rng: np.random.Generator | None = None) -> list[scaling.Curves]:
        noise = 0 if rng is None else curves.errors * rng.standard_normal(len(curves.values))
        return [curves._replace(values=curves.values + noise)]

    fit, t_c_error, nu_error = scaling.bootstrap_scaling(draw, 5, 60)
    for key, error in (("t_c", t_c_error), ("nu", nu_error)):
        scatter = np.std([getattr(each, key) for each in fits])
        assert 0.6 < error / scatter < 1.6
        assert (
            abs(np.mean([getattr(each, key) for each in fits]) - {"t_c": 2.3, "nu": 1.2}[key]) < 4 * scatter / 40**0.5
        )
    assert abs(fit.t_c - 2.3) < 4 * t_c_error


def test_scaling_refuses_what_cannot_be_fitted() -> None:
    curves = curves_that_fall_together(None, 0.02, 0)
    few = scaling.Curves(curves.sizes[:8], curves.temperatures[:8], curves.values[:8], curves.errors[:8])
    with pytest.raises(ValueError, match="8 values are too few for 10 numbers"):
        scaling.fit_scaling([few])
