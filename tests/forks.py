"""Run programs in processes that have already loaded torch, which takes a tenth of a second instead of two.

A process of this module loads what all programs use. For every command it forks a child, which gets its own working
folder, output, arguments and `__main__`, as a new process would. The process has no threads, so that a fork is safe.
"""

import contextlib
import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

FIGURES = "TEST_FIGURES"  # "none": runs plot no figures, which take longer than all the rest of a small run
SECONDS = 300  # after which a command is ended, so that one that hangs does not block the tests
MODULES = ("main", "evaluate", "runs", "sweep", "logger", "trainer", "problem", "model", "plots", "ising.multispin")


class ForkServer:
    """Runs commands in forks of one process, one after the other.

    Args:
        env: the environment of the process.
        modules: what it imports before it forks.
    """

    def __init__(self, env: dict[str, str], modules: Sequence[str] = MODULES) -> None:
        command = [sys.executable, __file__, *modules]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(
        self, arguments: tuple[str, ...], script: tuple[str, ...], *, cwd: Path, env: dict[str, str], ranks: int = 1
    ) -> subprocess.CompletedProcess[str]:
        """Run `python SCRIPT ARGUMENTS` in the folder `cwd`. The script is a path, or `-m` and a module.

        Args:
            ranks: the number of processes, which form a group as those of torchrun do. The result has the output of
                all of them, and the first exit code that is not 0.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            request = {"arguments": arguments, "script": script, "cwd": str(cwd), "env": env, "output": folder}
            self.process.stdin.write(json.dumps({"ranks": ranks, "request": request}).encode() + b"\n")
            self.process.stdin.flush()
            code = int(self.process.stdout.readline())
            stdout, stderr = (
                "".join((Path(folder) / f"{name}{rank}").read_text(encoding="utf-8") for rank in range(ranks))
                for name in ("stdout", "stderr")
            )
        return subprocess.CompletedProcess(arguments, code, stdout, stderr)

    def stop(self) -> None:
        """End the process."""
        self.process.communicate()


def free_port() -> int:
    """A port of this machine that no process uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def serve() -> None:
    """Fork children for each line of the standard input, and print an exit code that is not 0, if there is one."""
    sys.path.pop(0)  # the folder of this file
    for name in sys.argv[1:]:
        with contextlib.suppress(ModuleNotFoundError):  # the files of the experiment may have been deleted
            importlib.import_module(name)
    for line in sys.stdin.buffer:
        content = json.loads(line)
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(content["ranks"])}
        children = []
        for rank in range(content["ranks"]):
            if (child := os.fork()) == 0:
                if content["ranks"] > 1:
                    content["request"]["env"] |= group | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                run_here(**content["request"], rank=rank)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]  # negative after a signal
        print(next((code for code in codes if code != 0), 0), flush=True)


def run_here(
    arguments: list[str], script: list[str], *, cwd: str, env: dict[str, str], output: str, rank: int
) -> NoReturn:
    """Run a program in this process, as Python would, and end the process."""
    signal.alarm(SECONDS)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    names = (os.devnull, f"{output}/stdout{rank}", f"{output}/stderr{rank}")
    for descriptor, name in enumerate(names):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
    opened = functools.partial(open, encoding="utf-8", closefd=False)
    sys.stdin, sys.stdout, sys.stderr = opened(0), opened(1, "w"), opened(2, "w", buffering=1)
    warnings.resetwarnings()
    warnings.simplefilter("error")
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    if env.get(FIGURES) == "none" and (module := sys.modules.get("engine.run_folder.figures_of_run")):
        module.__dict__["draw"] = lambda make, file_type="png": {}
    code: int | str | None = 0
    sys.argv = [script[-1], *arguments]
    try:
        if script[0] == "-m":
            sys.path.insert(0, cwd)
            runpy.run_module(script[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(script[0]).absolute().parent))
            runpy.run_path(script[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    serve()
