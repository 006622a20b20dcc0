# Machinery: keep, and skip at first.
"""The command line of evaluate.py: which runs are evaluated, on which data, and the name of the result."""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from engine.interface.base_config import (
    Config,
    load_config,
    not_from_run,
    options_with,
    replace_unchecked,
    require_file,
)
from engine.interface.base_problem import Problem
from engine.many_runs.comparison import Member, unfinished
from engine.many_runs.summary import groups_of, trials_of
from engine.many_runs.sweeps import load_sweep
from engine.options.fields import ConfigError, Option, check_name, folder_name, merge, options_of, validate
from engine.options.flags import Parser, add_flags, add_workers, flags_given, without_effect, workers_given
from engine.options.scopes import SCOPES
from engine.run_folder.find_run import run_folder
from engine.run_folder.saved_run import problem_of

# The help texts of options that mean something else in training.
DESCRIPTIONS = {
    "--num-test": "examples to evaluate",
    "--data": "evaluate all examples in this .npz or .csv file instead of generating some",
    "--seed": "random seed of the generated data",
    "--device": "device of the network, such as a GPU; auto: the first available one of cuda, mps, cpu",
    "--threads": "CPU threads; none: all cores",
}


class Request(NamedTuple):
    """What a command line requests."""

    folder: Path  # of the run
    problem: Problem[Any]
    config: Config  # that of the run, with the data, seed, device and threads of the evaluation
    name: str  # of the files with the result
    options: str  # the generator options on the command line
    defaults: str  # the other generator options
    overwrite: bool
    n_workers: int = 1  # that call a slow generator

    @property
    def subject(self) -> str:
        """What an error about the data names: the file or the options on the command line."""
        return self.config.data.file or self.options or "the data without options"


class SweepRequest(NamedTuple):
    """What a command line requests for a sweep."""

    folder: Path
    groups: dict[str, dict[Member, Request]]  # the finished runs: by the label of their setting, and by their seed
    left_out: str  # the other runs, counted by status
    is_search: bool  # the settings are the trials of a search, of which none is a reference
    name: str  # of all files with results
    overwrite: bool


def evaluation_options(config_type: type[Config]) -> dict[tuple[str, ...], Option]:
    """The options that an evaluation can change."""
    chosen = {}
    for path, option in options_of(config_type).items():
        if SCOPES[option.scope].in_evaluation:
            info = copy.copy(option.info)
            info.description = DESCRIPTIONS.get(option.flag, info.description)
            chosen[path] = option._replace(info=info)
    return chosen


def build_parser(problem: Problem[Any] | None = None) -> Parser:
    """Create the parser of evaluate.py for a run of the problem. Without a problem, it has the options of all runs."""
    parser = Parser(
        prog="evaluate.py",
        usage="evaluate.py RUN|SWEEP [options]",
        description="Evaluate the network of a saved run on new data, or all networks of a sweep on the same new data. "
        "The results are written to the folders of the runs and of the sweep.",
        epilog="`evaluate.py RUN --help` also lists the options of the generator of a run." if problem is None else "",
    )
    result = parser.add_argument_group("evaluation")
    result.add_argument("run", metavar="RUN", help="the name of a run or a sweep in checkpoints, or its folder")
    result.add_argument(
        "--name", help="name of the result (default: the name of the --data file, or what is special about the data)"
    )
    result.add_argument("--overwrite", action="store_true", help="replace an earlier result of the same name")
    result.add_argument("--problem", metavar="MODULE", help="the module of the problem, if it is in another folder")
    add_workers(result, problem)
    config_type = Config if problem is None else problem.config_type
    options = evaluation_options(config_type)
    defaults = dict.fromkeys((option.flag for option in options.values()), "that of the run")
    defaults |= {option.flag: option.default for option in not_from_run(config_type).values()}
    defaults |= {"--seed": "that of the run plus one; of a sweep, the largest one plus one", "--data": "none"}
    add_flags(parser, options, "seed and machine", defaults)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Request:
    """Parse and check a command line. An error ends the program with one line on stderr and exit code 2.

    Raises:
        RunError: the problem of the run cannot be loaded.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if (found := find_run(words, build_parser)) is not None:
        parser, folder, problem, given = found
        try:
            return resolve(folder, problem, given)
        except ConfigError as error:
            parser.error(str(error))
    return refuse_name(words, build_parser())


def refuse_name(words: Sequence[str], parser: Parser) -> NoReturn:
    """End the program, because a command line does not name a run or a sweep."""
    word = parser.parse_known_args(words)[0].run
    parser.error(f"{word[:100]}: not a run: give the name of a run or a sweep in checkpoints, or its folder")


def parse_sweep(argv: Sequence[str] | None = None) -> SweepRequest | None:
    """Parse and check a command line that names a sweep. The result is None if it does not. Errors: as in parse_args.

    Raises:
        RunError: sweep.json is damaged, or the problem of the sweep cannot be loaded.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if (found := find_sweep(words, build_parser)) is None:
        return None
    parser, folder, problem, given = found
    try:
        return resolve_sweep(folder, problem, given)
    except ConfigError as error:
        parser.error(str(error))


class Found(NamedTuple):
    """A run or a sweep that a command line names, and the result of its parser."""

    parser: Parser
    folder: Path
    problem: Problem[Any]
    given: dict[str, Any]


def find_run(words: Sequence[str], build: Callable[[Problem[Any]], Parser]) -> Found | None:
    """Parse a command line that names a run with the parser for its problem. The result is None if it does not."""
    return _find(words, build, run_folder, problem_of)


def find_sweep(words: Sequence[str], build: Callable[[Problem[Any]], Parser]) -> Found | None:
    """Parse a command line that names a sweep with the parser for its problem. The result is None if it does not."""
    find = partial(run_folder, file="sweep.json")
    return _find(words, build, find, lambda folder, given: load_sweep(folder, given).problem)


def _find(
    words: Sequence[str],
    build: Callable[[Problem[Any]], Parser],
    find: Callable[[str], Path | None],
    load: Callable[[Path, str | None], Problem[Any]],
) -> Found | None:
    first = Parser(add_help=False)
    first.add_argument("--problem", default=None)
    named = first.parse_known_args(words)[0].problem
    for folder in filter(None, (find(word) for word in words if not word.startswith("-"))):
        problem = load(folder, named)
        parser = build(problem)
        namespace, unknown = parser.parse_known_args(words)
        if find(namespace.run) != folder:  # this word is the value of an option
            continue
        if unknown:
            parser.refuse(unknown[0], evaluation_options(problem.config_type))
        return Found(parser, folder, problem, vars(namespace))
    return None


def resolve_sweep(folder: Path, problem: Problem[Any], given: dict[str, Any]) -> SweepRequest:
    """The request of a command line for a sweep."""
    sweep = load_sweep(folder, given.get("problem"))
    trials = trials_of(sweep)
    sweep.given_up |= {each.folder.name for runs in trials.values() for each in runs if each.status == "failed"}
    settings = groups_of(sweep)
    is_search = not any(run.is_finished for runs in settings.values() for run in runs) and bool(trials)
    groups, seeds = (trials, sweep.plan.trial_seeds) if is_search else (settings, sweep.plan.seeds)
    started = [run for runs in groups.values() for run in runs]
    n_open = len(groups) * len(seeds) * len(sweep.plan.folds) - len(started)
    counts = [unfinished(started), f"{n_open} not started" if n_open else ""]
    left_out = ", ".join(filter(None, [*counts, f"{len(trials)} trials" if trials and not is_search else ""]))
    seed = (max([*sweep.plan.seeds, *sweep.plan.trial_seeds]) + 1) % 2**64  # no network was trained with it
    requests = {
        label: {run.member: resolve(run.folder, problem, given, seed) for run in runs if run.is_finished}
        for label, runs in groups.items()
    }
    names = [request.name.split("-") for by_seed in requests.values() for request in by_seed.values()]
    if not names:
        raise ConfigError(f"{folder}: none of its runs has finished{f' ({left_out})' if left_out else ''}")
    name = "-".join(word for word in names[0] if all(word in words for words in names))
    return SweepRequest(
        folder,
        {
            label: {k: r._replace(name=name) for k, r in by_seed.items()}
            for label, by_seed in requests.items()
            if by_seed
        },
        left_out,
        is_search,
        name,
        "overwrite" in given,
    )


def resolve(folder: Path, problem: Problem[Any], given: dict[str, Any], seed: int | None = None) -> Request:
    """The request of a command line for a run.

    Args:
        seed: of generated data; by default, that of the run plus one.
    """
    options = evaluation_options(problem.config_type)
    generated = [option for option in options.values() if option.scope == "generator"]
    earlier = load_config(problem.config_type, folder / "config.json")
    flags = flags_given(given, options)
    used = [option for path, option in options.items() if ".".join(path) in given]
    file = flags.get("data", {}).get("file")
    require_file(problem.config_type, flags, file)
    others = [each.flag for each in used if each.scope not in ("place", "reader", "machine")]
    if file is not None and others:
        raise ConfigError(without_effect(others, "--data, of which all examples are used"))
    if file is not None and "workers" in given:
        raise ConfigError(without_effect(["--workers"], "--data"))
    usual = _without_flags(problem, earlier)
    if seed is not None and file is None:
        usual["seed"] = seed
    values = merge(usual, flags)
    checked = validate(problem.config_type, values, source=str(folder / "config.json"), flags=flags)
    config = replace_unchecked(earlier, **{path[0]: getattr(checked, path[0]) for path in options})
    special = usual if seed is None else {**usual, "seed": None}  # the name of a result for a sweep has its seed
    name = str(given.get("name", default_name(problem, config, special)))
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"--name {name}: {error}") from None
    shown: dict[bool, list[str]] = {True: [], False: []}
    for each in generated:
        shown[each in used].append(each.given(each.value_in(config)))
    used_flags, other_flags = " ".join(shown[True]), " ".join(shown[False])
    n_workers = workers_given(problem, given)
    return Request(folder, problem, config, name, used_flags, other_flags, "overwrite" in given, n_workers)


def _without_flags(problem: Problem[Any], earlier: Config) -> dict[str, Any]:
    """The values of an evaluation without flags.

    Options that do not come from the run have their defaults, and so have those of training and of the network, because
    they do not matter.
    """
    usual = asdict(problem.config_type())
    automatic = {path[-1]: option.info.default for path, option in not_from_run(problem.config_type).items()}
    sizes = {"num_train": 1, "num_val": 1, "num_test": earlier.data.num_test or usual["data"]["num_test"] or 1}
    data = merge(asdict(earlier.data), {"file": None, **automatic, **sizes})
    values = {"data": data, "seed": (earlier.seed + 1) % 2**64, "device": earlier.device, "threads": earlier.threads}
    return merge(usual, {**values, "train": {"batch_size": 1}})


def default_name(problem: Problem[Any], config: Config, usual: dict[str, Any]) -> str:
    """The name of a result without --name: the name of the file, or what is special about the data, as in `L32-seed7`.

    Special are the words of the problem's `data_label`, and other options that differ from an evaluation without flags.
    """
    if config.data.file is not None:
        return folder_name(Path(config.data.file).stem, 64)
    words = [problem.data_label(config)]
    for path, option in options_with(type(config), "generator", "test_size", "seed").items():
        now = option.value_in(config)
        before: Any = reduce(dict.__getitem__, path, usual)
        if now == before:
            continue
        data = config.data if len(path) == 1 else replace_unchecked(config.data, **{path[-1]: before})
        if problem.data_label(replace_unchecked(config, data=data)) == words[0]:  # the label does not show the option
            words.append(option.typed(now).lstrip("-") if option.kind is bool else option.flag[2:] + option.typed(now))
    return folder_name("-".join(words), 64)
