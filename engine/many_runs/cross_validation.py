# Machinery: keep, and skip at first.
"""The runs of a sweep with --folds together: every example of the file is tested once for each setting and seed."""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.datasets.prediction_files import named, write_predictions
from engine.datasets.splits import FILE_ROWS
from engine.interface.base_config import load_config
from engine.interface.returned_values import PREDICTED
from engine.machine.errors import UnusableFileError
from engine.machine.terminal import print_line
from engine.many_runs.comparison import Table, main_metric
from engine.many_runs.sweeps import Sweep
from engine.run_folder.saved_run import Run

Groups = Mapping[str, Sequence[Run]]


def by_fold(groups: Groups) -> Table:
    """The main metric of each fold, the mean over the seeds, and the standard deviation over the folds."""
    name = main_metric(groups)[0]
    rows = []
    folds: list[int] = sorted({run.fold for runs in groups.values() for run in runs if run.fold is not None})
    for label, runs in groups.items():
        values = {
            fold: [run.metrics()[name] for run in runs if run.fold == fold and name in run.metrics()] for fold in folds
        }
        means = [statistics.fmean(each) for each in values.values() if each]
        spread = f"{statistics.stdev(means):.3g}" if len(means) > 1 else ""
        rows.append((label, *(f"{statistics.fmean(each):.4g}" if each else "" for each in values.values()), spread))
    return Table((name, *(f"fold {fold}" for fold in folds), "standard deviation"), rows)


def write_out_of_fold(sweep: Sweep, groups: Groups) -> None:
    """Write the test predictions of all finished runs to a file in the folder of the sweep, in the order of the file.

    It is out_of_fold.csv or, if an example has more than a vector of targets, out_of_fold.npz.
    """
    parts = []
    for label, runs in groups.items():
        for run in runs:
            if run.is_finished:
                with suppress(UnusableFileError):  # which the summary of this run shows
                    parts.append(_part(sweep, label, run))
    if not parts:
        return
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((columns["row"], columns["seed"], columns["setting"]))
    suffix = "csv" if all(column.ndim <= 2 for column in columns.values()) else "npz"
    path = sweep.folder / f"out_of_fold.{suffix}"
    write_predictions(path, {name: column[order] for name, column in columns.items()})
    print_line(f"{len(order):,} predictions for the tests of all folds in {path}")


def _part(sweep: Sweep, label: str, run: Run) -> dict[str, NDArray[Any]]:
    """The test predictions of a run."""
    arrays = run.predictions()
    config = load_config(sweep.problem.config_type, run.folder / "config.json")
    chosen = {
        key: each for key, each in arrays.items() if key in ("targets", "predictions") or key.startswith(PREDICTED)
    }
    rows, origin = arrays[FILE_ROWS], {"setting": label, "seed": run.seed, "fold": run.fold}
    of_run = {key: np.full(len(rows), value) for key, value in origin.items()}
    return {"row": rows, **of_run, **named(chosen, sweep.problem.class_names(config))}
