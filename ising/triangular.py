# Experiment: yours, to replace.
"""The triangular lattice with periodic boundaries: its energy, and Wolff's cluster algorithm. Read wolff.py first.

A site has six neighbours. On an array (L, L), they are those of the square lattice and two more, along one diagonal:

    (i, j + 1), (i, j - 1), (i + 1, j), (i - 1, j), (i + 1, j - 1), (i - 1, j + 1)

The array is a rhombus with angles of 60 and 120 degrees. Units and signs are those of lattice.py; `magnetization` there
can be used for both lattices. There is no checkerboard of a triangular lattice, so that the other samplers cannot be
used for it, and L may be odd.
"""

import math

import numpy as np
from numpy import uint32, uint64
from numpy.typing import ArrayLike, NDArray

from ising import lattice
from ising.kernel import compiled, require_compiler
from ising.lattice import check_integer, check_seed
from ising.wolff import STEP, generator_states

T_CRITICAL = 4 / math.log(3)  # in J / k_B, 3.6409569: R. M. F. Houtappel, Physica 16, 425 (1950)

# Enough for L <= 64 at every temperature up to 10. From the ordered start at T_c and L = 48, energy and |m| approach
# their means as exp(-n / 2.2) and exp(-n / 3) in n sweeps.
EQUILIBRATION_SWEEPS = 30


def energy(spins: NDArray[np.int8]) -> NDArray[np.int64]:
    """Total energy, in units of J: spins (..., L, L) -> (...). The lowest level is -3 L^2.

    Raises:
        ValueError: as in lattice.energy.
    """
    along_rows_and_columns = lattice.energy(spins)
    diagonal = np.roll(spins, (-1, 1), axis=(-2, -1))
    energies: NDArray[np.int64] = along_rows_and_columns - (spins * diagonal).sum(axis=(-2, -1), dtype=np.int64)
    return energies


@compiled
def flip_clusters(
    spins: NDArray[np.int8], n_clusters: int, p: float, queue: NDArray[np.uint32], state: NDArray[np.uint64]
) -> int:
    """Build and flip clusters, as in wolff.py. Return the total number of flipped spins."""
    size, one = uint32(spins.shape[0]), uint32(1)
    flat = spins.reshape(-1)
    threshold = uint64(p * 2.0**32)
    counter = state[0]
    n_flipped = 0
    for _ in range(n_clusters):
        counter += STEP
        site = uint32((_hash(counter) >> uint64(32)) * uint64(size * size) >> uint64(32))
        spin = flat[site]
        flat[site] = -spin
        queue[0], first, last = site // size << uint32(16) | site % size, uint64(0), uint64(1)
        while first < last:
            row, column = queue[first] >> uint32(16), queue[first] & uint32(0xFFFF)
            first += uint64(1)
            right = column + one if column + one < size else uint32(0)
            left = column - one if column > uint32(0) else size - one
            down = row + one if row + one < size else uint32(0)
            up = row - one if row > uint32(0) else size - one
            counter += STEP
            for_row = _hash(counter)
            counter += STEP
            for_column = _hash(counter)
            counter += STEP
            for_diagonal = _hash(counter)
            for i, j, number in (
                (row, right, for_row >> uint64(32)),
                (row, left, for_row & uint64(0xFFFFFFFF)),
                (down, column, for_column >> uint64(32)),
                (up, column, for_column & uint64(0xFFFFFFFF)),
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
    """As in wolff.py. It is repeated, since Numba caches the code above, and does not notice changes in other files."""
    z = (z ^ z >> uint64(30)) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> uint64(27)) * uint64(0x94D049BB133111EB)
    return z ^ z >> uint64(31)


@compiled
def _sample(
    configurations: NDArray[np.int8], temperatures: NDArray[np.float64], n_sweeps: int, states: NDArray[np.uint64]
) -> None:
    """Equilibrate one chain per temperature, as in wolff.py. configurations: (N, L, L), states: (N, 1)."""
    n_chains, size, _ = configurations.shape
    queue = np.empty(size * size + 1, np.uint32)
    for chain in range(n_chains):
        spins, state = configurations[chain], states[chain]
        p = -math.expm1(-2 / temperatures[chain])
        spins[:] = 1
        n_clusters, n_flipped = 0, 0
        while 2 * n_flipped < n_sweeps * size * size:
            n_flipped += flip_clusters(spins, 1, p, queue, state)
            n_clusters += 1
        flip_clusters(spins, n_clusters, p, queue, state)
        if _hash(state[0] + STEP) >> uint64(63):
            spins *= -1


def sample(
    lattice_size: int, temperatures: ArrayLike, n_sweeps: int, seed: int | np.random.SeedSequence
) -> NDArray[np.int8]:
    """One configuration from each of N independent chains: temperatures (N,) in J / k_B -> spins (N, L, L) int8.

    Sweeps, start and end of a chain are as in wolff.sample.

    Raises:
        RuntimeError: the settings of Numba switch compilation off.
        ValueError: the lattice size is below 3, where neighbours coincide, or another argument is invalid, as in
            wolff.sample.
    """
    require_compiler()
    check_integer("lattice_size", lattice_size, 3)
    check_integer("n_sweeps", n_sweeps, 0)
    check_seed(seed)
    values = np.asarray(temperatures, dtype=np.float64)
    if values.ndim != 1 or not np.all((values > 0) & np.isfinite(values)):
        raise ValueError("temperatures must be positive and finite, in an array (N,)")
    spins = np.empty((len(values), lattice_size, lattice_size), np.int8)
    _sample(spins, values, n_sweeps, generator_states(seed, len(values)))
    return spins
