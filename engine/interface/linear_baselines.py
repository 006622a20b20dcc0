# Machinery: keep, and skip at first.
"""Baselines that several problems can use. NumPy only."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from engine.interface.base_problem import Columns

NUMBERS_PER_CHUNK = 2**23  # feature values that are computed at once


def least_squares(
    features: Callable[[Columns], NDArray[np.floating]], train: Columns, target: NDArray[np.floating], test: Columns
) -> NDArray[np.float64]:
    """Fit a constant and some features to the target, and predict the test split: (N_test,) or (N_test, k).

    The function solves the normal equations, which need memory for F^2 numbers if there are F features. A very small
    ridge term makes these equations solvable if some features do not vary in training. It then selects the solution
    with the smallest norm.

    Args:
        features: a function that computes F features from columns: columns -> (N, F).
        train, test: the columns of the two splits.
        target: the target of the training split, (N,) or (N, k).
    """

    def design(columns: Columns) -> NDArray[np.floating]:
        values = features(columns)
        return np.concatenate([np.ones_like(values[:, :1]), values], axis=1)

    n_train = len(target)
    n_columns = design(next(_chunks(train, 1))).shape[1]
    rows = max(1, NUMBERS_PER_CHUNK // n_columns)
    gram, moments = np.zeros((n_columns, n_columns)), np.zeros((n_columns, *target.shape[1:]))
    for start, chunk in zip(range(0, n_train, rows), _chunks(train, rows), strict=True):
        x = design(chunk)
        gram += x.T @ x
        moments += x.T @ np.asarray(target[start : start + rows], dtype=np.float64)
    # Divide by the root mean square of each feature, so that the effect of the ridge does not depend on units.
    scale = np.sqrt(gram.diagonal() / n_train)
    scale[scale == 0] = 1
    gram /= n_train * np.outer(scale, scale)
    gram[np.diag_indices_from(gram)] += 1e-9
    moments = (moments.T / (n_train * scale)).T
    coefficients = (np.linalg.solve(gram, moments).T / scale).T
    return np.concatenate([design(chunk) @ coefficients for chunk in _chunks(test, rows)])


def _chunks(columns: Columns, rows: int) -> Iterator[Columns]:
    n = len(next(iter(columns.values())))
    return ({name: column[start : start + rows] for name, column in columns.items()} for start in range(0, n, rows))
