"""Metrics, checked against their definitions, and baselines, compared with known results."""

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import config
import task
from config import DataConfig, ExperimentConfig
from engine.datasets.splits import get_splits
from engine.interface.base_config import TrainConfig
from engine.interface.base_problem import Columns, Splits
from engine.learning.prediction import Examples, evaluate, prepare
from engine.learning.standardized import Shapes, Standardized
from ising import exact, lattice
from ising.exact import T_CRITICAL
from problem import PROBLEM
from task import TASKS, Metrics, by_temperature

ENERGY, PHASE = TASKS["energy"], TASKS["phase"]
CONFIG = ExperimentConfig(device="cpu")


def random_spins(n: int, size: int, seed: int = 0) -> Columns:
    """Columns of random spins, for tasks that do not use temperatures."""
    spins = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (n, size, size))
    return {"spins": spins, "temperatures": np.ones(n)}


class Law(nn.Module):
    """A network that returns the exact energy per spin, plus an error of the total energy."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.error = error

    def forward(self, spins: Tensor) -> Tensor:
        return (torch.from_numpy(lattice.energy(spins.numpy())).float() + self.error) / spins[0].numel()


def model_of(network: nn.Module, size: int) -> Standardized:
    return Standardized(PROBLEM, CONFIG, network, Shapes(((size, size),), ()))


def examples_of(columns: Columns) -> Examples:
    return prepare(PROBLEM, CONFIG, model_of(Law(), columns["spins"].shape[-1]), columns)


def sampled(**data: Any) -> Splits:
    return get_splits(PROBLEM, ExperimentConfig(seed=0, train=TrainConfig(batch_size=1), data=DataConfig(**data)))[0]


def part(columns: Columns, chosen: Any) -> Columns:
    return {name: column[chosen] for name, column in columns.items()}


def baseline_metrics(name: str, train: Columns, test: Columns) -> dict[str, Metrics]:
    task = TASKS[name]
    return {key: task.metrics(test, a, task.target(test)) for key, a in task.baselines(train, test).items()}


@pytest.fixture(autouse=True, scope="module")
def _own_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("task"))
        yield


def test_names_in_the_config_are_those_of_the_tasks() -> None:
    assert set(TASKS) == set(get_args(config.TaskName))


def test_the_problem_takes_everything_that_a_task_defines_from_the_task_in_the_config() -> None:
    defined = {name for name in dir(ENERGY) if not name.startswith("_")}
    assert defined == {name for name in dir(PHASE) if not name.startswith("_")}
    assert defined == {name for name, each in vars(type(PROBLEM)).items() if "by_task" in repr(each)}


def test_targets_are_energies_per_spin() -> None:
    columns = random_spins(50, 6)
    np.testing.assert_allclose(ENERGY.target(columns), lattice.energy(columns["spins"]) / 36, rtol=1e-15)
    assert ENERGY.target(columns).dtype == np.float64


def test_metrics_follow_their_definitions() -> None:
    columns = random_spins(400, 4)
    true = ENERGY.target(columns)
    predicted = true + 0.1 * np.random.default_rng(1).normal(size=400)
    errors = predicted - true
    assert ENERGY.metrics(columns, predicted, true) == {
        "mae": pytest.approx(np.abs(errors).mean()),
        "rmse": pytest.approx(np.sqrt((errors**2).mean())),
        "r2": pytest.approx(1 - (errors**2).sum() / ((true - true.mean()) ** 2).sum()),
        "exact_fraction": pytest.approx((np.abs(16 * errors) < 2).mean()),
    }


class Scaled(nn.Module):
    """A network whose outputs are in scaled units."""

    def __init__(self, law: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.law, self.mean, self.std = law, mean, std

    def forward(self, spins: Tensor) -> Tensor:
        outputs: Tensor = (self.law(spins) - self.mean) / self.std
        return outputs


def test_the_loss_is_the_squared_error_over_the_variance_of_training() -> None:
    columns = random_spins(200, 4)
    true = ENERGY.target(columns)
    model = model_of(Scaled(Law(0.8), float(true.mean()), float(true.std())), 4)
    model.set_scales((columns["spins"],), true)
    metrics = evaluate(PROBLEM, CONFIG, model, prepare(PROBLEM, CONFIG, model, columns)).metrics
    assert metrics["loss"] == pytest.approx((0.8 / 16) ** 2 / true.var(), rel=1e-4)
    assert metrics["mae"] == pytest.approx(0.8 / 16, rel=1e-4)


@pytest.mark.parametrize(("error", "exact"), [(0.0, 1.0), (1.9, 1.0), (-1.9, 1.0), (2.1, 0.0), (-4.0, 0.0)])
def test_exact_fraction_counts_energies_closest_to_the_right_level(error: float, exact: float) -> None:
    examples = examples_of(random_spins(20, 8))
    assert evaluate(PROBLEM, CONFIG, model_of(Law(error), 8), examples).metrics["exact_fraction"] == exact


def test_exact_fraction_uses_the_lattice_size_of_the_data() -> None:
    examples = examples_of(random_spins(20, 16))  # the lattice size in the config is 8
    assert evaluate(PROBLEM, CONFIG, model_of(Law(1.9), 16), examples).metrics["exact_fraction"] == 1


@pytest.mark.parametrize("flipped", [0, 1, 3])
def test_r2_where_the_targets_do_not_vary(flipped: int) -> None:
    spins = np.ones((5, 6, 6), np.int8)
    spins[:, 0, :flipped] = -1  # equal energies, whose mean has a rounding error
    columns: Columns = {"spins": spins, "temperatures": np.ones(5)}
    true = ENERGY.target(columns)
    assert ENERGY.metrics(columns, true, true)["r2"] == 1
    metrics = ENERGY.metrics(columns, true + 1 / 36, true)
    assert metrics["r2"] == 0
    assert all(np.isfinite(list(metrics.values())))


@pytest.fixture(scope="module")
def data() -> Splits:
    return sampled(num_train=6000, num_val=1, num_test=500)


def test_least_squares_baselines_are_exact(data: Splits) -> None:
    metrics = baseline_metrics("energy", data.train, data.test)
    assert set(metrics) == {"mean", "magnetization", "pair_products", "symmetric_correlators"}
    assert metrics["mean"]["r2"] == pytest.approx(0, abs=0.02)
    for name in ("pair_products", "symmetric_correlators"):
        assert metrics[name]["exact_fraction"] == 1
        assert metrics[name]["mae"] < 1e-6


def test_least_squares_uses_configurations_from_the_whole_training_split(
    data: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "MAX_ROWS", 300)  # too few for all pairs, and a third of them is cold
    order = np.argsort(data.train["temperatures"])
    every = part(data.train, order[::20])
    for columns in (data.train, part(data.train, order)):
        predictions = ENERGY.baselines(columns, data.test)
        assert 0.1 < ENERGY.metrics(data.test, predictions["pair_products"], ENERGY.target(data.test))["r2"] < 0.9999
    np.testing.assert_array_equal(predictions["pair_products"], ENERGY.baselines(every, data.test)["pair_products"])


def test_the_baseline_of_the_magnetisation_is_the_median_energy_of_the_nearest_one() -> None:
    up = np.ones((4, 4), np.int8)
    one, two, four = (up.copy() for _ in range(3))  # M = 14; 12, with E = -16 or -20; 8
    one[0, 0] = two[0, :2] = four[0] = -1
    apart = up.copy()
    apart[0, 0] = apart[2, 2] = -1
    train: Columns = {"spins": np.stack([up, two, -apart, two, one]), "temperatures": np.ones(5)}
    test: Columns = {"spins": np.stack([-up, -one, apart, four]), "temperatures": np.ones(4)}
    expected = np.array([-32, -24, -20, -20]) / 16  # the nearest M to that of `four`, 8, is 12
    np.testing.assert_array_equal(ENERGY.baselines(train, test)["magnetization"], expected)


def test_fifteen_configurations_determine_the_correlators(data: Splits) -> None:
    hot = random_spins(15, 8, seed=1)  # random, so the 14 correlators and the constant are independent
    assert baseline_metrics("energy", hot, data.test)["symmetric_correlators"]["exact_fraction"] == 1
    few = part(data.train, slice(200))
    assert baseline_metrics("energy", few, data.test)["pair_products"]["exact_fraction"] < 0.9


def test_baselines_with_one_training_configuration_are_finite(data: Splits) -> None:
    for metrics in baseline_metrics("energy", part(data.train, slice(1)), data.test).values():
        assert all(np.isfinite(list(metrics.values())))


def test_baselines_with_too_many_features_are_left_out() -> None:
    columns = random_spins(60, 16)
    metrics = baseline_metrics("energy", columns, columns)
    assert set(metrics) == {"mean", "magnetization", "symmetric_correlators"}
    assert metrics["symmetric_correlators"]["exact_fraction"] == 1


def test_metrics_by_temperature_are_those_of_bins(data: Splits) -> None:
    test, true = data.test, ENERGY.target(data.test)
    predictions = true + 0.1 * test["temperatures"]  # an error that grows with temperature
    rows = by_temperature(ENERGY, test, predictions)
    assert sum(row["n"] for row in rows) == len(true)
    assert [row["temperature"] for row in rows] == sorted(row["temperature"] for row in rows)
    for row in rows:
        assert row["mae"] == pytest.approx(0.1 * row["temperature"], rel=1e-3)
    whole = ENERGY.metrics(test, predictions, true)
    assert sum(row["n"] * row["mae"] for row in rows) / len(true) == pytest.approx(whole["mae"])


def test_the_report_has_the_largest_error_of_a_total_energy(data: Splits) -> None:
    predictions = ENERGY.target(data.test).copy()
    predictions[7] += 0.25
    report = PROBLEM.report(CONFIG, data.test, predictions)
    assert report["worst_total_error"] == pytest.approx(0.25 * 64)
    assert report["lattice_size"] == 8
    assert sum(row["n"] for row in report["by_temperature"]) == 500


# -------------------------------------------------------------------------------------------------------------- phases


@pytest.fixture(scope="module")
def phases() -> Splits:
    return sampled(num_train=20_000, num_val=1, num_test=50_000, temp_min=1.5, temp_max=3.0)


def test_phases_target_loss_and_accuracy(phases: Splits) -> None:
    np.testing.assert_array_equal(PHASE.target(phases.test), phases.test["temperatures"] < T_CRITICAL)
    assert not PHASE.scales_target
    odds = torch.tensor([2.0, -1.0, 0.5, 0.0])
    targets = torch.tensor([1.0, 1.0, 0.0, 0.0])
    losses = [math.log1p(math.exp(-2)), math.log1p(math.e), math.log1p(math.exp(0.5)), math.log(2)]
    assert PHASE.loss(odds, targets).tolist() == pytest.approx(losses)
    assert PHASE.metrics(phases.test, odds.numpy(), targets.numpy()) == {"accuracy": 0.5}


def test_no_classifier_of_phases_is_better_than_bayes_rule(phases: Splits) -> None:
    train, test = phases.train, phases.test
    metrics = baseline_metrics("phase", train, test)
    assert list(metrics) == ["majority", "magnetization", "bayes"]
    assert metrics["bayes"]["accuracy"] > metrics["magnetization"]["accuracy"] > metrics["majority"]["accuracy"] + 0.2
    outputs, target = PHASE.baselines(train, test), PHASE.target(test)
    losses = {name: float((np.logaddexp(0, odds) - target * odds).mean()) for name, odds in outputs.items()}
    assert losses["bayes"] < losses["magnetization"] < losses["majority"]
    # The exact accuracy of Bayes' rule at the temperatures of the test set.
    expected = exact.phase_accuracy(test["temperatures"], train["temperatures"], 8)
    error = math.sqrt((expected * (1 - expected)).sum()) / len(expected)
    assert abs(metrics["bayes"]["accuracy"] - expected.mean()) < 4 * error
    # Its probabilities are calibrated: a fraction p of the configurations with probability p is below T_c.
    p = 1 / (1 + np.exp(-outputs["bayes"]))
    for low in np.arange(0, 1, 0.1):
        chosen = (p >= low) & (p < low + 0.1)
        assert abs(target[chosen].mean() - p[chosen].mean()) < 4.5 * 0.5 / math.sqrt(chosen.sum())


def test_baselines_trained_on_a_single_phase(phases: Splits) -> None:
    cold = part(phases.train, np.flatnonzero(PHASE.target(phases.train))[:50])
    for metrics in baseline_metrics("phase", cold, phases.test).values():
        assert metrics["accuracy"] == pytest.approx(PHASE.target(phases.test).mean())
        assert all(np.isfinite(list(metrics.values())))


def test_a_report_on_phases_has_bayes_rule_for_the_new_temperatures(phases: Splits) -> None:
    test = part(phases.test, slice(2000))
    report = PROBLEM.report(replace(CONFIG, task="phase"), test, PHASE.target(test))
    expected = exact.phase_accuracy(test["temperatures"], test["temperatures"], 8)
    error = math.sqrt((expected * (1 - expected)).sum()) / len(expected)
    assert abs(report["bayes"]["accuracy"] - expected.mean()) < 4 * error
    assert 0 < report["bayes"]["loss"] < math.log(2)
    assert "worst_total_error" not in report
