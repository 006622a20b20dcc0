"""Time and memory of each stage of a run with more and more training configurations. Only on Linux.

python -m benchmarks.stages             measure, in about three minutes; write results/stages.json
python -m benchmarks.stages --report    do not measure; print the table of the last measurement

The stages are those of `python main.py --num-train N --epochs 1`, with the preset `default` on one thread. Memory is
the peak of the resident set during a stage. Sizes take turns, each in a process of its own.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training import ROOT, spread
from config import PRESETS
from experiments.json_rows import to_json

RESULTS = ROOT / "benchmarks" / "results" / "stages.json"
SIZES = (10_000, 100_000, 1_000_000)
N_REPETITIONS = 3
STAGES = ("start", "data", "one epoch", "baselines", "search for test examples in training", "test")


@contextmanager
def stage(name: str, found: dict[str, list[float]]) -> Iterator[None]:
    """Measure seconds, and the peak of the memory in MiB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the earlier peak
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (peak,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    found[name] = [seconds, peak / 1024]


def work(n: int) -> dict[str, list[float]]:
    """All stages for n training configurations."""
    found: dict[str, list[float]] = {}
    with stage("start", found):
        import torch

        from engine.datasets.overlap import hash_inputs, unseen
        from engine.datasets.splits import load_data
        from engine.learning.prediction import build_model, evaluate, prepare
        from ising import multispin
        from problem import PROBLEM
        from trainer import Trainer

        torch.set_num_threads(1)
        multispin.get_ready(clusters=False)
    config = PRESETS["default"]
    data = replace(config.data, num_train=n, cache=False)
    config = replace(config, threads=1, data=data, train=replace(config.train, epochs=1))
    with stage("data", found):
        splits = load_data(PROBLEM, config)
    with stage("one epoch", found):
        model = build_model(PROBLEM, config, splits.train)
        Trainer(PROBLEM, config, model, splits.train, splits.val).fit()
    with stage("baselines", found):
        PROBLEM.baselines(config, splits.train, splits.test)
    with stage("search for test examples in training", found):
        unseen(*(hash_inputs(PROBLEM, config, each) for each in (splits.train, splits.test)))
    with stage("test", found):
        evaluate(PROBLEM, config, model, prepare(PROBLEM, config, model, splits.test))
    return found


def measure() -> dict[str, Any]:
    """Measure all sizes, in turn."""
    rows = []
    for _ in range(N_REPETITIONS):
        for n in SIZES:
            command = [sys.executable, "-m", "benchmarks.stages", "--work", str(n)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
            rows.append({"n": n, "stages": json.loads(done.stdout.splitlines()[-1])})
            print(rows[-1], file=sys.stderr)
    return {"machine": platform.processor() or platform.machine(), "rows": rows}


def report(results: dict[str, Any]) -> str:
    """The table for the documentation."""
    lines = [f"| stage: s; MiB | {' | '.join(f'{n:,}' for n in SIZES)} |", "|---|" + "---:|" * len(SIZES)]
    for name in STAGES:
        cells = []
        for n in SIZES:
            values = np.array([row["stages"][name] for row in results["rows"] if row["n"] == n])
            cells.append(f"{spread(list(values[:, 0]))}; {np.median(values[:, 1]):,.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, save the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="do not measure; print the table of the last measurement")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work(arguments.work)))
        return
    if not arguments.report:
        RESULTS.write_text(to_json(measure()), encoding="utf-8", newline="\n")
    print(report(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
