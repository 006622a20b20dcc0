"""From samples to numbers with errors: autocorrelation times, jackknife errors, and what is measured near T_c.

Estimators take samples along the last axis. Magnetisations are per spin, energies those of the whole lattice; units and
signs are those of lattice.py.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Floats = NDArray[np.float64]


def autocorrelation_time(series: Floats, window: float = 6) -> tuple[float, float]:
    """Integrated autocorrelation time of equilibrium time series, with its standard error, in steps of the series.

    tau = 1/2 + sum_t rho(t), such that n steps are worth n / (2 tau) independent ones; the sum is cut off at the first
    t >= `window` tau, where what is left out is small and noise not yet large. The error is tau sqrt((4 t + 2) / n).
    N. Madras, A. D. Sokal, J. Stat. Phys. 50, 109 (1988), appendix C; A. D. Sokal's lectures, Cargese 1996, section 3.

    Args:
        series: (chains, steps) or (steps,): independent chains of one process, which are averaged over.

    Raises:
        ValueError: the series is too short to tell, constant, or swings to and fro.
    """
    series = np.atleast_2d(series) - np.mean(series)
    n_steps = series.shape[-1]
    spectrum = np.abs(np.fft.rfft(series, 2 * n_steps)) ** 2  # padded with zeros: the series is not periodic
    covariance = np.fft.irfft(spectrum)[:, :n_steps].mean(axis=0) / np.arange(n_steps, 0, -1)
    if covariance[0] == 0:
        raise ValueError("the series is constant: it has no autocorrelation time")
    times = np.cumsum(covariance / covariance[0]) - 0.5  # tau if cut off behind t = 0, 1, 2, ...
    far_enough = np.flatnonzero(np.arange(n_steps) >= window * times)
    if not far_enough.size or far_enough[0] > n_steps / 10:
        raise ValueError(
            f"{n_steps} steps are too few for an autocorrelation time of {times[n_steps // 10]:.3g} or more"
        )
    cut = int(far_enough[0])
    tau = float(times[cut])
    if tau <= 0:
        raise ValueError("the series swings to and fro, and the sum over it does not converge where it is cut off")
    return tau, tau * float(np.sqrt((4 * cut + 2) / series.size))


def jackknife(estimator: Callable[..., float], *samples: Floats, n_blocks: int = 50) -> tuple[float, float]:
    """What an estimator makes of independent samples, freed of its leading bias, and its standard error.

    The estimator is evaluated on all samples but one block, for each block (M. H. Quenouille 1956, J. W. Tukey 1958).

    Args:
        estimator: takes arrays such as `samples`, gives a number.
        samples: arrays (N, ...) that belong together along their first axis.

    Raises:
        ValueError: there are fewer than two samples.
    """
    if len(samples[0]) < 2:
        raise ValueError("an error takes two samples or more")
    blocks = np.array_split(np.arange(len(samples[0])), min(n_blocks, len(samples[0])))
    without = [estimator(*(np.delete(sample, block, axis=0) for sample in samples)) for block in blocks]
    n = len(blocks)
    return n * estimator(*samples) - (n - 1) * float(np.mean(without)), float(np.sqrt((n - 1) * np.var(without)))


def specific_heat(energies: Floats, temperature: float, n_sites: int) -> float:
    """C / N = (<E^2> - <E>^2) / (N T^2), in units of k_B."""
    return float(np.var(energies)) / (n_sites * temperature**2)


def susceptibility(magnetizations: Floats, temperature: float, n_sites: int) -> float:
    """chi / N = N (<m^2> - <|m|>^2) / T: of |m|, since on a finite lattice m itself vanishes on average at every T."""
    return n_sites * float(np.var(np.abs(magnetizations))) / temperature


def binder_cumulant(magnetizations: Floats) -> float:
    """U_4 = 1 - <m^4> / (3 <m^2>^2): 2/3 in the ordered phase, 0 in the other, 0.61069 at T_c of a large lattice.

    K. Binder, Z. Phys. B 43, 119 (1981); the value at T_c: G. Kamieniarz, H. W. J. Bloete, J. Phys. A 26, 201 (1993).
    """
    return 1 - float(np.mean(magnetizations**4)) / (3 * float(np.mean(magnetizations**2)) ** 2)


class Curves(NamedTuple):
    """An observable on lattices of several sizes near T_c; arrays (n,) that belong together."""

    sizes: NDArray[np.int64]
    temperatures: Floats  # in J / k_B
    values: Floats
    errors: Floats  # one standard error
    exponent: float | None = None  # a first guess of kappa, if the observable grows as L^kappa at T_c
    stretch: Floats | float = 1.0  # what x is multiplied by besides, such as a logarithm of L


class Scaling(NamedTuple):
    """What finite-size scaling makes of some observables."""

    t_c: float
    nu: float
    exponents: tuple[float, ...]  # kappa, of the observables that have one
    chi2_per_dof: float
    coefficients: tuple[Floats, ...]  # for each observable: of the functions in scaling_basis


def scaling_basis(x: Floats, sizes: NDArray[np.int64], degree: int, grows: bool, omega: float = 1.75) -> Floats:
    """The functions that a scaling function is made of, (n, degree + 5 or 6): x^k, and what vanishes as L grows.

    What scales is not T - T_c itself but, in this model, sinh(2 / T) - 1 / sinh(2 / T), which is not linear in it:
    hence x^2 / L and x^3 / L. The amplitude of what grows as a power of L depends on T as well: hence x / L, one
    function more. The background of the magnetisation's moments is smaller than what scales by L^-gamma/nu = L^-7/4.
    """
    corrections = [x**2 / sizes, x**3 / sizes, sizes**-omega, x * sizes**-omega, *([x / sizes] if grows else [])]
    return np.column_stack([*(x**k for k in range(degree + 1)), *corrections])


def fit_scaling(observables: Sequence[Curves], degree: int = 3) -> Scaling:
    """T_c and nu from curves that fall onto each other in the right units, by least squares.

    A(T, L) = L^kappa [f(x) + corrections] with x = (T - T_c) L^(1 / nu), a polynomial f for each observable, and T_c
    and nu common to all: K. Binder, Z. Phys. B 43, 119 (1981). At given T_c, nu and kappa the rest is linear, so that
    only these are searched for.

    Raises:
        ValueError: there are fewer values than there are numbers to fit.
    """
    free = [curves.exponent for curves in observables if curves.exponent is not None]
    n_values = sum(len(curves.values) for curves in observables)
    n_numbers = 2 + 2 * len(free) + len(observables) * (degree + 5)
    if n_values <= n_numbers:
        raise ValueError(f"{n_values} values are too few for {n_numbers} numbers")

    def solve(parameters: Floats) -> tuple[list[Floats], Floats]:
        t_c, nu, *kappas = parameters
        remaining = iter(kappas)
        coefficients: list[Floats] = []
        residuals: list[Floats] = []
        for curves in observables:
            kappa = 0.0 if curves.exponent is None else next(remaining)
            x = (curves.temperatures - t_c) * curves.sizes ** (1 / nu) * curves.stretch
            scale = curves.sizes**kappa / curves.errors
            basis = scaling_basis(x, curves.sizes, degree, curves.exponent is not None) * scale[:, None]
            wanted = curves.values / curves.errors
            coefficients.append(np.asarray(np.linalg.lstsq(basis, wanted, rcond=None)[0], np.float64))
            residuals.append(basis @ coefficients[-1] - wanted)
        return coefficients, np.concatenate(residuals)

    middle = float(np.mean(np.concatenate([curves.temperatures for curves in observables])))
    start = np.array([middle, 1.0, *free])
    found = least_squares(lambda p: solve(p)[1], start, x_scale=np.array([0.01, 0.1, *(0.1 for _ in free)]))
    coefficients, residuals = solve(found.x)
    t_c, nu, *kappas = found.x.tolist()
    return Scaling(t_c, nu, tuple(kappas), float(residuals @ residuals) / (n_values - n_numbers), tuple(coefficients))


def bootstrap_scaling(
    draw: Callable[..., Sequence[Curves]], degree: int = 3, n_times: int = 100, seed: int = 0
) -> tuple[Scaling, float, float]:
    """A fit, and the standard errors of its T_c and nu: the scatter of fits to data that were drawn again.

    Args:
        draw: gives the curves as they are or, with a generator `rng`, of data drawn with replacement.
    """
    rng = np.random.default_rng(seed)
    again = [fit_scaling(draw(rng=rng), degree) for _ in range(n_times)]
    return fit_scaling(draw(), degree), float(np.std([f.t_c for f in again])), float(np.std([f.nu for f in again]))
