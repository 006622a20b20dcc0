"""How well does a network that is trained on 8 x 8 lattices predict the energies of larger and smaller lattices?

python -m experiments.lattice_generalization [--quick]

The preset `exact` is trained on 5,000 configurations of 8 x 8 between T = 1 and 4, with several seeds.

Its architecture contains the answer: kernels of 2 x 2 sites and a mean give a function of the frequencies of the 16
patterns of 2 x 2 spins, in which the energy is linear. Least squares on these frequencies shows what is left to learn.

For comparison: extensive networks (EDNN: K. Mills et al., Chem. Sci. 10, 4129, 2019) are also trained on 8 x 8
lattices. Their notebooks (extensive_deep_neural_networks on GitHub) print median absolute errors of the total energy:
- 0.904 J at 8 x 8, ednn_blog_2_ising-pytorch.ipynb, 2,000 training configurations. Its test loop reads the last
  training batch again, so this is an error on training configurations.
- 1.853 J at 8 x 8, ednn_blog_2_ising.ipynb (TensorFlow), on 500 configurations that are not in training.
- 55.39 J at 128 x 128, ednn_blog_4_large_scale_inference.ipynb, with a network trained longer on 20,000 configurations
  of 8 x 8.
The temperatures of their configurations are not documented, so only orders of magnitude can be compared.
"""

from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from config import PRESETS, DataConfig
from engine.learning.prediction import predict
from experiments.channels import frequencies
from experiments.common import Row, Study, sampled, trained
from ising import lattice
from problem import PROBLEM

SIZES = (4, 8, 16, 32, 64, 128)
EDNN = ((8, 0.904), (8, 1.853), (128, 55.39))  # size and median absolute error of the total energy in J, as above


def generalise(seed: int, sizes: list[int], n_test: int) -> Row:
    """Train on 8 x 8 with a seed. Return the exact fraction, the median and the largest error in J at each size."""
    config = replace(PRESETS["exact"], seed=seed)
    model = trained(config, sampled(config.data, seed))
    row: Row = {"exact_fraction": [], "median": [], "worst": [], "n": []}
    for size in sizes:
        n = max(16, min(n_test, n_test * 1024 // size**2))
        test = sampled(DataConfig(lattice_size=size, num_train=1, num_val=1, num_test=n), 1000 + size).test
        errors = size**2 * np.abs(predict(PROBLEM, config, model, test) - PROBLEM.target(config, test))
        row["exact_fraction"].append(float((errors < 2).mean()))
        row["median"].append(float(np.median(errors)))
        row["worst"].append(float(errors.max()))
        row["n"].append(n)
    return row


def least_squares(seed: int, size: int, n_test: int) -> Row:
    """The least number of 8 x 8 configurations from which least squares on frequencies of patterns is exact at `size`.

    From this number on, all predictions of the test energies are right, up to 100 configurations.
    """
    train = sampled(DataConfig(lattice_size=8, num_train=100, num_val=1, num_test=1), seed).train
    n_test = max(16, min(n_test, n_test * 1024 // size**2))
    test = sampled(DataConfig(lattice_size=size, num_train=1, num_val=1, num_test=n_test), 1000 + size).test
    x, x_test = frequencies(train["spins"]), frequencies(test["spins"])
    y, y_test = lattice.energy(train["spins"]) / 64, lattice.energy(test["spins"])
    is_exact = [
        bool((np.abs(size**2 * (x_test @ np.linalg.lstsq(x[:n], y[:n])[0]) - y_test) < 2).all()) for n in range(1, 101)
    ]
    return {"n": 1 + max((n for n, exact in enumerate(is_exact, 1) if not exact), default=0)}


def plot(rows: list[Row], sizes: list[int]) -> Figure:
    """Errors of the total energy against L, with the range over the seeds."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    series = (("worst", "v", "largest error", 1.03), ("median", "o", "median error", 0.97))
    for key, marker, name, shift in series:
        values = np.array([row[key] for row in rows])  # (seeds, sizes)
        middle = np.median(values, axis=0)
        bars = (middle - values.min(axis=0), values.max(axis=0) - middle)
        label = f"preset exact, {name} (bars: range of {len(rows)} seeds)"
        axes.errorbar(shift * np.array(sizes), middle, bars, fmt=marker, capsize=3, label=label)
    axes.plot(*zip(*EDNN, strict=True), "s", label="EDNN notebooks, median error")
    axes.axhline(2, color="0.5", linestyle=":", label="2 J: half the level spacing")
    axes.set(xscale="log", yscale="log", ylim=(3e-7, 200), xlabel="L (trained on L = 8 only)")
    axes.set_ylabel("absolute error of the total energy [J]")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    figure.legend(fontsize="small", loc="outside upper center", ncols=2)
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    seeds, sizes, n = (range(1), [4, 8, 16], 100) if study.quick else (range(1, 6), list(SIZES), 4000)
    rows = study.measure(generalise, [(seed, sizes, n) for seed in seeds])
    lines = ["| L | configurations | exact fraction, worst seed | median error [J] | largest error [J] |"]
    lines.append("|---:|---:|---:|---:|---:|")
    summary = {}
    for k, size in enumerate(sizes):
        exact, median, worst = (
            np.array([row[key][k] for row in rows]) for key in ("exact_fraction", "median", "worst")
        )
        lines.append(
            f"| {size} | {rows[0]['n'][k]:,} | {exact.min():.4f} | {np.median(median):.2g} | {worst.max():.2g} |"
        )
        summary[str(size)] = {"exact_fraction": exact.min(), "median": np.median(median), "worst": worst.max()}
    n_seeds = 3 if study.quick else 21
    linear = study.measure(least_squares, [(seed, size, n) for size in sizes for seed in range(1, 1 + n_seeds)])
    lines += ["", "| least squares on 16 frequencies | " + " | ".join(f"L = {size}" for size in sizes) + " |"]
    lines += ["|---|" + "---:|" * len(sizes)]
    needed = [np.array([row["n"] for row in linear if row["case"][2] == size]) for size in sizes]
    cells = [f"{np.median(each):.0f} ({each.min()} to {each.max()})" for each in needed]
    lines.append(f"| exact from this number of 8x8 configurations | {' | '.join(cells)} |")
    study.finish(summary, plot(rows, sizes), *lines)


if __name__ == "__main__":
    main()
