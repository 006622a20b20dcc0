"""Exact results, compared with published numbers, with enumeration and with each other."""

import decimal
import functools
import itertools
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ising import exact, lattice
from ising.exact import T_CRITICAL, density_of_states, enumerate_configurations, kaufman, onsager_energy, sample

# L, E / N and C / N at T_c
AT_T_CRITICAL = [
    (4, -1.56562378764, 0.783266825929),
    (8, -1.49158910744, 1.14555923989),
    (16, -1.45306485281, 1.4987049594),
    (32, -1.43365846615, 1.84676759004),
    (64, -1.42393838983, 2.19221139314),
]

# T, E / N and C / N at L = 8
AT_L_8 = [
    (1.0, -1.997160204, 0.02337956),
    (2.0, -1.745683170, 0.71412260),
    (2.5, -1.222320643, 1.10047589),
    (3.0, -0.841315428, 0.48396647),
    (4.0, -0.558491137, 0.17425050),
]

# |E| of the 4 x 4 lattice, and the number of configurations with energy |E| and with -|E|
COUNTS_4X4 = {32: 2, 24: 32, 20: 64, 16: 424, 12: 1728, 8: 6688, 4: 13568, 0: 20524}


def test_critical_temperature() -> None:
    assert pytest.approx(2.269185314213, abs=5e-13) == T_CRITICAL
    assert np.sinh(2 / T_CRITICAL) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(("size", "energy", "specific_heat"), AT_T_CRITICAL)
def test_kaufman_at_the_critical_temperature(size: int, energy: float, specific_heat: float) -> None:
    np.testing.assert_allclose(kaufman(T_CRITICAL, size), (energy, specific_heat), rtol=1e-11)


@pytest.mark.parametrize(("temperature", "energy", "specific_heat"), AT_L_8)
def test_kaufman_at_8x8(temperature: float, energy: float, specific_heat: float) -> None:
    # The table has ten digits of the energy and eight decimals of the specific heat.
    computed = kaufman(temperature, 8)
    np.testing.assert_allclose(computed[0], energy, atol=6e-10)
    np.testing.assert_allclose(computed[1], specific_heat, atol=6e-9)


def test_kaufman_equals_enumeration_at_every_temperature() -> None:
    temperatures = np.array([0.1, 0.3, 0.5, 1.0, 1.9, T_CRITICAL * (1 - 1e-9), T_CRITICAL, T_CRITICAL + 1e-6, 3, 10])
    levels, counts = density_of_states(4)
    weights = counts * np.exp(-(levels + 32) / temperatures[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    mean = weights @ levels
    variance = (weights * (levels - mean[:, None]) ** 2).sum(axis=1)
    energy, specific_heat = kaufman(temperatures, 4)
    np.testing.assert_allclose(energy, mean / 16, rtol=1e-12)
    np.testing.assert_allclose(specific_heat, variance / temperatures**2 / 16, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [4, 8, 64, 256])
def test_specific_heat_is_the_slope_of_the_energy(size: int) -> None:
    temperatures = np.array([1.2, 2.0, T_CRITICAL - 1e-3, T_CRITICAL, T_CRITICAL + 1e-3, 2.6, 5.0])
    step = 1e-5
    slope = (kaufman(temperatures + step, size)[0] - kaufman(temperatures - step, size)[0]) / (2 * step)
    np.testing.assert_allclose(kaufman(temperatures, size)[1], slope, rtol=1e-5)


# Very low, intermediate and very high temperatures, and both sides of the limits between series and closed form.
EDGES = [np.nextafter(0.5, 0), 0.5, np.nextafter(0.5, 1), np.nextafter(1000, 0), 1000, np.nextafter(1000, 2000)]
COLD = [1e-6, 1e-3, 0.01, 0.015, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0]
ALL_TEMPERATURES = np.array([*EDGES, *COLD, 2.0, T_CRITICAL, 2.5, 4.0, 10.0, 100.0, 1e4, 1e6, 1e9])


@functools.cache
def by_direct_sum(size: int) -> NDArray[np.float64]:
    """ln Z, U / N, C / N and each p(E) from the density of states, in 60 digits: (3 + levels, ALL_TEMPERATURES)."""
    levels, counts = (array.tolist() for array in density_of_states(size))
    results = []
    with decimal.localcontext(prec=60):
        for coupling in (1 / Decimal(temperature) for temperature in ALL_TEMPERATURES.tolist()):
            weights = [
                count * ((levels[0] - level) * coupling).exp() for level, count in zip(levels, counts, strict=True)
            ]
            z = sum(weights)
            p = [weight / z for weight in weights]
            mean = sum(p_i * level for p_i, level in zip(p, levels, strict=True))
            variance = sum(p_i * (level - mean) ** 2 for p_i, level in zip(p, levels, strict=True))
            log_z = z.ln() - levels[0] * coupling
            results.append([log_z, mean / size**2, variance * coupling**2 / size**2, *p])
    return np.array(results, np.float64).T


@pytest.mark.parametrize("size", [4, 6, 8])
def test_all_results_equal_the_direct_sum_at_every_temperature(size: int) -> None:
    log_z, energy, specific_heat, *p = by_direct_sum(size)
    np.testing.assert_allclose(exact.log_partition_function(ALL_TEMPERATURES, size), log_z, rtol=1e-14)
    found = kaufman(ALL_TEMPERATURES, size)
    np.testing.assert_allclose(found[0], energy, rtol=1e-9)
    np.testing.assert_allclose(found[1], specific_heat, rtol=1e-9)
    cold = ALL_TEMPERATURES <= 1
    np.testing.assert_allclose(found[0][cold], energy[cold], rtol=1e-15)  # all digits of U
    _, distribution = exact.energy_distribution(ALL_TEMPERATURES, size)
    np.testing.assert_allclose(distribution.T, p, rtol=1e-9)


def test_asymptotic_values_at_extreme_temperatures() -> None:
    # Two ground states: ln Z = 2 N / T + ln 2. First excitation, 8 J: U + 2 = 8 exp(-8 / T), C = (8 / T)^2 exp(-8 / T).
    assert exact.log_partition_function(0.01, 8) == pytest.approx(12800 + np.log(2), rel=1e-15)
    assert exact.log_partition_function(1e-200, 1024) == pytest.approx(2 * 1024**2 * 1e200, rel=1e-15)
    for temperature in (0.02, 0.05, 0.1, 0.2):
        energy, specific_heat = kaufman(temperature, 1024)
        assert specific_heat == pytest.approx((8 / temperature) ** 2 * np.exp(-8 / temperature), rel=1e-7)
        assert energy == pytest.approx(-2, abs=1e-15)
    np.testing.assert_array_equal(kaufman(1e-200, 1024), (-2, 0))
    # Independent bonds: U = -2 / T, C = 2 / T^2.
    for size in (4, 6, 1024):
        np.testing.assert_allclose(kaufman(1e6, size), (-2e-6, 2e-12), rtol=1e-10)
        np.testing.assert_allclose(kaufman(1e300, size), (-2e-300, 0), rtol=1e-15)
        assert exact.log_partition_function(1e300, size) == pytest.approx(size**2 * np.log(2), rel=1e-15)


@pytest.mark.parametrize("size", [10, 16, 64, 1024])
def test_large_lattices_follow_the_low_temperature_series(size: int) -> None:
    # The partition function per spin is exp(2 K) times this sum, with z = exp(-4 K): C. Domb, Adv. Phys. 9, 149 (1960).
    temperatures = np.array([0.05, 0.1, 0.2, 0.3, 0.4, np.nextafter(0.5, 0), 0.5, np.nextafter(0.5, 1), 0.6])
    per_spin = np.polynomial.Polynomial([1, 0, 1, 2, 5, 14, 44, 152, 566])
    z = np.exp(-4 / temperatures)
    first = z * per_spin.deriv()(z) / per_spin(z)  # z d/dz of the logarithm, and again
    second = first + z**2 * per_spin.deriv(2)(z) / per_spin(z) - first**2
    energy, specific_heat = kaufman(temperatures, size)
    np.testing.assert_allclose(energy, 4 * first - 2, rtol=1e-15)
    np.testing.assert_allclose(specific_heat, 16 * second / temperatures**2, rtol=1e-9)
    log_z = exact.log_partition_function(temperatures, size)
    np.testing.assert_allclose(log_z, np.log(2) + size**2 * (2 / temperatures + np.log(per_spin(z))), rtol=1e-14)


@pytest.mark.parametrize("size", [4, 6, 8, 10, 64, 1024])
@pytest.mark.parametrize("temperature", [0.5, 1000.0])
def test_series_and_closed_form_agree_where_they_meet(size: int, temperature: float) -> None:
    below, above = (np.nextafter(temperature, end) for end in (0, np.inf))
    np.testing.assert_allclose(kaufman(below, size), kaufman(above, size), rtol=5e-10)
    np.testing.assert_allclose(onsager_energy(below), onsager_energy(above), rtol=5e-10)
    log_z = exact.log_partition_function([below, above], size)
    assert log_z[0] == pytest.approx(log_z[1], rel=1e-14)


def test_large_lattices_approach_onsager() -> None:
    temperatures = np.array([0.5, 1.5, 2.0, 2.6, 4.0, 9.0])
    np.testing.assert_allclose(kaufman(temperatures, 128)[0], onsager_energy(temperatures), rtol=1e-12)


def test_onsager() -> None:
    assert onsager_energy(T_CRITICAL) == pytest.approx(-np.sqrt(2), abs=1e-14)
    assert onsager_energy(0.01) == pytest.approx(-2, rel=1e-14)
    extreme = np.array([1e-200, 1e-6, 0.1, 0.5, 10, 100, 999, 1000, 1001, 1e4, 1e6, 1e300])
    np.testing.assert_allclose(onsager_energy(extreme), kaufman(extreme, 64)[0], rtol=1e-9)
    around = onsager_energy(T_CRITICAL + np.array([-1e-12, 0, 1e-12]))  # continuous at T_c, where its slope diverges
    np.testing.assert_allclose(around, -np.sqrt(2), atol=1e-10)


def test_shapes_follow_the_temperatures() -> None:
    grid = np.linspace(1, 4, 6).reshape(2, 3)
    assert kaufman(grid, 8)[0].shape == kaufman(grid, 8)[1].shape == onsager_energy(grid).shape == (2, 3)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf, 5e-324, 9e-201])
def test_invalid_temperatures_are_refused(temperature: float) -> None:
    two = np.array([1.0, temperature])
    for call in (
        lambda: kaufman(temperature, 8),
        lambda: exact.log_partition_function(two, 8),
        lambda: onsager_energy(two),
        lambda: exact.yang_magnetization(two),
        lambda: exact.energy_distribution(two, 8),
        lambda: exact.phase_log_odds([0], two, 8),
        lambda: exact.phase_accuracy(two, np.ones(1), 8),
        lambda: sample(4, temperature, 1, seed=0),
    ):
        with pytest.raises(ValueError, match="temperatures must be positive and finite, and at least 1e-200"):
            call()


@pytest.mark.parametrize("n", [-1, 2.0, None])
def test_the_number_of_exact_samples_must_be_a_non_negative_integer(n: int) -> None:
    with pytest.raises(ValueError, match=f"n {n}: must be an integer, at least 0"):
        sample(4, 1.0, n, seed=0)


@pytest.mark.parametrize("seed", [None, -1, 0.5, "0"])
def test_invalid_seeds_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed {seed!r}: must be an integer, at least 0, or a SeedSequence"):
        sample(4, 1.0, 1, seed=seed)


@pytest.mark.parametrize("size", [2, 15])
def test_kaufman_refuses_lattices_that_the_sampler_refuses(size: int) -> None:
    with pytest.raises(ValueError, match="must be even and at least 4"):
        kaufman(1.0, size)


def test_every_configuration_is_enumerated_once() -> None:
    spins = enumerate_configurations()
    assert spins.shape == (2**16, 4, 4)
    assert spins.dtype == np.int8
    assert len({configuration.tobytes() for configuration in spins}) == 2**16
    assert set(itertools.chain(*spins[::4096].reshape(16, -1).tolist())) == {-1, 1}


def test_density_of_states_4x4() -> None:
    levels, counts = density_of_states(4)
    expected = {sign * level: count for level, count in COUNTS_4X4.items() for sign in (-1, 1)}
    assert dict(zip(levels.tolist(), counts.tolist(), strict=True)) == expected
    assert counts.sum() == 2**16


def test_density_of_states_8x8() -> None:
    levels, counts = density_of_states(8)
    by_level = dict(zip(levels.tolist(), counts.tolist(), strict=True))
    assert sum(by_level.values()) == 2**64
    # By hand, for flipped spins: none; one; two neighbours; two others, three in a line or a corner, or a square.
    pairs, triples, squares = 64 * 63 // 2 - 128, 6 * 64, 64
    by_hand = [2, 2 * 64, 2 * 128, 2 * (pairs + triples + squares)]
    assert [by_level[energy] for energy in (-128, -120, -116, -112)] == by_hand
    assert -124 not in by_level
    assert all(
        by_level[level] == by_level[-level] for level in by_level
    )  # flipping one colour of the checkerboard changes the sign


@pytest.mark.parametrize("size", [4, 6, 8])
def test_density_of_states_gives_kaufmans_energy_and_specific_heat(size: int) -> None:
    levels, counts = density_of_states(size)
    temperatures = np.array([0.7, 1.0, 2.0, T_CRITICAL, 2.5, 4.0, 10.0])
    weights = counts * np.exp(-(levels - levels[0]) / temperatures[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    mean = weights @ levels
    variance = (weights * (levels - mean[:, None]) ** 2).sum(axis=1)
    energy, specific_heat = kaufman(temperatures, size)
    np.testing.assert_allclose(mean / size**2, energy, rtol=1e-12)
    np.testing.assert_allclose(variance / temperatures**2 / size**2, specific_heat, rtol=1e-9)


@pytest.mark.parametrize("size", [2, 5, 10])
def test_density_of_states_refuses_other_sizes(size: int) -> None:
    with pytest.raises(ValueError, match=f"lattice size {size}"):
        density_of_states(size)
    with pytest.raises(ValueError, match=f"lattice size {size}"):
        sample(size, 1.0, 1, seed=0)


def test_exact_samples_4x4_have_boltzmanns_weights() -> None:
    # Counts of each of the 65,536 configurations, at a temperature at which all of them occur.
    n = 1_000_000
    spins = sample(4, 40.0, n, seed=1)
    numbers = (spins.reshape(n, 16) > 0) @ (1 << np.arange(16))
    observed = np.bincount(numbers, minlength=2**16)
    expected = np.exp(-lattice.energy(enumerate_configurations()) / 40.0)
    expected *= n / expected.sum()
    chi2 = ((observed - expected) ** 2 / expected).sum()
    assert expected.min() > 1
    assert abs(chi2 - (2**16 - 1)) < 4 * np.sqrt(2 * 2**16)


@pytest.mark.parametrize("temperature", [0.1, 1.5, T_CRITICAL, 4.0])
def test_exact_samples_8x8_have_the_right_energies(temperature: float) -> None:
    n = 20_000
    spins = sample(8, temperature, n, seed=2)
    assert spins.shape == (n, 8, 8)
    assert spins.dtype == np.int8
    energies = lattice.energy(spins)
    energy, specific_heat = kaufman(temperature, 8)
    excess = energies.sum() - n * 64 * float(energy)
    assert abs(excess) < 4 * np.sqrt(n * 64 * temperature**2 * float(specific_heat) + 8**2)


def test_exact_samples_only_depend_on_the_seed() -> None:
    one, two, other = (sample(8, T_CRITICAL, 100, seed=seed) for seed in (2, 2, 3))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_magnetisation_4x4_at_the_critical_temperature() -> None:
    spins = enumerate_configurations()
    weights = np.exp(-lattice.energy(spins) / T_CRITICAL)
    weights /= weights.sum()
    m = lattice.magnetization(spins)
    m2, m4 = weights @ m**2, weights @ m**4
    assert m2 == pytest.approx(0.7613589086, abs=5e-11)
    assert weights @ np.abs(m) == pytest.approx(0.8438604448, abs=5e-11)
    assert 1 - m4 / (3 * m2**2) == pytest.approx(0.6171993, abs=5e-8)


def test_the_spontaneous_magnetisation_vanishes_at_the_critical_temperature_with_exponent_one_eighth() -> None:
    assert exact.yang_magnetization([0.1, T_CRITICAL, 3.0]).tolist() == [pytest.approx(1), pytest.approx(0), 0]
    near = exact.yang_magnetization(T_CRITICAL * (1 - np.array([1e-6, 1e-8])))
    assert np.log(near[0] / near[1]) / np.log(100) == pytest.approx(1 / 8, rel=1e-4)
    # Far below T_c, the first excitation: m = 1 - 2 exp(-8 / T).
    assert 1 - exact.yang_magnetization(0.5) == pytest.approx(2 * np.exp(-8 / 0.5), rel=5e-3)
    assert exact.yang_magnetization([1e-200, 1e-6, 0.02, 100, 1e300]).tolist() == [1, 1, 1, 0, 0]


def test_the_partition_function_is_the_sum_over_all_configurations() -> None:
    temperatures = np.array([0.3, 1.0, T_CRITICAL, 4.0, 10.0, 1e3])
    for size in (4, 6, 8):
        levels, counts = exact.density_of_states(size)
        expected = np.logaddexp.reduce(np.log(counts) - levels / temperatures[:, None], axis=1)
        np.testing.assert_allclose(exact.log_partition_function(temperatures, size), expected, rtol=1e-13)
        _, p = exact.energy_distribution(temperatures, size)
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-11)
        energy, _ = exact.kaufman(temperatures, size)
        np.testing.assert_allclose(p @ levels / size**2, energy, rtol=1e-10)


def test_log_odds_of_the_phase_are_bayes_rule() -> None:
    temperatures = np.linspace(1, 4, 200)
    levels, p = exact.energy_distribution(temperatures, 4)
    below = temperatures < T_CRITICAL
    posterior = p[below].sum(axis=0) / p.sum(axis=0)
    odds = exact.phase_log_odds(levels, temperatures, 4)
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), posterior, rtol=1e-9)
    assert np.all(np.diff(odds) < 0)  # the higher the energy, the less likely the cold phase
    with pytest.raises(ValueError, match="no temperatures"):
        exact.phase_log_odds(levels, np.array([]), 4)
    many = exact.phase_log_odds(levels, np.linspace(1, 4, 20_000), 4)  # uses quantiles
    np.testing.assert_allclose(many, exact.phase_log_odds(levels, np.linspace(1, 4, 999), 4), atol=0.01)
    assert np.all(exact.phase_log_odds(levels, temperatures[below], 4) == 1000)
    assert np.all(exact.phase_log_odds(levels, temperatures[~below], 4) == -1000)


@pytest.mark.parametrize("cold", [1e-200, 1e-6, 1e-3, 0.01])
def test_log_odds_of_the_phase_at_extreme_temperatures(cold: float) -> None:
    # A configuration has the probability exp(-(E + 32) / T) / 2 at the low and 2^-16 at the high temperature. Log-odds
    # are clipped at -1000.
    odds = exact.phase_log_odds([-32, -24, 0], np.array([cold, 1e300]), 4)
    expected = 15 * np.log(2) - np.array([0, 8, 32]) / cold
    np.testing.assert_allclose(odds, np.maximum(expected, -1000), rtol=1e-14)
    # At each of two low temperatures, a ground state has probability 1 / 2. The third temperature is high.
    ground = exact.phase_log_odds([-128], np.array([cold, 2 * cold, 10.0]), 8)
    np.testing.assert_allclose(ground, exact.log_partition_function(10.0, 8) - 128 / 10, rtol=1e-14)


def test_no_threshold_of_the_energy_classifies_better_than_the_sign_of_the_log_odds() -> None:
    temperatures = np.linspace(1.5, 3.5, 101)
    levels, p = exact.energy_distribution(temperatures, 8)
    right = temperatures < T_CRITICAL
    best = max((p * ((levels < level) == right[:, None])).sum() for level in levels) / len(temperatures)
    assert exact.phase_accuracy(temperatures, temperatures, 8).mean() == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("size", [4, 6, 8])
def test_the_histogram_of_the_energy_is_that_of_the_density_of_states(size: int) -> None:
    for temperature in (1.0, T_CRITICAL, 4.0, 1e6):
        expected = np.zeros(size**2 + 1)
        levels, p = exact.energy_distribution(np.array([temperature]), size)
        expected[(levels + 2 * size**2) // 4] = p[0]
        found_levels, found = exact.energy_histogram(temperature, size)
        assert found_levels[[0, 1, -1]].tolist() == [-2 * size**2, 4 - 2 * size**2, 2 * size**2]
        np.testing.assert_allclose(found, expected, atol=2e-13)


@pytest.mark.parametrize("size", [10, 32, 64])
def test_the_histogram_of_the_energy_has_kaufmans_mean_and_variance(size: int) -> None:
    for temperature in (1.0, T_CRITICAL, 2.3, 4.0):
        levels, p = exact.energy_histogram(temperature, size)
        energy, specific_heat = kaufman(temperature, size)
        assert p.sum() == pytest.approx(1, abs=1e-10)
        assert p @ levels == pytest.approx(float(energy) * size**2, rel=1e-10)
        variance = p @ (levels - p @ levels) ** 2
        assert variance == pytest.approx(float(specific_heat) * (size * temperature) ** 2, rel=1e-8)


@pytest.mark.parametrize("size", [16, 128])
@pytest.mark.parametrize("temperature", [1e20, 1e300])
def test_the_histogram_of_the_energy_at_high_temperatures(size: int, temperature: float) -> None:
    levels, p = exact.energy_histogram(temperature, size)
    assert p.sum() == pytest.approx(1, abs=1e-10)
    assert p @ levels == pytest.approx(0, abs=1e-6)
    assert p @ levels**2 == pytest.approx(2 * size**2, rel=1e-8)  # each bond is +1 or -1, independently


@pytest.mark.parametrize("size", [np.int8(64), np.int16(200), np.uint8(8)])
def test_small_numpy_integers_do_not_overflow(size: Any) -> None:
    temperatures = np.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(kaufman(temperatures, size), kaufman(temperatures, int(size)))
    for function in (exact.log_partition_function, exact.energy_histogram):
        np.testing.assert_array_equal(function(2.0, size), function(2.0, int(size)))
    odds = [exact.phase_log_odds([-100], temperatures, each) for each in (size, int(size))]
    np.testing.assert_array_equal(odds[0], odds[1])
    if size == 8:
        np.testing.assert_array_equal(density_of_states.__wrapped__(size), density_of_states(8))
        np.testing.assert_array_equal(sample(size, 2.0, 3, seed=0), sample(8, 2.0, 3, seed=0))


@pytest.mark.parametrize("temperature", [0.9, math.inf, math.nan])
def test_the_histogram_of_the_energy_refuses_other_temperatures(temperature: float) -> None:
    with pytest.raises(ValueError, match="must be finite and at least 1"):
        exact.energy_histogram(temperature, 8)
