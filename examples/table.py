"""Predict some columns of a table from others. The table is a .csv file with a header, or an .npz file of arrays.

python -m examples.table --data FILE --inputs x1 x2 --target y
"""

import math
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from engine.interface import STRICT, Columns, Config, Problem, Shape, TrainConfig, least_squares, option
from main import main


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TableConfig(Config):
    """All options of a run: columns, network, and those that all problems have."""

    inputs: tuple[str, ...] | None = option(
        None, "columns to predict from; none: all columns except the targets", strict=False, min_length=1
    )
    target: tuple[str, ...] = option(("y",), "columns to predict", strict=False, min_length=1)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = option(
        (64, 64), "widths of the hidden layers", strict=False, min_length=1
    )

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if shared := set(self.inputs or ()) & set(self.target):
            raise ValueError(f"--inputs and --target both contain {min(shared)}: remove it from one of them")
        return self


class MLP(nn.Module):
    """A multilayer perceptron on the concatenated inputs."""

    def __init__(self, n_inputs: int, hidden: tuple[int, ...], target_shape: Shape) -> None:
        super().__init__()
        widths = [n_inputs, *hidden]
        layers = [layer for pair in zip(widths, hidden, strict=False) for layer in (nn.Linear(*pair), nn.GELU())]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], math.prod(target_shape)))
        self.target_shape = target_shape

    def forward(self, *inputs: Tensor) -> Tensor:  # each (B, ...) -> (B,) or (B, k)
        outputs: Tensor = self.layers(torch.cat([x.flatten(1) if x.ndim > 1 else x[:, None] for x in inputs], dim=1))
        return outputs.view(len(outputs), *self.target_shape)


def concatenated(arrays: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    """Flatten and concatenate arrays (N, ...) to one matrix (N, F)."""
    return np.concatenate([array.reshape(len(array), math.prod(array.shape[1:])) for array in arrays], axis=1)


class TableProblem(Problem[TableConfig]):
    """Predict some columns of a table from others."""

    name = "table"
    config_type = TableConfig
    presets = {
        "default": TableConfig(train=TrainConfig(lr=0.003, betas=(0.95, 0.98), scheduler="linear", weight_decay=0.03)),
        "debug": TableConfig(train=TrainConfig(epochs=5)),
    }

    def read(self, config: TableConfig, columns: Columns) -> Columns:
        inputs = config.inputs or [name for name in columns if name not in config.target]
        return {name: columns[name].astype(np.float64) for name in (*inputs, *config.target)}

    def inputs(self, config: TableConfig, columns: Columns) -> tuple[NDArray[Any], ...]:
        return tuple(column for name, column in columns.items() if name not in config.target)

    def target(self, config: TableConfig, columns: Columns) -> NDArray[Any]:
        targets = concatenated(tuple(columns[name] for name in config.target))
        return targets[:, 0] if targets.shape[1] == 1 else targets

    def network(self, config: TableConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
        return MLP(sum(map(math.prod, input_shapes)), config.hidden, target_shape)

    def baselines(self, config: TableConfig, train: Columns, test: Columns) -> dict[str, NDArray[Any]]:
        def features(columns: Columns) -> NDArray[Any]:
            return concatenated(self.inputs(config, columns))

        linear = least_squares(features, train, self.target(config, train), test)
        return {**super().baselines(config, train, test), "least_squares": linear}


PROBLEM = TableProblem()

if __name__ == "__main__":
    main(PROBLEM)
