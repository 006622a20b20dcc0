"""Statistics over seeds: exact numbers, pairing, verdicts, and tables."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from engine.many_runs.comparison import (
    Estimate,
    differences,
    estimate,
    estimates,
    markdown_table,
    p_value,
    tables,
    verdict,
    with_error,
)
from engine.run_folder.saved_run import Run


def record(seed: int, status: str = "finished", date: str = "2026-01-01", **test: Any) -> Run:
    """A run without files, whose main metric is the first one of the test."""
    info = {"started": date, "main_metric": [next(iter(test), "mae"), "min"]}
    results = {"test": {"loss": 9.0, **test}, "test_unseen": None} if test else None
    return Run(Path("nothing"), f"seed{seed}", {"seed": seed}, info, status, results)


def of(*values: float) -> Estimate:
    return estimate(dict(enumerate(values)))


def test_the_mean_and_its_error_are_exact() -> None:
    from scipy import stats  # takes two seconds to load

    assert of(1.0, 2.0, 6.0) == Estimate(3.0, math.sqrt(7 / 3), 3, {0: 1.0, 1: 2.0, 2: 6.0})  # variance (4 + 1 + 9) / 2
    assert of(5.0) == Estimate(5.0, None, 1, {0: 5.0})
    rng = random.Random(1)
    values = [rng.gauss(1e6, 1e-3) for _ in range(50)]  # the error is small compared with the mean
    assert of(*values).standard_error == pytest.approx(stats.sem(values), rel=1e-6)


def test_only_finished_runs_count_and_the_newest_of_each_seed() -> None:
    records = [
        record(2, mae=0.5),
        record(1, date="2026-01-02", mae=0.1),
        record(1, date="2026-01-01", mae=0.9),
        record(3, status="diverged"),
        record(4, status="running", mae=0.7),  # results of an earlier run that is being resumed
    ]
    assert estimates(records)["test_mae"].values == {1: 0.1, 2: 0.5}
    assert estimates([]) == {}


def test_differences_are_paired_by_seed_and_leave_out_other_seeds() -> None:
    a = estimates([record(seed, mae=seed) for seed in (1, 2, 3)])
    b = estimates([record(seed, mae=seed**2) for seed in (4, 3, 2)])
    assert differences(a, b)["test_mae"].values == {2: 2, 3: 6}
    assert differences(a, estimates([record(9, mae=1.0)])) == {}


def test_the_p_value_is_that_of_the_paired_t_test() -> None:
    from scipy import stats  # takes two seconds to load

    rng = random.Random(2)
    for n in (2, 5, 30):
        a, b = ({seed: rng.gauss(mean, 1) for seed in range(n)} for mean in (0, 1))
        paired = differences({"mae": estimate(a)}, {"mae": estimate(b)})["mae"]
        assert p_value(paired) == pytest.approx(stats.ttest_rel(list(b.values()), list(a.values())).pvalue, rel=1e-9)


def test_a_verdict_depends_on_the_direction_and_the_number_of_comparisons() -> None:
    lower = of(-1.0, -2.0, -3.0, -2.0, -2.5)
    assert 0.001 < (p_value(lower) or 0) < 0.005
    assert verdict(lower, "min") == verdict(lower, "min", 10) == "better"
    assert verdict(lower, "max") == "worse"
    assert verdict(lower, "min", 50) == "no significant difference"
    assert verdict(of(-1.0, 1.0, 2.0, -2.0, 0.5), "min") == "no significant difference"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.1], "no verdict: 1 seed, 5 are needed"),
        ([0.1, 0.2, 0.15], "no verdict: 3 seeds, 5 are needed"),
        ([0.0] * 5, "no significant difference"),
        ([0.3 - 0.2, 0.1, 0.1, 0.1, 0.1], "no verdict: all 5 differences are equal, so that their error is unknown"),
        ([0.1, math.nan, 0.1, 0.1, 0.1], "no verdict: a difference is not a finite number"),
        ([0.1, math.inf, 0.1, 0.1, 0.1], "no verdict: a difference is not a finite number"),
    ],
)
def test_cases_without_a_test(values: list[float], words: str) -> None:
    assert verdict(of(*values), "min") == words


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.123449, 0.0012, "0.1234 ± 0.0012"),
        (0.123449, 0.00996, "0.123 ± 0.010"),
        (-0.5, 0.25, "-0.50 ± 0.25"),
        (12345.6, 1234.5, "12300 ± 1200"),
        (1.5481e-8, 2.34e-10, "(1.548 ± 0.023)e-08"),
        (0.0, 0.00012, "0.00000 ± 0.00012"),
        (0.123456, None, "0.1235"),
        (0.123456, 0.0, "0.1235 ± 0"),
        (math.nan, 1.0, "nan ± 1"),
    ],
)
def test_the_error_has_two_digits_and_the_value_as_many_decimals(value: float, error: float | None, text: str) -> None:
    assert with_error(value, error) == text


def test_a_run_without_the_main_metric_is_compared_by_the_others() -> None:
    other = record(2, mae=0.5)._replace(results={"test": {"rmse": 1.0}, "test_unseen": {"mae": 0.4}})
    assert tables({"a": [record(1, mae=0.5)], "b": [other]})[0].columns == (
        *("setting", "test_mae", "test_unseen_mae", "test_rmse"),
    )


def test_the_tables_compare_settings_with_the_first_one() -> None:
    mae = {"lr0.1": [0.1, 0.2, 0.3, 0.2, 0.1], "lr0.2": [0.31, 0.4, 0.52, 0.43, 0.3], "lr|3": []}
    groups = {
        name: [record(seed, mae=value, r2=0.5) for seed, value in enumerate(values)] + [record(9, status="diverged")]
        for name, values in mae.items()
    }
    groups["lr|3"] += [record(8, status="diverged"), record(7, status="running")]
    first, second = tables(groups)
    assert first.columns == ("setting", "test_mae", "test_r2", "not finished")
    assert first.rows[0] == ("lr0.1", "0.180 ± 0.037 (n = 5)", "0.5 ± 0 (n = 5)", "1 diverged")
    assert first.rows[2] == ("lr|3", "", "", "2 diverged, 1 running")
    assert second.columns == ("minus lr0.1", "verdict on test_mae", "test_mae", "test_r2")
    assert second.rows == [("lr0.2", "worse", "0.2120 ± 0.0058 (n = 5)", "0 ± 0 (n = 5)")]
    lines = markdown_table(groups).splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    assert "lr\\|3" in lines[4]
    assert tables({"a": groups["lr0.1"]}, ["test_r2"])[0].columns == ("setting", "test_r2", "not finished")
    assert len(tables({"a": groups["lr0.1"], "b": []})) == 1
    json.dumps(estimates(groups["lr0.1"]))  # for summary.json
