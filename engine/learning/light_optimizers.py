# Machinery: keep, and skip at first.
"""Create optimisers without loading torch.compile, which takes about a second.

PyTorch wraps methods of its optimisers to exclude them from compilation. A wrapper loads torch.compile when it is
called. This file uses private names of PyTorch; where a version does not have them, its optimisers are used unchanged.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer


def without_compiler(create: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """A subclass of a class of optimisers, or a partial of one, whose methods do not load torch.compile."""
    if isinstance(create, partial):
        return partial(without_compiler(create.func), *create.args, **create.keywords)
    if not isinstance(create, type):
        return create
    methods = {name: getattr(create, name) for name in dir(create) if not name.startswith("__")}
    bare = {name: inspect.unwrap(method) for name, method in methods.items() if _loads_compiler(method)}
    if "step" in bare:
        bare["step"] = torch.no_grad()(bare["step"])  # one of the removed wrappers disables gradients
    return type(create.__name__, (create,), bare)


def _loads_compiler(method: Any) -> bool:
    while method is not None:
        code = getattr(method, "__code__", None)
        if code is not None and (code.co_name == "_use_grad" or Path(code.co_filename).name == "_compile.py"):
            return True
        method = getattr(method, "__wrapped__", None)
    return False
