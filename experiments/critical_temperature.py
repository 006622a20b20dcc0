"""T_c and nu from samples of finite lattices, with statistical and systematic errors.

python -m experiments.critical_temperature [--quick]

The Binder cumulant, <m^2> and their slopes are fitted together: the curves of all sizes collapse onto one as functions
of x = (T - T_c) L^(1 / nu). A slope is the derivative with respect to T, d<A>/dT = (<A E> - <A> <E>) / T^2. It follows
from the same samples, and determines nu much better than differences between temperatures do.

The exact T_c and nu are not used. For each size, a search by bisection from T = 1 to 4 finds the temperatures at which
the Binder cumulant equals `EDGES`, and eight temperatures between these are measured. The means over 512 independent
chains give the covariance of the four values.

The result is an average over fits with all combinations of `DEGREES`, `OMEGAS`, `CORRECTIONS` and the smallest lattice:
the degree of the polynomials, the correction exponent, the number of terms of the corrections, and the lattices that
are left out. Its systematic error is the weighted scatter of the fits. The table shows the fits that differ from the
first one in one choice, and the averages over the fits to the same lattices.
"""

from itertools import product

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.common import Row, Study
from ising import multispin
from ising.exact import T_CRITICAL, kaufman
from ising.metropolis import equilibration_sweeps
from ising.scaling import SIGNIFICANT, Average, Choice, Measurements, Scaling, average, vary
from ising.statistics import binder_cumulant, cumulant_and_slopes

EDGES = (0.635, 0.573)  # values of the Binder cumulant at the ends of the temperature range of each size
N_CHAINS = 512
# Measurements of each chain at each temperature: more on the lattices that matter most for the errors of T_c and nu.
N_STEPS = {384: 500, 256: 900, 192: 1100, 128: 900, 96: 1200, 64: 10_000, 48: 10_000, 32: 8000, 24: 6000, 16: 4500}
# The first of each belongs to the first fit, which was chosen before the measurement.
DEGREES, OMEGAS, CORRECTIONS = (6, 5, 7), (1.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0), (3, 2, 4)
SMALLEST = (24, 16, 32, 48, 64)


def chains(size: int, temperature: float, start: int, n_steps: int) -> multispin.Series:
    """Energies and magnetisations of independent chains, which are measured after each of n_steps steps."""
    seed = np.random.SeedSequence([size, round(1e6 * temperature), n_steps])
    temperatures = np.full(N_CHAINS, temperature)
    return multispin.series(size, temperatures, n_steps, seed, 1, start=start, clusters=True)


def explore(size: int, edge: float, n_steps: int) -> Row:
    """The temperature at which the Binder cumulant equals `edge`, by bisection with short chains."""
    low, high = 1.0, 4.0
    for _ in range(14):
        middle = round((low + high) / 2, 6)
        above = binder_cumulant(chains(size, middle, n_steps, n_steps).magnetizations) > edge
        low, high = (middle, high) if above else (low, middle)
    return {"temperature": round((low + high) / 2, 5)}


def sample(size: int, temperature: float, n_steps: int) -> Row:
    """U_4, <m^2> and their slopes, with their covariance; the bias that was subtracted, and a check of the energy.

    Both are in standard errors. The energy is compared with the exact one, which is not used for anything else.
    """
    energies, magnetizations = chains(size, temperature, equilibration_sweeps(size, clusters=True), n_steps)
    values, covariance, bias = cumulant_and_slopes(magnetizations / size**2, energies, temperature)
    each = energies.mean(axis=1) / size**2
    deviation = (each.mean() - kaufman(temperature, size)[0]) / (each.std(ddof=1) / N_CHAINS**0.5)
    row = {"values": values, "covariance": covariance, "bias": bias / np.sqrt(np.diag(covariance)), "energy": deviation}
    return {key: value.tolist() for key, value in row.items()}


def measurements(rows: list[Row]) -> Measurements:
    """The measured values of all sizes and temperatures."""
    sizes, temperatures = (np.array([row["case"][k] for row in rows]) for k in (1, 2))
    values, covariances = (np.array([row[key] for row in rows]) for key in ("values", "covariance"))
    return Measurements(sizes, temperatures, values, covariances, (False, True))


def plot(data: Measurements, fits: dict[str, Scaling], averages: dict[str, tuple[Average, Average]]) -> Figure:
    """The collapse of the samples, and T_c and nu from some fits and from averages, next to the exact values."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    grid = figure.subplots(2, 2)
    fit = next(iter(fits.values()))
    x = (data.temperatures - fit.t_c) * data.sizes ** (1 / fit.nu)
    sizes = np.unique(data.sizes)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(sizes)))
    names = "$U_4$", rf"$\langle m^2 \rangle L^{{{-fit.exponents[0]:.4f}}}$"
    for k, (axes, kappa, name) in enumerate(zip(grid[:, 0], (0.0, fit.exponents[0]), names, strict=True)):
        for size, colour in zip(sizes, colours, strict=True):
            mine = data.sizes == size
            values, errors = data.values[mine, k], np.sqrt(data.covariances[mine, k, k])
            scale = size**-kappa
            axes.errorbar(
                x[mine], scale * values, scale * errors, fmt=".", color=colour, capsize=2, label=f"L = {size}"
            )
        axes.set(xlabel=r"$(T - T_c)\,L^{1/\nu}$ [J / $k_B$]", ylabel=name)
    grid[0, 0].legend(fontsize="small")
    grid[0, 0].set_title("collapse (corrections are not subtracted)", fontsize="medium")
    has_grey = any(each.p_value <= SIGNIFICANT for each in fits.values())
    grey = f"grey: p < {SIGNIFICANT}; " if has_grey else ""
    grid[0, 1].set_title(f"{grey}averages: statistical, total error", fontsize="medium")
    panels = ((grid[0, 1], T_CRITICAL, "$T_c$ [J / $k_B$]"), (grid[1, 1], 1.0, r"$\nu$"))
    for k, (axes, exact, name) in enumerate(panels):
        for row, each in enumerate(fits.values()):
            colour = "C0" if each.p_value > SIGNIFICANT else "0.6"
            axes.errorbar(each[2 * k], row, xerr=each[2 * k + 1], fmt="o", color=colour, capsize=3)
        for row, means in enumerate(averages.values(), len(fits)):
            for error in (means[k].total, means[k].statistical):
                axes.errorbar(means[k].value, row, xerr=error, fmt="D", color="C2", capsize=3)
        axes.axvline(exact, color="0.5", linestyle=":", label=f"exact: {exact:.7g}")
        axes.set_yticks(range(len(fits) + len(averages)), [*fits, *averages], fontsize="small")
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.set_xlabel(name)
        axes.legend(fontsize="small")
    return figure


def in_words(choice: Choice, first: Choice) -> str:
    """The values in which a choice differs from the first one."""
    names = {"degree": "degree {}", "omega": "ω = {:g}", "n_corrections": "{} corrections", "smallest_size": "L ≥ {}"}
    return ", ".join(
        names[key].format(value)
        for key, value in choice._asdict().items()
        if value != getattr(first, key) or choice == first
    )


def main() -> None:
    study = Study(__file__, __doc__)
    n_steps = dict.fromkeys([24, 16, 12, 8], 100) if study.quick else N_STEPS
    found = study.measure(explore, [(size, edge, 20 if study.quick else 50) for size in n_steps for edge in EDGES])
    edges = {tuple(row["case"][1:3]): row["temperature"] for row in found}
    ranges = {size: np.linspace(edges[size, EDGES[0]], edges[size, EDGES[1]], 8) for size in n_steps}
    grid = [(size, round(float(t), 6), n_steps[size]) for size, temperatures in ranges.items() for t in temperatures]
    rows = study.measure(sample, grid)
    data = measurements(rows)
    choices = [Choice(*each) for each in product(DEGREES, OMEGAS, CORRECTIONS, [8] if study.quick else SMALLEST)]
    fits = vary(data, choices[::20] if study.quick else choices)
    accepted = {choice: fit for choice, fit in fits.items() if isinstance(fit, Scaling)}
    good = {choice: fit for choice, fit in accepted.items() if fit.p_value > SIGNIFICANT}
    shown = {in_words(c, choices[0]): fit for c, fit in accepted.items() if sum(np.not_equal(c, choices[0])) <= 1}
    averages = {
        f"average, L ≥ {size}": average({c: fit for c, fit in good.items() if c.smallest_size == size})
        for size in sorted({c.smallest_size for c in good})
    }
    averages["average"] = average(good)
    table = [(name, *fit[:4], f"{fit.chi2:.0f} / {fit.dof}", f"{fit.p_value:.2g}") for name, fit in shown.items()]
    table += [(name, t_c.value, t_c.total, nu.value, nu.total, "", "") for name, (t_c, nu) in averages.items()]
    lines = ["| fit | T_c | nu | chi2/dof | p |", "|---|---:|---:|---:|---:|"]
    for name, t_c, t_c_error, nu, nu_error, *quality in table:
        cells = name, f"{t_c:.6f} ± {t_c_error:.6f}", f"{nu:.5f} ± {nu_error:.5f}", *quality
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Average over {len(good)} fits with p > {SIGNIFICANT}, of {len(fits)}; errors above are total errors:",
    ]
    for (name, digits), mean in zip((("T_c", 6), ("nu", 5)), averages["average"], strict=True):
        value, statistical, systematic = (f"{number:.{digits}f}" for number in mean)
        lines.append(f"- {name} = {value} ± {statistical} (statistical) ± {systematic} (systematic)")
    reach = np.abs((data.temperatures - T_CRITICAL) * data.sizes).max()
    bias, energy = (np.array([row[key] for row in rows]) for key in ("bias", "energy"))
    lines += [
        "",
        f"Largest |T - T_c| L: {reach:.2f}. Largest subtracted bias: {np.abs(bias).max():.3f} standard errors.",
        f"Mean energies compared with exact ones: chi2/dof = {energy @ energy:.0f} / {len(energy)}.",
    ]
    summary: Row = {name: {"T_c": t_c._asdict(), "nu": nu._asdict()} for name, (t_c, nu) in averages.items()}
    summary["fits"] = [
        {**choice._asdict(), **{key: value for key, value in fit._asdict().items() if key != "coefficients"}}
        for choice, fit in accepted.items()
    ]
    study.finish(summary, plot(data, shown, averages), *lines)


if __name__ == "__main__":
    main()
