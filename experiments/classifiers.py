"""Phase classifiers that several experiments train: 100 sigmoid units, 64 ReLU units, and a convolutional network.

The label of a configuration is 1 if T is below a temperature T_label. In most uses of this method, T_label is T_c.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config import DataConfig, ExperimentConfig, ModelConfig
from engine.interface import Columns, Splits, TrainConfig
from engine.learning.prediction import predict
from experiments.common import sampled, trained
from ising import lattice
from problem import PROBLEM
from task import TASKS

# Each network with its training options, and the number of copies of each training configuration. Copies are shifted,
# rotated, mirrored and flipped at random. Without copies, fully connected networks overfit on large lattices; the cnn
# does not need them. The weight decay of the sigmoid units prevents them from using the energy in addition to m. They
# could only do this on small lattices, and P(T) would then be a different function at each size. The default weight
# decay makes the curves of the cnn less steep, the more so the larger the lattice (readout.py). The results of
# label_shift.py and published.py are those of the cnn with it.
NETWORKS = {
    "sigmoid units": (
        ModelConfig(hidden=(100,), activation="sigmoid", dropout=0.0),
        TrainConfig(epochs=2, lr=0.003, batch_size=128, weight_decay=0.3),
        32,
    ),
    "cnn": (
        ModelConfig(architecture="cnn", activation="relu", dropout=0.0),
        TrainConfig(epochs=4, lr=0.05, batch_size=32),
        1,
    ),
    "cnn without weight decay": (
        ModelConfig(architecture="cnn", activation="relu", dropout=0.0),
        TrainConfig(epochs=4, lr=0.05, batch_size=32, weight_decay=0.0),
        1,
    ),
    "64 relu units": (
        ModelConfig(hidden=(64,), activation="relu", dropout=0.0),
        TrainConfig(epochs=100, lr=0.001, batch_size=200, optimizer="adam", scheduler="none", weight_decay=1e-4),
        1,
    ),
}


def between(low: float, high: float, size: int, seed: int, **options: Any) -> Splits:
    """Sample configurations at temperatures from low to high. The options are those of DataConfig."""
    options = {"num_train": 1, "num_val": 1, "num_test": 1, **options}
    data = DataConfig(lattice_size=size, temp_min=low, temp_max=high, cache=False, **options)
    return sampled(data, seed)


def log_odds(name: str, seed: int, splits: Splits, test: Columns) -> NDArray[np.float64]:
    """Train a classifier on the splits, and return its log-odds of T < T_c for the test configurations: (N,).

    The name is a key of NETWORKS, or `magnetization` for logistic regression on |m|.
    """
    return classifier(name, seed, splits)(test)


def classifier(name: str, seed: int, splits: Splits) -> Callable[[Columns], NDArray[np.float64]]:
    """Train a classifier as `log_odds` does, and return the function that gives its log-odds for configurations."""
    if name == "magnetization":
        return lambda test: TASKS["phase"].baselines(splits.train, test)[name]
    model, training, copies = NETWORKS[name]
    rng = np.random.default_rng(seed)
    spins = np.concatenate([lattice.random_symmetries(splits.train["spins"], rng) for _ in range(copies)])
    train = {"spins": spins, "temperatures": np.tile(splits.train["temperatures"], copies)}
    config = ExperimentConfig(task="phase", seed=seed, model=model, train=training)
    network = trained(config, splits._replace(train=train))
    return lambda test: predict(PROBLEM, config, network, test)


def best_thresholds(values: NDArray[Any], above: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The thresholds that separate two classes best: values (N,), classes (N, K) -> thresholds and accuracies, (K,).

    An example is assigned to the class `above` if its value is larger than the threshold, which is halfway between two
    values that differ, or just below the lowest value, or the highest value.
    """
    order = np.argsort(values)
    values = values[order]
    # The number of correct assignments if the k lowest values are below the threshold, for k = 0 ... N.
    correct = np.cumsum(np.vstack([above.sum(axis=0), np.where(above[order], -1, 1)]), axis=0)
    edges: NDArray[np.float64] = np.concatenate(
        [[np.nextafter(values[0], -np.inf)], (values[1:] + values[:-1]) / 2, values[-1:]]
    )
    correct[1:-1][values[1:] == values[:-1]] = 0  # a threshold cannot separate equal values
    best = correct.argmax(axis=0)
    return edges[best], correct.max(axis=0) / len(values)


def relabelled(columns: Columns, shift: float) -> Columns:
    """Move the temperatures by -shift, so the label of a configuration says whether its T is below T_c + shift."""
    return {**columns, "temperatures": columns["temperatures"] - shift}
