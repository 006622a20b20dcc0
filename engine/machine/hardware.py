# Machinery: keep, and skip at first.
"""Memory, devices and threads."""

import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from engine.machine.errors import BadRequestError

if TYPE_CHECKING:
    import torch
    from threadpoolctl import ThreadpoolController
    from torch import nn

# If the largest layer needs fewer multiplications than this in a step, a second thread saves hardly any time.
MIN_WORK_FOR_THREADS = 2**21


# Linux limits the memory and the cores of a container or a job by control groups. The first file lists those of this
# process. Every group is a folder with files for its limits.
CGROUPS_OF_PROCESS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def _cgroup_limits(controller: str, files_v1: tuple[str, ...], file_v2: str) -> Iterator[list[str]]:
    """The words in the files for a limit, for each control group of this process and each group that contains it."""
    try:
        lines = CGROUPS_OF_PROCESS.read_text(encoding="utf-8").splitlines()
    except OSError:  # another system than Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top, files = (CGROUPS / controller, files_v1) if controllers else (CGROUPS, (file_v2,))
        place = top / group.strip("/")
        for folder in (place, *place.parents):
            if folder.is_relative_to(top):
                try:
                    yield " ".join((folder / file).read_text(encoding="utf-8") for file in files).split()
                except OSError:  # inside a container, the folders of the groups that contain it are not visible
                    continue


def _slurm(name: str) -> int | None:
    """A positive number that SLURM has set for this job, or None."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() and int(value) > 0 else None


def available_cores() -> int:
    """The cores that this process may use: those of the machine, or fewer in a job or a container."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for quota, period in _cgroup_limits("cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us"), "cpu.max"):
        if quota.isdecimal():  # otherwise, there is no limit
            limits.append(max(1, math.ceil(int(quota) / int(period))))
    return min(*limits, _slurm("SLURM_CPUS_PER_TASK") or limits[0])


def physical_memory() -> int:
    """The memory that this process may use, in bytes: that of the machine, or less in a job or a container."""
    import psutil

    limits = [psutil.virtual_memory().total]
    for (limit,) in _cgroup_limits("memory", ("memory.limit_in_bytes",), "memory.max"):
        if limit.isdecimal():
            limits.append(int(limit))
    if (per_node := _slurm("SLURM_MEM_PER_NODE")) is not None:
        limits.append(per_node * 2**20)
    if (per_core := _slurm("SLURM_MEM_PER_CPU")) is not None:
        limits.append(per_core * available_cores() * 2**20)
    return min(limits)


def require_memory(n_bytes: int, what: str, advice: str) -> None:
    """Raise BadRequestError if this process may use less than `n_bytes` of memory."""
    available = physical_memory()
    if n_bytes > available:
        raise BadRequestError(
            f"{what} {n_bytes / 2**30:,.1f} GiB of memory and this machine or job has {available / 2**30:,.1f} GiB: "
            f"{advice}"
        )


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory could not be allocated. PyTorch raises a RuntimeError."""
    phrases = ("out of memory", "not enough memory", "can't allocate memory")
    is_from_torch = isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in phrases)
    return isinstance(error, MemoryError) or is_from_torch


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
    """The number of CPU threads for training: default_num_threads, but only one thread if the steps are small.

    Args:
        network: the network to train.
        batch_size: the number of examples in a step.
        input_size: the number of values in one input, an upper bound on how often a convolution uses its kernel.
    """
    # Multiplications per step: a matrix is used once per example, the kernel of a convolution at each of the sites.
    work = [batch_size * p.numel() * (input_size if p.ndim > 2 else 1) for p in network.parameters()]
    return 1 if max(work, default=0) < MIN_WORK_FOR_THREADS else default_num_threads()


def default_num_threads() -> int:
    """The number of CPU threads for large networks: the default of torch, but not more than the available cores."""
    import torch

    return min(torch.get_num_threads(), available_cores())


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy and SciPy use one thread for linear algebra while the block runs.

    The order of sums, and therefore the last digits of a result, would otherwise depend on OMP_NUM_THREADS and on the
    number of cores.
    """
    with _thread_pools(len(sys.modules)).limit(limits=1, user_api="blas"):
        yield


@lru_cache(maxsize=1)
def _thread_pools(n_modules: int) -> "ThreadpoolController":
    """The libraries with threads in this process. An import can add one, so they are searched again after it."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
