# Experiment: yours, to replace.
"""Finite-size scaling: fits of T_c and nu to measurements on finite lattices, with statistical and systematic errors.

A fit searches for T_c, nu and the other exponents from several starting points, none of which is exact. Only the form
of the corrections to scaling comes from theory.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, least_squares
from scipy.special import gammaincc

from ising.lattice import check_integer

Floats = NDArray[np.float64]

STARTS_OF_NU = (0.4, 0.7, 1.5, 3.0)
SIGNIFICANT = 0.01  # a hypothesis is rejected if its p-value is lower: that values are constant, or that a fit is right
HOPELESS = 1e-6  # a fit with a lower p-value causes a warning
RIVAL = 9.0  # another minimum is considered equally good if its chi^2 is higher by less than this


class Measurements(NamedTuple):
    """k observables at n pairs of lattice size and temperature near T_c, without or with their slopes.

    Slopes are derivatives with respect to T. They follow from the correlations of an observable with the energy.
    """

    sizes: NDArray[np.int64]  # (n,)
    temperatures: Floats  # (n,) in J / k_B
    values: Floats  # (n, m): m = k observables, or m = 2 k observables and then their slopes
    covariances: Floats  # (n, m, m): between the values of one pair, which are measured on the same samples
    grows: tuple[bool, ...]  # (k,): whether an observable scales as a power of L at T_c

    def where(self, chosen: NDArray[np.bool_]) -> "Measurements":
        """The measurements at some pairs of size and temperature. chosen: (n,)."""
        return self._replace(
            sizes=self.sizes[chosen],
            temperatures=self.temperatures[chosen],
            values=self.values[chosen],
            covariances=self.covariances[chosen],
        )


class Choice(NamedTuple):
    """The choices in a fit. Several values of each are reasonable."""

    degree: int = 4  # of the polynomials
    omega: float = 1.75  # exponent of the corrections
    n_corrections: int = 2  # number of terms of their polynomials
    smallest_size: int = 0  # smaller lattices are not used


class Scaling(NamedTuple):
    """The result of a fit, with statistical errors."""

    t_c: float
    t_c_error: float
    nu: float
    nu_error: float
    exponents: tuple[float, ...]  # kappa of the observables that scale as L^kappa
    exponent_errors: tuple[float, ...]
    chi2: float
    dof: int
    coefficients: tuple[Floats, ...]  # for each observable: those of the functions in scaling_terms

    @property
    def p_value(self) -> float:
        """Probability of a chi-square as large as this or larger, if the fitted form and the errors are right."""
        return float(gammaincc(self.dof / 2, self.chi2 / 2))


class Terms(NamedTuple):
    """Functions t^a L^b of t = T - T_c and L, whose linear combination is fitted to an observable."""

    powers: Floats  # a, (functions,)
    exponents: Floats  # b, (functions,)

    def values(self, t: Floats, sizes: Floats) -> Floats:
        """The functions at t (n,) and sizes (n,): (n, functions)."""
        values: Floats = t[:, None] ** self.powers * sizes[:, None] ** self.exponents
        return values

    def slopes(self, t: Floats, sizes: Floats) -> Floats:
        """Their derivatives with respect to t: (n, functions)."""
        return self.powers * Terms(np.maximum(self.powers - 1, 0), self.exponents).values(t, sizes)


def scaling_terms(inverse_nu: float, grows: bool, degree: int, omega: float, n_corrections: int) -> Terms:
    """The functions for an observable: powers of x = t L^(1 / nu) from x^0 to x^degree, and corrections.

    The corrections L^-omega come from irrelevant operators (omega = 2), and for moments of m from a background that is
    smaller by L^-gamma/nu = L^-7/4. They depend on x. The scaling variable is not t itself but a smooth function of t,
    which gives the terms t x, t x^2, ... If the observable scales as a power of L, its amplitude also depends on T,
    which gives the term t.
    """
    leading, irrelevant = np.arange(degree + 1.0), np.arange(float(n_corrections))
    analytic = np.arange(0.0 if grows else 1.0, n_corrections + 1)
    powers = np.concatenate([leading, irrelevant, analytic + 1])
    exponents = np.concatenate([leading * inverse_nu, irrelevant * inverse_nu - omega, analytic * inverse_nu])
    return Terms(powers, exponents)


def fit_scaling(
    data: Measurements,
    degree: int = 4,
    omega: float = 1.75,
    n_corrections: int = 2,
    *,
    start: Scaling | None = None,
) -> Scaling:
    """Fit T_c and nu such that the curves of all sizes collapse onto one, by generalised least squares.

    The model is A(T, L) = L^kappa [f(x) + corrections] with x = (T - T_c) L^(1 / nu), a polynomial f for each
    observable, and common T_c and nu: K. Binder, Z. Phys. B 43, 119 (1981). Slopes are compared with its derivative.
    The values from one sample are correlated, and the inverse covariance weights their residuals: M. Weigel, W. Janke,
    Phys. Rev. Lett. 102, 100601 (2009). For given T_c, nu and kappa, the fit is linear in all other parameters, so the
    search only varies these (variable projection). It starts from several points, and at least two of them must lead to
    the best fit.

    Args:
        start: a fit of another form or to a part of the data. The search then starts only from its parameters.

    Raises:
        ValueError: the data or the form are invalid, or do not determine T_c and nu. The message says why.

    Warns:
        RuntimeWarning: the fit does not describe the data: its p-value is below 1e-6.
    """
    _require_valid(data)
    degree, n_corrections = check_integer("degree", degree, 1), check_integer("n_corrections", n_corrections, 0)
    if not 0 < omega < math.inf:
        raise ValueError(f"omega {omega}: must be positive and finite")
    sizes = data.sizes.astype(np.float64)

    def terms(inverse_nu: float) -> list[Terms]:
        form = (degree, omega, n_corrections)
        return [scaling_terms(inverse_nu, grows, *form) for grows in data.grows]

    n_values = data.values.size
    n_parameters = 2 + sum(data.grows) + sum(len(each.powers) for each in terms(1.0))
    if (n_sizes := len(np.unique(sizes))) < 3:
        raise ValueError(f"{n_sizes} lattice sizes: a fit with corrections needs at least 3")
    if n_values <= n_parameters:
        raise ValueError(f"{n_values} values are too few for {n_parameters} parameters")
    whitening, wanted = _whitened(data)
    n, m = data.values.shape
    weights = whitening.reshape(n, m, -1, len(data.grows))  # the third axis: the observables, and perhaps their slopes

    def solve(parameters: Floats) -> tuple[list[Floats], Floats, bool]:
        """Coefficients, residuals, and whether the data determine the coefficients."""
        t_c, inverse_nu, *kappas = parameters
        t = data.temperatures - t_c
        remaining = iter(kappas)
        columns = []
        for k, (grows, each) in enumerate(zip(data.grows, terms(inverse_nu), strict=True)):
            functions = np.stack([each.values(t, sizes), each.slopes(t, sizes)][: weights.shape[2]])
            scale = sizes[:, None] ** (next(remaining) if grows else 0.0)
            columns.append(np.einsum("nmi,inf->nmf", weights[..., k], functions * scale))
        design = np.concatenate(columns, axis=2).reshape(n_values, -1)
        norms = np.linalg.norm(design, axis=0)
        solution, _, rank, _ = np.linalg.lstsq(design / norms, wanted, rcond=1e-12)
        ends = np.cumsum([column.shape[2] for column in columns])[:-1]
        return np.split(solution / norms, ends), design @ (solution / norms) - wanted, rank == len(norms)

    def is_scaling(parameters: Floats) -> bool:
        """Whether the leading term dominates the slope at T_c, for every observable and size."""
        for each, c in zip(terms(parameters[1]), solve(parameters)[0], strict=True):
            linear = each.powers == 1
            leading, *corrections = (c[linear] * sizes[:, None] ** each.exponents[linear]).T
            if np.any(np.abs(np.sum(corrections, axis=0)) > np.abs(leading)):
                return False
        return True

    best = _search(lambda p: solve(p)[1], is_scaling, data, start)
    coefficients, residuals, determined = solve(best.x)
    t_c, inverse_nu, *kappas = best.x.tolist()
    nu = 1 / inverse_nu
    if not determined:
        raise ValueError(
            f"the data do not determine T_c and nu: T_c = {t_c:.4g}, nu = {nu:.3g} is one of many equally good fits"
        )
    t_c_error, inverse_error, *kappa_errors = _errors(best).tolist()
    nu_error = inverse_error * nu**2
    if t_c_error > np.ptp(data.temperatures) or nu_error > nu / 2:
        raise ValueError(
            f"the data do not determine T_c = {t_c:.4g} ± {t_c_error:.1g} and nu = {nu:.3g} ± {nu_error:.1g}"
        )
    fit = Scaling(
        *(t_c, t_c_error, nu, nu_error, tuple(kappas), tuple(kappa_errors)),
        *(float(residuals @ residuals), n_values - n_parameters, tuple(coefficients)),
    )
    if fit.p_value < HOPELESS:
        warnings.warn(
            f"the fit does not describe the data: chi-square {fit.chi2:.4g} for {fit.dof} degrees of freedom",
            RuntimeWarning,
            stacklevel=2,
        )
    return fit


def _require_valid(data: Measurements) -> None:
    """Raise ValueError unless the arrays have matching shapes and contain finite numbers."""
    n, k = len(data.sizes), len(data.grows)
    m = 2 * k if data.values.shape == (n, 2 * k) else k
    expected = ((n,), (n,), (n, m), (n, m, m))
    for name, array, shape in zip(data._fields, data[:4], expected, strict=False):
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"{name} of shape {array.shape}: must be finite, with shape {shape}")
    if n and data.sizes.min() < 1:
        raise ValueError("lattice sizes must be positive")


def _errors(fit: OptimizeResult) -> Floats:
    """Standard errors of the parameters of a fit; infinite if the data do not determine them."""
    _, spans, directions = np.linalg.svd(fit.jac, full_matrices=False)
    if spans[-1] <= 1e-10 * spans[0]:
        return np.full(len(fit.x), np.inf)
    errors: Floats = np.sqrt(((directions.T / spans) ** 2).sum(axis=1))
    return errors


def _whitened(data: Measurements) -> tuple[Floats, Floats]:
    """Matrices (n, m, m) that make the values uncorrelated with unit variance, and the transformed values (n m,).

    Raises:
        ValueError: a covariance or a value is invalid, or the observables do not depend on temperature.
    """
    try:
        whitening = np.linalg.inv(np.linalg.cholesky(data.covariances))
    except np.linalg.LinAlgError:
        raise ValueError("a covariance is not positive definite: every value needs an error") from None
    values = (whitening @ data.values[:, :, None]).reshape(-1)
    is_of_size = data.sizes[:, None] == np.unique(data.sizes)
    flat = whitening[:, :, None, : len(data.grows)]  # with slopes 0
    constants = (flat * is_of_size[:, None, :, None]).reshape(len(values), -1)  # one for each size and observable
    residuals = constants @ np.linalg.lstsq(constants, values)[0] - values
    if gammaincc((len(values) - constants.shape[1]) / 2, float(residuals @ residuals) / 2) > SIGNIFICANT:
        raise ValueError("the data do not determine T_c and nu: within their errors they do not depend on temperature")
    return whitening, values


def _search(
    residuals: Callable[[Floats], Floats],
    is_scaling: Callable[[Floats], bool],
    data: Measurements,
    start: Scaling | None,
) -> OptimizeResult:
    """The best of the fits from all starting points, with T_c in or near the range of the data, and 0.1 < nu < 10.

    With other T_c or nu, the corrections can imitate any curve. They can also take the place of the leading term, with
    a different nu. Such fits are discarded.

    Raises:
        ValueError: no two starting points lead to the best fit, or another fit is as good and has a different nu.
    """
    low, high = float(data.temperatures.min()), float(data.temperatures.max())
    slopes = [
        float(np.polyfit(np.log(data.sizes), np.log(np.abs(data.values[:, k]) + 1e-300), 1)[0])
        for k, grows in enumerate(data.grows)
        if grows
    ]
    scales = np.array([0.1 * (high - low), 0.1, *(0.1 for _ in slopes)])
    points = [[t_c, 1 / nu, *slopes] for t_c, nu in product(np.linspace(low, high, 6), STARTS_OF_NU)]
    if start is not None:
        points = [[start.t_c, 1 / start.nu, *start.exponents]]
    found = []
    for point in points:
        with np.errstate(all="ignore"):  # overflows from a bad starting point
            try:
                fit = least_squares(residuals, point, method="lm", x_scale=scales, max_nfev=200)
            except (ValueError, np.linalg.LinAlgError):
                continue
        is_near = low - (high - low) < fit.x[0] < high + (high - low) and 0.1 < fit.x[1] < 10
        if fit.success and np.isfinite(fit.cost) and is_near and is_scaling(fit.x):
            found.append(fit)
    found.sort(key=lambda fit: fit.cost)
    if not found or (start is None and (len(found) < 2 or found[1].cost > found[0].cost + 0.01)):
        raise ValueError("the fit does not converge: no two starting points lead to the same best fit")
    best, error = found[0], _errors(found[0])[1]
    for other in found:
        if 2 * (other.cost - best.cost) < RIVAL and abs(other.x[1] - best.x[1]) > 5 * error:
            raise ValueError(
                f"the data do not determine T_c and nu: nu = {1 / best.x[1]:.3g} and {1 / other.x[1]:.3g} fit as well"
            )
    return best


def vary(data: Measurements, choices: Sequence[Choice]) -> dict[Choice, Scaling | str]:
    """Fits with different choices, or the reason why one was refused. All others start from the first fit.

    Raises:
        ValueError: the first fit is refused.
    """
    fits: dict[Choice, Scaling | str] = {}
    first = None
    for choice in choices:
        part = data.where(data.sizes >= choice.smallest_size)
        try:
            with warnings.catch_warnings(action="ignore"):  # the caller gets its p-value
                fit = fit_scaling(part, choice.degree, choice.omega, choice.n_corrections, start=first)
        except ValueError as error:
            if first is None:
                raise
            fits[choice] = str(error)
        else:
            fits[choice] = fit
            first = first or fit
    return fits


class Average(NamedTuple):
    """A parameter, averaged over many fits, with its errors."""

    value: float
    statistical: float
    systematic: float  # from the scatter between choices

    @property
    def total(self) -> float:
        """Both errors together."""
        return math.hypot(self.statistical, self.systematic)


def average(fits: Mapping[Choice, Scaling | str]) -> tuple[Average, Average]:
    """T_c and nu, averaged over fits with different choices.

    Fits to the same data are weighted with exp(-AIC / 2), where AIC = chi^2 + 2 k is Akaike's criterion for k
    parameters. The square of the statistical error is the weighted mean of their squared errors, and the systematic
    error is the weighted standard deviation of the fits: W. I. Jay, E. T. Neil, Phys. Rev. D 103, 114502 (2021). Fits
    with p < 0.01 are ignored.

    The averages over the fits with the same smallest size are weighted with 1 / (total error)^2. A criterion for fits
    to different data would give nearly all of the weight to those with the most data, so that the choice of the
    smallest size would not contribute to the error.

    Raises:
        ValueError: no fit has p > 0.01.
    """
    accepted = {c: fit for c, fit in fits.items() if isinstance(fit, Scaling) and fit.p_value > SIGNIFICANT}
    if not accepted:
        raise ValueError("no fit describes the data: all were refused, or have p < 0.01")
    sizes = np.array([choice.smallest_size for choice in accepted])
    criterion = np.array([fit.chi2 - 2 * fit.dof for fit in accepted.values()])  # AIC up to a constant for equal data

    def averaged(values: Floats, errors: Floats) -> Average:
        weights = np.empty(len(sizes))
        for mine in (sizes == size for size in np.unique(sizes)):
            likely = np.exp(-(criterion[mine] - criterion[mine].min()) / 2)
            likely /= likely.sum()
            variance = likely @ (errors[mine] ** 2 + (values[mine] - likely @ values[mine]) ** 2)
            weights[mine] = likely / variance
        weights /= weights.sum()
        mean = float(weights @ values)
        return Average(mean, float(weights @ errors**2) ** 0.5, float(weights @ (values - mean) ** 2) ** 0.5)

    t_c, t_c_error, nu, nu_error = np.array([fit[:4] for fit in accepted.values()]).T
    return averaged(t_c, t_c_error), averaged(nu, nu_error)
