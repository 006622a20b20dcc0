"""Speed of the sampler, compared with other packages and with simple programs.

python -m benchmarks.sampler                       measure all, in about 30 minutes; write results/sampler.json, plot
python -m benchmarks.sampler --only flips          measure only attempted flips per second
python -m benchmarks.sampler --only independent    measure only independent.py, in about 18 minutes
python -m benchmarks.sampler --sizes 8 16          measure independent.py for these lattice sizes only; keep the others
python -m benchmarks.sampler --plot                do not measure; print and plot the results of the last measurement

Attempted flips: each competitor samples one configuration from each of N chains at temperatures between 1 and 4. A
sweep attempts to flip every spin once. The result is the number of attempted flips per second, from the call until it
returns the configurations (peapods only returns averages). Slow competitors do a fraction of the work, since only the
rate matters. For each number of cores, the competitors take turns in one process, and ratios of rates are computed
within each repetition.

All competitors run in a separate virtual environment, which is created on the first run.
"""

import argparse
import json
import math
import os
import platform
import random
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import independent
from experiments.json_rows import to_json
from ising import metropolis, multispin

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / "benchmarks" / ".peers"
PACKAGES = ["numpy==2.4.6", "numba==0.68.1", "mcising==1.1.0", "peapods==0.2.0"]
RESULTS = ROOT / "benchmarks" / "results" / "sampler.json"
FIGURE = ROOT / "docs" / "figures" / "sampler.png"

SHAPES = [(8, 14_000), (32, 4096), (64, 1024), (128, 64)]
N_UPDATES = 1e9  # attempted flips in one repetition of a competitor that does all the work
N_REPETITIONS = 7
SIZES = [(size, 64) for size in (8, 16, 32, 64, 128, 256)]  # from 4 thousand to 4 million spins
CHAINS = [(8, 64 * 4**k) for k in range(6)]

Temperatures = NDArray[np.float64]
Sample = Callable[[int, Temperatures, int, int], object]  # lattice size, temperatures, sweeps, cores


def sample_multispin(size: int, temperatures: Temperatures, n_sweeps: int, n_cores: int) -> object:
    return multispin.sample(size, temperatures, n_sweeps, seed=1, n_threads=n_cores)


def sample_mcising(size: int, temperatures: Temperatures, n_sweeps: int, n_cores: int, seed: int = 1) -> object:
    # mcising.Simulation calls this function in its parallel mode, and then computes statistics, which are omitted here.
    # RAYON_NUM_THREADS sets the number of cores.
    from mcising._core import run_independent_temperatures

    couplings = (1.0, 0.0, 0.0, 0.0)
    run = (
        temperatures.tolist(),
        n_sweeps - 1,
        1,
        1,
        True,
    )  # all but the last sweep; one sweep; measure after it; keep the spins
    return run_independent_temperatures(size, *couplings, seed, "metropolis", "square", *run)


def sample_peapods(size: int, temperatures: Temperatures, n_sweeps: int, n_cores: int) -> object:
    import peapods

    with np.errstate(invalid="ignore"):
        return peapods.Ising((size, size), temperatures=temperatures).sample(n_sweeps, warmup_ratio=0.99)


def sample_numpy(size: int, temperatures: Temperatures, n_sweeps: int, n_cores: int) -> object:
    block = max(1, 2**18 // size**2)
    blocks = [temperatures[start : start + block] for start in range(0, len(temperatures), block)]
    return [metropolis.sample(size, part, n_sweeps, seed=1) for part in blocks]


def sample_textbook(size: int, temperatures: Temperatures, n_sweeps: int, n_cores: int) -> object:
    """A program as in a first course: lists, loops, one spin at a time."""
    lattices = []
    for temperature in temperatures:
        spins = [[random.choice((-1, 1)) for _ in range(size)] for _ in range(size)]
        for _ in range(n_sweeps * size**2):
            i, j = random.randrange(size), random.randrange(size)
            neighbours = spins[i - 1][j] + spins[(i + 1) % size][j] + spins[i][j - 1] + spins[i][(j + 1) % size]
            energy_change = 2 * spins[i][j] * neighbours
            if energy_change <= 0 or random.random() < math.exp(-energy_change / temperature):
                spins[i][j] = -spins[i][j]
        lattices.append(spins)
    return lattices


# Each competitor with its fraction of the work. The names are keys in results/sampler.json.
COMPETITORS: dict[str, tuple[Sample, float]] = {
    "multispin": (sample_multispin, 1),
    "mcising": (sample_mcising, 1),
    "peapods": (sample_peapods, 0.1),
    "numpy": (sample_numpy, 0.1),
    "textbook": (sample_textbook, 2e-4),
}


def rate(sample: Sample, size: int, n_chains: int, n_updates: float, n_cores: int) -> float:
    """Attempted flips per second."""
    n_chains = max(1, min(n_chains, int(n_updates / (10 * size**2))))  # at least ten sweeps
    n_sweeps = max(1, round(n_updates / (n_chains * size**2)))
    temperatures = np.random.default_rng(0).uniform(1, 4, n_chains)
    start = time.perf_counter()
    sample(size, temperatures, n_sweeps, n_cores)
    return n_sweeps * n_chains * size**2 / (time.perf_counter() - start)


def measure(n_cores: int) -> dict[str, Any]:
    """Make all measurements on n_cores cores. Call this in the environment of the competitors."""
    multispin.get_ready()
    shapes = []
    for size, n_chains in SHAPES:
        rates: dict[str, list[float]] = {name: [] for name in COMPETITORS}
        for _ in range(N_REPETITIONS):
            for name, (sample, share) in COMPETITORS.items():
                rates[name].append(rate(sample, size, n_chains, share * N_UPDATES, n_cores))
        shapes.append({"size": size, "n_chains": n_chains, "rates": rates})
        print(f"{n_cores} cores, {size} x {size}, {n_chains} chains", file=sys.stderr)
    costs: list[dict[str, Any]] = [{"size": size, "n_chains": n, "rates": []} for size, n in [*SIZES, *CHAINS]]
    for _ in range(N_REPETITIONS):
        for cost in costs:
            cost["rates"].append(rate(sample_multispin, cost["size"], cost["n_chains"], N_UPDATES, n_cores))
    return {"n_cores": n_cores, "shapes": shapes, "costs": costs}


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, minimum and maximum."""
    return float(np.median(values)), min(values), max(values)


def ratios(rates: dict[str, list[float]], name: str) -> list[float]:
    """Rate of multispin / rate of another competitor, in each repetition."""
    return [ours / theirs for ours, theirs in zip(rates["multispin"], rates[name], strict=True)]


def table(results: dict[str, Any]) -> str:
    """Rates of multispin, and their ratios to those of the other competitors."""
    names = list(COMPETITORS)
    lines = [
        "| lattice, chains | cores | "
        + " | ".join(names[:1])
        + " | "
        + " | ".join(f"multispin / {n}" for n in names[1:])
        + " |",
        "|---|---|" + "---:|" * len(names),
    ]
    for run in results["runs"]:
        for shape in run["shapes"]:
            cells = [f"{np.median(shape['rates']['multispin']) / 1e9:.1f}e9 /s"]
            for name in names[1:]:
                median, low, high = spread(ratios(shape["rates"], name))
                cells.append(f"{median:,.0f} ({low:,.0f} to {high:,.0f})")
            size, n_chains = shape["size"], shape["n_chains"]
            lines.append(f"| {size}x{size}, {n_chains:,} | {run['n_cores']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def linearity(results: dict[str, Any]) -> str:
    """How much the time per flip varies with the lattice size and the number of chains, on one core."""
    costs = results["runs"][0]["costs"]
    lines = []
    for what, part in (("lattice sizes", costs[: len(SIZES)]), ("numbers of chains", costs[len(SIZES) :])):
        medians = [float(np.median(cost["rates"])) for cost in part]
        lines.append(
            f"- time per flip for {what} with 4 thousand to 4 million spins: longest / shortest = "
            f"{max(medians) / min(medians):.2f}"
        )
    return "\n".join(lines)


def report(results: dict[str, Any]) -> str:
    """All tables, for the documentation."""
    return "\n\n".join([table(results), linearity(results), independent.table(results)])


def plot(results: dict[str, Any]) -> None:
    """Plot rates by lattice size, the time per flip, and the time per independent configuration."""
    import matplotlib.style
    from matplotlib.figure import Figure

    matplotlib.rcdefaults()  # no settings of the user
    matplotlib.style.use("petroff6")  # colours that colour-blind readers can distinguish
    figure = Figure(figsize=(10, 8), layout="constrained")
    left, right, bottom = figure.subplot_mosaic("AB;CC").values()
    run = results["runs"][-1]
    for k, name in enumerate(COMPETITORS):
        medians, low, high = np.transpose([spread(shape["rates"][name]) for shape in run["shapes"]])
        places = np.arange(len(SHAPES)) + 0.16 * (k - 2)
        left.bar(places, medians, width=0.15, label=name, yerr=(medians - low, high - medians), capsize=2)
    labels = [f"{size}x{size}\n{n_chains:,} chains" for size, n_chains in SHAPES]
    left.set(yscale="log", ylabel="attempted flips / s", xticks=range(len(SHAPES)), xticklabels=labels)
    left.set(title=f"{run['n_cores']} cores; bars: range of {N_REPETITIONS} repetitions", ylim=(None, 1e12))
    left.legend(ncols=3, fontsize="small")
    costs = results["runs"][0]["costs"]
    for label, marker, part in (
        ("64 chains, L = 8 to 256", "o", costs[: len(SIZES)]),
        ("8x8, 64 to 65,536 chains", "s", costs[len(SIZES) :]),
    ):
        n_spins = [cost["size"] ** 2 * cost["n_chains"] for cost in part]
        medians, low, high = np.transpose([spread([1e9 / rate for rate in cost["rates"]]) for cost in part])
        right.errorbar(n_spins, medians, (medians - low, high - medians), marker=marker, capsize=3, label=label)
    right.set(
        xscale="log",
        xlabel="number of spins",
        ylabel="time per attempted flip [ns]",
        ylim=(0, None),
        title="multispin, 1 core",
    )
    right.legend(loc="lower right")
    independent.plot(bottom, results)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


def in_environment(n_cores: int, *arguments: str) -> dict[str, Any]:
    """Run this program in the environment of the competitors, which is created if necessary; return the results."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    command = [str(python), "-m", "benchmarks.sampler", "--cores", str(n_cores), *arguments]
    threads = {"RAYON_NUM_THREADS": str(n_cores)}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **threads}, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def update_results(only: str | None, scale: float, sizes: list[int]) -> None:
    """Measure, and update the measured part of results/sampler.json."""
    from engine.machine.repository import provenance

    origin = provenance()
    where = {
        "machine": platform.processor() or platform.machine(),
        "packages": PACKAGES,
        "commit": origin["git_commit"],
        "dirty": origin["git_dirty"],
    }
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if only != "independent" and not sizes:
        results |= where | {"runs": [in_environment(n_cores, "--only", "flips") for n_cores in (1, 2)]}
    if only != "flips":
        chosen = [str(size) for size in sizes or independent.SIZES]
        found = in_environment(1, "--only", "independent", "--scale", str(scale), "--sizes", *chosen)
        found["cases"] = [case | where for case in found["cases"]]
        if sizes:
            kept = [case for case in results["independent"]["cases"] if case["size"] not in sizes]
            found["cases"] = sorted(kept + found["cases"], key=lambda case: case["size"])
        results["independent"] = found
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(to_json(results), encoding="utf-8", newline="\n")


def main() -> None:
    """Measure in the environment of the competitors, save the results, print and plot them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plot", action="store_true", help="do not measure; print and plot the results of the last measurement"
    )
    parser.add_argument(
        "--only", choices=["flips", "independent"], help="measure only this part, and keep the results of the other"
    )
    parser.add_argument(
        "--scale", type=float, default=1, help="fraction of the length of the series of `independent`, for tests"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[], help="measure only `independent`, for these sizes")
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)  # used in the environment of the competitors
    arguments = parser.parse_args()
    if arguments.cores:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
        if arguments.only == "flips":
            print(json.dumps(measure(arguments.cores)))
        else:
            print(json.dumps(independent.measure(arguments.scale, arguments.sizes)))
        return
    if not arguments.plot:
        update_results(arguments.only, arguments.scale, arguments.sizes)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    plot(results)
    print(report(results))


if __name__ == "__main__":
    main()
