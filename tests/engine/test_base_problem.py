"""The interface of a problem: the defaults suit regression, and mistakes in a problem are detected."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.random import SeedSequence
from numpy.typing import NDArray
from torch import Tensor, nn

import main
from engine.datasets.splits import load_data
from engine.evaluation.evaluation_request import parse_args
from engine.interface.base_config import LogConfig, TrainConfig
from engine.interface.base_problem import Check, Columns, Problem, Shape
from engine.interface.find_problem import load_problem, module_name, require_problem
from engine.learning.predicted import predicted_by
from engine.learning.prediction import build_model, compute_metrics, evaluate, predict, prepare
from engine.machine.errors import BadRequestError, ProblemError, UnusableFileError
from engine.machine.exit_code import ExitCode
from engine.options.fields import options_of
from engine.run_folder.null_logger import NullLogger
from evaluate import evaluate_run, load_run
from tests.conftest import read
from tests.toy import PROBLEM, ToyConfig, ToyDataConfig, ToyModelConfig, ToyProblem
from trainer import Trainer

CONFIG = replace(PROBLEM.presets["debug"], device="cpu")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Rows(NullLogger):
    """A logger that keeps the rows of metrics."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log_epoch(self, row: Any) -> None:
        self.rows.append(dict(row))


def trained(problem: Problem[Any], config: ToyConfig = CONFIG) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Train, and return the rows of metrics and the test metrics."""
    data, rows = load_data(problem, config), Rows()
    model = build_model(problem, config, data.train)
    Trainer(problem, config, model, data.train, data.val, logger=rows).fit()
    return rows.rows, evaluate(problem, config, model, prepare(problem, config, model, data.test)).metrics


# ------------------------------------------------------------------------------------------------- shapes and scales


class WithColumn(nn.Module):
    """Returns (B, 1) instead of (B,)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs: Tensor = self.network(*inputs)
        return outputs[:, None]


def test_a_network_that_returns_a_column_is_refused_before_training() -> None:
    class Column(ToyProblem):
        def network(self, config: ToyConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
            return WithColumn(super().network(config, input_shapes, target_shape))

    with pytest.raises(ProblemError, match=r"outputs of the shape \(2, 1\) for targets of the shape \(2,\).*squeeze"):
        trained(Column())


def test_a_network_that_does_not_take_its_inputs_is_refused_with_both() -> None:
    class NoInput(nn.Linear):
        def forward(self) -> Tensor:  # type: ignore[override]
            return self.bias

    class Silent(ToyProblem):
        def network(self, config: ToyConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
            return NoInput(1, 1)

    with pytest.raises(ProblemError, match=r"NoInput.forward takes \(\).* called with the 2 arrays"):
        trained(Silent())


def test_a_loss_that_is_a_mean_is_refused() -> None:
    class Mean(ToyProblem):
        def loss(self, config: ToyConfig, outputs: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.mse_loss(outputs, targets)

    with pytest.raises(ProblemError, match=r"loss returned the shape \(\): return one loss per example"):
        trained(Mean())


def test_a_baseline_of_another_shape_is_refused() -> None:
    data = load_data(PROBLEM, CONFIG)
    model = build_model(PROBLEM, CONFIG, data.train)
    examples = prepare(PROBLEM, CONFIG, model, data.test)
    with pytest.raises(ProblemError, match=r"\(50, 1\)"):
        compute_metrics(PROBLEM, CONFIG, model, examples, predicted_by(model, {"predictions": np.zeros((50, 1))}))


def test_inputs_that_are_not_a_tuple_are_refused() -> None:
    class Array(ToyProblem):
        def inputs(self, config: ToyConfig, columns: Columns) -> Any:
            return columns["points"]

    with pytest.raises(ProblemError, match="tuple"):
        trained(Array())


@pytest.mark.parametrize("spread", [1e-3, 1e3])
def test_training_does_not_depend_on_the_units_of_inputs_and_target(spread: float) -> None:
    config = replace(CONFIG, data=replace(CONFIG.data, spread=spread))
    (_, metrics), (_, reference) = trained(PROBLEM, config), trained(PROBLEM)
    assert metrics["loss"] == pytest.approx(reference["loss"], rel=1e-3)
    assert metrics["r2"] == pytest.approx(reference["r2"], rel=1e-3)
    assert metrics["mae"] == pytest.approx(reference["mae"] * spread**2, rel=1e-3)


def test_scales_are_measured_on_the_training_split_and_integers_are_not_scaled() -> None:
    data = load_data(PROBLEM, CONFIG)
    model = build_model(PROBLEM, CONFIG, data.train)
    points, signs = prepare(PROBLEM, CONFIG, model, data.train).inputs
    assert points.dtype == torch.float32
    assert float(points.mean()) == pytest.approx(0, abs=1e-6)
    assert float(points.std(correction=0)) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(signs.numpy(), data.train["signs"])
    assert signs.dtype == torch.int8
    targets = prepare(PROBLEM, CONFIG, model, data.train).targets
    assert float(targets.mean()) == pytest.approx(0, abs=1e-6)
    assert float(targets.std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_scaling_can_be_switched_off() -> None:
    class Unscaled(ToyProblem):
        scale_inputs = False

        def scales_target(self, config: ToyConfig) -> bool:
            return False

    data = load_data(Unscaled(), CONFIG)
    model = build_model(Unscaled(), CONFIG, data.train)
    examples = prepare(Unscaled(), CONFIG, model, data.train)
    np.testing.assert_array_equal(examples.inputs[0].numpy(), data.train["points"])
    np.testing.assert_array_equal(examples.targets.numpy(), data.train["values"].astype(np.float32))
    assert not any(name.startswith("input_") for name in model.state_dict())


def test_predictions_are_in_physical_units_and_the_scales_are_saved() -> None:
    data = load_data(PROBLEM, CONFIG)
    model = build_model(PROBLEM, CONFIG, data.train)
    model.eval()
    with torch.inference_mode():
        by_module = model(torch.tensor(data.test["points"]), torch.tensor(data.test["signs"]))
    np.testing.assert_allclose(predict(PROBLEM, CONFIG, model, data.test), by_module.numpy(), rtol=1e-5, atol=1e-6)
    other = build_model(PROBLEM, replace(CONFIG, seed=1), load_data(PROBLEM, replace(CONFIG, seed=1)).train)
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(
        predict(PROBLEM, CONFIG, other, data.test), predict(PROBLEM, CONFIG, model, data.test)
    )


class TwoTargets(ToyProblem):
    """It predicts the value, and the value times a million: (N, 2)."""

    def target(self, config: ToyConfig, columns: Columns) -> NDArray[Any]:
        return np.stack([columns["values"], 1e6 * columns["values"]], axis=1)

    def network(self, config: ToyConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
        assert target_shape == (2,)
        network = super().network(config, input_shapes, target_shape)
        network.last = nn.Linear(config.model.hidden, 2)
        return Unsummed(network)


class Unsummed(nn.Module):
    """The toy network without its last mean."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, points: Tensor, signs: Tensor) -> Tensor:
        x = torch.cat([points, signs.float()[:, None]], dim=1)
        network = cast(Any, self.network)
        outputs: Tensor = network.last(nn.functional.gelu(network.hidden(x)))
        return outputs


def test_each_of_several_targets_has_its_own_scale() -> None:
    data = load_data(TwoTargets(), CONFIG)
    model = build_model(TwoTargets(), CONFIG, data.train)
    assert float(model.std[1] / model.std[0]) == pytest.approx(1e6, rel=1e-5)
    Trainer(TwoTargets(), CONFIG, model, data.train, data.val).fit()
    errors = predict(TwoTargets(), CONFIG, model, data.test) - TwoTargets().target(CONFIG, data.test)
    first, second = np.abs(errors).mean(axis=0)
    assert second / first == pytest.approx(1e6, rel=0.3)  # both are learned equally well


# --------------------------------------------------------------------------------------------- loss, metrics, checks


def test_training_and_validation_have_the_same_loss() -> None:
    class Penalized(ToyProblem):
        def loss(self, config: ToyConfig, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().loss(config, outputs, targets) + 100.0

    config = replace(CONFIG, train=replace(CONFIG.train, epochs=2))
    (rows, metrics), (reference, _) = trained(Penalized(), config), trained(PROBLEM, config)
    for row, plain in zip(rows, reference, strict=True):
        assert row["train_loss"] == pytest.approx(plain["train_loss"] + 100, rel=1e-5)
        assert row["val_loss"] == pytest.approx(plain["val_loss"] + 100, rel=1e-5)
        assert row["val_mae"] == pytest.approx(plain["val_mae"], rel=1e-4)
    assert metrics["loss"] > 100


def test_the_loss_of_the_problem_selects_the_best_epoch() -> None:
    class Backwards(ToyProblem):
        """The loss grows with training: -(a - t)^2 is lowest where the error is largest."""

        def loss(self, config: ToyConfig, outputs: Tensor, targets: Tensor) -> Tensor:
            squared = super().loss(config, outputs, targets)
            return squared if torch.is_grad_enabled() and outputs.requires_grad else -squared

    data = load_data(Backwards(), CONFIG)
    model = build_model(Backwards(), CONFIG, data.train)
    trainer = Trainer(Backwards(), CONFIG, model, data.train, data.val)
    trainer.fit()
    assert trainer.best_epoch == 1


def test_the_metric_that_is_shown_is_the_one_that_the_problem_names(capsys: pytest.CaptureFixture[str]) -> None:
    class Named(ToyProblem):
        def metrics(self, config: ToyConfig, columns: Columns, predictions: Any, targets: Any) -> dict[str, float]:
            return {"first": -1.0, "largest": float(np.abs(predictions - targets).max())}

        def main_metric(self, config: ToyConfig) -> Any:
            return "largest", "min"

        def figures(self, config: ToyConfig, arrays: Columns) -> Any:
            return {}

    main.run(Named(), CONFIG, Path("checkpoints/r"))
    shown = capsys.readouterr().out
    assert "val largest" in shown
    assert "val first" not in shown


def test_metrics_of_regression() -> None:
    columns: Columns = {"x": np.zeros(4)}
    targets = np.array([1.0, 2.0, 3.0, 4.0])
    metrics = PROBLEM.metrics(CONFIG, columns, targets + np.array([0.5, -0.5, 0.5, -0.5]), targets)
    assert metrics == {"mae": 0.5, "rmse": 0.5, "r2": pytest.approx(1 - 1 / 5)}
    constant = np.full(3, 0.1)
    assert PROBLEM.metrics(CONFIG, columns, constant, constant)["r2"] == 1
    assert PROBLEM.metrics(CONFIG, columns, constant + 1, constant)["r2"] == 0


def test_the_mean_is_a_baseline_for_one_and_for_several_targets() -> None:
    data = load_data(PROBLEM, CONFIG)
    for problem in (PROBLEM, TwoTargets()):
        target = problem.target(CONFIG, data.train)
        mean = problem.baselines(CONFIG, data.train, data.test)["mean"]
        assert mean.shape == problem.target(CONFIG, data.test).shape
        np.testing.assert_allclose(mean[0], target.mean(axis=0))


def test_a_fault_stops_a_run_before_anything_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, data=replace(CONFIG.data, corrupt=True))
    with pytest.raises(BadRequestError, match="the train split: the values are not those of the points"):
        main.run(PROBLEM, config, Path("checkpoints/r"))
    assert list(Path("checkpoints").iterdir()) == []


class Answering(ToyProblem):
    """One of its methods returns what a test sets: a value, or a function of the number of examples."""

    def __init__(self, method: str, answer: Any) -> None:
        def respond(*arguments: Any) -> Any:
            n = next((len(each["values"]) for each in reversed(arguments) if isinstance(each, dict)), 0)
            return answer(n) if callable(answer) and not isinstance(answer, type) else answer

        setattr(self, method, respond)


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("metrics", {"mae": 1.0, "loss": 3.0}, "metrics returned a metric named `loss`"),
        ("metrics", {"share": float("nan")}, "metrics of the network: share is nan: return a finite number"),
        ("metrics", {"mae": "good"}, "metrics of the network: mae is str: return a number"),
        (
            "metrics",
            lambda n: {"mae": np.zeros(n)},
            r"network: mae is an array float64 \(50,\): return a",
        ),
        ("metrics", np.zeros, r"metrics of the network returned an array float64 \(50,\): return a dict"),
        ("metrics", 0.5, "metrics of the network returned float: return a dictionary of numbers"),
        ("metrics", {"error": 0.5}, r"metrics returns error: define main_metric, such as `return 'error', \"min\"`"),
        ("main_metric", ("accuracy", "max"), "main_metric is 'accuracy', which is not one of the metrics: mae, rmse"),
        ("main_metric", ("mae", "lowest"), r"main_metric returned \('mae', 'lowest'\): return the name of a metric"),
        ("main_metric", "mae", 'main_metric returned \'mae\': return the name of a metric, and "min" or "max"'),
        ("target", (np.zeros(3),), "target is tuple: return a NumPy array"),
        ("target", lambda n: np.zeros(3), r"target is float64 \(3,\): return a NumPy array of numbers with one entry"),
        ("target", np.arange, "target returns int64, so that it is not clear .*: define scales_target"),
        ("target", lambda n: np.arange(n) % 2 == 0, "target returns bool, so that it is not clear"),
        ("target", lambda n: np.arange(n) % 2.0, "target returns only zeros and ones, so that it is not clear"),
        ("scales_target", "std", "scales_target returned 'std': use True, \"array\" or False"),
        ("inputs", lambda n: (np.zeros(n), [1, 2]), "array 1 of inputs is list"),
        ("inputs", lambda n: (np.zeros(n), np.zeros(n + 1)), r"array 1 of inputs is float64 \(2,\)"),
        ("predictions", lambda n: {"std": 1}, 'predictions returned a dictionary without the key "predictions"'),
        ("predictions", 3.0, "predictions returned float for 'predictions': return a tensor with"),
        ("baselines", np.zeros, r"baselines returned an array float64 \(50,\): return a dictionary"),
        ("baselines", {"best": 0.5}, "predictions of the baseline best is float: return a NumPy array"),
        (
            "baselines",
            lambda n: {"best": np.full(n, np.inf)},
            "of the baseline best is infinite, or not a number",
        ),
        ("baselines", {"best": np.zeros((50, 1))}, r"predictions of the baseline best has the shape \(50, 1\)"),
        ("check", Check({"worst": np.float64("inf")}), "check: worst is inf"),
        ("check", True, r"check returned bool: return Check\({name: number}, fault\)"),
        ("report", [1], "report returned list: return a dictionary"),
        ("examples", np.array([0.5]), r"examples returned float64 \(1,\): return indices below 50"),
        ("examples", np.array([50]), r"examples returned int64 \(1,\): return indices below 50"),
        ("trainer", dict, "trainer returned <class 'dict'>: return a subclass of Trainer"),
        ("network", None, "network returned NoneType: return a torch.nn.Module"),
        ("label", None, "label returned NoneType: return a text"),
    ],
)
def test_an_invalid_result_is_found_before_training(
    method: str, answer: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ProblemError, match=message):
        main.run(Answering(method, answer), CONFIG, Path("checkpoints/r"))
    assert "epoch 1" not in capsys.readouterr().out


def test_numpy_scalars_are_accepted_as_numbers() -> None:
    metrics = {"mae": np.float32(0.5), "n": np.array(3), "is_good": np.True_}
    main.run(Answering("metrics", metrics), CONFIG, Path("checkpoints/r"))
    test = json.loads(Path("checkpoints/r/results.json").read_text(encoding="utf-8"))["test"]
    assert {name: test[name] for name in metrics} == {"mae": 0.5, "n": 3, "is_good": True}


def test_a_generator_that_ignores_its_seed_is_refused() -> None:
    class Fixed(ToyProblem):
        def generate(self, config: ToyConfig, n: int, seed: SeedSequence) -> Columns:
            return super().generate(config, n, SeedSequence(3))

    with pytest.raises(ProblemError, match="the same examples for two seeds"):
        load_data(Fixed(), CONFIG)


def test_an_array_that_a_file_lacks_is_named() -> None:
    class Trusting(ToyProblem):
        def read(self, config: ToyConfig, columns: Columns) -> Columns:
            return dict(columns)

        def check(self, config: ToyConfig, columns: Columns) -> Check:
            return Check({})

    np.savez("d.npz", point=np.zeros((100, 3)), values=np.arange(100.0))
    config = replace(CONFIG, data=ToyDataConfig(file="d.npz", num_train=80, num_val=10, num_test=10))
    with pytest.raises(
        UnusableFileError, match=r"d\.npz: no array 'points', which inputs needs; there are point, values"
    ):
        main.run(Trusting(), config, Path("checkpoints/r"))


def test_code_that_has_changed_since_a_run_causes_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    main.run(PROBLEM, CONFIG, Path("checkpoints/r"))
    longer = replace(CONFIG, train=replace(CONFIG.train, epochs=6))
    main.run(PROBLEM, longer, Path("checkpoints/r"), resume=True)
    assert capsys.readouterr().err == ""
    path = Path("checkpoints/r/run_info.json")
    info = json.loads(path.read_text(encoding="utf-8"))
    for n_epochs, key, name in (
        (7, "problem_sha256", "tests.toy, or of a file that it imports,"),
        (8, "trainer_sha256", "trainer.py"),
    ):
        path.write_text(json.dumps(info | {key: "0" * 64}), encoding="utf-8", newline="\n")
        longer = replace(CONFIG, train=replace(CONFIG.train, epochs=n_epochs))
        main.run(PROBLEM, longer, Path("checkpoints/r"), resume=True)
        line = f"warning: the code of {name} has changed since checkpoints/r was trained: results may differ\n"
        assert capsys.readouterr().err == line


def test_labels_that_are_all_equal_are_refused() -> None:
    class Labels(ToyProblem):
        def scales_target(self, config: ToyConfig) -> bool:
            return False

        def target(self, config: ToyConfig, columns: Columns) -> NDArray[Any]:
            return np.ones(len(columns["values"]))

    with pytest.raises(BadRequestError, match="all training targets are 1"):
        load_data(Labels(), CONFIG)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "table.npy"), OSError("no device")])
def test_an_error_of_a_file_of_the_problem_is_not_said_to_be_one_of_the_disk(error: OSError) -> None:
    exit_code = ExitCode()
    exit_code.prepare(Path("checkpoints/r"), lambda: "")
    assert not exit_code.__exit__(type(error), error, None)  # it is raised, with its traceback
    assert exit_code.code == 0


def test_a_report_cannot_replace_the_metrics_of_an_evaluation() -> None:
    class Reporting(ToyProblem):
        def report(self, config: ToyConfig, columns: Columns, predictions: NDArray[Any]) -> dict[str, Any]:
            return {"metrics": 1, "n": 2}

    main.run(PROBLEM, CONFIG, Path("checkpoints/r"))
    asked = parse_args(["checkpoints/r"])
    with pytest.raises(ProblemError, match="report returned metrics, n, which an evaluation has itself: rename it"):
        evaluate_run(asked._replace(problem=Reporting()))


def test_the_numbers_of_the_check_are_in_the_results() -> None:
    class Checked(ToyProblem):
        def check(self, config: ToyConfig, columns: Columns) -> Check:
            return Check({"n": len(columns["values"])})

    main.run(Checked(), CONFIG, Path("checkpoints/r"))
    results = json.loads(Path("checkpoints/r/results.json").read_text(encoding="utf-8"))
    assert results["checks"] == {"train": {"n": 200}, "val": {"n": 50}, "test": {"n": 50}}


@dataclasses.dataclass
class Offset(ToyProblem):
    """The toy problem with constants in its inputs and its target."""

    of_inputs: float = 0.0
    of_target: float = 0.0

    def inputs(self, config: ToyConfig, columns: Columns) -> tuple[NDArray[Any], ...]:
        points, signs = super().inputs(config, columns)
        return points.astype(np.float64) + self.of_inputs, signs

    def target(self, config: ToyConfig, columns: Columns) -> NDArray[Any]:
        return np.asarray(self.of_target + super().target(config, columns))


def test_constants_in_inputs_and_target_do_not_change_the_errors() -> None:
    shifted, original = trained(Offset(1.7e9, -1e9))[1], trained(PROBLEM)[1]  # more than float32 can store
    for name in ("loss", "mae", "rmse", "r2"):
        assert shifted[name] == pytest.approx(original[name], rel=0.01)


def test_constant_columns_are_not_divided_by_their_rounding_errors() -> None:
    class Constant(ToyProblem):
        def inputs(self, config: ToyConfig, columns: Columns) -> tuple[NDArray[Any], ...]:
            return tuple(np.full_like(x, 0.1) for x in super().inputs(config, columns))

        def target(self, config: ToyConfig, columns: Columns) -> NDArray[Any]:
            return np.full(len(columns["values"]), 0.1)

    data = load_data(PROBLEM, CONFIG)
    model = build_model(Constant(), CONFIG, data.train)
    examples = prepare(Constant(), CONFIG, model, data.train)
    assert examples.targets.abs().max() < 1e-6
    assert max(x.abs().max() for x in examples.inputs) < 1e-6


@pytest.mark.parametrize("dtype", [">i2", ">f8", "f2", "i8", "?"])
def test_inputs_of_any_byte_order_and_precision_are_accepted(dtype: str) -> None:
    class Stored(ToyProblem):
        def inputs(self, config: ToyConfig, columns: Columns) -> tuple[NDArray[Any], ...]:
            return (np.arange(len(columns["values"])).astype(dtype),)

        def network(self, config: ToyConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
            return Sum()

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float()

    data = load_data(PROBLEM, CONFIG)
    model = build_model(Stored(), CONFIG, data.train)
    (x,) = prepare(Stored(), CONFIG, model, data.train).inputs
    if np.dtype(dtype).kind == "f":
        assert float(x.std()) == pytest.approx(1, abs=0.01)
    else:
        assert x.tolist() == np.arange(200).astype(dtype).tolist()


# ---------------------------------------------------------------------------------------------------- modules and data


def test_a_problem_without_a_generator_asks_for_a_file() -> None:
    class External(Problem[ToyConfig]):
        name = "external"
        config_type = ToyConfig
        presets = {"default": ToyConfig()}

        def inputs(self, config: ToyConfig, columns: Columns) -> tuple[NDArray[Any], ...]:
            return (columns["x"],)

        def target(self, config: ToyConfig, columns: Columns) -> NDArray[Any]:
            return columns["y"]

        def network(self, config: ToyConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
            return nn.Sequential(nn.Linear(input_shapes[0][0], 1), nn.Flatten(0))

    with pytest.raises(BadRequestError, match="--data: give a file"):
        main.run(External(), ToyConfig(device="cpu"), Path("checkpoints/r"))
    rng = np.random.default_rng(0)
    np.savez("d.npz", x=rng.normal(size=(100, 2)), y=np.arange(100.0))
    config = ToyConfig(
        train=TrainConfig(epochs=1), data=ToyDataConfig(file="d.npz", num_train=80, num_val=10, num_test=10)
    )
    main.run(External(), config, Path("checkpoints/r"))
    assert json.loads(Path("checkpoints/r/results.json").read_text(encoding="utf-8"))["test"]["mae"] > 0


def test_a_value_error_of_the_network_is_a_bad_request() -> None:
    class Picky(ToyProblem):
        def network(self, config: ToyConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
            raise ValueError(f"--hidden {config.model.hidden}: must be a multiple of {input_shapes[0][0]}")

    with pytest.raises(BadRequestError, match="--hidden 16: must be a multiple of 3"):
        trained(Picky())


def test_a_problem_can_have_a_trainer_of_its_own() -> None:
    class Counting(Trainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.n_own = 0

        def step(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
            self.n_own += 1
            return super().step(inputs, targets) * (1 + self.n_own)

        def state(self) -> dict[str, Any]:
            return super().state() | {"n_own": self.n_own}

        def restore(self, state: Mapping[str, Any]) -> None:
            super().restore(state)
            self.n_own = state["n_own"]

    class OwnProblem(ToyProblem):
        def trainer(self) -> type[Trainer]:
            return Counting

    config = replace(CONFIG, train=replace(CONFIG.train, epochs=4, scheduler="none"), log=LogConfig())
    shorter = replace(config, train=replace(config.train, epochs=2))
    main.run(OwnProblem(), config, Path("checkpoints/a"))
    main.run(OwnProblem(), shorter, Path("checkpoints/b"))
    main.run(OwnProblem(), config, Path("checkpoints/b"), resume=True)
    a, b = (read(Path("checkpoints") / name, "epoch_metrics.json") for name in "ab")
    assert a == b
    main.run(PROBLEM, config, Path("checkpoints/c"))
    c = read(Path("checkpoints/c"), "epoch_metrics.json")
    assert [row["val_loss"] for row in c] == [row["val_loss"] for row in a]
    assert all(row["train_loss"] < other["train_loss"] for row, other in zip(c, a, strict=True))


def test_the_saved_weights_are_those_that_were_tested() -> None:
    class Halving(Trainer):
        def fit(self) -> list[dict[str, float]]:
            history = super().fit()
            for parameter in self.network.parameters():
                parameter.data /= 2
            return history

    class OwnProblem(ToyProblem):
        def trainer(self) -> type[Trainer]:
            return Halving

    problem, config = OwnProblem(), replace(CONFIG, log=LogConfig())
    main.run(problem, config, Path("checkpoints/a"))
    _, model = load_run("a", problem)
    columns = load_data(problem, config).test
    tested = read(Path("checkpoints/a"), "results.json")["test"]["mae"]
    assert np.abs(predict(problem, config, model, columns) - columns["values"]).mean() == pytest.approx(tested)


def test_the_module_of_a_problem_is_found_again() -> None:
    assert module_name(PROBLEM) == "tests.toy"
    assert load_problem("tests.toy") is PROBLEM


@pytest.mark.parametrize("code", ["", "PROBLEM = 1", "import nothing_of_that_name"])
def test_a_module_without_a_problem_is_an_error_of_one_line(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_problem.py").write_text(code, encoding="utf-8", newline="\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "no_problem", raising=False)
    with pytest.raises(ProblemError, match="no_problem"):
        load_problem("no_problem")


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (ToyProblem, "PROBLEM is the class ToyProblem: make it an instance, PROBLEM = ToyProblem()"),
        (3, "PROBLEM is int: make it an instance of a subclass of Problem"),
        (
            type("P", (ToyProblem,), {"metric": print})(),
            "P has metric, which is ignored: did you mean metrics?",
        ),
        (
            type("P", (ToyProblem,), {"checks": print})(),
            "P has checks, which is ignored: did you mean check?",
        ),
        (
            type("P", (ToyProblem,), {"datalabel": print})(),
            "P has datalabel, which is ignored: did you mean data",
        ),
        (type("P", (ToyProblem,), {"scale_target": print})(), "did you mean scales_target?"),
        (type("P", (ToyProblem,), {"scales_target": "array"})(), "P.scales_target is 'array': make it a method, def"),
        (
            type("P", (ToyProblem,), {"metrics": lambda self, p, t: {}})(),
            "P.metrics is called with (config, columns,",
        ),
        (type("P", (ToyProblem,), {"name": None})(), "the name of P is None: use A-Z a-z 0-9"),
        (type("P", (ToyProblem,), {"config_type": 1})(), "config_type of P is 1: make it a subclass of Config"),
        (type("P", (ToyProblem,), {"presets": {}})(), 'presets has no key "default"'),
        (type("P", (ToyProblem,), {"presets": {"default": ToyDataConfig()}})(), "the preset default is ToyDataConfig"),
        (type("P", (ToyProblem,), {"block_size": 0})(), "block_size is 0: use a number of examples, at least 1"),
    ],
)
def test_a_problem_that_is_not_complete_or_misspelt_is_refused(problem: Any, message: str) -> None:
    with pytest.raises(ProblemError) as refused:
        require_problem(problem)
    assert message in str(refused.value)


def test_a_problem_without_a_name_is_refused() -> None:
    class Nameless(Problem[ToyConfig]):
        config_type, presets = ToyConfig, PROBLEM.presets
        inputs, target, network = ToyProblem.inputs, ToyProblem.target, ToyProblem.network

    with pytest.raises(ProblemError, match="Nameless has no name: set it in the class"):
        require_problem(Nameless())


def test_a_problem_may_have_other_methods() -> None:
    require_problem(
        type("P", (ToyProblem,), {"energies": 0, "_metric": 0, "names": ["a"], "labels": [1], "train": print})()
    )


def test_a_file_name_is_not_a_module() -> None:
    with pytest.raises(
        BadRequestError, match=r"^examples/xy\.py: not a module: write it as in an import, such as examples\.xy$"
    ):
        load_problem("examples/xy.py")


def test_a_missing_module_is_a_bad_request() -> None:
    with pytest.raises(BadRequestError, match="there is no module gone_from_here"):
        load_problem("gone_from_here")


def test_a_problem_of_another_notebook_has_to_be_defined_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "PROBLEM", PROBLEM, raising=False)  # another one, which was imported
    with pytest.raises(BadRequestError, match="was defined in a notebook: define it in this session"):
        load_problem("__main__")


def test_the_weights_are_a_function_of_the_seed() -> None:
    data = load_data(PROBLEM, CONFIG)
    torch.manual_seed(5)
    one = build_model(PROBLEM, CONFIG, data.train).state_dict()
    two = build_model(PROBLEM, CONFIG, data.train).state_dict()
    other = build_model(PROBLEM, replace(CONFIG, seed=1), data.train).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["network.hidden.weight"], other["network.hidden.weight"])


def test_generating_no_examples_gives_shapes_and_dtypes() -> None:
    columns = PROBLEM.generate(CONFIG, 0, SeedSequence(0))
    assert {name: (column.shape, column.dtype.str) for name, column in columns.items()} == {
        "points": ((0, 3), "<f4"),
        "signs": ((0,), "|i1"),
        "values": ((0,), "<f8"),
        "is_far": ((0,), "|b1"),
    }


def test_an_option_is_only_idle_for_the_networks_that_name_it() -> None:
    assert ToyModelConfig(kind="pooled").kind == "pooled"
    options = {option.flag: option for option in options_of(ToyConfig).values()}
    pooled = replace(CONFIG, model=ToyModelConfig(kind="pooled"))
    assert options["--skip"].idle(pooled) == "--kind pooled"
    assert options["--skip"].idle(CONFIG) == ""
    assert options["--hidden"].idle(pooled) == ""
