"""The cnn on frequencies of patterns is the cnn on spins, and fits of its readout find what is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from config import ExperimentConfig, ModelConfig
from engine.interface.base_config import TrainConfig
from engine.interface.base_problem import Splits
from engine.learning.prediction import predict
from experiments.channels import PATTERNS, CNNOfFrequencies, fit_readout, frequencies, train_cnn, whitened
from experiments.classifiers import NETWORKS, between
from experiments.common import trained
from experiments.readout import NEAR, compare
from ising import lattice
from model import CNN
from problem import PROBLEM
from utils import seed_everything

MODEL = NETWORKS["cnn"][0]


def random_spins(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (n, size, size))


def test_frequencies_of_ordered_lattices() -> None:
    np.testing.assert_array_equal(frequencies(np.ones((1, 6, 6), np.int8)), np.eye(16)[[0b1111]])
    checkerboard = (1 - 2 * (np.indices((1, 6, 6)).sum(axis=0) % 2)).astype(np.int8)
    np.testing.assert_array_equal(frequencies(checkerboard), np.eye(16)[[0b0110, 0b1001]].mean(axis=0)[None])
    stripes = np.ones((1, 6, 6), np.int8)
    stripes[:, :, ::2] = -1  # columns
    np.testing.assert_array_equal(frequencies(stripes), np.eye(16)[[0b0101, 0b1010]].mean(axis=0)[None])


def test_the_energy_is_a_linear_function_of_the_frequencies() -> None:
    spins = random_spins(20, 8)
    energies = -PATTERNS[:, 0, 0] * (PATTERNS[:, 0, 1] + PATTERNS[:, 1, 0])  # of the two bonds of the first site
    np.testing.assert_allclose(64 * frequencies(spins) @ energies, lattice.energy(spins))


@pytest.mark.parametrize("size", [4, 32])
def test_the_cnn_on_frequencies_is_the_cnn_on_spins(size: int) -> None:
    torch.manual_seed(1)
    cnn = CNN(MODEL, size)
    torch.nn.init.normal_(cnn.layers[0].bias)  # type: ignore[arg-type]
    spins = random_spins(10, size)
    with torch.no_grad():
        from_spins = cnn(torch.from_numpy(spins))
        found = CNNOfFrequencies(cnn)(torch.from_numpy(frequencies(spins)).float())
    torch.testing.assert_close(found, from_spins, atol=1e-5, rtol=0)
    assert from_spins.std() > 100 * 1e-5


def test_training_on_frequencies_is_training_on_spins() -> None:
    splits = between(1.8, 2.8, 6, 3, num_train=320, num_val=50, num_test=100)
    training = replace(NETWORKS["cnn"][1], epochs=2)
    config = ExperimentConfig(task="phase", seed=5, model=MODEL, train=training)
    from_spins = predict(PROBLEM, config, trained(config, splits), splits.test)
    with_frequencies = Splits(*({**each, "frequencies": frequencies(each["spins"])} for each in splits))
    found = train_cnn(training, 5, with_frequencies)
    np.testing.assert_allclose(found.log_odds, from_spins, atol=1e-3)
    assert from_spins.std() > 0.1
    assert np.abs(found.trained - found.untrained).max() > 0.1


def test_averaged_channels_have_ten_independent_combinations_and_six_without_biases() -> None:
    """Averages of products of the four spins: m, two bonds, two diagonals, four of three spins, and one of four.

    Without biases, relu(z) = z / 2 + |z| / 2 gives m, and five even combinations.
    """
    f = frequencies(random_spins(50, 6))
    torch.manual_seed(2)
    cnn = CNN(ModelConfig(architecture="cnn", channels=(40,), activation="relu", dropout=0.0), 6).double()
    for n in (6, 10):
        with torch.no_grad():
            channels = CNNOfFrequencies(cnn).double().channels().numpy()
            torch.nn.init.normal_(cnn.layers[0].bias)  # type: ignore[arg-type]
        x, _, condition = whitened(f @ channels, f @ channels)
        assert x.shape == (50, 1 + n)
        assert condition < 1e6
        np.testing.assert_allclose(x.T @ x / 50, np.eye(1 + n), atol=1e-6)


def test_averaged_channels_are_standardised_before_the_readout() -> None:
    splits = between(1.8, 2.8, 6, 4, num_train=100)
    columns = {**splits.train, "frequencies": frequencies(splits.train["spins"])}
    rate = TrainConfig(epochs=1, lr=1e-12)  # nothing is learned
    found = train_cnn(rate, 6, Splits(columns, columns, columns), standardised=True)
    seed_everything(6)
    readout = CNN(MODEL, 6).local_energy.weight.detach().double().numpy()[0]
    averages = columns["frequencies"] @ found.untrained
    expected = (averages - averages.mean(axis=0)) / averages.std(axis=0) @ readout
    np.testing.assert_allclose(found.log_odds, expected, atol=1e-4)


def test_a_fitted_readout_is_logistic_regression_and_ignores_units_and_redundant_features() -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((20_000, 3))
    truth = 0.5 + x @ [2, -1, 0]
    labels = (rng.random(len(x)) < expit(truth)).astype(float)
    found = fit_readout(x, labels, x)
    # At the maximum of the likelihood, residuals and features are uncorrelated.
    np.testing.assert_allclose(np.insert(x, 0, 1, axis=1).T @ (labels - expit(found)), 0, atol=1e-6)
    # The covariance of the four weights is the inverse of the Fisher information.
    design, p = np.insert(x, 0, 1, axis=1), expit(truth)
    covariance = np.linalg.inv((design.T * (p * (1 - p))) @ design)
    expected = np.einsum("ij,jk,ik->i", design, covariance, design).mean()
    assert ((found - truth) ** 2).mean() == pytest.approx(expected, rel=5 * np.sqrt(2 / 4))
    mixed = x @ rng.standard_normal((3, 5)) * [1e3, 1, 1e-3, 1, 1] + 7
    np.testing.assert_allclose(fit_readout(mixed, labels, mixed), found, atol=1e-6)


def test_slope_and_scatter_are_those_of_the_noise_that_was_added() -> None:
    rng = np.random.default_rng(8)
    bayes = rng.uniform(-5, 5, 40_000)
    labels = (rng.random(len(bayes)) < expit(bayes)).astype(float)
    assert compare(bayes, bayes, labels) == pytest.approx({"slope": 1, "scatter": 0, "loss": 0, "accuracy": 0})
    found = compare(0.8 * bayes + 0.3 + rng.normal(0, 0.2, len(bayes)), bayes, labels)
    n_near = len(bayes) * NEAR / 5
    assert found["slope"] == pytest.approx(0.8, abs=5 * 0.2 / np.sqrt(n_near * NEAR**2 / 3))
    assert found["scatter"] == pytest.approx(0.2, rel=5 / np.sqrt(2 * n_near))
    assert found["loss"] > 0
