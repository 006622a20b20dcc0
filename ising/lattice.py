# Experiment: yours, to replace.
"""The square lattice with periodic boundaries: energy, magnetisation, correlations.

Units and signs of the whole project: H = -J * sum over nearest-neighbour pairs of s_i s_j with J = k_B = 1
(ferromagnetic, no field) and spins s = -1 or +1. Energies are in units of J, temperatures in J / k_B.

Arrays of spins have the shape (..., L, L), rows before columns, and a signed integer or floating dtype. Functions that
take spins raise ValueError otherwise, or if a spin is infinite or not a number. The values need not be -1 or +1.
"""

import numbers
from typing import Any

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import ArrayLike, NDArray

# Functions that check an argument also convert it, and their result has to be used: as an np.int8, L^2 would overflow.


def check_lattice_size(lattice_size: object) -> int:
    """Return L. Raise ValueError unless it is an even integer, at least 4.

    On L = 2, the two bonds between a pair of neighbours coincide. An odd periodic lattice has no checkerboard: an
    update of all sites of one colour would update neighbours together, and sample the wrong distribution.
    """
    if not isinstance(lattice_size, numbers.Integral) or lattice_size < 4 or lattice_size % 2:
        raise ValueError(f"lattice size {lattice_size}: must be even and at least 4")
    return int(lattice_size)


def check_integer(name: str, value: object, minimum: int, alternative: str = "") -> int:
    """Return an argument. Raise ValueError unless it is an integer >= minimum; the message ends with `alternative`."""
    if not isinstance(value, numbers.Integral) or int(value) < minimum:
        raise ValueError(f"{name} {value!r}: must be an integer, at least {minimum}{alternative}")
    return int(value)


def check_seed(seed: object) -> SeedSequence:
    """Return a seed as a SeedSequence. Raise ValueError unless it is one, or a non-negative integer.

    None is refused: it would not be reproducible.
    """
    if isinstance(seed, SeedSequence):
        return seed
    return SeedSequence(check_integer("seed", seed, 0, ", or a SeedSequence"))


def children(seed: int | SeedSequence, n: int) -> list[SeedSequence]:
    """The n children that `spawn` would return, without counting them, so that the next call returns the same."""
    parent = check_seed(seed)
    first = parent.n_children_spawned
    return [
        SeedSequence(parent.entropy, spawn_key=(*parent.spawn_key, first + k), pool_size=parent.pool_size)
        for k in range(n)
    ]


def check_temperatures(temperatures: ArrayLike) -> NDArray[np.float64]:
    """Return the temperatures of N chains, (N,). Raise ValueError unless all are positive and finite."""
    values = np.asarray(temperatures, dtype=np.float64)
    if values.ndim != 1 or not np.all((values > 0) & np.isfinite(values)):
        raise ValueError("temperatures must be positive and finite, in an array (N,)")
    return values


def check_spins(spins: ArrayLike) -> NDArray[Any]:
    """Return spins as int64 or float64, or in their own type if all sums over neighbours fit into it.

    Raise ValueError unless they are (..., L, L), with a signed dtype and finite values.
    """
    spins = np.asarray(spins)
    if spins.ndim < 2 or spins.shape[-1] != spins.shape[-2]:
        raise ValueError(f"spins of shape {spins.shape}: must be (..., L, L)")
    if spins.dtype.kind not in "if":
        raise ValueError(
            f"spins of type {spins.dtype}: must be -1 or +1 in a signed integer or floating type; "
            "use 2 * bits.astype(np.int8) - 1 for bits"
        )
    if spins.dtype.kind == "f":
        if not np.isfinite(spins).all():
            raise ValueError("some spins are infinite or not a number")
        return spins.astype(np.float64)
    is_small = spins.size == 0 or (spins.max() <= 1 and spins.min() >= -1)
    return spins if is_small else spins.astype(np.int64)


def energy(spins: ArrayLike) -> NDArray[Any]:
    """Total energy, in units of J: spins (..., L, L) -> (...), int64 for integer spins and float64 for others.

    The levels are 4 apart, from -2 L^2 to 2 L^2, except that the two lowest and the two highest are 8 apart.
    """
    spins = check_spins(spins)
    right_and_down = np.roll(spins, -1, axis=-1) + np.roll(spins, -1, axis=-2)  # counts every bond once
    dtype = np.float64 if spins.dtype.kind == "f" else np.int64
    return np.asarray(-(spins * right_and_down).sum(axis=(-2, -1), dtype=dtype))


def magnetization(spins: ArrayLike) -> NDArray[np.float64]:
    """Signed magnetisation per spin, from -1 to 1: spins (..., L, L) -> (...)."""
    spins = check_spins(spins)
    magnetizations: NDArray[np.float64] = spins.mean(axis=(-2, -1), dtype=np.float64)
    return magnetizations


def correlations(spins: ArrayLike) -> NDArray[np.float64]:
    """Mean of s_i s_j over all pairs of sites at a given displacement: spins (..., L, L) -> (..., classes).

    Displacements that are equivalent by the symmetries of the square form one class, with a representative (dx, dy),
    0 <= dy <= dx <= L / 2. There are 14 classes at L = 8; nearest neighbours are the first. The sums over pairs are
    computed by Fourier transform (Wiener-Khinchin theorem). Those of whole numbers are rounded, and exact.
    """
    spins = check_spins(spins)
    lattice_size = spins.shape[-1]
    power = np.abs(np.fft.rfft2(spins)) ** 2
    sums = np.fft.irfft2(power, s=spins.shape[-2:])  # (..., L, L): sum over i of s_i s_{i + d}
    if np.array_equal(spins, np.rint(spins)):
        sums = np.rint(sums)
    distance = np.minimum(np.arange(lattice_size), lattice_size - np.arange(lattice_size))
    near, far = np.minimum.outer(distance, distance), np.maximum.outer(distance, distance)
    labels = (far * lattice_size + near).reshape(-1)  # (L^2,): equal within a class; 0 for no displacement
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    totals = np.add.reduceat(sums.reshape(*spins.shape[:-2], -1)[..., order], starts, axis=-1)
    means = totals / (counts * lattice_size**2)
    return np.asarray(means[..., 1:])


def random_symmetries(spins: NDArray[np.int8], rng: np.random.Generator) -> NDArray[np.int8]:
    """Shift, rotate, mirror and flip each configuration at random: (N, L, L) -> (N, L, L).

    The energy does not change, so the new configurations are as likely as the old ones.
    """
    spins = np.asarray(spins)
    check_spins(spins)
    if spins.ndim != 3:
        raise ValueError(f"spins of shape {spins.shape}: must be (N, L, L)")
    n, size = spins.shape[:2]

    def places() -> NDArray[np.int64]:  # (N, L): sites along one axis, shifted, in either direction
        shifted = np.arange(size) + rng.integers(size, size=(n, 1))
        return np.asarray(shifted * rng.choice([-1, 1], size=(n, 1)) % size)

    moved = spins[np.arange(n)[:, None, None], places()[:, :, None], places()[:, None, :]]
    transposed = rng.random(n) < 0.5
    moved[transposed] = moved[transposed].swapaxes(1, 2)
    return np.asarray(moved * rng.choice(np.array([-1, 1], np.int8), size=(n, 1, 1)))
