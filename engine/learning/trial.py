# Machinery: keep, and skip at first.
"""Try all methods of a problem before the first epoch, so that a mistake in one of them is not found hours later."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.datasets.splits import Data
from engine.interface.base_config import Config
from engine.interface.base_problem import Columns, Problem, Splits
from engine.interface.returned_values import PREDICTED, baselines_of, examples_of, report_of, target_array
from engine.learning.predicted import Predicted, predicted_by, predicted_from
from engine.learning.prediction import (
    NUMBERS_PER_CHUNK,
    Examples,
    compute_metrics,
    evaluate,
    example_losses,
    forward_in_chunks,
    prepare,
)
from engine.learning.standardized import Standardized
from engine.machine.errors import ProblemError
from engine.machine.terminal import print_line, warn


def try_problem(
    problem: Problem[Any], config: Config, model: Standardized, splits: Splits | Data
) -> dict[str, Predicted]:
    """Call all methods of a problem with the data and the untrained network, and check what they return.

    Returns:
        The predictions of the baselines for the test split, by name.

    Raises:
        ProblemError: a method returned something that cannot be used, or the loss has no finite gradient.
    """
    for name in ("label", "data_label", "loss_name"):
        if not isinstance(text := getattr(problem, name)(config), str):
            raise ProblemError(f"{name} returned {type(text).__name__}: return a text")
    first = {name: column[: config.train.batch_size] for name, column in splits.train.items()}
    _require_finite_gradient(problem, config, model, prepare(problem, config, model, first))
    val, test = (prepare(problem, config, model, columns) for columns in (splits.val, splits.test))
    _, predicted = evaluate(problem, config, model, val)
    report_of(problem, config, {**val.columns, **predicted.others}, predicted.values)
    examples_of(problem, config, test.columns)
    if test.physical_targets.dtype.kind == "i":
        _report_classes(problem, config, target_array(problem, config, splits.train), {"validation": val, "test": test})
    expected = {name: array.shape[1:] for name, array in predicted.arrays().items()}
    found = baselines_of(problem, config, splits.train, splits.test)
    has_own = type(problem).baselines is not Problem.baselines
    if found and (has_own or expected == {"predictions": model.target_shape}):
        baselines = {name: predicted_by(model, each) for name, each in found.items()}
    else:
        return _constant(problem, config, model, splits.train, test)
    for name, each in baselines.items():
        if wrong := [key for key, array in each.arrays().items() if array.shape[1:] != expected.get(key)]:
            raise ProblemError(
                f"{wrong[0].removeprefix(PREDICTED)} of the baseline {name} has the shape "
                f"{each.arrays()[wrong[0]].shape}: return the same quantities as for the network, in the same shapes: "
                + ", ".join(f"{key.removeprefix(PREDICTED)} {('N', *shape)}" for key, shape in expected.items())
            )
        compute_metrics(problem, config, model, test, each, name=f"the baseline {name}")
    return baselines


def _report_classes(
    problem: Problem[Any], config: Config, training: NDArray[Any], splits: Mapping[str, Examples]
) -> None:
    """Warn of classes that do not occur in training, and name those that do, but not in another split."""
    names, known = problem.class_names(config), set(np.unique(training).tolist())

    def shown(numbers: set[int]) -> str:
        return ", ".join(str(i if names is None else names[i]) for i in sorted(numbers)[:5])

    for name, split in splits.items():
        found = set(np.unique(split.physical_targets).tolist())
        if found - known:
            warn(f"warning: the {name} split has classes that do not occur in training: {shown(found - known)}")
        if known - found:
            print_line(
                f"{len(known - found)} of {len(known)} classes are not in the {name} split: {shown(known - found)}"
            )


def _constant(
    problem: Problem[Any], config: Config, model: Standardized, train: Columns, test: Examples
) -> dict[str, Predicted]:
    """The baseline `constant`, or nothing if the best outputs are infinite, or the metrics not defined for them."""
    outputs = best_constant(problem, config, model, train)
    try:
        constant = predicted_from(problem, config, model, outputs.expand(len(test.targets), *outputs.shape))
        metrics = compute_metrics(problem, config, model, test, constant, name="the baseline constant")
    except ProblemError:  # it is not a mistake of the problem, whose metrics have been tried with the network
        return {}
    return {"constant": constant} if all(map(math.isfinite, metrics.values())) else {}


def _require_finite_gradient(problem: Problem[Any], config: Config, model: Standardized, examples: Examples) -> None:
    """Raise ProblemError if outputs, loss or gradient are not finite before training. A lower rate cannot mend that."""
    try:
        network = copy.deepcopy(model.network).train()
    except RuntimeError:  # some networks cannot be copied
        return
    with torch.random.fork_rng(devices=[]):
        outputs = network(*examples.inputs)
        loss = example_losses(problem, config, outputs, examples.targets).mean()
    if not outputs.isfinite().all():
        raise ProblemError(
            "the untrained network returns infinite values, or not numbers: check its layers and weights"
        )
    if not loss.isfinite():
        raise ProblemError(
            f"loss is {loss.item()} before training, for finite outputs: check it, for example for the logarithm or "
            "the root of a negative number"
        )
    if not loss.requires_grad:
        raise ProblemError("the loss does not depend on parameters of the network, so that nothing can be trained")
    loss.backward()  # type: ignore[no-untyped-call]
    if not all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None):
        raise ProblemError(
            "the gradient of the loss is not finite before training, although the loss is: check loss and network, for "
            "example for the root of zero"
        )


def best_constant(problem: Problem[Any], config: Config, model: Standardized, train: Columns) -> torch.Tensor:
    """The outputs of one example that, used for all training examples, have the lowest loss: float64, (...).

    They are the mean of the targets if the loss is the squared error, and logarithms of the shares of the classes if it
    is a cross-entropy. If there are very many numbers, every k-th example is used.
    """
    few = prepare(problem, config, model, {name: column[:2] for name, column in train.items()})
    shape = forward_in_chunks(model.network, few.inputs).shape[1:]
    stride = math.ceil(len(next(iter(train.values()))) * math.prod(shape) / NUMBERS_PER_CHUNK)
    examples = prepare(problem, config, model, {name: column[::stride] for name, column in train.items()})
    targets = model.scaled_targets(examples.physical_targets)
    outputs = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = example_losses(problem, config, outputs.expand(len(targets), *shape), targets).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return outputs.detach()
