# Machinery: keep, and skip at first.
"""The networks of a sweep on the same new data: estimates over the seeds, and the ensemble of each setting.

The prediction of an ensemble is the mean of those of its networks. Their standard deviation estimates its uncertainty.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.evaluation_request import Request, SweepRequest
from engine.interface.base_config import Config
from engine.interface.base_problem import Columns, Problem
from engine.interface.returned_values import PREDICTED, main_metric_of, target_scale
from engine.many_runs.comparison import (
    Estimate,
    Member,
    Table,
    as_json,
    compare_estimates,
    over_seeds,
    table_of_differences,
    to_markdown,
)

if TYPE_CHECKING:
    from engine.learning.predicted import Predicted
    from engine.learning.prediction import Examples
    from engine.learning.standardized import Standardized

Networks = Mapping[Member, "Network"]  # the networks of a setting, by seed


class NewData(NamedTuple):
    """The examples of an evaluation."""

    columns: Columns
    source: str  # where they came from, as a phrase
    sha256: str
    check: Mapping[str, float]


class Network(NamedTuple):
    """A network that was evaluated on new data."""

    request: Request
    data: NewData
    model: "Standardized"
    examples: "Examples"
    result: dict[str, Any]  # for its file
    predicted: "Predicted"
    is_unseen: NDArray[np.bool_] | None  # (N,): not in its training data; None if those are not known
    overlap: float  # of its training data with those of other networks: see Run.overlap

    def without_tensors(self, data: NewData) -> Self:
        """The same with equal data, and without the inputs and the weights, which are not needed any more."""
        from torch import nn

        self.model.cpu().network = nn.Identity()
        return self._replace(data=data, examples=self.examples._replace(inputs=(), columns=data.columns))


def unseen_by_all(networks: Iterable[Network]) -> NDArray[np.bool_] | None:
    """Whether examples do not occur in the training data of any of the networks, (N,). None if that is not known."""
    masks = [network.is_unseen for network in networks]
    known = [mask for mask in masks if mask is not None]
    return np.logical_and.reduce(known) if len(known) == len(masks) else None


def compare_networks(asked: SweepRequest, groups: Mapping[str, Networks]) -> dict[str, Any]:
    """The content of the file for a sweep: the settings, their ensembles and differences, and `table` with all of it.

    All settings with the same data use the same unseen examples, which no network of these settings was trained on.
    """
    everyone = [network for networks in groups.values() for network in networks.values()]
    unseen = {
        sha256: unseen_by_all(network for network in everyone if network.data.sha256 == sha256)
        for sha256 in {network.data.sha256 for network in everyone}
    }
    found, settings = {}, {}
    for label, networks in groups.items():
        found[label], settings[label] = _setting(networks, unseen[next(iter(networks.values())).data.sha256])
    first, metrics_of_first = everyone[0].request, everyone[0].result["metrics"]
    name, direction = main_metric_of(first.problem, first.config, [name for name in metrics_of_first if name != "loss"])
    is_compared = len(unseen) == 1 and not asked.is_search
    comparison = compare_estimates(found, (name, direction)) if is_compared else None
    metrics = _columns(found, settings, name)
    parts = [to_markdown(_table(found, settings, metrics))]
    if comparison is not None:
        parts.append(to_markdown(table_of_differences(comparison, metrics)))
    if len(unseen) > 1:
        parts.append("The settings were evaluated on different data, so there are no differences between them.")
    return {
        "sweep": asked.folder.name,
        "settings": settings,
        **(comparison.to_dict() if comparison is not None else {}),
        "table": "\n\n".join(parts),
    }


def _setting(networks: Networks, is_unseen: NDArray[np.bool_] | None) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """The estimates of a setting, and its entry in the file."""
    from engine.learning.prediction import compute_metrics, metrics_on_unseen

    request, data, model, examples = next(iter(networks.values()))[:4]
    problem, config = request.problem, request.config
    each = [network.predicted for network in networks.values()]
    mean = mean_of(problem, config, model, each)
    metrics = compute_metrics(problem, config, model, examples, mean, name="the ensemble")
    of_mean, of_each = None, None
    if is_unseen is not None:
        others = {str(seed): predicted for seed, predicted in zip(networks, each, strict=True)}
        of_mean, of_each = metrics_on_unseen(
            problem, config, model, examples, is_unseen, predicted=mean, baselines=others
        )
    found = over_seeds(
        {
            seed: network.result["metrics"] | _on_unseen(request, (of_each or {}).get(str(seed)))
            for seed, network in networks.items()
        },
        max(network.overlap for network in networks.values()),
    )
    ensemble: dict[str, Any] | None = None
    if len(each) > 1:
        # There is no single number for classes, and for components of different units.
        is_one_unit = (model.predicts_outputs or bool(model.target_scale)) and model.mean.ndim == 0
        spread, ratio = None, None
        if is_one_unit:
            spread, ratio = uncertainty([predicted.values for predicted in each], examples.physical_targets)
        ensemble = {
            "n": len(each),
            "metrics": _comparable(request, metrics) | _on_unseen(request, of_mean),
            "spread": spread,
            "spread_error_ratio": ratio if model.target_scale else None,  # predictions may be log-odds
        }
    entry = {
        "runs": {str(seed): network.request.folder.name for seed, network in networks.items()},
        "n": len(mean.values),
        "n_unseen": None if is_unseen is None else int(is_unseen.sum()),
        "metrics": as_json(found),
        "ensemble": ensemble,
        "check": data.check,
        "seed": config.seed if config.data.file is None else None,
        "data": next(iter(networks.values())).result["data"],
        "data_sha256": data.sha256,
    }
    return found, entry


def mean_of(problem: Problem[Any], config: Config, model: "Standardized", each: Sequence["Predicted"]) -> "Predicted":
    """The prediction of an ensemble: the mean of what its networks predict.

    Its variance is the mean of their variances plus the variance of their means (Lakshminarayanan et al. 2017, Advances
    in Neural Information Processing Systems 30). If the target is not scaled, the outputs of the networks have the same
    units. Then it is what their mean predicts, because predictions may be numbers of classes, which have no mean.
    """
    from engine.learning.predicted import predicted_by, predicted_from

    outputs = [predicted.outputs for predicted in each if predicted.outputs is not None]
    if not model.target_scale:
        return predicted_from(problem, config, model, sum(outputs[1:], outputs[0]) / len(outputs))
    arrays = [predicted.arrays() for predicted in each]
    mean = {name: np.mean([found[name] for found in arrays], axis=0) for name in arrays[0]}
    if (std := f"{PREDICTED}std") in mean:
        variance = np.mean([found[std] ** 2 for found in arrays], axis=0)
        mean[std] = np.sqrt(variance + np.var([found["predictions"] for found in arrays], axis=0))
    return predicted_by(model, mean)


def _comparable(request: Request, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without a loss in scaled units, because each network has its own scales."""
    is_scaled = target_scale(request.problem, request.config) is not False
    return {name: value for name, value in metrics.items() if name != "loss" or not is_scaled}


def _on_unseen(request: Request, metrics: Mapping[str, float] | None) -> dict[str, float]:
    return {f"unseen_{name}": value for name, value in _comparable(request, metrics or {}).items()}


def uncertainty(each: Sequence[NDArray[np.float64]], targets: NDArray[np.float64]) -> tuple[float, float | None]:
    """The spread of the predictions of n networks, and the ratio of this spread and the error of their mean.

    The spread is the root mean square over the examples of the standard deviation between the networks. The error is
    also a root mean square. The ratio has a factor sqrt(1 + 1 / n), with which it is 1 if the truth cannot be
    distinguished from the prediction of another network (Fortin et al. 2014, J. Hydrometeorol. 15, 1708). It is None if
    the error is 0.
    """
    spread = math.sqrt(float(np.var(each, axis=0, ddof=1).mean()))
    error = math.sqrt(float(np.mean((np.mean(each, axis=0) - targets) ** 2)))
    return spread, math.sqrt(1 + 1 / len(each)) * spread / error if error > 0 else None


def _columns(found: Mapping[str, Mapping[str, Estimate]], settings: Mapping[str, Any], main: str) -> list[str]:
    """The metrics in tables: all without the loss and, if examples occur in training, the main one without these."""
    names = dict.fromkeys([main, *(name for by_metric in found.values() for name in by_metric)])
    shown = [name for name in names if name != "loss" and not name.startswith("unseen_")]
    is_partial = any(entry["n_unseen"] not in (None, entry["n"]) for entry in settings.values())
    return [*shown, *([f"unseen_{main}"] if is_partial and f"unseen_{main}" in names else [])]


def _table(found: Mapping[str, Mapping[str, Estimate]], settings: Mapping[str, Any], metrics: list[str]) -> Table:
    """The mean of single networks and the ensemble, for each setting."""

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    rows: list[tuple[str, ...]] = []
    for label, by_metric in found.items():
        rows.append((label, *(str(by_metric[m]) if m in by_metric else "" for m in metrics), "", ""))
        if ensemble := settings[label]["ensemble"]:
            numbers = [*(ensemble["metrics"].get(m) for m in metrics), ensemble["spread"]]
            rows.append((f"{label}, ensemble", *map(shown, numbers), shown(ensemble["spread_error_ratio"])))
    return Table(("setting", *metrics, "spread", "spread/error"), rows)
