"""Step 3: a data set in three splits, metrics, and the results of simple methods.

python -m examples.tutorial.step3_baseline

It writes the data set and the predictions to the folder `tutorial`, where the next steps read them.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

L, N_SWEEPS = 8, 100
N_TRAIN, N_VAL, N_TEST = 5_000, 1_000, 1_000


def energy(spins: NDArray[Any]) -> NDArray[Any]:
    """H = -J sum over nearest neighbours of s_i s_j, in units of J: spins (..., L, L) -> (...)."""
    right, below = np.roll(spins, -1, axis=-1), np.roll(spins, -1, axis=-2)  # each bond is counted once
    return np.asarray(-(spins * (right + below)).sum(axis=(-2, -1)))


def sweep(spins: NDArray[Any], temperatures: NDArray[Any], rng: np.random.Generator) -> None:
    """One Metropolis update of every spin, as in step 2, in place: spins (N, L, L), temperatures (N,) in J / k_B."""
    rows, columns = np.indices(spins.shape[1:])
    for colour in (0, 1):
        neighbours = sum(np.roll(spins, shift, axis) for shift in (-1, 1) for axis in (1, 2))  # (N, L, L), -4 to 4
        energy_changes = 2 * spins * neighbours  # (N, L, L) in J
        accepted = rng.random(spins.shape) < np.exp(-energy_changes / temperatures[:, None, None])
        spins[accepted & ((rows + columns) % 2 == colour)] *= -1


def metrics(predictions: NDArray[np.float64], targets: NDArray[np.float64]) -> dict[str, float]:
    """Metrics of predictions of the energy per spin: (N,), (N,) in units of J."""
    errors = predictions - targets
    return {
        "mae": float(np.abs(errors).mean()),
        "r2": float(1 - (errors**2).mean() / targets.var()),
        "exact_fraction": float((np.abs(errors) * L**2 < 2).mean()),  # levels of the total energy lie 4 J apart
    }


def least_squares(features: NDArray[Any], energies: NDArray[Any]) -> NDArray[Any]:
    """Fit the energies of the training split by a constant and features (N, F), and predict the test split."""
    x = np.insert(features, 0, 1, axis=1)  # (N, 1 + F)
    gram = x[train].T @ x[train] + 1e-6 * np.eye(x.shape[1])  # the small ridge makes the equations solvable
    return np.asarray(x[test] @ np.linalg.solve(gram, x[train].T @ energies[train]))


rng = np.random.default_rng(3)
n = N_TRAIN + N_VAL + N_TEST
temperatures = rng.uniform(1, 4, size=n)  # (N,) in J / k_B
spins = np.ones((n, L, L), dtype=np.int8)  # (N, L, L): one chain per example, so examples are independent
for _ in range(N_SWEEPS):
    sweep(spins, temperatures, rng)
spins *= rng.choice(np.array([-1, 1], dtype=np.int8), size=(n, 1, 1))  # both signs are equally likely
energies = energy(spins) / L**2  # (N,): per spin, in units of J
train, test = slice(0, N_TRAIN), slice(N_TRAIN + N_VAL, n)  # validation lies between them: see step 4

known = {each.tobytes(): e for each, e in zip(spins[train], energies[train], strict=True)}
unseen = np.array([each.tobytes() not in known for each in spins[test]])  # (N_TEST,): not in the training split
mean = energies[train].mean()
sites = spins.reshape(n, L**2).astype(float)  # (N, 64)
i, j = np.triu_indices(L**2, k=1)
m = sites.mean(axis=1, keepdims=True)  # (N, 1): magnetisation per spin
predictions = {  # each (N_TEST,): energies per spin in units of J
    "mean": np.full(N_TEST, mean),
    "memory": np.array([known.get(each.tobytes(), mean) for each in spins[test]]),
    "m2_and_m4": least_squares(np.hstack([m**2, m**4]), energies),
    "pair_products": least_squares(sites[:, i] * sites[:, j], energies),  # 2,016 features
}
Path("tutorial").mkdir(exist_ok=True)
np.savez("tutorial/data.npz", spins=spins, temperatures=temperatures, energies=energies)
np.savez("tutorial/baselines.npz", allow_pickle=False, **predictions)

print("all test configurations    not in training\n  mae      r2   exact      mae      r2   exact")
for name, each in predictions.items():
    both = metrics(each, energies[test]), metrics(each[unseen], energies[test][unseen])
    print(*("{mae:5.3f}  {r2:6.3f}  {exact_fraction:6.3f}   ".format(**values) for values in both), name)
print(f"{unseen.sum()} of {N_TEST:,} test configurations do not occur in training")
