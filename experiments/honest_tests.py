"""Does a test of a file say what to expect on new data, and do intervals contain as many targets as they promise?

python -m experiments.honest_tests [--quick]

Files with groups of ten related rows are divided at random, and with --group: 300 Markov chains, whose configurations
are a sweep or eight attempted flips apart, and a table of 80 subjects. The error of the test is compared with that of
the same network on 5,000 new examples. Coverage: the fraction of test targets
in intervals of 90 %, for a table with noise that varies and for Ising configurations, divided at random, and with a
test above a limit. Each seed has its own data.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.random import default_rng

from config import DataConfig
from engine.datasets.file_formats import complete_config
from engine.datasets.splits import load_data
from engine.interface import Config, Problem
from engine.interface import DataConfig as SharedDataConfig
from engine.learning.intervals import coverage
from engine.learning.prediction import build_model, predict
from examples import table
from experiments.common import Row, Study, case_seed
from ising import metropolis, multispin
from main import predicted_for
from problem import PROBLEM
from trainer import Trainer

SEEDS = range(50)
LIMITS = {"table": ("x1", "1"), "ising": ("temperatures", "3")}
LEVEL = 0.9
N_GROUPS = {"chains, a sweep": 300, "chains, eight flips": 300, "subjects": 80}
FLIPS = {"chains, a sweep": 64, "chains, eight flips": 8}


@contextlib.contextmanager
def file_with(arrays: dict[str, Any]) -> Iterator[str]:
    """A data file with these arrays. What is printed in the meantime is discarded."""
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w", encoding="utf-8") as nothing:
        path = str(Path(folder) / "data.npz")
        np.savez(path, **arrays)
        with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            yield path


def trained_on(problem: Problem[Any], config: Config) -> tuple[Any, Any, Any]:
    """The complete config, the data, and a network that was trained on them as main.py does."""
    config = complete_config(problem, config)
    data = load_data(problem, config)
    model = build_model(problem, config, data.train)
    Trainer(problem, config, model, data.train, data.val).fit()
    return config, data, model


def chains(n: int, per_chain: int, flips: int, seed: int) -> dict[str, Any]:
    """Some configurations of each of n Markov chains, so many attempted flips apart, at temperatures from 1 to 4."""
    rng = default_rng(seed)
    temperatures, chain = rng.uniform(1, 4, n), np.arange(n)
    spins = multispin.sample(8, temperatures, metropolis.equilibration_sweeps(8), seed)
    snapshots = []
    for _ in range(per_chain):
        for _ in range(flips):
            i, j = rng.integers(0, 8, (2, n))
            neighbours = spins[chain, i - 1, j] + spins[chain, (i + 1) % 8, j]
            neighbours += spins[chain, i, j - 1] + spins[chain, i, (j + 1) % 8]
            is_flipped = rng.random(n) < np.exp(-2 * spins[chain, i, j] * neighbours / temperatures)
            spins[chain, i, j] *= np.where(is_flipped, -1, 1).astype(np.int8)
        snapshots.append(spins.copy())
    tiled = {"temperatures": np.tile(temperatures, per_chain), "group": np.tile(chain, per_chain)}
    return {"spins": np.concatenate(snapshots), **tiled}


def subjects(n: int, per_subject: int, noise: float, seed: int) -> dict[str, Any]:
    """A table with some rows of each of n subjects, whose inputs hardly differ."""
    rng = default_rng(seed)
    group = np.repeat(np.arange(n), per_subject)
    x = rng.normal(size=(n, 3))[group] + 0.05 * rng.normal(size=(len(group), 3))
    y = np.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2] + noise * (1 + x[:, 1] ** 2) * rng.normal(size=len(x))
    return {"x1": x[:, 0], "x2": x[:, 1], "x3": x[:, 2], "y": y, "group": group}


def config_for(kind: str, preset: str, path: str, epochs: int, seed: int, **data: Any) -> tuple[Problem[Any], Config]:
    """The problem of a kind of file, and the config of a run."""
    if kind == "table":
        options = {"inputs": ("x1", "x2", "x3"), "hidden": (256, 256), "data": SharedDataConfig(file=path, **data)}
        problem: Problem[Any] = table.PROBLEM
    else:
        options, problem = {"data": DataConfig(file=path, **data)}, PROBLEM
    config = problem.presets[preset if kind != "table" else "default"]
    return problem, replace(config, seed=seed, train=replace(config.train, epochs=epochs), **options)


def related(file: str, n: int, rows: int, seed: int) -> dict[str, Any]:
    """A file with n groups of related rows."""
    return subjects(n, rows, 0.0, seed) if file == "subjects" else chains(n, rows, FLIPS[file], seed)


def leak(file: str, division: str, seed: int, n: int, epochs: int) -> Row:
    """The mean absolute error of the test of a file with related rows, and that on new ones."""
    case, kind = case_seed("leak", seed), "table" if file == "subjects" else "ising"
    sizes: dict[str, Any] = {"num_train": 8 * n, "num_val": n, "num_test": n}
    sizes |= {"group": "group"} if division == "with --group" else {}
    with file_with(related(file, n, 10, case)) as path:
        problem, config = config_for(kind, "default", path, epochs, seed, **sizes)
        config, data, model = trained_on(problem, config)
        found = {}
        for name, columns in {"test": data.test, "new": related(file, 5000, 1, case + 1)}.items():
            errors = predict(problem, config, model, columns) - problem.target(config, columns)
            found[name] = float(np.abs(errors).mean())
        return found


def cover(kind: str, division: str, seed: int, n: int, epochs: int) -> Row:
    """The fraction of test targets in the intervals."""
    case, tenth = case_seed("cover", kind, seed), n // 10
    data: dict[str, Any] = {"num_train": 4 * tenth, "num_val": tenth, "num_test": tenth, "num_calibration": tenth}
    data |= {"test_above": LIMITS[kind]} if division == "beyond a limit" else {}
    with file_with(subjects(n, 1, 0.2, case) if kind == "table" else chains(n, 1, 0, case)) as path:
        problem, config = config_for(kind, "debug", path, epochs, seed, **data)
        config, found, model = trained_on(problem, config)
        calibration, test = (predicted_for(problem, config, model, each) for each in (found.calibration, found.test))
        return {"coverage": coverage(calibration, test)["coverage_90"]}


def in_words(values: list[float]) -> str:
    """The mean with its standard error, and the smallest and the largest value."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.4f} ± {error:.4f} | {min(values):.3f} to {max(values):.3f}"


def plot(rows: dict[str, list[float]]) -> Figure:
    """The coverage of every seed, and its mean."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(LEVEL, color="black", linewidth=1, label="promised")
    for place, values in enumerate(rows.values()):
        heights = place + np.linspace(-0.25, 0.25, len(values))
        axes.plot(values, heights, ".", color="C0", alpha=0.5, label="one seed" if place == 0 else None)
        axes.plot(np.mean(values), place, "D", color="C1", label="mean of all seeds" if place == 0 else None)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("fraction of test targets in intervals of 90 %")
    axes.set_xlim(0, 1)
    axes.legend(loc="upper left")
    return figure


def main() -> None:
    """Measure all cases, and print the tables."""
    study = Study(__file__, __doc__)
    seeds, n, epochs = (range(2), 300, 1) if study.quick else (SEEDS, 2000, 20)
    leaks = {
        f"{file}, {division}": study.measure(
            leak, [(file, division, s, 20 if study.quick else n_groups, 2 * epochs) for s in seeds[:10]]
        )
        for file, n_groups in N_GROUPS.items()
        for division in ("at random", "with --group")
    }
    covered = {
        f"{kind}, {division}": study.measure(cover, [(kind, division, s, n, epochs) for s in seeds])
        for kind in ("table", "ising")
        for division in ("at random", "beyond a limit")
    }
    values = {name: [row["coverage"] for row in rows] for name, rows in covered.items()}
    lines = [
        "| groups, and how they are divided | mae of the test | range | mae on new data | range |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, rows in leaks.items():
        lines.append(f"| {name} | {' | '.join(in_words([row[key] for row in rows]) for key in ('test', 'new'))} |")
    lines += ["", f"| intervals of {100 * LEVEL:.0f} % | coverage | range |", "|---|---:|---:|"]
    lines += [f"| {name} | {in_words(each)} |" for name, each in values.items()]
    means = {name: float(np.mean(each)) for name, each in values.items()}
    study.finish({"coverage": means}, plot(values), *lines)


if __name__ == "__main__":
    main()
