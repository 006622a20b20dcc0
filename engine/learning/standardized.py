# Machinery: keep, and skip at first.
"""A network with the scales of its inputs and targets, which are saved with its weights."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.interface.base_config import Config
from engine.interface.base_problem import Columns, Problem, Scale, Shape
from engine.interface.returned_values import input_arrays, input_scales, target_array, target_scale
from engine.machine.errors import BadRequestError, ProblemError
from engine.machine.seeds import seed_everything


class Shapes(NamedTuple):
    """The shapes of the inputs and the target of one example, without the first axis."""

    inputs: tuple[Shape, ...]
    target: Shape


def shapes_of(problem: Problem[Any], config: Config, columns: Columns) -> Shapes:
    """The shapes of the examples in some columns, which may be empty."""
    inputs, target = input_arrays(problem, config, columns), target_array(problem, config, columns)
    return Shapes(tuple(x.shape[1:] for x in inputs), target.shape[1:])


class Standardized(nn.Module):
    """A network together with the scales of its inputs and targets.

    `network` works in scaled units, in which floating-point inputs and targets of the training split have mean 0 and
    standard deviation 1. Training uses `network` directly.

    The scales are float64 tensors that stay on the CPU, because not every device has this type. A matrix (N, k) has one
    mean and deviation for each column, and any other array has one of each, unless the problem decides otherwise.
    """

    network: nn.Module
    mean: Tensor  # of the target: (k,) or ()
    std: Tensor
    input_means: Tensor  # of all inputs, one after the other: (numbers,)
    input_stds: Tensor

    def __init__(self, problem: Problem[Any], config: Config, network: nn.Module, shapes: Shapes) -> None:
        super().__init__()
        self.network = network
        self.target_shape, self.input_scales = shapes.target, input_scales(problem, len(shapes.inputs))
        self.target_scale, self.predicts_outputs = target_scale(problem, config), problem.predicts_outputs(config)
        self.input_sizes = [_shape_of_scale(*each) for each in zip(shapes.inputs, self.input_scales, strict=True)]
        shape = _shape_of_scale(shapes.target, self.target_scale)
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("std", torch.ones(shape, dtype=torch.float64))
        if any(self.input_scales):
            n = sum(self._numbers_of_inputs())
            self.register_buffer("input_means", torch.zeros(n, dtype=torch.float64))
            self.register_buffer("input_stds", torch.ones(n, dtype=torch.float64))

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        tensors = chain(self.network.parameters(), self.network.buffers())
        return next((each.device for each in tensors), torch.device("cpu"))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """What `to`, `cpu` and `cuda` do: move the network, and leave the scales on the CPU."""
        self.network._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def set_scales(self, inputs: Sequence[NDArray[Any]], target: NDArray[Any]) -> None:
        """Compute the scales from the training split. What the problem does not scale keeps mean 0 and deviation 1."""
        if self.target_scale:
            mean, std = _mean_and_deviation(target, self.mean.shape)
            self.mean.copy_(mean)
            self.std.copy_(std)
        for array, is_scaled, scale in zip(inputs, self.input_scales, self._scales_of_inputs(), strict=True):
            if is_scaled and array.dtype.kind == "f":
                for kept, found in zip(scale, _mean_and_deviation(array, scale[0].shape), strict=True):
                    kept.copy_(found)

    def _scales_of_inputs(self) -> list[tuple[Tensor, Tensor]]:
        """Views of the mean and the deviation of each input, each (k,) or ()."""
        if not any(self.input_scales):
            return [(torch.zeros(()), torch.ones(()))] * len(self.input_scales)
        parts = (torch.split(each, self._numbers_of_inputs()) for each in (self.input_means, self.input_stds))
        return [(mean.view(size), std.view(size)) for mean, std, size in zip(*parts, self.input_sizes, strict=True)]

    def _numbers_of_inputs(self) -> list[int]:
        """How many means each input has."""
        return [size[0] if size else 1 for size in self.input_sizes]

    def scaled_inputs(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Scale floating-point inputs for the network, and convert them to float32. Other inputs are not changed.

        Integers are scaled, too, if the values in training were floats.

        Raises:
            ProblemError: an input that is scaled by column has another number of columns than in training.
        """
        found = []
        for i, (x, (mean, std)) in enumerate(zip(inputs, self._scales_of_inputs(), strict=True)):
            if mean.ndim > 0 and x.shape[1:] != mean.shape:
                raise ProblemError(
                    f"array {i} of inputs has the shape {tuple(x.shape)}: in training, it was (N, {len(mean)})"
                )
            is_scaled = self.input_scales[i] and (x.is_floating_point() or bool((mean != 0).any() | (std != 1).any()))
            found.append(_scaled(x, mean, std) if is_scaled else x.float() if x.is_floating_point() else x)
        return tuple(found)

    def scaled_targets(self, targets: NDArray[Any]) -> Tensor:
        """Convert targets from physical units to those of the network: float64, or int64 for unscaled integers."""
        if targets.dtype.kind == "i":
            return torch.tensor(targets)
        return (torch.from_numpy(np.array(targets, np.float64)) - self.mean) / self.std

    def forward(self, *inputs: Tensor) -> Tensor:
        """Predict in physical units: inputs (B, ...), as the problem's `inputs` returns them -> (B, ...) float32.

        If the problem has a method `predictions`, these are the outputs of the network, in scaled units. The function
        `predict` (prediction.py) also calls that method.
        """
        outputs = cast(Tensor, self.network(*self.scaled_inputs(inputs)))
        if not self.predicts_outputs or not self.target_scale:
            return outputs
        return self.mean.to(outputs) + self.std.to(outputs) * outputs

    def load_scales(self, weights: Any) -> None:
        """Use the scales that are among these weights, as far as they fit."""
        upgraded = self.upgraded(weights) if isinstance(weights, Mapping) else {}
        for name, own in self.named_buffers(recurse=False):
            found = upgraded.get(name)
            if isinstance(found, Tensor) and (found.shape, found.dtype) == (own.shape, own.dtype):
                own.copy_(found)

    def upgraded(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Weights of an earlier version, whose scales are float32, with one mean and deviation for each input."""
        found = dict(weights)
        for name, own in self.state_dict().items():
            value = found.get(name)
            if name not in ("mean", "std", "input_means", "input_stds") or not isinstance(value, Tensor):
                continue
            if name in ("input_means", "input_stds") and value.shape == (len(self.input_sizes),) != own.shape:
                value = value.repeat_interleave(torch.tensor(self._numbers_of_inputs()))
            found[name] = value.double() if value.dtype == torch.float32 else value
        return found


def new_model(problem: Problem[Any], config: Config, shapes: Shapes) -> Standardized:
    """Create the problem's network with random weights, which depend on the seed only.

    Raises:
        BadRequestError: the network does not support these shapes with these options.
    """
    seed_everything(config.seed)
    try:
        network = problem.network(config, shapes.inputs, shapes.target)
    except ValueError as error:
        raise BadRequestError(str(error)) from None
    if not isinstance(network, nn.Module):
        raise ProblemError(f"network returned {type(network).__name__}: return a torch.nn.Module")
    return Standardized(problem, config, network, shapes)


def _shape_of_scale(shape: Shape, scale: Scale) -> Shape:
    """The shape of the mean and the deviation of an array, from the shape of one example."""
    return shape if len(shape) == 1 and scale != "array" else ()


def _mean_and_deviation(values: NDArray[Any], shape: Shape) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation, each (k,) or (). The deviation is 1 for values that do not vary."""
    values = values.astype(np.float64).reshape(-1, *shape)
    largest = np.abs(values).max(axis=0)
    unit = np.where(largest > 0, largest, 1.0)  # squares of numbers such as 1e-200 could not be stored
    mean, relative = np.asarray(values.mean(axis=0)), np.asarray((values / unit).std(axis=0))
    varies = relative > 1e-12  # by more than rounding errors
    return torch.from_numpy(mean), torch.from_numpy(np.where(varies, unit * relative, 1.0))


def _scaled(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale in the precision of the values or, on the CPU, in float64, and return float32."""
    # If numbers with a large offset, such as times since 1970, were rounded first, their differences would be lost.
    dtype = torch.float64 if values.device.type == "cpu" else values.dtype
    return ((values.to(dtype) - mean.to(values.device, dtype)) / std.to(values.device, dtype)).float()
