"""Checkpoints: tensors and plain values in a file that is whole, is checked, and runs no code when it is read."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from config import ExperimentConfig
from utils import UnusableFileError, complain, read_checked, write_checked

FORMAT = 3  # to be raised when older programs would misread the file


def save(path: Path, config: ExperimentConfig, content: Mapping[str, Any], keep: Path | None = None) -> None:
    """Write tensors and plain values with the config they belong to; what was there before goes to `keep`."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "config": asdict(config), **content}, buffer)
    if keep is not None and path.exists():
        path.replace(keep)  # a kill between here and the end of write_checked leaves this one
    write_checked(path, buffer.getvalue())


def load(path: Path, config: ExperimentConfig) -> dict[str, Any]:
    """What `save` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        UnusableFileError: it is damaged, holds something else, or belongs to another network or to another program.
    """
    content = read_checked(path)
    try:
        saved: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        version, network = saved["format"], (saved["config"]["model"], saved["config"]["data"]["lattice_size"])
    except Exception as error:  # a file that was made to do harm makes torch raise nearly anything
        raise UnusableFileError(
            f"{path} is no checkpoint of this program: {' '.join(str(error).split())[:200]}"
        ) from error
    if version != FORMAT:
        raise UnusableFileError(
            f"{path} has format {version}, and this program reads {FORMAT}: use the one that wrote it"
        )
    if network != (asdict(config.model), config.data.lattice_size):
        raise UnusableFileError(f"{path} belongs to another network than {path.with_name('config.json')} describes")
    return saved


def load_last(folder: Path, config: ExperimentConfig) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, or None if it has not got that far.

    Raises:
        UnusableFileError: there are checkpoints, and none can be used.
    """
    faults: list[UnusableFileError] = []
    for name in ("last.pt", "previous.pt"):
        try:
            saved = load(folder / name, config)
        except FileNotFoundError:
            continue
        except UnusableFileError as error:
            faults.append(error)
            continue
        for fault in faults:
            complain(f"warning: {fault}: going on from {name}, an epoch earlier")
        return saved
    if faults:
        raise faults[0]
    return None


class EarlierRun(NamedTuple):
    """What there is of a run that is to go on."""

    info: dict[str, Any]  # its run_info.json
    state: dict[str, Any] | None  # its newest checkpoint


NOTHING = EarlierRun({}, None)


def earlier_run(folder: Path, config: ExperimentConfig) -> EarlierRun:
    """The run in a folder; without a checkpoint if it was cut off before the end of the first epoch.

    Raises:
        UnusableFileError: run_info.json or the checkpoints are damaged.
    """
    path = folder / "run_info.json"
    try:
        info = dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        info = {}
    except (ValueError, TypeError) as error:
        raise UnusableFileError(f"{path} is damaged ({error}): remove it to go on without") from None
    return EarlierRun(info, load_last(folder, config))
