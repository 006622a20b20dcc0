"""The networks: from spins to one number per configuration.

A network is called with spins (B, L, L) in {-1, +1} and, if the config has input_temperature, with reduced temperatures
(T - T_c) / T_c, (B,). It answers (B,), in units in which the training targets have mean 0 and variance 1. It declares
which symmetries of the Ising model it has by construction, whatever its weights, and whether it accepts lattices of
other sizes than the one it was made for.
"""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from config import ModelConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}

# s -> -s; shifts by whole sites; quarter turns; the mirror.
Symmetry = Literal["spin_flip", "translation", "rotation", "reflection"]


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


class Network(nn.Module):
    """What every network declares about itself, and how it combines spins and temperatures."""

    symmetries: ClassVar[frozenset[Symmetry]] = frozenset()
    any_lattice_size: ClassVar[bool] = False
    layers: nn.Sequential

    def __init__(self, config: ModelConfig, lattice_size: int) -> None:
        super().__init__()
        self.n_extra = int(config.input_temperature)
        self.n_inputs = lattice_size**2 + self.n_extra

    def as_floats(self, spins: Tensor) -> Tensor:
        """Spins of any dtype in the precision of the weights."""
        return spins.to(next(self.parameters()).dtype)

    def joined(self, features: Tensor, temperatures: Tensor | None) -> Tensor:
        """Features (B, F, ...) and, if they are given, the reduced temperatures (B,) as one more: (B, F + 1, ...)."""
        if temperatures is None:
            return features
        column = temperatures.view(-1, 1, *(1 for _ in features.shape[2:]))
        return torch.cat([features, column.expand(-1, 1, *features.shape[2:])], dim=1)


def hidden_layers(n_inputs: int, scale: float, config: ModelConfig, widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with a nonlinearity and dropout after each but the last: (B, n_inputs) -> (B,)."""
    layers: list[nn.Module] = []
    for width in widths:
        activation = ACTIVATIONS[config.activation]()
        layers += [linear(n_inputs, width, scale), activation, nn.Dropout(config.dropout)]
        n_inputs, scale = width, gain(activation)
    return nn.Sequential(*layers, linear(n_inputs, 1, scale), nn.Flatten(0))


class MLP(Network):
    """A multilayer perceptron, which treats a lattice as a list of spins."""

    def __init__(self, config: ModelConfig, lattice_size: int) -> None:
        super().__init__(config, lattice_size)
        self.layers = hidden_layers(self.n_inputs, 1.0, config, config.hidden)  # spins have unit size as they are

    def forward(self, spins: Tensor, temperatures: Tensor | None = None) -> Tensor:  # (B, L, L) -> (B,)
        answers: Tensor = self.layers(self.joined(self.as_floats(spins).flatten(1), temperatures))
        return answers


class SymmetryAwareMLP(Network):
    """A multilayer perceptron with equal answers for a configuration and its mirror image under s -> -s.

    Its first layer has no bias and is squared, so that every feature of the next layer is even: (w . s)^2, a sum over
    pairs of spins, as the energy is. With w . s of unit variance, (z^2 - 1) / sqrt 2 has mean 0 and variance 1.
    """

    symmetries = frozenset({"spin_flip"})

    def __init__(self, config: ModelConfig, lattice_size: int) -> None:
        super().__init__(config, lattice_size)
        self.pairs = nn.Linear(lattice_size**2, config.hidden[0], bias=False)
        nn.init.normal_(self.pairs.weight, std=1 / lattice_size)
        self.layers = hidden_layers(config.hidden[0] + self.n_extra, 1.0, config, config.hidden[1:])

    def forward(self, spins: Tensor, temperatures: Tensor | None = None) -> Tensor:  # (B, L, L) -> (B,)
        features = (self.pairs(self.as_floats(spins).flatten(1)) ** 2 - 1) / math.sqrt(2)
        answers: Tensor = self.layers(self.joined(features, temperatures))
        return answers


class ResidualBlock(nn.Module):
    """x + V(x): a normalised, nonlinear correction to the stream, which itself passes unchanged."""

    def __init__(self, width: int, inner_width: int, config: ModelConfig) -> None:
        super().__init__()
        activation = ACTIVATIONS[config.activation]()
        last = linear(inner_width, width)
        nn.init.zeros_(last.weight)  # V = 0 at the start: the block is the identity, and learns to perturb it
        self.correction = nn.Sequential(
            nn.LayerNorm(width),  # inside the branch, so that the shortcut is the identity
            linear(width, inner_width),
            activation,
            nn.Dropout(config.dropout),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, width) -> (B, width)
        correction: Tensor = self.correction(x)
        return x + correction


class ResidualMLP(Network):
    """A stream as wide as the first hidden layer, to which a block for each hidden layer adds."""

    def __init__(self, config: ModelConfig, lattice_size: int) -> None:
        super().__init__(config, lattice_size)
        width = config.hidden[0]
        self.layers = nn.Sequential(
            linear(self.n_inputs, width),
            *(ResidualBlock(width, inner_width, config) for inner_width in config.hidden),
            nn.LayerNorm(width),  # the stream grows with every block, the input of the last layer should not
            linear(width, 1),
            nn.Flatten(0),
        )

    def forward(self, spins: Tensor, temperatures: Tensor | None = None) -> Tensor:  # (B, L, L) -> (B,)
        answers: Tensor = self.layers(self.joined(self.as_floats(spins).flatten(1), temperatures))
        return answers


class CNN(Network):
    """Periodic convolutions, then a local energy at each site and its mean: one law for lattices of any size.

    The local energy is linear in the last channels. Its mean is therefore that of the mean channels, which is faster.
    """

    symmetries = frozenset({"translation"})
    any_lattice_size = True

    def __init__(self, config: ModelConfig, lattice_size: int) -> None:
        super().__init__(config, lattice_size)
        if config.kernel_size > lattice_size:
            raise ValueError(f"the kernels are {config.kernel_size} sites wide: use lattices of at least that size")
        layers: list[nn.Module] = []
        n_inputs, scale = 1 + self.n_extra, 1.0
        for n_channels in config.channels:
            activation = ACTIVATIONS[config.activation]()
            layers += [Convolution(n_inputs, n_channels, config.kernel_size, scale), activation]
            layers += [nn.Dropout(config.dropout)]
            n_inputs, scale = n_channels, gain(activation)
        self.layers = nn.Sequential(*layers)
        self.local_energy = linear(n_inputs, 1, scale)

    def forward(self, spins: Tensor, temperatures: Tensor | None = None) -> Tensor:  # (B, L, L) -> (B,)
        channels: Tensor = self.layers(self.joined(self.as_floats(spins)[:, None], temperatures))  # (B, C, L, L)
        answers: Tensor = self.local_energy(channels.mean(dim=(2, 3)))  # (B, 1)
        return answers.flatten()


class Convolution(nn.Conv2d):
    """A convolution on the torus, from every site to every site, initialised as `linear` is."""

    bias: Tensor

    def __init__(self, n_in: int, n_out: int, kernel_size: int, gain: float) -> None:
        super().__init__(n_in, n_out, kernel_size, padding="same", padding_mode="circular")
        nn.init.normal_(self.weight, std=gain / math.sqrt(n_in * kernel_size**2))
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, n_in, L, L) -> (B, n_out, L, L)
        if self.weight[0].numel() > 18 or not x.is_cpu:  # two channels of 3x3
            return super().forward(x)
        # With so few inputs, torch's convolution on the CPU takes up to twice the time of a matrix product.
        before, after = (self.kernel_size[0] - 1) // 2, self.kernel_size[0] // 2
        padded = nn.functional.pad(x, (before, after, before, after), mode="circular")
        neighbourhoods = nn.functional.unfold(padded, self.kernel_size)  # (B, n_in k^2, L^2)
        weights = self.weight.flatten(1).expand(len(x), -1, -1)
        return torch.baddbmm(self.bias[:, None], weights, neighbourhoods).view(-1, self.out_channels, *x.shape[2:])


ARCHITECTURES: dict[str, type[Network]] = {
    "mlp": MLP,
    "residual_mlp": ResidualMLP,
    "symmetric_mlp": SymmetryAwareMLP,
    "cnn": CNN,
}


def create_network(config: ModelConfig, lattice_size: int) -> Network:
    """The network of a config, with random weights from torch's generator.

    Raises:
        ValueError: the network cannot work on such a lattice.
    """
    return ARCHITECTURES[config.architecture](config, lattice_size)
