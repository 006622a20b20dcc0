# Shared: keep, and edit freely; every edit takes effect.
"""The training loop: optimiser, schedule, early stopping, the best weights, and resuming a stopped run.

`Trainer.step` updates the weights with one batch. You can change it freely: its code runs as written.

The global random generators of torch, NumPy and Python are seeded at the start of every epoch, with a value derived
from the seed and the epoch. A resumed run therefore gives the same numbers as one that was not interrupted, and the
state of the generators need not be saved. If you need random numbers, take them from these generators. Those of torch
differ between the processes of a run, so that each has its own dropout masks.
"""

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.datasets.splits import examples_of_epoch
from engine.interface.base_config import ADAM, Config, TrainConfig
from engine.interface.base_problem import Columns, Problem
from engine.interface.returned_values import plain
from engine.learning.distributed import SINGLE_PROCESS, Group
from engine.learning.light_optimizers import without_compiler
from engine.learning.prediction import Examples, evaluate, example_losses, prepare
from engine.learning.standardized import Standardized
from engine.machine.errors import DivergedError, ProblemError, UnusableFileError
from engine.run_folder.null_logger import NullLogger
from utils import derive_seed, seed_everything

# The choices of --optimizer and --scheduler. To add one, add a line between the braces, and its name to Optimizer or
# Scheduler in engine/interface/base_config.py, which does not load torch. An optimiser is a class of torch.optim or
# your own; a schedule is a function of the progress.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),  # fused: one operation for all parameters of a group
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
}
# The learning rate after the warm-up, as a fraction of --lr. The progress runs from 0 to just below 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "none": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "step": lambda progress: 0.1 ** int(3 * progress),
}


def lr_factor(scheduler: str, step: int, total_steps: int, warmup_steps: int) -> float:
    """The learning rate at a step, as a fraction of the peak: a linear rise, then the schedule. Steps count from 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return SCHEDULES[scheduler]((step - warmup_steps) / (total_steps - warmup_steps))


def create_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Create the optimiser of a config. Weight decay applies to matrices, not to biases and normalisation layers.

    It has all parameters. Frozen ones have no gradient, and are not changed until they are released.
    """
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    create = without_compiler(OPTIMIZERS[config.optimizer])  # the same optimiser, without loading torch.compile
    options = {"betas": config.betas} if config.betas and config.optimizer in ADAM else {}
    try:
        optimizer = create(groups, lr=config.lr, **options)
    except (TypeError, ValueError) as error:  # for example, LBFGS has only one group of parameters, and Muon no biases
        raise ProblemError(f"--optimizer {config.optimizer}: {error}: change create_optimizer in trainer.py") from None
    for param_group in optimizer.param_groups:
        param_group["initial_lr"] = param_group["lr"]  # the peak of the schedule, which may differ between groups
    return optimizer


def random_order(n: int, seed: int, epoch: int) -> Tensor:
    """A random permutation of n examples, (n,) int64. It only depends on the arguments."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(seed, epoch)))


class Trainer:
    """Trains the network of a model on the device of the model.

    In a notebook, where nothing is written to files:

        data = load_data(problem, config)                       # from engine.datasets.splits
        model = build_model(problem, config, data.train)        # from engine.learning.prediction
        history = Trainer(problem, config, model, data.train, data.val).fit()

    Args:
        problem, config: what to train, and how.
        model: the network with its scales (engine/learning/prediction.py). The network is trained in place.
        train, val: the training data, and the validation data that determine the best epoch. The same in all processes.
        logger: shows one row of metrics per epoch, and saves the state.
        group: the processes that train together. Each of them takes a shard of every batch.
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
        group: Group = SINGLE_PROCESS,
    ) -> None:
        self.problem, self.config, self.model, self.group = problem, config, model, group
        self.network, self.logger = model.network, logger or NullLogger()
        self.train, self.val = (prepare(problem, config, model, columns) for columns in (train, val))
        self.optimizer = create_optimizer(self.network, config.train)
        self.forward: Callable[..., Tensor] = self.network
        if config.compile:  # fallback_random: the same random numbers as without compilation
            self.forward = torch.compile(self.network, dynamic=False, options={"fallback_random": True})
        self.rates = [param_group["lr"] for param_group in self.optimizer.param_groups]  # as the trainer last set them
        self.epoch = 0  # the current one, counted from 1; 0 before the first
        self.n_steps = 0  # of the optimiser, in all epochs
        self.total_steps, self.warmup_steps = map(self.steps_until, (config.train.epochs, config.train.warmup_epochs))
        self.history: list[dict[str, float]] = []  # one row of metrics per completed epoch
        self.best_epoch, self.best_loss = 0, math.inf  # the one with the lowest validation loss, and that loss
        self.best_weights: dict[str, Any] = {}

    def fit(self) -> list[dict[str, float]]:
        """Train until the last epoch, or until the patience runs out. Then load the best weights into the model.

        Returns:
            The history: one row of metrics per epoch, including the epochs before a `restore`.

        Raises:
            DivergedError: a loss is infinite or not a number. The history ends with the epoch before.
        """
        while not self.config.train.is_over(self.epoch, self.best_epoch):
            self.epoch += 1
            train_loss = self.train_epoch()
            self.group.synchronize(self.network, self.epoch)
            metrics, _ = evaluate(self.problem, self.config, self.model, self.val, self.group)
            if not math.isfinite(train_loss + metrics["loss"]):
                raise DivergedError(
                    f"the loss is not finite in epoch {self.epoch} (training {train_loss:g}, "
                    f"validation {metrics['loss']:g}): lower --lr, or set --grad-clip or --warmup-epochs"
                )
            row = {
                "epoch": self.epoch,
                "step": self.n_steps,
                "train_loss": train_loss,
                **{f"val_{name}": value for name, value in metrics.items()},
                "learning_rate": self.rates[0],  # of the last step
            }
            self.history.append(plain("the row of an epoch", row))
            if metrics["loss"] < self.best_loss:
                self.best_loss, self.best_epoch = metrics["loss"], self.epoch
                self.best_weights = copy.deepcopy(self.model.state_dict())
            self.logger.log_state(self.state())  # first, so that a run can be resumed from every epoch that is shown
            self.logger.log_epoch(self.history[-1])
        self.logger.flush()
        self.model.load_state_dict(self.best_weights)
        return self.history

    def train_epoch(self) -> float:
        """Train with every example once, in an order that depends on the seed and the epoch. Return the mean loss."""
        train = self.examples()
        self.network.train()  # switches dropout on
        # Each rank has its own dropout masks. 1 + rank, because a key that ends in 0 gives the seed of the shuffling.
        seed_everything(derive_seed(self.config.seed, self.epoch, 1 + self.group.rank))
        # The data are shuffled once per epoch, on the device. Each batch is then a view, which takes no time to make.
        n = len(train.targets)
        order = random_order(n, self.config.seed, self.epoch).to(train.targets.device)
        columns = [tensor[order] for tensor in (*train.inputs, train.targets)]
        batches = zip(*(torch.split(column, self.batch_size(self.epoch)) for column in columns), strict=True)
        total = torch.zeros((), device=order.device)
        for batch in batches:
            self.set_rates(self.factor_at(self.n_steps))
            *inputs, targets = self.group.shard_batch(batch)  # the shard of this process; all of it in a single process
            total.add_(self.step(tuple(inputs), targets), alpha=len(batch[0]))
            self.n_steps += 1
        return total.item() / n  # .item() waits for the device, so it is called only once per epoch

    def examples(self) -> Examples:
        """The training examples of this epoch, which --fresh generates."""
        columns = examples_of_epoch(self.problem, self.config, self.epoch, self.train.columns)
        is_new = columns is not self.train.columns
        return prepare(self.problem, self.config, self.model, columns) if is_new else self.train

    def batch_size(self, epoch: int) -> int:
        """The number of examples in a batch of an epoch, counted from 1. The steps and the schedule follow from it."""
        return self.config.train.batch_size

    def steps_until(self, epoch: int) -> int:
        """The number of steps in the first epochs, up to and with this one."""
        n = len(self.train.targets)
        return sum(math.ceil(n / self.batch_size(each)) for each in range(1, epoch + 1))

    def step(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Update the weights with one batch: inputs, each (B, ...), and targets (B, ...), in scaled units.

        If you change the loss here, `train_loss` changes, but not `val_loss`. After every `backward`, average the
        gradients of all processes, as below.

        Returns:
            The mean loss as a tensor on the device. Do not read its value here: the program would wait at every step.
        """
        self.optimizer.zero_grad()
        loss = example_losses(self.problem, self.config, self.forward(*inputs), targets).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        # The mean over all processes, of the loss and of the gradients. With a single process, this changes nothing.
        loss = self.group.average(loss.detach(), self.network.parameters(), len(targets))
        if self.config.train.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.train.grad_clip)
        self.optimizer.step()
        return loss

    def factor_at(self, step: int) -> float:
        """The learning rate at a step, counted from 0, as a fraction of the peak.

        It may also depend on epochs (`steps_until`), and on `self.history`, which a resumed run has, too. A factor
        times the result of lr_factor keeps --scheduler and --warmup-epochs.
        """
        return lr_factor(self.config.train.scheduler, step, self.total_steps, self.warmup_steps)

    def set_rates(self, factor: float) -> None:
        """Set the learning rate of each group of parameters, as a fraction of its peak.

        Raises:
            ProblemError: other code has changed a rate, which would have no effect.
        """
        groups = self.optimizer.param_groups
        for param_group, rate in zip(groups, self.rates, strict=False):  # there may be new groups
            if param_group["lr"] != rate:
                raise ProblemError(
                    f"the learning rate was changed from {rate} to {param_group['lr']} by code other than the "
                    "trainer's, which sets it before every step: change factor_at, or add a line to SCHEDULES"
                )
        for param_group in groups:
            param_group["lr"] = param_group.setdefault("initial_lr", param_group["lr"]) * factor
        self.rates = [param_group["lr"] for param_group in groups]

    def state(self) -> dict[str, Any]:
        """The state after a completed epoch, from which training can be continued.

        If you add something to the trainer that --resume needs, add it here and to `restore`. It may consist of
        tensors, numbers, strings, lists and dictionaries.
        """
        return {
            "epoch": self.epoch,
            "n_steps": self.n_steps,
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
            UnusableFileError: the weights do not fit the network.
        """
        try:
            self.model.load_state_dict(state["weights"])
        except RuntimeError:
            raise UnusableFileError(
                "the checkpoint does not fit this network, whose code has changed: restore it, or start another run"
            ) from None
        # The scales of the model are now those of the checkpoint, which --init-from may have taken from another run.
        self.train, self.val = (
            prepare(self.problem, self.config, self.model, each.columns) for each in (self.train, self.val)
        )
        saved = copy.deepcopy(state["optimizer"])
        if len(saved["param_groups"]) != len(self.optimizer.param_groups):
            raise UnusableFileError(
                "the checkpoint does not fit this optimiser, whose parameter groups have changed: restore its code, or "
                "start another run"
            )
        for param_group, now in zip(saved["param_groups"], self.optimizer.state_dict()["param_groups"], strict=True):
            # The learning rate and the other options come from the config, and only the moments from the checkpoint.
            param_group |= {name: now[name] for name in (*self.optimizer.defaults, "initial_lr")}
        self.optimizer.load_state_dict(saved)
        self.epoch, self.history = state["epoch"], list(state["rows"])
        self.n_steps = state.get("n_steps", self.steps_until(self.epoch))  # earlier versions did not save it
        self.best_epoch, self.best_loss = state["best_epoch"], state["best_loss"]
        self.best_weights = state["best_weights"]
