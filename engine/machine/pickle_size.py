# Machinery: keep, and skip at first.
"""Check a pickle before it is loaded, without running it: which types it has, and how many values.

torch.load(weights_only=True) runs no code from a pickle. But the values in a pickle can be shared, so that a list of
lists of lists ... takes a few bytes and stands for more values than any memory has.
"""

import pickletools
import re
from typing import Any

MOST = 2**27  # values, and characters of text, where those that are shared count each time

# What torch.save writes besides plain values.
OF_TORCH = re.compile(
    r"collections OrderedDict|torch._utils _rebuild_(tensor_v[23]|parameter)"
    r"|torch (Size|\w+Storage|u?int\d+|b?float\d+|complex\d+|bool)"
)

# The codes of a pickle, by what they do to the stack of its values (see the source of pickletools).
PUSH = {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2"}
PUSH |= {"LONG1", "BINFLOAT", "BINUNICODE", "GLOBAL"}
MAKE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "BINPERSID": 1, "TUPLE": None}  # None: down to a mark
FILL = {"APPEND": 1, "SETITEM": 2, "BUILD": 1, "APPENDS": None, "SETITEMS": None}


class _Value:
    """A value in a pickle: its own size, and the values in it."""

    def __init__(self, size: int, inner: "list[_Value]") -> None:
        self.size, self.inner = size, inner


def require_small_pickle(content: bytes) -> None:
    """Check a pickle that torch.save has written.

    Raises:
        ValueError: it has something that torch.save does not write, or too many values.
    """
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[Any, _Value] = {}

    def pop(n: int | None) -> list[_Value]:
        start = marks.pop() if n is None else len(stack) - n
        taken = stack[start:]
        del stack[start:]
        return taken

    for code, argument, _ in pickletools.genops(content):
        name = code.name
        if name in PUSH:
            if name == "GLOBAL" and not OF_TORCH.fullmatch(str(argument)):
                raise ValueError(f"it has {argument}")
            stack.append(_Value(1 + (len(argument) if isinstance(argument, str) else 0), []))
        elif name == "MARK":
            marks.append(len(stack))
        elif name in MAKE:
            stack.append(_Value(1, pop(MAKE[name])))
        elif name in FILL:
            values = pop(FILL[name])
            stack[-1].inner += values
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"it has the code {name}")
    if _total(stack[-1]) > MOST:
        raise ValueError("it has too many values")


def _total(root: _Value) -> int:
    """The size of a value and of all values in it. Raises ValueError if a value contains itself."""
    totals: dict[int, int] = {}
    begun: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting[-1]
        if id(value) in totals:
            waiting.pop()
        elif id(value) in begun:  # the values in it are counted by now
            waiting.pop()
            totals[id(value)] = value.size + sum(totals[id(each)] for each in value.inner)
        else:
            begun.add(id(value))
            if any(id(each) in begun and id(each) not in totals for each in value.inner):
                raise ValueError("a value contains itself")
            waiting += value.inner
    return totals[id(root)]
