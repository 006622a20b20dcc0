# Machinery: keep, and skip at first.
"""Find the folders of runs, and the project that they belong to."""

import os
import re
from pathlib import Path
from typing import Any

from engine.machine.foreign_files import is_file
from engine.run_folder.saved_run import Run, read_run


def run_folder(run: str, file: str = "config.json", root: Path = Path()) -> Path | None:
    """Find the folder of a run from its name (`wide`, or `width/seed42` in a sweep) or its path.

    The result is None if there is no such folder with the file `file`, which a sweep has instead: sweep.json. Names are
    those of folders in `root`/checkpoints. A relative path is relative to `root`.
    """
    is_path = "/" in run or os.sep in run
    for folder in [*([root / run] if is_path else []), root / "checkpoints" / run]:
        if is_file(folder / file):
            return folder
    return None


def project_folder(run: Path) -> Path:
    """The folder that contains the folder `checkpoints` of a run, and where the run was started.

    A relative path of --data in config.json is relative to it. The whole folder can therefore be moved. The folder of a
    run in a sweep is in the folder of the sweep, which is in `checkpoints`.
    """
    place = Path(os.path.abspath(run)).parent  # noqa: PTH100 - resolve() would follow links, as to a larger disk
    return place.parent.parent if is_file(place / "sweep.json") else place.parent


def find_runs(root: Path) -> list[Run]:
    """All runs in a folder and in the sweeps in it, by name. The folder may itself be a sweep."""
    runs, others = _runs_in(root)
    if not is_file(root / "sweep.json"):  # a sweep contains no others, except through links, which can form a loop
        runs += [run for each in others if is_file(each / "sweep.json") for run in _runs_in(each)[0]]
    return sorted(runs, key=lambda run: _in_order(run.name))


def _runs_in(root: Path) -> tuple[list[Run], list[Path]]:
    """The runs in a folder, and its other folders."""
    try:
        folders = [Path(entry.path) for entry in os.scandir(root) if os.path.isdir(entry.path)]  # noqa: PTH112
    except OSError:
        return [], []
    found = {folder: read_run(folder) for folder in folders}
    return [run for run in found.values() if run], [folder for folder, run in found.items() if not run]


def _in_order(name: str) -> list[Any]:
    """A key that sorts numbers in names by their values: `lr0.1-seed9` comes before `lr0.1-seed10`."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", name)  # text, number, text, ...
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]
