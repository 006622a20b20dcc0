"""Step 2: the Metropolis algorithm, and a comparison of its energies with exact ones.

python -m examples.tutorial.step2_metropolis
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ising import exact

L, N_CHAINS, N_SWEEPS = 8, 1_000, 100  # lattice size; chains at each temperature; sweeps of each chain


def energy(spins: NDArray[Any]) -> NDArray[Any]:
    """H = -J sum over nearest neighbours of s_i s_j, in units of J: spins (..., L, L) -> (...)."""
    right, below = np.roll(spins, -1, axis=-1), np.roll(spins, -1, axis=-2)  # each bond is counted once
    return np.asarray(-(spins * (right + below)).sum(axis=(-2, -1)))


def sweep(spins: NDArray[Any], temperatures: NDArray[Any], rng: np.random.Generator) -> None:
    """Propose one flip of every spin, in place: spins (N, L, L), temperatures (N,) in J / k_B.

    A flip that changes the energy by dE is accepted with probability min(1, exp(-dE / T)): N. Metropolis et al.,
    J. Chem. Phys. 21, 1087 (1953). On a checkerboard, sites of one colour only have neighbours of the other colour, so
    all sites of one colour can be updated at the same time.
    """
    rows, columns = np.indices(spins.shape[1:])
    for colour in (0, 1):
        neighbours = sum(np.roll(spins, shift, axis) for shift in (-1, 1) for axis in (1, 2))  # (N, L, L), -4 to 4
        energy_changes = 2 * spins * neighbours  # (N, L, L) in J
        accepted = rng.random(spins.shape) < np.exp(-energy_changes / temperatures[:, None, None])
        spins[accepted & ((rows + columns) % 2 == colour)] *= -1


rng = np.random.default_rng(2)
temperatures = np.array([1.0, 1.5, 2.0, 2.27, 2.5, 3.0, 4.0])  # (7,) in J / k_B
temperatures_of_chains = np.repeat(temperatures, N_CHAINS)  # (N,)
spins = np.ones((len(temperatures_of_chains), L, L), dtype=np.int8)  # (N, L, L): every chain starts ordered
for _ in range(N_SWEEPS):
    sweep(spins, temperatures_of_chains, rng)

energies = energy(spins).reshape(len(temperatures), N_CHAINS) / L**2  # (7, chains): per spin, in units of J
means = energies.mean(axis=1)  # (7,)
errors = energies.std(axis=1, ddof=1) / N_CHAINS**0.5  # (7,): standard errors of independent values
expected = exact.kaufman(temperatures, L)[0]  # (7,): for the periodic L x L lattice
deviations = (means - expected) / errors  # (7,)

print("T [J/k_B]   energy per spin [J]     exact   deviation [standard errors]")
for values in zip(temperatures, means, errors, expected, deviations, strict=True):
    print("{:9.2f}   {:.4f} +- {:.4f}   {:.4f}   {:+.1f}".format(*values))
print(f"chi-square {(deviations**2).sum():.1f} for {len(temperatures)} temperatures")
