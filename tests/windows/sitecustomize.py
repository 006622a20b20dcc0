"""A stand-in for Windows: a Python, on any system, in which the code of this repository finds what Windows has.

Python imports this file when it starts, if its folder is in PYTHONPATH. For code in the repository, but not for
libraries,

- modules that only Unix has cannot be imported, and their names in `os` and `signal` are missing;
- files are opened as text in the encoding cp1252, with the line ends of Windows, unless the code says otherwise;
- folders cannot be opened;
- the first attempt to replace a file fails, as it does on Windows while another process reads the file.

Only a real Windows can show that the lock of filelock, the compiled code of Numba and the processes of PyTorch work
there, that no open file is removed or replaced, and that paths with backslashes are understood everywhere.
"""

import builtins
import inspect
import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("site-packages", "dist-packages", ".venv")

UNIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
UNIX_NAMES = {
    "os": {
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "confstr", "fchmod", "fchown", "fork"),
        *("forkpty", "getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getuid", "initgroups"),
        *("killpg", "mkfifo", "nice", "openpty", "pathconf", "posix_fallocate", "posix_spawn", "pread", "pwrite"),
        *("register_at_fork", "sched_getaffinity", "sched_setaffinity", "sched_yield", "setpgid", "setsid", "setuid"),
        *("statvfs", "sync", "sysconf", "sysconf_names", "uname", "wait", "wait3", "wait4"),
    },
    "signal": {
        *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGTSTP", "SIGUSR1"),
        *("SIGUSR2", "alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigpending", "sigwait"),
    },
}


def is_ours(frame: FrameType | None) -> bool:
    """Whether a frame is in code of this repository. The frames of pathlib are skipped."""
    while frame is not None and "pathlib" in frame.f_code.co_filename:
        frame = frame.f_back
    file = "" if frame is None else frame.f_code.co_filename
    is_here = Path(file).is_relative_to(ROOT) and file != __file__
    return is_here and not any(part in LIBRARIES for part in Path(file).parts)


class WindowsModule(ModuleType):
    """A module without the names that only Unix has."""

    def __getattribute__(self, name: str) -> Any:
        module = super().__getattribute__("__name__")
        if name in UNIX_NAMES[module] and is_ours(sys._getframe(1)):
            raise AttributeError(f"Windows has no {module}.{name}")
        return super().__getattribute__(name)


python_import, python_open, os_open, os_replace = builtins.__import__, io.open, os.open, os.replace
replaced: set[str] = set()


def import_module(name: str, *arguments: Any, **options: Any) -> Any:
    """Import a module, unless it does not exist on Windows."""
    if name in UNIX_MODULES and is_ours(sys._getframe(1)):
        raise ModuleNotFoundError(f"Windows has no module {name}", name=name)
    return python_import(name, *arguments, **options)


def open_file(*arguments: Any, **options: Any) -> Any:
    """Open a file with the defaults of Windows."""
    bound = inspect.signature(python_open).bind(*arguments, **options)
    bound.apply_defaults()
    given = bound.arguments
    if "b" not in given["mode"] and is_ours(sys._getframe(1)):
        given["encoding"] = "cp1252" if given["encoding"] in (None, "locale") else given["encoding"]
        given["newline"] = "\r\n" if given["newline"] is None and "r" not in given["mode"] else given["newline"]
    return python_open(*bound.args, **bound.kwargs)


def open_descriptor(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
    """Open a file, but not a folder."""
    if is_ours(sys._getframe(1)) and Path(path).is_dir():
        raise PermissionError(13, "Permission denied", path)
    return os_open(path, flags, *arguments, **options)


def replace_file(source: Any, target: Any, **options: Any) -> None:
    """Replace a file, but not at the first attempt."""
    if is_ours(sys._getframe(1)) and str(target) not in replaced:
        replaced.add(str(target))
        raise PermissionError(13, "The process cannot access the file", source, None, target)
    os_replace(source, target, **options)


builtins.__import__ = import_module
builtins.open = io.open = open_file
os.open, os.replace = open_descriptor, replace_file  # type: ignore[assignment]
os.__class__ = signal.__class__ = WindowsModule
