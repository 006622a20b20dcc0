# Experiment: yours, to replace.
"""The options of the Ising experiment, and its presets.

An option is a field with a type, a default, a help text and a range. Its flag, its checks and its key in config.json
are derived from the field. The options that every problem has (training, data sizes, logging, seed, device) are
inherited from engine/interface/base_config.py.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from engine.interface import STRICT, Config, TrainConfig, option
from engine.interface import DataConfig as SharedDataConfig
from ising.exact import T_CRITICAL

TaskName = Literal["energy", "phase"]
Sampler = Literal["multispin", "multispin_wolff", "numpy", "wolff"]
# The keys of model.ARCHITECTURES and model.ACTIVATIONS, repeated here because model.py loads torch.
Architecture = Literal["mlp", "residual_mlp", "symmetric_mlp", "cnn"]
Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid"]

Widths = tuple[Annotated[int, Field(ge=1, le=4096)], ...]


def used_by(*architectures: Architecture) -> Callable[["ModelConfig"], str]:
    """The `idle` of an option that only these networks use: the other networks refuse it."""
    return lambda model: "" if model.architecture in architectures else f"--architecture {model.architecture}"


def unused_by_squares(model: "ModelConfig") -> str:
    """The `idle` of options for hidden layers that are not squared. The first layer of symmetric_mlp is squared."""
    one_layer = model.architecture == "symmetric_mlp" and len(model.hidden) == 1
    return "symmetric_mlp of one layer, which is squared" if one_layer else ""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The network."""

    architecture: Architecture = option("mlp", "the network; cnn accepts lattices of any size")
    hidden: Widths = option(
        (128, 64, 32),
        "widths of the hidden layers (residual_mlp: of the blocks; the stream is as wide as the first)",
        idle=used_by("mlp", "residual_mlp", "symmetric_mlp"),
        strict=False,  # a list is accepted; its elements are strict
        min_length=1,
        max_length=32,
    )
    channels: Widths = option(
        (16,),
        "numbers of channels of the convolutions of cnn",
        idle=used_by("cnn"),
        strict=False,
        min_length=1,
        max_length=32,
    )
    kernel_size: int = option(
        2,
        "sites along one edge of a kernel of cnn; at most the lattice size",
        idle=used_by("cnn"),
        ge=1,
        le=32,
    )
    activation: Activation = option("gelu", "nonlinearity between layers", idle=unused_by_squares)
    initial_scale: float = option(
        1.0,
        "factor on the initial weights of all matrices; at 1, each layer keeps the mean square of its inputs",
        gt=0,
        le=100,
    )
    dropout: float = option(0.1, "fraction of activations set to zero in training", idle=unused_by_squares, ge=0, lt=1)
    input_temperature: bool = option(False, "also give the temperature to the network")

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.architecture == "residual_mlp" and self.hidden[0] == 1:
            raise ValueError(
                "--hidden 1: the stream of residual_mlp is as wide as the first layer, and a layer norm of one number "
                "is constant: begin with at least 2"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig(SharedDataConfig):
    """The configurations, sampled or from a file with spins (N, L, L) and temperatures (N,)."""

    num_train: int = option(10_000, "configurations for training", ge=1)
    num_val: int = option(2_000, "configurations for validation, which chooses the best epoch", ge=1)
    num_test: int = option(2_000, "configurations for the test at the end", ge=1)
    lattice_size: int = option(8, "sites along one edge of the lattice, L", ge=4, le=1024, multiple_of=2)
    temp_min: float = option(1.0, "lowest temperature, in J / k_B", ge=0.02, le=10)
    temp_max: float = option(4.0, "highest temperature, in J / k_B", ge=0.02, le=10)
    sweeps: int | None = option(None, "sweeps before a configuration is stored; none: enough for equilibrium", ge=0)
    sampler: Sampler = option(
        "multispin",
        "multispin: Metropolis, compiled, 64 chains per machine word; numpy: the textbook algorithm, slower; "
        "multispin_wolff, wolff: with cluster flips, faster on large lattices",
    )

    spins_key: str = option("spins", "name of the array of spins in the file of --data", scope="reader", min_length=1)
    temperatures_key: str = option(
        "temperatures", "name of the array of temperatures in that file", scope="reader", min_length=1
    )
    temperature: float | None = option(
        None,
        "temperature of all configurations in that file, in J / k_B; none: its array of temperatures",
        scope="reader",
        gt=0,
        le=1e6,
    )

    @model_validator(mode="after")
    def _check_temperatures(self) -> Self:
        if self.temperature is not None and self.temperatures_key != "temperatures":
            raise ValueError(f"--temperature and --temperatures-key {self.temperatures_key} are both given: drop one")
        if self.temp_min >= self.temp_max:
            raise ValueError(f"--temp-min {self.temp_min} is not below --temp-max {self.temp_max}: widen the range")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExperimentConfig(Config):
    """All options of one experiment."""

    task: TaskName = option("energy", "what is predicted: the energy per spin, or whether T < T_c")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        faults = []
        sampled = self.data.file is None
        if sampled and self.model.architecture == "cnn" and self.model.kernel_size > self.data.lattice_size:
            kernel = f"--kernel-size {self.model.kernel_size}"
            faults.append(f"{kernel} is above --lattice-size {self.data.lattice_size}: lower it")
        if self.task == "phase":
            if self.model.input_temperature:
                faults.append("--input-temperature cannot be used with --task phase, which it determines: drop one")
            if sampled and not self.data.temp_min < T_CRITICAL < self.data.temp_max:
                edges = f"--temp-min {self.data.temp_min} and --temp-max {self.data.temp_max}"
                faults.append(f"{edges} include only one phase: include T_c = 2.269 for --task phase")
        if faults:
            raise ValueError("; ".join(faults))
        return self


# What the values are worth, and which others were tried: docs/results.md, "A recipe".
RECIPE = ExperimentConfig(
    model=ModelConfig(hidden=(1024,), activation="silu", initial_scale=0.6, dropout=0.0),
    train=TrainConfig(epochs=50, batch_size=128, lr=0.003, betas=(0.95, 0.98), scheduler="linear", weight_decay=0.03),
)
PRESETS: dict[str, ExperimentConfig] = {
    "debug": replace(
        RECIPE,
        model=replace(RECIPE.model, hidden=(128,)),
        train=replace(RECIPE.train, epochs=5, batch_size=64),
        data=DataConfig(num_train=2_000, num_val=500, num_test=500),
    ),
    "small": replace(
        RECIPE,
        train=replace(RECIPE.train, epochs=40),
        data=DataConfig(num_train=5_000, num_val=1_000, num_test=1_000),
    ),
    "default": RECIPE,
    "fresh": replace(
        RECIPE,
        model=replace(RECIPE.model, initial_scale=0.4),
        train=replace(RECIPE.train, fresh=True, lr=0.004, weight_decay=0.0),
    ),
    "residual": ExperimentConfig(model=ModelConfig(architecture="residual_mlp", dropout=0.0)),
    "exact": ExperimentConfig(
        model=ModelConfig(architecture="cnn", channels=(32,), activation="relu", dropout=0.0),
        train=TrainConfig(epochs=14, batch_size=16, lr=0.1, weight_decay=0.0),
        data=DataConfig(num_train=5_000, num_val=1_000),
    ),
    "large": ExperimentConfig(
        model=ModelConfig(architecture="residual_mlp", hidden=(512, 512, 512, 512)),
        train=TrainConfig(epochs=40, batch_size=256, warmup_epochs=2, patience=10),
        data=DataConfig(lattice_size=16, num_train=100_000, num_val=5_000, num_test=5_000),
    ),
}
