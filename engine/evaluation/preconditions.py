# Machinery: keep, and skip at first.
"""What is checked before a saved run is evaluated: its network, its status, and results that exist already."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.evaluation.evaluation_request import Request, SweepRequest
from engine.interface.base_config import Config, options_with, to_dict
from engine.machine.atomic_files import inside
from engine.machine.errors import BadRequestError
from engine.machine.foreign_files import MOST_BYTES_OF_LIST
from engine.machine.terminal import warn
from engine.run_folder.saved_run import read_or_empty, read_run

if TYPE_CHECKING:
    from engine.run_folder.checkpoints import SavedNetwork


def require_writable(folder: Path) -> None:
    """Raise an error if the result of an evaluation cannot be written to the folder of a run or of a sweep.

    Raises:
        PermissionError: the folder is protected, or its place is taken by a file.
        UnusableFileError: it is a link.
    """
    place = inside(folder, "evaluations")
    if not os.access(place if place.exists() else folder, os.W_OK) or place.is_file():
        raise PermissionError(errno.EACCES, "cannot be written to", str(place))


def described(config: Config) -> dict[str, Any]:
    """The values that identify the data of an evaluation: its seed, and the options of its data."""
    kept = options_with(type(config), "generator", "reader", "test_size", "place")
    return {
        "seed": config.seed,
        "data": {name: value for name, value in to_dict(config)["data"].items() if ("data", name) in kept},
    }


def require_no_other(request: Request | SweepRequest, identity: Mapping[str, Any]) -> None:
    """Raise BadRequestError if there is a result of the same name with another identity, unless it may be replaced."""
    path = request.folder / "evaluations" / f"{request.name}.json"
    if request.overwrite or not path.exists():
        return
    earlier = read_or_empty(path, dict, most=MOST_BYTES_OF_LIST)  # empty if it is not a complete result
    if earlier and any(earlier.get(key) != value for key, value in json.loads(json.dumps(identity)).items()):
        raise BadRequestError(
            f"{path} has the result of another evaluation: --overwrite replaces it, another --name keeps it"
        )


STATES = {"running": "has not finished", "interrupted": "was interrupted", "diverged": "diverged", "failed": "failed"}


def status_of(folder: Path, saved: "SavedNetwork") -> str | None:
    """The status of a run, if it is known. Warn if training has not finished."""
    run = read_run(folder)
    status = None if run is None else run.info.get("status")
    if run is not None and status in STATES:
        warn(
            f"warning: {folder} {STATES[status]} after epoch {run.epochs or saved.epoch} of "
            f"{saved.config.train.epochs}: evaluating the best epoch so far, epoch {saved.epoch}"
        )
    return status


def warn_if_trained_on_a_file(request: Request, saved: "SavedNetwork") -> None:
    """Say with which options data are generated for a run that was trained on a file, which may differ from them."""
    if saved.config.data.file is not None:
        defaults = f"the defaults {request.defaults}" if request.defaults else ""
        used = " and ".join(filter(None, (request.options, defaults))) or "no options"
        warn(
            f"warning: {request.folder} was trained on {saved.config.data.file}, and these data are generated with "
            f"{used}: give a file with --data"
        )
