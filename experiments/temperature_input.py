"""Does it help to give a network the temperature when it predicts the energy of a configuration?

python -m experiments.temperature_input [--quick]

The energy is a function of the spins, so the temperature adds no information. However, it gives a good estimate of the
energy, and a single number is easier to use than 64 spins. Each network is trained with and without the temperature,
with five seeds, and tested on configurations that do not occur in training.
"""

import math
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from experiments.common import NETWORKS, Row, Study, evaluated, sampled, trained, unseen_of

EPOCHS = 60  # maximum
METRICS = ("mae", "exact_fraction")


def learn(network: str, with_temperature: bool, seed: int, n_train: int, epochs: int = EPOCHS) -> Row:
    """Test metrics of a network with or without the temperature as an input."""
    config = NETWORKS[network]
    config = replace(
        config,
        seed=seed,
        data=replace(config.data, num_train=n_train),
        model=replace(config.model, input_temperature=with_temperature),
        train=replace(config.train, epochs=min(epochs, config.train.epochs)),
    )
    splits = sampled(config.data, seed)
    return evaluated(config, trained(config, splits), unseen_of(splits.test, splits.train))


def plot(means: np.ndarray, errors: np.ndarray) -> Figure:
    """Metrics with standard errors. Both arrays are (networks, without and with temperature, metrics)."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    places = np.arange(len(NETWORKS))
    for k, (axes, label) in enumerate(
        zip(figure.subplots(1, 2), ("mean absolute error of $E/N$ [J]", "exact fraction"), strict=True)
    ):
        for i, marker, inputs in ((0, "o", "spins only"), (1, "s", "spins and temperature")):
            shifted = places + 0.2 * (i - 0.5)
            axes.errorbar(shifted, means[:, i, k], errors[:, i, k], fmt=marker, capsize=3, label=inputs)
        axes.set(xticks=places, xticklabels=list(NETWORKS), ylabel=label)
    figure.axes[0].set_yscale("log")
    figure.axes[0].set_ylim(3e-9, 0.2)
    figure.axes[0].legend(title="mean and standard error of the seeds", fontsize="small", loc="lower left")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    options, seeds = ((500, 2), [1, 2]) if study.quick else ((10_000,), [1, 2, 3, 4, 5])
    cases = [(name, given, seed, *options) for name in NETWORKS for seed in seeds for given in (False, True)]
    rows = study.measure(learn, cases)
    values = np.array([[row[key] for key in METRICS] for row in rows]).reshape(
        len(NETWORKS), len(seeds), 2, len(METRICS)
    )
    means, errors = values.mean(axis=1), values.std(axis=1, ddof=1) / math.sqrt(len(seeds))
    more = values[:, :, 1, 0] - values[:, :, 0, 0]  # (networks, seeds): each pair has the same data
    more_errors = more.std(axis=1, ddof=1) / math.sqrt(len(seeds))
    lines = [
        "| network | mae, spins only | with T | difference | exact fraction, spins only | with T |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for i, name in enumerate(NETWORKS):
        cells = [f"{means[i, given, k]:.3g} ± {errors[i, given, k]:.1g}" for k in range(2) for given in range(2)]
        cells.insert(2, f"{more[i].mean():+.2g} ± {more_errors[i]:.1g}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    summary = {
        name: {
            key: {
                "only_spins": means[i, 0, k],
                "with_temperature": means[i, 1, k],
                "errors": errors[i, :, k].tolist(),
            }
            for k, key in enumerate(METRICS)
        }
        for i, name in enumerate(NETWORKS)
    }
    study.finish(summary, plot(means, errors), *lines)


if __name__ == "__main__":
    main()
