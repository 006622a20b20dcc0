"""Does a test of a file say what to expect on new data, and do intervals contain as many targets as they promise?

python -m experiments.honest_tests [--quick]

Chains: 300 Markov chains of ten configurations, one sweep apart, are divided at random, and with --group. The error of
the test is compared with that of the same network on 5,000 new configurations. Coverage: the fraction of test targets
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
from numpy.typing import NDArray

from config import PRESETS, DataConfig
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


def mae(config: Config, model: Any, columns: Any) -> float:
    """The mean absolute error of energies per spin."""
    return float(np.abs(predict(PROBLEM, config, model, columns) - PROBLEM.target(config, columns)).mean())


def chains(n: int, seed: int) -> dict[str, NDArray[Any]]:
    """Ten configurations of each of n chains, one sweep apart, at temperatures from 1 to 4."""
    rng = default_rng(seed)
    temperatures = rng.uniform(1, 4, n)
    spins = np.moveaxis(metropolis.sample(8, temperatures, metropolis.equilibration_sweeps(8), seed), 0, -1).copy()
    snapshots = []
    for _ in range(10):
        metropolis.sweep(spins, temperatures.astype(np.float32), rng)
        snapshots.append(np.moveaxis(spins, -1, 0).copy())
    each = np.concatenate(snapshots)  # (10 n, 8, 8)
    return {"spins": each, "temperatures": np.tile(temperatures, 10), "chain": np.tile(np.arange(n), 10)}


def leak(division: str, seed: int, n_chains: int, epochs: int) -> Row:
    """The error of the test of a file of chains, and that on new configurations."""
    case, n = case_seed("leak", seed), 10 * n_chains
    new = default_rng(case + 1).uniform(1, 4, 5000)
    with file_with(chains(n_chains, case)) as path:
        group: dict[str, Any] = {"group": "chain"} if division == "with --group" else {}
        sizes: dict[str, Any] = {"num_train": 8 * n // 10, "num_val": n // 10, "num_test": n // 10}
        config = replace(
            PRESETS["default"],
            seed=seed,
            train=replace(PRESETS["default"].train, epochs=epochs),
            data=DataConfig(file=path, **sizes, **group),
        )
        config, data, model = trained_on(PROBLEM, config)
        sampled = {"spins": multispin.sample(8, new, metropolis.equilibration_sweeps(8), case + 2), "temperatures": new}
        return {"test": mae(config, model, data.test), "new": mae(config, model, sampled)}


def cover(kind: str, division: str, seed: int, n: int, epochs: int) -> Row:
    """The fraction of test targets in the intervals."""
    rng = default_rng(case_seed("cover", kind, seed))
    limit: dict[str, Any] = {"test_above": LIMITS[kind]} if division == "beyond a limit" else {}
    sizes: dict[str, Any] = {
        "num_train": 2 * n // 5,
        "num_val": n // 10,
        "num_test": n // 10,
        "num_calibration": n // 10,
    }
    arrays: dict[str, Any]
    if kind == "table":
        x = rng.normal(size=(n, 3))
        y = np.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.2 * (1 + x[:, 1] ** 2) * rng.normal(size=n)
        arrays = {"x1": x[:, 0], "x2": x[:, 1], "x3": x[:, 2], "y": y}
    else:
        temperatures = rng.uniform(1, 4, n)
        spins = multispin.sample(8, temperatures, metropolis.equilibration_sweeps(8), int(rng.integers(2**32)))
        arrays = {"spins": spins, "temperatures": temperatures}
    with file_with(arrays) as path:
        config: Config
        problem: Problem[Any] = table.PROBLEM if kind == "table" else PROBLEM
        if kind == "table":
            train = replace(problem.presets["default"].train, epochs=epochs)
            config = table.TableConfig(train=train, data=SharedDataConfig(file=path, **sizes, **limit), seed=seed)
        else:
            train = replace(PRESETS["debug"].train, epochs=epochs)
            config = replace(PRESETS["debug"], train=train, data=DataConfig(file=path, **sizes, **limit), seed=seed)
        config, data, model = trained_on(problem, config)
        calibration, test = (predicted_for(problem, config, model, each) for each in (data.calibration, data.test))
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
    axes.legend(loc="center left")
    return figure


def main() -> None:
    """Measure all cases, and print the tables."""
    study = Study(__file__, __doc__)
    seeds, n, epochs, n_chains = (range(2), 300, 1, 20) if study.quick else (SEEDS, 2000, 20, 300)
    divisions = ("at random", "with --group")
    leaks = {each: study.measure(leak, [(each, s, n_chains, 2 * epochs) for s in seeds[:10]]) for each in divisions}
    covered = {
        f"{kind}, {division}": study.measure(cover, [(kind, division, s, n, epochs) for s in seeds])
        for kind in ("table", "ising")
        for division in ("at random", "beyond a limit")
    }
    values = {name: [row["coverage"] for row in rows] for name, rows in covered.items()}
    lines = ["| chains divided | mae of the test | range | mae on new data | range |", "|---|---:|---:|---:|---:|"]
    for name, rows in leaks.items():
        lines.append(f"| {name} | {' | '.join(in_words([row[key] for row in rows]) for key in ('test', 'new'))} |")
    lines += ["", f"| intervals of {100 * LEVEL:.0f} % | coverage | range |", "|---|---:|---:|"]
    lines += [f"| {name} | {in_words(each)} |" for name, each in values.items()]
    means = {name: float(np.mean(each)) for name, each in values.items()}
    study.finish({"coverage": means}, plot(values), *lines)


if __name__ == "__main__":
    main()
