# Machinery: keep, and skip at first.
"""Write predictions to a file, .csv or .npz."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.datasets.archives import to_npz
from engine.interface.returned_values import PREDICTED
from engine.machine.atomic_files import write_atomic
from engine.machine.errors import BadRequestError

NAMES = {"predictions": "prediction", "targets": "target"}


def named(arrays: Mapping[str, NDArray[Any]], classes: Sequence[str] | None) -> dict[str, NDArray[Any]]:
    """The arrays of predictions.npz under the names of the files here: `prediction`, `target`, and `std` for example.

    Args:
        classes: the names of the classes 0, 1, ..., which replace these numbers.
    """
    found = {}
    for name, array in arrays.items():
        is_class = classes is not None and name in NAMES and array.dtype.kind == "i"
        found[NAMES.get(name, name.removeprefix(PREDICTED))] = np.array(classes)[array] if is_class else array
    return found


def write_predictions(path: Path, arrays: Mapping[str, NDArray[Any]], classes: Sequence[str] | None = None) -> None:
    """Write arrays (N, ...) to a file: to an .npz file as they are, to a .csv file with one row per example.

    In a .csv file, a matrix (N, k) has one column for each component: `name_1`, `name_2`, ... or, if the components
    belong to classes, their names.

    Args:
        classes: the names of the classes, if there are classes.

    Raises:
        BadRequestError: an array has more axes than a .csv file.
    """
    if path.suffix.lower() == ".npz":
        write_atomic(path, to_npz(arrays))
        return
    columns: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if array.ndim == 1:
            columns[name] = array
        elif array.ndim == 2:
            of_classes = classes is not None and array.shape[1] == len(classes)
            ends = classes if of_classes and classes is not None else range(1, array.shape[1] + 1)
            columns |= {f"{name}_{end}": column for end, column in zip(ends, array.T, strict=True)}
        else:
            raise BadRequestError(
                f"{path}: {name} has the shape {array.shape}: give an .npz file instead of a .csv file"
            )
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*map(_cells, columns.values()), strict=True))
    write_atomic(path, buffer.getvalue().encode())


def _cells(column: NDArray[Any]) -> list[str]:
    """Numbers with nine digits, more than the float32 of a network has, and other values as they are."""
    if column.dtype.kind == "f":
        return [f"{value:.9g}" for value in column.tolist()]
    return [str(value) for value in np.asarray(column).tolist()]
