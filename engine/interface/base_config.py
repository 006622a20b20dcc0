# Machinery: keep, and skip at first.
"""The options that every problem has: data sizes, training, logging, seed, device. The config of a problem adds more.

Each option is defined once, as a field with its type, range, default and help text. Its flag (`--lr` for `lr`), its
checks, its key in config.json and its line in the documentation are derived from this field (fields.py). Values are
merged first (run_request.py) and then checked once, so that every Config object is complete and valid. This file does
not load torch, so that `--help` is fast.
"""

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from engine.options.config_values import upgrade, with_format
from engine.options.fields import (
    NUMBER,
    ConfigError,
    Option,
    check_name,
    merge,
    option,
    options_of,
    own_fields_first,
    read_object,
    validate,
)
from engine.options.scopes import SCOPES

# The keys of trainer.OPTIMIZERS and trainer.SCHEDULES, repeated here because trainer.py loads torch.
Optimizer = Literal["adam", "adamw", "sgd"]
ADAM: tuple[Optimizer, ...] = ("adam", "adamw")  # those with --betas
Scheduler = Literal["none", "linear", "cosine", "step"]
Device = Literal["auto", "cuda", "mps", "cpu"]

# strict: do not accept true as a number, or 8.0 as an integer. forbid: an unknown key is an error.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

Limit = tuple[Annotated[str, Field(min_length=1)], ...]  # the name of a column, and a number

C = TypeVar("C", bound="Config")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """How the network is trained."""

    epochs: int = option(100, "passes over the training set", scope="duration", ge=1, le=1_000_000)
    batch_size: int = option(64, "examples in one optimiser step", ge=1)
    lr: float = option(0.001, "peak learning rate", gt=0)
    optimizer: Optimizer = option("adamw", "update rule; sgd has momentum 0.9")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], ...] | None = option(
        None,
        "decay rates of the running means of gradient and square in adam and adamw; none: 0.9 and 0.999",
        idle=lambda train: "" if train.optimizer in ADAM else f"--optimizer {train.optimizer}",
        strict=False,  # a list is accepted; its elements are strict
        min_length=2,
        max_length=2,
    )
    scheduler: Scheduler = option(
        "cosine",
        "rate after the warm-up; none: constant; linear, cosine: falls to zero; step: divided by 10 after each third",
    )
    warmup_epochs: int = option(0, "first epochs, in which the rate rises linearly to the peak; below --epochs", ge=0)
    weight_decay: float = option(0.01, "weight decay of matrices; biases and normalisation layers have none", ge=0)
    grad_clip: float | None = option(None, "largest norm of the gradient; a larger gradient is scaled down", gt=0)
    patience: int | None = option(
        None, "stop after this many epochs without a better validation loss; below --epochs", ge=1
    )
    fresh: bool = option(False, "train on --num-train newly generated examples in every epoch")
    init_from: str | None = option(
        None, "start from the weights of this run: its name or folder; none: random weights", min_length=1
    )

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        faults = []
        if self.warmup_epochs >= self.epochs:
            faults.append(f"--warmup-epochs {self.warmup_epochs}: must be below --epochs {self.epochs}: lower it")
        if self.patience is not None and self.patience >= self.epochs:
            faults.append(f"--patience {self.patience}: must be below --epochs {self.epochs}: lower it, or drop it")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def is_over(self, epoch: int, best_epoch: int) -> bool:
        """Whether training ends after this epoch: it is the last one, or the patience has run out."""
        return epoch >= self.epochs or (self.patience is not None and epoch - best_epoch >= self.patience)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """How many examples there are, and where they come from.

    The fields that a problem adds are options of its generator. They have no effect with --data. An evaluation can
    change them. The names of cached data depend on them. A problem with a generator gives the three numbers defaults.

    A field with the scope "reader" says how the file of --data is read, and only has an effect with it, as those with
    the scope "split", which say how it is divided (division.py).
    """

    num_train: int | None = option(
        None, "examples for training; none: all that remain in the file of --data", scope="size", ge=1
    )
    num_val: int | None = option(
        None, "examples that choose the best epoch; none: 10 % of the file of --data", scope="size", ge=1
    )
    num_test: int | None = option(
        None, "examples for the test at the end; none: 10 % of the file of --data", scope="test_size", ge=1
    )
    num_calibration: int | None = option(
        None, "further examples, from which predict.py computes intervals; none: no intervals", scope="size", ge=1
    )
    cache: bool = option(
        True, "store generated data in the folder cache, and reuse data that are already there", scope="storage"
    )
    file: str | None = option(
        None,
        "use the examples in this .npz or .csv file instead of generating them",
        flag="--data",
        scope="place",
        min_length=1,
    )
    drop_missing: bool = option(False, "drop the rows of that file in which a value is missing", scope="reader")
    group: str | None = option(
        None, "column of that file: examples with equal values stay in one split", scope="split", min_length=1
    )
    test_above: Limit | None = option(
        None,
        "COLUMN and VALUE: the test has the examples of that file above this value",
        scope="split",
        strict=False,
        min_length=2,
        max_length=2,
    )
    test_below: Limit | None = option(
        None, "the same, below this value", scope="split", strict=False, min_length=2, max_length=2
    )
    folds: int | None = option(
        None, "parts of that file for cross-validation; sweep.py tests each of them", scope="split", ge=2, le=1000
    )
    fold: int | None = option(
        None, "the part that is the test, from 1", scope="fold", ge=1, idle=lambda d: "" if d.folds else "--folds none"
    )

    @model_validator(mode="after")
    def _check_division(self) -> Self:
        faults = []
        for flag, limit in (("--test-above", self.test_above), ("--test-below", self.test_below)):
            if limit is not None and not NUMBER.fullmatch(limit[1]):
                faults.append(f"{flag} {' '.join(limit)}: must be the name of a column and a number")
        if self.folds is not None:
            others = {"--test-above": self.test_above, "--test-below": self.test_below}
            faults += [f"{flag} and --folds both choose the test: drop one" for flag, used in others.items() if used]
            if self.fold is not None and self.fold > self.folds:
                faults.append(f"--fold {self.fold}: must be at most --folds {self.folds}: lower it")
        if faults:
            raise ValueError("; ".join(faults))
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LogConfig:
    """Where results are written."""

    run_name: Annotated[str, AfterValidator(check_name)] | None = option(
        None,
        "name of the output folder in checkpoints/; none: a name made from problem, seed and time",
        scope="name",
    )
    wandb: bool = option(False, "also log to Weights & Biases")
    checkpoints: bool = option(True, "save the weights (.pt files)")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """All options of one experiment. The config of a problem adds fields, and replaces `data` by its own DataConfig."""

    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()
    log: LogConfig = LogConfig()
    seed: int = option(
        42,
        "random seed of the data, the initial weights and the order of the batches",
        scope="seed",
        ge=0,
        le=2**64 - 1,
    )
    device: Device = option(
        "auto", "device to train on, such as a GPU; auto: the first available one of cuda, mps, cpu", scope="machine"
    )
    threads: int | None = option(
        None, "CPU threads; none: all cores, but one thread for small networks", scope="machine", ge=1, le=1024
    )
    compile: bool = option(False, "compile the network with torch.compile; slower on the CPU", scope="execution")

    @model_validator(mode="after")
    def _check_fresh(self) -> Self:
        if self.train.fresh and self.data.file is not None:
            raise ValueError("--fresh does nothing with --data, whose examples are not generated: drop one of them")
        return self

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        if self.data.num_train is not None and self.train.batch_size > self.data.num_train:
            raise ValueError(
                f"--batch-size {self.train.batch_size} is above --num-train {self.data.num_train}: lower it"
            )
        return self


def options_with(config_type: type[Config], *scopes: str) -> dict[tuple[str, ...], Option]:
    """The options with one of these scopes, by path."""
    return {path: option for path, option in options_of(config_type).items() if option.scope in scopes}


def not_from_run(config_type: type[Config]) -> dict[tuple[str, ...], Option]:
    """The options of the data that have their defaults in an evaluation, whatever the run had.

    They are those for the file, which is another one, and generator options whose default is none: the value of the run
    may not suit the other options of the evaluation.
    """
    options = options_with(config_type, "generator", "reader")
    return {path: each for path, each in options.items() if each.info.default is None or each.scope == "reader"}


OF_FILES = ("reader", "split", "fold")  # the scopes of options that have no effect without a file


def require_file(config_type: type[Config], flags: dict[str, Any], file: str | None) -> None:
    """Raise ConfigError if `flags` has an option that says how a file is read or divided, and there is no file."""
    options = options_with(config_type, *OF_FILES)
    if file is None and (given := [each.flag for path, each in options.items() if path[-1] in flags.get("data", {})]):
        raise ConfigError(f"{', '.join(given)} does nothing without --data: give a file, or drop it")


def to_dict(config: Config) -> dict[str, Any]:
    """The complete config as nested dictionaries, with the options of the problem first.

    Options of the data that have no effect are left out: those of the generator if the data come from a file, and those
    that say how a file is read and divided if they are generated.
    """
    values = asdict(config)
    values = {name: values[name] for name, _ in own_fields_first(type(config))}
    idle = options_with(type(config), *(OF_FILES if config.data.file is None else ("generator",)))
    names = [name for name, _ in own_fields_first(type(config.data)) if ("data", name) not in idle]
    values["data"] = {name: values["data"][name] for name in names}
    return values


def to_json(config: Config) -> str:
    """The complete config as JSON, which `--config` and load_config accept."""
    return json.dumps(with_format(to_dict(config)), indent=2) + "\n"


def read_config(path: str | Path) -> dict[str, Any]:
    """Read the values in a config.json, which need not have all keys, and may be of an earlier format.

    Raises:
        ConfigError: the file cannot be read, is not strict JSON, or has the format of a later version.
    """
    try:
        return upgrade(read_object(path))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def load_config(config_type: type[C], path: str | Path) -> C:
    """Read the config in a config.json. Keys that are not in the file have the defaults of their fields.

    Raises:
        ConfigError: the file cannot be read, is not strict JSON, or contains an invalid config.
    """
    return validate(config_type, merge(asdict(config_type()), read_config(path)), source=str(path))


def require_same_run(earlier: Config, config: Config, source: str = "", *, network_only: bool = False) -> None:
    """Raise ConfigError unless a run with the config `earlier` can be resumed with another config.

    With `network_only`, the weights of the run only have to fit the network of the other config. The message names an
    option by its flag or, if the other config was read from the file `source`, by its key there.
    """
    options = options_with(type(config), "network") if network_only else options_of(type(config))
    for path, found in options.items():
        before, now = found.value_in(earlier), found.value_in(config)
        if before == now:
            continue
        given = found.given(now)
        has, fix = found.typed(before), "drop it"
        if source:
            given, has, fix = f"{source}: {'.'.join(path)} {json.dumps(now)}", json.dumps(before), "restore it"
        if not SCOPES[found.scope].on_resume or (found.scope == "place" and None in (before, now)):
            raise ConfigError(f"{given}: the run has {has}: {fix}, or start another run")
        if found.scope == "duration" and now < before:
            raise ConfigError(f"{given}: the run has {has}; give at least as many")


def replace_unchecked(config: T, **values: Any) -> T:
    """A copy of a config, or of a section, with other values. Checks that compare sections are skipped.

    An evaluation may combine sections that are invalid for training, such as a batch size and fewer examples than that.
    """
    changed = copy.copy(config)
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    return changed
