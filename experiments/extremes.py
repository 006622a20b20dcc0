"""Where is the threshold of a phase classifier that was trained far from T_c?

python -m experiments.extremes [--quick]

Classifiers are trained to distinguish ground states (T = 0) from random spins (infinite T), as in A. Abuali et al.,
arXiv 2501.05547. Their mean output P(T) crosses 1/2 at a temperature T*(L). A classifier that reads the magnetisation
has a threshold m*, and one that reads the energy has a threshold e*. In the limit of large lattices, |m| and the energy
do not fluctuate. T* then tends to the temperature at which the infinite lattice has |m| = m* (Yang), which is below
T_c, or the energy e* (Onsager). It does not tend to T_c.

On finite lattices, T* is where the median of |m| is m*. Since |m| is L^-1/8 times a function of x = (T - T_c) L, x at
T* is a function of m* L^1/8, which is positive as long as m* is below the median of |m| at T_c.

The second part explains the units of label_shift.py that are trained away from T_c. Their P(T) is replaced by the
fraction of configurations with |m| > m*, with the measured threshold of each size, or with the same one for all sizes.
"""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from engine.problem import Columns, Splits
from experiments.classifiers import best_thresholds, between, classifier
from experiments.common import Row, Study, case_seed
from experiments.label_shift import TESTED, away_from_tc, binned, fitted, mean_with_error
from ising import exact, lattice, multispin
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from ising.statistics import jackknife

Floats = NDArray[np.float64]

CLASSIFIERS = ("magnetization", "sigmoid units", "cnn")
RANGE = (1.0, 6.0)  # in which T* is searched
COMMON = 0.6  # threshold of |m| that does not depend on L


def extremes(size: int, n: int, rng: np.random.Generator) -> Columns:
    """Ground states and random spins. The temperatures 0.01 and 1000 stand for 0 and infinity."""
    signs, is_cold = np.array([-1, 1], np.int8), rng.random(n) < 0.5
    spins = rng.choice(signs, (n, size, size))
    spins[is_cold] = rng.choice(signs, (is_cold.sum(), 1, 1))
    return {"spins": spins, "temperatures": np.where(is_cold, 0.01, 1000.0)}


def crossing(t: Floats, p: Floats) -> float:
    """The lowest temperature at which a polynomial of degree 5, fitted to probabilities, is below 1/2."""
    curve, x = np.polynomial.Polynomial.fit(t, p, 5), np.linspace(t.min(), t.max(), 5001)
    return float(x[np.argmax(curve(x) < 0.5)])


def threshold(values: Floats, is_cold: NDArray[np.bool_], t: Floats) -> Row:
    """The threshold of `values` that imitates a classifier best, its agreement, and its T*."""
    (value,), (agreement,) = best_thresholds(values, is_cold[:, None])
    return {"value": float(value), "agreement": float(agreement), "crossing": crossing(t, values > value)}


def classify(name: str, size: int, seed: int, n: int, n_test: int) -> Row:
    """Train a classifier at T = 0 and infinity. Return T*, and the thresholds of |m| and of minus the energy per spin.

    A first sample covers RANGE. The second one covers the temperatures at which both answers occur.
    """
    case = case_seed(name, size, seed)
    rng = np.random.default_rng(case)
    log_odds = classifier(name, case, Splits(*(extremes(size, k, rng) for k in (n, 1000, 1))))
    low, high = RANGE
    row: Row = {}
    for step, n_now in enumerate((1024, n_test)):
        t, seeds = rng.uniform(low, high, n_now), np.random.SeedSequence([case, step])
        spins = multispin.sample(size, t, equilibration_sweeps(size, clusters=True), seeds, 1, clusters=True)
        odds = log_odds({"spins": spins, "temperatures": t})
        row |= {f"look {step + 1}": binned(t, odds)}
        low, high = sorted((t[odds < 0].min(initial=RANGE[1]), t[odds > 0].max(initial=RANGE[0])))
    value, error = jackknife(crossing, t, expit(odds))
    row |= {"crossing": value, "error": error}
    row["m"] = threshold(np.abs(lattice.magnetization(spins)), odds > 0, t)
    row["e"] = threshold(-lattice.energy(spins) / size**2, odds > 0, t)
    return row


def median(size: int, n: int) -> Row:
    """The median of |m| at 64 temperatures, from n measurements of 8 chains at each."""
    t = T_CRITICAL + np.linspace(-8, 48, 64) / size
    steps = equilibration_sweeps(size, clusters=True)
    found = multispin.series(size, np.repeat(t, 8), n, case_seed(size, n), 1, start=steps, clusters=True)
    m = np.abs(found.magnetizations).reshape(64, -1) / size**2
    return {"t": t.tolist(), "m": np.median(m, axis=1).tolist()}


def imitate(size: int, seed: int, n: int, n_test: int) -> Row:
    """Train sigmoid units away from T_c as in label_shift.py. Return P(T), and that of thresholds of |m|."""
    case = case_seed("away", size, seed)
    splits = between(T_CRITICAL - 1, T_CRITICAL + 1, size, case, num_train=n, num_val=2000)
    splits = splits._replace(train=away_from_tc(splits.train), val=away_from_tc(splits.val))
    width = TESTED / size
    test = between(T_CRITICAL - width, T_CRITICAL + width, size, case + 1, num_test=n_test).test
    odds, t = classifier("sigmoid units", case, splits)(test), test["temperatures"]
    m = np.abs(lattice.magnetization(test["spins"]))
    own = threshold(m, odds > 0, t)
    row = {"network": binned(t, odds)} | {"m": own}
    for name, value in (("threshold of each size", own["value"]), ("common threshold", COMMON)):
        row[name] = binned(t, np.where(m > value, np.inf, -np.inf))
    return row


def temperature_of(variable: str, value: float) -> float:
    """T at which the infinite lattice has the magnetisation m = value, or the energy per spin e = -value."""
    if variable == "m":
        return float(2 / np.arcsinh((1 - value**8) ** -0.25))
    return float(brentq(lambda t: float(exact.onsager_energy(t)) + value, 0.5, 100))


def plot(rows: dict[tuple[str, int], list[Row]], medians: list[Row]) -> Figure:
    """P(T) of one seed, T* against 1 / L, and T* against m* in the variables of finite-size scaling."""
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for (name, size), mine in rows.items():
        k, size_index = CLASSIFIERS.index(name), np.log2(size / 16)
        style = {"color": f"C{k}", "alpha": 0.4 + 0.2 * size_index}
        left.plot(mine[0]["look 1"]["t"], mine[0]["look 1"]["p"], "os^"[k] + "-", markersize=3, **style)
        values, label = [row["crossing"] for row in mine], name if size == 128 else None
        middle.errorbar(1 / size, *mean_with_error(values), fmt="os^"[k], color=f"C{k}", capsize=3, label=label)
        m = [row["m"]["value"] * size**0.125 for row in mine]
        if name != "cnn":
            right.plot(m, (np.array(values) - T_CRITICAL) * size, "os^"[k], color=f"C{k}", markersize=4, label=label)
    for row, line in zip(medians, ("k:", "k-"), strict=False):
        size = row["case"][1]
        x = (np.array(row["t"]) - T_CRITICAL) * size
        right.plot(np.array(row["m"]) * size**0.125, x, line, linewidth=0.8, label=f"median of |m|, L = {size}")
    left.axvline(T_CRITICAL, color="0.5", linestyle=":")
    left.set(xlabel="temperature [J / $k_B$]", ylabel="mean P", title="from L = 16 (light) to 128 (dark)")
    middle.axhline(T_CRITICAL, color="0.5", linestyle=":", label="exact $T_c$")
    middle.set(xlabel="1 / L", ylabel="T* [J / $k_B$]", xlim=(0, None))
    right.set(xlabel="$m^* L^{1/8}$", ylabel="$(T^* - T_c) L$ [J / $k_B$]")
    right.axhline(0, color="0.5", linestyle=":")
    for axes in (middle, right):
        axes.legend(fontsize="small")
    return figure


def cell(values: list[float], digits: int = 4) -> str:
    """A mean with its standard error."""
    mean, error = mean_with_error(values)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def main() -> None:
    study = Study(__file__, __doc__)
    sizes, seeds, n, n_test = ([8, 16], (1, 2), 500, 512) if study.quick else ([16, 32, 64, 128], (1, 2, 3), 4000, 4096)
    old_sizes, n_old = ([4, 6, 8], 1000) if study.quick else ([8, 12, 16, 24, 32], 15_000)
    cases = [(name, size, seed, n, n_test) for size in reversed(sizes) for name in CLASSIFIERS for seed in seeds]
    found = study.measure(classify, cases)
    medians = study.measure(median, [(size, 10 if study.quick else 300) for size in (sizes[1], sizes[-1])])
    old = study.measure(
        imitate, [(size, seed, n_old, 4 * n_old // 3) for size in reversed(old_sizes) for seed in seeds]
    )
    lines = [
        "| classifier | L | T* | reads | threshold | agreement | T* of the threshold | limit |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    rows = {
        (name, size): [row for row in found if row["case"][1:3] == [name, size]]
        for name in CLASSIFIERS
        for size in sizes
    }
    for (name, size), mine in rows.items():
        variable = "e" if name == "cnn" else "m"
        each = [row[variable] for row in mine]
        limits = [temperature_of(variable, one["value"]) for one in each]
        sign = -1 if variable == "e" else 1
        cells = [cell([row["crossing"] for row in mine]), "energy" if variable == "e" else "abs(m)"]
        cells += [cell([sign * one["value"] for one in each], 3), f"{np.mean([one['agreement'] for one in each]):.3f}"]
        cells += [cell([one["crossing"] for one in each]), cell(limits)]
        lines.append(f"| {name} | {size} | {' | '.join(cells)} |")
    lines += ["", "| trained away from T_c | fitted - exact T_c | fits |", "|---|---:|---:|"]
    summary = {}
    for key in ("network", "threshold of each size", "common threshold"):
        fits = [
            fitted([row[key] | {"case": [*"____", row["case"][1]]} for row in old if row["case"][2] == s])
            for s in seeds
        ]
        values = [fit.t_c - T_CRITICAL for fit in fits if fit is not None]
        summary[key] = values
        lines.append(f"| {key} | {cell(values) if values else ''} | {len(values)} of {len(seeds)} |")
    lines += ["", "Thresholds of |m| of these units:"]
    for size in old_sizes:
        values = [row["m"]["value"] for row in old if row["case"][1] == size]
        lines.append(f"- L = {size}: {cell(values, 3)}")
    study.finish(summary, plot(rows, medians), *lines)


if __name__ == "__main__":
    main()
