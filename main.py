"""One experiment, start to finish.

python main.py --preset debug
python main.py --lr 0.0005 --hidden 256 128 64 --run-name wide
python main.py --config checkpoints/wide/config.json --run-name again --seed 7
python main.py --resume wide
torchrun --nproc-per-node 2 main.py --preset large
"""

import os
import sys
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command import Command, parse_args
from config import T_CRITICAL, ExperimentConfig, to_json
from options import one_line
from processes import Group, group_from_environment
from utils import (
    BadRequestError,
    Interrupted,
    RunError,
    UnusableFileError,
    claim_folder,
    complain,
    empty_folder,
    require_compiler,
    require_free,
    require_memory,
    say,
    seed_everything,
    select_device,
    stop_on_signals,
    timed,
)

if TYPE_CHECKING:
    import torch

    from data import Splits
    from logger import RunLogger
    from model import InPhysicalUnits
    from task import Task
    from trainer import FitResult


def run(config: ExperimentConfig, folder: Path, group: Group, *, overwrite: bool = False, resume: bool = False) -> None:
    """Draw data, train a network on them, and leave its weights, numbers and figures in the folder.

    Of several processes, the first draws and writes; all train. With `resume`, go on with the run in the folder.

    Raises:
        RunError: what was asked for cannot be done here, or training diverged.
    """
    import data

    # What can be refused is refused before torch is loaded, which takes seconds.
    require_memory(data.memory_needed(config.data))
    if group.first:
        require_free(folder, overwrite or resume)
    device = select_device(config.device, group.local_rank if group.size > 1 else None)
    if config.compile:
        require_compiler(device)

    from checkpoint import NOTHING, earlier_run
    from logger import RunLogger, SilentLogger
    from trainer import is_over

    timings: dict[str, float] = {}  # seconds, by stage
    with claim_folder(folder, overwrite or resume) if group.first else nullcontext(), group.joined(device):
        earlier = group.from_first(lambda: earlier_run(folder, config) if resume else NOTHING)
        state, finished = earlier.state, earlier.info.get("status") == "finished"
        if state is not None and finished and is_over(config.train, state["epoch"], state["best_epoch"]):
            say(f"{folder} is finished: there is nothing to go on with")
            return
        with timed("data", timings):
            splits, source, equilibrium = group.from_first(lambda: checked_splits(config))
        sha256 = data.fingerprint(splits)
        if sha256 != earlier.info.get("data_sha256", sha256):
            raise UnusableFileError(f"the data are no longer those of {folder}: bring them back, or begin another run")
        if group.first and not resume:
            empty_folder(folder)  # only now: a request that is refused leaves the earlier run as it is
        with RunLogger(folder, config, timings, earlier) if group.first else SilentLogger() as logger:
            logger.note(device=str(device), processes=group.size, data_source=source, data_sha256=sha256)
            model, task, fit = train_network(config, splits, device, logger=logger, group=group, state=state)
            if not group.first:
                return
            results = test_network(config, splits, model=model, task=task, fit=fit, logger=logger)
            results["equilibrium"] = equilibrium
            logger.log_results(results)
            with timed("figures", timings):
                from plots import draw_run  # and with it matplotlib

                draw_run(folder)
            say(f"\n{logger.summary(results)}\n\n{folder}")


def checked_splits(config: ExperimentConfig) -> tuple["Splits", str, dict[str, Any]]:
    """The data of a run, where they came from, and how far each split is from equilibrium.

    Raises:
        RunError: the data cannot be had, or are not what theory says.
    """
    import data
    from datafiles import get_splits

    splits, source = get_splits(config.data, config.seed, config.threads)
    say(f"data {source}")
    below = (splits.train.temperatures < T_CRITICAL).mean()
    if config.task == "phase" and below in (0, 1):
        raise BadRequestError(f"--task phase: all training data are {'below' if below else 'above'} T_c: add others")
    equilibrium = {}
    for name, split in splits._asdict().items():
        check = data.check_equilibrium(split)
        say(f"{name}: energy {check.energy_z:+.2f} standard errors from exact, chi2/dof {check.chi2_per_dof:.2f}")
        data.require_equilibrium(name, check, made_here=config.data.file is None)
        equilibrium[name] = check._asdict()
    return splits, source, equilibrium


def save_data(config: ExperimentConfig, path: Path, overwrite: bool = False) -> None:
    """Draw the data of a run and write them to a file, for others to use.

    Raises:
        RunError: what was asked for cannot be done here.
    """
    import data
    from datafiles import write_configurations

    require_memory(data.memory_needed(config.data))
    if path.suffix != ".npz" or path.is_symlink() or (path.exists() and not path.is_file()):
        raise BadRequestError(f"--save-data {path}: is no plain .npz file: give another path")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise BadRequestError(f"--save-data {path}: cannot be written in that folder: give another path")
    if path.exists() and not overwrite:
        raise BadRequestError(f"--save-data {path}: exists already: --overwrite replaces it")
    splits, _, _ = checked_splits(config)
    write_configurations(path, splits)
    say(f"{sum(len(split.spins) for split in splits):,} configurations in {path}")


def train_network(
    config: ExperimentConfig,
    splits: "Splits",
    device: "torch.device",
    *,
    logger: "RunLogger",
    group: Group,
    state: dict[str, Any] | None,
) -> tuple["InPhysicalUnits", "Task", "FitResult"]:
    """Train the network of the config, from a state that a trainer has left or from the start."""
    import torch

    from model import create_model
    from task import TASKS
    from trainer import Trainer, fitting_threads

    task = TASKS[config.task].of(splits.train.spins)
    train, val = (task.examples(split.spins, split.temperatures, device) for split in (splits.train, splits.val))
    with timed("training", logger.timings):
        seed_everything(config.seed)
        model = create_model(config.model, config.data.lattice_size, task.mean, task.std).to(device)
        torch.set_num_threads(config.threads or fitting_threads(model, config.train.batch_size, task.n_sites))
        logger.note(threads=torch.get_num_threads())
        trainer = Trainer(model, task, config, train=train, val=val, logger=logger, group=group)
        if state is not None:
            trainer.restore(state)
            say(f"going on after epoch {trainer.epoch} of {config.train.epochs}")
        fit = trainer.fit()
    return model, task, fit


def test_network(
    config: ExperimentConfig,
    splits: "Splits",
    *,
    model: "InPhysicalUnits",
    task: "Task",
    fit: "FitResult",
    logger: "RunLogger",
) -> dict[str, Any]:
    """Hold the trained network against the baselines on the test split, and keep its predictions."""
    from data import examples_around_tc
    from task import predict

    device = model.mean.device
    train, test = (task.examples(split.spins, split.temperatures, device) for split in (splits.train, splits.test))
    with timed("baselines", logger.timings):
        baselines = task.baselines(train, test)
    predictions = predict(model, test)
    example_spins, example_temperatures = examples_around_tc(splits.test)
    logger.log_arrays(
        "predictions",
        targets=test.targets.cpu().numpy(),
        predictions=predictions.cpu().numpy(),
        **{f"baseline_{name}": answers.cpu().numpy() for name, answers in baselines.items()},
        temperatures=splits.test.temperatures,
        example_spins=example_spins,
        example_temperatures=example_temperatures,
    )
    return {
        "test": task.metrics(task.sums(predictions, test.targets)),
        "baselines": {name: task.metrics(task.sums(answers, test.targets)) for name, answers in baselines.items()},
        "best_epoch": fit.best_epoch,
        "epochs_trained": fit.epochs_trained,
    }


def default_name(config: ExperimentConfig) -> str:
    """A folder name that tells runs apart: network, lattice, seed and the time of day."""
    now = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return f"{config.model.architecture}-L{config.data.lattice_size}-seed{config.seed}-{now}"


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    stop_on_signals()
    try:
        command = parse_args()
    except Interrupted as error:
        return error.exit_code
    config, group = command.config, group_from_environment()
    folder = command.resume or Path("checkpoints") / (config.log.run_name or default_name(config))
    place = command.save_data or folder
    if not group.first:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the first process speaks for all
    try:
        if command.print_config:
            say(to_json(config).rstrip())
        elif command.save_data and group.first:
            save_data(config, command.save_data, command.overwrite)
        elif not command.save_data:
            run(config, folder, group, overwrite=command.overwrite, resume=command.resume is not None)
    except RunError as error:
        complain(f"main.py: error: {one_line(str(error))}")
        return error.exit_code
    except OSError as error:
        complain(f"main.py: error: {error}: make room on the disk, and {place} a place to write")
        return 5
    except Interrupted as error:
        if group.first:
            complain(f"main.py: interrupted: {way_on(command, folder)}")
        return error.exit_code
    return 0


def way_on(command: Command, folder: Path) -> str:
    """What to tell somebody who has interrupted a run."""
    if command.save_data or not (folder / "config.json").exists():
        return "there was nothing to keep yet"
    if not command.config.log.checkpoints:
        return f"its numbers are in {folder}; it cannot go on, because of --no-checkpoints"
    name = folder.name if folder.parent == Path("checkpoints") else str(folder)
    return f"python main.py --resume {name} goes on after the last whole epoch"


if __name__ == "__main__":
    group_from_environment().end(main())
