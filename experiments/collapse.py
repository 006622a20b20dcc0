"""From the measurements of critical_temperature.py to curves for finite-size scaling, and their figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ising.exact import T_CRITICAL, kaufman
from ising.scaling import Curves, Scaling

Row = dict[str, Any]
Fit = tuple[Scaling, float, float]  # with the errors of T_c and nu
N_BLOCKS, N_BINS = 50, 20  # blocks of samples at one temperature; bins of temperatures near T_c


def moments(rows: list[Row], rng: np.random.Generator | None = None) -> list[Curves]:
    """U_4 and <m^2> by size and temperature; given a generator, of a bootstrap sample of the blocks."""
    sizes, temperatures = (np.array([row["case"][k] for row in rows]) for k in (1, 2))
    m2, m4 = (np.array([row[key] for row in rows]) for key in ("m2", "m4"))
    u4 = 1 - m4.mean(axis=1) / (3 * m2.mean(axis=1) ** 2)
    influence = m4 / m4.mean(axis=1)[:, None] - 2 * m2 / m2.mean(axis=1)[:, None]  # of each block on ln(1 - U_4)
    errors = ((1 - u4) * influence.std(axis=1) / np.sqrt(N_BLOCKS), m2.std(axis=1) / np.sqrt(N_BLOCKS))
    if rng is not None:
        chosen = rng.integers(N_BLOCKS, size=m2.shape)
        m2, m4 = (np.take_along_axis(each, chosen, axis=1) for each in (m2, m4))
        u4 = 1 - m4.mean(axis=1) / (3 * m2.mean(axis=1) ** 2)
    return [
        Curves(sizes, temperatures, u4, errors[0]),
        Curves(sizes, temperatures, m2.mean(axis=1), errors[1], exponent=-0.3),
    ]


def probabilities(rows: list[Row], log: bool = False, rng: np.random.Generator | None = None) -> list[Curves]:
    """Mean P(T) of the networks of each size; given a generator, of a bootstrap sample of networks with random noise.

    With `log`, x will be multiplied by the square root of the specific heat at T_c.
    """
    parts = []
    for size in dict.fromkeys(row["case"][2] for row in rows):
        mine = [row for row in rows if row["case"][2] == size]
        t, p, noise = (np.array([row[key] for row in mine]) for key in ("t", "p", "error"))
        scatter = p.std(axis=0, ddof=1) / np.sqrt(len(p)) if len(p) > 1 else 0.0
        error = np.hypot(noise.mean(axis=0), scatter)
        if rng is not None:
            # The mean of n networks sampled from n scatters too little, by a factor of sqrt((n - 1) / n).
            again, factor = p[rng.integers(len(p), size=len(p))].mean(axis=0), np.sqrt(len(p) / max(1, len(p) - 1))
            p = p + factor * (again - p.mean(axis=0)) + noise.mean(axis=0) * rng.standard_normal(p.shape[1])
        stretch = np.full(N_BINS, np.sqrt(kaufman(T_CRITICAL, size)[1]) if log else 1.0)
        parts.append((np.full(N_BINS, size), t[0], p.mean(axis=0), error, stretch))
    sizes, t, p, error, stretch = (np.concatenate(part) for part in zip(*parts, strict=True))
    return [Curves(sizes, t, p, error, stretch=stretch)]


def by_size(axes: Axes, curves: Curves, x: Any, values: Any, errors: Any) -> None:
    """Points with error bars, in one colour per size."""
    for k, size in enumerate(np.unique(curves.sizes)):
        mine = curves.sizes == size
        axes.errorbar(x[mine], values[mine], errors[mine], fmt=".", color=f"C{k}", capsize=1, label=f"L = {size}")


def scaled(curves: Curves, fit: Scaling) -> Any:
    """x = (T - T_c) L^(1 / nu) with the fitted T_c and nu."""
    return (curves.temperatures - fit.t_c) * curves.sizes ** (1 / fit.nu)


def plot(moments: Sequence[Curves], classifiers: Mapping[str, Curves], found: Mapping[str, Fit]) -> Figure:
    """Methods (a), (b) and (c), and T_c and nu of (a) and (b) beside the exact values."""
    figure = Figure(figsize=(13, 11), layout="constrained")
    grid = figure.subplots(3, 3)
    u4, m2 = moments
    fit = found["(a) samples"][0]
    by_size(grid[0, 0], u4, u4.temperatures, u4.values, u4.errors)
    grid[0, 0].set(xlabel="T [J / $k_B$]", ylabel="$U_4$", title="(a) samples")
    by_size(grid[0, 1], u4, scaled(u4, fit), u4.values, u4.errors)
    scale = m2.sizes ** -fit.exponents[0]
    by_size(grid[0, 2], m2, scaled(m2, fit), m2.values * scale, m2.errors * scale)
    grid[0, 1].set(ylabel="$U_4$", title="(a) collapse, corrections not subtracted")
    grid[0, 2].set(ylabel=rf"$\langle m^2 \rangle L^{{{-fit.exponents[0]:.3f}}}$", title=grid[0, 1].get_title())
    plain, curves = grid[1, 0], classifiers["sigmoid units"]
    by_size(plain, curves, curves.temperatures, curves.values, curves.errors)
    plain.axhline(0.5, color="0.7", linewidth=0.8)
    plain.set(xlabel="T [J / $k_B$]", ylabel="mean $P(T < T_c)$", title="(b) sigmoid units")
    panels = {
        "sigmoid units": (grid[1, 1], "(b) sigmoid units: collapse"),
        "cnn": (grid[1, 2], "(b) cnn: collapse"),
        "sigmoid units, apart": (grid[2, 0], "(c) sigmoid units, trained away from $T_c$"),
    }
    for name, (collapsed, title) in panels.items():
        curves = classifiers[name]
        by_size(collapsed, curves, scaled(curves, found[name][0]), curves.values, curves.errors)
        collapsed.set(ylabel="mean $P(T < T_c)$", title=title)
    for axes in (grid[0, 1], grid[0, 2], grid[1, 1], grid[1, 2], grid[2, 0]):
        axes.set_xlabel(r"$(T - T_c)\,L^{1/\nu}$ as fitted")
    for axes in (grid[0, 0], grid[1, 0]):
        axes.axvline(T_CRITICAL, color="0.5", linestyle=":")
        axes.legend(fontsize="x-small")
    fits = {name: fit for name, fit in found.items() if "apart" not in name}  # their curves do not collapse
    results = np.array([(fit.t_c, t_c, fit.nu, nu) for fit, t_c, nu in fits.values()]).T
    for axes, k, exact, label in ((grid[2, 1], 0, T_CRITICAL, "$T_c$"), (grid[2, 2], 2, 1.0, r"$\nu$")):
        axes.errorbar(results[k], range(len(fits)), xerr=results[k + 1], fmt="o", capsize=3)
        axes.axvline(exact, color="0.5", linestyle=":", label=f"exact: {exact:.5g}")
        for row, name in enumerate(fits):
            axes.annotate(name, (results[k, row], row - 0.15), ha="center", va="bottom", fontsize="x-small")
        axes.set(xlabel=f"{label}, bootstrap errors", yticks=[], title="(a) and (b)")
        axes.margins(x=0.3, y=0.1)
        axes.invert_yaxis()
        axes.legend(fontsize="x-small")
    return figure
