"""Time of a sweep, compared with a shell loop over main.py.

python -m benchmarks.sweep           measure, in about 20 minutes; write results/sweep.json
python -m benchmarks.sweep --print   do not measure; print the results of the last measurement

Three ways to train the same runs are measured in turn, in each repetition. Each starts in an empty folder, so that all
generate their data. Ratios of times are computed within a repetition.

- a loop: `for seed in ...; do python main.py ...; done`
- as many main.py at once as there are cores, by `xargs -P`
- sweep.py

It also measures the time per training step if all seeds are trained in one process, by torch.func.vmap. On a GPU, where
the step of a small network leaves most of the device idle, this could be faster. Here, it is not part of the program.
"""

import argparse
import copy
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from config import ExperimentConfig
from engine.machine.hardware import available_cores
from experiments.json_rows import to_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "sweep.json"

CASES = {"default": (6, 3), "debug": (20, 3)}  # preset: number of seeds, number of repetitions
FIRST_SEED = 42
N_NETWORKS, N_STEPS, N_STEP_REPETITIONS = 6, 200, 15


def commands(preset: str, n_seeds: int) -> dict[str, str]:
    """The shell command of each way to train the runs."""
    seeds = " ".join(str(FIRST_SEED + k) for k in range(n_seeds))
    main = f"{sys.executable} {ROOT / 'main.py'} --preset {preset} --device cpu"
    sweep = f"{sys.executable} {ROOT / 'sweep.py'} s --seeds {n_seeds} --preset {preset} --device cpu"
    return {
        "loop": f"for seed in {seeds}; do {main} --seed $seed --run-name loop-$seed || exit 1; done",
        "xargs": f"printf '%s\\n' {seeds} | "
        f"xargs -P {available_cores()} -I X {main} --threads 1 --seed X --run-name at-once-X",
        "sweep.py": sweep,
    }


def seconds_of(command: str) -> float:
    """The time that a shell command takes in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(command, shell=True, cwd=folder, check=True, capture_output=True)
        return time.perf_counter() - start


def measure_runs(preset: str) -> dict[str, list[float]]:
    """Seconds of each way to train the runs, in each repetition."""
    n_seeds, n_repetitions = CASES[preset]
    times: dict[str, list[float]] = {name: [] for name in commands(preset, n_seeds)}
    for _ in range(n_repetitions):
        for name, command in commands(preset, n_seeds).items():
            times[name].append(seconds_of(command))
            print(preset, name, round(times[name][-1], 1), file=sys.stderr)
    return times


def measure_steps() -> dict[str, list[float]]:
    """Milliseconds per network and step of the default network, in each repetition."""
    ways = {"one network, one thread": (one_network(), 1, 1), "vmap, one thread": (all_networks(), N_NETWORKS, 1)}
    ways["vmap, all cores"] = (all_networks(), N_NETWORKS, available_cores())
    import torch

    times: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(N_STEP_REPETITIONS + 1):
        for name, (step, n_networks, n_threads) in ways.items():
            torch.set_num_threads(n_threads)
            start = time.perf_counter()
            for _ in range(N_STEPS):
                step()
            if repetition > 0:  # the first one is a warm-up
                times[name].append(1e3 * (time.perf_counter() - start) / N_STEPS / n_networks)
    return times


def one_network() -> Callable[[], object]:
    """A step of the trainer with the default network."""
    from engine.datasets.generation import generate_split
    from engine.learning.prediction import build_model
    from problem import PROBLEM
    from trainer import Trainer

    config = replace(ExperimentConfig(), threads=1)
    data = generate_split(PROBLEM, config, config.train.batch_size, np.random.SeedSequence(0))
    trainer = Trainer(PROBLEM, config, build_model(PROBLEM, config, data), data, data)
    return lambda: trainer.step(trainer.train.inputs, trainer.train.targets)


def all_networks() -> Callable[[], object]:
    """A step of N_NETWORKS default networks at once, each with its own batch and its own dropout masks."""
    import torch
    from torch.func import functional_call, grad, stack_module_state, vmap

    from model import create_network

    config = ExperimentConfig()
    networks = [create_network(config.model, config.data.lattice_size) for _ in range(N_NETWORKS)]
    parameters, buffers = stack_module_state(networks)
    network = copy.deepcopy(networks[0]).to("meta")
    size = (N_NETWORKS, config.train.batch_size)
    spins = torch.randint(0, 2, (*size, config.data.lattice_size, config.data.lattice_size)).to(torch.int8) * 2 - 1
    targets = torch.randn(size)

    def loss(parameters: Any, buffers: Any, spins: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = functional_call(network, (parameters, buffers), (spins,))
        return ((outputs - targets) ** 2).mean()

    gradients = vmap(grad(loss), randomness="different")
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.train.lr, fused=True)

    def step() -> None:
        for name, gradient in gradients(parameters, buffers, spins, targets).items():
            parameters[name].grad = gradient
        optimizer.step()

    return step


def report(results: dict[str, Any]) -> str:
    """Both tables, for the documentation."""
    lines = [
        "| runs | loop [s] | main.py at once [s] | sweep.py [s] | sweep.py / loop | sweep.py / main.py at once |",
        "|---|---:|---:|---:|---:|---:|",
    ]

    for preset, times in results["runs"].items():
        cells = [f"{CASES[preset][0]} seeds of the preset {preset}", *(spread(each, 1) for each in times.values())]
        for other in ("loop", "xargs"):
            cells.append(spread([a / b for a, b in zip(times["sweep.py"], times[other], strict=True)], 2))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| default network | ms per network and step | ratio to one network |", "|---|---:|---:|"]
    one, *_ = results["steps"].values()
    for name, times in results["steps"].items():
        ratios = [a / b for a, b in zip(times, one, strict=True)]
        lines.append(f"| {name} | {spread(times, 3)} | {spread(ratios, 2)} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    """Median, minimum and maximum."""
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Measure and save the results, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="do not measure; print the last results")
    if not parser.parse_args().print:
        results = {
            "machine": platform.processor() or platform.machine(),
            "cores": available_cores(),
            "runs": {preset: measure_runs(preset) for preset in CASES},
            "steps": measure_steps(),
        }
        RESULTS.write_text(to_json(results), encoding="utf-8", newline="\n")
    print(report(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
