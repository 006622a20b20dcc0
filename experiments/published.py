"""Phase classifiers compared with published ones, on data of the same kind and size.

python -m experiments.published [--quick]

Networks are trained far from T_c, at L = 24. Their crossing is the temperature at which the mean probability of T < T_c
is 1/2. README.md of ml-ising-phases (C. Chin-Way, on GitHub) gives 2.333 for a network of 64 ReLU units and 2.292 for a
convolutional one, from one seed each: examples/cnn_demo.py, `compare(L=24, n_per_temp=120, epochs=40, seed=0)`. Its
temperatures are 1.0, 1.1 ... 3.5, with 120 configurations each. The 1,680 configurations at T <= 1.6 and T >= 2.9 are
the training set, and the curve uses all 3,120.

This experiment uses the same temperatures and numbers of configurations, from independent chains. A tenth of the
training configurations is used to choose the epoch. `64 relu units` is the published network with the published
training; the others are those of label_shift.py. Published values are listed next to networks of the same kind.
"""

import numpy as np
from matplotlib.figure import Figure
from scipy.special import expit

from engine.interface import Columns, Splits
from experiments.classifiers import log_odds
from experiments.common import Row, Study, case_seed
from ising import multispin
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps

SIZE, TEMPERATURES = 24, np.round(np.linspace(1, 3.5, 26), 1)
PUBLISHED: dict[str, float | None] = {"64 relu units": 2.333, "sigmoid units": None, "cnn": 2.292}


def cross(name: str, seed: int, n: int) -> Row:
    """Train a classifier. Return mean P(T < T_c) at each temperature, and the lowest T at which it falls to 1/2."""
    case = case_seed(name, seed)
    t = np.repeat(TEMPERATURES, n)
    columns: Columns = {"spins": multispin.sample(SIZE, t, equilibration_sweeps(SIZE), case, 1), "temperatures": t}
    far = np.random.default_rng(case).permutation(np.flatnonzero((t <= 1.6) | (t >= 2.9)))
    train, val = (
        {key: column[part] for key, column in columns.items()} for part in np.split(far, [len(far) * 9 // 10])
    )
    p = expit(log_odds(name, case, Splits(train, val, columns), columns)).reshape(-1, n).mean(axis=1)
    below = int(np.argmax(p < 0.5))  # the first temperature at which it is below 1/2
    crossing = float(np.interp(-0.5, -p[below - 1 : below + 1], TEMPERATURES[below - 1 : below + 1]))
    return {"p": p.tolist(), "crossing": crossing if below > 0 else None}


def plot(rows: dict[str, list[Row]]) -> Figure:
    """P(T) of the classifiers: mean and standard deviation over the seeds."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for k, (name, each) in enumerate(rows.items()):
        p = np.array([row["p"] for row in each])
        axes.errorbar(TEMPERATURES, p.mean(axis=0), p.std(axis=0), fmt="os^"[k] + "-", capsize=2, ms=4, label=name)
        if (published := PUBLISHED[name]) is not None:
            axes.axvline(published, color=f"C{k}", linestyle="--", linewidth=0.8, label=f"published crossing, {name}")
    axes.axvline(T_CRITICAL, color="0.5", linestyle=":", label="exact $T_c$")
    axes.axhline(0.5, color="0.8", linewidth=0.8, zorder=0)
    axes.axvspan(1.6, 2.9, color="0.95", zorder=0, label="not used in training")
    axes.set(xlabel="temperature [J / $k_B$]", ylabel="mean $P(T < T_c)$")
    axes.set_title(f"L = 24; mean and standard deviation of {len(p)} seeds", fontsize="medium")
    axes.legend(fontsize="x-small", loc="upper right")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    seeds, n = (range(1, 3), 20) if study.quick else (range(1, 11), 120)
    found = study.measure(cross, [(name, seed, n) for name in PUBLISHED for seed in seeds])
    rows = {name: [row for row in found if row["case"][1] == name] for name in PUBLISHED}
    lines = [
        "| classifier, L = 24 | T where P(T) = 1/2, mean | lowest to highest seed | published, one seed |",
        "|---|---:|---:|---:|",
    ]
    summary: Row = {}
    for name, each in rows.items():
        values = np.array([row["crossing"] for row in each], float)
        mean = f"{values.mean():.4f} ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}"
        lines.append(f"| {name} | {mean} | {values.min():.4f} to {values.max():.4f} | {PUBLISHED[name] or ''} |")
        summary[name] = {"crossings": values.tolist(), "published": PUBLISHED[name]}
    study.finish(summary, plot(rows), *lines)


if __name__ == "__main__":
    main()
