"""Figures: arrays in, Figure out; as a script, the figures of one run.

python plots.py checkpoints/myrun
"""

import io
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ising.exact import T_CRITICAL, phase_accuracy
from options import Parser

Floats = NDArray[np.floating]


ENERGY_LOSS = "mean squared error / variance of $E / N$"
PHASE_LOSS = "cross-entropy [nats]"


def training_curves(rows: Sequence[Mapping[str, float]], best_epoch: int, loss_name: str = ENERGY_LOSS) -> Figure:
    """Loss and learning rate against the epoch, with the best epoch marked; `rows` as in epoch_metrics.json."""
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(6, 5), layout="constrained")
    loss, rate = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    loss.plot(epochs, [row["train_loss"] for row in rows], ".-", markersize=4, label="training")
    loss.plot(epochs, [row["val_loss"] for row in rows], ".-", markersize=4, label="validation")
    loss.axvline(best_epoch, color="0.5", linestyle=":", label=f"best, epoch {best_epoch}")
    loss.set(yscale="log", ylabel=loss_name)
    loss.legend()
    rate.plot(epochs, [row["learning_rate"] for row in rows], ".-", markersize=4, color="0.3")
    rate.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def parity(true: Floats, predicted: Floats) -> Figure:
    """Predicted against true energy per spin, (N,) each, and the distribution of the error."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    scatter, histogram = figure.subplots(1, 2)
    scatter.plot(true, predicted, ".", markersize=3, alpha=0.4)
    margin = 0.1
    ends = (min(true.min(), predicted.min()) - margin, max(true.max(), predicted.max()) + margin)
    scatter.plot(ends, ends, color="black", linewidth=1, label="predicted = true")
    scatter.set(xlabel="true $E / N$ [J]", ylabel="predicted $E / N$ [J]", xlim=ends, ylim=ends, aspect="equal")
    scatter.xaxis.set_major_locator(MaxNLocator(6))
    scatter.yaxis.set_major_locator(MaxNLocator(6))
    scatter.legend()
    errors = predicted.astype(np.float64) - true  # in float32, errors that are nearly equal leave no room for bins
    histogram.hist(errors, bins=int(np.clip(len(true) // 10, 10, 60)), zorder=2)
    histogram.axvline(0, color="black", linewidth=1, zorder=1)
    histogram.set(xlabel="predicted - true $E / N$ [J]", ylabel="configurations")
    return figure


def error_by_temperature(temperatures: Floats, errors: Floats, n_bins: int = 20) -> Figure:
    """Mean absolute error of the energy per spin against temperature, (N,) each, with its standard error.

    In bins of equally many configurations, ten at least if there are so many.
    """
    bins = np.array_split(np.argsort(temperatures), int(np.clip(len(errors) // 10, 1, n_bins)))
    centres = [temperatures[chosen].mean() for chosen in bins]
    means = [np.abs(errors[chosen]).mean() for chosen in bins]
    # The standard error of one configuration is unknown: it gets no bar.
    deviations = [np.abs(errors[chosen]).std(ddof=1) if len(chosen) > 1 else np.nan for chosen in bins]
    standard_errors = deviations / np.sqrt([len(chosen) for chosen in bins])
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    label = "mean, with standard error"
    axes.errorbar(centres, means, yerr=standard_errors, fmt="o", markersize=4, capsize=2, label=label)
    if temperatures.min() < T_CRITICAL < temperatures.max():
        axes.axvline(T_CRITICAL, color="0.5", linestyle=":", label=f"$T_c$ = {T_CRITICAL:.3f}")
    axes.set(xlabel="temperature [J / $k_B$]", ylabel="mean absolute error of $E / N$ [J]", ylim=(0, None))
    axes.legend()
    return figure


def bayes_ceiling(data: Mapping[str, Any]) -> tuple[Floats, Floats] | None:
    """Temperatures, and the share of right answers of the best classifier there: exact, for lattices up to 8 x 8.

    `data` is that section of config.json; None if the configurations are larger, or not drawn by this program.
    """
    if data["lattice_size"] > 8 or data["file"] is not None:
        return None
    temperatures = np.linspace(data["temp_min"], data["temp_max"], 1000)  # each as likely as any other
    return temperatures, phase_accuracy(temperatures, temperatures, data["lattice_size"])


def phase_by_temperature(
    temperatures: Floats,
    log_odds: Mapping[str, Floats],
    ceiling: tuple[Floats, Floats] | None = None,
    n_bins: int = 20,
) -> Figure:
    """What classifiers say of the phase, by temperature: `log_odds` (N,) that T < T_c by the name of the classifier.

    Left the mean probability, right the share of right answers, each with its standard error, in bins as above; and the
    `ceiling` of bayes_ceiling.
    """
    bins = np.array_split(np.argsort(temperatures), int(np.clip(len(temperatures) // 10, 1, n_bins)))
    centres = [temperatures[chosen].mean() for chosen in bins]
    sizes = np.array([len(chosen) for chosen in bins])
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (name, odds) in enumerate(log_odds.items()):
        probability = 1 / (1 + np.exp(-np.clip(odds.astype(np.float64), -500, 500)))
        correct = (odds > 0) == (temperatures < T_CRITICAL)
        for axes, values in ((left, probability), (right, correct)):
            means = np.array([values[chosen].mean() for chosen in bins])
            errors = np.array([values[chosen].std() for chosen in bins]) / np.sqrt(np.maximum(sizes - 1, 1))
            axes.errorbar(centres, means, yerr=errors, fmt="ox+"[k % 3], markersize=4, capsize=2, label=name)
    if ceiling is not None:
        right.plot(*ceiling, color="black", linewidth=0.8, label="Bayes, exact")
    for axes, label in ((left, "mean $P(T < T_c)$"), (right, "share of right answers")):
        if temperatures.min() < T_CRITICAL < temperatures.max():
            axes.axvline(T_CRITICAL, color="0.5", linestyle=":", label=f"$T_c$ = {T_CRITICAL:.3f}")
        axes.set(xlabel="temperature [J / $k_B$]", ylabel=label)
        axes.legend()
    return figure


def configurations(spins: NDArray[np.int8], temperatures: Floats) -> Figure:
    """Example configurations, a row for each neighbourhood in T: spins (rows, n, L, L), T (rows, n)."""
    n_rows, n_columns = temperatures.shape
    figure = Figure(figsize=(max(4, 1.8 * n_columns), 2.1 * n_rows), layout="constrained")
    for axes, lattice, temperature in zip(
        figure.subplots(n_rows, n_columns, squeeze=False).flat,
        spins.reshape(-1, *spins.shape[2:]),
        temperatures.flat,
        strict=True,
    ):
        axes.imshow(lattice, cmap="gray", vmin=-1, vmax=1)
        axes.set_title(f"T = {temperature:.2f} = {temperature / T_CRITICAL:.2f} $T_c$", fontsize=9)
        axes.set(xticks=[], yticks=[])
    figure.suptitle("test configurations, from cold to hot (white: up, black: down)", fontsize=10)
    return figure


def draw_run(folder: Path) -> list[Path]:
    """Draw the figures of a finished run from its files into its folder `figures`; return their paths."""
    rows = json.loads((folder / "epoch_metrics.json").read_text())
    results = json.loads((folder / "results.json").read_text())
    data = json.loads((folder / "config.json").read_text())["data"]
    with np.load(io.BytesIO((folder / "predictions.npz").read_bytes())) as arrays:
        true, predicted, temperatures = arrays["targets"], arrays["predictions"], arrays["temperatures"]
        if "accuracy" in results["test"]:
            answers = {"network": predicted, "Bayes": arrays["baseline_bayes"]}
            figures = {
                "training_curves": training_curves(rows, results["best_epoch"], PHASE_LOSS),
                "phase_by_temperature": phase_by_temperature(temperatures, answers, bayes_ceiling(data)),
            }
        else:
            figures = {
                "training_curves": training_curves(rows, results["best_epoch"]),
                "parity": parity(true, predicted),
                "error_by_temperature": error_by_temperature(temperatures, predicted - true),
            }
        figures["configurations"] = configurations(arrays["example_spins"], arrays["example_temperatures"])
    (folder / "figures").mkdir(exist_ok=True)
    paths = [folder / "figures" / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=120)
    return paths


def main() -> None:
    parser = Parser(prog="plots.py", description="Draw the figures of a finished run into its folder.")
    parser.add_argument("run", type=Path, help="the run's folder, such as checkpoints/myrun")
    folder = parser.parse_args().run
    try:
        paths = draw_run(folder)
    except OSError as error:
        parser.error(f"{folder} is not the folder of a finished run: {error}")
    except (ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        parser.exit(3, f"plots.py: error: {folder} holds a damaged file ({error}): run it again with --overwrite\n")
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    main()
