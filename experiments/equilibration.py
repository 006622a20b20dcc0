"""How many steps does a Markov chain need to reach equilibrium? The automatic numbers of sweeps are based on this.

python -m experiments.equilibration [--quick]

All measurements are at T_c, where relaxation is slowest. The first one determines the integrated autocorrelation times
of |m| and of the energy in equilibrium, for the Metropolis algorithm (`multispin`), sweeps of it that are followed by a
cluster (`multispin_wolff`), and single clusters (`wolff`). The second one compares configurations with exact theory and
with each other after the automatic number of sweeps, half of it and a tenth of it. Chains start cold (ordered) or hot
(random), or always ordered with clusters.
"""

import math

import numpy as np
from matplotlib.figure import Figure

from experiments.common import Row, Study
from ising import exact, lattice, multispin, statistics, wolff
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps

STARTS = {"cold": np.nextafter(T_CRITICAL, 0), "hot": T_CRITICAL}  # the sampler starts ordered below T_c
# The unit of tau, the expected tau of the slower observable at L = 8, its exponent, and the colour in the figure
SAMPLERS = {
    "multispin": ("sweep", 3.1, 2.0, "C0"),
    "multispin_wolff": ("sweep with a cluster", 1.1, 0.55, "C1"),
    "wolff": ("cluster", 1.7, 0.55, "C2"),
}


def autocorrelation(sampler: str, size: int, n_taus: int) -> Row:
    """Autocorrelation times with errors, in steps, from series of about n_taus autocorrelation times in total."""
    _, tau_8, exponent, _ = SAMPLERS[sampler]
    tau = tau_8 * (size / 8) ** exponent
    clusters = sampler != "multispin"
    start = equilibration_sweeps(size, clusters=clusters)
    if sampler == "wolff":
        every = 1
        energies, m = wolff.series(size, T_CRITICAL, math.ceil(n_taus * tau), seed=size, start=start)
    else:
        every, n_chains = max(1, round(tau / 20)), 512 if clusters else 64
        n = math.ceil(max(n_taus / n_chains, 150) * tau / every)  # a chain of less than 150 tau may hide slow modes
        temperatures = np.full(n_chains, T_CRITICAL)
        found = multispin.series(size, temperatures, n, size, 1, every=every, start=start, clusters=clusters)
        energies, m = (values.astype(np.int64) for values in found)
    times = [statistics.autocorrelation_time(series) for series in (np.abs(m), energies)]
    magnetization, energy = ((every * tau, every * error) for tau, error in times)
    return {"automatic": start, "magnetization": magnetization, "energy": energy}


def remember(sampler: str, size: int, n_chains: int, fraction: float) -> Row:
    """Energy minus exact in standard errors, and <m^2> with its error, after a fraction of the automatic sweeps."""
    clusters = sampler == "multispin_wolff"
    n_sweeps = round(fraction * equilibration_sweeps(size, clusters=clusters))
    row: Row = {"n_sweeps": n_sweeps}
    for k, (start, temperature) in enumerate([("cold", T_CRITICAL)] if clusters else STARTS.items()):
        seed = np.random.SeedSequence([size, k])
        spins = multispin.sample(size, np.full(n_chains, temperature), n_sweeps, seed, 1, clusters=clusters)
        excess = lattice.energy(spins) / size**2 - float(exact.kaufman(T_CRITICAL, size)[0])
        m2 = lattice.magnetization(spins) ** 2
        row[start] = float(excess.mean() / excess.std() * np.sqrt(n_chains))
        row[f"m2_{start}"] = float(m2.mean()), float(m2.std() / np.sqrt(n_chains))
    return row


def difference(row: Row, other: Row) -> str:
    """<m^2> of cold starts minus that of hot starts of another row, in standard errors."""
    (cold, cold_error), (hot, hot_error) = row["m2_cold"], other["m2_hot"]
    return f"{(cold - hot) / math.hypot(cold_error, hot_error):+.1f}"


def power(rows: list[Row], name: str) -> tuple[float, float]:
    """The exponent of tau of an observable as a power of L, with its error, from a straight line through ln tau."""
    x, (tau, error) = np.log([row["case"][2] for row in rows]), np.array([row[name] for row in rows]).T
    coefficients, covariance = np.polyfit(x, np.log(tau), 1, w=tau / error, cov="unscaled")
    return float(coefficients[0]), float(np.sqrt(covariance[0, 0]))


def plot(times: list[Row], memory: list[Row]) -> Figure:
    """Autocorrelation times against L, and energies minus exact in standard errors against the number of sweeps."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for sampler, (step, *_, colour) in SAMPLERS.items():
        rows = [row for row in times if row["case"][1] == sampler]
        sizes = np.array([row["case"][2] for row in rows])
        for name, label, fmt in (("magnetization", "$|m|$", "o-"), ("energy", "$E$", "s--")):
            tau, error = np.array([row[name] for row in rows]).T
            text = f"{sampler}, {label}, per {step}"
            left.errorbar(sizes, tau, error, fmt=fmt, color=colour, ms=4, lw=1, capsize=3, label=text)
    sizes = np.unique([row["case"][2] for row in times])
    left.plot(sizes, 3 * (sizes / 8) ** 2.17, "k:", label=r"$3\,(L/8)^{2.17}$: automatic sweeps / 20")
    left.set(xscale="log", yscale="log", xlabel="L", ylabel=r"$\tau_\mathrm{int}$ at $T_c$ [steps]")
    left.set_xticks(sizes, [str(size) for size in sizes])
    left.minorticks_off()
    left.legend(fontsize="x-small")
    for k, size in enumerate(np.unique([row["case"][2] for row in memory])):
        rows = [row for row in memory if row["case"][1:3] == ["multispin", size]]
        places = [row["case"][4] * 1.04**k for row in rows]
        for start, marker in (("cold", "v"), ("hot", "^")):
            z = [row[start] for row in rows]
            right.errorbar(places, z, 1, fmt=f"C{k}{marker}", capsize=3, label=f"L = {size}, {start}")
    right.axhline(0, color="black", linewidth=0.8)
    right.set(xlabel="sweeps / automatic sweeps (points shifted for clarity)", title="multispin", xscale="log")
    right.set(ylabel="energy $-$ exact [standard errors]")
    right.set_xticks([0.1, 0.5, 1], ["0.1", "0.5", "1"])
    right.set_yscale("symlog", linthresh=4)
    right.set_yticks(ticks := [-10, -4, -2, 0, 2, 4, 10, 100], [str(tick) for tick in ticks])
    right.margins(y=0.15)
    right.legend(ncols=2, fontsize="small")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    sizes, n_taus, n_spins = ((4, 8), 20_000, 2**20) if study.quick else ((8, 16, 32, 64, 128), 20_000, 2**26)
    larger = () if study.quick else (256,)
    cases = [(sampler, size) for sampler in SAMPLERS for size in (*sizes, *(() if sampler == "multispin" else larger))]
    times = study.measure(autocorrelation, [(*case, n_taus) for case in cases])
    steps = [(size, n_spins // size**2, fraction) for size in sizes[:4] for fraction in (0.1, 0.5, 1.0)]
    memory = study.measure(
        remember, [(sampler, *step) for sampler in ("multispin", "multispin_wolff") for step in steps]
    )
    lines = [
        "| sampler | L | tau of abs(m) | tau of E | automatic sweeps | sweeps / tau |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in times:
        sampler, size = row["case"][1:3]
        tau_m, tau_e = (f"{row[name][0]:.2f} ± {row[name][1]:.2f}" for name in ("magnetization", "energy"))
        in_tau = f"{row['automatic']} | {row['automatic'] / max(row['magnetization'][0], row['energy'][0]):.0f}"
        lines.append(f"| {sampler} | {size} | {tau_m} | {tau_e} | {in_tau if sampler != 'wolff' else ' | '} |")
    summary = {}
    lines.append("")
    for sampler, (step, *_) in SAMPLERS.items():
        rows = [row for row in times if row["case"][1] == sampler][-3:]
        for name, label in (("magnetization", "abs(m)"), ("energy", "E")):
            z, error = summary[f"{sampler}, {name}"] = power(rows, name)
            span = f"from L = {rows[0]['case'][2]} to {rows[-1]['case'][2]}"
            lines.append(f"- {sampler}: tau of {label}, per {step}, grows as L^({z:.2f} ± {error:.2f}) {span}")
    lines += ["", "| sampler | L | sweeps | E - exact, cold | E - exact, hot | m², cold - hot |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    converged = {row["case"][2]: row for row in memory if row["case"][1] == "multispin" and row["case"][4] == 1}
    for row in memory:
        sampler, size = row["case"][1:3]
        hot = f"{row['hot']:+.1f}" if "hot" in row else ""
        m2 = difference(row, row if "hot" in row else converged[size])
        lines.append(f"| {sampler} | {size} | {row['n_sweeps']} | {row['cold']:+.1f} | {hot} | {m2} |")
    lines += [
        "",
        "Deviations are in standard errors. Starts with clusters are always ordered; their m² is compared with that of",
    ]
    lines += ["the Metropolis algorithm after the automatic number of sweeps from a hot start."]
    study.finish(summary, plot(times, memory), *lines)


if __name__ == "__main__":
    main()
