"""T_c and nu from measurements on finite lattices: a fit of finite-size scaling, its errors, and how they depend on it.

T_c, nu and the exponents are searched from several starts, which contain none of the exact values. What theory
contributes is the form of the corrections.
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
SIGNIFICANT = 0.01  # p-value below which values depend on temperature, or a fit does not describe them
RIVAL = 9.0  # difference in chi^2 up to which another minimum is as good


class Measurements(NamedTuple):
    """k observables at n pairs of lattice size and temperature near T_c."""

    sizes: NDArray[np.int64]  # (n,)
    temperatures: Floats  # (n,) in J / k_B
    values: Floats  # (n, k)
    covariances: Floats  # (n, k, k): of the observables at one size and temperature, measured on the same samples
    grows: tuple[bool, ...]  # for each observable: whether it goes as a power of L at T_c

    def where(self, chosen: NDArray[np.bool_]) -> "Measurements":
        """The chosen pairs of size and temperature: (n,)."""
        return self._replace(
            sizes=self.sizes[chosen],
            temperatures=self.temperatures[chosen],
            values=self.values[chosen],
            covariances=self.covariances[chosen],
        )


class Choice(NamedTuple):
    """What is chosen in a fit, and could have been chosen otherwise."""

    degree: int = 4  # of the polynomials
    omega: float = 1.75  # exponent of the corrections
    smallest_size: int = 0  # that is used
    window: float = 1.0  # share of the range of |x| that is used


class Scaling(NamedTuple):
    """The result of a fit, with statistical errors."""

    t_c: float
    t_c_error: float
    nu: float
    nu_error: float
    exponents: tuple[float, ...]  # kappa of the observables that grow
    exponent_errors: tuple[float, ...]
    chi2: float
    dof: int
    coefficients: tuple[Floats, ...]  # for each observable: of the functions in scaling_basis

    @property
    def p_value(self) -> float:
        """Probability of a chi-square as large as this or larger, if the fitted form and the errors are right."""
        return float(gammaincc(self.dof / 2, self.chi2 / 2))


def scaling_basis(t: Floats, x: Floats, sizes: Floats, *, grows: bool, degree: int, omega: float) -> Floats:
    """The functions of which a scaling function is made, (n, degree + 5 or 6): powers of x, and corrections.

    With t = T - T_c and x = t L^(1 / nu). What scales is not t itself, but a smooth function of it: hence t x and
    t x^2. The amplitude of what grows as a power of L depends on T as well: hence t, one function more. The corrections
    L^-omega are those of irrelevant operators (omega = 2) and, of the moments of m, of a background smaller by
    L^-gamma/nu = L^-7/4.
    """
    corrections = [sizes**-omega, x * sizes**-omega, t * x, t * x**2, *([t] if grows else [])]
    return np.column_stack([*(x**k for k in range(degree + 1)), *corrections])


def fit_scaling(data: Measurements, degree: int = 4, omega: float = 1.75) -> Scaling:
    """T_c and nu from curves of several sizes that collapse in the right variables, by generalised least squares.

    A(T, L) = L^kappa [f(x) + corrections] with x = (T - T_c) L^(1 / nu), a polynomial f for each observable, and T_c
    and nu common to all: K. Binder, Z. Phys. B 43, 119 (1981). The observables of one sample are correlated, and the
    covariance weights their residuals: M. Weigel, W. Janke, Phys. Rev. Lett. 102, 100601 (2009). At given T_c, nu and
    kappa the rest is linear, so that only these are searched for (variable projection). The search begins at several
    places, and two of them have to lead to the best fit.

    Raises:
        ValueError: the data are invalid, or do not determine T_c and nu. Says why.
    """
    _require_valid(data)
    sizes = data.sizes.astype(np.float64)
    n_values = data.values.size
    n_numbers = 2 + sum(degree + 5 + 2 * grows for grows in data.grows)
    if (n_sizes := len(np.unique(sizes))) < 3:
        raise ValueError(f"{n_sizes} lattice sizes: scaling and its corrections need three or more")
    if n_values <= n_numbers:
        raise ValueError(f"{n_values} values are too few for {n_numbers} numbers")
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
        """Whether the leading term is the largest part of the slope at T_c, for every observable and size."""
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
        raise ValueError(f"the data do not determine T_c and nu: {t_c:.4g} and {nu:.3g} are one fit of many")
    t_c_error, inverse_error, *kappa_errors = _errors(best).tolist()
    nu_error = inverse_error * nu**2
    if t_c_error > np.ptp(data.temperatures) or nu_error > nu / 2:
        raise ValueError(
            f"the data do not determine T_c = {t_c:.4g} ± {t_c_error:.1g} and nu = {nu:.3g} ± {nu_error:.1g}"
        )
    return Scaling(
        *(t_c, t_c_error, nu, nu_error, tuple(kappas), tuple(kappa_errors)),
        *(float(residuals @ residuals), n_values - n_numbers, tuple(coefficients)),
    )


def _require_valid(data: Measurements) -> None:
    """Raise ValueError unless all arrays belong together and hold finite numbers."""
    n, k = len(data.sizes), len(data.grows)
    expected = ((n,), (n,), (n, k), (n, k, k))
    for name, array, shape in zip(data._fields, data[:4], expected, strict=False):
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"{name} must have the shape {shape} and be finite; the shape is {array.shape}")
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
    """Matrices (n, k, k) that turn the observables into uncorrelated numbers of unit variance, and these (n k,).

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
    rest = constants @ np.linalg.lstsq(constants, values)[0] - values
    if gammaincc((len(values) - constants.shape[1]) / 2, float(rest @ rest) / 2) > SIGNIFICANT:
        raise ValueError("the data do not determine T_c and nu: within their errors they do not depend on temperature")
    return whitening, values


def _search(
    residuals: Callable[[Floats], Floats], is_scaling: Callable[[Floats], bool], data: Measurements
) -> OptimizeResult:
    """The best of the fits from all starts, with T_c in the range of the data or near it, and 0.1 < nu < 10.

    Far from there, corrections can imitate anything. They can also take the place of the leading term, with another nu:
    such fits are left out.

    Raises:
        ValueError: no two starts lead to it, or another fit is as good and has another nu.
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
        with np.errstate(all="ignore"):  # a start may be hopeless
            try:
                fit = least_squares(residuals, [t_c, 1 / nu, *slopes], method="lm", x_scale=scales, max_nfev=200)
            except (ValueError, np.linalg.LinAlgError):
                continue
        is_near = low - (high - low) < fit.x[0] < high + (high - low) and 0.1 < fit.x[1] < 10
        if fit.success and np.isfinite(fit.cost) and is_near and is_scaling(fit.x):
            found.append(fit)
    found.sort(key=lambda fit: fit.cost)
    if len(found) < 2 or found[1].cost > found[0].cost + 0.01:
        raise ValueError("the fit does not converge: no two starts lead to the same best fit")
    best, error = found[0], _errors(found[0])[1]
    for other in found:
        if 2 * (other.cost - best.cost) < RIVAL and abs(other.x[1] - best.x[1]) > 5 * error:
            raise ValueError(
                f"the data do not determine T_c and nu: nu = {1 / best.x[1]:.3g} and {1 / other.x[1]:.3g} fit as well"
            )
    return best


def vary(data: Measurements, choices: Sequence[Choice]) -> dict[Choice, Scaling | str]:
    """Fits with different choices, or why one was refused. x in the windows is that of the first choice's fit.

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
    """A number from many fits, with its errors."""

    value: float
    statistical: float
    systematic: float  # how much it depends on the choices


def average(fits: Iterable[Scaling | str]) -> tuple[Average, Average]:
    """T_c and nu averaged over fits with different choices, each weighted with its probability.

    The weights are exp(-AIC / 2) with Akaike's criterion, chi^2 + 2 k + 2 n_cut for k numbers and n_cut values that are
    not used. Up to a constant this is chi^2 - 2 dof. The systematic error is the standard deviation of the weighted
    fits: W. I. Jay, E. T. Neil, Phys. Rev. D 103, 114502 (2021). So a choice that leaves out many values counts little.
    Fits with p < 0.01 do not count.

    Raises:
        ValueError: there is no fit with p > 0.01.
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
