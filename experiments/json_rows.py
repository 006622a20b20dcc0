"""JSON with one line for each case, so that changes of a results file are easy to see."""

import json
from typing import Any


def to_json(content: Any) -> str:
    """JSON in which each entry of a list of dictionaries has its own line, and so has each key of the objects above.

    Raises:
        ValueError: a number is infinite or not a number.
    """
    return _lines(content) + "\n"


def _lines(value: Any) -> str:
    if isinstance(value, dict) and any(isinstance(each, dict | list) for each in value.values()):
        return _joined("{}", (f"{json.dumps(str(name))}: {_lines(each)}" for name, each in value.items()))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return _joined("[]", (json.dumps(each, allow_nan=False) for each in value))
    return json.dumps(value, allow_nan=False)


def _joined(brackets: str, parts: Any) -> str:
    return f"{brackets[0]}\n" + ",\n".join(parts) + f"\n{brackets[1]}"
