"""What experiments have in common: a case at a time, kept as it is done, on all cores; and training without a folder.

An experiment is a function that measures one case, a list of cases, and a figure of what came out. Its numbers lie in
results/NAME.json, in which cases that are already there are not computed again: remove the file to begin anew.
"""

import argparse
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from config import PRESETS, ExperimentConfig
from data import Splits
from ising.multispin import available_cores
from logger import SilentLogger, write_json
from model import InPhysicalUnits, create_model
from task import TASKS, Task
from trainer import Trainer
from utils import Interrupted, complain, leave, provenance, say, seed_everything, stop_on_signals

ROOT = Path(__file__).parent.parent
Row = dict[str, Any]

# Every network with what suits it, found by hand. A single layer of squares is a quadratic form, as the energy is.
DEFAULT, EXACT = PRESETS["default"], PRESETS["exact"]
NETWORKS: dict[str, ExperimentConfig] = {
    "mlp": DEFAULT,
    "residual_mlp": replace(DEFAULT, model=replace(DEFAULT.model, architecture="residual_mlp", dropout=0.0)),
    "symmetric_mlp": replace(
        DEFAULT,
        model=replace(DEFAULT.model, architecture="symmetric_mlp", hidden=(128,), dropout=0.0),
        train=replace(DEFAULT.train, lr=0.01),
    ),
    "cnn": EXACT,
}


class Study:
    """One experiment on the command line.

    Args:
        file, doc: `__file__` and `__doc__` of its module.
    """

    def __init__(self, file: str, doc: str | None) -> None:
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="a smoke test, in seconds; keeps no numbers")
        self.quick: bool = parser.parse_args().quick
        stop_on_signals()
        name = Path(file).stem
        folder = Path(mkdtemp()) if self.quick else None
        self.results = (folder or ROOT / "experiments" / "results") / f"{name}.json"
        self.figure = (folder or ROOT / "docs" / "figures") / f"{name}.png"
        self.content: Row = json.loads(self.results.read_text()) if self.results.exists() else {"cases": []}

    def measure(self, compute: Callable[..., Row], cases: Sequence[tuple[Any, ...]]) -> list[Row]:
        """`compute(*case)` for every case, in processes of one thread each; what is there already is taken.

        Of each case the row has its `case`, the `seconds` that it took and the `commit` besides.
        """
        name = compute.__name__
        done = {_key(row["case"]): row for row in self.content["cases"]}
        wanted = {_key([name, *case]): [name, *case] for case in cases}
        missing = [key for key in wanted if key not in done]
        context = multiprocessing.get_context("spawn")  # a fork after torch has begun threads may hang
        commit = {"commit": provenance()["git_commit"], "dirty": provenance()["git_dirty"]}
        os.environ["TQDM_DISABLE"] = "1"  # in the processes, which read it; not here, where tqdm has been loaded
        try:
            with ProcessPoolExecutor(available_cores(), context, initializer=_begin) as pool:
                futures = {pool.submit(_timed, compute, wanted[key]): key for key in missing}
                try:
                    for future in tqdm(as_completed(futures), name, total=len(missing), disable=not missing or None):
                        done[futures[future]] = future.result() | commit
                        self.content["cases"] = list(done.values())
                        write_json(self.results, self.content)
                except BaseException:
                    for process in multiprocessing.active_children():  # else they would compute all that is left
                        process.kill()
                    raise
        except Interrupted as error:
            complain(f"{self.results.stem}: interrupted: the same command goes on after the last whole case")
            leave(error.exit_code)
        finally:
            del os.environ["TQDM_DISABLE"]
        return [done[key] for key in wanted]

    def finish(self, summary: Row, figure: Figure, *lines: str) -> None:
        """Keep what came out, the figure, and the lines of a table that says it, and print these."""
        seconds = sum(row["seconds"] for row in self.content["cases"])
        self.content |= {"summary": summary, "core_seconds": round(seconds), "report": "\n".join(lines)}
        write_json(self.results, self.content)
        figure.savefig(self.figure, dpi=110)
        say(self.content["report"])
        say(f"{seconds / 60:.1f} minutes of one core; {self.results} and {self.figure}")


def _key(case: Sequence[Any]) -> str:
    return json.dumps(case)


def _begin() -> None:
    """Prepare a process: one thread; and Ctrl-C, which the terminal sends to all, is for the first."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _timed(compute: Callable[..., Row], case: list[Any]) -> Row:
    start = time.perf_counter()
    row = compute(*case[1:])
    return {"case": case, **row, "seconds": round(time.perf_counter() - start, 2)}


def trained(config: ExperimentConfig, splits: Splits) -> tuple[InPhysicalUnits, Task]:
    """The network of a config, trained on these data as main.py would, on the CPU; and its task."""
    cpu = torch.device("cpu")
    task = TASKS[config.task].of(splits.train.spins)
    train, val = (task.examples(split.spins, split.temperatures, cpu) for split in (splits.train, splits.val))
    seed_everything(config.seed)
    model = create_model(config.model, splits.train.spins.shape[-1], task.mean, task.std)
    Trainer(model, task, config, train=train, val=val, logger=SilentLogger()).fit()
    return model, task
