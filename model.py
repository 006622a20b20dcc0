# Experiment: yours, to replace.
"""The networks, which predict one number per configuration from its spins.

A network is called with spins (B, L, L) in {-1, +1}. With --input-temperature, it is also given reduced temperatures
(T - T_c) / T_c, (B,). It returns (B,). Energies are predicted in units in which the training energies have mean 0 and
variance 1 (engine/learning/prediction.py); phases are predicted as log-odds.

To add a network, write a class, add it to ARCHITECTURES, and add its name to Architecture in config.py. A class
declares which symmetries of the Ising model it has for all values of its weights, and whether it accepts lattices of
any size. tests/test_model.py checks both.
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

# s -> -s; shifts by whole sites; rotations by 90 degrees; reflections.
Symmetry = Literal["spin_flip", "translation", "rotation", "reflection"]


def activation_gain(activation: nn.Module) -> float:
    """The factor by which activations f(z) are multiplied to have mean square 1: 1 / sqrt(E[f(z)^2]), z ~ N(0, 1).

    The expectation is computed as a sum over a fine grid. For relu, the factor is sqrt 2, as in He et al. (2015).
    """
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64, device="cpu")  # also while a network is built on "meta"
    weights = torch.exp(-(z**2) / 2)
    return float((weights.sum() / (weights * activation(z) ** 2).sum()).sqrt())


def linear(n_in: int, n_out: int, gain: float = 1.0, *, bias: bool = True) -> nn.Linear:
    """A linear layer that multiplies the mean square of its inputs by gain^2, on average over its random weights."""
    layer = nn.Linear(n_in, n_out, bias=bias)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(n_in))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Network(nn.Module):
    """The base class of the networks: their declarations, and helpers for their two inputs.

    By default, `layers` are given the list of spins, (B, L^2) or, with the temperature, (B, L^2 + 1).
    """

    symmetries: ClassVar[frozenset[Symmetry]] = frozenset()  # those that hold for all values of the weights
    any_lattice_size: ClassVar[bool] = False  # whether it accepts sizes other than the one it was trained on
    layers: nn.Sequential

    def __init__(self, config: ModelConfig, lattice_size: int) -> None:
        super().__init__()
        self.n_extra = int(config.input_temperature)  # inputs besides the spins
        self.n_inputs = lattice_size**2 + self.n_extra

    def forward(self, spins: Tensor, temperatures: Tensor | None = None) -> Tensor:  # (B, L, L), (B,) -> (B,)
        outputs: Tensor = self.layers(self.with_temperatures(self.as_floats(spins).flatten(1), temperatures))
        return outputs

    def as_floats(self, spins: Tensor) -> Tensor:
        """Spins of any dtype, converted to the dtype of the weights."""
        return spins.to(next(self.parameters()).dtype)

    def with_temperatures(self, features: Tensor, temperatures: Tensor | None) -> Tensor:
        """Append the reduced temperatures (B,), if there are any, to features (B, F, ...) as one more feature."""
        if temperatures is None:
            return features
        column = temperatures.view(-1, 1, *(1 for _ in features.shape[2:]))
        return torch.cat([features, column.expand(-1, 1, *features.shape[2:])], dim=1)


def hidden_layers(n_inputs: int, config: ModelConfig, widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers, each with a nonlinearity and dropout, and a linear output: (B, n_inputs) -> (B,)."""
    layers: list[nn.Module] = []
    gain = 1.0  # the inputs have mean square 1
    for width in widths:
        activation = ACTIVATIONS[config.activation]()
        layers += [linear(n_inputs, width, gain), activation, nn.Dropout(config.dropout)]
        n_inputs, gain = width, activation_gain(activation)
    return nn.Sequential(*layers, linear(n_inputs, 1, gain), nn.Flatten(0))


class MLP(Network):
    """A multilayer perceptron. Its input is the list of spins, without the structure of the lattice."""

    def __init__(self, config: ModelConfig, lattice_size: int) -> None:
        super().__init__(config, lattice_size)
        self.layers = hidden_layers(self.n_inputs, config, config.hidden)


class SymmetricMLP(Network):
    """A multilayer perceptron whose output does not change if all spins are flipped, s -> -s.

    The first layer has no bias and its outputs are squared. Each feature is then (w . s)^2, a sum over pairs of spins
    like the energy. For random weights, z = w . s is approximately standard normal, and (z^2 - 1) / sqrt 2 has mean 0
    and variance 1.
    """

    symmetries = frozenset({"spin_flip"})

    def __init__(self, config: ModelConfig, lattice_size: int) -> None:
        super().__init__(config, lattice_size)
        self.pairs = linear(lattice_size**2, config.hidden[0], bias=False)
        self.layers = hidden_layers(config.hidden[0] + self.n_extra, config, config.hidden[1:])

    def forward(self, spins: Tensor, temperatures: Tensor | None = None) -> Tensor:  # (B, L, L) -> (B,)
        features = (self.pairs(self.as_floats(spins).flatten(1)) ** 2 - 1) / math.sqrt(2)
        outputs: Tensor = self.layers(self.with_temperatures(features, temperatures))
        return outputs


class ResidualBlock(nn.Module):
    """x + V(x): adds a correction V to its input x, the residual stream."""

    def __init__(self, width: int, inner_width: int, config: ModelConfig) -> None:
        super().__init__()
        activation = ACTIVATIONS[config.activation]()
        last = linear(inner_width, width)
        nn.init.zeros_(last.weight)  # V = 0 at the start of the training: the block is the identity
        self.correction = nn.Sequential(
            nn.LayerNorm(width),  # normalises the input of V, not the residual stream
            linear(width, inner_width),
            activation,
            nn.Dropout(config.dropout),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, width) -> (B, width)
        correction: Tensor = self.correction(x)
        return x + correction


class ResidualMLP(Network):
    """A residual network: a stream as wide as the first hidden layer, and one block for each hidden layer."""

    def __init__(self, config: ModelConfig, lattice_size: int) -> None:
        super().__init__(config, lattice_size)
        width = config.hidden[0]
        self.layers = nn.Sequential(
            linear(self.n_inputs, width),
            *(ResidualBlock(width, inner_width, config) for inner_width in config.hidden),
            nn.LayerNorm(width),  # the stream grows with every block; the input of the last layer should not
            linear(width, 1),
            nn.Flatten(0),
        )


class CNN(Network):
    """Periodic convolutions, which give each site a local energy, and the mean over all sites.

    The local energy is linear in the channels of the last convolution. The mean local energy is therefore the local
    energy of the mean channels, which is faster to compute.
    """

    symmetries = frozenset({"translation"})
    any_lattice_size = True

    def __init__(self, config: ModelConfig, lattice_size: int) -> None:
        super().__init__(config, lattice_size)
        if config.kernel_size > lattice_size:
            raise ValueError(f"the kernels are {config.kernel_size} sites wide: use lattices of at least that size")
        layers: list[nn.Module] = []
        n_inputs, gain = 1 + self.n_extra, 1.0
        for n_channels in config.channels:
            activation = ACTIVATIONS[config.activation]()
            layers += [Convolution(n_inputs, n_channels, config.kernel_size, gain), activation]
            layers += [nn.Dropout(config.dropout)]
            n_inputs, gain = n_channels, activation_gain(activation)
        self.layers = nn.Sequential(*layers)
        self.local_energy = linear(n_inputs, 1, gain)

    def forward(self, spins: Tensor, temperatures: Tensor | None = None) -> Tensor:  # (B, L, L) -> (B,)
        channels: Tensor = self.layers(
            self.with_temperatures(self.as_floats(spins)[:, None], temperatures)
        )  # (B, C, L, L)
        outputs: Tensor = self.local_energy(channels.mean(dim=(2, 3)))  # (B, 1)
        return outputs.flatten()


class Convolution(nn.Conv2d):
    """A convolution with periodic boundaries and an output at every site, with random weights as in `linear`."""

    bias: Tensor
    MAX_UNFOLDED: ClassVar[int] = (
        18  # use a matrix product up to this number of inputs per kernel, as for two channels of 3x3
    )

    def __init__(self, n_in: int, n_out: int, kernel_size: int, gain: float) -> None:
        super().__init__(n_in, n_out, kernel_size, padding="same", padding_mode="circular")
        nn.init.normal_(self.weight, std=gain / math.sqrt(n_in * kernel_size**2))
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, n_in, L, L) -> (B, n_out, L, L)
        if x.is_cpu and self.weight[0].numel() <= self.MAX_UNFOLDED:
            return self._unfolded(x)
        return super().forward(x)

    def _unfolded(self, x: Tensor) -> Tensor:
        """Compute the convolution as a matrix product, which can be twice as fast if a kernel has few inputs.

        The numbers in the neighbourhood of each site are copied into a column. The kernel multiplies all columns.
        """
        before, after = (self.kernel_size[0] - 1) // 2, self.kernel_size[0] // 2
        padded = nn.functional.pad(x, (before, after, before, after), mode="circular")
        neighbourhoods = nn.functional.unfold(padded, self.kernel_size)  # (B, n_in k^2, L^2)
        weights = self.weight.flatten(1).expand(len(x), -1, -1)
        return torch.baddbmm(self.bias[:, None], weights, neighbourhoods).view(-1, self.out_channels, *x.shape[2:])


ARCHITECTURES: dict[str, type[Network]] = {
    "mlp": MLP,
    "residual_mlp": ResidualMLP,
    "symmetric_mlp": SymmetricMLP,
    "cnn": CNN,
}


def create_network(config: ModelConfig, lattice_size: int) -> Network:
    """Create the network of a config, with random weights from torch's global generator.

    Raises:
        ValueError: the network does not accept lattices of this size.
    """
    network = ARCHITECTURES[config.architecture](config, lattice_size)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:  # not biases and normalisation layers
                parameter.mul_(config.initial_scale)
    return network
