"""The toy problem, on which engine/ is tested: predict the squared length of a point, times a sign. Also a program:

python -m tests.toy --preset debug

The columns have different dtypes and shapes, so that the tests fail if code relies on one of them.
"""

from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.random import SeedSequence, default_rng
from numpy.typing import NDArray
from pydantic import model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from engine.interface import STRICT, Check, Columns, Config, DataConfig, Problem, Scale, Shape, TrainConfig, option
from main import main


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ToyDataConfig(DataConfig):
    """The points."""

    num_train: int = option(500, "points for training", ge=1)
    num_val: int = option(100, "points that choose the best epoch", ge=1)
    num_test: int = option(100, "points for the test at the end", ge=1)
    dimension: int = option(3, "coordinates of a point", ge=1, le=10**6)
    spread: float = option(1.0, "largest coordinate", gt=0, le=1e6)
    rounds: int | None = option(None, "decimal places of the coordinates; none: all of them", ge=0)
    corrupt: bool = option(False, "generate wrong values, which the check finds")
    points_key: str = option("points", "name of the points in a file", scope="reader")

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        if self.rounds is not None and self.spread < 10**-self.rounds:
            raise ValueError(f"--rounds {self.rounds} rounds all of --spread {self.spread} to 0: raise one")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ToyModelConfig:
    """The network: `pooled` treats all coordinates equally, and accepts any number of them."""

    kind: Literal["mlp", "pooled"] = option("mlp", "kind of network")
    hidden: int = option(16, "width of the hidden layer", ge=1, le=10**6)
    skip: bool = option(
        False, "of mlp, add a linear term", idle=lambda m: "--kind pooled" if m.kind == "pooled" else ""
    )
    dropout: float = option(0.0, "share of activations set to zero in training", ge=0, lt=1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ToyConfig(Config):
    """One experiment."""

    absolute: bool = option(False, "predict the value without its sign")
    model: ToyModelConfig = ToyModelConfig()
    data: ToyDataConfig = ToyDataConfig()

    @model_validator(mode="after")
    def _check_skip(self) -> Self:
        if self.absolute and self.model.skip:
            raise ValueError("--absolute and --skip do not go together: drop one")
        return self


class ToyNetwork(nn.Module):
    """A network with one hidden layer for a point or, with `pooled`, for each coordinate, followed by a mean."""

    def __init__(self, config: ToyModelConfig, dimension: int) -> None:
        super().__init__()
        self.pooled = config.kind == "pooled"
        self.hidden = nn.Linear((1 if self.pooled else dimension) + 1, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.last = nn.Linear(config.hidden, 1)
        self.skip = nn.Linear(dimension, 1) if config.skip else None

    def forward(self, points: Tensor, signs: Tensor) -> Tensor:  # (B, d), (B,) int8 -> (B,)
        x = points[..., None] if self.pooled else points[:, None]  # (B, d, 1) or (B, 1, d)
        x = torch.cat([x, signs.to(x.dtype)[:, None, None].expand(-1, x.shape[1], 1)], dim=2)
        outputs: Tensor = self.last(self.dropout(nn.functional.gelu(self.hidden(x)))).mean(dim=(1, 2))
        return outputs if self.skip is None else outputs + self.skip(points)[:, 0]


class ToyProblem(Problem[ToyConfig]):
    """Predict the squared length of a point, with a sign."""

    # All coordinates have the same unit, and `pooled` accepts any number of them.
    scale_inputs: ClassVar[Scale | tuple[Scale, ...]] = "array"
    name = "toy"
    config_type = ToyConfig
    presets = {
        "debug": ToyConfig(
            train=TrainConfig(epochs=5, lr=0.01), data=ToyDataConfig(num_train=200, num_val=50, num_test=50)
        ),
        "default": ToyConfig(),
    }

    def generate(self, config: ToyConfig, n: int, seed: SeedSequence) -> Columns:
        data, rng = config.data, default_rng(seed)
        points = rng.uniform(-data.spread, data.spread, size=(n, data.dimension))
        if data.rounds is not None:
            points = points.round(data.rounds)
        signs = rng.choice(np.array([-1, 1], np.int8), n)
        values = signs * (points**2).sum(axis=1) + data.corrupt
        return {
            "points": points.astype(np.float32),
            "signs": signs,
            "values": values,
            "is_far": np.abs(values) > data.spread**2,
        }

    def read(self, config: ToyConfig, columns: Columns) -> Columns:
        points, signs, values = (columns[name] for name in (config.data.points_key, "signs", "values"))
        if points.ndim != 2:
            raise ValueError(f"points have the shape {points.shape}, and must be (N, d)")
        return {"points": points.astype(np.float32), "signs": signs.astype(np.int8), "values": values}

    def read_inputs(self, config: ToyConfig, columns: Columns) -> Columns:
        return {"points": columns[config.data.points_key].astype(np.float32), "signs": columns["signs"].astype(np.int8)}

    def check(self, config: ToyConfig, columns: Columns) -> Check:
        exact = columns["signs"] * (columns["points"].astype(np.float64) ** 2).sum(axis=1)
        worst = float(np.abs(columns["values"] - exact).max())
        fault = "the values are not those of the points" if worst > 1e-3 * (1 + np.abs(exact).max()) else ""
        return Check({"worst": worst}, fault, f"values within {worst:.1g} of exact")

    def inputs(self, config: ToyConfig, columns: Columns) -> tuple[NDArray[Any], ...]:
        return columns["points"], columns["signs"]

    def target(self, config: ToyConfig, columns: Columns) -> NDArray[Any]:
        return np.abs(columns["values"]) if config.absolute else columns["values"]

    def network(self, config: ToyConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
        return ToyNetwork(config.model, input_shapes[0][0])

    def report(self, config: ToyConfig, columns: Columns, predictions: NDArray[Any]) -> dict[str, Any]:
        return {"worst_error": float(np.abs(predictions - self.target(config, columns)).max())}

    def examples(self, config: ToyConfig, test: Columns) -> NDArray[np.integer]:
        return np.arange(6).reshape(2, 3)

    def label(self, config: ToyConfig) -> str:
        return f"{config.model.kind}-d{config.data.dimension}"

    def data_label(self, config: ToyConfig) -> str:
        return f"d{config.data.dimension}"


PROBLEM = ToyProblem()

if __name__ == "__main__":
    main(PROBLEM)
