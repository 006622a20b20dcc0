# Machinery: keep, and skip at first.
"""Checkpoints: files with a checksum that contain tensors and plain values.

Somebody else may have made a checkpoint. Reading it runs no code from it, and it does not unpack to more than its size.
"""

import hashlib
import io
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.random import SeedSequence
from torch import nn

from engine.datasets.generation import generate_block
from engine.interface.base_config import (
    Config,
    load_config,
    require_same_run,
    to_dict,
)
from engine.interface.base_problem import Problem, Shape
from engine.learning.network_memory import bytes_of_parameters
from engine.learning.standardized import Shapes, Standardized, new_model, shapes_of
from engine.machine.atomic_files import read_checked, replace, with_checksum, write_checked
from engine.machine.errors import BadRequestError, ProblemError, UnusableFileError
from engine.machine.foreign_files import is_file, leaves
from engine.machine.hardware import physical_memory
from engine.machine.pickle_size import require_small_pickle
from engine.machine.terminal import one_line, warn
from engine.options.config_values import upgrade, with_format
from engine.options.fields import ConfigError, merge, validate

FORMAT = 5  # increase it if older versions of the program would misread the file
OLDEST = 3  # the oldest format whose weights can still be used; its files do not store shapes


def save(path: Path, config: Config, content: Mapping[str, Any], keep: Path | None = None) -> None:
    """Write tensors and plain values to a file, together with the config. An existing file is renamed to `keep`.

    Raises:
        ProblemError: the content has a value of another type, so that the file could not be read again.
    """
    _require_plain(f"{path.name}, from the state of the trainer", content)
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "config": with_format(to_dict(config)), **content}, buffer)
    if keep is not None and path.exists():
        replace(path, keep)  # this file remains if the process is killed before write_checked has finished
    write_checked(path, buffer.getvalue())


def _require_plain(name: str, value: Any) -> None:
    """Raise ProblemError, which names the value, unless it consists of types that torch.load reads as data."""
    if type(value) in (dict, OrderedDict):
        for key, each in value.items():
            _require_plain(f"a key of {name}", key)
            _require_plain(f"{name}: {key}", each)
    elif type(value) in (list, tuple, torch.Size):
        for each in value:
            _require_plain(name, each)
    elif value is not None and type(value) not in (bool, int, float, str, torch.Tensor, nn.Parameter):
        kind = type(value).__name__
        raise ProblemError(
            f"{name} is of the type {kind}: use tensors, numbers, strings, and lists and dicts of these, such as "
            f"dict(...) of a {kind}"
        )


def snapshot(value: Any) -> Any:
    """Copy the state of a trainer, so that the copy does not change when training continues."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        # Rows of metrics never change, and there may be thousands. It is enough to copy the list.
        return {key: list(each) if key == "rows" else snapshot(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [snapshot(each) for each in value]
    return value


def load(path: Path, config: Config, oldest: int = FORMAT, *, same_run: bool = False) -> dict[str, Any]:
    """Read a checkpoint of a run with this config, with all tensors on the CPU. `sha256` is the hash of the file.

    The options of the network and the task have to be those with which the file was written. With `same_run`, this
    holds for all options, except those that may change when a run is resumed.

    Raises:
        FileNotFoundError: the file does not exist.
        UnusableFileError: the file is damaged, or was written by an incompatible version.
        ConfigError: it was written with other options, for example because config.json was edited.
    """
    content = read_checked(path)
    try:
        saved = _unpack(content)
        version = int(saved["format"])
        if not oldest <= version <= FORMAT:
            needed = f"{oldest} to {FORMAT}" if oldest < FORMAT else f"{FORMAT}"
            raise UnusableFileError(
                f"{path} has format {version}, and this program needs {needed}: "
                "use the version that wrote it, or start another run"
            )
        described = validate(type(config), merge(asdict(type(config)()), upgrade(saved["config"])))
    except UnusableFileError:
        raise
    except Exception as error:  # a malicious file can make torch raise almost any exception
        raise UnusableFileError(
            f"{path} is not a checkpoint of this program: {' '.join(str(error).split())[:200]}"
        ) from error
    require_same_run(described, config, str(path.with_name("config.json")), network_only=not same_run)
    return saved | {"sha256": hashlib.sha256(with_checksum(content)).hexdigest()}


def _is_state(saved: Mapping[str, Any]) -> bool:
    """Whether what this program itself reads from the state of a trainer can be used."""
    loss, rows = saved.get("best_loss"), saved.get("rows")
    steps = saved.get("n_steps", 1)  # earlier versions did not save it
    counts = [each for each in (saved.get("best_epoch"), saved.get("epoch"), steps) if type(each) is int]
    if len(counts) < 3 or not all(0 < each < 2**63 for each in counts) or not isinstance(rows, list):
        return False
    are_rows = all(isinstance(row, Mapping) and {"epoch", "val_loss"} <= row.keys() for row in rows)
    are_numbers = all(type(each) in (int, float) and abs(each) < 1e300 for each in (loss, *leaves(rows)))
    return are_rows and are_numbers and counts[0] <= counts[1] and isinstance(saved.get("best_weights"), Mapping)


def optimizer_misfit(optimizer: torch.optim.Optimizer) -> str:
    """Which parameter has a state of another shape, or an empty string. Fused optimisers write without checking it."""
    for param_group in optimizer.param_groups:
        for parameter in param_group["params"] if param_group.get("fused") else ():
            for name, value in optimizer.state.get(parameter, {}).items():
                expected = torch.empty(()) if name == "step" else parameter
                is_dense = value.is_contiguous() or value.stride() == expected.stride()  # as in channels_last
                if (value.shape, value.dtype) != (expected.shape, expected.dtype) or not is_dense:
                    return f"the state {name} of a parameter has the shape {tuple(value.shape)}"
    return ""


def misfit(model: nn.Module, weights: Any) -> str:
    """In which entry weights differ from those of a network in shape or type, or an empty string."""
    expected = {name: (each.shape, each.dtype) for name, each in model.state_dict().items()}
    if not isinstance(weights, Mapping) or not all(isinstance(each, torch.Tensor) for each in weights.values()):
        return "there are no weights"
    found = {name: (each.shape, each.dtype) for name, each in weights.items()}
    names = [name for name in (*expected, *found) if found.get(name) != expected.get(name)]
    return f"{names[0]} differs" if names else ""


def _unpack(content: bytes) -> dict[str, Any]:
    """The content of a checkpoint. Raise an exception of any type if it is damaged or was made to do harm."""
    checked = io.BytesIO()  # what has been checked, and nothing else that another reader could find in the file
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(checked, "w") as copy:
        entries = archive.infolist()
        if sum(each.file_size for each in entries) > len(content) or any(each.compress_type for each in entries):
            raise ValueError("it is not an archive of uncompressed tensors")
        for each in entries:
            part = archive.read(each)
            if each.filename.endswith(".pkl"):
                require_small_pickle(part)
            copy.writestr(each.filename, part)
    checked.seek(0)
    saved: dict[str, Any] = torch.load(checked, map_location="cpu", weights_only=True)
    tensors = [value for value in leaves(saved) if isinstance(value, torch.Tensor)]
    if any(each.layout != torch.strided or each.device.type != "cpu" or each.is_quantized for each in tensors):
        raise ValueError("it has tensors of a special kind")
    # A tensor may have one element in memory and claim many, and many tensors may share their memory.
    if 4 * sum(each.numel() * each.element_size() for each in tensors) > physical_memory():
        raise ValueError("its tensors would not fit in memory")
    return saved


def load_last(folder: Path, config: Config) -> dict[str, Any] | None:
    """Read the newest intact checkpoint of a run. The result is None if the run has not finished an epoch.

    If last.pt is damaged, it is replaced by previous.pt.

    Raises:
        UnusableFileError: there are checkpoints, but none can be used.
        ConfigError: the config is not that of the run.
    """
    faults: list[UnusableFileError] = []
    for name in ("last.pt", "previous.pt"):
        try:
            saved = load(folder / name, config, same_run=True)
            if not _is_state(saved):
                raise UnusableFileError(f"{folder / name} is damaged: its epoch, or its metrics, cannot be right")
        except FileNotFoundError:
            continue
        except UnusableFileError as error:
            faults.append(error)
            continue
        for fault in faults:
            warn(f"warning: {fault}: continuing from {name}, after epoch {saved['epoch']}")
            replace(folder / name, folder / "last.pt")  # otherwise the next save would keep the damaged file instead
        return saved
    if faults:
        raise faults[0]
    return None


class SavedNetwork(NamedTuple):
    """The network of a run, with its problem and config."""

    problem: Problem[Any]
    config: Config
    model: Standardized
    shapes: Shapes  # of one example of the training data
    epoch: int  # in which these weights were saved
    sha256: str  # of best.pt


def load_network(folder: Path, problem: Problem[Any]) -> SavedNetwork:
    """Load a run with the weights of its best epoch, on the CPU.

    Raises:
        UnusableFileError: config.json or best.pt is missing or damaged, or was written for another network.
    """
    if not is_file(folder / "best.pt"):
        raise UnusableFileError(
            f"{folder} has no best.pt: give the name in checkpoints, or the folder, of a run that saved its weights"
        )
    try:
        config = load_config(problem.config_type, folder / "config.json")
        saved = load(folder / "best.pt", config, OLDEST)
    except ConfigError as error:
        raise UnusableFileError(str(error)) from None
    try:
        shapes = shapes_in(saved) if "shapes" in saved else generated_shapes(problem, config)
        model = with_weights(problem, config, shapes, saved["model"])
        if any(each.isnan().any() for each in model.state_dict().values()):
            raise ValueError("some are not numbers")
        if type(saved["epoch"]) is not int:
            raise ValueError("the epoch is not an integer")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = one_line(" ".join(str(error).split()))
        raise UnusableFileError(f"{folder / 'best.pt'} does not contain weights of this network: {reason}") from None
    return SavedNetwork(problem, config, model, shapes, saved["epoch"], saved["sha256"])


def shapes_in(saved: Mapping[str, Any]) -> Shapes:
    """The shapes that are stored in a checkpoint. Raises ValueError if they are no shapes."""
    inputs, target = saved["shapes"]["inputs"], saved["shapes"]["target"]
    if not all(type(size) is int and 0 <= size < 2**40 for shape in (*inputs, target) for size in shape):
        raise ValueError("a shape does not consist of integers")
    return Shapes(tuple(map(tuple, inputs)), tuple(target))


def generated_shapes(problem: Problem[Any], config: Config) -> Shapes:
    """The shapes of the data that the generator makes for a config. At most one example is generated."""
    try:
        return shapes_of(problem, config, generate_block(problem, config, 0, SeedSequence(0)))
    except ProblemError:  # for example, because reshape(n, -1) fails for n = 0
        return shapes_of(problem, config, generate_block(problem, config, 1, SeedSequence(0)))


def with_weights(problem: Problem[Any], config: Config, shapes: Shapes, weights: Mapping[str, Any]) -> Standardized:
    """Create the network for inputs of these shapes, with saved weights, for predictions only.

    Raises:
        RuntimeError: the weights do not fit a network for these shapes.
        BadRequestError: the network does not support these shapes.
    """
    needed = bytes_of_parameters(problem, config, shapes)  # the network is not built if it is much larger
    if needed is not None and needed > 2 * sum(each.numel() * each.element_size() for each in weights.values()):
        raise RuntimeError(f"the network has {needed:,} bytes of weights")
    model = new_model(problem, config, shapes)
    weights = model.upgraded(weights)
    if fault := misfit(model, weights):
        raise RuntimeError(fault)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def fit_to(saved: SavedNetwork, config: Config, shapes: Shapes, subject: str) -> Standardized:
    """The network of a run for examples of these shapes. An error begins with the `subject`, which requests them.

    Raises:
        BadRequestError: the network does not accept inputs of these shapes.
    """
    if shapes == saved.shapes:
        return saved.model
    # The size of a field may differ, if the network follows it. Other targets have a scale for each component.
    is_field = len(shapes.target) == len(saved.shapes.target) and saved.model.mean.ndim == 0
    if shapes.target != saved.shapes.target and not is_field:
        raise BadRequestError(
            f"{subject}: the target of an example has the shape {shapes.target}, and this "
            f"network was trained with {saved.shapes.target}: use such data"
        )
    asked = f"{subject}: the inputs have the shape {_in_words(shapes.inputs)}"
    try:
        return with_weights(saved.problem, config, shapes, saved.model.state_dict())
    except RuntimeError:
        label, trained = saved.problem.label(saved.config), _in_words(saved.shapes.inputs)
        columns = ', with scale_inputs = "array"' if any(saved.model.input_sizes) else ""
        raise BadRequestError(
            f"{asked}, and this network ({label}) only accepts {trained}, which it was trained with: "
            f"use such data, or train a network that accepts inputs of any size{columns}"
        ) from None
    except BadRequestError as error:
        raise BadRequestError(f"{asked}: {error}") from None


def _in_words(shapes: Sequence[Shape]) -> str:
    return " and ".join(map(str, shapes))
