"""Reconstruct a field from a noisy measurement of it, and predict how uncertain the reconstruction is.

python -m examples.field --preset debug

The field is a Gaussian random field on a periodic grid, with the power spectrum P(k) of `spectrum`. The noise is white,
and its standard deviation differs between the measurements. If it were known, the Wiener filter would be optimal: for
each k, the mean of the field at given data is P / (P + noise^2) times the data, with a known variance. The network has
to find out how large the noise is. The columns are `fields` and `data`, (N, L, L), and `noise` (N,), in units of the
standard deviation of the field.
"""

from typing import Any

import numpy as np
from numpy.random import SeedSequence, default_rng
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from engine.interface import (
    STRICT,
    Columns,
    Config,
    DataConfig,
    Problem,
    Shape,
    TrainConfig,
    option,
    regression_metrics,
)
from engine.interface.generic_figures import Figure
from main import main

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FieldData(DataConfig):
    """The fields and the noise."""

    num_train: int = option(4_000, "fields for training", ge=1)
    num_val: int = option(500, "fields that choose the best epoch", ge=1)
    num_test: int = option(500, "fields for the test at the end", ge=1)
    size: int = option(16, "points along one edge of the grid", ge=4, le=256)
    length: float = option(2.0, "correlation length, in units of the grid", gt=0)
    most_noise: float = option(2.0, "largest standard deviation of the noise; the smallest is a tenth of it", gt=0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FieldConfig(Config):
    """All options of a run."""

    data: FieldData = FieldData()
    channels: int = option(16, "channels of the convolutions", ge=1, le=1024)


def spectrum(data: FieldData) -> Array:
    """The power at each k of the grid, (L, L), proportional to 1 / (1 + (k length)^2)^2, with the mean 1."""
    k = 2 * np.pi * np.fft.fftfreq(data.size)
    power = (1 + data.length**2 * (k[:, None] ** 2 + k**2)) ** -2
    return np.asarray(power / power.mean())


def filtered(factors: Array, fields: Array) -> Array:
    """Multiply the Fourier transforms of fields (N, L, L) by real factors, (L, L) or (N, L, L)."""
    return np.asarray(np.fft.ifft2(factors * np.fft.fft2(fields)).real)


class FieldProblem(Problem[FieldConfig]):
    """Reconstruct a random field from a noisy measurement, with the uncertainty of each value."""

    name = "field"
    block_size = 500  # fields that are generated at a time, as by a slow simulation: in several processes, and kept
    config_type = FieldConfig
    presets = {
        "default": FieldConfig(train=TrainConfig(epochs=10, lr=0.003)),
        "debug": FieldConfig(train=TrainConfig(epochs=3, lr=0.003), data=FieldData(num_train=500, num_val=100)),
    }

    def generate(self, config: FieldConfig, n: int, seed: SeedSequence) -> Columns:
        rng, data = default_rng(seed), config.data
        shape = (n, data.size, data.size)
        fields = filtered(np.sqrt(spectrum(data)), rng.normal(size=shape))
        noise = data.most_noise * rng.uniform(0.1, 1, n)
        return {"fields": fields, "noise": noise, "data": fields + noise[:, None, None] * rng.normal(size=shape)}

    def inputs(self, config: FieldConfig, columns: Columns) -> tuple[Array, ...]:
        return (columns["data"],)

    def target(self, config: FieldConfig, columns: Columns) -> Array:
        return columns["fields"]

    def network(self, config: FieldConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
        def layer(n_in: int, n_out: int) -> nn.Module:
            return nn.Conv2d(n_in, n_out, 5, padding=2, padding_mode="circular")

        c = config.channels
        hidden = (layer(1, c), nn.GELU(), layer(c, c), nn.GELU(), layer(c, 2))
        return nn.Sequential(nn.Unflatten(1, (1, -1)), *hidden)  # (B, L, L) -> (B, 2, L, L)

    def loss(self, config: FieldConfig, outputs: Tensor, targets: Tensor) -> Tensor:
        mean, log_std = outputs.unbind(dim=1)
        return (log_std + ((targets - mean) / log_std.exp()) ** 2 / 2).mean(dim=(1, 2))  # of a Gaussian

    def predictions(self, config: FieldConfig, outputs: Tensor) -> dict[str, Tensor]:
        return {"predictions": outputs[:, 0], "std": outputs[:, 1].exp()}

    def metrics(self, config: FieldConfig, columns: Columns, predictions: Array, targets: Array) -> dict[str, float]:
        z = (predictions - targets) / columns["predicted_std"]
        return {
            **regression_metrics(predictions, targets),
            "mean_z2": (z**2).mean(),
            "within_1std": (abs(z) < 1).mean(),
        }

    def baselines(self, config: FieldConfig, train: Columns, test: Columns) -> dict[str, dict[str, Array]]:
        data, variance = test["data"], test["noise"][:, None, None] ** 2
        power = (np.abs(np.fft.fft2(train["fields"])) ** 2).mean(axis=0) / data[0].size  # also right with --data
        gain = power / (power + variance)  # (N, L, L)
        std = np.sqrt((gain * variance).mean(axis=(1, 2), keepdims=True))
        return {
            "data": {"predictions": data, "std": np.broadcast_to(np.sqrt(variance), data.shape)},
            "wiener": {"predictions": filtered(gain, data), "std": np.broadcast_to(std, data.shape)},
        }

    def examples(self, config: FieldConfig, test: Columns) -> NDArray[np.integer]:
        return np.argsort(test["noise"])[[0, -1]]  # the least and the most noise

    def figures(self, config: FieldConfig, arrays: Columns) -> dict[str, Figure]:
        if "example_fields" not in arrays:
            return super().figures(config, arrays)
        maps = {
            "measured": arrays["example_data"],
            "reconstructed": arrays["example_predictions"],
            "true": arrays["example_fields"],
            "predicted deviation": arrays["example_predicted_std"],
        }
        figure = Figure(figsize=(11, 5), layout="constrained")
        for row, all_axes in enumerate(figure.subplots(2, len(maps))):
            for axes, (name, values) in zip(all_axes, maps.items(), strict=True):
                limits = {"vmin": 0} if "deviation" in name else {"vmin": -4, "vmax": 4, "cmap": "RdBu"}
                figure.colorbar(axes.imshow(values[row], **limits), ax=axes, shrink=0.7)
                axes.set(title=name if row == 0 else "", xticks=[], yticks=[])
            all_axes[0].set_ylabel(f"noise {arrays['example_noise'][row]:.2g}")
        return {"maps": figure}


PROBLEM = FieldProblem()

if __name__ == "__main__":
    main(PROBLEM)
