"""How the method for T_c makes curves and their errors of what was measured, where both are known."""

import numpy as np
import pytest

from experiments.collapse import N_BINS, N_BLOCKS, moments, probabilities
from ising.exact import T_CRITICAL, kaufman


def generators(n: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(n)]


def blocks_of_normal_variables(n: int, rng: np.random.Generator) -> dict[str, object]:
    """Block means of m^2 and m^4 of a normal m of unit variance, for which <m^2> = 1 and U_4 = 0."""
    m = rng.standard_normal((N_BLOCKS, n))
    return {"case": ["sample", 8, 2.0, N_BLOCKS * n], "m2": (m**2).mean(axis=1), "m4": (m**4).mean(axis=1)}


def test_errors_of_moments_are_the_scatter_between_samples_and_of_the_bootstrap() -> None:
    n = 50
    drawn = [moments([blocks_of_normal_variables(n, rng)]) for rng in generators(400)]
    again = [moments([blocks_of_normal_variables(n, np.random.default_rng(0))], rng) for rng in generators(400)]
    # Of so many numbers: var(m^2) = 2; and the influence of one on ln(1 - U_4) is m^4 / 3 - 2 m^2, of variance 8 / 3.
    for k, (expected, variance) in enumerate(((0.0, 8 / 3), (1.0, 2.0))):
        values, errors = (np.array([getattr(curves[k], key)[0] for curves in drawn]) for key in ("values", "errors"))
        error = np.sqrt(variance / (N_BLOCKS * n))
        assert values.mean() == pytest.approx(expected, abs=0.2 * error)
        assert values.std() == pytest.approx(error, rel=0.15)
        assert errors.mean() == pytest.approx(error, rel=0.1)
        assert np.std([curves[k].values[0] for curves in again]) == pytest.approx(errors[0], rel=0.25)


def test_errors_of_probabilities_hold_the_scatter_of_networks_and_the_noise_of_the_test() -> None:
    rng, n_networks, noise, scatter = np.random.default_rng(1), 4, 0.02, 0.06
    rows = [
        {
            "case": ["classify", "cnn", 16, seed],
            "t": np.linspace(2.2, 2.4, N_BINS),
            "p": np.full(N_BINS, 0.5 + offset),
            "error": np.full(N_BINS, noise),
        }
        for seed, offset in enumerate(scatter * rng.standard_normal(n_networks))
    ]
    p = np.array([row["p"] for row in rows])
    (curves,) = probabilities(rows)
    expected = np.hypot(noise, p[:, 0].std(ddof=1) / np.sqrt(n_networks))
    np.testing.assert_allclose(curves.values, p.mean(axis=0))
    np.testing.assert_allclose(curves.errors, expected)
    again = np.array([probabilities(rows, rng=rng)[0].values[0] for rng in generators(2000)])
    assert again.std() == pytest.approx(expected, rel=0.1)


def test_with_log_temperatures_are_stretched_by_the_root_of_the_specific_heat() -> None:
    bins = np.linspace(2.2, 2.4, N_BINS)
    rows = [{"case": ["classify", "bayes", size, 1], "t": bins, "p": bins, "error": bins} for size in (8, 64)]
    (plain,), (stretched,) = probabilities(rows), probabilities(rows, log=True)
    assert np.all(plain.stretch == 1)
    for size in (8, 64):
        heat = float(kaufman(T_CRITICAL, size)[1])
        np.testing.assert_allclose(np.asarray(stretched.stretch)[stretched.sizes == size] ** 2, heat)
