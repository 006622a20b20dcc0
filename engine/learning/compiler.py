# Machinery: keep, and skip at first.
"""torch.compile, which is only loaded for --compile, because loading it takes 1.5 s.

This file uses private names of PyTorch. If a version of PyTorch does not have them, its optimisers are used unchanged.
Set the environment variable PLAIN_TORCH=1 to use them unchanged in any case.
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
    """Remove the wrappers that load torch.compile from a class of optimisers, or from a partial of one.

    PyTorch wraps methods of its optimisers to exclude them from compilation. When such a wrapper is called, it loads
    torch.compile. The result is a subclass that has the methods without these wrappers. torch.optim is not changed.
    """
    if isinstance(create, partial):
        return partial(without_compiler(create.func), *create.args, **create.keywords)
    if os.environ.get("PLAIN_TORCH") == "1" or not isinstance(create, type):
        return create
    methods = {name: getattr(create, name) for name in dir(create) if not name.startswith("__")}
    bare = {name: inspect.unwrap(method) for name, method in methods.items() if _loads_compiler(method)}
    if "step" in bare:
        bare["step"] = torch.no_grad()(bare["step"])  # one of the removed wrappers disables gradients
    return type(create.__name__, (create,), bare)


def _loads_compiler(method: Any) -> bool:
    """Whether PyTorch has wrapped a method in a function that loads torch.compile when it is called."""
    while method is not None:
        code = getattr(method, "__code__", None)
        if code is not None and (code.co_name == "_use_grad" or Path(code.co_filename).name == "_compile.py"):
            return True
        method = getattr(method, "__wrapped__", None)
    return False


def compiled(network: nn.Module) -> Callable[..., Tensor]:
    """Compile a network for the shapes of its first call. The result is called like the network."""
    from torch._inductor import config as inductor

    inductor.fallback_random = True  # the same random numbers as without compilation
    fast = torch.compile(network, dynamic=False)
    shapes: list[torch.Size] = []

    def forward(*inputs: Tensor) -> Tensor:
        now = [x.shape for x in inputs]
        shapes[:] = shapes or now  # the first call sets them
        outputs: Tensor = (fast if now == shapes else network)(*inputs)  # the last batch of an epoch may be smaller
        return outputs

    return forward
