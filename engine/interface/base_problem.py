# Machinery: keep, and skip at first.
"""The interface between a problem and the rest of the program: everything that the program needs to know about it.

A problem is an object: an instance, named PROBLEM, of a subclass of Problem in the same file. A data set is a
dictionary of named arrays, its columns. The inputs of the network and the target are functions of the columns. You have
to define three methods, inputs, target and network, and also generate, unless the data come from a file. The other
methods have defaults that suit regression. docs/your-own-problem.md is the guide; examples/ has complete problems.

This file does not load torch or matplotlib, so that `--help` is fast. To have the same for your problem, import them
inside the methods that need them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray

from engine.interface.base_config import Config
from engine.machine.errors import BadRequestError, ProblemError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

C = TypeVar("C", bound=Config)

Columns = Mapping[str, NDArray[Any]]  # arrays of any dtype with equal first axes: one entry per example
Shape = tuple[int, ...]
Scale = bool | Literal["array"]  # True: by component for a matrix (N, k), else by array; "array": by array; False: none


class FileColumns(Mapping[str, NDArray[Any]]):
    """The arrays of a file of --data. An array is read and checked when it is looked up."""

    @abstractmethod
    def is_text(self, name: str) -> bool:
        """Whether an array is text. Unlike looking it up, this accepts missing values."""


class Splits(NamedTuple):
    """The data of a run."""

    train: Columns
    val: Columns
    test: Columns


class Check(NamedTuple):
    """The result of checking data: numbers for results.json, and a message if the data are wrong."""

    numbers: Mapping[str, float]
    fault: str = ""  # what is wrong and what to do, in one line; an error for generated data, a warning for --data
    summary: str = ""  # a line for the terminal


class Problem(ABC, Generic[C]):
    """What is predicted, and from which inputs.

    N is the number of examples in a split, and B is the number in a batch.
    """

    name: ClassVar[str]  # names the W&B project and the files of cached data
    config_type: type[C]
    presets: Mapping[str, C]  # configs by name; one of them is named "default"
    scale_inputs: ClassVar[Scale | tuple[Scale, ...]] = True  # how floating-point inputs are scaled; see `inputs`
    block_size: ClassVar[int | None] = None  # of a slow generator: examples per block; see `generate`

    def generate(self, config: C, n: int, seed: SeedSequence) -> Columns:
        """Generate n independent examples, which only depend on these arguments.

        With n = 0, quickly return empty columns of the right shapes and dtypes. They are used to refuse bad requests
        early. The columns are cached until an option changes, or the code that this method uses.

        If the class sets block_size, the method is called for one block of examples at a time, in several processes,
        with a seed for each block. Finished blocks are kept, so that an interrupted generation can be continued.
        """
        raise BadRequestError(f"--data: give a file with the examples; {self.name} cannot generate any")

    @abstractmethod
    def inputs(self, config: C, columns: Columns) -> tuple[NDArray[Any], ...]:
        """The inputs of the network, each (N, ...).

        The network receives integers and Booleans unchanged, and floating-point arrays as float32, scaled to mean 0 and
        standard deviation 1 in the training split. With scale_inputs = True, each column of a matrix (N, k) has its own
        mean and deviation, and any other array has one of each; with "array", every array has one of each; with False,
        nothing is scaled. A tuple has one of these values for each array.
        """

    @abstractmethod
    def target(self, config: C, columns: Columns) -> NDArray[Any]:
        """What to predict: an array (N, ...) of any shape.

        Floats are in physical units. Integers, such as the numbers of classes, and Booleans need a decision about
        their scale: see scales_target.
        """

    @abstractmethod
    def network(self, config: C, input_shapes: tuple[Shape, ...], target_shape: Shape) -> "nn.Module":
        """Create the network with random weights. It is called as network(*inputs), and returns outputs (B, ...).

        Without a method `predictions`, the outputs have the shape of the targets.

        Args:
            input_shapes, target_shape: the shapes of one example, without the first axis, such as ((8, 8), ()) and ().

        Raises:
            ValueError: the network does not support these shapes with these options. The message is shown to the user.
        """

    def trainer(self) -> type[Any] | None:
        """A subclass of trainer.Trainer that trains the network, or None for Trainer itself.

        Import it here, and not at the top of the file, so that `--help` does not load torch.
        """
        return None

    def read(self, config: C, columns: Columns) -> Columns:
        """Check and convert the arrays of a file of --data. An array is read from the file when it is looked up.

        The default is all arrays of numbers. With --drop-missing, missing numbers are NaN, and missing texts are empty.

        Raises:
            KeyError, ValueError: an array is missing or wrong. The message is shown to the user.
        """
        return {name: columns[name] for name in numbers_in(columns)}

    def read_inputs(self, config: C, columns: Columns) -> Columns:
        """Like `read`, for examples to predict, whose targets need not be known: only the columns that `inputs` uses.

        Define it if `read` looks up arrays that only the target needs.
        """
        return self.read(config, columns)

    def complete(self, config: C, columns: FileColumns) -> C:
        """Replace options that are None by what the file of --data says, such as the names of input columns or classes.

        The complete config is stored with the run, so that other files are later read in the same way. Return
        `dataclasses.replace(config, ...)`.

        Args:
            columns: the arrays of the file, as in `read`.
        """
        return config

    def check(self, config: C, columns: Columns) -> Check:
        """Compare the examples of a split with what is known about them. The default checks nothing."""
        return Check({})

    def scales_target(self, config: C) -> Scale:
        """Whether the network predicts in units in which the training targets have mean 0, standard deviation 1.

        The values mean the same as in scale_inputs. Targets of classes are not scaled. Unscaled integers reach the loss
        as int64 or, if it does not accept them, as floats; Booleans reach it as 0.0 and 1.0. You have to define
        this method if the target is not clearly a quantity, because it has integers, Booleans, or only zeros and ones.
        """
        return True

    def loss(self, config: C, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        """The loss of each example in scaled units, for training and validation: (B, ...), (B, ...) -> (B,).

        The default is the squared error. In training, floats are float32 on the device of the network. For metrics,
        they are float64 on the CPU. Create constants with `outputs.new_tensor(...)`.
        """
        return ((outputs - targets) ** 2).reshape(len(targets), -1).mean(dim=1)

    def loss_name(self, config: C) -> str:
        """The label of the loss in figures."""
        return "loss"

    def predictions(self, config: C, outputs: "Tensor") -> "Tensor | Mapping[str, Tensor]":
        """What the network predicts, from its outputs for a whole split: (N, ...) float64, in scaled units -> (N, ...).

        The result has the shape of the target, and is then converted to physical units. Define this method if the
        outputs are not predictions themselves: for logits (N, K), return the classes, `outputs.argmax(dim=1)`. If the
        target is not scaled, the result may have another shape, such as probabilities (N, K).

        The result can also be a dictionary with the key "predictions", and with further quantities. They are converted,
        too, and reach metrics, reports and figures among the columns, with `predicted_` before their names. If the
        target is scaled, they have its shape, and their names say what they are: "std" is a standard deviation, and
        names that begin with "quantile" are values like the predictions.
        """
        return outputs

    def predicts_outputs(self, config: C) -> bool:
        """Whether the outputs are predictions themselves. By default, they are if `predictions` is not defined.

        Define it if that depends on the config, as for a problem that predicts quantities or classes.
        """
        return type(self).predictions is Problem.predictions

    def class_names(self, config: C) -> Sequence[str] | None:
        """The names of the classes 0, 1, ..., for the files that predict.py writes. None: the numbers themselves."""
        return None

    def metrics(
        self, config: C, columns: Columns, predictions: NDArray[Any], targets: NDArray[Any]
    ) -> dict[str, float]:
        """Metrics of the predictions for a whole split: (N, ...), (N, ...), in physical units.

        Targets are float64 or, if they are not scaled, also int64 or Boolean. The default is regression_metrics for
        floats, and the accuracy for the others: `predictions` has to return integers for integers, and predictions of
        Booleans are log-odds.
        """
        if targets.dtype.kind == "b":
            return {"accuracy": float(((predictions > 0) == targets).mean())}
        if targets.dtype.kind == "i":
            if self.predicts_outputs(config):
                raise ProblemError("target returns integers, which outputs are not: define `predictions`, or metrics")
            if not np.array_equal(predictions, np.round(predictions)):
                raise ProblemError("predictions are not numbers of classes: return integers, as outputs.argmax(dim=1)")
            return {"accuracy": float((predictions == targets).mean())}
        return regression_metrics(predictions, targets, by_component=self.scales_target(config) is True)

    def main_metric(self, config: C) -> tuple[str, Literal["min", "max"]] | None:
        """The metric by which runs are compared, and whether small ("min") or large ("max") values are good.

        None is the first of `mae`, `nrmse` and `accuracy` that `metrics` returns.
        """
        return None

    def baselines(self, config: C, train: Columns, test: Columns) -> Mapping[str, Any]:
        """Predictions of simple methods for the test split: arrays (N, ...) in physical units, by name of the method.

        A method that also predicts what `predictions` adds returns a dictionary with the same keys. The default is the
        `mean` of the training targets for quantities and, for numbers of classes, the most frequent one, `majority`. In
        other cases, and if there are no baselines, the program adds `constant`: what the constant outputs with the
        lowest loss in training predict.
        """
        target = self.target(config, train)
        n_test = len(next(iter(test.values())))
        if self.scales_target(config) and self.predicts_outputs(config):
            return {"mean": np.broadcast_to(target.mean(axis=0), (n_test, *target.shape[1:]))}
        if target.dtype.kind in "iu" and target.ndim == 1 and not self.predicts_outputs(config):
            classes, counts = np.unique(target, return_counts=True)
            return {"majority": np.full(n_test, classes[counts.argmax()])}
        return {}

    def report(self, config: C, columns: Columns, predictions: NDArray[Any]) -> dict[str, Any]:
        """Additional entries in the JSON file of an evaluation on new data."""
        return {}

    def examples(self, config: C, test: Columns) -> NDArray[np.integer]:
        """Indices of the test examples that predictions.npz keeps for figures, as an array of any shape."""
        return np.arange(0)

    def figures(self, config: C, arrays: Columns) -> dict[str, "Figure"]:
        """The figures of a run by name, in addition to its training curves. An evaluation only uses the first one.

        Args:
            arrays: `targets` and `predictions` (N, ...) on the test split, and the columns with one number per example.
                For a run, also `baseline_*`, and `example_*`: columns, targets and predictions of the examples that
                `examples` selects. For an evaluation, also the other columns. What `predictions` adds is `predicted_*`.
        """
        from engine.interface.generic_figures import confusion, parity

        targets, predictions = arrays["targets"], arrays["predictions"]
        if targets.shape != predictions.shape:
            return {}
        if targets.dtype.kind == "b":
            return {"confusion": confusion(targets, predictions > 0)}
        if targets.dtype.kind == "i":
            return {"confusion": confusion(targets, predictions)}
        return {"parity": parity(targets, predictions, by_component=self.scales_target(config) is True)}

    def label(self, config: C) -> str:
        """A short description of a config, for run names, W&B groups and tables."""
        return self.name

    def data_label(self, config: C) -> str:
        """A short description of the generator options. The name of the result of an evaluation begins with it."""
        return "new"


def numbers_in(columns: Columns) -> list[str]:
    """The names of the arrays that are not text."""
    if isinstance(columns, FileColumns):
        return [name for name in columns if not columns.is_text(name)]
    return [name for name, column in columns.items() if column.dtype.kind != "U"]


def default_config(problem: Problem[Any]) -> dict[str, Any]:
    """The preset `default` of a problem, as nested dictionaries."""
    return asdict(problem.presets.get("default", problem.config_type()))


MAX_COMPONENTS = 8  # whose errors are reported one by one


def regression_metrics(
    predictions: NDArray[Any], targets: NDArray[Any], *, by_component: bool = True
) -> dict[str, float]:
    """Errors of predictions of quantities: (N, ...), (N, ...).

    The mean absolute error `mae`, the root mean square error `rmse`, and R^2 as `r2`, of all numbers together.

    The components of a matrix (N, k) may have different units, so that such averages have no meaning. For a matrix, the
    result is `nrmse`, the root mean square error in units of the standard deviation of each component, over all
    components that vary. The errors of up to MAX_COMPONENTS components follow as `mae_1`, `r2_1`, `mae_2`, ... Set
    `by_component=False` if all components have the same unit.
    """
    errors = predictions - targets
    squared = (errors**2).sum(axis=0)  # (...)
    variation = ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    varies = variation > 1e-24 * (targets**2).sum(axis=0)  # by more than rounding
    if not by_component or targets.ndim != 2 or targets.shape[1] == 1:
        return {
            "mae": float(np.abs(errors).mean()),
            "rmse": float(np.sqrt((errors**2).mean())),
            "r2": _r2(squared.sum(), variation.sum(where=varies)),
        }
    found = {"nrmse": float(np.sqrt((squared[varies] / variation[varies]).mean())) if varies.any() else 0.0}
    for i in range(len(squared) if len(squared) <= MAX_COMPONENTS else 0):
        found[f"mae_{i + 1}"] = float(np.abs(errors[:, i]).mean())
        found[f"r2_{i + 1}"] = _r2(squared[i], variation[i] if varies[i] else 0.0)
    return found


def _r2(squared: float, variation: float) -> float:
    """R^2. For targets that do not vary, it is 1 if all are predicted exactly and 0 otherwise, as in scikit-learn."""
    return float(1 - squared / variation if variation > 0 else squared == 0)
