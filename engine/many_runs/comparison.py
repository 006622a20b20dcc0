# Machinery: keep, and skip at first.
"""Statistics over runs that only differ in their seed: means with errors, and differences that are paired by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from engine.run_folder.saved_run import Run

SEEDS_FOR_VERDICT = 5  # with fewer seeds, the spread of the differences is too uncertain
SIGNIFICANCE = 0.05
CORRECTED = (
    "The runs divide one file, so that their training sets overlap. Their errors contain the correction of Nadeau and "
    "Bengio (2003, Machine Learning 52, 239) for it."
)

Member = int | str  # what distinguishes the runs of a setting: a seed or, in a cross-validation, a seed and a fold


class Estimate(NamedTuple):
    """The mean of a quantity over seeds."""

    mean: float
    standard_error: float | None  # None for a single seed
    n: int
    values: dict[Member, float]  # by seed
    overlap: float = 0.0  # added to 1 / n in the squared standard error, if the runs divide one file

    def __str__(self) -> str:
        """The value with its error: `0.1234 ± 0.0012 (n = 6)`."""
        return f"{with_error(self.mean, self.standard_error)} (n = {self.n})"


class Table(NamedTuple):
    """A table of text. The first column names its rows."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def estimate(values: Mapping[Any, float], overlap: float = 0.0) -> Estimate:
    """The mean and its standard error, from one value for each seed.

    Args:
        overlap: the number of test examples divided by that of training examples, if all runs divide the same file.
            Their training sets then overlap, and the variance of the mean is s^2 (1 / n + overlap) instead of s^2 / n
            (Nadeau and Bengio 2003, Machine Learning 52, 239).
    """
    n = len(values)
    mean = math.fsum(values.values()) / n
    variance = math.fsum((x - mean) ** 2 for x in values.values()) / (n - 1) if n > 1 else None
    error = None if variance is None else math.sqrt(variance / n + variance * overlap)
    return Estimate(mean, error, n, dict(values), overlap)


def as_json(found: Mapping[str, Estimate]) -> dict[str, Any]:
    """Estimates as dictionaries, for a JSON file."""
    return {
        name: {
            **{key: value for key, value in each._asdict().items() if key != "overlap" or value},
            "values": {str(seed): value for seed, value in each.values.items()},
        }
        for name, each in found.items()
    }


def estimates(runs: Sequence[Run]) -> dict[str, Estimate]:
    """Estimates of all metrics over the finished runs. Of several runs with the same seed, the newest one counts."""
    ordered = sorted(runs, key=lambda run: run.date)
    overlap = max((run.overlap for run in runs), default=0.0)
    return over_seeds({run.member: run.metrics() for run in ordered if run.is_finished}, overlap)


def over_seeds(metrics: Mapping[Member, Mapping[str, float]], overlap: float = 0.0) -> dict[str, Estimate]:
    """Estimates of metrics from their values by seed: see `estimate`."""
    values: dict[str, dict[Member, float]] = {}
    for seed in sorted(metrics, key=lambda each: (isinstance(each, str), each)):
        for name, value in metrics[seed].items():
            values.setdefault(name, {})[seed] = value
    return {name: estimate(by_seed, overlap) for name, by_seed in values.items()}


def differences(a: Mapping[str, Estimate], b: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Estimates of b - a, paired by seed, for each metric and over the seeds that both have."""
    found = {}
    for name in a:
        if name in b and (seeds := [seed for seed in a[name].values if seed in b[name].values]):
            overlap = max(a[name].overlap, b[name].overlap)
            found[name] = estimate({seed: b[name].values[seed] - a[name].values[seed] for seed in seeds}, overlap)
    return found


def p_value(difference: Estimate) -> float | None:
    """The two-sided p-value of Student's t for the mean of paired differences. None if it is not defined."""
    if difference.standard_error is None or not math.isfinite(difference.mean):
        return None
    largest = max(map(abs, difference.values.values()))
    if max(difference.values.values()) - min(difference.values.values()) <= 1e-9 * largest:  # equal up to rounding
        return 1.0 if largest == 0 else None
    from scipy.special import stdtr  # scipy.stats takes a second to load

    return float(2 * stdtr(difference.n - 1, -abs(difference.mean) / difference.standard_error))


def verdict(difference: Estimate, direction: str, n_comparisons: int = 1) -> str:
    """Whether differences are significant by Student's t: two-sided, at 5 % divided by the number of comparisons.

    Args:
        direction: "min" or "max", if small or large values are good.
    """
    n = difference.n
    if n < SEEDS_FOR_VERDICT:
        return f"no verdict: {n} seed{'s' if n > 1 else ''}, {SEEDS_FOR_VERDICT} are needed"
    if not math.isfinite(difference.mean):
        return "no verdict: a difference is not a finite number"
    p = p_value(difference)
    if p is None:
        return f"no verdict: all {n} differences are equal, so that their error is unknown"
    if p >= SIGNIFICANCE / n_comparisons:
        return "no significant difference"
    return "better" if (difference.mean < 0) == (direction == "min") else "worse"


def with_error(value: float, error: float | None) -> str:
    """A value with its error: `0.1234 ± 0.0012`. The error has two digits, and the value as many decimal places."""
    if not error or not math.isfinite(value + error):
        return f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")
    exponent = math.floor(math.log10(abs(value) or error))
    if -5 < exponent < 6:
        exponent = 0
    value, error = value / 10.0**exponent, error / 10.0**exponent
    decimals = 1 - int(f"{error:.1e}".partition("e")[2])  # .1e rounds to two digits: 0.0996 has the exponent of 0.10
    text = " ± ".join(f"{round(x, decimals):.{max(decimals, 0)}f}" for x in (value, error))
    return f"({text})e{exponent:+03d}" if exponent else text


class Differences(NamedTuple):
    """The differences of groups of runs to the first one, which is the reference."""

    reference: str
    main: str  # the metric that the verdicts are about
    differences: dict[str, dict[str, Estimate]]  # by group and metric
    verdicts: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The differences and verdicts for JSON."""
        return {
            "reference": self.reference,
            "differences": {name: as_json(each) for name, each in self.differences.items()},
            "verdicts": self.verdicts,
        }


def compare_estimates(found: Mapping[str, Mapping[str, Estimate]], main: tuple[str, str]) -> Differences | None:
    """Compare the estimates of groups with those of the first one. The result is None for fewer than two groups.

    Args:
        main: the metric for the verdicts, and whether small ("min") or large ("max") values are good.
    """
    reference, *others = [name for name, by_metric in found.items() if by_metric] or [""]
    if not others:
        return None
    paired = {name: differences(found[reference], found[name]) for name in others}
    verdicts = {
        name: verdict(each[main[0]], main[1], len(others)) if main[0] in each else "no verdict: no seed in common"
        for name, each in paired.items()
    }
    return Differences(reference, main[0], paired, verdicts)


def compared_metrics(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    """The metrics that tables show: the main one, also on unseen examples if that differs, and others of the test."""
    finished = [run for runs in groups.values() for run in runs if run.is_finished]
    if not finished:
        return []
    main, unseen = (f"{split}_{finished[0].main_metric[0]}" for split in ("test", "test_unseen"))
    metrics = [run.test_metrics() for run in finished]
    is_other = any(unseen in each and each[unseen] != each.get(main) for each in metrics)
    names = dict.fromkeys([main, *([unseen] if is_other else [])])
    names |= dict.fromkeys(name for each in metrics for name in each if not name.startswith("test_unseen_"))
    return [name for name in names if name != "test_loss" or name == main]


def count_by_status(runs: Sequence[Run]) -> str:
    """The number of runs by status, such as `2 diverged, 1 running`."""
    statuses = [run.status for run in runs]
    return ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))


def unfinished(runs: Sequence[Run]) -> str:
    """The runs that did not finish, by status, or an empty string."""
    return count_by_status([run for run in runs if not run.is_finished])


def tables(groups: Mapping[str, Sequence[Run]], metrics: Sequence[str] = ()) -> list[Table]:
    """Compare groups of runs by name: estimates with errors, and differences to the first group with a verdict.

    Args:
        groups: runs that only differ in the seed. The first group with finished runs is the reference.
        metrics: the columns. The default is compared_metrics.

    Returns:
        Two tables, or one if fewer than two groups have finished runs.
    """
    metrics = metrics or compared_metrics(groups)
    found = {name: estimates(runs) for name, runs in groups.items()}
    rows = [
        (name, *(str(found[name][m]) if m in found[name] else "" for m in metrics), unfinished(runs))
        for name, runs in groups.items()
    ]
    result = [Table(("setting", *metrics, "not finished"), rows)]
    if not any(row[-1] for row in rows):
        result = [Table(result[0].columns[:-1], [row[:-1] for row in rows])]
    if (compared := compare_estimates(found, main_metric(groups))) is not None:
        result.append(table_of_differences(compared, metrics))
    return result


def main_metric(groups: Mapping[str, Sequence[Run]]) -> tuple[str, str]:
    """The main metric of the first finished run on the test split, and its direction: ("test_mae", "min")."""
    finished = (run.main_metric for runs in groups.values() for run in runs if run.is_finished)
    name, direction = next(finished, ("loss", "min"))
    return f"test_{name}", direction


def table_of_differences(found: Differences, metrics: Sequence[str]) -> Table:
    """A table of the differences to the reference, with a verdict on each group."""
    rows = [
        (name, found.verdicts[name], *(str(each[m]) if m in each else "" for m in metrics))
        for name, each in found.differences.items()
    ]
    return Table((f"minus {found.reference}", f"verdict on {found.main}", *metrics), rows)


def to_markdown(table: Table) -> str:
    """A table in Markdown, whose columns are also aligned as plain text."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join(":" + "-" * (width + 1) for width in widths) + "|", *lines[1:]])


def markdown_table(groups: Mapping[str, Sequence[Run]], metrics: Sequence[str] = ()) -> str:
    """The tables that compare groups of runs, in Markdown: see `tables`."""
    return "\n\n".join(map(to_markdown, tables(groups, metrics)))
