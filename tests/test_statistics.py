"""Statistics, checked on processes and lattices with known results, and compared with pyerrors."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from ising import exact, lattice, metropolis, statistics
from ising.exact import T_CRITICAL


def autoregressive(memory: float, shape: tuple[int, int], seed: int) -> NDArray[np.float64]:
    """x_t = memory x_{t-1} + noise in equilibrium, with autocorrelation memory^t: (chains, steps)."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    noise[:, 0] /= np.sqrt(1 - memory**2)
    return np.asarray(lfilter([1], [1, -memory], noise, axis=1))


def moving_average(weight: float, shape: tuple[int, int], seed: int) -> NDArray[np.float64]:
    """x_t = noise_t + weight noise_{t-1}. Only neighbours are correlated, by weight / (1 + weight^2)."""
    noise = np.random.default_rng(seed).standard_normal((shape[0], shape[1] + 1))
    return noise[:, 1:] + weight * noise[:, :-1]


def require_unbiased_with_correct_errors(estimates: NDArray[np.float64], expected: float) -> None:
    """Check estimates and errors (n, 2): the mean is as expected, and the errors agree with the scatter."""
    deviations = (estimates[:, 0] - expected) / estimates[:, 1]
    assert abs(deviations.mean()) < 4 / np.sqrt(len(estimates))
    assert 0.75 < deviations.std() < 1.35


@pytest.mark.parametrize("memory", [-0.95, -0.9, -0.5, -0.2, 0.0, 0.5, 0.9, 0.97])
def test_autocorrelation_time_of_autoregressive_series(memory: float) -> None:
    # tau = 1/2 + sum_t memory^t = (1 + memory) / (2 (1 - memory))
    estimates = [statistics.autocorrelation_time(autoregressive(memory, (4, 20_000), seed)) for seed in range(40)]
    require_unbiased_with_correct_errors(np.array(estimates), (1 + memory) / (2 * (1 - memory)))


@pytest.mark.parametrize("weight", [-0.7, -0.3, 0.3, 0.9])
def test_autocorrelation_time_of_moving_averages(weight: float) -> None:
    estimates = [statistics.autocorrelation_time(moving_average(weight, (4, 20_000), seed)) for seed in range(40)]
    require_unbiased_with_correct_errors(np.array(estimates), 0.5 + weight / (1 + weight**2))


def test_autocorrelation_time_of_one_chain() -> None:
    series = autoregressive(0.8, (1, 50_000), seed=1)
    assert statistics.autocorrelation_time(series[0]) == statistics.autocorrelation_time(series)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("memory", [0.3, 0.8, 0.97])
def test_autocorrelation_time_is_that_of_pyerrors(memory: float) -> None:
    # For positive correlations, both use U. Wolff's window. For negative ones, pyerrors returns at least 1/2.
    import pyerrors  # its import emits warnings

    series = autoregressive(memory, (1, 40_000), seed=3)[0]
    observable = pyerrors.Obs([series], ["chain"])
    observable.gamma_method(S=1.5)
    tau, error = statistics.autocorrelation_time(series)
    assert tau == pytest.approx(observable.e_tauint["chain"], abs=0.5 * error)
    assert error == pytest.approx(observable.e_dtauint["chain"], rel=0.25)
    error_of_mean = series.std() * np.sqrt(2 * tau / len(series))
    assert error_of_mean == pytest.approx(observable.dvalue, rel=0.03)


def test_the_magnetisation_of_a_hot_checkerboard_is_anticorrelated() -> None:
    # At T = 6, nearly every flip is accepted, so each sweep inverts most of the lattice. The scatter between chains
    # gives an independent estimate of tau.
    rng, temperatures = np.random.default_rng(0), np.full(64, 6.0, np.float32)
    spins = np.ascontiguousarray(np.moveaxis(metropolis.sample(8, temperatures, 100, seed=1), 0, -1))
    series = np.empty((64, 2000))
    for step in range(series.shape[1]):
        metropolis.sweep(spins, temperatures, rng)
        series[:, step] = lattice.magnetization(np.moveaxis(spins, -1, 0))
    tau, error = statistics.autocorrelation_time(series)
    from_chains = series.mean(axis=1).var(ddof=1) * series.shape[1] / (2 * series.var())
    assert error < 0.01
    assert tau == pytest.approx(0.275, abs=4 * error)  # the result of 512 chains
    assert tau == pytest.approx(from_chains, rel=4 * np.sqrt(2 / 63))


WHITE = np.random.default_rng(9).standard_normal((16, 20_000))


@pytest.mark.parametrize(
    ("series", "reason"),
    [
        (np.ones((2, 1000)), "constant"),
        (np.full(100, 0.1), "constant"),
        (np.repeat([[0.5], [-0.5]], 500, axis=1), "too few"),  # two chains that never move
        (autoregressive(0.99, (2, 200), seed=2), "200 steps are too few"),
        (np.cumsum(np.random.default_rng(0).standard_normal(10_000)), "too few"),
        (np.arange(1000.0), "straight line"),
        (np.exp(np.arange(300.0)), "one half"),
        (np.eye(1, 1000, 700)[0], "one half"),  # a single event
        (np.resize([1.0, -1.0], 1000), "too few"),
        (np.array([1.0]), "constant"),
        (np.array([1.0, 2.0, 1.5]), "too few"),
        (np.array([1.0, np.nan, 2.0] * 100), "finite"),
        (np.zeros((0, 5)), "must be"),
        (np.zeros((2, 2, 2)), "must be"),
        (np.diff(np.random.default_rng(1).standard_normal(20_001)), "cancel"),
        # 5 % of the variance decays in 1,000 steps: tau is 48, but a window of a few steps gives about 1.
        (WHITE + 0.01 * autoregressive(0.999, (16, 20_000), seed=4), "parts of the series differ"),
        (WHITE[:1] + 0.01 * autoregressive(0.999, (1, 20_000), seed=5), "parts of the series differ"),
        (WHITE + np.linspace(0, 1, 20_000), "differ"),  # a drift
        (np.tile(WHITE[0, :5000], 4), "repeats itself after 5000 steps"),
        # 10 % of the variance decays in 20 steps: tau is 2.4, and the window gives about 1.3.
        (0.95 * WHITE[:4] + 0.1 * autoregressive(0.95, (4, 20_000), seed=6), "parts of the series differ"),
        (WHITE[0] + np.linspace(-0.95, 0.95, 20_000), "differ"),  # one that would look like a slow correlation
        (
            WHITE + 0.2 * np.random.default_rng(6).standard_normal((16, 1)),
            "differ|too few",
        ),  # chains with different means
    ],
)
def test_series_without_a_reliable_autocorrelation_time_are_refused(series: NDArray[np.float64], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        statistics.autocorrelation_time(series)


@pytest.mark.parametrize("shape", [(1, 20_000), (4, 5_000), (64, 1_000)])
@pytest.mark.parametrize("memory", [-0.8, 0.0, 0.8])
def test_series_in_equilibrium_are_not_refused(memory: float, shape: tuple[int, int]) -> None:
    for seed in range(50):
        assert statistics.autocorrelation_time(autoregressive(memory, shape, seed))[0] > 0


def test_the_unit_of_a_series_has_no_effect() -> None:
    series = autoregressive(0.5, (4, 5_000), seed=3)
    for factor in (1e200, 1e-200):
        assert statistics.autocorrelation_time(factor * series) == pytest.approx(
            statistics.autocorrelation_time(series)
        )


def test_short_series_do_not_give_a_small_tau_with_a_small_error() -> None:
    wrong = 0
    for n in (5, 10, 20, 50, 100, 200, 500, 1000):
        for seed in range(50):
            try:
                tau, error = statistics.autocorrelation_time(autoregressive(99 / 101, (1, n), seed))  # tau = 50
            except ValueError:
                continue
            wrong += (50 - tau) / error > 4
    assert wrong == 0


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    samples = np.random.default_rng(3).exponential(size=1000)
    value, error = statistics.jackknife(lambda x: float(x.mean()), samples, n_blocks=1000)
    assert value == pytest.approx(samples.mean(), rel=1e-12)
    assert error == pytest.approx(samples.std(ddof=1) / np.sqrt(1000), rel=1e-3)


@pytest.mark.parametrize("n_blocks", [2, 3, 5, 20])
def test_jackknife_errors_contain_the_true_value_in_two_of_three_cases(n_blocks: int) -> None:
    found = [
        statistics.jackknife(lambda x: float(x.mean()), x, n_blocks=n_blocks)
        for x in np.random.default_rng(8).standard_normal((4000, 60))
    ]
    assert np.mean([abs(value) < error for value, error in found]) == pytest.approx(0.6827, abs=4 * 0.0074)


@pytest.mark.parametrize(("n", "n_blocks"), [(1003, 50), (51, 50), (99, 2)])
def test_jackknife_with_blocks_of_different_lengths(n: int, n_blocks: int) -> None:
    samples = [np.random.default_rng(seed).exponential(size=n) for seed in range(300)]
    found = np.array([statistics.jackknife(lambda x: float(x.mean()), x, n_blocks=n_blocks) for x in samples])
    np.testing.assert_allclose(found[:, 0], [x.mean() for x in samples], rtol=1e-12)
    squares = (found[:, 1] / statistics.t_factor(n_blocks)) ** 2
    assert np.mean(squares) == pytest.approx(1 / n, rel=4 * np.sqrt(2 / (300 * (n_blocks - 1))))


def test_jackknife_removes_the_bias_of_a_variance() -> None:
    samples = np.random.default_rng(4).standard_normal(40)
    value, _ = statistics.jackknife(lambda x: float(x.var()), samples, n_blocks=40)
    assert value == pytest.approx(samples.var(ddof=1), rel=1e-12)


def test_jackknife_leaves_out_the_same_samples_of_all_arrays() -> None:
    x = np.random.default_rng(5).standard_normal(500)
    value, error = statistics.jackknife(lambda a, b: float((a - b).mean()), x, x - 1)
    assert value == pytest.approx(1)
    assert error == pytest.approx(0, abs=1e-12)


def test_jackknife_refuses_invalid_samples_and_blocks() -> None:
    def difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(a.mean() - b.mean())

    for n, n_blocks in ((1, 50), (0, 50), (10, 1), (10, 0)):
        with pytest.raises(ValueError, match="two or more"):
            statistics.jackknife(difference, np.ones(n), np.ones(n), n_blocks=n_blocks)
    with pytest.raises(ValueError, match="lengths 10, 9"):
        statistics.jackknife(difference, np.ones(10), np.ones(9))


def test_observables_4x4_are_those_of_enumeration() -> None:
    spins = exact.enumerate_configurations()
    weights = np.exp(-lattice.energy(spins) / T_CRITICAL)
    weights /= weights.sum()
    m = lattice.magnetization(spins)
    m1, m2, m4 = (float(weights @ np.abs(m) ** k) for k in (1, 2, 4))
    sampled = exact.sample(4, T_CRITICAL, 100_000, seed=6)
    energies, magnetizations = lattice.energy(sampled), lattice.magnetization(sampled)
    for (value, error), expected in (
        (statistics.jackknife(statistics.binder_cumulant, magnetizations), 1 - m4 / (3 * m2**2)),
        (
            statistics.jackknife(lambda m: statistics.susceptibility(m, T_CRITICAL, 16), magnetizations),
            16 * (m2 - m1**2) / T_CRITICAL,
        ),
        (
            statistics.jackknife(lambda e: statistics.specific_heat(e, T_CRITICAL, 16), energies),
            float(exact.kaufman(T_CRITICAL, 4)[1]),
        ),
    ):
        assert abs(value - expected) < 4 * error
        assert error < 0.02 * abs(expected)


@pytest.mark.parametrize("temperatures", [[], [1.0, np.nan, 2.0], [[1.0, 2.0]]])
def test_temperatures_that_cannot_be_binned_are_refused(temperatures: list[float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        statistics.temperature_bins(temperatures)


def test_cumulant_and_slopes_equal_enumeration() -> None:
    spins = exact.enumerate_configurations()
    m, e = lattice.magnetization(spins), lattice.energy(spins)

    def truth(temperature: float) -> NDArray[np.float64]:
        weights = np.exp(-(e + 32) / temperature)
        m2, m4 = (float(weights @ m**k / weights.sum()) for k in (2, 4))
        return np.array([1 - m4 / (3 * m2**2), m2])

    temperature, n_sets, n_chains = 2.5, 1000, 16
    slopes = (truth(temperature + 1e-4) - truth(temperature - 1e-4)) / 2e-4
    weights = np.exp(-(e + 32) / temperature)
    chosen = np.random.default_rng(1).choice(len(m), (n_sets, n_chains, 200), p=weights / weights.sum())
    values, covariances, _ = (
        np.array(each)
        for each in zip(*(statistics.cumulant_and_slopes(m[one], e[one], temperature) for one in chosen), strict=True)
    )
    deviations = values - np.concatenate([truth(temperature), slopes])
    errors = values.std(axis=0) / n_sets**0.5
    assert np.all(np.abs(deviations.mean(axis=0)) < 5 * errors)
    # Without Hartlap's factor, the mean would be larger by (n - 1) / (n - 6) = 1.5.
    chi2 = np.einsum("ni,nij,nj->n", deviations, np.linalg.inv(covariances), deviations)
    assert chi2.mean() == pytest.approx(4, abs=5 * chi2.std() / n_sets**0.5)


def test_the_jackknife_removes_the_bias_of_a_slope() -> None:
    m, e = np.random.default_rng(2).uniform(-1, 1, (2, 20, 1))
    values, _, bias = statistics.cumulant_and_slopes(m, e, 2.0)
    unbiased = np.cov(m[:, 0] ** 2, e[:, 0])[0, 1] / 4  # the slope of <m^2>
    assert values[3] == pytest.approx(unbiased, rel=1e-12)
    assert bias[3] == pytest.approx(-unbiased / 20, rel=1e-10)
    assert bias[1] == pytest.approx(0, abs=1e-12)


def test_the_covariance_of_four_values_needs_seven_chains() -> None:
    with pytest.raises(ValueError, match="6 chains"):
        statistics.cumulant_and_slopes(np.ones((6, 10)), np.ones((6, 10)), 2.0)


def test_binder_cumulant_of_order_and_disorder() -> None:
    assert statistics.binder_cumulant([-1.0, 1.0, 1.0]) == pytest.approx(2 / 3)
    gaussian = np.random.default_rng(7).standard_normal(1_000_000)
    assert statistics.binder_cumulant(gaussian) == pytest.approx(0, abs=0.01)
    assert statistics.binder_cumulant([1e-90, -1e-90]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="vanish"):
        statistics.binder_cumulant(np.zeros(3))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.float32])
def test_observables_do_not_overflow(dtype: type) -> None:
    totals: NDArray[np.generic] = np.array([100, -120, 127], dtype)
    wide = totals.astype(np.float64)
    assert statistics.binder_cumulant(totals) == pytest.approx(statistics.binder_cumulant(wide), rel=1e-12)
    assert statistics.specific_heat(totals, 2.0, 16) == pytest.approx(statistics.specific_heat(wide, 2.0, 16))


def test_magnetisations_of_the_whole_lattice_are_refused() -> None:
    totals = np.array([[64, -60, 58]] * 7)
    assert statistics.susceptibility(totals[0] / 64, 2.0, 64) == pytest.approx(64 * np.var([64, 60, 58]) / 64**2 / 2)
    with pytest.raises(ValueError, match="up to 64: divide them by the number of spins"):
        statistics.susceptibility(totals[0], 2.0, 64)
    with pytest.raises(ValueError, match="divide them by the number of spins"):
        statistics.cumulant_and_slopes(totals, totals, 2.0)


def test_a_binder_cumulant_of_a_large_lattice_does_not_overflow() -> None:
    totals = np.array([10**6, -(10**6), 2**20])  # their fourth powers exceed 2^63
    assert statistics.binder_cumulant(totals) == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize(
    ("temperatures", "sizes"),
    [
        (np.repeat([2.0, 2.25, 2.5], [667, 667, 666]), [667, 667, 666]),
        (np.repeat([1.0, 2.0, 3.0], 5), [5, 5, 5]),
        (np.repeat(np.linspace(1, 4, 41), 50), [50] * 41),
        (np.linspace(1, 4, 2000), [100] * 20),
        (np.linspace(1, 4, 15), [15]),
        (np.linspace(1, 4, 25), [13, 12]),
        (np.array([2.0]), [1]),
        (np.full(100, 2.0), [100]),
        (np.repeat(np.linspace(1, 4, 1001), 2), [102, 100] + [100] * 18),
        (np.append(np.linspace(1, 2, 100), np.full(100, 2.5)), [*[10] * 10, 100]),
    ],
)
def test_bins_do_not_split_equal_temperatures(temperatures: NDArray[np.float64], sizes: list[int]) -> None:
    shuffled = np.random.default_rng(0).permutation(temperatures)
    bins = statistics.temperature_bins(shuffled)
    assert sorted(np.concatenate(bins)) == list(range(len(shuffled)))
    assert [len(chosen) for chosen in bins] == sizes
    for colder, hotter in pairwise(bins):
        assert shuffled[colder].max() < shuffled[hotter].min()
