# Machinery: keep, and skip at first.
"""The memory that a network needs for training, which is estimated before it is built."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from engine.interface.base_config import Config
from engine.interface.base_problem import Problem, Shape
from engine.learning.standardized import Shapes, new_model
from engine.machine.hardware import require_memory


class _WithoutInPlace(TorchFunctionMode):
    """Skip functions that change a tensor in place, such as the random initialisation of weights.

    On the device `meta` they do nothing, but some of them load torch.compile, which takes a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def require_memory_for_training(
    problem: Problem[Any], config: Config, get_shapes: Callable[[], tuple[tuple[Shape, ...], Shape]]
) -> None:
    """Raise BadRequestError if the weights, gradients and optimiser of the network would not fit in memory.

    The shapes are those of the inputs and of the target. If the problem does not support them, its error is raised.
    """
    shapes = get_shapes()
    if (n_bytes := bytes_of_parameters(problem, config, shapes)) is None:
        new_model(problem, config, Shapes(*shapes))  # raises the error, unless the network only needs another device
    # the weights, their gradients, two moments of the optimiser, and the weights of the best epoch
    require_memory(5 * (n_bytes or 0), "to train it, the network needs", "choose a smaller network")


def bytes_of_parameters(problem: Problem[Any], config: Config, shapes: tuple[tuple[Shape, ...], Shape]) -> int | None:
    """The size of the parameters of a network for inputs and a target of these shapes. None if it cannot be found.

    They are counted in a network on torch's device `meta`, which allocates no memory.
    """
    try:
        with torch.device("meta"), _WithoutInPlace():
            network = problem.network(config, *shapes)
        return sum(p.numel() * p.element_size() for p in network.parameters())
    except Exception:  # the network reads numbers from tensors, or the problem has an error, which is reported later
        return None
