"""Where is the threshold of a phase classifier that was trained far from T_c?

python -m experiments.extremes [--quick]

Classifiers are trained to distinguish ground states (T = 0) from random spins (infinite T), as in A. Abuali et al.,
arXiv 2501.05547. Their mean output P(T) crosses 1/2 at a temperature T*(L). A classifier that reads the magnetisation
has a threshold m*, and one that reads the energy has a threshold e*. In the limit of large lattices, |m| and the energy
do not fluctuate. T* then tends to the temperature at which the infinite lattice has |m| = m* (Yang), which is below
T_c, or the energy e* (Onsager). It does not tend to T_c.

On finite lattices, T* is where the median of |m| is m*. Since |m| is L^-1/8 times a function of x = (T - T_c) L, x at
T* is a function of m* L^1/8, which is positive as long as m* is below the median of |m| at T_c.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from engine.interface import Columns, Splits
from experiments.classifiers import best_thresholds, classifier
from experiments.common import Row, Study, case_seed
from experiments.label_shift import binned, mean_with_error
from ising import exact, lattice, multispin
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from ising.statistics import jackknife

Floats = NDArray[np.float64]

# Training configurations, and lattice sizes. On larger lattices, the sigmoid units need too many training steps.
CLASSIFIERS = {
    "magnetization": (2000, (16, 32, 64, 128)),
    "sigmoid units": (4000, (16, 32, 64)),
    "cnn": (2000, (16, 32, 64, 128)),
}
RANGE = (1.0, 6.0)  # in which T* is searched


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

    A first sample covers RANGE. The next two cover the temperatures at which both answers occur, and a margin.
    """
    case = case_seed(name, size, seed)
    rng = np.random.default_rng(case)
    log_odds = classifier(name, case, Splits(*(extremes(size, k, rng) for k in (n, 1000, 1))))
    low, high = RANGE
    row: Row = {}
    for step, n_now in enumerate((1024, 1024, n_test)):
        t, seeds = rng.uniform(low, high, n_now), np.random.SeedSequence([case, step])
        spins = multispin.sample(size, t, equilibration_sweeps(size, clusters=True), seeds, 1, clusters=True)
        odds = log_odds({"spins": spins, "temperatures": t})
        row |= {"first look": binned(t, odds)} if step == 0 else {}
        edges = sorted((t[odds < 0].min(initial=high), t[odds > 0].max(initial=low)))
        margin = 0.2 * (edges[1] - edges[0]) + (high - low) / 200
        low, high = edges[0] - margin, edges[1] + margin
    value, error = jackknife(crossing, t, expit(odds))
    row |= {"crossing": value, "error": error}
    row["m"] = threshold(np.abs(lattice.magnetization(spins)), odds > 0, t)
    row["e"] = threshold(-lattice.energy(spins) / size**2, odds > 0, t)
    return row


def median(size: int, n: int) -> Row:
    """The median of |m| at 64 temperatures, from n measurements of 8 chains at each."""
    t = T_CRITICAL + np.linspace(-8, 48, 64) / size
    steps = equilibration_sweeps(size, clusters=True)
    found = multispin.series(size, np.repeat(t, 8), n, case_seed(size, n), start=steps, clusters=True)
    m = np.abs(found.magnetizations).reshape(64, -1) / size**2
    return {"size": size, "t": t.tolist(), "m": np.median(m, axis=1).tolist()}


def temperature_of(variable: str, value: float) -> float:
    """T at which the infinite lattice has the magnetisation m = value, or the energy per spin e = -value."""
    if variable == "m":
        return float(2 / np.arcsinh((1 - value**8) ** -0.25))
    return float(brentq(lambda t: float(exact.onsager_energy(t)) + value, 0.5, 100))


def plot(rows: dict[tuple[str, int], list[Row]], medians: list[Row]) -> Figure:
    """P(T) of one seed, T* against 1 / L, and T* against m* in the variables of finite-size scaling."""
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    largest = {name: max(size for each, size in rows if each == name) for name, _ in rows}
    for (name, size), mine in rows.items():
        k = [*CLASSIFIERS].index(name)
        style, label = {"color": f"C{k}", "marker": "os^"[k], "ms": 4}, name if size == largest[name] else None
        look = mine[0]["first look"]
        left.plot(look["t"], look["p"], **style, alpha=min(1, 0.2 + size / 80), label=label)
        t = np.array([row["crossing"] for row in mine])
        mean = mean_with_error(t.tolist(), [row["error"] for row in mine])
        middle.errorbar(1 / size, *mean, **style, capsize=3, label=label)
        if name != "cnn":
            scaled = [row["m"]["value"] * size**0.125 for row in mine]
            right.plot(scaled, (t - T_CRITICAL) * size, linestyle="", **style, label=label)
    middle.axhline(temperature_of("m", 0.5), color="C0", linestyle="--", linewidth=0.8, label="limit for $m^*$ = 1/2")
    limit = np.mean([temperature_of("e", row["e"]["value"]) for row in rows["cnn", largest["cnn"]]])
    middle.axhline(
        float(limit), color="C2", linestyle="--", linewidth=0.8, label="limit for $e^*$ of the largest lattice"
    )
    for row in medians:
        size, label = row["size"], "median of |m|" if row is medians[0] else None
        x = (np.array(row["t"]) - T_CRITICAL) * size
        right.plot(np.array(row["m"]) * size**0.125, x, "k-", linewidth=0.6, alpha=0.5, label=label)
    left.set(xlabel="temperature [J / $k_B$]", ylabel="mean P", title="darker: larger lattices", xlim=(1, 4))
    middle.set(xlabel="1 / L", ylabel="$T^*$ [J / $k_B$]", xlim=(0, None), ylim=(2.25, 2.78))
    right.set(xlabel="$m^* L^{1/8}$", ylabel="$(T^* - T_c)\\,L$ [J / $k_B$]", ylim=(-8, 20))
    left.axvline(T_CRITICAL, color="0.5", linestyle=":")
    for axes in (middle, right):
        axes.axhline(T_CRITICAL if axes is middle else 0, color="0.5", linestyle=":", label="exact $T_c$")
        axes.legend(fontsize="small", loc="upper right" if axes is right else "upper left")
    return figure


def cell(values: Sequence[float], digits: int = 4, errors: Sequence[float] = ()) -> str:
    """A mean with its error."""
    mean, error = mean_with_error(values, errors)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def line(name: str, size: int, rows: list[Row]) -> str:
    """A line of the table: means over some seeds."""
    variable, reads, sign = ("e", "energy", -1) if name == "cnn" else ("m", "abs(m)", 1)
    each = [row[variable] for row in rows]
    cells = [name, str(size), cell([row["crossing"] for row in rows], errors=[row["error"] for row in rows]), reads]
    cells += [cell([sign * one["value"] for one in each], 3), f"{np.mean([one['agreement'] for one in each]):.3f}"]
    cells += [cell([one["crossing"] for one in each]), cell([temperature_of(variable, one["value"]) for one in each])]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    study = Study(__file__, __doc__)
    seeds = range(1, 2 if study.quick else 6)
    classifiers = dict.fromkeys(CLASSIFIERS, (400, (8, 16))) if study.quick else CLASSIFIERS
    n_test, n_median = (512, 10) if study.quick else (4096, 300)
    cases = [(name, size, s, n, n_test) for name, (n, sizes) in classifiers.items() for size in sizes for s in seeds]
    found = study.measure(classify, sorted(cases, key=lambda case: -case[1]))
    medians = [median(size, n_median) for size in classifiers["cnn"][1]]
    rows = {case[:2]: [row for row in found if tuple(row["case"][1:3]) == case[:2]] for case in cases}
    lines = [
        "| classifier | L | T* | reads | threshold | agreement | T* of the threshold | T*, infinite L |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
        *(line(*key, mine) for key, mine in rows.items()),
    ]
    study.finish({"medians": medians}, plot(rows, medians), *lines)


if __name__ == "__main__":
    main()
