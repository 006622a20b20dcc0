"""Fits of finite-size scaling to synthetic data with known T_c, nu and exponents."""

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ising import scaling
from ising.scaling import Choice, Measurements, Scaling, average, fit_scaling, vary

T_C, NU, CORRELATION = 2.3, 1.2, 0.8
PLACES = np.linspace(-1, 1, 15)
N_SAMPLES = 50
Kappas = tuple[float | None, ...]
Floats = NDArray[np.float64]


def smooth(x: Floats, grows: bool) -> Floats:
    return np.cosh(x / 2) + 0.3 * x if grows else np.tanh(x)


def collapsing(
    noise: float,
    seed: int,
    *,
    kappas: Kappas = (None, -0.25),
    places: Any = PLACES,
    sizes: Any = (8, 16, 32, 64),
    curve: Callable[[Floats, bool], Floats] = smooth,
) -> Measurements:
    """Synthetic data: L^kappa times a function of x = t L^(1 / nu), with corrections and correlated noise."""
    lattices, x = np.repeat(sizes, len(places)), np.tile(places, len(sizes))
    functions = [
        lattices ** (kappa or 0.0) * (curve(x, kappa is not None) + (0.5 + 0.3 * x) * lattices**-1.75)
        for kappa in kappas
    ]
    values = np.stack(functions, axis=1)
    errors = noise * np.abs(values).mean(axis=0)
    covariance = (CORRELATION + (1 - CORRELATION) * np.eye(len(kappas))) * np.outer(errors, errors)
    shocks = np.random.default_rng(seed).standard_normal(values.shape)
    values = values + shocks @ np.linalg.cholesky(covariance).T
    covariances = np.repeat(covariance[None], len(values), axis=0)
    grows = tuple(kappa is not None for kappa in kappas)
    return Measurements(lattices, T_C + x / lattices ** (1 / NU), values, covariances, grows)


def test_the_fit_finds_the_parameters_of_the_data() -> None:
    polynomials = {False: [-0.1, 0.3, 1.0, 0.2], True: [0.05, 0.1, 0.3, 1.0]}  # from x^3 to x^0

    def curve(x: Floats, grows: bool) -> Floats:
        return np.asarray(np.polyval(polynomials[grows], x))

    data = collapsing(1e-7, 0, kappas=(None, -0.25, 1.75), curve=curve)
    fit = fit_scaling(data, degree=3)
    assert fit.t_c == pytest.approx(T_C, abs=1e-6)
    assert fit.nu == pytest.approx(NU, abs=1e-5)
    np.testing.assert_allclose(fit.exponents, [-0.25, 1.75], atol=1e-5)
    for grows, coefficients in zip(data.grows, fit.coefficients, strict=True):  # of x^0 to x^3, then of the corrections
        np.testing.assert_allclose(coefficients[:6], [*polynomials[grows][::-1], 0.5, 0.3], atol=0.01)


@pytest.fixture(scope="module")
def first_fit() -> Scaling:
    """A fit with a blind search, from which fits to other noise start."""
    return fit_scaling(collapsing(0.02, 0), degree=5)


@pytest.fixture(scope="module")
def fits(first_fit: Scaling) -> list[Scaling]:
    """Fits to N_SAMPLES independent samples of noise."""
    return [fit_scaling(collapsing(0.02, seed), degree=5, start=first_fit) for seed in range(N_SAMPLES)]


def test_errors_are_the_scatter_of_the_results(fits: list[Scaling]) -> None:
    for name, truth in (("t_c", T_C), ("nu", NU)):
        values, errors = (np.array([getattr(fit, key) for fit in fits]) for key in (name, f"{name}_error"))
        deviations = (values - truth) / errors
        assert abs(deviations.mean()) < 4 / np.sqrt(len(fits))
        assert 0.7 < deviations.std() < 1.35
    deviations = np.array([(fit.exponents[0] + 0.25) / fit.exponent_errors[0] for fit in fits])
    assert 0.7 < deviations.std() < 1.35


def test_the_p_value_is_uniform_and_the_covariance_matters(fits: list[Scaling], first_fit: Scaling) -> None:
    p_values = np.array([fit.p_value for fit in fits])
    assert 0.5 - 4 / np.sqrt(12 * N_SAMPLES) < p_values.mean() < 0.5 + 4 / np.sqrt(12 * N_SAMPLES)
    assert np.mean(p_values < 0.1) < 0.1 + 4 * np.sqrt(0.09 / N_SAMPLES)
    assert np.mean([fit.chi2 / fit.dof for fit in fits]) == pytest.approx(
        1, abs=4 * np.sqrt(2 / (fits[0].dof * N_SAMPLES))
    )
    independent = []  # the same data, fitted without the correlation of U_4 and <m^2>
    for seed in range(N_SAMPLES):
        data = collapsing(0.02, seed)
        data = data._replace(covariances=data.covariances * np.eye(2))
        independent.append(fit_scaling(data, degree=5, start=first_fit))
    chi2 = [fit.chi2 / fit.dof for fit in independent]
    assert np.std(chi2) > 1.15 * np.std([fit.chi2 / fit.dof for fit in fits])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the fit does not describe the data")
def test_a_higher_degree_never_fits_worse() -> None:
    # All temperatures are on one side of T_c. The first version did not converge here, without an error.
    data = collapsing(1e-3, 1, places=np.linspace(0.2, 2, 15))
    fits = [fit_scaling(data, degree) for degree in (3, 5, 6)]
    assert all(fit.chi2 <= lower.chi2 * (1 + 1e-6) for lower, fit in pairwise(fits))
    fit = fits[-1]
    assert abs(fit.t_c - T_C) < 4 * fit.t_c_error
    assert abs(fit.nu - NU) < 4 * fit.nu_error


@pytest.mark.parametrize("nu", [0.5, 3.5])
def test_the_fit_finds_any_nu(nu: float) -> None:
    data = collapsing(5e-3, 2)
    moved = T_C + np.tile(PLACES, 4) / data.sizes ** (1 / nu)
    fit = fit_scaling(data._replace(temperatures=moved), degree=5)
    assert abs(fit.nu - nu) < 4 * fit.nu_error
    assert fit.p_value > 1e-3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sizes": (16,)}, "1 lattice sizes"),
        ({"sizes": (8, 64)}, "2 lattice sizes"),
        ({"places": np.array([0.0, 0.5])}, "16 values are too few for 22 parameters"),
        ({"noise": 10.0}, "do not determine|does not converge"),
    ],
)
def test_fits_that_the_data_do_not_determine_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fit_scaling(collapsing(**{"noise": 0.02, "seed": 0, **changes}))


def test_two_equally_good_fits_with_different_nu_are_refused() -> None:
    def residuals(parameters: Floats) -> Floats:
        t_c, inverse_nu = parameters
        return 1e3 * np.array([(inverse_nu - 0.5) * (inverse_nu - 1.5), t_c - T_C])

    with pytest.raises(ValueError, match=r"nu = (2 and 0\.667|0\.667 and 2) fit as well"):
        scaling._search(residuals, lambda _: True, collapsing(1e-3, 0, kappas=(None,)), start=None)


def test_curves_that_do_not_depend_on_temperature_are_refused() -> None:
    data = collapsing(1e-3, 3, kappas=(None,))
    for seed in range(10):
        shocks = np.random.default_rng(seed).standard_normal((len(data.values), 1))
        with pytest.raises(ValueError, match="do not depend on temperature"):
            fit_scaling(data._replace(values=0.5 + np.sqrt(data.covariances[:, 0]) * shocks))


def test_invalid_measurements_are_refused() -> None:
    data = collapsing(0.02, 0)
    with pytest.raises(ValueError, match="every value needs an error"):
        fit_scaling(data._replace(covariances=np.zeros_like(data.covariances)))
    values = data.values.copy()
    values[3, 1] = np.nan
    with pytest.raises(ValueError, match="values of shape"):
        fit_scaling(data._replace(values=values))
    wrong: dict[str, Any] = {"degree": -1, "n_corrections": -1, "omega": 0.0}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"{name} {value}: must be"):
            fit_scaling(data, **{name: value})
    for changes in ({"temperatures": data.temperatures[1:]}, {"grows": (False,) * 3}, {"sizes": data.sizes * 0}):
        with pytest.raises(ValueError, match=r"must be finite, with shape|must be positive"):
            fit_scaling(data._replace(**changes))


def test_omega_may_be_an_integer(first_fit: Scaling) -> None:
    data = collapsing(0.02, 1)
    assert fit_scaling(data, 5, 2, start=first_fit)[:6] == fit_scaling(data, 5, 2.0, start=first_fit)[:6]


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "kappas"), [(8e-3, (None,)), (2e-2, (None, -0.25))])
def test_no_fit_has_a_wrong_nu_with_a_small_error(noise: float, kappas: Kappas) -> None:
    # The correction x L^-omega can replace the leading term in a fit with 1 / nu + omega instead of 1 / nu.
    n_wrong = n_fits = 0
    for seed in range(5):
        data = collapsing(noise, seed, kappas=kappas, sizes=(8, 12, 16, 24, 32))
        try:
            fit = fit_scaling(data, degree=5)
        except ValueError:
            continue
        n_fits += 1
        n_wrong += abs(fit.nu - NU) > 4 * fit.nu_error
    assert n_fits >= 2
    assert n_wrong == 0


@pytest.fixture(scope="module")
def blind() -> Scaling:
    """A fit with a blind search to data with little noise, `collapsing(1e-3, 4)`."""
    return fit_scaling(collapsing(1e-3, 4), 5)


def test_choices_select_the_data(blind: Scaling) -> None:
    data = collapsing(1e-3, 4)
    found = vary(data, [Choice(5), Choice(3), Choice(5, smallest_size=16), Choice(5, 1.75, 3), Choice(5, 1.75, 2, 32)])
    assert isinstance(found[Choice(5, 1.75, 2, 32)], str)  # a fit to two sizes is refused
    fits = {choice: fit for choice, fit in found.items() if isinstance(fit, Scaling)}
    first = fits[Choice(5)]
    assert first[:6] == blind[:6]
    assert fits[Choice(5, smallest_size=16)].dof == first.dof - 30
    assert fits[Choice(5, n_corrections=3)].dof == first.dof - 4  # x^2 L^-omega and t x^3, for two observables
    assert fits[Choice(3)].p_value < 1e-6  # tanh is not a cubic polynomial
    with pytest.warns(RuntimeWarning, match="does not describe the data: chi-square"):
        fit_scaling(data, 3, start=first)
    with pytest.raises(ValueError, match="2 lattice sizes"):  # without a first fit, there is no starting point
        vary(data, [Choice(5, smallest_size=32), Choice(5)])


def test_a_fit_that_starts_from_another_one_finds_the_same_minimum(blind: Scaling) -> None:
    data = collapsing(1e-3, 4)
    other = fit_scaling(data, 5, 1.0, 3, start=blind)
    np.testing.assert_allclose(fit_scaling(data, 5, start=other)[:4], blind[:4], rtol=1e-5)


def test_the_average_weights_fits_with_their_probability() -> None:
    def fit(t_c: float, error: float, chi2: float, dof: int) -> Scaling:
        return Scaling(t_c, error, 1.0, 0.1, (), (), chi2, dof, ())

    # AIC is chi^2 - 2 dof up to a constant: with two more parameters, equal weight requires a chi^2 lower by 4.
    first, second, third = Choice(5), Choice(6), Choice(7)
    t_c, nu = average({first: fit(2.0, 0.3, 100.0, 100), second: fit(3.0, 0.4, 96.0, 98), third: "refused"})
    assert t_c == pytest.approx((2.5, np.sqrt((0.3**2 + 0.4**2) / 2), 0.5))
    assert t_c.total == pytest.approx(np.sqrt((0.3**2 + 0.4**2) / 2 + 0.25))
    assert nu == pytest.approx((1.0, 0.1, 0.0))
    # A fit with a chi^2 higher by 20 has the weight exp(-10) / (1 + exp(-10)).
    t_c, _ = average({first: fit(2.0, 0.3, 100.0, 100), second: fit(3.0, 0.4, 120.0, 100)})
    assert t_c.value == pytest.approx(2 + np.exp(-10), rel=1e-6)
    # The averages for two smallest sizes are 2.0 ± 0.3 and 3.5 ± sqrt(0.2^2 + 0.5^2), whatever their chi^2.
    t_c, _ = average(
        {
            first: fit(2.0, 0.3, 100.0, 100),
            Choice(5, smallest_size=16): fit(3.0, 0.2, 90.0, 70),
            Choice(6, smallest_size=16): fit(4.0, 0.2, 88.0, 69),
        }
    )
    weight = 0.29 / (0.29 + 0.09)  # of the first
    mean = 2.0 * weight + 3.5 * (1 - weight)
    statistical = np.sqrt(0.09 * weight + 0.04 * (1 - weight))
    systematic = np.sqrt((2.0 - mean) ** 2 * weight + ((3.5 - mean) ** 2 + 0.25) * (1 - weight))
    assert t_c == pytest.approx((mean, statistical, systematic))
    # Fits that do not describe the data are ignored, even if their errors are small.
    t_c, _ = average({first: fit(2.0, 0.3, 100.0, 100), second: fit(3.0, 0.001, 5000.0, 100)})
    assert t_c == pytest.approx((2.0, 0.3, 0.0))
    for bad in ("refused", fit(3.0, 0.001, 5000.0, 100)):
        with pytest.raises(ValueError, match="no fit describes the data"):
            average({first: bad})


@pytest.mark.slow
def test_the_systematic_error_covers_wrong_correction_exponents() -> None:
    # The corrections are L^-1.75. Fits with other exponents deviate by more than their statistical errors.
    data = collapsing(3e-4, 5)
    fits = vary(data, [Choice(degree, omega) for degree in (5, 6, 7) for omega in (1.4, 1.75, 2.2)])
    t_c, nu = average(fits)
    assert abs(t_c.value - T_C) < 3 * np.hypot(t_c.statistical, t_c.systematic)
    assert abs(nu.value - NU) < 3 * np.hypot(nu.statistical, nu.systematic)
    values = [fit.t_c for fit in fits.values() if isinstance(fit, Scaling)]
    assert t_c.systematic <= np.ptp(values) / 2


# Errors of U_4, <m^2> and their slopes up to a factor, and their correlations: about those of the Ising model.
NU_OF_SLOPES = 0.95
ERRORS = np.array([1.0, 4.0, 0.9, 2.3])
CORRELATIONS = np.array([[1, 0.9, 0.9, 0.85], [0.9, 1, 0.69, 0.6], [0.9, 0.69, 1, 0.94], [0.85, 0.6, 0.94, 1]])


def observables(temperatures: Floats, sizes: Floats) -> Floats:
    """U_4 and <m^2> (n, 2) with corrections of the same kind and magnitude as those of the Ising model."""
    t = temperatures - T_C
    x = t * (1 - 0.2 * t) * sizes ** (1 / NU_OF_SLOPES)
    cumulant = np.polyval([0.00015, -0.0008, -0.009, -0.0339, 0.611], x) + (0.05 - 0.02 * x) / sizes**2
    amplitude = np.polyval([0.001, 0.0046, -0.013, -0.219, 1.092], x) + (0.05 + 0.02 * x) / sizes**2
    m2 = sizes**-0.25 * (1 + 0.27 * t + 0.19 * t**2) * amplitude
    with_background = 1 - 0.104 / (sizes**2 * m2)
    return np.stack([cumulant / with_background**2, m2 * with_background], axis=1)


def with_slopes(noise: float, seed: int) -> Measurements:
    """Synthetic data of these observables and their slopes. The errors of larger lattices are larger."""
    sizes = np.repeat([16, 24, 32, 48, 64, 96, 192], 8)
    temperatures = T_C + np.tile(np.linspace(-0.9, 0.9, 8), 7) / sizes ** (1 / NU_OF_SLOPES)
    step = 1e-4 / sizes
    high, low = (observables(temperatures + sign * step, sizes) for sign in (1, -1))
    values = np.concatenate([observables(temperatures, sizes), (high - low) / (2 * step[:, None])], axis=1)
    scales = np.stack([sizes**0.0, sizes**-0.25, sizes**1.0, sizes**0.75], axis=1)
    errors = noise * ERRORS * scales * (sizes[:, None] / 16) ** 0.5
    covariances = CORRELATIONS * errors[:, :, None] * errors[:, None, :]
    shocks = np.random.default_rng(seed).standard_normal((len(values), 4, 1))
    values += (np.linalg.cholesky(covariances) @ shocks)[:, :, 0]
    return Measurements(sizes, temperatures, values, covariances, (False, True))


def without_slopes(data: Measurements) -> Measurements:
    return data._replace(values=data.values[:, :2], covariances=data.covariances[:, :2, :2])


def test_slopes_determine_nu() -> None:
    data = with_slopes(8e-5, 0)
    fit, other = fit_scaling(data, 5), fit_scaling(without_slopes(data), 5)
    assert fit.dof == other.dof + 2 * len(data.sizes)
    assert fit.nu_error < other.nu_error / 3
    assert abs(fit.nu - NU_OF_SLOPES) < 5 * fit.nu_error
    # Slopes that are wrong by a hundredth are noticed.
    values = data.values * [1, 1, 1, 1.01]
    with pytest.warns(RuntimeWarning, match="does not describe the data"):
        fit_scaling(data._replace(values=values), 5, start=fit)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the fit does not describe the data")
def test_total_errors_are_right_for_corrections_as_in_the_ising_model() -> None:
    choices = [Choice(*each) for each in product((5,), (1.75, 1.0, 3.0), (3, 2), (16, 32))]
    pulls, p_values, n_sets = [], [], 40
    start = fit_scaling(with_slopes(8e-5, 0), *choices[0][:3])
    for seed in range(n_sets):
        data = with_slopes(8e-5, seed)
        fits = {c: fit_scaling(data.where(data.sizes >= c.smallest_size), *c[:3], start=start) for c in choices}
        first = fits[choices[0]]
        t_c, nu = average(fits)
        pulls.append(
            [
                *((first.t_c - T_C) / first.t_c_error, (first.nu - NU_OF_SLOPES) / first.nu_error),
                *((t_c.value - T_C) / t_c.total, (nu.value - NU_OF_SLOPES) / nu.total),
            ]
        )
        p_values.append(first.p_value)
    squares = np.mean(np.square(pulls), axis=0)
    assert np.all(squares < 1 + 5 * np.sqrt(2 / n_sets))
    assert abs(np.mean(p_values) - 0.5) < 5 / np.sqrt(12 * n_sets)
