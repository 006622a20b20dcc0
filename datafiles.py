"""Data sets as files: those that were drawn before are kept, and those that were made elsewhere are read.

What is kept lies in the folder `cache`, beside checkpoints, under a name made of all that shapes it, and may be removed
at any time. Several processes may use it at once, since its files appear whole and are never changed.
"""

import hashlib
import io
import json
import math
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from config import DataConfig
from data import Split, Splits, make_splits, n_sweeps, working_sampler
from utils import (
    BadRequestError,
    UnusableFileError,
    physical_memory,
    read_checked,
    say,
    write_atomic,
    write_checked,
)

HOTTEST = 1e6  # above that the exact energy, -2 / T per spin, is lost in rounding
CACHE_VERSION = 1  # to be raised when the same config gives other data: what was kept is then drawn anew


def get_splits(config: DataConfig, seed: int, n_threads: int | None = None) -> tuple[Splits, str]:
    """The data of a run, and in a few words where they came from: a file, the cache, or drawn just now.

    Raises:
        RunError: the file that the config names cannot be used.
    """
    if config.file is not None:
        return divide(read_configurations(config.file), config, seed), f"taken from {config.file}"
    kept = cache_path(config, seed)
    if config.cache:
        try:
            return _unpack(read_checked(kept), config.lattice_size), f"taken from {kept}"
        except FileNotFoundError:
            pass
        except (UnusableFileError, OSError) as error:
            say(f"warning: {error}: drawing these data again")
    sampler = working_sampler(config.sampler)
    if sampler != config.sampler:
        return get_splits(replace(config, sampler=sampler), seed, n_threads)
    splits = make_splits(config, seed, n_threads)
    if not config.cache:
        return splits, f"drawn with {sampler}"
    try:
        kept.parent.mkdir(exist_ok=True)
        write_checked(kept, _pack(splits))
    except OSError as error:
        say(f"warning: the data could not be kept: {error}")
        return splits, f"drawn with {sampler}"
    return splits, f"drawn with {sampler} and kept in {kept}"


def cache_path(config: DataConfig, seed: int) -> Path:
    """Where data are kept, under a name made of all that shapes them."""
    shape = asdict(config) | {"sweeps": n_sweeps(config), "seed": seed, "version": CACHE_VERSION}
    del shape["cache"], shape["file"]
    key = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
    return Path("cache") / f"L{config.lattice_size}-seed{seed}-{key[:32]}"


def _pack(splits: Splits) -> bytes:
    """The splits as bytes, a bit a spin."""
    arrays: dict[str, Any] = {}
    for name, split in splits._asdict().items():
        arrays[f"{name}_bits"] = np.packbits(split.spins.reshape(len(split.spins), -1) > 0, axis=1)
        arrays[f"{name}_temperatures"] = split.temperatures
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _unpack(content: bytes, lattice_size: int) -> Splits:
    """The splits that _pack made bytes of."""
    with np.load(io.BytesIO(content)) as arrays:
        splits = []
        for name in Splits._fields:
            bits = np.unpackbits(arrays[f"{name}_bits"], axis=1, count=lattice_size**2).view(np.int8)
            spins = (2 * bits - 1).reshape(-1, lattice_size, lattice_size)
            splits.append(Split(spins, arrays[f"{name}_temperatures"]))
    return Splits(*splits)


# ------------------------------------------------------------------------------------------------- from and for outside


def read_configurations(path: str | Path) -> Split:
    """Configurations made elsewhere: an .npz file with `spins` (N, L, L), -1 or +1, and `temperatures` (N,) in J / k_B.

    Raises:
        UnusableFileError: it is not such a file, or is larger than the memory.
    """
    try:
        if Path(path).is_fifo():
            raise ValueError("is a pipe and no file")
        with zipfile.ZipFile(path) as archive:
            for name in ("spins", "temperatures"):
                _check_array(archive, name)
        with np.load(path, allow_pickle=False) as arrays:
            return _configurations(arrays["spins.npy"], arrays["temperatures.npy"])
    except Exception as error:  # there is no end to what the readers of a damaged or malicious file raise
        raise UnusableFileError(
            f"{path}: {error or repr(error)}: give an .npz file with spins (N, L, L) and temperatures (N,)"
        ) from None


def _check_array(archive: zipfile.ZipFile, name: str) -> None:
    """Raise ValueError unless the head of an array in an .npz file tells of numbers, all there, that fit in memory."""
    head = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    with archive.open(f"{name}.npy") as file:
        shape, _, dtype = head[npy.read_magic(file)](file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "iuf":
            raise ValueError(f"{name} are no numbers but {dtype}")
        if 4 * size > physical_memory():  # the array, what is said of each of its elements, and a copy
            raise ValueError(f"{name} claim {size / 2**30:,.1f} GiB, too much for the memory of this machine")
        if size != archive.getinfo(f"{name}.npy").file_size - file.tell():
            raise ValueError(f"{name} are not as large as they claim")


def _configurations(spins: NDArray[Any], temperatures: NDArray[Any]) -> Split:
    """The arrays of a file as a split; raises ValueError if they are none."""
    if spins.ndim != 3 or spins.shape[1] != spins.shape[2] or len(spins) == 0:
        raise ValueError(f"spins have the shape {spins.shape} and not (N, L, L)")
    if spins.shape[1] % 2 or not 4 <= spins.shape[1] <= 1024:
        raise ValueError(f"the lattices are {spins.shape[1]} x {spins.shape[1]}, not of an even size from 4 to 1024")
    if temperatures.shape != spins.shape[:1]:
        raise ValueError(f"temperatures have the shape {temperatures.shape} and not ({len(spins)},)")
    temperatures = temperatures.astype(np.float64)  # float16 knows no HOTTEST
    if not np.all((temperatures > 0) & (temperatures <= HOTTEST)):
        raise ValueError(f"temperatures must be positive and at most {HOTTEST:.0f}")
    if not np.all((spins == 1) | (spins == -1)):
        raise ValueError("spins must be -1 or +1 (2 * bits - 1 makes them of 0 and 1)")
    return Split(spins.astype(np.int8), temperatures)


def write_configurations(path: Path, splits: Splits) -> None:
    """Write all configurations, training, validation and test in this order, to a file for read_configurations."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        spins=np.concatenate([split.spins for split in splits]),
        temperatures=np.concatenate([split.temperatures for split in splits]),
    )
    write_atomic(path, buffer.getvalue())


def divide(split: Split, config: DataConfig, seed: int) -> Splits:
    """Splits as large as the config asks for, drawn at random without replacement from configurations made elsewhere.

    Neighbours in a Markov chain that is stored densely would be on both sides of the division, and the test set would
    flatter: such data have to be thinned to one configuration in a few autocorrelation times.

    Raises:
        BadRequestError: the config asks for another lattice size, or for more configurations than there are.
    """
    n, size = split.spins.shape[:2]
    ends = np.cumsum([config.num_train, config.num_val, config.num_test])
    if size != config.lattice_size:
        raise BadRequestError(f"--data {config.file} has {size} x {size} lattices: say --lattice-size {size}")
    if n < ends[-1]:
        raise BadRequestError(
            f"--data {config.file} has {n:,} configurations and {ends[-1]:,} are asked for: "
            "lower --num-train, --num-val or --num-test"
        )
    order = np.random.default_rng(seed).permutation(n)[: ends[-1]]
    return Splits(*(Split(split.spins[part], split.temperatures[part]) for part in np.split(order, ends[:-1])))
