"""How many sweeps does a Markov chain need to reach equilibrium? The automatic number of sweeps is based on this.

python -m experiments.equilibration [--quick]

All measurements are at T_c, where relaxation is slowest. The first one determines the integrated autocorrelation times
of |m| and of the energy in equilibrium. The second one compares chains with cold (ordered) and hot (random) starts with
exact theory and with each other, after the automatic number of sweeps, half of it and a tenth of it.
"""

import numpy as np
from matplotlib.figure import Figure

from experiments.common import Row, Study
from ising import exact, lattice, metropolis, multispin, statistics
from ising.exact import T_CRITICAL

STARTS = {"cold": np.nextafter(T_CRITICAL, 0), "hot": T_CRITICAL}  # the sampler starts ordered below T_c


def autocorrelation(size: int, n_chains: int, n_taus: int) -> Row:
    """Autocorrelation times with errors, in sweeps, from n_chains series of n_taus expected autocorrelation times."""
    n_sweeps = metropolis.equilibration_sweeps(size)
    temperatures = np.full(n_chains, T_CRITICAL, np.float32)
    rng = np.random.default_rng(size)
    spins = np.ascontiguousarray(np.moveaxis(metropolis.sample(size, temperatures, n_sweeps, seed=size), 0, -1))
    series = np.empty((2, n_chains, n_taus * n_sweeps // 20))
    for step in range(series.shape[-1]):
        metropolis.sweep(spins, temperatures, rng)
        configurations = np.moveaxis(spins, -1, 0)
        series[:, :, step] = np.abs(lattice.magnetization(configurations)), lattice.energy(configurations)
    times = [statistics.autocorrelation_time(part) for part in series]
    return {"automatic": n_sweeps, "magnetization": times[0], "energy": times[1]}


def remember(size: int, n_chains: int, fraction: float) -> Row:
    """Energy minus exact, and <m^2>, cold minus hot, in standard errors, after a fraction of the automatic sweeps."""
    n_sweeps = round(fraction * metropolis.equilibration_sweeps(size))
    row: Row = {"n_sweeps": n_sweeps}
    m2 = {}
    for k, (start, temperature) in enumerate(STARTS.items()):
        spins = multispin.sample(size, np.full(n_chains, temperature), n_sweeps, np.random.SeedSequence([size, k]), 1)
        excess = lattice.energy(spins) / size**2 - float(exact.kaufman(T_CRITICAL, size)[0])
        row[start] = float(excess.mean() / excess.std() * np.sqrt(n_chains))
        m2[start] = lattice.magnetization(spins) ** 2
    error = np.sqrt((m2["cold"].var() + m2["hot"].var()) / n_chains)
    return row | {"m2": float((m2["cold"].mean() - m2["hot"].mean()) / error)}


def plot(times: list[Row], memory: list[Row]) -> Figure:
    """Autocorrelation times against L, and energies minus exact in standard errors against the number of sweeps."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = np.array([row["case"][1] for row in times])
    for name, label in (("magnetization", r"$|m|$"), ("energy", "$E$")):
        tau, error = np.array([row[name] for row in times]).T
        left.errorbar(sizes, tau, error, fmt="o", capsize=3, label=label)
    left.plot(sizes, 3 * (sizes / 8) ** 2.17, "k:", label=r"$3\,(L/8)^{2.17}$: automatic sweeps / 20, for $L \geq 16$")
    left.set(xscale="log", yscale="log", xlabel="L", ylabel=r"$\tau_\mathrm{int}$ at $T_c$ [sweeps]")
    left.set_xticks(sizes, [str(size) for size in sizes])
    left.minorticks_off()
    left.legend(loc="lower right", fontsize="small")
    for k, size in enumerate(sizes):
        rows = [row for row in memory if row["case"][1] == size]
        places = [row["case"][3] * 1.04**k for row in rows]
        for start, marker in (("cold", "v"), ("hot", "^")):
            z = [row[start] for row in rows]
            right.errorbar(places, z, 1, fmt=f"C{k}{marker}", capsize=3, label=f"L = {size}, {start}")
    right.axhline(0, color="black", linewidth=0.8)
    right.set(
        xlabel="sweeps / automatic sweeps (points shifted for clarity)", ylabel="energy $-$ exact [standard errors]"
    )
    right.set(xscale="log")
    right.set_xticks([0.1, 0.5, 1], ["0.1", "0.5", "1"])
    right.set_yscale("symlog", linthresh=4)
    right.set_yticks(ticks := [-10, -4, -2, 0, 2, 4, 10, 100], [str(tick) for tick in ticks])
    right.margins(y=0.15)
    right.legend(ncols=2, fontsize="small")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    sizes, n_chains, n_taus, n_spins = ((4, 8), 128, 100, 2**20) if study.quick else ((8, 16, 32, 64), 64, 200, 2**26)
    times = study.measure(autocorrelation, [(size, n_chains, n_taus) for size in sizes])
    memory = study.measure(remember, [(size, n_spins // size**2, f) for size in sizes for f in (0.1, 0.5, 1.0)])
    lines = ["| L | tau of abs(m) | tau of E | automatic sweeps | sweeps / tau |", "|---:|---:|---:|---:|---:|"]
    for row in times:
        tau_m, tau_e = (f"{row[name][0]:.2f} ± {row[name][1]:.2f}" for name in ("magnetization", "energy"))
        in_tau = row["automatic"] / row["magnetization"][0]
        lines.append(f"| {row['case'][1]} | {tau_m} | {tau_e} | {row['automatic']} | {in_tau:.0f} |")
    lines += ["", "| L | sweeps | E - exact, cold | E - exact, hot | m², cold - hot |", "|---:|---:|---:|---:|---:|"]
    for row in memory:
        z = " | ".join(f"{row[name]:+.1f}" for name in ("cold", "hot", "m2"))
        lines.append(f"| {row['case'][1]} | {row['n_sweeps']} | {z} |")
    last = times[-3:]
    x, (tau, error) = np.log([row["case"][1] for row in last]), np.array([row["magnetization"] for row in last]).T
    # Fit a straight line to ln tau, weighted with its errors.
    coefficients, covariance = np.polyfit(x, np.log(tau), 1, w=tau / error, cov="unscaled")
    slope, slope_error = float(coefficients[0]), float(np.sqrt(covariance[0, 0]))
    lines += ["", f"tau of |m| grows as L^({slope:.2f} ± {slope_error:.2f}) over the last {len(last)} sizes"]
    study.finish({"exponent": slope, "error": slope_error}, plot(times, memory), *lines)


if __name__ == "__main__":
    main()
