# Shared: keep, and edit freely; every edit takes effect.
"""Small helpers: messages on the terminal, random seeds, timings. Importing this file does not load torch.

The machinery uses the same messages and seeds. They are defined in engine/machine/, in terminal.py and seeds.py.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from engine.machine.seeds import derive_seed, seed_everything
from engine.machine.terminal import print_line, warn

__all__ = ["derive_seed", "print_line", "seed_everything", "timed", "warn"]


@contextmanager
def timed(name: str, timings: dict[str, float]) -> Iterator[None]:
    """Measure the time that the block takes, in seconds, and store it under `name`."""
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 3)
