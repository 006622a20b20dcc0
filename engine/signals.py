"""Signals: the first one stops a run, which saves its state first; the second one ends the process at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """A signal has requested that the program stop.

    This is not a subclass of Exception, so that code that catches every Exception does not catch it.
    """

    def __init__(self, number: int) -> None:
        # Clusters send SIGUSR1 as a warning before SIGTERM. It therefore has the exit code of SIGTERM.
        self.exit_code = 128 + (signal.SIGTERM if number == signal.SIGUSR1 else number)


def stop_on_signals() -> None:
    """Make the first SIGINT, SIGTERM or SIGUSR1 raise Interrupted, and the second one end the process at once.

    All files are complete at any time. State that has not been saved is saved before the program ends (logger.py).
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise Interrupted(number)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)


@contextmanager
def default_handlers() -> Iterator[None]:
    """Let a signal end the process at once while the block runs.

    This also works while the process waits inside a library, where Python would not run a handler.
    """
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay signals until the end of a short block, such as a block that records how a run ended."""
    received: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: received.append(number)) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in received:
            signal.raise_signal(late)
