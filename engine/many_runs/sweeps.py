# Machinery: keep, and skip at first.
"""A sweep: a folder of runs of one problem that differ in some options and in the seed. Its plan is in sweep.json.

Several processes, also on several machines, can train the runs of a sweep. They only share its folder. A run is locked
by the process that trains it (run_lock.py), and its run_info.json says how it ended. Which runs are still to be trained
therefore follows from the files at any time.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from engine.interface.base_config import Config
from engine.interface.base_problem import Problem
from engine.interface.find_problem import load_problem, load_saved_problem
from engine.machine.atomic_files import inside, wait_for_lock, write_json
from engine.machine.errors import BadRequestError, UnusableFileError
from engine.machine.foreign_files import read_json
from engine.many_runs.plan import Plan, run_name, trial_name
from engine.many_runs.search import Search
from engine.options.config_values import upgrade, with_format
from engine.options.fields import ConfigError, Option, folder_name, merge, options_of, validate
from engine.run_folder.saved_run import status_of

Values = Mapping[str, Any]  # options by their dotted path, such as "train.lr"

UNCHANGED = "unchanged"  # the setting of a search that is trained for comparison with the best ones

# The longest name of a setting: check_name allows 64 characters with `-seed` and the 20 digits of a large seed. The
# seed of a cross-validation has fewer digits, or the name is refused.
LONGEST_NAME = 38

NOT_PLAIN = re.compile("[^a-z0-9. ]")

OVER = {"finished", "diverged", "pruned"}  # the statuses of runs that are not continued


class PlannedRun(NamedTuple):
    """A run of a sweep."""

    name: str  # of its folder in the folder of the sweep
    config: Config
    trial: int | None = None  # the number of the trial, if the run may be pruned


class Sweep:
    """The folder of a sweep with its plan.

    Attributes:
        given_up: names of runs that failed in this process, so that it does not try them again.
    """

    def __init__(self, folder: Path, plan: Plan, problem: Problem[Any]) -> None:
        self.folder, self.plan, self.problem = folder, plan, problem
        self.options = {".".join(path): option for path, option in options_of(self.problem.config_type).items()}
        self.search = Search(folder, self.options, plan) if plan.search else None
        self.given_up: set[str] = set()
        self._over: set[str] = set()  # names of runs that are known to be over

    def settings(self) -> dict[str, Values]:
        """The settings that are trained with all seeds, by name: those of the grid, or the confirmed ones of a search.

        The first one is the reference for the others. In a search, that is the setting without changes. There are none
        before all trials are over.
        """
        if self.search is not None:
            best = self.search.best(self.plan.confirm, self.given_up)
            return {UNCHANGED: {}, **{trial_name(k): self.search.values[k] for k in best}} if best else {}
        combinations = product(*([(path, value) for value in values] for path, values in self.plan.grid.items()))
        return {self._name(dict(each)): dict(each) for each in combinations}

    def _name(self, values: Values) -> str:
        """A name for a setting that can be part of the name of a folder. Different settings have different names."""
        words, are_plain = [], True
        for path, value in values.items():
            option = self.options[path]
            typed = self.typed(option, value)
            words.append(typed.lstrip("-") if option.kind is bool else option.flag[2:] + typed.replace(" ", "_"))
            # In other texts, a - or _ could also be that between two values, and some systems ignore case.
            are_plain &= option.kind in (bool, int, float) or typed in option.choices or not NOT_PLAIN.search(typed)
        full = "-".join(words)
        name = folder_name(full, LONGEST_NAME)
        if are_plain and full in (name, ""):
            return full
        return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]}"

    @staticmethod
    def typed(option: Option, value: Any) -> str:
        """A value as you type it on the command line."""
        return option.typed(tuple(value) if isinstance(value, list) else value)

    def label(self, values: Values) -> str:
        """A setting as you type it on the command line, such as `--lr 0.001 --hidden 128 64`."""
        words = []
        for path, value in values.items():
            option = self.options[path]
            typed = self.typed(option, value)
            words.append(typed if option.kind is bool else f"{option.flag} {typed}")
        return " ".join(words)

    def run(
        self, setting: str, values: Values, seed: int, *, fold: int | None = None, trial: int | None = None
    ) -> PlannedRun:
        """The run of a setting with a seed and, in a cross-validation, with a fold."""
        name = run_name(setting, seed, fold)
        changes: dict[str, Any] = {"seed": seed, "data": {"fold": fold}, "log": {"run_name": name}}
        for path, value in values.items():
            section, _, key = path.rpartition(".")
            changes = merge(changes, {section: {key: value}} if section else {key: value})
        config = validate(self.problem.config_type, merge(self.plan.config, changes), source=str(self.folder))
        return PlannedRun(name, config, trial)

    def is_over(self, name: str) -> bool:
        """Whether a run is finished, diverged or pruned."""
        if name not in self._over and status_of(self.folder / name) in OVER:
            self._over.add(name)
        return name in self._over

    def open_runs(self, skip: Collection[str]) -> Iterator[PlannedRun]:
        """The runs that are still to be trained, except for those with the names in `skip` and those given up.

        A search adds a trial when it is asked for the next run and no run of earlier trials is open.
        """
        if self.search is not None:
            yield from self._open_trials(skip)
        for setting, values in self.settings().items():
            for seed, fold in product(self.plan.seeds, self.plan.folds):
                if self._is_open(run_name(setting, seed, fold), skip):
                    yield self.run(setting, values, seed, fold=fold)

    def _open_trials(self, skip: Collection[str]) -> Iterator[PlannedRun]:
        assert self.search is not None
        first, *others = self.plan.trial_seeds
        number = 0
        while True:
            if number == len(self.search.values):
                with self.lock():
                    has_more = self.search.add()
                if not has_more:
                    return
            name, values = trial_name(number), self.search.values[number]
            if self._is_open(run_name(name, first), skip):
                yield self.run(name, values, first, trial=number if self.plan.pruning else None)
            elif status_of(self.folder / run_name(name, first)) == "finished":
                for seed in others:
                    if self._is_open(run_name(name, seed), skip):
                        yield self.run(name, values, seed)
            number += 1

    def _is_open(self, name: str, skip: Collection[str]) -> bool:
        return name not in skip and name not in self.given_up and not self.is_over(name)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let only one process, on any machine, change the files of the sweep."""
        with wait_for_lock(inside(self.folder, "sweep.lock")):
            for left_over in self.folder.glob(".*.tmp"):  # from a process that was killed while it was writing
                left_over.unlink()
            yield

    def require_locks(self) -> None:
        """Raise BadRequestError if the file system cannot lock the folders of runs."""
        with wait_for_lock(inside(self.folder, "sweep.lock")) as is_locked:
            if not is_locked:
                raise BadRequestError(
                    f"--work: the file system cannot lock {self.folder}, so two machines would train the same run: "
                    "use another file system, or train the sweep on one machine, without --work"
                )


def load_sweep(folder: Path, problem: str | None = None) -> Sweep:
    """Load the sweep in a folder.

    Args:
        problem: the name of the module of its problem, as the user gives it: see load_saved_problem.

    Raises:
        BadRequestError: the folder does not contain a sweep, or the user has to name its problem.
        UnusableFileError: sweep.json is damaged.
    """
    path = folder / "sweep.json"
    try:
        plan = TypeAdapter(Plan).validate_json(json.dumps(read_json(path)))
    except (FileNotFoundError, NotADirectoryError):
        raise BadRequestError(
            f"{folder} is not a sweep: it has no sweep.json; start one with `python sweep.py`"
        ) from None
    except (ValueError, UnusableFileError):
        raise UnusableFileError(
            f"{path} is damaged: remove it, and run the command that started the sweep again"
        ) from None
    loaded = load_saved_problem(plan.problem, folder, problem)
    try:
        values = merge(asdict(loaded.config_type()), upgrade(plan.config))  # an option may be newer than the sweep
        config = validate(loaded.config_type, values, source=str(path))
    except (ValueError, ConfigError) as error:
        raise UnusableFileError(f"{path}: {error}") from None
    sweep = Sweep(folder, replace(plan, config=json.loads(json.dumps(asdict(config)))), loaded)
    if unknown := {*plan.grid, *plan.search} - sweep.options.keys():
        raise UnusableFileError(f"{path} varies {unknown.pop()}, which {plan.problem} does not have: restore it")
    return sweep


def open_sweep(folder: Path, plan: Plan) -> Sweep:
    """Start a sweep, or continue the one in the folder, which may get more settings, seeds or trials.

    Raises:
        BadRequestError: the folder contains something else, or a sweep with other options.
    """
    if not _is_of_sweep(folder):
        what = "a run" if (folder / "config.json").exists() else "not a sweep"
        raise BadRequestError(f"{folder} is {what}, so it is kept: choose another name for the sweep")
    if (folder / "sweep.json").exists():
        _require_extension(load_sweep(folder, plan.problem), plan)
    sweep = Sweep(folder, plan, load_problem(plan.problem))
    folder.mkdir(parents=True, exist_ok=True)
    with sweep.lock():
        write_json(folder / "sweep.json", asdict(replace(plan, config=with_format(plan.config))))
    return sweep


def _is_of_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep, also of one that was killed when it started, or is empty or new."""
    if folder.is_dir():
        names = {entry.name for entry in folder.iterdir()}
        return not names or bool(names & {"sweep.json", "sweep.lock"})
    return not folder.exists() and not folder.is_symlink()


def _require_extension(earlier: Sweep, plan: Plan) -> None:
    """Raise BadRequestError unless a plan contains all runs of an earlier sweep."""
    before, name = earlier.plan, earlier.folder.name
    fix = "give the options of that sweep, or another name"
    for path, option in earlier.options.items():
        was, now = (_at(each.config, path) for each in (before, plan))
        if was != now:
            typed, other = (earlier.typed(option, each) for each in (now, was))
            given = typed if option.kind is bool else f"{option.flag} {typed}"
            raise BadRequestError(f"{given}: the sweep {name} has {other}: {fix}")
    if _fixed(plan) != _fixed(before):
        changed = [key for key, value in _fixed(before).items() if _fixed(plan)[key] != value]
        raise BadRequestError(f"the sweep {name} has another {changed[0]} ({before.command}): {fix}")
    lost = [
        f"{path}={value}" for path, values in before.grid.items() for value in values if value not in plan.grid[path]
    ]
    lost += [f"seed {seed}" for seed in before.seeds if seed not in plan.seeds]
    lost += [f"{before.trials} trials"] if plan.trials < before.trials else []
    if lost:
        raise BadRequestError(f"the sweep {name} also has {', '.join(lost)}: keep these, or give another name")


def _fixed(plan: Plan) -> dict[str, Any]:
    """What cannot change when a sweep is continued."""
    return {
        "grid": list(plan.grid),
        "search": plan.search,
        "trial seeds": plan.trial_seeds,
        "choice of pruning": plan.pruning,
    }


def _at(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value[key]
    return value
