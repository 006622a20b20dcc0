"""The figures of an Ising run: their names and content, and the script that plots them again."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import main
from config import DataConfig, ExperimentConfig, ModelConfig
from engine.datasets.splits import get_splits
from engine.interface.base_config import LogConfig, TrainConfig
from engine.interface.generic_figures import parity
from ising.exact import T_CRITICAL
from plots import bayes_ceiling, configurations, error_by_temperature, figures, phase_by_temperature
from problem import PROBLEM
from task import TASKS, bayes_log_odds, by_temperature
from tests.conftest import read, run_command

RUN_FIGURES = {"training_curves.png", "parity.png", "error_by_temperature.png", "configurations.png"}

SMALL = ExperimentConfig(
    model=ModelConfig(hidden=(8,)),
    train=TrainConfig(epochs=2),
    data=DataConfig(lattice_size=4, num_train=200, num_val=50, num_test=60, sampler="numpy", sweeps=20, cache=False),
    log=LogConfig(checkpoints=False),
    device="cpu",
)
PHASE = ExperimentConfig(task="phase", data=SMALL.data)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run. Tests only read it."""
    folder = tmp_path_factory.mktemp("finished") / "small"
    main.run(PROBLEM, SMALL, folder)
    return folder


def plot_again(run: str, cwd: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python plots.py RUN`."""
    done = run_command(run, cwd=cwd, script="plots.py")
    return done.returncode, done.stdout, done.stderr


@pytest.mark.figures
def test_a_run_has_its_figures_and_the_script_plots_them_again(small_run: Path, tmp_path: Path) -> None:
    plotted = {path.name: path.read_bytes() for path in (small_run / "figures").iterdir()}
    assert set(plotted) == RUN_FIGURES
    assert all(content.startswith(b"\x89PNG") and len(content) > 5000 for content in plotted.values())
    shutil.copytree(small_run, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "figures")
    code, stdout, stderr = plot_again("r", tmp_path)
    assert code == 0, stderr
    assert {Path(line).name for line in stdout.splitlines()} == RUN_FIGURES
    assert {path.name: path.read_bytes() for path in (tmp_path / "r" / "figures").iterdir()} == plotted


def test_the_script_refuses_a_folder_that_is_not_a_finished_run(tmp_path: Path) -> None:
    for folder in ("missing", "."):
        code, stdout, stderr = plot_again(folder, tmp_path)
        assert code == 2
        assert stdout == ""
        assert stderr.startswith(f"plots.py: error: {folder} is not the folder of a finished run")
        assert stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_script_reports_a_damaged_file(small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "r")
    (tmp_path / "r" / "predictions.npz").write_bytes((small_run / "predictions.npz").read_bytes()[:-50])
    code, stdout, stderr = plot_again("r", tmp_path)
    assert code == 3
    assert stdout == ""
    assert stderr.startswith("plots.py: error: r/predictions.npz is missing or damaged")
    assert stderr.count("\n") == 1


def test_predictions_are_saved_with_the_data_of_the_figures(small_run: Path) -> None:
    with np.load(small_run / "predictions.npz", allow_pickle=False) as arrays:
        assert arrays["example_spins"].shape == (3, 4, 4, 4)
        assert arrays["example_temperatures"].shape == (3, 4)
        errors = np.abs(arrays["predictions"] - arrays["targets"])
        assert len(errors) == len(arrays["temperatures"]) == 60
    assert errors.mean() == pytest.approx(read(small_run, "results.json")["test"]["mae"], rel=1e-12)


def arrays_of(config: ExperimentConfig) -> dict[str, Any]:
    """The arrays that an evaluation passes to `figures`, with arbitrary predictions."""
    columns = get_splits(PROBLEM, config)[0].test
    targets = TASKS[config.task].target(columns)
    rng = np.random.default_rng(0)
    return {**columns, "targets": targets, "predictions": targets + rng.normal(size=len(targets))}


def test_an_evaluation_of_energies_has_the_error_by_temperature_first() -> None:
    arrays = arrays_of(SMALL)
    found = figures(SMALL, arrays)
    assert list(found) == ["error_by_temperature", "parity"]
    errors = np.abs(arrays["predictions"] - arrays["targets"])
    points = found["error_by_temperature"].axes[0].containers[0][0].get_xydata()
    assert points[:, 1].mean() == pytest.approx(errors.mean())  # all bins have the same number of configurations
    scatter, histogram = found["parity"].axes
    np.testing.assert_array_equal(
        scatter.lines[0].get_xydata(), np.column_stack([arrays["targets"], arrays["predictions"]])
    )
    assert (scatter.get_xlabel(), scatter.get_ylabel()) == ("true $E / N$ [J]", "predicted $E / N$ [J]")
    assert histogram.get_xlabel() == "predicted - true $E / N$ [J]"


def test_an_evaluation_of_phases_compares_the_network_with_bayes_at_its_own_temperatures() -> None:
    arrays = arrays_of(PHASE)
    found = figures(PHASE, arrays)
    assert list(found) == ["phase_by_temperature"]
    left, right = found["phase_by_temperature"].axes
    assert left.get_legend_handles_labels()[1][-2:] == ["network", "Bayes"]
    expected = phase_by_temperature(arrays["temperatures"], {"Bayes": bayes_log_odds(arrays)}).axes
    for axes, only in zip((left, right), expected, strict=True):
        np.testing.assert_array_equal(axes.containers[1][0].get_xydata(), only.containers[0][0].get_xydata())
    assert "Bayes, exact" in right.get_legend_handles_labels()[1]


def test_figures_of_a_run_also_have_configurations_and_bayes_rule_for_its_training() -> None:
    columns = get_splits(PROBLEM, SMALL)[0].test
    examples = {f"example_{name}": column[np.arange(12).reshape(3, 4)] for name, column in columns.items()}
    found = figures(SMALL, arrays_of(SMALL) | examples)
    assert list(found) == ["error_by_temperature", "parity", "configurations"]
    np.testing.assert_array_equal(found["configurations"].axes[5].images[0].get_array(), columns["spins"][5])
    odds = np.linspace(-3, 3, len(columns["temperatures"]))
    found = figures(PHASE, arrays_of(PHASE) | examples | {"baseline_bayes": odds})
    assert list(found) == ["phase_by_temperature", "configurations"]
    expected = phase_by_temperature(columns["temperatures"], {"Bayes": odds}).axes[0]
    np.testing.assert_array_equal(
        found["phase_by_temperature"].axes[0].containers[1][0].get_xydata(),
        expected.containers[0][0].get_xydata(),
    )


@pytest.mark.parametrize(("coldest", "marked"), [(1.0, True), (3.0, False)])
def test_error_by_temperature_is_a_mean_with_its_standard_error(coldest: float, marked: bool) -> None:
    rng = np.random.default_rng(0)
    temperatures = np.concatenate([[coldest, 4.0], rng.uniform(coldest, 4.0, 998)])
    errors = rng.normal(size=1000)
    (axes,) = error_by_temperature(temperatures, errors).axes
    container = axes.containers[0]
    points, bars = container[0].get_xydata(), container[2][0].get_segments()
    assert len(points) == 20
    order = np.argsort(temperatures)
    for i, ((x, y), bar) in enumerate(zip(points, bars, strict=True)):
        chosen = order[50 * i : 50 * (i + 1)]
        inside = np.abs(errors[chosen])
        assert x == pytest.approx(temperatures[chosen].mean())
        assert y == pytest.approx(inside.mean())
        assert (bar[1, 1] - bar[0, 1]) / 2 == pytest.approx(inside.std(ddof=1) / np.sqrt(50))
    labels = axes.get_legend_handles_labels()[1]
    assert any(f"{T_CRITICAL:.3f}" in label for label in labels) == marked


def test_a_figure_has_one_point_for_each_row_of_the_json() -> None:
    # Each of a few temperatures is one point and one row, not split or combined with its neighbours across T_c.
    temperatures = np.random.default_rng(3).permutation(np.repeat([2.0, 2.25, 2.5], [667, 667, 666]))
    spins = np.ones((2000, 4, 4), np.int8)
    columns = {"spins": spins, "temperatures": temperatures}
    predictions = TASKS["energy"].target(columns) + 0.1 * temperatures
    rows = by_temperature(TASKS["energy"], columns, predictions)
    assert [(row["temperature"], row["n"]) for row in rows] == [(2.0, 667), (2.25, 667), (2.5, 666)]
    (axes,) = error_by_temperature(temperatures, 0.1 * temperatures).axes
    np.testing.assert_allclose(axes.containers[0][0].get_xydata(), [(row["temperature"], row["mae"]) for row in rows])


@pytest.mark.parametrize("n", [1, 2, 15])
def test_figures_of_few_configurations(n: int) -> None:
    rng = np.random.default_rng(2)
    true, temperatures = rng.normal(size=n), rng.uniform(1, 4, n)
    (axes,) = error_by_temperature(temperatures, true).axes
    assert len(axes.containers[0][0].get_xydata()) == 1
    assert sum(patch.get_height() for patch in parity(true, true).axes[1].patches) == n  # type: ignore[attr-defined]


def test_configurations_are_plotted_unchanged() -> None:
    spins = np.random.default_rng(1).choice(np.array([-1, 1], np.int8), (3, 2, 4, 4))
    temperatures = np.array([[1.0, 1.1], [2.2, 2.3], [3.0, 3.1]])
    figure = configurations(spins, temperatures)
    assert len(figure.axes) == 6
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), spins[1, 1])
    assert figure.axes[3].get_title().startswith("T = 2.30")


def test_the_ceiling_of_bayes_rule_exists_for_sampled_lattices_up_to_8() -> None:
    ceiling = bayes_ceiling(DataConfig(lattice_size=8, temp_min=1.5, temp_max=3.0))
    assert ceiling is not None
    temperatures, accuracies = ceiling
    assert (temperatures[0], temperatures[-1]) == (1.5, 3.0)
    assert accuracies.min() < 0.6
    assert accuracies[0] > 0.99
    for data in (DataConfig(lattice_size=16), DataConfig(lattice_size=8, file="x.npz")):
        assert bayes_ceiling(data) is None


def test_phases_are_plotted_with_standard_errors() -> None:
    temperatures = np.repeat([1.5, 3.0], 50)
    odds = np.where(temperatures < T_CRITICAL, 1.0, -1.0)
    odds[:5] = -1.0  # a tenth of the cold ones are wrong
    ceiling = bayes_ceiling(DataConfig(lattice_size=8, temp_min=1.5, temp_max=3.0))
    assert ceiling is not None
    left, right = phase_by_temperature(temperatures, {"network": odds}, ceiling).axes
    np.testing.assert_array_equal(right.lines[-2].get_xydata(), np.transpose(ceiling))
    p = 1 / (1 + np.exp(-1))
    for axes, cold, hot in ((left, 0.9 * p + 0.1 * (1 - p), 1 - p), (right, 0.9, 1.0)):
        line, _, (bars,) = axes.containers[0]
        np.testing.assert_allclose(line.get_xydata(), [[1.5, cold], [3.0, hot]])
        heights = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
        spread = 0.3 * (1.0 if axes is right else 2 * p - 1)
        np.testing.assert_allclose(heights, [2 * spread / np.sqrt(49), 0], atol=1e-12)
        assert axes.get_xlabel() == "temperature [J / $k_B$]"
