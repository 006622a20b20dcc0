"""Changes that people make to the training step, and how --replay handles them.

python -m tests.engine.edits    writes the table in docs/replay.md

Each edit is a trainer with another `step`. It is run with and without replay. Without replay, the step runs as it is
written.
"""

import contextlib
import copy
import dataclasses
import io
import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from engine.datasets import get_splits
from engine.prediction import build_model, example_losses
from tests.conftest import ROOT
from tests.engine.training import TINY
from tests.toy import PROBLEM, ToyDataConfig
from trainer import OPTIMIZERS, Trainer

DOCUMENT = ROOT / "docs" / "replay.md"
CONFIG = dataclasses.replace(  # 20 steps in an epoch, all of which are full
    TINY,
    data=ToyDataConfig(num_train=640, num_val=50, num_test=1, cache=False),
    train=dataclasses.replace(TINY.train, scheduler="none"),
)


class Edited(Trainer):
    """A trainer with methods that edits override."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.noted: list[Any] = []  # numbers that the edit stores for the test
        self.prepare()

    def prepare(self) -> None:
        """Code that an edit adds to __init__."""

    def step(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """The step in trainer.py, with calls of the methods below."""
        self.clear_gradients()
        inputs, targets = self.changed_batch(inputs, targets)
        losses = example_losses(self.problem, self.config, self.forward(*inputs), targets)
        loss = self.changed_loss(losses)
        loss.backward()  # type: ignore[no-untyped-call]
        self.before_update()
        self.optimizer.step()
        return loss.detach()

    def clear_gradients(self) -> None:
        """Code that removes the gradients of the step before."""
        self.optimizer.zero_grad()

    def changed_batch(self, inputs: tuple[Tensor, ...], targets: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The batch to train on."""
        return inputs, targets

    def changed_loss(self, losses: Tensor) -> Tensor:
        """The loss of the batch, from the losses of its examples."""
        return losses.mean()

    def before_update(self) -> None:
        """Code that uses the gradients."""


class AddsGradients(Edited):
    def clear_gradients(self) -> None:
        pass


class AveragesGradients(Edited):
    def clear_gradients(self) -> None:
        for p in self.network.parameters():
            if p.grad is not None:
                p.grad.mul_(0.5)


class PrintsTheLoss(Edited):
    def changed_loss(self, losses: Tensor) -> Tensor:
        print(f"loss {losses.mean():.4f}")
        return losses.mean()


class CollectsTheLoss(Edited):
    def prepare(self) -> None:
        self.losses: list[Tensor] = []

    def changed_loss(self, losses: Tensor) -> Tensor:
        self.losses.append(losses.mean().detach())
        return losses.mean()


class CollectsNumbers(Edited):
    def changed_loss(self, losses: Tensor) -> Tensor:
        self.noted.append(losses.detach().numpy().max())
        return losses.mean()


class AddsTheLoss(Edited):
    def prepare(self) -> None:
        self.sum = torch.zeros(())

    def changed_loss(self, losses: Tensor) -> Tensor:
        self.sum += losses.mean().detach()
        return losses.mean()

    def train_epoch(self, *arguments: Any) -> float:
        mean = super().train_epoch(*arguments)
        self.noted.append(self.sum.item())
        return mean


class WeightByEpoch(Edited):
    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() * (0.5 + self.epoch)


class WeightByCalls(Edited):
    def prepare(self) -> None:
        self.n_calls = 0

    def changed_loss(self, losses: Tensor) -> Tensor:
        self.n_calls += 1
        return losses.mean() * (1 + 1 / self.n_calls)


class WeightByHiddenCalls(Edited):
    def prepare(self) -> None:
        self.calls = itertools.count(1)

    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() * (1 + 1 / next(self.calls))


class EverySeventh(Edited):
    def prepare(self) -> None:
        self.calls = itertools.count(1)

    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() * (2 if next(self.calls) % 7 == 0 else 1)


class EveryThousandth(WeightByCalls):
    def changed_loss(self, losses: Tensor) -> Tensor:
        self.n_calls += 1
        return losses.mean() * (2 if self.n_calls % 1000 == 0 else 1)


class HiddenEveryThousandth(EverySeventh):
    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() * (2 if next(self.calls) % 1000 == 0 else 1)


class SecondTerm(Edited):
    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() + 0.1 * sum(p.abs().sum() for p in self.network.parameters())


class IfLoss(Edited):
    def changed_loss(self, losses: Tensor) -> Tensor:
        loss = losses.mean()
        return loss * 0.5 if loss > 0.3 else loss


class IfTorch(Edited):
    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() * (0.5 if torch.rand(()) < 0.5 else 1)


class IfNumPy(Edited):
    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() * (0.5 if np.random.random() < 0.01 else 1)  # noqa: NPY002


class IfRandom(Edited):
    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() * (0.5 if random.random() < 0.01 else 1)


class IfGenerator(Edited):
    def prepare(self) -> None:
        self.rng = np.random.default_rng(0)

    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() * (0.5 if self.rng.random() < 0.5 else 1)


class RarelyIfGenerator(IfGenerator):
    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() * (0.5 if self.rng.random() < 0.004 else 1)


class Augments(Edited):
    def clear_gradients(self) -> None:
        """Code that removes the gradients of the step before."""
        self.optimizer.zero_grad()

    def changed_batch(self, inputs: tuple[Tensor, ...], targets: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        points, signs = inputs
        flip = torch.rand(len(points), 1) < 0.5
        return (torch.where(flip, points, -points), signs), targets


class AddsNoise(Edited):
    def prepare(self) -> None:
        self.generator = torch.Generator().manual_seed(1)

    def clear_gradients(self) -> None:
        """Code that removes the gradients of the step before."""
        self.optimizer.zero_grad()

    def changed_batch(self, inputs: tuple[Tensor, ...], targets: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        points, signs = inputs
        return (points + 0.1 * torch.randn(points.shape, generator=self.generator), signs), targets


class DropsByMask(Edited):
    def clear_gradients(self) -> None:
        """Code that removes the gradients of the step before."""
        self.optimizer.zero_grad()

    def changed_batch(self, inputs: tuple[Tensor, ...], targets: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        keep = torch.rand(len(targets)) < 0.5
        return tuple(x[keep] for x in inputs), targets[keep]


class DropsByWeight(Edited):
    def changed_loss(self, losses: Tensor) -> Tensor:
        keep = (torch.rand(len(losses)) < 0.5).float()
        return (keep * losses).sum() / keep.sum()


class NormOfGradients(Edited):
    def prepare(self) -> None:
        self.norms = torch.zeros(())

    def before_update(self) -> None:
        self.norms += nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])

    def train_epoch(self, *arguments: Any) -> float:
        mean = super().train_epoch(*arguments)
        self.noted.append(self.norms.item())
        return mean


class NormOfClipping(NormOfGradients):
    def before_update(self) -> None:
        self.norms += nn.utils.clip_grad_norm_(self.network.parameters(), 0.1)


class NormByAutograd(NormOfGradients):
    def before_update(self) -> None:
        pass

    def changed_loss(self, losses: Tensor) -> Tensor:
        gradients = torch.autograd.grad(losses.mean(), list(self.network.parameters()), retain_graph=True)
        self.norms += torch.cat([gradient.flatten() for gradient in gradients]).norm()
        return losses.mean()


class NormOutside(Edited):
    def train_epoch(self, take_step: Any) -> float:
        def watched(inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
            loss: Tensor = take_step(inputs, targets)
            self.noted.append([float(p.grad.norm()) for p in self.network.parameters() if p.grad is not None])
            return loss

        return super().train_epoch(watched)


class KeepsTheNorm(Edited):
    def before_update(self) -> None:
        self.norm = nn.utils.clip_grad_norm_(self.network.parameters(), 0.1)


class HookOnTheNetwork(Edited):
    def prepare(self) -> None:
        self.network.register_forward_hook(lambda *_: self.noted.append(1))


class HookOnAWeight(Edited):
    def prepare(self) -> None:
        next(self.network.parameters()).register_hook(lambda gradient: 2 * gradient)  # type: ignore[no-untyped-call]


class HookOnTheOptimiser(Edited):
    def prepare(self) -> None:
        self.optimizer.register_step_post_hook(lambda *_: self.noted.append(1))


class FreezesLater(Edited):
    def train_epoch(self, *arguments: Any) -> float:
        next(self.network.parameters()).requires_grad_(self.epoch < 3)
        return super().train_epoch(*arguments)


class AveragesWeights(Edited):
    def prepare(self) -> None:
        self.average = [p.detach().clone() for p in self.network.parameters()]

    def before_update(self) -> None:
        for average, p in zip(self.average, self.network.parameters(), strict=True):
            average.lerp_(p.detach(), 0.01)

    def train_epoch(self, *arguments: Any) -> float:
        mean = super().train_epoch(*arguments)
        self.noted.append([average.tolist() for average in self.average])
        return mean


class PrintsATensor(Edited):
    def changed_loss(self, losses: Tensor) -> Tensor:
        print(losses[:3])
        return losses.mean()


class LaterIfLoss(Edited):
    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() * (0.5 if self.epoch >= 3 and losses.mean() > 0.2 else 1)


class CountsInTheClass(Edited):
    calls = 0

    def prepare(self) -> None:
        type(self).calls = 0

    def changed_loss(self, losses: Tensor) -> Tensor:
        type(self).calls += 1
        return losses.mean() * (2 if type(self).calls % 50 == 0 else 1)


class ChangesTheRate(Edited):
    def factor_at(self, step: int) -> float:
        options = self.optimizer.param_groups[0]
        return float(options["lr"] / options["initial_lr"])  # keep the rate that the step has set

    def before_update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.99


class StepsAScheduler(ChangesTheRate):
    def prepare(self) -> None:
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 50)

    def before_update(self) -> None:
        pass

    def step(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        loss = super().step(inputs, targets)
        self.scheduler.step()
        return loss


class CountsOutside(Edited):
    def prepare(self) -> None:
        self.now = 0

    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() * (2 if self.now >= 50 else 1)

    def train_epoch(self, take_step: Any) -> float:
        def counted(inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
            self.now += 1
            loss: Tensor = take_step(inputs, targets)
            return loss

        return super().train_epoch(counted)


class SecondOptimiser(Edited):
    def prepare(self) -> None:
        self.scale = nn.Parameter(torch.ones(()))
        self.second = torch.optim.SGD([self.scale], lr=0.1)

    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() * self.scale + self.scale**2

    def before_update(self) -> None:
        self.second.step()
        self.second.zero_grad()

    def train_epoch(self, take_step: Any) -> float:
        def halved(inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
            loss: Tensor = take_step(inputs, targets)
            self.second.param_groups[0]["lr"] *= 0.99
            return loss

        mean = super().train_epoch(halved)
        self.noted.append(self.scale.item())
        return mean


class AveragesLater(Edited):
    def prepare(self) -> None:
        self.average = copy.deepcopy(self.network)

    def before_update(self) -> None:
        if self.epoch >= 2:
            for average, p in zip(self.average.parameters(), self.network.parameters(), strict=True):
                average.data.lerp_(p.detach(), 0.1)

    def train_epoch(self, *arguments: Any) -> float:
        mean = super().train_epoch(*arguments)
        self.noted.append([p.tolist() for p in self.average.parameters()])
        return mean


class UsesAProduct(Edited):
    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses.mean() + 0.1 * (1 + losses[:5]).prod()


class DropsTheWorst(Edited):
    def changed_loss(self, losses: Tensor) -> Tensor:
        return losses[(losses < losses.detach().median()).nonzero()[:, 0]].mean()


class CopiesWeights(Edited):
    def prepare(self) -> None:
        self.n_copies = torch.zeros(())

    def before_update(self) -> None:
        copy.deepcopy(self.network.state_dict())
        self.n_copies += 1

    def train_epoch(self, *arguments: Any) -> float:
        mean = super().train_epoch(*arguments)
        self.noted.append(self.n_copies.item())
        return mean


class HasOddTensors(Edited):
    def prepare(self) -> None:
        self.expanded = torch.ones(1).expand(5)
        self.sparse = torch.eye(3).to_sparse()
        self.flags = torch.tensor([True])
        with torch.inference_mode():
            self.inferred = torch.ones(2)


class CountsInItsState(torch.optim.SGD):
    """Halves the weights in every fiftieth step. The number of steps is a Python number in the state."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                n_steps = self.state[p]["n_steps"] = self.state[p].get("n_steps", 0) + 1
                if n_steps % 50 == 0:
                    p.mul_(0.5)


FUSED = OPTIMIZERS["adamw"]


class Edit(NamedTuple):
    """A description of a change, and a trainer with this change."""

    what: str
    trainer: type[Edited]
    training: dict[str, Any] = {}
    optimizer: Callable[..., torch.optim.Optimizer] = FUSED


EDITS = [
    Edit("nothing", Edited),
    Edit("a schedule of the learning rate", Edited, {"scheduler": "cosine"}),
    Edit("a second loss term, `+ 0.1 * sum(p.abs().sum() for p in ...)`", SecondTerm),
    Edit("augmentation by `torch.where(torch.rand(n, 1) < 0.5, x, -x)`", Augments),
    Edit("noise from a `torch.Generator` of your own", AddsNoise),
    Edit("a batch masked by weights, `(keep * losses).sum() / keep.sum()`", DropsByWeight),
    Edit("a batch masked by an index, `x[keep]`", DropsByMask),
    Edit("a sum of losses in a tensor, `self.sum += loss`", AddsTheLoss),
    Edit("a list of losses, `self.losses.append(loss)`", CollectsTheLoss),
    Edit('`print(f"{loss:.4f}")`', PrintsTheLoss),
    Edit("`print(losses[:3])`", PrintsATensor),
    Edit("`losses.numpy()`", CollectsNumbers),
    Edit("gradient norms from `p.grad`, added to a tensor", NormOfGradients),
    Edit("gradient norms from `clip_grad_norm_`, added to a tensor", NormOfClipping),
    Edit("gradient norms from `torch.autograd.grad`, added to a tensor", NormByAutograd),
    Edit("a gradient norm that is kept, `self.norm = ...`", KeepsTheNorm),
    Edit("gradient norms from `p.grad` outside of the step", NormOutside),
    Edit("gradients that are added up, without `zero_grad`", AddsGradients),
    Edit("gradients that are averaged, `p.grad.mul_(0.5)` in place of `zero_grad`", AveragesGradients),
    Edit("averages of the weights, `average.lerp_(p, 0.01)`", AveragesWeights),
    Edit("a loss weight by epoch", WeightByEpoch),
    Edit("a loss weight by number of calls, `self.n_calls += 1`", WeightByCalls),
    Edit("the same with a counter that is no attribute, `next(self.calls)`", WeightByHiddenCalls),
    Edit("`if self.n_calls % 1000 == 0`", EveryThousandth, {"epochs": 60}),
    Edit("`if next(self.calls) % 7 == 0`", EverySeventh),
    Edit("`if next(self.calls) % 1000 == 0`", HiddenEveryThousandth, {"epochs": 60}),
    Edit("`if loss > 0.3`", IfLoss),
    Edit("`if self.epoch >= 3 and loss > 0.2`", LaterIfLoss),
    Edit("`if torch.rand(()) < 0.5`", IfTorch),
    Edit("`if np.random.random() < 0.01`", IfNumPy),
    Edit("`if random.random() < 0.01`", IfRandom),
    Edit("`if self.rng.random() < 0.5`, a NumPy generator of your own", IfGenerator),
    Edit("`if self.rng.random() < 0.004`", RarelyIfGenerator, {"epochs": 60}),
    Edit("`if self.now >= 50`, counted outside of the step", CountsOutside),
    Edit("a counter of the class, `type(self).calls += 1`", CountsInTheClass),
    Edit('a learning rate that the step changes, `group["lr"] *= 0.99`', ChangesTheRate),
    Edit("a `StepLR` that is stepped in the step", StepsAScheduler),
    Edit("a second optimiser, with a learning rate that falls", SecondOptimiser),
    Edit("a copy of the network that is averaged from the second epoch on", AveragesLater),
    Edit("`losses[(losses < losses.median()).nonzero()[:, 0]]`", DropsTheWorst),
    Edit("`losses.prod()`, of which autograd has two derivatives", UsesAProduct),
    Edit("`copy.deepcopy(network.state_dict())`", CopiesWeights),
    Edit("attributes with tensors that cannot be written to", HasOddTensors),
    Edit("an optimiser that counts its steps in Python", Edited, {}, CountsInItsState),
    Edit("weights that are frozen from the third epoch on", FreezesLater),
    Edit("`torch.optim.RMSprop`, constant learning rate", Edited, {}, torch.optim.RMSprop),
    Edit("`torch.optim.RMSprop`, with a schedule", Edited, {"scheduler": "cosine"}, torch.optim.RMSprop),
    Edit("`torch.optim.Adam` without `fused`", Edited, {}, torch.optim.Adam),
    Edit("a hook on the network", HookOnTheNetwork),
    Edit("a hook on a weight", HookOnAWeight),
    Edit("a hook on the optimiser", HookOnTheOptimiser),
]


class Outcome(NamedTuple):
    """What a run calculated, stored for the test and printed, and its warnings."""

    numbers: list[Any]
    warnings: str


def outcome(edit: Edit, *, replay: bool, state: Mapping[str, Any] | None = None) -> Outcome:
    """Train with an edit, from the beginning or from the state of another trainer."""
    training = dataclasses.replace(CONFIG.train, **edit.training)
    config = dataclasses.replace(CONFIG, replay=replay, train=training)
    data, _ = get_splits(PROBLEM, config)
    with (
        patch.dict(OPTIMIZERS, adamw=edit.optimizer),
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.redirect_stderr(io.StringIO()) as warnings,
    ):
        trainer = edit.trainer(PROBLEM, config, build_model(PROBLEM, config, data.train), data.train, data.val)
        if state is not None:
            trainer.restore(state)
        history = trainer.fit()
    weights = [p.tolist() for p in trainer.network.parameters()]
    return Outcome([history, weights, trainer.noted, printed.getvalue()], warnings.getvalue())


def verdict(edit: Edit) -> str:
    """How --replay handles an edit, as in the last column of the table."""
    written, replayed = outcome(edit, replay=False), outcome(edit, replay=True)
    assert not written.warnings
    if replayed.numbers != written.numbers:
        return "**wrong, and not seen**" if not replayed.warnings else f"**wrong**: {replayed.warnings}"
    if not replayed.warnings:
        return "the same bits"
    (line,) = replayed.warnings.splitlines()
    return "off: " + line.removeprefix("warning: replay is off: ")


def table() -> str:
    """The table of the edits in Markdown."""
    rows = [f"| {edit.what} | {verdict(edit)} |" for edit in EDITS]
    return "\n".join(["| in the step | with `--replay` |", "|---|---|", *rows])


def main() -> None:
    """Write the table into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    start, end = "<!-- edits: made by `python -m tests.engine.edits` -->\n", "\n<!-- end of edits -->"
    before, _, rest = text.partition(start)
    DOCUMENT.write_text(before + start + table() + end + rest.partition(end)[2], encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
