"""Finite-size scaling: fits of T_c and nu to measurements on finite lattices, with statistical and systematic errors.

A fit searches for T_c, nu and the other exponents from several starting points, none of which is exact. Only the form
of the corrections to scaling comes from theory.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, least_squares
from scipy.special import gammaincc

Floats = NDArray[np.float64]

STARTS_OF_NU = (0.4, 0.7, 1.5, 3.0)
SIGNIFICANT = 0.01  # a hypothesis is rejected if its p-value is lower: that values are constant, or that a fit is right
RIVAL = 9.0  # another minimum is considered equally good if its chi^2 is higher by less than this


class Measurements(NamedTuple):
    """k observables at n pairs of lattice size and temperature near T_c."""

    sizes: NDArray[np.int64]  # (n,)
    temperatures: Floats  # (n,) in J / k_B
    values: Floats  # (n, k)
    covariances: Floats  # (n, k, k): between the observables of one pair, which are measured on the same samples
    grows: tuple[bool, ...]  # for each observable: whether it scales as a power of L at T_c

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
    smallest_size: int = 0  # smaller lattices are not used
    window: float = 1.0  # fraction of the range of |x| that is used


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
    coefficients: tuple[Floats, ...]  # for each observable: those of the functions in scaling_basis

    @property
    def p_value(self) -> float:
        """Probability of a chi-square as large as this or larger, if the fitted form and the errors are right."""
        return float(gammaincc(self.dof / 2, self.chi2 / 2))


def scaling_basis(t: Floats, x: Floats, sizes: Floats, *, grows: bool, degree: int, omega: float) -> Floats:
    """The functions whose linear combination is fitted, (n, degree + 5 or 6): powers of x, and corrections.

    t = T - T_c, and x = t L^(1 / nu). The scaling variable is not t itself but a smooth function of t, which gives the
    terms t x and t x^2. If the observable scales as a power of L, its amplitude also depends on T, which gives the term
    t. The corrections L^-omega come from irrelevant operators (omega = 2), and for moments of m from a background that
    is smaller by L^-gamma/nu = L^-7/4.
    """
    corrections = [sizes**-omega, x * sizes**-omega, t * x, t * x**2, *([t] if grows else [])]
    return np.column_stack([*(x**k for k in range(degree + 1)), *corrections])


def fit_scaling(data: Measurements, degree: int = 4, omega: float = 1.75) -> Scaling:
    """Fit T_c and nu such that the curves of all sizes collapse onto one, by generalised least squares.

    The model is A(T, L) = L^kappa [f(x) + corrections] with x = (T - T_c) L^(1 / nu), a polynomial f for each
    observable, and common T_c and nu: K. Binder, Z. Phys. B 43, 119 (1981). The observables of one sample are
    correlated, and the inverse covariance weights their residuals: M. Weigel, W. Janke, Phys. Rev. Lett. 102, 100601
    (2009). For given T_c, nu and kappa, the fit is linear in all other parameters, so the search only varies these
    (variable projection). It starts from several points, and at least two of them must lead to the best fit.

    Raises:
        ValueError: the data are invalid, or do not determine T_c and nu. The message says why.
    """
    _require_valid(data)
    sizes = data.sizes.astype(np.float64)
    n_values = data.values.size
    n_parameters = 2 + sum(degree + 5 + 2 * grows for grows in data.grows)
    if (n_sizes := len(np.unique(sizes))) < 3:
        raise ValueError(f"{n_sizes} lattice sizes: a fit with corrections needs at least 3")
    if n_values <= n_parameters:
        raise ValueError(f"{n_values} values are too few for {n_parameters} parameters")
    whitening, wanted = _whitened(data)

    def solve(parameters: Floats) -> tuple[list[Floats], Floats, bool]:
        """Coefficients, residuals, and whether the data determine the coefficients."""
        t_c, inverse_nu, *kappas = parameters
        t = data.temperatures - t_c
        remaining = iter(kappas)
        columns = []
        for k, grows in enumerate(data.grows):
            basis = scaling_basis(t, t * sizes**inverse_nu, sizes, grows=grows, degree=degree, omega=omega)
            basis = basis * sizes[:, None] ** (next(remaining) if grows else 0.0)
            columns.append(whitening[:, :, k, None] * basis[:, None])  # (n, k, functions)
        design = np.concatenate(columns, axis=2).reshape(n_values, -1)
        norms = np.linalg.norm(design, axis=0)
        solution, _, rank, _ = np.linalg.lstsq(design / norms, wanted, rcond=1e-12)
        ends = np.cumsum([basis.shape[2] for basis in columns])[:-1]
        return np.split(solution / norms, ends), design @ (solution / norms) - wanted, rank == len(norms)

    def is_scaling(parameters: Floats) -> bool:
        """Whether the leading term dominates the slope at T_c, for every observable and size."""
        for grows, c in zip(data.grows, solve(parameters)[0], strict=True):
            correction = c[degree + 2] * sizes**-omega + (c[degree + 5] * sizes ** -parameters[1] if grows else 0.0)
            if np.abs(correction).max() > abs(c[1]):
                return False
        return True

    best = _search(lambda p: solve(p)[1], is_scaling, data)
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
    return Scaling(
        *(t_c, t_c_error, nu, nu_error, tuple(kappas), tuple(kappa_errors)),
        *(float(residuals @ residuals), n_values - n_parameters, tuple(coefficients)),
    )


def _require_valid(data: Measurements) -> None:
    """Raise ValueError unless the arrays have matching shapes and contain finite numbers."""
    n, k = len(data.sizes), len(data.grows)
    expected = ((n,), (n,), (n, k), (n, k, k))
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
    """Matrices (n, k, k) that make the observables uncorrelated with unit variance, and the transformed values (n k,).

    Raises:
        ValueError: a covariance or a value is invalid, or the observables do not depend on temperature.
    """
    try:
        whitening = np.linalg.inv(np.linalg.cholesky(data.covariances))
    except np.linalg.LinAlgError:
        raise ValueError("a covariance is not positive definite: every value needs an error") from None
    values = (whitening @ data.values[:, :, None]).reshape(-1)
    is_of_size = data.sizes[:, None] == np.unique(data.sizes)
    constants = (whitening[:, :, None] * is_of_size[:, None, :, None]).reshape(len(values), -1)  # one for each size
    residuals = constants @ np.linalg.lstsq(constants, values)[0] - values
    if gammaincc((len(values) - constants.shape[1]) / 2, float(residuals @ residuals) / 2) > SIGNIFICANT:
        raise ValueError("the data do not determine T_c and nu: within their errors they do not depend on temperature")
    return whitening, values


def _search(
    residuals: Callable[[Floats], Floats], is_scaling: Callable[[Floats], bool], data: Measurements
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
    found = []
    for t_c, nu in product(np.linspace(low, high, 6), STARTS_OF_NU):
        with np.errstate(all="ignore"):  # overflows from a bad starting point
            try:
                fit = least_squares(residuals, [t_c, 1 / nu, *slopes], method="lm", x_scale=scales, max_nfev=200)
            except (ValueError, np.linalg.LinAlgError):
                continue
        is_near = low - (high - low) < fit.x[0] < high + (high - low) and 0.1 < fit.x[1] < 10
        if fit.success and np.isfinite(fit.cost) and is_near and is_scaling(fit.x):
            found.append(fit)
    found.sort(key=lambda fit: fit.cost)
    if len(found) < 2 or found[1].cost > found[0].cost + 0.01:
        raise ValueError("the fit does not converge: no two starting points lead to the same best fit")
    best, error = found[0], _errors(found[0])[1]
    for other in found:
        if 2 * (other.cost - best.cost) < RIVAL and abs(other.x[1] - best.x[1]) > 5 * error:
            raise ValueError(
                f"the data do not determine T_c and nu: nu = {1 / best.x[1]:.3g} and {1 / other.x[1]:.3g} fit as well"
            )
    return best


def vary(data: Measurements, choices: Sequence[Choice]) -> dict[Choice, Scaling | str]:
    """Fits with different choices, or the reason why one was refused. Windows use x from the fit of the first choice.

    Raises:
        ValueError: the fit of the first choice is refused.
    """
    first = choices[0]
    fit = fit_scaling(data.where(data.sizes >= first.smallest_size), first.degree, first.omega)
    x = np.abs((data.temperatures - fit.t_c) * data.sizes ** (1 / fit.nu))
    fits: dict[Choice, Scaling | str] = {}
    for choice in choices:
        chosen = (data.sizes >= choice.smallest_size) & (x <= choice.window * x.max() * (1 + 1e-9))
        try:
            fits[choice] = fit_scaling(data.where(chosen), choice.degree, choice.omega)
        except ValueError as error:
            fits[choice] = str(error)
    return fits


class Average(NamedTuple):
    """A parameter, averaged over many fits, with its errors."""

    value: float
    statistical: float
    systematic: float  # from the scatter between choices


def average(fits: Iterable[Scaling | str]) -> tuple[Average, Average]:
    """T_c and nu, averaged over fits with different choices that are weighted with their probabilities.

    The weights are exp(-AIC / 2) with Akaike's criterion AIC = chi^2 + 2 k + 2 n_cut, for k parameters and n_cut values
    that are not used. Up to a constant, this is chi^2 - 2 dof. A fit that does not use many of the values therefore has
    a small weight. The systematic error is the weighted standard deviation of the fits: W. I. Jay, E. T. Neil, Phys.
    Rev. D 103, 114502 (2021). Fits with p < 0.01 are ignored.

    Raises:
        ValueError: no fit has p > 0.01.
    """
    accepted = [fit for fit in fits if isinstance(fit, Scaling) and fit.p_value > SIGNIFICANT]
    if not accepted:
        raise ValueError("no fit describes the data: all were refused, or have p < 0.01")
    criterion = np.array([fit.chi2 - 2 * fit.dof for fit in accepted])
    weights = np.exp(-(criterion - criterion.min()) / 2)
    weights /= weights.sum()

    def averaged(values: Floats, errors: Floats) -> Average:
        mean = float(weights @ values)
        return Average(mean, float(weights @ errors**2) ** 0.5, float(weights @ (values - mean) ** 2) ** 0.5)

    t_c, t_c_error, nu, nu_error = np.array([fit[:4] for fit in accepted]).T
    return averaged(t_c, t_c_error), averaged(nu, nu_error)
