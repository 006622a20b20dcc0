# Experiment: yours, to replace.
"""The two tasks, energy and phase: target, loss, metrics and baselines.

A task has those methods of a problem (base_problem.py) that depend on what is predicted, without the config. problem.py
calls those of the task in the config. The columns are those of data.py: `spins` (N, L, L) and `temperatures` (N,) in
J / k_B. Predictions and targets are (N,), in physical units except in `loss`.
"""

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.datasets.overlap import select
from engine.interface import Columns, least_squares, regression_metrics
from ising import exact, lattice
from ising.statistics import temperature_bins

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
Metrics = dict[str, float]

MAX_FEATURES = 5000  # least squares on more takes minutes and gigabytes; pairs of spins exceed this above L = 10
MAX_ROWS = 20_000  # least squares on more takes longer than an epoch, and changes nothing: the law is exact


class EnergyTask:
    """Predict the energy per spin, in units of J, from the spins."""

    main_metric: tuple[str, Literal["min", "max"]] = ("mae", "min")
    scales_target = True
    loss_name = "mean squared error / variance of $E / N$"

    def target(self, columns: Columns) -> Array:
        """Energies per spin."""
        spins = columns["spins"]
        return np.asarray(lattice.energy(spins) / math.prod(spins.shape[1:]))

    def loss(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        """The squared error, in units of the variance of the training energies."""
        return (outputs - targets) ** 2

    def metrics(self, columns: Columns, predictions: Array, targets: Array) -> Metrics:
        """Mean absolute error, root mean square error, R^2, and the fraction of exact energies.

        An energy counts as exact if the error of the total energy is below 2 J. It is then nearer to the correct level
        than to any other, because levels are at least 4 J apart.
        """
        exact_fraction = float((total_energy_errors(columns, predictions, targets) < 2).mean())
        return {**regression_metrics(predictions, targets), "exact_fraction": exact_fraction}

    def baselines(self, train: Columns, test: Columns) -> dict[str, Array]:
        """Predictions of methods that use increasing knowledge about the energy.

        - `mean`: the mean training energy.
        - `magnetization`: the median training energy of the configurations with the same |m|, or the nearest one.
        - `pair_products`: least squares on s_i s_j for all pairs of sites. The energy is a sum of such products, so
          this is exact if there are several times as many configurations as pairs.
        - `symmetric_correlators`: least squares on averages of these products over the symmetries of the lattice. A few
          tens of configurations are enough to determine their coefficients.

        Methods with more than MAX_FEATURES features are left out. Least squares uses at most MAX_ROWS configurations.
        """
        target = self.target(train)
        size = test["spins"].shape[-1]
        half, n_sites = size // 2, size**2
        predictions = {
            "mean": np.full(len(test["spins"]), target.mean()),
            "magnetization": _median_by_magnetization(train["spins"], target, test["spins"]),
        }
        stride = -(-len(target) // MAX_ROWS)  # not the first ones, which a file may have sorted
        train, target = {name: column[::stride] for name, column in train.items()}, target[::stride]
        if n_sites * (n_sites - 1) // 2 <= MAX_FEATURES:
            predictions["pair_products"] = least_squares(pair_products, train, target, test)
        if (half + 1) * (half + 2) // 2 - 1 <= MAX_FEATURES:
            predictions["symmetric_correlators"] = least_squares(
                lambda columns: lattice.correlations(columns["spins"]), train, target, test
            )
        return predictions

    def report(self, columns: Columns, predictions: Array) -> dict[str, Any]:
        """The lattice size, metrics by temperature, and the largest error of a total energy, in J."""
        worst = float(total_energy_errors(columns, predictions, self.target(columns)).max())
        return {**on_lattices(self, columns, predictions), "worst_total_error": worst}


class PhaseTask:
    """Predict from the spins whether the temperature is below T_c. Predictions are log-odds that it is."""

    main_metric: tuple[str, Literal["min", "max"]] = ("accuracy", "max")
    scales_target = False
    loss_name = "cross-entropy [nats]"

    def target(self, columns: Columns) -> Array:
        """1 below T_c, 0 at and above it."""
        return (columns["temperatures"] < exact.T_CRITICAL).astype(np.float64)

    def loss(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        """The cross-entropy."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(outputs, targets, reduction="none")

    def metrics(self, columns: Columns, predictions: Array, targets: Array) -> Metrics:
        """The fraction of correct phases."""
        return {"accuracy": float(((predictions > 0) == (targets > 0)).mean())}

    def baselines(self, train: Columns, test: Columns) -> dict[str, Array]:
        """Simple classifiers, and the best possible one.

        - `majority`: always the phase that is more common in training.
        - `magnetization`: logistic regression on |m|.
        - `bayes`: Bayes' rule, with the temperatures of the training split and exact theory. The energy is a sufficient
          statistic for the temperature: it contains all information about T that a configuration has. Therefore no
          classifier is better on average.
        """
        target = self.target(train)
        energies, size = lattice.energy(test["spins"]), test["spins"].shape[-1]
        return {
            "majority": majority_log_odds(target, len(energies)),
            "magnetization": _logistic_regression(train["spins"], target, test["spins"]),
            "bayes": exact.phase_log_odds(energies, train["temperatures"], size),
        }

    def report(self, columns: Columns, predictions: Array) -> dict[str, Any]:
        """The lattice size, metrics by temperature, and the metrics of two classifiers that know these temperatures.

        - `majority`: always the phase that is more common in these data.
        - `bayes`: Bayes' rule, which no classifier can beat on average. The prior is the distribution of temperatures
          in these data. The network has learned that of its training data.
        """
        targets = self.target(columns)
        classifiers = {"majority": majority_log_odds(targets, len(targets)), "bayes": bayes_log_odds(columns)}
        return on_lattices(self, columns, predictions) | {
            name: {
                "loss": float((np.logaddexp(0, odds) - targets * odds).mean()),
                **self.metrics(columns, odds, targets),
            }
            for name, odds in classifiers.items()
        }


Task = EnergyTask | PhaseTask
TASKS: dict[str, Task] = {"energy": EnergyTask(), "phase": PhaseTask()}


def on_lattices(task: Task, columns: Columns, predictions: Array) -> dict[str, Any]:
    """What the reports of both tasks have: the lattice size, and the metrics by temperature."""
    table = by_temperature(task, columns, predictions)
    return {"lattice_size": columns["spins"].shape[-1], "by_temperature": table}


def by_temperature(task: Task, columns: Columns, predictions: Array) -> list[Metrics]:
    """Metrics in bins of temperature: one row per bin, with its mean `temperature` and number `n` of configurations."""
    temperatures, targets = columns["temperatures"], task.target(columns)
    rows = []
    for chosen in temperature_bins(temperatures):
        metrics = task.metrics(select(columns, chosen), predictions[chosen], targets[chosen])
        rows.append({"temperature": float(temperatures[chosen].mean()), "n": len(chosen), **metrics})
    return rows


def total_energy_errors(columns: Columns, predictions: Array, targets: Array) -> Array:
    """Absolute errors of the total energy in J, (N,), from energies per spin."""
    return np.asarray(np.abs(predictions - targets) * columns["spins"][0].size)


def majority_log_odds(targets: Array, n: int) -> Array:
    """The log-odds of the share of configurations below T_c among targets (N,), for n configurations: (n,)."""
    share = (targets.sum() + 0.5) / (len(targets) + 1)
    return np.full(n, math.log(share / (1 - share)))


def bayes_log_odds(columns: Columns) -> Array:
    """Log-odds of T < T_c given the energies, (N,), if all temperatures of these columns are equally likely."""
    spins = columns["spins"]
    return exact.phase_log_odds(lattice.energy(spins), columns["temperatures"], spins.shape[-1])


def pair_products(columns: Columns) -> NDArray[np.float32]:
    """The products s_i s_j of all pairs of sites, (N, pairs). Sums of up to 2^24 of them are exact in float32."""
    sites = columns["spins"].reshape(len(columns["spins"]), -1).astype(np.float32)
    first, second = np.triu_indices(sites.shape[1], k=1)
    products: NDArray[np.float32] = sites[:, first] * sites[:, second]
    return products


def _median_by_magnetization(train_spins: Array, target: Array, test_spins: Array) -> Array:
    """The median target of the training configurations with the same |m|, or the nearest one: (N_test,).

    Of two middle values it is the upper one, so that the prediction is an energy that occurs.
    """
    train, test = (np.abs(spins.sum(axis=(1, 2), dtype=np.int64)) for spins in (train_spins, test_spins))
    values, starts, counts = np.unique(np.sort(train), return_index=True, return_counts=True)
    medians = target[np.lexsort((target, train))][starts + counts // 2]
    return np.asarray(medians[np.searchsorted((values[1:] + values[:-1]) / 2, test)])


def _logistic_regression(train_spins: Array, target: Array, test_spins: Array) -> Array:
    """Fit log-odds that are linear in |m| by Newton's method, and predict the test configurations: (N_test,)."""

    def design(spins: Array) -> Array:
        magnetizations = np.abs(lattice.magnetization(spins))
        return np.stack([np.ones_like(magnetizations), magnetizations], axis=1)

    x = design(train_spins)
    coefficients = np.zeros(2)
    for _ in range(20):  # the ridge keeps the slope finite if |m| separates the phases without error
        p = 1 / (1 + np.exp(-x @ coefficients))
        hessian = (x.T * (p * (1 - p))) @ x + 1e-3 * np.eye(2)
        coefficients += np.linalg.solve(hessian, x.T @ (target - p) - 1e-3 * coefficients)
    return np.asarray(design(test_spins) @ coefficients)
