"""The loop: schedule, order, early stopping, best weights, and that every option reaches it."""

import copy
import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from config import DataConfig, ExperimentConfig, LogConfig, ModelConfig, Optimizer, Scheduler, TrainConfig
from data import Splits, make_splits
from logger import RunLogger
from model import ARCHITECTURES, create_model
from task import EnergyTask, evaluate
from trainer import (
    OPTIMIZERS,
    SCHEDULES,
    FitResult,
    Trainer,
    create_optimizer,
    fitting_threads,
    flatten,
    lr_factor,
    shuffled,
)
from utils import DivergedError

CPU = torch.device("cpu")
TINY = ExperimentConfig(
    model=ModelConfig(hidden=(16, 8), dropout=0),
    train=TrainConfig(epochs=4, batch_size=32, lr=0.01),
    data=DataConfig(lattice_size=4, num_train=200, num_val=100, num_test=100),
    log=LogConfig(checkpoints=False),
)

Build = Callable[..., Trainer]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return make_splits(TINY.data, seed=0)


@pytest.fixture
def build(splits: Splits, tmp_path: Path) -> Build:
    """A trainer of the tiny experiment with other training options: `build(lr=1.0)`."""

    def build(config: ExperimentConfig = TINY, *, eager: bool = False, **training: Any) -> Trainer:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, **training))
        task = EnergyTask.of(splits.train.spins)
        train, val, _ = (task.examples(split.spins, split.temperatures, CPU) for split in splits)
        torch.manual_seed(config.seed)
        model = create_model(config.model, config.data.lattice_size, task.mean, task.std)
        trainer = Trainer(model, task, config, train=train, val=val, logger=RunLogger(tmp_path, config))
        if eager:  # every step as it is written: what is repeated passes no hook
            trainer.full_step = trainer._step
        return trainer

    return build


def factors(scheduler: str, total: int, warmup: int = 0) -> list[float]:
    return [lr_factor(scheduler, step, total, warmup) for step in range(total)]


def test_names_in_the_config_are_those_of_the_functions() -> None:
    assert set(OPTIMIZERS) == set(get_args(Optimizer))
    assert set(SCHEDULES) == set(get_args(Scheduler))


def test_schedule_tables() -> None:
    assert factors("none", 4) == [1, 1, 1, 1]
    assert factors("none", 4, warmup=2) == [0.5, 1, 1, 1]
    assert factors("cosine", 4) == pytest.approx([1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2])
    assert factors("cosine", 6, warmup=2) == pytest.approx([0.5, 1, 1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2])
    assert factors("step", 6) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert factors("step", 8, warmup=2) == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("scheduler", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3, 7, 300, 15_700])
def test_schedules_start_at_the_peak_fall_and_never_stop(scheduler: str, total: int) -> None:
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


def test_every_step_is_taken_at_its_own_rate_and_the_logged_one_is_that_of_the_last_step(build: Build) -> None:
    trainer = build(scheduler="cosine", warmup_epochs=1, eager=True)
    used: list[float] = []
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(float(optimizer.param_groups[0]["lr"])))
    trainer.fit()
    steps = math.ceil(200 / 32)
    assert used == [0.01 * factor for factor in factors("cosine", 4 * steps, warmup=steps)]
    assert used[0] > 0
    assert used[-1] < 0.01 * 0.01
    for epoch, row in enumerate(trainer.logger.rows, start=1):
        assert row["step"] == epoch * steps
        assert row["learning_rate"] == used[epoch * steps - 1]


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_step_schedule_works_for_fewer_than_three_epochs(build: Build, epochs: int) -> None:
    assert build(scheduler="step", epochs=epochs).fit().epochs_trained == epochs


def test_the_order_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    orders = [shuffled(1000, seed, epoch) for seed in (0, 1, 2**64 - 1) for epoch in (1, 2)]
    assert all(torch.equal(order.sort().values, torch.arange(1000)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)
    torch.manual_seed(5)
    assert torch.equal(shuffled(1000, 0, 1), orders[0])


def test_an_epoch_takes_every_example_once(build: Build) -> None:
    trainer = build(epochs=2, eager=True)
    seen: list[torch.Tensor] = []
    trainer.model.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].clone()) if module.training else None
    )
    trainer.fit()
    expected = sorted(spins.numpy().tobytes() for spins in trainer.train.spins)
    per_epoch = len(seen) // 2
    for epoch in (seen[:per_epoch], seen[per_epoch:]):
        assert [len(batch) for batch in epoch] == [32] * 6 + [8]
        assert sorted(spins.numpy().tobytes() for batch in epoch for spins in batch) == expected
    assert not torch.equal(seen[0], seen[per_epoch])


def test_the_best_weights_are_restored(build: Build) -> None:
    # so large a rate that the loss goes up and down
    trainer = build(optimizer="sgd", lr=0.1, scheduler="none", epochs=12)
    fit = trainer.fit()
    losses = [row["val_loss"] for row in trainer.logger.rows]
    assert losses[-1] > min(losses)  # else this test shows nothing
    assert fit == FitResult(best_epoch=1 + int(np.argmin(losses)), epochs_trained=12)
    assert evaluate(trainer.model, trainer.task, trainer.val)["loss"] == min(losses)


def test_early_stopping_waits_for_its_patience(build: Build) -> None:
    trainer = build(optimizer="sgd", lr=0.05, scheduler="none", epochs=200, patience=3)
    fit = trainer.fit()
    assert fit.epochs_trained == fit.best_epoch + 3 < 200
    losses = [row["val_loss"] for row in trainer.logger.rows]
    assert min(losses[:-3]) == losses[fit.best_epoch - 1] <= min(losses[-3:])


def test_without_patience_no_run_is_cut_short(build: Build) -> None:
    assert build(optimizer="sgd", lr=0.05, scheduler="none", epochs=30).fit().epochs_trained == 30


def test_training_learns(build: Build) -> None:
    trainer = build(epochs=30)
    trainer.fit()
    assert evaluate(trainer.model, trainer.task, trainer.val)["r2"] > 0.8


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_biases_and_norms_are_not_decayed(optimizer: str) -> None:
    model = create_model(ModelConfig(architecture="residual_mlp", hidden=(8, 8)), 4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    parameters, matrices, vectors, sums = flatten(model)
    config = TrainConfig(optimizer=optimizer, weight_decay=0.3)  # type: ignore[arg-type]
    decayed, spared = create_optimizer(matrices, vectors, config).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0)
    # With every element of the two vectors marked, the marks are seen in the model.
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with torch.no_grad():
        decayed["params"][0].fill_(2)
        spared["params"][0].fill_(1)
    for name, p in model.named_parameters():
        assert set(p.flatten().tolist()) == {2 if name.endswith("weight") and p.ndim == 2 else 1}
    # What is laid out in the order of the parameters is what the optimiser takes for their gradients.
    with torch.no_grad():
        torch.cat([p.normal_().flatten() for p in parameters], out=sums[:-1])
    assert matrices.grad is not None
    assert vectors.grad is not None
    assert torch.equal(matrices, matrices.grad)
    assert torch.equal(vectors, vectors.grad)


def test_sgd_has_momentum() -> None:
    _, matrices, vectors, _ = flatten(create_model(ModelConfig(), 4))
    optimizer = create_optimizer(matrices, vectors, TrainConfig(optimizer="sgd"))
    assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_a_clipped_gradient_is_no_longer_than_it_may_be(build: Build) -> None:
    trainer = build(grad_clip=0.01, eager=True)
    norms: list[float] = []
    trainer.optimizer.register_step_pre_hook(lambda *_: norms.append(float(trainer.gradient.norm())))
    trainer.fit()
    assert max(norms) <= 0.01 * (1 + 1e-4)
    assert max(norms) > 0.009


@pytest.mark.parametrize("lr", [1e25, 1e300])
def test_divergence_ends_the_run_and_leaves_the_record_readable(build: Build, lr: float) -> None:
    trainer = build(optimizer="sgd", lr=lr)
    with pytest.raises(DivergedError, match="lower --lr"):
        trainer.fit()
    assert all(math.isfinite(value) for row in trainer.logger.rows for value in row.values())


class CountReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a number is fetched from a tensor, which on a GPU waits for all that was queued."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_no_batch_waits_for_its_loss(build: Build) -> None:
    counts = []
    for batch_size in (100, 4):
        trainer = build(epochs=1, batch_size=batch_size, eager=True)
        with CountReads() as reads:
            trainer.fit()
        counts.append(reads.count)
    assert 0 < counts[0] == counts[1]  # 2 batches or 50: as many reads


CHANGES: list[dict[str, dict[str, Any]]] = [
    {"model": {"architecture": "residual_mlp"}},
    {"model": {"architecture": "symmetric_mlp"}},
    {"model": {"architecture": "cnn"}},
    {"model": {"input_temperature": True}},
    {"model": {"hidden": (16, 9)}},
    {"model": {"activation": "tanh"}},
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
    {"train": {"patience": 1, "lr": 0.05, "optimizer": "sgd", "epochs": 12}},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_option_of_model_and_training_changes_the_run(build: Build, change: dict[str, dict[str, Any]]) -> None:
    base, changed = build(), TINY
    for section, values in change.items():
        changed = dataclasses.replace(changed, **{section: dataclasses.replace(getattr(changed, section), **values)})
    if change.get("train", {}).get("patience"):  # early stopping against the same run without
        base = build(dataclasses.replace(changed, train=dataclasses.replace(changed.train, patience=None)))
    base.fit()
    other = build(changed)
    other.fit()
    assert base.logger.rows != other.logger.rows


def test_the_seed_changes_the_weights(build: Build) -> None:
    one, other = build(), build(dataclasses.replace(TINY, seed=43))
    assert not torch.equal(next(one.model.parameters()), next(other.model.parameters()))


@pytest.mark.parametrize("repeated", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_what_is_not_finite_stops_before_the_update(what: str, optimizer: str, repeated: bool, build: Build) -> None:
    trainer = build(optimizer=optimizer, grad_clip=1.0 if what == "gradient" else None, eager=not repeated)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    if what == "gradient":
        hook = trainer.gradient.new_tensor([math.inf])
        next(trainer.model.parameters()).register_hook(lambda gradient: gradient + hook)  # type: ignore[no-untyped-call]
    else:
        loss = trainer.task.loss
        trainer.task.loss = lambda *batch: loss(*batch) * math.nan  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match="not finite in epoch 1"):
        trainer.fit()
    assert all(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))
    assert trainer.logger.rows == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_after_a_batch_that_is_not_finite_nothing_is_updated(optimizer: str, build: Build) -> None:
    trainer = build(optimizer=optimizer, batch_size=10)
    n_before = 11  # of the 20 batches of the first epoch, by far not all of which are taken as they are written
    trainer.train.targets[shuffled(200, TINY.seed, 1)[10 * n_before]] = math.inf
    full_step, n_taken, then = trainer.full_step, 0, torch.empty(0)

    def watch(*batch: torch.Tensor) -> None:
        nonlocal n_taken, then
        if n_taken == n_before:
            then = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        full_step(*batch)
        n_taken += 1

    trainer.full_step = watch
    with pytest.raises(DivergedError):
        trainer.fit()
    assert n_taken == 20
    assert torch.equal(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]), then)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("activation", "dropout", "grad_clip"), [("gelu", 0.2, None), ("tanh", 0, 0.5)])
def test_a_repeated_step_is_the_same_step_bit_for_bit(  # noqa: PLR0917
    architecture: Any, optimizer: Any, activation: Any, dropout: float, grad_clip: float | None, build: Build
) -> None:
    model = ModelConfig(architecture=architecture, hidden=(16, 8), activation=activation, dropout=dropout)
    runs = []
    for eager in (True, False):
        config = dataclasses.replace(TINY, model=model)
        trainer = build(config, optimizer=optimizer, grad_clip=grad_clip, warmup_epochs=1, eager=eager)
        trainer.fit()
        runs.append((trainer.logger.rows, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_a_restored_trainer_goes_on_bit_for_bit(build: Build) -> None:
    config = dataclasses.replace(TINY, model=ModelConfig(hidden=(16, 8), dropout=0.2))
    states: list[dict[str, Any]] = []
    whole = build(config)
    whole.logger.log_checkpoint = lambda state: states.append(copy.deepcopy(dict(state)))  # type: ignore[method-assign]
    whole.fit()
    torch.manual_seed(1)  # whatever the generator has been used for meanwhile
    later = build(dataclasses.replace(config, seed=config.seed))
    next(later.model.parameters()).data.normal_()
    later.restore(states[1])
    assert later.epoch == 2
    later.fit()
    assert [row["epoch"] for row in later.logger.rows] == [3, 4]
    assert later.logger.rows == whole.logger.rows[2:]
    assert all(torch.equal(p, q) for p, q in zip(later.model.parameters(), whole.model.parameters(), strict=True))


def test_small_networks_run_on_one_thread_and_large_ones_on_all() -> None:
    torch.set_num_threads(2)
    try:
        assert fitting_threads(create_model(ModelConfig(), 8), 64, 64) == 1
        assert fitting_threads(create_model(ModelConfig(hidden=(512, 512)), 16), 256, 256) == 2
        small_kernel = create_model(ModelConfig(architecture="cnn"), 8)  # on many sites
        assert fitting_threads(small_kernel, 64, 64) == 1
        assert fitting_threads(small_kernel, 64, 64**2) == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_is_the_same_step(build: Build) -> None:
    config = dataclasses.replace(TINY, model=ModelConfig(hidden=(16, 8), dropout=0))
    plain, compiled = build(config), build(dataclasses.replace(config, compile=True))
    plain.fit()
    compiled.fit()
    for row, same in zip(compiled.logger.rows, plain.logger.rows, strict=True):
        assert row == pytest.approx(same, rel=1e-4, abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_captured_step_is_the_same_step(optimizer: str, splits: Splits, tmp_path: Path) -> None:
    rows = []
    for captured in (True, False):
        training = dataclasses.replace(TINY.train, optimizer=optimizer, grad_clip=1.0)  # type: ignore[arg-type]
        config = dataclasses.replace(TINY, train=training, model=ModelConfig(hidden=(16, 8), dropout=0.2))
        device = torch.device("cuda")
        task = EnergyTask.of(splits.train.spins)
        train, val, _ = (task.examples(split.spins, split.temperatures, device) for split in splits)
        torch.manual_seed(config.seed)
        model = create_model(config.model, config.data.lattice_size, task.mean, task.std).to(device)
        trainer = Trainer(model, task, config, train=train, val=val, logger=RunLogger(tmp_path, config))
        if not captured:
            trainer.full_step = trainer._step
        trainer.fit()
        rows.append(trainer.logger.rows)
    for row, same in zip(*rows, strict=True):
        assert row == pytest.approx(same, rel=1e-4, abs=1e-6)
