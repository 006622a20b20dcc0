# Experiment: yours, to replace.
"""The default sampler: the Markov chain of metropolis.py, compiled, with 64 chains per machine word, on all cores.

Optionally, clusters are flipped as in wolff.py. Chains can also be measured as they go on, without unpacking them.

kernel.py explains the algorithm. This module divides the chains into blocks, and the blocks among threads.
"""

import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ising import kernel
from ising.exact import T_CRITICAL
from ising.lattice import check_integer, check_lattice_size, check_seed, check_temperatures

SPINS_PER_TASK = 2**20  # at most, per task of a thread: enough for a long call, few enough to save memory
HOT = math.nextafter(10, math.inf)  # from here on, chains with clusters start random, which is near equilibrium
UPDATES_PER_CALL = 2**29  # about 0.05 s: the interval at which progress is reported and interrupts are noticed


class Task(NamedTuple):
    """`n_blocks` blocks of `n_words` words of chains each. `first` is the index of the first word."""

    first: int
    n_blocks: int
    n_words: int


class Series(NamedTuple):
    """The total energies and magnetisations of N chains, measured n times."""

    energies: NDArray[np.int32]  # (N, n) in J
    magnetizations: NDArray[np.int32]  # (N, n), from -L^2 to L^2


def _tasks(lattice_size: int, n_words: int, per_block: int, n_threads: int) -> list[Task]:
    """Divide words of chains into tasks: full blocks, and a few tasks per thread, so that none waits long."""
    n_blocks, left_over = divmod(n_words, per_block)
    at_most = SPINS_PER_TASK // (64 * per_block * lattice_size**2)
    step = max(1, min(at_most, -(-n_blocks // (4 * n_threads))))
    tasks = [Task(block * per_block, min(step, n_blocks - block), per_block) for block in range(0, n_blocks, step)]
    return [*tasks, Task(n_blocks * per_block, 1, left_over)] if left_over else tasks


def available_cores() -> int:
    """Cores that this process may use. Limits of a job or a container are not considered, as in hardware.py."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Chains:
    """The chains of a task. With `clusters`, a cluster of each chain is flipped after every sweep."""

    def __init__(
        self,
        lattice_size: int,
        temperatures: NDArray[np.float64],
        *,
        key: NDArray[np.uint64],
        task: Task,
        per_block: int,
        clusters: bool,
    ) -> None:
        words = temperatures[task.first : task.first + task.n_blocks * task.n_words]
        each = words.reshape(task.n_blocks, task.n_words, 64)
        n_positions = min(lattice_size**2 // 2, kernel.LANES // per_block)
        self.blocks = kernel.new_blocks(lattice_size, task.n_blocks, task.n_words, n_positions)
        # A random start of large lattices forms domains, which clusters need long to join.
        kernel.start(self.blocks, each, key[:4], task.first, HOT if clusters else T_CRITICAL)
        self.clusters = kernel.new_clusters(self.blocks) if clusters else None
        if self.clusters is not None:
            kernel.start_clusters(self.blocks, self.clusters, each, key[4:], task.first)

    def advance(self, n_sweeps: int) -> None:
        """Make some sweeps and, with clusters, flip a cluster of each chain after each of them."""
        if self.clusters is None:
            kernel.sweep(self.blocks, n_sweeps)
            return
        for _ in range(n_sweeps):
            kernel.sweep(self.blocks, 1)
            kernel.flip_clusters(self.blocks, self.clusters)


def _for_all_chains(
    lattice_size: int,
    temperatures: ArrayLike,
    seed: int | np.random.SeedSequence,
    n_threads: int | None,
    *,
    clusters: bool,
    work: Callable[[_Chains, slice, threading.Event], None],
) -> None:
    """Check the arguments of `sample` and `series`, and call `work` for each task, on all threads.

    `work` gets the chains of the task, their place among all chains, and an event that is set if it has to stop.
    """
    kernel.require_compiler()
    n_threads = available_cores() if n_threads is None else check_integer("n_threads", n_threads, 1)
    lattice_size = check_lattice_size(lattice_size)
    if clusters and lattice_size > kernel.LARGEST_SIZE:
        raise ValueError(
            f"lattice size {lattice_size}: clusters are only flipped on lattices up to {kernel.LARGEST_SIZE}"
        )
    values = check_temperatures(temperatures)
    key = check_seed(seed).generate_state(8, np.uint64).astype(np.uint64)
    per_block = kernel.WORDS if clusters else kernel.LANES // min(lattice_size**2 // 2, kernel.LANES)
    at_least = 64 * per_block if clusters else 64  # whole words, and with clusters whole blocks
    padded = np.ones((-(-len(values) // at_least) * at_least // 64, 64))  # additional chains, at T = 1, are discarded
    padded.reshape(-1)[: len(values)] = values
    stopped = threading.Event()

    def run(task: Task) -> None:
        chains = _Chains(lattice_size, padded, key=key, task=task, per_block=per_block, clusters=clusters)
        first, last = 64 * task.first, 64 * (task.first + task.n_blocks * task.n_words)
        work(chains, slice(first, min(last, len(values))), stopped)

    with ThreadPoolExecutor(n_threads) as pool:
        try:
            list(pool.map(run, _tasks(lattice_size, len(padded), per_block, n_threads)))
        finally:  # after an interrupt, do not wait for the remaining work
            stopped.set()


def sample(
    lattice_size: int,
    temperatures: ArrayLike,
    n_sweeps: int,
    seed: int | np.random.SeedSequence,
    n_threads: int | None = None,
    *,
    clusters: bool = False,
    advance: Callable[[int], object] = lambda n_spins: None,
) -> NDArray[np.int8]:
    """One configuration from each of N independent chains: temperatures (N,) in J / k_B -> spins (N, L, L) int8.

    With `clusters`, one Wolff cluster of each chain is flipped after every sweep of the Metropolis algorithm. Near T_c,
    a chain then forgets its start in a few tens of sweeps, and not in about L^2.17 (see wolff.py).

    A chain starts ordered below T_c and random above. With `clusters`, it starts ordered up to T = 10. At the end, it
    is flipped as a whole with probability 1/2, as in metropolis.py. Equal arguments give equal spins, for any number of
    threads.

    Args:
        n_threads: number of threads; by default, the number of cores that this process may use.
        advance: called repeatedly with the number of flips attempted since the last call.

    Raises:
        RuntimeError: the settings of Numba switch compilation off.
        ValueError: the lattice size is odd or below 4, the temperatures are not (N,), positive and finite, the number
            of sweeps is not an integer of at least 0, the seed is neither an integer of at least 0 nor a SeedSequence,
            or the number of threads is not an integer of at least 1.
    """
    n_sweeps, lattice_size = check_integer("n_sweeps", n_sweeps, 0), check_lattice_size(lattice_size)
    spins = np.empty((np.size(temperatures), lattice_size, lattice_size), np.int8)
    lock = threading.Lock()

    def work(chains: _Chains, place: slice, stopped: threading.Event) -> None:
        at_once = max(1, UPDATES_PER_CALL // (64 * chains.blocks.spins.size * (20 if clusters else 1)))
        for done in range(0, n_sweeps, at_once):
            if stopped.is_set():
                return
            chains.advance(min(at_once, n_sweeps - done))
            with lock:
                advance(spins[place].size * min(at_once, n_sweeps - done))
        kernel.unpack(chains.blocks, spins[place])

    _for_all_chains(lattice_size, temperatures, seed, n_threads, clusters=clusters, work=work)
    return spins


def series(
    lattice_size: int,
    temperatures: ArrayLike,
    n_measurements: int,
    seed: int | np.random.SeedSequence,
    n_threads: int | None = None,
    *,
    every: int = 1,
    start: int,
    clusters: bool = False,
) -> Series:
    """Energies and magnetisations of N independent chains in the course of time: temperatures (N,) in J / k_B.

    A chain makes `start` sweeps to forget its start. Then it is measured after every `every` sweeps, without unpacking.
    This gives many more values in the same time than one configuration per chain. The values of a chain are correlated;
    the chains are independent, so that errors follow from the scatter of their means.

    Args:
        clusters, n_threads: as in `sample`.

    Raises:
        RuntimeError, ValueError: as in `sample`.
    """
    n_measurements = check_integer("n_measurements", n_measurements, 0)
    every, start = check_integer("every", every, 1), check_integer("start", start, 0)
    # In memory, the values of a measurement follow each other, since they are written together.
    found = Series(*(np.empty((n_measurements, np.size(temperatures)), np.int32).T for _ in range(2)))

    def work(chains: _Chains, place: slice, stopped: threading.Event) -> None:
        shape = (chains.blocks.spins.shape[0], chains.blocks.remainders.shape[2], 64)
        now = np.empty((2, *shape), np.int32)
        chains.advance(start)
        for k in range(n_measurements):
            if stopped.is_set():
                return
            chains.advance(every)
            kernel.measure(chains.blocks, now[0], now[1])
            for values, measured in zip(found, now, strict=True):
                values[place, k] = measured.reshape(-1)[: place.stop - place.start]

    _for_all_chains(lattice_size, temperatures, seed, n_threads, clusters=clusters, work=work)
    return found


def get_ready(*, clusters: bool = False) -> float | None:
    """Compile `sample` unless its machine code is cached. Return the seconds this took, or None if it was cached."""
    kernel.require_compiler()
    compiled: list[Any] = [kernel.start, kernel.sweep, kernel.unpack]
    compiled += [kernel.start_clusters, kernel.flip_clusters] if clusters else []

    def missed() -> int:
        return sum(sum(function.stats.cache_misses.values()) for function in compiled)

    start, before = time.perf_counter(), missed()
    sample(4, [1.0], 1, seed=0, clusters=clusters)
    return time.perf_counter() - start if missed() > before else None
