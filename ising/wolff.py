# Experiment: yours, to replace.
"""Wolff's cluster algorithm, for one configuration at a time. Read it before the compiled clusters in kernel.py.

Near T_c, neighbouring spins form domains of all sizes. The Metropolis algorithm moves the boundary of a domain by
single flips, so that a domain of length L lives for about L^2.17 sweeps. Wolff flips whole clusters:

    cluster = {a random site}
    for each site of the cluster:
        for each of its four neighbours that has the same spin:
            add it to the cluster with probability p = 1 - exp(-2 / T)
    flip all spins of the cluster

The cluster ends at a boundary where every bond between like spins was refused, with probability exp(-2 / T) each. After
the flip, other bonds connect like spins there. The ratio of the two probabilities is exactly the Boltzmann factor of
the change in energy, so that detailed balance holds, and every cluster is accepted: U. Wolff, Phys. Rev. Lett. 62, 361
(1989). At T_c, a cluster contains a finite fraction of the lattice, and two clusters are nearly independent.
"""

import math
import time

import numpy as np
from numpy import uint32, uint64
from numpy.typing import ArrayLike, NDArray

from ising.kernel import compiled, require_compiler
from ising.lattice import check_integer, check_lattice_size, check_seed, check_temperatures, children

STEP = uint64(0x9E3779B97F4A7C15)  # of the counter of the random generator


@compiled
def flip_clusters(  # noqa: PLR0917 - Numba has no keyword-only parameters
    spins: NDArray[np.int8],
    n_clusters: int,
    p: float,
    queue: NDArray[np.uint32],
    state: NDArray[np.uint64],
    is_triangular: bool = False,
) -> int:
    """Build and flip clusters, one after the other. Return the total number of flipped spins.

    Args:
        spins: (L, L), changed in place.
        p: the probability to add a like neighbour, 1 - exp(-2 / T).
        queue: (L^2 + 1,), the sites of a cluster, in the order in which they were found.
        state: (1,), of the random generator, changed in place.
        is_triangular: also use the two neighbours on a diagonal, as on the triangular lattice.
    """
    size, one = uint32(spins.shape[0]), uint32(1)
    flat = spins.reshape(-1)
    threshold = uint64(p * 2.0**32)
    counter = state[0]
    n_flipped = 0
    for _ in range(n_clusters):
        counter += STEP
        site = uint32((_hash(counter) >> uint64(32)) * uint64(size * size) >> uint64(32))
        spin = flat[site]
        flat[site] = -spin  # a site is flipped when it is found, so that it cannot be found again
        # Sites in the queue are pairs of row and column in one number, since a division to find the row is slow.
        queue[0], first, last = site // size << uint32(16) | site % size, uint64(0), uint64(1)
        while first < last:
            row, column = queue[first] >> uint32(16), queue[first] & uint32(0xFFFF)
            first += uint64(1)
            right = column + one if column + one < size else uint32(0)
            left = column - one if column > uint32(0) else size - one
            down = row + one if row + one < size else uint32(0)
            up = row - one if row > uint32(0) else size - one
            counter += STEP
            for_row = _hash(counter)  # two numbers of 32 bits each
            counter += STEP
            for_column = _hash(counter)
            for i, j, number in (
                (row, right, for_row >> uint64(32)),
                (row, left, for_row & uint64(0xFFFFFFFF)),
                (down, column, for_column >> uint64(32)),
                (up, column, for_column & uint64(0xFFFFFFFF)),
            ):
                # Without a branch, which the processor would often predict wrongly: the neighbour is always written
                # behind the last site of the queue, which is then only extended if the neighbour is added.
                neighbour = flat[i * size + j]
                is_added = (neighbour == spin) & (number < threshold)
                queue[last] = i << uint32(16) | j
                last += uint64(is_added)
                flat[i * size + j] = -spin if is_added else neighbour
            if is_triangular:
                counter += STEP
                for_diagonal = _hash(counter)
                for i, j, number in (
                    (down, left, for_diagonal >> uint64(32)),
                    (up, right, for_diagonal & uint64(0xFFFFFFFF)),
                ):
                    neighbour = flat[i * size + j]
                    is_added = (neighbour == spin) & (number < threshold)
                    queue[last] = i << uint32(16) | j
                    last += uint64(is_added)
                    flat[i * size + j] = -spin if is_added else neighbour
        n_flipped += int(last)
    state[0] = counter
    return n_flipped


@compiled
def _hash(z: uint64) -> uint64:
    """The random number of a counter that grows by STEP: SplitMix64, G. L. Steele, D. Lea, C. H. Flood, OOPSLA 2014."""
    z = (z ^ z >> uint64(30)) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> uint64(27)) * uint64(0x94D049BB133111EB)
    return z ^ z >> uint64(31)


@compiled
def _sample(
    configurations: NDArray[np.int8],
    temperatures: NDArray[np.float64],
    n_sweeps: int,
    states: NDArray[np.uint64],
    is_triangular: bool = False,
) -> None:
    """Equilibrate one chain per temperature. configurations: (N, L, L), states: (N, 1), of the random generators."""
    n_chains, size, _ = configurations.shape
    queue = np.empty(size * size + 1, np.uint32)
    for chain in range(n_chains):
        spins, state = configurations[chain], states[chain]
        p = -math.expm1(-2 / temperatures[chain])
        spins[:] = 1
        # How many clusters are a sweep depends on the temperature. In the first half, they are counted. Their number is
        # then fixed: the end of a chain that stops after a number of flips would depend on the last cluster.
        n_clusters, n_flipped = 0, 0
        while 2 * n_flipped < n_sweeps * size * size:
            n_flipped += flip_clusters(spins, 1, p, queue, state, is_triangular)
            n_clusters += 1
        flip_clusters(spins, n_clusters, p, queue, state, is_triangular)
        if _hash(state[0] + STEP) >> uint64(63):
            for i in range(size):
                for j in range(size):
                    spins[i, j] = -spins[i, j]


def sample(
    lattice_size: int, temperatures: ArrayLike, n_sweeps: int, seed: int | np.random.SeedSequence
) -> NDArray[np.int8]:
    """One configuration from each of N independent chains: temperatures (N,) in J / k_B -> spins (N, L, L) int8.

    A chain starts ordered. In a sweep, as many clusters are flipped as contain L^2 spins on average. At the end, the
    chain is flipped as a whole with probability 1/2, as in metropolis.py.

    Raises:
        RuntimeError: the settings of Numba switch compilation off.
        ValueError: the lattice size is odd or below 4, the temperatures are not (N,), positive and finite, the number
            of sweeps is not an integer of at least 0, or the seed is neither an integer of at least 0 nor a
            SeedSequence.
    """
    return run_chains(check_lattice_size(lattice_size), temperatures, n_sweeps, seed, is_triangular=False)


def run_chains(
    lattice_size: int,
    temperatures: ArrayLike,
    n_sweeps: int,
    seed: int | np.random.SeedSequence,
    *,
    is_triangular: bool,
) -> NDArray[np.int8]:
    """`sample`, for the square or the triangular lattice, whose size the caller has checked."""
    require_compiler()
    n_sweeps, values = check_integer("n_sweeps", n_sweeps, 0), check_temperatures(temperatures)
    spins = np.empty((len(values), lattice_size, lattice_size), np.int8)
    _sample(spins, values, n_sweeps, generator_states(seed, len(values)), is_triangular)
    return spins


def get_ready() -> float | None:
    """Compile `sample` unless its machine code is cached. Return the seconds this took, or None if it was cached."""
    require_compiler()

    def missed() -> int:
        return sum(_sample.stats.cache_misses.values())  # type: ignore[attr-defined]

    start, before = time.perf_counter(), missed()
    sample(4, [1.0], 1, seed=0)
    return time.perf_counter() - start if missed() > before else None


def series(
    lattice_size: int, temperature: float, n_measurements: int, seed: int | np.random.SeedSequence, *, start: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Total energies and magnetisations of one chain after every cluster, (n,) each, after `start` sweeps.

    Raises:
        RuntimeError, ValueError: as in `sample`.
    """
    energies, magnetizations = np.empty((2, check_integer("n_measurements", n_measurements, 0)), np.int64)
    spins = sample(lattice_size, [temperature], start, seed)[0]
    state = generator_states(children(seed, 1)[0], 1)[0]
    _measure(spins, -math.expm1(-2 / temperature), energies, magnetizations, state)
    return energies, magnetizations


@compiled
def _measure(
    spins: NDArray[np.int8],
    p: float,
    energies: NDArray[np.int64],
    magnetizations: NDArray[np.int64],
    state: NDArray[np.uint64],
) -> None:
    size = spins.shape[0]
    queue = np.empty(size * size + 1, np.uint32)
    for k in range(len(energies)):
        flip_clusters(spins, 1, p, queue, state)
        energy, magnetization = 0, 0
        for i in range(size):
            below = spins[(i + 1) % size]
            for j in range(size):
                right = spins[i, j + 1 if j + 1 < size else 0]
                energy -= spins[i, j] * (below[j] + right)
                magnetization += spins[i, j]
        energies[k], magnetizations[k] = energy, magnetization


def generator_states(seed: int | np.random.SeedSequence, n: int) -> NDArray[np.uint64]:
    """The states of n random generators, (n, 1)."""
    return check_seed(seed).generate_state(n, np.uint64).astype(np.uint64).reshape(n, 1)
