# Machinery: keep, and skip at first.
"""The data of a run, from a file, the cache or the generator. The problem checks them."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray

from engine.datasets import cache
from engine.datasets.archives import write_columns
from engine.datasets.division import divide
from engine.datasets.file_formats import read_to_divide
from engine.datasets.generation import generate_block, generate_slowly, generate_split, require_reproducible
from engine.datasets.overlap import select
from engine.interface.base_config import Config, to_dict
from engine.interface.base_problem import Check, Columns, Problem, Splits
from engine.interface.returned_values import check_of, read_only, require_useful_target, target_array
from engine.machine.errors import BadRequestError, ProblemError, UnusableFileError
from engine.machine.hardware import require_memory
from engine.machine.repository import provenance
from engine.machine.terminal import print_line, warn

SPLITS = ("train", "val", "test", "calibration")
FILE_ROWS = "file_rows"  # in predictions.npz: the positions of the test examples in the file of --data, from 0
SECONDS_TO_SHARE = 10.0  # several processes, which take seconds to start, only generate data that take longer


class Data(NamedTuple):
    """The data of a run, and what is known about them."""

    train: Columns
    val: Columns
    test: Columns
    calibration: Columns  # empty without --num-calibration
    test_rows: NDArray[np.int64] | None  # the positions of the test examples in the file of --data, from 0
    source: str  # where they came from, as a phrase
    sha256: str  # of all columns
    file_sha256: str | None  # of the file of --data
    checks: Mapping[str, Mapping[str, float]]  # the numbers of the problem's check, by split


def new_examples(problem: Problem[Any], config: Config, epoch: int) -> Columns:
    """Generate the training examples of an epoch with --fresh. They only depend on the config and on the epoch.

    Raises:
        ProblemError: the generator did not return valid arrays.
    """
    assert config.data.num_train is not None  # get_splits has checked it
    seed = SeedSequence(config.seed, spawn_key=(3, epoch))  # the splits have the keys 0, 1, 2 and 3
    return read_only(generate_split(problem, config, config.data.num_train, seed))


def examples_of_epoch(problem: Problem[Any], config: Config, epoch: int, train: Columns) -> Columns:
    """The training examples of an epoch: `train`, or new ones with --fresh from the second epoch on.

    If the problem's check finds new examples wrong, it causes a warning.
    """
    if not config.train.fresh or epoch == 1:
        return train
    columns = new_examples(problem, config, epoch)
    check = check_of(problem, config, columns)
    report_check(f"training (epoch {epoch})", check._replace(summary=""), is_external=True)
    return columns


def get_splits(problem: Problem[Any], config: Config, n_workers: int = 1) -> tuple[Splits, str]:
    """Get the data of a config as read-only columns, and a phrase that says where they came from: see load_data."""
    splits, source, _ = _get_splits(problem, config, n_workers)
    return Splits(splits["train"], splits["val"], splits["test"]), source


def _get_splits(
    problem: Problem[Any], config: Config, n_workers: int
) -> tuple[dict[str, Columns], str, NDArray[np.int64] | None]:
    """Like get_splits, also with the calibration examples, and the positions of the test examples in the file.

    Generated data only depend on the problem, the options in config.data and the seed. No split depends on the size of
    another one.

    Args:
        n_workers: the number of processes that call a slow generator.

    Raises:
        RunError: the data cannot be read or generated.
    """
    rows = None
    if (file := config.data.file) is not None:
        found = read_to_divide(problem, config, file)
        division = divide(len(found.rows), found.others, config.data, config.seed)
        rows, source = found.rows[division.test], f"read from {file}"
        splits = {name: select(found.columns, getattr(division, name)) for name in _sizes_by_split(config)}
    elif problem.block_size is not None:
        splits, source = _blocks(problem, config, n_workers)
    else:
        splits, source = _cached_or_generated(problem, config)
    return {name: read_only(columns) for name, columns in splits.items()}, source, rows


def _cached_or_generated(problem: Problem[Any], config: Config) -> tuple[dict[str, Columns], str]:
    sizes = _sizes(problem, config)
    path = cache.cache_path(problem, config) if config.data.cache else None
    if path is not None:
        try:
            return cache.load(path), f"read from {path.as_posix()}"
        except FileNotFoundError:
            pass
        except (UnusableFileError, OSError) as error:
            warn(f"warning: {error}: generating these data again")
    require_reproducible(problem, config)
    seeds = _seeds(config)
    splits = {name: generate_split(problem, config, n, seeds[name]) for name, n in sizes.items()}
    _require_other_examples(splits)
    if path is None:
        return splits, "generated"
    try:
        cache.store(path, splits)
    except OSError as error:
        warn(f"warning: the data could not be cached: {error}")
        return splits, "generated"
    return splits, f"generated and kept in {path.as_posix()}"


def _blocks(problem: Problem[Any], config: Config, n_workers: int) -> tuple[dict[str, Columns], str]:
    """The data of a slow generator, whose blocks are kept in a folder of the cache."""
    path, sizes = cache.cache_path(problem, config) if config.data.cache else None, _sizes(problem, config)
    with nullcontext(path) if path is not None else tempfile.TemporaryDirectory() as name:
        folder = Path(str(name))
        if not any(folder.glob("*.npz")):
            seconds = require_reproducible(problem, config) * sum(sizes.values())
            n_workers = n_workers if seconds > SECONDS_TO_SHARE else 1
        folder.mkdir(parents=True, exist_ok=True)
        seeds = [_seeds(config)[name] for name in sizes]
        found = generate_slowly(problem, config, list(sizes.values()), seeds, folder, n_workers=n_workers)
    splits = dict(zip(sizes, found, strict=True))
    _require_other_examples(splits)
    return splits, "generated" if path is None else f"in {path.as_posix()}"


def _seeds(config: Config) -> dict[str, SeedSequence]:
    return dict(zip(SPLITS, SeedSequence(config.seed).spawn(len(SPLITS)), strict=True))


def _require_other_examples(splits: Mapping[str, Columns]) -> None:
    """Raise ProblemError if the generator ignores its seed: validation and test splits begin with the same examples."""
    val, test = splits["val"], splits["test"]
    n = min(len(next(iter(split.values()))) for split in (val, test))
    if n >= 10 and all(np.array_equal(val[name][:n], test[name][:n]) for name in val):
        raise ProblemError("generate returned the same examples for two seeds: derive all random numbers from `seed`")


def _sizes_by_split(config: Config) -> dict[str, int | None]:
    """The requested sizes of the splits that there are."""
    data = config.data
    sizes = {"train": data.num_train, "val": data.num_val, "test": data.num_test}
    return sizes if data.num_calibration is None else {**sizes, "calibration": data.num_calibration}


def _sizes(problem: Problem[Any], config: Config) -> dict[str, int]:
    if type(problem).generate is Problem.generate:
        problem.generate(config, 0, SeedSequence(0))  # raises an error that asks for --data
    sizes = _sizes_by_split(config)
    if missing := [f"--num-{name}" for name, size in sizes.items() if size is None]:
        raise BadRequestError(f"{', '.join(missing)} none: give a number, or a file with --data")
    return cast(dict[str, int], sizes)


def require_memory_for(
    problem: Problem[Any], config: Config, *, flags: str = "--num-train, --num-val or --num-test"
) -> None:
    """Raise BadRequestError if the data to generate would not fit in memory. No examples are generated.

    The message advises to lower the values of `flags`.
    """
    if config.data.file is None:
        n, one = sum(_sizes(problem, config).values()), generate_block(problem, config, 0, SeedSequence(0))
        per_example = sum(int(np.prod(column.shape[1:])) * column.dtype.itemsize for column in one.values())
        n_bytes = 5 * n * per_example  # the data, and copies for checks, tensors and the shuffled epoch
        require_memory(n_bytes, "the data need", f"lower {flags}, or the size of an example")


def load_data(problem: Problem[Any], config: Config, n_workers: int = 1) -> Data:
    """Get the data of a config, print where they came from, and let the problem check each split.

    Args:
        n_workers: the number of processes that call a slow generator.

    Raises:
        RunError: the data cannot be read or generated, generated data are wrong, or all training targets are equal.
    """
    splits, source, rows = _get_splits(problem, config, n_workers)
    print_line(f"data {source}")
    checks = {}
    for name, columns in splits.items():
        check = check_of(problem, config, columns)
        report_check(name, check, is_external=config.data.file is not None)
        checks[name] = check.numbers
    n_train = len(next(iter(splits["train"].values())))
    if config.train.batch_size > n_train:
        raise BadRequestError(f"--batch-size {config.train.batch_size} is above {n_train} training examples: lower it")
    require_useful_target(problem, target_array(problem, config, splits["train"]))
    train, val, test, calibration = (splits.get(name, {}) for name in SPLITS)
    sha256 = fingerprint(splits.values())
    return Data(train, val, test, calibration, rows, source, sha256, hash_of_data_file(config), checks)


def hash_of_data_file(config: Config) -> str | None:
    """The SHA-256 of the content of the file of --data, or None if the data are generated."""
    if config.data.file is None:
        return None
    with Path(config.data.file).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def report_check(name: str, check: Check, is_external: bool) -> None:
    """Print the result of a check. If generated data are wrong, raise BadRequestError. If external data are, warn."""
    if check.summary:
        print_line(f"{name}: {check.summary}")
    if check.fault:
        if not is_external:
            raise BadRequestError(f"the {name} split: {check.fault}")
        warn(f"warning: the {name} split: {check.fault}")


def save_data(problem: Problem[Any], config: Config, path: Path, overwrite: bool = False, n_workers: int = 1) -> None:
    """Generate the data of a run, and write them to a file that you can pass to --data.

    Raises:
        RunError: the data cannot be generated, or the file cannot be written.
    """
    require_memory_for(problem, config)
    if path.suffix != ".npz" or path.is_symlink() or (path.exists() and not path.is_file()):
        raise BadRequestError(f"--save-data {path}: give the path of a regular .npz file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise BadRequestError(f"--save-data {path}: the folder does not exist or is not writable; give another path")
    if path.exists() and not overwrite:
        raise BadRequestError(f"--save-data {path}: exists already; --overwrite replaces it")
    data = load_data(problem, config, n_workers)
    splits = [split for split in (data.train, data.val, data.test, data.calibration) if split]
    origin = {key: value for key, value in provenance().items() if key in ("git_commit", "git_dirty", "numpy")}
    write_columns(
        path, splits, {"problem": problem.name, "seed": config.seed, "data": to_dict(config)["data"], **origin}
    )
    print_line(f"{sum(len(next(iter(split.values()))) for split in splits):,} examples in {path}")


def fingerprint(splits: Iterable[Columns]) -> str:
    """SHA-256 of all columns with their names, dtypes and shapes: equal if and only if the data are equal."""
    digest = hashlib.sha256()
    for columns in splits:
        for name in sorted(columns):
            column = np.ascontiguousarray(columns[name])
            digest.update(f"{name} {column.dtype.str} {column.shape} ".encode())
            digest.update(column.tobytes())
    return digest.hexdigest()
