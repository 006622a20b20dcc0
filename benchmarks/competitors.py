"""The competitors of training.py: programs that train one network on the same data with the same schedule.

Each of the first ones adds one improvement to the previous one.
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

from config import Activation, ExperimentConfig

DEFAULT = ExperimentConfig()


class Case(NamedTuple):
    """The network to train: the default one, or one without GELU and dropout, which scikit-learn does not have."""

    activation: Activation
    dropout: float

    @property
    def config(self) -> ExperimentConfig:
        model = replace(DEFAULT.model, activation=self.activation, dropout=self.dropout)
        return replace(DEFAULT, model=model)


CASES = {"default": Case("gelu", 0.1), "relu, no dropout": Case("relu", 0.0)}


class Data(NamedTuple):
    """Spins (N, 8, 8), and their energies per spin (N,) in units of J."""

    train_spins: NDArray[np.int8]
    train_targets: NDArray[np.float32]
    val_spins: NDArray[np.int8]
    val_targets: NDArray[np.float32]


class Timer:
    """Competitors call `begin` and `end` around each epoch.

    In a race, epochs follow each other, and the validation error after each is printed. Otherwise each epoch waits for
    a line on stdin, so competitors can alternate, and its duration in seconds is printed.
    """

    def __init__(self, race: bool) -> None:
        self.race = race

    def begin(self) -> None:
        if not self.race:
            sys.stdin.readline()
        self.start = time.perf_counter()

    def end(self, validation_error: Callable[[], float]) -> None:
        print(validation_error() if self.race else time.perf_counter() - self.start, flush=True)


def columns(spins: NDArray[np.int8]) -> dict[str, NDArray[Any]]:
    """Spins as a data set. Temperatures are set to zero; neither the network nor the energy depends on them."""
    return {"spins": spins, "temperatures": np.zeros(len(spins))}


def network(case: Case, data: Data) -> Any:
    """The network of this project."""
    from engine.learning.prediction import build_model
    from problem import PROBLEM

    return build_model(PROBLEM, replace(case.config, seed=0), columns(data.train_spins))


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


def steps_per_epoch(data: Data) -> int:
    return math.ceil(len(data.train_targets) / DEFAULT.train.batch_size)


def run_loop(case: Case, data: Data, timer: Timer) -> None:
    """The loop of most tutorials: DataLoader, default AdamW, a scheduler; loss.item() is called at every step."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    spins, targets, *_ = torch_tensors(data)
    model, scale = network(case, data), float(targets.var())
    optimizer = adamw(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, DEFAULT.train.epochs * steps_per_epoch(data))
    loader = DataLoader(TensorDataset(spins, targets), batch_size=DEFAULT.train.batch_size, shuffle=True)
    for _ in range(DEFAULT.train.epochs):
        timer.begin()
        model.train()
        total = 0.0
        for batch_spins, batch_targets in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(batch_spins), batch_targets) / scale
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        timer.end(lambda: torch_error(model, data))


def run_resident(case: Case, data: Data, timer: Timer, *, fused: bool = False) -> None:
    """No DataLoader: one shuffled copy per epoch, with batches as views of it. The loss stays a tensor."""
    import torch

    from trainer import lr_factor

    spins, targets, *_ = torch_tensors(data)
    model, scale = network(case, data), float(targets.var())
    optimizer = adamw(model, fused=fused)
    size, total_steps, step = DEFAULT.train.batch_size, DEFAULT.train.epochs * steps_per_epoch(data), 0
    for _ in range(DEFAULT.train.epochs):
        timer.begin()
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
        timer.end(lambda: torch_error(model, data))


def run_fused(case: Case, data: Data, timer: Timer) -> None:
    """As run_resident, and the optimiser updates each group of parameters in one operation."""
    run_resident(case, data, timer, fused=True)


def run_ours(case: Case, data: Data, timer: Timer, *, compiled: bool = False) -> None:
    """The trainer of this project."""
    import torch

    from engine.machine.hardware import choose_num_threads
    from problem import PROBLEM
    from trainer import Trainer

    model = network(case, data)
    torch.set_num_threads(choose_num_threads(model, DEFAULT.train.batch_size, data.train_spins[0].size))
    config = replace(case.config, compile=compiled)
    trainer = Trainer(PROBLEM, config, model, columns(data.train_spins), columns(data.val_spins))
    for epoch in range(1, DEFAULT.train.epochs + 1):
        trainer.epoch = epoch
        timer.begin()
        trainer.train_epoch()
        timer.end(lambda: torch_error(model, data))


def run_compiled(case: Case, data: Data, timer: Timer) -> None:
    """The trainer of this project with --compile."""
    run_ours(case, data, timer, compiled=True)


def run_lightning(case: Case, data: Data, timer: Timer) -> None:
    """PyTorch Lightning, without its logging and checkpoints."""
    import logging
    import warnings

    import lightning
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    spins, targets, *_ = torch_tensors(data)
    model, scale = network(case, data), float(targets.var())
    total_steps = DEFAULT.train.epochs * steps_per_epoch(data)

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _: int) -> Any:
            return torch.nn.functional.mse_loss(self.model(batch[0]), batch[1]) / scale

        def configure_optimizers(self) -> Any:
            optimizer = adamw(self.model)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class Timing(lightning.Callback):  # type: ignore[misc]
        def on_train_epoch_start(self, *_: Any) -> None:
            timer.begin()

        def on_train_epoch_end(self, *_: Any) -> None:
            timer.end(lambda: torch_error(model, data))
            model.train()

    loader = DataLoader(TensorDataset(spins, targets), batch_size=DEFAULT.train.batch_size, shuffle=True)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=DEFAULT.train.epochs, accelerator="cpu", callbacks=[Timing()], **off)
    trainer.fit(Module(), loader)


def run_sklearn(case: Case, data: Data, timer: Timer) -> None:
    """MLPRegressor.partial_fit, which trains for one epoch. It has no dropout, no GELU and no schedule for Adam."""
    from sklearn.neural_network import MLPRegressor

    flat, val = (spins.reshape(-1, 64).astype(np.float32) for spins in (data.train_spins, data.val_spins))
    mean, std = data.train_targets.mean(), data.train_targets.std()
    options = {"batch_size": DEFAULT.train.batch_size, "learning_rate_init": DEFAULT.train.lr, "random_state": 0}
    model = MLPRegressor(hidden_layer_sizes=DEFAULT.model.hidden, activation=case.activation, alpha=0.0, **options)
    for _ in range(DEFAULT.train.epochs):
        timer.begin()
        model.partial_fit(flat, (data.train_targets - mean) / std)
        timer.end(lambda: float(np.abs(mean + std * model.predict(val) - data.val_targets).mean()))


def run_jax(case: Case, data: Data, timer: Timer) -> None:
    """JAX and optax, with each epoch in one compiled scan."""
    import jax
    import jax.numpy as jnp
    import optax

    size, steps = DEFAULT.train.batch_size, steps_per_epoch(data)
    n = len(data.train_targets)
    mean, std = data.train_targets.mean(), data.train_targets.std()
    spins, targets = jnp.asarray(data.train_spins), jnp.asarray((data.train_targets - mean) / std)
    val = jnp.asarray(data.val_spins)
    activation = {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "relu": jax.nn.relu}[case.activation]
    z = jnp.linspace(-8, 8, 4001)
    density = jnp.exp(-(z**2) / 2)
    gain = float(jnp.sqrt(density.sum() / (density * activation(z) ** 2).sum()))  # as in model.py, without torch

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
        # All batches have the same shape. The last one is filled up with examples of weight zero.
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
        timer.begin()
        state, losses = epoch(state, own)
        losses.block_until_ready()
        timer.end(partial(validation_error, state[0]))


# First the improvements of this project over a usual loop, one by one; then the others. The names are keys in
# results/training.json.
COMPETITORS: dict[str, Callable[[Case, Data, Timer], None]] = {
    "DataLoader loop": run_loop,
    "+ resident data": run_resident,
    "+ fused AdamW": run_fused,
    "ours": run_ours,
    "ours, --compile": run_compiled,
    "Lightning": run_lightning,
    "scikit-learn": run_sklearn,
    "JAX, scanned epoch": run_jax,
}
RACERS = ["DataLoader loop", "Lightning", "scikit-learn", "JAX, scanned epoch"]


def supports(name: str, case: str) -> bool:
    """Whether a competitor can train a case."""
    return name != "scikit-learn" or case != "default"
