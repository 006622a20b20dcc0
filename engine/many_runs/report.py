# Machinery: keep, and skip at first.
"""A comparison of runs as text, as figures, and as one self-contained page of HTML."""

import json
from datetime import datetime
from html import escape
from pathlib import Path

from engine.machine.atomic_files import write_atomic
from engine.machine.errors import BadRequestError
from engine.machine.foreign_files import read_bytes
from engine.many_runs.comparison import Table, estimates, to_markdown
from engine.many_runs.groups import Comparison, Groups, curves, most_interesting
from engine.many_runs.listing import line_of_run, without_common
from engine.run_folder.figures_of_run import draw

FIGURE_TYPES = (".png", ".svg", ".pdf")
MARK = '<meta name="generator" content="runs.py">'  # identifies a file as a report

N_COLOURS = 7  # those of generic_figures.py, which loads matplotlib
CAPTION = "If there are many settings, the first one and the best ones have a colour."
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1100px; margin: 0 auto;
       padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
h1, p, code { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.25rem 0.8rem 0.25rem 0; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { border-bottom: 2px solid #888; }
svg { width: 100%; min-width: 500px; max-width: 720px; height: auto; margin-top: 1rem; }
pre { background: #f5f5f5; padding: 0.6rem; overflow-x: auto; font-size: 0.8rem; }
dt { float: left; clear: left; width: 6rem; color: #666; } dd { margin: 0 0 0 6rem; overflow-wrap: anywhere; }
"""


def to_text(comparison: Comparison) -> str:
    """A comparison for the terminal."""
    shown = [*([comparison.origin] if len(comparison.origin.columns) > 1 else []), *comparison.tables]
    return "\n\n".join([*map(to_markdown, shown), *comparison.notes])


def curves_image(groups: Groups, file_type: str) -> bytes:
    """The figure of the validation curves."""
    from engine.interface.generic_figures import COLOURS, validation_curves

    lines = curves(groups)
    shown = [name for name in most_interesting(groups, len(COLOURS)) if name in lines]
    return draw(lambda: {"curves": validation_curves(lines, shown)}, file_type)["curves"]


def require_figure_type(path: Path) -> None:
    """Raise BadRequestError if the name of a figure does not end with a known type."""
    if path.suffix.lower() not in FIGURE_TYPES:
        raise BadRequestError(f"--figure {path}: the name has to end with {', '.join(FIGURE_TYPES[:-1])} or .pdf")


def write(path: Path, content: bytes) -> None:
    """Write a file, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)


def require_report(path: Path) -> None:
    """Raise BadRequestError if there is a file that is not a report, or a folder, at the path of a report."""
    if path.is_dir() or (path.exists() and MARK.encode() not in read_bytes(path)[:1000]):
        raise BadRequestError(f"--output {path}: exists and is not a report of runs.py: choose another name")


def to_html(comparison: Comparison, facts: dict[str, str], title: str) -> str:
    """A comparison as one page without references to other files. `facts` are its date, command and so on."""
    groups = comparison.groups
    parts = [f"<h1>{escape(title)}</h1>", "<dl>"]
    parts += [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()]
    parts.append("</dl>")
    estimated, *compared = comparison.tables
    if len(comparison.origin.columns) > 1:
        parts += ["<h2>What differs</h2>", _table(comparison.origin)]
    parts += ["<h2>Means over seeds</h2>", _table(estimated), _svg_of_metric(groups)]
    for table in compared:
        parts += [f"<h2>Differences to {escape(table.columns[0].removeprefix('minus '))}</h2>", _table(table)]
    parts += [f"<p>{escape(note)}</p>" for note in comparison.notes]
    parts += ["<h2>Validation curves</h2>", _svg(curves_image(groups, "svg"))] if curves(groups) else []
    parts += [f"<p>{CAPTION}</p>"] if len(groups) > N_COLOURS else []
    parts += ["<h2>Runs</h2>", _table(_runs(groups)), "<h2>Configs</h2>"]
    for name, runs in groups.items():
        config = escape(json.dumps(runs[0].setting, indent=2))
        parts.append(f"<details><summary>{escape(name)}</summary><pre>{config}</pre></details>")
    head = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{MARK}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(parts) + "\n</body>\n</html>\n"


def _table(table: Table) -> str:
    """A table that can be scrolled if it is wider than the page."""
    rows = ["".join(f"<th>{escape(column)}</th>" for column in table.columns)]
    rows += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in table.rows]
    return '<div class="wide"><table>\n' + "\n".join(f"<tr>{row}</tr>" for row in rows) + "\n</table></div>"


def _runs(groups: Groups) -> Table:
    columns = ("name", "date", "status", "seed", "epochs", "metric", "changed")
    titles = ("run", "date (UTC)", "status", "seed", "epochs", "main metric", "differs from the default")
    lines = [line_of_run(run) for runs in groups.values() for run in runs]
    without_common(lines)
    return Table(titles, [tuple(line.cells[name] for name in columns) for line in lines])


def _svg_of_metric(groups: Groups) -> str:
    """The figure of the main metric of each group."""
    from engine.interface.generic_figures import estimates_by_group

    metric = f"test_{next(r.main_metric[0] for runs in groups.values() for r in runs if r.is_finished)}"
    found = {name: estimates(runs).get(metric) for name, runs in groups.items()}
    points = {name: (each.mean, each.standard_error) for name, each in found.items() if each is not None}
    return _svg(draw(lambda: {"metric": estimates_by_group(points, metric)}, "svg")["metric"]) if points else ""


def _svg(image: bytes) -> str:
    """An SVG file as an element of a page."""
    text = image.decode()
    return f'<div class="wide">{text[text.index("<svg") :]}</div>'


def now() -> str:
    """The date and time of a report."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
