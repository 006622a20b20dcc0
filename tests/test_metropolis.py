"""The NumPy sampler compared with exact results. Seeds are fixed: with the pinned NumPy, the outcome never changes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ising import exact, lattice, metropolis
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps, sample, sweep

WHOLE_RANGE = [0.02, 0.5, 1.0, 1.5, 2.0, T_CRITICAL, 2.5, 3.0, 4.0, 6.0, 10.0]

SLOW = pytest.mark.slow


def standard_errors_from_exact(spins: NDArray[np.int8], temperature: float) -> float:
    """Mean energy of independent configurations (N, L, L) minus the exact one, in exact standard errors.

    As in data.check_equilibrium, 8 J, the energy of one excitation, is added to the error in quadrature.
    """
    n_sites = spins[0].size
    energy, specific_heat = exact.kaufman(temperature, spins.shape[-1])
    excess = lattice.energy(spins).sum() - len(spins) * n_sites * float(energy)
    return float(excess / np.sqrt(len(spins) * n_sites * temperature**2 * float(specific_heat) + 8**2))


def evolve(start: str, size: int, temperature: float, n_chains: int, n_sweeps: int) -> NDArray[np.int8]:
    """Chains with an ordered (cold) or a random (hot) start, at any temperature: (N, L, L)."""
    rng = np.random.default_rng(2024)
    shape = (size, size, n_chains)
    spins = np.ones(shape, np.int8) if start == "cold" else rng.choice(np.array([-1, 1], np.int8), shape)
    temperatures = np.full(n_chains, temperature, np.float32)
    for _ in range(n_sweeps):
        sweep(spins, temperatures, rng)
    return np.moveaxis(spins, -1, 0)


@pytest.mark.parametrize(("size", "n_chains"), [(4, 4000), pytest.param(8, 4000, marks=SLOW)])
def test_mean_energy_is_exact_over_the_whole_range(size: int, n_chains: int) -> None:
    temperatures = np.repeat(WHOLE_RANGE, n_chains)
    spins = sample(size, temperatures, equilibration_sweeps(size), seed=size)
    for temperature in WHOLE_RANGE:
        assert abs(standard_errors_from_exact(spins[temperatures == temperature], temperature)) < 4


@pytest.mark.parametrize("temperature", [1.5, T_CRITICAL, 3.0])
def test_energy_histogram_4x4_is_boltzmanns(temperature: float) -> None:
    n_chains = 20_000
    spins = sample(4, np.full(n_chains, temperature), equilibration_sweeps(4), seed=1)
    levels, counts = exact.density_of_states(4)
    expected = counts * np.exp(-(levels + 32) / temperature)
    expected *= n_chains / expected.sum()
    observed = (lattice.energy(spins)[:, None] == levels).sum(axis=0)
    rare = expected < 10  # too rare for chi-square: combined in one bin
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    chi2 = ((observed - expected) ** 2 / expected).sum()
    degrees = len(expected) - 1
    assert chi2 < degrees + 4 * np.sqrt(2 * degrees)


def test_magnetisation_4x4_at_the_critical_temperature() -> None:
    n_chains = 20_000
    m = lattice.magnetization(sample(4, np.full(n_chains, T_CRITICAL), equilibration_sweeps(4), seed=2))
    for values, expected in ((np.abs(m), 0.8438604448), (m**2, 0.7613589086), (m, 0.0)):
        assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(n_chains)


@pytest.mark.parametrize("start", ["hot", "cold"])
@pytest.mark.parametrize(("size", "temperature"), [(8, 1.0), (8, T_CRITICAL), (8, 10.0)])
def test_automatic_sweeps_forget_the_start(start: str, size: int, temperature: float) -> None:
    spins = evolve(start, size, temperature, n_chains=2000, n_sweeps=equilibration_sweeps(size))
    assert abs(standard_errors_from_exact(spins, temperature)) < 4


def test_hot_starts_at_low_temperature_need_many_more_sweeps() -> None:
    # Far below T_c, a random start freezes into stripes for longer than the automatic number of sweeps. This is why
    # chains start ordered there. After enough sweeps, the stripes disappear.
    assert standard_errors_from_exact(evolve("hot", 4, 0.5, 400, equilibration_sweeps(4)), 0.5) > 100
    assert abs(standard_errors_from_exact(evolve("hot", 4, 0.5, 400, 4000), 0.5)) < 4


def test_both_signs_of_the_magnetisation_are_equally_likely() -> None:
    up = (lattice.magnetization(sample(8, np.full(4000, 1.0), 20, seed=3)) > 0).sum()
    assert abs(up - 2000) < 4 * np.sqrt(1000)


def test_neighbouring_chains_are_independent() -> None:
    energies = lattice.energy(sample(4, np.full(20_000, T_CRITICAL), equilibration_sweeps(4), seed=4)).astype(float)
    correlation = np.corrcoef(energies[:-1], energies[1:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(20_000)


def test_sample_is_a_function_of_its_arguments() -> None:
    temperatures = np.linspace(1, 4, 10)
    spins = sample(6, temperatures, 7, seed=5)
    assert spins.shape == (10, 6, 6)
    assert spins.dtype == np.int8
    assert set(np.unique(spins)) == {-1, 1}
    np.testing.assert_array_equal(spins, sample(6, temperatures, 7, seed=np.random.SeedSequence(5)))
    assert not np.array_equal(spins, sample(6, temperatures, 7, seed=6))


def test_a_sweep_updates_every_site_once() -> None:
    # At infinite temperature every flip is accepted: one sweep flips each spin exactly once.
    spins = np.random.default_rng(7).choice(np.array([-1, 1], np.int8), (6, 6, 50))
    before = spins.copy()
    sweep(spins, np.full(50, np.inf, np.float32), np.random.default_rng(8))
    np.testing.assert_array_equal(spins, -before)


@pytest.mark.parametrize("size", [2, 15, 0, -4])
def test_lattices_without_a_checkerboard_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="must be even and at least 4"):
        sample(size, np.ones(3), 1, seed=0)
    with pytest.raises(ValueError, match="must be even and at least 4"):
        equilibration_sweeps(size)


def test_temperatures_beyond_single_precision_are_zero_and_infinite() -> None:
    spins = sample(8, [1e-50] * 8 + [1e300] * 8, 3, seed=0)
    assert (np.abs(lattice.magnetization(spins[:8])) == 1).all()
    assert (np.abs(lattice.magnetization(spins[8:])) < 0.6).all()


def test_automatic_sweeps_grow_with_the_lattice() -> None:
    sweeps = [metropolis.equilibration_sweeps(size) for size in (4, 8, 16, 32, 64)]
    assert sweeps == sorted(sweeps)
    assert sweeps[0] == 100
    # Autocorrelation times of |m| at T_c are about 10, 38 and 192 sweeps at L = 16, 32 and 64.
    assert all(n > 15 * tau for n, tau in zip(sweeps[2:], (10, 38, 192), strict=True))
