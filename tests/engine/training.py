"""A small trainer and a record of what it logs, for the tests of training."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from engine.datasets.splits import get_splits
from engine.interface.base_config import Config, LogConfig, TrainConfig
from engine.interface.base_problem import Problem
from engine.learning.distributed import SINGLE_PROCESS, Group
from engine.learning.prediction import build_model
from engine.run_folder.null_logger import NullLogger
from tests.toy import PROBLEM, ToyConfig, ToyDataConfig, ToyModelConfig
from trainer import Trainer

TINY = ToyConfig(
    model=ToyModelConfig(hidden=8),
    train=TrainConfig(epochs=4, batch_size=32, lr=0.01),
    data=ToyDataConfig(num_train=200, num_val=100, num_test=1, cache=False),
    log=LogConfig(checkpoints=False),
)


class Record(NullLogger):
    """A logger that keeps everything that a trainer logs."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.states: list[dict[str, Any]] = []

    def log_epoch(self, row: Mapping[str, float]) -> None:
        self.rows.append(dict(row))

    def log_state(self, state: Mapping[str, Any]) -> None:
        self.states.append(copy.deepcopy(dict(state)))


def build(
    config: Config = TINY,
    *,
    problem: Problem[Any] = PROBLEM,
    device: str = "cpu",
    group: Group = SINGLE_PROCESS,
    **training: Any,
) -> tuple[Trainer, Record]:
    """Create a trainer with the given training options, as in `build(lr=1.0)`, and a record of what it logs."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **training))
    splits, _ = get_splits(problem, config)
    model = build_model(problem, config, splits.train).to(device)
    record = Record()
    trainer = Trainer(problem, config, model, splits.train, splits.val, logger=record, group=group)
    return trainer, record


def weights(trainer: Trainer) -> torch.Tensor:
    """A copy of all weights in one dimension."""
    return torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()])
