# Machinery: keep, and skip at first.
"""Signals: the first one stops a run, which saves its state first; the second one ends the process at once."""

import ctypes
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Windows has neither SIGUSR1 nor SIGHUP, which a process receives when its terminal is closed. Only Windows has
# SIGBREAK, which Ctrl-Break sends.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGBREAK")
STOP_SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))

# The offset of the flags in struct sigaction, and the flag SA_RESETHAND, of the C libraries of Linux and macOS.
RESET_FLAG = {"linux": (136, 0x80000000), "darwin": (12, 0x4)}

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


class Interrupted(KeyboardInterrupt):
    """A signal has requested that the program stop.

    This is not a subclass of Exception, so that code that catches every Exception does not catch it.
    """

    def __init__(self, number: int) -> None:
        # Clusters send SIGUSR1 as a warning before SIGTERM. It has the exit code of SIGTERM, and so has SIGBREAK.
        as_sigterm = signal.Signals(number).name in ("SIGUSR1", "SIGBREAK")
        self.exit_code = 128 + (signal.SIGTERM if as_sigterm else number)


def stop_on_signals() -> dict[int, Any]:
    """Make the first of STOP_SIGNALS raise Interrupted, and the second one end the process at once.

    All files are complete at any time. State that has not been saved is saved before the program ends (logger.py).

    Returns:
        The earlier handlers, for `restore`.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        _handle(signal.SIG_DFL)
        raise Interrupted(number)

    return _handle(stop)


@contextmanager
def second_interrupt_at_once() -> Iterator[None]:
    """Let a second Ctrl-C end the process at once, also while the block runs compiled code.

    Python only runs the handler of a signal when compiled code returns, which may take hours. In this block, the system
    itself restores the default action of SIGINT when it arrives for the first time. Use it where nothing can be lost: a
    program that passes on a signal, such as `timeout`, often sends it twice. Not on Windows.
    """
    handler = signal.getsignal(signal.SIGINT)
    is_possible = sys.platform in RESET_FLAG and sys.maxsize > 2**32
    if not is_possible or getattr(handler, "__module__", "") != __name__:  # the handler is not that of stop_on_signals
        yield
        return
    offset, flag = RESET_FLAG[sys.platform]
    action, sigaction = ctypes.create_string_buffer(512), ctypes.CDLL(None).sigaction  # larger than the structure
    sigaction(signal.SIGINT, None, action)
    (flags,) = struct.unpack_from("=I", action, offset)
    struct.pack_into("=I", action, offset, flags | flag)
    sigaction(signal.SIGINT, action, None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))  # without the flag


def _handle(handler: Handler) -> dict[int, Any]:
    """Set a handler for all of STOP_SIGNALS, and return the earlier handlers.

    Python only handles signals in the main thread. In other threads, this changes nothing. A SIGHUP that is ignored, as
    after `nohup`, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    chosen = [each for each in STOP_SIGNALS if not (each.name == "SIGHUP" and signal.getsignal(each) == signal.SIG_IGN)]
    return {number: signal.signal(number, handler) for number in chosen}


def restore(handlers: dict[int, Any]) -> None:
    """Set the handlers of some signals again."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def default_handlers() -> Iterator[None]:
    """Let a signal end the process at once while the block runs.

    This also works while the process waits inside a library, where Python would not run a handler.
    """
    handlers = _handle(signal.SIG_DFL)
    try:
        yield
    finally:
        restore(handlers)


@contextmanager
def blocked() -> Iterator[None]:
    """Let processes that are started in the block wait with signals until they call `unblock`. Not on Windows."""
    if hasattr(signal, "pthread_sigmask"):
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # otherwise it is started with the first process, and unblocks signals
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        unblock()


def unblock() -> None:
    """Receive signals that were blocked by the process that started this one."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay signals until the end of a short block, such as a block that records how a run ended."""
    received: list[int] = []
    handlers = _handle(lambda number, _: received.append(number))
    try:
        yield
    finally:
        restore(handlers)
        for late in received:
            signal.raise_signal(late)
