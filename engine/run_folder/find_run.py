# Machinery: keep, and skip at first.
"""Find a run: its folder, what its run_info.json says, the project that it belongs to, and its problem."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.interface.base_problem import Problem
from engine.interface.find_problem import load_problem
from engine.machine.errors import UnusableFileError


def run_folder(run: str, file: str = "config.json", root: Path = Path()) -> Path | None:
    """Find the folder of a run from its name (`wide`, or `width/seed42` in a sweep) or its path.

    The result is None if there is no such folder with the file `file`, which a sweep has instead: sweep.json. Names are
    those of folders in `root`/checkpoints. A relative path is relative to `root`.
    """
    is_path = "/" in run or os.sep in run
    for folder in [*([root / run] if is_path else []), root / "checkpoints" / run]:
        with suppress(OSError):  # for example, because the name is too long
            if (folder / file).is_file():
                return folder
    return None


def project_folder(run: Path) -> Path:
    """The folder that contains the folder `checkpoints` of a run, and where the run was started.

    A relative path of --data in config.json is relative to it. The whole folder can therefore be moved. The folder of a
    run in a sweep is in the folder of the sweep, which is in `checkpoints`.
    """
    place = Path(os.path.abspath(run)).parent  # noqa: PTH100 - resolve() would follow links, as to a larger disk
    return place.parent.parent if (place / "sweep.json").exists() else place.parent


def read_info(folder: Path) -> dict[str, Any]:
    """Read the run_info.json of a run. The result is empty if there is no such file.

    Raises:
        UnusableFileError: the file is damaged.
    """
    path = folder / "run_info.json"
    try:
        return dict(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, TypeError) as error:
        raise UnusableFileError(f"{path} is damaged ({error}): remove it to continue without it") from None


def problem_of(folder: Path) -> Problem[Any]:
    """Load the problem of a run from the module that its run_info.json names.

    Raises:
        RunError: run_info.json is damaged, or the module cannot be imported.
    """
    return load_problem(str(read_info(folder).get("problem", "problem")))  # the first version did not write the name
