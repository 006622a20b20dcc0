# Machinery: keep, and skip at first.
"""What the methods of a problem return, with checks. An error names the method."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.interface.base_config import Config
from engine.interface.base_problem import Columns, Problem
from engine.machine.errors import ProblemError, UnusableFileError


def input_arrays(problem: Problem[Any], config: Config, columns: Columns) -> tuple[NDArray[Any], ...]:
    """The problem's inputs. Raises ProblemError unless they are a tuple of arrays with one entry per example."""
    inputs = _ask(problem.inputs, config, columns)
    if not isinstance(inputs, tuple):
        raise ProblemError("inputs must return a tuple of arrays, such as `return (array,)` for a single one")
    for i, array in enumerate(inputs):
        _require_rows(f"array {i} of inputs", array, columns)
    return inputs


def target_array(problem: Problem[Any], config: Config, columns: Columns) -> NDArray[np.float64]:
    """The problem's target in float64. Raises ProblemError unless it is (N,) or (N, k)."""
    target = _ask(problem.target, config, columns)
    _require_rows("target", target, columns)
    if target.ndim > 2:
        raise ProblemError(f"target has the shape {target.shape}: return (N,), or (N, k) for k numbers")
    return np.asarray(target, dtype=np.float64)


def _ask(method: Callable[[Any, Columns], Any], config: Config, columns: Columns) -> Any:
    """Call a method of the problem. If it looks up a column that does not exist, raise an error with its name."""
    try:
        return method(config, columns)
    except KeyError as error:
        if not error.args or error.args[0] in columns:  # the key was looked up in another dictionary
            raise
        missing = f"no array {error.args[0]!r}, which {method.__name__} needs; there are {', '.join(columns)}"
        if config.data.file is not None:
            raise UnusableFileError(f"{config.data.file}: {missing}") from None
        raise ProblemError(f"generate returned {missing}") from None


def _require_rows(name: str, array: Any, columns: Columns) -> None:
    n = len(next(iter(columns.values())))
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.shape[:1] != (n,):
        given = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ProblemError(f"{name} is {given}: return a NumPy array of numbers with {n} entries, one per example")


def plain(name: str, value: Any) -> Any:
    """Convert a value for strict JSON: NumPy scalars and arrays become numbers and lists.

    Raises:
        ProblemError: a number is infinite or NaN, or a value has another type. The message contains its name.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(f"{name}: {key}", each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(name, each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(name, value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        raise ProblemError(f"{name} is {value}: return a finite number, or leave it out")
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ProblemError(f"{name} is {type(value).__name__}: return a number")
    return value
