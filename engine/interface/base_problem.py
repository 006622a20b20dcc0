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
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray

from engine.interface.base_config import Config
from engine.machine.errors import BadRequestError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

C = TypeVar("C", bound=Config)

Columns = Mapping[str, NDArray[Any]]  # arrays of any dtype with equal first axes: one entry per example
Shape = tuple[int, ...]


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
    scale_inputs: ClassVar[bool] = True  # scale floating-point inputs: mean 0 and deviation 1 in the training split

    def generate(self, config: C, n: int, seed: SeedSequence) -> Columns:
        """Generate n independent examples, which only depend on these arguments.

        With n = 0, quickly return empty columns of the right shapes and dtypes. They are used to refuse bad requests
        early. The columns are cached until an option changes, or the code of the file that defines this method. To keep
        cached data after a change of a network, define the generator as a function in a separate file, and set
        `generate = staticmethod(function)`.
        """
        raise BadRequestError(f"--data: give a file with the examples; {self.name} cannot generate any")

    @abstractmethod
    def inputs(self, config: C, columns: Columns) -> tuple[NDArray[Any], ...]:
        """The inputs of the network, each (N, ...).

        The network receives floating-point arrays as float32, scaled if scale_inputs is set, and integers unchanged.
        """

    @abstractmethod
    def target(self, config: C, columns: Columns) -> NDArray[Any]:
        """The numbers to predict, (N,) or (N, k), in physical units."""

    @abstractmethod
    def network(self, config: C, input_shapes: tuple[Shape, ...], target_shape: Shape) -> "nn.Module":
        """Create the network with random weights. It is called as network(*inputs), and returns (B,) or (B, k).

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

        Raises:
            KeyError, ValueError: an array is missing or wrong. The message is shown to the user.
        """
        return dict(columns)

    def check(self, config: C, columns: Columns) -> Check:
        """Compare the examples of a split with what is known about them. The default checks nothing."""
        return Check({})

    def scales_target(self, config: C) -> bool:
        """Whether the network predicts in units in which the training targets have mean 0, standard deviation 1."""
        return True

    def loss(self, config: C, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        """The loss of each example in scaled units, for training and validation: (B, ...), (B, ...) -> (B,).

        The default is the squared error. In training, the tensors are float32 on the device of the network. For
        metrics, they are float64 on the CPU. Create constants with `outputs.new_tensor(...)`.
        """
        return ((outputs - targets) ** 2).reshape(len(targets), -1).mean(dim=1)

    def loss_name(self, config: C) -> str:
        """The label of the loss in figures."""
        return "loss"

    def metrics(
        self, config: C, columns: Columns, predictions: NDArray[Any], targets: NDArray[Any]
    ) -> dict[str, float]:
        """Metrics of the predictions for a whole split: (N, ...), (N, ...) float64, in physical units."""
        return regression_metrics(predictions, targets)

    def main_metric(self, config: C) -> tuple[str, Literal["min", "max"]]:
        """The metric by which runs are compared, and whether small ("min") or large ("max") values are good."""
        return "mae", "min"

    def baselines(self, config: C, train: Columns, test: Columns) -> dict[str, NDArray[Any]]:
        """Predictions of simple methods for the test split, in physical units, by the name of the method."""
        target = self.target(config, train)
        n_test = len(next(iter(test.values())))
        return {"mean": np.broadcast_to(target.mean(axis=0), (n_test, *target.shape[1:]))}

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
                `examples` selects. For an evaluation, also the other columns.
        """
        from engine.interface.generic_figures import parity

        return {"parity": parity(arrays["targets"], arrays["predictions"])}

    def label(self, config: C) -> str:
        """A short description of a config, for run names, W&B groups and tables."""
        return self.name

    def data_label(self, config: C) -> str:
        """A short description of the generator options. The name of the result of an evaluation begins with it."""
        return "new"


def default_config(problem: Problem[Any]) -> dict[str, Any]:
    """The preset `default` of a problem, as nested dictionaries."""
    return asdict(problem.presets.get("default", problem.config_type()))


def regression_metrics(predictions: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    """Mean absolute error, root mean square error, and R^2 averaged over the components: (N, ...), (N, ...)."""
    errors = predictions - targets
    squared = (errors**2).sum(axis=0)
    variation = ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    varies = variation > 1e-24 * (targets**2).sum(axis=0)  # by more than rounding
    # For targets that do not vary, 1 if all are predicted exactly and 0 otherwise, as in scikit-learn.
    r2 = np.where(varies, 1 - squared / np.where(varies, variation, 1), squared == 0)
    return {
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt((errors**2).mean())),
        "r2": float(r2.mean()),
    }
