# Machinery: keep, and skip at first.
"""Call the methods of a problem, and check what they return. An error names the method, and what it should return."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from engine.interface.base_config import Config
from engine.interface.base_problem import Check, Columns, Problem, Scale
from engine.machine.errors import BadRequestError, ProblemError, RunError, UnusableFileError
from engine.machine.hardware import one_blas_thread
from engine.machine.terminal import one_line

Array = NDArray[Any]
Metrics = dict[str, float]
MainMetric = tuple[str, Literal["min", "max"]]

DEFAULT_METRICS: dict[str, Literal["min", "max"]] = {"mae": "min", "nrmse": "min", "accuracy": "max"}

RESERVED = {"n", "metrics", "n_unseen", "metrics_unseen", "check", "source"}  # keys of an evaluation

PREDICTED = "predicted_"  # the beginning of the names of what a problem's `predictions` adds


def input_arrays(problem: Problem[Any], config: Config, columns: Columns) -> tuple[Array, ...]:
    """The problem's inputs. Raises ProblemError unless they are a tuple of arrays with one entry per example."""
    inputs = _ask(problem.inputs, config, columns)
    if not isinstance(inputs, tuple):
        raise ProblemError("inputs must return a tuple of arrays, such as `return (array,)` for a single one")
    for i, array in enumerate(inputs):
        _require_rows(f"array {i} of inputs", array, columns)
    return inputs


def target_array(problem: Problem[Any], config: Config, columns: Columns) -> Array:
    """The problem's target, (N, ...): float64, or int64 or Boolean if it is not scaled.

    Raises:
        ProblemError: it is not an array with one entry per example, or it has to be decided whether it is scaled.
    """
    target = _ask(problem.target, config, columns)
    _require_rows("target", target, columns)
    kind = target.dtype.kind
    if kind != "f":
        _require_decision(problem, str(target.dtype))
    if kind == "f" or target_scale(problem, config) is not False:
        return np.asarray(target, dtype=np.float64)
    return np.asarray(target, dtype=bool if kind == "b" else np.int64)


def require_useful_target(problem: Problem[Any], target: Array) -> None:
    """Raise an error if a network cannot learn anything from the training targets (N, ...), or from their scale."""
    if (target == target[:1]).all():
        raise BadRequestError(
            f"all training targets are {target.reshape(-1)[0]:g}: use data with at least two different targets"
            if target.ndim == 1
            else "all training examples have the same target: use data with at least two different targets"
        )
    if target.dtype.kind == "f" and ((target == 0) | (target == 1)).all():
        _require_decision(problem, "only zeros and ones")


def _require_decision(problem: Problem[Any], given: str) -> None:
    if type(problem).scales_target is Problem.scales_target:
        raise ProblemError(
            f"target returns {given}, so that it is not clear whether it is a class or a quantity: define "
            "scales_target, which returns False for classes and True for quantities"
        )


def target_scale(problem: Problem[Any], config: Config) -> Scale:
    """How the target is scaled. Raises ProblemError unless scales_target returns a Scale."""
    return _scale("scales_target returned", problem.scales_target(config))


def input_scales(problem: Problem[Any], n_inputs: int) -> tuple[Scale, ...]:
    """How each of the inputs is scaled. Raises ProblemError unless scale_inputs is one Scale, or one for each input."""
    given = problem.scale_inputs
    if not isinstance(given, tuple):
        return (_scale("scale_inputs is", given),) * n_inputs
    if len(given) != n_inputs:
        raise ProblemError(
            f"scale_inputs has {len(given)} values for the {n_inputs} arrays of inputs: give one for each"
        )
    return tuple(_scale("scale_inputs contains", each) for each in given)


def _scale(source: str, given: Any) -> Scale:
    if not isinstance(given, bool | np.bool_) and given != "array":
        raise ProblemError(f'{source} {given!r}: use True, "array" or False')
    return "array" if given == "array" else bool(given)


def check_of(problem: Problem[Any], config: Config, columns: Columns) -> Check:
    """The problem's check of a split, with numbers for strict JSON."""
    check = _ask(problem.check, config, columns)
    if not isinstance(check, Check):
        raise ProblemError(f"check returned {_kind(check)}: return Check({{name: number}}, fault)")
    if not isinstance(check.fault, str) or not isinstance(check.summary, str):
        raise ProblemError(
            "check returned a Check whose fault or summary is not a text: use an empty one if all is well"
        )
    return check._replace(numbers=numbers("check", check.numbers))


def metrics_of(
    problem: Problem[Any],
    config: Config,
    columns: Columns,
    predictions: Array,
    targets: Array,
    *,
    name: str,
    is_finite: bool = True,
) -> Metrics:
    """The problem's metrics of the predictions by a method of this name.

    Args:
        is_finite: whether the outputs of the network are finite. Otherwise training has diverged, which the trainer
            reports, and metrics need not be finite.

    Raises:
        ProblemError: they are not numbers, or not finite.
    """
    try:
        metrics = _ask(problem.metrics, config, columns, predictions, targets)
    except KeyError as error:
        if not str(error.args[0] if error.args else "").startswith(PREDICTED):
            raise
        raise ProblemError(
            f"metrics needs {error.args[0]}, which {name} does not have: let baselines return a dictionary with "
            '"predictions" and what `predictions` adds, or use it only if it is in columns'
        ) from None
    if isinstance(metrics, Mapping) and "loss" in metrics:
        raise ProblemError("metrics returned a metric named `loss`, a name that is reserved for the loss: rename it")
    return numbers(f"metrics of {name}", metrics, finite=is_finite)


def main_metric_of(problem: Problem[Any], config: Config, names: Sequence[str]) -> MainMetric:
    """The main metric, which is one of the metrics with these names, and its direction."""
    main = problem.main_metric(config)
    if main is None:
        main = next(((name, DEFAULT_METRICS[name]) for name in DEFAULT_METRICS if name in names), None)
    known = ", ".join(names)
    if main is None:
        raise ProblemError(
            f"metrics returns {known or 'nothing'}: define main_metric, such as "
            f'`return {names[0] if names else "name"!r}, "min"` if small values are good'
        )
    if not isinstance(main, tuple | list) or len(main) != 2 or main[1] not in get_args(Literal["min", "max"]):
        raise ProblemError(f'main_metric returned {main!r}: return the name of a metric, and "min" or "max"')
    if main[0] not in names:
        raise ProblemError(f"main_metric is {main[0]!r}, which is not one of the metrics: {known}")
    return cast(MainMetric, tuple(main))


def baselines_of(problem: Problem[Any], config: Config, train: Columns, test: Columns) -> dict[str, dict[str, Array]]:
    """What the problem's baselines predict for the test split: dictionaries with the key `predictions`, by name."""
    found = _ask(problem.baselines, config, train, test)
    if not isinstance(found, Mapping):
        raise ProblemError(f"baselines returned {_kind(found)}: return a dictionary of predictions by name")
    baselines = {}
    for name, given in found.items():
        each = dict(given) if isinstance(given, Mapping) else {"predictions": given}
        if "predictions" not in each:
            raise ProblemError(f'the baseline {name} has no key "predictions"')
        for key, array in each.items():
            _require_rows(f"{key} of the baseline {name}", array, test)
            if key == "std" and (array < 0).any():
                raise ProblemError(f"std of the baseline {name} has negative values")
        baselines[str(name)] = each
    return baselines


def examples_of(problem: Problem[Any], config: Config, test: Columns) -> NDArray[np.int64]:
    """The indices of the test examples to keep."""
    chosen = np.asarray(_ask(problem.examples, config, test))
    n = _length(test)
    if chosen.size and (chosen.dtype.kind not in "iu" or chosen.min() < -n or chosen.max() >= n):
        raise ProblemError(f"examples returned {chosen.dtype} {chosen.shape}: return indices below {n}, as integers")
    return chosen.astype(np.int64)


def report_of(problem: Problem[Any], config: Config, columns: Columns, predictions: Array) -> dict[str, Any]:
    """The problem's additional entries for the JSON file of an evaluation."""
    report = _ask(problem.report, config, columns, predictions)
    if not isinstance(report, Mapping):
        raise ProblemError(f"report returned {_kind(report)}: return a dictionary")
    if taken := RESERVED & report.keys():
        raise ProblemError(f"report returned {', '.join(sorted(taken))}, which an evaluation has itself: rename it")
    return cast(dict[str, Any], plain("report", report))


def trainer_of(problem: Problem[Any], default: type[Any]) -> type[Any]:
    """The class that trains the network of a problem: its own subclass of the default, or the default."""
    found = problem.trainer()
    if found is None:
        return default
    if not isinstance(found, type) or not issubclass(found, default):
        raise ProblemError(f"trainer returned {found!r}: return a subclass of {default.__name__}")
    return found


def _ask(method: Callable[..., Any], config: Config, columns: Columns, *others: Any) -> Any:
    """Call a method of a problem. If it looks up a column that does not exist, or changes one, the error says so.

    The method gets copies of dictionaries, and arrays that cannot be written to.
    """
    arguments = [read_only(each) if isinstance(each, Mapping) else _view(each) for each in (columns, *others)]
    try:
        with one_blas_thread():
            return method(config, *arguments)
    except KeyError as error:
        key = error.args[0] if error.args else None
        if not isinstance(key, str) or key in columns or key.startswith(PREDICTED):  # looked up in another dictionary
            raise
        missing = f"no array {key!r}, which {method.__name__} needs; there are {', '.join(columns)}"
        if config.data.file is not None:
            raise UnusableFileError(f"{config.data.file}: {missing}") from None
        raise ProblemError(f"there is {missing}") from None
    except Exception as error:
        if isinstance(error, ValueError) and "read-only" in str(error):
            raise ProblemError(
                f"{method.__name__} changes a column in place ({error}): columns are read-only, so change a copy of it"
            ) from error
        if isinstance(error, RunError) or _length(columns) > 0:
            raise
        raise ProblemError(
            f"{method.__name__} fails for n = 0 examples ({one_line(repr(error))}): let it accept empty columns"
        ) from error


def read_only(columns: Columns) -> Columns:
    """The same columns as views that cannot be written to, so that no method of a problem changes them for others."""
    return {name: _view(np.asarray(column)) for name, column in columns.items()}


def _view(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values())))


def _kind(value: Any) -> str:
    return f"an array {value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _require_rows(name: str, array: Any, columns: Columns) -> None:
    n = _length(columns)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.shape[:1] != (n,):
        given = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ProblemError(
            f"{name} is {given}: return a NumPy array of numbers with one entry for each of {n} examples"
        )
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        first = int(np.argmin(finite.reshape(n, -1).all(axis=1)))
        raise ProblemError(f"{name} is infinite, or not a number, in example {first}: return finite numbers")


def numbers(name: str, values: Any, *, finite: bool = True) -> Metrics:
    """Convert what a method of this name returned to a dictionary of numbers. With `finite`, they have to be finite."""
    if not isinstance(values, Mapping):
        raise ProblemError(f"{name} returned {_kind(values)}: return a dictionary of numbers by name")
    for key, value in values.items():
        is_number = isinstance(value, bool | int | float | np.generic) or getattr(value, "shape", None) == ()
        if not is_number or np.asarray(value).dtype.kind not in "biuf":
            raise ProblemError(f"{name}: {key} is {_kind(value)}: return a number, such as a mean over the examples")
    if not finite:
        return {str(key): float(value) for key, value in values.items()}
    return cast(Metrics, plain(name, {key: np.asarray(value) for key, value in values.items()}))


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
