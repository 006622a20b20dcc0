"""Those whose training is timed by training.py: ways to train one network on the same data with the same schedule.

The first of them are a ladder: each does what the one before does, and one thing better.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from config import ExperimentConfig

DEFAULT = ExperimentConfig()


class Case(NamedTuple):
    """What is trained: the default network, or one that scikit-learn has too, which knows no GELU and no dropout."""

    activation: str
    dropout: float

    @property
    def config(self) -> ExperimentConfig:
        model = replace(DEFAULT.model, activation=self.activation, dropout=self.dropout)  # type: ignore[arg-type]
        return replace(DEFAULT, model=model)


CASES = {"default": Case("gelu", 0.1), "relu, no dropout": Case("relu", 0.0)}


class Data(NamedTuple):
    """Spins (N, 8, 8), and their energies per spin (N,) in units of J."""

    train_spins: NDArray[np.int8]
    train_targets: NDArray[np.float32]
    val_spins: NDArray[np.int8]
    val_targets: NDArray[np.float32]


class Turn:
    """What a contestant says when an epoch begins and ends."""

    def __init__(self, race: bool) -> None:
        self.race = race

    def begin(self) -> None:
        if not self.race:
            sys.stdin.readline()  # until it is one's turn
        self.start = time.perf_counter()

    def end(self, validation_error: Callable[[], float]) -> None:
        print(validation_error() if self.race else time.perf_counter() - self.start, flush=True)


def network(case: Case, data: Data, *, own_dropout: bool) -> Any:
    """Our network; with torch's dropout, unless ours is wanted."""
    import torch

    from model import Dropout, create_model

    targets = data.train_targets
    torch.manual_seed(0)
    model = create_model(case.config.model, 8, float(targets.mean()), float(targets.std()))
    layers = model.network.layers
    for name, layer in list(layers.named_children()):
        if isinstance(layer, Dropout) and not own_dropout:
            setattr(layers, name, torch.nn.Dropout(layer.p))
    return model


def torch_tensors(data: Data) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(array) for array in data)


def torch_error(model: Any, data: Data) -> float:
    """Mean absolute error on the validation set."""
    import torch

    _, _, spins, targets = torch_tensors(data)
    model.eval()
    with torch.no_grad():
        return float((model(spins) - targets).abs().mean())


def adamw(model: Any, **options: Any) -> Any:
    import torch

    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DEFAULT.train.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=DEFAULT.train.lr, **options)


def n_steps(data: Data) -> int:
    """In an epoch."""
    return math.ceil(len(data.train_targets) / DEFAULT.train.batch_size)


def run_loop(case: Case, data: Data, turn: Turn) -> None:
    """What tutorials show: a DataLoader, the optimiser as it comes, a scheduler, the loss read at every step."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    spins, targets, *_ = torch_tensors(data)
    model, scale = network(case, data, own_dropout=False), float(targets.var())
    optimizer = adamw(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, DEFAULT.train.epochs * n_steps(data))
    loader = DataLoader(TensorDataset(spins, targets), batch_size=DEFAULT.train.batch_size, shuffle=True)
    for _ in range(DEFAULT.train.epochs):
        turn.begin()
        model.train()
        total = 0.0
        for batch_spins, batch_targets in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(batch_spins), batch_targets) / scale
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        turn.end(lambda: torch_error(model, data))


def run_resident(case: Case, data: Data, turn: Turn, *, fused: bool = False) -> None:
    """Without the loader: one shuffled copy an epoch, of which batches are views, and no loss read."""
    import torch

    from trainer import lr_factor

    spins, targets, *_ = torch_tensors(data)
    model, scale = network(case, data, own_dropout=False), float(targets.var())
    optimizer = adamw(model, fused=fused)
    size, total_steps, step = DEFAULT.train.batch_size, DEFAULT.train.epochs * n_steps(data), 0
    for _ in range(DEFAULT.train.epochs):
        turn.begin()
        model.train()
        order = torch.randperm(len(targets))
        total = torch.zeros(())
        for batch_spins, batch_targets in zip(spins[order].split(size), targets[order].split(size), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = DEFAULT.train.lr * lr_factor("cosine", step, total_steps, 0)
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(batch_spins), batch_targets) / scale
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach()
            step += 1
        turn.end(lambda: torch_error(model, data))


def run_fused(case: Case, data: Data, turn: Turn) -> None:
    """And the optimiser in one operation for each group of parameters."""
    run_resident(case, data, turn, fused=True)


def run_ours(
    case: Case, data: Data, turn: Turn, *, own_dropout: bool = True, repeat: bool = True, compiled: bool = False
) -> None:
    """The trainer of this project."""
    import torch

    from logger import SilentLogger
    from task import EnergyTask
    from trainer import Trainer, fitting_threads

    task = EnergyTask.of(data.train_spins)
    model = network(case, data, own_dropout=own_dropout)
    torch.set_num_threads(fitting_threads(model, DEFAULT.train.batch_size, task.n_sites))
    cpu, nowhere = torch.device("cpu"), np.zeros(len(data.train_spins))  # temperatures, which nobody looks at
    train, val = (task.examples(s, nowhere[: len(s)], cpu) for s in (data.train_spins, data.val_spins))
    config = replace(case.config, compile=compiled)
    trainer = Trainer(model, task, config, train=train, val=val, logger=SilentLogger())
    if not repeat:
        trainer.full_step = trainer._step
    for epoch in range(1, DEFAULT.train.epochs + 1):
        turn.begin()
        trainer.train_epoch(epoch)
        turn.end(lambda: torch_error(model, data))


def run_one_vector(case: Case, data: Data, turn: Turn) -> None:
    """And the parameters in one vector, sums checked for what is not finite, one thread."""
    run_ours(case, data, turn, own_dropout=False, repeat=False)


def run_own_dropout(case: Case, data: Data, turn: Turn) -> None:
    """And fewer random bits for dropout: the trainer, but every step as it is written."""
    run_ours(case, data, turn, repeat=False)


def run_compiled(case: Case, data: Data, turn: Turn) -> None:
    """The trainer with --compile."""
    run_ours(case, data, turn, compiled=True)


def run_lightning(case: Case, data: Data, turn: Turn) -> None:
    """The same in PyTorch Lightning, with all that it logs and saves switched off."""
    import logging
    import warnings

    import lightning
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    spins, targets, *_ = torch_tensors(data)
    model, scale = network(case, data, own_dropout=False), float(targets.var())

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _: int) -> Any:
            return torch.nn.functional.mse_loss(self.model(batch[0]), batch[1]) / scale

        def configure_optimizers(self) -> Any:
            optimizer = adamw(self.model)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, DEFAULT.train.epochs * n_steps(data))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class Turns(lightning.Callback):  # type: ignore[misc]
        def on_train_epoch_start(self, *_: Any) -> None:
            turn.begin()

        def on_train_epoch_end(self, *_: Any) -> None:
            turn.end(lambda: torch_error(model, data))
            model.train()

    loader = DataLoader(TensorDataset(spins, targets), batch_size=DEFAULT.train.batch_size, shuffle=True)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=DEFAULT.train.epochs, accelerator="cpu", callbacks=[Turns()], **off)
    trainer.fit(Module(), loader)


def run_sklearn(case: Case, data: Data, turn: Turn) -> None:
    """MLPRegressor, by partial_fit, which is an epoch; it has neither dropout nor GELU nor a schedule for Adam."""
    from sklearn.neural_network import MLPRegressor

    flat, val = (spins.reshape(-1, 64).astype(np.float32) for spins in (data.train_spins, data.val_spins))
    mean, std = data.train_targets.mean(), data.train_targets.std()
    options = {"batch_size": DEFAULT.train.batch_size, "learning_rate_init": DEFAULT.train.lr, "random_state": 0}
    model = MLPRegressor(hidden_layer_sizes=DEFAULT.model.hidden, activation=case.activation, alpha=0.0, **options)
    for _ in range(DEFAULT.train.epochs):
        turn.begin()
        model.partial_fit(flat, (data.train_targets - mean) / std)
        turn.end(lambda: float(np.abs(mean + std * model.predict(val) - data.val_targets).mean()))


def run_jax(case: Case, data: Data, turn: Turn) -> None:
    """JAX and optax, with a whole epoch in one compiled scan."""
    import jax
    import jax.numpy as jnp
    import optax

    size, steps = DEFAULT.train.batch_size, n_steps(data)
    n = len(data.train_targets)
    mean, std = data.train_targets.mean(), data.train_targets.std()
    spins, targets = jnp.asarray(data.train_spins), jnp.asarray((data.train_targets - mean) / std)
    val = jnp.asarray(data.val_spins)
    activation = {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "relu": jax.nn.relu}[case.activation]
    z = jnp.linspace(-8, 8, 4001)
    density = jnp.exp(-(z**2) / 2)
    gain = float(jnp.sqrt(density.sum() / (density * activation(z) ** 2).sum()))  # as in model.py, without its torch

    def apply(weights: Any, x: Any, key: Any = None) -> Any:
        x = x.reshape(len(x), -1).astype(jnp.float32)
        for k, (w, b) in enumerate(weights):
            x = x @ w + b
            if k < len(weights) - 1:
                x = activation(x)
                if key is not None and case.dropout > 0:
                    key, own = jax.random.split(key)
                    x = jnp.where(jax.random.bernoulli(own, 1 - case.dropout, x.shape), x / (1 - case.dropout), 0)
        return x[:, 0]

    schedule = optax.cosine_decay_schedule(DEFAULT.train.lr, DEFAULT.train.epochs * steps)
    optimizer = optax.adamw(
        schedule,
        weight_decay=DEFAULT.train.weight_decay,
        mask=lambda weights: jax.tree.map(lambda p: p.ndim > 1, weights),
    )

    def loss_of(weights: Any, x: Any, y: Any, in_batch: Any, key: Any) -> Any:
        return jnp.sum(in_batch * (apply(weights, x, key) - y) ** 2) / jnp.sum(in_batch)

    @jax.jit  # type: ignore[untyped-decorator]
    def epoch(state: Any, key: Any) -> Any:
        order_key, dropout_key = jax.random.split(key)
        # All batches have one shape; the last is filled up with examples that do not count.
        order = jnp.resize(jax.random.permutation(order_key, n), (steps, size))
        in_batch = (jnp.arange(steps * size) < n).reshape(steps, size).astype(jnp.float32)

        def step(state: Any, inputs: Any) -> Any:
            (weights, moments), (rows, counts, own) = state, inputs
            loss, gradient = jax.value_and_grad(loss_of)(weights, spins[rows], targets[rows], counts, own)
            update, moments = optimizer.update(gradient, moments, weights)
            return (optax.apply_updates(weights, update), moments), loss

        return jax.lax.scan(step, state, (order, in_batch, jax.random.split(dropout_key, steps)))

    key, widths = jax.random.PRNGKey(0), [64, *DEFAULT.model.hidden, 1]
    weights = []
    for k, (n_in, n_out) in enumerate(pairwise(widths)):
        key, own = jax.random.split(key)
        scale = (gain if k else 1.0) / math.sqrt(n_in)
        weights.append((scale * jax.random.normal(own, (n_in, n_out)), jnp.zeros(n_out)))
    state = (weights, optimizer.init(weights))
    predict = jax.jit(apply)

    def validation_error(weights: Any) -> float:
        return float(np.abs(mean + std * np.asarray(predict(weights, val)) - data.val_targets).mean())

    for _ in range(DEFAULT.train.epochs):
        key, own = jax.random.split(key)
        turn.begin()
        state, losses = epoch(state, own)
        losses.block_until_ready()
        turn.end(partial(validation_error, state[0]))


# In the order of the ladder, then the others.
CONTESTANTS: dict[str, Callable[[Case, Data, Turn], None]] = {
    "DataLoader loop": run_loop,
    "+ resident data": run_resident,
    "+ fused AdamW": run_fused,
    "+ one vector, one thread": run_one_vector,
    "+ dropout from 15 bits": run_own_dropout,
    "ours: + repeated step": run_ours,
    "ours, --compile": run_compiled,
    "Lightning": run_lightning,
    "scikit-learn": run_sklearn,
    "JAX, scanned epoch": run_jax,
}
OURS = "ours: + repeated step"
RACERS = ["DataLoader loop", "Lightning", "scikit-learn", "JAX, scanned epoch"]


def entered(name: str, case: str) -> bool:
    """Whether a contestant can do a case."""
    return name != "scikit-learn" or case != "default"
