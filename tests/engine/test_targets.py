"""What people predict: classes, fields, distributions; and how inputs and targets are scaled."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.random import SeedSequence, default_rng
from numpy.typing import NDArray
from torch import Tensor, nn

import main
from engine.datasets.splits import get_splits, load_data
from engine.evaluation.ensembles import mean_of
from engine.interface.base_config import LogConfig
from engine.interface.base_problem import Columns, Scale, Shape, regression_metrics
from engine.learning.predicted import predicted_from
from engine.learning.prediction import build_model, evaluate, predict, predict_all, prepare
from engine.learning.standardized import Standardized
from engine.learning.trial import best_constant, try_problem
from engine.machine.errors import BadRequestError, ProblemError
from evaluate import load_run
from tests.conftest import read
from tests.toy import PROBLEM, ToyConfig, ToyProblem
from trainer import Trainer

CONFIG = replace(PROBLEM.presets["debug"], device="cpu", threads=1)
CONFIG = replace(CONFIG, data=replace(CONFIG.data, cache=False), train=replace(CONFIG.train, epochs=3))

Array = NDArray[Any]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Linear(ToyProblem):
    """A linear network with outputs of the shape `outputs`, for a target that subclasses define."""

    outputs: Shape

    def inputs(self, config: ToyConfig, columns: Columns) -> tuple[Array, ...]:
        return (columns["points"],)

    def network(self, config: ToyConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
        return nn.Sequential(nn.Linear(3, int(np.prod(self.outputs))), nn.Unflatten(1, self.outputs))


class Classes(Linear):
    """Which coordinate is the largest?"""

    outputs = (3,)

    def target(self, config: ToyConfig, columns: Columns) -> Array:
        return np.asarray(columns["points"].argmax(axis=1), np.int16)

    def scales_target(self, config: ToyConfig) -> Scale:
        return False

    def loss(self, config: ToyConfig, outputs: Tensor, targets: Tensor) -> Tensor:
        assert targets.dtype == torch.int64
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def predictions(self, config: ToyConfig, outputs: Tensor) -> Tensor | Mapping[str, Tensor]:
        return {"predictions": outputs.argmax(dim=1), "probabilities": outputs.softmax(dim=1)}


def run(problem: ToyProblem, config: ToyConfig = CONFIG, name: str = "r") -> tuple[dict[str, Any], dict[str, Array]]:
    """The results and the arrays of a run."""
    main.run(problem, config, Path("checkpoints") / name)
    with np.load(Path("checkpoints") / name / "predictions.npz") as arrays:
        return read(Path("checkpoints") / name, "results.json"), dict(arrays)


# ------------------------------------------------------------------------------------------------------------ classes


@pytest.mark.figures
def test_classes_are_predicted_from_logits() -> None:
    results, arrays = run(Classes(), replace(CONFIG, train=replace(CONFIG.train, epochs=20, lr=0.1)))
    assert results["test"]["accuracy"] > 0.9
    assert arrays["targets"].dtype == arrays["predictions"].dtype == np.int64
    np.testing.assert_allclose(arrays["predicted_probabilities"].sum(axis=1), 1)
    assert (arrays["predicted_probabilities"].argmax(axis=1) == arrays["predictions"]).all()
    assert (arrays["predictions"] == arrays["targets"]).mean() == results["test"]["accuracy"]
    constant = results["baselines"]["constant"]  # the most frequent class of the training split
    train = load_data(Classes(), CONFIG).train["points"].argmax(axis=1)
    shares = np.bincount(train) / len(train)
    assert constant["accuracy"] == (arrays["targets"] == shares.argmax()).mean()
    assert constant["loss"] == pytest.approx(-np.log(shares[arrays["targets"]]).mean(), rel=1e-4)
    assert read(Path("checkpoints/r"), "run_info.json")["main_metric"] == ["accuracy", "max"]
    assert [path.name for path in sorted(Path("checkpoints/r/figures").iterdir())] == [
        "confusion.png",
        "training_curves.png",
    ]


def test_a_saved_classifier_predicts_the_same_classes_without_targets() -> None:
    _, arrays = run(Classes(), replace(CONFIG, log=LogConfig()))
    config, model = load_run("r", Classes())
    points = {"points": load_data(Classes(), CONFIG).test["points"]}
    np.testing.assert_array_equal(predict(Classes(), config, model, points), arrays["predictions"])
    found = predict_all(Classes(), config, model, points)
    np.testing.assert_allclose(found["predicted_probabilities"], arrays["predicted_probabilities"], rtol=1e-6)


def test_integers_without_predictions_need_metrics() -> None:
    class Counts(Linear):
        outputs = ()

        def target(self, config: ToyConfig, columns: Columns) -> Array:
            return columns["signs"]

        def scales_target(self, config: ToyConfig) -> Scale:
            return False

        def network(self, config: ToyConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
            return nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))

    with pytest.raises(ProblemError, match="target returns integers, which outputs are not: define `predictions`"):
        run(Counts())


class Binary(ToyProblem):
    """Is a point far from the origin? Predictions are log-odds."""

    dtype: ClassVar[Any] = bool

    def target(self, config: ToyConfig, columns: Columns) -> Array:
        return columns["is_far"].astype(self.dtype)

    def scales_target(self, config: ToyConfig) -> Scale:
        return False

    def loss(self, config: ToyConfig, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")


@pytest.mark.parametrize("dtype", [bool, np.int8])
def test_labels_of_two_classes_reach_a_binary_cross_entropy_as_floats(dtype: Any) -> None:
    class Labels(Binary):
        def metrics(self, config: ToyConfig, columns: Columns, predictions: Array, targets: Array) -> dict[str, float]:
            return {"accuracy": ((predictions > 0) == (targets > 0)).mean()}

    Labels.dtype = dtype
    results, arrays = run(Labels())
    assert arrays["targets"].dtype == (bool if dtype is bool else np.int64)
    share = load_data(PROBLEM, CONFIG).train["is_far"].mean()
    log_odds = np.log(share / (1 - share))  # the best constant
    np.testing.assert_allclose(arrays["baseline_constant"], log_odds, rtol=1e-4)
    expected = np.logaddexp(0, log_odds) - log_odds * (arrays["targets"] > 0).mean()
    assert results["baselines"]["constant"]["loss"] == pytest.approx(expected, rel=1e-6)


def test_booleans_have_an_accuracy_by_default() -> None:
    results, arrays = run(Binary())
    assert results["test"]["accuracy"] == ((arrays["predictions"] > 0) == arrays["targets"]).mean()


def test_the_default_baseline_of_classes_is_the_most_frequent_one() -> None:
    class Plain(Classes):
        def predictions(self, config: ToyConfig, outputs: Tensor) -> Tensor:
            return outputs.argmax(dim=1)

        def loss(self, config: ToyConfig, outputs: Tensor, targets: Tensor) -> Tensor:
            weights = outputs.new_tensor([1.0, 1.0, 1.5])  # with which constant outputs predict another class
            return nn.functional.cross_entropy(outputs, targets, weights, reduction="none")

    results, arrays = run(Plain())
    train = Plain().target(CONFIG, load_data(Plain(), CONFIG).train)
    assert set(arrays["baseline_majority"]) == {np.bincount(train).argmax()}
    assert list(results["baselines"]) == ["majority"]
    assert "loss" not in results["baselines"]["majority"]


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        (1, "loss: Target 3 is out of bounds. Return numbers of classes from 0"),
        (-4, "loss: Target -4 is out of bounds"),
    ],
)
def test_numbers_that_are_no_classes_are_explained(shift: int, message: str) -> None:
    class Shifted(Classes):
        def target(self, config: ToyConfig, columns: Columns) -> Array:
            return super().target(config, columns) + shift

    with pytest.raises(ProblemError, match=message):
        run(Shifted())


def test_an_error_of_the_loss_is_not_hidden_by_that_with_other_targets() -> None:
    class Weighted(Classes):
        def loss(self, config: ToyConfig, outputs: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.cross_entropy(outputs, targets, outputs.new_ones(4), reduction="none")

    with pytest.raises(RuntimeError, match="weight tensor should be defined either for all"):
        run(Weighted())


@pytest.mark.parametrize("names", [None, ["a", "b", "c"]])
def test_classes_that_are_not_in_all_splits_are_named(
    names: list[str] | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Classes, "class_names", lambda self, config: names)
    data = load_data(Classes(), CONFIG)
    train, test = (
        {name: column[split["points"].argmax(axis=1) != missing] for name, column in split.items()}
        for split, missing in ((data.train, 2), (data.test, 0))
    )
    model = build_model(Classes(), CONFIG, train)
    try_problem(Classes(), CONFIG, model, data._replace(train=train, test=test))
    shown = capsys.readouterr()
    assert f"the test split has classes that do not occur in training: {(names or '012')[2]}\n" in shown.err
    assert f"1 of 2 classes are not in the test split: {(names or '012')[0]}\n" in shown.out
    assert "not in the validation split" not in shown.out


@pytest.mark.parametrize("wrong", ["keepdim", "values"])
def test_predictions_that_are_no_classes_are_refused(wrong: str) -> None:
    class Wrong(Classes):
        def predictions(self, config: ToyConfig, outputs: Tensor) -> Tensor:
            return outputs.argmax(dim=1, keepdim=True) if wrong == "keepdim" else outputs.max(dim=1).values

        def report(self, config: ToyConfig, columns: Columns, predictions: Array) -> dict[str, Any]:
            return {}

    class WithMetrics(Wrong):
        def metrics(self, config: ToyConfig, columns: Columns, predictions: Array, targets: Array) -> dict[str, float]:
            return {"accuracy": (predictions == targets).mean()}

    problem = WithMetrics() if wrong == "keepdim" else Wrong()
    message = r"have the shape \(50, 1\)" if wrong == "keepdim" else "predictions are not numbers of classes"
    with pytest.raises(ProblemError, match=message):
        run(problem)


def test_probabilities_can_be_predictions_if_the_metrics_know_it() -> None:
    class Probabilities(Classes):
        def predictions(self, config: ToyConfig, outputs: Tensor) -> Tensor:
            return outputs.softmax(dim=1)

        def report(self, config: ToyConfig, columns: Columns, predictions: Array) -> dict[str, Any]:
            return {}

    with pytest.raises(ProblemError, match=r"have the shape \(50, 3\): return predictions of the shape \(50,\)"):
        run(Probabilities())

    class WithMetrics(Probabilities):
        def metrics(self, config: ToyConfig, columns: Columns, predictions: Array, targets: Array) -> dict[str, float]:
            return {"accuracy": (predictions.argmax(axis=1) == targets).mean()}

    assert run(WithMetrics())[1]["predictions"].shape == (50, 3)


def test_outputs_of_another_shape_without_predictions_are_refused_with_both_ways_out() -> None:
    class Forgotten(Classes):
        predictions = ToyProblem.predictions

    with pytest.raises(ProblemError, match=r"\(2, 3\) for targets of the shape \(2,\).*squeeze.*define `predictions`"):
        run(Forgotten())


def test_the_ensemble_of_classifiers_averages_their_logits() -> None:
    config, problem = CONFIG, Classes()
    data = load_data(problem, config)
    model = build_model(problem, config, data.train)
    logits = default_rng(0).normal(size=(2, 50, 3))
    networks = [predicted_from(problem, config, model, torch.from_numpy(each)) for each in logits]
    mean = mean_of(problem, config, model, networks)
    assert mean.values.tolist() == logits.mean(axis=0).argmax(axis=1).tolist()


def test_the_ensemble_of_regressors_averages_predictions_in_physical_units() -> None:
    problem = Field()
    model = build_model(problem, CONFIG, load_data(problem, CONFIG).train)
    outputs = torch.from_numpy(default_rng(0).normal(size=(2, 50, 2, 2, 4)))
    networks = [predicted_from(problem, CONFIG, model, each) for each in outputs]
    mean = mean_of(problem, CONFIG, model, networks)
    np.testing.assert_allclose(mean.values, np.mean([each.values for each in networks], axis=0))
    variance = np.mean([each.others["predicted_std"] ** 2 for each in networks], axis=0)
    variance += np.var([each.values for each in networks], axis=0)
    np.testing.assert_allclose(mean.others["predicted_std"], np.sqrt(variance))


# ------------------------------------------------------------------------------------------------ fields, uncertainties


class Field(Linear):
    """A field (2, 4), whose mean is 100 and whose deviation is 10 in physical units, and its standard deviation."""

    outputs = (2, 2, 4)

    def target(self, config: ToyConfig, columns: Columns) -> Array:
        return np.asarray(100 + 10 * np.sqrt(3) * np.repeat(columns["points"][:, :2, None], 4, axis=2).astype(float))

    def loss(self, config: ToyConfig, outputs: Tensor, targets: Tensor) -> Tensor:
        mean, log_std = outputs.unbind(dim=1)
        return (log_std + ((targets - mean) / log_std.exp()) ** 2 / 2).flatten(1).mean(dim=1)

    def predictions(self, config: ToyConfig, outputs: Tensor) -> Mapping[str, Tensor]:
        return {"predictions": outputs[:, 0], "std": outputs[:, 1].exp(), "quantile_16": outputs[:, 0] - 1}

    def metrics(self, config: ToyConfig, columns: Columns, predictions: Array, targets: Array) -> dict[str, float]:
        return regression_metrics(predictions, targets) | {"std": columns["predicted_std"].mean()}

    def examples(self, config: ToyConfig, test: Columns) -> NDArray[np.integer]:
        return np.arange(3)


@pytest.mark.figures
def test_a_field_and_its_uncertainty_are_in_physical_units() -> None:
    results, arrays = run(Field())
    assert arrays["predictions"].shape == arrays["predicted_std"].shape == arrays["targets"].shape == (50, 2, 4)
    assert results["test"]["std"] == pytest.approx(arrays["predicted_std"].mean())
    assert arrays["example_predicted_std"].shape == (3, 2, 4)
    model = build_model(Field(), CONFIG, load_data(Field(), CONFIG).train)
    assert model.mean.shape == ()
    assert float(model.mean) == pytest.approx(100, abs=1)
    assert float(model.std) == pytest.approx(10, rel=0.05)
    np.testing.assert_allclose(arrays["predictions"] - arrays["predicted_quantile_16"], float(model.std), rtol=1e-6)
    # The best constant predicts the mean and the deviation of each component.
    constant = results["baselines"]["constant"]
    assert constant["std"] == pytest.approx(10, rel=0.05)
    assert constant["r2"] == pytest.approx(0, abs=0.05)
    assert Path("checkpoints/r/figures/parity.png").exists()


def test_a_baseline_without_what_metrics_need_is_refused_and_one_with_it_is_accepted() -> None:
    class Simple(Field):
        def baselines(self, config: ToyConfig, train: Columns, test: Columns) -> dict[str, Any]:
            return {"hundred": np.full((len(test["points"]), 2, 4), 100.0)}

    with pytest.raises(ProblemError, match="metrics needs predicted_std, which the baseline hundred does not have"):
        run(Simple())

    class Complete(Simple):
        def baselines(self, config: ToyConfig, train: Columns, test: Columns) -> dict[str, Any]:
            return {
                name: {"predictions": x, "std": x / 10} for name, x in super().baselines(config, train, test).items()
            }

    results, arrays = run(Complete())
    assert results["baselines"]["hundred"]["std"] == 10
    assert (arrays["baseline_hundred_std"] == 10).all()
    assert "loss" not in results["baselines"]["hundred"]  # it has no outputs
    assert (arrays["baseline_hundred"] == 100).all()


@pytest.mark.parametrize(
    ("quantities", "message"),
    [
        (
            lambda x: {"predictions": x, "sigma": x},
            r"sigma of the baseline hundred has the shape \(50, 2, 4\)",
        ),
        (
            lambda x: {"predictions": x, "std": x[:, :1]},
            r"std of the baseline hundred has the shape \(50, 1, 4\)",
        ),
        (lambda x: {"predictions": x, "std": -x}, "std of the baseline hundred has negative values"),
        (lambda x: {"std": x}, 'the baseline hundred has no key "predictions"'),
    ],
)
def test_other_quantities_of_a_baseline_are_refused(quantities: Any, message: str) -> None:
    class Other(Field):
        def baselines(self, config: ToyConfig, train: Columns, test: Columns) -> dict[str, Any]:
            return {"hundred": quantities(np.full((len(test["points"]), 2, 4), 100.0))}

    with pytest.raises(ProblemError, match=message):
        run(Other())


def test_a_negative_deviation_is_refused() -> None:
    class Linear(Field):
        def predictions(self, config: ToyConfig, outputs: Tensor) -> Mapping[str, Tensor]:
            return {"predictions": outputs[:, 0], "std": outputs[:, 1]}

    with pytest.raises(ProblemError, match="predictions returned negative values for 'std': use a positive function"):
        run(Linear())


def test_the_squared_error_is_not_broadcast() -> None:
    class WithoutLoss(Field):
        loss = ToyProblem.loss

    with pytest.raises(ProblemError, match=r"squared error is not defined for outputs of the shape \(2, 2, 2, 4\)"):
        run(WithoutLoss())


def test_a_quantity_whose_units_are_not_known_is_refused() -> None:
    class Variance(Field):
        def predictions(self, config: ToyConfig, outputs: Tensor) -> Mapping[str, Tensor]:
            return {"predictions": outputs[:, 0], "variance": outputs[:, 1]}

    with pytest.raises(ProblemError, match="predictions returned 'variance', whose physical units are not known"):
        run(Variance())


def test_a_constant_baseline_that_is_not_defined_is_left_out() -> None:
    class WithConstant(Field):  # the best deviation of its first component is zero
        def target(self, config: ToyConfig, columns: Columns) -> Array:
            field = super().target(config, columns)
            field[:, 0] = 100.0
            return field

    results, _ = run(WithConstant(), replace(CONFIG, train=replace(CONFIG.train, epochs=1)))
    for metrics in results["baselines"].values():
        assert np.isfinite(list(metrics.values())).all()


def test_the_best_constant_of_the_squared_error_is_the_mean() -> None:
    data = load_data(PROBLEM, CONFIG)
    model = build_model(PROBLEM, CONFIG, data.train)
    scaled = best_constant(PROBLEM, CONFIG, model, data.train)
    assert float(model.mean + model.std * scaled) == pytest.approx(data.train["values"].mean(), rel=1e-9)


# ------------------------------------------------------------------------------------------------------------- scales


class Scaled(Linear):
    """One matrix whose columns have different units, and another array of the same values."""

    outputs = (2,)
    scale_inputs: ClassVar[Scale | tuple[Scale, ...]] = True

    def inputs(self, config: ToyConfig, columns: Columns) -> tuple[Array, ...]:
        matrix = columns["points"].astype(float) * np.array([1e-6, 1, 1e6]) + np.array([0, 5, 1e9])
        return matrix, np.stack([matrix, matrix], axis=2)

    def target(self, config: ToyConfig, columns: Columns) -> Array:
        return np.asarray(columns["points"][:, :2] * np.array([1e-3, 1e3]))

    def network(self, config: ToyConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
        return First()


class First(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, matrix: Tensor, _: Tensor) -> Tensor:
        outputs: Tensor = self.linear(matrix)
        return outputs


def prepared(problem: ToyProblem) -> tuple[Standardized, tuple[Tensor, ...]]:
    train = load_data(problem, CONFIG).train
    model = build_model(problem, CONFIG, train)
    return model, prepare(problem, CONFIG, model, train).inputs


def test_columns_of_a_matrix_are_scaled_one_by_one_and_other_arrays_as_a_whole() -> None:
    model, (matrix, array) = prepared(Scaled())
    np.testing.assert_allclose(matrix.mean(dim=0), 0, atol=1e-5)
    np.testing.assert_allclose(matrix.std(dim=0, unbiased=False), 1, rtol=1e-5)
    assert float(array.mean()) == pytest.approx(0, abs=1e-5)
    assert float(array.std(unbiased=False)) == pytest.approx(1, rel=1e-5)
    assert float(array[:, 0].std()) < 1e-6
    assert model.std.shape == (2,)
    results = run(Scaled(), replace(CONFIG, train=replace(CONFIG.train, epochs=30, lr=0.1)))[0]["test"]
    assert list(results) == ["loss", "nrmse", "mae_1", "r2_1", "mae_2", "r2_2"]
    assert min(results["r2_1"], results["r2_2"]) > 0.99


def test_a_problem_may_choose_one_scale_for_a_matrix_or_none() -> None:
    class Chosen(Scaled):
        scale_inputs = ("array", False)

        def scales_target(self, config: ToyConfig) -> Scale:
            return "array"

    model, (matrix, array) = prepared(Chosen())
    assert float(matrix[:, 0].std()) < 1e-6
    assert float(matrix.std(unbiased=False)) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(array[:, 1], Chosen().inputs(CONFIG, load_data(Chosen(), CONFIG).train)[1][:, 1])
    assert model.std.shape == ()
    assert list(run(Chosen())[0]["test"]) == ["loss", "mae", "rmse", "r2"]

    class Three(Scaled):
        scale_inputs = (True, True, True)

    with pytest.raises(ProblemError, match="scale_inputs has 3 values for the 2 arrays of inputs: give one for each"):
        prepared(Three())


@pytest.mark.parametrize("factor", [1e-200, 1e-45, 1e45])
def test_values_beyond_single_precision_are_scaled(factor: float) -> None:
    class Tiny(Scaled):
        def inputs(self, config: ToyConfig, columns: Columns) -> tuple[Array, ...]:
            return tuple(factor * x for x in super().inputs(config, columns))

    np.testing.assert_allclose(prepared(Tiny())[1][0], prepared(Scaled())[1][0], rtol=1e-5, atol=1e-6)


def test_weights_of_earlier_versions_have_one_scale_for_each_array() -> None:
    class Earlier(Scaled):
        scale_inputs = "array"

    train = load_data(Scaled(), CONFIG).train
    old = build_model(Earlier(), CONFIG, train)
    weights = {
        name: value.float() if name in ("input_means", "input_stds", "mean", "std") else value
        for name, value in old.state_dict().items()
    }
    assert weights["input_means"].shape == (2,)
    model = build_model(Scaled(), CONFIG, train)
    model.load_state_dict(model.upgraded(weights))
    with torch.inference_mode():
        outputs = [
            each(*(torch.from_numpy(x) for x in Scaled().inputs(CONFIG, train))).numpy() for each in (old, model)
        ]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ metrics


def test_metrics_of_several_components_do_not_mix_units() -> None:
    targets = np.array([1.0, 2.0, 3.0, 4.0])
    two = np.stack([targets, -10 * targets], axis=1)
    found = regression_metrics(two + np.array([1.0, 0.0]), two)
    assert found == {
        "nrmse": pytest.approx(np.sqrt((4 / 5 + 0) / 2)),
        "mae_1": 1.0,
        "r2_1": pytest.approx(1 - 4 / 5),
        "mae_2": 0.0,
        "r2_2": 1.0,
    }
    same_unit = regression_metrics(two + np.array([1.0, 0.0]), two, by_component=False)
    assert same_unit == {"mae": 0.5, "rmse": pytest.approx(0.5**0.5), "r2": pytest.approx(1 - 4 / 505)}
    with_constant = regression_metrics(two * np.array([1, 0]), two * np.array([1, 0]) + np.array([0, 1]))
    assert (with_constant["nrmse"], with_constant["r2_2"]) == (0, 0)
    assert list(regression_metrics(np.zeros((4, 9)), np.eye(4, 9))) == ["nrmse"]
    assert list(regression_metrics(np.zeros((4, 2, 2)), np.ones((4, 2, 2)))) == ["mae", "rmse", "r2"]


def test_training_and_evaluation_agree_on_the_loss_of_classes() -> None:
    data = get_splits(Classes(), CONFIG)[0]
    model = build_model(Classes(), CONFIG, data.train)
    rows = Trainer(Classes(), CONFIG, model, data.train, data.val).fit()
    best = min(row["val_loss"] for row in rows)
    metrics = evaluate(Classes(), CONFIG, model, prepare(Classes(), CONFIG, model, data.val)).metrics
    assert metrics["loss"] == best


# ------------------------------------------------------------------------------------------------- losses and networks


class Bad(ToyProblem):
    """Its loss or network has a fault that a test sets."""

    kind: str

    def loss(self, config: ToyConfig, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.kind == "logarithm":
            return torch.log(-(outputs**2) - 1)
        if self.kind == "root":
            return torch.sqrt((outputs - outputs.detach()) ** 2)
        return super().loss(config, outputs, targets)

    def network(self, config: ToyConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
        network = super().network(config, input_shapes, target_shape)
        if self.kind == "weights":
            nn.init.constant_(network.last.weight, float("inf"))  # type: ignore[union-attr, arg-type]
        return network


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("logarithm", "loss is nan before training, for finite outputs"),
        ("root", "the gradient of the loss is not finite before training, although the loss is"),
        ("weights", "the untrained network returns infinite values, or not numbers"),
    ],
)
def test_a_loss_that_no_learning_rate_can_mend_is_found_before_training(kind: str, message: str) -> None:
    problem = Bad()
    problem.kind = kind
    with pytest.raises(ProblemError, match=message):
        run(problem)


def test_losses_that_mix_examples_are_refused() -> None:
    class Mixed(ToyProblem):
        def loss(self, config: ToyConfig, outputs: Tensor, targets: Tensor) -> Tensor:
            return ((outputs[:, None] - targets) ** 2).mean(dim=1)  # (B, B)

    with pytest.raises(ProblemError, match="the loss of an example differs if others are in the batch"):
        run(Mixed())


@pytest.mark.parametrize("fault", ["random", "mean"])
@pytest.mark.parametrize("method", ["inputs", "target"])
def test_inputs_and_targets_that_depend_on_other_examples_are_refused(fault: str, method: str) -> None:
    def changed(values: Array) -> Array:
        return values + (default_rng().normal(size=values.shape) if fault == "random" else values.mean())

    class Mixed(ToyProblem):
        def inputs(self, config: ToyConfig, columns: Columns) -> tuple[Array, ...]:
            points, signs = super().inputs(config, columns)
            return changed(points) if method == "inputs" else points, signs

        def target(self, config: ToyConfig, columns: Columns) -> Array:
            target = super().target(config, columns)
            return changed(target) if method == "target" else target

    train = load_data(PROBLEM, CONFIG).train
    with pytest.raises(ProblemError, match=f"{method} returns other values for two examples"):
        build_model(Mixed(), CONFIG, train)


def test_what_a_method_does_to_its_dictionary_has_no_effect_on_others() -> None:
    class Assigning(ToyProblem):
        def inputs(self, config: ToyConfig, columns: Any) -> tuple[Array, ...]:
            columns["points"] = 0 * columns["points"]
            columns.pop("values")
            return super().inputs(config, columns)

    class Plain(ToyProblem):
        def inputs(self, config: ToyConfig, columns: Columns) -> tuple[Array, ...]:
            return 0 * columns["points"], columns["signs"]

    assert run(Assigning())[0] == run(Plain(), name="p")[0]


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "array 0 of inputs is infinite, or not a number, in example 7: return finite numbers")],
)
def test_inputs_that_are_not_finite_are_refused(value: float, message: str) -> None:
    class Infinite(ToyProblem):
        def inputs(self, config: ToyConfig, columns: Columns) -> tuple[Array, ...]:
            points, signs = super().inputs(config, columns)
            return np.where(np.arange(len(points))[:, None] == 7, value, points), signs

    with pytest.raises(ProblemError, match=message):
        run(Infinite())


def test_integers_are_scaled_where_training_had_floats() -> None:
    data = load_data(PROBLEM, CONFIG)
    model = build_model(PROBLEM, CONFIG, data.train)
    whole = {"points": np.array([[1, 0, -1]]), "signs": np.array([1], np.int8)}
    as_floats = whole | {"points": whole["points"].astype(np.float32)}
    one, two = (predict(PROBLEM, CONFIG, model, columns) for columns in (whole, as_floats))
    np.testing.assert_array_equal(one, two)


def test_other_numbers_of_columns_are_refused_by_predict() -> None:
    model = build_model(Scaled(), CONFIG, load_data(Scaled(), CONFIG).train)
    with pytest.raises(ProblemError, match=r"array 0 of inputs has the shape \(4, 1\): in training, it was \(N, 3\)"):
        model.scaled_inputs((torch.zeros(4, 1), torch.zeros(4, 3, 2)))


def test_a_loss_without_parameters_is_refused() -> None:
    class Detached(ToyProblem):
        def loss(self, config: ToyConfig, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().loss(config, outputs.detach(), targets)

    with pytest.raises(ProblemError, match="the loss does not depend on parameters of the network"):
        run(Detached())


def test_a_trial_changes_neither_the_network_nor_random_numbers() -> None:
    config = replace(CONFIG, model=replace(CONFIG.model, dropout=0.5))
    data = load_data(PROBLEM, config)
    model = build_model(PROBLEM, config, data.train)
    before, state = {name: each.clone() for name, each in model.state_dict().items()}, torch.get_rng_state()
    try_problem(PROBLEM, config, model, data)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_integers_in_a_linear_layer_are_explained() -> None:
    class Integers(Linear):
        outputs = ()

        def inputs(self, config: ToyConfig, columns: Columns) -> tuple[Array, ...]:
            return (columns["signs"][:, None] * np.ones(3, np.int64),)

        def network(self, config: ToyConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
            return nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))

    with pytest.raises(ProblemError, match=r"the network fails because array 0 of inputs is int64.*x.float\(\)"):
        run(Integers())


def test_a_target_that_needs_examples_is_accepted() -> None:
    class Reshaping(ToyProblem):
        def inputs(self, config: ToyConfig, columns: Columns) -> tuple[Array, ...]:
            return columns["points"].reshape(len(columns["points"]), -1), columns["signs"]  # fails for n = 0

    results, _ = run(Reshaping())
    assert results["n_test"] == 50


def test_the_generator_is_not_called_for_a_network_that_is_refused() -> None:
    class Refused(ToyProblem):
        def generate(self, config: ToyConfig, n: int, seed: SeedSequence) -> Columns:
            assert n == 0
            return super().generate(config, n, seed)

        def network(self, config: ToyConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
            raise ValueError("--hidden 16: must be a multiple of 3")

    with pytest.raises(BadRequestError, match="--hidden 16: must be a multiple of 3"):
        run(Refused())
