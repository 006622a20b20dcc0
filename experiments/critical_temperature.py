"""T_c and nu from finite lattices by three methods: samples, classifiers trained around T_c, and others away from it.

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

from config import DataConfig, ExperimentConfig, ModelConfig
from engine.config import TrainConfig
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
# did not shrink with the curves, few configurations of a large lattice would be near its transition, and the others
# would determine the threshold.
TESTED, TRAINED = 2.5, 8.0
COPIES = 32  # of each configuration, moved at random: with few of them, networks for large lattices overfit
# The weight decay keeps the units from using the energy as well. They can only do this on small lattices, so that P(T)
# would be a different function at each size.
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


def training_data(name: str, size: int, seed: int, n: int, n_val: int) -> Splits:
    """The training and validation data of a classifier: around T_c or, for the names with `apart`, away from it."""
    if not name.endswith("apart"):
        return within(TRAINED / size, size, 100 + seed, num_train=n, num_val=n_val, num_test=1)
    splits = within(1.0, size, 100 + seed, num_train=n, num_val=n_val, num_test=1)
    return splits._replace(train=away_from_tc(splits.train), val=away_from_tc(splits.val))


def away_from_tc(columns: Columns) -> Columns:
    """The configurations at T < 1.8 and T > 2.8."""
    away = (columns["temperatures"] < 1.8) | (columns["temperatures"] > 2.8)
    return {name: column[away] for name, column in columns.items()}


def classify(name: str, size: int, seed: int, n: int, n_test: int) -> Row:
    """P(T) of a classifier near T_c, in bins: mean temperature, mean probability and its standard error."""
    splits = training_data(name, size, seed, n, n_val=2000)
    test = within(TESTED / size, size, 8, num_train=1, num_val=1, num_test=n_test).test
    if name in ("bayes", "magnetization"):
        odds = TASKS["phase"].baselines(splits.train, test)[name]
    else:
        odds = network_log_odds(name, seed, splits, test)
    p = expit(odds)
    bins = np.array_split(np.argsort(test["temperatures"]), N_BINS)
    rows = {"t": [test["temperatures"][b].mean() for b in bins], "p": [p[b].mean() for b in bins]}
    return {**rows, "error": [p[b].std() / np.sqrt(len(b)) for b in bins]}


def network_log_odds(name: str, seed: int, splits: Splits, test: Columns) -> NDArray[np.float64]:
    """Log-odds of T < T_c for the test configurations, by a network that is trained on the splits.

    Its training configurations are shifted, rotated, mirrored and flipped at random. A cnn needs no copies of them.
    """
    model, training = NETWORKS[name.removesuffix(", apart")]
    rng, copies = np.random.default_rng(seed), COPIES if model.architecture == "mlp" else 1
    spins = np.concatenate([lattice.random_symmetries(splits.train["spins"], rng) for _ in range(copies)])
    train = {"spins": spins, "temperatures": np.tile(splits.train["temperatures"], copies)}
    config = ExperimentConfig(task="phase", seed=seed, model=model, train=training)
    return predict(PROBLEM, config, trained(config, splits._replace(train=train)), test)


def main() -> None:
    study = Study(__file__, __doc__)
    sizes = [4, 6, 8] if study.quick else [8, 12, 16, 24, 32, 48, 64]
    places = np.linspace(-1.5, 1.5, 7 if study.quick else 11)
    n_samples, n, n_test, seeds = (500, 300, 200, 1) if study.quick else (30_000, 15_000, 20_000, 3)
    grid = [(size, round(T_CRITICAL + x / size, 6)) for size in reversed(sizes) for x in places]
    rows = study.measure(sample, [(size, t, n_samples * (4 if size < 32 else 1)) for size, t in grid])
    few = -(-seeds // 2)
    n_seeds = {"bayes": few, "magnetization": seeds, "sigmoid units": seeds, "cnn": seeds, "sigmoid units, apart": few}
    each = [(name, seed) for name in n_seeds for seed in range(1, n_seeds[name] + 1)]
    cases = [(name, size, seed, n, n_test) for name, seed in each for size in sizes if size != 12]
    answers = study.measure(classify, cases)
    n_bootstrap = 2 if study.quick else 100
    found = {"(a) samples": bootstrap_scaling(partial(moments, rows), 4, n_bootstrap)}
    curves = {name: [row for row in answers if row["case"][1] == name] for name in n_seeds}
    for name, mine in curves.items():
        for label, log in ((name, False), (f"{name}, with log", True)):
            found[label] = bootstrap_scaling(partial(probabilities, mine, log), 5, n_bootstrap)
    lines = ["| road | T_c | nu | chi2/dof |", "|---|---:|---:|---:|"]
    summary = {}
    for name, (fit, t_c, nu) in found.items():
        lines.append(f"| {name} | {fit.t_c:.4f} ± {t_c:.4f} | {fit.nu:.3f} ± {nu:.3f} | {fit.chi2_per_dof:.2f} |")
        values = {"t_c": fit.t_c, "t_c_error": t_c, "nu": fit.nu, "nu_error": nu, "chi2_per_dof": fit.chi2_per_dof}
        summary[name] = values | {"exponents": list(fit.exponents)}
    figure = plot(moments(rows), {name: probabilities(each)[0] for name, each in curves.items()}, found)
    study.finish(summary, figure, *lines)


if __name__ == "__main__":
    main()
