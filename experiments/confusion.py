"""Does learning by confusion find T_c, and what decides where its peak is?

python -m experiments.confusion [--quick]

Configurations have temperatures that are uniform in a range. For each trial temperature T', a classifier learns whether
T < T'. Its accuracy as a function of T' has the shape of a W, whose middle peak is taken as T_c: E. van Nieuwenburg,
Y.-H. Liu, S. Huber, Nature Phys. 13, 435 (2017). A network learns all labels at once, with one output for each T'.

The best possible classifier is Bayes' rule, which compares the energy with a threshold. Its accuracy follows from exact
theory. The energy determines the temperature of a configuration with an error sigma(T) = T / sqrt(C), where C is the
specific heat of the whole lattice. The rule fails if this error is larger than the distance of T from T'. For large
lattices, the fraction of failures is sqrt(2 / pi) sigma(T') / range. The peak is therefore at the maximum of C / T^2,
which is the Fisher information about T: J. Arnold et al., arXiv 2311.10710.

Classifiers: thresholds of the energy and of |m|, which are determined with the training configurations, and two
networks. One is convolutional with 2 x 2 kernels, the other has 100 sigmoid units that are connected to all spins.
"""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engine.interface import Columns, Splits
from experiments.classifiers import best_thresholds
from experiments.common import Row, Study, case_seed
from experiments.many_labels import N_BETWEEN, TRAINING, bayes, is_below
from ising import exact, lattice, multispin
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps

Floats = NDArray[np.float64]

# L, the range of temperatures, and the numbers of training and test configurations. The first look covers 1 to 4. The
# others are centred on 2.3, which is above the peaks of the first look. Their half-width is about 8 sigma, as measured
# by the fraction of errors.
LOOKS = (
    (32, 1.0, 4.0, 15_360, 20_480),
    (32, 1.9, 2.7, 15_360, 40_960),
    (64, 2.1, 2.5, 15_360, 20_480),
    (128, 2.2, 2.4, 6_144, 12_288),
)
QUICK_LOOKS = tuple((size, low, 5.0 - low, 512, 1024) for size, low in ((8, 1.0), (8, 1.5), (12, 1.6), (16, 1.9)))
N_LABELS = 49
STEPS = equilibration_sweeps(128, clusters=True)
METHODS = ("energy", "magnetization", *TRAINING)


def trial_temperatures(low: float, high: float) -> Floats:
    """T', (K,)."""
    return np.linspace(low, high, N_LABELS + 2)[1:-1]


def middle(temperatures: Floats, low: float, high: float) -> NDArray[np.bool_]:
    """Which temperatures are in the middle 60 % of a range. Outside of it, the accuracy rises to 1 at both ends."""
    return np.abs(temperatures - (low + high) / 2) < 0.3 * (high - low)


def peak(accuracies: Floats, low: float, high: float) -> float:
    """The middle peak of a W: the maximum of a polynomial of degree 6, fitted to the middle of the range."""
    labels = trial_temperatures(low, high)
    chosen = middle(labels, low, high)
    curve = np.polynomial.Polynomial.fit(labels[chosen], accuracies[chosen], 6)
    x = np.linspace(labels[chosen][0], labels[chosen][-1], 2001)
    return float(x[curve(x).argmax()])


def ideal(size: int, low: float, high: float) -> Row:
    """Exact accuracies of Bayes' rule, and temperatures: their peak, the fitted peak, and the maximum of C / T^2."""
    t, accuracies = bayes(size, np.linspace(low, high, N_LABELS + 2))
    information = exact.kaufman(t, size)[1] / t**2
    at_labels, chosen = accuracies[N_BETWEEN - 1 : -1 : N_BETWEEN], middle(t, low, high)
    tops = {"maximum of C / T²": information, "Bayes' rule, exact": accuracies}
    peaks = {name: float(t[np.where(chosen, curve, 0).argmax()]) for name, curve in tops.items()}
    peaks["the same, from the fit"] = peak(at_labels, low, high)
    return {"look": [size, low, high], "accuracies": at_labels.tolist(), "peaks": peaks}


def sample(size: int, low: float, high: float, n: int, seed: int) -> Columns:
    """Configurations at n evenly spaced temperatures. With random ones, the noise of their density would dominate."""
    t = low + (high - low) * (np.arange(n) + 0.5) / n
    return {"spins": multispin.sample(size, t, STEPS, seed, 1, clusters=True), "temperatures": t}


def confuse(size: int, low: float, high: float, seed: int, n: int, n_test: int) -> Row:  # noqa: PLR0917
    """Accuracies of all classifiers on test configurations, and their peaks with errors from 100 bootstrap samples.

    The bootstrap exchanges configurations only within groups of eight neighbouring temperatures. The error is at least
    that of rounding to the nearest T'.
    """
    case, labels = case_seed(size, low, high, seed), trial_temperatures(low, high)
    splits = Splits(*(sample(size, low, high, number, case + k) for k, number in enumerate((n, 1024, n_test))))
    train, _, test = splits
    answers = {}
    for name, value in (("energy", lattice.energy), ("magnetization", lambda s: -np.abs(lattice.magnetization(s)))):
        thresholds, _ = best_thresholds(value(train["spins"]), train["temperatures"][:, None] >= labels)
        answers[name] = value(test["spins"])[:, None] <= thresholds
    for name in TRAINING:
        answers[name] = is_below(name, labels, case, splits)
    rng, row = np.random.default_rng(case), {}
    weights = rng.multinomial(8, np.full(8, 1 / 8), size=(100, n_test // 8)).reshape(100, n_test) / n_test
    for name, answer in answers.items():
        correct = (answer == (test["temperatures"][:, None] < labels)).astype(np.float64)
        accuracies = correct.mean(axis=0)
        error = max(np.std([peak(each, low, high) for each in weights @ correct]), (labels[1] - labels[0]) / 12**0.5)
        row[name] = {"accuracies": accuracies.tolist(), "peak": peak(accuracies, low, high), "error": float(error)}
    return row


def extrapolate(sizes: Floats, peaks: Floats, errors: Floats, power: float = 1.0) -> tuple[float, float]:
    """T_c with its error from a straight line through the peaks as a function of L^-power."""
    (_, t_c), covariance = np.polyfit(sizes**-power, peaks, 1, w=1 / errors, cov="unscaled")
    return float(t_c), float(covariance[1, 1] ** 0.5)


def combined(rows: list[Row]) -> tuple[float, float]:
    """The mean peak of some seeds. Its error is the larger one of that from the bootstrap and that from the scatter."""
    peaks, errors = (np.array([row[key] for row in rows]) for key in ("peak", "error"))
    scatter = peaks.std(ddof=1) if len(rows) > 1 else 0.0
    return float(peaks.mean()), float(max(np.sqrt((errors**2).mean()), scatter) / np.sqrt(len(rows)))


def plot(exact_rows: list[Row], rows: list[Row], results: dict[str, list[tuple[float, float]]]) -> Figure:
    """Accuracies for all temperatures, temperature errors sigma near the peak, and the peaks against 1 / L."""
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    left, right, last = figure.subplots(1, 3)
    for k, exact_row in enumerate(exact_rows):
        size, low, high = exact_row["look"]
        mine = [row for row in rows if row["case"][1:4] == [size, low, high]]
        curves = [np.array(exact_row["accuracies"])]
        curves += [np.mean([row[name]["accuracies"] for row in mine], axis=0) for name in METHODS[1:]]
        labels, axes = trial_temperatures(low, high), left
        chosen = np.ones(len(labels), bool)
        if k > 0:
            axes, chosen = right, middle(labels, low, high)
            curves = [(1 - curve) * (high - low) * np.sqrt(np.pi / 2) for curve in curves]
            axes.annotate(f"L = {size}", (labels[chosen][0], curves[0][chosen][0]), ha="right", fontsize="small")
        for style, curve, name in zip(
            ("k-", "C0o", "C1s", "C2^"), curves, ("Bayes' rule, exact", *METHODS[1:]), strict=True
        ):
            axes.plot(labels[chosen], curve[chosen], style, markersize=3, linewidth=0.8, label=name)
    left.set(ylabel="accuracy", title=f"L = {exact_rows[0]['look'][0]}, first look")
    left.legend(fontsize="small")
    right.set(ylabel=r"temperature error $\sigma$ [J / $k_B$]", yscale="log")
    for axes in (left, right):
        axes.axvline(T_CRITICAL, color="0.5", linestyle=":")
        axes.set_xlabel("trial temperature $T'$ [J / $k_B$]")
    inverse = np.array([1 / row["look"][0] for row in exact_rows[1:]])
    for name, line in (("Bayes' rule, exact", "k-"), ("the same, from the fit", "k--")):
        last.plot(inverse, [row["peaks"][name] for row in exact_rows[1:]], line, linewidth=0.8, label=name)
    for m, name in enumerate(METHODS):
        peaks, errors = np.array(results[name][1:]).T
        colour, places = "black" if m == 0 else f"C{m - 1}", inverse * (1 + 0.02 * (m - 1.5))
        last.errorbar(places, peaks, errors, fmt="Dos^"[m], capsize=3, color=colour, label=name)
    last.axhline(T_CRITICAL, color="0.5", linestyle=":", label="exact $T_c$")
    last.set(xlabel="1 / L", ylabel="peak [J / $k_B$]", xlim=(0, None))
    last.legend(fontsize="small")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    looks, seeds = (QUICK_LOOKS, (1,)) if study.quick else (LOOKS, (1, 2))
    exact_rows = [ideal(*look[:3]) for look in looks]
    cases = [(*look[:3], seed, *look[3:]) for look in reversed(looks) for seed in seeds]
    rows = study.measure(confuse, cases)
    by_look = [[row for row in rows if row["case"][1:4] == list(look[:3])] for look in looks]
    sizes = np.array([size for size, *_ in looks[1:]], float)
    lines = [f"| peak | {' | '.join(f'L = {size}, {low:g} to {high:g}' for size, low, high, *_ in looks)} | T_c |"]
    lines.append("|---|" + "---:|" * (len(looks) + 1))
    for name in exact_rows[0]["peaks"]:
        peaks = np.array([row["peaks"][name] for row in exact_rows])
        t_c, _ = extrapolate(sizes, peaks[1:], np.ones(len(sizes)))
        lines.append(f"| {name} | {' | '.join(f'{each:.4f}' for each in peaks)} | {t_c:.4f} |")
    results: dict[str, list[tuple[float, float]]] = {}
    summary: Row = {"exact": exact_rows}
    for name in METHODS:
        results[name] = [combined([row[name] for row in each]) for each in by_look]
        peaks, errors = np.array(results[name][1:]).T
        t_c, error = extrapolate(sizes, peaks, errors)
        others = [extrapolate(sizes, peaks, errors, power)[0] for power in (0.5, 2.0)]
        summary[name] = {"peaks": results[name], "t_c": t_c, "error": error, "other_powers": others}
        cells = " | ".join(f"{value:.4f} ± {error:.4f}" for value, error in results[name])
        lines.append(f"| {name} | {cells} | {t_c:.4f} ± {error:.4f} ({others[0]:.4f} to {others[1]:.4f}) |")
    study.finish(summary, plot(exact_rows, rows, results), *lines)


if __name__ == "__main__":
    main()
