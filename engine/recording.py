"""Record a training step as a list of tensor operations, which can be repeated without the Python code around them.

While a step is recorded, PyTorch calls the recorder for each operation on tensors, also in the backward pass and in the
optimiser. The recorder adds the operation to a graph of torch.fx. FX then writes the graph as a Python function.

A recording refers to the tensors themselves, not to their names in Python. Weights and the state of the optimiser must
therefore be changed in place, so that they keep their memory. This file uses private names of PyTorch. If one is
missing, replay.py switches replay off.
"""

from collections.abc import Callable, Sequence
from functools import partial
from operator import getitem
from typing import Any

import torch
from torch import Generator, Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
READS = "the step reads numbers from a tensor (print, if, float, .item(), .numpy())"

# Functions that copy numbers from a tensor to Python, where a recording cannot follow them.
READ_NUMBERS = {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__array__", "__dlpack__"}
READ_NUMBERS |= {f"__{name}__" for name in ("bool", "int", "float", "complex", "index", "repr", "format", "reduce_ex")}

# Functions for which autograd uses another formula while a step is recorded. The results differ in the last bits.
OTHER_FORMULAS = {"prod", "cumprod", "det", "vander"}

VIEWS = (aten.t.default, aten.view.default, aten.expand.default, aten.unsqueeze.default)


class Recording:
    """Runs a step as it is written, and can then repeat it with other batches of the same shape.

    Args:
        step: the function to record.
        inputs, targets: the batch to call it with.
        parameters: the tensors whose `grad` each repetition sets, as the step does.

    Attributes:
        loss: the loss that the step returned.
        faults: reasons why the step cannot be repeated; empty if it can.
        used: tensors that existed before the step, and that the step reads or changes.
        generators: random generators that the step passed to operations.
    """

    def __init__(
        self, step: Callable[..., Tensor], inputs: tuple[Tensor, ...], targets: Tensor, parameters: Sequence[Tensor]
    ) -> None:
        recorder, functions = _Recorder([*inputs, targets]), FunctionWatcher()
        with recorder, functions:
            self.loss = step(inputs, targets)
        self.faults = functions.faults + recorder.faults
        self.used = [each for each in recorder.kept.values() if isinstance(each, Tensor)]
        self.generators = [each for each in recorder.kept.values() if isinstance(each, Generator)]
        self.with_gradient = [p for p in parameters if id(p.grad) in recorder.nodes]
        if not self.faults:
            try:
                self.repeat = self._function(recorder)
            except Exception as error:  # of any type: FX cannot write the graph as a function
                self.faults.append(f"the step has an operation that cannot be repeated ({type(error).__name__})")

    def _function(self, recorder: "_Recorder") -> Callable[..., tuple[Tensor, ...]]:
        """Make a function that repeats the recorded operations: inputs and targets -> the loss and the gradients."""
        gradients = [p.grad for p in self.with_gradient if p.grad is not None]
        recorder.graph.output(tuple(map(recorder.node, (self.loss, *gradients))))
        operations = GraphModule(recorder.kept, recorder.graph)
        _simplify(operations)
        _speed_up_calls(operations)
        return operations.forward

    def __call__(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Repeat the step; return its loss."""
        with torch.inference_mode():  # autograd is not needed: the recording includes the backward pass
            loss, *gradients = self.repeat(*inputs, targets)
        for parameter, gradient in zip(self.with_gradient, gradients, strict=True):
            parameter.grad = gradient
        return loss.clone()  # unlike a tensor that inference mode made, the copy can be changed in place


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation on tensors while the context is active, including those of autograd.

    torch.fx.experimental.make_fx does the same, but it loads torch.compile, which takes 1.5 s.
    """

    def __init__(self, batch: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.kept: dict[str, Tensor | Generator] = {}  # what existed before the step, by its name in the graph
        self.seen: list[Any] = list(batch)  # keeps every tensor alive, so that no two of them can have the same id
        # The node of each tensor, by the id of the tensor. The tensors of the batch are the arguments of the graph.
        self.nodes = {id(tensor): self.graph.placeholder(f"batch_{i}") for i, tensor in enumerate(batch)}
        self.faults: list[str] = []

    def __torch_dispatch__(
        self, operation: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = operation(*args, **(kwargs or {}))
        if operation.namespace != "profiler" and not self.faults:  # profiler marks change no tensor
            try:
                self.faults += _faults(operation, args)
                self.note(operation, args, kwargs or {}, outputs)
            except Exception as error:  # of any type: the operation itself has succeeded
                self.faults.append(f"the step cannot be recorded ({error!r})")
        return outputs

    def note(self, operation: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        """Add an operation to the graph."""
        if operation is aten.lift_fresh.default:  # torch.tensor(0.5) has to make a new tensor in every repetition
            operation, args = aten.clone.default, (args[0].clone(),)
        inputs = tree_map_only((Tensor, Generator), self.node, (args, kwargs))
        node = self.graph.call_function(operation, *inputs)
        if isinstance(outputs, Tensor):
            self.remember(outputs, node)
        for i, output in enumerate(outputs if isinstance(outputs, (list, tuple)) else ()):  # one node per output
            if isinstance(output, Tensor):
                self.remember(output, self.graph.call_function(getitem, (node, i)))

    def remember(self, value: Tensor | Generator, node: Node) -> None:
        """Store which node represents a tensor or generator."""
        if isinstance(value, Tensor):
            node.meta |= {"layout": [list(value.shape), list(value.stride())], "dtype": value.dtype}
            if node.target is aten.ones_like.default and value.ndim == 0:
                node.meta["start_of_backward"] = value.clone()  # the derivative of the loss by itself, 1
        self.seen.append(value)
        self.nodes[id(value)] = node

    def node(self, value: Tensor | Generator) -> Node:
        """The node of a tensor or generator. If the value existed before the step, make a node that refers to it."""
        if id(value) not in self.nodes:
            name = f"kept_{len(self.kept)}"
            self.kept[name] = value.detach() if isinstance(value, Tensor) else value
            self.remember(value, self.graph.get_attr(name))
        return self.nodes[id(value)]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # with True, PyTorch would load torch.compile to exclude this code from compilation


class FunctionWatcher(TorchFunctionMode):
    """A context that detects calls of functions that prevent replay. It does not change any result.

    A TorchFunctionMode is called for the functions that you write. _Recorder is only called for the operations that
    these functions execute, so that it cannot recognise .numpy(), for example.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in READ_NUMBERS:
            self.faults.append(READS)
        elif name in OTHER_FORMULAS:
            self.faults.append(f"autograd uses another formula for {name} while a step is recorded")
        return function(*args, **(kwargs or {}))


def _faults(operation: OpOverload, args: tuple[Any, ...]) -> list[str]:
    """Reasons why an operation cannot be repeated: Python code may depend on numbers that differ in the next step."""
    if torch.Tag.data_dependent_output in operation.tags:
        return [READS]
    if torch.Tag.dynamic_output_shape not in operation.tags:
        return []
    is_index = operation is aten.index.Tensor  # the shape of the result only depends on numbers if an index is a mask
    if is_index and all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1]):
        return []
    return ["a shape in the step depends on the numbers in a tensor (a mask as an index, nonzero)"]


def _simplify(operations: GraphModule) -> None:
    """Remove operations that do not change any number, and replace others by faster ones with the same result."""
    graph = operations.graph
    for node in graph.nodes:
        if (alias := _alias(node)) is not None:
            node.replace_all_uses_with(alias)
    _erase_unused(graph)
    _compute_once(operations)
    _erase_unused(graph)
    for node in graph.nodes:
        if node.target is aten.copy_.default and _copies_a_gradient(node):
            place, source = node.args
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            graph.erase_node(place)
        elif node.target is aten._foreach_add_.Scalar and node.args[1] == 1:
            _add_a_tensor(node, operations)


def _alias(node: Node) -> Node | None:
    """An earlier node with the same numbers, or None."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return None
    if node.target is aten.t.default and source.target is aten.t.default:  # transposed twice
        return source.args[0]  # type: ignore[return-value]
    is_first_power = node.target is aten.pow.Tensor_Scalar and node.args[1] == 1  # from the derivative of a square
    is_copy = is_first_power and node.meta["dtype"] == source.meta.get("dtype")
    return source if is_copy or node.target is aten.detach.default else None


def _compute_once(operations: GraphModule) -> None:
    """Replace operations that have the same result in every step by a stored tensor.

    These are views of tensors that existed before the step, such as weights, and the start of a backward pass. A stored
    view shows the current numbers of its tensor. Other operations are only replaced if these numbers are constant.
    """
    constants: set[str] = set()  # names of stored tensors whose numbers never change
    for node in operations.graph.nodes:
        kept = _kept_argument(node)
        if "start_of_backward" in node.meta and {user.target for user in node.users} == {aten.expand.default}:
            value, is_constant = node.meta["start_of_backward"], True
        elif node.target in VIEWS and kept:
            value, is_constant = node.target(getattr(operations, kept).detach(), *node.args[1:]), kept in constants
        elif node.target is aten.div.Scalar and kept in constants:
            value, is_constant = node.target(getattr(operations, kept), *node.args[1:]), True
        else:
            continue
        name = f"{node.name}_kept"
        operations.register_buffer(name, value)
        constants |= {name} if is_constant else set()
        with operations.graph.inserting_before(node):
            node.replace_all_uses_with(operations.graph.get_attr(name))


def _add_a_tensor(node: Node, operations: GraphModule) -> None:
    """Let an optimiser count its steps by adding a tensor, because adding a number takes twice as long."""
    counters: Any = node.args[0]
    tensors = [getattr(operations, str(counter.target), None) for counter in counters]
    if all(isinstance(each, Tensor) and each.dtype == torch.float32 and each.is_cpu for each in tensors):
        operations.register_buffer(f"{node.name}_one", torch.ones(()))
        with operations.graph.inserting_before(node):
            one = operations.graph.get_attr(f"{node.name}_one")
        node.target, node.args = aten._foreach_add_.Tensor, (counters, one)


def _kept_argument(node: Node) -> str:
    """The name of the kept tensor that is the first argument of an operation, or an empty string."""
    source = node.args[0] if node.op == "call_function" and node.args else None
    return str(source.target) if isinstance(source, Node) and source.op == "get_attr" else ""


def _erase_unused(graph: Graph) -> None:
    """Remove operations whose result is not used, if they change no tensor."""
    for node in reversed(graph.nodes):
        harmless = (*VIEWS, aten.detach.default, aten.ones_like.default, aten.div.Scalar, aten.pow.Tensor_Scalar)
        if not node.users and (node.op == "get_attr" or node.target in harmless):
            graph.erase_node(node)


def _copies_a_gradient(copy: Node) -> bool:
    """Whether an operation copies a gradient into a new tensor although nothing else uses the gradient.

    Autograd makes this copy if something else refers to the gradient. While a step is recorded, the recorder does. The
    recording therefore contains copies that the step without the recorder does not make.
    """
    place, source = copy.args
    if not isinstance(place, Node) or not isinstance(source, Node):
        return False
    is_new = place.target is aten.new_empty_strided.default and list(place.users) == [copy]
    if not is_new or list(place.args[1:3]) != source.meta.get("layout"):
        return False
    users = {place, copy}
    # Follow views back to the operation that computed the gradient. None of them may have another user.
    while set(source.users) == users and source.target in (*VIEWS, getitem) and isinstance(source.args[0], Node):
        source, users = source.args[0], {source}
    fresh = isinstance(source.target, OpOverload) and all(
        each.alias_info is None
        for each in source.target._schema.returns  # no result shares memory with an argument
    )
    return fresh and set(source.users) == users


def _speed_up_calls(operations: GraphModule) -> None:
    """Call operations without the Python code around them, and let Python find tensors as plain attributes."""
    for node in operations.graph.nodes:
        if isinstance(node.target, OpOverload):
            name = str(node.target).replace(".", "_")
            node.target = partial(node.target._op)  # unlike _op, a partial can have the two names that FX needs
            node.target.__name__, node.target.__module__ = name, __name__
    operations.recompile()
    for node in operations.graph.nodes:
        if node.op == "get_attr":  # nn.Module would look for the tensor in several dictionaries at each access
            operations.__dict__[node.target] = getattr(operations, node.target)


# ---------------------------------------------------------------------------------------------------------------- CUDA


class CudaGraph:
    """The same for a CUDA device: the kernels of a step are captured as one graph, which can be launched again.

    Args:
        recording: a recording of the same step, without faults.
    """

    def __init__(
        self, step: Callable[..., Tensor], inputs: tuple[Tensor, ...], targets: Tensor, recording: Recording
    ) -> None:
        self.used, self.generators, self.with_gradient = recording.used, recording.generators, recording.with_gradient
        self.batch = tuple(tensor.clone() for tensor in (*inputs, targets))  # the graph always reads from this memory
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):  # captures the kernels without running them
            self.loss = step(self.batch[:-1], self.batch[-1])
        self.gradients = [parameter.grad for parameter in self.with_gradient]

    def __call__(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Repeat the step; return its loss."""
        for place, tensor in zip(self.batch, (*inputs, targets), strict=True):
            place.copy_(tensor)
        self.graph.replay()
        for parameter, gradient in zip(self.with_gradient, self.gradients, strict=True):
            parameter.grad = gradient
        return self.loss.clone()
