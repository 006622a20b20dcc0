"""What is known exactly about the 2D Ising model: the truth that every sample and every network is held against.

Energies and specific heats are per spin; units and signs are those of lattice.py.

Sources: L. Onsager, Phys. Rev. 65, 117 (1944); B. Kaufman, Phys. Rev. 76, 1232 (1949), for the finite lattice, in the
form of A. E. Ferdinand and M. E. Fisher, Phys. Rev. 185, 832 (1969).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ising.lattice import check_lattice_size, energy

Floats = NDArray[np.float64]

T_CRITICAL = 2 / math.log(1 + math.sqrt(2))  # Onsager 1944: sinh(2 / T_c) = 1

# Colder than this, the ground state is all there is in double precision: the first excitation costs 8, and
# exp(-8 / 0.02) = 1e-174. Stopping here keeps the hyperbolic functions of 2 / T from overflowing.
_COLDEST = 0.02


def _couplings(temperatures: ArrayLike) -> Floats:
    values = np.asarray(temperatures, dtype=np.float64)
    if not np.all((values > 0) & np.isfinite(values)):
        raise ValueError("temperatures must be positive and finite")
    return 1 / np.maximum(values, _COLDEST)


def onsager_energy(temperatures: ArrayLike) -> Floats:
    """Energy per spin of the infinite lattice: temperatures (...) -> (...).

    Onsager's u = -coth 2K [1 + (2 / pi) k' K_1(k)], with K = 1 / T, k' = 2 tanh^2 2K - 1, k^2 + k'^2 = 1. The complete
    elliptic integral is K_1(k) = pi / (2 agm(1, |k'|)), so that the bracket becomes 1 + k' / agm(1, |k'|).
    """
    coupling = _couplings(temperatures)
    modulus = 2 * np.tanh(2 * coupling) ** 2 - 1
    arithmetic, geometric = np.ones_like(modulus), np.abs(modulus)
    for _ in range(64):  # a handful would do, except at T_c: the modulus vanishes and the mean only halves each time
        arithmetic, geometric = (arithmetic + geometric) / 2, np.sqrt(arithmetic * geometric)
    return np.asarray(-(1 + modulus / arithmetic) / np.tanh(2 * coupling))


def kaufman(temperatures: ArrayLike, lattice_size: int) -> tuple[Floats, Floats]:
    """Energy and specific heat per spin of the periodic L x L lattice: temperatures (...) -> two arrays (...).

    The partition function is a sum of four products over wave numbers r, odd or even, from 0 to 2L - 1:

        2 Z = (2 sinh 2K)^(L^2 / 2) * (  prod_odd 2 cosh x_r  +  prod_odd 2 sinh x_r
                                       + prod_even 2 cosh x_r + prod_even 2 sinh x_r),    x_r = L g_r / 2,

    with cosh g_r = cosh 2K coth 2K - cos(pi r / L), and g_0 = 2K + ln tanh K, which changes its sign at T_c. The energy
    is -d ln Z / dK and the specific heat K^2 d^2 ln Z / dK^2. In the code, a name that ends in 1 or 2 is a first or
    second derivative with respect to K; products are kept as logarithms, so that no lattice is too large.
    """
    check_lattice_size(lattice_size)
    half, n_sites = lattice_size / 2, lattice_size**2
    coupling = _couplings(temperatures)
    sinh, cosh = np.sinh(2 * coupling), np.cosh(2 * coupling)

    # x_r for r = 1 ... 2L - 1, on a last axis. With c = cosh g: c1 = sinh(g) g1 and c2 = cosh(g) g1^2 + sinh(g) g2.
    c = (cosh**2 / sinh)[..., None] - np.cos(np.pi * np.arange(1, 2 * lattice_size) / lattice_size)
    c1 = (2 * cosh * (1 - 1 / sinh**2))[..., None]
    c2 = (4 * sinh * (1 - 1 / sinh**2) + 8 * cosh**2 / sinh**3)[..., None]
    sinh_g = np.sqrt((c - 1) * (c + 1))
    g1 = c1 / sinh_g
    x = np.array([half * np.log(c + sinh_g), half * g1, half * (c2 - c * g1**2) / sinh_g])

    # The four products without r = 0, as ln P and its derivatives, each (4, ...): cosh and sinh, odd r, then even r.
    log_p, log_p1, log_p2 = np.concatenate([_log_products(*x[..., 0::2]), _log_products(*x[..., 1::2])], axis=1)

    # r = 0 is on its own, since y = x_0 vanishes at T_c and the logarithm of 2 sinh y with it. The products that have
    # it get the factor f = 2 cosh y or 2 sinh y, here over exp |y|.
    y = half * (2 * coupling + np.log(np.tanh(coupling)))
    y1, y2 = half * (2 + 2 / sinh), half * (-4 * cosh / sinh**2)
    decay = np.exp(-2 * np.abs(y))
    cosh_y, sinh_y = 1 + decay, np.sign(y) * (1 - decay)
    one, none = np.ones_like(y), np.zeros_like(y)
    f = np.array([one, one, cosh_y, sinh_y])
    f1 = np.array([none, none, y1 * sinh_y, y1 * cosh_y])
    f2 = np.array([none, none, y2 * sinh_y + y1**2 * cosh_y, y2 * cosh_y + y1**2 * sinh_y])
    log_p[2:] += np.abs(y)

    # Their sum S = sum P f, relative to the largest. Slopes are counted from that of the first product, so that
    # (ln S)'' = S'' / S - (S' / S)^2 is no difference of large numbers.
    weight = np.exp(log_p - log_p.max(axis=0))
    slope = log_p1 - log_p1[0]
    total = (weight * f).sum(0)
    first = (weight * (f * slope + f1)).sum(0) / total
    second = (weight * (f * (slope**2 + log_p2) + 2 * f1 * slope + f2)).sum(0) / total

    log_z1 = n_sites / np.tanh(2 * coupling) + log_p1[0] + first
    log_z2 = -2 * n_sites / sinh**2 + second - first**2
    return -log_z1 / n_sites, np.maximum(coupling**2 * log_z2 / n_sites, 0)  # 0: rounding, below T = 0.2


def _log_products(x: Floats, x1: Floats, x2: Floats) -> Floats:
    """ln prod 2 cosh x and ln prod 2 sinh x over the last axis, with two derivatives: (..., r) -> (3, 2, ...)."""
    products = []
    for sign, slope in ((1, np.tanh(x)), (-1, 1 / np.tanh(x))):
        log = x + np.log1p(sign * np.exp(-2 * x))
        products.append([log.sum(-1), (x1 * slope).sum(-1), (x2 * slope + x1**2 * (1 - slope**2)).sum(-1)])
    return np.array(products).swapaxes(0, 1)


def enumerate_configurations() -> NDArray[np.int8]:
    """Every configuration of the 4 x 4 lattice: (65536, 4, 4) int8 in {-1, +1}."""
    bits = np.arange(2**16)[:, None] >> np.arange(16) & 1
    return (2 * bits - 1).astype(np.int8).reshape(-1, 4, 4)


def density_of_states(lattice_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The energy levels and how many configurations have each: two arrays (levels,), by enumeration, for L = 4."""
    if lattice_size != 4:
        raise ValueError(f"lattice size {lattice_size}: only 4 x 4 has few enough configurations to enumerate")
    levels, counts = np.unique(energy(enumerate_configurations()), return_counts=True)
    return levels, counts
