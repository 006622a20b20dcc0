"""How much training data does a network with more built-in knowledge need? Error against the size of the training set.

python -m experiments.learning_curves [--quick]

Networks with suitable options, and least squares on pair products and on symmetric correlators, are trained on 10 to
10^5 configurations of the 8 x 8 lattice. Each of five seeds has its own data, weights and batches. The smaller training
sets of a seed are parts of its largest one. Networks also use a validation set to choose their best epoch: a tenth of
the training set, but at least 50 and at most 1,000 configurations. Least squares does not need it.

Test configurations that occur in the largest training set of the seed are left out, at all sizes. These are mostly cold
lattices in a ground state, which a network could predict from memory.
"""

import math
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from engine.datasets.overlap import select
from engine.interface import Splits
from engine.learning.predicted import predicted_by
from engine.learning.prediction import build_model, compute_metrics, prepare
from experiments.common import DEFAULT, NETWORKS, Row, Study, evaluated, sampled, trained, unseen_of
from problem import PROBLEM

N_TRAIN = (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
N_STEPS = 8_000  # approximate number of training steps, in 5 to MAX_EPOCHS epochs
MAX_EPOCHS = 400
BASELINES = ("pair_products", "symmetric_correlators")


def learn(network: str, n_train: int, seed: int, n_largest: int, n_test: int, n_steps: int = N_STEPS) -> Row:  # noqa: PLR0917
    """Test metrics of a network, or of the baselines, after training on n_train configurations."""
    config = NETWORKS.get(network, DEFAULT)
    size = min(n_train, config.train.batch_size)
    epochs = min(MAX_EPOCHS, max(5, math.ceil(n_steps * size / n_train)))
    config = replace(config, seed=seed, train=replace(config.train, epochs=epochs, batch_size=size))
    largest = sampled(replace(config.data, num_train=n_largest, num_val=1_000, num_test=n_test), seed)
    train = select(largest.train, np.arange(n_train))
    val = select(largest.val, np.arange(min(1_000, max(50, n_train // 10))))
    splits = Splits(train, val, unseen_of(largest.test, largest.train))
    row: Row = {"n_test": len(splits.test["spins"])}
    if network != "baselines":
        return row | {network: evaluated(config, trained(config, splits), splits.test)}
    scales = build_model(PROBLEM, config, splits.train)  # for the units of the loss; the network itself is not used
    test = prepare(PROBLEM, config, scales, splits.test)
    predictions = PROBLEM.baselines(config, splits.train, splits.test)
    baselines = {name: predicted_by(scales, {"predictions": predictions[name]}) for name in BASELINES}
    return row | {name: compute_metrics(PROBLEM, config, scales, test, each) for name, each in baselines.items()}


def plot(curves: dict[str, dict[str, np.ndarray]], sizes: list[int]) -> Figure:
    """Mean absolute error and exact fraction against the number of training configurations: seeds and medians."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("mae", "exact_fraction"),
        ("mean absolute error of $E/N$ [J]", "exact fraction"),
        strict=True,
    ):
        for k, (name, metrics) in enumerate(curves.items()):
            values = metrics[key]  # (sizes, seeds)
            style = "--" if name in BASELINES else "-"
            axes.plot(sizes, np.median(values, axis=1), style, color=f"C{k}")
            places = np.repeat(sizes, values.shape[1]) * 1.04 ** (k - 2.5)  # shifted for clarity
            axes.plot(places, values.reshape(-1), "osv^Dx"[k], color=f"C{k}", markersize=4, alpha=0.7, label=name)
        axes.set(xscale="log", xlabel="training configurations", ylabel=label)
    figure.axes[0].set_yscale("log")
    title = "points: seeds; lines: medians; test configurations do not occur in training"
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title=title, fontsize="small", loc="outside upper center", ncols=len(curves))
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    sizes, seeds, n_test = ([10, 100], [1, 2], 500) if study.quick else (list(N_TRAIN), [1, 2, 3, 4, 5], 10_000)
    options = (sizes[-1], n_test, 50) if study.quick else (sizes[-1], n_test)
    cases = [(name, n, seed, *options) for n in reversed(sizes) for seed in seeds for name in (*NETWORKS, "baselines")]
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    for row in study.measure(learn, cases):
        _, _, n, seed, *_ = row["case"]
        found |= {(name, n, seed): row[name] for name in (*NETWORKS, *BASELINES) if name in row}
    curves = {
        name: {
            key: np.array([[found[name, n, s][key] for s in seeds] for n in sizes]) for key in ("mae", "exact_fraction")
        }
        for name in (*NETWORKS, *BASELINES)
    }
    title = f"exact fraction: median of {len(seeds)} seeds (lowest to highest)"
    lines = [f"| {title} | {' | '.join(f'{n:,}' for n in sizes)} |", "|---|" + "---:|" * len(sizes)]
    for name, metrics in curves.items():
        values = metrics["exact_fraction"]
        cells = [
            f"{np.median(v):.3f}" + ("" if v.min() == v.max() else f" ({v.min():.3f} to {v.max():.3f})") for v in values
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    summary = {name: {key: values.tolist() for key, values in c.items()} for name, c in curves.items()}
    study.finish({"n_train": sizes, "seeds": seeds, **summary}, plot(curves, sizes), *lines)


if __name__ == "__main__":
    main()
