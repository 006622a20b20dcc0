"""Figures: drawn from a run's files alone, with axes that say what they show."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ising.exact import T_CRITICAL
from plots import bayes_ceiling, configurations, error_by_temperature, parity, phase_by_temperature, training_curves
from tests.conftest import Program

RUN_FIGURES = {"training_curves.png", "parity.png", "error_by_temperature.png", "configurations.png"}


def test_a_run_has_its_figures_and_the_script_draws_them_again(finished_run: Path, program: Program) -> None:
    figures = finished_run / "figures"
    drawn = {path.name: path.read_bytes() for path in figures.iterdir()}
    assert set(drawn) == RUN_FIGURES
    assert all(content.startswith(b"\x89PNG") and len(content) > 5000 for content in drawn.values())
    done = program(str(finished_run), script="plots.py")
    assert done.returncode == 0, done.stderr
    assert {Path(line).name for line in done.stdout.splitlines()} == RUN_FIGURES
    assert {path.name: path.read_bytes() for path in figures.iterdir()} == drawn


def test_a_folder_that_is_no_finished_run_is_refused(program: Program, tmp_path: Path) -> None:
    for folder in ("missing", "."):
        done = program(folder, script="plots.py")
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(f"plots.py: error: {folder} is not the folder of a finished run")
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_told(finished_run: Path, program: Program, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "r")
    whole = (tmp_path / "r" / "predictions.npz").read_bytes()
    for damaged in (b"", whole[:-50], b"\0" * 100):
        (tmp_path / "r" / "predictions.npz").write_bytes(damaged)
        done = program("r", script="plots.py")
        assert done.returncode == 3
        assert done.stderr.startswith("plots.py: error: r holds a damaged file")
        assert done.stderr.count("\n") == 1


def test_training_curves_show_all_epochs_and_mark_the_best() -> None:
    rows = [{"epoch": i, "train_loss": 1 / i, "val_loss": 2 / i, "learning_rate": 0.1 / i} for i in range(1, 6)]
    loss, rate = training_curves(rows, best_epoch=4).axes
    train, val, best = loss.lines
    np.testing.assert_array_equal(train.get_xydata(), [[i, 1 / i] for i in range(1, 6)])
    np.testing.assert_array_equal(val.get_xydata(), [[i, 2 / i] for i in range(1, 6)])
    np.testing.assert_array_equal(best.get_xdata(), [4, 4])
    np.testing.assert_array_equal(rate.lines[0].get_ydata(), [0.1 / i for i in range(1, 6)])
    assert rate.get_xlabel() == "epoch"


def test_parity_shows_every_configuration() -> None:
    true, predicted = np.array([-2.0, -1.0, 0.5]), np.array([-1.9, -1.2, 0.5])
    scatter, histogram = parity(true, predicted).axes
    np.testing.assert_array_equal(scatter.lines[0].get_xydata(), np.column_stack([true, predicted]))
    assert sum(patch.get_height() for patch in histogram.patches) == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(("coldest", "marked"), [(1.0, True), (3.0, False)])
def test_error_by_temperature_is_a_mean_with_its_standard_error(coldest: float, marked: bool) -> None:
    rng = np.random.default_rng(0)
    temperatures = np.concatenate([[coldest, 4.0], rng.uniform(coldest, 4.0, 998)])
    errors = rng.normal(size=1000)
    (axes,) = error_by_temperature(temperatures, errors, n_bins=5).axes
    container = axes.containers[0]
    points, bars = container[0].get_xydata(), container[2][0].get_segments()
    assert len(points) == 5
    order = np.argsort(temperatures)
    for i, ((x, y), bar) in enumerate(zip(points, bars, strict=True)):
        chosen = order[200 * i : 200 * (i + 1)]
        inside = np.abs(errors[chosen])
        assert x == pytest.approx(temperatures[chosen].mean())
        assert y == pytest.approx(inside.mean())
        assert (bar[1, 1] - bar[0, 1]) / 2 == pytest.approx(inside.std(ddof=1) / np.sqrt(200))
    labels = axes.get_legend_handles_labels()[1]
    assert any(f"{T_CRITICAL:.3f}" in label for label in labels) == marked


@pytest.mark.parametrize("n", [1, 2, 15])
def test_few_configurations_are_shown_too(n: int) -> None:
    rng = np.random.default_rng(2)
    true, temperatures = rng.normal(size=n), rng.uniform(1, 4, n)
    (axes,) = error_by_temperature(temperatures, true).axes
    assert len(axes.containers[0][0].get_xydata()) == 1
    assert sum(patch.get_height() for patch in parity(true, true).axes[1].patches) == n  # type: ignore[attr-defined]


def test_configurations_are_shown_as_they_are() -> None:
    spins = np.random.default_rng(1).choice(np.array([-1, 1], np.int8), (3, 2, 4, 4))
    temperatures = np.array([[1.0, 1.1], [2.2, 2.3], [3.0, 3.1]])
    figure = configurations(spins, temperatures)
    assert len(figure.axes) == 6
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), spins[1, 1])
    assert figure.axes[3].get_title().startswith("T = 2.30")


def test_predictions_file_holds_what_the_figures_need(finished_run: Path) -> None:
    results = json.loads((finished_run / "results.json").read_text())
    with np.load(finished_run / "predictions.npz", allow_pickle=False) as arrays:
        assert arrays["example_spins"].shape == (3, 4, 8, 8)
        errors = np.abs(arrays["predictions"].astype(float) - arrays["targets"])
        assert len(errors) == len(arrays["temperatures"]) == 500
    assert errors.mean() == pytest.approx(results["test"]["mae"], rel=1e-6)


def test_phases_are_shown_with_their_standard_errors() -> None:
    temperatures = np.repeat([1.5, 3.0], 50)
    odds = np.where(temperatures < T_CRITICAL, 1.0, -1.0)
    odds[:5] = -1.0  # a tenth of the cold ones are wrong
    ceiling = bayes_ceiling({"lattice_size": 8, "file": None, "temp_min": 1.5, "temp_max": 3.0})
    assert ceiling is not None
    left, right = phase_by_temperature(temperatures, {"network": odds}, ceiling, n_bins=2).axes
    np.testing.assert_array_equal(right.lines[-2].get_xydata(), np.transpose(ceiling))
    assert ceiling[1].min() < 0.6
    assert ceiling[1][0] > 0.99
    for other in ({"lattice_size": 16, "file": None}, {"lattice_size": 8, "file": "x.npz"}):
        assert bayes_ceiling(other) is None
    p = 1 / (1 + np.exp(-1))
    for axes, cold, hot in ((left, 0.9 * p + 0.1 * (1 - p), 1 - p), (right, 0.9, 1.0)):
        line, _, (bars,) = axes.containers[0]
        np.testing.assert_allclose(line.get_xydata(), [[1.5, cold], [3.0, hot]])
        heights = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
        spread = 0.3 * (1.0 if axes is right else 2 * p - 1)
        np.testing.assert_allclose(heights, [2 * spread / np.sqrt(49), 0], atol=1e-12)
        assert axes.get_xlabel() == "temperature [J / $k_B$]"
