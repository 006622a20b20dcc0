# Machinery: keep, and skip at first.
"""Lines on the terminal, which never end a program: neither a closed stream nor an unprintable character does."""

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO


def print_line(text: str) -> None:
    """Print text on stdout. If that fails, continue without output: see `flush`.

    Characters that do not print are escaped, except ends of lines: a name could contain commands for the terminal.
    """
    _print(text, sys.stdout)


def warn(text: str) -> None:
    """Print text on stderr, as print_line does on stdout."""
    _print(text, sys.stderr)


def _print(text: str, stream: TextIO | None) -> None:
    with suppress(OSError):
        print("\n".join(map(_printable, text.split("\n"))), file=stream)
    flush(stream)


def flush(stream: TextIO | None) -> None:
    """Flush a stream. If that fails, discard this and all further output to it.

    The reader may have gone, as after `| head`, the terminal may have been closed, or the disk may be full.
    """
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with Path(os.devnull).open("w", encoding="utf-8") as nothing:
            os.dup2(nothing.fileno(), stream.fileno())
        stream.flush()


def repair_streams() -> None:
    """Discard the output to a stream that was closed when the program started, as by `>&-`.

    Otherwise the next file that is opened would get the number of the closed stream, and receive what libraries print.
    Also escape characters that the encoding of stdout does not have.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - open until the program ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def one_line(message: str) -> str:
    """Make a message one printable line of at most 2000 characters, whatever file names it quotes."""
    return _printable(message)[:2000]


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def invocation() -> str:
    """The command that started this program, without arguments: `python main.py` or `python -m examples.table`."""
    spec = sys.modules["__main__"].__spec__
    if spec is not None and spec.name.partition(".")[0] not in ("pytest", "runpy"):
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return f"python {sys.argv[0]}"
