"""Shared code of the experiments: running cases on all cores, saving them one by one, and training without a folder.

An experiment consists of a function that measures one case, a list of cases, and a figure of the results. Its numbers
are stored in results/NAME.json. Cases that this file contains are not computed again; delete the file to start over.
"""

import argparse
import json
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import matplotlib.style
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from config import PRESETS, DataConfig, ExperimentConfig
from engine.datasets.overlap import hash_inputs, select, unseen
from engine.datasets.splits import get_splits
from engine.interface import Columns, Splits, TrainConfig
from engine.learning.prediction import build_model, evaluate, prepare
from engine.learning.standardized import Standardized
from engine.machine.atomic_files import write_atomic
from engine.machine.exit_code import quick_exit
from engine.machine.hardware import available_cores
from engine.machine.pool import Pool
from engine.machine.repository import provenance
from engine.machine.signals import Interrupted, stop_on_signals
from experiments.json_rows import to_json
from problem import PROBLEM
from trainer import Trainer
from utils import print_line, warn

ROOT = Path(__file__).parent.parent
Row = dict[str, Any]

# Each network with suitable options, found by hand. The symmetric_mlp has a single layer, since a sum of squares of
# linear functions is a quadratic form of the spins, as the energy is.
DEFAULT, EXACT = ExperimentConfig(), PRESETS["exact"]
NETWORKS: dict[str, ExperimentConfig] = {
    "mlp": DEFAULT,
    "residual_mlp": PRESETS["residual"],
    "symmetric_mlp": replace(
        DEFAULT,
        model=replace(DEFAULT.model, architecture="symmetric_mlp", hidden=(128,), dropout=0.0),
        train=replace(DEFAULT.train, lr=0.01),
    ),
    "cnn": EXACT,
}


class Study:
    """The command line, the results and the figure of one experiment.

    Args:
        file: `__file__` of its module.
        doc: `__doc__` of its module, shown by --help.
    """

    def __init__(self, file: str, doc: str | None) -> None:
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="run a small version; its results are not kept")
        self.quick: bool = parser.parse_args().quick
        stop_on_signals()
        matplotlib.rcdefaults()  # no settings of the user
        matplotlib.style.use("petroff6")  # colours that colour-blind readers can distinguish
        name = Path(file).stem
        folder = Path(mkdtemp()) if self.quick else None
        self.results = (folder or ROOT / "experiments" / "results") / f"{name}.json"
        self.figure = (folder or ROOT / "docs" / "figures") / f"{name}.png"
        self.rows: list[Row] = []  # those that this run of the experiment uses
        self.content: Row = (
            json.loads(self.results.read_text(encoding="utf-8")) if self.results.exists() else {"cases": []}
        )

    def measure(self, compute: Callable[..., Row], cases: Sequence[tuple[Any, ...]]) -> list[Row]:
        """Call `compute(*case)` for every case, in processes with one thread each, and return the rows.

        Earlier results are reused: a case is identified by the name of the function and its arguments. A row also
        contains the `case`, the `seconds` that it took and the `commit`.
        """
        name = compute.__name__
        done = {_key(row["case"]): row for row in self.content["cases"]}
        wanted = {_key([name, *case]): [name, *case] for case in cases}
        waiting = deque(key for key in wanted if key not in done)
        origin = provenance()
        commit = {"commit": origin["git_commit"], "dirty": origin["git_dirty"]}
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported: no progress bars in the new processes
        try:
            bar = tqdm(desc=name, total=len(waiting), disable=not waiting or None)
            with bar, Pool(available_cores(), _timed, _use_one_thread) as pool:
                while waiting or pool.running:
                    while waiting and not pool.is_full:
                        key = waiting.popleft()
                        pool.start(key, compute, wanted[key])

                    for outcome in pool.wait():
                        if outcome.error:
                            raise RuntimeError(f"{outcome.key}: {outcome.details or outcome.error}")
                        done[outcome.key] = outcome.value | commit
                        self.content["cases"] = list(done.values())
                        write_atomic(self.results, to_json(self.content).encode())
                        bar.update()
        except Interrupted as error:
            warn(f"{self.results.stem}: interrupted; run the same command again to continue after the last saved case")
            quick_exit(error.exit_code)
        finally:
            del os.environ["TQDM_DISABLE"]
        rows = [done[key] for key in wanted]
        self.rows += rows
        return rows

    def finish(self, summary: Row, figure: Figure, *lines: str) -> None:
        """Save the summary, the figure and the lines of the report, and print the report.

        Cases of earlier versions of the experiment, which were not used, are removed from the file.
        """
        seconds = sum(row["seconds"] for row in self.rows)
        self.content |= {
            "cases": self.rows,
            "summary": summary,
            "core_seconds": round(seconds),
            "report": "\n".join(lines),
        }
        write_atomic(self.results, to_json(self.content).encode())
        figure.savefig(self.figure, dpi=110)
        print_line(self.content["report"])
        print_line(f"{seconds / 60:.1f} minutes on one core; results in {self.results}, figure in {self.figure}")


def _key(case: Sequence[Any]) -> str:
    return json.dumps(case)


def _use_one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _timed(compute: Callable[..., Row], case: list[Any]) -> Row:
    start = time.perf_counter()
    row = compute(*case[1:])
    return {"case": case, **row, "seconds": round(time.perf_counter() - start, 2)}


def case_seed(*case: Any) -> int:
    """A seed that differs from case to case."""
    return zlib.crc32(_key(case).encode())


def sampled(data: DataConfig, seed: int) -> Splits:
    """Sample configurations with a seed on one thread, or read them from the cache."""
    # The batch size must not exceed num_train, but has no effect on the data.
    config = ExperimentConfig(train=TrainConfig(batch_size=1), data=data, seed=seed, threads=1)
    return get_splits(PROBLEM, config)[0]


def trained(config: ExperimentConfig, splits: Splits) -> Standardized:
    """Train the network of a config on these data as main.py does, on the CPU."""
    model = build_model(PROBLEM, config, splits.train)
    Trainer(PROBLEM, config, model, splits.train, splits.val).fit()
    return model


def evaluated(config: ExperimentConfig, model: Standardized, columns: Columns) -> dict[str, float]:
    """The loss and the metrics of a network on some configurations."""
    return evaluate(PROBLEM, config, model, prepare(PROBLEM, config, model, columns)).metrics


def unseen_of(columns: Columns, train: Columns) -> Columns:
    """The configurations whose spins do not occur in training.

    Cold lattices are often in a ground state, which a network has seen in training. The other configurations show
    whether it generalises.
    """
    config = DEFAULT  # its only inputs are the spins
    return select(columns, unseen(*(hash_inputs(PROBLEM, config, each) for each in (train, columns))))
