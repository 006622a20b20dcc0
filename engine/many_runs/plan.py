# Machinery: keep, and skip at first.
"""The plan of a sweep, which is stored as sweep.json, and the names of its runs."""

from typing import Any

from pydantic.dataclasses import dataclass

from engine.interface.base_config import STRICT


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


def trial_name(number: int) -> str:
    """The name of a trial, which is a setting of the sweep."""
    return f"trial{number:03}"


def run_name(setting: str, seed: int) -> str:
    """The name of a run of a setting. The only setting of a sweep without a grid has the name ""."""
    return f"{setting}-seed{seed}".lstrip("-")
