"""Predict the ground-state energy of a particle in a random potential in a box, in one dimension.

python -m examples.potential --preset debug

H = -1/2 d^2/dx^2 + V(x) on 0 < x < 1 with hard walls. Units: hbar = m = 1, and the width of the box is the unit of
length. The columns of the data are `potentials` (N, n), V at the n inner points of a grid, and `energies` (N,), the
lowest eigenvalue of H.
"""

from typing import Any

import numpy as np
from numpy.random import SeedSequence, default_rng
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn
from tqdm import tqdm

from engine.interface import (
    STRICT,
    Check,
    Columns,
    Config,
    DataConfig,
    Problem,
    Shape,
    TrainConfig,
    least_squares,
    option,
)
from engine.interface.generic_figures import Figure, parity
from main import main

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PotentialDataConfig(DataConfig):
    """The random potentials: sums of sine waves with normal amplitudes."""

    num_train: int = option(4_000, "number of training potentials", ge=1)
    num_val: int = option(500, "number of validation potentials, which choose the best epoch", ge=1)
    num_test: int = option(500, "number of test potentials", ge=1)
    points: int = option(64, "number of inner points of the grid", ge=8, le=4096)
    modes: int = option(5, "number of sine waves", ge=1, le=100)
    depth: float = option(50.0, "root mean square of the potential, in units of hbar^2 / (m width^2)", gt=0, le=1e4)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PotentialConfig(Config):
    """All options of a run."""

    data: PotentialDataConfig = PotentialDataConfig()
    channels: int = option(16, "number of channels of the convolutions", ge=1, le=1024)


def kinetic(points: int) -> tuple[float, float]:
    """The diagonal and the off-diagonal element of -1/2 d^2/dx^2 on the grid, by central differences."""
    return (points + 1.0) ** 2, -((points + 1.0) ** 2) / 2


def ground_state_energies(potentials: Array) -> Array:
    """The lowest eigenvalue of H for each potential: (N, n) -> (N,)."""
    diagonal, off_diagonal = kinetic(potentials.shape[1])
    off = np.full(potentials.shape[1] - 1, off_diagonal)
    bar = tqdm(potentials, "diagonalizing", delay=2, leave=False, disable=None)
    return np.array(
        [eigh_tridiagonal(diagonal + v, off, eigvals_only=True, select="i", select_range=(0, 0))[0] for v in bar]
    ).reshape(len(potentials))


def empty_box(points: int) -> tuple[float, Array]:
    """Without a potential: the ground-state energy, and the probability at each point of the grid, (n,)."""
    diagonal, off_diagonal = kinetic(points)
    probability = np.sin(np.pi * np.arange(1, points + 1) / (points + 1)) ** 2
    return diagonal + 2 * off_diagonal * np.cos(np.pi / (points + 1)), probability / probability.sum()


def first_order(columns: Columns) -> Array:
    """First-order perturbation theory: the expectation value of H in the ground state of the empty box, (N,)."""
    energy, probability = empty_box(columns["potentials"].shape[1])
    return np.asarray(energy + columns["potentials"] @ probability)


class PotentialProblem(Problem[PotentialConfig]):
    """Predict the ground-state energy of a particle in a random one-dimensional potential."""

    name = "potential"
    scale_inputs = "array"  # V(x) has the same unit at all x
    config_type = PotentialConfig
    presets = {
        "default": PotentialConfig(
            train=TrainConfig(
                epochs=200, batch_size=128, lr=0.003, betas=(0.95, 0.98), scheduler="linear", weight_decay=0.03
            )
        ),
        "debug": PotentialConfig(
            train=TrainConfig(epochs=5), data=PotentialDataConfig(num_train=500, num_val=100, num_test=100)
        ),
    }

    def generate(self, config: PotentialConfig, n: int, seed: SeedSequence) -> Columns:
        rng, data = default_rng(seed), config.data
        x, k = np.arange(1, data.points + 1) / (data.points + 1), np.arange(1, data.modes + 1)
        amplitudes = rng.normal(size=(n, data.modes, 1)) * data.depth * np.sqrt(2 / data.modes)
        phases = rng.uniform(0, 2 * np.pi, size=(n, data.modes, 1))
        potentials = (amplitudes * np.sin(np.pi * k[:, None] * x + phases)).sum(axis=1)
        return {"potentials": potentials, "energies": ground_state_energies(potentials)}

    def read(self, config: PotentialConfig, columns: Columns) -> Columns:
        potentials, energies = columns["potentials"].astype(np.float64), columns["energies"].astype(np.float64)
        if potentials.ndim != 2 or energies.shape != potentials.shape[:1]:
            raise ValueError(
                f"potentials of shape {potentials.shape} and energies of shape {energies.shape}: "
                "must be (N, n) and (N,)"
            )
        return {"potentials": potentials, "energies": energies}

    def check(self, config: PotentialConfig, columns: Columns) -> Check:
        """Check that E_box + min V <= E <= <H> in the ground state of the empty box (variational principle)."""
        lower = empty_box(columns["potentials"].shape[1])[0] + columns["potentials"].min(axis=1)
        energies, upper = columns["energies"], first_order(columns)
        slack = 1e-9 * (1 + np.abs(columns["potentials"]).max() + kinetic(columns["potentials"].shape[1])[0])
        outside = int(((energies < lower - slack) | (energies > upper + slack)).sum())
        fault = (
            f"{outside} energies violate their exact bounds: check units, boundary conditions and grid"
            if outside
            else ""
        )
        return Check({"outside_bounds": outside}, fault, f"{outside} of {len(energies)} energies outside exact bounds")

    def inputs(self, config: PotentialConfig, columns: Columns) -> tuple[Array, ...]:
        return (columns["potentials"],)

    def target(self, config: PotentialConfig, columns: Columns) -> Array:
        return columns["energies"]

    def network(self, config: PotentialConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
        return CNN(config.channels, input_shapes[0][0])

    def baselines(self, config: PotentialConfig, train: Columns, test: Columns) -> dict[str, Array]:
        return {
            **super().baselines(config, train, test),
            "least_squares": least_squares(lambda columns: columns["potentials"], train, train["energies"], test),
            "first_order": first_order(test),
        }

    def examples(self, config: PotentialConfig, test: Columns) -> NDArray[np.integer]:
        return np.arange(min(4, len(test["energies"])))

    def figures(self, config: PotentialConfig, arrays: Columns) -> dict[str, Figure]:
        unit = r"$\hbar^2 / (m\,\mathrm{width}^2)$"
        found = {"parity": parity(arrays["targets"], arrays["predictions"], "$E_0$", unit)}
        if "example_potentials" in arrays:
            found["potentials"] = example_potentials(arrays, unit)
        return found


class CNN(nn.Module):
    """Two convolutions along x, then two linear layers, which can distinguish positions: (B, n) -> (B,)."""

    def __init__(self, channels: int, points: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, channels, 5, padding=2),
            nn.GELU(),
            nn.Conv1d(channels, channels, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(channels * ((points + 1) // 2), 64),
            nn.GELU(),
            nn.Linear(64, 1),
        )

    def forward(self, potentials: Tensor) -> Tensor:
        outputs: Tensor = self.layers(potentials[:, None])  # (B, 1, n) -> (B, 1)
        return outputs.squeeze(1)


def example_potentials(arrays: Columns, unit: str) -> Figure:
    """Some potentials with their exact and predicted ground-state energies."""
    potentials = arrays["example_potentials"]
    x = np.arange(1, potentials.shape[1] + 1) / (potentials.shape[1] + 1)
    figure = Figure(figsize=(3 * len(potentials), 3), layout="constrained")
    for i, axes in enumerate(figure.subplots(1, len(potentials), squeeze=False).flat):
        axes.plot(x, potentials[i], color="black", label="$V(x)$")
        axes.axhline(arrays["example_targets"][i], color="C0", label="exact $E_0$")
        axes.axhline(arrays["example_predictions"][i], color="C1", linestyle="--", label="predicted $E_0$")
        axes.set(xlabel="x / width", ylabel=f"energy [{unit}]" if i == 0 else "")
    figure.axes[0].legend(fontsize="small")
    return figure


PROBLEM = PotentialProblem()

if __name__ == "__main__":
    main(PROBLEM)
