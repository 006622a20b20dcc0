"""Step 4: a small network, and a training loop that is written out.

python -m examples.tutorial.step4_network  # after step 3
"""

import numpy as np
import torch
from torch import nn

N_TRAIN, N_VAL = 5_000, 1_000
EPOCHS, BATCH_SIZE, LEARNING_RATE = 40, 64, 1e-3

torch.set_num_threads(1)  # the network is small: a second thread would not make it faster
torch.manual_seed(4)  # of the initial weights and the order of the batches
data = np.load("tutorial/data.npz")
train, val = slice(0, N_TRAIN), slice(N_TRAIN, N_TRAIN + N_VAL)
energies = data["energies"]  # (N,): per spin, in units of J
assert len(energies) > N_TRAIN + N_VAL, "tutorial/data.npz has too few configurations: run step 3, unchanged"
mean, std = energies[train].mean(), energies[train].std()  # of the training split only
inputs = torch.tensor(data["spins"], dtype=torch.float32).flatten(1)  # (N, 64): -1 or +1
targets = torch.tensor((energies - mean) / std, dtype=torch.float32)  # (N,): mean 0 and variance 1

network = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 1), nn.Flatten(0))
optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
exact_fractions = []

print("epoch   training loss   validation loss")
for epoch in range(1, EPOCHS + 1):
    network.train()
    total = 0.0
    for batch in torch.split(torch.randperm(N_TRAIN), BATCH_SIZE):  # (B,) indices: every example once per epoch
        outputs = network(inputs[batch])  # (B,)
        loss = ((outputs - targets[batch]) ** 2).mean()  # in units of the variance of the energies
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)

    network.eval()
    with torch.inference_mode():
        outputs = network(inputs[val])  # (N_VAL,)
        val_loss = ((outputs - targets[val]) ** 2).mean().item()
    errors = (mean + std * outputs.numpy() - energies[val]) * 64  # (N_VAL,): of the total energy, in J
    exact_fractions.append((np.abs(errors) < 2).mean())
    if epoch in (1, 2, 5, 10, 20, 40):
        print(f"{epoch:>5}   {total / N_TRAIN:>13.4f}   {val_loss:>15.4f}")

last = exact_fractions[-20:]
print(f"exact validation energies in the last 20 epochs: from {min(last):.2f} to {max(last):.2f}")
