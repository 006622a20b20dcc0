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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.datasets.splits import FILE_ROWS, Data, save_data
from engine.interface.base_config import Config, to_json
from engine.interface.base_problem import Columns, Problem
from engine.interface.returned_values import PREDICTED, examples_of, target_array, trainer_of
from engine.learning.distributed import SINGLE_PROCESS, Group, group_from_environment
from engine.learning.intervals import CALIBRATION, coverage
from engine.machine.exit_code import ExitCode
from engine.machine.terminal import invocation
from engine.run_folder.null_logger import Watch
from engine.run_folder.open_run import default_name, is_restart, open_run
from engine.run_folder.run_request import Command, parse_args
from engine.run_folder.saved_run import read_info
from utils import print_line, timed

if TYPE_CHECKING:
    from engine.learning.predicted import Predicted
    from engine.learning.standardized import Standardized


def run(
    problem: Problem[Any],
    config: Config,
    folder: Path,
    group: Group = SINGLE_PROCESS,
    *,
    overwrite: bool = False,
    resume: bool = False,
    watch: Watch | None = None,
    n_workers: int = 1,
) -> None:
    """Train a network, and write its weights, numbers and figures to the folder.

    In a group of processes, rank 0 loads the data and writes the files. All processes train.

    Args:
        overwrite: replace the run that is in the folder.
        resume: continue the run that is in the folder.
        watch: called with the row of metrics of each epoch. It may raise an error to stop the run.
        n_workers: the number of processes that call a slow generator.

    Raises:
        RunError: the request cannot be met, or training diverged.
    """
    with open_run(problem, config, folder, group, overwrite=overwrite, resume=resume) as opened:
        config = opened.config  # with what follows from the file of --data
        # Imported here, so that an invalid request is refused before torch is loaded, which takes seconds.
        from engine.learning.trial import try_problem
        from logger import RunLogger
        from trainer import Trainer

        if opened.is_finished:
            print_line(f"{folder} is finished: there is nothing to resume")
            return
        with timed("data", opened.timings):
            data = opened.load_data(n_workers)
        model = opened.build_model(data)
        with timed("baselines", opened.timings):
            baselines = try_problem(problem, config, model, data) if group.is_main else {}
        started = opened.start(data, model, RunLogger, watch)
        with timed("training", opened.timings):
            trainer = trainer_of(problem, Trainer)(
                problem, config, model, data.train, data.val, logger=started.logger, group=group
            )
            started.restore(trainer)
            trainer.fit()
        if group.is_main:
            is_unseen = started.is_unseen(data.test, trainer.epoch)
            results, arrays = test(problem, config, model, data, baselines=baselines, is_unseen=is_unseen)
            if data.test_rows is not None:  # of a file: other runs have mostly the same training examples
                results["n_train"] = len(next(iter(data.train.values())))
            results |= {"best_epoch": trainer.best_epoch, "epochs_trained": trainer.epoch}
            if data.calibration:
                calibration = predicted_for(problem, config, model, data.calibration)
                started.logger.log_arrays(CALIBRATION, calibration)
                results["test"] |= coverage(calibration, arrays)
            started.finish(model, results, arrays)
            with timed("figures", opened.timings):
                started.plot_figures()


def test(
    problem: Problem[Any],
    config: Config,
    model: "Standardized",
    data: Data,
    *,
    baselines: "Mapping[str, Predicted]",
    is_unseen: NDArray[np.bool_],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate a trained network and the predictions of baselines on the test split.

    Args:
        is_unseen: whether the test examples do not occur in the training data, (N,).

    Returns:
        results: the metrics on all test examples and on those that do not occur in training, and the data checks.
        arrays: the content of predictions.npz, from which figures are plotted.
    """
    from engine.learning.prediction import compute_metrics, evaluate, metrics_on_unseen, prepare

    examples = prepare(problem, config, model, data.test)
    metrics, predicted = evaluate(problem, config, model, examples)
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
        problem, config, model, examples, is_unseen, predicted=predicted, baselines=baselines
    )
    results["checks"] = dict(data.checks)
    arrays = {"targets": examples.physical_targets, **predicted.arrays()}
    chosen = examples_of(problem, config, data.test)
    kept = arrays_for_figures(data.test, arrays, baselines, chosen)
    return results, kept if data.test_rows is None else kept | {FILE_ROWS: data.test_rows}


def predicted_for(
    problem: Problem[Any], config: Config, model: "Standardized", columns: Columns
) -> dict[str, NDArray[Any]]:
    """The `targets` of examples, and what the network predicts for them."""
    from engine.learning.prediction import predict_all

    return {"targets": target_array(problem, config, columns), **predict_all(problem, config, model, columns)}


def arrays_for_figures(
    test: Columns, arrays: Mapping[str, NDArray[Any]], baselines: "Mapping[str, Predicted]", chosen: NDArray[np.int64]
) -> dict[str, Any]:
    """The content of predictions.npz.

    Args:
        test: the columns of the test split. Those with one number per example are kept.
        arrays: `targets`, `predictions` and what the problem adds to them, (N, ...).
        chosen: indices of the examples of which everything is kept.
    """
    kept = {name: column for name, column in test.items() if column.ndim == 1} | dict(arrays)
    for name, each in baselines.items():
        others = {f"baseline_{name}_{key.removeprefix(PREDICTED)}": array for key, array in each.others.items()}
        kept |= {f"baseline_{name}": each.values, **others}
    if chosen.size:
        kept |= {f"example_{name}": column[chosen] for name, column in {**test, **arrays}.items()}
    return kept


def resume_hint(command: Command, folder: Path) -> str:
    """What to do after a run was interrupted: words that follow "interrupted: "."""
    is_of_this_run = command.resume is not None or read_info(folder).get("pid") == os.getpid()  # or of one to overwrite
    if command.save_data or not is_of_this_run:
        kept = "the blocks of examples that are ready are kept: the same command continues"
        return kept if command.keeps_blocks else "nothing was saved yet"
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
            run(problem, config, folder, group, overwrite=command.overwrite, resume=resume, n_workers=command.n_workers)
        elif group.is_main:
            save_data(problem, config, command.save_data, command.overwrite, command.n_workers)
    group.exit(exit_code.code)


if __name__ == "__main__":
    from problem import PROBLEM

    main(PROBLEM)
