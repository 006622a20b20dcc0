# Shared: keep, and edit freely; every edit takes effect.
"""Record a run: files in its folder, lines on the terminal, and W&B if requested."""

import contextlib
import hashlib
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray
from tqdm import tqdm

from engine.datasets.archives import to_npz
from engine.interface.base_config import Config, to_dict, to_json
from engine.interface.base_problem import Problem, default_config
from engine.interface.find_problem import module_name
from engine.interface.returned_values import main_metric_of
from engine.learning.distributed import weights_sha256
from engine.machine.atomic_files import inside, write_atomic, write_json
from engine.machine.errors import DivergedError, ProblemError, PrunedError
from engine.machine.repository import provenance
from engine.machine.signals import uninterrupted
from engine.machine.terminal import invocation
from engine.options.config_values import changed_options, setting_of
from engine.run_folder import checkpoints
from engine.run_folder.null_logger import NullLogger, Watch
from utils import print_line, warn

SECONDS_BETWEEN_WRITES = 1.0  # the shortest time between two writes of metrics and checkpoints, if epochs are short


class RunLogger(NullLogger):
    """Records a run: config.json and run_info.json at the start, metrics and checkpoints during training, the results.

    As a context manager, it records how the run ended: finished, interrupted, diverged, pruned or failed.

    Args:
        folder: the folder of the run, which has to exist.
        problem, config: the problem and the config of the run.
        shapes: the shapes of the inputs and the target, which are saved with the weights.
        timings: seconds by stage, which are saved in run_info.json.
        earlier: the run_info.json of the run that this one resumes, whose W&B run is continued.
        state: the last checkpoint of that run, whose rows of metrics are continued.
        watch: called with the row of metrics of each epoch. It may raise an error to stop the run.
    """

    def __init__(
        self,
        folder: Path,
        problem: Problem[Any],
        config: Config,
        *,
        shapes: Mapping[str, Any] | None = None,
        timings: dict[str, float] | None = None,
        earlier: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.folder, self.problem, self.config, self.watch = folder, problem, config, watch
        self.shapes = dict(shapes or {})
        self.unsaved: Mapping[str, Any] | None = None
        self.last_write, self.written = -math.inf, ""  # the hash of the weights in best.pt
        self.timings = {} if timings is None else timings
        self.info: dict[str, Any] = {
            "status": "running",
            "problem": module_name(problem),
            "label": problem.label(config),
            "changed": changed_options(default_config(problem), to_dict(config)),
            "argv": [] if hasattr(sys, "ps1") else sys.argv,  # ps1: in an interactive session, such as a notebook
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            **provenance(),
            "timings": self.timings,
        }
        self.bar: tqdm[Any] | None = None
        if earlier:
            before = {key: value for key, value in earlier.items() if key != "earlier"}
            self.info["earlier"] = [*(earlier.get("earlier") or []), before]
        write_atomic(folder / "config.json", to_json(config).encode())
        if state:  # the other files may be damaged, or from a later epoch than the checkpoint
            self._write_metrics_and_best(state)
        self.wandb: Any = None
        self.note(wandb_id=(earlier or {}).get("wandb_id"))

    def __enter__(self) -> Self:
        if self.config.log.wandb:
            try:
                inside(self.folder, "wandb")
                self.wandb = _start_wandb(self.folder, self.problem, self.config, self.info["wandb_id"])
            except BaseException as error:  # a signal, while W&B connects
                self.__exit__(type(error), error, error.__traceback__)
                raise
        if self.wandb:
            self.note(wandb_id=self.wandb.id)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_bar()
        with uninterrupted():
            for record in (self.flush, partial(self.note, status=_ending(kind))):
                # These errors, a full disk or a state that cannot be saved, have already been reported.
                with contextlib.suppress(OSError, ProblemError):
                    record()
        self._to_wandb(lambda run: run.finish(exit_code=0 if kind is None else 1))

    def note(self, **facts: Any) -> None:
        """Add facts that may differ between two equal runs to run_info.json."""
        self.info |= facts
        write_json(self.folder / "run_info.json", self.info)

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Show a row of metrics on the terminal, send it to W&B, and call `watch`."""
        self._to_wandb(lambda run: run.log(dict(row), step=row["epoch"]))
        if "main_metric" not in self.info:
            names = [name.removeprefix("val_") for name in row if name.startswith("val_") and name != "val_loss"]
            self.note(main_metric=main_metric_of(self.problem, self.config, names))
        metric = self.info["main_metric"][0]
        value, name = row[f"val_{metric}"], f"val {metric}".replace("_", " ")
        if sys.stderr is not None and sys.stderr.isatty():
            self.bar = self.bar or tqdm(
                total=self.config.train.epochs, initial=int(row["epoch"]) - 1, desc="training", unit="epoch"
            )
            self.bar.set_postfix_str(f"{name} {value:.3g}", refresh=False)
            self.bar.update()
        else:
            losses = f"train loss {row['train_loss']:.4g}, val loss {row['val_loss']:.4g}, {name} {value:.4g}"
            print_line(f"epoch {row['epoch']}/{self.config.train.epochs}: {losses}")
        if self.watch is not None:
            self.watch(row)

    def _to_wandb(self, action: Callable[[Any], object]) -> None:
        """Call a function with the W&B run, if there is one. If it fails, continue without W&B."""
        if self.wandb is not None:
            try:
                action(self.wandb)
            except Exception as error:  # of any type: the files of the run do not depend on W&B
                _warn_about_wandb(error, self.folder)
                self.wandb = None

    def _close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json, and add the test metrics to the summary of the W&B run."""
        self._close_bar()
        write_json(self.folder / "results.json", results)
        test_metrics = {f"test_{name}": value for name, value in results["test"].items()}
        test_metrics |= {f"test_unseen_{name}": value for name, value in (results["test_unseen"] or {}).items()}
        self._to_wandb(lambda run: run.summary.update(test_metrics | {"best_epoch": results["best_epoch"]}))

    def log_state(self, state: Mapping[str, Any]) -> None:
        """Write metrics, best weights and checkpoint, or keep a copy of the state if the last write was just before.

        There is at most one write per second. `flush` writes the copy at the end of training, or if the run is stopped.
        """
        is_time = time.monotonic() - self.last_write >= SECONDS_BETWEEN_WRITES
        self.unsaved = state if is_time else checkpoints.snapshot(state)
        if is_time:
            self.flush()

    def flush(self) -> None:
        """Write the newest state, if it has not been written."""
        if self.unsaved is None:
            return
        self._write_metrics_and_best(self.unsaved)
        if self.config.log.checkpoints:
            checkpoints.save(self.folder / "last.pt", self.config, self.unsaved, keep=self.folder / "previous.pt")
        self.unsaved, self.last_write = None, time.monotonic()

    def _write_metrics_and_best(self, state: Mapping[str, Any]) -> None:
        write_json(self.folder / "epoch_metrics.json", state["rows"])
        self.log_weights(state["best_epoch"], state["best_weights"])

    def log_weights(self, epoch: int, weights: Mapping[str, Any]) -> None:
        """Write the best weights to best.pt, unless it has them already."""
        if self.config.log.checkpoints and (now := weights_sha256(weights)) != self.written:
            content = {"epoch": epoch, "shapes": self.shapes, "model": weights}
            checkpoints.save(self.folder / "best.pt", self.config, content)
            self.written = now

    def log_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Save named arrays in an .npz file."""
        write_atomic(self.folder / f"{name}.npz", to_npz(arrays))

    def summary(self, results: Mapping[str, Any]) -> str:
        """Format the results as Markdown for journal.md: the metrics, those of baselines, and how they were obtained.

        If the inputs of some test examples also occur in training, a second table has the metrics on the others.
        """
        info = self.info
        label = f"{self.problem.label(self.config)}, epoch {results['best_epoch']} of {results['epochs_trained']}"
        n_test, n_unseen = results["n_test"], results["n_unseen"]
        names = [name for name in results["test"] if name != "loss"]
        tables = [_table(f"on {n_test:,} test examples", {label: results["test"], **results["baselines"]}, names)]
        if n_unseen < n_test:
            seen = f"The inputs of {n_test - n_unseen:,} of the {n_test:,} test examples also occur in training."
            if results["test_unseen"] is None:  # there are no others, or no metrics for them
                tables.append(seen)
            else:
                rows = {label: results["test_unseen"], **results["baselines_unseen"]}
                tables += [f"{seen} Without these:", _table(f"on {n_unseen:,} test examples", rows, names)]
        if self.config.train.fresh and results["baselines"]:
            tables.append("The baselines know the examples of the first epoch only.")
        command = f"{invocation()} {shlex.join(info['argv'][1:])}".rstrip() if info["argv"] else "main.run(...)"
        commit = (info["git_commit"] or "none")[:10] + (", with changes" if info["git_dirty"] else "")
        processes = f", in {info['processes']} processes" if info.get("processes", 1) > 1 else ""
        times = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.timings.items())
        table = "\n\n".join(tables)
        return f"{table}\n\n`{command}`{processes}  \ncommit {commit}; seed {self.config.seed}; {times}"


def _ending(kind: type[BaseException] | None) -> str:
    """How a run ended, from the type of the exception that ended it."""
    if kind is None:
        return "finished"
    if issubclass(kind, KeyboardInterrupt):  # Interrupted, or Ctrl-C in a notebook
        return "interrupted"
    if issubclass(kind, PrunedError):
        return "pruned"
    return "diverged" if issubclass(kind, DivergedError) else "failed"


def _table(title: str, rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    """Format a Markdown table. Its columns are also aligned as plain text."""
    width = max(map(len, (title, *rows)))
    widths = {column: max(14, len(column)) for column in columns}
    lines = [
        f"| {title:<{width}} | " + " | ".join(f"{column:>{n}}" for column, n in widths.items()) + " |",
        f"|:{'-' * width}-|-" + ":|-".join("-" * n for n in widths.values()) + ":|",
    ]
    for name, metrics in rows.items():  # baselines need not have all metrics
        cells = [f"{metrics[c]:>{n}.4g}" if c in metrics else " " * n for c, n in widths.items()]
        lines.append(f"| {name:<{width}} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def hash_without_seed(config: Config) -> str:
    """Eight hexadecimal digits, which are equal for configs that only differ in the seed and the machine."""
    return hashlib.sha256(json.dumps(setting_of(to_dict(config))).encode()).hexdigest()[:8]


def _warn_about_wandb(error: Exception, folder: Path) -> None:
    reason = " ".join(repr(error).split())[:200]
    warn(f"warning: no W&B ({reason}); logging continues in {folder}")


# The settings of W&B that this file sets, and the environment variables with which the user can set them instead.
WANDB_VARIABLES = {
    "project": "WANDB_PROJECT",
    "name": "WANDB_NAME",
    "group": "WANDB_RUN_GROUP",
    "tags": "WANDB_TAGS",
    "dir": "WANDB_DIR",
}


def _start_wandb(folder: Path, problem: Problem[Any], config: Config, run_id: str | None = None) -> Any:
    """Start a W&B run. If this fails, print a warning and return None: the files of the run do not depend on W&B.

    All environment variables of W&B have their usual effect. Runs that only differ in their seed are in the same group.
    """
    label = problem.label(config)
    ours: dict[str, Any] = {
        "project": problem.name,
        "name": folder.name,
        "group": f"{label}-{hash_without_seed(config)}",
        "tags": [*label.split("-"), config.train.optimizer, config.train.scheduler],
        "dir": folder,
    }
    try:
        import wandb

        # In a terminal, wandb.init would ask a user who is not logged in what to do, and wait.
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("not logged in: run `wandb login`, or set WANDB_MODE=offline")
        run = wandb.init(
            **{key: value for key, value in ours.items() if not os.environ.get(WANDB_VARIABLES[key])},
            config=to_dict(config),
            id=run_id,
            resume="allow" if run_id else None,
            settings=wandb.Settings(init_timeout=20, finish_timeout=20, silent=True),
        )
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        return run
    except Exception as error:  # of any type: no package, no login, no network
        _warn_about_wandb(error, folder)
        return None
