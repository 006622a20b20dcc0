"""Find what the Python code of a training step changes: attributes and random generators. Also find hooks.

A replayed step (replay.py) does not run Python code: it does not make such changes and does not call hooks. Its result
could therefore be wrong.
"""

import operator
import pickle
import random
import sys
import sysconfig
from collections import deque
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

# The folders of the standard library and of installed packages.
LIBRARIES = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")]

# Attributes that every nn.Module has and that `read` skips. Hooks are among them; `hooks` looks at these.
MODULE_INTERNALS = set(vars(nn.Module())) - {"_parameters", "_buffers", "_modules", "training"}

Attributes = dict[tuple[str, str], list[Any]]  # (owner, attribute): its value, and the elements of the value


class Surroundings:
    """A snapshot of the attributes that the step of a trainer can reach, and of global random generators.

    Attributes are read from these owners: the trainer, its problem, every object in an attribute of these two, every
    module of a network, the classes of all these, and the files in which you define these classes. If an attribute is a
    collection, its elements are read too. If it is a random generator, its state is read. Nothing deeper is read.
    """

    def __init__(self, trainer: Any) -> None:
        self.owners: dict[str, Any] = {
            "trainer": trainer,
            "problem": trainer.problem,
            **modules_of("network", trainer.network),
        }
        seen = {id(owner) for owner in self.owners.values()}
        for name, owner in (("trainer", trainer), ("problem", trainer.problem)):
            for key, value in vars(owner).items():
                found = modules_of(f"{name}.{key}", value) if isinstance(value, nn.Module) else {}
                if hasattr(value, "__dict__") and not callable(value) and not isinstance(value, ModuleType):
                    found = {f"{name}.{key}": value}
                self.owners |= {path: each for path, each in found.items() if id(each) not in seen}
        classes = {kind for owner in self.owners.values() for kind in type(owner).__mro__}
        files = {kind.__module__ for kind in classes if is_user_module(kind.__module__)}
        self.owners |= {f"the class {kind.__name__}": kind for kind in classes if kind.__module__ in files}
        self.owners |= {f"the file {name}": sys.modules[name] for name in files}
        self.modules = {name: owner for name, owner in self.owners.items() if isinstance(owner, nn.Module)}
        self.optimizers = {name: value for name, value in self.owners.items() if isinstance(value, Optimizer)}
        self.attributes = self.read()
        self.randomness = global_generators()

    def read(self) -> Attributes:
        """Read all attributes, and the values in the options and the state of the optimisers."""
        found: Attributes = {}
        for name, owner in self.owners.items():
            for key, value in vars(owner).items():
                if key in MODULE_INTERNALS or key[:2] == "__" or callable(value) or isinstance(value, ModuleType):
                    continue
                if isinstance(value, dict):
                    found[name, key] = [value, *value.values()]
                elif isinstance(value, (list, tuple, set, deque)):
                    found[name, key] = [value, *value]
                elif isinstance(value, (np.random.Generator, random.Random)):
                    found[name, key] = [value, pickle.dumps(value)]  # these bytes contain the state of the generator
                else:
                    found[name, key] = [value]
        for name, optimizer in self.optimizers.items():
            found[name, "param_groups"] = [value for group in optimizer.param_groups for value in group.values()]
            found[name, "state"] = [value for state in optimizer.state.values() for value in state.values()]
        return found

    def changes(self) -> list[str]:
        """Messages about hooks, and about attributes and generators that have changed since this snapshot."""
        before, after = self.attributes, self.read()
        found = self.hooks()
        for name, key in before | after:
            if not unchanged(before.get((name, key), []), after.get((name, key), [])):
                found.append(f"the step changes {name}.{key}")
        for name, state in global_generators().items():
            if state != self.randomness[name]:
                found.append(f"the step uses the global random generator of {name}")
        return found

    def hooks(self) -> list[str]:
        """Messages about hooks, which a replayed step does not call."""
        found = []
        for name, module in self.modules.items():
            before, after = module._forward_pre_hooks, module._forward_hooks
            if before or after or module._backward_hooks or module._backward_pre_hooks:
                found.append(f"there is a hook on {name}")
            for key, p in module._parameters.items():
                if p is not None and (p._backward_hooks or p._post_accumulate_grad_hooks):
                    found.append(f"there is a hook on {name}.{key}")
        for name, optimizer in self.optimizers.items():
            if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
                found.append(f"there is a hook on {name}")
        return found


def modules_of(name: str, network: nn.Module) -> dict[str, nn.Module]:
    """All modules of a network by path, such as `network.hidden`."""
    return {f"{name}.{path}".rstrip("."): module for path, module in network.named_modules()}


@cache
def is_user_module(name: str) -> bool:
    """Whether a Python module is one that you edit: neither in a library nor in engine/."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or name.startswith("engine."):
        return name == "__main__"  # in a notebook, this module has no file
    return not any(library in Path(file).resolve().parents for library in LIBRARIES)


def global_generators() -> dict[str, Any]:
    """The states of the global random generators of NumPy and Python."""
    # The generator of NumPy has 624 numbers, which are always replaced together, and the position of the next number
    # to use, which is in `rest`. It is therefore enough to compare the first number and the position.
    _, numbers, *rest = np.random.get_state()  # noqa: NPY002 - the global generator is meant
    return {"NumPy": (numbers[0], *rest), "Python": random.getstate()}


def unchanged(before: list[Any], after: list[Any]) -> bool:
    """Whether an attribute and its elements are the same objects as before, or equal numbers or strings."""
    if len(before) != len(after):
        return False
    return all(map(operator.is_, before, after)) or all(
        a is b or (isinstance(a, (int, float, str, bytes)) and type(a) is type(b) and a == b)
        for a, b in zip(before, after, strict=True)
    )
