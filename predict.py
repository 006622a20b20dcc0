# Command: keep.
"""Predict the target of the examples of a file, which need not contain it, with a saved run or all networks of a sweep.

python predict.py RUN --data new.csv --output predictions.csv
python predict.py RUN --data new.npz --output predictions.npz --interval 0.9
python predict.py SWEEP --data new.csv --output predictions.csv    the mean of its networks, and their spread
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.datasets.archives import from_npz
from engine.datasets.file_formats import FromFile, read_to_predict
from engine.datasets.prediction_files import named, write_predictions
from engine.evaluation.evaluation_request import Request
from engine.evaluation.preconditions import status_of
from engine.evaluation.prediction_request import PredictionRequest, parse_args
from engine.interface.returned_values import input_arrays
from engine.learning.distributed import group_from_environment
from engine.learning.intervals import CALIBRATION, interval
from engine.machine.errors import BadRequestError, UnusableFileError
from engine.machine.exit_code import ExitCode, quick_exit
from engine.machine.foreign_files import read_bytes
from engine.machine.hardware import default_num_threads, select_device
from engine.run_folder.changed_code import warn_if_changed
from utils import print_line

if TYPE_CHECKING:
    from engine.learning.predicted import Predicted
    from engine.learning.standardized import Standardized

Arrays = dict[str, NDArray[Any]]


def predict_file(request: PredictionRequest) -> Arrays:
    """Predict the examples of a file, write the predictions, and return them by name, in the order of the file.

    Raises:
        RunError: the request cannot be met. Nothing was written.
    """
    first = request.networks[0]
    found: FromFile | None = None
    each = []
    for network in request.networks:
        found, model, predicted = predict_with(network, found)
        each.append(predicted)
    assert found is not None
    arrays = combined(first, model, each)
    if request.level is not None:
        arrays["low"], arrays["high"] = interval(calibration_of(first.folder), arrays, request.level)
    classes = first.problem.class_names(first.config)
    output = {**found.others, "row": found.rows, **named(arrays, classes)}
    write_predictions(request.output, output, classes)
    return output


def predict_with(request: Request, found: FromFile | None = None) -> "tuple[FromFile, Standardized, Predicted]":
    """Predict with the network of a run.

    Args:
        found: the examples, if they have been read for another run of the same setting.
    """
    problem, config = request.problem, request.config
    warn_if_changed(problem, request.folder, training=False)

    import torch

    from engine.learning.prediction import predicted_for_columns
    from engine.learning.standardized import Shapes
    from engine.run_folder.checkpoints import fit_to, load_network

    saved = load_network(request.folder, problem)
    status_of(request.folder, saved)
    found = found or read_to_predict(problem, config, str(config.data.file))
    shapes = Shapes(tuple(x.shape[1:] for x in input_arrays(problem, config, found.columns)), saved.shapes.target)
    model = fit_to(saved, config, shapes, request.subject).to(select_device(config.device))
    torch.set_num_threads(config.threads or default_num_threads())
    return found, model, predicted_for_columns(problem, config, model, found.columns)


def combined(request: Request, model: "Standardized", each: "Sequence[Predicted]") -> Arrays:
    """The mean of the predictions of several networks and their `spread`, a standard deviation."""
    if len(each) == 1:
        return each[0].arrays()
    from engine.evaluation.ensembles import mean_of

    arrays = mean_of(request.problem, request.config, model, each).arrays()
    of_classes = arrays["predictions"].dtype.kind != "f"
    spread = {
        f"spread_{name}" if of_classes else "spread": np.std([one.arrays()[name] for one in each], axis=0, ddof=1)
        for name, array in arrays.items()
        if array.dtype.kind == "f" and (of_classes or name == "predictions")
    }
    return arrays | spread


def calibration_of(folder: Path) -> Arrays:
    """The targets and predictions of the calibration examples of a run."""
    path = folder / f"{CALIBRATION}.npz"
    try:
        arrays = from_npz(read_bytes(path))
    except FileNotFoundError:
        raise BadRequestError(
            f"--interval: {folder} has no calibration examples: train it again with --num-calibration, such as 500"
        ) from None
    if not {"targets", "predictions"} <= arrays.keys():
        raise UnusableFileError(f"{path} is damaged: train the run again")
    return arrays


def main() -> None:
    """Do what the command line requests, and end the program with its exit code."""
    with ExitCode() as exit_code:
        if group_from_environment().is_main:  # torchrun also starts other processes, which have nothing to do
            request = parse_args()
            exit_code.place = request.output.parent
            output = predict_file(request)
            print_line(f"{len(output['row']):,} predictions in {request.output}: {', '.join(output)}")
    quick_exit(exit_code.code)


if __name__ == "__main__":
    main()
