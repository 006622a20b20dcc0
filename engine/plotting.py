"""Plot all figures of a run from its files. This is done at the end of the run, and can be repeated.

python -m engine.plotting checkpoints/myrun
"""

import io
import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from engine.cli import ExitCode, run_folder
from engine.config import Config, load_config
from engine.distributed import quick_exit
from engine.errors import BadRequestError, ProblemError, UnusableFileError
from engine.figures import training_curves
from engine.flags import Parser
from engine.loading import problem_of
from engine.problem import Problem
from utils import print_line


def plot_run(problem: Problem[Any], config: Config, folder: Path) -> list[Path]:
    """Plot the figures of a finished run from its files. Write them to its folder `figures`, and return their paths."""
    rows = json.loads((folder / "epoch_metrics.json").read_text())
    results = json.loads((folder / "results.json").read_text())
    with np.load(io.BytesIO((folder / "predictions.npz").read_bytes()), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    figures = {"training_curves": training_curves(rows, results["best_epoch"], problem.loss_name(config))}
    own: Any = problem.figures(config, arrays)
    if not isinstance(own, Mapping):
        raise ProblemError(f"figures returned {type(own).__name__}: return a dictionary of figures by name")
    figures |= own
    (folder / "figures").mkdir(exist_ok=True)
    paths = [folder / "figures" / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=120)
    return paths


def plot_saved_run(folder: Path) -> list[Path]:
    """Plot the figures of a finished run again.

    Raises:
        BadRequestError: the folder does not contain a finished run.
        UnusableFileError: a file of the run is damaged.
    """
    if not (folder / "results.json").is_file():
        raise BadRequestError(f"{folder} is not the folder of a finished run: it has no results.json")
    try:
        problem = problem_of(folder)
        return plot_run(problem, load_config(problem.config_type, folder / "config.json"), folder)
    except (OSError, BadRequestError) as error:
        raise BadRequestError(f"{folder} is not the folder of a finished run: {error}") from None
    except (ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise UnusableFileError(f"{folder} contains a damaged file ({error}): run it again with --overwrite") from None


def main() -> None:
    """Plot the figures of the run that the command line names again, and end the program."""
    with ExitCode() as end:
        parser = Parser(
            prog=Path(sys.argv[0]).name, description="Plot the figures of a finished run again, into its folder."
        )
        parser.add_argument("run", metavar="RUN", help="name or folder of the run")
        run = parser.parse_args().run
        print_line("\n".join(map(str, plot_saved_run(run_folder(run) or Path(run)))))
    quick_exit(end.code)


if __name__ == "__main__":
    main()
