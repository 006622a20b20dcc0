"""The figures of every problem: they are plotted only from the files of a run, and their axes have labels."""

import io
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import main
from engine.evaluation.evaluation_request import parse_args
from engine.interface.base_problem import Columns
from engine.interface.generic_figures import Figure, parity, training_curves
from engine.machine.errors import BadRequestError, ProblemError, UnusableFileError
from engine.run_folder import figures_of_run
from engine.run_folder.figures_of_run import plot_saved_run
from evaluate import evaluate_run
from tests.conftest import DEBUG, Program, read, run_process
from tests.toy import PROBLEM, ToyProblem

pytestmark = pytest.mark.figures

RUN_FIGURES = ["parity.png", "training_curves.png"]

ROWS = [{"epoch": i, "train_loss": 1 / i, "val_loss": 2 / i, "learning_rate": 0.1 / i} for i in range(1, 6)]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}


def test_a_run_has_its_figures_and_they_can_be_plotted_again(toy_run: Path, tmp_path: Path) -> None:
    plotted = pictures(toy_run)
    assert sorted(plotted) == RUN_FIGURES
    assert all(content.startswith(b"\x89PNG") and len(content) > 5000 for content in plotted.values())
    copy = tmp_path / "r"
    shutil.copytree(toy_run, copy)
    shutil.rmtree(copy / "figures")
    assert sorted(plot_saved_run(copy)) == [copy / "figures" / name for name in RUN_FIGURES]
    assert pictures(copy) == plotted


def test_predictions_contain_what_the_figures_need(toy_run: Path) -> None:
    with np.load(toy_run / "predictions.npz", allow_pickle=False) as file:
        arrays = dict(file)
    one_number = {"signs", "values", "is_far"}
    examples = {f"example_{name}" for name in (*one_number, "points", "targets", "predictions")}
    assert set(arrays) == {"targets", "predictions", "baseline_mean"} | one_number | examples
    assert arrays["example_points"].shape == (2, 3, 3)
    assert all(len(arrays[name]) == 50 for name in set(arrays) - examples)
    errors = np.abs(arrays["predictions"] - arrays["targets"])
    assert errors.mean() == pytest.approx(read(toy_run, "results.json")["test"]["mae"], rel=1e-12)
    np.testing.assert_array_equal(arrays["example_predictions"], arrays["predictions"][:6].reshape(2, 3))


def test_a_folder_that_is_not_a_finished_run_is_refused(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("missing", "."):
        with pytest.raises(BadRequestError, match=rf"^{folder} is not the folder of a finished run: "):
            plot_saved_run(Path(folder))
    assert not list(tmp_path.iterdir())
    shutil.copytree(toy_run, "unfinished")
    Path("unfinished", "results.json").unlink()
    with pytest.raises(BadRequestError, match="unfinished is not the folder of a finished run"):
        plot_saved_run(Path("unfinished"))


def test_a_damaged_file_is_reported(toy_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    shutil.copytree(toy_run, folder)
    before = pictures(folder)
    for name in ("predictions.npz", "results.json", "epoch_metrics.json"):
        intact = (folder / name).read_bytes()
        for damaged in (b"", intact[:-50], b"\0" * 100):
            (folder / name).write_bytes(damaged)
            with pytest.raises(UnusableFileError, match=r"r contains a damaged file|npz is missing or damaged"):
                plot_saved_run(folder)
        (folder / name).write_bytes(intact)
    assert pictures(folder) == before


class WithFigures(ToyProblem):
    """The toy problem, with figures that a test sets."""

    def __init__(self, figures: Any) -> None:
        self.own_figures = figures

    def figures(self, config: Any, arrays: Columns) -> Any:
        return self.own_figures(arrays)


def in_tex(arrays: Columns) -> dict[str, Figure]:
    """A figure whose title needs LaTeX and a file that does not exist."""
    figure = parity(arrays["targets"], arrays["predictions"])
    figure.suptitle(r"\input{missing}", usetex=True)
    return {"parity": figure}


@pytest.mark.parametrize("fault", [lambda _: 1 / 0, lambda arrays: arrays["nothing"], lambda _: 3, in_tex])
def test_a_figure_that_fails_is_a_warning_and_the_run_is_finished(
    fault: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "r"
    main.run(WithFigures(fault), replace(PROBLEM.presets["debug"], device="cpu"), folder)
    shown = capsys.readouterr()
    assert shown.err.startswith("warning: a figure is missing (")
    assert shown.err.endswith(f"; python runs.py plot {folder} plots the figures again, and shows the error\n")
    assert shown.err.count("\n") == 1
    assert "| mean" in shown.out
    assert shown.out.endswith(f"\n{folder}\n")
    assert read(folder, "run_info.json")["status"] == "finished"
    assert {"results.json", "predictions.npz", "best.pt"} < {path.name for path in folder.iterdir()}
    assert list(pictures(folder)) == ["training_curves.png"]
    with pytest.raises((ArithmeticError, KeyError, ProblemError, RuntimeError)):  # the error itself, not "damaged file"
        figures_of_run.plot_run(WithFigures(fault), PROBLEM.presets["debug"], folder)


def test_a_figure_that_fails_does_not_prevent_the_numbers_of_an_evaluation(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "r"
    shutil.copytree(toy_run, folder)
    monkeypatch.setattr(ToyProblem, "figures", lambda *_: 1 / 0)
    evaluate_run(parse_args([str(folder), "--name", "new"]))
    assert [path.name for path in (folder / "evaluations").iterdir()] == ["new.json"]
    assert capsys.readouterr().err == "warning: a figure is missing (ZeroDivisionError('division by zero'))\n"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://missing.backend"])
def test_settings_of_the_user_do_not_change_figures(backend: str, toy_run: Path, toy: Program, tmp_path: Path) -> None:
    settings = "axes.facecolor: black\ntext.usetex: True\nsavefig.dpi: 17\nsavefig.bbox: tight\n"
    (tmp_path / "matplotlibrc").write_text(settings, encoding="utf-8", newline="\n")
    shutil.copytree(toy_run, tmp_path / "r")
    done = toy("plot", "r", script="runs.py", MPLBACKEND=backend, DISPLAY="")
    assert (done.returncode, done.stderr) == (0, "")
    assert pictures(tmp_path / "r") == pictures(toy_run)


@pytest.mark.slow
def test_settings_that_cannot_be_read_cost_only_the_figures(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"axes.facecolor: \xff\n")
    done = run_process(*DEBUG, "--epochs", "1", "--run-name", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: a figure is missing (UnicodeDecodeError" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.endswith("checkpoints/r\n")


def test_an_array_of_objects_is_not_unpickled(toy_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    shutil.copytree(toy_run, folder)
    buffer = io.BytesIO()
    np.savez(buffer, targets=np.array([{}]), predictions=np.array([{}]))
    (folder / "predictions.npz").write_bytes(buffer.getvalue())
    with pytest.raises(UnusableFileError, match=r"predictions.npz is missing or damaged .* Python objects"):
        plot_saved_run(folder)


def test_training_curves_show_all_epochs_and_mark_the_best() -> None:
    loss, rate = training_curves(ROWS, best_epoch=4, loss_name="error squared").axes
    train, val, best = loss.lines
    np.testing.assert_array_equal(train.get_xydata(), [[i, 1 / i] for i in range(1, 6)])
    np.testing.assert_array_equal(val.get_xydata(), [[i, 2 / i] for i in range(1, 6)])
    np.testing.assert_array_equal(best.get_xdata(), [4, 4])
    np.testing.assert_array_equal(rate.lines[0].get_ydata(), [0.1 / i for i in range(1, 6)])
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation", "best, epoch 4"]  # type: ignore[union-attr]
    assert loss.get_ylabel() == "error squared"
    assert (rate.get_xlabel(), rate.get_ylabel()) == ("epoch", "learning rate")


def test_parity_shows_every_example() -> None:
    true, predicted = np.array([-2.0, -1.0, 0.5]), np.array([-1.9, -1.2, 0.5])
    scatter, histogram = parity(true, predicted, "length", "m").axes
    np.testing.assert_array_equal(scatter.lines[0].get_xydata(), np.column_stack([true, predicted]))
    low, high = scatter.get_xlim()
    assert low < -2 < 0.5 < high
    assert scatter.get_ylim() == (low, high)
    np.testing.assert_array_equal(scatter.lines[1].get_xydata(), [[low, low], [high, high]])
    assert sum(patch.get_height() for patch in histogram.patches) == 3  # type: ignore[attr-defined]
    assert (scatter.get_xlabel(), scatter.get_ylabel()) == ("true length [m]", "predicted length [m]")
    assert (histogram.get_xlabel(), histogram.get_ylabel()) == ("predicted - true length [m]", "test examples")


@pytest.mark.parametrize("k", [1, 2, 3])
def test_parity_has_a_row_of_panels_for_each_component(k: int) -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(size=(2, 30, k))
    panels = np.array(parity(true, predicted).axes).reshape(k, 2)
    for i, (scatter, histogram) in enumerate(panels):
        np.testing.assert_array_equal(scatter.lines[0].get_xydata(), np.column_stack([true[:, i], predicted[:, i]]))
        assert sum(patch.get_height() for patch in histogram.patches) == 30
        heights, edges = np.histogram(predicted[:, i] - true[:, i], bins=len(histogram.patches))
        assert [patch.get_height() for patch in histogram.patches] == heights.tolist()
        assert histogram.patches[0].get_x() == pytest.approx(edges[0])
        assert scatter.get_xlabel() == (f"true target {i + 1}" if k > 1 else "true target")


@pytest.mark.parametrize("n", [1, 2, 15])
@pytest.mark.parametrize("values", [np.linspace(-1, 1, 15), np.zeros(15)], ids=["different", "equal"])
def test_parity_works_for_few_or_equal_examples(values: NDArray[np.float64], n: int) -> None:
    scatter, histogram = parity(values[:n], values[:n]).axes
    assert sum(patch.get_height() for patch in histogram.patches) == n  # type: ignore[attr-defined]
    low, high = scatter.get_xlim()
    assert low < values[:n].min() <= values[:n].max() < high


def test_an_error_of_the_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/plots.py", "missing"])
    monkeypatch.setattr("engine.machine.exit_code.stop_on_signals", lambda: None)
    with pytest.raises(SystemExit) as end:
        figures_of_run.main()
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("plots.py: error: missing is not the folder of a finished run: ")
    assert shown.err.count("\n") == 1


@pytest.mark.slow
def test_the_command_works_for_a_run_of_any_problem(toy_run: Path, toy: Program, tmp_path: Path) -> None:
    shutil.copytree(toy_run, tmp_path / "r")
    done = toy("plot", "r", script="runs.py")
    assert done.returncode == 0, done.stderr
    assert sorted(Path(line).name for line in done.stdout.splitlines()) == RUN_FIGURES
    assert pictures(tmp_path / "r") == pictures(toy_run)
    for arguments in ((), ("r", "--unknown")):
        done = toy("plot", *arguments, script="runs.py")
        assert done.returncode == 2
        assert done.stderr.startswith("runs.py")
        assert done.stderr.count("\n") == 1
