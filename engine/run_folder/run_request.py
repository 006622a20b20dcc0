# Machinery: keep, and skip at first.
"""The command line of a problem: a config, merged from presets, files and flags, and what to do with it.

Values come from --preset, --config and flags. Later sources in this list override earlier ones. The order on the
command line does not matter. Without --preset, values that are missing are those of the preset `default` or, with
--config, the defaults of the fields.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from engine.interface.base_config import (
    Config,
    load_config,
    read_config,
    require_file,
    require_same_run,
    to_dict,
)
from engine.interface.base_problem import Problem
from engine.interface.find_problem import module_name, require_problem
from engine.machine.errors import ProblemError
from engine.machine.foreign_files import is_file
from engine.options.fields import ConfigError, merge, options_of, validate
from engine.options.flags import Parser, add_flags, add_workers, flags_given, without_effect, workers_given
from engine.options.scopes import SCOPES
from engine.run_folder.find_run import project_folder, run_folder
from engine.run_folder.saved_run import read_info


class Command(NamedTuple):
    """What a command line requests."""

    config: Config
    print_config: bool
    overwrite: bool
    save_data: Path | None
    resume: Path | None  # the folder of the run to resume
    n_workers: int = 1  # that call a slow generator
    keeps_blocks: bool = False  # the generator is slow, and the examples that are ready are kept


def build_parser(problem: Problem[Any], prog: str, preset: str = "default") -> Parser:
    """Create the parser of a problem's command: flags for the command itself, and a flag for every option.

    Its help shows the values of a preset as defaults.
    """
    parser = Parser(
        prog=prog,
        usage=f"{prog} [options]",
        description=(type(problem).__doc__ or "").partition("\n")[0],
        epilog="Flags override --config, and --config overrides --preset. The value `none` switches an option off.",
    )
    command = parser.add_argument_group("command")
    add_options(parser, command, problem, preset)
    command.add_argument("--resume", metavar="RUN", help="continue a run that was stopped: its name or its folder")
    command.add_argument("--print-config", action="store_true", help="print the resulting config.json and stop")
    command.add_argument("--save-data", metavar="FILE", help="write the data to an .npz file for --data, and stop")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier run, or file, of the same name")
    add_workers(command, problem)
    return parser


def preset_in(problem: Problem[Any], words: Sequence[str]) -> str:
    """The preset on a command line, if it is one of the problem's. Otherwise, the parser reports it."""
    first = Parser(add_help=False)
    first.add_argument("--preset", default="default")
    found = first.parse_known_args([word for word in words if word not in ("-h", "--help")])[0].preset
    return found if isinstance(found, str) and found in problem.presets else "default"


def add_options(parser: Parser, command: Any, problem: Problem[Any], preset: str = "default") -> None:
    """Add --preset and --config to the group `command` of a parser, and a flag for every option of the problem."""
    shared = options_of(Config)
    own = {path: each for path, each in options_of(problem.config_type).items() if path not in shared}
    if ("format",) in own:
        raise ProblemError("the config has a field `format`, a key that config.json has itself: rename the field")
    if hidden := [each for each in own.values() if not SCOPES[each.scope].in_setting]:
        # Lists of runs, which do not load the problem, would take runs with other values for other settings.
        name, scope = ".".join(hidden[0].path), hidden[0].scope
        raise ProblemError(f"the field {name} has the scope {scope!r}, which only options of every problem can have")
    command.add_argument("--preset", choices=problem.presets, help="start from this preset instead of `default`")
    command.add_argument("--config", metavar="FILE", help="read options from a config.json, such as that of a run")
    options, default = options_of(problem.config_type), problem.presets[preset]
    try:
        defaults = {option.flag: option.typed(option.value_in(default)) for option in options.values()}
        add_flags(parser, options, top="experiment", defaults=defaults)
    except argparse.ArgumentError as error:
        raise ProblemError(f"two options have the same flag ({error}): rename one of the fields") from None


def parse_args(problem: Problem[Any], argv: Sequence[str] | None = None, prog: str | None = None) -> Command:
    """Parse and check a command line. The default is the command line of this process.

    An error ends the program with one line on stderr and exit code 2.
    """
    require_problem(problem)
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser(problem, prog or Path(sys.argv[0]).name, preset_in(problem, words))
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.refuse(unknown[0], options_of(problem.config_type))
    try:
        command = _resolve_command(problem, vars(namespace))
        keeps = problem.block_size is not None and command.config.data.file is None and command.config.data.cache
        return command._replace(n_workers=workers_given(problem, vars(namespace)), keeps_blocks=keeps)
    except ConfigError as error:
        parser.error(str(error))


def _resolve_command(problem: Problem[Any], given: dict[str, Any]) -> Command:
    """The request of a command line, from the result of its parser."""
    for name in ("save_data", "resume"):
        _require_word(given, name)
    if "resume" in given:
        return _resolve_resume(problem, given)
    return Command(
        resolve(problem, given),
        print_config="print_config" in given,
        overwrite="overwrite" in given,
        save_data=Path(given["save_data"]) if "save_data" in given else None,
        resume=None,
    )


def _require_word(given: dict[str, Any], name: str) -> None:
    if not isinstance(given.get(name, ""), str):  # argparse makes an empty list of --preset=--
        raise ConfigError(f"--{name.replace('_', '-')} --: give one value")


def resolve(problem: Problem[Any], given: dict[str, Any]) -> Config:
    """Merge defaults, preset, config file and flags, and check the result. `given` is the result of the parser.

    Raises:
        ConfigError: a value is invalid, or a flag has no effect.
    """
    for name in ("preset", "config"):
        _require_word(given, name)
    config_type, options = problem.config_type, options_of(problem.config_type)
    values = asdict(problem.presets[given.get("preset", "default")])
    if "config" in given:
        content = read_config(given["config"])
        of = read_info(Path(given["config"]).parent).get("problem", module_name(problem))
        if of != module_name(problem):
            raise ConfigError(f"--config {given['config']}: this is the config of a run of {of}: use it with {of}")
        if "preset" not in given:  # so that a file means the same here and in the folder of a run
            values = asdict(config_type())
        elif merge(to_dict(config_type()), content) == content:
            raise ConfigError(f"--preset {given['preset']} does nothing: {given['config']} sets every option; drop one")
        values = merge(values, content)
    flags = flags_given(given, options)
    # If a file has a section that is not an object, do not merge flags into it: validate reports the error.
    values = merge(values, {k: v for k, v in flags.items() if isinstance(values[k], dict) or not isinstance(v, dict)})
    if "save_data" in given:  # nothing is trained, so that only the options of the data have to be valid
        used = {path[0] for path, option in options.items() if SCOPES[option.scope].of_data}
        values = merge(asdict(config_type()), {name: values[name] for name in used})
        values["train"] |= {"batch_size": 1}
    config: Config = validate(config_type, values, source=given.get("config", ""), flags=flags)
    require_file(config_type, flags, config.data.file)
    _refuse_idle(problem, given, config)
    return config


def _resolve_resume(problem: Problem[Any], given: dict[str, Any]) -> Command:
    """The request to resume a run: its config, with the changes that are allowed."""
    folder = run_folder(given["resume"])
    idle = [f"--{name.replace('_', '-')}" for name in ("preset", "config", "overwrite", "save_data") if name in given]
    if idle:
        raise ConfigError(without_effect(idle, "--resume, which takes the config of the run"))
    if (sweep := Path("checkpoints") / given["resume"][:100] / "sweep.json").is_file():
        raise ConfigError(f"--resume {given['resume']}: {sweep.parent} is a sweep: its command, sweep.py, continues it")
    if folder is not None and "train.epochs" in given and is_file(folder.parent / "sweep.json"):
        raise ConfigError(
            f"--epochs: {folder} is a run of a sweep, whose runs have the same length: start another sweep"
        )
    if folder is None:
        raise ConfigError(
            f"--resume {given['resume'][:100]}: nothing to resume: there is no such run, or it has no config.json"
        )
    if (name := read_info(folder).get("problem", module_name(problem))) != module_name(problem):
        raise ConfigError(f"--resume {given['resume']}: this run was started with {name}: resume it with {name}")
    options = options_of(problem.config_type)
    earlier = load_config(problem.config_type, folder / "config.json")
    if not earlier.log.checkpoints:
        raise ConfigError(f"--resume {given['resume']}: nothing to resume: the run has --no-checkpoints")
    flags = flags_given(given, options)
    if (file := flags.get("data", {}).get("file")) and not Path(file).is_absolute():
        flags["data"]["file"] = os.path.relpath(file, project_folder(folder))
    source = str(folder / "config.json")
    config = validate(problem.config_type, merge(asdict(earlier), flags), source=source, flags=flags)
    require_same_run(earlier, config)
    return Command(config, "print_config" in given, overwrite=False, save_data=None, resume=folder)


def _refuse_idle(problem: Problem[Any], given: dict[str, Any], config: Config) -> None:
    """Raise ConfigError if a flag on the command line has no effect."""
    options = options_of(problem.config_type)
    used = [option.flag for path, option in options.items() if ".".join(path) in given and option.flag != "--data"]
    used += [
        f"--{name.replace('_', '-')}" for name in ("print_config", "overwrite", "save_data", "workers") if name in given
    ]
    if config.data.file is not None:
        used.append("--data")  # on the command line or in a config file
    idle_beside = {
        "--print-config": {"--overwrite", "--save-data", "--workers"},
        "--save-data": {each.flag for each in options.values() if not SCOPES[each.scope].of_data},
        "--data": {
            "--save-data",
            "--workers",
            *(each.flag for each in options.values() if each.scope in ("generator", "storage")),
        },
    }
    for flag, idle in idle_beside.items():
        if flag in used and (found := [each for each in used if each in idle]):
            other = f" or {flag}" if flag != "--data" or "data.file" in given else ", or give --data none"
            raise ConfigError(without_effect(found, flag) + other)
    for option in options.values():
        if option.flag in used and (reason := option.idle(config)):
            raise ConfigError(without_effect([option.flag], reason))
    if "--overwrite" in used and "--save-data" not in used and config.log.run_name is None:
        raise ConfigError("--overwrite does nothing without --run-name: name the run to replace")
