"""The seam between a problem and the machinery: everything that the machinery asks about a problem.

A problem is one object: a subclass of Problem, and one instance of it named PROBLEM in the same file. A data set is a
dictionary of named arrays, its columns; the inputs of the network and the target are functions of the columns. Three
methods are required: inputs, target and network, and a generator unless the data come from a file. The others have
defaults that suit regression. docs/your-own-problem.md is the guide, examples/ has complete problems.

Nothing here loads torch or matplotlib, so that `--help` is instant. Import them inside the methods that need them if
you want the same for your problem.
"""

import importlib
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray

from engine.config import Config
from engine.errors import BadRequestError, ProblemError, UnusableFileError
from engine.files import read_info

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

C = TypeVar("C", bound=Config)

Columns = Mapping[str, NDArray[Any]]  # arrays of any dtype with equal first axes: one entry per example
Shape = tuple[int, ...]

ROOT = Path(__file__).parent.parent


class Splits(NamedTuple):
    """The data of a run."""

    train: Columns
    val: Columns
    test: Columns


class Check(NamedTuple):
    """The result of checking data: numbers for results.json, and a fault if the data are wrong."""

    numbers: Mapping[str, float]
    fault: str = ""  # what is wrong and what to do, in one line; an error for generated data, a warning for --data
    summary: str = ""  # a line for the terminal


class Problem(ABC, Generic[C]):
    """What to predict from what.

    N is the number of examples in a split, B that in a batch.
    """

    name: ClassVar[str]  # of the W&B project and of cached data
    config_type: type[C]
    presets: Mapping[str, C]  # with one named "default"
    scale_inputs: ClassVar[bool] = True  # floating-point inputs to mean 0 and deviation 1, as in the training split

    def generate(self, config: C, n: int, seed: SeedSequence) -> Columns:
        """Generate n independent examples, a function of these arguments only.

        With n = 0, return empty columns of the right shapes and dtypes, quickly: they are used to refuse requests
        early. The columns are cached until an option, or the code of the file that defines this method, changes. A
        problem can set `generate = staticmethod(function)` so that this file is another one than that of its networks.
        """
        raise BadRequestError(f"--data: give a file with the examples; {self.name} cannot generate any")

    @abstractmethod
    def inputs(self, config: C, columns: Columns) -> tuple[NDArray[Any], ...]:
        """The arguments of the network, each (N, ...).

        Floating-point arrays are scaled (see scale_inputs) and arrive as float32. Integers arrive as they are.
        """

    @abstractmethod
    def target(self, config: C, columns: Columns) -> NDArray[Any]:
        """The numbers to predict, (N,) or (N, k), in physical units."""

    @abstractmethod
    def network(self, config: C, input_shapes: tuple[Shape, ...], target_shape: Shape) -> "nn.Module":
        """The network with random weights. It is called as network(*inputs) and answers (B,) or (B, k).

        Args:
            input_shapes, target_shape: without the first axis, such as ((8, 8), ()) and ().

        Raises:
            ValueError: the options and these shapes do not go together. The message is shown to the user.
        """

    def read(self, config: C, columns: Columns) -> Columns:
        """Check and convert the arrays of a file of --data, which are read when they are first looked up.

        Raises:
            KeyError, ValueError: an array is missing or wrong. The message is shown to the user.
        """
        return dict(columns)

    def check(self, config: C, columns: Columns) -> Check:
        """Compare the examples of a split with what is known about them."""
        return Check({})

    def scales_target(self, config: C) -> bool:
        """Whether the network answers in units in which the training targets have mean 0 and deviation 1."""
        return True

    def loss(self, config: C, answers: "Tensor", targets: "Tensor") -> "Tensor":
        """The loss of each example: (B, ...), (B, ...) -> (B,), in the scaled units, for training and validation."""
        return ((answers - targets) ** 2).reshape(len(targets), -1).mean(dim=1)

    def loss_name(self, config: C) -> str:
        """The label of the loss in figures."""
        return "loss"

    def metrics(
        self, config: C, columns: Columns, predictions: NDArray[Any], targets: NDArray[Any]
    ) -> dict[str, float]:
        """How good the predictions for a whole split are: (N, ...), (N, ...) float64, in physical units."""
        return regression_metrics(predictions, targets)

    def main_metric(self, config: C) -> tuple[str, Literal["min", "max"]]:
        """The metric to compare runs by, and whether small or large values of it are good."""
        return "mae", "min"

    def baselines(self, config: C, train: Columns, test: Columns) -> dict[str, NDArray[Any]]:
        """Predictions for the test split by simple methods, in physical units, by the name of the method."""
        target = self.target(config, train)
        n_test = len(next(iter(test.values())))
        return {"mean": np.broadcast_to(target.mean(axis=0), (n_test, *target.shape[1:]))}

    def report(self, config: C, columns: Columns, predictions: NDArray[Any]) -> dict[str, Any]:
        """More keys for the JSON of an evaluation on new data."""
        return {}

    def examples(self, config: C, test: Columns) -> NDArray[np.integer]:
        """Indices, of any shape, of the test examples that predictions.npz keeps for figures."""
        return np.arange(0)

    def figures(self, config: C, arrays: Columns) -> dict[str, "Figure"]:
        """The figures of a run by name, beside its training curves. An evaluation shows the first of them.

        Args:
            arrays: `targets` and `predictions` (N, ...) on the test split, and the columns with one number per example.
                Of a run also `baseline_*`, and `example_*`: columns, targets and predictions of the chosen examples.
                Of an evaluation also the other columns.
        """
        from engine.figures import parity

        return {"parity": parity(arrays["targets"], arrays["predictions"])}

    def label(self, config: C) -> str:
        """A short description of a config for run names, W&B groups and tables."""
        return self.name

    def data_label(self, config: C) -> str:
        """A short description of the generator options, which names the result of an evaluation."""
        return "new"


def regression_metrics(predictions: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    """Mean absolute error, root mean square error, and R^2 averaged over the components: (N, ...), (N, ...)."""
    errors = predictions - targets
    squared = (errors**2).sum(axis=0)
    variation = ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    varies = variation > 1e-12 * (targets**2).sum(axis=0)  # by more than rounding
    # For targets that do not vary, 1 if all are predicted exactly and 0 otherwise, as in scikit-learn.
    r2 = np.where(varies, 1 - squared / np.where(varies, variation, 1), squared == 0)
    return {
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt((errors**2).mean())),
        "r2": float(r2.mean()),
    }


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
    try:
        return method(config, columns)
    except KeyError as error:
        if not error.args or error.args[0] in columns:
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
    """A value for strict JSON: NumPy scalars and arrays become numbers and lists.

    Raises:
        ProblemError: a number is infinite or not a number, or the value is something else. Names it.
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


def module_name(problem: Problem[Any]) -> str:
    """The name by which load_problem imports the problem's module, also if it is the script that runs."""
    name = type(problem).__module__
    if name != "__main__":
        return name
    main = sys.modules["__main__"]
    if main.__spec__ is not None:  # python -m package.module
        return main.__spec__.name
    path = Path(str(main.__file__)).resolve()
    return ".".join(path.relative_to(ROOT).with_suffix("").parts) if path.is_relative_to(ROOT) else path.stem


def load_problem(name: str) -> Problem[Any]:
    """The object PROBLEM of a module.

    Raises:
        BadRequestError: there is no such module.
        ProblemError: the module cannot be imported, or has no PROBLEM.
    """
    main = sys.modules["__main__"]
    try:
        if (running := getattr(main, "PROBLEM", None)) is not None and module_name(running) == name:
            return running  # type: ignore[no-any-return]
        problem = importlib.import_module(name).PROBLEM
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0] and error.name != name:
            raise ProblemError(f"the module {name} cannot be imported: {error}") from error
        raise BadRequestError(f"there is no module {name}: run this where it can be imported, or restore it") from None
    except (ImportError, AttributeError) as error:
        raise ProblemError(f"the module {name} has no PROBLEM, or cannot be imported: {error}") from error
    if not isinstance(problem, Problem):
        raise ProblemError(f"{name}.PROBLEM is {type(problem).__name__}; it must be an instance of a Problem")
    return problem


def problem_of(folder: Path) -> Problem[Any]:
    """The problem of a run, by the module that its run_info.json names.

    Raises:
        RunError: run_info.json is damaged, or the module cannot be imported.
    """
    return load_problem(str(read_info(folder).get("problem", "problem")))  # the first version had only one problem
