"""Training of the Ising networks: every option has an effect, and networks learn."""

import dataclasses
from typing import Any

import pytest
import torch

from config import RECIPE, DataConfig, ExperimentConfig, ModelConfig
from engine.interface.base_config import TrainConfig
from engine.learning.prediction import evaluate
from engine.machine.hardware import choose_num_threads
from engine.options.fields import options_of
from model import ARCHITECTURES, create_network
from problem import PROBLEM
from tests.engine.training import Record, build
from trainer import OPTIMIZERS, Trainer, create_optimizer

TINY = ExperimentConfig(
    model=ModelConfig(hidden=(16, 8), channels=(4,), dropout=0),
    train=TrainConfig(epochs=4, batch_size=32, lr=0.01),
    data=DataConfig(lattice_size=4, num_train=200, num_val=100, num_test=1, sampler="numpy", sweeps=20, cache=False),
)


def ising_trainer(model: ModelConfig = TINY.model, **options: Any) -> tuple[Trainer, Record]:
    return build(dataclasses.replace(TINY, model=model), problem=PROBLEM, **options)


CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [  # options of both networks, additional options of the second
    ({}, {"architecture": "residual_mlp"}),
    ({}, {"architecture": "symmetric_mlp"}),
    ({}, {"architecture": "cnn"}),
    ({}, {"input_temperature": True}),
    ({}, {"hidden": (16, 9)}),
    ({}, {"activation": "tanh"}),
    ({}, {"dropout": 0.1}),
    ({}, {"initial_scale": 0.5}),
    ({"architecture": "cnn"}, {"channels": (5,)}),
    ({"architecture": "cnn"}, {"kernel_size": 3}),
]


@pytest.mark.parametrize(("shared", "change"), CHANGES, ids=str)
def test_every_option_of_the_network_changes_the_run(shared: dict[str, Any], change: dict[str, Any]) -> None:
    rows = []
    for values in (shared, shared | change):
        trainer, record = ising_trainer(dataclasses.replace(TINY.model, **values))
        trainer.fit()
        rows.append(record.rows)
    assert rows[0] != rows[1]


def test_the_changes_above_cover_every_option() -> None:
    assert {name for _, change in CHANGES for name in change} == {
        path[-1] for path in options_of(ExperimentConfig) if path[0] == "model"
    }


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_training_learns(architecture: Any) -> None:
    trainer, _ = ising_trainer(dataclasses.replace(TINY.model, architecture=architecture), epochs=30)
    trainer.fit()
    assert evaluate(PROBLEM, TINY, trainer.model, trainer.val).metrics["r2"] > 0.8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_biases_and_norms_have_no_weight_decay(architecture: Any) -> None:
    network = create_network(ModelConfig(architecture=architecture, hidden=(8, 8)), 4)
    decayed, spared = create_optimizer(network, TrainConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0)
    matrices = {id(p) for name, p in network.named_parameters() if name.endswith("weight") and p.ndim > 1}
    assert {id(p) for p in decayed["params"]} == matrices
    assert {id(p) for p in spared["params"]} == {id(p) for p in network.parameters()} - matrices


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_default_recipe_can_have_any_optimiser(optimizer: Any) -> None:
    config = dataclasses.replace(RECIPE.train, optimizer=optimizer)
    groups = create_optimizer(create_network(ModelConfig(hidden=(8,)), 4), config).param_groups
    assert [group.get("betas") for group in groups] == [None if optimizer == "sgd" else RECIPE.train.betas] * 2


@pytest.mark.slow
def test_the_default_network_predicts_nearly_every_energy_level() -> None:
    """Of ten seeds, the worst predicts 0.9990: docs/results.md. The earlier recipe, 0.42."""
    config = dataclasses.replace(RECIPE, data=dataclasses.replace(RECIPE.data, cache=False, num_test=1))
    trainer, _ = build(config, problem=PROBLEM)
    trainer.fit()
    assert trainer.history[-1]["val_exact_fraction"] > 0.995


def test_small_networks_use_one_thread_and_large_ones_all() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert choose_num_threads(create_network(ModelConfig(), 8), batch_size=64, input_size=64) == 1
        large = create_network(ModelConfig(hidden=(512, 512)), 16)
        assert choose_num_threads(large, batch_size=256, input_size=256) == 2
        small_kernel = create_network(ModelConfig(architecture="cnn"), 8)
        assert choose_num_threads(small_kernel, batch_size=64, input_size=64) == 1
        assert choose_num_threads(small_kernel, batch_size=64, input_size=64**2) == 2  # applied at every site
    finally:
        torch.set_num_threads(before)
