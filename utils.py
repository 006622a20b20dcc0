"""Small helpers: messages on the terminal, random seeds, timings. Importing this file does not load torch."""

import io
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import numpy as np


def print_line(text: str) -> None:
    """Print a line on stdout. If that fails, continue without output: see `flush`."""
    _print(text, sys.stdout)


def warn(text: str) -> None:
    """Print a line on stderr. If that fails, continue without output: see `flush`."""
    _print(text, sys.stderr)


def _print(text: str, stream: TextIO | None) -> None:
    with suppress(OSError):
        print(text, file=stream)
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
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)[:2000]


def derive_seed(*key: int) -> int:
    """Derive a seed for torch from integers. Seeds are independent, unless the keys only differ by zeros at the end."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch (initial weights, dropout), NumPy and Python (for code that you add).

    All other code in this project uses separate generators.
    """
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is meant
    random.seed(seed)


@contextmanager
def timed(name: str, timings: dict[str, float]) -> Iterator[None]:
    """Measure the time that the block takes, in seconds, and store it under `name`."""
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 3)
