"""Step 6: the training of step 5 with the modules of this project, then a different network with the same trainer.

python -m examples.tutorial.step6_trainer  # after step 3
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from config import DataConfig, ExperimentConfig, ModelConfig
from engine.datasets.overlap import hash_inputs, unseen
from engine.datasets.splits import load_data
from engine.interface import Shape, TrainConfig
from engine.learning.prediction import build_model, evaluate, prepare, select_examples
from problem import PROBLEM, IsingProblem
from trainer import Trainer

torch.set_num_threads(1)
config = ExperimentConfig(
    model=ModelConfig(architecture="mlp", hidden=(128, 64), dropout=0.0),
    train=TrainConfig(epochs=40, warmup_epochs=2, patience=10, batch_size=64, lr=0.002, grad_clip=1.0),
    data=DataConfig(file="tutorial/data.npz", num_train=5_000, num_val=1_000, num_test=1_000),
    seed=6,
)
data = load_data(PROBLEM, config)  # the columns of the three splits: spins and temperatures
is_unseen = unseen(hash_inputs(PROBLEM, config, data.train), hash_inputs(PROBLEM, config, data.test))  # (N_TEST,)


def train_and_test(problem: IsingProblem, config: ExperimentConfig) -> None:
    """Train the network of a problem on the training split, and print its metrics on the test split."""
    model = build_model(problem, config, data.train)  # with the mean and the deviation of the training energies
    trainer = Trainer(problem, config, model, data.train, data.val)
    trainer.fit()  # returns the row of each epoch, and leaves the best weights in the model
    examples = prepare(problem, config, model, data.test)  # tensors on the device of the model
    on_all, _ = evaluate(problem, config, model, examples)
    on_unseen, _ = evaluate(problem, config, model, select_examples(examples, is_unseen))
    row = "{mae:5.3f}  {r2:6.3f}  {exact_fraction:6.3f}   "
    print(row.format(**on_all), row.format(**on_unseen), f"{type(model.network).__name__}, lr {config.train.lr}")


class LocalEnergies(nn.Module):
    """Apply the same function to all 2x2 neighbourhoods, and average its values over the sites."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Conv2d(1, 32, kernel_size=2, padding="same", padding_mode="circular")
        self.layers = nn.Sequential(first, nn.ReLU(), nn.Conv2d(32, 1, kernel_size=1))

    def forward(self, spins: Tensor) -> Tensor:  # (B, L, L) int8 -> (B,)
        local_energies: Tensor = self.layers(spins[:, None].float())  # (B, 1, L, L)
        return local_energies.mean(dim=(1, 2, 3))


class LocalProblem(IsingProblem):
    """The Ising problem with a different network."""

    def network(self, config: ExperimentConfig, input_shapes: tuple[Shape, ...], target_shape: Shape) -> nn.Module:
        return LocalEnergies()


print("all test configurations    not in training\n  mae      r2   exact      mae      r2   exact")
for train_config in (config.train, replace(config.train, epochs=20, lr=0.03, weight_decay=0.0)):
    train_and_test(PROBLEM, replace(config, train=train_config))
    train_and_test(LocalProblem(), replace(config, train=train_config))
