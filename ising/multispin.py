"""The sampler that runs: the Markov chain of metropolis.py, with 64 chains in a machine word, compiled, on all cores.

kernel.py explains how it works. Here, chains are divided into blocks, and the blocks among threads.
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

SPINS_PER_TASK = 2**20  # what a thread takes at a time: enough for a long call, few enough for a small memory
UPDATES_PER_CALL = 2**29  # a twentieth of a second: how often progress is reported and an interrupt noticed


class Task(NamedTuple):
    """Blocks of chains, of `n_words` words each, from the word `first` on."""

    first: int
    n_blocks: int
    n_words: int


def _tasks(lattice_size: int, n_words: int, n_threads: int) -> list[Task]:
    """Hand out words of chains: in blocks that fill the lanes, and in a few tasks a thread, so that none waits long."""
    per_block = kernel.LANES // min(lattice_size**2 // 2, kernel.LANES)
    n_blocks, left_over = divmod(n_words, per_block)
    at_most = SPINS_PER_TASK // (64 * per_block * lattice_size**2)
    step = max(1, min(at_most, -(-n_blocks // (4 * n_threads))))
    tasks = [Task(block * per_block, min(step, n_blocks - block), per_block) for block in range(0, n_blocks, step)]
    return [*tasks, Task(n_blocks * per_block, 1, left_over)] if left_over else tasks


def available_cores() -> int:
    """Cores that this process may use."""
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

    A chain starts ordered below T_c and random above, and is flipped as a whole or not at the end, as in metropolis.py.
    Equal arguments give equal spins, whatever the number of threads.

    Args:
        n_threads: as many as there are cores that this process may use, if left out.
        advance: called from time to time with the number of attempted flips since the last call.

    Raises:
        ValueError: the lattice size is odd or below 4, the temperatures are not (N,), positive and finite, the number
            of sweeps is not an integer of at least 0, the seed is neither an integer of at least 0 nor a SeedSequence,
            or the number of threads is not an integer of at least 1.
    """
    n_threads = available_cores() if n_threads is None else n_threads
    check_lattice_size(lattice_size)
    check_integer("n_sweeps", n_sweeps, 0)
    check_integer("n_threads", n_threads, 1)
    check_seed(seed)
    temperatures = np.asarray(temperatures, dtype=np.float64)
    if temperatures.ndim != 1 or not np.all((temperatures > 0) & np.isfinite(temperatures)):
        raise ValueError("temperatures must be positive and finite, one for each chain")
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    key = sequence.generate_state(4, np.uint64).astype(np.uint64)

    spins = np.empty((len(temperatures), lattice_size, lattice_size), np.int8)
    whole_words = np.ones((-(-len(temperatures) // 64), 64))  # 1: any temperature will do for chains nobody asked for
    whole_words.reshape(-1)[: len(temperatures)] = temperatures
    telling, stopped = threading.Lock(), threading.Event()

    def draw(task: Task) -> None:
        words = slice(task.first, task.first + task.n_blocks * task.n_words)
        chains = spins[64 * words.start : 64 * words.stop]
        blocks = kernel.new_blocks(lattice_size, task.n_blocks, task.n_words)
        kernel.start(blocks, whole_words[words].reshape(-1, task.n_words, 64), key, task.first)
        at_once = max(1, UPDATES_PER_CALL // (64 * blocks.spins.size))
        for done in range(0, n_sweeps, at_once):
            if stopped.is_set():
                return
            kernel.sweep(blocks, min(at_once, n_sweeps - done))
            with telling:
                advance(chains.size * min(at_once, n_sweeps - done))
        kernel.unpack(blocks, chains)

    with ThreadPoolExecutor(n_threads) as pool:
        try:
            list(pool.map(draw, _tasks(lattice_size, len(whole_words), n_threads)))
        finally:  # an interrupt does not wait for what is left to do
            stopped.set()
    return spins


def get_ready() -> float | None:
    """Compile what is not kept on this machine: the seconds that took, or None if all of it was there."""
    compiled: list[Any] = [kernel.start, kernel.sweep, kernel.unpack]

    def missed() -> int:
        return sum(sum(function.stats.cache_misses.values()) for function in compiled)

    start, before = time.perf_counter(), missed()
    sample(4, [1.0], 1, seed=0)
    return time.perf_counter() - start if missed() > before else None
