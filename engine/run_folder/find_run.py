# Machinery: keep, and skip at first.
"""Find the folder of a run, and the project that it belongs to."""

import os
from pathlib import Path

from engine.machine.foreign_files import is_file


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
