# Machinery: keep, and skip at first.
"""Plot all figures of a run from its files. This is done at the end of the run, and `runs.py plot RUN` repeats it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.interface.base_config import Config, load_config
from engine.interface.base_problem import Problem
from engine.machine.atomic_files import write_atomic
from engine.machine.errors import BadRequestError, UnusableFileError
from engine.machine.exit_code import ExitCode, quick_exit
from engine.machine.terminal import one_line, print_line, warn
from engine.options.flags import Parser
from engine.run_folder.find_run import run_folder
from engine.run_folder.saved_run import problem_of, read_run

Draw = Callable[[Callable[[], Any]], dict[str, bytes]]


def draw(make: Callable[[], Any], file_type: str = "png") -> dict[str, bytes]:
    """The images of the figures that `make` returns: see generic_figures.draw."""
    # Loads matplotlib, which fails if the user's matplotlibrc cannot be read.
    from engine.interface.generic_figures import draw

    return draw(make, file_type)


def draw_if_possible(make: Callable[[], Any], hint: str = "") -> dict[str, bytes]:
    """Like `draw`, but an error of any type only prints a warning, because the numbers do not depend on figures."""
    try:
        return draw(make)
    except Exception as error:
        warn(f"warning: a figure is missing ({one_line(' '.join(repr(error).split()))[:300]}){hint}")
        return {}


def plot_run(problem: Problem[Any], config: Config, folder: Path, draw: Draw = draw) -> list[Path]:
    """Plot the figures of a finished run from its files. Write them to its folder `figures`, and return their paths.

    Raises:
        BadRequestError: the folder does not contain the files of a finished run.
        UnusableFileError: one of these files is damaged.
    """
    run = read_run(folder)
    if run is None or not (folder / "results.json").is_file():
        raise BadRequestError(f"{folder} is not the folder of a finished run: it has no results.json")
    rows, results = run.rows(), run.results
    if not rows or results is None:
        raise UnusableFileError(f"{folder} contains a damaged file: run it again with --overwrite")
    arrays = run.predictions()

    def curves() -> Any:
        from engine.interface.generic_figures import training_curves

        return {"training_curves": training_curves(rows, results["best_epoch"], problem.loss_name(config))}

    images = draw(curves) | draw(lambda: problem.figures(config, arrays))
    (folder / "figures").mkdir(exist_ok=True)
    for name, image in images.items():
        write_atomic(folder / "figures" / f"{name}.png", image)
    return [folder / "figures" / f"{name}.png" for name in images]


def plot_saved_run(folder: Path) -> list[Path]:
    """Plot the figures of a finished run again.

    Raises:
        BadRequestError: the folder does not contain a finished run.
        UnusableFileError: a file of the run is damaged.
    """
    if not (folder / "results.json").is_file():
        raise BadRequestError(f"{folder} is not the folder of a finished run: it has no results.json")
    problem = problem_of(folder)
    try:
        config = load_config(problem.config_type, folder / "config.json")
    except BadRequestError as error:
        raise BadRequestError(f"{folder} is not the folder of a finished run: {error}") from None
    return plot_run(problem, config, folder)


def plot_again(words: Sequence[str], prog: str) -> None:
    """Plot again the figures of the run that a command line names, and print their paths."""
    parser = Parser(prog=prog, description="Plot the figures of a finished run again, into its folder.")
    parser.add_argument("run", metavar="RUN", help="name or folder of the run")
    run = parser.parse_args(words).run
    print_line("\n".join(map(str, plot_saved_run(run_folder(run) or Path(run)))))


def main() -> None:
    """Run the command line of a file that only plots, such as plots.py, and end the program with its exit code."""
    with ExitCode() as end:
        plot_again(sys.argv[1:], Path(sys.argv[0]).name)
    quick_exit(end.code)
