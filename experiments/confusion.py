"""Does learning by confusion find T_c, and what decides where its peak is?

python -m experiments.confusion [--quick]

Configurations have temperatures that are uniform in a range. For each trial temperature T', a classifier learns whether
T < T'. Its accuracy as a function of T' has the shape of a W, whose middle peak is taken as T_c: E. van Nieuwenburg,
Y.-H. Liu, S. Huber, Nature Phys. 13, 435 (2017). A network learns all labels at once, with one output for each T'.

The best possible classifier is Bayes' rule, which compares the energy with a threshold. Its accuracy follows from exact
theory. Configurations at T' - t and T' + t are confused if the error with which a configuration determines its own
temperature, sigma = T / sqrt(C) with the specific heat C of the whole lattice, is not smaller than t. For large
lattices, the fraction of errors is sqrt(2 / pi) sigma(T') / range. The peak is therefore at the maximum of C / T^2,
which is the Fisher information about T: J. Arnold et al., arXiv 2311.10710.

Classifiers: thresholds of the energy and of |m|, which are determined with the training configurations, and two
networks. One is convolutional with 2 x 2 kernels, the other has 100 sigmoid units that are connected to all spins.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from config import ExperimentConfig
from engine.config import TrainConfig
from engine.prediction import build_model, predict
from engine.problem import Columns
from experiments.classifiers import best_thresholds
from experiments.common import Row, Study, case_seed
from ising import exact, lattice, multispin
from ising.exact import T_CRITICAL
from ising.metropolis import equilibration_sweeps
from model import Convolution, linear
from problem import IsingProblem
from trainer import Trainer

Floats = NDArray[np.float64]

# L, the range of temperatures, and the numbers of training and test configurations. The first look covers 1 to 4. The
# others are centred on its peak, rounded to 0.1. Their half-width is about 8 sigma, as measured by the fraction of
# errors.
LOOKS = (
    (32, 1.0, 4.0, 15_360, 20_480),
    (32, 1.9, 2.7, 15_360, 40_960),
    (64, 2.1, 2.5, 15_360, 20_480),
    (128, 2.2, 2.4, 6_144, 12_288),
)
QUICK_LOOKS = ((8, 1.0, 4.0, 512, 1024), (8, 1.5, 3.5, 512, 1024), (12, 1.5, 3.3, 512, 1024), (16, 1.8, 2.9, 512, 1024))
N_LABELS = 49
STEPS = equilibration_sweeps(128, clusters=True)
TRAINING = {
    "cnn": TrainConfig(epochs=2, lr=0.1, batch_size=16),
    "sigmoid units": TrainConfig(epochs=30, lr=0.01, batch_size=128, weight_decay=0.3),
}
METHODS = ("energy", "magnetization", *TRAINING)


class Input(nn.Module):
    """Spins (B, L, L) as floats (B, 1, L, L). In training, batches are shifted and configurations flipped at random."""

    def forward(self, spins: Tensor) -> Tensor:
        spins = spins.float()[:, None]
        if self.training:
            shifts = torch.randint(spins.shape[-1], (2,)).tolist()
            spins = spins.roll(shifts, (2, 3)) * (2 * torch.randint(2, (len(spins), 1, 1, 1)) - 1)
        return spins


class Confusion(IsingProblem):
    """Predict the log-odds of T < T' for several T'."""

    def __init__(self, labels: Floats, network: str) -> None:
        self.labels, self.network_name = labels, network

    def target(self, config: ExperimentConfig, columns: Columns) -> NDArray[Any]:
        return (columns["temperatures"][:, None] < self.labels).astype(np.float64)  # (N, K)

    def network(self, config: ExperimentConfig, input_shapes: Any, target_shape: Any) -> nn.Module:
        size, n_labels = input_shapes[0][0], target_shape[0]
        if self.network_name == "cnn":
            features = [Convolution(1, 16, 2, 1.0), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            return nn.Sequential(Input(), *features, linear(16, n_labels))
        return nn.Sequential(Input(), nn.Flatten(), linear(size**2, 100), nn.Sigmoid(), linear(100, n_labels))

    def loss(self, config: ExperimentConfig, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(config, outputs, targets).mean(dim=1)


def trial_temperatures(low: float, high: float) -> Floats:
    """T', (K,)."""
    return np.linspace(low, high, N_LABELS + 2)[1:-1]


def middle(temperatures: Floats, low: float, high: float) -> NDArray[np.bool_]:
    """Which temperatures are in the middle 60 % of a range. Outside of it, the accuracy rises to 1 at both ends."""
    return np.abs(temperatures - (low + high) / 2) < 0.3 * (high - low)


def peak(accuracies: Floats, low: float, high: float) -> float:
    """The middle peak of a W: the maximum of a polynomial of degree 6, fitted to the middle of the range."""
    labels = trial_temperatures(low, high)
    chosen = middle(labels, low, high)
    curve = np.polynomial.Polynomial.fit(labels[chosen], accuracies[chosen], 6)
    x = np.linspace(labels[chosen][0], labels[chosen][-1], 2001)
    return float(x[curve(x).argmax()])


def bayes(size: int, low: float, high: float) -> Row:
    """Exact accuracies of Bayes' rule, and the temperatures of their peak, of that of the fit, and of max C / T^2."""
    edges, rows = np.linspace(low, high, N_LABELS + 2), []
    for start, end in pairwise(edges):
        t = np.linspace(start, end, 41)[1::2, None]  # 20 temperatures
        levels, p = exact.energy_histogram((start + end) / 2, size)
        p = p * np.exp(-(levels - p @ levels) * (1 / t - 2 / (start + end)))
        rows.append(p / p.sum(axis=1, keepdims=True))
    below = np.cumsum(np.concatenate(rows), axis=0)  # (T', levels): weight of each energy at T < T'
    accuracies = np.maximum(below, below[-1] - below).sum(axis=1) / len(below)
    t = np.linspace(low, high, len(below) + 1)[1:]
    information = np.where(middle(t, low, high), exact.kaufman(t, size)[1] / t**2, 0)
    return {
        "accuracies": accuracies[19:-1:20].tolist(),
        "peak": float(t[np.where(middle(t, low, high), accuracies, 0).argmax()]),
        "fitted": peak(accuracies[19:-1:20], low, high),
        "information": float(t[information.argmax()]),
    }


def sample(size: int, low: float, high: float, n: int, seed: int) -> Columns:
    """Configurations at n evenly spaced temperatures. With random ones, the noise of their density would dominate."""
    t = low + (high - low) * (np.arange(n) + 0.5) / n
    return {"spins": multispin.sample(size, t, STEPS, seed, 1, clusters=True), "temperatures": t}


def confuse(size: int, low: float, high: float, seed: int, n: int, n_test: int) -> Row:  # noqa: PLR0917
    """Accuracies of all classifiers on test configurations, and their peaks with errors from 100 bootstrap samples.

    The bootstrap exchanges configurations only within groups of eight neighbouring temperatures.
    """
    case, labels = case_seed(size, low, high, seed), trial_temperatures(low, high)
    train, val, test = (sample(size, low, high, number, case + k) for k, number in enumerate((n, 1024, n_test)))
    is_below = test["temperatures"][:, None] < labels
    answers = {}
    for name, value in (("energy", lattice.energy), ("magnetization", lambda s: -np.abs(lattice.magnetization(s)))):
        thresholds, _ = best_thresholds(value(train["spins"]), train["temperatures"][:, None] >= labels)
        answers[name] = value(test["spins"])[:, None] <= thresholds
    for name, training in TRAINING.items():
        config = ExperimentConfig(task="phase", seed=case, train=training)
        problem = Confusion(labels, name)
        network = build_model(problem, config, train)
        Trainer(problem, config, network, train, val).fit()
        answers[name] = predict(problem, config, network, test) > 0
    rng, row = np.random.default_rng(case), {}
    weights = rng.multinomial(8, np.full(8, 1 / 8), size=(100, n_test // 8)).reshape(100, n_test) / n_test
    for name, answer in answers.items():
        correct = (answer == is_below).astype(np.float64)
        accuracies = correct.mean(axis=0)
        error = np.std([peak(each, low, high) for each in weights @ correct])
        row[name] = {"accuracies": accuracies.tolist(), "peak": peak(accuracies, low, high), "error": float(error)}
    return row


def extrapolate(sizes: Floats, peaks: Floats, errors: Floats, power: float = 1.0) -> tuple[float, float]:
    """T_c with its error from a straight line through the peaks as a function of L^-power."""
    (_, t_c), covariance = np.polyfit(sizes**-power, peaks, 1, w=1 / errors, cov="unscaled")
    return float(t_c), float(covariance[1, 1] ** 0.5)


def combined(rows: list[Row]) -> tuple[float, float]:
    """The mean peak of some seeds. Its error is the larger one of that from the bootstrap and that from the scatter."""
    peaks, errors = (np.array([row[key] for row in rows]) for key in ("peak", "error"))
    scatter = peaks.std(ddof=1) if len(rows) > 1 else 0.0
    return float(peaks.mean()), float(max(np.sqrt((errors**2).mean()), scatter) / np.sqrt(len(rows)))


def plot(ideal: list[Row], rows: list[Row], results: dict[str, list[tuple[float, float]]]) -> Figure:
    """Accuracies against T', for all temperatures and near the peak, and the peaks against 1 / L."""
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    left, right, last = figure.subplots(1, 3)
    for k, exact_row in enumerate(ideal):
        size, low, high = exact_row["case"][1:]
        labels, axes = trial_temperatures(low, high), left if k == 0 else right
        axes.plot(labels, exact_row["accuracies"], "k-", linewidth=0.8, label=None if k > 1 else "Bayes' rule, exact")
        axes.annotate(f"L = {size}", (labels[-1], exact_row["accuracies"][-1]), fontsize="small")
        mine = [row for row in rows if row["case"][1:4] == [size, low, high]]
        for m, name in enumerate(METHODS[1:]):
            mean = np.mean([row[name]["accuracies"] for row in mine], axis=0)
            axes.plot(labels, mean, "os^"[m], color=f"C{m}", markersize=3, label=None if k > 1 else name)
    for axes in (left, right):
        axes.axvline(T_CRITICAL, color="0.5", linestyle=":")
        axes.set(xlabel="trial temperature $T'$ [J / $k_B$]", ylabel="accuracy")
    left.legend(fontsize="small")
    inverse = np.array([1 / row["case"][1] for row in ideal[1:]])
    last.plot(inverse, [row["peak"] for row in ideal[1:]], "k-", linewidth=0.8, label="Bayes' rule, exact")
    last.plot(inverse, [row["fitted"] for row in ideal[1:]], "k--", linewidth=0.8, label="the same, from the fit")
    for m, name in enumerate(METHODS):
        peaks, errors = np.array(results[name][1:]).T
        style = {"color": "black"} if m == 0 else {"color": f"C{m - 1}"}
        last.errorbar(inverse * (1 + 0.02 * (m - 1.5)), peaks, errors, fmt="Dos^"[m], capsize=3, label=name, **style)
    last.axhline(T_CRITICAL, color="0.5", linestyle=":", label="exact $T_c$")
    last.set(xlabel="1 / L", ylabel="peak [J / $k_B$]", xlim=(0, None))
    last.legend(fontsize="small")
    return figure


def main() -> None:
    study = Study(__file__, __doc__)
    looks, seeds = (QUICK_LOOKS, (1,)) if study.quick else (LOOKS, (1, 2, 3))
    ideal = study.measure(bayes, [look[:3] for look in looks])
    cases = [(*look[:3], seed, *look[3:]) for look in reversed(looks) for seed in seeds]
    rows = study.measure(confuse, cases)
    by_look = [[row for row in rows if row["case"][1:4] == list(look[:3])] for look in looks]
    sizes = np.array([size for size, *_ in looks[1:]], float)
    lines = [f"| peak | {' | '.join(f'L = {size}, {low:g} to {high:g}' for size, low, high, *_ in looks)} | T_c |"]
    lines.append("|---|" + "---:|" * (len(looks) + 1))
    for key, label in {
        "information": "maximum of C / T²",
        "peak": "Bayes' rule, exact",
        "fitted": "the same, from the fit",
    }.items():
        peaks = np.array([row[key] for row in ideal])
        t_c, _ = extrapolate(sizes, peaks[1:], np.ones(len(sizes)))
        lines.append(f"| {label} | {' | '.join(f'{each:.4f}' for each in peaks)} | {t_c:.4f} |")
    results, summary = {}, {}
    for name in METHODS:
        results[name] = [combined([row[name] for row in each]) for each in by_look]
        peaks, errors = np.array(results[name][1:]).T
        t_c, error = extrapolate(sizes, peaks, errors)
        others = [extrapolate(sizes, peaks, errors, power)[0] for power in (0.5, 2.0)]
        summary[name] = {"peaks": results[name], "t_c": t_c, "error": error, "other_powers": others}
        cells = " | ".join(f"{value:.4f} ± {error:.4f}" for value, error in results[name])
        lines.append(f"| {name} | {cells} | {t_c:.4f} ± {error:.4f} ({others[0]:.4f} to {others[1]:.4f}) |")
    study.finish(summary, plot(ideal, rows, results), *lines)


if __name__ == "__main__":
    main()
