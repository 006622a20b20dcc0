"""Classify random walks: is the diffusion slower than normal, normal, or faster?

python -m examples.classes --preset debug

A walk is fractional Brownian motion in one dimension, with the Hurst exponent 0.35, 0.5 or 0.65: its mean square
displacement grows as t^(2H). The increments are Gaussian, with known correlations. Bayes' rule with their exact
likelihood is therefore a classifier that no network can beat. The columns are `steps` (N, T), with variance 1, and
`labels` (N,), the numbers of the classes.
"""

from typing import Any

import numpy as np
from numpy.random import SeedSequence, default_rng
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from scipy.special import softmax
from torch import Tensor, nn

from engine.interface import STRICT, Columns, Config, DataConfig, Problem, Shape, TrainConfig, option
from engine.interface.generic_figures import Figure, confusion
from main import main

Array = NDArray[Any]

CLASSES = ("slow", "normal", "fast")
HURST = (0.35, 0.5, 0.65)
SHARES = (0.2, 0.7, 0.1)  # of the classes in the data


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WalkData(DataConfig):
    """The walks."""

    num_train: int = option(10_000, "walks for training", ge=1)
    num_val: int = option(1_000, "walks that choose the best epoch", ge=1)
    num_test: int = option(2_000, "walks for the test at the end", ge=1)
    steps: int = option(64, "steps of a walk", ge=8, le=1024)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WalkConfig(Config):
    """All options of a run."""

    data: WalkData = WalkData()
    channels: int = option(32, "channels of the convolutions", ge=1, le=1024)
    balanced: bool = option(False, "give all classes the same weight in the loss, although some are rare")


def covariances(steps: int) -> Array:
    """The covariances of the increments for each class, (3, T, T): (|k-1|^2H - 2 |k|^2H + |k+1|^2H) / 2 at distance k.

    Mandelbrot and van Ness 1968, SIAM Review 10, 422.
    """
    k = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps))).astype(float)
    return np.stack([(np.abs(k - 1) ** (2 * h) - 2 * k ** (2 * h) + (k + 1) ** (2 * h)) / 2 for h in HURST])


def log_likelihoods(steps: Array) -> Array:
    """The logarithms of the probability densities of walks (N, T) in each class, up to a constant: (N, 3)."""
    factors = np.linalg.cholesky(covariances(steps.shape[1]))
    logs = [-((np.linalg.solve(f, steps.T) ** 2).sum(axis=0) / 2) - np.log(f.diagonal()).sum() for f in factors]
    return np.stack(logs, axis=1)


class WalkProblem(Problem[WalkConfig]):
    """Classify random walks by the kind of their diffusion."""

    name = "walks"
    config_type = WalkConfig
    scale_inputs = False  # the variance of a step is 1
    presets = {
        "default": WalkConfig(train=TrainConfig(epochs=15, batch_size=128, lr=0.003)),
        "debug": WalkConfig(train=TrainConfig(epochs=5, lr=0.01), data=WalkData(num_train=2000, num_val=200)),
    }

    def generate(self, config: WalkConfig, n: int, seed: SeedSequence) -> Columns:
        rng = default_rng(seed)
        labels = rng.choice(len(CLASSES), n, p=SHARES)
        factors, noise = np.linalg.cholesky(covariances(config.data.steps)), rng.normal(size=(n, config.data.steps))
        steps = np.empty_like(noise)
        for k, factor in enumerate(factors):
            steps[labels == k] = noise[labels == k] @ factor.T
        return {"steps": steps, "labels": labels}

    def inputs(self, config: WalkConfig, columns: Columns) -> tuple[Array, ...]:
        return (columns["steps"],)

    def target(self, config: WalkConfig, columns: Columns) -> Array:
        return columns["labels"]

    def scales_target(self, config: WalkConfig) -> bool:
        return False

    def network(self, config: WalkConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
        c = config.channels
        return nn.Sequential(  # (B, T) -> (B, 3): averages over the walk of what two convolutions find
            nn.Unflatten(1, (1, -1)),
            *(nn.Conv1d(1, c, 9), nn.GELU(), nn.Conv1d(c, c, 5, dilation=4, padding=8), nn.GELU()),
            *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(c, len(CLASSES))),
        )

    def loss(self, config: WalkConfig, outputs: Tensor, targets: Tensor) -> Tensor:
        weights = outputs.new_tensor([1 / (len(SHARES) * share) for share in SHARES]) if config.balanced else None
        return nn.functional.cross_entropy(outputs, targets, weights, reduction="none")

    def predictions(self, config: WalkConfig, outputs: Tensor) -> dict[str, Tensor]:
        return {"predictions": outputs.argmax(dim=1), "probabilities": outputs.softmax(dim=1)}

    def metrics(self, config: WalkConfig, columns: Columns, predictions: Array, targets: Array) -> dict[str, float]:
        is_right = predictions == targets
        recalls = [is_right[targets == k].mean() for k in np.unique(targets)]
        cross_entropy = -np.log(columns["predicted_probabilities"][np.arange(len(targets)), targets]).mean()
        return {"accuracy": is_right.mean(), "mean_recall": np.mean(recalls), "cross_entropy": cross_entropy}

    def main_metric(self, config: WalkConfig) -> Any:
        return ("mean_recall" if config.balanced else "accuracy"), "max"

    def baselines(self, config: WalkConfig, train: Columns, test: Columns) -> dict[str, dict[str, Array]]:
        shares = np.bincount(train["labels"], minlength=len(CLASSES)) / len(train["labels"])
        likelihoods = log_likelihoods(test["steps"])
        found = {"prior": np.broadcast_to(shares, likelihoods.shape), "bayes": softmax(likelihoods + np.log(shares), 1)}
        return {name: {"predictions": p.argmax(axis=1), "probabilities": p} for name, p in found.items()}

    def figures(self, config: WalkConfig, arrays: Columns) -> dict[str, Figure]:
        return {"confusion": confusion(arrays["targets"], arrays["predictions"], CLASSES)}


PROBLEM = WalkProblem()

if __name__ == "__main__":
    main(PROBLEM)
