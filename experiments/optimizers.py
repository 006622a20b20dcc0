"""Which pair of optimiser and schedule is best, each with its best learning rate and weight decay?

python -m experiments.optimizers [--quick]

The default network is trained on 5,000 configurations for 40 epochs. The learning rate and the weight decay of each
pair of optimiser and schedule are chosen from a grid, by the mean validation error of two seeds. They are then tested
with five other seeds, on test configurations that do not occur in training. With the same seed, all pairs have the same
data, so they are compared by paired differences. The weight decay is decoupled from the gradient in adamw, but part of
the loss in adam and sgd. Equal values are therefore not equivalent.
"""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
from matplotlib.figure import Figure

from config import DataConfig, ExperimentConfig
from engine.interface.base_config import Optimizer
from engine.machine.errors import DivergedError
from experiments.common import Row, Study, evaluated, sampled, trained, unseen_of

Pair = tuple[str, str]  # optimiser and schedule
Setting = tuple[str, str, float, float]  # with learning rate and weight decay

OPTIMIZERS, SCHEDULERS = get_args(Optimizer), ("none", "cosine", "step")
RATES = {
    "adam": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "sgd": (3e-3, 1e-2, 3e-2, 1e-1),
}
DECAYS = {"adam": (1e-5, 1e-4, 1e-3, 1e-2), "adamw": (1e-2, 1e-1, 0.3, 1.0), "sgd": (1e-4, 1e-3, 1e-2, 3e-2)}


def learn(  # noqa: PLR0917
    optimizer: str, scheduler: str, lr: float, weight_decay: float, seed: int, epochs: int
) -> Row:
    """Validation and test error of the best epoch. If training diverged, both are 2 J, the largest |E / N|."""
    config = ExperimentConfig(data=DataConfig(num_train=5_000, num_val=1_000, num_test=1_000))
    kind = {"optimizer": optimizer, "scheduler": scheduler}
    training = replace(config.train, **kind, lr=lr, weight_decay=weight_decay, epochs=epochs)  # type: ignore[arg-type]
    config = replace(config, seed=seed, train=training)
    splits = sampled(config.data, seed)
    try:
        model = trained(config, splits)
    except DivergedError:
        return {"val": 2.0, "test": 2.0}
    unseen = {"val": splits.val, "test": unseen_of(splits.test, splits.train)}
    return {name: evaluated(config, model, columns)["mae"] for name, columns in unseen.items()}


def plot(tuned: dict[Setting, float], tested: dict[Pair, np.ndarray]) -> Figure:
    """Left: validation error against the rate, with the best decay. Right: test error with the best rate and decay."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for optimizer, scheduler in tested:
        mine = {setting[2:]: error for setting, error in tuned.items() if setting[:2] == (optimizer, scheduler)}
        rates = sorted({lr for lr, _ in mine})
        errors = [min(error for (lr, _), error in mine.items() if lr == rate) for rate in rates]
        style = f"C{OPTIMIZERS.index(optimizer)}." + ("-", "--", ":")[SCHEDULERS.index(scheduler)]
        left.plot(rates, errors, style, label=f"{optimizer}, {scheduler}")
    left.set(xscale="log", xlabel="peak learning rate", ylabel="validation MAE of $E/N$ [J], mean of two seeds")
    left.set(yscale="log", ylim=(0.045, 0.4))  # above 0.4, training has failed
    left.legend(fontsize="x-small", ncols=3, loc="upper left")
    for k, (pair, values) in enumerate(tested.items()):
        error = values.std(ddof=1) / math.sqrt(len(values))
        right.errorbar(k, values.mean(), error, fmt="o", color=f"C{OPTIMIZERS.index(pair[0])}", capsize=3)
        right.plot(np.full(len(values), k + 0.2), values, ".", color="0.6", markersize=4)
    right.set_xticks(range(len(tested)), [f"{o}\n{s}" for o, s in tested], fontsize="small")
    right.set(ylabel="test MAE of $E/N$ [J], unseen configurations")
    right.set_title(f"grey: {len(values)} seeds; colour: mean and standard error", fontsize="small")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    epochs, tuning_seeds, seeds = (1, [101], [1, 2]) if study.quick else (40, [101, 102], [1, 2, 3, 4, 5])
    pairs: list[Pair] = [(optimizer, scheduler) for optimizer in OPTIMIZERS for scheduler in SCHEDULERS]
    grid = {name: [(lr, decay) for lr in RATES[name] for decay in DECAYS[name]] for name in OPTIMIZERS}
    if study.quick:
        pairs = pairs[::3]  # one schedule
        grid = {name: each[:5:4] for name, each in grid.items()}  # two rates with one decay
    settings: list[Setting] = [(*pair, *each) for pair in pairs for each in grid[pair[0]]]
    rows = study.measure(learn, [(*setting, seed, epochs) for setting in settings for seed in tuning_seeds])
    errors = np.array([row["val"] for row in rows]).reshape(len(settings), len(tuning_seeds)).mean(axis=1)
    tuned = dict(zip(settings, errors.tolist(), strict=True))
    best = {pair: min((s for s in settings if s[:2] == pair), key=tuned.__getitem__) for pair in pairs}
    rows = study.measure(learn, [(*best[pair], seed, epochs) for pair in pairs for seed in seeds])
    values = np.array([row["test"] for row in rows]).reshape(len(pairs), len(seeds))
    tested = dict(zip(pairs, values, strict=True))
    winner = pairs[int(np.argmin(values.mean(axis=1)))]
    lines = [
        f"| optimiser | schedule | peak rate | weight decay | test mae [J] | difference to {', '.join(winner)} |",
        "|---|---|---:|---:|---:|---:|",
    ]
    summary = {}
    for pair, each in tested.items():
        *_, lr, decay = best[pair]
        edge = " (edge of grid)" if decay in (DECAYS[pair[0]][0], DECAYS[pair[0]][-1]) else ""
        more = "" if pair == winner else with_error(each - tested[winner], "+.4f")
        lines.append(f"| {' | '.join(pair)} | {lr:g} | {decay:g}{edge} | {with_error(each, '.4f')} | {more} |")
        summary[", ".join(pair)] = {"lr": lr, "decay": decay, "mae": each.tolist()}
    study.finish(summary, plot(tuned, tested), *lines)


def with_error(values: np.ndarray, style: str) -> str:
    """Mean and standard error over the seeds."""
    return f"{values.mean():{style}} ± {values.std(ddof=1) / math.sqrt(len(values)):.4f}"


if __name__ == "__main__":
    main()
