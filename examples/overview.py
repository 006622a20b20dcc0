"""The figure at the top of the README: sample, train, predict, compare with exact results.

python -m examples.overview [FILE]  # docs/figures/overview.png by default
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engine.datasets.splits import load_data
from engine.learning.prediction import build_model, predict
from ising import exact, lattice, metropolis, multispin
from problem import PROBLEM
from trainer import Trainer
from utils import print_line

L, N_CHAINS, N_SHOWN = 32, 200, 12  # lattice size, chains per temperature, and those in the middle panel
TEMPERATURES = np.array([1.5, 1.8, 2.0, 2.1, 2.2, exact.T_CRITICAL, 2.35, 2.5, 2.7, 3.0, 3.4, 3.9])  # in J / k_B
SHOWN = (2, 5, 9)  # the temperatures of the left panel
BLUE, ORANGE = "#0072B2", "#D55E00"  # can be distinguished with any colour vision

Floats = NDArray[np.float64]


def measure() -> tuple[NDArray[np.int8], Floats]:
    """Train on 8x8 and predict 32x32: spins (temperatures, chains, L, L) and predicted energies per spin."""
    config = PROBLEM.presets["exact"]
    data = load_data(PROBLEM, config)
    model = build_model(PROBLEM, config, data.train)
    Trainer(PROBLEM, config, model, data.train, data.val).fit()
    temperatures = np.repeat(TEMPERATURES, N_CHAINS)
    spins = multispin.sample(L, temperatures, metropolis.equilibration_sweeps(L), seed=1)
    predictions = predict(PROBLEM, config, model, {"spins": spins, "temperatures": temperatures})
    return spins.reshape(len(TEMPERATURES), N_CHAINS, L, L), predictions.reshape(len(TEMPERATURES), N_CHAINS)


def plot(spins: NDArray[np.int8], predictions: Floats) -> Figure:
    """Three panels: configurations, predicted against true energies, mean energies against exact ones."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    samples, network, theory = figure.subfigures(1, 3, squeeze=False, width_ratios=(0.6, 1, 1.2)).flat
    samples.suptitle("1. Sample\nconfigurations")
    network.suptitle("2. Train a network on 8x8,\npredict the energies of 32x32")
    theory.suptitle("3. Compare the predictions\nwith exact results")
    for axes, k in zip(samples.subplots(3, 1), SHOWN, strict=True):
        axes.imshow(spins[k, 0], cmap="gray", vmin=-1, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(f"T = {TEMPERATURES[k]:.2f}")
    plot_predictions(network.subplots(), lattice.energy(spins) / L**2, predictions)
    energy, deviation = theory.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    plot_means(energy, deviation, predictions)
    return figure


def plot_predictions(axes: Axes, energies: Floats, predictions: Floats) -> None:
    """Predicted against true energies per spin, both (temperatures, chains)."""
    worst = L**2 * np.abs(predictions - energies).max()
    few = (slice(None), slice(N_SHOWN))
    axes.plot([-2, -0.4], [-2, -0.4], color="0.6", linewidth=1, label="predicted = true")
    axes.plot(energies[few].ravel(), predictions[few].ravel(), ".", color=ORANGE, label="32x32 configurations")
    axes.set(xlabel="true energy per spin [J]", ylabel="predicted energy per spin [J]", aspect="equal")
    axes.legend(loc="upper left", frameon=False)
    text = f"{energies.size:,} configurations.\nLargest error of a total\nenergy: {worst:.2f} J\n(levels are 4 J apart)"
    axes.text(0.97, 0.04, text, transform=axes.transAxes, ha="right", va="bottom")


def plot_means(energy: Axes, deviation: Axes, predictions: Floats) -> None:
    """Means of the predictions at each temperature and Kaufman's exact energies, and their difference."""
    standard_errors = predictions.std(axis=1, ddof=1) / N_CHAINS**0.5
    grid = np.linspace(1.4, 4, 200)
    energy.plot(grid, exact.kaufman(grid, L)[0], color="black", linewidth=1, label="exact (Kaufman 1949)")
    energy.errorbar(
        TEMPERATURES,
        predictions.mean(axis=1),
        standard_errors,
        fmt="o",
        markersize=4,
        color=BLUE,
        label=f"network, mean of {N_CHAINS}",
    )
    energy.set(ylabel="mean energy per spin [J]")
    energy.legend(frameon=False)
    z = (predictions.mean(axis=1) - exact.kaufman(TEMPERATURES, L)[0]) / standard_errors
    deviation.axhline(0, color="black", linewidth=1)
    deviation.errorbar(TEMPERATURES, z, 1, fmt="o", markersize=4, color=BLUE)
    deviation.set(xlabel="temperature T [J / $k_B$]", ylabel="deviation /\nstandard error", ylim=(-3.5, 3.5))
    for axes in (energy, deviation):
        axes.axvline(exact.T_CRITICAL, color="0.6", linestyle=":")
    energy.annotate("$T_c$", (exact.T_CRITICAL, -0.62), xytext=(4, 0), textcoords="offset points", color="0.4")


if __name__ == "__main__":
    torch.set_num_threads(1)
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "figures" / "overview.png"
    plot(*measure()).savefig(file, dpi=110)
    print_line(str(file))
