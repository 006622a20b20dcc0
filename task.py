"""What is predicted and how well: targets, loss, metrics, the baselines beside them, and the one `evaluate`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ising import exact, lattice

SITES_PER_CHUNK = 2**22  # how much is evaluated at once: 16 MiB of float32 inputs

Metrics = dict[str, float]


class Examples(NamedTuple):
    """A split as a network sees it."""

    spins: Tensor  # (N, L, L) int8 in {-1, +1}
    temperatures: Tensor  # (N,) float32 in J / k_B
    targets: Tensor  # (N,) float32, in physical units


class Task(ABC):
    """What is predicted of configurations on a lattice with so many sites.

    Args:
        mean, std: of the targets in training, which the model scales its output by.
    """

    def __init__(self, n_sites: int, mean: float = 0.0, std: float = 1.0) -> None:
        self.n_sites, self.mean, self.std = n_sites, mean, std

    @classmethod
    def of(cls, train_spins: NDArray[np.int8]) -> Self:
        """The task of predicting for configurations such as these, (N, L, L)."""
        return cls(train_spins[0].size)

    def examples(self, spins: NDArray[np.int8], temperatures: NDArray[np.float64], device: torch.device) -> Examples:
        """Spins (N, L, L) at temperatures (N,) with their targets, on the device."""
        targets = self.targets(spins, temperatures).astype(np.float32)
        arrays = (spins, temperatures.astype(np.float32), targets)
        return Examples(*(torch.from_numpy(array).to(device) for array in arrays))

    @abstractmethod
    def targets(self, spins: NDArray[np.int8], temperatures: NDArray[np.float64]) -> NDArray[np.floating]:
        """What is to be predicted: (N, L, L), (N,) -> (N,)."""

    @abstractmethod
    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """What training makes small: (B,), (B,) -> ()."""

    @abstractmethod
    def sums(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """What the metrics are made of, additive over configurations: (B,), (B,) -> (S,) float64 on the CPU."""

    @abstractmethod
    def metrics(self, sums: Tensor) -> Metrics:
        """The loss, and how good the predictions are."""

    @abstractmethod
    def baselines(self, train: Examples, test: Examples) -> dict[str, Tensor]:
        """Predictions (N,) for the test examples, by name, that a network has to be compared with."""


class EnergyTask(Task):
    """Predict the energy per spin, in units of J, from the spins alone.

    The mean and the standard deviation of the training energies are kept, for the model to scale its output by and for
    the loss to be without units; predictions and metrics are in units of J throughout.
    """

    @classmethod
    def of(cls, train_spins: NDArray[np.int8]) -> Self:
        energies, n_sites = lattice.energy(train_spins), train_spins[0].size
        std = float(energies.std()) / n_sites or 1.0  # 1: all training energies are equal, far below T_c
        return cls(n_sites, float(energies.mean()) / n_sites, std)

    def targets(self, spins: NDArray[np.int8], temperatures: NDArray[np.float64]) -> NDArray[np.floating]:
        """Energies per spin."""
        return np.asarray(lattice.energy(spins) / self.n_sites)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error in units of the variance of the training energies."""
        return nn.functional.mse_loss(predictions, targets) / self.std**2

    def sums(self, predictions: Tensor, targets: Tensor) -> Tensor:
        predictions, targets = predictions.cpu().double(), targets.cpu().double()  # by the CPU: MPS has no float64
        errors = predictions - targets
        # Levels lie at least 4 apart, so a total energy less than 2 away is nearer to its own level than to any other.
        exact_ones = (errors.abs() * self.n_sites < 2).double()
        centred = targets - self.mean  # so that their variance is no difference of large numbers
        columns = (torch.ones_like(errors), errors.abs(), errors**2, centred, centred**2, exact_ones)
        return torch.stack([column.sum() for column in columns])

    def metrics(self, sums: Tensor) -> Metrics:
        """Loss, mean absolute error, root mean square error, R^2, and the share of energies that are right exactly."""
        n, absolute, squared, first, second, exact_ones = sums.tolist()
        variation = second - first**2 / n
        # R^2 where the targets do not vary, but for rounding: 1 if all are hit, else 0, as scikit-learn has it.
        r2 = 1 - squared / variation if variation > 1e-12 * second else float(squared == 0)
        return {
            "loss": squared / n / self.std**2,
            "mae": absolute / n,
            "rmse": math.sqrt(squared / n),
            "r2": r2,
            "exact_fraction": exact_ones / n,
        }

    def baselines(self, train: Examples, test: Examples) -> dict[str, Tensor]:
        """Predictors that know nothing, or very much.

        `mean` answers the mean training energy. `pair_products` is least squares on s_i s_j for all pairs of sites, of
        which the energy is a sum: exact, given several times as many configurations as pairs. `symmetric_correlators`
        is least squares on their averages over the symmetries of the lattice, which are so few that a handful of
        configurations settles them. Those with more than MAX_FEATURES features are left out.
        """
        predictions = {"mean": torch.full_like(test.targets, self.mean)}
        lattice_size = test.spins.shape[-1]
        half, n_sites = lattice_size // 2, lattice_size**2
        if n_sites * (n_sites - 1) // 2 < MAX_FEATURES:
            predictions["pair_products"] = _least_squares(_pair_products, train, test)
        if (half + 1) * (half + 2) // 2 - 1 < MAX_FEATURES:
            predictions["symmetric_correlators"] = _least_squares(lattice.correlations, train, test)
        return predictions


class PhaseTask(Task):
    """Tell from the spins alone whether the temperature is below T_c: predictions are log-odds that it is."""

    def targets(self, spins: NDArray[np.int8], temperatures: NDArray[np.float64]) -> NDArray[np.floating]:
        """1 below T_c, 0 at and above it."""
        return (temperatures < exact.T_CRITICAL).astype(np.float64)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return nn.functional.binary_cross_entropy_with_logits(predictions, targets)

    def sums(self, predictions: Tensor, targets: Tensor) -> Tensor:
        predictions, targets = predictions.cpu().double(), targets.cpu().double()
        losses = nn.functional.binary_cross_entropy_with_logits(predictions, targets, reduction="none")
        right = ((predictions > 0) == (targets > 0)).double()
        return torch.stack([column.sum() for column in (torch.ones_like(right), losses, right)])

    def metrics(self, sums: Tensor) -> Metrics:
        """Loss, and the share of phases that are right."""
        n, loss, right = sums.tolist()
        return {"loss": loss / n, "accuracy": right / n}

    def baselines(self, train: Examples, test: Examples) -> dict[str, Tensor]:
        """Classifiers of one number, and the best there can be.

        `majority` answers the phase that is more common in training. `magnetization` is logistic regression on |m|.
        `bayes` knows the temperatures of the training set and exact theory: the energy says all that a configuration
        says of its temperature, so that no classifier does better on average.
        """
        share = (float(train.targets.sum()) + 0.5) / (len(train.targets) + 1)
        energies = lattice.energy(test.spins.cpu().numpy())
        prior = train.temperatures.cpu().double().numpy()
        odds = exact.phase_log_odds(energies, prior, test.spins.shape[-1])
        return {
            "majority": torch.full_like(test.targets, math.log(share / (1 - share))),
            "magnetization": _logistic_regression(train, test),
            "bayes": torch.from_numpy(odds),
        }


TASKS: dict[str, type[Task]] = {"energy": EnergyTask, "phase": PhaseTask}


@torch.inference_mode()
def predict(model: nn.Module, examples: Examples) -> Tensor:
    """The model's predictions in evaluation mode: (N,) float32, in physical units."""
    model.eval()
    chunk = max(1, min(8192, SITES_PER_CHUNK // examples.spins[0].numel()))
    inputs = zip(*(torch.split(part, chunk) for part in (examples.spins, examples.temperatures)), strict=True)
    return torch.cat([model(*part) for part in inputs])


def evaluate(
    model: nn.Module, task: Task, examples: Examples, add_up: Callable[[Tensor], Tensor] = lambda sums: sums
) -> Metrics:
    """The metrics of a model on some examples: the same for validation and test, and for processes that share them.

    `add_up` makes of the sums over the examples of one process those over all.
    """
    return task.metrics(add_up(task.sums(predict(model, examples), examples.targets)))


def by_temperature(task: Task, predictions: Tensor, examples: Examples, n_bins: int = 20) -> list[Metrics]:
    """Metrics in bins of equally many configurations, ten at least if there are so many: a row a bin.

    A row has the mean `temperature` and the number `n` of its configurations besides.
    """
    temperatures = examples.temperatures.cpu()
    rows = []
    for bin_ in temperatures.argsort().tensor_split(max(1, min(n_bins, len(temperatures) // 10))):
        metrics = task.metrics(task.sums(predictions.cpu()[bin_], examples.targets.cpu()[bin_]))
        rows.append({"temperature": temperatures[bin_].mean().item(), "n": len(bin_), **metrics})
    return rows


# ------------------------------------------------------------------------------------------------------- baselines

MAX_FEATURES = 5000  # least squares on more would take minutes and gigabytes; all pairs pass this above L = 10


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


def _logistic_regression(train: Examples, test: Examples) -> Tensor:
    """Log-odds of the targets as a straight line in |m|, fitted by Newton's method: (N,) float64."""

    def design(spins: Tensor) -> NDArray[np.float64]:
        magnetizations = np.abs(lattice.magnetization(spins.cpu().numpy()))
        return np.stack([np.ones_like(magnetizations), magnetizations], axis=1)

    x, y = design(train.spins), train.targets.cpu().double().numpy()
    coefficients = np.zeros(2)
    for _ in range(20):  # a ridge keeps the slope finite where |m| tells the phases apart without fail
        p = 1 / (1 + np.exp(-x @ coefficients))
        hessian = (x.T * (p * (1 - p))) @ x + 1e-3 * np.eye(2)
        coefficients += np.linalg.solve(hessian, x.T @ (y - p) - 1e-3 * coefficients)
    return torch.from_numpy(design(test.spins) @ coefficients)
