"""What an experiment is: frozen dataclasses, presets, and the command line and JSON that follow from them.

An option exists once, as a field below, with its type, range, default and help; its flag (`--lr` for `lr`), its checks,
its key in config.json and its line in README.md are made from that field (options.py). Values are settled by
defaults < preset < config file < flags and checked once, after the merge: an ExperimentConfig that exists is complete
and valid. Nothing here loads torch, so that `--help` and refusals are instant.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from options import ConfigError, Parser, add_flags, flags_given, merge, nearest, options_of, read_json, validate

Activation = Literal["relu", "gelu", "silu", "tanh"]
Architecture = Literal["mlp", "residual_mlp"]
Optimizer = Literal["adam", "adamw", "sgd"]
Scheduler = Literal["none", "cosine", "step"]
Sampler = Literal["multispin", "numpy"]
Device = Literal["auto", "cuda", "mps", "cpu"]

# Names that Windows keeps for devices: a folder of that name cannot be copied there.
RESERVED_NAMES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}


def check_run_name(name: str) -> str:
    """Raise ValueError unless the name is a plain folder name on every system; return it."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name):
        raise ValueError("use 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter, a digit or _")
    if name.partition(".")[0].upper() in RESERVED_NAMES:
        raise ValueError("the name is reserved on Windows; choose another")
    return name


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
    activation: Activation = Field(default="gelu", description="nonlinearity between layers")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="share of activations set to zero in training")


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

    run_name: Annotated[str, AfterValidator(check_run_name)] | None = Field(
        default=None, description="folder in checkpoints/; without it, one named after network, lattice, seed and time"
    )
    wandb: bool = Field(default=False, description="log to Weights & Biases as well")
    checkpoints: bool = Field(default=True, description="keep the weights (.pt files)")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExperimentConfig:
    """One experiment, complete."""

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


class Command(NamedTuple):
    """What one command line asks for."""

    config: ExperimentConfig
    print_config: bool
    overwrite: bool
    save_data: Path | None
    resume: Path | None  # the folder of the run to go on with


def build_parser() -> Parser:
    """The parser of main.py: what is about one command, and a flag for every option."""
    parser = Parser(
        prog="main.py",
        usage="main.py [options]",
        description="Draw 2D Ising configurations, train a network to predict their energy, show how well it does.",
        epilog="Flags override --config, which overrides --preset, wherever they stand; `none` is off, where allowed.",
    )
    command = parser.add_argument_group("command")
    command.add_argument("--preset", choices=PRESETS, help="start from this config instead of `default`")
    command.add_argument("--config", metavar="FILE", help="take the values of a config.json, such as an earlier run's")
    command.add_argument("--resume", metavar="RUN", help="go on with a run that was cut off, by name or folder")
    command.add_argument("--print-config", action="store_true", help="print the resulting config.json and stop")
    command.add_argument(
        "--save-data", metavar="FILE", help="write the data to an .npz file, as --data takes it, and stop"
    )
    command.add_argument("--overwrite", action="store_true", help="replace an earlier run, or file, of the same name")
    add_flags(parser, OPTIONS, top="experiment")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Command:
    """What a command line asks for, complete and valid; without `argv`, the program's own.

    A fault ends the program with one line on stderr and exit code 2.
    """
    parser = build_parser()
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = ["--preset", "--config", "--resume", "--overwrite", *(option.flag for option in OPTIONS.values())]
        parser.error(f"{unknown[0]}: no such option; {nearest(unknown[0], {flag: flag for flag in flags})}")
    try:
        return _resolve(vars(namespace))
    except ConfigError as error:
        parser.error(str(error))


def _resolve(given: dict[str, Any]) -> Command:
    """Merge defaults < preset < config file < flags, and check the result."""
    for name in ("preset", "config", "save_data", "resume"):
        if not isinstance(given.get(name, ""), str):  # what argparse makes of --preset=--
            raise ConfigError(f"--{name.replace('_', '-')} --: give one value")
    if "resume" in given:
        return _resolve_resume(given)
    values = asdict(PRESETS[given.get("preset", "default")])
    if "config" in given:
        content = read_json(given["config"])
        if "preset" in given and merge(asdict(ExperimentConfig()), content) == content:
            raise ConfigError(f"--preset {given['preset']} does nothing: {given['config']} sets every option; drop one")
        values = merge(values, content)
    flags = flags_given(given, OPTIONS)
    # A section that a file gives as something else stays as it is, to be refused.
    values = merge(values, {k: v for k, v in flags.items() if isinstance(values[k], dict) or not isinstance(v, dict)})
    config = validate(ExperimentConfig, values, source=given.get("config", ""), flags=flags)
    _refuse_idle(given, config)
    return Command(
        config,
        print_config="print_config" in given,
        overwrite="overwrite" in given,
        save_data=Path(given["save_data"]) if "save_data" in given else None,
        resume=None,
    )


# When a run goes on: it may become longer, and do so on another machine, with other records.
MAY_CHANGE = {"--epochs", "--cache", "--wandb", "--checkpoints", "--device", "--threads", "--compile"}


def _resolve_resume(given: dict[str, Any]) -> Command:
    """The config of the run to go on with, with what may change as the flags say."""
    folder = Path(given["resume"]) if "/" in given["resume"] else Path("checkpoints") / given["resume"]
    idle = [f"--{name.replace('_', '-')}" for name in ("preset", "config", "overwrite", "save_data") if name in given]
    if idle:
        raise ConfigError(f"{', '.join(idle)} does nothing with --resume, which takes the config of the run: drop it")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--resume {given['resume']}: nothing to go on with: {folder} has no config.json")
    earlier = load_config(folder / "config.json")
    if not earlier.log.checkpoints:
        raise ConfigError(f"--resume {given['resume']}: nothing to go on with: the run has --no-checkpoints")
    flags = flags_given(given, OPTIONS)
    config = validate(ExperimentConfig, merge(asdict(earlier), flags), source=str(folder / "config.json"), flags=flags)
    for path, option in OPTIONS.items():
        before, now = (reduce(getattr, path, each) for each in (earlier, config))
        if before != now and option.flag not in MAY_CHANGE:
            raise ConfigError(
                f"{option.flag} {option.typed(now)}: the run has {option.typed(before)}: drop it, or begin another run"
            )
    if config.train.epochs < earlier.train.epochs:
        raise ConfigError(f"--epochs {config.train.epochs}: the run has {earlier.train.epochs}, and may only get more")
    return Command(config, "print_config" in given, overwrite=False, save_data=None, resume=folder)


def _refuse_idle(given: dict[str, Any], config: ExperimentConfig) -> None:
    """Raise ConfigError if something on the command line does nothing beside the rest of it."""
    used = [option.flag for path, option in OPTIONS.items() if ".".join(path) in given and option.flag != "--data"]
    used += [f"--{name.replace('_', '-')}" for name in ("print_config", "overwrite", "save_data") if name in given]
    if config.data.file is not None:
        used.append("--data")  # on the line or in a config file
    idle_beside = {
        "--print-config": {"--overwrite", "--save-data"},
        "--save-data": {option.flag for path, option in OPTIONS.items() if path[0] not in ("data", "seed", "threads")},
        "--data": {"--temp-min", "--temp-max", "--sweeps", "--sampler", "--cache", "--save-data"},
    }
    for option, idle in idle_beside.items():
        if option in used and (found := [flag for flag in used if flag in idle]):
            way_out = "drop one" if option != "--data" or "data.file" in given else "drop it, or give --data none"
            raise ConfigError(f"{', '.join(found)} does nothing with {option}: {way_out}")
    if "--overwrite" in used and "--save-data" not in used and config.log.run_name is None:
        raise ConfigError("--overwrite does nothing without --run-name: say which run to replace")
