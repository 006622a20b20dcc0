# Machinery: keep, and skip at first.
"""The command line of predict.py: which networks predict, for which examples, and the file with the result."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.evaluation.evaluation_request import (
    Found,
    Request,
    evaluation_options,
    find_run,
    find_sweep,
    refuse_name,
    resolve,
    resolve_sweep,
)
from engine.interface.base_config import Config
from engine.interface.base_problem import Problem
from engine.machine.errors import BadRequestError
from engine.options.fields import NUMBER, ConfigError
from engine.options.flags import Parser, add_flags

SCOPES = ("place", "reader", "machine")  # of the options that matter for a prediction
FORMATS = (".csv", ".npz")


class PredictionRequest(NamedTuple):
    """What a command line requests."""

    networks: list[Request]  # of one run, or of all runs of a setting of a sweep
    output: Path
    level: float | None  # the probability of --interval


def build_parser(problem: Problem[Any] | None = None) -> Parser:
    """Create the parser of predict.py for a run of the problem. Without a problem, it has the options of all runs."""
    parser = Parser(
        prog="predict.py",
        usage="predict.py RUN|SWEEP --data FILE --output FILE [options]",
        description="Predict the target of all examples of a file, which need not contain it, with the network of a "
        "run, or with all networks of a sweep.",
    )
    result = parser.add_argument_group("prediction")
    result.add_argument("run", metavar="RUN", help="the name of a run or a sweep in checkpoints, or its folder")
    result.add_argument("--output", metavar="FILE", help="the file to write, .csv or .npz")
    result.add_argument(
        "--interval",
        metavar="P",
        help="also write intervals that contain the target with this probability, such as 0.9, from the errors on the "
        "calibration examples of the run",
    )
    result.add_argument("--setting", metavar="LABEL", help="of a sweep with several settings: the one to use")
    result.add_argument("--overwrite", action="store_true", help="replace the file of --output")
    result.add_argument("--problem", metavar="MODULE", help="the module of the problem, if it is in another folder")
    config_type = Config if problem is None else problem.config_type
    options = {path: each for path, each in evaluation_options(config_type).items() if each.scope in SCOPES}
    defaults = {each.flag: "that of the run" for each in options.values() if each.scope == "machine"}
    add_flags(parser, options, "data and machine", defaults)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> PredictionRequest:
    """Parse and check a command line. An error ends the program with one line on stderr and exit code 2.

    Raises:
        RunError: the problem of the run cannot be loaded, or sweep.json is damaged.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    sweep = find_sweep(words, build_parser)
    found = sweep or find_run(words, build_parser)
    if found is None:
        refuse_name(words, build_parser())
    try:
        return _resolve(found, is_sweep=sweep is not None)
    except ConfigError as error:
        found.parser.error(str(error))


def _resolve(found: Found, *, is_sweep: bool) -> PredictionRequest:
    given = found.given
    if missing := [f"--{name.partition('.')[2] or name}" for name in ("data.file", "output") if name not in given]:
        flag = missing[0].replace("file", "data")
        raise ConfigError(f"{flag} is missing: give the file {'to read' if flag == '--data' else 'to write'}")
    output = _output(given)
    level = None if "interval" not in given else _level(str(given["interval"]))
    if not is_sweep:
        if "setting" in given:
            raise ConfigError("--setting does nothing with a run: drop it, or name a sweep")
        return PredictionRequest([resolve(found.folder, found.problem, given)], output, level)
    if level is not None:
        raise ConfigError(
            "--interval does nothing with a sweep, whose runs have other calibration examples: name a run"
        )
    groups = resolve_sweep(found.folder, found.problem, given).groups
    if "setting" not in given and len(groups) > 1:
        raise ConfigError(f"{found.folder} has {len(groups)} settings: give --setting with one of {_quoted(groups)}")
    label = str(given.get("setting", next(iter(groups))))
    if label not in groups:
        raise ConfigError(f"--setting {label[:100]}: no such setting: give one of {_quoted(groups)}")
    return PredictionRequest(list(groups[label].values()), output, level)


def _output(given: dict[str, Any]) -> Path:
    output = Path(str(given["output"]))
    if output.suffix.lower() not in FORMATS:
        raise ConfigError(f"--output {output}: must end with {' or '.join(FORMATS)}")
    if output.is_symlink() or (output.exists() and not output.is_file()):
        raise ConfigError(f"--output {output}: is not a regular file: give another path")
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise ConfigError(f"--output {output}: the folder does not exist or is not writable: give another path")
    if output.exists() and (Path(str(given["data.file"])).exists() and output.samefile(str(given["data.file"]))):
        raise ConfigError(f"--output {output}: is the file of --data: give another path")
    if output.exists() and "overwrite" not in given:
        raise BadRequestError(f"--output {output}: exists already; --overwrite replaces it")
    return output


def _level(word: str) -> float:
    if not NUMBER.fullmatch(word) or not 0 < float(word) < 1:
        raise ConfigError(f"--interval {word[:100]}: must be a probability between 0 and 1, such as 0.9")
    return float(word)


def _quoted(groups: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(repr(label) for label in groups)
