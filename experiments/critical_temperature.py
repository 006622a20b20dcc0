"""T_c and nu from finite lattices, by three roads: samples, classifiers that were told T_c, classifiers that were not.

python -m experiments.critical_temperature [--quick]

(a) The Binder cumulant and <m^2> of samples, which fall onto one curve each in x = (T - T_c) L^(1 / nu).
(b) Networks that were trained to tell T < T_c from T > T_c (J. Carrasquilla, R. G. Melko, Nature Phys. 13, 431, 2017):
    100 sigmoid units, and a convolutional network. The mean probability P(T) that they give falls onto one curve too.
    Beside them what needs no training: Bayes' rule, which reads the energy, and logistic regression on |m|.
(c) The same units, trained on T < 1.8 against T > 2.8 alone: nothing that they were told contains T_c.
Errors are bootstrapped, over samples in (a), over networks and test configurations in (b) and (c).
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from config import DataConfig, ExperimentConfig, ModelConfig, TrainConfig
from data import Split, Splits
from datafiles import get_splits
from experiments.common import Row, Study, trained
from experiments.scaling_figure import draw
from ising import exact, lattice, multispin, scaling
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from task import PhaseTask, predict

N_BLOCKS, N_BINS, WIDTH, COPIES = 50, 20, 2.5, 8
NETWORKS = {
    "sigmoid units": (ModelConfig(hidden=(100,), activation="sigmoid", dropout=0.0), 8, 0.003),
    "cnn": (ModelConfig(architecture="cnn", activation="relu", dropout=0.0), 4, 0.01),
}


def sample(size: int, temperature: float, n: int) -> Row:
    """Means of m^2 and m^4 in blocks of independent configurations."""
    seed = np.random.SeedSequence([size, round(1e6 * temperature)])
    spins = multispin.sample(size, np.full(n, temperature), equilibration_sweeps(size), seed, 1)
    m = lattice.magnetization(spins).reshape(N_BLOCKS, -1)
    return {"m2": (m**2).mean(axis=1).round(9).tolist(), "m4": (m**4).mean(axis=1).round(9).tolist()}


def configurations(size: int, n: int) -> tuple[Splits, Split]:
    """For training, from T_c - 1 to T_c + 1, and to test on, close to T_c; from the cache if they were drawn before."""

    def within(width: float, **numbers: int) -> DataConfig:
        edges = [round(T_CRITICAL + sign * width, 4) for sign in (-1, 1)]
        return DataConfig(lattice_size=size, temp_min=edges[0], temp_max=edges[1], **numbers)  # type: ignore[arg-type]

    splits, _ = get_splits(within(1.0, num_train=n, num_val=2000, num_test=1), 7, 1)
    near, _ = get_splits(within(WIDTH / size, num_train=1, num_val=1, num_test=max(200, 2 * n // 3)), 8, 1)
    return splits, near.test


def prepare(size: int, n: int) -> Row:
    """Draw what several networks will use."""
    return {"n": len(configurations(size, n)[1].spins)}


def classify(name: str, size: int, seed: int, n: int) -> Row:
    """P(T) of a classifier near T_c, in bins: mean temperature, mean probability and its standard error."""
    splits, test = configurations(size, n)
    train, temperatures = splits.train, splits.train.temperatures
    if name.endswith("apart"):
        apart = (temperatures < 1.8) | (temperatures > 2.8)
        train = Split(train.spins[apart], temperatures[apart])
    task = PhaseTask(size**2)
    asked, known = (task.examples(s.spins, s.temperatures, torch.device("cpu")) for s in (test, splits.train))
    if name in ("bayes", "magnetization"):
        odds = task.baselines(known, asked)[name]
    else:
        odds = predict(network(name.removesuffix(", apart"), seed, train, splits), asked)
    p = torch.sigmoid(odds.double()).numpy()
    bins = np.array_split(np.argsort(test.temperatures), N_BINS)
    rows = {"t": [test.temperatures[b].mean() for b in bins], "p": [p[b].mean() for b in bins]}
    return {**rows, "error": [p[b].std() / np.sqrt(len(b)) for b in bins]}


def network(name: str, seed: int, train: Split, splits: Splits) -> torch.nn.Module:
    """Trained on configurations that were shifted, turned, mirrored and flipped at random; a cnn needs no copies."""
    model, epochs, lr = NETWORKS[name]
    rng, copies = np.random.default_rng(seed), COPIES if model.architecture == "mlp" else 1
    spins = np.concatenate([lattice.random_symmetries(train.spins, rng) for _ in range(copies)])
    training = TrainConfig(epochs=epochs, lr=lr, batch_size=min(256, len(spins)))
    data = DataConfig(lattice_size=spins.shape[-1], num_train=len(spins))
    config = ExperimentConfig(task="phase", seed=seed, model=model, train=training, data=data)
    return trained(config, splits._replace(train=Split(spins, np.tile(train.temperatures, copies))))[0]


def moments(rows: list[Row], rng: np.random.Generator | None = None) -> list[scaling.Curves]:
    """U_4 and <m^2> by size and temperature, of blocks drawn with replacement if there is a generator."""
    sizes, temperatures = (np.array([row["case"][k] for row in rows]) for k in (1, 2))
    m2, m4 = (np.array([row[key] for row in rows]) for key in ("m2", "m4"))
    u4 = 1 - m4.mean(axis=1) / (3 * m2.mean(axis=1) ** 2)
    influence = m4 / m4.mean(axis=1)[:, None] - 2 * m2 / m2.mean(axis=1)[:, None]  # of a block on ln(1 - U_4)
    errors = ((1 - u4) * influence.std(axis=1) / np.sqrt(N_BLOCKS), m2.std(axis=1) / np.sqrt(N_BLOCKS))
    if rng is not None:
        chosen = rng.integers(N_BLOCKS, size=m2.shape)
        m2, m4 = (np.take_along_axis(each, chosen, axis=1) for each in (m2, m4))
        u4 = 1 - m4.mean(axis=1) / (3 * m2.mean(axis=1) ** 2)
    return [
        scaling.Curves(sizes, temperatures, u4, errors[0]),
        scaling.Curves(sizes, temperatures, m2.mean(axis=1), errors[1], exponent=-0.3),
    ]


def probabilities(rows: list[Row], rng: np.random.Generator | None = None, log: bool = False) -> list[scaling.Curves]:
    """P(T) by size, the mean over networks, of networks and noise drawn at random if there is a generator."""
    parts = []
    for size in dict.fromkeys(row["case"][2] for row in rows):
        mine = [row for row in rows if row["case"][2] == size]
        t, p, noise = (np.array([row[key] for row in mine]) for key in ("t", "p", "error"))
        scatter = p.std(axis=0, ddof=1) / np.sqrt(len(p)) if len(p) > 1 else 0.0
        error = np.hypot(noise.mean(axis=0), scatter)
        if rng is not None:
            p = p[rng.integers(len(p), size=len(p))] + noise.mean(axis=0) * rng.standard_normal(p.shape[1])
        stretch = np.full(N_BINS, np.sqrt(exact.kaufman(T_CRITICAL, size)[1]) if log else 1.0)
        parts.append((np.full(N_BINS, size), t[0], p.mean(axis=0), error, stretch))
    sizes, t, p, error, stretch = (np.concatenate(part) for part in zip(*parts, strict=True))
    return [scaling.Curves(sizes, t, p, error, stretch=stretch)]


def fitted(curves: Callable[..., list[scaling.Curves]], degree: int, n_bootstrap: int) -> Row:
    """T_c and nu with bootstrap errors, and how well the curves fall onto each other."""
    fit, rng = scaling.fit_scaling(curves(), degree), np.random.default_rng(0)
    again = [scaling.fit_scaling(curves(rng=rng), degree) for _ in range(n_bootstrap)]
    errors = {f"{key}_error": float(np.std([getattr(each, key) for each in again])) for key in ("t_c", "nu")}
    return {"t_c": fit.t_c, "nu": fit.nu, **errors, "chi2_per_dof": fit.chi2_per_dof, "exponents": list(fit.exponents)}


def main() -> None:
    study = Study(__file__, __doc__)
    sizes = [4, 6, 8] if study.quick else [8, 12, 16, 24, 32, 48, 64]
    places = np.linspace(-1.5, 1.5, 7 if study.quick else 11)
    n_samples, n, seeds = (500, 300, 1) if study.quick else (15_000, 30_000, 6)
    cases = [
        (L, round(T_CRITICAL + x / L, 6), n_samples * (4 if L < 32 else 1)) for L in reversed(sizes) for x in places
    ]
    rows = study.measure(sample, cases)
    trained_on = [size for size in sizes if size != 12]
    study.measure(prepare, [(size, n) for size in reversed(trained_on)])
    known = {name: [(name, size, 0, n) for size in trained_on] for name in ("bayes", "magnetization")}
    learned = {
        name: [(name, size, seed, n) for seed in range(1, count + 1) for size in reversed(trained_on)]
        for name, count in (("sigmoid units", seeds), ("cnn", -(-seeds // 2)), ("sigmoid units, apart", seeds))
    }
    n_bootstrap = 2 if study.quick else 100
    found: Row = {"(a) samples": fitted(partial(moments, rows), 4, n_bootstrap)}
    curves = {}
    for name, wanted in (known | learned).items():
        curves[name] = study.measure(classify, wanted)
        found[name] = fitted(partial(probabilities, curves[name]), 5, n_bootstrap)
        found[f"{name}, x sqrt(C)"] = fitted(partial(probabilities, curves[name], log=True), 5, n_bootstrap)
    lines = ["| road | T_c | nu | chi2/dof |", "|---|---:|---:|---:|"]
    for name, fit in found.items():
        numbers = f"{fit['t_c']:.4f} ± {fit['t_c_error']:.4f} | {fit['nu']:.3f} ± {fit['nu_error']:.3f}"
        lines.append(f"| {name} | {numbers} | {fit['chi2_per_dof']:.2f} |")
    study.finish(
        found, draw(moments(rows), {name: probabilities(each)[0] for name, each in curves.items()}, found), *lines
    )


if __name__ == "__main__":
    main()
