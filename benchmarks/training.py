"""Speed of training, compared with common alternatives.

python -m benchmarks.training            measure, in about 15 minutes; write results/training.json, plot
python -m benchmarks.training --plot     do not measure; print and plot the results of the last measurement

All competitors train the same network on the same data with the same schedule, each in its own process. Two times are
measured:

- The time of a step. In each repetition, the competitors train one epoch each while the others wait. Ratios of times
  are computed within a repetition.
- The time to a given error: from the start of the process to the first epoch whose validation error is within 5 % of
  the lowest one of the default experiment. Only one process runs at a time.

The competitors run in a separate virtual environment, which is created on the first run.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.competitors import CASES, COMPETITORS, DEFAULT, RACERS, Data, Timer, supports
from experiments.json_rows import to_json
from ising import lattice

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / "benchmarks" / ".peers-training"
PACKAGES = ["lightning==2.6.6", "scikit-learn==1.9.1", "jax==0.10.2", "optax==0.2.8"]
RESULTS = ROOT / "benchmarks" / "results" / "training.json"
FIGURE = ROOT / "docs" / "figures" / "training.png"

N_REPETITIONS = 9
N_RACES = 3
SLACK = 1.05  # error to reach, relative to that of the default run; seeds differ by a few percent

# ---------------------------------------------------------------------------------------------------------- measuring


class Worker:
    """A competitor in its own process."""

    def __init__(self, name: str, case: str, data: Path, n_cores: int, race: bool) -> None:
        python = str(ENVIRONMENT / "bin" / "python")
        command = [python, "-m", "benchmarks.training", "--work", name, case, str(data), str(n_cores), str(int(race))]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )

    def epoch(self) -> float:
        """Let the competitor train one epoch, and return the seconds it took."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def work(name: str, case: str, path: str, n_cores: str, race: str) -> None:
    """Run a competitor. This is the main function of a worker process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(n_cores)])
    with np.load(path) as arrays:
        data = Data(**arrays)
    COMPETITORS[name](CASES[case], data, Timer(race == "1"))


def measure_steps(case: str, data: Path, steps_per_epoch: int, n_cores: int) -> dict[str, list[float]]:
    """Milliseconds per step of each competitor, in each repetition."""
    workers = {name: Worker(name, case, data, n_cores, race=False) for name in COMPETITORS if supports(name, case)}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for repetition in range(N_REPETITIONS + 2):
        for name, worker in workers.items():
            seconds = worker.epoch()
            time.sleep(0.3)  # threads of some competitors are busy waiting for another 0.2 s
            if repetition >= 2:  # the first two epochs are compilation and warm-up
                times[name].append(1e3 * seconds / steps_per_epoch)
    for worker in workers.values():
        worker.process.kill()
        worker.process.communicate()
    return times


def race(name: str, case: str, data: Path) -> list[tuple[float, float]]:
    """Seconds since the start of the process and validation error, for each epoch."""
    start = time.perf_counter()
    worker = Worker(name, case, data, n_cores=os.cpu_count() or 1, race=True)
    assert worker.process.stdout is not None
    curve = [(time.perf_counter() - start, float(line)) for line in worker.process.stdout]
    worker.process.communicate()
    assert len(curve) == DEFAULT.train.epochs, name
    return curve


def race_ours(case: str, folder: Path) -> list[tuple[float, float]]:
    """As `race`, for the complete main.py, which reads its data from the cache and writes checkpoints and metrics."""
    command = [str(ENVIRONMENT / "bin" / "python"), str(ROOT / "main.py"), "--run-name", "race", "--overwrite"]
    command += ["--device", "cpu", "--activation", CASES[case].activation, "--dropout", str(CASES[case].dropout)]
    start = time.perf_counter()
    curve = []
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch "):
                curve.append((time.perf_counter() - start, float(line.rpartition("val mae ")[2])))
    return curve


def measure() -> dict[str, Any]:
    """Make all measurements."""
    from engine.datasets.splits import get_splits
    from problem import PROBLEM

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.chdir(folder)
        splits, _ = get_splits(PROBLEM, DEFAULT)
        arrays: dict[str, Any] = {}
        for key in ("train", "val"):
            spins = getattr(splits, key)["spins"]
            arrays |= {f"{key}_spins": spins, f"{key}_targets": (lattice.energy(spins) / 64).astype(np.float32)}
        np.savez(folder / "data.npz", **arrays)
        steps = math.ceil(len(splits.train["spins"]) / DEFAULT.train.batch_size)
        results: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "packages": PACKAGES}
        results["steps"] = []
        for case in CASES:
            for n_cores in (1, 2):
                times = measure_steps(case, folder / "data.npz", steps, n_cores)
                results["steps"].append({"case": case, "n_cores": n_cores, "ms": times})
                print(case, n_cores, {k: round(float(np.median(v)), 3) for k, v in times.items()}, file=sys.stderr)
        results["races"] = []
        for case in CASES:
            curves: dict[str, Any] = {name: [] for name in ("ours", *RACERS) if supports(name, case)}
            race_ours(case, folder)  # generates the data and stores them in the cache
            for _ in range(N_RACES):
                for name, mine in curves.items():
                    is_ours = name == "ours"
                    mine.append(race_ours(case, folder) if is_ours else race(name, case, folder / "data.npz"))
                    print(case, name, mine[-1][-1], file=sys.stderr)
            results["races"].append({"case": case, "curves": curves})
        os.chdir(ROOT)
    return results


# ------------------------------------------------------------------------------------------- tables and the figure


def spread(values: list[float], digits: int = 2) -> str:
    """Median, minimum and maximum."""
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def step_table(results: dict[str, Any]) -> str:
    """Milliseconds per step, and ratios to the trainer of this project within each repetition."""
    lines = ["| competitor | cores | ms per step | ratio to ours |", "|---|---|---:|---:|"]
    for measured in results["steps"]:
        for name, ms in measured["ms"].items():
            label = name if measured["case"] == "default" else f"{name}; {measured['case']}"
            cells = [label, str(measured["n_cores"]), spread(ms, 3)]
            cells.append(spread([theirs / mine for theirs, mine in zip(ms, measured["ms"]["ours"], strict=True)]))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def target(race: dict[str, Any]) -> float:
    """The error to reach: SLACK times the lowest error of the median run of this project."""
    return SLACK * float(np.median([min(mae for _, mae in curve) for curve in race["curves"]["ours"]]))


def arrivals(race: dict[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """For each competitor, the seconds until the error was reached, or infinity if it was not."""
    for name, curves in race["curves"].items():
        yield name, [min((s for s, mae in curve if mae <= target(race)), default=math.inf) for curve in curves]


def race_table(results: dict[str, Any]) -> str:
    """Seconds from the start of the process until the error was reached, and until the last epoch."""
    lines = [
        "| competitor, error to reach [J per spin] | s to this error | s to the last epoch | last error [J per spin] |",
        "|---|---:|---:|---:|",
    ]
    for race in results["races"]:
        for name, seconds in arrivals(race):
            ends = [curve[-1] for curve in race["curves"][name]]
            reached = spread(seconds, 1) if max(seconds) < math.inf else "not reached"
            label = name if race["case"] == "default" else f"{name}; {race['case']}"
            last = f"{np.median([mae for _, mae in ends]):.4f}"
            lines.append(f"| {label}, {target(race):.4f} | {reached} | {spread([s for s, _ in ends], 1)} | {last} |")
    return "\n".join(lines)


def report(results: dict[str, Any]) -> str:
    """All tables, for the documentation."""
    return "\n\n".join([step_table(results), race_table(results)])


def plot(results: dict[str, Any]) -> None:
    """Plot the time per step of the default network, and the validation error against time."""
    import matplotlib.style
    from matplotlib.figure import Figure

    matplotlib.rcdefaults()  # no settings of the user
    matplotlib.style.use("petroff6")  # colours that colour-blind readers can distinguish
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for shift, measured in zip((0.2, -0.2), results["steps"][:2], strict=True):
        medians = np.array([np.median(ms) for ms in measured["ms"].values()])
        low, high = (np.array([f(ms) for ms in measured["ms"].values()]) for f in (min, max))
        places = np.arange(len(medians)) - shift
        cores = f"{measured['n_cores']} core{'s' if measured['n_cores'] > 1 else ''}"
        left.barh(places, medians, 0.38, xerr=(medians - low, high - medians), capsize=2, label=cores)
    left.set(
        yticks=range(len(medians)),
        yticklabels=list(results["steps"][0]["ms"]),
        xlabel="time per step of the default network [ms]",
    )
    left.invert_yaxis()
    left.legend(title=f"bars: range of\n{N_REPETITIONS} repetitions", loc="center right")
    race = results["races"][0]
    for k, (name, curves) in enumerate(race["curves"].items()):
        for j, curve in enumerate(curves):
            right.plot(*np.transpose(curve), color=f"C{k}", lw=1, label=name if j == 0 else None)
    right.axhline(target(race), color="gray", lw=0.8, ls="--", label="error to reach")
    right.set(
        xscale="log",
        yscale="log",
        xlabel="time since the start of the process [s]",
        ylabel="validation MAE [J per spin]",
    )
    limits = right.get_xlim()
    right.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    right.set_yticks([0.04, 0.06, 0.1], ["0.04", "0.06", "0.1"])
    right.minorticks_off()
    right.set_xlim(limits)  # set_xticks widens them
    right.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


def main() -> None:
    """Measure in the environment of the competitors, save the results, print and plot them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plot", action="store_true", help="do not measure; print and plot the results of the last measurement"
    )
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
        return
    if not arguments.plot:
        if not (python := ENVIRONMENT / "bin" / "python").exists():
            venv.create(ENVIRONMENT, with_pip=True)
            requirements = ["-r", str(ROOT / "requirements.txt"), *PACKAGES]
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(to_json(measure()), encoding="utf-8", newline="\n")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    plot(results)
    print(report(results))


if __name__ == "__main__":
    main()
