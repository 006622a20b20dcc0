"""Energy, specific heat, |m|, susceptibility and Binder cumulant against temperature, from spins and from a network.

python -m experiments.thermodynamics [--quick]

On the exact curves: Kaufman's for each finite lattice, Onsager's and Yang's for the infinite one. The network is the
preset `exact`, which has seen 8 x 8 lattices alone; its predicted energies give an energy and a specific heat too.
"""

import functools

import numpy as np
import torch
from matplotlib.figure import Figure

from config import PRESETS
from datafiles import get_splits
from experiments.common import Row, Study, trained
from ising import exact, lattice, multispin, scaling
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from model import InPhysicalUnits
from task import EnergyTask, predict

NAMES = (
    "energy",
    "specific_heat",
    "network_energy",
    "network_specific_heat",
    "magnetization",
    "susceptibility",
    "binder",
)


@functools.cache
def network() -> InPhysicalUnits:
    """The preset `exact`, trained: once a process."""
    return trained(PRESETS["exact"], get_splits(PRESETS["exact"].data, PRESETS["exact"].seed, 1)[0])[0]


def observe(size: int, temperature: float, n: int) -> Row:
    """Each observable with its standard error, from n independent configurations."""
    temperatures, n_sites = np.full(n, temperature), size**2
    seed = np.random.SeedSequence([size, round(1e4 * temperature)])
    spins = multispin.sample(size, temperatures, equilibration_sweeps(size), seed, 1)
    examples = EnergyTask(n_sites).examples(spins, temperatures, torch.device("cpu"))
    energies, m = lattice.energy(spins).astype(np.float64), lattice.magnetization(spins)
    predicted = n_sites * predict(network(), examples).double().numpy()

    def heat(e: scaling.Floats) -> float:
        return scaling.specific_heat(e, temperature, n_sites)

    def both(estimator: object, sample: scaling.Floats) -> list[float]:
        return list(scaling.jackknife(estimator, sample))  # type: ignore[arg-type]

    means = [
        both(np.mean, energies / n_sites),
        both(heat, energies),
        both(np.mean, predicted / n_sites),
        both(heat, predicted),
    ]
    chi = both(lambda m: scaling.susceptibility(m, temperature, n_sites), m)
    values = [*means, both(lambda m: float(np.abs(m).mean()), m), chi, both(scaling.binder_cumulant, m)]
    return dict(zip(NAMES, values, strict=True))


def yang(temperatures: scaling.Floats) -> scaling.Floats:
    """Spontaneous magnetisation of the infinite lattice: C. N. Yang, Phys. Rev. 85, 808 (1952)."""
    return np.maximum(1 - np.sinh(2 / temperatures) ** -4.0, 0) ** 0.125


def draw(rows: list[Row], sizes: list[int]) -> Figure:
    """All observables against T on the exact curves, and how far energies are from exact in standard errors."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = dict(zip((*NAMES[:2], "z", *NAMES[4:]), figure.subplots(2, 3).flat, strict=True))
    fine = np.linspace(0.95, 4.05, 400)
    labels = {"energy": "$E/N$ [J]", "specific_heat": "$C/N$ [$k_B$]", "magnetization": "$|m|$"}
    labels |= {
        "susceptibility": r"$\chi/N$ of $|m|$ [1/J]",
        "binder": "$U_4$",
        "z": "network's energy $-$ exact [standard errors]",
    }
    for k, size in enumerate(sizes):
        mine = [row for row in rows if row["case"][1] == size]
        t = np.array([row["case"][2] for row in mine])
        for name, axes in panels.items():
            if name == "z":
                value, error = np.array([row["network_energy"] for row in mine]).T
                axes.plot(t, (value - exact.kaufman(t, size)[0]) / error, "x", color=f"C{k}", label=f"L = {size}")
                continue
            axes.errorbar(
                t, *np.array([row[name] for row in mine]).T, fmt=".", capsize=2, color=f"C{k}", label=f"L = {size}"
            )
            if name in NAMES[:2]:
                axes.plot(t, [row[f"network_{name}"][0] for row in mine], "x", color=f"C{k}", markersize=6)
                axes.plot(fine, exact.kaufman(fine, size)[NAMES.index(name)], color=f"C{k}", linewidth=0.8)
    panels["energy"].plot(fine, exact.onsager_energy(fine), "k--", linewidth=0.8, label="Onsager")
    panels["energy"].plot([], [], "kx", label="network, from spins")
    panels["magnetization"].plot(fine, yang(fine), "k--", linewidth=0.8, label="Yang, infinite lattice")
    panels["z"].axhspan(-2, 2, color="0.9")
    for name, axes in panels.items():
        axes.axvline(T_CRITICAL, color="0.5", linestyle=":")
        axes.set(xlabel="temperature [J / $k_B$]", ylabel=labels[name])
    panels["susceptibility"].set_yscale("log")
    panels["energy"].legend(fontsize="small")
    panels["magnetization"].legend(fontsize="small")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    sizes, n_spins, n_temperatures = ([4, 8], 2**15, 5) if study.quick else ([8, 16, 32, 64], 2**23, 31)
    temperatures = [round(float(t), 4) for t in np.linspace(1, 4, n_temperatures)]
    cases = [(size, t, n_spins // size**2) for size in sizes for t in temperatures]
    rows = study.measure(observe, cases)
    lines = [
        "| L | energy, samples: chi2/dof | specific heat | network's energy | network's specific heat |",
        "|---:|---:|---:|---:|---:|",
    ]
    summary: Row = {}
    for size in sizes:
        mine = [row for row in rows if row["case"][1] == size]
        truth = exact.kaufman(np.array([row["case"][2] for row in mine]), size)
        chi2 = {}
        for k, name in enumerate(NAMES[:4]):
            value, error = np.array([row[name] for row in mine]).T
            seen = error > 0.2 * error.max() / size  # deep in the cold hardly a spin is flipped, and no error is known
            chi2[name] = float((((value - truth[k % 2]) / error)[seen] ** 2).mean())
        summary[str(size)] = chi2
        lines.append(f"| {size} | {' | '.join(f'{value:.2f}' for value in chi2.values())} |")
    study.finish(summary, draw(rows, sizes), *lines)


if __name__ == "__main__":
    main()
