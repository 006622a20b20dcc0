"""torch.compile: used where it is asked for and, since loading it takes 1.5 s, not loaded anywhere else.

Private names of PyTorch are behind checks: where they are not as expected, everything works as PyTorch made it. The
environment variable PLAIN_TORCH=1 has the same effect.
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
    """The same class of optimisers, or partial of one, whose methods do not load torch.compile.

    They load it only in order to exclude themselves from compilation. What is returned is a subclass with the methods
    inside of those wrappers, so that torch.optim itself stays as it is.
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
    """Whether a method is wrapped in one of the functions of PyTorch that load torch.compile when they are called."""
    while method is not None:
        code = getattr(method, "__code__", None)
        if code is not None and (code.co_name == "_use_grad" or Path(code.co_filename).name == "_compile.py"):
            return True
        method = getattr(method, "__wrapped__", None)
    return False


def compiled(network: nn.Module) -> Callable[..., Tensor]:
    """The network as a function that is compiled for the shapes of its first call, with the same random numbers."""
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
