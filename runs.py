# Command: keep.
"""List the runs in checkpoints/, compare them, write a report, and plot their figures again.

python runs.py                                          one line for each run and for each sweep
python runs.py --filter status=finished --sort mae      the best runs first
python runs.py width                                    the runs of a sweep
python runs.py compare wide narrow-*                    means over seeds, differences, and validation curves
python runs.py report before after --output report.html
python runs.py plot wide                                plot the figures of a run again
"""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from engine.machine.errors import BadRequestError
from engine.machine.exit_code import ExitCode, quick_exit
from engine.machine.repository import provenance
from engine.many_runs.groups import Comparison, compare, curves, find_groups, known_names
from engine.many_runs.listing import COLUMNS, list_of_runs, mark_killed
from engine.many_runs.report import curves_image, now, require_figure_type, require_report, to_html, write
from engine.many_runs.report import to_text as comparison_to_text
from engine.options.flags import Parser
from engine.options.suggestions import suggest
from engine.run_folder.figures_of_run import plot_again
from engine.run_folder.find_run import find_runs, run_folder
from engine.run_folder.saved_run import Run, read_run
from utils import print_line

CHECKPOINTS = Path("checkpoints")


def runs_in(place: str) -> tuple[list[Run], bool]:
    """The runs in a folder, in a sweep or of a name, and whether to show one line for each sweep.

    Raises:
        BadRequestError: there is no such folder.
    """
    for folder in filter(None, (run_folder(place), run_folder(place, "sweep.json"))):
        run = read_run(folder)
        return ([run] if run else find_runs(folder)), False
    if os.path.isdir(place) or place == str(CHECKPOINTS):  # noqa: PTH112 - false for a name that is too long
        return find_runs(Path(place)), True
    meant = suggest(place, known_names(find_runs(CHECKPOINTS)), "`python runs.py` lists all runs")
    raise BadRequestError(f"{place[:100]}: there is no such folder, sweep or run; {meant}")


def list_runs(words: Sequence[str]) -> None:
    """Print the runs in a folder."""
    parser = Parser(
        prog="runs.py",
        description="List runs. Other commands: compare, report, plot; `runs.py compare --help` explains one.",
    )
    parser.add_argument(
        "place", metavar="FOLDER", nargs="?", help="a folder of runs, or a sweep (default: checkpoints)"
    )
    parser.add_argument(
        "--sort",
        metavar="COLUMN",
        help=f"{', '.join(COLUMNS)}, an option such as lr, or a metric such as val_loss (default: date)",
    )
    parser.add_argument(
        "--filter",
        metavar="COLUMN=VALUE",
        nargs="+",
        action="extend",
        help="only runs with these values, such as status=finished lr=0.01 name=wide*",
    )
    parser.add_argument(
        "--all", action="store_true", help="show the runs of sweeps, instead of one line for each sweep"
    )
    given = vars(parser.parse_args(words))
    runs, by_sweep = runs_in(given.get("place", str(CHECKPOINTS)))
    if not runs:
        print_line(f"there are no runs in {given.get('place', CHECKPOINTS)}")
        return
    print_line(
        list_of_runs(
            mark_killed(runs),
            filters=given.get("filter", []),
            column=given.get("sort", "date"),
            by_sweep=by_sweep and "all" not in given,
        )
    )


def read_comparison(given: dict[str, list[str]]) -> Comparison:
    """Compare the runs that a command line names."""
    return compare(find_groups(given["runs"]), given.get("metrics", []))


def add_runs(parser: Parser) -> None:
    """Add the arguments that select what is compared."""
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="runs or sweeps, by name or folder; the first is the reference; runs that differ in the seed are a group",
    )
    parser.add_argument(
        "--metrics", metavar="NAME", nargs="+", action="extend", help="metrics to compare (default: those of the test)"
    )


def compare_runs(words: Sequence[str]) -> None:
    """Print a comparison, and plot the validation curves."""
    parser = Parser(
        prog="runs.py compare", description="Compare runs or sweeps: means over seeds, differences, validation curves."
    )
    add_runs(parser)
    parser.add_argument(
        "--figure",
        metavar="FILE",
        help="where to plot the validation curves: .png, .svg or .pdf (default: checkpoints/comparison.png)",
    )
    given = vars(parser.parse_args(words))
    path = Path(given.get("figure", CHECKPOINTS / "comparison.png"))
    require_figure_type(path)
    comparison = read_comparison(given)
    print_line(comparison_to_text(comparison))
    if curves(comparison.groups):
        write(path, curves_image(comparison.groups, path.suffix[1:].lower()))
        print_line(f"\n{path}")


def report_runs(words: Sequence[str]) -> None:
    """Write a comparison as a page of HTML."""
    parser = Parser(
        prog="runs.py report", description="Compare runs or sweeps on one page of HTML, which needs no other file."
    )
    add_runs(parser)
    parser.add_argument(
        "--output", metavar="FILE", required=True, help="the .html file to write; an earlier report is replaced"
    )
    given = vars(parser.parse_args(words))
    path = Path(given["output"])
    require_report(path)
    comparison = read_comparison(given)
    origin = provenance()
    commit = f"{origin['git_commit'] or 'unknown'}{', with changes' if origin['git_dirty'] else ''}"
    facts = {"date": now(), "command": f"python runs.py report {shlex.join(words)}", "commit": commit}
    names = ", ".join(given["runs"][:3]) + (f" and {len(given['runs']) - 3} more" if len(given["runs"]) > 3 else "")
    write(path, to_html(comparison, facts, f"Comparison of {names}").encode(errors="backslashreplace"))
    print_line(str(path))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "compare": compare_runs,
    "report": report_runs,
    "plot": partial(plot_again, prog="runs.py plot"),
}


def main() -> None:
    """Run the command line, and end the program with its exit code."""
    with ExitCode() as end:
        end.prepare(CHECKPOINTS, lambda: "nothing was written")
        command = COMMANDS.get(sys.argv[1] if sys.argv[1:] else "")
        if command:
            command(sys.argv[2:])
        else:
            list_runs(sys.argv[1:])
    quick_exit(end.code)


if __name__ == "__main__":
    main()
