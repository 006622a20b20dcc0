"""Classifiers for several labels T < T' at once: networks with an output for each T', and Bayes' rule."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from config import ExperimentConfig
from engine.interface import Columns, Splits, TrainConfig
from engine.learning.prediction import build_model, predict
from ising import exact
from model import Convolution, linear
from problem import IsingProblem
from trainer import Trainer

N_BETWEEN = 20
# Found by trials at L = 32 and 64, with other data.
TRAINING = {
    "cnn": TrainConfig(epochs=2, lr=0.1, batch_size=16),
    "sigmoid units": TrainConfig(epochs=30, lr=0.01, batch_size=128, weight_decay=0.3),
}


class Input(nn.Module):
    """Spins (B, L, L) as floats (B, 1, L, L). In training, batches are shifted and configurations flipped at random.

    Without this, fully connected networks overfit on large lattices.
    """

    def forward(self, spins: Tensor) -> Tensor:
        spins = spins.float()[:, None]
        if self.training:
            shifts = torch.randint(spins.shape[-1], (2,)).tolist()
            spins = spins.roll(shifts, (2, 3)) * (2 * torch.randint(2, (len(spins), 1, 1, 1)) - 1)
        return spins


class Confusion(IsingProblem):
    """Predict the log-odds of T < T' for K temperatures T', with a cnn or with 100 sigmoid units."""

    def __init__(self, labels: NDArray[np.float64], network: str) -> None:
        self.labels, self.network_name = labels, network

    def target(self, config: ExperimentConfig, columns: Columns) -> NDArray[Any]:
        return np.asarray(columns["temperatures"][:, None] < self.labels, np.float64)  # (N, K)

    def network(self, config: ExperimentConfig, input_shapes: Any, target_shape: Any) -> nn.Module:
        size, n_labels = input_shapes[0][0], target_shape[0]
        if self.network_name == "cnn":
            features = [Convolution(1, 16, 2, 1.0), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            return nn.Sequential(Input(), *features, linear(16, n_labels))
        return nn.Sequential(Input(), nn.Flatten(), linear(size**2, 100), nn.Sigmoid(), linear(100, n_labels))

    def loss(self, config: ExperimentConfig, outputs: Tensor, targets: Tensor) -> Tensor:
        losses: Tensor = super().loss(config, outputs, targets)
        return losses.mean(dim=1)


def is_below(name: str, labels: NDArray[np.float64], seed: int, splits: Splits) -> NDArray[np.bool_]:
    """Train a network of TRAINING, and return for which T' it decides that T < T': (N, K) for the test split."""
    config = ExperimentConfig(task="phase", seed=seed, train=TRAINING[name])
    problem = Confusion(labels, name)
    network = build_model(problem, config, splits.train)
    Trainer(problem, config, network, splits.train, splits.val).fit()
    return predict(problem, config, network, splits.test) > 0


def bayes(size: int, edges: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact accuracies of Bayes' rule for a uniform T between the first and the last of `edges`: T', accuracies (M,).

    T' takes N_BETWEEN values between neighbouring edges. The rule decides for T < T' if this is more likely, given the
    energy. The distribution of the energy is computed in the middle between two edges and reweighted to other T.
    """
    rows = []
    for start, end in pairwise(edges):
        t = np.linspace(start, end, 2 * N_BETWEEN + 1)[1::2, None]
        levels, p = exact.energy_histogram((start + end) / 2, size)
        p = p * np.exp(-(levels - p @ levels) * (1 / t - 2 / (start + end)))
        rows.append(p / p.sum(axis=1, keepdims=True))
    below = np.cumsum(np.concatenate(rows), axis=0)  # (M, levels): the weight of each energy at T < T'
    accuracies = np.maximum(below, below[-1] - below).sum(axis=1) / len(below)
    return np.linspace(edges[0], edges[-1], len(below) + 1)[1:], accuracies
