"""The triangular lattice: its energy, and the plain cluster algorithm compared with enumeration and exact results."""

import hashlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ising import exact, lattice, triangular, wolff
from ising.statistics import binder_cumulant, jackknife
from ising.triangular import EQUILIBRATION_SWEEPS, T_CRITICAL
from tests.test_multispin import chi2_excess

STEPS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, -1), (-1, 1))  # from a site to its neighbours


def neighbours(site: tuple[int, ...], size: int) -> list[tuple[int, int]]:
    return [((site[0] + down) % size, (site[1] + right) % size) for down, right in STEPS]


def equilibrium(size: int, temperature: float, n: int, seed: int) -> NDArray[np.int8]:
    """Equilibrium configurations (n, L, L) at one temperature."""
    return triangular.sample(size, np.full(n, temperature), EQUILIBRATION_SWEEPS, seed)


@pytest.mark.parametrize("size", [3, 4, 7])
def test_the_energy_is_the_sum_over_bonds(size: int) -> None:
    spins = np.random.default_rng(size).choice(np.array([-1, 1], np.int8), size=(20, size, size))
    sites = [(i, j) for i in range(size) for j in range(size)]
    assert all(len({site, *neighbours(site, size)}) == 7 for site in sites)
    twice = sum(spins[:, *site] * spins[:, *other].astype(int) for site in sites for other in neighbours(site, size))
    np.testing.assert_array_equal(triangular.energy(spins), -twice // 2)
    assert triangular.energy(np.ones((size, size), np.int8)) == -3 * size**2


@pytest.mark.parametrize("temperature", [1.0, T_CRITICAL, 10.0])
def test_every_configuration_3x3_has_its_probability(temperature: float) -> None:
    n = 50_000
    bits = np.arange(2**9)[:, None] >> np.arange(9) & 1
    energies = triangular.energy((2 * bits - 1).astype(np.int8).reshape(-1, 3, 3))
    weights = np.exp(-(energies + 27) / temperature)
    numbers = (equilibrium(3, temperature, n, seed=3).reshape(n, 9) > 0) @ (1 << np.arange(9))
    assert chi2_excess(np.bincount(numbers, minlength=2**9), n * weights / weights.sum()) < 5


@pytest.mark.parametrize("temperature", [1.5, 3.0, T_CRITICAL, 4.0, 6.0])
def test_energy_and_magnetisation_4x4_are_those_of_enumeration(temperature: float) -> None:
    n = 20_000
    every = exact.enumerate_configurations()
    weights = np.exp(-(triangular.energy(every) + 48) / temperature)
    weights /= weights.sum()
    spins = equilibrium(4, temperature, n, seed=4)
    for observable in (triangular.energy, lambda s: lattice.magnetization(s) ** 2, lambda s: s[:, 0, 0] * s[:, 1, 3]):
        values = observable(every).astype(float)
        mean = weights @ values
        deviation = np.sqrt(weights @ (values - mean) ** 2)
        assert abs(observable(spins).mean() - mean) < 5 * deviation / np.sqrt(n)


def test_the_energy_at_tc_is_exact() -> None:
    """It is -2 J per spin on the infinite lattice, and the deviation falls as 1 / L."""
    means, errors = [], []
    for size, n in ((12, 6_000), (24, 3_000)):
        energies = triangular.energy(equilibrium(size, T_CRITICAL, n, seed=5)) / size**2
        means.append(energies.mean())
        errors.append(energies.std() / np.sqrt(n))
    assert abs(2 * means[1] - means[0] + 2) < 5 * np.hypot(2 * errors[1], errors[0])
    assert means[1] + 2 < -10 * errors[1]


@pytest.mark.slow
def test_the_binder_cumulant_at_tc_is_universal() -> None:
    """U_4 = 0.61182773 for large L: G. Kamieniarz, H. W. J. Bloete, J. Phys. A 26, 201 (1993)."""
    u4, error = jackknife(binder_cumulant, lattice.magnetization(equilibrium(32, T_CRITICAL, 10_000, seed=6)))
    assert abs(u4 - 0.61182773) < 5 * error
    assert error < 0.005


@pytest.mark.parametrize("size", [3, 4, 6, 17, 30])
def test_a_cluster_is_a_domain_at_zero_temperature(size: int) -> None:
    spins = np.random.default_rng(size).choice(np.array([-1, 1], np.int8), size=(size, size))
    before = spins.copy()
    n = wolff.flip_clusters(
        spins, 1, 1.0, np.empty(size**2 + 1, np.uint32), np.array([size], np.uint64), is_triangular=True
    )
    flipped = set(zip(*np.nonzero(spins != before), strict=True))
    found: set[Any] = set()
    waiting = [next(iter(flipped))]
    while waiting:
        site = waiting.pop()
        if site not in found:
            found.add(site)
            waiting += [other for other in neighbours(site, size) if before[other] == before[site]]
    assert len(flipped) == n
    assert flipped == found


def test_a_cluster_without_bonds_is_one_site_and_each_is_equally_likely() -> None:
    counts, state, queue = np.zeros((5, 5)), np.array([1], np.uint64), np.empty(26, np.uint32)
    for _ in range(1000):
        spins = np.ones((5, 5), np.int8)
        assert wolff.flip_clusters(spins, 1, 0.0, queue, state, is_triangular=True) == 1
        counts += spins < 0
    assert chi2_excess(counts.reshape(-1), np.full(25, 40.0)) < 5  # type: ignore[arg-type]


def test_both_signs_are_equally_likely_and_a_seed_repeats() -> None:
    cold = np.full(4096, 0.5)
    m = lattice.magnetization(triangular.sample(4, cold, 3, seed=1))
    assert abs((m > 0).mean() - 0.5) < 5 * 0.5 / 64
    np.testing.assert_array_equal(m, lattice.magnetization(triangular.sample(4, cold, 3, np.random.SeedSequence(1))))
    assert not np.array_equal(m, lattice.magnetization(triangular.sample(4, cold, 3, seed=2)))


def test_the_bytes_do_not_change() -> None:
    spins = triangular.sample(12, np.linspace(0.5, 10, 600), 10, seed=9)
    assert hashlib.sha256(spins.tobytes()).hexdigest()[:16] == "8e6b1737451eb3c6"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((2, [1.0], 3, 1), "lattice_size 2"),
        ((8, [-1.0], 3, 1), "temperatures"),
        ((8, [[1.0]], 3, 1), "temperatures"),
        ((8, [1.0], -1, 1), "n_sweeps"),
        ((8, [1.0], 3, -1), "seed"),
        ((8, [1.0], 3, None), "seed"),
    ],
)
def test_invalid_arguments_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        triangular.sample(*arguments)
