"""Classifiers of phases in two settings that others have published, beside the best there can be.

python -m experiments.published [--quick]

Where P(T) = 1/2 at L = 24: C. Chin-Way's networks (ml-ising-phases on GitHub), trained on T < 1.7 and T > 2.9, cross at
2.333 (MLP) and 2.292 (CNN).
The critical set at L = 40: configurations at T = 2, 2.25 and 2.5, for networks that have seen none so near to T_c.
P. Mehta et al. (Physics Reports 810, 1, 2019) have right 0.959 of them by a dense network and 0.914 by a CNN, where
two in three are ordered. Ours of `apart` have seen T < 1.8 and T > 2.8 alone, the others what lies around T_c. Bayes'
rule, which knows the three temperatures, reads all there is to be read.
"""

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.common import Row, Study
from experiments.critical_temperature import TRAINED, network, within
from ising import exact, lattice, multispin
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from task import PhaseTask, predict

CROSSINGS = {"sigmoid units, apart": 2.333, "cnn, apart": 2.292, "sigmoid units": None, "cnn": None}
CRITICAL_SET = (2.0, 2.25, 2.5)
ACCURACIES = {"sigmoid units, apart": 0.959, "cnn, apart": 0.914, "sigmoid units": None, "cnn": None, "bayes": None}


def taught(name: str, size: int, seed: int, n: int) -> torch.nn.Module:
    """A network of that name, which has seen the temperatures that it is to see."""
    width = 1.0 if name.endswith("apart") else TRAINED / size
    return network(name, seed, within(width, size, 100 + seed, num_train=n, num_val=n // 5, num_test=1))


def cross(name: str, size: int, seed: int, n: int) -> Row:
    """The temperature near T_c, if there is one, at which the mean of P(T < T_c) that a network gives is 1/2."""
    test = within(0.3, size, 9, num_train=1, num_val=1, num_test=n).test
    examples = PhaseTask(size**2).examples(test.spins, test.temperatures, torch.device("cpu"))
    answers = torch.sigmoid(predict(taught(name, size, seed, n), examples).double()).numpy()
    bins = np.array_split(np.argsort(test.temperatures), 30)
    t, p = ([values[chosen].mean() for chosen in bins] for values in (test.temperatures, answers))
    return {"crossing": float(np.interp(-0.5, -np.array(p), t)) if p[-1] < 0.5 < p[0] else None}


def judge(name: str, size: int, seed: int, n: int) -> Row:
    """The share of right answers at each temperature of the critical set, of n configurations a temperature."""
    temperatures = np.repeat(CRITICAL_SET, n)
    spins = multispin.sample(size, temperatures, equilibration_sweeps(size), 900 + seed, 1)
    if name == "bayes":
        odds = exact.phase_log_odds(lattice.energy(spins), temperatures, size)
    else:
        examples = PhaseTask(size**2).examples(spins, temperatures, torch.device("cpu"))
        odds = predict(taught(name, size, seed, n), examples).numpy()
    right = (odds > 0) == (temperatures < T_CRITICAL)
    return {"accuracy": right.reshape(len(CRITICAL_SET), n).mean(axis=1).tolist()}


def draw(accuracies: dict[str, np.ndarray]) -> Figure:
    """Accuracies (seeds, temperatures) on the critical set, the mean of the seeds with its standard error."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(CRITICAL_SET))
    for k, (name, values) in enumerate(accuracies.items()):
        errors = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
        axes.errorbar(places + 0.1 * (k - 2), values.mean(axis=0), errors, fmt="osv^x"[k], capsize=3, label=name)
    axes.set_xticks(places, [f"T = {t:g}" for t in CRITICAL_SET])
    axes.set(ylabel="share of right answers, critical set of L = 40", ylim=(None, 1.02))
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
    study.finish(summary, draw(accuracies), *lines)


if __name__ == "__main__":
    main()
