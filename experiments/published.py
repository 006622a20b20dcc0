"""Phase classifiers compared with published ones, and with the best possible one, in two settings.

python -m experiments.published [--quick]

- The crossing at L = 24, the temperature at which P(T) = 1/2. It is 2.333 (MLP) and 2.292 (CNN) for the networks of
  C. Chin-Way (ml-ising-phases on GitHub), trained on T < 1.7 and T > 2.9.
- The accuracy on the critical set at L = 40, configurations at T = 2, 2.25 and 2.5. It is 0.959 for a dense network and
  0.914 for a CNN in P. Mehta et al. (Physics Reports 810, 1, 2019), which are trained on temperatures farther from T_c.
  Two thirds of the set are ordered (T < T_c).

Our networks with `apart` in their names are trained on T < 1.8 and T > 2.8 only, the others around T_c. Bayes' rule is
given the three temperatures, and no classifier has a higher accuracy on average.
"""

import numpy as np
from matplotlib.figure import Figure
from scipy.special import expit

from experiments.common import Row, Study
from experiments.critical_temperature import network_log_odds, training_data, within
from ising import exact, lattice, multispin
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps

CROSSINGS = {"sigmoid units, apart": 2.333, "cnn, apart": 2.292, "sigmoid units": None, "cnn": None}
CRITICAL_SET = (2.0, 2.25, 2.5)
ACCURACIES = {"sigmoid units, apart": 0.959, "cnn, apart": 0.914, "sigmoid units": None, "cnn": None, "bayes": None}


def cross(name: str, size: int, seed: int, n: int) -> Row:
    """The temperature near T_c at which a network's mean P(T < T_c) is 1/2, or None if there is none."""
    test = within(0.3, size, 9, num_train=1, num_val=1, num_test=n).test
    p = expit(network_log_odds(name, seed, training_data(name, size, seed, n, n // 5), test))
    bins = np.array_split(np.argsort(test["temperatures"]), 30)
    means, t = ([values[chosen].mean() for chosen in bins] for values in (p, test["temperatures"]))
    crosses = means[-1] < 0.5 < means[0]
    return {"crossing": float(np.interp(-0.5, -np.array(means), t)) if crosses else None}


def judge(name: str, size: int, seed: int, n: int) -> Row:
    """The accuracy at each temperature of the critical set, from n configurations per temperature."""
    temperatures = np.repeat(CRITICAL_SET, n)
    spins = multispin.sample(size, temperatures, equilibration_sweeps(size), 900 + seed, 1)
    if name == "bayes":
        odds = exact.phase_log_odds(lattice.energy(spins), temperatures, size)
    else:
        test = {"spins": spins, "temperatures": temperatures}
        odds = network_log_odds(name, seed, training_data(name, size, seed, n, n // 5), test)
    correct = (odds > 0) == (temperatures < T_CRITICAL)
    return {"accuracy": correct.reshape(len(CRITICAL_SET), n).mean(axis=1).tolist()}


def plot(accuracies: dict[str, np.ndarray]) -> Figure:
    """Accuracies (seeds, temperatures) on the critical set: mean over the seeds, with its standard error."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(CRITICAL_SET))
    for k, (name, values) in enumerate(accuracies.items()):
        errors = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
        axes.errorbar(places + 0.1 * (k - 2), values.mean(axis=0), errors, fmt="osv^x"[k], capsize=3, label=name)
    axes.set_xticks(places, [f"T = {t:g}" for t in CRITICAL_SET])
    axes.set(ylabel="accuracy on the critical set, L = 40", ylim=(None, 1.02))
    axes.legend(title="bars: standard errors", fontsize="small", loc="lower left")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    seeds, n, sizes = (range(1, 2), 200, (8, 8)) if study.quick else (range(1, 4), 15_000, (24, 40))
    crossed = study.measure(cross, [(name, sizes[0], seed, n) for name in CROSSINGS for seed in seeds])
    judged = study.measure(judge, [(name, sizes[1], seed, n) for name in ACCURACIES for seed in seeds])
    lines = [f"| L = {sizes[0]}, P(T) = 1/2 | ours | published |", "|---|---:|---:|"]
    summary: Row = {}
    for name, other in CROSSINGS.items():
        summary[name] = {"crossings": [row["crossing"] for row in crossed if row["case"][1] == name]}
        values = np.array(summary[name]["crossings"], float)
        lines.append(
            f"| {name} | {values.mean():.4f}, seeds {values.min():.4f} to {values.max():.4f} | {other or ''} |"
        )
    lines += [
        "",
        f"| L = {sizes[1]}, critical set | T = 2 | 2.25 | 2.5 | all | published |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    accuracies = {name: np.array([row["accuracy"] for row in judged if row["case"][1] == name]) for name in ACCURACIES}
    for name, values in accuracies.items():
        shares = " | ".join(f"{share:.4f}" for share in (*values.mean(axis=0), values.mean()))
        lines.append(f"| {name} | {shares} | {ACCURACIES[name] or ''} |")
        summary[f"critical set, {name}"] = {"accuracy": values.tolist()}
    study.finish(summary, plot(accuracies), *lines)


if __name__ == "__main__":
    main()
