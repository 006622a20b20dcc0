# Machinery: keep, and skip at first.
"""Configs as dictionaries: their format in files, and settings. This file does not load pydantic."""

import json
from collections.abc import Mapping
from typing import Any

# The format of configs in files: config.json, sweep.json and checkpoints. Increase it if a key gets another meaning, or
# an option another default, and translate older files in `upgrade`.
FORMAT = 1

# The options that are not part of a setting, as their scopes say (scopes.py). They are repeated here, because lists of
# runs do not load the options.
NOT_IN_SETTING = ("log", "data.cache", "data.fold", "seed", "device", "threads", "compile")


def upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the values of a config of any format to the current format. The number of the format is removed.

    The first files had no number. Their key `replay` is dropped: this option has been removed, and changed no result.

    Raises:
        ValueError: the number is invalid, or that of a later version of the program.
    """
    number = content.get("format", 0)
    if type(number) is not int or number < 0:
        raise ValueError(f"format {json.dumps(number)}: must be an integer from 0 to {FORMAT}")
    if number > FORMAT:
        raise ValueError(f"format {number}: this program reads formats up to {FORMAT}: use a newer version of it")
    dropped = ("format", "replay") if number == 0 else ("format",)
    return {key: value for key, value in content.items() if key not in dropped}


def with_format(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config for a file: with the number of the current format, as the first key."""
    return {"format": FORMAT, **values}


def setting_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the seed and without the options that do not change the experiment."""

    def without(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            key: without(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
            for key, value in section.items()
            if f"{prefix}{key}" not in NOT_IN_SETTING
        }

    return without(config, "")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by dotted path, such as `train.lr`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def changed_options(default: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from a default config, by dotted path, except the seed and those of the machine."""
    before, now = (flatten(setting_of(json.loads(json.dumps(each)))) for each in (default, config))
    return {path: value for path, value in now.items() if value != before.get(path)}
