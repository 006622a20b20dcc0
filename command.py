"""What one command line of main.py asks for: a config, merged from presets, files and flags, and what to do with it.

Values are settled by defaults < preset < config file < flags, whatever their order on the line.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from config import OPTIONS, PRESETS, ExperimentConfig, load_config
from options import ConfigError, Parser, add_flags, flags_given, merge, nearest, read_json, validate


def run_folder(run: str) -> Path | None:
    """The folder of a run that is given by its name or its folder; None if there is no run."""
    folder = Path(run) if "/" in run else Path("checkpoints") / run
    try:
        return folder if (folder / "config.json").is_file() else None
    except OSError:  # such as a name that is too long
        return None


class Command(NamedTuple):
    """What one command line asks for."""

    config: ExperimentConfig
    print_config: bool
    overwrite: bool
    save_data: Path | None
    resume: Path | None  # the folder of the run to go on with


def build_parser() -> Parser:
    """The parser of main.py: what is about one command, and a flag for every option."""
    parser = Parser(
        prog="main.py",
        usage="main.py [options]",
        description="Draw 2D Ising configurations, train a network on their energy or phase, show how well it does.",
        epilog="Flags override --config, which overrides --preset, wherever they stand; `none` is off, where allowed.",
    )
    command = parser.add_argument_group("command")
    command.add_argument("--preset", choices=PRESETS, help="start from this config instead of `default`")
    command.add_argument("--config", metavar="FILE", help="take the values of a config.json, such as an earlier run's")
    command.add_argument("--resume", metavar="RUN", help="go on with a run that was cut off, by name or folder")
    command.add_argument("--print-config", action="store_true", help="print the resulting config.json and stop")
    command.add_argument(
        "--save-data", metavar="FILE", help="write the data to an .npz file, as --data takes it, and stop"
    )
    command.add_argument("--overwrite", action="store_true", help="replace an earlier run, or file, of the same name")
    add_flags(parser, OPTIONS, top="experiment")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Command:
    """What a command line asks for, complete and valid; without `argv`, the program's own.

    A fault ends the program with one line on stderr and exit code 2.
    """
    parser = build_parser()
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = ["--preset", "--config", "--resume", "--overwrite", *(option.flag for option in OPTIONS.values())]
        parser.error(f"{unknown[0]}: no such option; {nearest(unknown[0], {flag: flag for flag in flags})}")
    try:
        return _resolve(vars(namespace))
    except ConfigError as error:
        parser.error(str(error))


def _resolve(given: dict[str, Any]) -> Command:
    """Merge defaults < preset < config file < flags, and check the result."""
    for name in ("preset", "config", "save_data", "resume"):
        if not isinstance(given.get(name, ""), str):  # what argparse makes of --preset=--
            raise ConfigError(f"--{name.replace('_', '-')} --: give one value")
    if "resume" in given:
        return _resolve_resume(given)
    values = asdict(PRESETS[given.get("preset", "default")])
    if "config" in given:
        content = read_json(given["config"])
        if "preset" in given and merge(asdict(ExperimentConfig()), content) == content:
            raise ConfigError(f"--preset {given['preset']} does nothing: {given['config']} sets every option; drop one")
        values = merge(values, content)
    if "save_data" in given:  # nothing is trained, and nothing need fit together for that
        values = merge(values, {"task": "energy", "model": {"kernel_size": 1}, "train": {"batch_size": 1}})
    flags = flags_given(given, OPTIONS)
    # A section that a file gives as something else stays as it is, to be refused.
    values = merge(values, {k: v for k, v in flags.items() if isinstance(values[k], dict) or not isinstance(v, dict)})
    config = validate(ExperimentConfig, values, source=given.get("config", ""), flags=flags)
    _refuse_idle(given, config)
    return Command(
        config,
        print_config="print_config" in given,
        overwrite="overwrite" in given,
        save_data=Path(given["save_data"]) if "save_data" in given else None,
        resume=None,
    )


# What only some networks look at.
OF_ARCHITECTURES = {
    "--hidden": {"mlp", "residual_mlp", "symmetric_mlp"},
    "--channels": {"cnn"},
    "--kernel-size": {"cnn"},
}

# When a run goes on: it may become longer, and do so on another machine, with other records.
MAY_CHANGE = {"--epochs", "--cache", "--wandb", "--checkpoints", "--device", "--threads", "--compile"}


def _resolve_resume(given: dict[str, Any]) -> Command:
    """The config of the run to go on with, with what may change as the flags say."""
    folder = run_folder(given["resume"])
    idle = [f"--{name.replace('_', '-')}" for name in ("preset", "config", "overwrite", "save_data") if name in given]
    if idle:
        raise ConfigError(f"{', '.join(idle)} does nothing with --resume, which takes the config of the run: drop it")
    if folder is None:
        raise ConfigError(f"--resume {given['resume'][:100]}: nothing to go on with: no such run has a config.json")
    earlier = load_config(folder / "config.json")
    if not earlier.log.checkpoints:
        raise ConfigError(f"--resume {given['resume']}: nothing to go on with: the run has --no-checkpoints")
    flags = flags_given(given, OPTIONS)
    config = validate(ExperimentConfig, merge(asdict(earlier), flags), source=str(folder / "config.json"), flags=flags)
    for path, option in OPTIONS.items():
        before, now = (reduce(getattr, path, each) for each in (earlier, config))
        if before != now and option.flag not in MAY_CHANGE:
            raise ConfigError(
                f"{option.flag} {option.typed(now)}: the run has {option.typed(before)}: drop it, or begin another run"
            )
    if config.train.epochs < earlier.train.epochs:
        raise ConfigError(f"--epochs {config.train.epochs}: the run has {earlier.train.epochs}, and may only get more")
    return Command(config, "print_config" in given, overwrite=False, save_data=None, resume=folder)


def _refuse_idle(given: dict[str, Any], config: ExperimentConfig) -> None:
    """Raise ConfigError if something on the command line does nothing beside the rest of it."""
    used = [option.flag for path, option in OPTIONS.items() if ".".join(path) in given and option.flag != "--data"]
    used += [f"--{name.replace('_', '-')}" for name in ("print_config", "overwrite", "save_data") if name in given]
    if config.data.file is not None:
        used.append("--data")  # on the line or in a config file
    idle_beside = {
        "--print-config": {"--overwrite", "--save-data"},
        "--save-data": {option.flag for path, option in OPTIONS.items() if path[0] not in ("data", "seed", "threads")},
        "--data": {"--temp-min", "--temp-max", "--sweeps", "--sampler", "--cache", "--save-data"},
    }
    for option, idle in idle_beside.items():
        if option in used and (found := [flag for flag in used if flag in idle]):
            way_out = "drop one" if option != "--data" or "data.file" in given else "drop it, or give --data none"
            raise ConfigError(f"{', '.join(found)} does nothing with {option}: {way_out}")
    for option, architectures in OF_ARCHITECTURES.items():
        if option in used and config.model.architecture not in architectures:
            raise ConfigError(f"{option} does nothing with --architecture {config.model.architecture}: drop it")
    if config.model.architecture == "symmetric_mlp" and len(config.model.hidden) == 1:
        for option in {"--activation", "--dropout"} & set(used):
            raise ConfigError(f"{option} does nothing with symmetric_mlp of one layer, which is squared: drop it")
    if "--overwrite" in used and "--save-data" not in used and config.log.run_name is None:
        raise ConfigError("--overwrite does nothing without --run-name: say which run to replace")
