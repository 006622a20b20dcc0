"""Order parameters without labels: the first principal component, and an autoencoder with one latent variable.

Both are learned from spins at unknown temperatures, and give a number o for each other configuration. The scale of o is
arbitrary, so only dimensionless ratios of its moments can be used.

The autoencoder encodes the spins into a latent variable z, and decodes z into expected values of the spins. Its loss
does not determine z: any monotonic function of z, with a decoder to match, gives the same reconstruction. A ratio of
moments depends on this function. A linear encoder excludes it, since z is then a weighted sum of the spins, and only
the weights are learned. With a hidden layer, the encoder is free to choose any function.

Without biases, all functions here change their sign with all spins, under which the energy does not change.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from engine.interface import Columns, Config, Problem, Shape, TrainConfig
from engine.learning.prediction import build_model, forward_in_chunks
from trainer import Trainer

Spins = NDArray[np.int8]  # (N, L, L)
OrderParameter = Callable[[Spins], NDArray[np.float64]]  # (N, L, L) -> (N,)

HIDDEN = 64  # units in hidden layers
# Large weight decay: it removes the random initial weights. The others remain, since the gradient renews them.
TRAINING = TrainConfig(epochs=10, lr=0.001, batch_size=64, weight_decay=5.0)


class Autoencoder(nn.Module):
    """Reconstruct spins from one number: (B, L, L) -> (B, L^2).

    Args:
        n_sites: L^2.
        linear_encoder: the encoder is a weighted sum of the spins. Otherwise it has a hidden layer, as the decoder has.
    """

    def __init__(self, n_sites: int, linear_encoder: bool) -> None:
        super().__init__()

        def layers(n_in: int, n_out: int) -> list[nn.Module]:
            return [nn.Linear(n_in, HIDDEN, bias=False), nn.Tanh(), nn.Linear(HIDDEN, n_out, bias=False)]

        encoder = [nn.Linear(n_sites, 1, bias=False)] if linear_encoder else layers(n_sites, 1)
        self.encoder = nn.Sequential(nn.Flatten(), *encoder)
        self.decoder = nn.Sequential(*layers(1, n_sites))

    def forward(self, spins: Tensor) -> Tensor:
        reconstructed: Tensor = self.decoder(self.encoder(spins))
        return reconstructed


class Reconstruction(Problem[Config]):
    """Predict the spins from themselves."""

    name = "reconstruction"
    config_type = Config
    presets = {"default": Config(train=TRAINING)}
    scale_inputs = False

    def __init__(self, linear_encoder: bool) -> None:
        self.linear_encoder = linear_encoder

    def inputs(self, config: Config, columns: Columns) -> tuple[NDArray[Any], ...]:
        return (columns["spins"].astype(np.float32),)

    def target(self, config: Config, columns: Columns) -> NDArray[Any]:
        return columns["spins"].reshape(len(columns["spins"]), -1).astype(np.float64)

    def scales_target(self, config: Config) -> bool:
        return False

    def network(self, config: Config, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
        return Autoencoder(target_shape[0], self.linear_encoder)


def latent_variable(train: Spins, val: Spins, seed: int, *, linear_encoder: bool) -> OrderParameter:
    """Train an autoencoder, and return its encoder."""
    problem = Reconstruction(linear_encoder)
    config = Config(train=TRAINING, seed=seed, device="cpu")
    model = build_model(problem, config, {"spins": train})
    Trainer(problem, config, model, {"spins": train}, {"spins": val}).fit()

    def encode(spins: Spins) -> NDArray[np.float64]:
        encoder = model.network.get_submodule("encoder")
        return forward_in_chunks(encoder, [torch.from_numpy(spins.astype(np.float32))]).squeeze(1).double().numpy()

    return encode


def principal_component(train: Spins, val: Spins, seed: int) -> OrderParameter:
    """The projection on the first principal component, a unit vector, divided by L. `val` is not used.

    The mean of the spins is not subtracted, since it vanishes by symmetry.
    """
    flat = train.reshape(len(train), -1).astype(np.float64)
    start = np.random.default_rng(seed).normal(size=min(flat.shape))
    component = svds(flat, k=1, v0=start)[2][0]  # (L^2,)
    return lambda spins: spins.reshape(len(spins), -1) @ component / spins.shape[1]


METHODS: dict[str, Callable[[Spins, Spins, int], OrderParameter]] = {
    "principal component": principal_component,
    "latent variable, linear encoder": partial(latent_variable, linear_encoder=True),
    "latent variable, tanh encoder": partial(latent_variable, linear_encoder=False),
}
