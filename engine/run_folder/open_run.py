# Machinery: keep, and skip at first.
"""What a run needs in addition to training: its locked folder, connected processes, and a record of how it ended."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from engine.datasets.file_formats import complete_config
from engine.datasets.overlap import HASH_FORMAT, are_comparable, hash_inputs, save_hashes, unseen
from engine.datasets.splits import Data, load_data, new_examples, require_memory_for
from engine.interface.base_config import Config, replace_unchecked
from engine.interface.base_problem import Columns, Problem
from engine.interface.returned_values import input_arrays
from engine.learning.distributed import Group, is_restarted, torchrun_start
from engine.machine.errors import RunError, UnusableFileError
from engine.machine.hardware import choose_num_threads, require_compiler, select_device
from engine.machine.terminal import print_line
from engine.options.fields import folder_name
from engine.run_folder import figures_of_run
from engine.run_folder.changed_code import hashes_of_code, warn_if_changed
from engine.run_folder.find_run import project_folder
from engine.run_folder.null_logger import NullLogger, Watch
from engine.run_folder.run_lock import empty_folder, lock_run, require_free
from engine.run_folder.saved_run import read_info

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from engine.learning.standardized import Standardized
    from engine.run_folder.init_from import Origin


@dataclass(frozen=True)
class OpenRun:
    """A run whose folder is locked and whose processes are connected. It has not begun to train."""

    problem: Problem[Any]
    config: Config
    folder: Path
    group: Group
    device: "torch.device"
    info: dict[str, Any]  # the run_info.json of the run that is resumed; otherwise empty
    state: dict[str, Any] | None  # its newest checkpoint, if there is one
    origin: "Origin | None"  # in rank 0, the run of --init-from, unless a checkpoint replaces its weights
    stack: ExitStack  # closes the logger, the connection and the lock when the run ends
    resume: bool
    code: dict[str, str | None]  # hashes of the code of the problem and of trainer.py
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage

    @property
    def is_finished(self) -> bool:
        """Whether the run is already finished, so that there is nothing to resume."""
        if self.state is None or self.info.get("status") != "finished":
            return False
        return self.config.train.is_over(self.state["epoch"], self.state["best_epoch"])

    def load_data(self, n_workers: int = 1) -> Data:
        """Load the data of the run in rank 0, and send them to all processes.

        Args:
            n_workers: the number of processes that call a slow generator.

        Raises:
            UnusableFileError: the run is resumed, and its data have changed.
        """
        config = _with_file(self.config, self.folder, self.resume)
        data = self.group.broadcast(lambda: load_data(self.problem, config, n_workers))
        if data.sha256 != self.info.get("data_sha256", data.sha256):
            raise UnusableFileError(
                f"the data have changed since {self.folder} was trained: restore them, or start another run"
            )
        return data

    def build_model(self, data: Data) -> "Standardized":
        """Create the network with its scales, on the device, with random weights or those of --init-from.

        Raises:
            BadRequestError: the network of the earlier run does not accept these data.
        """
        from engine.learning.prediction import build_model
        from engine.learning.standardized import shapes_of

        model = build_model(self.problem, self.config, data.train).to(self.device)
        if self.state is not None:  # baselines have losses in the units of the run, perhaps those of --init-from
            model.load_scales(self.state.get("weights"))
        if self.config.train.init_from is not None and self.state is None:

            def weights() -> dict[str, Any]:
                assert self.origin is not None
                return self.origin.weights_for(shapes_of(self.problem, self.config, data.train))

            model.load_state_dict(self.group.broadcast(weights))
        return model

    def start(
        self, data: Data, model: "Standardized", logger: Callable[..., NullLogger], watch: Watch | None = None
    ) -> "StartedRun":
        """Remove an earlier run from the folder, and begin to record this one. Call it after all checks.

        Only rank 0 writes to the folder.

        Args:
            logger: creates the logger of rank 0; the class RunLogger in logger.py.
            watch: called with the row of metrics of each epoch.
        """
        import torch

        inputs = input_arrays(self.problem, self.config, data.train)
        input_size = max((int(x[0].size) for x in inputs), default=1)
        n_threads = choose_num_threads(model, self.config.train.batch_size, input_size)
        torch.set_num_threads(self.config.threads or n_threads)
        if not self.group.is_main:
            return StartedRun(self, NullLogger(), np.empty(0, np.uint64))
        train_hashes = hash_inputs(self.problem, self.config, data.train)
        if self.config.train.init_from is not None:
            from engine.run_folder.init_from import seen_by

            before = self.origin.hashes if self.origin else seen_by(self.folder, "restore it, or start another run")
            if not are_comparable(self.origin.info if self.origin else self.info, inputs):
                raise UnusableFileError(
                    f"--init-from {self.config.train.init_from}: an older version of the program made that run, and "
                    "did not record its training inputs exactly: start from another run"
                )
            train_hashes = np.union1d(train_hashes, before)
        if not self.resume:
            empty_folder(self.folder)
        shapes = {"inputs": [list(x.shape[1:]) for x in inputs], "target": list(model.target_shape)}
        run_logger = self.stack.enter_context(
            logger(
                self.folder,
                self.problem,
                self.config,
                shapes=shapes,
                timings=self.timings,
                earlier=self.info,
                state=self.state,
                watch=watch,
            )
        )
        run_logger.note(
            device=str(self.device),
            processes=self.group.size,
            torchrun=None if (started := torchrun_start()) is None else str(started),
            threads=torch.get_num_threads(),
            data_source=data.source,
            data_sha256=data.sha256,
            data_file_sha256=data.file_sha256,
            hash_format=HASH_FORMAT,
            init_from=self.origin.note if self.origin else self.info.get("init_from"),
            **self.code,
        )
        save_hashes(self.folder, train_hashes)
        return StartedRun(self, run_logger, train_hashes)


class StartedRun(NamedTuple):
    """A run that is being recorded."""

    opened: OpenRun
    logger: NullLogger
    train_hashes: "NDArray[np.uint64]"  # in rank 0, of all inputs that the network is trained with

    def restore(self, trainer: Any) -> None:
        """If the run is resumed, let its trainer continue from the last checkpoint.

        Raises:
            UnusableFileError: the checkpoint does not suit the trainer or the network.
        """
        from engine.run_folder.checkpoints import misfit, optimizer_misfit

        state, train = self.opened.state, self.opened.config.train
        if state is None:
            return
        try:
            upgraded = {key: trainer.model.upgraded(state[key]) for key in ("weights", "best_weights")}
            trainer.restore(state | upgraded)
            for key in ("weights", "best_weights"):
                if fault := misfit(trainer.model, upgraded[key]):
                    raise ValueError(f"{key}: {fault}")
            if fault := optimizer_misfit(trainer.optimizer):
                raise ValueError(fault)
        except (RunError, MemoryError):
            raise
        except Exception as error:  # of any type: the code has been edited, or the checkpoint
            reason = " ".join(repr(error).split())[:200]
            raise UnusableFileError(
                f"the last checkpoint of {self.opened.folder} does not suit trainer.py or the network ({reason}): "
                "restore their code, or start another run"
            ) from error
        print_line(f"continuing after epoch {trainer.epoch} of {train.epochs}")
        if state["config"]["train"]["epochs"] != train.epochs:
            rate = train.lr * trainer.factor_at(trainer.n_steps)
            print_line(f"the schedule is now that of the longer run: the learning rate continues at {rate:.3g}")

    def is_unseen(self, columns: Columns, epochs: int) -> "NDArray[np.bool_]":
        """Whether examples do not occur in the training data, (N,), also not in those of the run of --init-from.

        With --fresh, the examples of all epochs are generated again, and train_inputs.npy then has all their hashes.

        Args:
            epochs: the number of epochs of the training.
        """
        problem, config, hashes = self.opened.problem, self.opened.config, self.train_hashes
        if config.train.fresh:
            new = (hash_inputs(problem, config, new_examples(problem, config, k)) for k in range(2, epochs + 1))
            hashes = np.unique(np.concatenate([hashes, *new]))
            save_hashes(self.opened.folder, hashes)
        return unseen(hashes, hash_inputs(problem, config, columns))

    def finish(self, model: "Standardized", results: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Record the results of a model, and print a summary. best.pt then has its weights, whatever a trainer did."""
        self.logger.log_weights(results["best_epoch"], model.state_dict())
        self.logger.log_arrays("predictions", arrays)
        self.logger.log_results(results)
        print_line(f"\n{self.logger.summary(results)}\n")

    def plot_figures(self) -> None:
        """Plot the figures, and print the folder. If a figure cannot be plotted, the run is still finished."""
        folder = self.opened.folder
        hint = f"; python runs.py plot {folder} plots the figures again, and shows the error"
        draw = partial(figures_of_run.draw_if_possible, hint=hint)
        figures_of_run.plot_run(self.opened.problem, self.opened.config, folder, draw)
        print_line(str(folder))


def _with_file(config: Config, folder: Path, resume: bool) -> Config:
    """The config of a run, with a path of its data file that is valid in the working folder.

    Raises:
        UnusableFileError: the file is neither there nor in the folder where the run was started.
    """
    file = config.data.file
    if not resume or file is None:
        return config
    places = [project_folder(folder) / file, Path(file).absolute()]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        looked = " or ".join(dict.fromkeys(str(place.parent) for place in places))
        raise UnusableFileError(
            f"{Path(file).name}, the data of {folder}, is not in {looked}: give its new path with --data"
        )
    if found == Path(file).absolute():
        return config
    return replace(config, data=replace(config.data, file=str(found)))


@contextmanager
def open_run(
    problem: Problem[Any], config: Config, folder: Path, group: Group, *, overwrite: bool, resume: bool
) -> Iterator[OpenRun]:
    """Lock the folder of a run, select the device, and connect the processes while the block runs.

    Raises:
        RunError: the request cannot be met on this machine, or the folder cannot be used.
    """
    completed = complete_config(problem, _with_file(config, folder, resume))
    config = replace_unchecked(completed, data=replace(completed.data, file=config.data.file))
    # Refuse a bad request, where possible, before torch is loaded, which takes seconds.
    require_memory_for(problem, config)
    if resume and group.is_main:
        warn_if_changed(problem, folder, training=True)
    code = hashes_of_code(problem)  # takes five times as long after torch has been loaded
    if group.is_main:
        require_free(folder, overwrite or resume)
    device = select_device(config.device, group.local_rank if group.size > 1 else None)
    if config.compile:
        require_compiler(device)

    from engine.learning.network_memory import require_memory_for_training
    from engine.run_folder.checkpoints import generated_shapes, load_last
    from engine.run_folder.init_from import load_origin

    if config.data.file is None:  # otherwise the shapes are not known before the file has been read
        require_memory_for_training(problem, config, lambda: generated_shapes(problem, config))
    lock = lock_run(folder, overwrite or resume) if group.is_main else nullcontext()
    with ExitStack() as stack:
        stack.enter_context(lock)
        stack.enter_context(group.init(device))
        info, state = group.broadcast(lambda: (read_info(folder), load_last(folder, config)) if resume else ({}, None))
        origin = load_origin(problem, config, folder, state, resume) if group.is_main else None
        yield OpenRun(problem, config, folder, group, device, info, state, origin, stack, resume, code)


def default_name(problem: Problem[Any], config: Config) -> str:
    """The name of a run without --run-name: problem, seed, date and time."""
    started = (torchrun_start() or datetime.now()).strftime("%Y%m%d-%H%M%S-%f")
    return f"{folder_name(problem.label(config))}-seed{config.seed}-{started}"


def is_restart(folder: Path) -> bool:
    """Whether torchrun has restarted the run in the folder after a process failed, so that it has to be resumed."""
    if not is_restarted() or not (folder / "config.json").exists():
        return False
    return read_info(folder).get("torchrun") == str(torchrun_start())  # otherwise, this is another run
