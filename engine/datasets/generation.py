# Machinery: keep, and skip at first.
"""Call the generator of a problem: for a split at once or, if it is slow, in blocks and in several processes."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np
from numpy.random import SeedSequence
from tqdm import tqdm

from engine.datasets.archives import from_npz, to_npz
from engine.datasets.file_formats import require_columns
from engine.interface.base_config import Config, replace_unchecked
from engine.interface.base_problem import Columns, Problem
from engine.interface.find_problem import load_problem, module_name
from engine.machine.atomic_files import read_checked, wait_for_lock, write_checked
from engine.machine.errors import ProblemError, RunError, UnusableFileError
from engine.machine.hardware import one_blas_thread
from engine.machine.pool import Pool
from engine.machine.signals import second_interrupt_at_once
from engine.machine.terminal import one_line, print_line, warn


class _GeneratorConfig:
    """The options that a generator may use. Reading any other option raises ProblemError.

    The name of cached data does not depend on the other options: old data would be used after they have changed.
    """

    def __init__(self, config: Config) -> None:
        self.data, self.threads = config.data, config.threads

    def __getattr__(self, name: str) -> NoReturn:
        raise ProblemError(
            f"generate uses config.{name}: it may only use config.data and config.threads; "
            "make the option a field of the problem's DataConfig"
        )


def generate_block(problem: Problem[Any], config: Config, n: int, seed: SeedSequence) -> Columns:
    """Call the generator once, for n examples, and check the arrays that it returns.

    Raises:
        ProblemError: the generator did not return valid arrays with n examples.
    """
    try:
        with one_blas_thread(), second_interrupt_at_once():
            columns: Any = problem.generate(cast(Any, _GeneratorConfig(config)), n, seed)
    except RunError:
        raise
    except Exception as error:
        if n > 0:
            raise
        generate_block(problem, config, 1, seed)  # if this fails, too, n = 0 is not the reason
        raise ProblemError(
            f"generate fails for n = 0 ({one_line(repr(error))}): return empty arrays of the right shapes and dtypes"
        ) from error
    if not isinstance(columns, Mapping):
        raise ProblemError(f"generate returned {type(columns).__name__}: return a dictionary of named arrays")
    for name, column in columns.items():
        if not isinstance(column, np.ndarray):
            raise ProblemError(f"generate returned {type(column).__name__} for {name!r}: return NumPy arrays")
    lengths = {len(column) if column.ndim else None for column in columns.values()}
    if lengths != {n}:
        shapes = ", ".join(f"{name} {np.shape(column)}" for name, column in columns.items())
        raise ProblemError(f"generate returned arrays of the shapes {shapes} for n = {n}: every first axis must be n")
    try:
        if n > 0:
            require_columns(columns)
    except ValueError as error:
        raise ProblemError(f"generate: {error}") from None
    return cast(Columns, columns)


def require_reproducible(problem: Problem[Any], config: Config) -> float:
    """Generate one example twice, and return the seconds that the second one takes.

    Raises:
        ProblemError: the two differ, although they have the same seed.
    """
    one = generate_block(problem, config, 1, SeedSequence(config.seed))
    start = time.perf_counter()
    two = generate_block(problem, config, 1, SeedSequence(config.seed))
    seconds = time.perf_counter() - start
    if differing := [name for name in one if not np.array_equal(one[name], two[name])]:
        raise ProblemError(
            f"generate returned different values of {differing[0]!r} for the same seed: take all random numbers from "
            "numpy.random.default_rng(seed)"
        )
    return seconds


class _Block(NamedTuple):
    """Some examples of a slow generator."""

    n: int
    seed: SeedSequence
    path: Path  # of the file in which they are kept


def generate_split(problem: Problem[Any], config: Config, n: int, seed: SeedSequence) -> Columns:
    """Generate the n examples of a split in this process. A slow generator is called block by block."""
    if problem.block_size is None or n == 0:
        return generate_block(problem, config, n, seed)
    with tempfile.TemporaryDirectory() as folder:
        (columns,) = generate_slowly(problem, config, [n], [seed], Path(folder))
    return columns


def generate_slowly(
    problem: Problem[Any],
    config: Config,
    sizes: Sequence[int],
    seeds: Sequence[SeedSequence],
    folder: Path,
    *,
    n_workers: int = 1,
) -> list[Columns]:
    """Generate splits of these sizes in blocks, of which each is kept in the folder as soon as it is finished.

    Blocks that are in the folder already are not generated again. Several programs can use the folder at the same time,
    and then share the work. The examples depend neither on the number of processes nor on interruptions.

    Args:
        n_workers: the number of processes. With 1, it is this one.

    Raises:
        RunError: a block could not be generated.
    """
    splits = [
        list(_blocks_of(problem, n, seed, folder / f"split{k}"))
        for k, (n, seed) in enumerate(zip(sizes, seeds, strict=True))
    ]
    missing = [block for blocks in splits for block in blocks if not block.path.exists()]
    done = sum(sizes) - sum(block.n for block in missing)
    n_workers = 1 if module_name(problem) == "__main__" else max(1, min(n_workers, len(missing)))  # 1 in a notebook
    if missing:  # for a log without the progress bar
        print_line(f"generating {len(missing)} of {sum(map(len, splits))} blocks; processes: {n_workers}")
    with tqdm(total=sum(sizes), initial=done, desc="generating", unit="", delay=2, leave=False, disable=None) as bar:
        if n_workers == 1:
            for block in missing:
                _make(problem, config, block)
                bar.update(block.n)
        else:
            for block in _in_processes(problem, config, missing, n_workers):
                bar.update(block.n)
    return [_joined([_read(problem, config, block) for block in blocks]) for blocks in splits]


def _blocks_of(problem: Problem[Any], n: int, seed: SeedSequence, start: Path) -> Iterator[_Block]:
    size = int(problem.block_size or n)
    for k in range(-(-n // size)):
        own = SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, k))
        n_block = min(size, n - k * size)  # part of the name, because the last block may be smaller
        yield _Block(n_block, own, start.with_name(f"{start.name}-block{k}-n{n_block}.npz"))


def _make(problem: Problem[Any], config: Config, block: _Block) -> None:
    """Generate a block, unless another program has just done it."""
    with wait_for_lock(block.path.with_suffix(".lock")):
        if not block.path.exists():
            write_checked(block.path, to_npz(generate_block(problem, config, block.n, block.seed)))


def _make_by_name(module: str, config: Config, block: _Block) -> None:
    _make(load_problem(module), config, block)


def _in_processes(problem: Problem[Any], config: Config, blocks: list[_Block], n_workers: int) -> Iterator[_Block]:
    """Generate blocks in several processes, and yield each when it is finished."""
    config = replace_unchecked(config, threads=config.threads or 1)
    waiting = list(enumerate(blocks))[::-1]
    with Pool(min(n_workers, len(blocks)), _make_by_name) as pool:
        while waiting or pool.running:
            while waiting and not pool.is_full:
                k, block = waiting.pop()
                pool.start(str(k), module_name(problem), config, block)
            for outcome in pool.wait():
                if outcome.error:
                    if outcome.details:
                        warn(outcome.details.rstrip())
                    raise ProblemError(f"generate failed in block {outcome.key}: {one_line(outcome.error)}")
                yield blocks[int(outcome.key)]


def _read(problem: Problem[Any], config: Config, block: _Block) -> Columns:
    try:
        return from_npz(read_checked(block.path))
    except UnusableFileError as error:
        warn(f"warning: {error}: generating this block again")
        block.path.unlink()
        _make(problem, config, block)
        return from_npz(read_checked(block.path))


def _joined(blocks: Sequence[Columns]) -> Columns:
    """Put the blocks of a split together."""
    kinds = [{name: (column.dtype, column.shape[1:]) for name, column in block.items()} for block in blocks]
    for k, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ProblemError(
                f"generate returned {kind} in block {k}, and {kinds[0]} in the first one: return the same"
            )
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
