"""The machine: memory, devices, threads, and the versions that can make the results of equal runs differ."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import BadRequestError

if TYPE_CHECKING:
    import torch
    from torch import nn

# If the largest layer needs fewer multiplications than this in a step, a second thread saves hardly any time.
MIN_WORK_FOR_THREADS = 2**21


def physical_memory() -> int:
    """The physical memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_memory(n_bytes: int, flags: str) -> None:
    """Raise BadRequestError if the machine has less than `n_bytes` of physical memory."""
    available = physical_memory()
    if n_bytes > available:
        raise BadRequestError(
            f"the data need {n_bytes / 2**30:,.1f} GiB of memory and this machine has {available / 2**30:,.1f} GiB: "
            f"lower {flags}, or the size of an example"
        )


def select_device(name: str, index: int | None = None) -> "torch.device":
    """The device of a name; `auto` selects the first available one of cuda, mps, cpu. `index` is the number of a GPU.

    Raises:
        BadRequestError: this machine has no such device.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, found in available.items() if found)
    if not available[name]:
        raise BadRequestError(f"--device {name}: this machine has none; use --device auto")
    if name == "cuda" and index is not None:
        torch.cuda.set_device(index)
        return torch.device(name, index)
    return torch.device(name)


def require_compiler(device: "torch.device") -> None:
    """Raise BadRequestError if there is no C++ compiler, which torch.compile needs on the CPU."""
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise BadRequestError("--compile: this machine has no C++ compiler; install g++, or drop --compile")


def choose_num_threads(network: "nn.Module", batch_size: int, input_size: int) -> int:
    """The number of CPU threads for training: the default of torch, but only one thread if the steps are small.

    Args:
        network: the network to train.
        batch_size: the number of examples in a step.
        input_size: the number of values in one input, an upper bound on how often a convolution uses its kernel.
    """
    import torch

    # Multiplications per step: a matrix is used once per example, the kernel of a convolution at each of the sites.
    work = [batch_size * p.numel() * (input_size if p.ndim > 2 else 1) for p in network.parameters()]
    return 1 if max(work, default=0) < MIN_WORK_FOR_THREADS else torch.get_num_threads()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy and SciPy use one thread for linear algebra while the block runs.

    The order of sums, and therefore the last digits of a result, would otherwise depend on OMP_NUM_THREADS and on the
    number of cores.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def provenance() -> dict[str, Any]:
    """The origin of a result: the commit, versions and machine."""
    root = Path(__file__).parent.parent
    files = ("*.py", "requirements.txt")  # those that affect results
    changes = _git(root, "status", "--porcelain", "--untracked-files=normal", "--", *files)
    return {
        "git_commit": _git(root, "rev-parse", "HEAD"),
        "git_dirty": None if changes is None else changes != "",
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "pid": os.getpid(),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command, or None if it fails. The environment and the settings of the user have no effect."""
    # Without these settings, git refuses a repository of another user, and may start a program that watches files.
    settings = ("-c", "safe.directory=*", "-c", "core.fsmonitor=false", "--no-optional-locks")
    try:
        done = subprocess.run(
            ["git", "-C", folder, *settings, *arguments],
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # no git, or a copy without a repository
        return None
    return done.stdout.strip()
