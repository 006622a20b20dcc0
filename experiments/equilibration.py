"""How long does a chain remember? The measurement behind the automatic number of sweeps.

python -m experiments.equilibration [--quick]      takes minutes; writes results/equilibration.json and the figure

At T_c, where it is longest: the integrated autocorrelation time of |m| and of the energy in equilibrium, and how far
chains are from exact theory and from each other that started cold (ordered) and hot (random), after the automatic
number of sweeps, a half and a tenth of it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ising import exact, lattice, metropolis, multispin, scaling
from ising.exact import T_CRITICAL

ROOT = Path(__file__).parent.parent
STARTS = {"cold": np.nextafter(T_CRITICAL, 0), "hot": T_CRITICAL}  # the sampler starts ordered below T_c


def autocorrelation(size: int, n_chains: int, n_taus: int) -> dict[str, float]:
    """Autocorrelation times of |m| and E in sweeps, from n_chains series of n_taus expected times each."""
    n_sweeps = metropolis.equilibration_sweeps(size)
    temperatures = np.full(n_chains, T_CRITICAL, np.float32)
    rng = np.random.default_rng(size)
    spins = np.ascontiguousarray(np.moveaxis(metropolis.sample(size, temperatures, n_sweeps, seed=size), 0, -1))
    series = np.empty((2, n_chains, n_taus * n_sweeps // 20))
    for step in range(series.shape[-1]):
        metropolis.sweep(spins, temperatures, rng)
        configurations = np.moveaxis(spins, -1, 0)
        series[:, :, step] = np.abs(lattice.magnetization(configurations)), lattice.energy(configurations)
    (tau_m, error_m), (tau_e, error_e) = (scaling.autocorrelation_time(part) for part in series)
    return {"size": size, "tau_m": tau_m, "error_m": error_m, "tau_energy": tau_e, "error_energy": error_e}


def memory(size: int, n_chains: int, fraction: float) -> dict[str, Any]:
    """Excess of the energy per spin over the exact one, by start, and the difference of <m^2>, after so many sweeps."""
    n_sweeps = round(fraction * metropolis.equilibration_sweeps(size))
    spins = {start: multispin.sample(size, np.full(n_chains, t), n_sweeps, seed=size) for start, t in STARTS.items()}
    excess = {
        start: lattice.energy(s) / size**2 - float(exact.kaufman(T_CRITICAL, size)[0]) for start, s in spins.items()
    }
    m2 = {start: lattice.magnetization(s) ** 2 for start, s in spins.items()}
    error = np.sqrt((m2["cold"].var() + m2["hot"].var()) / n_chains)
    return {
        "size": size,
        "fraction": fraction,
        "n_sweeps": n_sweeps,
        **{f"excess_{start}": float(e.mean()) for start, e in excess.items()},
        **{f"error_{start}": float(e.std() / np.sqrt(n_chains)) for start, e in excess.items()},
        "m2_z": float((m2["cold"].mean() - m2["hot"].mean()) / error),
    }


def draw(results: dict[str, Any]) -> Figure:
    """Times against L, and the energy's excess in standard errors against the number of sweeps."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = np.array([row["size"] for row in results["times"]])
    for key, label in (("m", r"$|m|$"), ("energy", "$E$")):
        tau, error = (np.array([row[f"{what}_{key}"] for row in results["times"]]) for what in ("tau", "error"))
        left.errorbar(sizes, tau, error, marker="o", capsize=3, linestyle="none", label=label)
    left.plot(sizes, 3 * (sizes / 8) ** 2.17, "k:", label=r"$3\,(L/8)^{2.17}$, of which 20 are automatic")
    left.set(xscale="log", yscale="log", xlabel="L", ylabel=r"$\tau_\mathrm{int}$ at $T_c$ [sweeps]")
    left.set_xticks(sizes, [str(size) for size in sizes])
    left.minorticks_off()
    left.legend()
    for k, size in enumerate(dict.fromkeys(row["size"] for row in results["memory"])):
        rows = [row for row in results["memory"] if row["size"] == size]
        for start, marker in (("cold", "v"), ("hot", "^")):
            z = [row[f"excess_{start}"] / row[f"error_{start}"] for row in rows]
            place = [row["fraction"] * 1.04**k for row in rows]
            right.errorbar(
                place, z, 1, marker=marker, capsize=3, linestyle="none", color=f"C{k}", label=f"L = {size}, {start}"
            )
    right.axhline(0, color="black", linewidth=0.8)
    right.set(
        xscale="log",
        xlabel="sweeps / automatic number (sizes side by side)",
        ylabel="energy $-$ exact [standard errors]",
    )
    right.set_xticks([0.1, 0.5, 1], ["0.1", "0.5", "1"])
    right.set_yscale("symlog", linthresh=4)
    right.margins(y=0.15)
    right.legend(ncols=2, fontsize="small")
    return figure


def main() -> None:
    """Measure, keep, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test, in seconds; keeps nothing")
    quick = parser.parse_args().quick
    sizes, n_chains = ((4, 8), 128) if quick else ((8, 16, 32, 64), 64)
    times = [autocorrelation(size, n_chains, n_taus=100 if quick else 200) for size in sizes]
    slope, _ = np.polyfit(np.log([row["size"] for row in times[-3:]]), np.log([row["tau_m"] for row in times[-3:]]), 1)
    for row in times:
        print(
            "L = {size}: tau |m| {tau_m:.2f} +- {error_m:.2f}, E {tau_energy:.2f} +- {error_energy:.2f}".format(**row)
        )
    print(f"tau of |m| grows as L^{slope:.2f} over the last {len(times[-3:])} sizes")
    n_spins = 2**20 if quick else 2**26
    rows = [memory(size, n_spins // size**2, f) for size in sizes for f in (0.1, 0.5, 1)]
    line = (
        "L = {size}, {n_sweeps} sweeps, in errors: energy cold {cold:+.1f}, hot {hot:+.1f}; m^2 cold - hot {m2_z:+.1f}"
    )
    for row in rows:
        print(line.format(**row, **{start: row[f"excess_{start}"] / row[f"error_{start}"] for start in STARTS}))
    results = {"times": times, "exponent": slope, "memory": rows}
    figure = draw(results)
    if not quick:
        (ROOT / "experiments" / "results" / "equilibration.json").write_text(json.dumps(results, indent=1) + "\n")
        figure.savefig(ROOT / "docs" / "figures" / "equilibration.png", dpi=120)


if __name__ == "__main__":
    main()
