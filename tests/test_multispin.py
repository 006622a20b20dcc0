"""The compiled sampler: comparison with exact results, and reproducibility of its bytes.

Seeds are fixed, and the bytes do not depend on the machine, so the outcome of statistical tests never changes.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ising import exact, kernel, lattice, metropolis, multispin, statistics, wolff
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from ising.multispin import sample
from tests.conftest import ROOT

SLOW = pytest.mark.slow
COLD_AT_TC = np.nextafter(T_CRITICAL, 0)  # equal to T_c up to rounding, but with a cold start


def equilibrium(size: int, temperature: float, n: int, seed: int) -> NDArray[np.int8]:
    """Equilibrium configurations (n, L, L) at one temperature."""
    return sample(size, np.full(n, temperature), equilibration_sweeps(size), seed)


def chi2_excess(observed: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    """Chi-square minus its mean, in units of its standard deviation. Rare levels are combined in one bin."""
    rare = expected < 10
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    degrees = len(expected) - 1
    return float((((observed - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5, 2.0, 2.2, T_CRITICAL, 2.4, 3.0, 4.0, 5.0])
def test_energy_histogram_8x8_is_boltzmanns(temperature: float) -> None:
    n = 100_000
    energies = lattice.energy(equilibrium(8, temperature, n, seed=8))
    levels, counts = exact.density_of_states(8)
    expected = counts * np.exp(-(levels - levels[0]) / temperature)
    assert chi2_excess((energies[:, None] == levels).sum(axis=0), n * expected / expected.sum()) < 4


@pytest.mark.parametrize("temperature", [1.0, T_CRITICAL, 10.0])
def test_every_configuration_4x4_has_its_probability(temperature: float) -> None:
    n = 1_000_000
    spins = equilibrium(4, temperature, n, seed=4)
    numbers = (spins.reshape(n, 16) > 0) @ (1 << np.arange(16))
    weights = np.exp(-(lattice.energy(exact.enumerate_configurations()) + 32) / temperature)
    assert chi2_excess(np.bincount(numbers, minlength=2**16), n * weights / weights.sum()) < 4


@pytest.mark.parametrize("temperature", [1.5, 2.0, 2.2, T_CRITICAL, 2.35, 2.6, 4.0])
@pytest.mark.parametrize(
    ("size", "n"),
    [(16, 16_384), (18, 16_384), *(pytest.param(*c, marks=SLOW) for c in ((32, 4096), (64, 1024)))],
)
def test_energy_and_specific_heat_are_kaufmans(size: int, n: int, temperature: float) -> None:
    energies = lattice.energy(equilibrium(size, temperature, n, seed=size)).astype(np.float64)
    energy, specific_heat = (float(value) for value in exact.kaufman(temperature, size))
    assert abs(energies.mean() / size**2 - energy) < 4 * temperature * np.sqrt(specific_heat / (n * size**2))
    measured, error = statistics.jackknife(lambda e: statistics.specific_heat(e, temperature, size**2), energies)
    assert abs(measured - specific_heat) < 4 * error


def test_magnetisation_4x4_at_the_critical_temperature() -> None:
    m = lattice.magnetization(equilibrium(4, T_CRITICAL, 200_000, seed=5))
    for estimator, expected in (
        (lambda m: float(np.abs(m).mean()), 0.8438604448),
        (lambda m: float((m**2).mean()), 0.7613589086),
        (lambda m: float(m.mean()), 0.0),
        (statistics.binder_cumulant, 0.6171993),
    ):
        value, error = statistics.jackknife(estimator, m)
        assert abs(value - expected) < 4 * error


@pytest.mark.parametrize("temperature", [1.5, T_CRITICAL, 3.0])
def test_magnetisation_8x8_is_distributed_as_in_exact_samples(temperature: float) -> None:
    n = 40_000
    levels = np.linspace(-1, 1, 65)
    ours = lattice.magnetization(equilibrium(8, temperature, n, seed=6))
    truth = lattice.magnetization(exact.sample(8, temperature, n, seed=7))
    one, two = ((m[:, None] == levels).sum(axis=0) for m in (ours, truth))
    seen = one + two >= 20
    degrees = seen.sum()
    chi2 = ((one - two)[seen] ** 2 / (one + two)[seen]).sum()
    assert chi2 < degrees + 4 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("temperature", [0.9, 1.3, 2.0])
def test_one_sweep_flips_as_often_as_metropolis_says(temperature: float) -> None:
    # In the ordered state, every flip of the first colour costs 8 J. At T = 0.9, the first TOSSES digits of exp(-8 / T)
    # are 0: all flips are decided by the remaining digits.
    n = 8_192
    spins = sample(32, np.full(n, temperature), 1, seed=9)
    rows, columns = np.indices((32, 32))
    first = spins[:, (rows + columns) % 2 == 0]
    flipped = (first != np.sign(first.sum(axis=1, keepdims=True))).sum()
    expected = first.size * np.exp(-8 / temperature)
    assert abs(flipped - expected) < 4 * np.sqrt(expected)


@pytest.mark.parametrize("size", [4, 6, 10, 130])
def test_a_sweep_proposes_one_flip_of_every_spin(size: int) -> None:
    # At infinite temperature every flip is accepted: one sweep flips each spin exactly once.
    before, after = (sample(size, np.full(70, 1e300), n_sweeps, seed=1) for n_sweeps in (0, 1))
    products = (before * after).reshape(70, -1)
    assert (products == products[:, :1]).all()
    assert {-1, 1} == set(products[:, 0])  # at the end, a chain is flipped as a whole with probability 1/2


@pytest.mark.parametrize(
    "size",
    [4, 6, 8, 10, 12, 16, 18, 20, 24, 30, 48, 64, *(pytest.param(L, marks=SLOW) for L in (100, 130, 256, 258, 512))],
)
@pytest.mark.parametrize("n_words", [1, 3])
def test_a_sweep_at_zero_temperature_is_the_textbooks(size: int, n_words: int) -> None:
    # With p = 0 there is no randomness: a spin is flipped if two or more of its neighbours are unlike it.
    n_words = min(n_words, max(1, kernel.LANES // (size**2 // 2)))
    n_positions = min(size**2 // 2, kernel.LANES // n_words)
    blocks = kernel.new_blocks(size, 1, n_words, n_positions)
    kernel.start(blocks, np.full((1, n_words, 64), 3.0), np.arange(4, dtype=np.uint64), 0, T_CRITICAL)

    blocks.lanes["digit"] = 0
    blocks.remainders[:] = 0
    before, after = (np.empty((64 * n_words, size, size), np.int8) for _ in range(2))
    kernel.unpack(blocks, before)
    kernel.sweep(blocks, 2)
    kernel.unpack(blocks, after)  # each call of unpack flips some chains as a whole

    expected = np.ascontiguousarray(np.moveaxis(before, 0, -1))
    frozen = np.full(len(before), 1e-30, np.float32)
    for _ in range(2):
        metropolis.sweep(expected, frozen, np.random.default_rng(0))
    products = (np.moveaxis(expected, -1, 0) * after).reshape(len(before), -1)
    assert (products == products[:, :1]).all()


def test_chains_are_independent() -> None:
    energies = lattice.energy(equilibrium(8, T_CRITICAL, 200_000, seed=10)).astype(np.float64)
    for distance in (1, 2, 63, 64, 65, 256, 1024):  # in the same word, in neighbouring words and blocks
        correlation = np.corrcoef(energies[:-distance], energies[distance:])[0, 1]
        assert abs(correlation) < 4 / np.sqrt(len(energies))


@pytest.mark.parametrize("size", [8, pytest.param(16, marks=SLOW), pytest.param(32, marks=SLOW)])
def test_automatic_sweeps_forget_the_start_at_the_critical_temperature(size: int) -> None:
    n = 16_384
    energy, specific_heat = (float(value) for value in exact.kaufman(T_CRITICAL, size))
    moments = []
    for temperature in (COLD_AT_TC, T_CRITICAL):
        spins = equilibrium(size, temperature, n, seed=11)
        excess = lattice.energy(spins).mean() / size**2 - energy
        assert abs(excess) < 4 * T_CRITICAL * np.sqrt(specific_heat / (n * size**2))
        m2 = lattice.magnetization(spins) ** 2
        moments.append((m2.mean(), m2.var() / n))
    (cold, cold_variance), (hot, hot_variance) = moments
    assert abs(cold - hot) < 4 * np.sqrt(cold_variance + hot_variance)


def test_starts_are_cold_below_the_critical_temperature_and_hot_above() -> None:
    cold, hot = (sample(16, np.full(100, temperature), 0, seed=12) for temperature in (COLD_AT_TC, T_CRITICAL))
    assert (np.abs(lattice.magnetization(cold)) == 1).all()
    assert abs(lattice.magnetization(hot).mean()) < 4 / np.sqrt(100 * 256)
    assert 30 < (lattice.magnetization(cold) > 0).sum() < 70


# ------------------------------------------------------------------------------------------------------ equal bytes

GOLDEN = {
    4: "344cc4c6d1f9a927aa1bae4fe5f87c3105a06734197f4ed133d398808094781e",
    8: "9aa2fc6e49346a6309c29f593e54466607b59d185c804f82e0f238d11c824475",
    20: "7c87c95e290c5459a785b9e40217814ae3c53e5b4a5751cc91ae2987a36fafb3",
    128: "a62e3a90f3315c24f1f353df4a6ec9c1ddfca2707c205594fea6dba49f1b46e0",
}


def digest(size: int) -> str:
    """SHA-256 of 300 configurations between T = 0.5 and 10. They depend on every part of the sampler."""
    return hashlib.sha256(sample(size, np.linspace(0.5, 10, 300), 20, seed=2**63).tobytes()).hexdigest()


@pytest.mark.parametrize("size", GOLDEN)
def test_the_bytes_do_not_change(size: int) -> None:
    # They may only change together with the code, which also changes the names of cached files.
    assert digest(size) == GOLDEN[size]


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_instruction_set(tmp_path: Path) -> None:
    code = (
        f"from tests.test_multispin import digest, GOLDEN; assert [digest(L) for L in GOLDEN] == {[*GOLDEN.values()]}"
    )
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **plain}, check=True)


@pytest.mark.parametrize("n_threads", [1, 2, 7])
@pytest.mark.parametrize("size", [4, 8, 10, 32])
def test_the_bytes_do_not_depend_on_threads_and_tasks(
    size: int, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    temperatures = np.linspace(1, 4, 3000)
    expected = sample(size, temperatures, 11, seed=13)
    np.testing.assert_array_equal(sample(size, temperatures, 11, seed=13, n_threads=n_threads), expected)
    monkeypatch.setattr(multispin, "SPINS_PER_TASK", 1)
    monkeypatch.setattr(multispin, "UPDATES_PER_CALL", 1)
    np.testing.assert_array_equal(sample(size, temperatures, 11, seed=13, n_threads=n_threads), expected)


@pytest.mark.parametrize("n", [64, 128, 320, 1024])
def test_a_word_of_chains_does_not_depend_on_later_words(n: int) -> None:
    temperatures = np.linspace(1, 4, 1100)
    np.testing.assert_array_equal(sample(8, temperatures[:n], 9, seed=14), sample(8, temperatures, 9, seed=14)[:n])


def test_a_seed_is_an_integer_or_a_seed_sequence() -> None:
    temperatures = np.linspace(1, 4, 10)
    spins = sample(6, temperatures, 7, seed=5)
    np.testing.assert_array_equal(spins, sample(6, temperatures, 7, seed=np.random.SeedSequence(5)))
    assert not np.array_equal(spins, sample(6, temperatures, 7, seed=6))


def test_streams_differ_from_lane_to_lane() -> None:
    states = set()
    for first in (0, 16):
        blocks = kernel.new_blocks(8, 4, 4, 32)
        kernel.start(blocks, np.ones((4, 4, 64)), np.arange(4, dtype=np.uint64), first, T_CRITICAL)

        states |= {lane.tobytes() for lanes in blocks.lanes for lane in lanes["state"].T}
    assert len(states) == 2 * 4 * kernel.LANES


# -------------------------------------------------------------------------------------------------------- interface


def test_both_samplers_return_arrays_of_the_same_shape_and_dtype() -> None:
    temperatures = np.linspace(1, 4, 130)
    for sampler in (sample, metropolis.sample):
        spins = sampler(6, temperatures, 3, seed=15)
        assert spins.shape == (130, 6, 6)
        assert spins.dtype == np.int8
        assert set(np.unique(spins)) == {-1, 1}
        assert sampler(6, [], 3, seed=15).shape == (0, 6, 6)


def test_all_progress_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multispin, "UPDATES_PER_CALL", 2**16)
    reported: list[int] = []
    sample(16, np.full(100, 3.0), 50, seed=16, advance=reported.append)
    assert len(reported) > 10
    assert sum(reported) == 50 * 100 * 16**2


def test_an_interrupt_stops_the_remaining_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multispin, "UPDATES_PER_CALL", 1)
    reported: list[int] = []

    def interrupt(n_spins: int) -> None:
        reported.append(n_spins)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(64, np.full(640, 3.0), 10**6, seed=17, n_threads=2, advance=interrupt)  # otherwise hours
    assert len(reported) <= 20  # each of the ten tasks may have begun


@pytest.mark.parametrize("size", [2, 15, 0])
def test_lattices_without_a_checkerboard_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="must be even and at least 4"):
        sample(size, np.ones(3), 1, seed=0)


@pytest.mark.parametrize("temperatures", [[1, 0.0], [-1.0], [1, np.nan], [np.inf], 1.0, [[1.0, 2.0]]])
@pytest.mark.parametrize("sampler", [sample, metropolis.sample, wolff.sample])
def test_invalid_temperatures_are_refused(sampler: Callable[..., NDArray[np.int8]], temperatures: object) -> None:
    with pytest.raises(ValueError, match="temperatures must be positive"):
        sampler(4, np.asarray(temperatures), 1, seed=0)


# Arguments that neither sampler accepts, and the error message.
INVALID: list[tuple[dict[str, Any], str]] = [
    ({"n_sweeps": -1}, "n_sweeps -1: must be an integer, at least 0"),
    ({"n_sweeps": 2.0}, "n_sweeps 2.0: must be an integer, at least 0"),
    ({"seed": None}, "seed None: must be an integer, at least 0, or a SeedSequence"),
    ({"seed": -1}, "seed -1: must be an integer, at least 0, or a SeedSequence"),
    ({"seed": 0.5}, "seed 0.5: must be an integer, at least 0, or a SeedSequence"),
]


@pytest.mark.parametrize("sampler", [sample, metropolis.sample])
@pytest.mark.parametrize(("changed", "message"), INVALID)
def test_invalid_arguments_are_refused(
    sampler: Callable[..., NDArray[np.int8]], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(4, [1.0], **{"n_sweeps": 1, "seed": 0, **changed})


@pytest.mark.parametrize("n_threads", [0, -1, 1.5])
def test_the_number_of_threads_must_be_a_positive_integer(n_threads: int) -> None:
    with pytest.raises(ValueError, match=f"n_threads {n_threads}: must be an integer, at least 1"):
        sample(4, [1.0], 1, seed=0, n_threads=n_threads)


def test_numpy_integers_are_accepted() -> None:
    temperatures, (size, sweeps, seed) = np.linspace(1, 4, 70), np.array([64, 3, 5], np.int8)
    for sampler in (sample, metropolis.sample, wolff.sample):
        np.testing.assert_array_equal(sampler(size, temperatures, sweeps, seed), sampler(64, temperatures, 3, 5))


def test_the_sampler_is_only_compiled_once() -> None:
    multispin.get_ready()
    assert multispin.get_ready() is None


def test_without_a_compiler_sampling_is_refused_because_it_would_take_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.config.DISABLE_JIT", 1)  # as NUMBA_DISABLE_JIT=1 does
    for call in (multispin.get_ready, lambda: sample(4, [1.0], 1, seed=0)):
        with pytest.raises(RuntimeError, match=r"NUMBA_DISABLE_JIT .* switches the compiler off: unset it"):
            call()
