"""The examples: their physics, and that they run, are evaluated and plotted as commands."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import SeedSequence

from engine.datasets.file_formats import complete_config, read_columns
from engine.datasets.splits import load_data
from engine.interface.base_config import load_config
from engine.interface.base_problem import Columns
from engine.learning.prediction import build_model, evaluate, predict, prepare
from engine.machine.errors import UnusableFileError
from engine.run_folder.run_request import parse_args
from examples import classes, field, overview, potential, table
from ising import exact, lattice
from tests.conftest import read, run_command
from trainer import Trainer

POTENTIAL, TABLE = ("-m", "examples.potential"), ("-m", "examples.table")
SMALL = ("--epochs", "3", "--device", "cpu")


def numbers(n: int) -> dict[str, Any]:
    """A data set with numeric columns of different scales and shapes, and a text column."""
    rng = np.random.default_rng(0)
    x1, x2, maps = rng.uniform(-1, 1, n), rng.uniform(0, 1e4, n), rng.normal(size=(n, 2, 3))
    return {
        "x1": x1,
        "x2": x2,
        "maps": maps,
        "y": 3 * x1 + 1e-4 * x2,
        "both": np.stack([x1**2, x2], axis=1),
        "name": np.array(["a"] * n),
    }


def write_csv(path: Path, n: int) -> None:
    columns = numbers(n)
    rows = [f"{columns['x1'][i]!r},{columns['x2'][i]!r},a,{columns['y'][i]!r}" for i in range(n)]
    path.write_text(
        "\n".join(["x1,x2,name,y", *rows]).replace("np.float64(", "").replace(")", "") + "\n",
        encoding="utf-8",
        newline="\n",
    )


# ------------------------------------------------------------------------------------------------------------- physics


def test_a_particle_in_a_harmonic_potential() -> None:
    x, omega = np.arange(1, 1000) / 1000, 200.0
    energies = potential.ground_state_energies(omega**2 * (x - 0.5)[None] ** 2 / 2)
    assert energies[0] == pytest.approx(omega / 2, rel=1e-3)  # hbar omega / 2; the walls are seven widths away


def test_a_particle_in_an_empty_box() -> None:
    energy, probability = potential.empty_box(999)
    assert energy == pytest.approx(math.pi**2 / 2, rel=1e-5)
    assert probability.sum() == pytest.approx(1)
    assert potential.ground_state_energies(np.zeros((1, 999)))[0] == pytest.approx(energy, rel=1e-9)


def test_first_order_is_exact_for_a_constant_and_good_for_a_weak_potential() -> None:
    rng = np.random.default_rng(0)
    constant: Columns = {"potentials": np.full((1, 64), 17.0)}
    assert potential.first_order(constant)[0] == pytest.approx(
        potential.ground_state_energies(np.full((1, 64), 17.0))[0]
    )
    weak = 1e-3 * rng.normal(size=(5, 64))
    columns: Columns = {"potentials": weak}
    np.testing.assert_allclose(potential.first_order(columns), potential.ground_state_energies(weak), atol=1e-7)


def test_walks_have_the_mean_square_displacement_of_their_class_and_bayes_is_calibrated() -> None:
    config = classes.WalkConfig(data=classes.WalkData(num_train=20_000, num_val=1, num_test=20_000))
    train, test = (classes.PROBLEM.generate(config, 20_000, SeedSequence(seed)) for seed in (0, 1))
    for k, hurst in enumerate(classes.HURST):
        distances = train["steps"][train["labels"] == k].cumsum(axis=1)
        for t in (1, 8, 64):  # E x(t)^2 = t^(2 H)
            squares = distances[:, t - 1] ** 2
            error = squares.std() / math.sqrt(len(squares))
            assert abs(squares.mean() - t ** (2 * hurst)) < 5 * error
    bayes = classes.PROBLEM.baselines(config, train, test)["bayes"]
    likeliest = bayes["probabilities"].max(axis=1)
    is_right = bayes["predictions"] == test["labels"]
    assert abs(is_right.mean() - likeliest.mean()) < 5 * likeliest.std() / math.sqrt(len(likeliest))
    for low in (0.4, 0.6, 0.8):  # the probability that it states is that with which it is right
        chosen = (likeliest > low) & (likeliest < low + 0.2)
        error = math.sqrt(0.25 / chosen.sum())
        assert abs(is_right[chosen].mean() - likeliest[chosen].mean()) < 5 * error


def test_class_weights_find_rare_classes_more_often() -> None:
    recalls = []
    for balanced in (False, True):
        config = replace(classes.PROBLEM.presets["debug"], balanced=balanced, device="cpu", threads=1)
        config = replace(config, train=replace(config.train, epochs=8), data=replace(config.data, cache=False))
        data = load_data(classes.PROBLEM, config)
        model = build_model(classes.PROBLEM, config, data.train)
        Trainer(classes.PROBLEM, config, model, data.train, data.val).fit()
        predicted = predict(classes.PROBLEM, config, model, data.test)
        recalls.append((predicted[data.test["labels"] == 2] == 2).mean())  # 10 % of the walks
    assert recalls[1] > recalls[0] + 0.2


def test_the_spectrum_and_the_noise_of_fields_are_right_and_the_wiener_filter_is_optimal() -> None:
    data = field.FieldData()
    config = field.FieldConfig(data=data)
    columns = field.PROBLEM.generate(config, 4_000, SeedSequence(0))
    power = (np.abs(np.fft.fft2(columns["fields"])) ** 2).mean(axis=0) / data.size**2
    expected = field.spectrum(data)  # the power at each k has a relative deviation of about 1 between fields
    assert (np.abs(power - expected) < 6 * expected * math.sqrt(2 / 4_000)).all()
    noise = (columns["data"] - columns["fields"]).std(axis=(1, 2))
    np.testing.assert_allclose(noise, columns["noise"], rtol=6 / math.sqrt(2 * 256))
    wiener = field.PROBLEM.baselines(config, columns, columns)["wiener"]
    z = (wiener["predictions"] - columns["fields"]) / wiener["std"]
    assert (z**2).mean() == pytest.approx(1, abs=0.02)
    assert (np.abs(z) < 1).mean() == pytest.approx(0.6827, abs=0.01)
    for factor in (0.9, 1.1):  # any other filter is worse
        other = (factor * wiener["predictions"] - columns["fields"]) ** 2
        assert other.mean() > ((wiener["predictions"] - columns["fields"]) ** 2).mean()


def test_generated_energies_are_within_their_bounds_and_shifted_ones_are_not() -> None:
    config = potential.PROBLEM.presets["debug"]
    columns = potential.PROBLEM.generate(config, 200, SeedSequence(1))
    assert potential.PROBLEM.check(config, columns).fault == ""
    root_mean_square = math.sqrt(float((columns["potentials"] ** 2).mean()))
    assert root_mean_square == pytest.approx(config.data.depth, rel=0.1)
    for shift in (-300, 300):
        check = potential.PROBLEM.check(config, {**columns, "energies": columns["energies"] + shift})
        assert check.numbers["outside_bounds"] > 0
        assert "violate their exact bounds" in check.fault


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0.5, 5000.0])
def test_potentials_of_any_depth_are_learned(depth: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = potential.PROBLEM.presets["default"]
    config = replace(config, device="cpu", train=replace(config.train, epochs=15, lr=0.003))
    config = replace(config, data=replace(config.data, depth=depth))
    data = load_data(potential.PROBLEM, config)
    model = build_model(potential.PROBLEM, config, data.train)
    Trainer(potential.PROBLEM, config, model, data.train, data.val).fit()
    metrics = evaluate(potential.PROBLEM, config, model, prepare(potential.PROBLEM, config, model, data.test)).metrics
    assert metrics["r2"] > 0.97


# --------------------------------------------------------------------------------------------------------------- table


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the test, with data files."""
    monkeypatch.chdir(tmp_path)
    np.savez("t.npz", **numbers(300))
    write_csv(Path("t.csv"), 100)
    return tmp_path


def loaded(line: str) -> tuple[Any, Any]:
    command = parse_args(table.PROBLEM, line.split(), prog="table.py")
    return command.config, load_data(table.PROBLEM, command.config)


def test_sizes_are_80_10_10_percent_of_a_table(folder: Path) -> None:
    for file, n in (("t.npz", 300), ("t.csv", 100)):
        _, data = loaded(f"--data {file} --inputs x1 x2 --target y")
        assert [len(split["y"]) for split in data[:3]] == [n * 8 // 10, n // 10, n // 10]


def test_a_csv_and_an_npz_with_the_same_columns_are_the_same_data(folder: Path) -> None:
    np.savez("same.npz", **{name: column for name, column in numbers(100).items() if name in ("x1", "x2", "y")})
    one, other = (loaded(f"--data {file} --inputs x1 x2")[1] for file in ("t.csv", "same.npz"))
    assert one.sha256 == other.sha256


def test_arrays_of_any_shape_and_several_targets(folder: Path) -> None:
    config, data = loaded("--data t.npz --inputs x1 maps --target y both")
    inputs = table.PROBLEM.inputs(config, data.train)
    assert [x.shape for x in inputs] == [(240,), (240, 2, 3)]
    assert table.PROBLEM.target(config, data.train).shape == (240, 3)
    model = build_model(table.PROBLEM, config, data.train)
    assert model(torch.zeros(5), torch.zeros(5, 2, 3)).shape == (5, 3)


def test_without_inputs_all_other_columns_are_used(folder: Path) -> None:
    np.savez("same.npz", **{name: column for name, column in numbers(100).items() if name in ("x1", "x2", "y")})
    config, data = loaded("--data same.npz")
    assert len(table.PROBLEM.inputs(config, data.train)) == 2


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--data t.npz --inputs x1 map", "no array 'map'; did you mean maps?"),
        ("--data t.csv --inputs x1 --target z", "no column 'z'; the file has x1, x2, name, y"),
        ("--data t.csv --inputs x1 name", "could not convert string to float"),
        ("--data t.npz --inputs name", "name has the dtype"),
    ],
)
def test_errors_name_columns_that_cannot_be_used(line: str, named: str, folder: Path) -> None:
    with pytest.raises(UnusableFileError) as error:
        loaded(line)
    assert named in str(error.value)


def test_a_linear_table_is_learned_and_the_baseline_is_exact(folder: Path) -> None:
    np.savez("large.npz", **numbers(3000))
    config, data = loaded("--data large.npz --inputs x1 x2 --target y --epochs 30 --lr 0.01")
    model = build_model(table.PROBLEM, config, data.train)
    Trainer(table.PROBLEM, config, model, data.train, data.val).fit()
    metrics = evaluate(table.PROBLEM, config, model, prepare(table.PROBLEM, config, model, data.test)).metrics
    assert metrics["r2"] > 0.99
    baseline = table.PROBLEM.baselines(config, data.train, data.test)["least_squares"]
    np.testing.assert_allclose(baseline, data.test["y"], atol=1e-6)


def complete(text: str, line: str) -> Any:
    """The complete config for a table with this content."""
    Path("c.csv").write_text(text, encoding="utf-8")
    return complete_config(table.PROBLEM, parse_args(table.PROBLEM, ["--data", "c.csv", *line.split()]).config)


FLOWERS = "width,name,height,kind\n" + "".join(f"{i},n{i},{i % 7},{'abc'[i % 3]}\n" for i in range(120))


def test_a_target_of_text_is_a_class_and_other_files_are_read_like_that_of_the_run(folder: Path) -> None:
    config = complete(FLOWERS, "--target kind")
    assert (config.task, config.inputs, config.classes) == ("classify", ("width", "height"), ("a", "b", "c"))
    data = load_data(table.PROBLEM, config)
    assert set(np.unique(table.PROBLEM.target(config, data.train))) == {0, 1, 2}
    Path("new.csv").write_text("further,height,width,kind\n9,1,2,c\n9,3,4,b\n", encoding="utf-8")
    columns = read_columns(table.PROBLEM, config, "new.csv")
    assert [x.tolist() for x in table.PROBLEM.inputs(config, columns)] == [[2.0, 4.0], [1.0, 3.0]]
    assert table.PROBLEM.target(config, columns).tolist() == [2, 1]
    Path("new.csv").write_text("height,width,kind\n1,2,d\n", encoding="utf-8")
    with pytest.raises(UnusableFileError, match="kind has the class 'd', which is not one of a, b, c"):
        read_columns(table.PROBLEM, config, "new.csv")


def test_how_a_file_is_read_is_said_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = complete(",x,y\n" + "".join(f"{i},{i},{i * i}\n" for i in range(40)), "")
    load_data(table.PROBLEM, replace(config, train=replace(config.train, batch_size=8)))
    assert capsys.readouterr().out.count("the first column has no name") == 1


def test_numbers_are_classes_if_asked_and_two_values_get_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(40))
    assert complete(text, "").task == "regress"
    assert "y is 0 or 1: --task classify predicts the class" in capsys.readouterr().out
    assert complete(text, "--task classify").classes == ("0", "1")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (FLOWERS, "--target kind --task regress", "kind is text, which is a class"),
        (FLOWERS, "--target kind width", "kind is text, which is a class"),
        (FLOWERS, "--target width --task classify", "width has 120 different values: these are not classes"),
        ("y\n1\n2\n3\n", "", "there is no column of numbers besides the target"),
    ],
)
def test_a_table_without_a_meaning_is_refused(text: str, line: str, message: str, folder: Path) -> None:
    with pytest.raises(UnusableFileError, match=message):
        complete(text, line)


# --------------------------------------------------------------------------------------------------------- as commands


def succeed(*arguments: str, cwd: Path, script: str | tuple[str, ...], **changes: str) -> str:
    done = run_command(*arguments, cwd=cwd, script=script, **changes)
    assert done.returncode == 0, done.stderr
    return done.stdout


ONE_EACH = [
    pytest.param("potential", ("--preset", "debug"), ("--depth", "20", "--num-test", "30"), id="potential"),
    pytest.param("classes", ("--preset", "debug"), ("--steps", "100", "--num-test", "30"), id="classes"),
    pytest.param("field", ("--preset", "debug"), ("--size", "24", "--num-test", "30"), id="field"),
    pytest.param("table", ("--data", "t.npz", "--inputs", "x1", "x2"), ("--data", "t.npz"), id="table"),
]
BASELINES = {
    "potential": ["mean", "least_squares", "first_order"],
    "classes": ["prior", "bayes"],
    "field": ["data", "wiener"],
    "table": ["mean", "least_squares"],
}


@pytest.mark.figures
@pytest.mark.slow
@pytest.mark.parametrize(("name", "data", "new"), ONE_EACH)
def test_an_example_runs_again_from_its_config_and_is_evaluated_and_plotted(
    name: str, data: tuple[str, ...], new: tuple[str, ...], folder: Path
) -> None:
    script = ("-m", f"examples.{name}")
    succeed(*data, *SMALL, "--run-name", "a", cwd=folder, script=script)
    shown = succeed("--config", "checkpoints/a/config.json", "--run-name", "b", cwd=folder, script=script)
    assert ("cache/" in shown) == (name != "table")
    a, b = folder / "checkpoints" / "a", folder / "checkpoints" / "b"
    for file in ("epoch_metrics.json", "results.json"):
        assert (a / file).read_bytes() == (b / file).read_bytes()
    assert read(a, "run_info.json")["problem"] == script[1]
    assert list(read(a, "results.json")["baselines"]) == BASELINES[name]

    figures = {path.name: path.read_bytes() for path in (a / "figures").iterdir()}
    assert len(figures) > 1
    for file in figures:
        (a / "figures" / file).unlink()
    succeed("checkpoints/a", cwd=folder, script="plots.py")
    assert {path.name: path.read_bytes() for path in (a / "figures").iterdir()} == figures

    succeed("a", *new, "--name", "new", cwd=folder, script="evaluate.py")
    result = read(a / "evaluations", "new.json")
    assert result["n"] == (300 if name == "table" else 30)
    assert result["metrics"].keys() == read(a, "results.json")["test"].keys()


@pytest.mark.slow
def test_saved_data_can_be_read_by_the_same_and_by_another_problem(folder: Path) -> None:
    line = ("--num-train", "200", "--num-val", "30", "--num-test", "30")
    succeed(*line, "--save-data", "p.npz", cwd=folder, script=POTENTIAL)
    shown = succeed("--data", "p.npz", *line, *SMALL, "--run-name", "p", cwd=folder, script=POTENTIAL)
    assert "data read from p.npz" in shown
    assert "0 of 200 energies outside exact bounds" in shown
    assert "depth" not in json.loads((folder / "checkpoints/p/config.json").read_text(encoding="utf-8"))["data"]
    columns = ("--inputs", "potentials", "--target", "energies")
    succeed("--data", "p.npz", *columns, *SMALL, "--run-name", "t", cwd=folder, script=TABLE)
    config = load_config(table.TableConfig, folder / "checkpoints" / "t" / "config.json")
    assert config.target == ("energies",)


# ------------------------------------------------------------------------------------------------------------ overview


@pytest.mark.slow
def test_the_figure_of_the_readme_shows_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spins, predictions = overview.measure()
    errors = 32**2 * np.abs(predictions - lattice.energy(spins) / 32**2)
    assert errors.max() < 2  # every energy is correct
    means, standard_errors = predictions.mean(axis=1), predictions.std(axis=1, ddof=1) / overview.N_CHAINS**0.5
    z = (means - exact.kaufman(overview.TEMPERATURES, 32)[0]) / standard_errors
    assert np.abs(z).max() < 3.5  # inside the axis
    assert len(overview.plot(spins, predictions).get_axes()) == 6
