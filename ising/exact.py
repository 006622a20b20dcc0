# Experiment: yours, to replace.
"""Exact results for the 2D Ising model, with which samples and networks are compared.

Energies and specific heats are per spin. Units and signs are those of lattice.py.

Sources: L. Onsager, Phys. Rev. 65, 117 (1944); B. Kaufman, Phys. Rev. 76, 1232 (1949), for the finite lattice, in the
form of A. E. Ferdinand and M. E. Fisher, Phys. Rev. 185, 832 (1969).
"""

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ising.lattice import check_integer, check_lattice_size, check_seed

Floats = NDArray[np.float64]

T_CRITICAL = 2 / math.log(1 + math.sqrt(2))  # Onsager 1944: sinh(2 / T_c) = 1

COLDEST = 1e-200  # lowest temperature accepted: 2 L^2 / T, the largest term of ln Z, must not overflow

# Kaufman's closed form is used for couplings K = 1 / T between these two, from T = 1000 to T = 0.5. It computes the
# specific heat as a difference of larger terms, whose relative rounding errors are about 1e-15. At low temperatures, it
# is 64 K^2 exp(-8 K), a difference of terms of order 1. At high temperatures, it is 2 K^2, with terms of order 1 / K^2.
# Outside the range, the first terms of the low- and high-temperature series are more accurate.
_HOT, _COLD = 1e-3, 2.0


def _couplings(temperatures: ArrayLike) -> Floats:
    """K = 1 / T, (...) -> (...). Raises ValueError if a temperature is not finite or below 1e-200."""
    values = np.asarray(temperatures, dtype=np.float64)
    if not np.all((values >= COLDEST) & np.isfinite(values)):
        raise ValueError(f"temperatures must be positive and finite, and at least {COLDEST:g}")
    return np.asarray(1 / values)


def onsager_energy(temperatures: ArrayLike) -> Floats:
    """Energy per spin of the infinite lattice: temperatures (...) -> (...).

    Onsager's u = -coth 2K [1 + (2 / pi) k' K_1(k)], with K = 1 / T, k' = 2 tanh^2 2K - 1, k^2 + k'^2 = 1. The complete
    elliptic integral is K_1(k) = pi / (2 agm(1, |k'|)), with the arithmetic-geometric mean agm, so the bracket is
    1 + k' / agm(1, |k'|). The relative error is at most 1e-9. Above T = 1000, the bracket is lost in rounding errors,
    and the high-temperature series is used instead.

    Raises:
        ValueError: a temperature is not finite or below 1e-200. All functions here that take temperatures raise this.
    """
    coupling = _couplings(temperatures)
    modulus = 2 * np.tanh(2 * coupling) ** 2 - 1
    arithmetic, geometric = np.ones_like(modulus), np.abs(modulus)
    for _ in range(64):  # a few are enough except at T_c, where k' = 0 and each step only halves the mean
        arithmetic, geometric = (arithmetic + geometric) / 2, np.sqrt(arithmetic * geometric)
    v = np.tanh(coupling)
    closed_form = -(1 + modulus / arithmetic) / np.tanh(2 * coupling)
    return np.asarray(np.where(coupling < _HOT, -2 * v - 4 * v**3, closed_form))


def yang_magnetization(temperatures: ArrayLike) -> Floats:
    """Spontaneous magnetisation per spin of the infinite lattice, 0 above T_c: temperatures (...) -> (...).

    (1 - sinh(2 / T)^-4)^(1/8): C. N. Yang, Phys. Rev. 85, 808 (1952). The absolute error of its 8th power is 1e-15.
    """
    coupling = np.clip(_couplings(temperatures), 0.1, 100)  # beyond this range, the result is 0 or 1 to all digits
    return np.asarray(np.maximum(1 - np.sinh(2 * coupling) ** -4.0, 0) ** 0.125)


def kaufman(temperatures: ArrayLike, lattice_size: int) -> tuple[Floats, Floats]:
    """Energy U and specific heat C per spin of the periodic L x L lattice: temperatures (...) -> two arrays (...).

    The relative errors of U and C are at most 1e-9. Below T_c, that of U is 1e-15. U + 2, the energy above the ground
    state, has fewer digits: it is 8 exp(-8 / T) to leading order, and lost in the rounding of U below T = 0.2.

    Raises:
        ValueError: the lattice size is odd or below 4, or a temperature is not finite or below 1e-200.
    """
    _, energy, specific_heat = _kaufman(temperatures, lattice_size)
    return energy, specific_heat


def log_partition_function(temperatures: ArrayLike, lattice_size: int) -> Floats:
    """ln Z, with Z = sum exp(-E / T) over all configurations of the L x L lattice: temperatures (...) -> (...).

    Raises:
        ValueError: the lattice size is odd or below 4, or a temperature is not finite or below 1e-200.
    """
    n_sites = check_lattice_size(lattice_size) ** 2
    return 2 * n_sites * _couplings(temperatures) + _kaufman(temperatures, lattice_size)[0]


def _kaufman(temperatures: ArrayLike, lattice_size: int) -> tuple[Floats, Floats, Floats]:
    """ln Z - 2 L^2 / T, and the energy and specific heat per spin: temperatures (...) -> three arrays (...).

    The first is the logarithm of the sum of exp(-(E - E_0) / T), with the energy E_0 = -2 L^2 of the ground states. At
    low temperatures it is ln 2, which would be lost in the rounding of ln Z.
    """
    lattice_size = check_lattice_size(lattice_size)
    coupling = _couplings(temperatures)
    cold = _low_temperature_series(np.maximum(coupling, _COLD), lattice_size)
    hot = _high_temperature_series(np.minimum(coupling, _HOT), lattice_size)
    between = _closed_form(np.clip(coupling, _HOT, _COLD), lattice_size)
    log_z, energy, specific_heat = np.where(coupling > _COLD, cold, np.where(coupling < _HOT, hot, between))
    return log_z, energy, specific_heat


def _low_temperature_series(coupling: Floats, lattice_size: int) -> Floats:
    """The results of `_kaufman` for T <= 0.5: (...) -> (3, ...).

    With z = exp(-4 K), ln Z - 2 L^2 K = ln 2 + L^2 (z^2 + 2 z^3 + 9/2 z^4 + 12 z^5 + ...): C. Domb, Adv. Phys. 9, 149
    (1960). Domain walls around the lattice change the coefficients from z^L on. Those of L = 4 follow from its density
    of states. The first neglected term, 112/3 z^6 or 151/3 z^6, is less than 1e-11 of the specific heat.
    """
    z = np.exp(-4 * coupling)
    n = np.arange(2, 6)
    coefficients = np.array([1, 2, 21 / 4, 22] if lattice_size == 4 else [1, 2, 9 / 2, 12])
    terms = coefficients * z[..., None] ** (n - 2)
    log_z = math.log(2) + (lattice_size * z) ** 2 * terms.sum(axis=-1)
    energy = 4 * z**2 * (n * terms).sum(axis=-1) - 2  # -d ln Z / dK / L^2, with dz / dK = -4 z
    return np.array([log_z, energy, (4 * coupling * z) ** 2 * (n**2 * terms).sum(axis=-1)])


def _high_temperature_series(coupling: Floats, lattice_size: int) -> Floats:
    """The results of `_kaufman` for T >= 1000: (...) -> (3, ...).

    With v = tanh K, ln Z = L^2 (ln 2 + 2 ln cosh K + a v^4 + ...), from the L^2 smallest loops: a = 1. At L = 4, the
    2 L loops straight around the lattice have the same length: a = 3/2. Neglected terms: less than 1e-10 of U and C.
    """
    v, a = np.tanh(coupling), 1.5 if lattice_size == 4 else 1.0
    log_z = lattice_size**2 * (math.log(2) + np.log1p(np.sinh(coupling) ** 2) + a * v**4 - 2 * coupling)
    return np.array([log_z, -2 * v - 4 * a * v**3, coupling**2 * (2 + (12 * a - 2) * v**2)])


def _closed_form(coupling: Floats, lattice_size: int) -> Floats:
    """The results of `_kaufman` from Kaufman's solution: (...) -> (3, ...).

    The partition function is a sum of four products over wave numbers r, odd or even, from 0 to 2L - 1:

        2 Z = (2 sinh 2K)^(L^2 / 2) * (  prod_odd 2 cosh x_r  +  prod_odd 2 sinh x_r
                                       + prod_even 2 cosh x_r + prod_even 2 sinh x_r),    x_r = L g_r / 2,

    with cosh g_r = cosh 2K coth 2K - cos(pi r / L), and g_0 = 2K + ln tanh K, which changes its sign at T_c. The energy
    is -d ln Z / dK and the specific heat K^2 d^2 ln Z / dK^2. In the code, a name that ends in 1 or 2 is a first or
    second derivative with respect to K. Products are stored as logarithms, so they do not overflow on large lattices.
    """
    half, n_sites = lattice_size / 2, lattice_size**2
    sinh, cosh = np.sinh(2 * coupling), np.cosh(2 * coupling)

    # x_r for r = 1 ... 2L - 1 on the last axis. With c = cosh g: c1 = sinh(g) g1 and c2 = cosh(g) g1^2 + sinh(g) g2.
    c = (cosh**2 / sinh)[..., None] - np.cos(np.pi * np.arange(1, 2 * lattice_size) / lattice_size)
    c1 = (2 * cosh * (1 - 1 / sinh**2))[..., None]
    c2 = (4 * sinh * (1 - 1 / sinh**2) + 8 * cosh**2 / sinh**3)[..., None]
    sinh_g = np.sqrt((c - 1) * (c + 1))
    g1 = c1 / sinh_g
    x = np.array([half * np.log(c + sinh_g), half * g1, half * (c2 - c * g1**2) / sinh_g])

    # The four products without r = 0, as ln P and its derivatives, each (4, ...): cosh and sinh, odd r, then even r.
    log_p, log_p1, log_p2 = np.concatenate([_log_products(*x[..., 0::2]), _log_products(*x[..., 1::2])], axis=1)

    # r = 0 is treated separately, since y = x_0 vanishes at T_c, where ln(2 sinh y) diverges. The products over even r
    # get the factor f = 2 cosh y or 2 sinh y. Here f is divided by exp |y|, and |y| is added to ln P.
    y = half * (2 * coupling + np.log(np.tanh(coupling)))
    y1, y2 = half * (2 + 2 / sinh), half * (-4 * cosh / sinh**2)
    decay = np.exp(-2 * np.abs(y))
    cosh_y, sinh_y = 1 + decay, np.sign(y) * (1 - decay)
    one, none = np.ones_like(y), np.zeros_like(y)
    f = np.array([one, one, cosh_y, sinh_y])
    f1 = np.array([none, none, y1 * sinh_y, y1 * cosh_y])
    f2 = np.array([none, none, y2 * sinh_y + y1**2 * cosh_y, y2 * cosh_y + y1**2 * sinh_y])
    log_p[2:] += np.abs(y)

    # The sum S = sum P f, relative to the largest P. Slopes are relative to that of the first product. Otherwise,
    # (ln S)'' = S'' / S - (S' / S)^2 would be a difference of large numbers.
    weight = np.exp(log_p - log_p.max(axis=0))
    slope = log_p1 - log_p1[0]
    total = (weight * f).sum(0)
    first = (weight * (f * slope + f1)).sum(0) / total
    second = (weight * (f * (slope**2 + log_p2) + 2 * f1 * slope + f2)).sum(0) / total

    log_z = n_sites / 2 * np.log(2 * sinh) + log_p.max(axis=0) + np.log(total / 2) - 2 * n_sites * coupling
    log_z1 = n_sites / np.tanh(2 * coupling) + log_p1[0] + first
    log_z2 = -2 * n_sites / sinh**2 + second - first**2
    return np.array([log_z, -log_z1 / n_sites, coupling**2 * log_z2 / n_sites])


def _log_products(x: Floats, x1: Floats, x2: Floats) -> Floats:
    """ln prod 2 cosh x and ln prod 2 sinh x over the last axis, and two derivatives: (..., r) -> (3, 2, ...)."""
    products = []
    for sign, slope in ((1, np.tanh(x)), (-1, 1 / np.tanh(x))):
        log = x + np.log1p(sign * np.exp(-2 * x))
        products.append([log.sum(-1), (x1 * slope).sum(-1), (x2 * slope + x1**2 * (1 - slope**2)).sum(-1)])
    return np.array(products).swapaxes(0, 1)


def phase_log_odds(energies: ArrayLike, temperatures: Floats, lattice_size: int) -> Floats:
    """Log-odds that T is below T_c, given the energies of configurations: (N,) -> (N,).

    This is Bayes' rule with a prior in which each of the `temperatures` (M,) has the same probability. The probability
    of a configuration s is p(s | T) = exp(-E / T - ln Z(T)), which depends on s only through its energy. The result is
    clipped to the range from -1000 to 1000, since JSON has no infinity.

    Raises:
        ValueError: there are no temperatures, one is not finite or below 1e-200, or the lattice size is odd or below 4.
    """
    n_sites = check_lattice_size(lattice_size) ** 2
    levels, place = np.unique(np.asarray(energies, dtype=np.float64), return_inverse=True)
    temperatures = np.asarray(temperatures, dtype=np.float64)
    if _couplings(temperatures).size == 0:
        raise ValueError("no temperatures: Bayes' rule needs at least one")
    log_weights = []
    for side in (temperatures[temperatures < T_CRITICAL], temperatures[temperatures >= T_CRITICAL]):
        weight = np.log(len(side)) if len(side) else -np.inf
        # If there are more than 1,000 temperatures, 1,000 quantiles are used.
        some = np.quantile(side, (np.arange(1000) + 0.5) / 1000) if len(side) > 1000 else side
        if len(some):
            exponents = -(levels[:, None] + 2 * n_sites) / some - _kaufman(some, lattice_size)[0]
            weight = weight + np.logaddexp.reduce(exponents, axis=1) - np.log(len(some))
        log_weights.append(np.broadcast_to(weight, levels.shape))
    with np.errstate(invalid="ignore"):
        odds: Floats = np.clip(log_weights[0] - log_weights[1], -1e3, 1e3)
    return odds[place]


def energy_distribution(temperatures: Floats, lattice_size: int) -> tuple[NDArray[np.int64], Floats]:
    """Energy levels (levels,), and the probability of each at each temperature (M, levels), for L = 4, 6, 8."""
    levels, counts = density_of_states(lattice_size)
    log_p = np.log(counts) - (levels - levels[0]) * _couplings(temperatures)[:, None]
    log_p -= _kaufman(temperatures, lattice_size)[0][:, None]
    return levels, np.exp(log_p)


def energy_histogram(temperature: float, lattice_size: int) -> tuple[NDArray[np.int64], Floats]:
    """Energy levels and the probability of each at one temperature, for every L: two arrays (L^2 + 1,).

    The levels are E_j = 4 j - 2 L^2, including two that do not occur. The sum of exp(-(E - E_0) K) over configurations
    is Z exp(E_0 K), with the ground state energy E_0 = -2 L^2. Divided by its value at K = 1 / T, it is
    sum_j p_j exp(-i a j) at the coupling K + i a / 4. The probabilities p_j follow by Fourier transform from Kaufman's
    Z at complex couplings. Their absolute error is about 1e-14, and those below 1e-13 are set to 0.

    Raises:
        ValueError: the lattice size is odd or below 4, or the temperature is not finite or below 1.
    """
    lattice_size = check_lattice_size(lattice_size)
    if not 1 <= temperature < math.inf:
        raise ValueError(f"temperature {temperature}: must be finite and at least 1")
    n = lattice_size**2 + 2  # even, and more than the number of levels
    log_z = _complex_log_z(1 / temperature + 0.5j * np.pi * np.arange(n // 2 + 1) / n, lattice_size)
    p = np.fft.irfft(np.exp(log_z - log_z[0].real), n)[:-1]
    return 4 * np.arange(n - 1) - 2 * lattice_size**2, np.where(p > 1e-13, p, 0)


def _complex_log_z(coupling: NDArray[Any], lattice_size: int) -> NDArray[Any]:
    """ln Z - 2 L^2 K at complex couplings K, (n,) -> (n,), up to multiples of 2 pi i, as in `_closed_form`.

    The factor (sinh 2K)^(L^2 / 2) in front of the products is divided among the L factors of each product. At high
    temperatures, its logarithm and theirs would be large, and cancel.

    Wave numbers r and 2 L - r give equal factors. Therefore, the signs of the square roots in g_r have no effect. Those
    without a partner are r = 0 and r = L, with g_L = 2K - ln tanh K.
    """
    half, sinh = lattice_size / 2, np.sinh(2 * coupling)
    wave_numbers = np.arange(1, lattice_size)
    c = (np.cosh(2 * coupling) ** 2)[:, None] - np.multiply.outer(sinh, np.cos(np.pi * wave_numbers / lattice_size))
    root = np.sqrt(c**2 - sinh[:, None] ** 2)
    larger = np.where((c.conj() * root).real < 0, c - root, c + root)  # sinh 2K exp g_r, (n, L - 1)
    x, decay = half * np.log(larger), (sinh[:, None] / larger) ** lattice_size
    log_cosh, log_sinh = 2 * (x + np.log1p(decay)), 2 * (x + np.log1p(-decay))
    odd = wave_numbers % 2 == 1
    logs = np.array([log[:, rs].sum(axis=1) for rs in (odd, ~odd) for log in (log_cosh, log_sinh)])
    ends = half * (2 * coupling + np.multiply.outer([1, -1], np.log(np.tanh(coupling))))  # x_0 and x_L
    signs = np.where(ends.real < 0, -1, 1)
    decay = np.exp(-2 * signs * ends)
    factors = np.ones_like(logs)
    factors[2], factors[3] = (1 + decay).prod(axis=0), (signs * (1 - decay)).prod(axis=0)
    logs[2:] += (signs * ends + half * np.log(sinh)).sum(axis=0)
    largest = logs.real.max(axis=0)
    total = (factors * np.exp(logs - largest)).sum(axis=0)
    return np.asarray(lattice_size**2 * (math.log(2) / 2 - 2 * coupling) + largest + np.log(total / 2))


def phase_accuracy(temperatures: Floats, prior: Floats, lattice_size: int) -> Floats:
    """Accuracy of the sign of `phase_log_odds` as a classifier, at each temperature (M,), for L = 4, 6, 8."""
    levels, p = energy_distribution(temperatures, lattice_size)
    below = phase_log_odds(levels, prior, lattice_size) > 0
    return np.asarray((p * (below == (np.asarray(temperatures) < T_CRITICAL)[:, None])).sum(axis=1))


def enumerate_configurations() -> NDArray[np.int8]:
    """All configurations of the 4 x 4 lattice: (65536, 4, 4) int8 in {-1, +1}."""
    bits = np.arange(2**16)[:, None] >> np.arange(16) & 1
    return (2 * bits - 1).astype(np.int8).reshape(-1, 4, 4)


@functools.cache
def density_of_states(lattice_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Energy levels and the exact number of configurations at each: two arrays (levels,), for L = 4, 6, 8.

    A bond is unlike if its two spins differ. Configurations with u unlike bonds have the energy 2 u - 2 L^2, and their
    number is the coefficient of x^u in tr M^L. The transfer matrix M(a, b) = x^(unlike bonds between rows a and b, and
    within b) adds a row. Its part between rows is a product over columns: a spin of b equals the one above it (factor
    1) or differs from it (factor x). All counts are below 2^63. Their sum at L = 8 is 2^64, which overflows int64: add
    them as Python integers.

    Raises:
        ValueError: the lattice size is not 4, 6 or 8.
    """
    lattice_size = check_lattice_size(lattice_size)
    rows, unlike_within = _rows(lattice_size)
    unlike = np.zeros((len(rows), 2 * lattice_size**2 + 1), np.int64)  # (last row, u): coefficients of x^u
    counts = np.zeros(unlike.shape[1], np.int64)
    # First rows that are equivalent by symmetry have the same counts: only one of them is computed.
    for first, n_equivalent in zip(*np.unique(_representatives(lattice_size), return_counts=True), strict=True):
        unlike[:] = 0
        unlike[first, 0] = 1
        for _ in range(lattice_size):
            for column in range(lattice_size):
                unlike[:, 1:] += unlike[rows ^ 1 << column, :-1]
            for n in range(2, lattice_size + 1, 2):
                shifted = unlike[unlike_within == n]
                unlike[unlike_within == n] = np.roll(shifted, n, axis=1)  # entries that wrap around are zero
        counts += n_equivalent * unlike[first]  # the trace: the last row is the first
    levels = 2 * np.arange(len(counts)) - 2 * lattice_size**2
    levels, counts = levels[counts > 0], counts[counts > 0]
    for array in (levels, counts):
        array.flags.writeable = False  # the cached arrays are returned again
    return levels, counts


def _rows(lattice_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All configurations of a row as bits of integers, and the unlike bonds within each: two arrays (2^L,)."""
    if lattice_size not in (4, 6, 8):
        raise ValueError(f"lattice size {lattice_size}: must be 4, 6 or 8")
    rows = np.arange(2**lattice_size)
    rotated = rows >> 1 | (rows & 1) << lattice_size - 1
    return rows, np.bitwise_count(rows ^ rotated).astype(np.int64)


def _representatives(lattice_size: int) -> NDArray[np.int64]:
    """For each row, the smallest integer among the rows that are equivalent by shifts and a spin flip: (2^L,)."""
    rows, _ = _rows(lattice_size)
    shifted = np.array([rows >> n | rows << lattice_size - n for n in range(lattice_size)]) & len(rows) - 1
    return np.asarray(np.minimum(shifted, shifted ^ len(rows) - 1).min(axis=0))


def sample(lattice_size: int, temperature: float, n: int, seed: int | np.random.SeedSequence) -> NDArray[np.int8]:
    """Independent configurations, sampled without a Markov chain: (n, L, L) int8, for L = 4, 6, 8.

    With the transfer matrix M(a, b) = exp(-2 / T (unlike bonds between rows a and b, and within b)), the first row r_0
    is a with probability M^L(a, a) / tr M^L. Given the previous row and the first one, row i is b with probability
    M(r_{i-1}, b) M^{L-i}(b, r_0) / M^{L-i+1}(r_{i-1}, r_0).

    Raises:
        ValueError: the lattice size is not 4, 6 or 8, the temperature is not finite or below 1e-200, n is not an
            integer of at least 0, or the seed is neither an integer of at least 0 nor a SeedSequence.
    """
    lattice_size, n = check_lattice_size(lattice_size), check_integer("n", n, 0)
    rows, unlike_within = _rows(lattice_size)
    unlike = np.bitwise_count(rows[:, None] ^ rows) + unlike_within
    powers = [np.eye(len(rows)), np.exp(-2 * float(_couplings(float(temperature))) * unlike)]
    while len(powers) <= lattice_size:
        powers.append(powers[-1] @ powers[1])
    rng = np.random.default_rng(check_seed(seed))
    weights = powers[-1].diagonal()
    first = rng.choice(rows, n, p=weights / weights.sum())
    sampled = np.empty((n, lattice_size), np.int64)  # rows as bits of integers
    for start in range(0, n, 2**12):  # in chunks, to limit the memory
        chunk = sampled[start : start + 2**12]
        chunk[:, 0] = first[start : start + 2**12]
        for i in range(1, lattice_size):
            cumulative = (powers[1][chunk[:, i - 1]] * powers[lattice_size - i].T[chunk[:, 0]]).cumsum(axis=1)
            target = rng.random((len(chunk), 1)) * cumulative[:, -1:]
            chunk[:, i] = (cumulative <= target).sum(axis=1)
    return (2 * (sampled[..., None] >> np.arange(lattice_size) & 1) - 1).astype(np.int8)
