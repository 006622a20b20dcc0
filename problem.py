# Experiment: yours, to replace.
"""The Ising problem: implements the interface of base_problem.py with config, data, model, task and plots."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

import data
import data_files
from config import PRESETS, ExperimentConfig
from engine.interface import Columns, Problem, Shape
from ising.exact import T_CRITICAL
from task import TASKS, by_temperature

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

Array = NDArray[Any]


class IsingProblem(Problem[ExperimentConfig]):
    """Sample 2D Ising configurations, and train a network to predict their energy or their phase."""

    name = "ising"
    config_type = ExperimentConfig
    presets = PRESETS
    scale_inputs = False  # spins are -1 or +1

    generate = staticmethod(data.generate)
    read = staticmethod(data_files.read)
    check = staticmethod(data.check)
    examples = staticmethod(data.examples_around_tc)

    def inputs(self, config: ExperimentConfig, columns: Columns) -> tuple[Array, ...]:
        """Spins (N, L, L) int8 and, with --input-temperature, reduced temperatures (T - T_c) / T_c (N,)."""
        if not config.model.input_temperature:
            return (columns["spins"],)
        return columns["spins"], columns["temperatures"].astype(np.float32) / T_CRITICAL - 1

    def target(self, config: ExperimentConfig, columns: Columns) -> Array:
        return TASKS[config.task].target(columns)

    def network(self, config: ExperimentConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> "nn.Module":
        from model import create_network

        return create_network(config.model, lattice_size=input_shapes[0][0])

    def scales_target(self, config: ExperimentConfig) -> bool:
        return TASKS[config.task].scales_target

    def loss(self, config: ExperimentConfig, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        return TASKS[config.task].loss(outputs, targets)

    def loss_name(self, config: ExperimentConfig) -> str:
        return TASKS[config.task].loss_name

    def metrics(
        self, config: ExperimentConfig, columns: Columns, predictions: Array, targets: Array
    ) -> dict[str, float]:
        return TASKS[config.task].metrics(columns, predictions, targets)

    def main_metric(self, config: ExperimentConfig) -> tuple[str, Literal["min", "max"]]:
        return TASKS[config.task].main_metric

    def baselines(self, config: ExperimentConfig, train: Columns, test: Columns) -> dict[str, Array]:
        return TASKS[config.task].baselines(train, test)

    def report(self, config: ExperimentConfig, columns: Columns, predictions: Array) -> dict[str, Any]:
        task = TASKS[config.task]
        return {
            "lattice_size": columns["spins"].shape[-1],
            "by_temperature": by_temperature(task, columns, predictions),
            **task.report(columns, predictions),
        }

    def figures(self, config: ExperimentConfig, arrays: Columns) -> dict[str, "Figure"]:
        import plots

        return plots.figures(config, arrays)

    def label(self, config: ExperimentConfig) -> str:
        return f"{config.model.architecture}-{self.data_label(config)}"

    def data_label(self, config: ExperimentConfig) -> str:
        return f"L{config.data.lattice_size}" if config.data.file is None else "data"


PROBLEM = IsingProblem()
