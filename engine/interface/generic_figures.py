# Machinery: keep, and skip at first.
"""Figures that every problem has. The functions take arrays and return a Figure."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from engine.machine.errors import ProblemError
from engine.machine.terminal import one_line

__all__ = [
    "COLOURS",
    "Figure",
    "confusion",
    "draw",
    "estimates_by_group",
    "parity",
    "training_curves",
    "validation_curves",
]


def draw(make: Callable[[], Any], file_type: str = "png") -> dict[str, bytes]:
    """Call `make`, which returns figures by name, and return them as images by name: as png, svg or pdf.

    The settings of matplotlib are its defaults while this function runs. A matplotlibrc or a style of the user has no
    effect.

    Raises:
        ProblemError: `make` did not return a dictionary.
    """
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figures = make()
        if not isinstance(figures, Mapping):
            raise ProblemError(f"figures returned {type(figures).__name__}: return a dictionary of figures by name")
        return {name: _image(figure, file_type) for name, figure in figures.items()}


def _image(figure: Figure, file_type: str) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format=file_type)
    return image.getvalue()


def training_curves(rows: Sequence[Mapping[str, float]], best_epoch: int, loss_name: str = "loss") -> Figure:
    """Plot loss and learning rate against the epoch, and mark the best epoch; `rows` is as in epoch_metrics.json."""
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(6, 5), layout="constrained")
    loss, rate = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    loss.plot(epochs, [row["train_loss"] for row in rows], ".-", markersize=4, label="training")
    loss.plot(epochs, [row["val_loss"] for row in rows], ".-", markersize=4, label="validation")
    loss.axvline(best_epoch, color="0.5", linestyle=":", label=f"best, epoch {best_epoch}")
    is_positive = all(row["train_loss"] > 0 and row["val_loss"] > 0 for row in rows)
    loss.set(yscale="log" if is_positive else "linear", ylabel=loss_name)
    loss.legend()
    rate.plot(epochs, [row["learning_rate"] for row in rows], ".-", markersize=4, color="0.3")
    rate.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


MAX_PANELS, MAX_POINTS = 8, 20_000  # more take long to plot, and show nothing new


def parity(
    true: NDArray[Any], predicted: NDArray[Any], quantity: str = "target", unit: str = "", *, by_component: bool = True
) -> Figure:
    """Plot predicted against true values, and the distribution of the error.

    Values are (N, ...). A matrix (N, k) has one row of panels for each of the first MAX_PANELS components, unless they
    are the same quantity (`by_component=False`). Of more than MAX_POINTS values, a regular selection is plotted.
    """
    is_split, is_flat = by_component and true.ndim == 2, true.ndim == 1 or (by_component and true.ndim == 2)
    true, predicted = (
        np.asarray(values, dtype=np.float64).reshape(len(values) if is_split else values.size, -1)
        for values in (true, predicted)
    )
    true, predicted = (values[:: -(-len(values) // MAX_POINTS), :MAX_PANELS] for values in (true, predicted))
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
        histogram.set(xlabel=f"predicted - true {name}{suffix}", ylabel="test examples" if is_flat else "values")
    return figure


def confusion(true: NDArray[Any], predicted: NDArray[Any], names: Sequence[str] = ()) -> Figure:
    """Plot how many examples of each class were predicted as which class: numbers of classes (N, ...), (N, ...).

    The colour is the share of the examples of a true class. `names` are those of the classes 0, 1, ...
    """
    true, predicted = (np.asarray(values, dtype=np.int64).reshape(-1) for values in (true, predicted))
    classes = np.unique(np.concatenate([true, predicted, np.arange(len(names))]))
    counts = np.array([[((true == i) & (predicted == j)).sum() for j in classes] for i in classes])
    labels = [names[each] if 0 <= each < len(names) else str(each) for each in classes]
    figure = Figure(figsize=(3 + 0.5 * len(classes), 2.5 + 0.5 * len(classes)), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(counts.shape):
        axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    axes.set(xlabel="predicted class", ylabel="true class", xticks=range(len(classes)), yticks=range(len(classes)))
    axes.set_xticklabels(labels)
    axes.set_yticklabels(labels)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return figure


# Colours that people with a colour vision deficiency can distinguish (Okabe and Ito), without yellow, which is faint.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def validation_curves(groups: Mapping[str, Sequence[Mapping[int, float]]], shown: Sequence[str]) -> Figure:
    """Plot validation losses against the epoch: a thin line for each run, and the mean of each group with its error.

    Args:
        groups: for each group by name, and for each run in it, the losses by epoch.
        shown: the groups, at most len(COLOURS), that have a colour and a name. The others are grey.
    """
    figure = Figure(figsize=(7, 4.8), layout="constrained")
    axes = figure.subplots()
    others = [name for name in groups if name not in shown]
    lines = {}
    for name, runs in sorted(groups.items(), key=lambda item: item[0] in shown):  # those with a colour are in front
        epochs = sorted(set.intersection(*map(set, runs)))
        losses = np.array([[run[epoch] for epoch in epochs] for run in runs])  # (runs, epochs)
        mean = losses.mean(axis=0)
        if name not in shown:
            lines[name] = axes.plot(epochs, mean, color="0.8", linewidth=0.8)[0]
            continue
        colour = COLOURS[shown.index(name)]
        lines[name] = axes.plot(epochs, mean, color=colour, linewidth=1.8)[0]
        if len(runs) > 1:
            for run in runs:
                axes.plot(list(run), list(run.values()), color=colour, linewidth=0.6, alpha=0.5)
            error = losses.std(axis=0, ddof=1) / math.sqrt(len(runs))
            low = np.maximum(mean - error, losses.min(axis=0))  # stays above zero, for the logarithm
            axes.fill_between(epochs, low, mean + error, color=colour, alpha=0.2, linewidth=0)
    is_positive = all(loss > 0 for runs in groups.values() for run in runs for loss in run.values())
    if others:  # they may be far away
        limits = [f(loss for name in shown for run in groups[name] for loss in run.values()) for f in (min, max)]
        axes.set_ylim(limits[0] - 0.05 * abs(limits[0]), limits[1] + 0.05 * abs(limits[1]))
    axes.set(xlabel="epoch", ylabel="validation loss", yscale="log" if is_positive else "linear")
    if any(len(groups[name]) > 1 for name in shown):
        axes.set_title("thick: mean over seeds, with standard error; thin: runs", fontsize="small")

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    labels = [*map(_short, shown), *([f"{len(others)} other{'s'[: len(others) - 1]}"] if others else [])]
    columns = max(1, 90 // (8 + max(map(len, labels))))
    handles = [lines[name] for name in [*shown, *others[:1]]]
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, 4))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def estimates_by_group(estimates: Mapping[str, tuple[float, float | None]], metric: str) -> Figure:
    """Plot the value and the error of a metric for each group, one below the other."""
    figure = Figure(figsize=(7, 1 + 0.28 * len(estimates)), layout="constrained")
    axes = figure.subplots()
    for i, (value, error) in enumerate(estimates.values()):
        axes.errorbar(value, i, xerr=error or 0, fmt="o", color=COLOURS[1], markersize=5, capsize=3)
    axes.set_xlabel(_short(metric), parse_math=False)
    axes.set_ylim(len(estimates) - 0.4, -0.6)
    values = [value for value, _ in estimates.values()]
    if 0 < min(values) < max(values) / 20:
        axes.set_xscale("log")
    for text in axes.set_yticks(range(len(estimates)), map(_short, estimates)):
        text.label1.set_parse_math(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    return figure


def _short(name: str, length: int = 40) -> str:
    """A name for a figure, without its middle if it is long. matplotlib would not show a label that begins with _."""
    name = one_line(name)
    name = name if len(name) <= length else f"{name[: length // 2 - 2]}...{name[-length // 2 + 1 :]}"
    return f" {name}" if name.startswith("_") else name
