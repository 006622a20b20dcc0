"""The convolutional classifier as a function of the patterns of 2x2 spins in a configuration, and fits of its readout.

The classifier averages its channels over the lattice. Its log-odds are a linear function of the averages, the readout.
A kernel of 2x2 sites has 16 possible inputs, so the averages are linear functions of the frequencies of these 16
patterns. Training on the frequencies is the same as on spins, except for rounding, and takes as long for each size.
"""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from config import ExperimentConfig
from engine.interface import Columns, Shape, Splits, TrainConfig
from engine.learning.prediction import build_model, predict
from experiments.classifiers import NETWORKS
from model import CNN
from problem import IsingProblem
from trainer import Trainer

Floats = NDArray[np.float64]

# All configurations of 2x2 sites. Read row by row as a binary number, pattern k is k.
PATTERNS = (np.arange(16)[:, None, None] >> np.array([[3, 2], [1, 0]]) & 1).astype(np.int8) * 2 - 1


def frequencies(spins: NDArray[np.int8]) -> Floats:
    """The fraction of sites at which each pattern begins, with periodic boundaries: (N, L, L) -> (N, 16)."""
    up = (spins > 0).astype(np.uint8)
    below = np.roll(up, -1, axis=1)
    numbers = 8 * up + 4 * np.roll(up, -1, axis=2) + 2 * below + np.roll(below, -1, axis=2)
    counts = [np.bincount(each.ravel(), minlength=16) for each in numbers]
    return np.asarray(np.array(counts) / spins[0].size)


class CNNOfFrequencies(nn.Module):
    """A cnn with one layer of 2x2 kernels: frequencies of patterns (B, 16) -> (B,).

    The averaged channels can be standardised before the readout. By default they are not.
    """

    patterns: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, cnn: CNN) -> None:
        super().__init__()
        self.cnn = cnn
        self.register_buffer("patterns", torch.from_numpy(PATTERNS))
        self.register_buffer("mean", torch.zeros(cnn.local_energy.in_features))
        self.register_buffer("std", torch.ones(cnn.local_energy.in_features))

    def channels(self) -> Tensor:
        """The channels at the first site of each pattern, where a kernel covers the pattern: (16, C)."""
        found: Tensor = self.cnn.layers(self.cnn.as_floats(self.patterns)[:, None])[:, :, 0, 0]
        return found

    def forward(self, frequencies: Tensor) -> Tensor:
        averages = (frequencies @ self.channels() - self.mean) / self.std
        outputs: Tensor = self.cnn.local_energy(averages)
        return outputs.flatten()


class FrequencyProblem(IsingProblem):
    """The Ising problem with frequencies of patterns as inputs, instead of spins."""

    def inputs(self, config: ExperimentConfig, columns: Columns) -> tuple[NDArray[Any], ...]:
        return (columns["frequencies"],)

    def network(self, config: ExperimentConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
        return CNNOfFrequencies(CNN(config.model, lattice_size=4))  # the weights do not depend on the size


class Trained(NamedTuple):
    """A trained classifier."""

    log_odds: Floats  # of the test configurations, (N,)
    untrained: Floats  # the channels of each pattern before training, (16, C)
    trained: Floats  # and after it


def train_cnn(training: TrainConfig, seed: int, splits: Splits, *, standardised: bool = False) -> Trained:
    """Train the cnn on columns with `frequencies` and `temperatures`.

    With `standardised`, the averages are shifted and scaled so that those of the untrained network have mean 0 and
    standard deviation 1 in training. Shift and scale are not trained.
    """
    problem = FrequencyProblem()
    config = ExperimentConfig(task="phase", seed=seed, model=NETWORKS["cnn"][0], train=training)
    model = build_model(problem, config, splits.train)
    network = model.network
    assert isinstance(network, CNNOfFrequencies)
    untrained = exact_channels(network)
    if standardised:
        averages = splits.train["frequencies"] @ untrained
        network.mean.copy_(torch.from_numpy(averages.mean(axis=0)))
        network.std.copy_(torch.from_numpy(averages.std(axis=0)))
    Trainer(problem, config, model, splits.train, splits.val).fit()
    return Trained(predict(problem, config, model, splits.test), untrained, exact_channels(network))


def exact_channels(network: CNNOfFrequencies) -> Floats:
    """The channels of each pattern in float64, (16, C). Their rounding errors in float32 would vary independently."""
    channels: Floats = copy.deepcopy(network).double().channels().detach().numpy()
    return channels


def whitened(train: Floats, test: Floats) -> tuple[Floats, Floats, float]:
    """Uncorrelated combinations of features (N, F), with variance 1 in training, after a column of ones.

    Combinations that do not vary are left out. The last result is the condition number of the covariance of the
    features, without these.
    """
    mean = train.mean(axis=0)
    _, s, directions = np.linalg.svd(train - mean, full_matrices=False)
    varies = s > 1e-9 * s[0]
    scaled = directions[varies].T * np.sqrt(len(train)) / s[varies]
    x, x_test = (np.insert((features - mean) @ scaled, 0, 1, axis=1) for features in (train, test))
    return x, x_test, float((s[0] / s[varies][-1]) ** 2)


def fit_readout(train: Floats, labels: Floats, test: Floats) -> Floats:
    """Fit log-odds that are linear in features (N, F) to labels (N,) in {0, 1}, by maximum likelihood.

    The fit uses Newton's method.

    Returns:
        The log-odds of the test configurations, (N_test,).
    """
    x, x_test, _ = whitened(train, test)
    weights = np.zeros(x.shape[1])
    for _ in range(20):
        p = expit(x @ weights)
        weights += np.linalg.solve((x.T * (p * (1 - p))) @ x, x.T @ (labels - p))
    return np.asarray(x_test @ weights)
