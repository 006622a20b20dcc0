"""--replay: record the training step once, then replay it, which takes little more time than the arithmetic.

Most of the time of a small step is spent on bookkeeping: modules that call modules, the graph that autograd builds and
walks, the optimiser that looks up its state. With --replay, the first steps run as they are written, and the next one
is recorded. After that, its tensor operations are repeated (recording.py), and the Python code of the step no longer
runs. The result is correct if this code would do the same in every step. Replay checks this in two ways:

- It looks for code that can make a difference in a later step: hooks, numbers that are read from tensors, attributes
  that the step changes, random numbers of NumPy or Python.
- It takes every step of the first epoch, and the first step of every later epoch, twice from the same state: as it is
  written, and replayed. It compares the results bit for bit.

If a check fails, replay switches itself off and prints one line. Training continues with the result of the step as it
is written. docs/replay.md lists what replay cannot detect.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from engine.surroundings import Surroundings
from utils import one_line, warn

if TYPE_CHECKING:
    from engine.recording import CudaGraph, Recording

Step = Callable[[tuple[Tensor, ...], Tensor], Tensor]  # takes inputs and targets, changes the weights, returns the loss

N_WARM_UP = 3  # the number of steps before the recorded one; in these, the optimiser creates its state
N_COMPARED = 20  # the smallest number of steps that are compared; the first epoch may have fewer


class TrainerLike(Protocol):
    """The part of a trainer that replay uses."""

    epoch: int
    problem: Any
    config: Any
    group: Any
    network: nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Update the weights with one batch, and return its loss."""


class State(NamedTuple):
    """A copy of everything that a step may change."""

    tensors: dict[str, Tensor]  # messages use the keys
    generators: list[Tensor]  # the states of the random generators
    gradients: list[Tensor | None]  # of the parameters


class Replay:
    """The step of a trainer, which is replayed for batches of full size. For others, it runs as it is written."""

    def __init__(self, trainer: TrainerLike) -> None:
        self.trainer = trainer
        self.device = next(trainer.network.parameters()).device
        self.recording: Recording | CudaGraph | None = None
        self.rates: list[tuple[dict[str, Any], Tensor]] = []  # parameter groups whose learning rate is in a tensor
        self.fixed: list[tuple[dict[str, Any], float]] = []  # parameter groups whose learning rate is a number
        self.parameters: list[Tensor] = []  # of the network and the optimisers
        self.numbers: list[tuple[str, Any]] = []  # attributes of the trainer in the last step that was compared
        self.is_off = False
        self.n_warm_up = self.n_compared = self.first_epoch = self.last_epoch = 0
        try:
            from engine import recording

            self.tools = recording
            reason = "the run has several processes" if trainer.group.size > 1 else ""
        except (ImportError, AttributeError) as error:
            reason = f"this version of PyTorch lacks something that it needs ({error})"
        if self.device.type not in ("cpu", "cuda"):
            reason = f"it needs the device cpu or cuda, and this is {self.device.type}"
        if reason:
            self.switch_off(reason)

    def __call__(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Take a step with a batch; return its loss."""
        if self.is_off or len(targets) != self.trainer.config.train.batch_size:
            return self.trainer.step(inputs, targets)
        if self.recording is None:
            self.n_warm_up += 1
            return (self.warm_up if self.n_warm_up <= N_WARM_UP else self.record)(inputs, targets)
        if self.fixed and any(group["lr"] != rate for group, rate in self.fixed):
            self.switch_off("the optimiser takes the learning rate as a number, which has changed")
            return self.trainer.step(inputs, targets)
        for group, rate in self.rates:
            rate.fill_(group["lr"])
        epoch = self.trainer.epoch
        if epoch == self.first_epoch or epoch != self.last_epoch or self.n_compared < N_COMPARED:
            return self.compare(inputs, targets)
        attributes = vars(self.trainer)
        if any(attributes.get(name) != number for name, number in self.numbers):
            self.switch_off("a number in an attribute of the trainer has changed in the middle of an epoch")
            return self.trainer.step(inputs, targets)
        return self.recording(inputs, targets)

    def switch_off(self, reason: str) -> None:
        """Print the reason, and take every later step as it is written."""
        self.is_off, self.recording = True, None
        if self.trainer.group.is_main:
            warn(f"warning: replay is off: {one_line(reason)}")

    @contextmanager
    def rates_as_tensors(self) -> Iterator[None]:
        """While the block runs, let the optimiser read learning rates from tensors, as the recording does."""
        before = [group["lr"] for group, _ in self.rates]
        for group, rate in self.rates:
            group["lr"] = rate
        try:
            yield
        finally:
            for (group, rate), number in zip(self.rates, before, strict=True):
                if group["lr"] is rate:  # otherwise the step has set another rate
                    # Return to the number, or to a new one if the step has changed the tensor.
                    group["lr"] = number if rate == rate.new_tensor(number) else rate.item()

    def warm_up(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Take a step as it is written, and look for functions that cannot be replayed."""
        with self.tools.FunctionWatcher() as functions, on_side_stream(self.device):
            loss = self.trainer.step(inputs, targets)
        if functions.faults:
            self.switch_off(functions.faults[0])
        return loss

    def record(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Take a step as it is written, and record it."""
        surroundings = Surroundings(self.trainer)
        self.prepare_rates(surroundings)
        watched = self.watched(surroundings)
        before = self.state(watched)
        try:
            with self.rates_as_tensors():
                recording = self.tools.Recording(self.trainer.step, inputs, targets, self.parameters)
        except Exception as error:  # of any type: the step may succeed when it is not recorded
            self.load(watched, before)  # undo what the step has changed before the error
            self.switch_off(f"the step cannot be recorded ({error!r})")
            return self.trainer.step(inputs, targets)
        self.first_epoch, self.recording = self.trainer.epoch, recording
        faults = recording.faults + surroundings.changes()
        if not faults and self.device.type == "cuda":
            try:
                with self.rates_as_tensors():
                    self.recording = self.tools.CudaGraph(self.trainer.step, inputs, targets, recording)
            except RuntimeError as error:
                faults = [f"the step cannot be captured ({error})"]
        if faults:
            self.switch_off(faults[0])
        return recording.loss

    def prepare_rates(self, surroundings: Surroundings) -> None:
        """Find all parameters. Put learning rates into tensors where possible, so that they can change in a replay."""
        found = list(self.trainer.network.parameters())
        for optimizer in surroundings.optimizers.values():
            for group in optimizer.param_groups:
                found += group["params"]
                if not group.get("fused"):  # such an optimiser may convert the tensor to a Python number
                    self.fixed.append((group, group["lr"]))
                    continue
                kind = torch.float64 if self.device.type == "cpu" else torch.float32
                self.rates.append((group, torch.tensor(group["lr"], dtype=kind, device=self.device)))
                if self.device.type == "cuda" and "capturable" in group:
                    group["capturable"] = True  # PyTorch requires it for a step that is captured
        self.parameters = list({id(p): p for p in found}.values())

    def compare(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Take a step as it is written, then replay it from the same state, and compare the results."""
        assert self.recording is not None
        surroundings = Surroundings(self.trainer)
        watched = self.watched(surroundings)
        before = self.state(watched)
        with self.rates_as_tensors(), self.tools.FunctionWatcher() as functions:
            loss = self.trainer.step(inputs, targets)
        faults = surroundings.changes() + functions.faults
        written = self.state(watched | {"the loss": loss})
        self.load(watched, before)
        try:
            replayed = self.state(watched | {"the loss": self.recording(inputs, targets)})
        except RuntimeError as error:
            faults.append(f"the step cannot be repeated with another batch ({error})")
        else:
            if names := differences(written, replayed):
                faults.append(f"the replayed step gives different numbers from the step as it is written ({names[0]})")
        if faults:
            self.load(watched | {"the loss": loss}, written)
            self.switch_off(faults[0])
        self.last_epoch, self.n_compared, self.numbers = self.trainer.epoch, self.n_compared + 1, numbers(self.trainer)
        return loss

    def watched(self, surroundings: Surroundings) -> dict[str, Tensor]:
        """The tensors that a step may change, each once, by names for messages."""
        found: list[tuple[str, Any]] = []
        for name, module in surroundings.modules.items():
            owned = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            found += [(f"{name}.{key}", tensor) for key, tensor in owned]
        # Skip the data sets, which are large, and tensors that are global in your files.
        for (name, key), values in surroundings.attributes.items():
            if (name, key) not in {("trainer", "train"), ("trainer", "val")} and not name.startswith("the file"):
                found += [(f"{name}.{key}", value) for value in values]
        found += [("a tensor of the step", tensor) for tensor in (self.recording.used if self.recording else ())]
        tensors: dict[Any, tuple[str, Tensor]] = {}
        for name, each in found:
            if isinstance(each, Tensor) and each.layout is torch.strided and each.device.type != "meta":
                tensors.setdefault((each.data_ptr(), each.shape, each.stride()), (name, each))
        return {f"{name} [{i}]": tensor for i, (name, tensor) in enumerate(tensors.values())}

    def generators(self) -> list[Generator]:
        """The random generators of torch that a step may use."""
        of_device = [] if self.device.type == "cpu" else [torch.cuda.default_generators[self.device.index or 0]]
        return [torch.default_generator, *of_device, *(self.recording.generators if self.recording else ())]

    def state(self, tensors: Mapping[str, Tensor]) -> State:
        """Copy everything that a step may change."""
        return State(
            {name: tensor.detach().clone() for name, tensor in tensors.items()},
            [generator.get_state() for generator in self.generators()],
            [parameter.grad for parameter in self.parameters],
        )

    def load(self, tensors: Mapping[str, Tensor], state: State) -> None:
        """Restore a state."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                if not same(tensor.detach(), state.tensors[name]):  # some tensors are read-only
                    tensor.copy_(state.tensors[name])
        for generator, value in zip(self.generators(), state.generators, strict=True):
            generator.set_state(value)
        for parameter, gradient in zip(self.parameters, state.gradients, strict=True):
            parameter.grad = gradient


@contextmanager
def on_side_stream(device: torch.device) -> Iterator[None]:
    """On a CUDA device, run the block on another stream, as PyTorch does when it captures a graph."""
    if device.type == "cpu":
        yield
        return
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(main)
    with torch.cuda.stream(side):
        yield
    main.wait_stream(side)


def numbers(trainer: TrainerLike) -> list[tuple[str, Any]]:
    """The attributes of the trainer that are numbers or strings."""
    return [(name, value) for name, value in vars(trainer).items() if type(value) in (int, float, bool, str)]


def differences(one: State, other: State) -> list[str]:
    """Names of what differs between two states."""
    found = [name.partition(" [")[0] for name in one.tensors if not same(one.tensors[name], other.tensors[name])]
    found += ["a gradient"] * (not all(map(same, one.gradients, other.gradients)))
    return found + ["a random generator"] * (not all(map(same, one.generators, other.generators)))


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are equal bit for bit."""
    if one is None or other is None:
        return one is other
    if (one.shape, one.dtype, one.layout) != (other.shape, other.dtype, other.layout):
        return False
    if one.layout is not torch.strided:
        return one is other
    if one.is_complex():
        one, other = (torch.view_as_real(each.resolve_conj()) for each in (one, other))
    # As integers, NaN is equal to itself, and 0.0 and -0.0 differ.
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return torch.equal(one.view(integers), other.view(integers))
