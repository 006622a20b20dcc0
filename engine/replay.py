"""A training step that is recorded once and then replayed, at the cost of little more than its arithmetic.

Most of the time of a small step is not arithmetic but bookkeeping: modules that call modules, the graph that autograd
builds and walks, the optimiser that looks up its state. All of it is the same at every step. So a step runs a few times
as it is written, is then recorded, and from then on its operations are replayed: on the CPU a list of tensor
operations, on a CUDA device one CUDA graph.

For that a step has to do the same each time, with tensors that keep their storage: what is recorded are tensors, not
the names they had. It must not read a number from a tensor. Random numbers continue from step to step as they would
anyway.
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

N_EAGER = 3  # steps as they are written: libraries initialise themselves and the optimiser creates its state


def replayed(step: Step, device: torch.device) -> Step:
    """A function that does what `step` does, for batches of one shape, and is fast after the first few calls."""
    if device.type == "cpu":
        return _Replayed(step, eager=step, record=_recorded)
    if device.type == "cuda":
        return _Replayed(step, eager=partial(_on_side_stream, step), record=_captured)
    return step


class _Replayed:
    def __init__(self, step: Step, eager: Step, record: Callable[..., Step]) -> None:
        self.step, self.eager, self.record = step, eager, record
        self.n_calls = 0
        self.again: Step | None = None

    def __call__(self, *batch: Tensor) -> None:
        self.n_calls += 1
        if self.again is not None:
            self.again(*batch)
        elif self.n_calls <= N_EAGER:
            self.eager(*batch)
        else:
            self.again = self.record(self.step, *batch)  # takes the step for this batch


# ------------------------------------------------------------------------------------------------------------- the CPU


def _recorded(step: Step, *batch: Tensor) -> Step:
    """Take a step; return a function that repeats its tensor operations."""
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
    """Records every operation on tensors in its context, those of autograd included.

    torch.fx.experimental.make_fx does the same, but loads torch.compile: 1.5 s.
    """

    def __init__(self, batch: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.kept: dict[str, Tensor] = {}  # tensors from before, under their names in the graph
        self.seen = list(batch)  # keeps every tensor alive, so that no two have the same id
        self.nodes = {id(tensor): self.graph.placeholder(f"batch_{i}") for i, tensor in enumerate(batch)}

    def __torch_dispatch__(
        self, operation: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = operation(*args, **(kwargs or {}))
        if operation.namespace != "profiler":  # marks for the profiler change no tensor
            inputs = tree_map_only(Tensor, self.node, (args, kwargs or {}))
            node = self.graph.call_function(operation, *inputs)
            if isinstance(outputs, Tensor):
                self.remember(outputs, node)
            for i, output in enumerate(outputs if isinstance(outputs, (list, tuple)) else ()):
                if isinstance(output, Tensor):
                    self.remember(output, self.graph.call_function(getitem, (node, i)))
        return outputs

    def remember(self, tensor: Tensor, node: Node) -> None:
        """Let the node represent this tensor from now on."""
        self.seen.append(tensor)
        self.nodes[id(tensor)] = node

    def node(self, tensor: Tensor) -> Node:
        """The node that represents this tensor; for a tensor from before, a new one that keeps it."""
        if id(tensor) not in self.nodes:
            name = f"kept_{len(self.kept)}"
            self.kept[name] = tensor.detach()
            self.remember(tensor, self.graph.get_attr(name))
        return self.nodes[id(tensor)]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would load torch.compile, to exclude this code from compilation


def _shorten(operations: GraphModule) -> None:
    """Remove what changes no number: aliases, and views of weights, which are computed once."""
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
    """Avoid look-ups at each call: of operations, without the Python around them, and of tensors in a module."""
    for node in operations.graph.nodes:
        if isinstance(node.target, OpOverload):
            name = str(node.target).replace(".", "_")
            node.target = partial(node.target._op)  # FX writes a function by these two names
            node.target.__name__, node.target.__module__ = name, __name__
    operations.recompile()
    for node in operations.graph.nodes:
        if node.op == "get_attr":
            operations.__dict__[node.target] = getattr(operations, node.target)


# ---------------------------------------------------------------------------------------------------------------- CUDA


def _captured(step: Step, *batch: Tensor) -> Step:
    """Capture a step and take it; return a function that launches its kernels again."""
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


def _on_side_stream(step: Step, *batch: Tensor) -> None:
    """Take a step on a stream of its own, as the capture does, and let the main stream wait for it."""
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(main)
    with torch.cuda.stream(side):
        step(*batch)
    main.wait_stream(side)
