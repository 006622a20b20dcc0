"""A training step, prepared so that to repeat it costs little more than its arithmetic.

In a small network most of a step is not arithmetic but bookkeeping: modules that call modules, the graph that autograd
builds and walks, the optimiser that looks up its state. All of it is the same at every step. So the step is taken a few
times as it is written, then watched once, and from then on what was seen is done again: on the CPU the list of tensor
operations, on a CUDA device the kernels, as one CUDA graph.

For that a step has to do the same each time, with tensors that stay where they are: what is remembered are tensors, not
the names they had. It may not wait for a number. Random numbers go on from step to step as they would anyway.
"""

from collections.abc import Callable
from functools import partial
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Step = Callable[..., None]  # takes the tensors of a batch; changes the weights

N_EAGER = 3  # steps as they are written, in which libraries set themselves up and the optimiser makes its state


def repeated(step: Step, device: torch.device) -> Step:
    """A step that does what `step` does, on batches of one shape, and does it fast after the first few."""
    if device.type == "cpu":
        return _Repeated(step, eagerly=step, watched=_recorded)
    if device.type == "cuda":
        return _Repeated(step, eagerly=partial(_aside, step), watched=_captured)
    return step


class _Repeated:
    def __init__(self, step: Step, eagerly: Step, watched: Callable[..., Step]) -> None:
        self.step, self.eagerly, self.watched = step, eagerly, watched
        self.n_calls = 0
        self.again: Step | None = None

    def __call__(self, *batch: Tensor) -> None:
        self.n_calls += 1
        if self.again is not None:
            self.again(*batch)
        elif self.n_calls <= N_EAGER:
            self.eagerly(*batch)
        else:
            self.again = self.watched(self.step, *batch)  # which is the step for this batch


# ------------------------------------------------------------------------------------------------------------- the CPU


def _recorded(step: Step, *batch: Tensor) -> Step:
    """Take a step; return a function of the tensor operations that it was."""
    with _Recorder(batch) as record:
        step(*batch)
    record.graph.output(None)
    operations = GraphModule(record.kept, record.graph)
    _shorten(operations)
    _quicken(operations)
    forward = operations.forward

    def again(*batch: Tensor) -> None:
        with torch.inference_mode():
            forward(*batch)

    return again


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation on tensors that is done in its context, those of autograd among them.

    torch.fx.experimental has a make_fx for this, which loads torch.compile: 1.5 s.
    """

    def __init__(self, batch: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.kept: dict[str, Tensor] = {}  # what was there before, under the name that it has in the graph
        self.seen = list(batch)  # keeps every tensor, so that none has the identity of an earlier one
        self.nodes = {id(tensor): self.graph.placeholder(f"batch_{i}") for i, tensor in enumerate(batch)}

    def __torch_dispatch__(
        self, operation: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = operation(*args, **(kwargs or {}))
        if operation.namespace != "profiler":  # the optimiser's notes to it change no tensor
            inputs = tree_map_only(Tensor, self.node, (args, kwargs or {}))
            node = self.graph.call_function(operation, *inputs)
            if isinstance(outputs, Tensor):
                self.remember(outputs, node)
            for i, output in enumerate(outputs if isinstance(outputs, (list, tuple)) else ()):
                if isinstance(output, Tensor):
                    self.remember(output, self.graph.call_function(getitem, (node, i)))
        return outputs

    def remember(self, tensor: Tensor, node: Node) -> None:
        """Have that node stand for this tensor from now on."""
        self.seen.append(tensor)
        self.nodes[id(tensor)] = node

    def node(self, tensor: Tensor) -> Node:
        """The node that stands for this tensor: if it was there before, one that keeps it."""
        if id(tensor) not in self.nodes:
            name = f"kept_{len(self.kept)}"
            self.kept[name] = tensor.detach()
            self.remember(tensor, self.graph.get_attr(name))
        return self.nodes[id(tensor)]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch.compile is loaded, to be told to keep out of here


def _shorten(operations: GraphModule) -> None:
    """Leave out what changes no number: aliases, and views of weights, which can be kept."""
    graph, aten = operations.graph, torch.ops.aten
    views = (aten.t.default, aten.view.default, aten.expand.default, aten.unsqueeze.default)
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_function" and node.args else None
        if isinstance(source, Node):
            if node.target is aten.detach.default:
                node.replace_all_uses_with(source)
            elif node.target in views and source.op == "get_attr":
                kept = getattr(operations, str(source.target)).detach()
                operations.register_buffer(f"{node.name}_kept", node.target(kept, *node.args[1:]))
                with graph.inserting_before(node):
                    node.replace_all_uses_with(graph.get_attr(f"{node.name}_kept"))
            elif node.target is aten.t.default and source.target is aten.t.default:
                node.replace_all_uses_with(source.args[0])
    for node in reversed(graph.nodes):
        unused = node.op == "get_attr" or node.target in (*views, aten.detach.default)
        if unused and not node.users:
            graph.erase_node(node)


def _quicken(operations: GraphModule) -> None:
    """Find nothing anew at each call: operations without the Python around them, tensors without a module's search."""
    for node in operations.graph.nodes:
        if isinstance(node.target, OpOverload):
            name = str(node.target).replace(".", "_")
            node.target = partial(node.target._op)  # FX writes it by the two names that it takes functions to have
            node.target.__name__, node.target.__module__ = name, __name__
    operations.recompile()
    for node in operations.graph.nodes:
        if node.op == "get_attr":
            operations.__dict__[node.target] = getattr(operations, node.target)


# ---------------------------------------------------------------------------------------------------------------- CUDA


def _captured(step: Step, *batch: Tensor) -> Step:
    """Capture a step and take it; return a function that starts its kernels again."""
    own = [tensor.clone() for tensor in batch]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records, and does nothing
        step(*own)

    def again(*batch: Tensor) -> None:
        for place, tensor in zip(own, batch, strict=True):
            place.copy_(tensor)
        graph.replay()

    again(*batch)
    return again


def _aside(step: Step, *batch: Tensor) -> None:
    """Take a step on a stream of its own, as the capture will, and have the main stream wait for it."""
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(main)
    with torch.cuda.stream(side):
        step(*batch)
    main.wait_stream(side)
