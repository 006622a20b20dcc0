# Machinery: keep, and skip at first.
"""The summary of a sweep: summary.json, and the tables that sweep.py prints at the end."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from engine.machine.atomic_files import write_json
from engine.many_runs.comparison import (
    CORRECTED,
    Table,
    as_json,
    compare_estimates,
    estimates,
    main_metric,
    markdown_table,
    to_markdown,
)
from engine.many_runs.cross_validation import by_fold, write_out_of_fold
from engine.many_runs.plan import run_name, trial_name
from engine.many_runs.sweeps import Sweep
from engine.run_folder.saved_run import Run, read_run

BEST_SHOWN = 10  # trials in the printed table


def summarize(sweep: Sweep) -> str:
    """Write summary.json from the files of the runs, and return its tables in Markdown.

    The content only depends on the runs: it is the same whether or not the sweep was interrupted.
    """
    with sweep.lock():
        groups = groups_of(sweep)
        trials = _trials(sweep)
        text = "\n\n".join([*_markdown(sweep, groups, trials), _origin(sweep, _records(sweep))])
        write_json(sweep.folder / "summary.json", _content(sweep, groups, trials) | {"table": text})
        if sweep.plan.folds != [None]:
            write_out_of_fold(sweep, groups)
    return text


def groups_of(sweep: Sweep) -> dict[str, list[Run]]:
    """The runs that were started, by the label of their setting."""
    return {
        label_of(sweep, name, values): _started(sweep, name, sweep.plan.seeds, sweep.plan.folds)
        for name, values in sweep.settings().items()
    }


def trials_of(sweep: Sweep) -> dict[str, list[Run]]:
    """The runs of a search that were started, by the label of their trial."""
    return {
        label_of(sweep, trial_name(number), values): _started(sweep, trial_name(number), sweep.plan.trial_seeds)
        for number, values in enumerate(sweep.search.values if sweep.search is not None else ())
    }


def _started(sweep: Sweep, setting: str, seeds: Sequence[int], folds: Sequence[int | None] = (None,)) -> list[Run]:
    runs = (read_run(sweep.folder / run_name(setting, *each)) for each in product(seeds, folds))
    return [run for run in runs if run is not None]


def label_of(sweep: Sweep, name: str, values: Mapping[str, Any]) -> str:
    """A setting in words: its options as you type them, or what it is without them."""
    if sweep.search is not None:
        return f"{name}: {sweep.label(values)}" if values else name
    return sweep.label(values) or sweep.problem.label(sweep.run(name, values, sweep.plan.seeds[0]).config)


def _records(sweep: Sweep) -> list[Run]:
    groups = [*groups_of(sweep).values(), *trials_of(sweep).values()]
    return [run for runs in groups for run in runs]


def _content(sweep: Sweep, groups: Mapping[str, Sequence[Run]], trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of the summary."""
    found = {label: estimates(runs) for label, runs in groups.items()}
    content: dict[str, Any] = {
        "sweep": sweep.folder.name,
        "problem": sweep.plan.problem,
        "command": sweep.plan.command,
        "commits": _commits(_records(sweep)),
        "settings": {
            label: {
                "runs": {str(run.member): {"name": run.name, "status": run.status} for run in runs},
                "metrics": as_json(found[label]),
            }
            for label, runs in groups.items()
        },
    }
    if (compared := compare_estimates(found, main_metric(groups))) is not None:
        content |= compared.to_dict()
    return content | ({"trials": list(trials)} if sweep.search is not None else {})


def _trials(sweep: Sweep) -> list[dict[str, Any]]:
    """The trials of a search, the best ones first."""
    if sweep.search is None:
        return []
    found = [
        {
            "name": trial_name(number),
            "options": sweep.search.values[number],
            "state": trial.state,
            "epochs": len(trial.curve),
            "val_loss": trial.value if trial.state == "complete" else None,
        }
        for number, trial in enumerate(sweep.search.trials())
    ]
    return sorted(found, key=lambda trial: (trial["val_loss"] is None, trial["val_loss"] or 0.0))


def _markdown(sweep: Sweep, groups: Mapping[str, Sequence[Run]], trials: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = []
    if trials:
        states = [trial["state"] for trial in trials]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        rows: list[tuple[str, ...]] = [
            (each["name"], sweep.label(each["options"]), f"{each['val_loss']:.4g}")
            for each in trials[:BEST_SHOWN]
            if each["val_loss"] is not None
        ]
        parts = [f"{len(trials)} trials: {counts}.", to_markdown(Table(("best trials", "options", "val_loss"), rows))]
        if not sweep.plan.confirm:
            parts.append(
                "The lowest of many losses is too low: --confirm K --seeds N trains the best K with new seeds."
            )
    if any(groups.values()):
        parts.append(markdown_table(groups))
    if sweep.plan.folds != [None] and any(run.is_finished for runs in groups.values() for run in runs):
        parts.append(to_markdown(by_fold(groups)))
    if any(run.overlap for runs in groups.values() for run in runs):
        parts.append(CORRECTED)
    return parts


def _origin(sweep: Sweep, runs: Sequence[Run]) -> str:
    commits = " and ".join(_commits(runs)) or "none"
    return f"`{sweep.plan.command}`  \ncommit {commits}"


def _commits(runs: Sequence[Run]) -> list[str]:
    """The commits with which the runs were trained."""
    return sorted(
        {
            (run.info.get("git_commit") or "none")[:10] + (", with changes" if run.info.get("git_dirty") else "")
            for run in runs
            if run.info
        }
    )


def line_of(folder: Path) -> str:
    """A line about a run that is over: its status and its main metric."""
    run = read_run(folder)
    if run is None:
        return "was not started"
    name = f"test_{run.main_metric[0]}"
    metric = f", {name.replace('_', ' ')} {run.metrics()[name]:.4g}" if name in run.metrics() else ""
    return f"{run.status} after epoch {run.epochs} of {run.epochs_planned}{metric}"
