# Command: keep.
"""Train several runs at once, in processes that load torch once: seeds, a grid of options, or a search.

python sweep.py seeds --seeds 6
python sweep.py width --seeds 6 --grid "hidden=64 32,128 64 32" --preset small
python sweep.py lr --search lr=1e-4..1e-2:log --trials 30 --confirm 1 --seeds 6
python sweep.py lr --work                            on another machine that shares the folder: help with this sweep
python sweep.py seeds --seeds 6 --plan               only write the plan, for jobs with --work: see docs/clusters.md

Each run is an ordinary run in checkpoints/NAME/. The same command continues a sweep that was stopped.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from engine.interface.base_config import Config
from engine.interface.find_problem import load_problem
from engine.machine.atomic_files import append_inside
from engine.machine.errors import BusyError, DivergedError, PrunedError, UnusableFileError
from engine.machine.exit_code import ExitCode, quick_exit
from engine.machine.hardware import available_cores
from engine.machine.pool import Outcome, Pool
from engine.many_runs.search import Pruner, losses
from engine.many_runs.summary import line_of, summarize
from engine.many_runs.sweep_request import parse_args
from engine.many_runs.sweeps import OVER, PlannedRun, Sweep, load_sweep, open_sweep
from engine.run_folder.changed_code import warn_if_changed
from engine.run_folder.run_lock import require_free
from engine.run_folder.saved_run import status_of
from utils import print_line, warn

SECONDS_BETWEEN_ATTEMPTS = 2.0  # to take a run that another process is training


def train_run(problem: str, config: Config, folder: Path, curves: list[list[float]] | None) -> str:
    """Train a run, or continue it. Its output goes to a file in the folder `output` of the sweep.

    Args:
        curves: the validation losses of other runs. If this one has higher losses, it is pruned. None: it is not.

    Returns:
        "over", or "taken" if another process is training this run, or has just trained it.
    """
    from main import run

    try:
        require_free(folder, overwrite=True)
    except BusyError:  # found before anything is added to the output of the other process
        return "taken"
    if status_of(folder) in OVER:
        return "taken"
    redirect_output(folder)
    is_started = (folder / "config.json").exists()
    watch = None if curves is None else Pruner(curves, losses(folder), config.train.epochs)
    kept = config.log.checkpoints  # otherwise the run cannot be resumed
    try:
        run(load_problem(problem), config, folder, overwrite=not kept, resume=is_started and kept, watch=watch)
    except BusyError:
        return "taken"
    except (DivergedError, PrunedError) as error:  # recorded in run_info.json
        warn(str(error))
    return "over"


def output_of(run: Path) -> str:
    """The file with the output of a run, in the folder of the sweep."""
    return f"output/{run.name}.txt"


def redirect_output(run: Path) -> None:
    """Append what this process prints to the file with the output of a run."""
    with append_inside(run.parent, output_of(run)) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def prepare(index: int) -> None:
    """Give the processes the GPUs of the machine in turn."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(index % torch.cuda.device_count())


def train_all(sweep: Sweep, n_workers: int, *, wait: bool) -> dict[str, str]:
    """Train all runs of a sweep that are not over. Return why runs failed, by name.

    Args:
        wait: also wait for the runs that other processes are training, and take over those that they leave.
    """
    failed: dict[str, str] = {}
    busy: dict[str, float] = {}  # when it was found that another process trains a run
    with Pool(n_workers, train_run, prepare) as pool:
        while True:
            recently = time.monotonic() - SECONDS_BETWEEN_ATTEMPTS
            held = {name for name, attempt in busy.items() if attempt > recently or not wait}
            runs = sweep.open_runs(pool.running | held)
            while not pool.is_full and (planned := next(runs, None)) is not None:
                start(pool, sweep, planned)
            if not pool.running:
                if not held or not wait:
                    return failed
                time.sleep(SECONDS_BETWEEN_ATTEMPTS / 10)
                continue
            for outcome in pool.wait(timeout=SECONDS_BETWEEN_ATTEMPTS if held else None):
                if outcome.value == "taken":
                    busy[outcome.key] = time.monotonic()
                else:
                    report(sweep, outcome, failed)
                    if not wait:
                        busy.clear()  # meanwhile, other processes may have left their runs


def start(pool: Pool, sweep: Sweep, planned: PlannedRun) -> None:
    """Start to train a run of the sweep in a process of the pool."""
    curves = sweep.search.curves(planned.trial) if sweep.search is not None and planned.trial is not None else None
    pool.start(planned.name, sweep.plan.problem, planned.config, sweep.folder / planned.name, curves)


def report(sweep: Sweep, outcome: Outcome, failed: dict[str, str]) -> None:
    """Print how a run ended. If it failed, do not try it again."""
    if not outcome.error:
        print_line(f"{outcome.key}: {line_of(sweep.folder / outcome.key)}")
        return
    failed[outcome.key] = outcome.error
    sweep.given_up.add(outcome.key)
    output = output_of(sweep.folder / outcome.key)
    with append_inside(sweep.folder, output) as file:
        file.write(f"{outcome.details}{outcome.error}\n".encode(errors="backslashreplace"))
    warn(f"{outcome.key}: failed: {outcome.error} ({sweep.folder / output})")


def main() -> None:
    """Run the command line, and end the program with its exit code."""
    with ExitCode() as exit_code:
        request = parse_args()
        sweep = (
            load_sweep(request.folder, request.problem)
            if request.plan is None
            else open_sweep(request.folder, request.plan)
        )
        hint = f"the same command continues; {sweep.folder} has the runs so far"
        exit_code.prepare(sweep.folder, lambda: hint)
        if request.plan_only:
            path, name = sweep.folder / "sweep.json", sweep.folder.name
            print_line(f"{path} is written: `python sweep.py {name} --work` trains its runs")
        else:
            if request.plan is None:
                sweep.require_locks()
            for info in sorted(sweep.folder.glob("*/run_info.json"))[:1]:
                with suppress(UnusableFileError):  # which this run will report
                    warn_if_changed(sweep.problem, info.parent, training=True)
            n_workers = request.workers or max(1, available_cores() // (sweep.plan.config["threads"] or 1))
            output = sweep.folder / "output"
            print_line(f"processes: {n_workers}; problem: {sweep.plan.problem}; what the runs print is in {output}")
            failed = train_all(sweep, n_workers, wait=request.plan is not None)
            print_line(f"\n{summarize(sweep)}\n\n{sweep.folder / 'summary.json'}")
            exit_code.code = 1 if failed else 0
    quick_exit(exit_code.code)


if __name__ == "__main__":
    main()
