"""Step 5: the loop of step 4, extended by reproducible seeds, a schedule, the choice of the best epoch, and a test.

python -m examples.tutorial.step5_training  # after step 3
"""

import copy
import json
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

L, N_TRAIN, N_VAL = 8, 5_000, 1_000
EPOCHS, WARMUP_EPOCHS, PATIENCE, BATCH_SIZE = 40, 2, 10, 64
SEED, PEAK_LEARNING_RATE, GRAD_CLIP = 5, 2e-3, 1.0


def lr_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """The learning rate at a step (from 0), as a fraction of the peak: a linear rise, then half a cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2


def metrics(predictions: NDArray[np.float64], targets: NDArray[np.float64]) -> dict[str, float]:
    """Metrics of predictions of the energy per spin: (N,), (N,) in units of J."""
    errors = predictions - targets
    return {
        "mae": float(np.abs(errors).mean()),
        "r2": float(1 - (errors**2).mean() / targets.var()),
        "exact_fraction": float((np.abs(errors) * L**2 < 2).mean()),  # levels of the total energy lie 4 J apart
    }


torch.set_num_threads(1)
data = np.load("tutorial/data.npz")
train, val, test = slice(0, N_TRAIN), slice(N_TRAIN, N_TRAIN + N_VAL), slice(N_TRAIN + N_VAL, None)
spins, energies = data["spins"], data["energies"]  # (N, L, L) int8; (N,) per spin, in units of J
assert len(energies) > N_TRAIN + N_VAL, "tutorial/data.npz has too few configurations: run step 3, unchanged"
mean, std = energies[train].mean(), energies[train].std()
inputs = torch.tensor(spins, dtype=torch.float32).flatten(1)  # (N, 64)
targets = torch.tensor((energies - mean) / std, dtype=torch.float32)  # (N,)

torch.manual_seed(SEED)  # of the initial weights
network = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 1), nn.Flatten(0))
optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE)
steps_per_epoch = math.ceil(N_TRAIN / BATCH_SIZE)
rows: list[dict[str, float]] = []  # the metrics of each epoch
best_epoch, best_loss, best_weights = 0, math.inf, network.state_dict()

for epoch in range(1, EPOCHS + 1):
    network.train()
    total = 0.0
    order = torch.randperm(N_TRAIN, generator=torch.Generator().manual_seed(1000 * SEED + epoch))  # (N_TRAIN,)
    for step, batch in enumerate(torch.split(order, BATCH_SIZE), start=(epoch - 1) * steps_per_epoch):
        factor = lr_factor(step, WARMUP_EPOCHS * steps_per_epoch, EPOCHS * steps_per_epoch)
        optimizer.param_groups[0]["lr"] = PEAK_LEARNING_RATE * factor
        loss = ((network(inputs[batch]) - targets[batch]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), GRAD_CLIP)
        optimizer.step()
        total += loss.item() * len(batch)

    network.eval()
    with torch.inference_mode():
        outputs = network(inputs[val])  # (N_VAL,)
    val_loss = ((outputs - targets[val]) ** 2).mean().item()
    val_metrics = metrics(mean + std * outputs.numpy(), energies[val])
    rows.append({"epoch": epoch, "train_loss": total / N_TRAIN, "val_loss": val_loss, **val_metrics})
    Path("tutorial/epoch_metrics.json").write_text(json.dumps(rows, indent=2), encoding="utf-8", newline="\n")
    if val_loss < best_loss:
        best_epoch, best_loss, best_weights = epoch, val_loss, copy.deepcopy(network.state_dict())
    if epoch - best_epoch >= PATIENCE:
        break

network.load_state_dict(best_weights)
with torch.inference_mode():
    predictions = {"network": mean + std * network(inputs[test]).numpy(), **np.load("tutorial/baselines.npz")}
known = {each.tobytes() for each in spins[train]}
unseen = np.array([each.tobytes() not in known for each in spins[test]])  # (N_TEST,): not in the training split

print(f"epoch {best_epoch} of {len(rows)} has the lowest validation loss, {best_loss:.4f}")
print("all test configurations    not in training\n  mae      r2   exact      mae      r2   exact")
for name, each in predictions.items():
    both = metrics(each, energies[test]), metrics(each[unseen], energies[test][unseen])
    print(*("{mae:5.3f}  {r2:6.3f}  {exact_fraction:6.3f}   ".format(**values) for values in both), name)
print(f"{unseen.sum()} of {len(unseen):,} test configurations do not occur in training")
