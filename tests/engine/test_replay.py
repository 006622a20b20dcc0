"""Replayed steps: the same numbers as the step itself, for new batches, with dropout, for every optimiser."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.replay import N_EAGER, replayed
from tests.engine.training import TINY, build, weights
from trainer import OPTIMIZERS

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["mlp", "pooled"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("dropout", "grad_clip"), [(0.2, None), (0, 0.5)])
def test_training_with_replayed_steps_is_the_same_bit_for_bit(
    kind: Any, optimizer: str, dropout: float, grad_clip: float | None
) -> None:
    model = dataclasses.replace(TINY.model, kind=kind, dropout=dropout)
    runs = []
    for eager in (True, False):
        config = dataclasses.replace(TINY, model=model)
        trainer, record = build(config, optimizer=optimizer, grad_clip=grad_clip, warmup_epochs=1, eager=eager)
        trainer.fit()
        runs.append((record.rows, weights(trainer).tolist()))
    assert runs[0] == runs[1]


def test_a_step_runs_as_written_a_few_times_and_is_then_only_replayed() -> None:
    total, calls = torch.zeros(3), 0

    def step(x: Tensor) -> None:
        nonlocal calls
        calls += 1
        total.add_(x * x)

    again = replayed(step, CPU)
    batches = torch.arange(30.0).reshape(10, 3)
    for batch in batches:
        again(batch)
    assert calls == N_EAGER + 1  # the last one is recorded
    assert torch.equal(total, (batches**2).sum(dim=0))


def test_operations_with_several_results_and_views_are_replayed() -> None:
    weight, result = torch.arange(6.0).reshape(2, 3), torch.zeros(4)

    def step(x: Tensor, y: Tensor) -> None:
        left, right = torch.split(x @ weight.t(), 1, dim=1)  # (B, 1) each
        largest, place = (left * right + y[:, None]).expand(-1, 2).max(dim=1)
        result.copy_(largest + place)
        weight.t().mul_(0.5)

    again = replayed(step, CPU)
    generator = torch.Generator().manual_seed(0)
    expected = weight.clone()
    for _ in range(10):
        x, y = torch.randn(4, 3, generator=generator), torch.randn(4, generator=generator)
        left, right = (x @ expected.t()).unbind(dim=1)
        again(x, y)
        torch.testing.assert_close(result, left * right + y)
        expected *= 0.5
        assert torch.equal(weight, expected)


def test_random_numbers_continue_from_step_to_step() -> None:
    def numbers(*, with_replay: bool) -> list[float]:
        drawn: list[float] = []
        place = torch.zeros(2)

        def step(x: Tensor) -> None:
            place.copy_(torch.nn.functional.dropout(x, 0.5) + torch.rand(2))

        take_step = replayed(step, CPU) if with_replay else step
        torch.manual_seed(3)
        for _ in range(10):
            take_step(torch.ones(2))
            drawn += place.tolist()
        return drawn

    assert numbers(with_replay=True) == numbers(with_replay=False)
    assert len(set(numbers(with_replay=True))) > 10


def test_on_other_devices_the_step_is_not_replayed() -> None:
    def step(x: Tensor) -> None:
        pass

    assert replayed(step, torch.device("meta")) is step


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_with_a_captured_step_is_the_same(optimizer: str) -> None:
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, hidden=16, dropout=0.2))
    runs = []
    for eager in (True, False):
        trainer, record = build(config, optimizer=optimizer, grad_clip=1.0, device="cuda", eager=eager)
        trainer.fit()
        runs.append(record.rows)
    for row, same in zip(*runs, strict=True):
        assert row == pytest.approx(same, rel=1e-4, abs=1e-6)
