"""Signals: the first one stops a run cleanly, the second one stops the process at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop.

    Not an Exception, so that code that handles any Exception and continues still stops.
    """

    def __init__(self, number: int) -> None:
        # Clusters send SIGUSR1 before they take a node back. It counts as the SIGTERM that follows.
        self.exit_code = 128 + (signal.SIGTERM if number == signal.SIGUSR1 else number)


def stop_on_signals() -> None:
    """Make the first SIGINT, SIGTERM or SIGUSR1 raise Interrupted, and the second one end the process at once.

    Files are complete at any time, and what has not been written yet is written on the way out (logger.py).
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise Interrupted(number)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)


@contextmanager
def default_handlers() -> Iterator[None]:
    """Let a signal end the process at once, also while it waits in a library, where no handler in Python would run."""
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay signals until the end of a short block, such as the one that records how a run ended."""
    received: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: received.append(number)) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in received:
            signal.raise_signal(late)
