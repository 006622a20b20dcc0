"""Why are the curves P(T) of the convolutional classifier less steep than those of Bayes' rule on large lattices?

python -m experiments.readout [--quick]

The log-odds of the classifier are a linear function, the readout, of its channels averaged over the lattice. So is the
energy, and Bayes' rule needs nothing else. The readout could therefore be nearly as good as Bayes' rule. Classifiers
are trained as in label_shift.py, and with one change at a time. Their log-odds for new configurations are compared with
those of Bayes' rule:

- The slope of the log-odds against those of Bayes' rule shows how steep P(T) is.
- The scatter is their standard deviation around this line. It comes from functions of the spins other than the energy.
- The loss is the mean cross-entropy.

Slope and scatter are measured where Bayes' rule is uncertain, at log-odds between -2 and 2. Log-odds that are linear in
the energy cannot agree with those of Bayes' rule at all temperatures. The reference is therefore logistic regression on
the energy. Its slope is above 1.

Readouts are also fitted by maximum likelihood, to the channels of trained networks and of untrained ones. All
classifiers of one size and seed have the same data. The networks are trained on frequencies of patterns (channels.py).
"""

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from engine.interface import Splits
from experiments.channels import Floats, fit_readout, frequencies, train_cnn, whitened
from experiments.classifiers import NETWORKS, between
from experiments.common import Row, Study, case_seed
from ising import exact, lattice
from ising.exact import T_CRITICAL
from task import TASKS

BEFORE, MENDED = (NETWORKS[name][1] for name in ("cnn", "cnn without weight decay"))
STANDARDISED = "standardised channels"
TRAININGS = {
    "as before": BEFORE,
    "4 times the epochs": replace(BEFORE, epochs=16),
    "learning rate 0.02": replace(BEFORE, lr=0.02),
    "batches of 128, 4 times the epochs": replace(BEFORE, epochs=16, batch_size=128),
    STANDARDISED: BEFORE,
    "without weight decay": MENDED,
    "without weight decay, 4 times the epochs": replace(MENDED, epochs=16),
}
REFERENCE = "logistic regression on the energy"
PLOTTED = ("as before", "without weight decay", "as before, readout fitted", REFERENCE)
TABLES = {
    "relative slope": ("slope / slope of the reference", ".3f"),
    "scatter": ("scatter of the log-odds", ".3f"),
    "loss": ("cross-entropy minus that of Bayes' rule [nats]", ".5f"),
}
NEAR = 2.0  # largest log-odds of Bayes' rule at which slope and scatter are measured
BINS = np.linspace(-3, 3, 13)  # of these log-odds, in the figure


def compare(odds: Floats, bayes: Floats, labels: Floats) -> Row:
    """Compare log-odds (N,) with those of Bayes' rule. Loss and accuracy are differences from it."""
    near = np.abs(bayes) < NEAR
    slope, offset = np.polyfit(bayes[near], odds[near], 1)
    loss, bayes_loss = (np.logaddexp(0, each) - labels * each for each in (odds, bayes))
    right, bayes_right = ((each > 0) == (labels > 0) for each in (odds, bayes))
    return {
        "slope": float(slope),
        "scatter": float((odds - slope * bayes - offset)[near].std(ddof=2)),
        "loss": float((loss - bayes_loss).mean()),
        "accuracy": float(right.mean() - bayes_right.mean()),
    }


def learn(size: int, seed: int, n: int, n_test: int) -> Row:
    """Train with each of TRAININGS and fit readouts, all on the same data. Compare them with Bayes' rule."""
    case = case_seed(size, seed)
    low, high = T_CRITICAL - 8 / size, T_CRITICAL + 8 / size  # as in label_shift.py
    numbers = {"num_train": n, "num_val": 2000, "num_test": n_test}
    sampled = between(low, high, size, case, sampler="multispin_wolff", **numbers)
    splits = Splits(*({**each, "frequencies": frequencies(each["spins"])} for each in sampled))
    (f, e, y), _, (f_test, e_test, y_test) = (
        (each["frequencies"], lattice.energy(each["spins"])[:, None].astype(float), TASKS["phase"].target(each))
        for each in splits
    )
    found = {
        name: train_cnn(training, case, splits, standardised=name == STANDARDISED)
        for name, training in TRAININGS.items()
    }
    odds = {name: each.log_odds for name, each in found.items()}
    _, untrained, trained = found["as before"]
    odds["as before, readout fitted"] = fit_readout(f @ trained, y, f_test @ trained)
    few, y_few = f[: n // 4], y[: n // 4]
    odds["as before, readout fitted to a quarter"] = fit_readout(few @ trained, y_few, f_test @ trained)
    odds["untrained, readout fitted"] = fit_readout(f @ untrained, y, f_test @ untrained)
    odds[REFERENCE] = fit_readout(e, y, e_test)
    bayes = exact.phase_log_odds(e_test[:, 0], splits.train["temperatures"], size)
    compared = {name: compare(each, bayes, y_test) for name, each in odds.items()}
    for each in compared.values():
        each["relative slope"] = each["slope"] / compared[REFERENCE]["slope"]
    x, x_test, condition = whitened(f @ trained, f_test @ trained)
    residual = e_test - x_test @ np.linalg.lstsq(x, e)[0]
    bins = [np.digitize(bayes, BINS) == k for k in range(1, len(BINS))]
    return {
        "compared": compared,
        "conditions": [whitened(f @ untrained, f_test @ untrained)[2], condition],
        "unexplained": float(residual.var() / e_test.var()),
        "curves": {
            name: [[float(measure((odds[name] - bayes)[each])) for each in bins] for measure in (np.mean, np.std)]
            for name in PLOTTED
        },
    }


def mean_and_error(values: Floats) -> tuple[float, float]:
    """Mean and standard error over the seeds."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def plot(found: dict[tuple[str, int], dict[str, Floats]], sizes: list[int], curves: dict[str, Floats]) -> Figure:
    """Log-odds minus those of Bayes' rule at the largest size; relative slope and scatter against L."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, *others = figure.subplots(1, 3)
    for k, name in enumerate(PLOTTED):
        style: dict[str, Any] = {"fmt": "os^D"[k] + "-", "capsize": 2, "markersize": 4, "label": name}
        left.errorbar((BINS[1:] + BINS[:-1]) / 2 + 0.04 * (k - 1.5), *curves[name], **style)  # shifted for clarity
        for axes, key in zip(others, ("relative slope", "scatter"), strict=True):
            means, errors = zip(*(mean_and_error(found[name, size][key]) for size in sizes), strict=True)
            axes.errorbar(np.array(sizes) + 0.4 * (k - 1.5), means, errors, **style)
    left.axhline(0, color="0.5", linestyle=":")
    left.set(xlabel="log-odds of Bayes' rule", ylabel="log-odds minus those of Bayes' rule")
    left.set_title(f"L = {sizes[-1]}, one seed: mean and standard deviation", fontsize="medium")
    left.legend(fontsize="x-small")
    for axes, key in zip(others, ("relative slope", "scatter"), strict=True):
        axes.set(xticks=sizes, xlabel="$L$", ylabel=TABLES[key][0])
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    sizes, seeds, numbers = [16, 32, 48, 64], [1, 2, 3, 4, 5], (15_000, 20_000)
    if study.quick:
        sizes, seeds, numbers = [12], [1, 2], (600, 2000)
    rows = study.measure(learn, [(size, seed, *numbers) for size in reversed(sizes) for seed in seeds])
    by_size = {size: [row for row in rows if row["case"][1] == size] for size in sizes}
    found = {  # arrays over the seeds
        (name, size): {key: np.array([row["compared"][name][key] for row in by_size[size]]) for key in keys}
        for name, keys in rows[0]["compared"].items()
        for size in sizes
    }
    lines = [
        "| L | condition number, untrained | trained | 1 - R² of the energy | slope of the reference |",
        "|---:|---:|---:|---:|---:|",
    ]
    for size, mine in by_size.items():
        untrained, trained = np.exp(np.log([row["conditions"] for row in mine]).mean(axis=0))
        unexplained = max(row["unexplained"] for row in mine)
        slope, error = mean_and_error(found[REFERENCE, size]["slope"])
        lines.append(f"| {size} | {untrained:.1e} | {trained:.1e} | {unexplained:.0e} | {slope:.3f} ± {error:.3f} |")
    for key, (title, style) in TABLES.items():
        lines += ["", f"| {title} | {' | '.join(f'L = {size}' for size in sizes)} |", f"|---|{'---:|' * len(sizes)}"]
        for name in rows[0]["compared"]:
            measured = [mean_and_error(found[name, size][key]) for size in sizes]
            cells = [" ± ".join(f"{number:{style}}" for number in each) for each in measured]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    summary = {
        f"{name}, L = {size}": {key: mean_and_error(values) for key, values in each.items()}
        for (name, size), each in found.items()
    }
    study.finish(summary, plot(found, sizes, rows[0]["curves"]), *lines)


if __name__ == "__main__":
    main()
