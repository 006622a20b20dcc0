# Machinery: keep, and skip at first.
"""Which runs a comparison compares, how they differ, and what it says about them."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from engine.machine.errors import BadRequestError
from engine.many_runs.comparison import CORRECTED, SIGNIFICANCE, Table, compared_metrics, estimates, tables, unfinished
from engine.many_runs.listing import confirmed, mark_killed, typed
from engine.options.config_values import flatten
from engine.options.suggestions import Known, suggest
from engine.run_folder.find_run import find_runs, run_folder
from engine.run_folder.saved_run import Run, read_run

Groups = Mapping[str, Sequence[Run]]  # runs that only differ in the seed, by the name of the group

# What can make the results of equal configs differ: keys of run_info.json, and what they are called in tables.
ORIGIN = {
    "problem": "problem",
    "git_commit": "commit",
    "problem_sha256": "code of the problem",
    "trainer_sha256": "trainer.py",
    "torch": "torch",
    "device": "device",
}


class Comparison(NamedTuple):
    """What is known about groups of runs."""

    groups: Groups
    origin: Table  # the options and the origin of each group, as far as they differ
    tables: list[Table]  # estimates and, for several groups, differences to the first one
    notes: list[str]


def runs_of(argument: str) -> list[Run]:
    """The run that an argument names, or all runs of the sweep, or the runs that match the pattern.

    Raises:
        BadRequestError: there is no such run.
    """
    if (folder := run_folder(argument)) is not None and (run := read_run(folder)) is not None:
        return [run]
    if (folder := run_folder(argument, "sweep.json")) is not None:
        if runs := confirmed(find_runs(folder)):
            return runs
        raise BadRequestError(f"{argument}: this sweep has no runs yet: run it first")
    everything, pattern = find_runs(Path("checkpoints")), argument.removeprefix("checkpoints/")
    fits = [r for r in everything if fnmatchcase(r.name, pattern) and r.name.count("/") == pattern.count("/")]
    if not fits:
        raise BadRequestError(
            f"{argument[:100]}: there is no such run or sweep; "
            + suggest(pattern, known_names(everything), "`python runs.py` lists all runs")
        )
    return fits


def known_names(runs: Sequence[Run]) -> list[Known]:
    """The names of runs and of their sweeps, for suggestions."""
    names = [run.name for run in runs]
    return [Known(name, (name,)) for name in dict.fromkeys([*(n.partition("/")[0] for n in names), *names])]


def find_groups(arguments: Sequence[str]) -> dict[str, list[Run]]:
    """Group the runs that arguments name, and name the groups.

    Runs are in the same group if they have the same setting and the same code. A sweep has its own groups, so that a
    comparison of two sweeps shows the effect of an edit.

    Raises:
        BadRequestError: an argument is not a run or a sweep.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    seen: set[Path] = set()
    for argument in arguments:
        # From a pattern such as checkpoints/*. Unlike Path.is_file, this is false for a name that is too long.
        if os.path.isfile(argument) and len(arguments) > 1:  # noqa: PTH113
            continue
        runs = runs_of(argument)
        is_sweep = run_folder(argument, "sweep.json") is not None
        for run in mark_killed([each for each in runs if each.folder.resolve() not in seen]):
            seen.add(run.folder.resolve())
            code = [str(run.info.get(key)) for key in ("problem", "problem_sha256", "trainer_sha256")]
            setting = json.dumps(run.setting, sort_keys=True)
            groups.setdefault((argument if is_sweep else "", setting, *code), []).append(run)
    named: dict[str, list[Run]] = {}
    for group in groups.values():
        name, n = _name(group), 2
        while name in named:
            name, n = f"{_name(group)} ({n})", n + 1
        named[name] = group
    return named


def _name(runs: Sequence[Run]) -> str:
    """The name of a run. For several runs: their name without the seed and the time of the start, or their label."""
    if len(runs) == 1:
        return runs[0].name
    names = {re.sub(rf"[-_./]?(seed)?[-_]?{r.member}(-\d{{8}}-\d{{6}}-\d+)?$", "", r.name) for r in runs}
    return (names.pop() if len(names) == 1 else "") or runs[0].label


def compare(groups: Groups, metrics: Sequence[str] = ()) -> Comparison:
    """Compare groups of runs.

    Raises:
        BadRequestError: no run is finished, the runs are of several problems, or there is no such metric.

    """
    found = {name: estimates(runs) for name, runs in groups.items()}
    if not any(found.values()):
        statuses = "; ".join(f"{name}: {unfinished(runs)}" for name, runs in groups.items())
        raise BadRequestError(f"no run is finished, so that there is nothing to compare ({statuses})")
    if len(problems := {run.problem for runs in groups.values() for run in runs}) > 1:
        raise BadRequestError(f"the runs are of {' and '.join(sorted(problems))}: compare runs of one problem")
    known = dict.fromkeys(name for each in found.values() for name in each)
    metrics = [_find_metric(word, known) for word in metrics] or compared_metrics(groups)
    shown = tables(groups, metrics)
    return Comparison(
        groups, _origin(groups), shown, _notes(groups, n_comparisons=len(shown[1].rows) if shown[1:] else 0)
    )


def _find_metric(word: str, known: Mapping[str, Any]) -> str:
    for name in (word, f"test_{word}"):
        if name in known:
            return name
    meant = suggest(word, [Known(name, (name,)) for name in known], f"use one of {', '.join(known)}")
    raise BadRequestError(f"--metrics {word}: no such metric; {meant}")


def _origin(groups: Groups) -> Table:
    """The options and the origin of the groups, as far as they differ."""
    settings = [flatten(runs[0].setting) for runs in groups.values()]
    options = [flatten(runs[0].config) for runs in groups.values()]
    paths = [
        path
        for path in dict.fromkeys(p for each in settings for p in each)
        if len({str(each.get(path)) for each in settings}) > 1
    ]
    names = Counter(path.rpartition(".")[2] for path in paths)
    columns = {
        p if names[name] > 1 else name: [typed(each[p]) if p in each else "" for each in options]
        for p, name in ((path, path.rpartition(".")[2]) for path in paths)
    }
    for key, title in ORIGIN.items():
        values = [sorted({_shown(key, run) for run in runs}) for runs in groups.values()]
        if len({tuple(each) for each in values}) > 1 or any(len(each) > 1 for each in values):
            columns[title] = [", ".join(each) for each in values]
    rows = [(name, *(column[i] for column in columns.values())) for i, name in enumerate(groups)]
    return Table(("setting", *columns), rows)


def _shown(key: str, run: Run) -> str:
    value = run.info.get(key)
    if value is None:
        return "unknown"
    text = str(value)[:10] if key == "git_commit" or key.endswith("sha256") else str(value)
    return f"{text}, with changes" if key == "git_commit" and run.info.get("git_dirty") else text


def _notes(groups: Groups, n_comparisons: int) -> list[str]:
    """What a reader of the tables has to know."""
    finished = {name: [r for r in runs if r.is_finished] for name, runs in groups.items()}
    compared = {name: runs for name, runs in finished.items() if runs}
    notes = []
    if n_comparisons:
        (reference, first), *others = compared.items()
        notes.append(
            f"Differences are to {reference}, paired by seed. Errors are standard errors over seeds. Verdicts: "
            f"Student's t, two-sided, at {100 * SIGNIFICANCE:g} %"
            + (f" / {n_comparisons} comparisons." if n_comparisons > 1 else ".")
        )
        notes += _notes_on_data(first, dict(others))
        metrics = {run.main_metric for runs in compared.values() for run in runs}
        if len(metrics) > 1:
            notes.append(f"Warning: the runs have different main metrics ({', '.join(sorted(m for m, _ in metrics))}).")
    if any(run.overlap for runs in compared.values() for run in runs):
        notes.append(CORRECTED)
    for name, runs in compared.items():
        if (n := len(runs) - len({run.member for run in runs})) > 0:
            notes.append(f"{name}: {n} of the runs have the seed of a newer one, and do not count.")
    return notes


def _notes_on_data(first: Sequence[Run], others: Groups) -> list[str]:
    """Whether the runs that are paired have the same data."""
    before = {run.member: run.info.get("data_sha256") for run in first}
    noisy = []
    for name, runs in others.items():
        now = {run.member: run.info.get("data_sha256") for run in runs}
        if any(before[seed] is None or before[seed] != now[seed] for seed in before.keys() & now.keys()):
            noisy.append(name)
    if not noisy:
        return ["Paired runs have the same data, so that the noise of the data does not affect the differences."]
    which = "Paired runs" if len(noisy) == len(others) else f"The runs of {', '.join(noisy)}"
    return [f"{which} do not have the same data, so that the differences contain the noise of the data."]


def curves(groups: Groups) -> dict[str, list[dict[int, float]]]:
    """The validation losses of the finished runs of each group, by epoch."""
    found = {name: [run.val_losses() for run in runs if run.is_finished] for name, runs in groups.items()}
    return {name: [each for each in losses if each] for name, losses in found.items() if any(losses)}


def most_interesting(groups: Groups, n: int) -> list[str]:
    """The first group and, of the others, those with the best main metric: at most n names, in the order of groups."""
    means: dict[str, float] = {}
    for name, runs in groups.items():
        finished = [run for run in runs if run.is_finished]
        if finished:
            metric, direction = finished[0].main_metric
            found = estimates(finished).get(f"test_{metric}")
            means[name] = (found.mean if direction == "min" else -found.mean) if found else float("inf")
    first, *others = means
    chosen = {first, *sorted(others, key=lambda name: means[name])[: n - 1]}
    return [name for name in means if name in chosen]
