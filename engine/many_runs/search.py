# Machinery: keep, and skip at first.
"""The search for good options, with Optuna: which values are tried next, and which runs are stopped early.

The state of a search is in its folder: the values of all trials are in trials.json, and their losses in the files of
their runs. Optuna's study is made from these files in memory, so that it cannot be lost or differ from them.

The objective is the lowest validation loss of a run, averaged over the seeds of the trial. Validation also chooses the
best of many trials, so that the loss of this one is too small on average. Train it again with other seeds to know it.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.machine.atomic_files import write_json
from engine.machine.errors import BadRequestError, PrunedError, UnusableFileError
from engine.machine.foreign_files import MOST_BYTES_OF_LIST, read_json
from engine.machine.seeds import derive_seed
from engine.many_runs.plan import Plan, run_name, trial_name
from engine.options.fields import Option
from engine.run_folder.saved_run import read_run, status_of

if TYPE_CHECKING:
    import optuna

STARTUP_TRIALS = 5  # complete trials before others are pruned


class Trial(NamedTuple):
    """What is known about a trial."""

    state: str  # open, complete, or pruned, which includes trials that diverged
    curve: list[float]  # the validation losses of the first seed, by epoch
    value: float  # the objective of a complete trial


class Search:
    """The trials of a sweep with a search.

    Attributes:
        values: the options of each trial, by their dotted path.

    Raises:
        BadRequestError: the package optuna is missing.
        UnusableFileError: trials.json is damaged.
    """

    def __init__(self, folder: Path, options: Mapping[str, Option], plan: Plan) -> None:
        if find_spec("optuna") is None:
            raise BadRequestError("--search needs the package optuna: run `pip install -r requirements.txt`")
        self.folder, self.options, self.plan = folder, options, plan
        self.known: dict[int, Trial] = {}  # the trials that are not open any more
        self.values: list[dict[str, Any]] = []
        self._read()

    def _read(self) -> None:
        path = self.folder / "trials.json"
        try:
            values = read_json(path, MOST_BYTES_OF_LIST) if path.exists() else []
            if not isinstance(values, list) or any(each.keys() != self.plan.search.keys() for each in values):
                raise ValueError("other options than those of the search")
        except (ValueError, AttributeError, UnusableFileError) as error:
            raise UnusableFileError(f"{path} is damaged ({error}): restore it, or start another sweep") from None
        self.values = values

    def trials(self) -> list[Trial]:
        """All trials, in the order in which they were added."""
        for number in range(len(self.values)):
            if number not in self.known and (trial := self._trial(number)).state != "open":
                self.known[number] = trial
        return [self.known.get(number) or self._trial(number) for number in range(len(self.values))]

    def _trial(self, number: int) -> Trial:
        runs = [self.folder / run_name(trial_name(number), seed) for seed in self.plan.trial_seeds]
        statuses = {status_of(run) for run in runs}
        if {"diverged", "pruned"} & statuses:
            return Trial("pruned", losses(runs[0]), math.inf)
        if statuses != {"finished"}:
            return Trial("open", losses(runs[0]), math.inf)
        curves = [losses(run) for run in runs]
        if damaged := [run for run, curve in zip(runs, curves, strict=True) if not curve]:
            raise UnusableFileError(f"{damaged[0]}/epoch_metrics.json is damaged: remove this run to train it again")
        return Trial("complete", curves[0], sum(map(min, curves)) / len(curves))

    def add(self) -> bool:
        """Add a trial with values that Optuna suggests, unless another process has added one or there are enough.

        The caller holds the lock of the sweep.

        Returns:
            Whether there are more trials than before.
        """
        n_known = len(self.values)
        self._read()
        if n_known == len(self.values) < self.plan.trials:
            try:
                suggested = self._study().ask(self._distributions()).params
            except ValueError as error:  # values that the search cannot have suggested
                path = self.folder / "trials.json"
                raise UnusableFileError(f"{path} is damaged ({error}): restore it, or start another sweep") from None
            self.values.append({path: _as_typed(x, self.plan.search[path]) for path, x in suggested.items()})
            write_json(self.folder / "trials.json", self.values)
        return len(self.values) > n_known

    def best(self, n: int, given_up: Collection[str] = ()) -> list[int]:
        """The numbers of the best complete trials. There are none while trials are open and not given up."""
        trials = self.trials()
        still_open = [trial_name(number) for number, trial in enumerate(trials) if trial.state == "open"]
        failed = {name.rpartition("-")[0] for name in given_up}
        if len(trials) < self.plan.trials or set(still_open) - failed:
            return []
        complete = [number for number, trial in enumerate(trials) if trial.state == "complete"]
        return sorted(complete, key=lambda number: trials[number].value)[:n]

    def curves(self, number: int) -> list[list[float]]:
        """The validation losses with which a trial is compared: those of complete trials that were added before it."""
        return [trial.curve for trial in self.trials()[:number] if trial.state == "complete"]

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, Any] = {}
        for path, space in self.plan.search.items():
            if "choices" in space:
                found[path] = CategoricalDistribution([json.dumps(value) for value in space["choices"]])
            else:
                kind = IntDistribution if self.options[path].kind is int else FloatDistribution
                found[path] = kind(space["low"], space["high"], log=space["log"])
        return found

    def _study(self) -> "optuna.Study":
        """Optuna's study of all trials. The values that it suggests only depend on these and on the seed."""
        import optuna
        from optuna.trial import TrialState, create_trial

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = derive_seed(self.plan.config["seed"], 1 + len(self.values)) % 2**32
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        distributions = self._distributions()
        for values, trial in zip(self.values, self.trials(), strict=True):
            params = {path: json.dumps(x) if "choices" in self.plan.search[path] else x for path, x in values.items()}
            if trial.state == "open":  # the values that are being tried are not suggested again
                study.enqueue_trial(params)
                study.ask(distributions)
                continue
            is_complete = trial.state == "complete"
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE if is_complete else TrialState.PRUNED,
                    params=params,
                    distributions=distributions,
                    value=trial.value if is_complete else None,
                    intermediate_values=dict(enumerate(trial.curve, start=1)),
                )
            )
        return study


def _as_typed(value: Any, space: Mapping[str, Any]) -> Any:
    """A suggested value as you would type it. Numbers are rounded to four digits, inside the range."""
    if "choices" in space:
        return json.loads(value)
    if isinstance(value, int):
        return value
    return min(max(float(f"{value:.4g}"), space["low"]), space["high"])


def losses(run: Path) -> list[float]:
    """The validation losses of a run, in the order of epochs. There are none if its files are missing or damaged."""
    saved = read_run(run)
    return [] if saved is None else list(saved.val_losses().values())


class Pruner:
    """Stops a run whose lowest validation loss is above the median of other runs at the same epoch.

    Nothing is stopped in the first quarter of the epochs, in which a loss says little about the last one.

    Args:
        curves: the validation losses of other runs, by epoch.
        earlier: those of this run, if it is resumed.
        epochs: the number of epochs of this run.
    """

    def __init__(self, curves: Sequence[Sequence[float]], earlier: Sequence[float], epochs: int) -> None:
        import optuna
        from optuna.trial import create_trial

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.epochs = epochs
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=epochs // 4 + 1)
        study = optuna.create_study(pruner=pruner)
        for curve in curves:
            study.add_trial(create_trial(value=min(curve), intermediate_values=dict(enumerate(curve, start=1))))
        self.trial = study.ask()
        self.reported = len(earlier)
        for epoch, loss in enumerate(earlier, start=1):
            self.trial.report(loss, epoch)

    def __call__(self, row: Mapping[str, float]) -> None:
        """Look at the row of an epoch. Raise PrunedError to stop the run."""
        epoch = int(row["epoch"])
        if epoch > self.reported:  # a resumed run may repeat an epoch
            self.trial.report(row["val_loss"], epoch)
        if epoch < self.epochs and self.trial.should_prune():
            raise PrunedError(f"pruned after epoch {epoch}: most runs had a lower validation loss at this epoch")
