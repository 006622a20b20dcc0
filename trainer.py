"""The training loop: optimiser, schedule, early stopping, the best weights.

The trainer is handed what it works on, and knows nothing of lattices or architectures. Its unit of time is the
optimiser step.
"""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from config import ExperimentConfig, TrainConfig
from logger import RunLogger
from task import EnergyTask, Examples, evaluate
from utils import DivergedError

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}

# After the warm-up: what the peak rate is multiplied by, as a function of the progress from 0 to (just below) 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "none": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "step": lambda progress: 0.1 ** int(3 * progress),
}


def lr_factor(scheduler: str, step: int, total_steps: int, warmup_steps: int) -> float:
    """The share of the peak learning rate at a step, counted from 0: a straight line up, then the schedule down."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return SCHEDULES[scheduler]((step - warmup_steps) / (total_steps - warmup_steps))


def create_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a config, which decays matrices and leaves biases and norms, which are vectors, alone."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return OPTIMIZERS[config.optimizer](groups, lr=config.lr, fused=True)


class FitResult(NamedTuple):
    best_epoch: int  # of the lowest validation loss; its weights are in the model
    epochs_trained: int


class Trainer:
    """Trains a model on examples that lie on its device.

    Args:
        model: takes spins (B, L, L) int8, answers (B,); trained in place.
        task: gives loss and metrics.
        config: the experiment, of which training and seed count here.
        train, val: what to fit, and what chooses the best epoch.
        logger: is handed a row of numbers an epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        task: EnergyTask,
        config: ExperimentConfig,
        *,
        train: Examples,
        val: Examples,
        logger: RunLogger,
    ) -> None:
        self.model, self.task, self.config = model, task, config
        self.train, self.val, self.logger = train, val, logger
        self.optimizer = create_optimizer(model, config.train)
        self.steps_per_epoch = math.ceil(len(train.spins) / config.train.batch_size)
        self.step = 0

    def fit(self) -> FitResult:
        """Train to the last epoch, or until the patience is out, and leave the best weights in the model. Call it once.

        Raises:
            DivergedError: a loss is infinite or not a number; nothing of that epoch is kept.
        """
        best_loss, best_epoch = math.inf, 0
        best_weights: dict[str, Any] = {}
        for epoch in range(1, self.config.train.epochs + 1):
            train_loss = self._train_epoch(epoch)
            metrics = evaluate(self.model, self.task, self.val)
            if not math.isfinite(train_loss + metrics["loss"]):
                raise DivergedError(
                    f"the loss is {train_loss} in training and {metrics['loss']} in validation after epoch {epoch}: "
                    "lower --lr, or set --grad-clip or --warmup-epochs"
                )
            self.logger.log_epoch(
                {
                    "epoch": epoch,
                    "step": self.step,
                    "train_loss": train_loss,
                    **{f"val_{name}": value for name, value in metrics.items()},
                    "learning_rate": self.learning_rate(self.step - 1),  # the one of the last step taken
                }
            )
            if metrics["loss"] < best_loss:
                best_loss, best_epoch = metrics["loss"], epoch
                best_weights = copy.deepcopy(self.model.state_dict())
                if self.config.log.checkpoints:
                    self.logger.log_weights("best", epoch, best_weights)
            elif self.config.train.patience is not None and epoch - best_epoch >= self.config.train.patience:
                break
        self.model.load_state_dict(best_weights)
        return FitResult(best_epoch, epoch)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        per_epoch = self.steps_per_epoch
        total, warmup = self.config.train.epochs * per_epoch, self.config.train.warmup_epochs * per_epoch
        return self.config.train.lr * lr_factor(self.config.train.scheduler, step, total, warmup)

    def _train_epoch(self, epoch: int) -> float:
        """Take every training example once, in an order that is a function of (seed, epoch); return the mean loss."""
        self.model.train()
        # One shuffled copy an epoch, on the device: a batch is then a view, and there is nothing to load.
        order = shuffled(len(self.train.spins), self.config.seed, epoch).to(self.train.spins.device)
        spins, targets = self.train.spins[order], self.train.targets[order]
        total = torch.zeros((), device=targets.device)
        size = self.config.train.batch_size
        for batch_spins, batch_targets in zip(torch.split(spins, size), torch.split(targets, size), strict=True):
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(self.step)
            loss = self.task.loss(self.model(batch_spins), batch_targets)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if self.config.train.grad_clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.grad_clip)
            self.optimizer.step()
            self.step += 1
            total += loss.detach() * len(batch_targets)  # stays on the device: reading it would wait for every batch
        return total.item() / len(targets)


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of n examples that depends on nothing but its arguments: (n,) int64."""
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.randperm(n, generator=torch.Generator().manual_seed(int(mixed)))
