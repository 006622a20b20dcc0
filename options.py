"""Fields as options: the flags, the strict JSON and the one-line errors of any config made of pydantic dataclasses.

A config is a dataclass of values and of sections, which are dataclasses of values. An option is known by its path,
("train", "lr") for a value in a section and ("seed",) for one at the top. Nothing here knows which options there are,
and nobody who adds one to config.py has to read it.
"""

import argparse
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo

Config = TypeVar("Config")

# Unlike int() and float(), these take no 1_0 and no digits but 0-9.
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

MAX_BYTES = 2**20  # of a config file: a thousand times what one needs
NOUNS = {bool: "true or false", int: "an integer", float: "a number", str: "a name"}
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "multiple_of": "a multiple of"}


# Names that Windows keeps for devices: a folder of that name cannot be copied there.
RESERVED_NAMES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}


def check_name(name: str) -> str:
    """Raise ValueError unless the name is a plain folder name on every system; return it."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name):
        raise ValueError("use 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter, a digit or _")
    if name.partition(".")[0].upper() in RESERVED_NAMES:
        raise ValueError("the name is reserved on Windows; choose another")
    return name


class ConfigError(ValueError):
    """A config that cannot be; the message is one line and tells every fault."""


class Option(NamedTuple):
    """One option, and what its dataclass says of it."""

    path: tuple[str, ...]
    info: FieldInfo

    @property
    def flag(self) -> str:
        """`--lr` for `lr`, unless the field has another word for it in its `json_schema_extra`."""
        extra = self.info.json_schema_extra
        return str(extra["flag"]) if isinstance(extra, dict) else "--" + self.path[-1].replace("_", "-")

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
        return self.typed(self.info.default)

    def typed(self, value: Any) -> str:
        """A value as one would type it; of a switch, with its flag."""
        if isinstance(value, bool):
            return self.flag if value else "--no-" + self.flag[2:]
        return "none" if value is None else " ".join(map(str, value if isinstance(value, tuple) else (value,)))

    def value(self, words: Any) -> Any:
        """What argparse found after the flag, as a value. A word without meaning stays, to be refused with the rest."""
        if isinstance(words, list):
            return [self.value(word) for word in words]
        if self.optional and words == "none":
            return None
        if self.kind in (bool, str) or get_origin(self.kind) is Literal or not NUMBER.fullmatch(words):
            return words
        return _integer(words) if INTEGER.fullmatch(words) else float(words)


def _in_words(kind: Any, metadata: Iterable[Any]) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        element, info = get_args(get_args(kind)[0])
        fewest, most = ([getattr(m, key) for m in metadata if hasattr(m, key)] for key in ("min_length", "max_length"))
        return f"{fewest[0]} to {most[0]} values, each {_in_words(element, info.metadata)}"
    bounds = [f"{words} {getattr(m, key)}" for m in metadata for key, words in BOUNDS.items() if hasattr(m, key)]
    return ", ".join([NOUNS[kind], *bounds])


def _integer(digits: str) -> int | float:
    """int(), which has an error of its own for thousands of digits; no option goes that far."""
    return int(digits) if len(digits) < 100 else float(digits)


def options_of(config_type: Any) -> dict[tuple[str, ...], Option]:
    """Every option of a config by its path, in the order of the fields."""
    found: dict[tuple[str, ...], Option] = {}
    for name, info in config_type.__pydantic_fields__.items():
        if is_pydantic_dataclass(section := info.annotation):
            found |= {(name, key): Option((name, key), inner) for key, inner in section.__pydantic_fields__.items()}
        else:
            found[name,] = Option((name,), info)
    return found


# ---------------------------------------------------------------------------------------------------- values, merged


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigError: there is no such file, it is not UTF-8, not JSON, has a key twice, or holds something else.
    """

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise ConfigError(f"{path}: the key {json.dumps(key)} stands twice in one object; keep one")
            content[key] = value
        return content

    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_BYTES} bytes; give the path of a config.json")
        text = raw.decode("utf-8")
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


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `update` over it, section by section."""
    merged = dict(base)
    for key, value in update.items():
        sections = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if sections else value
    return merged


def validate(
    config_type: type[Config], values: Mapping[str, Any], source: str = "", flags: Mapping[str, Any] | None = None
) -> Config:
    """The config of merged values, of which those in `flags` came from the command line and others from `source`.

    Raises:
        ConfigError: some values cannot be; names each by its flag, or by its source and path.
    """
    options = options_of(config_type)
    try:  # by way of JSON, where pydantic's strict mode takes a list for a tuple and an object for a dataclass
        return TypeAdapter(config_type).validate_json(json.dumps(values))
    except ValidationError as invalid:
        faults = [_fault(dict(error), options, source, flags or {}) for error in invalid.errors()]
    except RecursionError:
        faults = [f"{source}: nested too deeply; a config has two levels"]
    raise ConfigError("; ".join(dict.fromkeys(faults)))


def _fault(
    error: dict[str, Any], options: Mapping[tuple[str, ...], Option], source: str, flags: Mapping[str, Any]
) -> str:
    """One fault that pydantic found: what was given, what is allowed, what to do."""
    path = tuple(str(part) for part in error["loc"])
    option = options.get(path[:2]) or options.get(path[:1])
    if error["type"] == "json_invalid":
        return f"{source or 'command line'}: text that is not Unicode, or nested too deeply; a config has two levels"
    if error["type"] == "unexpected_keyword_argument":
        places = {section: section for section, *_ in options} | {path[-1]: ".".join(path) for path in options}
        return f"{source}: {'.'.join(path)}: no such key; {nearest(path[-1], places)}"
    if error["type"] == "value_error" and option is None:  # options that contradict each other; the text names them
        by_flag = _holds(flags, path) and flags
        return str(error["ctx"]["error"]) if by_flag or not source else f"{source}: {error['ctx']['error']}"
    name = option.flag if option and _holds(flags, option.path) else f"{source}: {'.'.join(path)}"
    given = json.dumps(error["input"], default=str)
    given = given if len(given) <= 60 else given[:57] + "..."
    if error["type"] == "value_error":
        return f"{name} {given}: {error['ctx']['error']}"
    return f"{name} {given}: must be {option.allowed if option else 'an object, {...}'}"


def _holds(values: Any, path: tuple[str, ...]) -> bool:
    return path == () or (isinstance(values, dict) and path[0] in values and _holds(values[path[0]], path[1:]))


def nearest(word: str, names: Mapping[str, str]) -> str:
    """Advice for a word that is none of `names`, whose values say what to write instead."""
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {names[close[0]]}?" if close else "--print-config shows what there is"


# ------------------------------------------------------------------------------------------------------------- flags


def one_line(message: str) -> str:
    """A message for the terminal, whatever names of files it quotes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)[:2000]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations, keeps what was given alone, and has errors of one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(argument_default=argparse.SUPPRESS, allow_abbrev=False, **settings)
        # A word with one dash is a value, such as -1e-3 or -inf, which are then refused by name; argparse itself takes
        # only plain negative numbers for values.
        self._negative_number_matcher = re.compile("-[^-]")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def add_flags(
    parser: Parser, options: Mapping[tuple[str, ...], Option], top: str, defaults: Mapping[str, str] | None = None
) -> None:
    """Give the parser a flag for every option, in groups by section; those without are in the group `top`.

    `defaults` says in words what holds without a flag, where that is not the default of the field.
    """
    groups: dict[str, Any] = {}
    for option in options.values():
        section = option.path[0] if len(option.path) > 1 else top
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        shape: dict[str, Any] = {"metavar": "X"}
        if option.kind is bool:
            shape = {"action": argparse.BooleanOptionalAction}
        elif get_origin(option.kind) is tuple:
            shape |= {"nargs": "+"}
        default = (defaults or {}).get(option.flag, option.default)
        text = f"{option.info.description} ({option.allowed}; default: {default})"
        groups[section].add_argument(option.flag, dest=".".join(option.path), help=text, **shape)


def flags_given(given: Mapping[str, Any], options: Mapping[tuple[str, ...], Option]) -> dict[str, Any]:
    """The values that came by flags, in sections, ready to be merged; `given` is what the parser found."""
    values: dict[str, Any] = {}
    for path, option in options.items():
        if (words := given.get(".".join(path))) is not None:
            section = values if len(path) == 1 else values.setdefault(path[0], {})
            section[path[-1]] = option.value(words)
    return values
