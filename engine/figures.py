"""The figures that every problem has, and the command that plots all figures of a run again.

python -m engine.figures checkpoints/myrun
"""

import io
import json
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from engine.cli import ExitCode
from engine.config import Config, load_config
from engine.distributed import quick_exit
from engine.errors import BadRequestError, UnusableFileError
from engine.options import Parser
from engine.problem import Problem, problem_of
from utils import print_line


def training_curves(rows: Sequence[Mapping[str, float]], best_epoch: int, loss_name: str = "loss") -> Figure:
    """Loss and learning rate against the epoch, with the best epoch marked; `rows` as in epoch_metrics.json."""
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
    """Predicted against true values, and the distribution of the error: (N,), or (N, k) with one row of panels each."""
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


def plot_run(problem: Problem[Any], config: Config, folder: Path) -> list[Path]:
    """Plot the figures of a finished run from its files into its folder `figures`; return their paths."""
    rows = json.loads((folder / "epoch_metrics.json").read_text())
    results = json.loads((folder / "results.json").read_text())
    with np.load(io.BytesIO((folder / "predictions.npz").read_bytes()), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    figures = {"training_curves": training_curves(rows, results["best_epoch"], problem.loss_name(config))}
    figures |= problem.figures(config, arrays)
    (folder / "figures").mkdir(exist_ok=True)
    paths = [folder / "figures" / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=120)
    return paths


def plot_saved_run(folder: Path) -> list[Path]:
    """Plot the figures of a finished run again.

    Raises:
        BadRequestError: the folder does not hold a finished run.
        UnusableFileError: a file of the run is damaged.
    """
    if not (folder / "results.json").is_file():
        raise BadRequestError(f"{folder} is not the folder of a finished run: it has no results.json")
    try:
        problem = problem_of(folder)
        return plot_run(problem, load_config(problem.config_type, folder / "config.json"), folder)
    except (OSError, BadRequestError) as error:
        raise BadRequestError(f"{folder} is not the folder of a finished run: {error}") from None
    except (ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise UnusableFileError(f"{folder} holds a damaged file ({error}): run it again with --overwrite") from None


def main() -> None:
    """Plot the figures of the run on the command line again, and end the program."""
    with ExitCode() as end:
        parser = Parser(
            prog=Path(sys.argv[0]).name, description="Plot the figures of a finished run again, into its folder."
        )
        parser.add_argument("run", type=Path, help="the run's folder, such as checkpoints/myrun")
        print_line("\n".join(map(str, plot_saved_run(parser.parse_args().run))))
    quick_exit(end.code)


if __name__ == "__main__":
    main()
