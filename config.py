"""What an experiment is: frozen dataclasses, presets, and the JSON that follows from them.

An option exists once, as a field below, with its type, range, default and help; its flag (`--lr` for `lr`), its checks,
its key in config.json and its line in README.md are made from that field (options.py). Values are merged first
(command.py) and checked once: an ExperimentConfig that exists is complete and valid. Nothing here loads torch, so that
`--help` and refusals are instant.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from options import (
    check_name,
    merge,
    options_of,
    read_json,
    validate,
)

Task = Literal["energy", "phase"]
Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid"]
Architecture = Literal["mlp", "residual_mlp", "symmetric_mlp", "cnn"]
Optimizer = Literal["adam", "adamw", "sgd"]
Scheduler = Literal["none", "cosine", "step"]
Sampler = Literal["multispin", "numpy"]
Device = Literal["auto", "cuda", "mps", "cpu"]

T_CRITICAL = 2 / math.log(1 + math.sqrt(2))  # as in ising/exact.py, which loads NumPy

# strict: true is no number and 8.0 no integer; forbid: an unknown key is an error, not a silent default.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The network."""

    architecture: Architecture = Field(default="mlp", description="kind of network")
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        default=(128, 64, 32),
        strict=False,  # a list will do; its elements are strict
        min_length=1,
        max_length=32,
        description="widths of the hidden layers; in residual_mlp of the blocks, on a stream as wide as the first",
    )
    channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        default=(16,), strict=False, min_length=1, max_length=32, description="of cnn, the channels of its convolutions"
    )
    kernel_size: int = Field(
        default=2, ge=1, le=32, description="of cnn, sites along one edge of a kernel; at most the lattice size"
    )
    activation: Activation = Field(default="gelu", description="nonlinearity between layers")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="share of activations set to zero in training")
    input_temperature: bool = Field(default=False, description="tell the network the temperature as well")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """How the network is trained."""

    epochs: int = Field(default=100, ge=1, description="passes over the training set")
    batch_size: int = Field(default=64, ge=1, description="configurations in one optimiser step")
    lr: float = Field(default=0.001, gt=0, description="peak learning rate")
    optimizer: Optimizer = Field(default="adamw", description="update rule; sgd has momentum 0.9")
    scheduler: Scheduler = Field(
        default="cosine",
        description="learning rate after the warm-up: constant, to zero along a cosine, or /10 at each third",
    )
    warmup_epochs: int = Field(default=0, ge=0, description="epochs of linear rise to the peak rate; below epochs")
    weight_decay: float = Field(default=0.01, ge=0, description="decay of weight matrices; biases and norms have none")
    grad_clip: float | None = Field(default=None, gt=0, description="largest norm of the gradient")
    patience: int | None = Field(
        default=None, ge=1, description="stop after so many epochs without a better validation loss; below epochs"
    )

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        faults = []
        if self.warmup_epochs >= self.epochs:
            faults.append(f"--warmup-epochs {self.warmup_epochs} leaves nothing of --epochs {self.epochs}: lower it")
        if self.patience is not None and self.patience >= self.epochs:
            faults.append(f"--patience {self.patience} never stops a run of --epochs {self.epochs}: lower or drop it")
        if faults:
            raise ValueError("; ".join(faults))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """The configurations that are drawn, or those of a file."""

    lattice_size: int = Field(
        default=8, ge=4, le=1024, multiple_of=2, description="sites along one edge of the lattice"
    )
    num_train: int = Field(default=10_000, ge=1, description="configurations to train on")
    num_val: int = Field(default=2_000, ge=1, description="configurations that choose the best epoch")
    num_test: int = Field(default=2_000, ge=1, description="configurations that are looked at once, at the end")
    temp_min: float = Field(default=1.0, ge=0.02, le=10, description="lowest temperature, in J / k_B")
    temp_max: float = Field(default=4.0, ge=0.02, le=10, description="highest temperature, in J / k_B")
    sweeps: int | None = Field(
        default=None, ge=0, description="Metropolis sweeps before a configuration is taken; none: as the lattice needs"
    )
    sampler: Sampler = Field(
        default="multispin", description="compiled, 64 chains in a machine word; or the textbook's in NumPy, slower"
    )
    cache: bool = Field(default=True, description="keep what is drawn in the folder cache, to be found there next time")
    file: str | None = Field(
        default=None,
        min_length=1,
        json_schema_extra={"flag": "--data"},
        description="an .npz file with spins (N, L, L) and temperatures (N,), to use instead of drawing",
    )

    @model_validator(mode="after")
    def _check_temperatures(self) -> Self:
        if self.temp_min >= self.temp_max:
            raise ValueError(f"--temp-min {self.temp_min} is not below --temp-max {self.temp_max}: widen the range")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LogConfig:
    """Where the results go."""

    run_name: Annotated[str, AfterValidator(check_name)] | None = Field(
        default=None, description="folder in checkpoints/; without it, one named after network, lattice, seed and time"
    )
    wandb: bool = Field(default=False, description="log to Weights & Biases as well")
    checkpoints: bool = Field(default=True, description="keep the weights (.pt files)")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExperimentConfig:
    """One experiment, complete."""

    task: Task = Field(default="energy", description="what is predicted: the energy per spin, or whether T < T_c")
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()
    log: LogConfig = LogConfig()
    seed: int = Field(
        default=42, ge=0, le=2**64 - 1, description="of the data, the weights and the order of the batches"
    )
    device: Device = Field(
        default="auto", description="where to train; auto takes the first there is of cuda, mps, cpu"
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads; none: as many as there are, but one for small networks"
    )
    compile: bool = Field(default=False, description="compile the network by torch.compile; no gain on the CPU")

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        if self.train.batch_size > self.data.num_train:
            raise ValueError(
                f"--batch-size {self.train.batch_size} is above --num-train {self.data.num_train}: lower it"
            )
        return self

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        faults = []
        if self.model.architecture == "cnn" and self.model.kernel_size > self.data.lattice_size:
            kernel = f"--kernel-size {self.model.kernel_size}"
            faults.append(f"{kernel} is above --lattice-size {self.data.lattice_size}: lower it")
        if self.task == "phase":
            if self.model.input_temperature:
                faults.append("--input-temperature tells the answer of --task phase: drop one")
            if self.data.file is None and not self.data.temp_min < T_CRITICAL < self.data.temp_max:
                edges = f"--temp-min {self.data.temp_min} and --temp-max {self.data.temp_max}"
                faults.append(f"{edges} have one phase between them, for --task phase: have T_c = 2.269 there")
        if faults:
            raise ValueError("; ".join(faults))
        return self


PRESETS: dict[str, ExperimentConfig] = {
    "debug": ExperimentConfig(
        model=ModelConfig(hidden=(64, 32)),
        train=TrainConfig(epochs=5),
        data=DataConfig(num_train=2_000, num_val=500, num_test=500),
    ),
    "small": ExperimentConfig(
        train=TrainConfig(epochs=40),
        data=DataConfig(num_train=5_000, num_val=1_000, num_test=1_000),
    ),
    "default": ExperimentConfig(),
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


OPTIONS = options_of(ExperimentConfig)


def to_json(config: ExperimentConfig) -> str:
    """The complete config as JSON, which `--config` and load_config take back unchanged."""
    return json.dumps(asdict(config), indent=2) + "\n"


def load_config(path: str | Path) -> ExperimentConfig:
    """The experiment of a config.json; keys that it leaves out have their defaults.

    Raises:
        ConfigError: the file cannot be read, is not strict JSON, or asks for what cannot be.
    """
    return validate(ExperimentConfig, merge(asdict(ExperimentConfig()), read_json(path)), source=str(path))
