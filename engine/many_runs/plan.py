# Machinery: keep, and skip at first.
"""The plan of a sweep, which is stored as sweep.json, and the names of its runs."""

import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from engine.interface.base_config import STRICT

MOST_RUNS = 10_000  # a plan with more is a mistake, and checking it takes long


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Plan:
    """What the runs of a sweep are. The same command line makes the same plan."""

    problem: str  # the module of the problem
    config: dict[str, Any]  # the options that all runs share, and the first seed
    grid: dict[str, list[Any]]  # the values of an option, by its path; every combination is a setting
    search: dict[str, dict[str, Any]]  # the range of an option, by its path: see search.py
    trials: int  # the number of settings that the search tries
    trial_seeds: list[int]  # the seeds of each of them
    pruning: bool  # whether runs of the search are stopped early
    confirm: int  # how many of the best settings of the search are trained again, with other seeds
    seeds: list[int]  # the seeds of every setting of the grid, or of every confirmed one
    command: str  # the command line

    @property
    def folds(self) -> list[int | None]:
        """The folds of every setting and seed: [None] without cross-validation."""
        n = self.config.get("data", {}).get("folds")
        return [None] if n is None else list(range(1, n + 1))

    @model_validator(mode="after")
    def _check(self) -> Self:
        n_settings = math.prod(len(values) for values in self.grid.values()) * len(self.folds)
        if n_settings * max(1, len(self.seeds)) + self.trials * len(self.trial_seeds) > MOST_RUNS:
            raise ValueError(f"more than {MOST_RUNS:,} runs")
        if min(self.trials, self.confirm) < 0 or not (self.search or self.seeds):
            raise ValueError("no runs")
        if self.search and not (self.trial_seeds and all(map(_is_space, self.search.values()))):
            raise ValueError("not a search")
        return self


def _is_space(space: Mapping[str, Any]) -> bool:
    """Whether this is what a search can choose from: a list, or a range."""
    if space.keys() == {"choices"}:
        return isinstance(space["choices"], list) and bool(space["choices"])
    if space.keys() != {"low", "high", "log"} or type(space["log"]) is not bool:
        return False
    low, high = space["low"], space["high"]
    are_numbers = type(low) in (int, float) and type(high) in (int, float)
    return are_numbers and (0 if space["log"] else -math.inf) < low < high


def trial_name(number: int) -> str:
    """The name of a trial, which is a setting of the sweep."""
    return f"trial{number:03}"


def run_name(setting: str, seed: int, fold: int | None = None) -> str:
    """The name of a run of a setting. The only setting of a sweep without a grid has the name ""."""
    return f"{setting}-seed{seed}{'' if fold is None else f'-fold{fold}'}".lstrip("-")
