"""Which parts of the recipe of the preset `default` make its network exact? One change at a time.

python -m experiments.recipe [--quick]

The presets and the earlier recipe are trained with ten seeds, and every change of the recipe with five of them. None of
these seeds was used to choose the recipe. Each seed has its own data, weights and batches. The networks predict 20,000
new configurations: all of them, those that do not occur in training, and of these the ones above the ground state. CPU
seconds are those of one core, from sampling to the end of the training; they depend on what else the machine does.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from config import PRESETS, RECIPE, ExperimentConfig
from engine.datasets.overlap import select
from engine.datasets.splits import get_splits
from experiments.common import Row, Study, evaluated, trained, unseen_of
from ising import lattice
from problem import PROBLEM

SEEDS = range(1001, 1011)
WHOLE: dict[str, ExperimentConfig] = {
    "default": RECIPE,
    "fresh": PRESETS["fresh"],
    "the earlier recipe": ExperimentConfig(),
}
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "initial scale 1": {"model": {"initial_scale": 1.0}},
    "initial scale 0.36": {"model": {"initial_scale": 0.36}},
    "betas 0.9, 0.999": {"train": {"betas": None}},
    "dropout 0.1": {"model": {"dropout": 0.1}},
    "weight decay 0": {"train": {"weight_decay": 0.0}},
    "weight decay 0.3": {"train": {"weight_decay": 0.3}},
    "cosine": {"train": {"scheduler": "cosine"}},
    "constant rate": {"train": {"scheduler": "none"}},
    "warm-up of 3 epochs": {"train": {"warmup_epochs": 3}},
    "rate 0.001": {"train": {"lr": 0.001}},
    "rate 0.01": {"train": {"lr": 0.01}},
    "batches of 64, 25 epochs": {"train": {"batch_size": 64, "epochs": 25}},
    "batches of 256, 100 epochs": {"train": {"batch_size": 256, "epochs": 100}},
    "GELU": {"model": {"activation": "gelu"}},
    "ReLU": {"model": {"activation": "relu"}},
    "tanh": {"model": {"activation": "tanh"}},
    "256 units": {"model": {"hidden": (256,)}},
    "512 units": {"model": {"hidden": (512,)}},
    "2048 units": {"model": {"hidden": (2048,)}},
    "layers of 128, 64, 32": {"model": {"hidden": (128, 64, 32)}},
    "25 epochs": {"train": {"epochs": 25}},
    "100 epochs": {"train": {"epochs": 100}},
}


def changed(config: ExperimentConfig, changes: dict[str, dict[str, Any]]) -> ExperimentConfig:
    """The config with other values in its sections."""
    return replace(config, **{name: replace(getattr(config, name), **values) for name, values in changes.items()})


def learn(name: str, seed: int, n_test: int, n_epochs: int | None = None) -> Row:
    """CPU seconds, and the fractions of exact energies."""
    config = changed(WHOLE.get(name, RECIPE), CHANGES.get(name, {}))
    config = replace(config, seed=seed, threads=1, data=replace(config.data, cache=False, num_test=1))
    if n_epochs is not None:
        config = changed(config, {"train": {"epochs": n_epochs, "warmup_epochs": 0}})
    start = time.process_time()
    splits = get_splits(PROBLEM, config)[0]
    model = trained(config, splits)
    seconds = time.process_time() - start
    more = replace(config, seed=seed + 10_000, data=replace(config.data, num_test=n_test))
    test = get_splits(PROBLEM, more)[0].test
    unseen = test if config.train.fresh else unseen_of(test, splits.train)
    above = select(unseen, np.abs(lattice.energy(unseen["spins"])) < 2 * test["spins"][0].size)
    parts = {"all": test, "unseen": unseen, "above": above}
    return {"cpu": seconds} | {key: evaluated(config, model, part)["exact_fraction"] for key, part in parts.items()}


def spread(values: np.ndarray) -> str:
    """Median, minimum and maximum."""
    return f"{np.median(values):.4f} ({values.min():.4f} to {values.max():.4f})"


def plot(found: dict[str, np.ndarray]) -> Figure:
    """The fraction of wrong energies of each recipe: seeds and medians."""
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    axes = figure.subplots()
    for k, values in enumerate(found.values()):
        wrong = np.maximum(1 - values, 3e-5)
        axes.plot(wrong, np.full(len(wrong), k), ".", color="0.6")
        axes.plot(np.median(wrong), k, "|", color="C0", markersize=12, markeredgewidth=2)
    axes.set(xscale="log", yticks=range(len(found)), yticklabels=list(found))
    axes.set_xlabel("fraction of wrong energies")
    title = (
        "configurations that do not occur in training; points: seeds, at the left edge if none is wrong; lines: medians"
    )
    axes.set_title(title, fontsize="small", loc="right")
    axes.invert_yaxis()
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    options: tuple[Any, ...] = (500, 1) if study.quick else (20_000,)
    names = ["default", "fresh", "256 units"] if study.quick else [*WHOLE, *CHANGES]
    cases = [
        (name, seed, *options)
        for name in names
        for seed in (SEEDS if name in WHOLE else SEEDS[:5])[: 2 if study.quick else 10]
    ]
    rows = study.measure(learn, cases)
    by_name = {name: [row for row in rows if row["case"][1] == name] for name in names}
    values = {
        name: {key: np.array([row[key] for row in mine]) for key in ("cpu", "all", "unseen", "above")}
        for name, mine in by_name.items()
    }
    lines = [
        "| recipe | seeds | exact fraction: all | not in training | of these, above the ground state | CPU s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, each in values.items():
        cells = [*(spread(each[key]) for key in ("all", "unseen", "above")), f"{np.median(each['cpu']):.1f}"]
        lines.append(f"| {name} | {len(each['cpu'])} | {' | '.join(cells)} |")
    summary = {name: {key: value.tolist() for key, value in each.items()} for name, each in values.items()}
    study.finish(summary, plot({name: each["unseen"] for name, each in values.items()}), *lines)


if __name__ == "__main__":
    main()
