"""How fast do sweeps with clusters forget an ordered start, at T_c and away from it? The automatic steps rest on this.

python -m experiments.relaxation [--quick]

512 chains (`multispin_wolff`) start ordered, and their mean energy is compared with Kaufman's exact one after every
step, which is a sweep and a cluster. At the end, the difference decays as exp(-n / tau). A straight line through its
logarithm gives the relaxation time tau, from the step at which the difference has fallen to a third of its largest
number of standard errors until it is five. The error of tau is a jackknife over 16 groups of chains. Where that range
has fewer than four steps, no tau is given: the start is forgotten too fast.

A second measurement compares the energy with the exact one after the automatic number of steps, with other seeds.
"""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.common import Row, Study
from ising import multispin
from ising.exact import T_CRITICAL, kaufman
from ising.metropolis import equilibration_sweeps

N_CHAINS, N_GROUPS = 512, 16
T_C = round(T_CRITICAL, 6)
TEMPERATURES = (1.5, 2.0, 2.2, T_C, 2.29, 2.31, 2.33, 2.35, 2.38, 2.42, 2.5, 2.7, 3.0, 4.0)
N_STEPS = {64: 100, 128: 120, 256: 160, 512: 240, 1024: 400}
LARGE = (2.2, T_C, 2.29, 2.31, 2.33, 2.35)  # the temperatures of L = 1024


def relax(size: int, temperature: float, n_steps: int) -> Row:
    """The energy minus the exact one in standard errors after each step, and the relaxation time with its error."""
    found = multispin.series(size, np.full(N_CHAINS, temperature), n_steps, size, 1, start=0, clusters=True)
    excess = found.energies / size**2 - float(kaufman(temperature, size)[0])  # (chains, steps)
    error = excess.std(axis=0, ddof=1) / N_CHAINS**0.5
    z = excess.mean(axis=0) / np.maximum(error, 1e-12)
    largest = np.abs(z).max()
    fallen = int(np.flatnonzero(np.abs(z) <= largest / 3)[0]) if (np.abs(z) <= largest / 3).any() else n_steps
    ended = fallen + int(np.argmax(np.append(np.abs(z[fallen:]) < 5, True)))
    row: Row = {"largest": float(largest), "from_to": [fallen + 1, ended], "last": float(z[-1])}
    if ended - fallen < 4:
        return row
    groups = np.array([excess[k::N_GROUPS].sum(axis=0) for k in range(N_GROUPS)])[:, fallen:ended]

    def time(total: NDArray[np.float64]) -> float:
        slope = np.polyfit(np.arange(ended - fallen), np.log(np.abs(total)), 1, w=np.abs(z[fallen:ended]))[0]
        return float(-1 / slope)

    without = np.array([time(groups.sum(axis=0) - group) for group in groups])
    row["tau"] = time(groups.sum(axis=0)), float(np.sqrt((N_GROUPS - 1) * without.var()))
    return row


def check(size: int, temperature: float, n_steps: int) -> Row:
    """The energy minus the exact one, in standard errors, after a number of steps."""
    seed = np.random.SeedSequence([size, round(1e6 * temperature), n_steps])
    found = multispin.series(size, np.full(N_CHAINS, temperature), 1, seed, 1, start=n_steps - 1, clusters=True)
    excess = found.energies[:, 0] / size**2 - float(kaufman(temperature, size)[0])
    return {"z": float(excess.mean() / excess.std(ddof=1) * N_CHAINS**0.5)}


def plot(rows: list[Row], largest: dict[int, tuple[float, float, float]]) -> Figure:
    """Relaxation times against the temperature, and their maximum against L."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, size in enumerate(largest):
        found = [row for row in rows if row["case"][1] == size and "tau" in row]
        tau, error = np.array([row["tau"] for row in found]).T
        style = {"color": f"C{k}", "ms": 4, "lw": 1, "capsize": 3}
        left.errorbar([row["case"][2] for row in found], tau, error, fmt="o-", label=f"L = {size}", **style)
    left.axvline(T_CRITICAL, color="0.5", linestyle=":", label="$T_c$")
    left.set(yscale="log", xlabel="T [J / $k_B$]", ylabel="relaxation time of the energy [steps]", xlim=(2.15, 2.75))
    left.legend(fontsize="small")
    sizes = np.array(list(largest))
    _, tau, error = np.array(list(largest.values())).T
    right.errorbar(sizes, 20 * tau, 20 * error, fmt="o", capsize=3, label="20 relaxation times, slowest T")
    automatic = [equilibration_sweeps(int(size), clusters=True) for size in sizes]
    right.plot(sizes, automatic, "k:", label="automatic number of steps")
    right.set(xscale="log", yscale="log", xlabel="L", ylabel="steps")
    right.set_xticks(sizes, [str(size) for size in sizes])
    right.minorticks_off()
    right.legend(fontsize="small")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    n_steps = {32: 60, 64: 60, 96: 60} if study.quick else N_STEPS
    cases = [(size, t, n) for size, n in n_steps.items() for t in (LARGE if size == 1024 else TEMPERATURES)]
    rows = study.measure(relax, cases[::-1])[::-1]  # the longest first
    largest = {}
    for size in n_steps:
        found = [row for row in rows if row["case"][1] == size and "tau" in row]
        slowest = max(found, key=lambda row: row["tau"][0])
        largest[size] = (slowest["case"][2], *slowest["tau"])
    automatic = {size: equilibration_sweeps(size, clusters=True) for size in n_steps}
    parts = [(size, largest[size][0], round(f * automatic[size])) for size in n_steps for f in (0.25, 0.5, 1)]
    checks = study.measure(check, parts[::-1])[::-1]
    sizes, (_, tau, error) = np.array(list(largest)), np.array(list(largest.values())).T
    last = slice(-3, None)
    power, covariance = np.polyfit(np.log(sizes[last]), np.log(tau[last]), 1, w=(tau / error)[last], cov="unscaled")
    exponent, uncertainty = float(power[0]), float(covariance[0, 0] ** 0.5)
    summary = {"exponent": (exponent, uncertainty), "largest": {str(size): each for size, each in largest.items()}}
    lines = ["| T | " + " | ".join(f"L = {size}" for size in n_steps) + " |", "|---:" * (1 + len(n_steps)) + "|"]
    for t in TEMPERATURES:
        cells = []
        for size in n_steps:
            row = next((row for row in rows if row["case"][1:3] == [size, t]), {})
            cells.append(f"{row['tau'][0]:.1f} ± {row['tau'][1]:.1f}" if "tau" in row else ("fast" if row else ""))
        lines.append(f"| {t:g} | {' | '.join(cells)} |")
    lines += ["", "| L | slowest T | 20 tau | automatic steps | a quarter of them | half | all |", "|---:" * 7 + "|"]
    for size, (t, mean, _) in largest.items():
        z = [f"{row['z']:+.1f}" for row in checks if row["case"][1] == size]
        lines.append(f"| {size} | {t:g} | {20 * mean:.0f} | {automatic[size]} | {' | '.join(z)} |")
    z_all = [row["z"] for row in checks if row["case"][3] == automatic[row["case"][1]]]
    lines += [
        "",
        f"The largest tau grows as L^({exponent:.2f} ± {uncertainty:.2f}) from L = {sizes[-3]} on.",
    ]
    lines += [
        f"After all automatic steps: chi² of the energies {sum(z * z for z in z_all):.1f} for {len(z_all)} sizes."
    ]
    study.finish(summary, plot(rows, largest), *lines)


if __name__ == "__main__":
    main()
