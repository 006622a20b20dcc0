"""T_c and nu from order parameters that are found without labels, on the square and the triangular lattice.

python -m experiments.latent_order_parameter [--quick]

Two methods learn an order parameter o from configurations between T = 1 and 6, at each lattice size separately: the
first principal component (L. Wang, Phys. Rev. B 94, 195105, 2016), and an autoencoder with one latent variable (S. J.
Wetzel, Phys. Rev. E 96, 022140, 2017). They are not given the temperatures. The Binder cumulant U_4 of o is then
measured on new configurations, at nine temperatures between those at which it is 0.65 and 0.5. A bisection between 1
and 6 finds these temperatures. T_c and nu follow from a fit of U_4, as in experiments/critical_temperature.py. Neither
the range of temperatures nor any other choice depends on the lattice.

Why U_4 crosses at T_c: there, the distribution of the magnetisation m has the same form at all sizes, and only its
width depends on L. A ratio of moments that does not depend on the width, such as U_4, is then equal at all sizes. This
holds for every o that is proportional to m, and not for other functions of m. Once the order parameter has been found,
this is therefore the method of the samples (experiments/critical_temperature.py), which uses m itself. For comparison,
m of the same configurations is analysed in the same way.

Each pair of method and seed has its own configurations. The seeds are fitted together; a fit with a large chi-square
shows that they differ by more than the noise of the configurations.
"""

from itertools import product

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.autoencoder import METHODS
from experiments.common import Row, Study, case_seed
from ising import lattice, multispin, triangular
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from ising.scaling import Choice, Measurements, Scaling, average, vary
from ising.statistics import binder_cumulant, jackknife

EXACT = {"square": T_CRITICAL, "triangular": triangular.T_CRITICAL}  # only used to judge the results
COLDEST, HOTTEST, EDGES = 1.0, 6.0, (0.65, 0.5)  # of training and bisection; U_4 at the ends of the measured range
# Degree of the polynomial, exponent of the corrections, smallest lattice. The first combination is the first fit.
DEGREES, OMEGAS, SMALLEST = (3, 4), (1.75, 1.0, 1.4, 2.0, 3.0), (0, 24)
CHOICES = [Choice(d, omega, smallest_size=size) for d, omega, size in product(DEGREES, OMEGAS, SMALLEST)]
BINS = np.linspace(0, 1, 26)  # of |m|


def sample(kind: str, size: int, temperatures: NDArray[np.float64], seed: np.random.SeedSequence) -> NDArray[np.int8]:
    """Independent configurations of a lattice: (N,) -> (N, L, L)."""
    if kind == "triangular":
        return triangular.sample(size, temperatures, triangular.EQUILIBRATION_SWEEPS, seed)
    return multispin.sample(size, temperatures, equilibration_sweeps(size, clusters=True), seed, 1, clusters=True)


def measure(kind: str, method: str, size: int, seed: int, n_train: int, n_search: int, n: int) -> Row:  # noqa: PLR0917
    """Learn an order parameter o. Return U_4 of o and of m near T_c, and how o depends on m.

    The row has nine temperatures `t`, and at these `u4` with `error` of o and `u4_of_m` with `error_of_m`. For
    configurations between T = 1 and 6, `r2` is the squared correlation of |o| and |m|, and `curve` the mean of |o| in
    bins of |m|.
    """
    sequence = np.random.SeedSequence(case_seed(kind, method, size, seed))
    rng = np.random.default_rng(sequence.spawn(1)[0])

    def at(temperatures: NDArray[np.float64]) -> NDArray[np.int8]:
        return sample(kind, size, temperatures, sequence.spawn(1)[0])

    train, val = (at(rng.uniform(COLDEST, HOTTEST, k)) for k in (n_train, n_train // 4))
    order_parameter = METHODS[method](train, val, seed)
    ends = []
    for edge in EDGES:
        low, high = COLDEST, HOTTEST
        while high - low > 0.005:
            middle = (low + high) / 2
            above = binder_cumulant(order_parameter(at(np.full(n_search, middle)))) > edge
            low, high = (middle, high) if above else (low, middle)
        ends.append((low + high) / 2)
    row: Row = {"t": np.linspace(ends[0], ends[1], 9).round(5).tolist()}
    row |= {key: [] for key in ("u4", "error", "u4_of_m", "error_of_m")}
    for temperature in row["t"]:
        spins = at(np.full(n, temperature))
        for end, values in (("", order_parameter(spins)), ("_of_m", lattice.magnetization(spins))):
            u4, error = jackknife(binder_cumulant, values, n_blocks=200)
            row[f"u4{end}"].append(u4)
            row[f"error{end}"].append(error)
    o, m = np.abs(order_parameter(val)), np.abs(lattice.magnetization(val))
    row["r2"] = float(np.corrcoef(o, m)[0, 1] ** 2)
    row["curve"] = (np.histogram(m, BINS, weights=o)[0] / np.maximum(np.histogram(m, BINS)[0], 1)).tolist()
    return row


def measurements(rows: list[Row], of_m: str = "") -> Measurements:
    """U_4 of o or, with "_of_m", of m, at all sizes and temperatures, for all seeds."""
    t, u4, error = (np.concatenate([row[key] for row in rows]) for key in ("t", f"u4{of_m}", f"error{of_m}"))
    sizes = np.repeat([row["case"][3] for row in rows], [len(row["t"]) for row in rows])
    return Measurements(sizes, t, u4[:, None], error[:, None, None] ** 2, (False,))


def fitted(data: Measurements, choices: list[Choice]) -> Row:
    """T_c and nu, averaged over the choices, and the first fit; or the reason why there is no result."""
    result: Row = {}
    try:
        fits = vary(data, choices)
        first = fits[choices[0]]
        if isinstance(first, Scaling):
            result["first"] = {
                "t_c": first.t_c,
                "nu": first.nu,
                "chi2": first.chi2,
                "dof": first.dof,
                "p": first.p_value,
            }
        result |= {key: each._asdict() for key, each in zip(("T_c", "nu"), average(fits), strict=True)}
    except ValueError as error:
        result["refused"] = str(error)
    return result


def in_words(result: Row, key: str, digits: int) -> str:
    """A value with its statistical and systematic error."""
    if key not in result:
        return "no fit"
    return "{value:.{0}f} ± {statistical:.{0}f} ± {systematic:.{0}f}".format(digits, **result[key])


def plot(rows: list[Row]) -> Figure:
    """U_4 of the order parameters against T, and their dependence on m, for both lattices."""
    figure = Figure(figsize=(15, 7), layout="constrained")
    sizes = sorted({row["case"][3] for row in rows})
    colours = dict(zip(sizes, colormaps["viridis"](np.linspace(0, 0.9, len(sizes))), strict=True))
    for kind, (*panels, last) in zip(EXACT, figure.subplots(2, len(METHODS) + 1), strict=True):
        for method, axes in zip(METHODS, panels, strict=True):
            for row in rows:
                size, seed = row["case"][3:5]
                if row["case"][1:3] == [kind, method]:
                    label = f"L = {size}" if seed == 1 else None
                    axes.errorbar(row["t"], row["u4"], row["error"], fmt=".-", color=colours[size], lw=0.5, label=label)
                if row["case"][1:5] == [kind, method, sizes[-1], 1]:
                    curve = np.array(row["curve"])
                    scaled = np.where(curve > 0, curve / curve.max(), np.nan)
                    last.plot((BINS[1:] + BINS[:-1]) / 2, scaled, ".-", label=method)
            axes.axvline(EXACT[kind], color="0.5", linestyle=":", label="exact $T_c$")
            axes.set(xlabel="temperature [J / $k_B$]", ylabel="$U_4$")
            axes.set_title(f"{kind}: {method}", fontsize="medium")
        panels[0].legend(fontsize="x-small")
        last.plot([0, 1], [0, 1], color="0.5", linestyle=":", label="proportional to |m|")
        last.set(xlabel="|m|", ylabel="mean of |o|, relative to its largest value")
        last.set_title(f"{kind}: L = {sizes[-1]}, one seed", fontsize="medium")
        last.legend(fontsize="x-small")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    sizes, seeds, choices, methods, *numbers = (
        ([8, 6, 4], [1], CHOICES[::10], list(METHODS)[::2], 256, 64, 500)
        if study.quick
        else ([64, 48, 32, 24, 16], [1, 2], CHOICES, list(METHODS), 8192, 512, 4096)
    )
    pairs = list(product(reversed(EXACT), methods))  # the triangular lattice takes longer
    rows = study.measure(measure, [(*pair, size, seed, *numbers) for size in sizes for pair in pairs for seed in seeds])
    lines = [
        "| lattice | order parameter o | T_c from o | T_c from m | nu from o | nu from m | chi2/dof (p) of o | r² |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    summary = {}
    for kind, method in product(EXACT, methods):
        mine = [row for row in rows if row["case"][1:3] == [kind, method]]
        o, m = (fitted(measurements(mine, of_m), choices) for of_m in ("", "_of_m"))
        o["seeds"] = [fitted(measurements([row for row in mine if row["case"][4] == k]), choices[:1]) for k in seeds]
        summary[f"{kind}, {method}"] = {"o": o, "m": m}
        found = [in_words(each, key, digits) for key, digits in (("T_c", 5), ("nu", 3)) for each in (o, m)]
        chi2 = "{0:.2f} ({p:.2g})".format(o["first"]["chi2"] / o["first"]["dof"], **o["first"]) if "first" in o else ""
        lines.append(f"| {kind} | {method} | {' | '.join(found)} | {chi2} | {min(row['r2'] for row in mine):.4f} |")
    study.finish(summary, plot(rows), *lines)


if __name__ == "__main__":
    main()
