"""Evaluate a saved run on new data: other generator options, or the examples of a file.

python evaluate.py RUN --num-test 10000 --name more
python evaluate.py RUN --data measured.npz
python evaluate.py RUN --help                        lists the options of the generator of the run, too
"""

import errno
import json
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from engine.cache import warn_if_changed
from engine.cli import ExitCode, run_folder
from engine.config import Config, to_dict
from engine.datasets import fingerprint, get_splits, report_check, require_memory_for
from engine.distributed import group_from_environment, quick_exit
from engine.errors import BadRequestError, ProblemError
from engine.evaluation import Request, parse_args
from engine.files import read_info, write_atomic, write_json
from engine.hardware import default_num_threads, one_blas_thread, provenance, select_device
from engine.io import read_columns
from engine.overlap import hash_inputs, load_hashes, unseen
from engine.plotting import draw_if_possible
from engine.problem import Columns, plain
from utils import print_line, warn

if TYPE_CHECKING:
    from engine.checkpoints import SavedRun
    from engine.prediction import Examples, Standardized


def load_run(run: str | Path) -> tuple[Any, "Standardized"]:
    """Load the config of a run, and its network in evaluation mode on the CPU: inputs (B, ...) -> predictions (B, ...).

    Args:
        run: the folder of the run, or its name in checkpoints.

    Raises:
        BadRequestError: the module of the problem is not found on sys.path.
        UnusableFileError: config.json or best.pt is missing or damaged, or was written for another network.
    """
    from engine.checkpoints import load_saved

    saved = load_saved(run_folder(str(run)) or Path(run))
    return saved.config, saved.model


def new_data(request: Request) -> tuple[Columns, str]:
    """Get the examples of an evaluation, and a phrase that says where they came from.

    Raises:
        RunError: they cannot be read or generated.
    """
    config = request.config
    if config.data.file is not None:
        return read_columns(request.problem, config, config.data.file), f"read from {config.data.file}"
    splits, source = get_splits(request.problem, config)
    return splits.test, source


def described(config: Config) -> dict[str, Any]:
    """The values that identify the data of an evaluation: its seed, and the options of its data."""
    left_out = ("num_train", "num_val", "cache")
    return {
        "seed": config.seed,
        "data": {name: value for name, value in to_dict(config)["data"].items() if name not in left_out},
    }


def require_no_other(request: Request, identity: Mapping[str, Any]) -> None:
    """Raise BadRequestError if there is a result of the same name with another identity, unless it may be replaced."""
    path = request.folder / "evaluations" / f"{request.name}.json"
    if request.overwrite or not path.exists():
        return
    try:
        earlier = json.loads(path.read_bytes())
        is_other = any(earlier.get(key) != value for key, value in json.loads(json.dumps(identity)).items())
    except (ValueError, AttributeError):  # not a complete result
        return
    if is_other:
        raise BadRequestError(
            f"{path} has the result of another evaluation: --overwrite replaces it, another --name keeps it"
        )


STATES = {"running": "has not finished", "interrupted": "was interrupted", "diverged": "diverged", "failed": "failed"}


def status_of(folder: Path, saved: "SavedRun") -> str | None:
    """The status of a run, if it is known. Warn if training has not finished."""
    status = read_info(folder).get("status")
    if status in STATES:
        try:
            n_epochs = len(json.loads((folder / "epoch_metrics.json").read_bytes()))
        except (OSError, ValueError):
            n_epochs = saved.epoch
        warn(
            f"warning: {folder} {STATES[status]} after epoch {n_epochs} of {saved.config.train.epochs}: "
            f"evaluating the best epoch so far, epoch {saved.epoch}"
        )
    return status


def warn_if_trained_on_a_file(request: Request, saved: "SavedRun") -> None:
    """Say with which options data are generated for a run that was trained on a file, which may differ from them."""
    if saved.config.data.file is not None:
        defaults = f"the defaults {request.defaults}" if request.defaults else ""
        used = " and ".join(filter(None, (request.options, defaults))) or "no options"
        warn(
            f"warning: {request.folder} was trained on {saved.config.data.file}, and these data are generated with "
            f"{used}: give a file with --data"
        )


def results_on_unseen(
    request: Request, model: "Standardized", examples: "Examples", predictions: NDArray[Any]
) -> dict[str, Any]:
    """The number and the metrics of the examples whose inputs do not occur in the training data of the run.

    If some inputs do occur there, print a line. It is a warning if all of them do, or if the examples are from a file.
    Both results are None if the training data are not known.
    """
    from engine.prediction import metrics_on_unseen

    problem, config = request.problem, request.config
    train_hashes = load_hashes(request.folder)
    if train_hashes is None:
        return {"n_unseen": None, "metrics_unseen": None}
    is_unseen = unseen(train_hashes, hash_inputs(problem, config, examples.columns))
    metrics, _ = metrics_on_unseen(problem, config, model, examples, is_unseen, predictions=predictions, baselines={})
    n, n_unseen = len(is_unseen), int(is_unseen.sum())
    if n_unseen < n:
        others = f"; the other {n_unseen:,}: {_shown(metrics)}" if metrics else ""
        line = f"the inputs of {n - n_unseen:,} of these {n:,} examples also occur in the training data{others}"
        if n_unseen == 0 or config.data.file is not None:
            warn(f"warning: {line}")
        else:
            print_line(line)
    return {"n_unseen": n_unseen, "metrics_unseen": metrics}


def _shown(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def evaluate_run(request: Request) -> dict[str, Any]:
    """Evaluate a run, write the result and its figure, and return the result.

    Raises:
        RunError: the request cannot be met.
    """
    problem, config, place = request.problem, request.config, request.folder / "evaluations"
    if not os.access(place if place.exists() else request.folder, os.W_OK) or place.is_file():
        raise PermissionError(errno.EACCES, "cannot be written to", str(place))
    warn_if_changed(problem, request.folder, training=False)

    import torch

    from engine.checkpoints import fit_to, generated_shapes, load_saved
    from engine.prediction import evaluate, prepare, shapes_of

    saved = load_saved(request.folder)
    identity = {**described(config), "weights_sha256": saved.sha256}
    require_no_other(request, identity)
    device = select_device(config.device)
    status = status_of(request.folder, saved)
    if config.data.file is None:
        require_memory_for(problem, config, flags="--num-test")
        warn_if_trained_on_a_file(request, saved)
        fit_to(saved, config, generated_shapes(problem, config), request.subject)  # refuse a wrong shape early
    columns, source = new_data(request)
    identity["data_sha256"] = fingerprint([columns])
    require_no_other(request, identity)
    model = fit_to(saved, config, shapes_of(problem, config, columns), request.subject).to(device)
    print_line(f"data {source}")
    with one_blas_thread():
        check = problem.check(config, columns)
    report_check("new", check, is_external=config.data.file is not None)

    torch.set_num_threads(config.threads or default_num_threads())
    examples = prepare(problem, config, model, columns)
    metrics, predictions = evaluate(problem, config, model, examples)
    with one_blas_thread():
        report = plain("report", problem.report(config, columns, predictions))
    numbers = metrics | {name: value for name, value in report.items() if isinstance(value, float)}
    print_line(f"{len(predictions):,} examples: {_shown(numbers)}")
    if taken := {"n", "metrics", "n_unseen", "metrics_unseen", "check", "source"} & report.keys():
        raise ProblemError(f"report returned {', '.join(sorted(taken))}, which an evaluation has itself: rename it")
    result = {
        "n": len(predictions),
        "metrics": metrics,
        **results_on_unseen(request, model, examples, predictions),
        **report,
        "check": plain("check", check.numbers),
        "source": source,
        "epoch": saved.epoch,
        "run_status": status,
        **identity,
        **provenance(),
    }
    arrays = {**columns, "targets": examples.physical_targets, "predictions": predictions}
    place.mkdir(exist_ok=True)
    write_json(place / f"{request.name}.json", result)
    for image in draw_if_possible(lambda: dict(islice(problem.figures(config, arrays).items(), 1))).values():
        write_atomic(place / f"{request.name}.png", image)
    return result


def main() -> None:
    """Do the evaluation that the command line requests, and end the program with its exit code."""
    with ExitCode() as exit_code:
        if group_from_environment().is_main:  # torchrun also starts other processes, which have nothing to do
            request = parse_args()
            exit_code.place = request.folder
            evaluate_run(request)
            result = request.folder / "evaluations" / request.name
            print_line("\n".join(f"{result}{end}" for end in (".json", ".png") if Path(f"{result}{end}").exists()))
    quick_exit(exit_code.code)


if __name__ == "__main__":
    main()
