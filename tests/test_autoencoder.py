"""Order parameters without labels: they find a pattern that is hidden in the spins, and do not depend on its sign."""

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.autoencoder import METHODS, OrderParameter

SIZE, N = 6, 3000


@pytest.fixture(scope="module")
def pattern() -> NDArray[np.int8]:
    signs = np.repeat(np.array([-1, 1], np.int8), SIZE**2 // 2)
    return np.random.default_rng(1).permutation(signs).reshape(SIZE, SIZE)


def configurations(pattern: NDArray[np.int8], n: int, seed: int) -> NDArray[np.int8]:
    """Independent spins. The mean overlap with the pattern is uniform between -1 and 1, a new one for each."""
    rng = np.random.default_rng(seed)
    overlap = rng.uniform(-1, 1, (n, 1, 1))
    return np.where(rng.random((n, SIZE, SIZE)) < (1 + overlap) / 2, pattern, -pattern)


@pytest.fixture(scope="module", params=METHODS)
def learned(request: pytest.FixtureRequest, pattern: NDArray[np.int8]) -> OrderParameter:
    return METHODS[request.param](configurations(pattern, N, 2), configurations(pattern, N // 4, 3), 4)


def test_the_hidden_pattern_is_found(learned: OrderParameter, pattern: NDArray[np.int8]) -> None:
    spins = configurations(pattern, 1000, 5)
    overlaps, m = (spins * pattern).mean(axis=(1, 2)), spins.mean(axis=(1, 2))
    o = learned(spins)
    assert o.shape == (1000,)
    assert abs(np.corrcoef(o, overlaps)[0, 1]) > 0.97
    assert abs(np.corrcoef(o, m)[0, 1]) < 0.2


def test_the_order_parameter_changes_its_sign_with_all_spins(learned: OrderParameter) -> None:
    spins = np.random.default_rng(6).choice(np.array([-1, 1], np.int8), size=(100, SIZE, SIZE))
    np.testing.assert_allclose(learned(-spins), -learned(spins), atol=1e-6)


def test_the_principal_component_solves_the_eigenvalue_problem(pattern: NDArray[np.int8]) -> None:
    spins = configurations(pattern, 500, 7)
    flat = spins.reshape(500, -1).astype(float)
    largest = np.linalg.eigh(flat.T @ flat)[1][:, -1]
    found = METHODS["principal component"](spins, spins, 0)(spins)
    np.testing.assert_allclose(np.abs(found), np.abs(flat @ largest) / SIZE, atol=1e-9)


def test_a_linear_encoder_is_a_weighted_sum_and_another_one_is_not(pattern: NDArray[np.int8]) -> None:
    train = configurations(pattern, 500, 8)
    rng = np.random.default_rng(9)
    spins = rng.choice(np.array([-1, 1], np.int8), size=(200, SIZE, SIZE))
    flat = spins.reshape(200, -1).astype(float)
    for name, method in METHODS.items():
        o = method(train, train, 0)(spins)
        residual = o - flat @ np.linalg.lstsq(flat, o)[0]
        assert (residual.std() < 1e-5 * o.std()) == ("tanh" not in name)
