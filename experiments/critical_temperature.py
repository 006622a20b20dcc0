"""T_c and nu from finite lattices by three methods: from samples, from classifiers trained around T_c, and away from it.

python -m experiments.critical_temperature [--quick]

(a) The Binder cumulant and <m^2> of samples. The curves of all sizes collapse onto one in x = (T - T_c) L^(1 / nu).
(b) Networks that are trained to distinguish T < T_c from T > T_c (J. Carrasquilla, R. G. Melko, Nature Phys. 13, 431,
    2017): 100 sigmoid units, and a convolutional network. The curves of their mean probability P(T) collapse too. Two
    classifiers that need no training of a network are shown for comparison: Bayes' rule, a function of the energy, and
    logistic regression on |m|.
(c) The same units, trained and validated on T < 1.8 and T > 2.8 only: their labels do not depend on the exact T_c.
All methods use temperatures around T_c, as after a first, coarse search. Curves of classifiers that use the energy are
narrower by the square root of the specific heat, which grows as ln L. In the rows `with log`, x is multiplied by this
factor. Errors are bootstrapped: in (a) over samples; in (b) and (c) over test configurations and over networks, each of
which has its own training data.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from config import DataConfig, ExperimentConfig, ModelConfig, TrainConfig
from engine.prediction import predict
from engine.problem import Columns, Splits
from experiments.collapse import N_BINS, N_BLOCKS, moments, plot, probabilities
from experiments.common import Row, Study, sampled, trained
from ising import lattice, multispin
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from ising.scaling import bootstrap_scaling
from problem import PROBLEM
from task import TASKS

# Half the widths, times L, of the temperature ranges in which classifiers are tested and trained. If the training range
# did not shrink with the curves, few configurations of a large lattice would be near its transition, and the others would
# determine the threshold.
TESTED, TRAINED = 2.5, 8.0
COPIES = 32  # of each configuration, moved at random: with few of them, networks for large lattices overfit
# The weight decay keeps the units from using the energy as well, which they can only do on small lattices: P(T) would then
# be a different function at each size.
NETWORKS = {
    "sigmoid units": (
        ModelConfig(hidden=(100,), activation="sigmoid", dropout=0.0),
        TrainConfig(epochs=2, lr=0.003, batch_size=128, weight_decay=0.3),
    ),
    "cnn": (
        ModelConfig(architecture="cnn", activation="relu", dropout=0.0),
        TrainConfig(epochs=4, lr=0.05, batch_size=32),
    ),
}


def sample(size: int, temperature: float, n: int) -> Row:
    """Means of m^2 and m^4 in blocks of independent configurations."""
    seed = np.random.SeedSequence([size, round(1e6 * temperature), n])
    spins = multispin.sample(size, np.full(n, temperature), equilibration_sweeps(size), seed, 1)
    m = lattice.magnetization(spins).reshape(N_BLOCKS, -1)
    return {"m2": (m**2).mean(axis=1).round(9).tolist(), "m4": (m**4).mean(axis=1).round(9).tolist()}


def within(width: float, size: int, seed: int, **numbers: int) -> Splits:
    """Configurations at temperatures from T_c - width to T_c + width."""
    edges = [round(T_CRITICAL + sign * width, 4) for sign in (-1, 1)]
    data = DataConfig(lattice_size=size, temp_min=edges[0], temp_max=edges[1], **numbers)  # type: ignore[arg-type]
    return sampled(data, seed)


def away_from_tc(columns: Columns) -> Columns:
    """The configurations at T < 1.8 and T > 2.8."""
    away = (columns["temperatures"] < 1.8) | (columns["temperatures"] > 2.8)
    return {name: column[away] for name, column in columns.items()}


def classify(name: str, size: int, seed: int, n: int, n_test: int) -> Row:
    """P(T) of a classifier near T_c, in bins: mean temperature, mean probability and its standard error."""
    test = within(TESTED / size, size, 8, num_train=1, num_val=1, num_test=n_test).test
    if name in ("bayes", "magnetization"):
        odds = TASKS["phase"].baselines(training_data(name, size, seed, n, 2000).train, test)[name]
    else:
        odds = network_log_odds(name, seed, training_data(name, size, seed, n, 2000), test)
    p = expit(odds)
    bins = np.array_split(np.argsort(test["temperatures"]), N_BINS)
    rows = {"t": [test["temperatures"][b].mean() for b in bins], "p": [p[b].mean() for b in bins]}
    return {**rows, "error": [p[b].std() / np.sqrt(len(b)) for b in bins]}


def training_data(name: str, size: int, seed: int, n: int, n_val: int) -> Splits:
    """The data of a classifier. One that is trained away from T_c uses a part of them."""
    width = 1.0 if name.endswith("apart") else TRAINED / size
    splits = within(width, size, 100 + seed, num_train=n, num_val=n_val, num_test=1)
    return splits


def network_log_odds(name: str, seed: int, splits: Splits, test: Columns) -> NDArray[np.float64]:
    """Train a network on configurations that are shifted, rotated, mirrored and flipped at random; predict the test split."""


def main() -> None: ...
