"""torch.compile: loaded for --compile, and not loaded otherwise, since that takes 1.5 s.

This file uses private names of PyTorch. If they are not as expected, optimisers are those of PyTorch, unchanged. Set
the environment variable PLAIN_TORCH=1 to get the same.
"""

import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def without_compiler(create: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """A class of optimisers, or a partial of one, without the wrappers that load torch.compile.

    PyTorch wraps methods of its optimisers to exclude them from compilation. The result is a subclass that has the
    methods without these wrappers. torch.optim itself is not changed.
    """
    if isinstance(create, partial):
        return partial(without_compiler(create.func), *create.args, **create.keywords)
    if os.environ.get("PLAIN_TORCH") == "1" or not isinstance(create, type):
        return create
    methods = {name: getattr(create, name) for name in dir(create) if not name.startswith("__")}
    bare = {name: inspect.unwrap(method) for name, method in methods.items() if _loads_compiler(method)}
    if "step" in bare:
        bare["step"] = torch.no_grad()(bare["step"])
    return type(create.__name__, (create,), bare)


def _loads_compiler(method: Any) -> bool:
    """Whether a method is in a wrapper of PyTorch that loads torch.compile when it is called."""
    while method is not None:
        code = getattr(method, "__code__", None)
        if code is not None and (code.co_name == "_use_grad" or Path(code.co_filename).name == "_compile.py"):
            return True
        method = getattr(method, "__wrapped__", None)
    return False


def compiled(network: nn.Module) -> Callable[..., Tensor]:
    """The network, compiled for the shapes of its first call. Random numbers are those of the network as it is."""
    from torch._inductor import config as inductor

    inductor.fallback_random = True
    fast = torch.compile(network, dynamic=False)
    shapes: list[torch.Size] = []

    def forward(*inputs: Tensor) -> Tensor:
        now = [x.shape for x in inputs]
        shapes[:] = shapes or now
        answers: Tensor = (fast if now == shapes else network)(*inputs)  # the last batch of an epoch may be smaller
        return answers

    return forward
