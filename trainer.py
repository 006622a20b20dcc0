"""The training loop: optimiser, schedule, early stopping, the best weights, going on where a run was cut off.

The trainer is handed what it works on, and knows nothing of lattices or architectures. Its unit of time is the
optimiser step. All that is random in an epoch is a function of (seed, epoch), so that no generator has to be saved.
"""

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from config import ExperimentConfig, TrainConfig
from graphs import Step, repeated
from logger import RunLogger
from processes import ALONE, Group
from task import Examples, Task, evaluate
from utils import DivergedError, seed_everything

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}


def spare_the_compiler() -> None:
    """Have torch.optim do without torch.compile, which it otherwise loads (1.5 s) to tell it to keep out."""
    for name in ("add_param_group", "state_dict", "load_state_dict"):
        setattr(torch.optim.Optimizer, name, inspect.unwrap(getattr(torch.optim.Optimizer, name)))
    for kind in (torch.optim.Adam, torch.optim.SGD):  # AdamW takes the steps of Adam
        kind.step = torch.no_grad()(inspect.unwrap(kind.step))  # type: ignore[method-assign]


spare_the_compiler()

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


def flatten(model: nn.Module) -> tuple[list[nn.Parameter], nn.Parameter, nn.Parameter, Tensor]:
    """Lay the parameters of a model side by side, so that what concerns them all is a single operation.

    Returns:
        parameters: the model's, matrices before vectors, which have become views of the next two.
        matrices, vectors: all weight matrices, and all biases and norms, flat.
        sums: room for the gradients of all parameters in this order, and in the last place for the loss.
    """
    parameters = sorted(model.parameters(), key=lambda p: p.ndim <= 1)
    weights = nn.utils.parameters_to_vector(parameters).detach()
    nn.utils.vector_to_parameters(weights, parameters)
    sums = torch.zeros(len(weights) + 1, device=weights.device)
    n_matrices = sum(p.numel() for p in parameters if p.ndim > 1)
    matrices, vectors = (nn.Parameter(part) for part in weights.tensor_split([n_matrices]))
    matrices.grad, vectors.grad = sums[:-1].tensor_split([n_matrices])
    return parameters, matrices, vectors, sums


def create_optimizer(matrices: nn.Parameter, vectors: nn.Parameter, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a config, which decays matrices and leaves biases and norms alone."""
    groups = [
        {"params": [matrices], "weight_decay": config.weight_decay},
        {"params": [vectors], "weight_decay": 0.0},
    ]
    # A step that is repeated as it was (graphs.py) keeps its numbers: those that change have to be tensors.
    device = matrices.device
    rate = torch.tensor(config.lr, device=device, dtype=torch.float64 if device.type == "cpu" else torch.float32)
    capturable = {"capturable": True} if device.type == "cuda" and config.optimizer != "sgd" else {}
    return OPTIMIZERS[config.optimizer](groups, lr=rate, fused=True, **capturable)


def is_over(config: TrainConfig, epoch: int, best_epoch: int) -> bool:
    """Whether training ends after an epoch: the last, or the one in which the patience runs out."""
    return epoch >= config.epochs or (config.patience is not None and epoch - best_epoch >= config.patience)


class FitResult(NamedTuple):
    best_epoch: int  # of the lowest validation loss; its weights are in the model
    epochs_trained: int


class Trainer:
    """Trains a model on examples that lie on its device.

    Args:
        model: takes spins (B, L, L) int8 and temperatures (B,), answers (B,); trained in place.
        task: gives loss and metrics.
        config: the experiment, of which training, seed and compile count here.
        train, val: what to fit, and what chooses the best epoch; the same in all processes.
        logger: is handed a row of numbers an epoch, and what has to be kept.
        group: the processes that share the work, each with a part of every batch.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        config: ExperimentConfig,
        *,
        train: Examples,
        val: Examples,
        logger: RunLogger,
        group: Group = ALONE,
    ) -> None:
        self.model, self.task, self.config, self.logger = model, task, config, logger
        self.train, self.val, self.group = train, Examples(*map(group.part, val)), group
        self.parameters, matrices, vectors, self.sums = flatten(model)
        self.gradient, self.loss = self.sums[:-1], self.sums[-1]
        self.total, self.watch = self.sums.new_zeros(2)  # of an epoch: the loss, and whatever must be finite
        self.optimizer = create_optimizer(matrices, vectors, config.train)
        self.full_loss = compiled(self._loss) if config.compile else self._loss  # for batches that are full
        self.full_step = self._prepared_step()
        self.steps_per_epoch = math.ceil(len(train.spins) / config.train.batch_size)
        self.epoch, self.best_epoch, self.best_loss = 0, 0, math.inf
        self.best_weights: dict[str, Any] = {}

    def fit(self) -> FitResult:
        """Train to the last epoch, or until the patience is out, and leave the best weights in the model.

        Raises:
            DivergedError: a loss or a gradient is infinite or not a number; the weights are those before it.
        """
        while not is_over(self.config.train, self.epoch, self.best_epoch):
            epoch = self.epoch + 1
            train_loss = self.train_epoch(epoch)
            metrics = evaluate(self.model, self.task, self.val, self.group.add_up)
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
                    "learning_rate": self.learning_rate(epoch * self.steps_per_epoch - 1),  # of the last step taken
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
        """All that the rest of the training depends on, after a whole epoch: tensors and plain values."""
        return {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "best_weights": self.best_weights,
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be where a trainer was whose `state` this is; of its options, the number of epochs may differ."""
        self.epoch, self.best_epoch, self.best_loss = state["epoch"], state["best_epoch"], state["best_loss"]
        self.best_weights = state["best_weights"]
        self.model.load_state_dict(state["weights"])
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
        """Take every training example once, in an order that is a function of (seed, epoch); return the mean loss.

        It is not a number if any loss or gradient was not finite.
        """
        self.model.train()
        seed_everything(stream(self.config.seed, epoch, 1 + self.group.rank))  # of dropout
        # One shuffled copy an epoch, on the device: a batch is then a view, and there is nothing to load.
        order = shuffled(len(self.train.spins), self.config.seed, epoch).to(self.sums.device)
        examples = Examples(*(part[order] for part in self.train))
        self.total.zero_()
        self.watch.zero_()
        size = self.config.train.batch_size
        batches = zip(*(torch.split(part, size) for part in examples), strict=True)
        for step, batch in enumerate(batches, start=(epoch - 1) * self.steps_per_epoch):
            self.optimizer.param_groups[0]["lr"].fill_(self.learning_rate(step))  # the groups share it
            take_step = self.full_step if len(batch[0]) == size else self._step
            take_step(*batch)
        # The first numbers that are read in this epoch: to read one is to wait for the device.
        return self.total.item() / len(order) if math.isfinite(self.watch.item()) else math.nan

    def _loss(self, spins: Tensor, temperatures: Tensor, targets: Tensor) -> Tensor:
        return self.task.loss(self.model(spins, temperatures), targets)

    def _step(self, *batch: Tensor) -> None:
        """Change the weights by what one batch says, unless that is not finite. Reads no number from the device."""
        n = len(batch[0])
        part = Examples(*map(self.group.part, batch))
        if len(part.targets) > 0:
            loss_of = self.full_loss if n == self.config.train.batch_size else self._loss
            loss = loss_of(*part)
            gradients = torch.autograd.grad(loss, self.parameters)
            torch.cat([each.flatten() for each in (*gradients, loss.detach())], out=self.sums)
        else:  # the last batch of an epoch is smaller than the group
            self.sums.zero_()
        if self.group.size > 1:
            self.group.add_up(self.sums.mul_(len(part.targets) / n))
        if self.config.train.grad_clip is not None:
            self.gradient.mul_((self.config.train.grad_clip / self.gradient.norm()).clamp_(max=1))
        self.total.add_(self.loss, alpha=n)
        self.watch.add_(self.sums.sum())
        # GradScaler's way to have a fused optimiser skip an update: where this is 1. Infinity minus infinity is
        # no number, and what is none stays so: the first such sum stops all later updates as well.
        self.optimizer.found_inf = (self.watch - self.watch).ne_(0)  # type: ignore[attr-defined]
        self.optimizer.step()

    def _prepared_step(self) -> Step:
        """The step for full batches."""
        # Compiled code on the CPU is no list of operations; and sums over processes wait for one another.
        as_it_is = self.group.size > 1 or (self.config.compile and self.sums.is_cpu)
        return self._step if as_it_is else repeated(self._step, self.sums.device)


def compiled(loss_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function of batches of one shape, compiled, with the same random numbers."""
    from torch._inductor import config as inductor

    inductor.fallback_random = True
    return torch.compile(loss_of, dynamic=False)


# Multiplications in the largest layer of a small step: below, a second thread saves next to nothing for a whole core.
SMALL = 2**21


def fitting_threads(model: nn.Module, batch_size: int, n_sites: int) -> int:
    """As many CPU threads as torch would take, but one for steps so small that others only get in the way."""
    # A matrix is used once a configuration, a convolution's four-dimensional kernel at each site.
    largest = batch_size * max(p.numel() * (n_sites if p.ndim > 2 else 1) for p in model.parameters())
    return 1 if largest < SMALL else torch.get_num_threads()


def stream(*key: int) -> int:
    """A seed for torch that is as good as independent of that of any other key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of n examples that depends on nothing but its arguments: (n,) int64."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(stream(seed, epoch)))
