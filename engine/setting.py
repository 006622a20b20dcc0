"""Settings: what a config says about an experiment, without the seed and the machine. For dictionaries of values."""

from collections.abc import Mapping
from typing import Any

# The options that do not change the experiment: what is recorded, where the data are kept, and the machine.
OF_MACHINE = ("log", "data.cache", "device", "threads", "compile", "replay")


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
