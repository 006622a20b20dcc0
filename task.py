"""What is predicted and how well: targets, loss, metrics, the baselines beside them, and the one `evaluate`."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ising import lattice

SITES_PER_CHUNK = 2**22  # how much is evaluated at once: 16 MiB of float32 inputs

Metrics = dict[str, float]


class Examples(NamedTuple):
    """A split as a network sees it."""

    spins: Tensor  # (N, L, L) int8 in {-1, +1}
    targets: Tensor  # (N,) float32, in physical units


class EnergyTask:
    """Predict the energy per spin, in units of J, from the spins alone.

    The mean and the standard deviation of the training energies are kept, for the model to scale its output by and for
    the loss to be without units; predictions and metrics are in units of J throughout.
    """

    def __init__(self, train_spins: NDArray[np.int8]) -> None:
        energies = lattice.energy(train_spins)
        self.n_sites = train_spins[0].size
        self.mean = float(energies.mean()) / self.n_sites
        self.std = float(energies.std()) / self.n_sites or 1.0  # 1: all training energies are equal, far below T_c

    def examples(self, spins: NDArray[np.int8], device: torch.device) -> Examples:
        """Spins (N, L, L) with their targets, on the device."""
        targets = (lattice.energy(spins) / self.n_sites).astype(np.float32)
        return Examples(torch.from_numpy(spins).to(device), torch.from_numpy(targets).to(device))

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error in units of the variance of the training energies: (B,), (B,) -> ()."""
        return nn.functional.mse_loss(predictions, targets) / self.std**2

    def sums(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """What the metrics are made of, additive over configurations: (B,), (B,) -> (6,) float64 on the CPU."""
        predictions, targets = predictions.cpu().double(), targets.cpu().double()  # by the CPU: MPS has no float64
        errors = predictions - targets
        # Levels lie at least 4 apart, so a total energy less than 2 away is nearer to its own level than to any other.
        exact = (errors.abs() * self.n_sites < 2).double()
        centred = targets - self.mean  # so that their variance is no difference of large numbers
        columns = (torch.ones_like(errors), errors.abs(), errors**2, centred, centred**2, exact)
        return torch.stack([column.sum() for column in columns])

    def metrics(self, sums: Tensor) -> Metrics:
        """Loss, mean absolute error, root mean square error, R^2, and the share of energies that are right exactly."""
        n, absolute, squared, first, second, exact = sums.tolist()
        variation = second - first**2 / n
        # R^2 where the targets do not vary, but for rounding: 1 if all are hit, else 0, as scikit-learn has it.
        r2 = 1 - squared / variation if variation > 1e-12 * second else float(squared == 0)
        return {
            "loss": squared / n / self.std**2,
            "mae": absolute / n,
            "rmse": math.sqrt(squared / n),
            "r2": r2,
            "exact_fraction": exact / n,
        }


@torch.inference_mode()
def predict(model: nn.Module, spins: Tensor) -> Tensor:
    """The model's predictions in evaluation mode: spins (N, L, L) int8 -> (N,) float32, in physical units."""
    model.eval()
    chunk = max(1, min(8192, SITES_PER_CHUNK // spins[0].numel()))
    return torch.cat([model(part) for part in torch.split(spins, chunk)])


def evaluate(
    model: nn.Module, task: EnergyTask, examples: Examples, add_up: Callable[[Tensor], Tensor] = lambda sums: sums
) -> Metrics:
    """The metrics of a model on some examples: the same for validation and test, and for processes that share them.

    `add_up` makes of the sums over the examples of one process those over all.
    """
    return task.metrics(add_up(task.sums(predict(model, examples.spins), examples.targets)))


# ------------------------------------------------------------------------------------------------------- baselines

MAX_FEATURES = 5000  # least squares on more would take minutes and gigabytes; all pairs pass this above L = 10


def baselines(task: EnergyTask, train: Examples, test: Examples) -> dict[str, Metrics]:
    """The test metrics of simple predictors: what a network has to be compared with.

    `mean` answers the mean training energy. `pair_products` is least squares on s_i s_j for all pairs of sites, of
    which the energy is a sum: exact, given several times as many configurations as pairs. `symmetric_correlators` is
    least squares on their averages over the symmetries of the lattice, which are so few that a handful of
    configurations settles them. Those with more than MAX_FEATURES features are left out.
    """
    predictions = {"mean": torch.full_like(test.targets, task.mean)}
    lattice_size = test.spins.shape[-1]
    half, n_sites = lattice_size // 2, lattice_size**2
    if n_sites * (n_sites - 1) // 2 < MAX_FEATURES:
        predictions["pair_products"] = _least_squares(_pair_products, train, test)
    if (half + 1) * (half + 2) // 2 - 1 < MAX_FEATURES:
        predictions["symmetric_correlators"] = _least_squares(lattice.correlations, train, test)
    return {name: task.metrics(task.sums(values, test.targets)) for name, values in predictions.items()}


def _pair_products(spins: NDArray[np.int8]) -> NDArray[np.float32]:
    """(N, L, L) -> (N, pairs) in {-1, +1}; float32, whose sums of up to 2^24 of them are exact."""
    sites = spins.reshape(len(spins), -1).astype(np.float32)
    first, second = np.triu_indices(sites.shape[1], k=1)
    products: NDArray[np.float32] = sites[:, first] * sites[:, second]
    return products


def _least_squares(
    features: Callable[[NDArray[np.int8]], NDArray[np.floating]], train: Examples, test: Examples
) -> Tensor:
    """Fit the targets by a constant and the features, (N, L, L) -> (N, F), and predict the test set: (N,) float64.

    By the normal equations, which need no more memory than F^2 numbers and are well enough conditioned here: the
    features are integers or averages of them. A ridge far below the data makes them solvable where some features never
    differ in training, and leaves the solution of least norm there.
    """

    def design(spins: NDArray[np.int8]) -> NDArray[np.floating]:
        columns = features(spins)
        return np.concatenate([np.ones_like(columns[:, :1]), columns], axis=1)

    chunk = max(1, SITES_PER_CHUNK // train.spins[0].numel() // 16)
    n_columns = design(train.spins[:1].cpu().numpy()).shape[1]
    gram, moments = np.zeros((n_columns, n_columns)), np.zeros(n_columns)
    for spins, targets in zip(
        torch.split(train.spins.cpu(), chunk), torch.split(train.targets.cpu(), chunk), strict=True
    ):
        x = design(spins.numpy())
        gram += x.T @ x
        moments += targets.double().numpy() @ x
    gram[np.diag_indices_from(gram)] += 1e-9 * len(train.spins)
    coefficients = np.linalg.solve(gram, moments)
    predictions = [design(spins.numpy()) @ coefficients for spins in torch.split(test.spins.cpu(), chunk)]
    return torch.from_numpy(np.concatenate(predictions))
