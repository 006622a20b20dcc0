# Machinery: keep, and skip at first.
"""Find examples that occur in the training data, by hashes of the inputs of the network. Does not load torch."""

import io
import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.interface.base_config import Config
from engine.interface.base_problem import Columns, Problem
from engine.interface.returned_values import input_arrays
from engine.machine.atomic_files import read_checked, write_checked
from engine.machine.errors import UnusableFileError
from engine.machine.terminal import print_line, warn

TRAIN_INPUTS = "train_inputs.npy"  # in the folder of a run
HASH_FORMAT = 2  # in run_info.json; increase it if equal inputs get other hashes
NUMBERS_PER_CHUNK = 2**20  # input values that are converted at once: 8 MiB as int64


def hash_inputs(problem: Problem[Any], config: Config, columns: Columns) -> NDArray[np.uint64]:
    """Hash the inputs of each example, (N,). Equal inputs have equal hashes, whatever their dtype in a file.

    Inputs are equal if they are equal numbers, as given, in arrays of equal shapes: floating-point numbers are compared
    as float64, where 0.0 and -0.0 are equal, and integers and Booleans as int64. A number that one file stores as
    float32 and another one as float64 is therefore only equal if float32 represents it exactly.

    A hash has 8 bytes of BLAKE2b. The probability that any of n examples has, by chance, the same hash as one of m
    other examples is about n m / 2^64: 5e-10 for n = 10^4 and m = 10^6.

    Raises:
        ProblemError: the inputs are not a tuple of arrays with one entry per example.
    """
    arrays = input_arrays(problem, config, columns)
    layout = repr([("float" if x.dtype.kind == "f" else "int", x.shape[1:]) for x in arrays])
    start = blake2b(layout.encode(), digest_size=8)  # makes the hashes of arrays (N, 2, 8) and (N, 4, 4) different
    n, numbers = len(next(iter(columns.values()))), sum(math.prod(x.shape[1:]) for x in arrays)
    rows = max(1, NUMBERS_PER_CHUNK // max(1, numbers))
    digests = []
    for first in range(0, n, rows):
        for example in np.concatenate([_bytes_of(x[first : first + rows]) for x in arrays], axis=1):
            digest = start.copy()
            digest.update(example)
            digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert examples to bytes that do not depend on the dtype or the machine: (N, ...) -> (N, bytes)."""
    is_float = array.dtype.kind == "f"
    values = (array.astype(np.float64) + 0.0).astype("<f8") if is_float else array.astype("<i8")  # -0.0 becomes 0.0
    return np.ascontiguousarray(values.reshape(len(array), math.prod(array.shape[1:]))).view(np.uint8)


def are_comparable(info: Mapping[str, Any], inputs: Sequence[NDArray[Any]]) -> bool:
    """Whether the hashes of a run, whose run_info.json is given, can be compared with those of other inputs.

    Older versions of the program rounded floating-point numbers to float32.
    """
    return int(info.get("hash_format") or 1) >= HASH_FORMAT or all(x.dtype.kind != "f" for x in inputs)


def unseen(train_hashes: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether the inputs of each example do not occur in training: hashes (M,) of training, hashes (N,) -> (N,)."""
    return np.isin(hashes, train_hashes, invert=True)


def select(columns: Columns, chosen: NDArray[Any]) -> Columns:
    """Select examples by their indices or by a mask (N,)."""
    return {name: column[chosen] for name, column in columns.items()}


def save_hashes(folder: Path, hashes: NDArray[np.uint64]) -> None:
    """Write the hashes of the training inputs to the folder of a run. Equal data give equal files."""
    buffer = io.BytesIO()
    np.save(buffer, hashes.astype("<u8"), allow_pickle=False)
    write_checked(folder / TRAIN_INPUTS, buffer.getvalue())


def read_hashes(folder: Path) -> NDArray[np.uint64]:
    """Read the hashes of the training inputs of a run, (M,).

    Raises:
        FileNotFoundError: there are none.
        UnusableFileError: the file is damaged.
    """
    path = folder / TRAIN_INPUTS
    content = read_checked(path)
    try:
        hashes = np.load(io.BytesIO(content), allow_pickle=False)
        if hashes.dtype != np.uint64 or hashes.ndim != 1:
            raise ValueError("it has no list of hashes")
    except Exception as error:  # a malicious file can make NumPy raise almost any exception
        raise UnusableFileError(f"{path} is damaged ({' '.join(str(error).split())[:200]})") from None
    return np.asarray(hashes, dtype=np.uint64)


def load_hashes(folder: Path) -> NDArray[np.uint64] | None:
    """Read the hashes of the training inputs of a run, (M,).

    If the file is damaged or missing, print a line and return None. It is missing if an older version of the program
    made the run. The network can be evaluated without it.
    """
    path = folder / TRAIN_INPUTS
    unknown = "it is not known which examples occur in the training data"
    try:
        return read_hashes(folder)
    except FileNotFoundError:
        print_line(f"there is no {path}: {unknown}")
        return None
    except UnusableFileError as error:
        warn(f"warning: {error}: {unknown}")
        return None
