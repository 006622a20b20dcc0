"""One experiment, start to finish.

python main.py --preset debug
python main.py --lr 0.0005 --hidden 256 128 64 --run-name wide
python main.py --config checkpoints/wide/config.json --run-name again --seed 7
"""

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import ExperimentConfig, parse_args, to_json
from options import one_line
from utils import (
    BadRequestError,
    RunError,
    claim_folder,
    empty_folder,
    require_free,
    require_memory,
    say,
    seed_everything,
    select_device,
    timed,
)

if TYPE_CHECKING:
    import torch

    from data import Splits
    from logger import RunLogger


def run(config: ExperimentConfig, folder: Path, overwrite: bool = False) -> None:
    """Draw data, train a network on them, and leave its weights, numbers and figures in the folder.

    Raises:
        RunError: what was asked for cannot be done here, or training diverged.
    """
    import data

    # What can be refused is refused before torch is loaded, which takes seconds.
    require_memory(data.memory_needed(config.data))
    require_free(folder, overwrite)
    device = select_device(config.device)

    import torch

    from logger import RunLogger

    timings: dict[str, float] = {}  # seconds, by stage
    with claim_folder(folder, overwrite):
        with timed("data", timings):
            splits, source, equilibrium = checked_splits(config)
        empty_folder(folder)  # only now: a request that is refused leaves the earlier run as it is
        with RunLogger(folder, config, timings) as logger:
            logger.note(device=str(device), threads=torch.get_num_threads())
            logger.note(data_source=source, data_sha256=data.fingerprint(splits))
            results = train_and_test(config, splits, device, logger)
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

    splits, source = get_splits(config.data, config.seed)
    say(f"data {source}")
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


def train_and_test(
    config: ExperimentConfig, splits: "Splits", device: "torch.device", logger: "RunLogger"
) -> dict[str, Any]:
    """Train the network of the config, and hold it against the baselines on the test split."""
    from data import examples_around_tc
    from model import create_model
    from task import EnergyTask, baselines, evaluate, predict
    from trainer import Trainer

    task = EnergyTask(splits.train.spins)
    train, val, test = (task.examples(split.spins, device) for split in splits)
    with timed("baselines", logger.timings):
        baseline_metrics = baselines(task, train, test)
    with timed("training", logger.timings):
        seed_everything(config.seed)
        model = create_model(config.model, config.data.lattice_size, task.mean, task.std).to(device)
        fit = Trainer(model, task, config, train=train, val=val, logger=logger).fit()

    example_spins, example_temperatures = examples_around_tc(splits.test)
    logger.log_arrays(
        "predictions",
        targets=test.targets.cpu().numpy(),
        predictions=predict(model, test.spins).cpu().numpy(),
        temperatures=splits.test.temperatures,
        example_spins=example_spins,
        example_temperatures=example_temperatures,
    )
    return {
        "test": evaluate(model, task, test),
        "baselines": baseline_metrics,
        "best_epoch": fit.best_epoch,
        "epochs_trained": fit.epochs_trained,
    }


def default_name(config: ExperimentConfig) -> str:
    """A folder name that tells runs apart: network, lattice, seed and the time of day."""
    now = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return f"{config.model.architecture}-L{config.data.lattice_size}-seed{config.seed}-{now}"


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    command = parse_args()
    folder = Path("checkpoints") / (command.config.log.run_name or default_name(command.config))
    place = command.save_data or folder
    try:
        if command.print_config:
            say(to_json(command.config).rstrip())
        elif command.save_data:
            save_data(command.config, command.save_data, command.overwrite)
        else:
            run(command.config, folder, command.overwrite)
    except RunError as error:
        print(f"main.py: error: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"main.py: error: {error}: make room on the disk, and {place} a place to write", file=sys.stderr)
        return 5
    except KeyboardInterrupt:
        print(f"main.py: interrupted; what was written, if anything, is in {place}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
