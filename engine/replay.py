"""--replay: a training step that is recorded once and then replayed, at the cost of little more than its arithmetic.

Most of the time of a small step is not arithmetic but bookkeeping: modules that call modules, the graph that autograd
builds and walks, the optimiser that looks up its state. So a step runs a few times as it is written, is recorded, and
from then on its tensor operations are repeated (recording.py). Python code in it then runs no more, which is right as
long as it does the same at every step. Replay checks that:

- It looks for what makes a difference at some later step: hooks, numbers that are read from tensors, attributes that
  the step changes, random numbers of NumPy or Python.
- In the first epoch every step is taken both ways from one state, and compared bit for bit. In later epochs the first
  step is.

What it finds switches it off, with one line, and the step as it is written is the one that counts. What it cannot see
is in docs/replay.md.
"""

import operator
import pickle
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Generator, Tensor, nn

from utils import one_line, warn

if TYPE_CHECKING:
    from engine.recording import CudaGraph, Recording

Step = Callable[[tuple[Tensor, ...], Tensor], Tensor]  # takes inputs and targets, changes the weights, returns the loss

N_WARM_UP = 3  # steps as they are written: libraries initialise themselves, and the optimiser creates its state
OF_EVERY_MODULE = set(vars(nn.Module())) - {"_parameters", "_buffers", "_modules", "training"}  # hooks, among others
N_COMPARED = 20  # the least number of steps that are compared before the first one is not


class Trains(Protocol):
    """What replay needs of a trainer."""

    epoch: int
    problem: Any
    config: Any
    group: Any
    network: nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Update the weights with one batch, and return its loss."""


class State(NamedTuple):
    """What a step may change."""

    tensors: list[Tensor]
    generators: list[Tensor]
    gradients: list[Tensor | None]


class Replay:
    """The step of a trainer, replayed for batches of full size. Other batches run as the step is written."""

    def __init__(self, trainer: Trains) -> None:
        self.trainer = trainer
        self.parameters = list(trainer.network.parameters())
        self.device = self.parameters[0].device
        self.recording: Recording | CudaGraph | None = None
        self.rates: list[tuple[dict[str, Any], Tensor]] = []  # groups of the optimiser, with their rates as tensors
        self.fixed: list[tuple[dict[str, Any], float]] = []  # groups whose rates were recorded as numbers
        self.is_off = False
        self.n_warm_up = self.n_compared = self.first_epoch = self.last_epoch = 0
        if trainer.group.size > 1:
            self.switch_off("the run has several processes")
        elif self.device.type not in ("cpu", "cuda"):
            self.switch_off(f"it needs the device cpu or cuda, and this is {self.device.type}")

    def __call__(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Take a step with a batch; return its loss."""
        if self.is_off or len(targets) != self.trainer.config.train.batch_size:
            return self.trainer.step(inputs, targets)
        if self.recording is None:
            self.n_warm_up += 1
            return (self.warm_up if self.n_warm_up <= N_WARM_UP else self.record)(inputs, targets)
        if any(group["lr"] != rate for group, rate in self.fixed):
            self.switch_off("the optimiser takes the learning rate as a number, which has changed")
            return self.trainer.step(inputs, targets)
        for group, rate in self.rates:
            rate.fill_(group["lr"])
        epoch = self.trainer.epoch
        if epoch == self.first_epoch or epoch != self.last_epoch or self.n_compared < N_COMPARED:
            return self.compare(inputs, targets)
        return self.recording(inputs, targets)

    def switch_off(self, reason: str) -> None:
        """From now on, take every step as it is written."""
        self.is_off, self.recording, self.rates = True, None, []
        if self.trainer.group.is_main:
            warn(f"warning: replay is off: {one_line(reason)}")

    def as_written(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Take a step as it is written, with learning rates in the tensors that a recording reads them from."""
        numbers = [group["lr"] for group, _ in self.rates]
        for group, rate in self.rates:
            group["lr"] = rate
        try:
            return self.trainer.step(inputs, targets)
        finally:
            for (group, _), number in zip(self.rates, numbers, strict=True):
                group["lr"] = number

    def warm_up(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Take a step as it is written; on CUDA on a stream of its own, as a capture does."""
        if self.device.type == "cpu":
            return self.trainer.step(inputs, targets)
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(main)
        with torch.cuda.stream(side):
            loss = self.trainer.step(inputs, targets)
        main.wait_stream(side)
        return loss

    def record(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Take a step as it is written, and record it."""
        try:
            from engine.recording import CudaGraph, Recording
        except (ImportError, AttributeError) as error:
            self.switch_off(f"this version of PyTorch lacks something that it needs ({error})")
            return self.trainer.step(inputs, targets)
        on_cpu = self.device.type == "cpu"
        for group in self.trainer.optimizer.param_groups:
            if group.get("fused"):  # such an optimiser can read its rate from a tensor
                kind = torch.float64 if on_cpu else torch.float32
                self.rates.append((group, torch.tensor(group["lr"], dtype=kind, device=self.device)))
                if not on_cpu and "capturable" in group:
                    group["capturable"] = True
            else:
                self.fixed.append((group, group["lr"]))
        surroundings = Surroundings(self.trainer)
        watched = self.watched(surroundings)
        before = self.state(watched)
        try:
            recording = Recording(self.as_written, inputs, targets, self.parameters)
            faults = [*([recording.fault] if recording.fault else []), *surroundings.changes()]
            self.recording = recording
            if not faults and not on_cpu:
                self.recording = CudaGraph(self.as_written, inputs, targets, recording)
        except Exception as error:  # of any kind: without replay there may be none
            self.load(watched, before)
            self.switch_off(f"the step cannot be recorded ({error!r})")
            return self.trainer.step(inputs, targets)
        if faults:
            self.switch_off(faults[0])
        self.first_epoch = self.trainer.epoch
        return recording.loss

    def compare(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Take a step as it is written; take it again from the same state, replayed; compare."""
        assert self.recording is not None
        surroundings = Surroundings(self.trainer)
        watched = self.watched(surroundings)
        before = self.state(watched)
        loss = self.as_written(inputs, targets)
        faults = surroundings.changes()
        written = self.state([*watched, loss])
        self.load(watched, before)
        try:
            replayed = self.state([*watched, self.recording(inputs, targets)])
        except RuntimeError as error:
            faults.append(f"the step cannot be repeated with another batch ({error})")
        else:
            if not all(map(same, flat(written), flat(replayed))):
                faults.append("the step as it is written gives other numbers than the replayed one")
        if faults:
            self.load([*watched, loss], written)
            self.switch_off(faults[0])
        self.last_epoch, self.n_compared = self.trainer.epoch, self.n_compared + 1
        return loss

    def watched(self, surroundings: "Surroundings") -> list[Tensor]:
        """The tensors that a step may change, each once."""
        trainer, used = self.trainer, self.recording.used if self.recording else []
        of_optimizer = [value for state in trainer.optimizer.state.values() for value in state.values()]
        of_attributes = [value for values in surroundings.attributes.values() for value in values]
        found = [*self.parameters, *trainer.network.buffers(), *used, *of_optimizer, *of_attributes]
        tensors = [each for each in found if isinstance(each, Tensor)]
        return list({(each.data_ptr(), each.shape, each.stride()): each for each in tensors}.values())

    def generators(self) -> list[Generator]:
        """The random generators that a step may use."""
        of_device = [] if self.device.type == "cpu" else [torch.cuda.default_generators[self.device.index or 0]]
        return [torch.default_generator, *of_device, *(self.recording.generators if self.recording else ())]

    def state(self, tensors: Iterable[Tensor]) -> State:
        """A copy of what a step may change."""
        return State(
            [tensor.detach().clone() for tensor in tensors],
            [generator.get_state() for generator in self.generators()],
            [parameter.grad for parameter in self.parameters],
        )

    def load(self, tensors: Iterable[Tensor], state: State) -> None:
        """Return to a state."""
        with torch.no_grad():
            for tensor, value in zip(tensors, state.tensors, strict=True):
                tensor.copy_(value)
        for generator, value in zip(self.generators(), state.generators, strict=True):
            generator.set_state(value)
        for parameter, gradient in zip(self.parameters, state.gradients, strict=True):
            parameter.grad = gradient


class Surroundings:
    """What a step may change besides tensors: attributes, and the global random generators of NumPy and Python.

    Attributes are those of the trainer, the problem, every module of the network, and the files that define these. If
    one is a collection, what is in it counts as well; if one is a random generator, its state.
    """

    def __init__(self, trainer: Trains) -> None:
        self.trainer = trainer
        self.modules = {f"network.{name}".rstrip("."): module for name, module in trainer.network.named_modules()}
        self.owners: dict[str, Any] = {"trainer": trainer, "problem": trainer.problem, **self.modules}
        files = {type(owner).__module__ for owner in self.owners.values()}
        self.owners |= {name: sys.modules[name] for name in files if not name.startswith("torch.")}
        self.attributes = self.read()
        self.randomness = global_generators()

    def read(self) -> dict[tuple[str, str], list[Any]]:
        """Every attribute, and what is in it."""
        found = {}
        for name, owner in self.owners.items():
            for key, value in vars(owner).items():
                if key in OF_EVERY_MODULE or callable(value) or isinstance(value, ModuleType):
                    continue
                if isinstance(value, dict):
                    found[name, key] = [value, *value.values()]
                elif isinstance(value, (list, tuple, set, deque)):
                    found[name, key] = [value, *value]
                elif isinstance(value, (np.random.Generator, random.Random)):
                    found[name, key] = [value, pickle.dumps(value)]
                else:
                    found[name, key] = [value]
        return found

    def changes(self) -> list[str]:
        """What has changed, in words, since this object was made, and which hooks there are."""
        before, after = self.attributes, self.read()
        found = hooks(self.modules, self.trainer.optimizer)
        for name, key in before | after:
            if not unchanged(before.get((name, key), []), after.get((name, key), [])):
                found.append(f"the step changes {name}.{key}")
        found += [
            f"the step draws random numbers of {name}"
            for name, now in global_generators().items()
            if now != self.randomness[name]
        ]
        return found


def global_generators() -> dict[str, Any]:
    """The states of the global random generators outside of torch."""
    of_numpy = np.random.get_state()  # noqa: NPY002 - the global generator is meant
    return {"NumPy": pickle.dumps(of_numpy), "Python": random.getstate()}


def unchanged(before: list[Any], after: list[Any]) -> bool:
    """Whether an attribute and what is in it are the same objects, or equal numbers or words."""
    if len(before) != len(after):
        return False
    return all(map(operator.is_, before, after)) or all(
        a is b or (isinstance(a, (int, float, str, bytes)) and type(a) is type(b) and a == b)
        for a, b in zip(before, after, strict=True)
    )


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are equal bit for bit."""
    if one is None or other is None:
        return one is other
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if one.is_complex():
        one, other = torch.view_as_real(one), torch.view_as_real(other)
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return torch.equal(one.view(integers), other.view(integers))


def flat(state: State) -> list[Tensor | None]:
    """All tensors of a state."""
    return [*state.tensors, *state.generators, *state.gradients]


def hooks(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> list[str]:
    """Which hooks there are. They are Python code, which a replayed step does not run."""
    found = []
    for name, module in modules.items():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            found.append(f"there is a hook on {name}")
        for key, p in module._parameters.items():
            if p is not None and (p._backward_hooks or p._post_accumulate_grad_hooks):
                found.append(f"there is a hook on {name}.{key}")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        found.append("there is a hook on the optimiser")
    return found
