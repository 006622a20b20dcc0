"""Where numbers go: the run's folder, the terminal, and W&B if asked for."""

import contextlib
import hashlib
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import checkpoint
from config import ExperimentConfig, to_json
from utils import DivergedError, Interrupted, complain, provenance, say, uninterrupted, write_atomic


def write_json(path: Path, content: Any) -> None:
    """Strict JSON, whole or not at all: a NaN is an error here and not in whoever reads the file."""
    write_atomic(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


class RunLogger:
    """Keeps a run's record: config.json and run_info.json from the start, a row of numbers an epoch, the results.

    As a context manager it notes how the run ended: finished, interrupted, diverged or failed.

    Args:
        folder: the run's, which is there.
        config: what is run.
        timings: seconds, by stage; kept with the rest of the record.
        earlier: the run that this one goes on with; its rows and its W&B run are continued.
    """

    def __init__(
        self,
        folder: Path,
        config: ExperimentConfig,
        timings: dict[str, float] | None = None,
        earlier: checkpoint.EarlierRun = checkpoint.NOTHING,
    ) -> None:
        self.folder, self.config = folder, config
        self.rows: list[dict[str, float]] = earlier.state["rows"] if earlier.state else []
        self.timings = {} if timings is None else timings
        self.info: dict[str, Any] = {
            "status": "running",
            "argv": sys.argv,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            **provenance(),
            "timings": self.timings,
        }
        self.bar: tqdm[Any] | None = None
        if earlier.info:
            before = {key: value for key, value in earlier.info.items() if key != "earlier"}
            self.info["earlier"] = [*earlier.info.get("earlier", []), before]
        if self.rows:  # the file may have a row more, of an epoch that was not kept, or be damaged
            write_json(folder / "epoch_metrics.json", self.rows)
        write_atomic(folder / "config.json", to_json(config).encode())
        wandb_id = earlier.info.get("wandb_id")
        self.note(wandb_id=wandb_id)
        self.wandb = _start_wandb(folder, config, wandb_id) if config.log.wandb else None
        if self.wandb:
            self.note(wandb_id=self.wandb.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        endings: dict[Any, str] = {None: "finished", Interrupted: "interrupted", DivergedError: "diverged"}
        self._close_bar()
        with contextlib.suppress(OSError), uninterrupted():  # a disk that is full has its say already
            self.note(status=endings.get(kind, "failed"))
        self._to_wandb(lambda run: run.finish(exit_code=0 if kind is None else 1))

    def note(self, **facts: Any) -> None:
        """Add to run_info.json what may differ between two equal runs."""
        self.info |= facts
        write_json(self.folder / "run_info.json", self.info)

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Keep a row of epoch_metrics.json, which is a whole file after every epoch, and show it."""
        self.rows.append(dict(row))
        write_json(self.folder / "epoch_metrics.json", self.rows)
        self._to_wandb(lambda run: run.log(dict(row), step=row["epoch"]))
        key = next(key for key in row if key.startswith("val_") and key != "val_loss")  # the task's foremost metric
        name = key.replace("_", " ")
        if sys.stderr is not None and sys.stderr.isatty():
            self.bar = self.bar or tqdm(
                total=self.config.train.epochs, initial=len(self.rows) - 1, desc="training", unit="epoch"
            )
            self.bar.set_postfix_str(f"{name} {row[key]:.3g}", refresh=False)
            self.bar.update()
        else:
            losses = f"train loss {row['train_loss']:.4g}, val loss {row['val_loss']:.4g}, {name} {row[key]:.4g}"
            say(f"epoch {row['epoch']}/{self.config.train.epochs}: {losses}")

    def _to_wandb(self, action: Callable[[Any], object]) -> None:
        """Do something with the W&B run, if there is one; if that fails, go on without."""
        if self.wandb is not None:
            try:
                action(self.wandb)
            except Exception as error:  # whatever it is: the run's own files do not depend on it
                _warn_of_wandb(error, self.folder)
                self.wandb = None

    def _close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Keep results.json, and put the test metrics into W&B's summary."""
        self._close_bar()
        write_json(self.folder / "results.json", results)
        test_metrics = {f"test_{name}": value for name, value in results["test"].items()}
        self._to_wandb(lambda run: run.summary.update(test_metrics | {"best_epoch": results["best_epoch"]}))

    def log_weights(self, name: str, epoch: int, weights: Mapping[str, Any]) -> None:
        """Keep a model's weights, if the config says so."""
        if self.config.log.checkpoints:
            checkpoint.save(self.folder / f"{name}.pt", self.config, {"epoch": epoch, "model": dict(weights)})

    def log_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Keep all that the rest of a run depends on in last.pt, and the one before it, if the config says so."""
        if self.config.log.checkpoints:
            content = {"rows": self.rows, **state}
            checkpoint.save(self.folder / "last.pt", self.config, content, keep=self.folder / "previous.pt")

    def log_arrays(self, name: str, **arrays: NDArray[Any]) -> None:
        """Keep arrays by name, in an .npz file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_atomic(self.folder / f"{name}.npz", buffer.getvalue())

    def summary(self, results: Mapping[str, Any]) -> str:
        """The results as Markdown for journal.md: metrics beside the baselines, then where they came from."""
        config, info = self.config, self.info
        network = f"{config.model.architecture}, epoch {results['best_epoch']} of {results['epochs_trained']}"
        table = _table(
            f"on {config.data.num_test:,} test configurations",
            {network: results["test"], **results["baselines"]},
            [name for name in results["test"] if name != "loss"],
        )
        command = shlex.join(["python", *info["argv"]])
        commit = (info["git_commit"] or "none")[:10] + (", with changes" if info["git_dirty"] else "")
        processes = f", in {info['processes']} processes" if info.get("processes", 1) > 1 else ""
        times = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.timings.items())
        return f"{table}\n\n`{command}`{processes}  \ncommit {commit}; seed {config.seed}; {times}"


class SilentLogger(RunLogger):
    """The logger of the processes that write nothing."""

    def __init__(self) -> None:
        self.timings = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def note(self, **facts: Any) -> None: ...

    def log_epoch(self, row: Mapping[str, float]) -> None: ...

    def log_weights(self, name: str, epoch: int, weights: Mapping[str, Any]) -> None: ...

    def log_checkpoint(self, state: Mapping[str, Any]) -> None: ...


def _table(title: str, rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    """A Markdown table that is aligned as it stands."""
    width = max(map(len, (title, *rows)))
    lines = [
        f"| {title:<{width}} | " + " | ".join(f"{column:>14}" for column in columns) + " |",
        f"|:{'-' * width}-|-" + ":|-".join("-" * 14 for _ in columns) + ":|",
    ]
    for name, metrics in rows.items():
        lines.append(f"| {name:<{width}} | " + " | ".join(f"{metrics[column]:>14.4g}" for column in columns) + " |")
    return "\n".join(lines)


def without_seed(config: ExperimentConfig) -> str:
    """Eight digits that tell experiments apart, but for their seed and where they log."""
    content = {key: value for key, value in asdict(config).items() if key not in ("seed", "log")}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]


def _warn_of_wandb(error: Exception, folder: Path) -> None:
    reason = " ".join(repr(error).split())[:200]
    complain(f"warning: no W&B ({reason}); logging goes on in {folder}")


def _start_wandb(folder: Path, config: ExperimentConfig, run_id: str | None = None) -> Any:
    """A W&B run, or None with a line of warning: the run's own files do not depend on it.

    WANDB_MODE, WANDB_PROJECT and the other variables of W&B are honoured. Runs that differ in their seed alone fall
    into one group.
    """
    model, train, data = config.model, config.train, config.data
    try:
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ising"),
            name=folder.name,
            group=f"{model.architecture}-L{data.lattice_size}-{without_seed(config)}",
            tags=[model.architecture, train.optimizer, train.scheduler],
            config=asdict(config),
            id=run_id,
            resume="allow" if run_id else None,
            dir=folder,
            settings=wandb.Settings(init_timeout=20, finish_timeout=20, silent=True),
        )
    except Exception as error:  # whatever it is: no package, no login, no network
        _warn_of_wandb(error, folder)
        return None
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    return run
