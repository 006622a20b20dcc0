"""Step 1: store configurations in an array of spins, and compute their energies with two shifts, a product and a sum.

python -m examples.tutorial.step1_lattice
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

L = 8  # sites along one edge; the boundaries are periodic


def energy(spins: NDArray[Any]) -> NDArray[Any]:
    """H = -J sum over nearest neighbours of s_i s_j, in units of J: spins (..., L, L) -> (...)."""
    right, below = np.roll(spins, -1, axis=-1), np.roll(spins, -1, axis=-2)  # each bond is counted once
    return np.asarray(-(spins * (right + below)).sum(axis=(-2, -1)))


ordered = np.ones((L, L), dtype=np.int8)  # (L, L): all 2 L^2 bonds have energy -J
flipped = ordered.copy()
flipped[3, 5] = -1  # the four bonds of this spin have energy +J
rows, columns = np.indices((L, L))
stripes = np.where(rows < L // 2, 1, -1)  # two domain walls of L bonds each
checkerboard = np.where((rows + columns) % 2 == 0, 1, -1)  # all bonds have energy +J
random = np.random.default_rng(1).choice([-1, 1], size=(10_000, L, L))  # (N, L, L): infinite temperature

for name, spins, by_hand in [
    ("all spins up", ordered, -2 * L**2),
    ("one spin flipped", flipped, -2 * L**2 + 4 * 2),
    ("two stripes", stripes, -2 * L**2 + 2 * L * 2),
    ("checkerboard", checkerboard, 2 * L**2),
]:
    print(f"{name:<16} {energy(spins):>6} J, by hand {by_hand} J")
    assert energy(spins) == by_hand

energies = energy(random)  # (N,) in J: the 2 L^2 bonds are uncorrelated, so <E> = 0 and <E^2> = 2 L^2
print(f"random, mean     {energies.mean():>6.2f} +- {energies.std() / len(energies) ** 0.5:.2f} J, by hand 0 J")
print(f"random, std      {energies.std():>6.2f} J, by hand {(2 * L**2) ** 0.5:.2f} J")
