# Machinery: keep, and skip at first.
"""The list of runs that runs.py prints: which runs, in which order, and what it says about them."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from engine.machine.errors import BadRequestError
from engine.machine.terminal import one_line
from engine.many_runs.comparison import count_by_status, unfinished
from engine.options.config_values import flatten
from engine.options.suggestions import Known, suggest
from engine.run_folder.saved_run import Run, read_or_empty


class Column(NamedTuple):
    """A column of the list that is not an option or a metric."""

    value: Callable[[Run], Any]  # by which runs are sorted and filtered
    text: Callable[[Run], str] | None = None  # what is printed; None: the value


class Line(NamedTuple):
    """A line of the list: a run, or a sweep."""

    cells: dict[str, str]  # what is printed, by column
    values: dict[str, Any]  # what lines are sorted by
    changed: dict[str, Any] | None = None  # the options that differ from the default; None for a sweep


def typed(value: Any) -> str:
    """A value of an option, in one word: `0.01`, `128,64`, `true`, `none`."""
    if isinstance(value, list | tuple):
        return ",".join(map(typed, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def in_words(options: Mapping[str, Any]) -> str:
    """Options and their values, such as `lr=0.01 hidden=128,64`."""
    return " ".join(f"{path.rpartition('.')[2]}={typed(value)}" for path, value in options.items())


def values_of(run: Run, *, validation: bool = False) -> dict[str, Any]:
    """What a run can be sorted and filtered by: columns, options and metrics, with those of the validation if asked."""
    metrics = run.metrics() if validation else run.test_metrics()
    return flatten(run.config) | metrics | {name: column.value(run) for name, column in COLUMNS.items()}


def metric_of(run: Run) -> tuple[float | None, str]:
    """The main metric on the test or, for a run that is not finished, on the validation; and its text."""
    name = run.main_metric[0]
    split, metrics = ("", run.test_metrics()) if run.is_finished else ("val", run.validation_metrics())
    value = metrics.get(f"{split or 'test'}_{name}")
    return value, "" if value is None else f"{value:.4g} {split}".rstrip()


def epochs_of(run: Run) -> str:
    """The number of epochs that were trained and, if it differs, of those that are planned: `3/6`."""
    planned = run.epochs_planned
    return str(run.epochs) if planned in (None, run.epochs) else f"{run.epochs}/{planned}"


# In the order in which they are printed, before the options that differ from the default. To add a column, add a line;
# run.info has the content of run_info.json (saved_run.py). A sweep has no value in a new column.
COLUMNS: dict[str, Column] = {
    "name": Column(lambda run: run.name),
    "problem": Column(lambda run: run.problem),
    "date": Column(lambda run: run.date, lambda run: _date(run.date)),
    "status": Column(lambda run: run.status),
    "seed": Column(lambda run: run.seed),
    "epochs": Column(lambda run: run.epochs, epochs_of),
    "metric": Column(lambda run: metric_of(run)[0], lambda run: metric_of(run)[1]),
}


def find_column(word: str, known: Mapping[str, Any], flag: str) -> str:
    """The name of a column that was named with or without section or `test_`, or as a flag, such as `--batch-size`.

    Raises:
        BadRequestError: there is no such column.
    """
    name = word.lstrip("-").replace("-", "_")
    name = "data.file" if name == "data" else name
    found = [each for each in known if name in (each, each.removeprefix("test_"), each.rpartition(".")[2])]
    if found:
        return name if name in found else found[0]
    columns = [Known(each.rpartition(".")[2], (each.rpartition(".")[2], each)) for each in known]
    meant = suggest(name, columns, f"use an option, a metric, or one of {', '.join(COLUMNS)}")
    raise BadRequestError(f"{flag} {word}: no such column; {meant}")


def needs_validation(words: Sequence[str]) -> bool:
    """Whether one of these columns is a metric of the validation, which takes longer to read."""
    return any(word.startswith("val") for word in words)


def select(runs: Sequence[Run], filters: Sequence[str]) -> list[Run]:
    """The runs that meet all of `filters`, such as `lr=0.01`, `status=finished` and `name=width/*`.

    Raises:
        BadRequestError: a filter is invalid, or names an unknown column.
    """
    validation = needs_validation(filters)
    values = [values_of(run, validation=validation) for run in runs] if filters else []
    known = {name: None for each in values for name in each}
    conditions = []
    for word in filters:
        column, equals, pattern = word.partition("=")
        if not equals:
            raise BadRequestError(f"--filter {word}: write COLUMN=VALUE, such as status=finished or lr=0.001")
        conditions.append((find_column(column, known or dict.fromkeys(COLUMNS), "--filter"), pattern))
    matches = [all(c in each and _matches(each[c], pattern) for c, pattern in conditions) for each in values]
    return [run for run, match in zip(runs, matches, strict=True) if match] if filters else list(runs)


def _matches(value: Any, pattern: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(pattern) == value
        except ValueError:
            return False
    return fnmatchcase(typed(value), pattern.replace(" ", ","))


def line_of_run(run: Run, *, validation: bool = False) -> Line:
    """The line of a run."""
    values, changed = values_of(run, validation=validation), run.changed or {}
    cells = {name: column.text(run) if column.text else typed(values[name]) for name, column in COLUMNS.items()}
    return Line(cells | {"changed": in_words(changed)}, values, changed)


def without_common(lines: Sequence[Line]) -> str:
    """Remove the options that all runs have in common from their lines. Return these options in words."""
    changed = [line.changed for line in lines if line.changed is not None]
    if len(changed) < 2:
        return ""
    common = {path: value for path, value in changed[0].items() if all(each.get(path) == value for each in changed)}
    for line in lines:
        if line.changed is not None:
            own = {path: value for path, value in line.changed.items() if path not in common}
            line.cells["changed"] = in_words(own)
    return in_words(common)


def confirmed(runs: Sequence[Run]) -> list[Run]:
    """The runs of a sweep that its settings are compared by: of a search with confirmed settings, only their runs.

    The trials of a search have other seeds, with which they were selected. The unchanged setting comes first.
    """
    plan = read_or_empty(runs[0].folder.parent / "sweep.json", dict) if runs else None
    if not plan or not plan.get("search") or not isinstance(plan.get("seeds"), list):
        return list(runs)
    chosen = [run for run in runs if run.seed in plan["seeds"]]
    return sorted(chosen, key=lambda run: not run.folder.name.startswith("unchanged-")) or list(runs)


def line_of_sweep(name: str, runs: Sequence[Run]) -> Line:
    """The line of a sweep: how many runs finished, and the setting with the best mean of the main metric."""
    settings: dict[str, list[Run]] = {}
    for run in confirmed(runs):
        settings.setdefault(json.dumps(run.setting), []).append(run)
    metric, direction = runs[0].main_metric
    means = {}
    for key, group in settings.items():
        finished = [r for r in group if r.is_finished and f"test_{metric}" in r.test_metrics()]
        if finished:
            means[key] = sum(r.test_metrics()[f"test_{metric}"] for r in finished) / len(finished)
    text, best = f"{len(settings)} settings" if len(settings) > 1 else "", None
    if means:
        chosen = (min if direction == "min" else max)(means, key=lambda key: means[key])
        best = means[chosen]
        flat = [flatten(json.loads(key)) for key in settings]
        varied = {path: v for path, v in flatten(json.loads(chosen)).items() if any(f.get(path) != v for f in flat)}
        text += f", best {in_words(varied)}" if varied else ""
    n_finished = sum(run.is_finished for run in runs)
    values = {"name": name, "problem": runs[0].problem, "date": max(r.date for r in runs), "metric": best}
    cells = {
        "name": f"{name}/",
        "problem": runs[0].problem,
        "date": _date(str(values["date"])),
        "status": f"{n_finished}/{len(runs)} finished",
        "metric": "" if best is None else f"{best:.4g}",
        "changed": "; ".join(filter(None, (text, unfinished(runs)))),
    }
    return Line(cells, values)


def _date(started: str) -> str:
    return started[:16].replace("T", " ")


def sort(lines: Sequence[Line], column: str, *, largest_first: bool = False) -> list[Line]:
    """Sort lines by a column: numbers before text, and lines without a value at the end.

    Raises:
        BadRequestError: there is no such column.
    """
    known = {name: None for line in lines for name in line.values}
    key = find_column(column, known or dict.fromkeys(COLUMNS), "--sort")

    def rank(line: Line) -> tuple[int, float, str]:
        value = line.values.get(key)
        if isinstance(value, int | float):
            return 0, -value if largest_first else value, ""
        return (2, 0, "") if value is None else (1, 0, typed(value))

    return sorted(lines, key=rank)


def to_text(lines: Sequence[Line], metric: str) -> str:
    """The lines as a table. Columns that are equal for all runs are left out."""
    found = {name: {line.cells.get(name, "") for line in lines} for name in (*COLUMNS, "changed")}
    left_out = {name for name in ("problem", "seed") if len(found[name]) == 1} | {n for n in found if found[n] == {""}}
    columns = [name for name in found if name not in left_out]
    titles = {"metric": metric, "changed": "differs from the default"}
    rows = [[titles.get(name, name) for name in columns]]
    rows += [[one_line(line.cells.get(name, "")) for name in columns] for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def list_of_runs(runs: Sequence[Run], *, filters: Sequence[str], column: str, by_sweep: bool) -> str:
    """The list of runs, in the order of a column, and lines that summarise it.

    Raises:
        BadRequestError: there is no such column.
    """
    shown = select(runs, filters)
    metric, direction = (shown or runs)[0].main_metric
    is_main = column in ("metric", metric, f"test_{metric}")
    sweeps: dict[str, list[Run]] = {}
    lines = []
    for run in shown:
        if by_sweep and "/" in run.name:
            sweeps.setdefault(run.name.partition("/")[0], []).append(run)
        else:
            lines.append(line_of_run(run, validation=needs_validation([column])))
    lines += [line_of_sweep(name, members) for name, members in sweeps.items()]
    lines = sort(lines, "metric" if is_main else column, largest_first=is_main and direction == "max")
    common = without_common(lines)
    title = metric if {run.main_metric[0] for run in shown} == {metric} else "metric"
    parts = [to_text(lines, title) + "\n"] if lines else []
    number = f"{len(shown)} of {len(runs)}" if filters else f"{len(shown)}"
    problems = {run.problem for run in shown}
    of = f" of {problems.pop()}" if len(problems) == 1 else ""
    parts.append(f"{number} run{'s' if number != '1' else ''}{of}: {count_by_status(shown) or 'none'}")
    parts += [f"all {'runs outside sweeps ' if sweeps else ''}have {common}"] if common else []
    parts += (
        [f"python runs.py {next(iter(sweeps))} lists the runs of a sweep; --all, those of all sweeps"] if sweeps else []
    )
    return "\n".join(parts)


def mark_killed(runs: list[Run]) -> list[Run]:
    """Replace the status `running` by `killed` where the process of a run no longer exists on this machine."""
    return [r._replace(status="killed") if r.status == "running" and _is_gone(r.info) else r for r in runs]


def _is_gone(info: Mapping[str, Any]) -> bool:
    import psutil

    if info.get("host") != platform.node() or not isinstance(info.get("pid"), int):
        return False  # not a process of this machine, or of an older run that does not name its machine
    try:
        born = psutil.Process(info["pid"]).create_time()
        return born > datetime.fromisoformat(str(info["started"])).timestamp() + 2  # the number was given away again
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError, OverflowError, KeyError):
        return False
