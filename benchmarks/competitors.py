"""The competitors of training.py and time_to_exact.py: programs that train one network with one recipe.

Each of the first ones adds one improvement to the previous one. A competitor is a function of a `Bench`, which gives it
the data of each epoch and takes the time.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from config import ExperimentConfig

Spins = NDArray[np.int8]
Floats = NDArray[np.floating]


class Bench(Protocol):
    """What a competitor trains, and for how long."""

    config: ExperimentConfig

    def epoch(self) -> tuple[Spins, Floats]:
        """Begin an epoch: configurations (N, L, L), and their energies per spin with mean 0 and variance 1, (N,).

        Both are the same objects in all epochs, unless the config has `fresh`.
        """

    def end(self, predict: Callable[[Spins], Floats]) -> None:
        """End an epoch. `predict` gives energies in the same units, (N,)."""


def columns(spins: Spins) -> dict[str, NDArray[Any]]:
    """Spins as a data set. Temperatures are set to zero; neither the network nor the energy depends on them."""
    return {"spins": spins, "temperatures": np.zeros(len(spins))}


def network(config: ExperimentConfig) -> Any:
    """The network of this project, with its initial weights."""
    from engine.machine.seeds import seed_everything
    from model import create_network

    seed_everything(config.seed)
    return create_network(config.model, config.data.lattice_size)


def torch_predictor(model: Any) -> Callable[[Spins], Floats]:
    """Predictions of a network of torch."""
    import torch

    def predict(spins: Spins) -> Floats:
        model.eval()
        with torch.no_grad():
            return torch.cat([model(part) for part in torch.split(torch.from_numpy(spins), 4096)]).numpy()

    return predict


def adamw(model: Any, config: ExperimentConfig, **options: Any) -> Any:
    import torch

    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.train.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.train.lr, betas=betas(config), **options)


def betas(config: ExperimentConfig) -> tuple[float, float]:
    first, second = config.train.betas or (0.9, 0.999)
    return first, second


def steps_per_epoch(config: ExperimentConfig) -> int:
    assert config.data.num_train is not None
    return math.ceil(config.data.num_train / config.train.batch_size)


def factors(config: ExperimentConfig) -> list[float]:
    """The learning rate of every step, as a fraction of the peak."""
    from trainer import lr_factor

    warmup, total = (n * steps_per_epoch(config) for n in (config.train.warmup_epochs, config.train.epochs))
    return [lr_factor(config.train.scheduler, step, total, warmup) for step in range(total)]


def run_loop(bench: Bench) -> None:
    """The loop of most tutorials: DataLoader, default AdamW, a scheduler; loss.item() is called at every step."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    config = bench.config
    model = network(config)
    optimizer = adamw(model, config)
    rates = [*factors(config), 0.0]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates.__getitem__)
    for _ in range(config.train.epochs):
        dataset = TensorDataset(*map(torch.from_numpy, bench.epoch()))
        model.train()
        total = 0.0
        for spins, targets in DataLoader(dataset, batch_size=config.train.batch_size, shuffle=True):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(spins), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        bench.end(torch_predictor(model))


def run_resident(bench: Bench, *, fused: bool = False) -> None:
    """No DataLoader: one shuffled copy per epoch, with batches as views of it. The loss stays a tensor."""
    import torch

    config = bench.config
    model = network(config)
    optimizer = adamw(model, config, fused=fused)
    size, rates = config.train.batch_size, iter(factors(config))
    for _ in range(config.train.epochs):
        spins, targets = map(torch.from_numpy, bench.epoch())
        model.train()
        order = torch.randperm(len(targets))
        total = torch.zeros(())
        for batch_spins, batch_targets in zip(
            torch.split(spins[order], size), torch.split(targets[order], size), strict=True
        ):
            rate = config.train.lr * next(rates)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(batch_spins), batch_targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach()
        bench.end(torch_predictor(model))


def run_fused(bench: Bench) -> None:
    """As run_resident, and the optimiser updates each group of parameters in one operation."""
    run_resident(bench, fused=True)


def run_ours(bench: Bench, *, compiled: bool = False) -> None:
    """The trainer of this project, without its validation."""
    from dataclasses import replace

    import torch

    from engine.learning.prediction import build_model
    from engine.machine.hardware import choose_num_threads
    from problem import PROBLEM
    from trainer import Trainer

    config = replace(bench.config, compile=compiled)
    assert not config.train.fresh  # the trainer would generate data of its own
    for epoch in range(1, config.train.epochs + 1):
        spins, _ = bench.epoch()
        if epoch == 1:
            model = build_model(PROBLEM, config, columns(spins))
            torch.set_num_threads(choose_num_threads(model, config.train.batch_size, spins[0].size))
            trainer = Trainer(PROBLEM, config, model, columns(spins), columns(spins[:1]))
        trainer.epoch = epoch
        trainer.train_epoch()
        bench.end(torch_predictor(model.network))


def run_compiled(bench: Bench) -> None:
    """The trainer of this project with --compile."""
    run_ours(bench, compiled=True)


def run_lightning(bench: Bench) -> None:
    """PyTorch Lightning, without its logging and checkpoints."""
    import logging
    import warnings

    import lightning
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    config = bench.config
    rates = [*factors(config), 0.0]

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = network(config)

        def train_dataloader(self) -> Any:
            dataset = TensorDataset(*map(torch.from_numpy, bench.epoch()))
            return DataLoader(dataset, batch_size=config.train.batch_size, shuffle=True)

        def training_step(self, batch: Any, _: int) -> Any:
            return torch.nn.functional.mse_loss(self.model(batch[0]), batch[1])

        def on_train_epoch_end(self) -> None:
            bench.end(torch_predictor(self.model))
            self.model.train()

        def configure_optimizers(self) -> Any:
            optimizer = adamw(self.model, config)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates.__getitem__)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"max_epochs": config.train.epochs, "accelerator": "cpu", "reload_dataloaders_every_n_epochs": 1}
    lightning.Trainer(**options, **off).fit(Module())


def run_sklearn(bench: Bench) -> None:
    """MLPRegressor.partial_fit, which trains for one epoch. It has no dropout, no SiLU and no schedule for Adam."""
    from sklearn.neural_network import MLPRegressor

    config = bench.config
    first, second = betas(config)
    options = {"beta_1": first, "beta_2": second, "batch_size": config.train.batch_size, "random_state": config.seed}
    activation = config.model.activation if config.model.activation in ("relu", "tanh") else "relu"
    model = MLPRegressor(
        hidden_layer_sizes=config.model.hidden,
        activation=activation,
        alpha=0.0,
        learning_rate_init=config.train.lr,
        **options,
    )

    def flat(spins: Spins) -> NDArray[np.float32]:
        return spins.reshape(len(spins), -1).astype(np.float32)

    for _ in range(config.train.epochs):
        spins, targets = bench.epoch()
        model.partial_fit(flat(spins), targets)
        bench.end(lambda spins: np.asarray(model.predict(flat(spins))))


def run_jax(bench: Bench) -> None:
    """JAX and optax, with each epoch in one compiled scan."""
    import jax
    import jax.numpy as jnp
    import optax

    from model import ACTIVATIONS, activation_gain

    config = bench.config
    size, steps, n, dropout = (
        config.train.batch_size,
        steps_per_epoch(config),
        config.data.num_train,
        config.model.dropout,
    )
    assert n is not None
    activation = {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "relu": jax.nn.relu, "silu": jax.nn.silu}[
        config.model.activation
    ]
    rates = jnp.asarray(factors(config)) * config.train.lr

    def apply(weights: Any, x: Any, key: Any = None) -> Any:
        x = x.reshape(len(x), -1).astype(jnp.float32)
        for k, (w, b) in enumerate(weights):
            x = x @ w + b
            if k < len(weights) - 1:
                x = activation(x)
                if key is not None and dropout > 0:
                    key, own = jax.random.split(key)
                    x = jnp.where(jax.random.bernoulli(own, 1 - dropout, x.shape), x / (1 - dropout), 0)
        return x[:, 0]

    optimizer = optax.adamw(
        lambda step: rates[step],
        *betas(config),
        weight_decay=config.train.weight_decay,
        mask=lambda weights: jax.tree.map(lambda p: p.ndim > 1, weights),
    )

    def loss_of(weights: Any, x: Any, y: Any, in_batch: Any, key: Any) -> Any:
        return jnp.sum(in_batch * (apply(weights, x, key) - y) ** 2) / jnp.sum(in_batch)

    @jax.jit  # type: ignore[untyped-decorator]
    def epoch(state: Any, spins: Any, targets: Any, key: Any) -> Any:
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

    gain = activation_gain(ACTIVATIONS[config.model.activation]())
    key, weights = jax.random.PRNGKey(config.seed), []
    for k, (n_in, n_out) in enumerate(pairwise([config.data.lattice_size**2, *config.model.hidden, 1])):
        key, own = jax.random.split(key)
        scale = config.model.initial_scale * (gain if k else 1.0) / math.sqrt(n_in)
        weights.append((scale * jax.random.normal(own, (n_in, n_out)), jnp.zeros(n_out)))
    state = (weights, optimizer.init(weights))
    predict = jax.jit(apply)
    edge = config.data.lattice_size
    epoch(state, np.ones((n, edge, edge), np.int8), np.zeros(n, np.float32), key)  # compiles it

    def predict_with(weights: Any, spins: Spins) -> Floats:
        return np.asarray(predict(weights, spins))

    for _ in range(config.train.epochs):
        key, own = jax.random.split(key)
        spins, targets = bench.epoch()
        state, losses = epoch(state, spins, targets, own)
        losses.block_until_ready()
        bench.end(partial(predict_with, state[0]))


# First the improvements of this project over a usual loop, one by one; then the others. The names are keys in
# results/training.json.
COMPETITORS: dict[str, Callable[[Bench], None]] = {
    "DataLoader loop": run_loop,
    "+ resident data": run_resident,
    "+ fused AdamW": run_fused,
    "ours": run_ours,
    "ours, --compile": run_compiled,
    "Lightning": run_lightning,
    "scikit-learn": run_sklearn,
    "JAX, scanned epoch": run_jax,
}
