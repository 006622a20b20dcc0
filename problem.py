# Experiment: yours, to replace.
"""The Ising problem: implements the interface of base_problem.py with config, data, model, task and plots."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import data
import data_files
from config import PRESETS, ExperimentConfig
from engine.interface import Columns, Problem, Shape
from ising.exact import T_CRITICAL
from task import TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

Array = NDArray[Any]


def by_task(name: str) -> Any:
    """A method of the problem that depends on what is predicted: the one of the task in the config (task.py)."""

    def method(_: "IsingProblem", config: ExperimentConfig, *arguments: Any) -> Any:
        found = getattr(TASKS[config.task], name)
        return found(*arguments) if callable(found) else found

    return method


class IsingProblem(Problem[ExperimentConfig]):
    """Sample 2D Ising configurations, and train a network to predict their energy or their phase."""

    name = "ising"
    config_type = ExperimentConfig
    presets = PRESETS
    scale_inputs = False  # spins are -1 or +1

    generate = staticmethod(data.generate)
    read = staticmethod(data_files.read)
    read_inputs = staticmethod(data_files.read_inputs)
    check = staticmethod(data.check)
    examples = staticmethod(data.examples_around_tc)

    target = by_task("target")
    scales_target = by_task("scales_target")
    loss = by_task("loss")
    loss_name = by_task("loss_name")
    metrics = by_task("metrics")
    main_metric = by_task("main_metric")
    baselines = by_task("baselines")
    report = by_task("report")

    def inputs(self, config: ExperimentConfig, columns: Columns) -> tuple[Array, ...]:
        """Spins (N, L, L) int8 and, with --input-temperature, reduced temperatures (T - T_c) / T_c (N,)."""
        spins = data_files.as_lattices(columns["spins"], "spins")  # given in Python, they may be bits
        if not config.model.input_temperature:
            return (spins,)
        return spins, columns["temperatures"].astype(np.float32) / T_CRITICAL - 1

    def network(self, config: ExperimentConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> "nn.Module":
        from model import create_network

        return create_network(config.model, lattice_size=input_shapes[0][0])

    def figures(self, config: ExperimentConfig, arrays: Columns) -> dict[str, "Figure"]:
        import plots

        return plots.figures(config, arrays)

    def label(self, config: ExperimentConfig) -> str:
        return f"{config.model.architecture}-{self.data_label(config)}"

    def data_label(self, config: ExperimentConfig) -> str:
        return f"L{config.data.lattice_size}" if config.data.file is None else "data"


PROBLEM = IsingProblem()
