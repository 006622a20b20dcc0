"""Which optimiser and which schedule are best, each at its best learning rate and weight decay?

python -m experiments.optimizers [--quick]

The default network is trained on 5,000 configurations for 40 epochs. Learning rate and weight decay of each pair of
optimiser and schedule are chosen from a grid, by the validation error of one seed. They are then tested with three
other seeds. The weight decay is decoupled from the gradient in adamw, but a part of the loss in adam and sgd. Equal
values therefore do not mean the same.
"""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
from matplotlib.figure import Figure

from config import PRESETS
from engine.config import Optimizer, Scheduler
from engine.errors import DivergedError
from experiments.common import Row, Study, evaluated, sampled, trained

OPTIMIZERS, SCHEDULERS = get_args(Optimizer), get_args(Scheduler)
RATES = {
    "adam": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "sgd": (3e-3, 1e-2, 3e-2, 1e-1),
}
DECAYS = {"adam": (1e-5, 1e-4, 1e-3), "adamw": (1e-2, 1e-1, 1.0), "sgd": (1e-4, 1e-3, 1e-2)}


def learn(  # noqa: PLR0917
    optimizer: str, scheduler: str, lr: float, weight_decay: float, seed: int, epochs: int
) -> Row:
    """Validation and test error of the best epoch; 2 J, the largest |E / N|, if training diverged."""
    config = PRESETS["small"]
    kind = {"optimizer": optimizer, "scheduler": scheduler}
    training = replace(config.train, **kind, lr=lr, weight_decay=weight_decay, epochs=epochs)  # type: ignore[arg-type]
    config = replace(config, seed=seed, train=training)
    splits = sampled(config.data, seed)
    try:
        model = trained(config, splits)
    except DivergedError:
        return {"val": 2.0, "test": 2.0}
    return {name: evaluated(config, model, getattr(splits, name))["mae"] for name in ("val", "test")}


def plot(tuning: dict[tuple[str, str], list[Row]], tested: dict[tuple[str, str], np.ndarray]) -> Figure:
    """Left: validation error against the rate, each at its best decay. Right: test error at the best rate and decay."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (optimizer, scheduler), rows in tuning.items():
        rates = sorted({row["case"][3] for row in rows})
        errors = [min(row["val"] for row in rows if row["case"][3] == lr) for lr in rates]
        style = f"C{OPTIMIZERS.index(optimizer)}." + ("-", "--", ":")[SCHEDULERS.index(scheduler)]
        left.plot(rates, errors, style, label=f"{optimizer}, {scheduler}")
    left.set(xscale="log", xlabel="peak learning rate", ylabel="validation mae of $E/N$ [J], one seed")
    left.set(yscale="log", ylim=(0.045, 0.4))  # above 0.4 training has failed
    left.legend(fontsize="x-small", ncols=3, loc="upper left")
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
    settings = {name: [(lr, decay) for lr in RATES[name] for decay in DECAYS[name]] for name in OPTIMIZERS}
    if study.quick:
        settings = {name: each[:4:3] for name, each in settings.items()}  # two rates with one decay
    rows = study.measure(learn, [(*pair, *each, 0, epochs) for pair in pairs for each in settings[pair[0]]])
    tuning = {pair: [row for row in rows if tuple(row["case"][1:3]) == pair] for pair in pairs}
    best = {pair: min(tuning[pair], key=lambda row: row["val"])["case"][3:5] for pair in pairs}
    rows = study.measure(learn, [(*pair, *best[pair], seed, epochs) for pair in pairs for seed in seeds])
    tested = {pair: np.array([row["test"] for row in rows if tuple(row["case"][1:3]) == pair]) for pair in pairs}
    lines = ["| optimiser | schedule | best rate | best weight decay | test mae [J] |", "|---|---|---:|---:|---:|"]
    summary = {}
    for (optimizer, scheduler), values in tested.items():
        error = values.std(ddof=1) / math.sqrt(len(values))
        lr, decay = best[optimizer, scheduler]
        lines.append(f"| {optimizer} | {scheduler} | {lr:g} | {decay:g} | {values.mean():.4f} ± {error:.4f} |")
        summary[f"{optimizer}, {scheduler}"] = {"lr": lr, "decay": decay, "mae": values.mean(), "error": error}
    study.finish(summary, plot(tuning, tested), *lines)


if __name__ == "__main__":
    main()
