# Command: keep.
"""Train one network, start to finish.

python main.py --preset debug
python main.py --lr 0.0005 --hidden 256 128 64 --run-name wide
python main.py --config checkpoints/wide/config.json --run-name again --seed 7
python main.py --resume wide
python main.py --init-from wide --lr 0.0001 --hidden 256 128 64
torchrun --nproc-per-node 2 main.py --preset large
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.datasets.overlap import hash_inputs, unseen
from engine.datasets.splits import Data, save_data
from engine.interface.base_config import Config, to_json
from engine.interface.base_problem import Problem
from engine.learning.distributed import SINGLE_PROCESS, Group, group_from_environment
from engine.machine.exit_code import ExitCode
from engine.machine.hardware import one_blas_thread
from engine.machine.terminal import invocation
from engine.run_folder.find_run import read_info
from engine.run_folder.null_logger import Watch
from engine.run_folder.open_run import default_name, is_restart, open_run
from engine.run_folder.run_request import Command, parse_args
from utils import print_line, timed

if TYPE_CHECKING:
    from engine.learning.prediction import Standardized


def run(
    problem: Problem[Any],
    config: Config,
    folder: Path,
    group: Group = SINGLE_PROCESS,
    *,
    overwrite: bool = False,
    resume: bool = False,
    watch: Watch | None = None,
) -> None:
    """Train a network, and write its weights, numbers and figures to the folder.

    In a group of processes, rank 0 loads the data and writes the files. All processes train.

    Args:
        overwrite: replace the run that is in the folder.
        resume: continue the run that is in the folder.
        watch: called with the row of metrics of each epoch. It may raise an error to stop the run.

    Raises:
        RunError: the request cannot be met, or training diverged.
    """
    with open_run(problem, config, folder, group, overwrite=overwrite, resume=resume) as opened:
        # Imported here, so that an invalid request is refused before torch is loaded, which takes seconds.
        from engine.learning.prediction import build_model
        from logger import RunLogger
        from trainer import Trainer

        if opened.is_finished:
            print_line(f"{folder} is finished: there is nothing to resume")
            return
        with timed("data", opened.timings):
            data = opened.load_data()
        model = build_model(problem, config, data.train).to(opened.device)
        opened.load_initial_weights(model, data)  # with --init-from
        opened.start(data, model, RunLogger, watch)

        with timed("training", opened.timings):
            trainer = Trainer(problem, config, model, data.train, data.val, logger=opened.logger, group=group)
            if opened.earlier.state is not None:
                trainer.restore(opened.earlier.state)
                print_line(f"continuing after epoch {trainer.epoch} of {config.train.epochs}")
                if opened.earlier.state["config"]["train"]["epochs"] != config.train.epochs:
                    rate = config.train.lr * trainer.factor_at(trainer.epoch * trainer.steps_per_epoch)
                    print_line(f"the schedule is now that of the longer run: the learning rate continues at {rate:.3g}")
            trainer.fit()

        if group.is_main:
            results, arrays = test(
                problem, config, model, data, train_hashes=opened.train_hashes, timings=opened.timings
            )
            results |= {"best_epoch": trainer.best_epoch, "epochs_trained": trainer.epoch}
            opened.finish(results, arrays)
            with timed("figures", opened.timings):
                opened.plot_figures()


def test(
    problem: Problem[Any],
    config: Config,
    model: "Standardized",
    data: Data,
    *,
    train_hashes: NDArray[np.uint64],
    timings: dict[str, float],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate a trained network and the baselines on the test split.

    Args:
        train_hashes: of the inputs that the network was trained with, also in an earlier run (--init-from).
        timings: seconds by stage, to which this function adds.

    Returns:
        results: the metrics on all test examples and on those that do not occur in training, and the data checks.
        arrays: the content of predictions.npz, from which figures are plotted.
    """
    from engine.learning.prediction import compute_metrics, evaluate, metrics_on_unseen, prepare

    examples = prepare(problem, config, model, data.test)
    metrics, predictions = evaluate(problem, config, model, examples)
    with timed("baselines", timings), one_blas_thread():
        baselines = problem.baselines(config, data.train, data.test)
    is_unseen = unseen(train_hashes, hash_inputs(problem, config, data.test))
    results: dict[str, Any] = {
        "test": metrics,
        "baselines": {
            name: compute_metrics(problem, config, model, examples, each, name=f"the baseline {name}")
            for name, each in baselines.items()
        },
        "n_test": len(is_unseen),
        "n_unseen": int(is_unseen.sum()),
    }
    results["test_unseen"], results["baselines_unseen"] = metrics_on_unseen(
        problem, config, model, examples, is_unseen, predictions=predictions, baselines=baselines
    )
    results["checks"] = dict(data.checks)
    arrays = {name: column for name, column in data.test.items() if column.ndim == 1}
    arrays |= {"targets": examples.physical_targets, "predictions": predictions}
    arrays |= {f"baseline_{name}": each for name, each in baselines.items()}
    if (chosen := np.asarray(problem.examples(config, data.test), dtype=np.int64)).size:
        arrays |= {f"example_{name}": column[chosen] for name, column in data.test.items()}
        arrays |= {"example_targets": arrays["targets"][chosen], "example_predictions": predictions[chosen]}
    return results, arrays


def resume_hint(command: Command, folder: Path) -> str:
    """What to do after a run was interrupted: words that follow "interrupted: "."""
    is_of_this_run = command.resume is not None or read_info(folder).get("pid") == os.getpid()  # or of one to overwrite
    if command.save_data or not is_of_this_run:
        return "nothing was saved yet"
    if not command.config.log.checkpoints:
        return f"its metrics are in {folder}; it cannot be resumed, because of --no-checkpoints"
    name = folder.name if folder.parent == Path("checkpoints") else str(folder)
    return f"{invocation()} --resume {name} continues after the last completed epoch"


def main(problem: Problem[Any]) -> None:
    """Run the command line, and end the program with its exit code."""
    group = SINGLE_PROCESS
    with ExitCode() as exit_code:
        group = group_from_environment()
        command = parse_args(problem)
        config = command.config
        folder = command.resume or Path("checkpoints") / (config.log.run_name or default_name(problem, config))
        place = command.save_data or folder
        exit_code.prepare(place, lambda: resume_hint(command, folder), is_main=group.is_main)
        if command.print_config:
            print_line(to_json(config).rstrip())
        elif not command.save_data:
            resume = command.resume is not None or is_restart(folder)
            run(problem, config, folder, group, overwrite=command.overwrite, resume=resume)
        elif group.is_main:
            save_data(problem, config, command.save_data, command.overwrite)
    group.exit(exit_code.code)


if __name__ == "__main__":
    from problem import PROBLEM

    main(PROBLEM)
