"""Small helpers: messages on the terminal, random seeds, timings. Importing this file does not load torch."""

import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def print_line(text: str) -> None:
    """Print a line on stdout. If stdout has been closed, as by `| head`, continue without output."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(text: str) -> None:
    """Print a line on stderr. A closed stderr does not change the exit code."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


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
