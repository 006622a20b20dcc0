"""What is predicted of a configuration: target, loss, metrics and baselines of the two tasks.

The columns are those of data.py: `spins` (N, L, L) and `temperatures` (N,) in J / k_B.
"""

import math
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.baselines import least_squares
from engine.problem import Columns
from ising import exact, lattice
from ising.statistics import temperature_bins

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
Metrics = dict[str, float]

MAX_FEATURES = 5000  # least squares on more takes minutes and gigabytes; the pairs exceed this above L = 10


class Task(Protocol):
    """What the two tasks have in common. Predictions and targets are (N,), in physical units except in `loss`."""

    main_metric: tuple[str, Literal["min", "max"]]
    scales_target: bool
    loss_name: str

    def target(self, columns: Columns) -> Array:
        """What is to be predicted."""

    def loss(self, answers: "Tensor", targets: "Tensor") -> "Tensor":
        """The loss of each example: (B,), (B,) -> (B,), in scaled units."""

    def metrics(self, columns: Columns, predictions: Array, targets: Array) -> Metrics:
        """How good the predictions are."""

    def baselines(self, train: Columns, test: Columns) -> dict[str, Array]:
        """Predictions for the test configurations, by the name of the method, that a network is compared with."""

    def report(self, columns: Columns, predictions: Array) -> dict[str, Any]:
        """What an evaluation reports in addition to the metrics."""


class EnergyTask:
    """Predict the energy per spin, in units of J, from the spins."""

    main_metric: tuple[str, Literal["min", "max"]] = ("mae", "min")
    scales_target = True
    loss_name = "mean squared error / variance of $E / N$"

    def target(self, columns: Columns) -> Array:
        """Energies per spin."""
        spins = columns["spins"]
        return np.asarray(lattice.energy(spins) / math.prod(spins.shape[1:]))

    def loss(self, answers: "Tensor", targets: "Tensor") -> "Tensor":
        """The squared error, in units of the variance of the training energies."""
        return (answers - targets) ** 2

    def metrics(self, columns: Columns, predictions: Array, targets: Array) -> Metrics:
        """Mean absolute error, root mean square error, R^2, and the share of exact energies.

        The energy levels lie at least 4 J apart, so a total energy that is less than 2 J off is nearer to its own level
        than to any other.
        """
        errors = predictions - targets
        squared, variation = (errors**2).sum(), ((targets - targets.mean()) ** 2).sum()
        # For targets that do not vary but for rounding, 1 if all are predicted exactly and 0 otherwise, as in
        # scikit-learn.
        r2 = 1 - squared / variation if variation > 1e-12 * (targets**2).sum() else float(squared == 0)
        return {
            "mae": float(np.abs(errors).mean()),
            "rmse": math.sqrt(squared / len(errors)),
            "r2": float(r2),
            "exact_fraction": float((np.abs(errors) * columns["spins"][0].size < 2).mean()),
        }

    def baselines(self, train: Columns, test: Columns) -> dict[str, Array]:
        """Predictors from no knowledge to very much.

        `mean` is the mean training energy. `pair_products` is least squares on s_i s_j for all pairs of sites, of which
        the energy is a sum: exact, given several times as many configurations as pairs. `symmetric_correlators` is
        least squares on their averages over the symmetries of the lattice, so few that a handful of configurations
        determines them. Those with more than MAX_FEATURES features are left out.
        """
        target = self.target(train)
        size = test["spins"].shape[-1]
        half, n_sites = size // 2, size**2
        predictions = {"mean": np.full(len(test["spins"]), target.mean())}
        if n_sites * (n_sites - 1) // 2 < MAX_FEATURES:
            predictions["pair_products"] = least_squares(pair_products, train, target, test)
        if (half + 1) * (half + 2) // 2 - 1 < MAX_FEATURES:
            predictions["symmetric_correlators"] = least_squares(
                lambda columns: lattice.correlations(columns["spins"]), train, target, test
            )
        return predictions

    def report(self, columns: Columns, predictions: Array) -> dict[str, Any]:
        """The largest error of a total energy, in J."""
        errors = np.abs(predictions - self.target(columns)) * columns["spins"][0].size
        return {"worst_error": float(errors.max())}


class PhaseTask:
    """Predict from the spins whether the temperature is below T_c. Predictions are log-odds that it is."""

    main_metric: tuple[str, Literal["min", "max"]] = ("accuracy", "max")
    scales_target = False
    loss_name = "cross-entropy [nats]"

    def target(self, columns: Columns) -> Array:
        """1 below T_c, 0 at and above it."""
        return (columns["temperatures"] < exact.T_CRITICAL).astype(np.float64)

    def loss(self, answers: "Tensor", targets: "Tensor") -> "Tensor":
        """The cross-entropy."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(answers, targets, reduction="none")

    def metrics(self, columns: Columns, predictions: Array, targets: Array) -> Metrics:
        """The share of correct phases."""
        return {"accuracy": float(((predictions > 0) == (targets > 0)).mean())}

    def baselines(self, train: Columns, test: Columns) -> dict[str, Array]:
        """Classifiers that use one number, and the best possible one.

        `majority` answers the phase that is more common in training. `magnetization` is logistic regression on |m|.
        `bayes` uses the temperatures of the training split and exact theory: the energy holds all the information about
        the temperature that a configuration has, so that no classifier is better on average.
        """
        target = self.target(train)
        share = (target.sum() + 0.5) / (len(target) + 1)
        energies, size = lattice.energy(test["spins"]), test["spins"].shape[-1]
        return {
            "majority": np.full(len(energies), math.log(share / (1 - share))),
            "magnetization": _logistic_regression(train["spins"], target, test["spins"]),
            "bayes": exact.phase_log_odds(energies, train["temperatures"], size),
        }

    def report(self, columns: Columns, predictions: Array) -> dict[str, Any]:
        """Bayes' rule for a prior of these temperatures, the best possible one; the network's prior is its training."""
        targets, odds = self.target(columns), bayes_log_odds(columns)
        loss = float((np.logaddexp(0, odds) - targets * odds).mean())
        return {"bayes": {"loss": loss, **self.metrics(columns, odds, targets)}}


TASKS: dict[str, Task] = {"energy": EnergyTask(), "phase": PhaseTask()}


def by_temperature(task: Task, columns: Columns, predictions: Array) -> list[Metrics]:
    """Metrics in bins of temperature: one row per bin.

    A row also has the mean `temperature` and the number `n` of its configurations.
    """
    temperatures, targets = columns["temperatures"], task.target(columns)
    rows = []
    for chosen in temperature_bins(temperatures):
        part = {name: column[chosen] for name, column in columns.items()}
        metrics = task.metrics(part, predictions[chosen], targets[chosen])
        rows.append({"temperature": float(temperatures[chosen].mean()), "n": len(chosen), **metrics})
    return rows


def bayes_log_odds(columns: Columns) -> Array:
    """Log-odds of T < T_c from the energies, if any temperature of these columns is as likely as any other: (N,)."""
    spins = columns["spins"]
    return exact.phase_log_odds(lattice.energy(spins), columns["temperatures"], spins.shape[-1])


def pair_products(columns: Columns) -> NDArray[np.float32]:
    """s_i s_j for all pairs of sites: (N, pairs) in {-1, +1}. In float32, sums of up to 2^24 of them are exact."""
    sites = columns["spins"].reshape(len(columns["spins"]), -1).astype(np.float32)
    first, second = np.triu_indices(sites.shape[1], k=1)
    products: NDArray[np.float32] = sites[:, first] * sites[:, second]
    return products


def _logistic_regression(train_spins: Array, target: Array, test_spins: Array) -> Array:
    """Log-odds of the targets as a linear function of |m|, fitted by Newton's method: (N_test,)."""

    def design(spins: Array) -> Array:
        magnetizations = np.abs(lattice.magnetization(spins))
        return np.stack([np.ones_like(magnetizations), magnetizations], axis=1)

    x = design(train_spins)
    coefficients = np.zeros(2)
    for _ in range(20):  # a ridge keeps the slope finite where |m| separates the phases without error
        p = 1 / (1 + np.exp(-x @ coefficients))
        hessian = (x.T * (p * (1 - p))) @ x + 1e-3 * np.eye(2)
        coefficients += np.linalg.solve(hessian, x.T @ (target - p) - 1e-3 * coefficients)
    return np.asarray(design(test_spins) @ coefficients)
