"""Time of a training step, compared with common alternatives.

python -m benchmarks.training            measure, in about 5 minutes; write results/training.json, plot
python -m benchmarks.training --plot     do not measure; print and plot the results of the last measurement

All competitors train the same small network on the same data with the same schedule, each in its own process. In each
repetition, they train one epoch each while the others wait. Ratios of times are computed within a repetition.
time_to_exact.py measures how long a network takes to learn the energy.

The competitors run in a separate virtual environment, which is created on the first run.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.competitors import COMPETITORS, Floats, Spins, steps_per_epoch
from config import ExperimentConfig
from experiments.json_rows import to_json
from ising import lattice

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / "benchmarks" / ".peers-training"
PACKAGES = ["lightning==2.6.6", "scikit-learn==1.9.1", "jax==0.10.2", "optax==0.2.8", "mcising==1.1.0"]
RESULTS = ROOT / "benchmarks" / "results" / "training.json"
FIGURE = ROOT / "docs" / "figures" / "training.png"

N_REPETITIONS = 9

# Three small layers, with which the overhead of a step is easiest to see. scikit-learn has neither GELU nor dropout.
SMALL = ExperimentConfig()
CASES = {
    "default": SMALL,
    "relu, no dropout": replace(SMALL, model=replace(SMALL.model, activation="relu", dropout=0.0)),
}

# ---------------------------------------------------------------------------------------------------------- measuring


def install() -> None:
    """Create the environment of the competitors, or update it."""
    if not (python := ENVIRONMENT / "bin" / "python").exists():
        venv.create(ENVIRONMENT, with_pip=True)
    requirements = ["-r", str(ROOT / "requirements.txt"), *PACKAGES]
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)


class Steps:
    """The bench of a competitor in its own process. Epochs begin after a line on stdin and print seconds."""

    def __init__(self, config: ExperimentConfig, spins: Spins) -> None:
        energies = lattice.energy(spins) / spins[0].size
        self.config, self.spins = config, spins
        self.targets = ((energies - energies.mean()) / energies.std()).astype(np.float32)

    def epoch(self) -> tuple[Spins, Floats]:
        sys.stdin.readline()
        self.start = time.perf_counter()
        return self.spins, self.targets

    def end(self, predict: Callable[[Spins], Floats]) -> None:
        print(time.perf_counter() - self.start, flush=True)


class Worker:
    """A competitor in its own process."""

    def __init__(self, name: str, case: str, data: Path, n_cores: int) -> None:
        command = [str(ENVIRONMENT / "bin" / "python"), "-m", "benchmarks.training", "--work", name, case]
        self.process = subprocess.Popen(
            [*command, str(data), str(n_cores)],
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


def work(name: str, case: str, path: str, n_cores: str) -> None:
    """Run a competitor. This is the main function of a worker process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(n_cores)])
    COMPETITORS[name](Steps(CASES[case], np.load(path)))


def measure_steps(case: str, data: Path, n_steps: int, n_cores: int) -> dict[str, list[float]]:
    """Milliseconds per step of each competitor, in each repetition."""
    names = [name for name in COMPETITORS if case != "default" or name != "scikit-learn"]
    workers = {name: Worker(name, case, data, n_cores) for name in names}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for repetition in range(N_REPETITIONS + 2):
        for name, worker in workers.items():
            seconds = worker.epoch()
            time.sleep(0.3)  # threads of some competitors are busy waiting for another 0.2 s
            if repetition >= 2:  # the first two epochs are compilation and warm-up
                times[name].append(1e3 * seconds / n_steps)
    for worker in workers.values():
        worker.process.kill()
        worker.process.communicate()
    return times


def measure() -> dict[str, Any]:
    """Make all measurements."""
    from engine.datasets.splits import get_splits
    from problem import PROBLEM

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.chdir(folder)
        spins = get_splits(PROBLEM, CASES["default"])[0].train["spins"]
        np.save(folder / "spins.npy", spins)
        results: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "packages": PACKAGES}
        results["steps"] = []
        for case, config in CASES.items():
            for n_cores in (1, 2):
                times = measure_steps(case, folder / "spins.npy", steps_per_epoch(config), n_cores)
                results["steps"].append({"case": case, "n_cores": n_cores, "ms": times})
                print(case, n_cores, {k: round(float(np.median(v)), 3) for k, v in times.items()}, file=sys.stderr)
        os.chdir(ROOT)
    return results


# ------------------------------------------------------------------------------------------- tables and the figure


def spread(values: list[float], digits: int = 2) -> str:
    """Median, minimum and maximum."""
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(results: dict[str, Any]) -> str:
    """Milliseconds per step, and ratios to the trainer of this project within each repetition."""
    lines = ["| competitor | cores | ms per step | ratio to ours |", "|---|---|---:|---:|"]
    for measured in results["steps"]:
        for name, ms in measured["ms"].items():
            label = name if measured["case"] == "default" else f"{name}; {measured['case']}"
            cells = [label, str(measured["n_cores"]), spread(ms, 3)]
            cells.append(spread([theirs / mine for theirs, mine in zip(ms, measured["ms"]["ours"], strict=True)]))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: dict[str, Any]) -> None:
    """Plot the time per step of the network with GELU and dropout."""
    import matplotlib.style
    from matplotlib.figure import Figure

    matplotlib.rcdefaults()  # no settings of the user
    matplotlib.style.use("petroff6")  # colours that colour-blind readers can distinguish
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for shift, measured in zip((0.2, -0.2), results["steps"][:2], strict=True):
        medians = np.array([np.median(ms) for ms in measured["ms"].values()])
        low, high = (np.array([f(ms) for ms in measured["ms"].values()]) for f in (min, max))
        places = np.arange(len(medians)) - shift
        cores = f"{measured['n_cores']} core{'s' if measured['n_cores'] > 1 else ''}"
        axes.barh(places, medians, 0.38, xerr=(medians - low, high - medians), capsize=2, label=cores)
    axes.set(
        yticks=range(len(medians)),
        yticklabels=list(results["steps"][0]["ms"]),
        xlabel="time per step of a small network [ms]",
    )
    axes.invert_yaxis()
    axes.legend(title=f"bars: range of\n{N_REPETITIONS} repetitions", loc="center right")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


def main() -> None:
    """Measure in the environment of the competitors, save the results, print and plot them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plot", action="store_true", help="do not measure; print and plot the results of the last measurement"
    )
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
        return
    if not arguments.plot:
        install()
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(to_json(measure()), encoding="utf-8", newline="\n")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    plot(results)
    print(report(results))


if __name__ == "__main__":
    main()
