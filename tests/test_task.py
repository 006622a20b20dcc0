"""Metrics against their definitions, and baselines against what is known of them."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import config
from config import DataConfig
from data import make_splits
from ising import exact, lattice
from ising.exact import T_CRITICAL
from task import TASKS, EnergyTask, Examples, Metrics, PhaseTask, Task, by_temperature, evaluate, predict

CPU = torch.device("cpu")


def random_spins(n: int, size: int, seed: int = 0) -> NDArray[np.int8]:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (n, size, size))


class Law(nn.Module):
    """The law itself, E / N, with an error of the total energy added."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.error = error
        self.calls: list[int] = []

    def forward(self, spins: Tensor, temperatures: Tensor) -> Tensor:
        assert spins.shape[:1] == temperatures.shape
        self.calls.append(len(spins))
        total = torch.from_numpy(lattice.energy(spins.numpy())).float()
        return (total + self.error) / spins[0].numel()


class WithoutTemperatures(nn.Module):
    """A model of spins alone, where one of spins and temperatures is expected."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, spins: Tensor, temperatures: Tensor) -> Tensor:
        answers: Tensor = self.model(spins)
        return answers


def examples_of(task: Task, spins: NDArray[np.int8]) -> Examples:
    """Examples for a task that does not care for their temperatures."""
    return task.examples(spins, np.ones(len(spins)), CPU)


def baseline_metrics(task: Task, train: Examples, test: Examples) -> dict[str, Metrics]:
    return {name: task.metrics(task.sums(a, test.targets)) for name, a in task.baselines(train, test).items()}


def test_names_in_the_config_are_those_of_the_classes() -> None:
    assert set(TASKS) == set(get_args(config.Task))


def test_targets_are_energies_per_spin() -> None:
    spins = random_spins(50, 6)
    task = EnergyTask.of(spins)
    examples = examples_of(task, spins)
    assert examples.spins.dtype == torch.int8
    assert examples.targets.dtype == torch.float32
    np.testing.assert_allclose(examples.targets.numpy(), lattice.energy(spins) / 36, rtol=1e-6)
    assert task.mean == pytest.approx(examples.targets.mean().item(), rel=1e-5)
    assert task.std == pytest.approx(examples.targets.std(correction=0).item(), rel=1e-5)


def test_metrics_are_their_definitions() -> None:
    spins = random_spins(400, 4)
    task = EnergyTask.of(spins)
    examples = examples_of(task, spins)
    noise = 0.1 * torch.randn(400, generator=torch.Generator().manual_seed(1))
    true, predicted = examples.targets.double().numpy(), (examples.targets + noise).double().numpy()
    metrics = task.metrics(task.sums(examples.targets + noise, examples.targets))
    errors = predicted - true
    assert metrics == {
        "loss": pytest.approx((errors**2).mean() / task.std**2),
        "mae": pytest.approx(np.abs(errors).mean()),
        "rmse": pytest.approx(np.sqrt((errors**2).mean())),
        "r2": pytest.approx(1 - (errors**2).sum() / ((true - true.mean()) ** 2).sum()),
        "exact_fraction": pytest.approx((np.abs(16 * errors) < 2).mean()),
    }
    assert task.loss(examples.targets + noise, examples.targets).item() == pytest.approx(metrics["loss"], rel=1e-5)


@pytest.mark.parametrize(("error", "exact"), [(0.0, 1.0), (1.9, 1.0), (-1.9, 1.0), (2.1, 0.0), (-4.0, 0.0)])
def test_exact_fraction_counts_energies_nearer_to_their_level_than_to_any_other(error: float, exact: float) -> None:
    task = EnergyTask.of(spins := random_spins(20, 8))
    assert evaluate(Law(error), task, examples_of(task, spins))["exact_fraction"] == exact


@pytest.mark.parametrize("flipped", [0, 1, 3])
def test_r2_where_the_targets_do_not_vary(flipped: int) -> None:
    spins = np.ones((5, 6, 6), np.int8)
    spins[:, 0, :flipped] = -1  # equal energies, of which the mean is not a number that binary holds exactly
    task = EnergyTask.of(spins)
    examples = examples_of(task, spins)
    assert evaluate(Law(), task, examples)["r2"] == 1
    assert evaluate(Law(1.0), task, examples)["r2"] == 0
    assert all(np.isfinite(list(evaluate(Law(1.0), task, examples).values())))


def test_evaluation_in_chunks_equals_evaluation_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task = EnergyTask.of(spins := random_spins(100, 8))
    examples = examples_of(task, spins)
    whole, parts = Law(1.0), Law(1.0)
    expected = evaluate(whole, task, examples)
    monkeypatch.setattr("task.SITES_PER_CHUNK", 30 * 64)
    assert evaluate(parts, task, examples) == expected
    assert (whole.calls, parts.calls) == ([100], [30, 30, 30, 10])


def test_prediction_switches_dropout_off() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).train()
    spins, temperatures = torch.ones(10, 4, 4), torch.ones(10)
    answers = predict(WithoutTemperatures(model), Examples(spins, temperatures, temperatures))
    assert torch.equal(answers, torch.ones(10, 16))


@pytest.fixture(scope="module")
def drawn() -> tuple[EnergyTask, Examples, Examples]:
    splits = make_splits(DataConfig(num_train=6000, num_val=1, num_test=500), seed=0)
    task = EnergyTask.of(splits.train.spins)
    train, test = (task.examples(s.spins, s.temperatures, CPU) for s in (splits.train, splits.test))
    return task, train, test


def test_baselines_know_the_law(drawn: tuple[EnergyTask, Examples, Examples]) -> None:
    task, train, test = drawn
    metrics = baseline_metrics(task, train, test)
    assert set(metrics) == {"mean", "pair_products", "symmetric_correlators"}
    assert metrics["mean"]["r2"] == pytest.approx(0, abs=0.02)
    for name in ("pair_products", "symmetric_correlators"):
        assert metrics[name]["exact_fraction"] == 1
        assert metrics[name]["mae"] < 1e-6


def test_fifteen_configurations_settle_the_correlators(drawn: tuple[EnergyTask, Examples, Examples]) -> None:
    task, train, test = drawn
    hot = random_spins(15, 8, seed=1)  # random, so that the 14 correlators and the constant are independent
    few = examples_of(task, hot)
    assert baseline_metrics(task, few, test)["symmetric_correlators"]["exact_fraction"] == 1
    fewer = Examples(*(part[:200] for part in train))
    assert baseline_metrics(task, fewer, test)["pair_products"]["exact_fraction"] < 0.9


def test_one_training_configuration_is_enough_to_answer(drawn: tuple[EnergyTask, Examples, Examples]) -> None:
    task, train, test = drawn
    for metrics in baseline_metrics(task, Examples(*(part[:1] for part in train)), test).values():
        assert all(np.isfinite(list(metrics.values())))


def test_baselines_with_too_many_features_are_left_out() -> None:
    task = EnergyTask.of(spins := random_spins(60, 16))
    examples = examples_of(task, spins)
    metrics = baseline_metrics(task, examples, examples)
    assert set(metrics) == {"mean", "symmetric_correlators"}
    assert metrics["symmetric_correlators"]["exact_fraction"] == 1


def test_metrics_by_temperature_are_those_of_neighbours_in_temperature(
    drawn: tuple[EnergyTask, Examples, Examples],
) -> None:
    task, _, test = drawn
    predictions = test.targets + 0.1 * test.temperatures  # an error that grows with temperature
    rows = by_temperature(task, predictions, test)
    assert sum(row["n"] for row in rows) == len(test.targets)
    assert [row["temperature"] for row in rows] == sorted(row["temperature"] for row in rows)
    for row in rows:
        assert row["mae"] == pytest.approx(0.1 * row["temperature"], rel=1e-3)
    whole = task.metrics(task.sums(predictions, test.targets))
    assert sum(row["n"] * row["mae"] for row in rows) / len(test.targets) == pytest.approx(whole["mae"])


# -------------------------------------------------------------------------------------------------------------- phases


@pytest.fixture(scope="module")
def phases() -> tuple[PhaseTask, Examples, Examples]:
    splits = make_splits(DataConfig(num_train=20_000, num_val=1, num_test=50_000, temp_min=1.5, temp_max=3.0), seed=0)
    task = PhaseTask.of(splits.train.spins)
    train, test = (task.examples(s.spins, s.temperatures, CPU) for s in (splits.train, splits.test))
    return task, train, test


def test_phases_are_told_by_temperature(phases: tuple[PhaseTask, Examples, Examples]) -> None:
    task, _, test = phases
    assert (task.mean, task.std) == (0, 1)
    assert torch.equal(test.targets, (test.temperatures.double() < T_CRITICAL).float())
    odds = torch.tensor([2.0, -1.0, 0.5, 0.0])
    targets = torch.tensor([1.0, 1.0, 0.0, 0.0])
    losses = [math.log1p(math.exp(-2)), math.log1p(math.e), math.log1p(math.exp(0.5)), math.log(2)]
    metrics = task.metrics(task.sums(odds, targets))
    assert metrics == {"loss": pytest.approx(sum(losses) / 4), "accuracy": 0.5}
    assert task.loss(odds, targets).item() == pytest.approx(metrics["loss"], rel=1e-5)


def test_no_classifier_of_phases_is_better_than_that_of_bayes(phases: tuple[PhaseTask, Examples, Examples]) -> None:
    task, train, test = phases
    metrics = baseline_metrics(task, train, test)
    assert list(metrics) == ["majority", "magnetization", "bayes"]
    assert metrics["bayes"]["accuracy"] > metrics["magnetization"]["accuracy"] > metrics["majority"]["accuracy"] + 0.2
    assert metrics["bayes"]["loss"] < metrics["magnetization"]["loss"] < metrics["majority"]["loss"]
    # What exact theory says the share of right answers is, at the temperatures of the test set.
    prior, asked = (part.temperatures.double().numpy() for part in (train, test))
    expected = exact.phase_accuracy(asked, prior, 8)
    error = math.sqrt((expected * (1 - expected)).sum()) / len(expected)
    assert abs(metrics["bayes"]["accuracy"] - expected.mean()) < 4 * error
    # Its probabilities are true: of those configurations for which it says p, a share p is below T_c.
    p = torch.sigmoid(task.baselines(train, test)["bayes"]).numpy()
    for low in np.arange(0, 1, 0.1):
        chosen = (p >= low) & (p < low + 0.1)
        n = chosen.sum()
        assert abs(test.targets.numpy()[chosen].mean() - p[chosen].mean()) < 4.5 * 0.5 / math.sqrt(n)


def test_baselines_of_one_phase_alone(phases: tuple[PhaseTask, Examples, Examples]) -> None:
    task, train, test = phases
    cold = Examples(*(part[train.targets > 0][:50] for part in train))
    for metrics in baseline_metrics(task, cold, test).values():
        assert metrics["accuracy"] == pytest.approx(test.targets.mean().item())
        assert all(np.isfinite(list(metrics.values())))
