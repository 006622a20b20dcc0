# Machinery: keep, and skip at first.
"""The flags of a command line, made from options: parsing them, and errors in one line."""

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from engine.machine.hardware import available_cores
from engine.machine.terminal import one_line, warn
from engine.options.fields import ConfigError, Option
from engine.options.suggestions import Known, suggest


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations, and with one-line errors. Its result only has flags that were given."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(argument_default=argparse.SUPPRESS, allow_abbrev=False, **settings)
        # By default, argparse only recognises plain negative numbers as values. With this pattern, -1e-3 and -inf are
        # also values of the flag before them. If they are invalid, the error message can then name the flag.
        self._negative_number_matcher = re.compile("-[^-]")

    def refuse(self, word: str, options: Mapping[tuple[str, ...], Option], of: str = "") -> NoReturn:
        """End the program because of an unknown option, and suggest one of these options, or of the parser's own.

        Args:
            of: words that say to what the option would belong.
        """
        known = [
            Known(each.flag, (each.flag[2:], path[-1], ".".join(path)), each.info.description or "", each.choices)
            for path, each in options.items()
        ]
        for action in self._actions:
            if action.option_strings and tuple(action.dest.split(".")) not in options:
                flag = action.option_strings[-1]
                known.append(Known(flag, (flag[2:],), action.help or "", tuple(action.choices or ())))
        meant = suggest(word.strip("-").partition("=")[0], known, "--help lists all options")
        self.error(f"{word}: no such option{of}; {meant}")

    def error(self, message: str) -> NoReturn:
        warn(f"{self.prog}: error: {one_line(message)}")  # argparse of Python 3.11.2 fails if stderr cannot be written
        self.exit(2)


def add_flags(
    parser: Parser, options: Mapping[tuple[str, ...], Option], top: str, defaults: Mapping[str, str] | None = None
) -> None:
    """Add a flag for every option to the parser, grouped by section. Top-level options are in the group `top`.

    `defaults` maps flags to descriptions of their defaults, where these are not the defaults of the fields.
    """
    groups: dict[str, Any] = {}
    for option in options.values():
        section = option.path[0] if len(option.path) > 1 else top
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        shape: dict[str, Any] = {"metavar": "X"}
        if option.kind is bool:
            shape = {"action": argparse.BooleanOptionalAction}
        elif option.is_list:
            shape |= {"nargs": "+"}
        default = (defaults or {}).get(option.flag, option.default)
        text = f"{option.info.description} ({option.allowed}; default: {default})"
        dest = ".".join(option.path)
        groups[section].add_argument(option.flag, dest=dest, help=text.replace("%", "%%"), **shape)


def flags_given(given: Mapping[str, Any], options: Mapping[tuple[str, ...], Option]) -> dict[str, Any]:
    """The values of the flags that were given, in sections, for `merge`. `given` is the result of the parser."""
    values: dict[str, Any] = {}
    for path, option in options.items():
        if (words := given.get(".".join(path))) is not None:
            section = values if len(path) == 1 else values.setdefault(path[0], {})
            section[path[-1]] = option.value(words)
    return values


MOST = 10_000  # runs, seeds or processes; more are a mistake


def count_given(given: Mapping[str, Any], key: str) -> int:
    """The value of a flag that is a positive integer. `given` is the result of the parser."""
    word = given[key]
    if not (isinstance(word, str) and word.isascii() and word.isdecimal() and 0 < int(word[:10]) <= MOST):
        shown = str(word) if len(str(word)) <= 60 else f"{str(word)[:57]}..."
        raise ConfigError(f"--{key.replace('_', '-')} {shown}: must be an integer, at least 1, at most {MOST:,}")
    return int(word)


def add_workers(group: Any, problem: Any) -> None:
    """Add --workers to the command line of a problem with a slow generator."""
    if getattr(problem, "block_size", None) is not None:
        group.add_argument(
            "--workers", metavar="N", help="processes that generate examples (default: as many as there are cores)"
        )


def workers_given(problem: Any, given: Mapping[str, Any]) -> int:
    """The number of processes that call a slow generator; 1 for another one."""
    if problem.block_size is None:
        return 1
    return count_given(given, "workers") if "workers" in given else available_cores()


def without_effect(flags: Sequence[str], beside: str) -> str:
    """The error message for flags that have no effect together with something else. It ends with `drop it`."""
    does, it = ("does", "it") if len(flags) == 1 else ("do", "them")
    return f"{', '.join(flags)} {does} nothing with {beside}: drop {it}"
