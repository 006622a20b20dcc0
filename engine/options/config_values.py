# Machinery: keep, and skip at first.
"""Configs as dictionaries: their format in files, and settings. This file does not load pydantic."""

import json
from collections.abc import Mapping
from typing import Any

FORMAT = 1  # of config.json; increase it if a key gets another meaning, and translate older files in `upgrade`

# The options that do not change the experiment: what is recorded, where the data are kept, and the machine.
OF_MACHINE = ("log", "data.cache", "device", "threads", "compile")


def upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json of any format as one of the present format, without the number of the format.

    The first files had no number. Their key `replay` is dropped: this option has been removed, and changed no result.

    Raises:
        ValueError: the number is invalid, or that of a later version of the program.
    """
    number = content.get("format", 0)
    if type(number) is not int or not 0 <= number <= FORMAT:
        raise ValueError(f"format {json.dumps(number)}: must be an integer, at most {FORMAT}: use a newer version")
    dropped = ("format", "replay") if number == 0 else ("format",)
    return {key: value for key, value in content.items() if key not in dropped}


def setting_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the seed and without the options that do not change the experiment."""

    def without(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            key: without(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
            for key, value in section.items()
            if f"{prefix}{key}" not in ("seed", *OF_MACHINE)
        }

    return without(config, "")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by dotted path, such as `train.lr`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
