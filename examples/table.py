"""Predict some columns of a table from others. The table is a text file such as .csv, or an .npz file of arrays.

python -m examples.table --data FILE --inputs x1 x2 --target y
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from engine.interface import (
    STRICT,
    Columns,
    Config,
    FileColumns,
    Problem,
    Shape,
    TrainConfig,
    least_squares,
    numbers_in,
    option,
)
from main import main
from utils import print_line

Names = tuple[Annotated[str, Field(min_length=1)], ...]

MOST_CLASSES = 1000


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TableConfig(Config):
    """All options of a run: columns, network, and those that all problems have."""

    task: Literal["regress", "classify"] | None = option(
        None, "predict quantities, or the class of each row; none: the class if the target is text"
    )
    inputs: Names | None = option(
        None, "columns to predict from; none: all columns of numbers except the targets", strict=False, min_length=1
    )
    target: Names = option(("y",), "columns to predict", strict=False, min_length=1)
    classes: Names | None = option(
        None, "names of the classes; none: all that occur in the file", strict=False, min_length=2
    )
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = option(
        (64, 64), "widths of the hidden layers", strict=False, min_length=1
    )

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if shared := set(self.inputs or ()) & set(self.target):
            raise ValueError(f"--inputs and --target both contain {min(shared)}: remove it from one of them")
        if self.task == "classify" and len(self.target) > 1:
            raise ValueError(f"--target has {len(self.target)} columns: give one of them for --task classify")
        if self.task == "regress" and self.classes is not None:
            raise ValueError("--classes does nothing with --task regress: drop one of them")
        return self


class MLP(nn.Module):
    """A multilayer perceptron on the concatenated inputs."""

    def __init__(self, n_inputs: int, hidden: tuple[int, ...], output_shape: Shape) -> None:
        super().__init__()
        widths = [n_inputs, *hidden]
        layers = [layer for pair in zip(widths, hidden, strict=False) for layer in (nn.Linear(*pair), nn.GELU())]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], math.prod(output_shape)))
        self.output_shape = output_shape

    def forward(self, *inputs: Tensor) -> Tensor:  # each (B, ...) -> (B,) or (B, k)
        outputs: Tensor = self.layers(torch.cat([x.flatten(1) if x.ndim > 1 else x[:, None] for x in inputs], dim=1))
        return outputs.view(len(outputs), *self.output_shape)


def concatenated(arrays: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    """Flatten and concatenate arrays (N, ...) to one matrix (N, F)."""
    return np.concatenate([array.reshape(len(array), math.prod(array.shape[1:])) for array in arrays], axis=1)


def input_names(config: TableConfig, columns: Columns) -> tuple[str, ...]:
    """The columns to predict from. They are in the config of every run, but not in one without --inputs before it."""
    others = (*config.target, config.data.group)
    return config.inputs or tuple(name for name in numbers_in(columns) if name not in others)


def as_names(labels: NDArray[Any]) -> NDArray[np.str_]:
    """The names of classes, which may be numbers in the file: (N,). They are empty where the class is missing."""
    if labels.dtype.kind == "U":
        return labels
    return np.array(["" if np.isnan(label) else f"{label:.15g}" for label in labels.astype(np.float64)])


class TableProblem(Problem[TableConfig]):
    """Predict some columns of a table from others."""

    name = "table"
    config_type = TableConfig
    presets = {
        "default": TableConfig(train=TrainConfig(lr=0.003, betas=(0.95, 0.98), scheduler="linear", weight_decay=0.03)),
        "debug": TableConfig(train=TrainConfig(epochs=5)),
    }

    def complete(self, config: TableConfig, columns: FileColumns) -> TableConfig:
        targets = [columns[name] for name in config.target]
        inputs = input_names(config, columns)
        if not inputs:
            raise ValueError("there is no column of numbers besides the target: give a file with inputs")
        is_text = [name for name in config.target if columns.is_text(name)]
        if is_text and (config.task == "regress" or len(targets) > 1):
            raise ValueError(f"{is_text[0]} is text, which is a class: give it as the only --target, without --task")
        if config.task == "regress" or not (config.task or config.classes or is_text):
            if config.task is None and len(targets) == 1 and len(values := np.unique(targets[0])) == 2:
                print_line(f"{config.target[0]} is {values[0]:g} or {values[1]:g}: --task classify predicts the class")
            return replace(config, task="regress", inputs=inputs)
        found = [name for name in np.unique(as_names(targets[0])).tolist() if name]
        if len(found) > min(MOST_CLASSES, len(targets[0]) / 2):
            raise ValueError(f"{config.target[0]} has {len(found)} different values: these are not classes")
        return replace(config, task="classify", inputs=inputs, classes=config.classes or tuple(found))

    def read(self, config: TableConfig, columns: Columns) -> Columns:
        targets = {name: columns[name] for name in config.target}
        if config.task == "classify":
            targets = {name: self._numbers(config, name, column) for name, column in targets.items()}
        return {**self.read_inputs(config, columns), **{name: x.astype(np.float64) for name, x in targets.items()}}

    def read_inputs(self, config: TableConfig, columns: Columns) -> Columns:
        return {name: columns[name].astype(np.float64) for name in input_names(config, columns)}

    def _numbers(self, config: TableConfig, name: str, labels: NDArray[Any]) -> NDArray[np.float64]:
        """The numbers of classes, NaN where the class is missing: (N,)."""
        numbers = {each: float(i) for i, each in enumerate(config.classes or ())} | {"": math.nan}
        names = as_names(labels).tolist()
        if unknown := sorted(set(names) - numbers.keys()):
            raise ValueError(
                f"{name} has the class {unknown[0]!r}, which is not one of {', '.join(config.classes or ())}"
            )
        return np.array([numbers[each] for each in names])

    def inputs(self, config: TableConfig, columns: Columns) -> tuple[NDArray[Any], ...]:
        return tuple(columns[name] for name in input_names(config, columns))

    def target(self, config: TableConfig, columns: Columns) -> NDArray[Any]:
        if config.task == "classify":
            return columns[config.target[0]].astype(np.int64)
        targets = concatenated(tuple(columns[name] for name in config.target))
        return targets[:, 0] if targets.shape[1] == 1 else targets

    def scales_target(self, config: TableConfig) -> bool:
        return config.task != "classify"

    def network(self, config: TableConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
        output_shape = (len(config.classes or ()),) if config.task == "classify" else target_shape
        return MLP(sum(map(math.prod, input_shapes)), config.hidden, output_shape)

    def loss(self, config: TableConfig, outputs: Tensor, targets: Tensor) -> Tensor:
        if config.task == "classify":
            return nn.functional.cross_entropy(outputs, targets, reduction="none")
        return super().loss(config, outputs, targets)

    def predictions(self, config: TableConfig, outputs: Tensor) -> Tensor | dict[str, Tensor]:
        if config.task == "classify":
            return {"predictions": outputs.argmax(dim=1), "probability": outputs.softmax(dim=1)}
        return outputs

    def predicts_outputs(self, config: TableConfig) -> bool:
        return config.task != "classify"

    def class_names(self, config: TableConfig) -> Sequence[str] | None:
        return config.classes

    def baselines(self, config: TableConfig, train: Columns, test: Columns) -> dict[str, NDArray[Any]]:
        def features(columns: Columns) -> NDArray[Any]:
            return concatenated(self.inputs(config, columns))

        target = self.target(config, train)
        if config.task == "classify":  # linear functions for each class, of which the largest one decides
            target = np.eye(len(config.classes or ()))[target]
        linear = least_squares(features, train, target, test)
        return {
            **super().baselines(config, train, test),
            "least_squares": linear.argmax(axis=1) if config.task == "classify" else linear,
        }


PROBLEM = TableProblem()

if __name__ == "__main__":
    main(PROBLEM)
