"""T_c and nu from samples of finite lattices, with statistical and systematic errors.

python -m experiments.critical_temperature [--quick]

The Binder cumulant and <m^2> of independent samples are fitted together: the curves of all sizes collapse onto one as
functions of x = (T - T_c) L^(1 / nu). The exact T_c and nu are not used. A pilot measurement chooses eleven
temperatures for each size, between those at which the Binder cumulant is 0.65 and 0.5. It finds these by bisection,
starting from 1.5 and 3.5. The two observables are measured on the same samples, and the fit uses their covariance.

The result is an average over fits with all combinations of `DEGREES`, `OMEGAS`, `SMALLEST` and `WINDOWS`: the degree of
the polynomials, the correction exponent, the smallest lattice, and the range of x. Its systematic error is the weighted
scatter of the fits. The table shows the fits that differ from the first one in one choice.
"""

from itertools import product

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.common import Row, Study
from ising import lattice, multispin
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from ising.scaling import SIGNIFICANT, Average, Choice, Measurements, Scaling, average, vary
from ising.statistics import binder_cumulant

EDGES = (0.65, 0.5)  # values of the Binder cumulant at the ends of the temperature range of each size
FIRST = Choice(degree=4, omega=1.75, smallest_size=0, window=1.0)  # chosen before the measurement
DEGREES, OMEGAS, SMALLEST, WINDOWS = (4, 3, 5, 6), (1.75, 1.0, 1.4, 2.0, 3.0), (0, 12, 16, 24), (1.0, 0.8, 0.6, 0.4)


def magnetizations(size: int, temperature: float, n: int) -> np.ndarray:
    """Magnetisations per spin of n independent configurations: (n,)."""
    seed = np.random.SeedSequence([size, round(1e6 * temperature), n])
    spins = multispin.sample(size, np.full(n, temperature), equilibration_sweeps(size), seed, 1)
    return lattice.magnetization(spins)


def explore(size: int, edge: float, n: int) -> Row:
    """The temperature at which the Binder cumulant equals `edge`, by bisection with n configurations per step."""
    low, high = 1.5, 3.5
    for _ in range(9):
        middle = round((low + high) / 2, 6)
        above = binder_cumulant(magnetizations(size, middle, n)) > edge
        low, high = (middle, high) if above else (low, middle)
    return {"temperature": round((low + high) / 2, 4)}


def sample(size: int, temperature: float, n: int) -> Row:
    """Means of m^2 and m^4, and the covariance of these means, from n independent configurations."""
    m = magnetizations(size, temperature, n)
    moments = np.stack([m**2, m**4])
    return {"means": moments.mean(axis=1).tolist(), "covariance": (np.cov(moments) / n).tolist()}


def measurements(rows: list[Row]) -> Measurements:
    """U_4 and <m^2>. Their covariance follows from that of the moments by propagation of errors to first order."""
    sizes, temperatures = (np.array([row["case"][k] for row in rows]) for k in (1, 2))
    m2, m4 = np.array([row["means"] for row in rows]).T
    slopes = np.array([[2 * m4 / (3 * m2**3), -1 / (3 * m2**2)], [np.ones_like(m2), np.zeros_like(m2)]])
    slopes = np.moveaxis(slopes, 2, 0)  # (n, observable, moment)
    covariances = slopes @ np.array([row["covariance"] for row in rows]) @ slopes.swapaxes(1, 2)
    values = np.stack([1 - m4 / (3 * m2**2), m2], axis=1)
    return Measurements(sizes, temperatures, values, covariances, (False, True))


def by_size(axes: Axes, data: Measurements, x: np.ndarray, k: int, scale: np.ndarray | float = 1.0) -> None:
    """Plot observable k with error bars, in one colour per size."""
    values, errors = data.values[:, k] * scale, np.sqrt(data.covariances[:, k, k]) * scale
    sizes = np.unique(data.sizes)
    for size, colour in zip(sizes, colormaps["viridis"](np.linspace(0, 0.9, len(sizes))), strict=True):
        mine = data.sizes == size
        axes.errorbar(x[mine], values[mine], errors[mine], fmt=".", color=colour, ms=5, capsize=2, label=f"L = {size}")


def plot(data: Measurements, fits: dict[Choice, Scaling | str], averages: tuple[Average, Average]) -> Figure:
    """The samples, their collapse, and T_c and nu from some fits and from the average, next to the exact values."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    grid = figure.subplots(2, 3, width_ratios=(1, 1, 1.1))
    fit = next(fit for fit in fits.values() if isinstance(fit, Scaling))
    by_size(grid[0, 0], data, data.temperatures, 0)
    x = (data.temperatures - fit.t_c) * data.sizes ** (1 / fit.nu)
    by_size(grid[0, 1], data, x, 0)
    kappa = fit.exponents[0]
    by_size(grid[1, 1], data, x, 1, data.sizes**-kappa)
    by_size(grid[1, 0], data, data.temperatures, 1)
    for axes, name in ((grid[0, 0], "$U_4$"), (grid[1, 0], r"$\langle m^2 \rangle$")):
        axes.axvline(T_CRITICAL, color="0.5", linestyle=":", label="exact $T_c$")
        axes.set(xlabel="temperature [J / $k_B$]", ylabel=name)
    grid[0, 0].legend(fontsize="x-small")
    for axes, name in ((grid[0, 1], "$U_4$"), (grid[1, 1], rf"$\langle m^2 \rangle L^{{{-kappa:.3f}}}$")):
        axes.set(xlabel=r"$(T - T_c)\,L^{1/\nu}$ [J / $k_B$]", ylabel=name)
    grid[0, 1].set_title("collapse (corrections are not subtracted)", fontsize="medium")
    grid[0, 2].set_title("grey: p < 0.01; average: statistical, total error", fontsize="medium")
    shown = {in_words(choice): each for choice, each in fits.items() if isinstance(each, Scaling)}
    panels = ((grid[0, 2], 0, T_CRITICAL, "$T_c$ [J / $k_B$]"), (grid[1, 2], 2, 1.0, r"$\nu$"))
    for (axes, k, exact, name), mean in zip(panels, averages, strict=True):
        for row, each in enumerate(shown.values()):
            colour = "C0" if each.p_value > 0.01 else "0.6"
            axes.errorbar(each[k], row, xerr=each[k + 1], fmt="o", color=colour, capsize=3)
        total = float(np.hypot(mean.statistical, mean.systematic))
        axes.errorbar(mean.value, len(shown), xerr=total, fmt="D", color="C2", capsize=3)
        axes.errorbar(mean.value, len(shown), xerr=mean.statistical, color="C2", capsize=3)
        axes.axvline(exact, color="0.5", linestyle=":", label=f"exact: {exact:.7g}")
        axes.set_yticks(range(len(shown) + 1), [*shown, "average"], fontsize="small")
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(name)
        axes.legend(fontsize="x-small")
    return figure


def in_words(choice: Choice) -> str:
    """The values in which a choice differs from the first one."""
    names = {"degree": "degree {}", "omega": "ω = {:g}", "smallest_size": "L ≥ {}", "window": "{:.0%} of x range"}
    given = [names[key].format(value) for key, value in choice._asdict().items() if value != getattr(FIRST, key)]
    return ", ".join(given) or f"degree {FIRST.degree}, ω = {FIRST.omega}, all data"


def main() -> None:
    study = Study(__file__, __doc__)
    sizes = [4, 6, 8, 12] if study.quick else [8, 12, 16, 24, 32, 48, 64]
    n_pilot, n = (200, 1000) if study.quick else (1024, 30_000)
    found = study.measure(explore, [(size, edge, n_pilot) for size in reversed(sizes) for edge in EDGES])
    edges = {tuple(row["case"][1:3]): row["temperature"] for row in found}
    ranges = {size: np.linspace(edges[size, EDGES[0]], edges[size, EDGES[1]], 11) for size in reversed(sizes)}
    grid = [(size, round(float(t), 5)) for size, temperatures in ranges.items() for t in temperatures]
    data = measurements(study.measure(sample, [(*point, n * (4 if point[0] < 32 else 1)) for point in grid]))
    choices = [Choice(*each) for each in product(DEGREES, OMEGAS, SMALLEST, WINDOWS)]
    if study.quick:
        choices = choices[::20]
    fits = vary(data, choices)
    shown = {choice: fit for choice, fit in fits.items() if sum(np.not_equal(choice, FIRST)) <= 1}
    lines = ["| fit | T_c | nu | chi2/dof | p |", "|---|---:|---:|---:|---:|"]
    for choice, fit in shown.items():
        cells = [str(fit), "", "", ""]
        if isinstance(fit, Scaling):
            t_c, nu = f"{fit.t_c:.5f} ± {fit.t_c_error:.5f}", f"{fit.nu:.4f} ± {fit.nu_error:.4f}"
            cells = [t_c, nu, f"{fit.chi2:.0f} / {fit.dof}", f"{fit.p_value:.2g}"]
        lines.append(f"| {in_words(choice)} | {' | '.join(cells)} |")
    n_good = sum(isinstance(fit, Scaling) and fit.p_value > SIGNIFICANT for fit in fits.values())
    n_refused = sum(isinstance(fit, str) for fit in fits.values())
    averages = dict(zip(("T_c", "nu"), average(fits.values()), strict=True))
    lines += ["", f"Average over {n_good} fits with p > {SIGNIFICANT} ({len(fits)} in all, {n_refused} refused):"]
    for (name, each), digits in zip(averages.items(), (5, 4), strict=True):
        value, statistical, systematic = (f"{number:.{digits}f}" for number in each)
        lines.append(f"- {name} = {value} ± {statistical} (statistical) ± {systematic} (systematic)")
    summary: Row = {name: each._asdict() for name, each in averages.items()}
    summary["fits"] = [
        {**choice._asdict(), **{key: value for key, value in fit._asdict().items() if key != "coefficients"}}
        for choice, fit in fits.items()
        if isinstance(fit, Scaling)
    ]
    study.finish(summary, plot(data, shown, (averages["T_c"], averages["nu"])), *lines)


if __name__ == "__main__":
    main()
