"""Energy, specific heat, |m|, susceptibility and Binder cumulant against temperature, compared with exact results.

python -m experiments.thermodynamics [--quick]

The exact results are Kaufman's for each finite lattice, and Onsager's and Yang's for the infinite one. At each
temperature, 2048 independent chains are measured after every step, which consists of L / 2 sweeps for L <= 16, and of a
sweep and a cluster on larger lattices. Errors are those of the jackknife over chains, so they contain the correlations
within a chain.

At a few temperatures, this is compared with the method of the data sets, one configuration of each chain after many
sweeps, by the errors after equal times. There, the energy is also predicted by a network: that of the preset `exact`,
trained on 8 x 8 lattices only.
"""

import functools
import time

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from config import PRESETS
from engine.learning.prediction import predict
from engine.learning.standardized import Standardized
from experiments.common import Row, Study, sampled, trained
from ising import exact, lattice, multispin
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from ising.statistics import jackknife
from problem import PROBLEM

Floats = NDArray[np.float64]

N_CHAINS = 2048
# The observables and their axis labels
LABELS = {
    "energy": "$E/N$ [J]",
    "specific_heat": "$C/N$ [$k_B$]",
    "magnetization": "$|m|$",
    "susceptibility": r"$\chi/N$ of $|m|$ [1/J]",
    "binder": "$U_4$",
}


@functools.cache
def network() -> Standardized:
    """The network of the preset `exact`, trained once per process."""
    config = PRESETS["exact"]
    return trained(config, sampled(config.data, config.seed))


def observe(size: int, temperature: float, n_steps: int) -> Row:
    """Each observable with its standard error, from n_steps measurements of each chain."""
    seed = np.random.SeedSequence([size, round(1e4 * temperature)])
    clusters = size > 16  # on smaller lattices, they take longer than the sweeps that they save
    start, every = equilibration_sweeps(size, clusters=clusters), 1 if clusters else size // 2
    found = multispin.series(
        size, np.full(N_CHAINS, temperature), n_steps, seed, 1, every=every, start=start, clusters=clusters
    )
    return observables(size, temperature, found.energies, found.magnetizations / size**2)


def observables(size: int, temperature: float, energies: NDArray[np.integer], m: Floats) -> Row:
    """Each observable with its standard error. energies, in J, and m, per spin: (independent chains, steps)."""
    n_sites, middle = size**2, float(energies.mean())
    # All observables are functions of moments. These are averaged over each chain first, so the jackknife is fast.
    e, m_squared = energies - middle, m * m
    e1, e2 = e.mean(axis=1), (e * e).mean(axis=1)
    m1, m2, m4 = np.abs(m).mean(axis=1), m_squared.mean(axis=1), (m_squared * m_squared).mean(axis=1)
    return {
        "energy": jackknife(lambda e1: (middle + float(e1.mean())) / n_sites, e1),
        "specific_heat": jackknife(
            lambda e1, e2: float(e2.mean() - e1.mean() ** 2) / (n_sites * temperature**2), e1, e2
        ),
        "magnetization": jackknife(lambda m1: float(m1.mean()), m1),
        "susceptibility": jackknife(lambda m1, m2: n_sites * float(m2.mean() - m1.mean() ** 2) / temperature, m1, m2),
        "binder": jackknife(lambda m2, m4: 1 - float(m4.mean()) / (3 * float(m2.mean()) ** 2), m2, m4),
    }


def compare(size: int, temperature: float, n_steps: int, n: int) -> Row:
    """Error of one configuration per chain / error of `observe` after the same time. Errors of predicted energies."""
    begin = time.perf_counter()
    of_series = observe(size, temperature, n_steps)
    middle = time.perf_counter()
    seed = np.random.SeedSequence([size, round(1e4 * temperature), 1])
    spins = multispin.sample(size, np.full(n, temperature), equilibration_sweeps(size), seed, 1)
    energies = lattice.energy(spins)
    of_configurations = observables(size, temperature, energies[:, None], lattice.magnetization(spins)[:, None])
    ratio = np.sqrt((time.perf_counter() - middle) / (middle - begin))
    columns = {"spins": spins[:1000], "temperatures": np.full(len(spins[:1000]), temperature)}
    predicted = size**2 * predict(PROBLEM, PRESETS["exact"], network(), columns)
    return {
        "gain": {name: float(ratio * of_configurations[name][1] / of_series[name][1]) for name in LABELS},
        "predicted_energy": float(predicted.mean()) / size**2,
        "largest_error": float(np.abs(predicted - energies[:1000]).max()),
    }


def plot(rows: list[Row], compared: list[Row], sizes: list[int]) -> Figure:
    """All observables with exact curves, and deviations of the energy from the exact one in standard errors."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    *panels, last = figure.subplots(2, 3).flat
    fine = np.linspace(0.95, 4.05, 400)
    for k, size in enumerate(sizes):
        colour = f"C{k}"
        mine = [row for row in rows if row["case"][1] == size]
        t = np.array([row["case"][2] for row in mine])
        for axes, name in zip(panels, LABELS, strict=True):
            value, error = np.array([row[name] for row in mine]).T
            axes.errorbar(t, value, error, fmt=".", ms=4, capsize=2, color=colour, label=f"L = {size}")
        for axes, curve in zip(panels, exact.kaufman(fine, size), strict=False):
            axes.plot(fine, curve, color=colour, linewidth=0.8)
        points = [(row["case"][2], row["predicted_energy"]) for row in compared if row["case"][1] == size]
        panels[0].plot(*zip(*points, strict=True), "x", color=colour)
        value, error = np.array([row["energy"] for row in mine]).T
        last.plot(t, (value - exact.kaufman(t, size)[0]) / error, ".", color=colour)
    panels[0].plot(fine, exact.onsager_energy(fine), "k--", linewidth=0.8, label="Onsager")
    panels[0].plot([], [], "k-", linewidth=0.8, label="Kaufman")
    panels[0].plot([], [], "kx", label="predicted by the network")
    panels[2].plot(fine, exact.yang_magnetization(fine), "k--", linewidth=0.8, label="Yang")
    last.axhspan(-2, 2, color="0.9")
    labels = (*LABELS.values(), "energy $-$ exact [standard errors]")
    for axes, label in zip((*panels, last), labels, strict=True):
        axes.axvline(T_CRITICAL, color="0.5", linestyle=":")
        axes.set(xlabel="temperature [J / $k_B$]", ylabel=label)
    panels[3].set_yscale("log")
    panels[0].legend(fontsize="x-small", loc="lower right")
    panels[2].legend(fontsize="small")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    n_steps = {4: 200, 8: 200} if study.quick else {8: 5000, 16: 3000, 32: 1000, 64: 500, 128: 200}
    sizes, n_temperatures, n_spins = [*n_steps], 5 if study.quick else 31, 2**17 if study.quick else 2**23
    temperatures = [round(float(t), 4) for t in np.linspace(1, 4, n_temperatures)]
    largest_first = sizes[::-1]
    rows = study.measure(observe, [(size, t, n_steps[size]) for size in largest_first for t in temperatures])
    chosen = temperatures if study.quick else [1.0, 1.8, 2.2, 2.3, 2.6, 4.0]
    cases = [(size, t, n_steps[size], max(N_CHAINS, n_spins // size**2)) for size in largest_first for t in chosen]
    compared = study.measure(compare, cases)
    gained = " | ".join(f"gain: {name}" for name in LABELS)
    lines = [f"| | chi2/dof of E | of C | {gained} | largest error of the network [J] |"]
    lines += ["|---|---:|---:|" + "---:|" * (len(LABELS) + 1)]
    summary: Row = {}
    for size in sizes:
        mine = [row for row in rows if row["case"][1] == size]
        truth = exact.kaufman(np.array([row["case"][2] for row in mine]), size)
        chi2 = []
        for name, correct in zip(LABELS, truth, strict=False):
            value, error = np.array([row[name] for row in mine]).T
            chi2.append(float((((value - correct) / error) ** 2).mean()))
        pairs = [row for row in compared if row["case"][1] == size]
        gains = {name: [row["gain"][name] for row in pairs] for name in LABELS}
        worst = max(row["largest_error"] for row in pairs)
        summary[str(size)] = {"chi2": chi2, "gains": gains, "largest_error": worst}
        ranges = " | ".join(f"{np.median(each):.1f} ({min(each):.1f} to {max(each):.1f})" for each in gains.values())
        lines.append(f"| L = {size} | {chi2[0]:.2f} | {chi2[1]:.2f} | {ranges} | {worst:.2g} |")
    study.finish(summary, plot(rows, compared, sizes), *lines)


if __name__ == "__main__":
    main()
