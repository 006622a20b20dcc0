"""Do phase classifiers measure T_c, or the temperature that defines their labels?

python -m experiments.label_shift [--quick]

A network learns to distinguish T < T_c from T > T_c. Its mean output P(T) on lattices of several sizes collapses onto
one function of x = (T - T_c) L^(1 / nu): J. Carrasquilla, R. G. Melko, Nature Phys. 13, 431 (2017). Here the labels say
whether T < T_label, with T_label from 0.05 J below T_c to 0.10 J above it. The temperature ranges are centred on
T_label, as they would be if T_label were believed to be T_c. If the method measured T_c, the fit would return T_c. (At
the largest shift, the test range of the largest lattice, T_label ± 0.08 J, does not contain T_c.)

The half-widths of the ranges are 8 / L in training and 2.5 / L in the test. This choice assumes nu = 1. As a control,
logistic regression on |m| is also trained and tested in ranges that shrink as L^-1/2, as for nu = 2. The sigmoid units
`away from T_c` are only trained on T < 1.8 and T > 2.8, and tested around T_c. Their labels do not depend on T_c.

Each seed has its own training and test configurations, and its own fit. Errors are those of the mean over the seeds
(mean_with_error). The chi-square is the sum over all fits; it takes into account the noise of the test configurations,
but not the differences between trainings.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import expit, gammaincc

from engine.interface import Columns
from experiments.classifiers import between, log_odds, relabelled
from experiments.common import Row, Study, case_seed
from ising.exact import T_CRITICAL
from ising.scaling import Measurements, Scaling, fit_scaling
from ising.statistics import t_factor, temperature_bins
from utils import print_line

Setting = tuple[str, float, float]

SHIFTS = (-0.05, -0.02, 0.0, 0.05, 0.1)  # of T_label, in J / k_B
# Classifier, the exponent with which its temperature ranges shrink with L, and the shift of its labels.
SETTINGS: list[Setting] = [
    *(("magnetization", exponent, shift) for exponent in (1.0, 0.5) for shift in SHIFTS),
    *((name, 1.0, shift) for name in ("cnn", "sigmoid units") for shift in (-0.05, 0.0, 0.05, 0.1)),
    ("sigmoid units, away from T_c", 1.0, 0.0),
]
N_SEEDS = {"magnetization": 5}  # of the networks: 10
TRAINED, TESTED, REFERENCE = 8.0, 2.5, 16  # half-widths times L; the ranges of all exponents agree at L = 16


def away_from_tc(columns: Columns) -> Columns:
    """The configurations at T < 1.8 and T > 2.8."""
    away = (columns["temperatures"] < 1.8) | (columns["temperatures"] > 2.8)
    return {name: column[away] for name, column in columns.items()}


def classify(name: str, exponent: float, shift: float, size: int, seed: int, n: int, n_test: int) -> Row:  # noqa: PLR0917
    """Train a classifier. Return P(T) around T_label in bins: mean temperature, mean probability and its error."""
    case, label = case_seed(name, exponent, shift, size, seed), T_CRITICAL + shift
    trained, tested = (width * REFERENCE ** (exponent - 1) / size**exponent for width in (TRAINED, TESTED))
    away = name.endswith("T_c")
    width = 1.0 if away else trained
    splits = between(label - width, label + width, size, case, num_train=n, num_val=2000)
    splits = splits._replace(train=relabelled(splits.train, shift), val=relabelled(splits.val, shift))
    if away:
        splits = splits._replace(train=away_from_tc(splits.train), val=away_from_tc(splits.val))
    test = between(label - tested, label + tested, size, case + 1, num_test=n_test).test
    return binned(test["temperatures"], log_odds(name.partition(",")[0], case, splits, test))


def binned(t: NDArray[np.float64], odds: NDArray[np.float64]) -> Row:
    """Mean temperature, mean probability and its standard error, in bins of temperature."""
    p = expit(odds)
    row: Row = {"t": [], "p": [], "error": []}
    for chosen in temperature_bins(t):
        line = np.polynomial.Polynomial.fit(t[chosen], p[chosen], 1)  # the slope within a bin is not noise
        row["t"].append(float(t[chosen].mean()))
        row["p"].append(float(p[chosen].mean()))
        row["error"].append(float((p[chosen] - line(t[chosen])).std(ddof=2) / np.sqrt(len(chosen))))
    return row


def curves(rows: list[Row]) -> Measurements:
    """P(T) at all sizes from the classifiers of one seed."""
    sizes = np.repeat([row["case"][4] for row in rows], [len(row["t"]) for row in rows])
    t, p, error = (np.concatenate([row[key] for row in rows]) for key in ("t", "p", "error"))
    return Measurements(sizes, t, p[:, None], error[:, None, None] ** 2, (False,))


def fitted(rows: list[Row]) -> Scaling | None:
    """T_c and nu from the classifiers of one seed, or None if the fit is refused."""
    try:
        return fit_scaling(curves(rows), degree=5)
    except ValueError as error:
        print_line(f"fit refused: {error}")
        return None


def plot(fits: dict[Setting, list[Scaling]]) -> Figure:
    """Fitted T_c and nu against the shift of the label, with standard errors over the seeds."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, method in enumerate(dict.fromkeys(setting[:2] for setting in fits)):
        each = {shift: found for (*other, shift), found in fits.items() if tuple(other) == method and found}
        shifts = np.array([*each]) + 0.0015 * (k - 2)  # shifted for clarity
        for axes, key, offset in ((left, "t_c", T_CRITICAL), (right, "nu", 0.0)):
            values = [mean_of(found, key, offset) for found in each.values()]
            means, errors = zip(*values, strict=True)
            axes.errorbar(
                shifts, means, errors, fmt="os^vD"[k], capsize=3, markersize=5, label=in_words(*method, math=True)
            )
    ends = np.array([SHIFTS[0] - 0.01, SHIFTS[-1] + 0.01])
    left.plot(ends, ends, "k--", linewidth=0.8, label=r"fitted $T_c$ = $T_\mathrm{label}$")
    left.axhline(0, color="0.5", linestyle=":", label="fitted $T_c$ = exact $T_c$")
    right.axhline(1, color="0.5", linestyle=":", label=r"exact $\nu$ = 1")
    left.set(ylabel="fitted $T_c$ $-$ exact $T_c$ [J / $k_B$]")
    right.set(ylabel=r"fitted $\nu$")
    for axes in (left, right):
        axes.set_xlabel(r"$T_\mathrm{label} - T_c$ [J / $k_B$]")
        axes.legend(fontsize="small")
    return figure


def mean_with_error(values: Sequence[float], errors: Sequence[float] = ()) -> tuple[float, float]:
    """The mean of some seeds, and its error, such that one error covers 68 %.

    The error is that from the scatter, with Student's factor, or that from the errors of the values, if it is larger. A
    single value without an error has the error NaN.
    """
    n, own = len(values), float(np.linalg.norm(errors)) / len(values)
    scatter = float(np.std(values, ddof=1)) / n**0.5 * t_factor(n) if n > 1 else 0.0
    return float(np.mean(values)), max(scatter, own) if n > 1 or errors else float("nan")


def mean_of(fits: Sequence[Scaling], key: str, offset: float = 0.0) -> tuple[float, float]:
    """The mean of `t_c` or `nu` over the fits of some seeds, minus an offset, and its error."""
    return mean_with_error([getattr(f, key) - offset for f in fits], [getattr(f, f"{key}_error") for f in fits])


def in_words(name: str, exponent: float, math: bool = False) -> str:
    """The name of a method in tables, and with `math` in legends."""
    if math:
        name = name.replace("away from T_c", "trained away from $T_c$")
    power = f"$L^{{-{exponent:g}}}$" if math else f"L^-{exponent:g}"
    return name if exponent == 1 else f"{name}, ranges as {power}"


def main() -> None:
    study = Study(__file__, __doc__)
    sizes, n, n_test = ([4, 6, 8, 12], 4_000, 10_000) if study.quick else ([8, 12, 16, 24, 32], 15_000, 20_000)
    settings = SETTINGS[:2] if study.quick else SETTINGS
    seeds = {setting: range(1, 2 if study.quick else 1 + N_SEEDS.get(setting[0], 10)) for setting in settings}
    cases = [(*each, size, k, n, n_test) for each in settings for size in reversed(sizes) for k in seeds[each]]
    rows = study.measure(classify, cases)
    lines = [
        "| classifier | T_label - T_c | fitted - exact T_c | nu | chi2 / dof of all fits | p | fits |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    fits: dict[Setting, list[Scaling]] = {}
    for setting in settings:
        mine = [row for row in rows if tuple(row["case"][1:4]) == setting]
        found = [fitted([row for row in mine if row["case"][5] == seed]) for seed in seeds[setting]]
        fits[setting] = accepted = [fit for fit in found if fit is not None]
        cells = [""] * 4
        if accepted:
            (t_c, t_c_error), (nu, nu_error) = mean_of(accepted, "t_c", T_CRITICAL), mean_of(accepted, "nu")
            chi2, dof = sum(fit.chi2 for fit in accepted), sum(fit.dof for fit in accepted)
            cells = [f"{t_c:+.4f} ± {t_c_error:.4f}", f"{nu:.3f} ± {nu_error:.3f}"]
            cells += [f"{chi2:.0f} / {dof}", f"{gammaincc(dof / 2, chi2 / 2):.2g}"]
        of_all = f"{len(accepted)} of {len(seeds[setting])}"
        name = in_words(*setting[:2]).replace("away", "trained away")
        lines.append(f"| {name} | {setting[2]:+.2f} | {' | '.join(cells)} | {of_all} |")
    summary = {
        f"{in_words(*setting[:2])}, {setting[2]:+.2f}": [
            {**{k: v for k, v in fit._asdict().items() if k != "coefficients"}, "p": fit.p_value} for fit in each
        ]
        for setting, each in fits.items()
    }
    study.finish(summary, plot(fits), *lines)


if __name__ == "__main__":
    main()
