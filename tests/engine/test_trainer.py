"""Training: schedules, order, early stopping, best weights, divergence, resuming, and the effect of every option."""

import dataclasses
import math
import random
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.datasets.splits import get_splits
from engine.interface.base_config import Config, Optimizer, Scheduler, TrainConfig
from engine.learning.distributed import Group
from engine.learning.prediction import build_model, evaluate
from engine.machine.errors import DivergedError, ProblemError
from engine.machine.hardware import choose_num_threads
from engine.options.fields import options_of
from logger import RunLogger
from tests.conftest import read
from tests.engine.training import TINY, build, weights
from tests.toy import PROBLEM, ToyConfig, ToyProblem
from trainer import OPTIMIZERS, SCHEDULES, Trainer, create_optimizer, lr_factor, random_order


def factors(scheduler: str, total: int, warmup: int = 0) -> list[float]:
    return [lr_factor(scheduler, step, total, warmup) for step in range(total)]


# -------------------------------------------------------------------------------------------------------- the schedule


def test_every_name_that_the_config_accepts_has_a_function() -> None:
    place = "in engine/interface/base_config.py"
    assert set(get_args(Optimizer)) == set(OPTIMIZERS), f"add the name to Optimizer {place}"
    assert set(get_args(Scheduler)) == set(SCHEDULES), f"add the name to Scheduler {place}"


def test_values_of_the_schedules() -> None:
    assert factors("none", 4) == [1, 1, 1, 1]
    assert factors("none", 4, warmup=2) == [0.5, 1, 1, 1]
    assert factors("linear", 6, warmup=2) == [0.5, 1, 1, 0.75, 0.5, 0.25]
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
    trainer, record = build(scheduler="cosine", warmup_epochs=1)
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
    assert len(build(scheduler="step", epochs=epochs)[0].fit()) == epochs


# ------------------------------------------------------------------------------------------------------------ the loop


def test_the_order_is_a_permutation_that_only_depends_on_seed_and_epoch() -> None:
    orders = [random_order(1000, seed, epoch) for seed in (0, 1, 2**64 - 1) for epoch in (1, 2)]
    assert all(torch.equal(order.sort().values, torch.arange(1000)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)
    torch.manual_seed(5)
    assert torch.equal(random_order(1000, 0, 1), orders[0])


def test_an_epoch_uses_every_example_once_with_its_own_target(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = build(epochs=2)
    seen: list[list[torch.Tensor]] = []
    step = trainer.step

    def watch(inputs: tuple[torch.Tensor, ...], targets: torch.Tensor) -> torch.Tensor:
        seen.append([tensor.clone() for tensor in (*inputs, targets)])
        return step(inputs, targets)

    monkeypatch.setattr(trainer, "step", watch)
    trainer.fit()

    def rows(*batch: torch.Tensor) -> list[tuple[float, ...]]:
        return sorted((*point.tolist(), float(sign), float(target)) for point, sign, target in zip(*batch, strict=True))

    expected = rows(*trainer.train.inputs, trainer.train.targets)
    per_epoch = len(seen) // 2
    for epoch in (seen[:per_epoch], seen[per_epoch:]):
        assert [len(batch[0]) for batch in epoch] == [32] * 6 + [8]
        assert rows(*(torch.cat(tensors) for tensors in zip(*epoch, strict=True))) == expected
    assert not torch.equal(seen[0][0], seen[per_epoch][0])


def test_a_trainer_without_logger_or_folder_returns_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, _ = get_splits(PROBLEM, TINY)
    model = build_model(PROBLEM, TINY, data.train)
    history = Trainer(PROBLEM, TINY, model, data.train, data.val).fit()
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert set(history[0]) >= {"step", "train_loss", "val_loss", "val_mae", "val_r2", "learning_rate"}
    assert history[-1]["val_loss"] < history[0]["val_loss"]
    assert list(tmp_path.iterdir()) == []


def test_the_network_gets_scaled_points_and_unscaled_signs() -> None:
    trainer, _ = build(epochs=1)
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
    assert trainer.fit() == record.rows
    losses = [row["val_loss"] for row in record.rows]
    assert losses[-1] > min(losses)  # otherwise the test is not meaningful
    assert len(losses) == 12
    assert trainer.best_epoch == 1 + int(np.argmin(losses))
    assert evaluate(PROBLEM, TINY, trainer.model, trainer.val).metrics["loss"] == min(losses)
    for epoch, state in enumerate(record.states, start=1):
        assert losses[state["best_epoch"] - 1] == state["best_loss"] == min(losses[:epoch])
        best = record.states[state["best_epoch"] - 1]["weights"]
        assert all(torch.equal(best[name], value) for name, value in state["best_weights"].items())


def test_early_stopping_waits_for_its_patience() -> None:
    trainer, record = build(optimizer="sgd", lr=0.3, scheduler="none", epochs=200, patience=3)
    assert len(trainer.fit()) == trainer.best_epoch + 3 < 200
    losses = [row["val_loss"] for row in record.rows]
    assert min(losses[:-3]) == losses[trainer.best_epoch - 1] <= min(losses[-3:])


def test_without_patience_no_run_stops_early() -> None:
    trainer, record = build(optimizer="sgd", lr=0.3, scheduler="none", epochs=30)
    assert len(trainer.fit()) == 30
    assert TrainConfig(epochs=200, patience=3).is_over(30, trainer.best_epoch)  # patience would have stopped it
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

    def seed_of(seed: int, epoch: int, rank: int) -> int:
        trainer, _ = build(dataclasses.replace(TINY, seed=seed), group=Group(rank, 2))
        trainer.epoch = epoch
        trainer.train_epoch()
        return torch.initial_seed()

    seeds = [seed_of(1, 1, rank), seed_of(1, 2, rank), seed_of(2, 1, rank), seed_of(1, 1, 1 - rank)]
    assert len(set(seeds)) == 4


def test_random_numbers_of_numpy_and_python_depend_on_seed_and_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """If you add noise to the step, a run can still be repeated, also after --resume."""
    trainer, _ = build(epochs=3)
    values: list[tuple[float, float]] = []
    step = trainer.step

    def with_noise(inputs: tuple[torch.Tensor, ...], targets: torch.Tensor) -> torch.Tensor:
        values.append((np.random.random(), random.random()))  # noqa: NPY002
        return step(inputs, targets)

    monkeypatch.setattr(trainer, "step", with_noise)
    for epoch in (1, 2, 1):
        trainer.epoch = epoch
        trainer.train_epoch()
    assert values[:7] == values[14:]
    assert len(set(values)) == 14


# ------------------------------------------------------------------------------------------------------- the optimiser


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_biases_and_norms_are_not_decayed(optimizer: Any) -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.LayerNorm(9), nn.Linear(9, 5), nn.Linear(5, 1))
    decayed, spared = create_optimizer(network, TrainConfig(optimizer=optimizer, weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0)
    names = {id(p): name for name, p in network.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"0.weight", "3.weight", "4.weight"}
    assert {names[id(p)] for p in spared["params"]} == set(names.values()) - {"0.weight", "3.weight", "4.weight"}


def test_frozen_weights_do_not_change() -> None:
    trainer, _ = build()
    first = next(trainer.network.parameters())
    first.requires_grad_(False)
    trainer.optimizer = create_optimizer(trainer.network, trainer.config.train)
    before, all_before = first.clone(), weights(trainer)
    trainer.fit()
    assert torch.equal(first, before)
    assert not torch.equal(weights(trainer), all_before)


def test_sgd_has_momentum() -> None:
    optimizer = create_optimizer(nn.Linear(3, 1), TrainConfig(optimizer="sgd"))
    assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)


EVERY_OPTIMIZER = [
    kind
    for name, kind in sorted(vars(torch.optim).items())
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")  # a closure; sparse gradients; matrices only
]


@pytest.mark.parametrize("kind", EVERY_OPTIMIZER, ids=lambda kind: str(kind.__name__))
def test_every_optimiser_of_torch_works_as_a_line_in_the_table(
    kind: type[torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are those of a loop without this project. A restored trainer gives the same metrics."""
    monkeypatch.setitem(OPTIMIZERS, "adamw", kind)
    trainer, record = build(lr=0.003)
    trainer.fit()
    plain, _ = build(lr=0.003)
    matrices, vectors = ([p for p in plain.network.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    optimizer = kind(  # type: ignore[call-arg]
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}], lr=0.003
    )
    assert type(optimizer) is kind
    for step in range(4 * 7):
        if step % 7 == 0:
            order = random_order(200, 42, 1 + step // 7)
        rows = order[32 * (step % 7) : 32 * (step % 7 + 1)]
        for group in optimizer.param_groups:
            group["lr"] = 0.003 * factors("cosine", 28)[step]
        optimizer.zero_grad()
        outputs = plain.network(*(x[rows] for x in plain.train.inputs))
        nn.functional.mse_loss(outputs, plain.train.targets[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    last = torch.cat([value.flatten() for name, value in record.states[-1]["weights"].items() if "network" in name])
    torch.testing.assert_close(last, weights(plain), rtol=1e-6, atol=1e-7)
    again, continued = build(lr=0.003)
    again.restore(record.states[1])
    again.fit()
    assert continued.rows == record.rows[2:]


def test_no_gradient_is_longer_than_grad_clip() -> None:
    trainer, _ = build(grad_clip=0.01)
    norms: list[float] = []

    def measure(*_: Any) -> None:
        gradients = [p.grad for p in trainer.network.parameters() if p.grad is not None]
        norms.append(float(nn.utils.get_total_norm(gradients)))

    trainer.optimizer.register_step_pre_hook(measure)
    trainer.fit()
    assert len(norms) == 4 * 7
    assert max(norms) <= 0.01 * (1 + 1e-4)
    assert max(norms) > 0.009


class CountReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a number is read from a tensor. On a GPU, reading waits until all queued work is done."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # with True, PyTorch would load torch.compile


def test_the_program_does_not_wait_for_the_loss_of_a_batch() -> None:
    counts = []
    for batch_size in (100, 4):
        trainer, _ = build(epochs=1, batch_size=batch_size)
        with CountReads() as reads:
            trainer.fit()
        counts.append(reads.count)
    assert 0 < counts[0] == counts[1]  # 2 or 50 batches: the same number of reads


class Growing(torch.optim.SGD):
    """An optimiser that counts its steps in its options."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        for group in self.param_groups:
            group["n_steps"] = group.get("n_steps", 0) + 1
            for p in group["params"]:
                p.mul_(1 + 1e-4 * group["n_steps"])


def test_numbers_in_the_options_of_an_optimiser_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "adamw", Growing)
    uninterrupted, record = build()
    uninterrupted.fit()
    later, continued = build()
    later.restore(record.states[1])
    later.fit()
    assert continued.rows == record.rows[2:]


def test_a_parameter_group_can_have_another_learning_rate() -> None:
    trainer, _ = build(scheduler="cosine", epochs=2)
    trainer.optimizer.param_groups[0]["initial_lr"] = 0.5
    trainer.fit()
    last = factors("cosine", 14)[-1]
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.5 * last, 0.01 * last]


def test_numbers_of_numpy_in_a_row_become_numbers_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, record = build(epochs=2)
    metrics = ToyProblem.metrics
    monkeypatch.setattr(ToyProblem, "metrics", lambda *arguments: metrics(*arguments) | {"norm": np.float32(0.5)})
    monkeypatch.setattr(trainer, "factor_at", lambda step: np.float64(1.0))
    trainer.fit()
    assert {type(value) for row in record.rows for value in row.values()} == {int, float}


def test_an_invalid_number_in_a_row_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = build(epochs=2)
    trainer.rates = [math.nan]
    monkeypatch.setattr(trainer, "train_epoch", lambda: 1.0)
    with pytest.raises(ProblemError, match="the row of an epoch: learning_rate is nan"):
        trainer.fit()


# ---------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("lr", [1e25, 1e300])
def test_divergence_ends_the_run_and_leaves_a_readable_record(lr: float, tmp_path: Path) -> None:
    trainer, _ = build(optimizer="sgd", lr=lr)
    logger = RunLogger(tmp_path, PROBLEM, TINY)
    trainer.logger = logger
    with pytest.raises(DivergedError, match="lower --lr"), logger:
        trainer.fit()
    assert all(math.isfinite(value) for row in trainer.history for value in row.values())
    assert read(tmp_path, "run_info.json")["status"] == "diverged"
    if trainer.history:
        assert read(tmp_path, "epoch_metrics.json") == trainer.history


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("where", ["first step", "a step in the middle", "last step", "gradient of the last step"])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_epoch(
    where: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows and the state of the epoch before are kept."""
    trainer, record = build(optimizer=optimizer)
    expected, _ = build(optimizer=optimizer)
    expected.fit()
    place = {"first step": 0, "a step in the middle": 100}.get(where, 199)
    broken = int(random_order(200, TINY.seed, 3)[place])
    train_epoch = trainer.train_epoch

    def spoil() -> float:
        if trainer.epoch == 3:
            if where == "gradient of the last step":  # the loss is finite, its gradient is not
                infinity = torch.tensor(math.inf)
                for p in trainer.network.parameters():
                    p.register_hook(lambda gradient: gradient * infinity)  # type: ignore[no-untyped-call]
            else:
                trainer.train.targets[broken] = math.inf
        return train_epoch()

    monkeypatch.setattr(trainer, "train_epoch", spoil)
    with pytest.raises(DivergedError, match="not finite in epoch 3"):
        trainer.fit()
    assert [row["epoch"] for row in record.rows] == [1, 2]
    assert record.rows == expected.history[:2]
    assert all(value.isfinite().all() for value in record.states[-1]["weights"].values())


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
    {"train": {"betas": (0.8, 0.9)}},
    {"train": {"scheduler": "none"}},
    {"train": {"scheduler": "step"}},
    {"train": {"scheduler": "linear"}},
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
    options = {path for path in options_of(ToyConfig) if path[0] in ("model", "train")}
    assert changed == options - {("train", "init_from"), ("train", "fresh")}  # test_init_from.py, test_fresh.py


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
    history = uninterrupted.fit()
    torch.manual_seed(1)  # the state of the global generator does not matter
    later, continued = build(config, optimizer=optimizer)
    next(later.network.parameters()).data.normal_()
    later.restore(record.states[epoch - 1])
    assert later.epoch == epoch
    assert later.fit() == history
    assert later.best_epoch == uninterrupted.best_epoch
    assert [row["epoch"] for row in continued.rows] == list(range(epoch + 1, 5))
    assert continued.rows == record.rows[epoch:]
    assert torch.equal(weights(later), weights(uninterrupted))


def test_a_state_of_an_earlier_version_has_no_number_of_steps() -> None:
    trainer, record = build(scheduler="cosine")
    history = trainer.fit()
    later, _ = build(scheduler="cosine")
    del record.states[1]["n_steps"]
    later.restore(record.states[1])
    assert later.fit() == history


def test_a_trainer_can_be_restored_after_training() -> None:
    trainer, record = build()
    trainer.fit()
    trainer.restore(record.states[1])
    trainer.fit()
    assert record.rows[4:] == record.rows[2:4]


def test_a_restored_trainer_remembers_the_best_epoch_so_far() -> None:
    options: dict[str, Any] = {"optimizer": "sgd", "lr": 0.3, "scheduler": "none", "epochs": 12}
    uninterrupted, record = build(**options)
    uninterrupted.fit()
    best_epochs = [state["best_epoch"] for state in record.states]
    assert best_epochs[1:3] == [1, 1]  # otherwise the test is not meaningful
    later, continued = build(**options)
    later.restore(record.states[1])
    assert later.fit() == uninterrupted.history
    assert [state["best_epoch"] for state in continued.states] == best_epochs[2:]
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
        assert choose_num_threads(small, batch_size=64, input_size=64) == 1
        assert choose_num_threads(small, batch_size=4096, input_size=64) == 2
        assert choose_num_threads(large, batch_size=256, input_size=256) == 2
        kernel = nn.Conv2d(1, 16, 2)
        assert choose_num_threads(kernel, batch_size=64, input_size=64) == 1
        assert choose_num_threads(kernel, batch_size=64, input_size=64**2) == 2  # it is used at every site
        assert choose_num_threads(nn.Flatten(), batch_size=64, input_size=64) == 1  # without parameters
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_gives_the_same_numbers() -> None:
    data = dataclasses.replace(TINY.data, num_train=160)  # batches of one size, since each is compiled
    runs = []
    for compiled in (False, True):
        trainer, record = build(dataclasses.replace(TINY, data=data, compile=compiled))
        trainer.fit()
        runs.append(record.rows)
    for row, same in zip(*runs, strict=True):
        assert row == pytest.approx(same, rel=1e-4, abs=1e-6)
