"""The edits of trainer.py that docs/your-own-problem.md shows, applied to the file, take effect in every kind of run.

python -m tests.engine.test_edits     one line per edit: the loss with and without it, resumed, and in two processes
"""

import copy
import json
import re
import shutil
import tempfile
import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from engine.datasets.splits import get_splits
from engine.interface.base_config import TrainConfig, replace_unchecked
from engine.learning.prediction import build_model
from engine.machine.errors import ProblemError
from engine.run_folder import checkpoints
from engine.run_folder.null_logger import NullLogger
from tests.conftest import ROOT, environment, fork_server
from tests.test_docs import GUIDE, blocks, problem_of_the_guide, section
from trainer import OPTIMIZERS, Trainer

PROBLEM = problem_of_the_guide()
TRAIN = TrainConfig(epochs=6, batch_size=32, lr=0.01)

Rows = list[dict[str, float]]


class Edit(NamedTuple):
    """A difference to trainer.py and base_config.py: pairs of lines that are there, and of those that replace them."""

    hunks: list[tuple[str, str]]

    @property
    def n_lines(self) -> int:
        """The number of new lines."""
        return sum(len(set(new.splitlines()) - set(old.splitlines())) for old, new in self.hunks)


def edits_of_the_guide() -> dict[str, Edit]:
    """The edits by the beginning of their title."""
    text = section("docs/your-own-problem.md", "Change how it is trained")
    found = {}
    for title, diff in re.findall(r"^\*\*(.*?)\*\*.*?^```diff\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        hunks = []
        for hunk in re.split(r"^@@\n", diff, flags=re.MULTILINE):
            lines = hunk.splitlines(keepends=True)
            hunks.append(tuple("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +")))
        found[" ".join(title.split())] = Edit([(old, new) for old, new in hunks])
    return found


EDITS = edits_of_the_guide()


def name_of(start: str) -> str:
    """The title of an edit."""
    return next(name for name in EDITS if name.startswith(start))


# The options with which an edit has an effect.
OPTIONS: dict[str, dict[str, Any]] = {
    name_of("Add a schedule"): {"scheduler": "sqrt"},
    name_of("Add an optimiser"): {"optimizer": "rmsprop"},
    name_of("Lower the learning rate"): {"lr": 0.1},
}


def edited(text: str, edit: Edit) -> str:
    """A file in which the differences that belong to it are applied."""
    for old, new in edit.hunks:
        if old in text:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
    return text


def trainer_after(*names: str) -> type[Trainer]:
    """The class Trainer of an edited trainer.py."""
    text = (ROOT / "trainer.py").read_text(encoding="utf-8")
    for name in names:
        text = edited(text, EDITS[name])
    module = types.ModuleType("edited_trainer")
    exec(compile(text, "edited_trainer.py", "exec"), vars(module))
    kind: type[Trainer] = module.Trainer
    return kind


class StopError(Exception):
    """Interrupts a run."""


class Saver(NullLogger):
    """Saves every state of a trainer to a file, and interrupts the run after an epoch."""

    def __init__(self, path: Path, config: Any, last: int) -> None:
        self.path, self.config, self.last = path, config, last

    def log_state(self, state: Mapping[str, Any]) -> None:
        checkpoints.save(self.path, self.config, state)

    def log_epoch(self, row: Mapping[str, float]) -> None:
        if row["epoch"] == self.last:
            raise StopError


DATA = replace(PROBLEM.config_type().data, num_train=200, num_val=100, num_test=20, cache=False)
CONFIG: Any = replace(PROBLEM.config_type(), data=DATA, train=TRAIN, device="cpu")


def config_with(**options: Any) -> Any:
    """The config of a short run. The options are not checked, since an edit may have added their values."""
    return replace_unchecked(CONFIG, train=replace_unchecked(CONFIG.train, **options))


def make(kind: type[Trainer], config: Any = CONFIG, logger: NullLogger | None = None) -> Trainer:
    splits, _ = get_splits(PROBLEM, config)
    return kind(PROBLEM, config, build_model(PROBLEM, config, splits.train), splits.train, splits.val, logger=logger)


def resumed(kind: type[Trainer], config: Any, folder: Path, after: int = 3) -> Trainer:
    """A trainer that has finished a run from the state that another one had saved after an epoch."""
    saver = Saver(folder / "last.pt", CONFIG, after)
    with pytest.raises(StopError):
        make(kind, config, saver).fit()
    trainer = make(kind, config)
    trainer.restore(checkpoints.load(folder / "last.pt", saver.config))
    trainer.fit()
    return trainer


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_short_and_takes_effect_also_after_an_interruption(name: str, tmp_path: Path) -> None:
    assert EDITS[name].n_lines <= 10
    kind, config = trainer_after(name), config_with(**OPTIONS.get(name, {}))
    unedited = make(Trainer, config_with(lr=config.train.lr)).fit()
    trainer = make(kind, config)
    history = trainer.fit()
    assert len(history) == 6
    if name.startswith("Log a number"):
        assert all(row["largest_gradient"] > 0 for row in history)
        assert [{k: v for k, v in row.items() if k != "largest_gradient"} for row in history] == unedited
    elif name.startswith("Accumulate"):
        for row, other in zip(history, unedited, strict=True):
            assert row == pytest.approx(other, rel=1e-3)
    elif name.startswith("Choose the best epoch"):
        assert history == unedited
        assert trainer.best_loss == min(row["val_mae"] for row in history)
    else:
        assert history[2:] != unedited[2:]
    again = resumed(kind, config, tmp_path)
    assert again.history == history
    assert again.best_epoch == trainer.best_epoch
    for one, two in zip(again.network.parameters(), trainer.network.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_guide_has_the_edits_that_people_make() -> None:
    assert len(EDITS) == 13
    files = [(ROOT / name).read_text(encoding="utf-8") for name in ("trainer.py", "engine/interface/base_config.py")]
    for edit in EDITS.values():
        assert all(sum(text.count(old) for text in files) == 1 for old, _ in edit.hunks)


def test_a_released_layer_is_trained_and_a_frozen_one_is_not() -> None:
    splits, _ = get_splits(PROBLEM, CONFIG)
    model = build_model(PROBLEM, CONFIG, splits.train)
    first = next(model.network.parameters()).requires_grad_(False)  # also if it is frozen from the start
    trainer = trainer_after(name_of("Freeze"))(PROBLEM, CONFIG, model, splits.train, splits.val)
    before, changed = first.detach().clone(), []
    trainer.logger.log_epoch = lambda row: changed.append(not torch.equal(before, first))  # type: ignore[method-assign]
    trainer.fit()
    assert changed == [False, False, True, True, True, True]


def test_the_steps_and_the_schedule_follow_from_the_batch_size() -> None:
    trainer = make(trainer_after(name_of("Change the batch size")), config_with(scheduler="cosine"))
    history = trainer.fit()
    assert [row["step"] for row in history] == [25, 50, 57, 64, 71, 78]
    rates = [0.01 * trainer.factor_at(row["step"] - 1) for row in history]  # type: ignore[arg-type]
    assert [row["learning_rate"] for row in history] == rates
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-5


def test_the_rate_is_halved_after_an_epoch_without_a_better_loss() -> None:
    history = make(trainer_after(name_of("Lower the learning")), config_with(scheduler="none", lr=0.1)).fit()
    losses, rates = ([row[key] for row in history] for key in ("val_loss", "learning_rate"))
    n_worse = [sum(losses[k] >= min(losses[:k]) for k in range(1, i)) for i in range(6)]
    assert n_worse[-1] > 0
    assert rates == [0.1 / 2**n for n in n_worse]


def test_averaged_weights_are_the_exponential_average_of_the_weights() -> None:
    trainer: Any = make(trainer_after(name_of("Average the weights")), config_with(epochs=1))
    expected = copy.deepcopy(dict(trainer.network.named_parameters()))

    def average(*_: object) -> None:
        for name, now in trainer.network.named_parameters():
            expected[name].data.mul_(0.95).add_(now.data, alpha=0.05)

    trainer.optimizer.register_step_post_hook(average)
    trainer.fit()
    for name, mean in trainer.ema.network.named_parameters():
        assert mean.detach().numpy() == pytest.approx(expected[name].detach().numpy(), rel=1e-4, abs=1e-6)


# -------------------------------------------------------------------------------------- edits that would have no effect


@pytest.mark.parametrize("when", ["step", "epoch"])
def test_a_learning_rate_that_other_code_changes_ends_the_run(when: str) -> None:
    class WithScheduler(Trainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, gamma=0.5)

        def train_epoch(self) -> float:
            loss = super().train_epoch()
            if when == "epoch":
                self.schedule.step()
            return loss

        def step(self, inputs: Any, targets: Any) -> torch.Tensor:
            loss = super().step(inputs, targets)
            if when == "step":
                self.schedule.step()
            return loss

    trainer = make(WithScheduler, CONFIG)
    with pytest.raises(
        ProblemError, match=r"the learning rate was changed from .* to .* by code other than the trainer"
    ):
        trainer.fit()
    assert trainer.n_steps == (1 if when == "step" else 7)


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, torch.optim.Muon])
def test_an_optimiser_that_needs_other_groups_is_one_line(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "other", optimizer)
    with pytest.raises(ProblemError, match=r"--optimizer other: .*: change create_optimizer in trainer\.py"):
        make(Trainer, config_with(optimizer="other"))


def test_a_new_group_of_parameters_gets_the_schedule() -> None:
    class Growing(Trainer):
        def train_epoch(self) -> float:
            if self.epoch == 3:
                self.extra = torch.nn.Parameter(torch.ones(1))
                self.optimizer.add_param_group({"params": [self.extra], "lr": 1.0})
            return super().train_epoch()

    trainer = make(Growing, config_with(scheduler="cosine"))
    trainer.fit()
    assert trainer.rates == [0.01 * trainer.factor_at(41), 0.01 * trainer.factor_at(41), trainer.factor_at(41)]


# ---------------------------------------------------------------------------------------------------------- processes


def copy_with(folder: Path, *names: str) -> None:
    """Copy the machinery and the guide's problem to a folder, and edit trainer.py and base_config.py there."""
    for name in ("engine", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    (folder / "decay.py").write_text(blocks(GUIDE, "python")[0], encoding="utf-8", newline="\n")
    for path in (folder / "trainer.py", folder / "engine" / "interface" / "base_config.py"):
        text = path.read_text(encoding="utf-8")
        for name in names:
            text = edited(text, EDITS[name])
        path.write_text(text, encoding="utf-8", newline="\n")


def run_in(folder: Path, name: str, ranks: int, *arguments: str) -> Rows:
    """The rows of a run of the guide's problem in a copy."""
    sizes = ("--num-train", "200", "--num-val", "100", "--num-test", "20", "--batch-size", "32", "--epochs", "6")
    command = (*sizes, "--lr", "0.01", "--device", "cpu", "--threads", "1", "--run-name", name, *arguments)
    env = {**environment(), "PYTHONPATH": str(folder)}
    server = fork_server("torch", "scipy.special")
    done = server.run(command, ("decay.py",), cwd=folder, env=env, ranks=ranks)
    assert done.returncode == 0, done.stderr
    rows: Rows = json.loads((folder / "checkpoints" / name / "epoch_metrics.json").read_text(encoding="utf-8"))
    return rows


TOGETHER = ["Log a number", "Add a term", "Lower the learning", "Freeze", "Change the batch size", "Choose the best"]


@pytest.mark.slow
def test_edits_have_the_same_effect_in_two_processes(tmp_path: Path) -> None:
    copy_with(tmp_path, *map(name_of, TOGETHER))
    one, two = (run_in(tmp_path, f"r{n}", n) for n in (1, 2))
    for row, other in zip(one, two, strict=True):
        assert row == pytest.approx(other, rel=1e-3)


def main() -> None:
    """Print the table of edits."""
    print("| edit | last val_loss | without | resumed equal | two processes: largest relative difference |")
    without = make(Trainer, CONFIG).fit()[-1]["val_loss"]
    for name in EDITS:
        kind, config = trainer_after(name), config_with(**OPTIONS.get(name, {}))
        history = make(kind, config).fit()
        with tempfile.TemporaryDirectory() as folder:
            is_equal = resumed(kind, config, Path(folder)).history == history
        with tempfile.TemporaryDirectory() as folder:
            copy_with(Path(folder), name)
            flags = [word for key, value in OPTIONS.get(name, {}).items() for word in (f"--{key}", str(value))]
            one, two = (run_in(Path(folder), f"r{n}", n, *flags)[-1]["val_loss"] for n in (1, 2))
        print(f"| {name} | {history[-1]['val_loss']:.4f} | {without:.4f} | {is_equal} | {abs(one / two - 1):.1e} |")


if __name__ == "__main__":
    main()
