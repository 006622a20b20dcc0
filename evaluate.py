"""Evaluate a saved run on new data: other generator options, or the examples of a file.

python evaluate.py RUN --num-test 10000 --name more
python evaluate.py RUN --data measured.npz
python evaluate.py RUN --help                        lists the options of the problem of the run
"""

import hashlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

from engine.cache import warn_if_changed
from engine.cli import ExitCode, run_folder
from engine.config import Config, data_options, load_config, not_from_run, replace_unchecked, require_file, to_dict
from engine.datasets import generate_split, get_splits, report_check, require_memory_for
from engine.distributed import quick_exit
from engine.errors import BadRequestError, ProblemError
from engine.files import write_atomic, write_json
from engine.flags import Parser, add_flags, flags_given
from engine.hardware import provenance, select_device
from engine.io import read_columns
from engine.loading import load_problem, problem_of
from engine.options import ConfigError, Option, check_name, folder_name, merge, options_of, validate
from engine.overlap import hash_inputs, load_hashes, unseen
from engine.problem import Columns, Problem, input_arrays, plain, target_array
from utils import print_line

if TYPE_CHECKING:
    from engine.checkpoints import SavedRun
    from engine.prediction import Examples, Standardized


def load_run(run_dir: str | Path) -> tuple[Any, "Standardized"]:
    """Load the config of a run, and its network in evaluation mode on the CPU: inputs (B, ...) -> predictions (B, ...).

    Raises:
        UnusableFileError: config.json or best.pt is missing or damaged, or was written for another network.
    """
    from engine.checkpoints import load_saved

    saved = load_saved(Path(run_dir))
    return saved.config, saved.model


class Request(NamedTuple):
    """What a command line requests."""

    folder: Path  # of the run
    problem: Problem[Any]
    config: Config  # that of the run, with the data, seed, device and threads of the evaluation
    name: str  # of the files with the result
    options: str  # the options of the data on the command line


def evaluation_options(problem: Problem[Any]) -> dict[tuple[str, ...], Option]:
    """The options that an evaluation can change."""
    options = options_of(problem.config_type)
    shared = [("data", "num_test"), ("data", "cache"), ("data", "file"), ("seed",), ("device",), ("threads",)]
    return {path: options[path] for path in [*data_options(problem.config_type), *shared]}


def build_parser(problem: Problem[Any] | None) -> Parser:
    """Create the parser of evaluate.py for a run of the problem."""
    parser = Parser(
        prog="evaluate.py",
        usage="evaluate.py RUN [options]",
        description="Evaluate the network of a saved run on new data. The result is written to the folder of the run.",
    )
    parser.add_argument(
        "run", metavar="RUN", help="name or folder of the run; RUN --help lists the options of its problem"
    )
    parser.add_argument(
        "--name", help="name of the result (default: name of the --data file, or a short description of the data)"
    )
    if problem is not None:
        options = evaluation_options(problem)
        defaults = dict.fromkeys((option.flag for option in options.values()), "that of the run")
        defaults |= {option.flag: option.default for option in not_from_run(problem.config_type).values()}
        defaults |= {"--seed": "that of the run plus one", "--data": "none"}
        add_flags(parser, options, "evaluation", defaults)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Request:
    """Parse and check a command line. An error ends the program with one line on stderr and exit code 2.

    Raises:
        RunError: the problem of the run cannot be loaded.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    folder = next(filter(None, (run_folder(word) for word in words if not word.startswith("-"))), None)
    problem = _problem_of(folder)
    parser = build_parser(problem)
    namespace, unknown = parser.parse_known_args(words)
    given = vars(namespace)
    try:
        if folder is None or run_folder(given["run"]) != folder or problem is None:
            raise ConfigError(f"{given['run'][:100]}: not a run: give the name of a run in checkpoints, or its folder")
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return _resolve(folder, problem, given)
    except ConfigError as error:
        parser.error(str(error))


def _problem_of(folder: Path | None) -> Problem[Any] | None:
    if folder is not None:
        return problem_of(folder)
    try:
        return load_problem("problem")
    except (BadRequestError, ProblemError):
        return None


def _resolve(folder: Path, problem: Problem[Any], given: dict[str, Any]) -> Request:
    options = evaluation_options(problem)
    of_data = list(data_options(problem.config_type).values())
    earlier = load_config(problem.config_type, folder / "config.json")
    flags = flags_given(given, options)
    used = [option for path, option in options.items() if ".".join(path) in given]
    file = flags.get("data", {}).get("file")
    require_file(problem.config_type, flags, file)
    if file is not None:
        kept = {"file", "device", "threads", *earlier.data.for_file}
        if idle := [option.flag for option in used if option.path[-1] not in kept]:
            raise ConfigError(f"{', '.join(idle)} does nothing with --data: all examples of the file are used; drop it")
    automatic = {path[-1]: option.info.default for path, option in not_from_run(problem.config_type).items()}
    sizes = {"num_train": 1, "num_val": 1, "num_test": earlier.data.num_test or 1}
    data = merge(asdict(earlier.data), {"file": None, **automatic, **sizes})
    values = {"data": data, "seed": (earlier.seed + 1) % 2**64, "device": earlier.device, "threads": earlier.threads}
    values = merge(merge(asdict(problem.config_type()), {**values, "train": {"batch_size": 1}}), flags)
    checked = validate(problem.config_type, values, source=str(folder / "config.json"), flags=flags)
    shown = [f"{each.flag} {each.typed(getattr(checked.data, each.path[-1]))}" for each in of_data if each in used]
    config = replace_unchecked(
        earlier, **{name: getattr(checked, name) for name in ("data", "seed", "device", "threads")}
    )
    name = str(given.get("name", Path(file).stem if file else folder_name(problem.data_label(config))))
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"--name {name}: {error}") from None
    return Request(folder, problem, config, name, " ".join(shown))


def fit_to(saved: "SavedRun", request: Request, columns: Columns) -> "Standardized":
    """The network of a run for data with the shapes of these columns, which may be empty.

    Raises:
        BadRequestError: the network does not accept inputs of these shapes.
    """
    from engine.checkpoints import with_weights
    from engine.prediction import Shapes

    problem, config = request.problem, request.config
    inputs, target = input_arrays(problem, config, columns), target_array(problem, config, columns)
    shapes = Shapes(tuple(x.shape[1:] for x in inputs), target.shape[1:])
    if shapes == saved.shapes:
        return saved.model
    if shapes.target != saved.shapes.target:
        raise BadRequestError(
            f"{config.data.file or request.options}: the target of an example has the shape {shapes.target}, and this "
            f"network was trained with {saved.shapes.target}: use such data"
        )
    asked = f"{config.data.file or request.options}: the inputs have the shape {_in_words(shapes.inputs)}"
    try:
        return with_weights(problem, config, shapes, saved.model.state_dict())
    except RuntimeError:
        label, trained = problem.label(saved.config), _in_words(saved.shapes.inputs)
        raise BadRequestError(
            f"{asked}, and this network ({label}) only accepts {trained}, which it was trained with: "
            "use such data, or train a network that accepts inputs of any size"
        ) from None
    except BadRequestError as error:
        raise BadRequestError(f"{asked}: {error}") from None


def _in_words(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes))


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
    """The values that identify an evaluation: its seed, and the options of its data."""
    data = {name: value for name, value in to_dict(config)["data"].items() if name not in ("num_train", "num_val")}
    return {"seed": config.seed, "data": data}


def require_no_other(path: Path, config: Config) -> None:
    """Raise BadRequestError if the file has the result of an evaluation with another seed or other data."""
    try:
        earlier = json.loads(path.read_bytes())
        is_other = any(earlier[key] != value for key, value in json.loads(json.dumps(described(config))).items())
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):  # not a complete result
        return
    if is_other:
        raise BadRequestError(f"{path} has the result of another evaluation: choose another --name, or remove it")


def results_on_unseen(
    request: Request, model: "Standardized", examples: "Examples", predictions: NDArray[Any]
) -> dict[str, Any]:
    """The number and the metrics of the examples whose inputs do not occur in the training data of the run.

    If some inputs do occur there, print a line. Both results are None if the training data are not known.
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
        print_line(f"the inputs of {n - n_unseen:,} of these examples also occur in the training data{others}")
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
        raise PermissionError(f"{place} cannot be written to")
    require_no_other(place / f"{request.name}.json", config)
    warn_if_changed(problem, request.folder, training=False)

    import torch
    from numpy.random import SeedSequence

    from engine.checkpoints import load_saved
    from engine.prediction import evaluate, prepare

    saved = load_saved(request.folder)
    device = select_device(config.device)
    if config.data.file is None:
        require_memory_for(problem, config)
        fit_to(saved, request, generate_split(problem, config, 0, SeedSequence(0)))  # check the shapes early
    columns, source = new_data(request)
    model = fit_to(saved, request, columns).to(device)
    print_line(f"data {source}")
    check = problem.check(config, columns)
    report_check("new", check, is_external=config.data.file is not None)

    torch.set_num_threads(config.threads or torch.get_num_threads())
    examples = prepare(problem, config, model, columns)
    metrics, predictions = evaluate(problem, config, model, examples)
    report = plain("report", problem.report(config, columns, predictions))
    numbers = metrics | {name: value for name, value in report.items() if isinstance(value, float)}
    print_line(f"{len(predictions):,} examples: {_shown(numbers)}")
    result = {
        "n": len(predictions),
        "metrics": metrics,
        **results_on_unseen(request, model, examples, predictions),
        **report,
        "check": plain("check", check.numbers),
        "source": source,
        **described(config),
        "weights_sha256": hashlib.sha256((request.folder / "best.pt").read_bytes()).hexdigest(),
        **provenance(),
    }
    arrays = {**columns, "targets": examples.physical_targets, "predictions": predictions}
    figure = next(iter(problem.figures(config, arrays).values()))
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    place.mkdir(exist_ok=True)
    write_atomic(place / f"{request.name}.png", picture.getvalue())
    write_json(place / f"{request.name}.json", result)
    return result


def main() -> None:
    """Do the evaluation that the command line requests, and end the program with its exit code."""
    with ExitCode() as end:
        request = parse_args()
        end.place = request.folder
        evaluate_run(request)
        print_line(f"{request.folder / 'evaluations' / request.name}.json")
    quick_exit(end.code)


if __name__ == "__main__":
    main()
