"""T_c and nu from finite lattices, by three roads: samples, classifiers that were told T_c, classifiers that were not.

python -m experiments.critical_temperature [--quick]

(a) The Binder cumulant and <m^2> of samples, which fall onto one curve each in x = (T - T_c) L^(1 / nu).
(b) Networks that were trained to tell T < T_c from T > T_c (J. Carrasquilla, R. G. Melko, Nature Phys. 13, 431, 2017):
    100 sigmoid units, and a convolutional network. The mean probability P(T) that they give falls onto one curve too.
    Beside them what needs no training: Bayes' rule, which reads the energy, and logistic regression on |m|.
(c) The same units, trained and chosen on T < 1.8 against T > 2.8 alone: no label that they see contains T_c.
All look at temperatures around T_c, as one would after a first, coarse search. Curves of what reads the energy are
narrower by the square root of the specific heat, which grows as ln L: in the rows `with log`, x is multiplied by it.
Errors are bootstrapped: over samples in (a), in (b) and (c) over networks, each with training data of its own, and over
test configurations.
"""

from functools import partial

import numpy as np
import torch

from config import DataConfig, ExperimentConfig, ModelConfig, TrainConfig
from data import Split, Splits
from datafiles import get_splits
from experiments.collapse import N_BINS, N_BLOCKS, draw, moments, probabilities
from experiments.common import Row, Study, trained
from ising import lattice, multispin
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from ising.scaling import bootstrap_scaling
from task import PhaseTask, predict

# Times L, how far around T_c classifiers are tested, and trained: where the range does not shrink as the curves do, few
# configurations of a large lattice lie where it matters, and the threshold is that of the others.
TESTED, TRAINED = 2.5, 8.0
COPIES = 32  # of each configuration, moved at random: with few of them, large networks learn them by heart
# The decay of weights keeps the units from learning to read the energy as well, which they can on small lattices alone:
# P(T) would then be another function at each size.
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
    """Configurations from T_c - width to T_c + width; from the cache if they were drawn before."""
    edges = [round(T_CRITICAL + sign * width, 4) for sign in (-1, 1)]
    data = DataConfig(lattice_size=size, temp_min=edges[0], temp_max=edges[1], **numbers)  # type: ignore[arg-type]
    return get_splits(data, seed, 1)[0]


def only_apart(split: Split) -> Split:
    """What lies far from T_c."""
    apart = (split.temperatures < 1.8) | (split.temperatures > 2.8)
    return Split(split.spins[apart], split.temperatures[apart])


def classify(name: str, size: int, seed: int, n: int, n_test: int) -> Row:
    """P(T) of a classifier near T_c, in bins: mean temperature, mean probability and its standard error."""
    width = 1.0 if name.endswith("apart") else TRAINED / size
    splits = within(width, size, 100 + seed, num_train=n, num_val=2000, num_test=1)
    test = within(TESTED / size, size, 8, num_train=1, num_val=1, num_test=n_test).test
    task = PhaseTask(size**2)
    asked, known = (task.examples(s.spins, s.temperatures, torch.device("cpu")) for s in (test, splits.train))
    if name in ("bayes", "magnetization"):
        odds = task.baselines(known, asked)[name]
    else:
        odds = predict(network(name, seed, splits), asked)
    p = torch.sigmoid(odds.double()).numpy()
    bins = np.array_split(np.argsort(test.temperatures), N_BINS)
    rows = {"t": [test.temperatures[b].mean() for b in bins], "p": [p[b].mean() for b in bins]}
    return {**rows, "error": [p[b].std() / np.sqrt(len(b)) for b in bins]}


def network(name: str, seed: int, splits: Splits) -> torch.nn.Module:
    """Trained on configurations that were shifted, turned, mirrored and flipped at random; a cnn needs no copies."""
    if name.endswith("apart"):
        splits = splits._replace(train=only_apart(splits.train), val=only_apart(splits.val))
    model, training = NETWORKS[name.removesuffix(", apart")]
    rng, copies = np.random.default_rng(seed), COPIES if model.architecture == "mlp" else 1
    spins = np.concatenate([lattice.random_symmetries(splits.train.spins, rng) for _ in range(copies)])
    data = DataConfig(lattice_size=spins.shape[-1], num_train=len(spins))
    config = ExperimentConfig(task="phase", seed=seed, model=model, train=training, data=data)
    return trained(config, splits._replace(train=Split(spins, np.tile(splits.train.temperatures, copies))))[0]


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
    figure = draw(moments(rows), {name: probabilities(each)[0] for name, each in curves.items()}, found)
    study.finish(summary, figure, *lines)


if __name__ == "__main__":
    main()
