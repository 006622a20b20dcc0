# Experiment: yours, to replace.
"""The textbook Metropolis algorithm on a checkerboard, for many independent chains at once. Read this sampler first.

Sites of one colour only have neighbours of the other colour, so all sites of one colour can be updated at once. The
last, contiguous axis of the arrays contains the chains, each at its own temperature.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ising.exact import T_CRITICAL
from ising.lattice import check_integer, check_lattice_size, check_seed, check_temperatures


def sweep(spins: NDArray[np.int8], temperatures: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Propose one flip of every spin of every chain, in place: spins (L, L, N), temperatures (N,).

    A flip that changes the energy by dE is accepted with probability min(1, exp(-dE / T)) (Metropolis et al., 1953).
    With a uniform random number u, the condition is u < exp(-dE / T), or dE < -T ln u. Since -ln u is exponentially
    distributed, it is generated directly. This needs neither exp nor ln, and is accurate far into the tail.
    """
    rows, columns = np.indices(spins.shape[:2])
    for colour in (0, 1):
        sites = (rows + columns) % 2 == colour
        neighbours = (
            np.roll(spins, 1, axis=0)
            + np.roll(spins, -1, axis=0)
            + np.roll(spins, 1, axis=1)
            + np.roll(spins, -1, axis=1)
        )
        energy_change = 2 * spins[sites] * neighbours[sites]  # (L^2 / 2, N) int8 in {-8, -4, 0, 4, 8}
        threshold = temperatures * rng.standard_exponential(energy_change.shape, dtype=np.float32)  # -T ln u
        spins[sites] *= np.where(energy_change <= threshold, np.int8(-1), np.int8(1))


def equilibration_sweeps(lattice_size: int, *, clusters: bool = False) -> int:
    """Number of sweeps after which a chain has forgotten its start, at every temperature up to 10.

    This is at least 20 autocorrelation times of |m| at T_c, where they are longest. They are 3.3, 10.7, 47 and 189
    sweeps at L = 8, 16, 32 and 64 (experiments/equilibration.py). For L >= 16, 3 (L / 8)^2.17 is an upper bound. Its
    exponent is that of large lattices: M. P. Nightingale, H. W. J. Bloete, Phys. Rev. Lett. 76, 4548 (1996).

    The number is at least 100. At T = 10, nearly every flip is accepted, so a sweep flips nearly all spins. It then
    takes about 5 sweeps to forget the start.

    With `clusters`, a Wolff cluster is flipped after each sweep. The start is then forgotten most slowly above T_c,
    where clusters are small: with relaxation times of 5, 9, 21, 41 and 83 sweeps at L = 64, 128, 256, 512 and 1024, at
    temperatures from 2.42 to 2.31 (experiments/relaxation.py). The number is 20 times that.

    Raises:
        ValueError: the lattice size is odd or below 4.
    """
    lattice_size = check_lattice_size(lattice_size)
    if clusters:
        return max(100, round(100 * math.pow(lattice_size / 64, 1.02)))
    autocorrelation_time = 3 * math.pow(lattice_size / 8, 2.17)
    return max(100, round(20 * autocorrelation_time))


def sample(
    lattice_size: int, temperatures: ArrayLike, n_sweeps: int, seed: int | np.random.SeedSequence
) -> NDArray[np.int8]:
    """One configuration from each of N independent chains: temperatures (N,) in J / k_B -> spins (N, L, L) int8.

    A chain starts ordered below T_c, where a random start would freeze into stripes, and random above. At the end, it
    is flipped as a whole with probability 1/2, so both signs of the magnetisation are equally likely.

    Raises:
        ValueError: the lattice size is odd or below 4, the temperatures are not (N,), positive and finite, the number
            of sweeps is not an integer of at least 0, or the seed is neither an integer of at least 0 nor a
            SeedSequence.
    """
    lattice_size, n_sweeps = check_lattice_size(lattice_size), check_integer("n_sweeps", n_sweeps, 0)
    rng = np.random.default_rng(check_seed(seed))
    # Limited to the range of float32. At its ends, the temperature is practically zero and infinite.
    temperatures = np.clip(check_temperatures(temperatures), 1e-30, 1e30).astype(np.float32)
    signs = np.array([-1, 1], dtype=np.int8)
    random_start = rng.choice(signs, size=(lattice_size, lattice_size, temperatures.size))
    spins = np.where(temperatures < T_CRITICAL, np.int8(1), random_start)  # (L, L, N)
    for _ in range(n_sweeps):
        sweep(spins, temperatures, rng)
    spins *= rng.choice(signs, size=temperatures.size)
    return np.ascontiguousarray(np.moveaxis(spins, -1, 0))
