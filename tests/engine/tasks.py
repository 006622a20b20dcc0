"""Tasks for the tests of the pool of processes, in a file that a process loads quickly."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from engine.machine.errors import BadRequestError


def work(what: Any) -> Any:
    """A task. Its files are in the working directory."""
    if what == "error":
        raise BadRequestError("one line")
    if what == "bug":
        raise ZeroDivisionError("a bug")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(3)
    if isinstance(what, str) and what.startswith("wait"):
        name = Path(what.replace(" ", "-"))
        name.with_suffix(".pid").write_text(str(os.getpid()), encoding="utf-8")
        try:
            time.sleep(1000)
        finally:
            name.with_suffix(".saved").touch()
    return os.getpid() if what == "process" else what


class Unloadable:
    """An argument that cannot be loaded in the other process, as if its module had been edited."""

    def __reduce__(self) -> Any:
        return __import__, ("a_module_that_was_removed",)
