"""Figures that every problem has. The functions take arrays and return a Figure."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ProblemError

with contextlib.suppress(ValueError):
    # If MPLBACKEND names an unknown backend, `import matplotlib` raises this error. Figures in files need no backend.
    backend = "" if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", "")
    import matplotlib

    if backend:
        os.environ["MPLBACKEND"] = matplotlib.rcParams["backend"] = backend
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["Figure", "draw", "parity", "training_curves"]


def draw(make: Callable[[], Any]) -> dict[str, bytes]:
    """Call `make`, which returns figures by name, and return them as PNG images by name.

    The settings of matplotlib are its defaults while this function runs. A matplotlibrc or a style of the user has no
    effect.

    Raises:
        ProblemError: `make` did not return a dictionary.
    """
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figures = make()
        if not isinstance(figures, Mapping):
            raise ProblemError(f"figures returned {type(figures).__name__}: return a dictionary of figures by name")
        return {name: _png(figure) for name, figure in figures.items()}


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, dpi=120)
    return image.getvalue()


def training_curves(rows: Sequence[Mapping[str, float]], best_epoch: int, loss_name: str = "loss") -> Figure:
    """Plot loss and learning rate against the epoch, and mark the best epoch; `rows` is as in epoch_metrics.json."""
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(6, 5), layout="constrained")
    loss, rate = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    loss.plot(epochs, [row["train_loss"] for row in rows], ".-", markersize=4, label="training")
    loss.plot(epochs, [row["val_loss"] for row in rows], ".-", markersize=4, label="validation")
    loss.axvline(best_epoch, color="0.5", linestyle=":", label=f"best, epoch {best_epoch}")
    loss.set(yscale="log", ylabel=loss_name)
    loss.legend()
    rate.plot(epochs, [row["learning_rate"] for row in rows], ".-", markersize=4, color="0.3")
    rate.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def parity(true: NDArray[Any], predicted: NDArray[Any], quantity: str = "target", unit: str = "") -> Figure:
    """Plot predicted against true values, and the distribution of the error.

    Values are (N,), or (N, k) with one row of panels for each of the k components.
    """
    true, predicted = (np.asarray(values, dtype=np.float64).reshape(len(values), -1) for values in (true, predicted))
    k, suffix = true.shape[1], f" [{unit}]" if unit else ""
    figure = Figure(figsize=(8, 4 * k), layout="constrained")
    for i, (scatter, histogram) in enumerate(figure.subplots(k, 2, squeeze=False)):
        name = f"{quantity} {i + 1}" if k > 1 else quantity
        x, y = true[:, i], predicted[:, i]
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        margin = 0.05 * (high - low) or 0.1
        ends = (low - margin, high + margin)
        scatter.plot(x, y, ".", markersize=3, alpha=0.4)
        scatter.plot(ends, ends, color="black", linewidth=1, label="predicted = true")
        scatter.set(xlabel=f"true {name}{suffix}", ylabel=f"predicted {name}{suffix}")
        scatter.set(xlim=ends, ylim=ends, aspect="equal")
        scatter.xaxis.set_major_locator(MaxNLocator(6))
        scatter.yaxis.set_major_locator(MaxNLocator(6))
        scatter.legend()
        histogram.hist(y - x, bins=int(np.clip(len(x) // 10, 10, 60)), zorder=2)
        histogram.axvline(0, color="black", linewidth=1, zorder=1)
        histogram.set(xlabel=f"predicted - true {name}{suffix}", ylabel="test examples")
    return figure
