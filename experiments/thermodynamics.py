"""Energy, specific heat, |m|, susceptibility and Binder cumulant against temperature, compared with exact results.

python -m experiments.thermodynamics [--quick]

The exact results are Kaufman's for each finite lattice, and Onsager's and Yang's for the infinite one. The energy and
the specific heat are also computed from the energies that a network predicts: that of the preset `exact`, trained on
8 x 8 lattices only.
"""

import functools

import numpy as np
from matplotlib.figure import Figure

from config import PRESETS
from engine.prediction import Standardized, predict
from experiments.common import Row, Study, sampled, trained
from ising import exact, lattice, multispin, statistics
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from problem import PROBLEM

# The observables and their axis labels. The first two are also computed from the energies that the network predicts.
LABELS = {
    "energy": "$E/N$ [J]",
    "specific_heat": "$C/N$ [$k_B$]",
    "magnetization": "$|m|$",
    "susceptibility": r"$\chi/N$ of $|m|$ [1/J]",
    "binder": "$U_4$",
}
ENERGETIC = ("energy", "specific_heat", "network_energy", "network_specific_heat")


@functools.cache
def network() -> Standardized:
    """The network of the preset `exact`, trained once per process."""
    config = PRESETS["exact"]
    return trained(config, sampled(config.data, config.seed))


def observe(size: int, temperature: float, n: int) -> Row:
    """Each observable with its standard error, from n independent configurations."""
    temperatures, n_sites = np.full(n, temperature), size**2
    seed = np.random.SeedSequence([size, round(1e4 * temperature)])
    spins = multispin.sample(size, temperatures, equilibration_sweeps(size), seed, 1)
    m = lattice.magnetization(spins)
    row = {
        "magnetization": statistics.jackknife(lambda m: float(np.abs(m).mean()), m),
        "susceptibility": statistics.jackknife(lambda m: statistics.susceptibility(m, temperature, n_sites), m),
        "binder": statistics.jackknife(statistics.binder_cumulant, m),
    }
    columns = {"spins": spins, "temperatures": temperatures}
    predicted = n_sites * predict(PROBLEM, PRESETS["exact"], network(), columns)
    for prefix, energies in (("", lattice.energy(spins).astype(np.float64)), ("network_", predicted)):
        row[f"{prefix}energy"] = statistics.jackknife(lambda e: float(e.mean()) / n_sites, energies)
        heat = statistics.jackknife(lambda e: statistics.specific_heat(e, temperature, n_sites), energies)
        row[f"{prefix}specific_heat"] = heat
    return row


def plot(rows: list[Row], sizes: list[int]) -> Figure:
    """All observables with exact curves, and deviations of the predicted from the exact energy in standard errors."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    *panels, last = figure.subplots(2, 3).flat
    fine = np.linspace(0.95, 4.05, 400)
    for k, size in enumerate(sizes):
        colour = f"C{k}"
        mine = [row for row in rows if row["case"][1] == size]
        t = np.array([row["case"][2] for row in mine])
        for axes, name in zip(panels, LABELS, strict=True):
            value, error = np.array([row[name] for row in mine]).T
            axes.errorbar(t, value, error, fmt=".", capsize=2, color=colour, label=f"L = {size}")
        for axes, name, curve in zip(panels, ENERGETIC[2:], exact.kaufman(fine, size), strict=False):
            axes.plot(t, [row[name][0] for row in mine], "x", color=colour)
            axes.plot(fine, curve, color=colour, linewidth=0.8)
        value, error = np.array([row["network_energy"] for row in mine]).T
        last.plot(t, (value - exact.kaufman(t, size)[0]) / error, "x", color=colour)
    panels[0].plot(fine, exact.onsager_energy(fine), "k--", linewidth=0.8, label="Onsager")
    panels[0].plot([], [], "k-", linewidth=0.8, label="Kaufman")
    panels[0].plot([], [], "kx", label="predicted by the network")
    panels[2].plot(fine, exact.yang_magnetization(fine), "k--", linewidth=0.8, label="Yang")
    last.axhspan(-2, 2, color="0.9")
    labels = (*LABELS.values(), "predicted $-$ exact energy [standard errors]")
    for axes, label in zip((*panels, last), labels, strict=True):
        axes.axvline(T_CRITICAL, color="0.5", linestyle=":")
        axes.set(xlabel="temperature [J / $k_B$]", ylabel=label)
    panels[3].set_yscale("log")
    panels[0].legend(fontsize="x-small", loc="lower right")
    panels[2].legend(fontsize="small")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    sizes, n_spins, n_temperatures = ([4, 8], 2**15, 5) if study.quick else ([8, 16, 32, 64], 2**23, 31)
    temperatures = [round(float(t), 4) for t in np.linspace(1, 4, n_temperatures)]
    cases = [(size, t, n_spins // size**2) for size in sizes for t in temperatures]
    rows = study.measure(observe, cases)
    lines = ["| chi2/dof | energy | specific heat | predicted energy | specific heat from predictions |"]
    lines.append("|---|---:|---:|---:|---:|")
    summary: Row = {}
    for size in sizes:
        mine = [row for row in rows if row["case"][1] == size]
        truth = exact.kaufman(np.array([row["case"][2] for row in mine]), size)
        chi2 = {}
        for k, name in enumerate(ENERGETIC):
            value, error = np.array([row[name] for row in mine]).T
            # At low temperatures, few spins are flipped, and the errors cannot be estimated.
            known = error > 0.2 * error.max() / size
            chi2[name] = float((((value - truth[k % 2]) / error)[known] ** 2).mean())
        summary[str(size)] = chi2
        lines.append(f"| L = {size} | {' | '.join(f'{value:.2f}' for value in chi2.values())} |")
    study.finish(summary, plot(rows, sizes), *lines)


if __name__ == "__main__":
    main()
