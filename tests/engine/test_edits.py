"""Edit trainer.py in a copy of the repository, as a new user would, and run it in every way that is possible.

The edits are those of docs/your-own-problem.md.
"""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.conftest import ROOT, TOY, environment, fork_server, start_command, wait_for

GUIDE = ROOT / "docs" / "your-own-problem.md"
RUN = ["--preset", "debug", "--device", "cpu", "--epochs", "60", "--batch-size", "20", "--num-train", "400"]


class Edit(NamedTuple):
    """Lines of trainer.py or of base_config.py, and their replacements."""

    changes: dict[str, str]
    flags: tuple[str, ...] = ()


LOSS = "        loss = example_losses(self.problem, self.config, self.forward(*inputs), targets).mean()\n"
UPDATE = "        self.optimizer.step()\n"
ROW = '                "train_loss": train_loss,\n'

EDITS = {
    "log": Edit(
        {
            UPDATE: UPDATE
            + "        self.norms += nn.utils.get_total_norm([p.grad for p in self.network.parameters()])\n",
            "        self.network.train()": "        self.norms = torch.zeros((), device=self.train.targets.device)\n"
            "        self.network.train()",
            ROW: ROW + '                "gradient_norm": self.norms.item() / self.steps_per_epoch,\n',
        },
    ),
    "count": Edit(
        {
            "        self.epoch = 0  #": "        self.n_calls = 0\n        self.epoch = 0  #",
            UPDATE: UPDATE + "        self.n_calls += 1\n        loss = loss * (1 + self.n_calls % 2)\n",
        },
    ),
    "loss": Edit(
        {
            LOSS: LOSS
            + "        loss = loss + 1e-4 * self.epoch * sum(p.abs().sum() for p in self.network.parameters())\n"
        },
    ),
    "schedule": Edit(
        {
            '    "none": lambda': '    "linear": lambda progress: 1 - progress,\n    "none": lambda',
            'Scheduler = Literal["none", "cosine", "step"]': 'Scheduler = Literal["none", "cosine", "step", "linear"]',
        },
        ("--scheduler", "linear"),
    ),
    "optimiser": Edit(
        {
            '    "adam": partial': '    "rmsprop": torch.optim.RMSprop,\n    "adam": partial',
            'Optimizer = Literal["adam", "adamw", "sgd"]': 'Optimizer = Literal["adam", "adamw", "sgd", "rmsprop"]',
        },
        ("--optimizer", "rmsprop"),
    ),
    "mask": Edit(
        {
            LOSS: "        keep = torch.rand(len(targets)) < 0.5\n"
            "        inputs, targets = tuple(x[keep] for x in inputs), targets[keep]\n" + LOSS
        },
    ),
}


def edit(folder: Path, *edits: Edit) -> None:
    """Copy engine/ and the toy problem to a folder, and edit trainer.py there."""
    for name in ("engine", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    files = (folder / "trainer.py", folder / "engine" / "interface" / "base_config.py")
    for old, new in (change for each in edits for change in each.changes.items()):
        (path,) = (each for each in files if old in each.read_text(encoding="utf-8"))
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, old
        path.write_text(text.replace(old, new), encoding="utf-8", newline="\n")


def toy(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program of the toy problem in a copy."""
    done = fork_server("torch", "scipy.special").run(arguments, TOY, cwd=folder, env=environment())
    assert done.returncode == 0, done.stderr
    return done


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The metrics of a run."""
    found: list[dict[str, Any]] = json.loads(
        (folder / "checkpoints" / name / "epoch_metrics.json").read_text(encoding="utf-8")
    )
    return found


@pytest.fixture(scope="module")
def unedited(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The metrics of a run without an edit."""
    folder = tmp_path_factory.mktemp("unedited")
    toy(folder, *RUN, "--run-name", "a")
    return rows(folder, "a")


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_takes_effect(name: str, unedited: list[dict[str, Any]], tmp_path: Path) -> None:
    edit(tmp_path, EDITS[name])
    assert toy(tmp_path, *RUN, *EDITS[name].flags, "--run-name", "a").stderr == ""
    before, after = unedited, rows(tmp_path, "a")
    assert len(before) == len(after) == 60
    if name == "log":
        assert all(row.pop("gradient_norm") > 0 for row in after)
        assert after == before  # a number that is only logged does not change the run
    else:
        assert all(row["train_loss"] != other["train_loss"] for row, other in zip(after[1:], before[1:], strict=True))
    if name == "schedule":
        assert [row["learning_rate"] for row in after] == pytest.approx(
            [0.01 * (1 - (20 * epoch - 1) / 1200) for epoch in range(1, 61)]
        )
    if name == "optimiser":
        saved = torch.load(tmp_path / "checkpoints" / "a" / "last.pt", weights_only=True)
        assert "square_avg" in saved["optimizer"]["state"][0]


@pytest.mark.slow
def test_all_edits_take_effect_after_an_interruption(tmp_path: Path) -> None:
    edits = [each for name, each in EDITS.items() if name != "count"]  # its count is not saved, so it starts again
    edit(tmp_path, *edits)
    command = [*RUN, *(flag for each in edits for flag in each.flags)]
    toy(tmp_path, *command, "--run-name", "a")
    with start_command(*command, "--run-name", "c", cwd=tmp_path) as process:
        wait_for("epoch 3/", process.stdout)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert 3 <= len(rows(tmp_path, "c")) < 60
    toy(tmp_path, "--resume", "c")
    assert rows(tmp_path, "c") == rows(tmp_path, "a")


def test_the_guide_shows_these_edits() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    shown = [
        line.strip()
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
        for line in block.splitlines()
    ]
    for edit in (edit for name, edit in EDITS.items() if name != "count"):
        for old, new in edit.changes.items():
            assert [line for line in new.splitlines() if line not in old and line.strip() not in shown] == []
