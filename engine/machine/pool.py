# Machinery: keep, and skip at first.
"""Processes that work at the same time. Each of them loads torch once, and then does one task after the other.

concurrent.futures.ProcessPoolExecutor stops all tasks if one of its processes is killed. Here, the others continue.
"""

import _thread
import multiprocessing
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self, cast

from engine.machine.errors import RunError
from engine.machine.signals import STOP_SIGNALS, Interrupted, blocked, unblock, uninterrupted
from engine.machine.terminal import repair_streams

# A fork may hang after torch has started threads.
CONTEXT = multiprocessing.get_context("spawn")


class Outcome(NamedTuple):
    """What became of a task."""

    key: str
    value: Any = None  # what the function returned
    error: str = ""  # one line that says why it did not return
    details: str = ""  # the traceback of an unexpected error


class Pool:
    """A number of processes, which are started when they are needed and stopped at the end of the `with` block.

    The processes ignore Ctrl-C, which a terminal sends to all of them. At the end of the block they receive SIGTERM,
    which raises Interrupted in the function that they run, so that it can save its state. They also stop if this
    process is killed. If a signal ends the block, this process waits for them, and ignores further SIGTERM; Ctrl-C
    ends it at once.

    Args:
        size: the largest number of processes.
        function: what a task calls, a function at the top level of a module.
        prepare: called once in each process with its index, before its first task.
    """

    def __init__(self, size: int, function: Callable[..., Any], prepare: Callable[[int], None] | None = None) -> None:
        self.size, self.function, self.prepare = size, function, prepare
        self.idle: list[_Worker] = []
        self.busy: dict[Connection, _Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Interrupted):  # clusters send SIGTERM again, while the processes save their state
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        workers = (*self.idle, *self.busy.values())
        for worker in self.busy.values():
            worker.process.terminate()
        for worker in workers:
            worker.connection.close()  # ends a process that waits for a task, or that has just completed one
        for worker in workers:
            worker.process.join()

    @property
    def is_full(self) -> bool:
        """Whether all processes have a task."""
        return len(self.busy) == self.size

    @property
    def running(self) -> set[str]:
        """The keys of the tasks that are running."""
        return {worker.key for worker in self.busy.values()}

    def start(self, key: str, *arguments: Any) -> None:
        """Start a task in an idle process: call the function with these arguments."""
        content = pickle.dumps(arguments)
        with uninterrupted(), blocked():  # a process is only interrupted after it has set its handlers
            self.idle = [worker for worker in self.idle if worker.process.is_alive()]  # some may have been killed
            if not self.idle:
                index = min(set(range(self.size)) - {worker.index for worker in self.busy.values()})
                self.idle.append(_Worker(index, self.function, self.prepare))
            worker = self.idle.pop()
            worker.key = key
            self.busy[worker.connection] = worker
        with suppress(OSError):  # the process has just been killed, which `wait` reports
            worker.connection.send_bytes(content)

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        """Wait until a task ends, and return the outcomes of all tasks that have ended."""
        outcomes = []
        for connection in wait(list(self.busy), timeout):
            worker = self.busy.pop(cast(Any, connection))
            try:
                outcomes.append(Outcome(worker.key, *worker.connection.recv()))
                self.idle.append(worker)
            except (EOFError, OSError):
                worker.process.join()
                code = worker.process.exitcode
                ending = (
                    f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
                )
                outcomes.append(Outcome(worker.key, error=f"its process was ended {ending}"))
        return outcomes


class _Worker:
    """A process, and the end of the connection to it that this process has."""

    def __init__(self, index: int, function: Callable[..., Any], prepare: Callable[[int], None] | None) -> None:
        self.index, self.key = index, ""
        self.connection, other_end = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(other_end, index, function, prepare))
        self.process.start()
        other_end.close()  # so that this process notices when the other one ends


def _serve(
    connection: Connection, index: int, function: Callable[..., Any], prepare: Callable[[int], None] | None
) -> None:
    """Do tasks until the connection is closed."""
    for number in STOP_SIGNALS:  # SIGTERM may have arrived already, and would be lost if it were ignored even shortly
        signal.signal(number, _stop if number == signal.SIGTERM else signal.SIG_IGN)
    repair_streams()
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        unblock()
        if prepare is not None:
            prepare(index)
        while True:
            content = connection.recv_bytes()
            connection.send(_call(function, content))
    except (EOFError, OSError):  # the parent has ended
        return
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)  # without a traceback


def _call(function: Callable[..., Any], content: bytes) -> tuple[Any, str, str]:
    try:
        return function(*pickle.loads(content)), "", ""  # this imports modules, which may fail
    except RunError as error:
        return None, str(error), ""
    except Exception as error:  # of any type: other tasks do not depend on this one
        return None, f"{type(error).__name__}: {error}", traceback.format_exc()


def _stop(number: int, _: FrameType | None) -> None:
    """Interrupt the task. A second signal, as from a cluster that sends one to all processes, has no effect."""
    signal.signal(number, signal.SIG_IGN)
    raise Interrupted(number)


def _stop_with_parent() -> None:
    """Wait until the parent process ends, even if it is killed. Then interrupt the task of this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if hasattr(signal, "pthread_kill"):  # also interrupts the system call in which the main thread may wait
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        _thread.interrupt_main(signal.SIGTERM)
