"""The networks: from spins, one number a configuration.

A network takes spins (B, L, L) as float32 and answers (B,) in units where the training targets have mean 0 and
variance 1; `create_model` wraps it so that spins go in as int8 and answers come out in physical units.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from config import ModelConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


def gain(activation: nn.Module) -> float:
    """The factor that keeps activations at unit size: 1 / sqrt(E[f(z)^2]) for a standard normal z.

    For relu this is the sqrt 2 of He et al. (2015); the integral, here a sum over a fine grid, gives it for any f.
    """
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weights = torch.exp(-(z**2) / 2)
    return float((weights.sum() / (weights * activation(z) ** 2).sum()).sqrt())


def linear(n_in: int, n_out: int, gain: float = 1.0) -> nn.Linear:
    """A linear layer with biases zero, whose outputs have a mean square gain^2 times that of its inputs."""
    layer = nn.Linear(n_in, n_out)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(n_in))
    nn.init.zeros_(layer.bias)
    return layer


class Dropout(nn.Module):
    """What nn.Dropout does, on the CPU with 15 random bits an activation, of which a 64-bit number gives four.

    In a small network nn.Dropout takes a fifth of the step there. The share p is thereby rounded to 1 / 32768. An
    instance has one place in a network: its mask lies in memory of its own.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.n_dropped = min(round(p * 2**15), 2**15 - 1)  # of the 2^15 values that 15 bits have
        self.mask = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if not x.is_cpu or torch.compiler.is_dynamo_compiling():
            return nn.functional.dropout(x, self.p)
        if self.mask.shape != x.shape:
            self.mask = torch.empty(x.shape)
            self.words = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
            self.bits = self.words.view(torch.int16)[: x.numel()].view(x.shape)
            self.all_but_sign = torch.tensor(2**15 - 1, dtype=torch.int16)
        self.words.random_()
        torch.ge(self.bits.bitwise_and_(self.all_but_sign), self.n_dropped, out=self.mask)  # 1.0 or 0.0
        return x * self.mask.mul_(2**15 / (2**15 - self.n_dropped))


class MLP(nn.Sequential):
    """Linear layers with a nonlinearity and dropout after each but the last: (B, L, L) -> (B,)."""

    def __init__(self, config: ModelConfig, lattice_size: int) -> None:
        layers: list[nn.Module] = []
        width, scale = lattice_size**2, 1.0  # spins have unit size as they are
        for next_width in config.hidden:
            activation = ACTIVATIONS[config.activation]()
            layers += [linear(width, next_width, scale), activation, Dropout(config.dropout)]
            width, scale = next_width, gain(activation)
        super().__init__(nn.Flatten(), *layers, linear(width, 1, scale), nn.Flatten(0))


class ResidualBlock(nn.Module):
    """x + V(x): a normalised, nonlinear correction to the stream, which itself passes unchanged."""

    def __init__(self, width: int, inner_width: int, config: ModelConfig) -> None:
        super().__init__()
        activation = ACTIVATIONS[config.activation]()
        last = linear(inner_width, width)
        nn.init.zeros_(last.weight)  # V = 0 to begin with: the block is the identity, and perturbs it as it learns
        self.correction = nn.Sequential(
            nn.LayerNorm(width),  # before the layers, so that the shortcut is the identity
            linear(width, inner_width),
            activation,
            Dropout(config.dropout),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, width) -> (B, width)
        correction: Tensor = self.correction(x)
        return x + correction


class ResidualMLP(nn.Sequential):
    """A stream as wide as the first hidden layer, to which a block for each hidden layer adds: (B, L, L) -> (B,)."""

    def __init__(self, config: ModelConfig, lattice_size: int) -> None:
        width = config.hidden[0]
        super().__init__(
            nn.Flatten(),
            linear(lattice_size**2, width),
            *(ResidualBlock(width, inner_width, config) for inner_width in config.hidden),
            nn.LayerNorm(width),  # the stream grows with what is added to it; what reads it should not
            linear(width, 1),
            nn.Flatten(0),
        )


ARCHITECTURES: dict[str, Callable[[ModelConfig, int], nn.Module]] = {"mlp": MLP, "residual_mlp": ResidualMLP}


class InPhysicalUnits(nn.Module):
    """A network with the mean and standard deviation of its targets, which are saved along with its weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, spins: Tensor) -> Tensor:  # (B, L, L) int8 -> (B,) float32, in the units of the targets
        standardised: Tensor = self.network(spins.float())
        return self.mean + self.std * standardised


def create_model(config: ModelConfig, lattice_size: int, mean: float = 0.0, std: float = 1.0) -> InPhysicalUnits:
    """The network of a config, with random weights from torch's generator, for targets of that mean and deviation."""
    return InPhysicalUnits(ARCHITECTURES[config.architecture](config, lattice_size), mean, std)
