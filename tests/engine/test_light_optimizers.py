"""Optimisers that do not load torch.compile give the same results as those of torch. torch.optim is not changed."""

import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from engine.learning.light_optimizers import without_compiler
from tests.conftest import ROOT

OPTIMIZERS: list[Any] = [
    torch.optim.AdamW,
    partial(torch.optim.SGD, momentum=0.9),
    torch.optim.RMSprop,
    torch.optim.Rprop,
]


def trained(create: Any) -> list[float]:
    """The weights after some steps. The state is saved and loaded in the middle."""
    torch.manual_seed(0)
    network, x = nn.Linear(3, 1), torch.randn(8, 3)
    optimizer = create(network.parameters(), lr=0.01)
    for step in range(6):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
        if step == 2:
            state = optimizer.state_dict()
            optimizer = create(network.parameters(), lr=0.01)
            optimizer.load_state_dict(state)
    numbers: list[float] = network.weight.flatten().tolist()
    return numbers


@pytest.mark.parametrize("create", OPTIMIZERS)
def test_the_weights_are_those_of_the_optimiser_of_torch(create: Any) -> None:
    assert trained(without_compiler(create)) == trained(create)


def test_the_result_is_a_subclass_with_the_same_name_and_torch_is_not_changed() -> None:
    before = dict(vars(torch.optim.Optimizer)) | dict(vars(torch.optim.AdamW))
    kind = without_compiler(torch.optim.AdamW)
    assert isinstance(kind, type)
    assert issubclass(kind, torch.optim.AdamW)
    assert kind.__name__ == "AdamW"
    assert dict(vars(torch.optim.Optimizer)) | dict(vars(torch.optim.AdamW)) == before


def test_an_optimiser_of_your_own_is_not_changed() -> None:
    class Mine(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, {"lr": lr})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.sub_(group["lr"] * p.grad)

    def make(params: Any, lr: float) -> torch.optim.Optimizer:
        return Mine(params, lr)

    assert without_compiler(make) is make
    assert trained(without_compiler(Mine)) == trained(Mine)


def test_importing_does_not_change_global_state() -> None:
    """torch.optim is the same before and after trainer.py is loaded, and no random generator has been seeded."""
    code = """
import random, sys
import numpy as np
import torch
def state():
    kinds = (torch.optim.Optimizer, torch.optim.AdamW, torch.optim.SGD, torch.Tensor, torch.nn.Module)
    found = [dict(vars(kind)) for kind in kinds]
    return found, torch.get_num_threads(), torch.random.initial_seed(), random.getstate(), str(np.random.get_state())
before = state()
import trainer, engine.run_folder.open_run, main, evaluate
sys.exit(state() != before)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
