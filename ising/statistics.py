# Experiment: yours, to replace.
"""Statistics of samples: autocorrelation times, the jackknife, observables and their slopes, temperature bins.

Magnetisations are per spin, energies are those of the whole lattice. Units and signs are those of lattice.py.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

N_BINS = 20  # temperature bins in metrics, figures and checks
PER_BIN = 10  # configurations in a bin at least, if there are enough
SHORTEST_BLOCK = 20  # in units of the sum of |rho|, of the blocks whose means are compared
REPEATED = 0.9  # a correlation beyond the window that is above this is no accident
SLOWEST = 1.5  # Wolff's S: the slowest decay time of a series in units of the integrated one, from 1 to 2


def autocorrelation_time(series: ArrayLike) -> tuple[float, float]:
    """Integrated autocorrelation time of equilibrium time series, with its standard error, in steps of the series.

    tau = 1/2 + sum_t rho(t), and n steps are worth n / (2 tau) independent ones. The sum ends at a window W that
    balances the statistical error of tau and the neglected terms: U. Wolff, Comput. Phys. Commun. 156, 143 (2004).
    Wolff estimates the decay time of rho from tau itself; this function estimates it from the sum of |rho|. For series
    without negative correlations, the two are equal. For others, Wolff's window would close at the first negative
    value, and this window does not.

    Args:
        series: (chains, steps) or (steps,). Chains are independent realisations of one process.

    Raises:
        ValueError: the series is constant or a straight line, not finite, repeats itself, or is too short for its
            autocorrelation time; or its parts differ by more than this time explains, because it is not in equilibrium
            or has a slower component. Correlations over times longer than the series cannot be detected, nor can slow
            components of so small an amplitude that the means of blocks do not show them.
    """
    values = np.atleast_2d(np.asarray(series, dtype=np.float64))
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"series of shape {values.shape}: must be (steps,) or (chains, steps), and finite")
    values = values / (np.abs(values).max() or 1)  # otherwise, their squares could overflow
    values = values - values.mean()
    n_steps = values.shape[1]
    ramp = np.arange(n_steps) - (n_steps - 1) / 2
    without_trend = values - (values.mean(axis=0) @ ramp) / max(1.0, ramp @ ramp) * ramp
    if (without_trend**2).mean() <= 1e-24:
        raise ValueError("the series is constant or a straight line: it has no autocorrelation time")
    squares = (values**2).mean(axis=0)
    late = squares[n_steps // 2 :].sum() / squares.sum()
    if n_steps >= 20 and not 0.05 < late < 0.95:
        raise ValueError(
            f"{max(late, 1 - late):.0%} of the variance is in one half of the series: it is not in equilibrium, or "
            "its events are too rare"
        )
    found = _correlations(values)
    # A drift looks like a slow correlation, whose time would explain how much the parts of the series differ.
    shorter = min(found, _correlations(without_trend))
    excess = max(_excess_scatter(values, shorter))
    if excess > 4:
        raise ValueError(
            f"parts of the series differ by more than an autocorrelation time of {shorter.tau:.3g} steps explains (by "
            f"{excess:.1f} standard errors): it is not in equilibrium, or has slower correlations of small amplitude"
        )
    return found.tau, found.error


class _Correlations(NamedTuple):
    """Sums of autocorrelations."""

    tau: float  # 1/2 + sum of rho(t)
    error: float
    length: float  # 1/2 + sum of |rho(t)|
    edge: float  # minus the sum of t rho(t), if that is positive


def _correlations(values: Floats) -> _Correlations:
    """The sums of autocorrelations of series (chains, steps) with mean 0. Errors: as autocorrelation_time."""
    n_chains, n_steps = values.shape
    spectrum = np.abs(np.fft.rfft(values, 2 * n_steps)) ** 2  # padded with zeros: the series is not periodic
    covariance = np.fft.irfft(spectrum)[:, :n_steps].mean(axis=0) / np.arange(n_steps, 0, -1)
    rho = covariance / covariance[0]
    decay = np.cumsum(np.abs(rho)) - 0.5
    window = np.arange(1, n_steps)
    with np.errstate(divide="ignore"):
        slowest = SLOWEST / np.log1p(1 / np.maximum(decay[1:] - 0.5, 1e-12))
    closes = np.exp(-window / slowest) < slowest / np.sqrt(window * n_chains * n_steps)
    cut = int(window[closes][0]) if closes.any() else n_steps
    if cut > n_steps / 10 or 100 * decay[cut] > n_steps:
        tau = decay[min(cut, n_steps // 10)]
        raise ValueError(f"{n_steps} steps are too few for a series with correlations over {tau:.3g} steps or more")
    again = np.abs(rho[cut + 1 : n_steps // 2 + 1])
    if again.max(initial=0) > REPEATED:
        raise ValueError(f"the series repeats itself after {cut + 1 + int(again.argmax())} steps")
    weights = np.ones(cut + 1)
    weights[[0, -1]] = 0.5  # at the end of the window, so correlations of alternating sign beyond it cancel
    tau = float(weights @ rho[: cut + 1]) * (1 + (2 * cut + 1) / values.size)  # bias of the subtracted mean
    # The variance of a sum over rho: M. S. Bartlett, J. R. Stat. Soc. Suppl. 8, 27 (1946), as a mean over frequencies.
    # For W much longer than the correlations it is Wolff's (4 W + 2) tau^2 / n.
    kernel, spectrum = np.fft.fft([weights, 2 * weights * rho[: cut + 1]], 4 * cut + 4).real
    error = float(np.sqrt(2 * np.mean(((kernel - tau) * spectrum) ** 2) / values.size))
    if tau <= 2 * error:
        raise ValueError(f"the correlations cancel: {tau:.2g} ± {error:.1g} cannot be distinguished from zero")
    edge = max(0.0, -float(np.arange(cut + 1) * weights @ rho[: cut + 1]))
    return _Correlations(tau, error, float(decay[cut]), edge)


def _excess_scatter(values: Floats, correlations: _Correlations) -> Iterator[float]:
    """By how many standard errors the scatter of block means exceeds that expected from the correlations.

    Blocks have several lengths: long ones contain slow correlations, and short ones are many. The variance of the mean
    of l values is 2 (tau + edge / l) / l in units of theirs, and smaller if the edge is negative.

    Args:
        values: (chains, steps), with mean 0.
    """
    n_chains, n_steps = values.shape
    n_parts = max(4, -(-16 // n_chains))  # per chain; at least 16 in total
    while True:
        length = n_steps // n_parts
        means = values[:, : n_parts * length].reshape(n_chains * n_parts, length).mean(axis=1)
        dof = len(means) - 1
        tau = correlations.tau + 2 * correlations.error + correlations.edge / length
        chi2 = len(means) * float(means.var()) * length / (2 * tau * float((values**2).mean()))
        # The cube root of chi-square is nearly normal: E. B. Wilson, M. M. Hilferty, PNAS 17, 684 (1931).
        yield float(((chi2 / dof) ** (1 / 3) - 1 + 2 / (9 * dof)) / (2 / (9 * dof)) ** 0.5)
        n_parts *= 4
        if n_steps < n_parts * SHORTEST_BLOCK * correlations.length:
            return


def t_factor(n: int) -> float:
    """Half of the interval of 68.3 % around the mean of n normal values, in units of its standard error (Student)."""
    from scipy.special import stdtrit  # takes a quarter of a second to load

    return float(stdtrit(n - 1, 0.8413447)) if n > 1 else math.inf


def jackknife(
    estimator: Callable[..., float], *samples: NDArray[np.generic], n_blocks: int = 50
) -> tuple[float, float]:
    """Estimate a quantity from independent samples, without its leading bias, and its error.

    The estimator is evaluated with each block of samples left out in turn (M. H. Quenouille 1956, J. W. Tukey 1958).
    The lengths of blocks may differ by one. They are weighted as in F. M. T. A. Busing et al., Statistics and Computing
    9, 3 (1999). With few blocks, the error is larger than the standard error, such that the interval of one error
    contains the true value in 68 % of all cases (Student's t): by a factor of 1.84 with two blocks, and 1.01 with 50.

    Args:
        estimator: a function of as many arrays as there are `samples`, which returns a number.
        samples: arrays (N, ...); entries with the same index along the first axis are one sample.
        n_blocks: number of blocks, at least 2. If there are fewer samples, each is a block.

    Raises:
        ValueError: there are fewer than two samples or blocks, or the arrays have different lengths.
    """
    n = len(samples[0])
    if min(n, n_blocks) < 2:
        raise ValueError(f"{n} samples in {n_blocks} blocks: a standard error needs two or more of both")
    if any(len(sample) != n for sample in samples):
        raise ValueError(f"arrays of lengths {', '.join(str(len(sample)) for sample in samples)}: must be equal")
    blocks = np.array_split(np.arange(n), min(n_blocks, n))
    value = estimator(*samples)
    without = np.array([estimator(*(np.delete(sample, block, axis=0) for sample in samples)) for block in blocks])
    inverse = n / np.array([len(block) for block in blocks])  # 1 / fraction of the samples in each block
    pseudo = inverse * value - (inverse - 1) * without
    unbiased = len(blocks) * value - float(((1 - 1 / inverse) * without).sum())
    error = float(np.sqrt(np.mean((pseudo - unbiased) ** 2 / (inverse - 1))))
    return unbiased, error * t_factor(len(blocks))


def _per_spin(magnetizations: ArrayLike) -> Floats:
    """Magnetisations as float64. Raises ValueError if they are beyond -1 and 1: those of the whole lattice are."""
    values = np.asarray(magnetizations, np.float64)
    if np.abs(values).max(initial=0) > 1 + 1e-6:
        raise ValueError(f"magnetisations up to {np.abs(values).max():g}: divide them by the number of spins")
    return values


def specific_heat(energies: ArrayLike, temperature: float, n_sites: int) -> float:
    """C / N = (<E^2> - <E>^2) / (N T^2), in units of k_B."""
    return float(np.var(np.asarray(energies, np.float64))) / (n_sites * temperature**2)


def susceptibility(magnetizations: ArrayLike, temperature: float, n_sites: int) -> float:
    """chi / N = N (<m^2> - <|m|>^2) / T. It uses |m|, since <m> vanishes on a finite lattice at every T.

    Raises:
        ValueError: a magnetisation is beyond -1 or 1.
    """
    return n_sites * float(np.var(np.abs(_per_spin(magnetizations)))) / temperature


def binder_cumulant(magnetizations: ArrayLike) -> float:
    """U_4 = 1 - <m^4> / (3 <m^2>^2): 2/3 in the ordered phase, 0 in the disordered phase, 0.61069 at T_c for large L.

    K. Binder, Z. Phys. B 43, 119 (1981); the value at T_c: G. Kamieniarz, H. W. J. Bloete, J. Phys. A 26, 201 (1993).

    Raises:
        ValueError: all magnetisations vanish.
    """
    values = np.abs(np.asarray(magnetizations, np.float64))
    if not values.any():
        raise ValueError("all magnetisations vanish: the Binder cumulant is not defined")
    squares = (values / values.max()) ** 2
    return 1 - float(np.mean(squares**2)) / (3 * float(np.mean(squares)) ** 2)


def cumulant_and_slopes(
    magnetizations: ArrayLike, energies: ArrayLike, temperature: float
) -> tuple[Floats, Floats, Floats]:
    """The Binder cumulant U_4, <m^2> and their slopes, with their covariance, from series of independent chains.

    The slope of an observable A is d<A>/dT = (<A E> - <A> <E>) / T^2. The jackknife over chains gives the covariance
    and the leading bias, which is subtracted. The covariance is multiplied by (n - 1) / (n - p - 2), for p = 4 values
    and n chains, such that its inverse has no bias: J. Hartlap, P. Simon, P. Schneider, Astron. Astrophys. 464, 399
    (2007).

    Args:
        magnetizations: (n, steps) per spin.
        energies: (n, steps) of the whole lattice in J.
        temperature: in J / k_B.

    Returns:
        values (4,), their covariance (4, 4), and the bias that was subtracted (4,).

    Raises:
        ValueError: there are fewer than 7 chains, or a magnetisation is beyond -1 or 1.
    """
    m2, e = _per_spin(magnetizations) ** 2, np.asarray(energies, dtype=np.float64)
    n, n_steps = m2.shape
    if n < 7:
        raise ValueError(f"{n} chains: the covariance of four values needs at least 7")
    e = e - e.mean()
    factors = ((m2,), (m2, m2), (e,), (m2, e), (m2, m2, e))
    means = np.stack([np.einsum(",".join(["ij"] * len(each)) + "->i", *each) / n_steps for each in factors])

    def values(means: Floats) -> Floats:
        """Means of m^2, m^4, E, m^2 E and m^4 E (5, ...) -> U_4, <m^2> and their slopes (4, ...)."""
        m2, m4, e, m2_e, m4_e = means
        slope2, slope4 = (m2_e - m2 * e) / temperature**2, (m4_e - m4 * e) / temperature**2
        return np.stack([1 - m4 / (3 * m2**2), m2, (2 * m4 * slope2 / m2 - slope4) / (3 * m2**2), slope2])

    with_all = values(means.mean(axis=1))
    without = values((means.sum(axis=1, keepdims=True) - means) / (n - 1))  # (4, n): each chain left out in turn
    bias = (n - 1) * (without.mean(axis=1) - with_all)
    covariance = (n - 1) ** 2 / n * np.cov(without) * (n - 1) / (n - 6)
    return with_all - bias, covariance, bias


def temperature_bins(temperatures: ArrayLike, n_bins: int = N_BINS) -> list[NDArray[np.intp]]:
    """Bins of neighbouring temperatures, from low to high. Each bin is an array of indices of configurations.

    If the configurations have only a few different temperatures, each of these is a bin. Otherwise there are about
    `n_bins` bins with equal numbers of configurations, at least ten if there are enough. Equal temperatures are always
    in the same bin.

    Args:
        temperatures: (N,), in any order.

    Raises:
        ValueError: the temperatures are not (N,) with N at least 1, or one of them is NaN.
    """
    values = np.asarray(temperatures)
    if values.ndim != 1 or len(values) == 0 or np.isnan(values).any():
        raise ValueError(f"temperatures of shape {values.shape}: must be (N,) with N at least 1, without NaN")
    order = np.argsort(values, kind="stable")
    sorted_values = values[order]
    firsts = np.flatnonzero(np.append(True, sorted_values[1:] > sorted_values[:-1]))  # one for each distinct value
    if len(firsts) <= min(len(values) // 2, max(n_bins, len(values) // PER_BIN)):
        return np.split(order, firsts[1:])
    n = max(1, min(n_bins, len(values) // PER_BIN))
    ends = np.cumsum([len(part) for part in np.array_split(order, n)])[:-1]
    # A bin edge between equal temperatures moves behind them. A temperature that would fill a bin gets its own bin.
    lasts = np.append(firsts[1:], len(values))
    many = lasts - firsts >= len(values) / n
    edges = np.concatenate([lasts[np.searchsorted(lasts, ends)], firsts[many], lasts[many]])
    return np.split(order, np.setdiff1d(edges, [0, len(values)]))


def neighbour_correlation(values: ArrayLike, temperatures: ArrayLike) -> tuple[float, float]:
    """Correlation of values that follow each other at one temperature, and its distance from 0 in standard errors.

    For independent values, each order of those at one temperature is equally likely. This gives the mean and the
    variance of the sum of products of neighbours without any assumption about the distribution: P. A. P. Moran,
    Biometrika 35, 255 (1948). The correlation is that of ranks, so that a few rare values do not matter. Temperatures
    with fewer than three values, or at which half of the values are equal, contain too little information, and are left
    out. If none remains, the result is (0, 0).

    Args:
        values, temperatures: (N,) in the order of the file. Only equal temperatures are compared.
    """
    series = np.asarray(values)
    _, group, counts = np.unique(np.asarray(temperatures), return_inverse=True, return_counts=True)
    order, ends = np.argsort(group, kind="stable"), np.cumsum(counts)
    total = variance = pairs = 0.0
    for end, n in zip(ends[counts > 2].tolist(), counts[counts > 2].tolist(), strict=True):
        place = order[end - n : end]
        _, level, repeats = np.unique(series[place], return_inverse=True, return_counts=True)
        if 2 * repeats.max() >= n:
            continue
        ranks = (np.cumsum(repeats) - (repeats - 1) / 2)[level]
        d = (ranks - ranks.mean()) / ranks.std()
        fourth = float((d**4).sum())
        total += float((d[1:] * d[:-1]).sum()) + 1  # -1 is its mean
        variance += (n**2 - fourth) / n + (n**2 - 2 * fourth) / (n * (n - 1)) - 1
        pairs += n - 1
    return (total / pairs, total / variance**0.5) if variance > 0 else (0.0, 0.0)
