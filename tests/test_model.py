"""Networks: shapes, symmetries, lattice sizes and initialisation."""

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from config import Activation, Architecture, ModelConfig
from model import (
    ACTIVATIONS,
    ARCHITECTURES,
    Convolution,
    Network,
    ResidualBlock,
    Symmetry,
    activation_gain,
    create_network,
)

EVERY = pytest.mark.parametrize("architecture", ARCHITECTURES)
WITH_LINEAR_LAYERS = pytest.mark.parametrize("architecture", ["mlp", "residual_mlp"])
SYMMETRIES: dict[Symmetry, Callable[[torch.Tensor], torch.Tensor]] = {
    "spin_flip": lambda spins: -spins,
    "translation": lambda spins: spins.roll((1, 2), dims=(1, 2)),
    "rotation": lambda spins: spins.rot90(dims=(1, 2)),
    "reflection": lambda spins: spins.flip(2),
}


def spins(n: int, size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (n, size, size)))


def config_for(architecture: str, **options: object) -> ModelConfig:
    return ModelConfig(**{"architecture": architecture, **options})  # type: ignore[arg-type]


def test_names_in_the_config_are_those_of_the_classes() -> None:
    assert set(get_args(Architecture)) == set(ARCHITECTURES), "add the name to Architecture in config.py"
    assert set(get_args(Activation)) == set(ACTIVATIONS), "add the name to Activation in config.py"


@EVERY
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(5,), (7, 3), (4, 9, 2, 6)])
def test_one_number_per_configuration(architecture: str, activation: str, hidden: tuple[int, ...]) -> None:
    model = create_network(config_for(architecture, activation=activation, hidden=hidden), 6)
    for n in (1, 5):
        output = model(spins(n, 6))
        assert output.shape == (n,)
        assert output.dtype == torch.float32


def with_random_weights(architecture: str, size: int = 6, **options: object) -> Network:
    """A network in double precision whose parameters are all random: some are zero after the usual initialisation."""
    torch.manual_seed(4)
    model = create_network(config_for(architecture, hidden=(12, 7), channels=(5, 4), dropout=0, **options), size)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.double().eval()


@EVERY
@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("input_temperature", [False, True])
def test_a_network_has_the_symmetries_that_it_claims_and_no_others(
    architecture: str, symmetry: Symmetry, input_temperature: bool
) -> None:
    model = with_random_weights(architecture, input_temperature=input_temperature)
    batch = spins(20, 6)
    temperatures = torch.linspace(-0.5, 0.5, 20, dtype=torch.float64) if input_temperature else None
    before, after = model(batch, temperatures), model(SYMMETRIES[symmetry](batch), temperatures)
    if symmetry in ARCHITECTURES[architecture].symmetries:
        torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    else:
        assert (after - before).abs().max() > 1e-3


def test_every_symmetry_is_tested() -> None:
    assert set(SYMMETRIES) == set(get_args(Symmetry))
    assert all(network.symmetries <= set(SYMMETRIES) for network in ARCHITECTURES.values())


@EVERY
def test_networks_accept_other_lattice_sizes_if_declared(architecture: str) -> None:
    model = with_random_weights(architecture, size=6)
    network: type[Network] = ARCHITECTURES[architecture]
    for size in (4, 8, 12):
        if not network.any_lattice_size:
            with pytest.raises(RuntimeError):
                model(spins(3, size))
        else:  # a lattice and its periodic repetition have the same energy per spin
            batch = spins(3, size)
            torch.testing.assert_close(model(batch.repeat(1, 2, 2)), model(batch), rtol=0, atol=1e-12)


@EVERY
def test_the_temperature_changes_the_output_if_it_is_an_input(architecture: str) -> None:
    batch, temperatures = spins(5, 6), torch.linspace(-0.5, 0.7, 5)
    network = create_network(config_for(architecture, input_temperature=True), 6).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    assert not torch.equal(network(batch, temperatures), network(batch, temperatures + 0.2))


def test_kernels_larger_than_the_lattice_are_refused() -> None:
    with pytest.raises(ValueError, match="kernels are 6 sites wide"):
        create_network(config_for("cnn", kernel_size=6), 4)


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 6])
def test_a_local_energy_depends_on_the_sites_within_its_kernel(kernel_size: int) -> None:
    model = with_random_weights("cnn", kernel_size=kernel_size)
    batch = spins(1, 6).double()
    local = model.layers[:1]  # only the first convolution
    other = batch.clone()
    other[0, 2, 3] *= -1
    changed = (local(batch[:, None]) != local(other[:, None])).any(1)[0]
    assert changed.sum() == min(kernel_size, 6) ** 2


@pytest.mark.parametrize(("n_in", "kernel_size"), [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3)])
def test_convolutions_of_few_channels_equal_those_of_torch(n_in: int, kernel_size: int) -> None:
    torch.manual_seed(3)
    layer = Convolution(n_in, 5, kernel_size, gain=1.0).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(4, n_in, 6, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for product in (layer(x), nn.Conv2d.forward(layer, x)):
        results.append((product, *torch.autograd.grad(product.tanh().sum(), (x, *layer.parameters()))))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"), [("relu", 2**0.5), ("tanh", 1.5927), ("gelu", 1.5335), ("silu", 1.6765), ("sigmoid", 1.8462)]
)
def test_gain_keeps_the_mean_square_of_activations(name: str, expected: float) -> None:
    activation = ACTIVATIONS[name]()
    assert activation_gain(activation) == pytest.approx(expected, rel=1e-3)
    z = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    assert (activation_gain(activation) * activation(z)).square().mean().item() == pytest.approx(1, abs=0.01)


@WITH_LINEAR_LAYERS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_neither_vanish_nor_explode_with_depth_at_the_start(architecture: str, activation: str) -> None:
    torch.manual_seed(2)
    model = create_network(config_for(architecture, hidden=(512,) * 10, activation=activation, dropout=0), 8)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    sizes: list[float] = []
    for layer in layers:
        layer.register_forward_hook(lambda _module, _input, output: sizes.append(output.square().mean().item()))
    model(spins(256, 8))
    assert len(sizes) == len(layers)
    nonzero = [size for size in sizes if size > 0]  # the last layer of a block outputs zero at the start
    assert min(nonzero) > 0.3
    assert max(nonzero) < 3


@WITH_LINEAR_LAYERS
def test_biases_start_at_zero(architecture: str) -> None:
    model = create_network(config_for(architecture), 8)
    assert all(not layer.bias.any() for layer in model.modules() if isinstance(layer, nn.Linear))


def test_residual_blocks_start_as_the_identity() -> None:
    model = create_network(config_for("residual_mlp", hidden=(16, 8, 24)), 6).train()
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 3
    x = torch.randn(4, 16)
    assert all(torch.equal(block(x), x) for block in blocks)


def test_residual_network_normalises_the_residual_stream_before_the_output() -> None:
    model = create_network(config_for("residual_mlp", hidden=(32, 32), dropout=0), 6)
    stem, output = (layer for layer in model.layers if isinstance(layer, nn.Linear))
    before = model(spins(16, 6))
    with torch.no_grad():
        stem.weight *= 100  # makes the residual stream 100 times larger
    torch.testing.assert_close(model(spins(16, 6)), before, rtol=1e-3, atol=1e-3)
    assert output.weight.abs().max() > 0


@WITH_LINEAR_LAYERS
def test_dropout_is_only_active_in_training(architecture: str) -> None:
    torch.manual_seed(3)
    model = create_network(config_for(architecture, dropout=0.5), 6)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    batch = spins(8, 6)
    assert not torch.equal(model.train()(batch), model(batch))
    assert torch.equal(model.eval()(batch), model(batch))
