"""CPU time until a network predicts nearly all energies exactly, compared with other pipelines.

python -m benchmarks.time_to_exact            measure, in about half an hour; write results/time_to_exact.json
python -m benchmarks.time_to_exact --report   do not measure; print the tables of the last measurement

Every pipeline samples configurations of the 8x8 lattice and trains the network of the preset `default`, on a fixed set
of 10,000 configurations, or of the preset `fresh`, on 10,000 new ones in every epoch. It is fed by the sampler of this
project or by that of mcising, with the same number of sweeps. scikit-learn has no SiLU, no schedule for Adam and no
choice of initial weights: it trains ReLU units with a constant learning rate of 0.0003, the best of three (0.0003 to
0.003).

After every epoch the clock stops, and the network predicts the energies of 10,000 new configurations, without those
that occur in a fixed training set. The clock counts the CPU time of one core, from the first configuration on:
without starting Python, imports and compilation. The time of this project includes checks and validation, and the
others have neither. Pipelines take turns, each run in a process of its own with its own seed. A run ends when it has
passed the last threshold, after its last epoch, or after LIMIT seconds.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.competitors import COMPETITORS, Floats, Spins, columns
from benchmarks.sampler import sample_mcising
from benchmarks.training import ENVIRONMENT, ROOT, install, spread
from config import PRESETS, ExperimentConfig
from experiments.json_rows import to_json
from ising import lattice, metropolis, multispin

RESULTS = ROOT / "benchmarks" / "results" / "time_to_exact.json"
THRESHOLDS = (0.9, 0.99, 0.999)
N_TEST = 10_000
N_RUNS = 3
LIMIT = 60.0  # CPU seconds
SEED_OF_TEST = 2**40  # no run has this seed

OURS = "ours"
PIPELINES = (OURS, "DataLoader loop", "Lightning", "JAX, scanned epoch", "scikit-learn")
ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), "1")


def sample_ours(temperatures: NDArray[np.float64], seed: np.random.SeedSequence) -> Spins:
    return multispin.sample(8, temperatures, metropolis.equilibration_sweeps(8), seed, n_threads=1)


def sample_peer(temperatures: NDArray[np.float64], seed: np.random.SeedSequence) -> Spins:
    """With mcising, which only takes a small seed."""
    found: Any = sample_mcising(
        8, temperatures, metropolis.equilibration_sweeps(8), 1, seed=int(seed.generate_state(1)[0] % 2**31)
    )
    return np.concatenate([chain["configurations"] for chain in found]).astype(np.int8)


SAMPLERS: dict[str, Callable[..., Spins]] = {"ours": sample_ours, "mcising": sample_peer}


def sampled(config: ExperimentConfig, sampler: str, n: int, seed: np.random.SeedSequence) -> dict[str, NDArray[Any]]:
    """The columns of n configurations, at temperatures as in data.generate."""
    temperatures = np.random.default_rng(seed.spawn(1)[0]).uniform(config.data.temp_min, config.data.temp_max, n)
    return {"spins": SAMPLERS[sampler](temperatures, seed), "temperatures": temperatures}


class Race:
    """The bench of one pipeline in its own process: a clock that stops for the tests, whose results are printed."""

    def __init__(self, config: ExperimentConfig, sampler: str) -> None:
        self.config, self.sampler, self.seconds = config, sampler, 0.0
        self.test = sampled(config, "ours", N_TEST, np.random.SeedSequence(SEED_OF_TEST))["spins"]
        self.seeds = np.random.SeedSequence(config.seed)
        self.data: tuple[Spins, Floats] | None = None

    def begin(self) -> None:
        """Start the clock."""
        self.started = time.process_time()

    def epoch(self) -> tuple[Spins, Floats]:
        self.begin()
        if self.data is None or self.config.train.fresh:
            n = self.config.data.num_train
            assert n is not None
            spins = sampled(self.config, self.sampler, n, self.seeds.spawn(1)[0])["spins"]
            energies = lattice.energy(spins) / spins[0].size
            if self.data is None:
                self.mean, self.std = float(energies.mean()), float(energies.std())
            self.data = spins, ((energies - self.mean) / self.std).astype(np.float32)
        return self.data

    def end(self, predict: Callable[[Spins], Floats]) -> None:
        assert self.data is not None
        self.stop(self.data[0], lambda spins: self.mean + self.std * predict(spins))

    def stop(self, train: Spins, predict: Callable[[Spins], Floats]) -> None:
        """Stop the clock, and print the CPU seconds so far and the fraction of exact energies."""
        self.seconds += time.process_time() - self.started
        if not self.config.train.fresh:
            seen = {each.tobytes() for each in train}
            self.test = np.stack([each for each in self.test if each.tobytes() not in seen])
        errors = np.abs(predict(self.test) * self.test[0].size - lattice.energy(self.test))
        fraction = float((errors < 2).mean())
        print(json.dumps([self.seconds, fraction]), flush=True)
        if fraction >= THRESHOLDS[-1] or self.seconds > LIMIT:
            os._exit(0)  # sys.exit would be an error in Lightning


def run_project(race: Race) -> None:
    """This project as a user runs it, with its checks and its validation after every epoch."""
    from engine.datasets.splits import load_data
    from engine.learning.prediction import build_model, predict
    from engine.run_folder.null_logger import NullLogger
    from problem import IsingProblem
    from trainer import Trainer

    class Fed(IsingProblem):
        def generate(self, config: ExperimentConfig, n: int, seed: np.random.SeedSequence) -> dict[str, NDArray[Any]]:
            return sampled(config, race.sampler, n, seed)

    class Clocked(NullLogger):
        def log_epoch(self, row: Mapping[str, float]) -> None:
            race.stop(data.train["spins"], lambda spins: predict(problem, config, model, columns(spins)))
            race.begin()

    problem, config = Fed(), race.config
    race.begin()
    data = load_data(problem, config)
    model = build_model(problem, config, data.train)
    Trainer(problem, config, model, data.train, data.val, logger=Clocked()).fit()


def work(pipeline: str, preset: str, sampler: str, seed: str) -> None:
    """Run a pipeline. This is the main function of a process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    import torch

    torch.set_num_threads(1)
    config = PRESETS[preset]
    if pipeline == "scikit-learn":
        config = replace(config, train=replace(config.train, lr=0.0003, betas=None))
    config = replace(config, seed=int(seed), threads=1, data=replace(config.data, cache=False, num_test=1))
    race = Race(config, sampler)
    sampled(config, sampler, 64, np.random.SeedSequence(0))  # compiles the sampler
    (run_project if pipeline == OURS else COMPETITORS[pipeline])(race)


def run_once(pipeline: str, preset: str, sampler: str, seed: int) -> list[list[float]]:
    """CPU seconds and exact fraction after every epoch."""
    python = str(ENVIRONMENT / "bin" / "python")
    command = [python, "-m", "benchmarks.time_to_exact", "--work", pipeline, preset, sampler, str(seed)]
    environment = {**os.environ, **ONE_CORE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def measure() -> dict[str, Any]:
    """Run all pipelines, one after the other."""
    cases = [(preset, pipeline, s) for preset in ("default", "fresh") for s in SAMPLERS for pipeline in PIPELINES]
    cases = [case for case in cases if case[1:] != ("scikit-learn", "mcising")]  # it reaches no threshold in any case
    curves: dict[tuple[str, str, str], list[Any]] = {case: [] for case in cases}
    for seed in range(1, N_RUNS + 1):
        for preset, pipeline, sampler in cases:
            curve = run_once(pipeline, preset, sampler, seed)
            curves[preset, pipeline, sampler].append(curve)
            print(preset, pipeline, sampler, seed, curve[-1], file=sys.stderr)
    keys = ("preset", "pipeline", "sampler")
    rows = [{**dict(zip(keys, case, strict=True)), "curves": curve} for case, curve in curves.items()]
    return {"machine": platform.processor() or platform.machine(), "cases": rows}


def seconds_to(threshold: float, curves: list[Any]) -> list[float]:
    """CPU seconds after which each run first passed a threshold. Runs that did not are left out."""
    found = (next((s for s, fraction in curve if fraction >= threshold), None) for curve in curves)
    return [seconds for seconds in found if seconds is not None]


def report(results: dict[str, Any]) -> str:
    """One table for each preset, for the documentation."""
    tables = []
    for preset in ("default", "fresh"):
        titles = [
            "preset, pipeline",
            "sampler",
            *(f"CPU s to {threshold}" for threshold in THRESHOLDS),
            "best fraction",
        ]
        lines = [f"| {' | '.join(titles)} |", "|---|---|---:|---:|---:|---:|"]
        for case in results["cases"]:
            if case["preset"] != preset:
                continue
            cells = []
            for threshold in THRESHOLDS:
                seconds, n = seconds_to(threshold, case["curves"]), len(case["curves"])
                reached = "" if len(seconds) == n else f"; {len(seconds)} of {n} runs"
                cells.append(spread(seconds, 1) + reached if seconds else "not reached")
            best = spread([max(fraction for _, fraction in curve) for curve in case["curves"]], 4)
            lines.append(f"| {preset}, {case['pipeline']} | {case['sampler']} | {' | '.join(cells)} | {best} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def main() -> None:
    """Measure in the environment of the competitors, save the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--report", action="store_true", help="do not measure; print the tables of the last measurement"
    )
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
        return
    if not arguments.report:
        install()
        RESULTS.write_text(to_json(measure()), encoding="utf-8", newline="\n")
    print(report(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
