# Experiment: yours, to replace.
"""The figures of an Ising run. As a script, this file plots the figures of a saved run of any problem.

python plots.py checkpoints/myrun
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from config import DataConfig, ExperimentConfig
from engine.interface import Columns
from engine.interface.generic_figures import Figure, parity
from engine.run_folder.figures_of_run import main
from ising.exact import T_CRITICAL, phase_accuracy
from ising.statistics import temperature_bins
from task import bayes_log_odds

Floats = NDArray[np.floating]


def figures(config: ExperimentConfig, arrays: Columns) -> dict[str, Figure]:
    """The figures of a run or of an evaluation, by name. An evaluation has no example configurations."""
    true, predicted, temperatures = arrays["targets"], arrays["predictions"], arrays["temperatures"]
    found: dict[str, Figure] = {}
    if config.task == "phase":
        # For a run, Bayes' rule uses the temperatures of the training split; for an evaluation, those of the new data.
        bayes = arrays["baseline_bayes"] if "baseline_bayes" in arrays else bayes_log_odds(arrays)
        log_odds = {"network": predicted, "Bayes": bayes}
        found["phase_by_temperature"] = phase_by_temperature(temperatures, log_odds, bayes_ceiling(config.data))
    else:
        found["error_by_temperature"] = error_by_temperature(temperatures, predicted - true)
        found["parity"] = parity(true, predicted, "$E / N$", "J")
    if "example_spins" in arrays:
        found["configurations"] = configurations(arrays["example_spins"], arrays["example_temperatures"])
    return found


def error_by_temperature(temperatures: Floats, errors: Floats) -> Figure:
    """Plot the mean absolute error of the energy per spin, and its standard error, by temperature: (N,), (N,).

    The temperatures are divided into bins.
    """
    bins = temperature_bins(temperatures)
    centres = [temperatures[chosen].mean() for chosen in bins]
    means = [np.abs(errors[chosen]).mean() for chosen in bins]
    # A bin with one configuration has no standard error, and is plotted without an error bar.
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


def bayes_ceiling(data: DataConfig) -> tuple[Floats, Floats] | None:
    """Compute the exact fraction of correct phases of the best classifier at 1000 temperatures, for sizes up to 8 x 8.

    Returns:
        Temperatures and shares; None if the lattices are larger than 8 x 8, or if the data come from a file.
    """
    if data.lattice_size > 8 or data.file is not None:
        return None
    temperatures = np.linspace(data.temp_min, data.temp_max, 1000)  # equally likely
    return temperatures, phase_accuracy(temperatures, temperatures, data.lattice_size)


def phase_by_temperature(
    temperatures: Floats,
    log_odds: Mapping[str, Floats],
    ceiling: tuple[Floats, Floats] | None = None,
) -> Figure:
    """Plot the predictions of classifiers by temperature: `log_odds` (N,) of T < T_c by the name of the classifier.

    The left panel shows the mean probability, and the right panel the fraction of correct phases, both with standard
    errors in bins of temperature. The right panel also shows `ceiling`, the result of bayes_ceiling.
    """
    bins = temperature_bins(temperatures)
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
    for axes, label in ((left, "mean $P(T < T_c)$"), (right, "fraction of correct phases")):
        if temperatures.min() < T_CRITICAL < temperatures.max():
            axes.axvline(T_CRITICAL, color="0.5", linestyle=":", label=f"$T_c$ = {T_CRITICAL:.3f}")
        axes.set(xlabel="temperature [J / $k_B$]", ylabel=label)
        axes.legend()
    return figure


def configurations(spins: NDArray[np.int8], temperatures: Floats) -> Figure:
    """Plot example configurations, one row per range of temperatures: spins (rows, n, L, L), T (rows, n)."""
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


if __name__ == "__main__":
    main()
