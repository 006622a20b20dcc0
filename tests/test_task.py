"""Metrics against their definitions, and baselines against what is known of them."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from config import DataConfig
from data import make_splits
from ising import lattice
from task import EnergyTask, Examples, baselines, evaluate, predict

CPU = torch.device("cpu")


def random_spins(n: int, size: int, seed: int = 0) -> NDArray[np.int8]:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (n, size, size))


class Law(nn.Module):
    """The law itself, E / N, with an error of the total energy added."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.error = error
        self.calls: list[int] = []

    def forward(self, spins: Tensor) -> Tensor:
        self.calls.append(len(spins))
        total = torch.from_numpy(lattice.energy(spins.numpy())).float()
        return (total + self.error) / spins[0].numel()


def test_targets_are_energies_per_spin() -> None:
    spins = random_spins(50, 6)
    task = EnergyTask(spins)
    examples = task.examples(spins, CPU)
    assert examples.spins.dtype == torch.int8
    assert examples.targets.dtype == torch.float32
    np.testing.assert_allclose(examples.targets.numpy(), lattice.energy(spins) / 36, rtol=1e-6)
    assert task.mean == pytest.approx(examples.targets.mean().item(), rel=1e-5)
    assert task.std == pytest.approx(examples.targets.std(correction=0).item(), rel=1e-5)


def test_metrics_are_their_definitions() -> None:
    spins = random_spins(400, 4)
    task = EnergyTask(spins)
    examples = task.examples(spins, CPU)
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
    task = EnergyTask(spins := random_spins(20, 8))
    assert evaluate(Law(error), task, task.examples(spins, CPU))["exact_fraction"] == exact


@pytest.mark.parametrize("flipped", [0, 1, 3])
def test_r2_where_the_targets_do_not_vary(flipped: int) -> None:
    spins = np.ones((5, 6, 6), np.int8)
    spins[:, 0, :flipped] = -1  # equal energies, of which the mean is not a number that binary holds exactly
    task = EnergyTask(spins)
    examples = task.examples(spins, CPU)
    assert evaluate(Law(), task, examples)["r2"] == 1
    assert evaluate(Law(1.0), task, examples)["r2"] == 0
    assert all(np.isfinite(list(evaluate(Law(1.0), task, examples).values())))


def test_evaluation_in_chunks_equals_evaluation_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task = EnergyTask(spins := random_spins(100, 8))
    examples = task.examples(spins, CPU)
    whole, parts = Law(1.0), Law(1.0)
    expected = evaluate(whole, task, examples)
    monkeypatch.setattr("task.SITES_PER_CHUNK", 30 * 64)
    assert evaluate(parts, task, examples) == expected
    assert (whole.calls, parts.calls) == ([100], [30, 30, 30, 10])


def test_prediction_switches_dropout_off() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).train()
    spins = torch.ones(10, 4, 4)
    assert torch.equal(predict(model, spins), torch.ones(10, 16))


@pytest.fixture(scope="module")
def drawn() -> tuple[EnergyTask, Examples, Examples]:
    splits = make_splits(DataConfig(num_train=6000, num_val=1, num_test=500), seed=0)
    task = EnergyTask(splits.train.spins)
    return task, task.examples(splits.train.spins, CPU), task.examples(splits.test.spins, CPU)


def test_baselines_know_the_law(drawn: tuple[EnergyTask, Examples, Examples]) -> None:
    task, train, test = drawn
    metrics = baselines(task, train, test)
    assert set(metrics) == {"mean", "pair_products", "symmetric_correlators"}
    assert metrics["mean"]["r2"] == pytest.approx(0, abs=0.02)
    for name in ("pair_products", "symmetric_correlators"):
        assert metrics[name]["exact_fraction"] == 1
        assert metrics[name]["mae"] < 1e-6


def test_fifteen_configurations_settle_the_correlators(drawn: tuple[EnergyTask, Examples, Examples]) -> None:
    task, train, test = drawn
    hot = random_spins(15, 8, seed=1)  # random, so that the 14 correlators and the constant are independent
    few = task.examples(hot, CPU)
    assert baselines(task, few, test)["symmetric_correlators"]["exact_fraction"] == 1
    fewer = Examples(train.spins[:200], train.targets[:200])
    assert baselines(task, fewer, test)["pair_products"]["exact_fraction"] < 0.9


def test_one_training_configuration_is_enough_to_answer(drawn: tuple[EnergyTask, Examples, Examples]) -> None:
    task, train, test = drawn
    for metrics in baselines(task, Examples(train.spins[:1], train.targets[:1]), test).values():
        assert all(np.isfinite(list(metrics.values())))


def test_baselines_with_too_many_features_are_left_out() -> None:
    task = EnergyTask(spins := random_spins(60, 16))
    examples = task.examples(spins, CPU)
    metrics = baselines(task, examples, examples)
    assert set(metrics) == {"mean", "symmetric_correlators"}
    assert metrics["symmetric_correlators"]["exact_fraction"] == 1
