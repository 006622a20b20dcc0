"""Training: schedule, order, early stopping, best weights, divergence, resuming, and the effect of every option."""

import dataclasses
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.config import Config, Optimizer, Scheduler, TrainConfig
from engine.distributed import Group
from engine.errors import DivergedError
from engine.hardware import choose_num_threads
from engine.options import options_of
from engine.prediction import evaluate
from engine.replay import N_EAGER
from logger import RunLogger
from tests.conftest import read
from tests.engine.training import TINY, build, weights
from tests.toy import PROBLEM, ToyConfig, ToyProblem
from trainer import OPTIMIZERS, SCHEDULES, FitResult, create_optimizer, flatten, is_over, lr_factor, shuffled


def factors(scheduler: str, total: int, warmup: int = 0) -> list[float]:
    return [lr_factor(scheduler, step, total, warmup) for step in range(total)]


# -------------------------------------------------------------------------------------------------------- the schedule


def test_every_name_in_the_config_has_a_function() -> None:
    assert set(OPTIMIZERS) == set(get_args(Optimizer))
    assert set(SCHEDULES) == set(get_args(Scheduler))


def test_schedules_have_these_values() -> None:
    assert factors("none", 4) == [1, 1, 1, 1]
    assert factors("none", 4, warmup=2) == [0.5, 1, 1, 1]
    assert factors("cosine", 4) == pytest.approx([1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2])
    assert factors("cosine", 6, warmup=2) == pytest.approx([0.5, 1, 1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2])
    assert factors("step", 6) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert factors("step", 8, warmup=2) == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("scheduler", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3, 7, 300, 15_700])
def test_schedules_start_at_the_peak_never_rise_and_stay_positive(scheduler: str, total: int) -> None:
    values = factors(scheduler, total)
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    assert min(values) > 0
    if total >= 300 and scheduler == "cosine":
        assert values[-1] < 1e-4
    if total >= 3 and scheduler == "step":
        assert [values.count(v) for v in sorted(set(values), reverse=True)] == [
            -(-total // 3),
            round(total / 3),
            total // 3,
        ]


def test_every_step_uses_its_own_rate_and_the_logged_rate_is_that_of_the_last_step() -> None:
    trainer, record = build(scheduler="cosine", warmup_epochs=1, eager=True)
    used: list[float] = []
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(float(optimizer.param_groups[0]["lr"])))
    trainer.fit()
    steps = math.ceil(200 / 32)
    assert used == [0.01 * factor for factor in factors("cosine", 4 * steps, warmup=steps)]
    assert used[0] > 0
    assert used[-1] < 0.01 * 0.01
    assert len(record.rows) == 4
    for epoch, row in enumerate(record.rows, start=1):
        assert row["step"] == epoch * steps
        assert row["learning_rate"] == used[epoch * steps - 1]


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_step_schedule_works_for_fewer_than_three_epochs(epochs: int) -> None:
    assert build(scheduler="step", epochs=epochs)[0].fit().epochs_trained == epochs


# ------------------------------------------------------------------------------------------------------------ the loop


def test_the_order_is_a_permutation_that_only_depends_on_seed_and_epoch() -> None:
    orders = [shuffled(1000, seed, epoch) for seed in (0, 1, 2**64 - 1) for epoch in (1, 2)]
    assert all(torch.equal(order.sort().values, torch.arange(1000)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)
    torch.manual_seed(5)
    assert torch.equal(shuffled(1000, 0, 1), orders[0])


def test_an_epoch_uses_every_example_once_with_its_own_target() -> None:
    trainer, _ = build(epochs=2, eager=True)
    seen: list[list[torch.Tensor]] = []
    step = trainer._step

    def watch(*batch: torch.Tensor) -> None:
        seen.append([tensor.clone() for tensor in batch])
        step(*batch)

    trainer.full_step = trainer._step = watch  # type: ignore[method-assign]
    trainer.fit()

    def rows(*batch: torch.Tensor) -> list[tuple[float, ...]]:
        return sorted((*point.tolist(), float(sign), float(target)) for point, sign, target in zip(*batch, strict=True))

    expected = rows(*trainer.train.inputs, trainer.train.targets)
    per_epoch = len(seen) // 2
    for epoch in (seen[:per_epoch], seen[per_epoch:]):
        assert [len(batch[0]) for batch in epoch] == [32] * 6 + [8]
        assert rows(*(torch.cat(tensors) for tensors in zip(*epoch, strict=True))) == expected
    assert not torch.equal(seen[0][0], seen[per_epoch][0])


def test_the_network_gets_scaled_points_and_signs_as_they_are() -> None:
    trainer, _ = build(epochs=1, eager=True)
    seen: list[tuple[torch.Tensor, ...]] = []
    trainer.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs) if module.training else None)
    trainer.fit()
    points, signs = (torch.cat(tensors) for tensors in zip(*seen, strict=True))
    assert (points.dtype, signs.dtype) == (torch.float32, torch.int8)
    assert float(points.mean()) == pytest.approx(0, abs=1e-6)
    assert float(points.std(correction=0)) == pytest.approx(1, rel=1e-6)
    assert set(signs.tolist()) == {-1, 1}


def test_the_training_loss_is_the_mean_over_the_examples() -> None:
    trainer, record = build(epochs=1, lr=1e-30, weight_decay=0.0)  # the weights do not change
    trainer.fit()
    expected = evaluate(PROBLEM, TINY, trainer.model, trainer.train).metrics["loss"]
    assert record.rows[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_best_weights_are_restored() -> None:
    # The rate is so high that the loss rises and falls.
    trainer, record = build(optimizer="sgd", lr=0.3, scheduler="none", epochs=12)
    fit = trainer.fit()
    losses = [row["val_loss"] for row in record.rows]
    assert losses[-1] > min(losses)  # otherwise this test shows nothing
    assert fit == FitResult(best_epoch=1 + int(np.argmin(losses)), epochs_trained=12)
    assert evaluate(PROBLEM, TINY, trainer.model, trainer.val).metrics["loss"] == min(losses)
    lowest_yet = [epoch for epoch in range(1, 13) if losses[epoch - 1] == min(losses[:epoch])]
    assert record.best_epochs == lowest_yet  # the weights are saved whenever they are the best so far


def test_early_stopping_waits_for_its_patience() -> None:
    trainer, record = build(optimizer="sgd", lr=0.3, scheduler="none", epochs=200, patience=3)
    fit = trainer.fit()
    assert fit.epochs_trained == fit.best_epoch + 3 < 200
    losses = [row["val_loss"] for row in record.rows]
    assert min(losses[:-3]) == losses[fit.best_epoch - 1] <= min(losses[-3:])


def test_without_patience_no_run_stops_early() -> None:
    trainer, record = build(optimizer="sgd", lr=0.3, scheduler="none", epochs=30)
    fit = trainer.fit()
    assert fit.epochs_trained == 30
    assert is_over(TrainConfig(epochs=200, patience=3), 30, fit.best_epoch)  # patience would have stopped it
    assert len(record.rows) == 30


def test_training_learns() -> None:
    trainer, _ = build(epochs=30)
    trainer.fit()
    assert evaluate(PROBLEM, TINY, trainer.model, trainer.val).metrics["r2"] > 0.8


def test_the_seed_changes_weights_and_order() -> None:
    rows = []
    for seed in (42, 42, 43):
        trainer, record = build(dataclasses.replace(TINY, seed=seed))
        before = weights(trainer)
        trainer.fit()
        rows.append((before.tolist(), record.rows))
    assert rows[0] == rows[1]
    assert rows[0][0] != rows[2][0]
    assert rows[0][1] != rows[2][1]


@pytest.mark.parametrize("rank", [0, 1])
def test_dropout_depends_on_seed_epoch_and_rank(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "all_reduce", lambda self, tensor: tensor)  # there is no other process
    seeds = []
    for seed, epoch, group in ((1, 1, Group(rank, 2)), (1, 2, Group(rank, 2)), (2, 1, Group(rank, 2))):
        trainer, _ = build(dataclasses.replace(TINY, seed=seed), group=group)
        trainer.train_epoch(epoch)
        seeds.append(torch.initial_seed())
    trainer, _ = build(dataclasses.replace(TINY, seed=1), group=Group(1 - rank, 2))
    trainer.train_epoch(1)
    assert len({*seeds, torch.initial_seed()}) == 4


# ------------------------------------------------------------------------------------------------------- the optimiser


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_biases_and_norms_are_not_decayed(optimizer: str) -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.LayerNorm(9), nn.Linear(9, 5), nn.Linear(5, 1))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    parameters, matrices, vectors, sums = flatten(network)
    config = TrainConfig(optimizer=optimizer, weight_decay=0.3)  # type: ignore[arg-type]
    decayed, spared = create_optimizer(matrices, vectors, config).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    # Mark the elements of the two flat tensors: the parameters of the network are views of them.
    with torch.no_grad():
        decayed["params"][0].fill_(2)
        spared["params"][0].fill_(1)
    matrix_names = {"0.weight", "3.weight", "4.weight"}
    for name, p in network.named_parameters():
        assert set(p.flatten().tolist()) == {2 if name in matrix_names else 1}
    # Numbers stored in the order of the parameters are the gradients that the optimiser uses for them.
    with torch.no_grad():
        torch.cat([p.normal_().flatten() for p in parameters], out=sums[:-1])
    assert matrices.grad is not None
    assert vectors.grad is not None
    assert torch.equal(matrices, matrices.grad)
    assert torch.equal(vectors, vectors.grad)


def test_sgd_has_momentum() -> None:
    _, matrices, vectors, _ = flatten(nn.Linear(3, 1))
    optimizer = create_optimizer(matrices, vectors, TrainConfig(optimizer="sgd"))
    assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_no_gradient_is_longer_than_grad_clip() -> None:
    trainer, _ = build(grad_clip=0.01, eager=True)
    norms: list[float] = []
    trainer.optimizer.register_step_pre_hook(lambda *_: norms.append(float(trainer.gradient.norm())))
    trainer.fit()
    assert len(norms) == 4 * 7
    assert max(norms) <= 0.01 * (1 + 1e-4)
    assert max(norms) > 0.009


class CountReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a number is read from a tensor. On a GPU a read waits for everything that was queued."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in engine/replay.py: True would load torch.compile


def test_no_batch_waits_for_its_loss() -> None:
    counts = []
    for batch_size in (100, 4):
        trainer, _ = build(epochs=1, batch_size=batch_size, eager=True)
        with CountReads() as reads:
            trainer.fit()
        counts.append(reads.count)
    assert 0 < counts[0] == counts[1]  # 2 or 50 batches: the same number of reads


# ---------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("lr", [1e25, 1e300])
def test_divergence_ends_the_run_and_leaves_a_readable_record(lr: float, tmp_path: Path) -> None:
    trainer, _ = build(optimizer="sgd", lr=lr)
    logger = RunLogger(tmp_path, PROBLEM, TINY)
    trainer.logger = logger
    with pytest.raises(DivergedError, match="lower --lr"), logger:
        trainer.fit()
    assert all(math.isfinite(value) for row in logger.rows for value in row.values())
    assert read(tmp_path, "run_info.json")["status"] == "diverged"
    if logger.rows:
        assert read(tmp_path, "epoch_metrics.json") == logger.rows


class NanLoss(ToyProblem):
    """A problem whose losses are never finite."""

    def loss(self, config: ToyConfig, answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().loss(config, answers, targets) * math.nan


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_a_value_that_is_not_finite_stops_training_before_the_update(what: str, optimizer: str, eager: bool) -> None:
    problem = NanLoss() if what == "loss" else PROBLEM
    trainer, record = build(
        problem=problem, optimizer=optimizer, grad_clip=1.0 if what == "gradient" else None, eager=eager
    )
    before = weights(trainer)
    if what == "gradient":
        infinity = trainer.gradient.new_tensor([math.inf])
        next(trainer.network.parameters()).register_hook(lambda gradient: gradient + infinity)  # type: ignore[no-untyped-call]
    with pytest.raises(DivergedError, match="not finite in epoch 1"):
        trainer.fit()
    assert torch.equal(weights(trainer), before)
    assert not any([record.rows, record.states, record.best_epochs])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_weight_changes_after_a_batch_that_is_not_finite(optimizer: str) -> None:
    trainer, _ = build(optimizer=optimizer, batch_size=10)
    n_before = 11  # of the 20 batches of the first epoch, most of which are replayed
    assert n_before > N_EAGER
    trainer.train.targets[shuffled(200, TINY.seed, 1)[10 * n_before]] = math.inf
    full_step = trainer.full_step
    after: list[torch.Tensor] = []

    def watch(*batch: torch.Tensor) -> None:
        full_step(*batch)
        after.append(weights(trainer))

    trainer.full_step = watch
    with pytest.raises(DivergedError):
        trainer.fit()
    assert len(after) == 20
    changed = [not torch.equal(one, other) for one, other in pairwise(after)]
    assert changed == [True] * (n_before - 1) + [False] * (20 - n_before)
    assert torch.equal(weights(trainer), after[-1])


# ------------------------------------------------------------------------------------------------------------- options

CHANGES: list[dict[str, dict[str, Any]]] = [
    {"model": {"kind": "pooled"}},
    {"model": {"hidden": 9}},
    {"model": {"skip": True}},
    {"model": {"dropout": 0.1}},
    {"train": {"epochs": 5}},
    {"train": {"batch_size": 33}},
    {"train": {"lr": 0.011}},
    {"train": {"optimizer": "adam"}},
    {"train": {"optimizer": "sgd"}},
    {"train": {"scheduler": "none"}},
    {"train": {"scheduler": "step"}},
    {"train": {"warmup_epochs": 1}},
    {"train": {"weight_decay": 0.5}},
    {"train": {"grad_clip": 0.1}},
    {"train": {"patience": 1, "lr": 0.3, "optimizer": "sgd", "epochs": 12}},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_option_of_network_and_training_changes_the_run(change: dict[str, dict[str, Any]]) -> None:
    original: Config = TINY
    changed: Config = TINY
    for section, values in change.items():
        changed = dataclasses.replace(changed, **{section: dataclasses.replace(getattr(changed, section), **values)})
    if "patience" in change.get("train", {}):  # compared with the same run without early stopping
        original = dataclasses.replace(changed, train=dataclasses.replace(changed.train, patience=None))
    rows = []
    for config in (original, changed):
        trainer, record = build(config)
        trainer.fit()
        rows.append(record.rows)
    assert rows[0] != rows[1]


def test_the_changes_above_cover_every_option() -> None:
    changed = {(section, name) for change in CHANGES for section, values in change.items() for name in values}
    assert changed == {path for path in options_of(ToyConfig) if path[0] in ("model", "train")}


@pytest.mark.parametrize(
    "change",
    [
        {"absolute": True},
        {"data": dataclasses.replace(TINY.data, dimension=2)},
        {"data": dataclasses.replace(TINY.data, spread=2.0)},
        {"data": dataclasses.replace(TINY.data, num_train=199)},
    ],
    ids=["absolute", "dimension", "spread", "num_train"],
)
def test_options_of_target_and_data_change_the_run(change: dict[str, Any]) -> None:
    rows = []
    for config in (TINY, dataclasses.replace(TINY, **change)):
        trainer, record = build(config)
        trainer.fit()
        rows.append(record.rows)
    assert rows[0] != rows[1]


# ------------------------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_restored_trainer_continues_bit_for_bit(epoch: int, optimizer: str) -> None:
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, dropout=0.2))
    uninterrupted, record = build(config, optimizer=optimizer)
    fit = uninterrupted.fit()
    torch.manual_seed(1)  # the state of the global generator does not matter
    later, continued = build(config, optimizer=optimizer)
    next(later.network.parameters()).data.normal_()
    later.restore(record.states[epoch - 1])
    assert later.epoch == epoch
    assert continued.best_epochs == [record.states[epoch - 1]["best_epoch"]]  # the file of best weights is complete
    assert later.fit() == fit
    assert [row["epoch"] for row in continued.rows] == list(range(epoch + 1, 5))
    assert continued.rows == record.rows[epoch:]
    assert torch.equal(weights(later), weights(uninterrupted))


def test_a_restored_trainer_also_continues_after_replayed_steps() -> None:
    trainer, record = build()
    trainer.fit()
    trainer.restore(record.states[1])  # the same trainer, whose recorded step refers to the old state of the optimiser
    trainer.fit()
    assert record.rows[4:] == record.rows[2:4]


def test_a_restored_trainer_remembers_the_best_epoch_so_far() -> None:
    options: dict[str, Any] = {"optimizer": "sgd", "lr": 0.3, "scheduler": "none", "epochs": 12}
    uninterrupted, record = build(**options)
    fit = uninterrupted.fit()
    assert 2 not in record.best_epochs  # otherwise this test shows nothing
    assert 3 not in record.best_epochs
    later, continued = build(**options)
    later.restore(record.states[1])
    assert later.fit() == fit
    assert continued.best_epochs == record.best_epochs
    assert torch.equal(weights(later), weights(uninterrupted))


def test_training_continues_with_more_epochs_under_a_constant_rate() -> None:
    long, expected = build(scheduler="none", epochs=6)
    long.fit()
    short, record = build(scheduler="none", epochs=4)
    short.fit()
    longer, continued = build(scheduler="none", epochs=6)
    longer.restore(record.states[-1])
    longer.fit()
    assert record.rows + continued.rows == expected.rows


# ------------------------------------------------------------------------------------------------ threads and compiler


def test_small_networks_use_one_thread_and_large_ones_all() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        small, large = nn.Linear(64, 128), nn.Linear(512, 512)
        assert choose_num_threads(small, batch_size=64, sites=64) == 1
        assert choose_num_threads(small, batch_size=4096, sites=64) == 2
        assert choose_num_threads(large, batch_size=256, sites=256) == 2
        kernel = nn.Conv2d(1, 16, 2)
        assert choose_num_threads(kernel, batch_size=64, sites=64) == 1
        assert choose_num_threads(kernel, batch_size=64, sites=64**2) == 2  # it is used at every site
        assert choose_num_threads(nn.Flatten(), batch_size=64, sites=64) == 1  # without parameters
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_is_the_same_step() -> None:
    runs = []
    for compiled in (False, True):
        trainer, record = build(dataclasses.replace(TINY, compile=compiled))
        trainer.fit()
        runs.append(record.rows)
    for row, same in zip(*runs, strict=True):
        assert row == pytest.approx(same, rel=1e-4, abs=1e-6)
