# Machinery: keep, and skip at first.
"""Options from dataclass fields: strict JSON and one-line errors for any config made of pydantic dataclasses.

A config is a dataclass of values and of sections, which are dataclasses of values. An option is identified by its path:
("train", "lr") for a value in a section, ("seed",) for a value at the top level. This file does not depend on which
options there are. To add an option, add a field to a config; you do not change this file.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo

from engine.machine.errors import BadRequestError, ProblemError, UnusableFileError
from engine.machine.foreign_files import MOST_BYTES, leaves, read_bytes
from engine.options.scopes import DEFAULTS, SCOPES
from engine.options.suggestions import Known, suggest

Config = TypeVar("Config")

# Unlike int() and float(), these accept neither 1_0 nor digits other than 0-9.
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

NOUNS = {bool: "true or false", int: "an integer", float: "a number", str: "a name"}
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "multiple_of": "a multiple of"}

# Windows reserves these names for devices. A folder with such a name cannot be copied to Windows.
RESERVED_NAMES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}


def folder_name(label: str, length: int = 40) -> str:
    """Make a label a valid folder name (see check_name): replace other characters by _, and cut it at a length."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", label)[:length]
    is_reserved = name.partition(".")[0].upper() in RESERVED_NAMES
    return f"_{name}"[:length] if is_reserved or name[:1] in ("", ".", "-") else name


def check_name(name: str) -> str:
    """Return the name. Raise ValueError unless it is a valid folder name on every system."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name):
        raise ValueError("use 1 to 64 characters of A-Z a-z 0-9 . _ - and begin with a letter, a digit or _")
    if name.partition(".")[0].upper() in RESERVED_NAMES:
        raise ValueError("the name is reserved on Windows; choose another")
    return name


class ConfigError(BadRequestError):
    """An invalid config. The message is one line and lists every fault."""


def option(
    default: Any,
    description: str,
    *,
    flag: str = "",
    scope: str = "",
    idle: Callable[[Any], str] | None = None,
    **limits: Any,
) -> Any:
    """The default of a config field, together with what the command line needs to know about the option.

    Args:
        default: the value if no flag is given.
        description: the help text.
        flag: the flag, if it differs from the name of the field with dashes.
        scope: a key of scopes.SCOPES, which says what the option is about. By default, it is that of the field of this
            name in a base class or, failing that, that of the section: "training" in `train`, "generator" in `data`,
            "execution" in `log`, and otherwise "network".
        idle: a function of the section (for a top-level option, of the config). It returns what makes the option have
            no effect there, such as "--scheduler none", or "" if it has an effect. A flag without effect is an error.
        limits: ge, gt, le, lt, multiple_of, min_length, max_length, strict, as in pydantic.Field.
    """
    if scope and scope not in SCOPES:
        raise ProblemError(f"option: scope {scope!r} must be one of {', '.join(SCOPES)}")
    extra: Any = {"flag": flag, "idle": idle, "scope": scope}
    return Field(default=default, description=description, json_schema_extra=extra, **limits)


class Option(NamedTuple):
    """One option of a config."""

    path: tuple[str, ...]
    info: FieldInfo
    scope: str  # a key of SCOPES

    @property
    def flag(self) -> str:
        """The flag: `--lr` for `lr`, unless the field sets another one."""
        return self._extra.get("flag") or "--" + self.path[-1].replace("_", "-")

    @property
    def _extra(self) -> dict[str, Any]:
        extra = self.info.json_schema_extra
        return extra if isinstance(extra, dict) else {}

    @property
    def optional(self) -> bool:
        """Whether the value may be None."""
        return NoneType in get_args(self.info.annotation)

    @property
    def kind(self) -> Any:
        """The type of the value, without `None` and annotations."""
        annotation = get_args(self.info.annotation)[0] if self.optional else self.info.annotation
        return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation

    @property
    def is_list(self) -> bool:
        """Whether the flag takes several values."""
        return get_origin(self.kind) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that are allowed, if there is a list of them."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def allowed(self) -> str:
        """A description of the allowed values, such as `an integer, at least 4, at most 1024, a multiple of 2`."""
        return _in_words(self.kind, self.info.metadata) + (", or none" if self.optional else "")

    @property
    def default(self) -> str:
        """The default as you type it on the command line."""
        return self.typed(self.info.default)

    def typed(self, value: Any) -> str:
        """A value as you type it on the command line. For a switch, the result is the flag."""
        if isinstance(value, bool):
            return self.flag if value else "--no-" + self.flag[2:]
        return "none" if value is None else " ".join(map(str, value if isinstance(value, tuple) else (value,)))

    def given(self, value: Any) -> str:
        """The option with a value, as you type it on the command line: `--lr 0.1`."""
        return self.typed(value) if self.kind is bool else f"{self.flag} {self.typed(value)}"

    def value_in(self, config: Any) -> Any:
        """The value of this option in a config."""
        return reduce(getattr, self.path, config)

    def value(self, words: Any) -> Any:
        """Convert what argparse found after the flag. An invalid word is returned unchanged; validate refuses it."""
        if self.optional and words in ("none", ["none"]):
            return None
        if isinstance(words, list):
            return [self._scalar(word) for word in words]
        return self._scalar(words)

    def _scalar(self, word: Any) -> Any:
        kind = _element(self.kind)[0] if self.is_list else self.kind
        if kind in (bool, str) or get_origin(kind) is Literal or not NUMBER.fullmatch(word):
            return word
        return _integer(word) if INTEGER.fullmatch(word) else float(word)

    def idle(self, config: Any) -> str:
        """What makes this option have no effect in a config, or an empty string if it has an effect."""
        reason: Callable[[Any], str] | None = self._extra.get("idle")
        section = config if len(self.path) == 1 else getattr(config, self.path[0])
        return reason(section) if reason else ""


def _element(kind: Any) -> tuple[Any, Iterable[Any]]:
    """The type and the limits of an element of tuple[X, ...]."""
    element = get_args(kind)[0]
    return (get_args(element)[0], get_args(element)[1].metadata) if get_origin(element) is Annotated else (element, ())


def _in_words(kind: Any, metadata: Iterable[Any]) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        element, limits = _element(kind)
        fewest, most = ([getattr(m, key) for m in metadata if hasattr(m, key)] for key in ("min_length", "max_length"))
        number = f"{fewest[0]} to {most[0]} values" if fewest and most else "one or more values"
        if fewest and fewest == most:
            number = f"{most[0]} values"
        return f"{number}, each {_in_words(element, limits)}"
    bounds = [f"{words} {getattr(m, key)}" for m in metadata for key, words in BOUNDS.items() if hasattr(m, key)]
    return ", ".join([NOUNS[kind], *bounds])


def _integer(digits: str) -> int | float:
    """Convert digits to an integer. Too many digits for int() become an infinite float, which is out of any range."""
    return int(digits) if len(digits) < 100 else float(digits)


def options_of(config_type: Any) -> dict[tuple[str, ...], Option]:
    """All options of a config by path. Options that the class itself adds come before those that it inherits."""
    found: dict[tuple[str, ...], Option] = {}
    for name, info in own_fields_first(config_type):
        section: Any = info.annotation
        if is_pydantic_dataclass(section):
            for key, inner in own_fields_first(section):
                scope = _scope_of(section, key) or DEFAULTS.get(name, "network")
                found[name, key] = Option((name, key), inner, scope)
        else:
            found[name,] = Option((name,), info, _scope_of(config_type, name) or "network")
    return found


def _scope_of(section: Any, name: str) -> str:
    """The scope of a field, or of the field of this name in the nearest base class that sets one."""
    for kind in section.__mro__:
        info = getattr(kind, "__pydantic_fields__", {}).get(name)
        if info is not None and isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("scope"):
            return str(info.json_schema_extra["scope"])
    return ""


def own_fields_first(config_type: Any) -> list[tuple[str, FieldInfo]]:
    """The fields of a dataclass by name. Fields that the class itself adds come before those that it inherits.

    Raises:
        ProblemError: the class lacks the decorator, or a field has no type, so that it is not an option.
    """
    if "__pydantic_fields__" not in vars(config_type):
        decorator = "@dataclass(frozen=True, kw_only=True, config=STRICT)"
        raise ProblemError(f"{config_type.__name__} is not a dataclass of pydantic: add {decorator} above it")
    for name, value in vars(config_type).items():
        if isinstance(value, FieldInfo) and name not in config_type.__pydantic_fields__:
            raise ProblemError(f"{config_type.__name__}.{name} has no type: write it as in `{name}: int = option(...)`")
    inherited = {name for base in config_type.__mro__[1:] for name in getattr(base, "__pydantic_fields__", ())}
    return sorted(config_type.__pydantic_fields__.items(), key=lambda field: field[0] in inherited)


# ----------------------------------------------------------------------------------------------------- merging values


def read_object(path: str | Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        ConfigError: the file is missing, is not UTF-8 or JSON, has a duplicate key, or does not contain an object.
    """

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise ConfigError(f"{path}: duplicate key {json.dumps(key)} in one object; keep one")
            content[key] = value
        return content

    try:
        text = read_bytes(Path(path), MOST_BYTES).decode("utf-8")
        content = json.loads(text, object_pairs_hook=refuse_duplicates, parse_int=_integer)
        leaves(content)
    except UnusableFileError as error:
        raise ConfigError(f"{error}; give the path of a config.json") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a config.json") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {error.lineno} column {error.colno}: {error.msg}; correct the JSON") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: nested too deeply; a config has two levels") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is not an object; a config is {{...}}, as --print-config prints it")
    return content


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base` in which the values of `update` replace those of `base`, section by section."""
    merged = dict(base)
    for key, value in update.items():
        sections = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if sections else value
    return merged


def validate(
    config_type: type[Config], values: Mapping[str, Any], source: str = "", flags: Mapping[str, Any] | None = None
) -> Config:
    """Make a config from merged values. Values in `flags` are from the command line, others from the file `source`.

    Raises:
        ConfigError: some values are invalid. The message names each by its flag, or by its file and path.
    """
    options = options_of(config_type)
    try:  # in JSON, strict mode of pydantic accepts a list for a tuple, and an object for a dataclass
        return TypeAdapter(config_type).validate_json(json.dumps(values))
    except ValidationError as invalid:
        # Of several errors in one tuple, the first one is enough.
        errors = {tuple(map(str, each["loc"][:2])) or i: each for i, each in reversed([*enumerate(invalid.errors())])}
        faults = [_fault(dict(error), options, source, flags or {}) for error in reversed(errors.values())]
    except RecursionError:
        faults = [f"{source}: nested too deeply; a config has two levels"]
    raise ConfigError("; ".join(dict.fromkeys(faults)))


def _fault(
    error: dict[str, Any], options: Mapping[tuple[str, ...], Option], source: str, flags: Mapping[str, Any]
) -> str:
    """Describe an error that pydantic found in one phrase: what was given, what is allowed, what to do."""
    path = tuple(str(part) for part in error["loc"])
    option = options.get(path[:2]) or options.get(path[:1])
    if error["type"] == "json_invalid":
        return f"{source or 'command line'}: text that is not Unicode, or nested too deeply; a config has two levels"
    if error["type"] == "unexpected_keyword_argument":
        known = [
            Known(".".join(key), (key[-1], ".".join(key)), each.info.description or "") for key, each in options.items()
        ]
        known += [Known(section, (section,)) for section in dict.fromkeys(section for section, *_ in options)]
        meant = suggest(path[-1], known, "--print-config shows all options")
        return f"{source}: {'.'.join(path)}: no such key; {meant}"
    if error["type"] == "value_error" and option is None:  # options that contradict each other; the text names them
        by_flag = _holds(flags, path) and flags
        return str(error["ctx"]["error"]) if by_flag or not source else f"{source}: {error['ctx']['error']}"
    name = option.flag if option and _holds(flags, option.path) else f"{source}: {'.'.join(path)}".removeprefix(": ")
    given = json.dumps(error["input"], default=str)
    given = given if len(given) <= 60 else given[:57] + "..."
    if error["type"] == "value_error":
        return f"{name} {given}: {error['ctx']['error']}"
    hint = ", separated by spaces" if len(path) > 2 and "," in str(error["input"]) else ""
    return f"{name} {given}: must be {option.allowed if option else 'an object, {...}'}{hint}"


def _holds(values: Any, path: tuple[str, ...]) -> bool:
    """Whether nested dictionaries have a value at this path."""
    return path == () or (isinstance(values, dict) and path[0] in values and _holds(values[path[0]], path[1:]))
