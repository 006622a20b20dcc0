# Machinery: keep, and skip at first.
"""The command line of sweep.py: the plan of a sweep, and how it is trained."""

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from engine.interface.base_config import Config
from engine.interface.base_problem import Problem
from engine.interface.find_problem import load_problem
from engine.machine.errors import BadRequestError
from engine.many_runs.plan import MOST_RUNS, Plan
from engine.options.fields import ConfigError, Option, check_name, options_of
from engine.options.flags import Parser, count_given, without_effect
from engine.run_folder.find_run import run_folder
from engine.run_folder.run_request import add_options, preset_in, resolve

Options = Mapping[tuple[str, ...], Option]


class SweepRequest(NamedTuple):
    """What a command line requests."""

    folder: Path
    plan: Plan | None  # None: that of the folder, to take runs from it
    workers: int | None  # None: as many as cores allow
    problem: str | None = None  # the module of the problem, if the command line names it
    plan_only: bool = False  # write the plan, and train nothing


def build_parser(problem: Problem[Any] | None, preset: str = "default") -> Parser:
    """Create the parser of sweep.py. Without a problem, it does not have the options of a run."""
    parser = Parser(
        prog="sweep.py",
        usage="sweep.py NAME [options]",
        description="Train several runs: seeds, a grid of options, or a search. The same command continues a sweep.",
        epilog="All other flags are those of main.py, and hold for all runs.",
    )
    sweep = parser.add_argument_group("sweep")
    sweep.add_argument("name", metavar="NAME", help="name of the sweep, a folder in checkpoints")
    sweep.add_argument("--problem", metavar="MODULE", help="the module of the problem (default: problem)")
    sweep.add_argument("--seeds", metavar="N", help="train with N seeds: --seed, and the numbers that follow it")
    sweep.add_argument("--seed-list", metavar="S,S", help="train with these seeds instead")
    sweep.add_argument(
        "--grid",
        nargs="+",
        action="extend",
        metavar="FLAG=V,V",
        help='train with each of these values, and all combinations: lr=0.001,0.01 "hidden=64 32,128"',
    )
    sweep.add_argument(
        "--search",
        nargs="+",
        action="extend",
        metavar="FLAG=LOW..HIGH",
        help="search for the lowest validation loss: lr=1e-4..1e-2:log dropout=0..0.5 activation=relu,gelu",
    )
    sweep.add_argument("--trials", metavar="N", help="settings that the search tries")
    sweep.add_argument("--trial-seeds", metavar="N", help="seeds of each of these (default: 1)")
    sweep.add_argument("--no-pruning", action="store_true", help="do not stop runs of the search early")
    sweep.add_argument(
        "--confirm", metavar="K", help="train the K best settings of the search again, with --seeds other seeds"
    )
    sweep.add_argument("--workers", metavar="N", help="processes (default: available cores, divided by --threads)")
    sweep.add_argument("--plan", action="store_true", help="write the plan of the sweep, for --work, and stop")
    sweep.add_argument("--work", action="store_true", help="take runs from a sweep that was planned or started before")
    if problem is not None:
        add_options(parser, sweep, problem, preset)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> SweepRequest:
    """Parse and check a command line. An error ends the program with one line on stderr and exit code 2.

    Raises:
        RunError: the problem cannot be loaded.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    first = Parser(add_help=False)
    first.add_argument("--problem", default="problem")
    first.add_argument("--work", action="store_true", default=False)
    before = first.parse_known_args(words)[0]
    problem = None if before.work else load_problem(str(before.problem))
    parser = build_parser(problem, "default" if problem is None else preset_in(problem, words))
    namespace, unknown = parser.parse_known_args(words)
    given = vars(namespace)
    options = {} if problem is None else options_of(problem.config_type)
    if unknown and problem is None:
        parser.error(without_effect(unknown[:1], "--work, which takes the plan of the sweep"))
    if "--resume" in unknown:
        parser.error("--resume: the same command continues a sweep: drop it, and give all other flags again")
    if unknown:
        parser.refuse(unknown[0], options, "" if "problem" in given else " of problem.py, without --problem")
    try:
        return _resolve(parser, problem, options, given, words)
    except ConfigError as error:
        parser.error(str(error))


def _resolve(
    parser: Parser, problem: Problem[Any] | None, options: Options, given: dict[str, Any], words: Sequence[str]
) -> SweepRequest:
    folder = _folder(given["name"])
    workers = count_given(given, "workers") if "workers" in given else None
    if problem is None:
        idle = [f"--{key.replace('_', '-')}" for key in given if key not in ("name", "problem", "work", "workers")]
        if idle:
            raise ConfigError(without_effect(idle, "--work, which takes the plan of the sweep"))
        return SweepRequest(folder, None, workers, given.get("problem"))
    if "log.run_name" in given:
        raise ConfigError("--run-name: the names of the runs are made from their options; give the sweep a NAME")
    if "data.fold" in given:
        raise ConfigError("--fold: a sweep tests all folds; drop it, or use main.py")
    grid, search = (_by_option(parser, options, given.get(key, ()), key) for key in ("grid", "search"))
    _refuse_contradictions(given, options, grid, search)
    config = resolve(problem, given)
    if config.threads is None and "threads" not in given:  # the processes would use more threads than there are cores
        given = given | {"threads": "1"}
        config = resolve(problem, given)
    _require_data(config)
    if (start := config.train.init_from) is not None and run_folder(start) is None:
        raise ConfigError(f"--init-from {start}: there is no such run in checkpoints")
    seeds, trial_seeds = _seeds(given, config)
    n_settings = math.prod(text.count(",") + 1 for text in grid.values()) * (config.data.folds or 1)
    trials = count_given(given, "trials") if search else 0
    if (n_runs := n_settings * len(seeds) + trials * len(trial_seeds)) > MOST_RUNS:
        raise ConfigError(f"the sweep has {n_runs:,} runs, and at most {MOST_RUNS:,} are allowed: give fewer values")
    plan = Plan(
        problem=given.get("problem", "problem"),
        config=json.loads(json.dumps(asdict(config))),  # with lists, as in sweep.json
        grid=_grid(problem, options, given, grid),
        search={".".join(path): _space(problem, options[path], given, text) for path, text in search.items()},
        trials=trials,
        trial_seeds=trial_seeds,
        pruning="no_pruning" not in given,
        confirm=count_given(given, "confirm") if "confirm" in given else 0,
        seeds=seeds,
        command=shlex.join(["python", "sweep.py", *(word for word in words if word != "--plan")]),
    )
    return SweepRequest(folder, plan, workers, given.get("problem"), plan_only="plan" in given)


def _folder(name: str) -> Path:
    try:
        return Path("checkpoints") / check_name(name)
    except ValueError as error:
        raise ConfigError(f"{name[:100]}: the name of a sweep: {error}") from None


def _seeds(given: Mapping[str, Any], config: Config) -> tuple[list[int], list[int]]:
    """Two lists: the seeds of the settings (of a search: of the confirmed ones), and those of the trials."""
    is_search = "search" in given
    n_trial_seeds = (count_given(given, "trial_seeds") if "trial_seeds" in given else 1) if is_search else 0
    n_seeds = count_given(given, "seeds") if "seeds" in given else 1
    if "seed_list" in given or (is_search and "confirm" not in given):
        n_seeds = 0
    first = config.seed + n_trial_seeds
    if first + n_seeds > 2**64:
        raise ConfigError(f"--seed {config.seed}: must be below 2^64 with the seeds that follow it; lower it")
    trial_seeds = list(range(config.seed, first))
    if "seed_list" not in given:
        return list(range(first, first + n_seeds)), trial_seeds
    words = given["seed_list"].split(",") if isinstance(given["seed_list"], str) else [""]
    if not all(word.isascii() and word.isdecimal() and int(word[:30]) < 2**64 for word in words):
        raise ConfigError(
            f"--seed-list {_short(given['seed_list'])}: must be integers from 0 to 2^64 - 1, separated by commas"
        )
    seeds = list(dict.fromkeys(map(int, words)))
    if again := set(seeds) & set(trial_seeds):
        raise ConfigError(f"--seed-list: the trials of the search have the seed {again.pop()}: give other seeds")
    return seeds, trial_seeds


def _by_option(parser: Parser, options: Options, words: Sequence[str], key: str) -> dict[tuple[str, ...], str]:
    """The values of --grid or --search by the path of the option: words such as `lr=0.001,0.01`."""
    paths = {option.flag[2:]: path for path, option in options.items()}
    found: dict[tuple[str, ...], str] = {}
    for word in words:
        flag, equals, text = word.removeprefix("--").partition("=")
        if flag not in paths:
            parser.refuse(f"--{flag}", options)
        if not equals or not text.strip():
            shape = "low..high or v1,v2" if key == "search" else "v1,v2"
            raise ConfigError(f"--{key} {_short(word)}: has no values; write {flag}={shape}")
        if flag in ("seed", "run-name", "folds", "fold"):
            raise ConfigError(
                f"--{key} {_short(word)}: cannot be varied; --seeds and --seed-list set the seeds, --folds the folds"
            )
        if paths[flag] in found:
            raise ConfigError(f"--{flag} is given twice: give all its values at once")
        found[paths[flag]] = text
    return found


def _refuse_contradictions(
    given: Mapping[str, Any], options: Options, grid: Mapping[Any, str], search: Mapping[Any, str]
) -> None:
    """Raise ConfigError if flags contradict each other, or have no effect."""
    flags = {f"--{key.replace('_', '-')}" for key in given}
    if not flags & {"--seeds", "--seed-list", "--grid", "--search"} and "data.folds" not in given:
        raise ConfigError("nothing to vary: give --seeds, --seed-list, --grid, --search or, for a file, --folds")
    if search and "data.folds" in given:
        raise ConfigError(without_effect(["--folds"], "--search, which validates on a split"))
    if twice := [options[path].flag for path in {**grid, **search} if ".".join(path) in given]:
        raise ConfigError(f"{twice[0]} is given twice, as a flag and among the values to try: drop one")
    for flag, others in (
        ("--seed-list", {"--seeds"} | (set() if search else {"--seed"})),
        ("--search", {"--grid"}),
        ("--plan", {"--workers"}),
    ):
        if flag in flags and (idle := sorted(flags & others)):
            raise ConfigError(without_effect(idle[:1], flag))
    if not search:
        if idle := sorted(flags & {"--trials", "--trial-seeds", "--no-pruning", "--confirm"}):
            raise ConfigError(f"{idle[0]} does nothing without --search: drop it")
        return
    if "--trials" not in flags:
        raise ConfigError("--search needs --trials N: the number of settings to try")
    if "--confirm" not in flags and (idle := sorted(flags & {"--seeds", "--seed-list"})):
        raise ConfigError(f"{idle[0]} does nothing with --search: give --confirm, or --trial-seeds")
    if "--confirm" in flags and not flags & {"--seeds", "--seed-list"}:
        raise ConfigError("--confirm needs --seeds N: the number of new seeds")


def _grid(
    problem: Problem[Any],
    options: Options,
    given: Mapping[str, Any],
    grid: Mapping[tuple[str, ...], str],
    flag: str = "--grid",
) -> dict[str, list[Any]]:
    """The values of the options in `flag`, by their dotted path. All combinations are checked."""
    words = {path: [word.strip() for word in text.split(",")] for path, text in grid.items()}
    values: dict[str, list[Any]] = {".".join(path): [] for path in words}
    for combination in product(*words.values()):
        config = _with(problem, options, given, dict(zip(words, combination, strict=True)), flag)
        for path in words:
            value: Any = options[path].value_in(config)
            value = list(value) if isinstance(value, tuple) else value
            if value not in values[".".join(path)]:
                values[".".join(path)].append(value)
    return values


def _space(problem: Problem[Any], option: Option, given: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The values of an option in --search: `low`, `high` and `log`, or `choices`."""
    name, options = option.flag[2:], {option.path: option}
    low, dots, rest = text.partition("..")
    if not dots:
        return {"choices": _grid(problem, options, given, {option.path: text}, "--search")[".".join(option.path)]}
    high, colon, scale = rest.partition(":")
    if option.kind not in (int, float):
        raise ConfigError(f"--search {name}={_short(text)}: only a number has a range; write {name}=v1,v2")
    ends: list[Any] = [None, None]
    if rest[:1] != "." and scale == ("log" if colon else ""):
        configs = (_with(problem, options, given, {option.path: word}, "--search") for word in (low, high))
        ends = [option.value_in(config) for config in configs]
    if None in ends or ends[0] >= ends[1] or (colon and ends[0] <= 0):
        raise ConfigError(
            f"--search {name}={_short(text)}: not a range: write {name}=low..high with low below high, "
            f"{name}=low..high:log above 0, or {name}=v1,v2"
        )
    return {"low": ends[0], "high": ends[1], "log": bool(colon)}


def _with(
    problem: Problem[Any], options: Options, given: Mapping[str, Any], words: Mapping[tuple[str, ...], str], flag: str
) -> Config:
    """The config of the command line with other values of some options, as you type them."""
    changes: dict[str, Any] = {}
    for path, word in words.items():
        option = options[path]
        if option.kind is bool:
            if word not in ("true", "false"):
                raise ConfigError(f"{flag} {option.flag[2:]}={_short(word)}: must be true or false")
            changes[".".join(path)] = word == "true"
        else:
            changes[".".join(path)] = word.split() if option.is_list else word
    try:
        config = resolve(problem, dict(given) | changes)
        _require_data(config)
    except BadRequestError as error:
        raise ConfigError(f"{flag}: {error}") from None
    return config


def _require_data(config: Config) -> None:
    """Raise ConfigError if the data file is missing. Otherwise every run would fail."""
    file = config.data.file
    with suppress(OSError, ValueError):  # a name that no file can have
        if file is None or Path(file).is_file():
            return
    raise ConfigError(f"--data {_short(file)}: no such file in {Path.cwd()}: give its path")


def _short(text: Any) -> str:
    """What was given, for an error message."""
    return str(text) if len(str(text)) <= 60 else f"{str(text)[:57]}..."
