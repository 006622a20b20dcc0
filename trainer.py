"""The training loop: optimiser, schedule, early stopping, the best weights, and resuming a stopped run.

`Trainer.step` makes one update with a batch. Change it as you like: it runs as it is written, unless you ask for
--replay (docs/replay.md). At the beginning of every epoch, the global random generators of torch, NumPy and Python are
seeded with a function of (seed, epoch), so that no state of a generator needs to be saved. If you need random numbers,
take them from these generators. A resumed run is then the same as one that was not interrupted.
"""

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.compiler import compiled, without_compiler
from engine.config import Config, TrainConfig
from engine.distributed import ALONE, Group
from engine.errors import DivergedError, UnusableFileError
from engine.prediction import Standardized, evaluate, example_losses, prepare
from engine.problem import Columns, Problem, plain
from engine.replay import Replay, Step
from logger import NullLogger
from utils import derive_seed, seed_everything

# The choices of --optimizer and --scheduler. To add one, add a line between the braces: a class of torch.optim or one
# of your own, defined above, or a function of the progress. --help reads the names from this file without running it.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),  # fused: one operation for all parameters of a group
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
}
# The learning rate after the warm-up as a share of --lr; progress runs from 0 to just below 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "none": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "step": lambda progress: 0.1 ** int(3 * progress),
}


def lr_factor(scheduler: str, step: int, total_steps: int, warmup_steps: int) -> float:
    """The learning rate at a step, counted from 0, as a share of the peak: a linear rise, then the schedule."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return SCHEDULES[scheduler]((step - warmup_steps) / (total_steps - warmup_steps))


def create_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a config, with weight decay for matrices and none for biases and norms."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    create = without_compiler(OPTIMIZERS[config.optimizer])  # the same optimiser, which starts faster
    optimizer = create(groups, lr=config.lr)
    for options in optimizer.param_groups:
        options["initial_lr"] = options["lr"]  # the peak of the schedule; you can set another one for a group
    return optimizer


def is_over(config: TrainConfig, epoch: int, best_epoch: int) -> bool:
    """Whether training ends after an epoch: it is the last one, or the patience runs out."""
    return epoch >= config.epochs or (config.patience is not None and epoch - best_epoch >= config.patience)


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of n examples, a function of its arguments only: (n,) int64."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(seed, epoch)))


class Trainer:
    """Trains the network of a model, in its scaled units, on the model's device.

    In a notebook, without a folder:

        data = load_data(problem, config)                       # from engine.datasets
        model = build_network(problem, config, data.train)      # from engine.prediction
        history = Trainer(problem, config, model, data.train, data.val).fit()

    Args:
        problem, config: what to train, and how.
        model: its network is trained in place.
        train, val: the columns used to fit, and to choose the best epoch; the same in all processes.
        logger: shows a row of metrics per epoch, and saves the state.
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
        self.optimizer = create_optimizer(self.network, config.train)
        self.forward = compiled(self.network) if config.compile else self.network
        self.steps_per_epoch = math.ceil(len(self.train.targets) / config.train.batch_size)
        self.epoch = 0  # the current one, counted from 1
        self.history: list[dict[str, float]] = []  # a row of metrics per completed epoch
        self.best_epoch, self.best_loss = 0, math.inf  # the one with the lowest validation loss, and that loss
        self.best_weights: dict[str, Any] = {}

    def fit(self) -> list[dict[str, float]]:
        """Train until the last epoch, or until the patience runs out; leave the best weights in the model.

        Returns:
            The history: a row of metrics per epoch, those before a `restore` included.

        Raises:
            DivergedError: a loss is infinite or not a number. The history ends with the epoch before.
        """
        take_step = Replay(self) if self.config.replay else self.step  # the same numbers, faster: docs/replay.md
        while not is_over(self.config.train, self.epoch, self.best_epoch):
            self.epoch += 1
            train_loss = self.train_epoch(take_step)
            metrics, _ = evaluate(self.problem, self.config, self.model, self.val, self.group)
            # All processes go on with the numbers of the first one, so that they take the same decisions.
            metrics = self.group.broadcast(lambda metrics=metrics: metrics)  # type: ignore[misc]
            if not math.isfinite(train_loss + metrics["loss"]):
                raise DivergedError(
                    f"the loss is not finite in epoch {self.epoch} (training {train_loss:g}, "
                    f"validation {metrics['loss']:g}): lower --lr, or set --grad-clip or --warmup-epochs"
                )
            last_step = self.epoch * self.steps_per_epoch
            row = {
                "epoch": self.epoch,
                "step": last_step,
                "train_loss": train_loss,
                **{f"val_{name}": value for name, value in metrics.items()},
                "learning_rate": self.config.train.lr * self.lr_factor(last_step - 1),
            }
            self.history.append(plain("the row of an epoch", row))
            if metrics["loss"] < self.best_loss:
                self.best_loss, self.best_epoch = metrics["loss"], self.epoch
                self.best_weights = copy.deepcopy(self.model.state_dict())
            self.logger.log_state(self.state())  # before the row is shown: a run can be resumed from there
            self.logger.log_epoch(self.history[-1])
        self.logger.flush()
        self.model.load_state_dict(self.best_weights)
        return self.history

    def train_epoch(self, take_step: Step) -> float:
        """Use every training example once, in an order that is a function of (seed, epoch); return the mean loss."""
        self.network.train()
        seed_everything(derive_seed(self.config.seed, self.epoch, 1 + self.group.rank))  # of dropout
        # One shuffled copy per epoch, on the device: a batch is then a view, and nothing has to be loaded.
        n, size = len(self.train.targets), self.config.train.batch_size
        order = shuffled(n, self.config.seed, self.epoch).to(self.train.targets.device)
        examples = [tensor[order] for tensor in (*self.train.inputs, self.train.targets)]
        total = torch.zeros((), device=order.device)
        first_step = (self.epoch - 1) * self.steps_per_epoch
        for step, batch in enumerate(zip(*(torch.split(tensor, size) for tensor in examples), strict=True), first_step):
            factor = self.lr_factor(step)
            for options in self.optimizer.param_groups:
                options["lr"] = options["initial_lr"] * factor
            *inputs, targets = self.group.share(batch)  # the part of this process
            total.add_(take_step(tuple(inputs), targets), alpha=len(batch[0]))
        return total.item() / n  # the only number of an epoch for which the program waits

    def step(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Update the weights with one batch: inputs, each (B, ...), and targets (B, ...), in scaled units.

        What is added to the loss here is in `train_loss`, not in `val_loss`, which is that of the problem alone.

        Returns:
            The mean loss, a tensor on the device. Reading its value here would make the program wait at every step.
        """
        self.optimizer.zero_grad()
        loss = example_losses(self.problem, self.config, self.forward(*inputs), targets).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        loss = self.group.average(loss.detach(), self.network.parameters(), len(targets))  # of all processes
        if self.config.train.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.train.grad_clip)
        self.optimizer.step()
        return loss

    def lr_factor(self, step: int) -> float:
        """The learning rate of a step, counted from 0, as a share of the peak."""
        config, per_epoch = self.config.train, self.steps_per_epoch
        return lr_factor(config.scheduler, step, config.epochs * per_epoch, config.warmup_epochs * per_epoch)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on, after a completed epoch.

        Anything you add to the trainer that --resume needs goes here and into `restore`: tensors, numbers, words, and
        lists and dictionaries of these.
        """
        return {
            "epoch": self.epoch,
            "rows": self.history,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "best_weights": self.best_weights,
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of another trainer, which may have had another number of epochs.

        Raises:
            UnusableFileError: it is the state of another network.
        """
        try:
            self.model.load_state_dict(state["weights"])
        except RuntimeError:
            raise UnusableFileError(
                "the checkpoint does not fit this network, whose code has changed: restore it, or start another run"
            ) from None
        saved = copy.deepcopy(state["optimizer"])
        for options, now in zip(saved["param_groups"], self.optimizer.state_dict()["param_groups"], strict=True):
            options |= {name: now[name] for name in (*self.optimizer.defaults, "initial_lr")}  # those of the config
        self.optimizer.load_state_dict(saved)
        self.epoch, self.history = state["epoch"], list(state["rows"])
        self.best_epoch, self.best_loss = state["best_epoch"], state["best_loss"]
        self.best_weights = state["best_weights"]
