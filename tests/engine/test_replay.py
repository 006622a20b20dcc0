"""Replayed steps give the same bits as the step as it is written, or a line shows why replay is off."""

import dataclasses
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import replay as replay_module
from engine.distributed import Group
from engine.recording import Recording
from engine.replay import N_COMPARED, N_WARM_UP, Replay
from tests.engine.edits import CONFIG, DOCUMENT, EDITS, Edit, outcome, verdict
from tests.engine.training import TINY, build, weights
from trainer import OPTIMIZERS

FUSED = ["adam", "adamw", "sgd"]

Batch = tuple[tuple[Tensor, ...], Tensor]

# ---------------------------------------------------------------------------------------------------- what people write


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: str(edit.what))
def test_the_document_shows_how_replay_handles_an_edit(edit: Edit) -> None:
    """`verdict` compares with a run without replay, in which the step runs as it is written, without warnings."""
    assert f"| {edit.what} | {verdict(edit)} |" in DOCUMENT.read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: str(edit.what))
def test_a_resumed_run_with_an_edit_gives_the_same_numbers(edit: Edit) -> None:
    trainer, record = build(CONFIG, epochs=2)
    trainer.fit()
    if edit.optimizer is not torch.optim.RMSprop:
        state = record.states[-1]
        written, replayed = (outcome(edit, replay=replay, state=state) for replay in (False, True))
        assert (replayed.numbers == written.numbers) != ("**wrong" in verdict(edit))
        assert replayed.warnings.count("\n") <= 1


def test_replay_fails_to_detect_only_one_of_the_edits() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.count("**wrong") == 1
    assert "| `if next(self.calls) % 1000 == 0` | **wrong, and not seen** |" in text


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["mlp", "pooled"])
@pytest.mark.parametrize("optimizer", FUSED)
@pytest.mark.parametrize(("dropout", "grad_clip"), [(0.2, None), (0, 0.5)])
def test_training_with_replay_is_the_same_bit_for_bit(
    kind: Any, optimizer: str, dropout: float, grad_clip: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = dataclasses.replace(TINY.model, kind=kind, dropout=dropout)
    runs = []
    for replay in (False, True):
        config = dataclasses.replace(TINY, model=model, replay=replay)
        trainer, record = build(config, optimizer=optimizer, grad_clip=grad_clip, warmup_epochs=1, epochs=8)
        trainer.fit()
        runs.append((record.rows, weights(trainer).tolist()))
    assert runs[0] == runs[1]
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", FUSED)
def test_training_with_a_captured_step_is_the_same(optimizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, hidden=16, dropout=0.2))
    runs = []
    for replay in (False, True):
        trainer, record = build(
            dataclasses.replace(config, replay=replay), optimizer=optimizer, grad_clip=1.0, device="cuda", epochs=8
        )
        trainer.fit()
        runs.append(record.rows)
    for row, same in zip(*runs, strict=True):
        assert row == pytest.approx(same, rel=1e-4, abs=1e-6)  # replay stores the learning rate in single precision
    assert capsys.readouterr().err == ""


def count_calls(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which every call of `trainer.step` appends its epoch."""
    calls: list[int] = []
    step = trainer.step

    def counted(inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        calls.append(trainer.epoch)
        loss: Tensor = step(inputs, targets)
        return loss

    monkeypatch.setattr(trainer, "step", counted)
    return calls


def test_the_step_runs_as_written_in_the_first_epoch_and_then_once_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = build(dataclasses.replace(CONFIG, replay=True), epochs=5)  # 20 full steps in an epoch
    calls = count_calls(trainer, monkeypatch)
    trainer.fit()
    n_later = N_COMPARED - (20 - N_WARM_UP - 1)  # steps to compare in the second epoch: the first one has too few
    assert [calls.count(epoch) for epoch in range(1, 6)] == [20, n_later, 1, 1, 1]


def test_batches_of_another_size_run_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = build(dataclasses.replace(TINY, replay=True), epochs=12)  # 6 full steps and one of 8 examples
    calls = count_calls(trainer, monkeypatch)
    trainer.fit()
    assert calls.count(12) == 2


def test_a_learning_rate_that_is_recorded_as_a_number_may_not_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --scheduler step, it first changes in the middle of an epoch: after a third of the run."""
    monkeypatch.setitem(OPTIMIZERS, "adamw", torch.optim.RMSprop)
    runs = []
    for replay in (False, True):
        trainer, record = build(dataclasses.replace(CONFIG, replay=replay), scheduler="step", epochs=10)
        trainer.fit()
        runs.append(record.rows)
    assert runs[0] == runs[1]
    assert "the optimiser takes the learning rate as a number, which has changed" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- switched off


def test_replay_is_off_with_several_processes(capsys: pytest.CaptureFixture[str]) -> None:
    trainer, _ = build(group=Group(0, 2))
    assert Replay(trainer).is_off
    assert capsys.readouterr().err == "warning: replay is off: the run has several processes\n"


def test_replay_is_off_on_other_devices(capsys: pytest.CaptureFixture[str]) -> None:
    trainer, _ = build()
    trainer.network.to("meta")
    assert Replay(trainer).is_off
    line = "warning: replay is off: it needs the device cpu or cuda, and this is meta\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("missing", ["engine.recording", "torch.utils._python_dispatch"])
def test_replay_is_off_if_pytorch_lacks_the_private_names(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = build()
    monkeypatch.delitem(sys.modules, "engine.recording")
    monkeypatch.delattr("engine.recording", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    trainer, _ = build(dataclasses.replace(TINY, replay=True))
    assert trainer.fit() == expected.fit()
    error = capsys.readouterr().err
    assert error.startswith("warning: replay is off: this version of PyTorch lacks something that it needs (")
    assert error.count("\n") == 1


def test_a_step_that_only_fails_while_it_is_recorded_is_run_again_as_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = build()
    trainer, _ = build(dataclasses.replace(TINY, replay=True))
    step = trainer.step

    def fragile(inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        loss = step(inputs, targets)  # has already changed the weights
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise NotImplementedError("not with\na dispatch mode")
        return loss

    monkeypatch.setattr(trainer, "step", fragile)
    assert trainer.fit() == expected.fit()
    error = capsys.readouterr().err
    assert error.startswith("warning: replay is off: the step cannot be recorded (NotImplementedError(")
    assert error.count("\n") == 1


def test_an_error_in_the_step_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = build(dataclasses.replace(TINY, replay=True))

    def broken(inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    monkeypatch.setattr(trainer, "step", broken)
    with pytest.raises(ZeroDivisionError, match="mine"):
        trainer.fit()


def test_a_difference_of_one_bit_is_detected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, _ = build(dataclasses.replace(TINY, replay=True))
    expected, _ = build()
    repeat = Recording.__call__

    def off_by_one_bit(recording: Recording, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        loss = repeat(recording, inputs, targets)
        last = list(trainer.network.parameters())[-1]
        last.data.view(torch.int32).bitwise_xor_(1)
        return loss

    monkeypatch.setattr(Recording, "__call__", off_by_one_bit)
    assert trainer.fit() == expected.fit()
    assert "gives different numbers from the step as it is written (network.last.bias)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (torch.tensor(1.0), torch.tensor(1.0), True),
        (torch.tensor(0.0), torch.tensor(-0.0), False),
        (torch.tensor(torch.nan), torch.tensor(torch.nan), True),
        (torch.tensor([1, 2]), torch.tensor([[1, 2]]), False),
        (torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64), False),
        (torch.ones(2, 3).t(), torch.ones(3, 2), True),
        (torch.tensor([True]), torch.tensor([False]), False),
        (torch.tensor([1 + 2j]), torch.tensor([1 + 2j]), True),
        (torch.tensor([1 + 0j]), torch.tensor([complex(1, -0.0)]), False),
        (torch.tensor(1, dtype=torch.complex128), torch.tensor(2, dtype=torch.complex128), False),
        (torch.tensor(1, dtype=torch.bfloat16), torch.tensor(2, dtype=torch.bfloat16), False),
        (torch.zeros(0), torch.zeros(0), True),
        (None, None, True),
        (None, torch.tensor(1.0), False),
    ],
)
def test_tensors_are_compared_bit_for_bit(one: Tensor | None, other: Tensor | None, equal: bool) -> None:
    assert replay_module.same(one, other) is equal


# ------------------------------------------------------------------------------------------------------------ recording


def test_operations_with_several_results_and_views_are_repeated() -> None:
    weight, result = torch.arange(6.0).reshape(2, 3), torch.zeros(4)

    def step(inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        left, right = torch.split(inputs[0] @ weight.t(), 1, dim=1)  # (B, 1) each
        largest, place = (left * right + y[:, None]).expand(-1, 2).max(dim=1)
        result.copy_(largest + place)
        weight.t().mul_(0.5)
        return result.sum()

    generator = torch.Generator().manual_seed(0)
    expected = weight.clone()
    recording = None
    for _ in range(10):
        x, y = torch.randn(4, 3, generator=generator), torch.randn(4, generator=generator)
        left, right = (x @ expected.t()).unbind(dim=1)
        if recording is None:
            recording = Recording(step, (x,), y, [])
            loss = recording.loss
        else:
            loss = recording((x,), y)
        torch.testing.assert_close(result, left * right + y)
        assert torch.equal(loss, result.sum())
        expected *= 0.5
        assert torch.equal(weight, expected)


def test_random_numbers_continue_from_step_to_step() -> None:
    own = torch.Generator()

    def step(inputs: tuple[Tensor, ...], x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, 0.5) + torch.rand(2) + torch.rand(2, generator=own)

    def numbers(*, with_replay: bool) -> list[float]:
        values: list[float] = []
        torch.manual_seed(3)
        own.manual_seed(4)
        recording = Recording(step, (), torch.ones(2), []) if with_replay else None
        values += recording.loss.tolist() if recording else step((), torch.ones(2)).tolist()
        for _ in range(10):
            values += (recording or step)((), torch.ones(2)).tolist()
        return values

    assert numbers(with_replay=True) == numbers(with_replay=False)
    assert len(set(numbers(with_replay=True))) > 10


def test_a_tensor_that_the_step_makes_is_new_in_every_repetition() -> None:
    def step(inputs: tuple[Tensor, ...], x: Tensor) -> Tensor:
        total = torch.tensor(1.0)
        total += x.sum()
        return total

    recording = Recording(step, (), torch.ones(2), [])
    assert [float(recording((), torch.full((2,), float(i)))) for i in range(3)] == [1, 3, 5]


def test_gradients_are_those_of_the_last_step_and_can_be_accumulated() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))

    def step(inputs: tuple[Tensor, ...], x: Tensor) -> Tensor:
        loss = (weight * x).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    step((), torch.tensor([1.0, 1.0]))
    recording = Recording(step, (), torch.tensor([10.0, 20.0]), [weight])  # adds to the existing gradient
    recording((), torch.tensor([100.0, 200.0]))
    assert weight.grad is not None
    assert weight.grad.tolist() == [111.0, 221.0]


def test_a_view_of_a_weight_is_not_a_constant() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))

    def step(inputs: tuple[Tensor, ...], x: Tensor) -> Tensor:
        with torch.no_grad():
            weight.add_(1)
        return (weight.expand(2) / 2 + x).sum().detach()

    recording = Recording(step, (), torch.zeros(2), [])
    assert [float(recording((), torch.zeros(2))) for _ in range(3)] == [3, 4, 5]


def test_ones_that_are_changed_are_not_a_constant() -> None:
    def step(inputs: tuple[Tensor, ...], x: Tensor) -> Tensor:
        ones = torch.ones_like(x)
        ones.expand(1, 2)[0].add_(x)
        return ones.sum()

    recording = Recording(step, (), torch.zeros(2), [])
    assert [float(recording((), torch.ones(2))) for _ in range(3)] == [4, 4, 4]
