# Machinery: keep, and skip at first.
"""Plot all figures of a run from its files. This is done at the end of the run, and `runs.py plot RUN` repeats it."""

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.interface.base_config import Config, load_config
from engine.interface.base_problem import Problem
from engine.machine.atomic_files import inside, write_atomic
from engine.machine.errors import BadRequestError, RunError, UnusableFileError
from engine.machine.exit_code import ExitCode, quick_exit
from engine.machine.foreign_files import is_file
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
    if run is None or not is_file(folder / "results.json"):
        raise BadRequestError(f"{folder} is not the folder of a finished run: it has no results.json")
    rows, results = run.rows(), run.results
    if not rows or results is None:
        raise UnusableFileError(f"{folder} contains a damaged file: run it again with --overwrite")
    arrays = run.predictions()

    def curves() -> Any:
        from engine.interface.generic_figures import training_curves

        return {"training_curves": training_curves(rows, results["best_epoch"], problem.loss_name(config))}

    images = draw(curves) | draw(lambda: problem.figures(config, arrays))
    paths = [inside(folder, f"figures/{name}.png") for name in images]
    for path, image in zip(paths, images.values(), strict=True):
        write_atomic(path, image)
    return paths


def plot_saved_run(folder: Path, given: str | None = None) -> list[Path]:
    """Plot the figures of a finished run again.

    Args:
        given: the name of the module of its problem, as the user gives it: see load_saved_problem.

    Raises:
        BadRequestError: the folder does not contain a finished run, or its problem has to be given.
        UnusableFileError: a file of the run is damaged, or does not suit the figures of the problem.
    """

    def draw_or_explain(make: Callable[[], Any]) -> dict[str, bytes]:
        try:
            return draw(make)
        except (RunError, MemoryError):
            raise
        except Exception as error:  # of any type, since the files, and the code of the figures, can have any fault
            own = [each for each in traceback.extract_tb(error.__traceback__) if "site-packages" not in each.filename]
            where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
            reason = f"{where}: {' '.join(repr(error).split())[:300]}"
            raise UnusableFileError(f"the files of {folder} do not suit the figures ({reason})") from error

    if not is_file(folder / "results.json"):
        raise BadRequestError(f"{folder} is not the folder of a finished run: it has no results.json")
    problem = problem_of(folder, given)
    try:
        config = load_config(problem.config_type, folder / "config.json")
    except BadRequestError as error:
        raise BadRequestError(f"{folder} is not the folder of a finished run: {error}") from None
    return plot_run(problem, config, folder, draw_or_explain)


def plot_again(words: Sequence[str], prog: str) -> None:
    """Plot again the figures of the run that a command line names, and print their paths."""
    parser = Parser(prog=prog, description="Plot the figures of a finished run again, into its folder.")
    parser.add_argument("run", metavar="RUN", help="name or folder of the run")
    parser.add_argument("--problem", metavar="MODULE", help="the module of the problem, if it is in another folder")
    given = vars(parser.parse_args(words))
    folder = run_folder(given["run"]) or Path(given["run"])
    print_line("\n".join(map(str, plot_saved_run(folder, given.get("problem")))))


def main() -> None:
    """Run the command line of a file that only plots, such as plots.py, and end the program with its exit code."""
    with ExitCode() as end:
        plot_again(sys.argv[1:], Path(sys.argv[0]).name)
    quick_exit(end.code)
