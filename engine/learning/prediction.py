# Machinery: keep, and skip at first.
"""From columns to predictions in physical units, and to losses and metrics."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.datasets.overlap import select
from engine.interface.base_config import Config
from engine.interface.base_problem import Columns, Problem
from engine.interface.returned_values import input_arrays, main_metric_of, metrics_of, read_only, target_array
from engine.learning.distributed import SINGLE_PROCESS, Group
from engine.learning.network_memory import require_memory_for_training
from engine.learning.predicted import Predicted, predicted_from
from engine.learning.standardized import Shapes, Standardized, new_model
from engine.machine.errors import ProblemError
from engine.machine.terminal import one_line, warn

Array = NDArray[Any]
Metrics = dict[str, float]

NUMBERS_PER_CHUNK = 2**22  # input values that are evaluated at once: 16 MiB as float32


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
    model.set_scales(inputs, target)
    two = {name: column[:2] for name, column in train.items()}
    _require_separate_examples("inputs", inputs, input_arrays(problem, config, two))
    _require_separate_examples("target", (target,), (target_array(problem, config, two),))
    few = prepare(problem, config, model, two)
    _require_arguments(model.network, len(inputs))
    with torch.no_grad():  # two examples are enough to check the shapes of outputs and losses
        try:
            outputs = model.eval().network(*few.inputs)
        except (RuntimeError, TypeError):
            _explain_integers(model.network, few.inputs)
            raise
        losses = example_losses(problem, config, outputs, few.targets)
        pairs = zip(torch.split(outputs, 1), torch.split(few.targets, 1), strict=True)
        alone = torch.cat([example_losses(problem, config, *pair) for pair in pairs])
    if not torch.allclose(losses, alone, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise ProblemError(
            "the loss of an example differs if others are in the batch: compute it from the outputs and the target of "
            "that example only, and check that shapes are not broadcast"
        )
    return model


def _require_separate_examples(name: str, of_all: Sequence[Array], of_few: Sequence[Array]) -> None:
    """Raise ProblemError unless a method returns the same for the first examples alone as for all examples."""
    for all_rows, rows in zip(of_all, of_few, strict=True):
        if not np.allclose(all_rows[: len(rows)], rows, rtol=1e-5, atol=1e-5 * float(np.abs(rows).max(initial=0))):
            raise ProblemError(
                f"{name} returns other values for two examples alone than for the same two among all: compute the "
                "values of an example from its own columns only, without random numbers or means over the examples"
            )


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


def _explain_integers(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """After an error of the network, raise ProblemError if it only fails because some inputs are not floats."""
    exact = [i for i, x in enumerate(inputs) if not x.is_floating_point()]
    try:
        network(*(x.float() for x in inputs))
    except Exception:  # of any type: the network has another error, which is raised again
        return
    if exact:
        kind = str(inputs[exact[0]].dtype).removeprefix("torch.")
        raise ProblemError(
            f"the network fails because array {exact[0]} of inputs is {kind}, which it receives unchanged: convert it "
            "in forward with x.float(), or return floats from inputs"
        ) from None


class Examples(NamedTuple):
    """The examples of a split: tensors in scaled units on the device of a model, targets, and columns."""

    inputs: tuple[Tensor, ...]  # each (N, ...), float32 or integers
    targets: Tensor  # (N, ...) float32, or int64 for unscaled integers
    physical_targets: Array  # (N, ...) float64, int64 or Boolean
    columns: Columns


def select_examples(examples: Examples, chosen: NDArray[np.bool_]) -> Examples:
    """Select examples by a mask (N,)."""
    rows = torch.from_numpy(chosen).to(examples.targets.device)
    inputs = tuple(x[rows] for x in examples.inputs)
    return Examples(inputs, examples.targets[rows], examples.physical_targets[chosen], select(examples.columns, chosen))


def prepare(problem: Problem[Any], config: Config, model: Standardized, columns: Columns) -> Examples:
    """Convert columns to the inputs and targets of the model's network."""
    columns = read_only(columns)
    target = target_array(problem, config, columns)
    targets = model.scaled_targets(target)
    targets = (targets.float() if targets.is_floating_point() else targets).to(model.device)
    return Examples(_prepare_inputs(problem, config, model, columns), targets, target, columns)


def _prepare_inputs(problem: Problem[Any], config: Config, model: Standardized, columns: Columns) -> tuple[Tensor, ...]:
    tensors = []
    for array in input_arrays(problem, config, columns):
        dtype = np.float64 if array.dtype.kind == "f" and array.dtype != np.float32 else array.dtype.newbyteorder("=")
        with warnings.catch_warnings():  # that a tensor could write to a read-only array, which is not done here
            warnings.simplefilter("ignore", UserWarning)
            tensors.append(torch.from_numpy(np.ascontiguousarray(array, dtype)))
    return tuple(tensor.to(model.device) for tensor in model.scaled_inputs(tensors))


def example_losses(problem: Problem[Any], config: Config, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each example, (B,), in training and in validation.

    Raises:
        ProblemError: the shape of outputs or losses is wrong. Without this check, broadcasting could hide the mistake.
    """
    if not isinstance(outputs, Tensor):
        raise ProblemError(f"the network returned {type(outputs).__name__}: return one tensor, such as torch.cat(...)")
    if outputs.shape != targets.shape if problem.predicts_outputs(config) else outputs.shape[:1] != targets.shape[:1]:
        raise ProblemError(
            f"the network returned outputs of the shape {tuple(outputs.shape)} for targets of the shape "
            f"{tuple(targets.shape)}: make the shapes equal, for example with squeeze(-1), or, if the outputs are "
            "not predictions of the target, such as logits of classes, define `predictions`"
        )
    if outputs.shape != targets.shape and type(problem).loss is Problem.loss:
        raise ProblemError(
            f"the squared error is not defined for outputs of the shape {tuple(outputs.shape)} and targets of the "
            f"shape {tuple(targets.shape)}: define loss"
        )
    try:
        losses = problem.loss(config, outputs, targets)
    except IndexError as error:
        if "out of bounds" not in str(error):
            raise
        raise ProblemError(f"loss: {error} Return numbers of classes from 0 to the number of logits minus 1") from error
    except (RuntimeError, TypeError) as error:
        if targets.is_floating_point():
            raise
        try:
            losses = problem.loss(config, outputs, targets.to(outputs.dtype))  # such as a binary cross-entropy
        except Exception:  # the type of the targets is not the reason
            raise error from None
    if not isinstance(losses, Tensor) or losses.shape != targets.shape[:1]:
        given = f"the shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ProblemError(
            f"loss returned {given}: return one loss per example, (B,), for example with .flatten(1).mean(dim=1) after "
            'reduction="none"'
        )
    return losses


@torch.inference_mode()
def forward_in_chunks(network: nn.Module, inputs: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """The outputs of a network in evaluation mode, in scaled units: (N, ...)."""
    network.eval()
    size = max(1, *(x[:1].numel() for x in inputs))
    chunks = zip(*(torch.split(x, max(1, min(8192, NUMBERS_PER_CHUNK // size))) for x in inputs), strict=True)
    return torch.cat([network(*chunk) for chunk in chunks])


def predict(problem: Problem[Any], config: Config, model: Standardized, columns: Columns) -> Array:
    """Predict with a model, in physical units: (N, ...). The target of the examples need not be known."""
    return predict_all(problem, config, model, columns)["predictions"]


def predict_all(problem: Problem[Any], config: Config, model: Standardized, columns: Columns) -> dict[str, Array]:
    """Like `predict`, together with what the problem's `predictions` adds, such as `predicted_std`."""
    return predicted_for_columns(problem, config, model, columns).arrays()


def predicted_for_columns(problem: Problem[Any], config: Config, model: Standardized, columns: Columns) -> Predicted:
    """What a model predicts for examples, together with its outputs."""
    inputs = _prepare_inputs(problem, config, model, read_only(columns))
    return predicted_from(problem, config, model, forward_in_chunks(model.network, inputs))


class Evaluation(NamedTuple):
    """The metrics and the predictions of a model on some examples."""

    metrics: Metrics  # `loss`, and the metrics of the problem
    predicted: Predicted


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
    predicted = predicted_from(problem, config, model, sharing.gather(shard, n))
    metrics = group.broadcast(lambda: compute_metrics(problem, config, model, examples, predicted))
    main_metric_of(problem, config, [name for name in metrics if name != "loss"])
    return Evaluation(metrics, predicted)


def compute_metrics(
    problem: Problem[Any],
    config: Config,
    model: Standardized,
    examples: Examples,
    predicted: Predicted,
    *,
    name: str = "the network",
) -> Metrics:
    """The metrics of the problem for predictions by a network or another method and, if it has outputs, their `loss`.

    Raises:
        ProblemError: the predictions do not have the shape of the targets, or the metrics are not finite numbers.
    """
    values, targets = predicted.values, examples.physical_targets
    has_metrics = type(problem).metrics is not Problem.metrics
    is_free = has_metrics and not model.predicts_outputs and not model.target_scale  # for example, probabilities
    if values.shape != targets.shape and not (is_free and values.ndim > targets.ndim and values.size > targets.size):
        raise ProblemError(
            f"the predictions of {name} have the shape {values.shape}: return predictions of the shape "
            f"{targets.shape}, that of the targets"
            + ("" if has_metrics or model.predicts_outputs else ", or define metrics")
        )
    losses, is_finite = {}, values.dtype.kind != "f" or bool(np.isfinite(values).all())
    if predicted.outputs is not None:
        wanted = model.scaled_targets(targets)
        losses["loss"] = float(example_losses(problem, config, predicted.outputs, wanted).mean())
        is_finite = bool(predicted.outputs.isfinite().all())
    columns = {**examples.columns, **predicted.others}
    return losses | metrics_of(problem, config, columns, values, targets, name=name, is_finite=is_finite)


def metrics_on_unseen(
    problem: Problem[Any],
    config: Config,
    model: Standardized,
    examples: Examples,
    is_unseen: NDArray[np.bool_],
    *,
    predicted: Predicted,
    baselines: Mapping[str, Predicted],
) -> tuple[Metrics | None, dict[str, Metrics] | None]:
    """The metrics of a network and of baselines on the examples whose inputs do not occur in training.

    Both are None if there are no such examples. They are also None, with a warning, if the problem cannot compute its
    metrics for these examples, for example because all of them have the same label. The metrics on all examples are
    valid in that case.

    Args:
        is_unseen: a mask of these examples, (N,).
        predicted, baselines: for all examples.
    """
    if not is_unseen.any():
        return None, None
    some = examples if is_unseen.all() else select_examples(examples, is_unseen)
    try:
        metrics = compute_metrics(problem, config, model, some, predicted.select(is_unseen))
        of_baselines = {}
        for name, each in baselines.items():
            of_some, title = each.select(is_unseen), f"the baseline {name}"
            of_baselines[name] = compute_metrics(problem, config, model, some, of_some, name=title)
        return metrics, of_baselines
    except (ProblemError, ValueError, ArithmeticError) as error:
        n = int(is_unseen.sum())
        warn(f"warning: no metrics for the {n:,} examples that do not occur in training: {one_line(str(error))}")
        return None, None
