"""The default sampler: the Markov chain of metropolis.py, compiled, with 64 chains per machine word, on all cores.

kernel.py explains the algorithm. This module divides the chains into blocks, and the blocks among threads.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ising import kernel
from ising.lattice import check_integer, check_lattice_size, check_seed

SPINS_PER_TASK = 2**20  # at most, per task of a thread: enough for a long call, few enough to save memory
UPDATES_PER_CALL = 2**29  # about 0.05 s: the interval at which progress is reported and interrupts are noticed


class Task(NamedTuple):
    """`n_blocks` blocks of `n_words` words of chains each. `first` is the index of the first word."""

    first: int
    n_blocks: int
    n_words: int


def _tasks(lattice_size: int, n_words: int, n_threads: int) -> list[Task]:
    """Divide words of chains into tasks: blocks that fill the lanes, and a few tasks per thread, so none waits long."""
    per_block = kernel.LANES // min(lattice_size**2 // 2, kernel.LANES)
    n_blocks, left_over = divmod(n_words, per_block)
    at_most = SPINS_PER_TASK // (64 * per_block * lattice_size**2)
    step = max(1, min(at_most, -(-n_blocks // (4 * n_threads))))
    tasks = [Task(block * per_block, min(step, n_blocks - block), per_block) for block in range(0, n_blocks, step)]
    return [*tasks, Task(n_blocks * per_block, 1, left_over)] if left_over else tasks


def available_cores() -> int:
    """Cores that this process may use. Limits of a job or a container are not considered (see engine/hardware.py)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sample(
    lattice_size: int,
    temperatures: ArrayLike,
    n_sweeps: int,
    seed: int | np.random.SeedSequence,
    n_threads: int | None = None,
    *,
    advance: Callable[[int], object] = lambda n_spins: None,
) -> NDArray[np.int8]:
    """One configuration from each of N independent chains: temperatures (N,) in J / k_B -> spins (N, L, L) int8.

    A chain starts ordered below T_c and random above. At the end, it is flipped as a whole with probability 1/2, as in
    metropolis.py. Equal arguments give equal spins, for any number of threads.

    Args:
        n_threads: number of threads; by default, the number of cores that this process may use.
        advance: called repeatedly with the number of flips attempted since the last call.

    Raises:
        RuntimeError: the settings of Numba switch compilation off.
        ValueError: the lattice size is odd or below 4, the temperatures are not (N,), positive and finite, the number
            of sweeps is not an integer of at least 0, the seed is neither an integer of at least 0 nor a SeedSequence,
            or the number of threads is not an integer of at least 1.
    """
    kernel.require_compiler()
    n_threads = available_cores() if n_threads is None else n_threads
    check_lattice_size(lattice_size)
    check_integer("n_sweeps", n_sweeps, 0)
    check_integer("n_threads", n_threads, 1)
    check_seed(seed)
    temperatures = np.asarray(temperatures, dtype=np.float64)
    if temperatures.ndim != 1 or not np.all((temperatures > 0) & np.isfinite(temperatures)):
        raise ValueError("temperatures must be positive and finite, in an array (N,)")
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    key = sequence.generate_state(4, np.uint64).astype(np.uint64)

    spins = np.empty((len(temperatures), lattice_size, lattice_size), np.int8)
    padded = np.ones((-(-len(temperatures) // 64), 64))  # whole words; the additional chains, at T = 1, are discarded
    padded.reshape(-1)[: len(temperatures)] = temperatures
    lock, stopped = threading.Lock(), threading.Event()

    def run(task: Task) -> None:
        words = slice(task.first, task.first + task.n_blocks * task.n_words)
        chains = spins[64 * words.start : 64 * words.stop]
        blocks = kernel.new_blocks(lattice_size, task.n_blocks, task.n_words)
        kernel.start(blocks, padded[words].reshape(-1, task.n_words, 64), key, task.first)
        at_once = max(1, UPDATES_PER_CALL // (64 * blocks.spins.size))
        for done in range(0, n_sweeps, at_once):
            if stopped.is_set():
                return
            kernel.sweep(blocks, min(at_once, n_sweeps - done))
            with lock:
                advance(chains.size * min(at_once, n_sweeps - done))
        kernel.unpack(blocks, chains)

    with ThreadPoolExecutor(n_threads) as pool:
        try:
            list(pool.map(run, _tasks(lattice_size, len(padded), n_threads)))
        finally:  # after an interrupt, do not wait for the remaining work
            stopped.set()
    return spins


def get_ready() -> float | None:
    """Compile the sampler unless its machine code is cached. Return the seconds this took, or None if it was cached."""
    kernel.require_compiler()
    compiled: list[Any] = [kernel.start, kernel.sweep, kernel.unpack]

    def missed() -> int:
        return sum(sum(function.stats.cache_misses.values()) for function in compiled)

    start, before = time.perf_counter(), missed()
    sample(4, [1.0], 1, seed=0)
    return time.perf_counter() - start if missed() > before else None
