"""Cluster updates: one chain (wolff.py), and one chain per bit (kernel.py). Also measurements without unpacking."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ising import exact, kernel, lattice, multispin, wolff
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from ising.statistics import autocorrelation_time
from tests.test_multispin import chi2_excess

Sampler = Callable[..., NDArray[np.int8]]

SLOW = pytest.mark.slow
SAMPLERS: dict[str, Sampler] = {"multispin_wolff": partial(multispin.sample, clusters=True), "wolff": wolff.sample}
BOTH = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
# The plain algorithm takes seconds where the other one takes a fraction of a second.
BOTH_SLOWLY = pytest.mark.parametrize(
    "sampler", [pytest.param(each, id=name, marks=[SLOW] if name == "wolff" else []) for name, each in SAMPLERS.items()]
)


def equilibrium(sampler: Sampler, size: int, temperature: float, n: int, seed: int) -> NDArray[np.int8]:
    """Equilibrium configurations (n, L, L) at one temperature."""
    return sampler(size, np.full(n, temperature), equilibration_sweeps(size, clusters=True), seed)


# --------------------------------------------------------------------------------------------- comparison with theory


@SLOW
@BOTH
@pytest.mark.parametrize("temperature", [1.0, T_CRITICAL, 10.0])
def test_every_configuration_4x4_has_its_probability(sampler: Sampler, temperature: float) -> None:
    n = 50_000
    spins = equilibrium(sampler, 4, temperature, n, seed=4)
    numbers = (spins.reshape(n, 16) > 0) @ (1 << np.arange(16))
    weights = np.exp(-(lattice.energy(exact.enumerate_configurations()) + 32) / temperature)
    assert chi2_excess(np.bincount(numbers, minlength=2**16), n * weights / weights.sum()) < 4


@BOTH_SLOWLY
@pytest.mark.parametrize("temperature", [1.0, T_CRITICAL, 3.0])
def test_energy_histogram_8x8_is_boltzmanns(sampler: Sampler, temperature: float) -> None:
    n = 20_000
    energies = lattice.energy(equilibrium(sampler, 8, temperature, n, seed=8))
    levels, counts = exact.density_of_states(8)
    expected = counts * np.exp(-(levels - levels[0]) / temperature)
    assert chi2_excess((energies[:, None] == levels).sum(axis=0), n * expected / expected.sum()) < 4


@BOTH_SLOWLY
@pytest.mark.parametrize(
    ("size", "n"),
    [(6, 10_000), (10, 5000), (32, 1000)],
)
def test_energies_are_kaufmans(sampler: Sampler, size: int, n: int) -> None:
    for temperature in (1.5, T_CRITICAL, 4.0, 20.0, 1e6):
        energies = lattice.energy(equilibrium(sampler, size, temperature, n, seed=1)) / size**2
        energy, specific_heat = exact.kaufman(temperature, size)
        error = temperature * np.sqrt(specific_heat / size**2 / n)
        assert abs(energies.mean() - energy) < 4 * error + 1e-12
        assert energies.var() == pytest.approx(error**2 * n, rel=5 * np.sqrt(2 / n))


@BOTH_SLOWLY
def test_the_magnetisation_8x8_is_that_of_exact_samples(sampler: Sampler) -> None:
    moments = []
    for spins in (equilibrium(sampler, 8, T_CRITICAL, 20_000, 5), exact.sample(8, T_CRITICAL, 20_000, seed=6)):
        m = lattice.magnetization(spins)
        moments.append(np.array([m.mean(), (m**2).mean(), (m**4).mean()]))
    assert (np.abs(moments[0] - moments[1]) < 4 * np.sqrt(2 / 20_000) * np.array([0.8, 0.3, 0.3])).all()


# ------------------------------------------------------------------------------------------------------- the algorithm


def component(spins: NDArray[np.int8], row: int, column: int) -> set[tuple[int, int]]:
    """The sites that like neighbours connect to a site."""
    size = len(spins)
    found = {(row, column)}
    waiting = [(row, column)]
    while waiting:
        i, j = waiting.pop()
        for place in (((i + 1) % size, j), ((i - 1) % size, j), (i, (j + 1) % size), (i, (j - 1) % size)):
            if place not in found and spins[place] == spins[i, j]:
                found.add(place)
                waiting.append(place)
    return found


def flipped_by_one_cluster(size: int, probability: float) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Random configurations, and the sites that one cluster update flips if bonds have this probability, 0 or 1."""
    blocks = kernel.new_blocks(size, 1, kernel.WORDS, min(size**2 // 2, kernel.LANES // kernel.WORDS))
    temperatures, key = np.full((1, kernel.WORDS, 64), 3.0), np.arange(8, dtype=np.uint64)
    kernel.start(blocks, temperatures, key[:4], 0, T_CRITICAL)
    clusters = kernel.new_clusters(blocks)
    kernel.start_clusters(blocks, clusters, temperatures, key[4:], 0)
    every = np.uint64(2**64 - 1) if probability else np.uint64(0)
    clusters.lanes["digit"] = every
    clusters.remainders[:] = every
    before, after = (np.empty((64 * kernel.WORDS, size, size), np.int8) for _ in range(2))
    kernel.sweep(blocks, 2)  # domains of different sizes
    state = blocks.lanes["state"].copy()
    kernel.unpack(blocks, before)
    kernel.flip_clusters(blocks, clusters)
    blocks.lanes["state"] = state
    kernel.unpack(blocks, after)  # with the same random signs
    return before, before != after


@pytest.mark.parametrize("size", [4, 6, 8, 10, 12, 16, 30, 64, 130])
def test_a_cluster_with_all_bonds_is_a_domain(size: int) -> None:
    before, flipped = flipped_by_one_cluster(size, 1.0)
    seeds = set()
    n = 512 if size <= 30 else 3000 // size  # the search is slow in Python
    for spins, sites in zip(before[:n], flipped[:n], strict=True):
        places = list(zip(*np.nonzero(sites), strict=True))
        assert set(places) == component(spins, *places[0])
        seeds.add(places[0])
    assert len(seeds) > 5  # chains have different seeds


@pytest.mark.parametrize("size", [4, 10, 32])
def test_a_cluster_without_bonds_is_one_site_and_each_is_equally_likely(size: int) -> None:
    counts = np.zeros((size, size))
    _, flipped = flipped_by_one_cluster(size, 0.0)
    assert (flipped.sum(axis=(1, 2)) == 1).all()
    counts += flipped.sum(axis=0)
    assert counts.max() < 512 / size**2 + 6 * np.sqrt(512 / size**2) + 2


def test_a_cluster_of_the_plain_algorithm_is_a_domain_at_zero_temperature() -> None:
    rng = np.random.default_rng(1)
    for size in (4, 6, 16, 30):
        spins = rng.choice(np.array([-1, 1], np.int8), size=(size, size))
        before, state = spins.copy(), np.array([size], np.uint64)
        n = wolff.flip_clusters(spins, 1, 1.0, np.empty(size**2 + 1, np.uint32), state)
        places = list(zip(*np.nonzero(spins != before), strict=True))
        assert len(places) == n
        assert set(places) == component(before, *places[0])


# ------------------------------------------------------------------------------------------------------------ measuring


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("size", [4, 6, 10, 16, 30, 64])
def test_measurements_are_those_of_the_spins(size: int, clusters: bool) -> None:
    temperatures = np.linspace(0.5, 6, 700)
    for start in (0, 7):
        found = multispin.series(size, temperatures, 1, 3, start=start, clusters=clusters)
        spins = multispin.sample(size, temperatures, start + 1, 3, clusters=clusters)
        np.testing.assert_array_equal(found.energies[:, 0], lattice.energy(spins))
        magnetizations = np.abs(spins.sum(axis=(1, 2), dtype=np.int64))
        np.testing.assert_array_equal(np.abs(found.magnetizations[:, 0]), magnetizations)


def test_the_two_ground_states_have_their_energies_and_opposite_magnetisations() -> None:
    found = multispin.series(8, np.full(64, 1e-3), 1, 1, start=0)
    assert (found.energies == -128).all()
    assert (found.magnetizations == 64).all()
    found = multispin.series(8, np.full(64, 1e-3), 2, 1, start=0, clusters=True)  # every cluster is the whole lattice
    assert (found.energies == -128).all()
    np.testing.assert_array_equal(found.magnetizations, np.tile([-64, 64], (64, 1)))


def test_a_series_continues_with_every_measurement() -> None:
    temperatures = np.linspace(1, 4, 100)
    each = multispin.series(16, temperatures, 6, 5, start=10)
    second = multispin.series(16, temperatures, 3, 5, start=10, every=2)
    np.testing.assert_array_equal(second.energies, each.energies[:, 1::2])


def test_clusters_forget_faster_than_sweeps() -> None:
    temperatures = np.full(64, T_CRITICAL)
    taus = []
    for clusters in (False, True):
        found = multispin.series(16, temperatures, 3000, 2, start=300, clusters=clusters)
        taus.append(autocorrelation_time(np.abs(found.magnetizations))[0])
    assert taus[1] == pytest.approx(1.67, abs=0.15)  # sweeps with a cluster
    assert taus[0] == pytest.approx(10.7, abs=1.5)  # sweeps, as experiments/equilibration.py finds


def test_the_series_of_one_chain_has_the_exact_energy() -> None:
    energies, magnetizations = wolff.series(16, T_CRITICAL, 20_000, 7, start=100)
    tau, _ = autocorrelation_time(energies.astype(float))
    error = energies.std() * np.sqrt(2 * tau / len(energies)) / 256
    assert abs(energies.mean() / 256 - exact.kaufman(T_CRITICAL, 16)[0]) < 4 * error
    assert np.abs(magnetizations).max() <= 256


def test_a_seed_sequence_gives_the_same_series_again() -> None:
    seed = np.random.SeedSequence(3)
    found = [wolff.series(8, 2.3, 20, each, start=10) for each in (seed, seed, 3)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


# ------------------------------------------------------------------------------------------------------ reproducibility

GOLDEN = {"multispin_wolff": "f5b99ce439b991f5", "wolff": "37336efc89f5ce16"}


def digest(name: str) -> str:
    """SHA-256 of 600 configurations between T = 0.5 and 10."""
    return hashlib.sha256(SAMPLERS[name](12, np.linspace(0.5, 10, 600), 20, seed=9).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_do_not_change(name: str) -> None:
    assert digest(name) == GOLDEN[name]


@pytest.mark.parametrize("size", [4, 10, 32])
def test_the_bytes_do_not_depend_on_threads_tasks_and_later_chains(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, temperatures = SAMPLERS["multispin_wolff"], np.linspace(1, 4, 1100)
    expected = sampler(size, temperatures, 5, seed=13)
    np.testing.assert_array_equal(sampler(size, temperatures[:320], 5, seed=13), expected[:320])  # whole words

    monkeypatch.setattr(multispin, "SPINS_PER_TASK", 1)
    monkeypatch.setattr(multispin, "UPDATES_PER_CALL", 1)
    np.testing.assert_array_equal(sampler(size, temperatures, 5, seed=13, n_threads=3), expected)


@BOTH_SLOWLY
def test_neighbouring_chains_are_independent(sampler: Sampler) -> None:
    m = lattice.magnetization(equilibrium(sampler, 8, T_CRITICAL, 20_000, seed=3))
    for distance in (1, 63, 64, 512):
        assert abs(np.corrcoef(m[:-distance], m[distance:])[0, 1]) < 4 / np.sqrt(len(m))


@BOTH
def test_both_signs_are_equally_likely_and_a_seed_repeats(sampler: Sampler) -> None:
    cold = np.full(4096, 0.5)
    m = lattice.magnetization(sampler(4, cold, 3, seed=1))
    assert abs((m > 0).mean() - 0.5) < 4 * 0.5 / 64
    np.testing.assert_array_equal(m, lattice.magnetization(sampler(4, cold, 3, seed=np.random.SeedSequence(1))))
    assert not np.array_equal(m, lattice.magnetization(sampler(4, cold, 3, seed=2)))


@BOTH
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((7, [1.0], 3, 1), "lattice size 7"),
        ((8, [-1.0], 3, 1), "temperatures"),
        ((8, [[1.0]], 3, 1), "temperatures"),
        ((8, [1.0], -1, 1), "n_sweeps"),
        ((8, [1.0], 3, -1), "seed"),
        ((8, [1.0], 3, None), "seed"),
    ],
)
def test_invalid_arguments_are_refused(sampler: Sampler, arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sampler(*arguments)


def test_lattices_that_are_too_large_for_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="lattice size 1026: clusters"):
        multispin.sample(1026, [1.0], 1, 1, clusters=True)
