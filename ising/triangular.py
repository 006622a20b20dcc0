# Experiment: yours, to replace.
"""The triangular lattice with periodic boundaries: its energy, and samples by Wolff's cluster algorithm (wolff.py).

A site has six neighbours. On an array (L, L), they are those of the square lattice and two more, along one diagonal:

    (i, j + 1), (i, j - 1), (i + 1, j), (i - 1, j), (i + 1, j - 1), (i - 1, j + 1)

The array is a rhombus with angles of 60 and 120 degrees. Units and signs are those of lattice.py; `magnetization` there
can be used for both lattices. There is no checkerboard of a triangular lattice, so that the other samplers cannot be
used for it, and L may be odd.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ising import lattice
from ising.lattice import check_integer
from ising.wolff import run_chains

T_CRITICAL = 4 / math.log(3)  # in J / k_B, 3.6409569: R. M. F. Houtappel, Physica 16, 425 (1950)

# Enough for L <= 64 at every temperature up to 10. From the ordered start at T_c and L = 48, energy and |m| approach
# their means as exp(-n / 2.2) and exp(-n / 3) in n sweeps.
EQUILIBRATION_SWEEPS = 30


def energy(spins: ArrayLike) -> NDArray[Any]:
    """Total energy, in units of J: spins (..., L, L) -> (...), typed as in lattice.py. The lowest level is -3 L^2.

    Raises:
        ValueError: as in lattice.energy.
    """
    spins = lattice.check_spins(spins)
    along_rows_and_columns = lattice.energy(spins)
    diagonal = np.roll(spins, (-1, 1), axis=(-2, -1))
    return np.asarray(
        along_rows_and_columns - (spins * diagonal).sum(axis=(-2, -1), dtype=along_rows_and_columns.dtype)
    )


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
    lattice_size = check_integer("lattice_size", lattice_size, 3)
    return run_chains(lattice_size, temperatures, n_sweeps, seed, is_triangular=True)
