"""How much data does an inductive bias save? Error against the size of the training set.

python -m experiments.learning_curves [--quick]

Each network with options that suit it, and least squares on pair products and on symmetric correlators, are trained on
10^2 to 10^5 configurations of the 8 x 8 lattice. Each of three seeds has its own data, weights and batches. To choose
their best epoch, networks also use a validation set of a tenth of the size, but at least 50 and at most 1,000
configurations. Least squares does not need it.
"""

import math
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from engine.prediction import build_network, judge, prepare
from experiments.common import DEFAULT, NETWORKS, Row, Study, evaluated, sampled, trained
from problem import PROBLEM

N_TRAIN = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
N_STEPS = 8_000  # approximately: in at least 5 and at most MAX_EPOCHS epochs
MAX_EPOCHS = 400
BASELINES = ("pair_products", "symmetric_correlators")


def learn(network: str, n_train: int, seed: int, n_test: int, n_steps: int = N_STEPS) -> Row:
    """Test metrics of a network, or of the baselines, after training on n_train configurations."""
    config = NETWORKS.get(network, DEFAULT)
    size = min(n_train, config.train.batch_size)
    epochs = min(MAX_EPOCHS, max(5, math.ceil(n_steps * size / n_train)))
    config = replace(
        config,
        seed=seed,
        train=replace(config.train, epochs=epochs, batch_size=size),
        data=replace(config.data, num_train=n_train, num_val=min(1_000, max(50, n_train // 10)), num_test=n_test),
    )
    splits = sampled(config.data, seed)
    if network != "baselines":
        return {network: evaluated(config, trained(config, splits), splits.test)}
    scales = build_network(PROBLEM, config, splits.train)  # of the loss; the network itself is not used
    test = prepare(PROBLEM, config, scales, splits.test)
    predictions = PROBLEM.baselines(config, splits.train, splits.test)
    return {name: judge(PROBLEM, config, scales, test, predictions[name]) for name in BASELINES}


def plot(curves: dict[str, dict[str, np.ndarray]], sizes: list[int]) -> Figure:
    """Mean absolute error and exact fraction against the number of configurations; bars are standard errors."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("mae", "exact_fraction"),
        ("mean absolute error of $E/N$ [J]", "exact fraction"),
        strict=True,
    ):
        for k, (name, metrics) in enumerate(curves.items()):
            values = metrics[key]  # (sizes, seeds)
            error = values.std(axis=1, ddof=1) / math.sqrt(values.shape[1]) if values.shape[1] > 1 else None
            style = "--" if name in BASELINES else "-"
            axes.errorbar(
                sizes, values.mean(axis=1), error, fmt="osv^Dx"[k] + style, capsize=2, markersize=4, label=name
            )
        axes.set(xscale="log", xlabel="training configurations", ylabel=label)
    figure.axes[0].set_yscale("log")
    figure.axes[1].legend(fontsize="small", loc="lower right")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    sizes, seeds, n_test = ([100, 300], [1], 200) if study.quick else (list(N_TRAIN), [1, 2, 3], 5_000)
    options = (n_test, 300) if study.quick else (n_test,)
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
    lines = [f"| exact fraction | {' | '.join(f'{n:,}' for n in sizes)} |", "|---|" + "---:|" * len(sizes)]
    for name, metrics in curves.items():
        lines.append(f"| {name} | {' | '.join(f'{v:.3f}' for v in metrics['exact_fraction'].mean(axis=1))} |")
    summary = {name: {key: values.mean(axis=1).tolist() for key, values in c.items()} for name, c in curves.items()}
    study.finish({"n_train": sizes, **summary}, plot(curves, sizes), *lines)


if __name__ == "__main__":
    main()
