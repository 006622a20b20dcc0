# Machinery: keep, and skip at first.
"""How a command ends: errors and signals as one line on stderr and an exit code."""

import errno
import gc
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from engine.machine.errors import RunError
from engine.machine.hardware import is_out_of_memory
from engine.machine.signals import Interrupted, restore, stop_on_signals
from engine.machine.terminal import flush, one_line, repair_streams, warn

# The errors of a disk that is full, protected or broken. Some names are unknown on Windows.
DISK = {
    getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ENOTDIR")
}


SECONDS_TO_END = 20.0  # the longest time from the last line of output to the end of the process


class ExitCode(AbstractContextManager["ExitCode"]):
    """A context that turns errors and signals into one line on stderr and an exit code.

    Attributes:
        code: the exit code, valid after the block (see errors.py).
    """

    def __init__(self) -> None:
        self.code = 0
        self.is_interactive = hasattr(sys, "ps1")  # the session continues afterwards, as after %run in a notebook
        self.is_main, self.place = True, Path()
        self.hint: Callable[[], str] = lambda: "nothing was saved"

    def prepare(self, place: Path, hint: Callable[[], str], *, is_main: bool = True) -> None:
        """Set where the command writes, and the hint after an interruption. From now on, only rank 0 uses stdout."""
        self.is_main, self.place, self.hint = is_main, place, hint
        if not is_main:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def __enter__(self) -> Self:
        repair_streams()
        self.handlers = stop_on_signals()
        if not self.is_interactive:
            # Figures are written to files. The user's backend may be that of a notebook, or need a screen.
            os.environ["MPLBACKEND"] = "agg"
            if matplotlib := sys.modules.get("matplotlib"):
                matplotlib.use("agg")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        prog = Path(sys.argv[0]).name
        if isinstance(error, RunError):
            warn(f"{prog}: error: {one_line(str(error))}")
            self.code = error.exit_code
        elif is_out_of_memory(error):
            warn(
                f"{prog}: error: not enough memory ({one_line(str(error))[:200]}): use a smaller network or fewer data"
            )
            self.code = 2
        elif self._is_of_disk(error):
            if isinstance(error, FileNotFoundError):
                advice = f"{self.place}, or a folder that contains it, has been removed"
            elif isinstance(error, IsADirectoryError):
                advice = "remove this folder, which has the name of a file"
            else:
                advice = f"free space on the disk, or make {self.place} writable"
            warn(f"{prog}: error: {error}: {advice}")
            self.code = 5
        elif isinstance(error, Interrupted):
            if self.is_main:
                warn(f"{prog}: interrupted: {self.hint()}")
            self.code = error.exit_code
        flush(sys.stdout)
        flush(sys.stderr)
        if self.is_interactive:
            restore(self.handlers)
        return self.code != 0

    def _is_of_disk(self, error: BaseException | None) -> bool:
        """Whether a file of the run cannot be used, or the disk is full or protected. Other errors are bugs."""
        if not isinstance(error, OSError):
            return False
        names = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        own = {folder.absolute() for folder in (self.place, self.place.parent, Path("cache"))}
        return error.errno in DISK or any({name.absolute(), *name.absolute().parents} & own for name in names)


def quick_exit(code: int) -> NoReturn:
    """End the program without a last garbage collection, which takes half a second with all objects of torch."""
    gc.freeze()  # later collections ignore all present objects
    if "wandb" in sys.modules:  # at the end of Python, W&B waits without a limit for a server that does not answer
        timer = threading.Timer(SECONDS_TO_END, _end_if_waiting, (code,))
        timer.daemon = True
        timer.start()
    sys.exit(code)


def _end_if_waiting(code: int) -> None:
    """End the process if Python is ending. In a notebook, which continues after sys.exit, do nothing."""
    if not threading.main_thread().is_alive():
        os._exit(code)
