# Machinery: keep, and skip at first.
"""From columns to predictions in physical units: tensors in scaled units, networks with their scales, metrics."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.datasets.overlap import select
from engine.interface.base_config import Config
from engine.interface.base_problem import Columns, Problem, Shape
from engine.interface.returned_values import input_arrays, plain, target_array
from engine.learning.distributed import SINGLE_PROCESS, Group
from engine.learning.network_memory import require_memory_for_training
from engine.machine.errors import BadRequestError, ProblemError
from engine.machine.seeds import seed_everything
from engine.machine.terminal import one_line, warn

Metrics = dict[str, float]

NUMBERS_PER_CHUNK = 2**22  # input values that are evaluated at once: 16 MiB as float32


class Shapes(NamedTuple):
    """The shapes of the inputs and the target of one example, without the first axis."""

    inputs: tuple[Shape, ...]
    target: Shape


def shapes_of(problem: Problem[Any], config: Config, columns: Columns) -> Shapes:
    """The shapes of the examples in some columns, which may be empty."""
    inputs, target = input_arrays(problem, config, columns), target_array(problem, config, columns)
    return Shapes(tuple(x.shape[1:] for x in inputs), target.shape[1:])


class Standardized(nn.Module):
    """A network together with the scales of its inputs and targets, which are saved with its weights.

    `network` works in scaled units, in which floating-point inputs and targets of the training split have mean 0 and
    standard deviation 1. Training uses `network` directly. This module predicts in physical units.
    """

    network: nn.Module
    mean: Tensor
    std: Tensor
    input_means: Tensor
    input_stds: Tensor

    def __init__(self, network: nn.Module, shapes: Shapes, scale_inputs: bool) -> None:
        super().__init__()
        self.network, self.scale_inputs = network, scale_inputs
        self.register_buffer("mean", torch.zeros(shapes.target))
        self.register_buffer("std", torch.ones(shapes.target))
        if scale_inputs:
            self.register_buffer("input_means", torch.zeros(len(shapes.inputs)))
            self.register_buffer("input_stds", torch.ones(len(shapes.inputs)))

    def set_scales(self, inputs: Sequence[NDArray[Any]], target: NDArray[Any] | None) -> None:
        """Compute the scales: one mean and standard deviation per floating-point input and per target component.

        A standard deviation of 0 is replaced by 1. If `target` is None, its scale is not changed.

        Raises:
            ProblemError: a mean is so much larger than its standard deviation that float32 cannot store it.
        """
        if target is not None:
            mean, std = _mean_and_deviation("target", target)
            self.mean.copy_(torch.as_tensor(mean))
            self.std.copy_(torch.as_tensor(std))
        if self.scale_inputs:
            for i, array in enumerate(inputs):
                if array.dtype.kind == "f":
                    mean, std = _mean_and_deviation(f"array {i} of inputs", array.reshape(-1).astype(np.float64))
                    self.input_means[i], self.input_stds[i] = float(mean), float(std)

    def scaled_inputs(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Scale floating-point inputs for the network, and convert them to float32. Other inputs are not changed."""
        if not self.scale_inputs:
            return tuple(x.float() if x.is_floating_point() else x for x in inputs)
        scales = zip(inputs, self.input_means, self.input_stds, strict=True)
        return tuple(_scaled(x, mean, std) if x.is_floating_point() else x for x, mean, std in scales)

    def scaled_targets(self, targets: Tensor) -> Tensor:
        """Convert targets from physical units to the units of the network, in float32."""
        return _scaled(targets, self.mean, self.std)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Predict in physical units: inputs (B, ...), as the problem's `inputs` returns them -> (B, ...) float32."""
        return cast(Tensor, self.mean + self.std * self.network(*self.scaled_inputs(inputs)))


def _mean_and_deviation(name: str, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean and the standard deviation along the first axis. The latter is 1 for values that do not vary."""
    mean, std = np.asarray(values.mean(axis=0)), np.asarray(values.std(axis=0))
    varies = std > 1e-12 * np.abs(values).max(axis=0)  # by more than rounding errors
    if np.any(varies & (np.abs(mean - mean.astype(np.float32)) > 0.01 * std)):
        raise ProblemError(f"{name} varies little compared with its mean: subtract a constant")
    return mean, np.where(varies, std, 1.0)


def _scaled(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    # If numbers with a large offset, such as times since 1970, were rounded first, their differences would be lost.
    return (values - mean.to(values.device)).float() / std.to(values.device)


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
    return Standardized(network, shapes, problem.scale_inputs)


def build_model(problem: Problem[Any], config: Config, train: Columns) -> Standardized:
    """Create the network for the training data, with random weights and the scales of these data.

    Raises:
        BadRequestError: the network does not support these data with these options.
        ProblemError: the network does not accept these inputs, or its outputs do not have the shape of the targets.
    """
    inputs, target = input_arrays(problem, config, train), target_array(problem, config, train)
    shapes = Shapes(tuple(x.shape[1:] for x in inputs), target.shape[1:])
    require_memory_for_training(problem, config, lambda: shapes)
    model = new_model(problem, config, shapes)
    model.set_scales(inputs, target if problem.scales_target(config) else None)
    few = prepare(problem, config, model, {name: column[:2] for name, column in train.items()})
    _require_arguments(model.network, len(inputs))
    with torch.no_grad():  # two examples are enough to check the shapes of outputs and losses
        example_losses(problem, config, model.eval().network(*few.inputs), few.targets)
    return model


def _require_arguments(network: nn.Module, n_inputs: int) -> None:
    signature = inspect.signature(network.forward).replace(return_annotation=inspect.Signature.empty)
    try:
        signature.bind(*range(n_inputs))
    except TypeError:
        name = type(network).__name__
        raise ProblemError(
            f"{name}.forward takes {signature} and is called with the {n_inputs} arrays that inputs returns: "
            "make the numbers equal"
        ) from None


class Examples(NamedTuple):
    """The examples of a split: tensors in scaled units on the device of a model, targets, and columns."""

    inputs: tuple[Tensor, ...]  # each (N, ...), float32 or integers
    targets: Tensor  # (N, ...) float32
    physical_targets: NDArray[np.float64]  # (N, ...)
    columns: Columns


def select_examples(examples: Examples, chosen: NDArray[np.bool_]) -> Examples:
    """Select examples by a mask (N,)."""
    rows = torch.from_numpy(chosen).to(examples.targets.device)
    inputs = tuple(x[rows] for x in examples.inputs)
    return Examples(inputs, examples.targets[rows], examples.physical_targets[chosen], select(examples.columns, chosen))


def prepare(problem: Problem[Any], config: Config, model: Standardized, columns: Columns) -> Examples:
    """Convert columns to the inputs and targets of the model's network."""
    target = target_array(problem, config, columns)
    targets = model.scaled_targets(torch.from_numpy(target)).to(model.mean.device)
    return Examples(_prepare_inputs(problem, config, model, columns), targets, target, columns)


def _prepare_inputs(problem: Problem[Any], config: Config, model: Standardized, columns: Columns) -> tuple[Tensor, ...]:
    tensors = []
    for array in input_arrays(problem, config, columns):
        dtype = np.float64 if array.dtype.kind == "f" and array.dtype != np.float32 else array.dtype.newbyteorder("=")
        tensors.append(torch.from_numpy(np.ascontiguousarray(array, dtype)))
    return tuple(tensor.to(model.mean.device) for tensor in model.scaled_inputs(tensors))


def example_losses(problem: Problem[Any], config: Config, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each example, (B,), in training and in validation.

    Raises:
        ProblemError: the shape of outputs or losses is wrong. Without this check, broadcasting could hide the mistake.
    """
    if outputs.shape != targets.shape:
        raise ProblemError(
            f"the network returned outputs of the shape {tuple(outputs.shape)} for targets of the shape "
            f"{tuple(targets.shape)}: "
            "make the shapes equal, for example with squeeze(-1), or with a target (N, k) for k numbers"
        )
    losses = problem.loss(config, outputs, targets)
    if losses.shape != targets.shape[:1]:
        raise ProblemError(f"loss returned the shape {tuple(losses.shape)}: return one loss per example, (B,)")
    return losses


@torch.inference_mode()
def forward_in_chunks(network: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """The outputs of a network in evaluation mode, in scaled units: (N, ...)."""
    network.eval()
    size = max(1, *(x[:1].numel() for x in inputs))
    chunks = zip(*(torch.split(x, max(1, min(8192, NUMBERS_PER_CHUNK // size))) for x in inputs), strict=True)
    return torch.cat([network(*chunk) for chunk in chunks])


def predict(problem: Problem[Any], config: Config, model: Standardized, columns: Columns) -> NDArray[np.float64]:
    """Predict with a model, in physical units: (N, ...). The target of the examples need not be known."""
    inputs = _prepare_inputs(problem, config, model, columns)
    return _physical(model, forward_in_chunks(model.network, inputs))


def _scales(model: Standardized) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean, std = (scale.cpu().double().numpy() for scale in (model.mean, model.std))
    return mean, std


def _physical(model: Standardized, outputs: Tensor) -> NDArray[np.float64]:
    mean, std = _scales(model)
    return np.asarray(mean + std * outputs.cpu().double().numpy())


class Evaluation(NamedTuple):
    """The metrics and the predictions of a model on some examples."""

    metrics: dict[str, float]  # `loss`, and the metrics of the problem
    predictions: NDArray[np.float64]  # (N, ...) in physical units


def evaluate(
    problem: Problem[Any], config: Config, model: Standardized, examples: Examples, group: Group = SINGLE_PROCESS
) -> Evaluation:
    """Evaluate a model on validation, test or new data.

    Each process of the group predicts a shard of the examples. The metrics are computed from all predictions together,
    so they may be any function of them. Rank 0 computes them for all processes, so that all of them make the same
    decisions.
    """
    n = len(examples.targets)
    sharing = group if n >= group.size else SINGLE_PROCESS  # not all networks accept an empty shard
    shard = forward_in_chunks(model.network, [sharing.shard(x) for x in examples.inputs])
    predictions = _physical(model, sharing.gather(shard, n))
    metrics = group.broadcast(lambda: compute_metrics(problem, config, model, examples, predictions))
    return Evaluation(metrics, predictions)


def compute_metrics(
    problem: Problem[Any],
    config: Config,
    model: Standardized,
    examples: Examples,
    predictions: NDArray[Any],
    *,
    name: str = "the network",
) -> dict[str, float]:
    """Compute `loss` and the metrics of the problem for predictions in physical units, by a network or another method.

    Raises:
        ProblemError: the predictions do not have the shape of the targets, or the metrics are not finite numbers.
    """
    mean, std = _scales(model)
    predictions, targets = np.asarray(predictions, dtype=np.float64), examples.physical_targets
    if predictions.shape != targets.shape:
        raise ProblemError(
            f"the predictions of {name} have the shape {predictions.shape}: return predictions of the shape "
            f"{targets.shape}, that of the targets"
        )
    outputs, wanted = (torch.from_numpy(np.asarray((x - mean) / std)) for x in (predictions, targets))
    loss = float(example_losses(problem, config, outputs, wanted).mean())  # first, since it checks the shapes
    metrics = dict(problem.metrics(config, examples.columns, predictions, targets))
    if "loss" in metrics:
        raise ProblemError("metrics returned a metric named `loss`, a name that is reserved for the loss: rename it")
    if (main := problem.main_metric(config)[0]) not in metrics:
        raise ProblemError(f"main_metric is {main!r}, which is not one of the metrics: {', '.join(metrics)}")
    if np.isfinite(predictions).all():  # otherwise training has diverged, which the trainer reports
        metrics = plain(f"metrics of {name}", metrics)
    return {"loss": loss, **metrics}


def metrics_on_unseen(
    problem: Problem[Any],
    config: Config,
    model: Standardized,
    examples: Examples,
    is_unseen: NDArray[np.bool_],
    *,
    predictions: NDArray[Any],
    baselines: Mapping[str, NDArray[Any]],
) -> tuple[Metrics | None, dict[str, Metrics] | None]:
    """The metrics of a network and of baselines on the examples whose inputs do not occur in training.

    Both are None if there are no such examples. They are also None, with a warning, if the problem cannot compute its
    metrics for these examples, for example because all of them have the same label. The metrics on all examples are
    valid in that case.

    Args:
        is_unseen: a mask of these examples, (N,).
        predictions, baselines: for all examples, (N, ...) in physical units.
    """
    if not is_unseen.any():
        return None, None
    some = examples if is_unseen.all() else select_examples(examples, is_unseen)
    try:
        metrics = compute_metrics(problem, config, model, some, predictions[is_unseen])
        of_baselines = {}
        for name, each in baselines.items():
            of_some, title = np.asarray(each)[is_unseen], f"the baseline {name}"
            of_baselines[name] = compute_metrics(problem, config, model, some, of_some, name=title)
        return metrics, of_baselines
    except (ProblemError, ValueError, ArithmeticError) as error:
        n = int(is_unseen.sum())
        warn(f"warning: no metrics for the {n:,} examples that do not occur in training: {one_line(str(error))}")
        return None, None
