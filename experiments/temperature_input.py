"""Does it help to tell a network the temperature, if it is to predict the energy of a configuration?

python -m experiments.temperature_input [--quick]

The energy is a function of the spins alone, so the temperature tells nothing that is not there already; but it is
a good guess of the energy, which is easier to read than 64 spins. Each network with and without it, five seeds.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure

from datafiles import get_splits
from experiments.common import NETWORKS, Row, Study, trained
from task import evaluate

EPOCHS = 60  # at most
METRICS = ("mae", "exact_fraction")


def learn(network: str, told: bool, seed: int, n_train: int, epochs: int = EPOCHS) -> Row:
    """Test metrics of a network that is told the temperature, or not."""
    config = NETWORKS[network]
    data = replace(config.data, num_train=n_train)
    train = replace(config.train, epochs=min(epochs, config.train.epochs))
    model_config = replace(config.model, input_temperature=told)
    config = replace(config, seed=seed, data=data, model=model_config, train=train)
    splits, _ = get_splits(config.data, seed, 1)
    model, task = trained(config, splits)
    test = task.examples(splits.test.spins, splits.test.temperatures, torch.device("cpu"))
    return dict(evaluate(model, task, test))


def draw(means: np.ndarray, errors: np.ndarray) -> Figure:
    """Metrics with standard errors, (networks, without and with, metrics) each."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    places = np.arange(len(NETWORKS))
    for k, (axes, label) in enumerate(
        zip(figure.subplots(1, 2), ("mean absolute error of $E/N$ [J]", "exact fraction"), strict=True)
    ):
        for told, marker, words in ((0, "o", "from the spins alone"), (1, "s", "told the temperature too")):
            shifted = places + 0.2 * (told - 0.5)
            axes.errorbar(shifted, means[:, told, k], errors[:, told, k], fmt=marker, capsize=3, label=words)
        axes.set(xticks=places, xticklabels=list(NETWORKS), ylabel=label)
    figure.axes[0].set_yscale("log")
    figure.axes[0].set_ylim(3e-9, 0.2)
    figure.axes[0].legend(title="bars: standard errors", fontsize="small", loc="lower left")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    options, seeds = ((500, 2), [1, 2]) if study.quick else ((10_000,), [1, 2, 3, 4, 5])
    cases = [(name, told, seed, *options) for name in NETWORKS for seed in seeds for told in (False, True)]
    rows = study.measure(learn, cases)
    values = np.array([[row[key] for key in METRICS] for row in rows]).reshape(
        len(NETWORKS), len(seeds), 2, len(METRICS)
    )
    means, errors = values.mean(axis=1), values.std(axis=1, ddof=1) / math.sqrt(len(seeds))
    more = values[:, :, 1, 0] - values[:, :, 0, 0]  # (networks, seeds): each pair has the same data
    more_errors = more.std(axis=1, ddof=1) / math.sqrt(len(seeds))
    lines = [
        "| network | mae, spins alone | told T too | by how much more | exact fraction, spins alone | told T too |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for i, name in enumerate(NETWORKS):
        cells = [f"{means[i, told, k]:.3g} ± {errors[i, told, k]:.1g}" for k in range(2) for told in range(2)]
        cells.insert(2, f"{more[i].mean():+.2g} ± {more_errors[i]:.1g}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    summary = {
        name: {
            key: {
                "alone": means[i, 0, k],
                "told": means[i, 1, k],
                "errors": errors[i, :, k].tolist(),
            }
            for k, key in enumerate(METRICS)
        }
        for i, name in enumerate(NETWORKS)
    }
    study.finish(summary, draw(means, errors), *lines)


if __name__ == "__main__":
    main()
