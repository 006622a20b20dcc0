"""Which optimiser, which schedule? Each at the rate that suits it best.

python -m experiments.optimizers [--quick]

The default network on 5,000 configurations for 40 epochs. The rate of each pair of optimiser and schedule is chosen on
the validation set of one seed, from a grid; then three other seeds are tested with it. Weight decay stays at 0.01 for
all, which is decoupled from the gradient in adamw and a part of the loss in adam and sgd.
"""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import torch
from matplotlib.figure import Figure

from config import PRESETS, Optimizer, Scheduler
from datafiles import get_splits
from experiments.common import Row, Study, trained
from task import evaluate
from utils import DivergedError

OPTIMIZERS, SCHEDULERS = get_args(Optimizer), get_args(Scheduler)
RATES = {
    "adam": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "sgd": (3e-3, 1e-2, 3e-2, 1e-1),
}


def learn(optimizer: str, scheduler: str, lr: float, seed: int, epochs: int) -> Row:
    """Validation and test error of the best epoch; 2, more than any energy is, if training diverged."""
    config = PRESETS["small"]
    training = replace(config.train, optimizer=optimizer, scheduler=scheduler, lr=lr, epochs=epochs)  # type: ignore[arg-type]
    config = replace(config, seed=seed, train=training)
    splits, _ = get_splits(config.data, seed, 1)
    try:
        model, task = trained(config, splits)
    except DivergedError:
        return {"val": 2.0, "test": 2.0}
    val, test = (task.examples(s.spins, s.temperatures, torch.device("cpu")) for s in (splits.val, splits.test))
    return {"val": evaluate(model, task, val)["mae"], "test": evaluate(model, task, test)["mae"]}


def draw(tuning: dict[tuple[str, str], list[tuple[float, float]]], tested: dict[tuple[str, str], np.ndarray]) -> Figure:
    """Left the validation error against the rate, right the test error at the best one with its standard error."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (optimizer, scheduler), points in tuning.items():
        colour, style = f"C{OPTIMIZERS.index(optimizer)}", ("-", "--", ":")[SCHEDULERS.index(scheduler)]
        left.plot(
            *zip(*points, strict=True), marker=".", color=colour, linestyle=style, label=f"{optimizer}, {scheduler}"
        )
    left.set(xscale="log", xlabel="peak learning rate", ylabel="validation mae of $E/N$ [J], one seed")
    left.set_yscale("log")
    left.set_ylim(0.05, 0.2)
    left.legend(fontsize="x-small", ncols=3)
    for k, (pair, values) in enumerate(tested.items()):
        error = values.std(ddof=1) / math.sqrt(len(values))
        right.errorbar(k, values.mean(), error, fmt="o", color=f"C{OPTIMIZERS.index(pair[0])}", capsize=3)
    right.set_xticks(range(len(tested)), [f"{o}\n{s}" for o, s in tested], fontsize="small")
    right.set(ylabel=f"test mae of $E/N$ [J], {len(values)} seeds, standard error")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    epochs, seeds = (2, [1, 2]) if study.quick else (40, [1, 2, 3])
    pairs = [(optimizer, scheduler) for optimizer in OPTIMIZERS for scheduler in SCHEDULERS]
    rows = study.measure(learn, [(*pair, lr, 0, epochs) for pair in pairs for lr in RATES[pair[0]]])
    tuning: dict[tuple[str, str], list[tuple[float, float]]] = {pair: [] for pair in pairs}
    for row in rows:
        tuning[row["case"][1], row["case"][2]].append((row["case"][3], row["val"]))
    best = {pair: min(points, key=lambda point: point[1])[0] for pair, points in tuning.items()}
    rows = study.measure(learn, [(*pair, best[pair], seed, epochs) for pair in pairs for seed in seeds])
    tested = {pair: np.array([r["test"] for r in rows if tuple(r["case"][1:3]) == pair]) for pair in pairs}
    lines = ["| optimiser | schedule | best rate of the grid | test mae [J] |", "|---|---|---:|---:|"]
    summary = {}
    for (optimizer, scheduler), values in tested.items():
        error = values.std(ddof=1) / math.sqrt(len(values))
        lines.append(
            f"| {optimizer} | {scheduler} | {best[optimizer, scheduler]:g} | {values.mean():.4f} ± {error:.4f} |"
        )
        summary[f"{optimizer}, {scheduler}"] = {"lr": best[optimizer, scheduler], "mae": values.mean(), "error": error}
    study.finish(summary, draw(tuning, tested), *lines)


if __name__ == "__main__":
    main()
