"""The training loop: optimiser, schedule, early stopping, the best weights, and resuming a stopped run.

The unit of time is the optimiser step. Everything random in an epoch is a function of (seed, epoch), so that no state
of a random generator has to be saved.
"""

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.config import Config, TrainConfig
from engine.distributed import ALONE, Group
from engine.errors import DivergedError, UnusableFileError
from engine.prediction import Standardized, evaluate, example_losses, prepare
from engine.problem import Columns, Problem
from engine.replay import Step, replayed
from logger import NullLogger
from utils import derive_seed, seed_everything

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}


def spare_the_compiler() -> None:
    """Keep torch.optim from loading torch.compile (1.5 s), which it only does to exclude itself from compilation."""
    for name in ("add_param_group", "state_dict", "load_state_dict"):
        setattr(torch.optim.Optimizer, name, inspect.unwrap(getattr(torch.optim.Optimizer, name)))
    for kind in (torch.optim.Adam, torch.optim.SGD):  # AdamW inherits the step of Adam
        kind.step = torch.no_grad()(inspect.unwrap(kind.step))  # type: ignore[method-assign]


spare_the_compiler()

# The factor of the peak rate after the warm-up, as a function of the progress from 0 to just below 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "none": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "step": lambda progress: 0.1 ** int(3 * progress),
}


def lr_factor(scheduler: str, step: int, total_steps: int, warmup_steps: int) -> float:
    """The factor of the peak learning rate at a step, counted from 0: a linear rise, then the schedule."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return SCHEDULES[scheduler]((step - warmup_steps) / (total_steps - warmup_steps))


def flatten(network: nn.Module) -> tuple[list[nn.Parameter], nn.Parameter, nn.Parameter, Tensor]:
    """Store the parameters of a network next to each other, so that an operation on all of them is a single one.

    Returns:
        parameters: those of the network, matrices before vectors. They become views of the next two.
        matrices, vectors: all weight matrices, and all biases and norms, flat.
        sums: storage for the gradients of all parameters in this order and, in the last place, for the loss.
    """
    parameters = sorted(network.parameters(), key=lambda p: p.ndim <= 1)
    weights = nn.utils.parameters_to_vector(parameters).detach()
    nn.utils.vector_to_parameters(weights, parameters)
    sums = torch.zeros(len(weights) + 1, device=weights.device)
    n_matrices = sum(p.numel() for p in parameters if p.ndim > 1)
    matrices, vectors = (nn.Parameter(part) for part in weights.tensor_split([n_matrices]))
    matrices.grad, vectors.grad = sums[:-1].tensor_split([n_matrices])
    return parameters, matrices, vectors, sums


def create_optimizer(matrices: nn.Parameter, vectors: nn.Parameter, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a config, with weight decay for matrices and none for biases and norms."""
    groups = [
        {"params": [matrices], "weight_decay": config.weight_decay},
        {"params": [vectors], "weight_decay": 0.0},
    ]
    # A replayed step (engine/replay.py) repeats its numbers: one that changes has to be a tensor.
    device = matrices.device
    rate = torch.tensor(config.lr, device=device, dtype=torch.float64 if device.type == "cpu" else torch.float32)
    capturable = {"capturable": True} if device.type == "cuda" and config.optimizer != "sgd" else {}
    return OPTIMIZERS[config.optimizer](groups, lr=rate, fused=True, **capturable)


def is_over(config: TrainConfig, epoch: int, best_epoch: int) -> bool:
    """Whether training ends after an epoch: it is the last one, or the patience runs out."""
    return epoch >= config.epochs or (config.patience is not None and epoch - best_epoch >= config.patience)


class FitResult(NamedTuple):
    """How training ended."""

    best_epoch: int  # of the lowest validation loss; the model has its weights
    epochs_trained: int


class Trainer:
    """Trains the network of a model, in its scaled units, on the model's device.

    Args:
        problem, config: what to train, and how.
        model: its network is trained in place.
        train, val: the columns to fit, and those that choose the best epoch; the same in all processes.
        logger: receives a row of metrics per epoch, and what has to be saved.
        group: the processes that share the work, each with a part of every batch.
    """

    def __init__(
        self,
        problem: Problem[Any],
        config: Config,
        model: Standardized,
        train: Columns,
        val: Columns,
        *,
        logger: NullLogger | None = None,
        group: Group = ALONE,
    ) -> None:
        self.problem, self.config, self.model, self.group = problem, config, model, group
        self.network, self.logger = model.network, logger or NullLogger()
        self.train, self.val = (prepare(problem, config, model, columns) for columns in (train, val))
        self.parameters, matrices, vectors, self.sums = flatten(self.network)
        self.gradient, self.loss = self.sums[:-1], self.sums[-1]
        self.total, self.watch = self.sums.new_zeros(2)  # of an epoch: the loss, and a sum of all that must be finite
        self.optimizer = create_optimizer(matrices, vectors, config.train)
        self.full_loss = compiled(self._loss) if config.compile else self._loss  # for full batches
        self.full_step = self._prepared_step()
        self.steps_per_epoch = math.ceil(len(self.train.targets) / config.train.batch_size)
        self.epoch, self.best_epoch, self.best_loss = 0, 0, math.inf
        self.best_weights: dict[str, Any] = {}

    def fit(self) -> FitResult:
        """Train until the last epoch, or until the patience runs out, and leave the best weights in the model.

        Raises:
            DivergedError: a loss or a gradient is infinite or not a number; the model has the weights before it.
        """
        while not is_over(self.config.train, self.epoch, self.best_epoch):
            epoch = self.epoch + 1
            train_loss = self.train_epoch(epoch)
            metrics, _ = evaluate(self.problem, self.config, self.model, self.val, self.group)
            metrics = self.group.broadcast(lambda metrics=metrics: metrics)  # type: ignore[misc]  # all decide alike
            if not math.isfinite(train_loss + metrics["loss"]):
                raise DivergedError(
                    f"loss or gradient is not finite in epoch {epoch} (validation loss {metrics['loss']:g}): "
                    "lower --lr, or set --grad-clip or --warmup-epochs"
                )
            self.epoch = epoch
            self.logger.log_epoch(
                {
                    "epoch": epoch,
                    "step": epoch * self.steps_per_epoch,
                    "train_loss": train_loss,
                    **{f"val_{name}": value for name, value in metrics.items()},
                    "learning_rate": self.learning_rate(epoch * self.steps_per_epoch - 1),  # of the last step
                }
            )
            if metrics["loss"] < self.best_loss:
                self.best_loss, self.best_epoch = metrics["loss"], epoch
                self.best_weights = copy.deepcopy(self.model.state_dict())
                self.logger.log_weights("best", epoch, self.best_weights)
            self.logger.log_checkpoint(self.state())
        self.model.load_state_dict(self.best_weights)
        return FitResult(self.best_epoch, self.epoch)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on, after a completed epoch: tensors and plain values."""
        return {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "best_weights": self.best_weights,
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of another trainer, whose options may differ in the number of epochs."""
        self.epoch, self.best_epoch, self.best_loss = state["epoch"], state["best_epoch"], state["best_loss"]
        self.best_weights = state["best_weights"]
        try:
            self.model.load_state_dict(state["weights"])
        except RuntimeError:
            raise UnusableFileError(
                "the checkpoint does not fit this network, whose code has changed: restore it, or start another run"
            ) from None
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self.full_step = self._prepared_step()  # the optimiser has other tensors now
        self.logger.log_weights("best", self.best_epoch, self.best_weights)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        per_epoch = self.steps_per_epoch
        total, warmup = self.config.train.epochs * per_epoch, self.config.train.warmup_epochs * per_epoch
        return self.config.train.lr * lr_factor(self.config.train.scheduler, step, total, warmup)

    def train_epoch(self, epoch: int) -> float:
        """Use every training example once, in an order that is a function of (seed, epoch); return the mean loss.

        The mean is not a number if any loss or gradient was not finite.
        """
        self.network.train()
        seed_everything(derive_seed(self.config.seed, epoch, 1 + self.group.rank))  # of dropout
        # One shuffled copy per epoch, on the device: a batch is then a view, and nothing has to be loaded.
        order = shuffled(len(self.train.targets), self.config.seed, epoch).to(self.sums.device)
        shuffled_tensors = [tensor[order] for tensor in (*self.train.inputs, self.train.targets)]
        self.total.zero_()
        self.watch.zero_()
        size = self.config.train.batch_size
        batches = zip(*(torch.split(tensor, size) for tensor in shuffled_tensors), strict=True)
        for step, batch in enumerate(batches, start=(epoch - 1) * self.steps_per_epoch):
            self.optimizer.param_groups[0]["lr"].fill_(self.learning_rate(step))  # both groups share it
            take_step = self.full_step if len(batch[0]) == size else self._step
            take_step(*batch)
        # The first numbers that are read in this epoch: reading one waits for the device.
        return self.total.item() / len(order) if math.isfinite(self.watch.item()) else math.nan

    def _loss(self, *batch: Tensor) -> Tensor:
        """The mean loss of a batch: the inputs, then the targets."""
        *inputs, targets = batch
        return example_losses(self.problem, self.config, self.network(*inputs), targets).mean()

    def _step(self, *batch: Tensor) -> None:
        """Update the weights with one batch, unless its loss or gradient is not finite. Reads no number."""
        n = len(batch[0])
        shard = tuple(map(self.group.shard, batch))
        if len(shard[0]) > 0:
            loss_of = self.full_loss if n == self.config.train.batch_size else self._loss
            loss = loss_of(*shard)
            gradients = torch.autograd.grad(loss, self.parameters)
            torch.cat([each.flatten() for each in (*gradients, loss.detach())], out=self.sums)
        else:  # the last batch of an epoch is smaller than the group
            self.sums.zero_()
        if self.group.size > 1:
            self.group.all_reduce(self.sums.mul_(len(shard[0]) / n))
        if self.config.train.grad_clip is not None:
            self.gradient.mul_((self.config.train.grad_clip / self.gradient.norm()).clamp_(max=1))
        self.total.add_(self.loss, alpha=n)
        self.watch.add_(self.sums.sum())
        # As GradScaler does: a fused optimiser skips the update where found_inf is 1. Infinity minus infinity is not a
        # number and stays so: the first sum that is not finite stops all later updates as well.
        self.optimizer.found_inf = (self.watch - self.watch).ne_(0)  # type: ignore[attr-defined]
        self.optimizer.step()

    def _prepared_step(self) -> Step:
        """The step for full batches."""
        # Code compiled for the CPU is not a list of operations, and sums over processes wait for each other.
        as_written = self.group.size > 1 or (self.config.compile and self.sums.is_cpu)
        return self._step if as_written else replayed(self._step, self.sums.device)


def compiled(loss_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function of batches of one shape, compiled, with the same random numbers."""
    from torch._inductor import config as inductor

    inductor.fallback_random = True
    return torch.compile(loss_of, dynamic=False)


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of n examples, a function of its arguments only: (n,) int64."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(seed, epoch)))
