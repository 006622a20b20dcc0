"""Why do units that are trained away from T_c give a temperature that is too high?

python -m experiments.away_from_tc [--quick]

In label_shift.py, sigmoid units that are trained at T < 1.8 and T > 2.8 give a T_c that is 0.07 J / k_B too high. Here,
their P(T) is replaced by the fraction of configurations with |m| > m*. The first imitation uses the threshold m* of the
units of each size, measured with their answers. The second one uses the same threshold for all sizes.

At T_c, |m| falls as L^-1/8. With a common threshold, P(T_c) therefore also falls with L, and the curves of two sizes
cross below T_c. They cross above T_c if m* falls faster than L^-1/8. The magnetisation of hot configurations, and with
it the range in which m* can be, falls as 1 / L.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.classifiers import best_thresholds, between, classifier
from experiments.common import Row, Study, case_seed
from experiments.label_shift import TESTED, away_from_tc, binned, fitted, mean_with_error
from ising import lattice
from ising.exact import T_CRITICAL

COMMON = 0.6  # the common threshold
KINDS = ("network", "threshold of each size", "common threshold")


def imitate(size: int, seed: int, n: int, n_test: int) -> Row:
    """Train the units, and return their P(T) and the two imitations, with the threshold and its agreement."""
    case = case_seed("away", size, seed)
    splits = between(T_CRITICAL - 1, T_CRITICAL + 1, size, case, num_train=n, num_val=2000)
    splits = splits._replace(train=away_from_tc(splits.train), val=away_from_tc(splits.val))
    width = TESTED / size
    test = between(T_CRITICAL - width, T_CRITICAL + width, size, case + 1, num_test=n_test).test
    odds, t = classifier("sigmoid units", case, splits)(test), test["temperatures"]
    m = np.abs(lattice.magnetization(test["spins"]))
    (threshold,), (agreement,) = best_thresholds(m, odds[:, None] > 0)
    answers = (odds, *(np.where(m > value, np.inf, -np.inf) for value in (threshold, COMMON)))
    row = {kind: binned(t, answer) for kind, answer in zip(KINDS, answers, strict=True)}
    return row | {"threshold": float(threshold), "agreement": float(agreement)}


def cell(values: Sequence[float], errors: Sequence[float] = ()) -> str:
    """A mean with its error."""
    return "{:.3f} ± {:.3f}".format(*mean_with_error(values, errors)) if values else ""


def plot(rows: list[Row], sizes: Sequence[int]) -> Figure:
    """P(T) of the units and of the two imitations, for the first seed."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 3, sharey=True), KINDS, strict=True):
        for k, size in enumerate(sizes):
            row = next(row for row in rows if row["case"][1] == size)[kind]
            axes.errorbar(
                row["t"], row["p"], row["error"], fmt="osv^D"[k] + "-", ms=3, color=f"C{k}", label=f"L = {size}"
            )
        axes.axvline(T_CRITICAL, color="0.5", linestyle=":", label="exact $T_c$")
        axes.set(xlabel="temperature [J / $k_B$]", ylabel="mean P", title=kind)
    axes.legend(fontsize="small")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    sizes, seeds, n = ((4, 6, 8, 12), (1,), 2_000) if study.quick else ((8, 12, 16, 24, 32), range(1, 6), 15_000)
    rows = study.measure(imitate, [(size, s, n, 4 * n // 3) for size in reversed(sizes) for s in seeds])
    lines = ["| sigmoid units, trained away from T_c | fitted - exact T_c | fits |", "|---|---:|---:|"]
    summary: Row = {}
    for kind in KINDS:
        of_seeds = [[row for row in rows if row["case"][2] == seed] for seed in seeds]
        found = [fitted([row[kind] | {"case": [*"____", row["case"][1]]} for row in mine]) for mine in of_seeds]
        fits = [fit for fit in found if fit is not None]
        summary[kind] = [fit.t_c - T_CRITICAL for fit in fits]
        shown = cell(summary[kind], [fit.t_c_error for fit in fits])
        lines.append(f"| {kind} | {shown} | {len(fits)} of {len(seeds)} |")
    lines += ["", f"| | {' | '.join(f'L = {size}' for size in sizes)} |", "|---|" + "---:|" * len(sizes)]
    for name, power in (("threshold", 0.0), ("threshold times L^1/8", 0.125), ("agreement", 0.0)):
        values = [[row[name.split()[0]] * size**power for row in rows if row["case"][1] == size] for size in sizes]
        lines.append(f"| {name} | {' | '.join(map(cell, values))} |")
    study.finish(summary, plot(rows, sizes), *lines)


if __name__ == "__main__":
    main()
