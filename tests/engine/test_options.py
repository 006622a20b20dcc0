"""Options: from dataclass fields to flags, and from the command line or JSON to a checked config."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from engine.interface.base_config import STRICT, Config
from engine.machine.errors import ProblemError
from engine.options.fields import ConfigError, check_name, folder_name, merge, option, options_of, read_object, validate
from engine.options.flags import Parser, add_flags, flags_given

Widths = tuple[Annotated[int, Field(ge=1, le=4096)], ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Inner:
    """A section."""

    widths: Widths = option((8, 4), "widths", strict=False, min_length=1, max_length=3)
    rate: float = option(0.5, "a rate in %", gt=0, lt=1, idle=lambda inner: "--kind b" if inner.kind == "b" else "")
    limit: float | None = option(None, "a limit", ge=0)
    kind: Literal["a", "b"] = option("a", "a kind")
    file: str | None = option(None, "a file", flag="--input", min_length=1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Outer:
    """A config."""

    inner: Inner = Inner()
    even: int = option(2, "an even number", ge=0, le=10, multiple_of=2)
    fast: bool = option(False, "a switch")
    slow: bool = option(True, "another switch")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Derived(Outer):
    """A config that adds an option."""

    extra: int = option(1, "an added number")


OPTIONS = options_of(Outer)


def parse(line: str) -> Outer:
    """Parse a command line into a config."""
    parser = Parser(prog="x.py")
    add_flags(parser, OPTIONS, top="top")
    flags = flags_given(vars(parser.parse_args(line.split())), OPTIONS)
    return validate(Outer, flags, flags=flags)


def test_each_field_is_an_option_with_a_path_and_a_flag() -> None:
    assert {".".join(path): option.flag for path, option in OPTIONS.items()} == {
        "inner.widths": "--widths",
        "inner.rate": "--rate",
        "inner.limit": "--limit",
        "inner.kind": "--kind",
        "inner.file": "--input",
        "even": "--even",
        "fast": "--fast",
        "slow": "--slow",
    }


def test_options_that_a_class_adds_come_first() -> None:
    assert list(options_of(Derived)) == [("extra",), *OPTIONS]


def test_allowed_values_and_defaults_are_described_in_words() -> None:
    described = {option.flag: (option.allowed, option.default) for option in OPTIONS.values()}
    assert described == {
        "--widths": ("1 to 3 values, each an integer, at least 1, at most 4096", "8 4"),
        "--rate": ("a number, above 0, below 1", "0.5"),
        "--limit": ("a number, at least 0, or none", "none"),
        "--kind": ("one of a, b", "a"),
        "--input": ("a name, or none", "none"),
        "--even": ("an integer, at least 0, at most 10, a multiple of 2", "2"),
        "--fast": ("true or false", "--no-fast"),
        "--slow": ("true or false", "--slow"),
    }


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("", {}),
        ("--widths 16", {"inner": {"widths": [16]}}),
        ("--widths 16 8 4", {"inner": {"widths": [16, 8, 4]}}),
        ("--rate 5e-1", {"inner": {"rate": 0.5}}),
        ("--rate .25", {"inner": {"rate": 0.25}}),
        ("--limit 3", {"inner": {"limit": 3}}),
        ("--limit none", {"inner": {"limit": None}}),
        ("--input none", {"inner": {"file": None}}),
        ("--kind b --even 4", {"inner": {"kind": "b"}, "even": 4}),
        ("--fast --no-slow", {"fast": True, "slow": False}),
    ],
)
def test_words_on_the_command_line_become_values(line: str, values: dict[str, Any]) -> None:
    parser = Parser(prog="x.py")
    add_flags(parser, OPTIONS, top="top")
    assert flags_given(vars(parser.parse_args(line.split())), OPTIONS) == values
    assert parse(line) == validate(Outer, values)


@pytest.mark.parametrize("default", [0.5, 0.1234567890123456789, 1e-300, 5e-324])
def test_a_typed_number_is_read_back_exactly(default: float) -> None:
    assert parse(f"--rate {OPTIONS['inner', 'rate'].typed(default)}").inner.rate == default


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--widths 8 0", "--widths 0: must be 1 to 3 values, each an integer, at least 1, at most 4096"),
        ("--widths 8 -8", "--widths -8: must be 1 to 3 values, each an integer, at least 1, at most 4096"),
        ("--widths 8 4097", "--widths 4097: must be 1 to 3 values, each an integer, at least 1, at most 4096"),
        ("--widths 8 none", '--widths "none": must be 1 to 3 values, each an integer, at least 1, at most 4096'),
        ("--widths 8 8 8 8", "--widths [8, 8, 8, 8]: must be 1 to 3 values, each an integer, at least 1, at most 4096"),
        ("--rate 0", "--rate 0: must be a number, above 0, below 1"),
        ("--rate 1e400", "--rate Infinity: must be a number, above 0, below 1"),
        ("--rate nan", '--rate "nan": must be a number, above 0, below 1'),
        ("--rate none", '--rate "none": must be a number, above 0, below 1'),
        ("--rate 0x1", '--rate "0x1": must be a number, above 0, below 1'),
        ("--limit -1e-3", "--limit -0.001: must be a number, at least 0, or none"),
        ("--kind c", '--kind "c": must be one of a, b'),
        ("--even 3", "--even 3: must be an integer, at least 0, at most 10, a multiple of 2"),
        ("--even 4.0", "--even 4.0: must be an integer, at least 0, at most 10, a multiple of 2"),
        ("--even 1_0", '--even "1_0": must be an integer, at least 0, at most 10, a multiple of 2'),
        ("--even \uff14", '--even "\\uff14": must be an integer, at least 0, at most 10, a multiple of 2'),
    ],
)
def test_the_error_of_an_invalid_value_names_the_flag_and_the_allowed_values(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(line)
    assert str(caught.value).startswith(message)


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(ConfigError, match=r"^--even 3: must be .*; --rate 2: must be .*; --limit -1: must be "):
        parse("--limit -1 --rate 2 --even 3")


def test_a_value_from_a_file_is_named_by_file_and_path() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Outer, {"even": 3, "inner": {"rate": 2}}, source="c.json", flags={"inner": {"rate": 2}})
    assert "--rate 2: must be" in str(caught.value)
    assert "c.json: even 3: must be" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"widths": 8}}, "f: inner.widths 8: must be 1 to 3 values"),
        ({"inner": {"widths": []}}, "f: inner.widths []: must be 1 to 3 values"),
        ({"inner": {"widths": [8, True]}}, "f: inner.widths.1 true: must be 1 to 3 values, each an integer"),
        ({"inner": {"widths": [8, 4.0]}}, "f: inner.widths.1 4.0: must be"),
        ({"inner": {"widths": [8, "4"]}}, 'f: inner.widths.1 "4": must be'),
        ({"inner": 3}, "f: inner 3: must be an object, {...}"),
        ({"innner": {}}, "f: innner: no such key; did you mean inner?"),
        ({"inner": {"wdths": [1]}}, "f: inner.wdths: no such key; did you mean inner.widths?"),
        ({"rate": 0.5}, "f: rate: no such key; did you mean inner.rate?"),
        ({"inner": {"colour": 1}}, "f: inner.colour: no such key; --print-config shows all options"),
        ({"even": 10**100}, "f: even 1000"),
        ({"inner": {"kind": "x" * 200}}, f'f: inner.kind "{"x" * 56}...: must be'),
    ],
)
def test_the_error_of_a_file_names_the_path_and_the_nearest_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Outer, values, source="f")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("line", ["--rat 0.1", "--ev 4", "--no-fas"])
def test_abbreviated_flags_are_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        parse(line)
    assert refusal.value.code == 2
    assert capsys.readouterr().err.startswith("x.py: error: ")


def test_an_option_reports_what_makes_it_idle() -> None:
    rate = OPTIONS["inner", "rate"]
    assert rate.idle(Outer()) == ""
    assert rate.idle(Outer(inner=Inner(kind="b"))) == "--kind b"
    assert OPTIONS["even",].idle(Outer()) == ""


def test_an_option_without_a_type_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Untyped:
        width: int = option(3, "width")
        depth = option(2, "depth")

    with pytest.raises(ProblemError, match=r"Untyped.depth has no type: write it as in `depth: int = option\(...\)`"):
        options_of(Untyped)


def test_the_help_describes_every_option_in_its_group() -> None:
    parser = Parser(prog="x.py", usage="x.py [options]")
    add_flags(parser, OPTIONS, top="top", defaults={"--even": "chosen later"})
    text = " ".join(parser.format_help().split())
    assert text.index(" inner: ") < text.index("--widths") < text.index(" top: ") < text.index("--fast, --no-fast")
    assert "a rate in % (a number, above 0, below 1; default: 0.5)" in text
    assert "an even number (an integer, at least 0, at most 10, a multiple of 2; default: chosen later)" in text


def test_merge_replaces_values_section_by_section() -> None:
    base = {"a": 1, "inner": {"b": 2, "c": [3]}}
    assert merge(base, {"inner": {"c": [4, 5]}}) == {"a": 1, "inner": {"b": 2, "c": [4, 5]}}
    assert merge(base, {"inner": 7, "new": {"d": 1}}) == {"a": 1, "inner": 7, "new": {"d": 1}}
    assert base == {"a": 1, "inner": {"b": 2, "c": [3]}}


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("my data", "my_data"),
        (".hidden", "_.hidden"),
        ("-1", "_-1"),
        ("con.txt", "_con.txt"),
        ("", "_"),
        ("\u00e9t\u00e9", "_t_"),
        ("x" * 99, "x" * 40),
        ("." * 99, "_" + "." * 39),
    ],
)
def test_any_label_becomes_a_valid_folder_name(label: str, name: str) -> None:
    assert folder_name(label) == check_name(name) == name


@pytest.mark.parametrize("name", ["x" * 64, "0", "_", "a.b-c_d", "CONSOLE", "COM10", "nullable"])
def test_plain_folder_names_are_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/abs",
        "a/b",
        "a\\b",
        ".hidden",
        "-dash",
        "x" * 65,
        "a b",
        "a\nb",
        "a\n",
        "a\0b",
        "\uff11",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="use 1 to 64 characters of A-Z a-z 0-9"):
        check_name(name)


@pytest.mark.parametrize("name", ["CON", "con", "nul.txt", "Aux", "COM1", "lpt9.tar.gz"])
def test_names_that_windows_reserves_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="reserved on Windows; choose another"):
        check_name(name)


def test_read_object_returns_the_object_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"a": {"b": [1, 2.5, null]}, "c": 123456789012345678901234567890}', encoding="utf-8", newline="\n")
    assert read_object(path) == {"a": {"b": [1, 2.5, None]}, "c": 123456789012345678901234567890}


def test_a_config_without_its_decorator_is_named() -> None:
    class Forgotten(Config):
        speed: float = option(1.0, "speed", gt=0)

    with pytest.raises(ProblemError, match=r"^Forgotten is not a dataclass of pydantic: add @dataclass\(frozen=True, "):
        options_of(Forgotten)
