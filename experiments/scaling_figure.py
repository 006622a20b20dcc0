"""The figure of critical_temperature.py: curves as measured, the same fallen onto each other, and what follows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ising.exact import T_CRITICAL
from ising.scaling import Curves


def by_size(axes: Axes, curves: Curves, x: Any, values: Any, errors: Any) -> None:
    """Points with error bars, a colour a size."""
    for k, size in enumerate(np.unique(curves.sizes)):
        mine = curves.sizes == size
        axes.errorbar(x[mine], values[mine], errors[mine], fmt=".", color=f"C{k}", capsize=1, label=f"L = {size}")


def scaled(curves: Curves, fit: Mapping[str, Any]) -> Any:
    """(T - T_c) L^(1 / nu) with what was fitted."""
    return (curves.temperatures - fit["t_c"]) * curves.sizes ** (1 / fit["nu"])


def draw(moments: Sequence[Curves], classifiers: Mapping[str, Curves], found: Mapping[str, Any]) -> Figure:
    """Roads (a), (b) and (c), and T_c and nu of each beside the exact ones."""
    figure = Figure(figsize=(13, 11), layout="constrained")
    grid = figure.subplots(3, 3)
    u4, m2 = moments
    fit = found["(a) samples"]
    by_size(grid[0, 0], u4, u4.temperatures, u4.values, u4.errors)
    grid[0, 0].set(xlabel="T [J / $k_B$]", ylabel="$U_4$", title="(a) samples")
    by_size(grid[0, 1], u4, scaled(u4, fit), u4.values, u4.errors)
    scale = m2.sizes ** -fit["exponents"][0]
    by_size(grid[0, 2], m2, scaled(m2, fit), m2.values * scale, m2.errors * scale)
    grid[0, 1].set(ylabel="$U_4$", title="(a) collapse")
    grid[0, 2].set(ylabel=rf"$\langle m^2 \rangle L^{{{-fit['exponents'][0]:.3f}}}$", title="(a) collapse")
    panels = (
        ("sigmoid units", grid[1, 0], grid[1, 1]),
        ("cnn", None, grid[1, 2]),
        ("sigmoid units, apart", None, grid[2, 0]),
    )
    for name, plain, collapsed in panels:
        curves = classifiers[name]
        if plain is not None:
            by_size(plain, curves, curves.temperatures, curves.values, curves.errors)
            plain.axhline(0.5, color="0.7", linewidth=0.8)
            plain.set(xlabel="T [J / $k_B$]", ylabel="mean $P(T < T_c)$", title=f"(b) {name}")
        by_size(collapsed, curves, scaled(curves, found[name]), curves.values, curves.errors)
        road = "(c)" if name.endswith("apart") else "(b)"
        collapsed.set(ylabel="mean $P(T < T_c)$", title=f"{road} {name}: collapse")
    for axes in (grid[0, 1], grid[0, 2], grid[1, 1], grid[1, 2], grid[2, 0]):
        axes.set_xlabel(r"$(T - T_c)\,L^{1/\nu}$ as fitted")
    for axes in (grid[0, 0], grid[1, 0]):
        axes.axvline(T_CRITICAL, color="0.5", linestyle=":")
        axes.legend(fontsize="x-small")
    names = list(found)
    for axes, key, exact, label in ((grid[2, 1], "t_c", T_CRITICAL, "$T_c$"), (grid[2, 2], "nu", 1.0, r"$\nu$")):
        values, errors = ([found[name][which] for name in names] for which in (key, f"{key}_error"))
        axes.errorbar(values, range(len(names)), xerr=errors, fmt="o", capsize=3)
        axes.axvline(exact, color="0.5", linestyle=":", label=f"exact: {exact:.5g}")
        axes.set(
            yticks=range(len(names)), yticklabels=names if key == "t_c" else [], xlabel=f"{label}, bootstrap errors"
        )
        axes.invert_yaxis()
        axes.legend(fontsize="x-small")
    return figure
