"""What an experiment is: frozen dataclasses, presets, strict JSON, and the command line derived from the fields.

An option exists once, as a field below, with its type, range, default and help. Its flag (`--lr` for `lr`), the help
page, the checks, the keys of config.json and the table in README.md follow from that field. Values are settled by
defaults < preset < config file < flags and checked once, after the merge: an ExperimentConfig that exists is complete
and valid. Nothing here imports torch, so that `--help` and refusals are instant.
"""

import argparse
import difflib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Self, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass, is_pydantic_dataclass
from pydantic.fields import FieldInfo

Activation = Literal["relu", "gelu", "silu", "tanh"]
Architecture = Literal["mlp", "residual_mlp"]
Optimizer = Literal["adam", "adamw", "sgd"]
Scheduler = Literal["none", "cosine", "step"]
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
        min_length=1,
        max_length=32,
        description="width of each hidden layer; of each block in residual_mlp, whose stream has the first width",
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
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"--warmup-epochs {self.warmup_epochs} leaves nothing of --epochs {self.epochs}: make it smaller"
            )
        if self.patience is not None and self.patience >= self.epochs:
            raise ValueError(
                f"--patience {self.patience} can never stop a run of --epochs {self.epochs}: drop it or make it smaller"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """The configurations that are drawn."""

    lattice_size: int = Field(
        default=8, ge=4, le=1024, multiple_of=2, description="sites along one edge of the lattice"
    )
    num_train: int = Field(default=10_000, ge=1, description="configurations to train on")
    num_val: int = Field(default=2_000, ge=1, description="configurations that choose the best epoch")
    num_test: int = Field(default=2_000, ge=1, description="configurations that are looked at once, at the end")
    temp_min: float = Field(default=1.0, gt=0, le=10, description="lowest temperature, in J / k_B")
    temp_max: float = Field(default=4.0, gt=0, le=10, description="highest temperature, in J / k_B")
    sweeps: int | None = Field(
        default=None, ge=0, description="Metropolis sweeps before a configuration is taken; none: as the lattice needs"
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

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        if self.train.batch_size > self.data.num_train:
            raise ValueError(
                f"--batch-size {self.train.batch_size} is above --num-train {self.data.num_train}: make it smaller"
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
        train=TrainConfig(epochs=60, batch_size=256, warmup_epochs=2, patience=15),
        data=DataConfig(lattice_size=16, num_train=100_000, num_val=5_000, num_test=5_000),
    ),
}


# ---------------------------------------------------------------------------------------------- fields as options


class Option(NamedTuple):
    """A field seen as an option: its place in config.json, and what the dataclass says of it."""

    path: tuple[str, ...]  # ("train", "lr"), or ("seed",) at top level
    info: FieldInfo

    @property
    def flag(self) -> str:
        return "--" + self.path[-1].replace("_", "-")

    @property
    def optional(self) -> bool:
        return NoneType in get_args(self.info.annotation)

    @property
    def kind(self) -> Any:
        """The type, without `None` and annotations."""
        annotation = get_args(self.info.annotation)[0] if self.optional else self.info.annotation
        return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation

    @property
    def allowed(self) -> str:
        """In words, such as `an integer, at least 4, at most 1024, a multiple of 2`."""
        return _in_words(self.kind, self.info.metadata) + (", or none" if self.optional else "")

    @property
    def default(self) -> str:
        """The default as one would type it."""
        default = self.info.default
        if isinstance(default, bool):
            return self.flag if default else "--no-" + self.flag[2:]
        return "none" if default is None else " ".join(map(str, default if isinstance(default, tuple) else (default,)))

    def value(self, words: str | list[str]) -> Any:
        """What the words after a flag mean. A word without meaning stays, for the validation to refuse."""
        if isinstance(words, list):
            return [self.value(word) for word in words]
        word = words
        if self.optional and word == "none":
            return None
        if self.kind is str or get_origin(self.kind) is Literal or not NUMBER.fullmatch(word):
            return word
        return _integer(word) if INTEGER.fullmatch(word) else float(word)


# Unlike int() and float(), these take no 1_0 and no digits but 0-9.
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

NOUNS = {bool: "true or false", int: "an integer", float: "a number", str: "a name"}
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "multiple_of": "a multiple of"}


def _in_words(kind: Any, metadata: Iterable[Any]) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        element, info = get_args(get_args(kind)[0])
        return f"one or more, each {_in_words(element, info.metadata)}"
    bounds = [f"{words} {getattr(m, key)}" for m in metadata for key, words in BOUNDS.items() if hasattr(m, key)]
    return ", ".join([NOUNS[kind], *bounds])


def _integer(digits: str) -> int | float:
    """int(), which has an error of its own for thousands of digits; no option goes that far."""
    return int(digits) if len(digits) < 100 else float(digits)


def _options() -> dict[tuple[str, ...], Option]:
    found: dict[tuple[str, ...], Option] = {}
    top: Any = ExperimentConfig
    for name, info in top.__pydantic_fields__.items():
        if is_pydantic_dataclass(section := info.annotation):
            found |= {(name, key): Option((name, key), inner) for key, inner in section.__pydantic_fields__.items()}
        else:
            found[name,] = Option((name,), info)
    return found


OPTIONS: dict[tuple[str, ...], Option] = _options()


# ------------------------------------------------------------------------------------------------------------ JSON


class ConfigError(ValueError):
    """A config that cannot be; the message is one line and tells every fault."""


def to_json(config: ExperimentConfig) -> str:
    """The complete config as JSON, which `--config` and load_config take back unchanged."""
    return json.dumps(asdict(config), indent=2) + "\n"


def load_config(path: str | Path) -> ExperimentConfig:
    """The experiment of a config.json; keys that it leaves out have their defaults.

    Raises:
        ConfigError: the file cannot be read, is not strict JSON, or asks for what cannot be.
    """
    return _validate(_merge(asdict(ExperimentConfig()), _read_json(path)), str(path))


def _read_json(path: str | Path) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise ConfigError(f"{path}: the key {json.dumps(key)} stands twice in one object; keep one")
            content[key] = value
        return content

    try:
        text = Path(path).read_bytes().decode("utf-8")
        content = json.loads(text, object_pairs_hook=refuse_duplicates, parse_int=_integer)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a config.json") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {error.lineno} column {error.colno}: {error.msg}; mend the JSON") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply; a config has two levels") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds no object; a config is {{...}}, as --print-config prints it")
    return content


def _merge(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `update` over it, section by section."""
    merged = dict(base)
    for key, value in update.items():
        sections = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if sections else value
    return merged


def _validate(
    values: dict[str, Any], source: str = "", from_flags: Collection[tuple[str, ...]] = ()
) -> ExperimentConfig:
    """The config of merged values; a fault is laid to the flag, if the option came by one, or else to `source`."""
    try:  # by way of JSON, where pydantic's strict mode takes a list for a tuple and an object for a dataclass
        return TypeAdapter(ExperimentConfig).validate_json(json.dumps(values))
    except ValidationError as invalid:
        faults = [_fault(dict(error), source, from_flags) for error in invalid.errors()]
    except RecursionError:
        faults = [f"{source}: nested too deeply; a config has two levels"]
    raise ConfigError("; ".join(dict.fromkeys(faults)))


def _fault(error: dict[str, Any], source: str, from_flags: Collection[tuple[str, ...]]) -> str:
    """One fault that pydantic found: what was given, what is allowed, what to do."""
    path = tuple(str(part) for part in error["loc"])
    option = OPTIONS.get(path[:2]) or OPTIONS.get(path[:1])
    if error["type"] == "unexpected_keyword_argument":
        places = {key: ".".join(option.path) for option in OPTIONS.values() for key in option.path[-1:]}
        return f"{source}: {'.'.join(path)}: no such key; {_nearest(path[-1], places)}"
    if error["type"] == "value_error" and option is None:  # options that contradict each other; the text names them
        return str(error["ctx"]["error"])
    name = option.flag if option and option.path in from_flags else f"{source}: {'.'.join(path)}"
    given = json.dumps(error["input"], default=str)
    given = given if len(given) <= 60 else given[:57] + "..."
    if error["type"] == "value_error":
        return f"{name} {given}: {error['ctx']['error']}"
    return f"{name} {given}: must be {option.allowed if option else 'an object, {...}'}"


def _nearest(word: str, names: dict[str, str]) -> str:
    """Advice for a word that is none of `names`, whose values say what to write instead."""
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {names[close[0]]}?" if close else "--print-config shows what there is"


# ---------------------------------------------------------------------------------------------------- command line


class Command(NamedTuple):
    """What one command line asks for."""

    config: ExperimentConfig
    print_config: bool
    overwrite: bool


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def build_parser() -> Parser:
    """The parser of main.py: what is about one command, and a flag for every option, grouped by section."""
    parser = Parser(
        prog="main.py",
        usage="main.py [options]",
        description="Draw 2D Ising configurations, train a network to predict their energy, show how well it does.",
        epilog="A flag goes before --config, and that before --preset; `none` switches off what can be off.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    command = parser.add_argument_group("command")
    command.add_argument("--preset", choices=PRESETS, help="start from this config instead of `default`")
    command.add_argument("--config", metavar="FILE", help="take the values of a config.json, such as an earlier run's")
    command.add_argument("--print-config", action="store_true", help="print the resulting config.json and stop")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier run of the same name")
    groups = {path[0]: parser.add_argument_group(path[0]) for path in OPTIONS if len(path) == 2}
    groups["experiment"] = parser.add_argument_group("experiment")
    for path, option in OPTIONS.items():
        add = groups[path[0] if len(path) == 2 else "experiment"].add_argument
        text = f"{option.info.description} ({option.allowed}; default: {option.default})"
        if option.kind is bool:
            add(option.flag, dest=".".join(path), action=argparse.BooleanOptionalAction, help=text)
        elif get_origin(option.kind) is tuple:
            add(option.flag, dest=".".join(path), nargs="+", metavar="X", help=text)
        else:
            add(option.flag, dest=".".join(path), metavar="X", help=text)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Command:
    """What a command line asks for, complete and valid; without `argv`, the program's own.

    A fault ends the program with one line on stderr and exit code 2.
    """
    parser = build_parser()
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = ["--preset", "--config", "--overwrite", *(option.flag for option in OPTIONS.values())]
        parser.error(f"{unknown[0]}: no such option; {_nearest(unknown[0], {flag: flag for flag in flags})}")
    try:
        return _resolve(vars(namespace))
    except ConfigError as error:
        parser.error(str(error))


def _resolve(given: dict[str, Any]) -> Command:
    """Merge defaults < preset < config file < flags, and check the result."""
    values = asdict(PRESETS[given.get("preset", "default")])
    if "config" in given:
        content = _read_json(given["config"])
        if "preset" in given and all(_holds(content, path) for path in OPTIONS):
            raise ConfigError(f"--preset {given['preset']} does nothing: {given['config']} sets every option; drop one")
        values = _merge(values, content)
    if "print_config" in given and "overwrite" in given:
        raise ConfigError("--overwrite does nothing with --print-config: drop one")
    from_flags = []
    for path, option in OPTIONS.items():
        if (words := given.get(".".join(path))) is not None:
            value = words if option.kind is bool else option.value(words)
            for section in reversed(path):
                value = {section: value}
            values = _merge(values, value)
            from_flags.append(path)
    config = _validate(values, given.get("config", ""), from_flags)
    return Command(config, print_config="print_config" in given, overwrite="overwrite" in given)


def _holds(content: dict[str, Any], path: tuple[str, ...]) -> bool:
    section: Any = content
    for key in path:
        if not isinstance(section, dict) or key not in section:
            return False
        section = section[key]
    return True
