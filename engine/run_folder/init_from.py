# Machinery: keep, and skip at first.
"""--init-from: start from the weights of an earlier run, to continue its training on other data (fine-tuning).

The scales of inputs and targets are saved with the weights. Before the first epoch, the network therefore predicts what
the earlier run predicted. Losses have the units of the earlier run, too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.datasets.overlap import TRAIN_INPUTS, read_hashes
from engine.interface.base_config import Config, options_with
from engine.interface.base_problem import Problem
from engine.interface.find_problem import module_name
from engine.learning.standardized import Shapes
from engine.machine.errors import BadRequestError, UnusableFileError
from engine.machine.terminal import print_line
from engine.run_folder.checkpoints import SavedNetwork, fit_to, generated_shapes, load_network, with_weights
from engine.run_folder.find_run import project_folder, run_folder
from engine.run_folder.saved_run import read_info


class Origin(NamedTuple):
    """The earlier run, from whose weights a run starts."""

    config: Config  # of the new run
    saved: SavedNetwork
    hashes: NDArray[np.uint64]  # of the inputs that the earlier run, and the runs before it, were trained with
    note: dict[str, Any]  # for run_info.json
    info: dict[str, Any]  # the run_info.json of the earlier run

    def weights_for(self, shapes: Shapes) -> dict[str, Any]:
        """The weights of the earlier run, with its scales, for examples of these shapes.

        Raises:
            BadRequestError: the weights do not fit the network for these shapes.
        """
        subject = _subject(self.config)
        weights = fit_to(self.saved, self.config, shapes, subject).state_dict()
        try:
            with_weights(self.saved.problem, self.config, shapes, weights)
        except RuntimeError:  # for example, because the network depends on an option of the data
            raise BadRequestError(
                f"{subject}: the weights of that run do not fit this network: give the options of its config.json"
            ) from None
        return weights


def _subject(config: Config) -> str:
    return f"--init-from {config.train.init_from}"


def load_origin(
    problem: Problem[Any], config: Config, folder: Path, state: Mapping[str, Any] | None, resume: bool
) -> Origin | None:
    """Load the run that --init-from names. The result is None without the option, and for a run with a state.

    Its name is relative to the working folder or, for a run in `folder` that is resumed, to the folder of its project.

    Raises:
        RunError: there is no such run, or its weights cannot be used for a network with this config.
    """
    name, subject = config.train.init_from, _subject(config)
    if name is None or state is not None:
        return None
    root = project_folder(folder) if resume else Path()
    if (place := run_folder(name, root=root)) is None:
        fix = "restore it, or start another run" if resume else "give its name in checkpoints, or its folder"
        raise BadRequestError(f"{subject}: there is no such run in {root.absolute()}: {fix}")
    if place.samefile(folder):
        raise BadRequestError(f"{subject}: --overwrite would remove that run: choose another --run-name")
    info, module = read_info(place), module_name(problem)
    if (other := info.get("problem", module)) != module:
        raise BadRequestError(f"{subject}: that run was started with {other}: choose a run of {module}")
    saved = load_network(place, problem)
    if differing := _differing(saved.config, config):
        raise BadRequestError(f"{subject}: that run has {' '.join(differing)}: give these options")
    if saved.config.train.fresh and info.get("status") != "finished":
        raise BadRequestError(
            f"{subject}: that run has --fresh and is not over, so that it is not known which examples it was trained "
            f"with: finish it with --resume {name}"
        )
    before = (read_info(folder).get("init_from") if resume else None) or {}
    if before.get("weights_sha256", saved.sha256) != saved.sha256:
        raise UnusableFileError(
            f"{place / 'best.pt'} has changed since {folder} was started: restore it, or start another run"
        )
    hashes = seen_by(place, "restore it, or start from another run")
    note = {"run": name, "epoch": saved.epoch, "weights_sha256": saved.sha256, "commit": info.get("git_commit")}
    origin = Origin(config, saved, hashes, note, info)
    if config.data.file is None:  # otherwise the shapes are not known before the file has been read
        origin.weights_for(generated_shapes(problem, config))
    print_line(f"starting from {place}, epoch {saved.epoch}")
    return origin


def _differing(earlier: Config, config: Config) -> list[str]:
    """The options of the network and the task that have an effect in an earlier run and other values in a new one."""
    return [
        each.given(each.value_in(earlier))
        for each in options_with(type(config), "network").values()
        if each.value_in(earlier) != each.value_in(config) and not each.idle(earlier)
    ]


def seen_by(folder: Path, fix: str) -> NDArray[np.uint64]:
    """The hashes of the inputs that a run was trained with.

    Raises:
        UnusableFileError: they are not known, so that it is not known either which test examples are new.
    """
    try:
        return read_hashes(folder)
    except (FileNotFoundError, UnusableFileError):
        raise UnusableFileError(
            f"{folder / TRAIN_INPUTS}, by which test examples are compared with those of the earlier training, is "
            f"missing or damaged: {fix}"
        ) from None
