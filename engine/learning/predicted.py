# Machinery: keep, and skip at first.
"""What a network, a baseline or an ensemble predicts, in physical units."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.interface.base_config import Config
from engine.interface.base_problem import Problem
from engine.interface.returned_values import PREDICTED
from engine.learning.standardized import Standardized
from engine.machine.errors import ProblemError

Array = NDArray[Any]


class Predicted(NamedTuple):
    """What a network or another method predicts for some examples, in physical units."""

    values: Array  # (N, ...)
    others: dict[str, Array]  # what the problem's `predictions` adds, by name with `predicted_`, each (N, ...)
    outputs: Tensor | None  # in scaled units, float64 on the CPU; None if the method has no outputs, and so no loss

    def arrays(self) -> dict[str, Array]:
        """All arrays by name, as in predictions.npz."""
        return {"predictions": self.values, **self.others}

    def select(self, chosen: NDArray[np.bool_]) -> Self:
        """The predictions for some of the examples, by a mask (N,)."""
        outputs = None if self.outputs is None else self.outputs[torch.from_numpy(chosen)]
        others = {name: array[chosen] for name, array in self.others.items()}
        return self._replace(values=self.values[chosen], others=others, outputs=outputs)


def predicted_from(problem: Problem[Any], config: Config, model: Standardized, outputs: Tensor) -> Predicted:
    """Convert the outputs of the network for a split to predictions.

    Raises:
        ProblemError: the problem's `predictions` returned something that cannot be converted.
    """
    outputs = outputs.detach().cpu().double()
    found: Any = problem.predictions(config, outputs)
    tensors = dict(found) if isinstance(found, Mapping) else {"predictions": found}
    if "predictions" not in tensors:
        raise ProblemError('predictions returned a dictionary without the key "predictions"')
    arrays = {name: _in_physical_units(model, name, tensor, len(outputs)) for name, tensor in tensors.items()}
    values = arrays.pop("predictions")
    return Predicted(values, {f"{PREDICTED}{name}": array for name, array in arrays.items()}, outputs)


def _in_physical_units(model: Standardized, name: str, values: Any, n: int) -> Array:
    if not isinstance(values, Tensor) or values.shape[:1] != (n,):
        given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ProblemError(
            f"predictions returned {given} for {name!r}: return a tensor with {n} entries, one per example"
        )
    if not model.target_scale:
        return values.numpy()
    if model.mean.ndim > 0 and values.shape[1:] != model.target_shape:
        raise ProblemError(
            f"predictions returned the shape {tuple(values.shape)} for {name!r}: return {(n, *model.target_shape)}, "
            "the shape of the target, or switch its scaling off with scales_target"
        )
    scaled = np.asarray(model.std * values)
    if name == "std":
        if (scaled < 0).any():
            raise ProblemError("predictions returned negative values for 'std': use a positive function, such as exp()")
        return scaled
    if name != "predictions" and not name.startswith("quantile"):
        raise ProblemError(
            f"predictions returned {name!r}, whose physical units are not known: return a standard deviation as "
            '"std", or values of the target with names that begin with "quantile"'
        )
    return np.asarray(model.mean.numpy() + scaled)


def predicted_by(model: Standardized, given: Mapping[str, Array]) -> Predicted:
    """The predictions of a baseline, or of an ensemble: arrays in physical units with the key `predictions`."""
    values, outputs = given["predictions"], None
    others = {
        f"{PREDICTED}{name.removeprefix(PREDICTED)}": each for name, each in given.items() if name != "predictions"
    }
    if model.predicts_outputs and values.shape[1:] == model.target_shape:  # otherwise compute_metrics refuses them
        outputs = (torch.from_numpy(np.array(values, dtype=np.float64)) - model.mean) / model.std
    return Predicted(values, others, outputs)
