"""--fresh: every epoch has new examples, which are a function of the seed and the epoch."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.datasets.overlap import hash_inputs
from engine.datasets.splits import get_splits, new_examples
from engine.interface.base_config import TrainConfig
from engine.interface.base_problem import Check
from engine.learning.prediction import predict
from engine.run_folder.run_request import parse_args
from tests.conftest import DEBUG, read, run_command, run_ranks
from tests.engine.training import TINY, build, weights
from tests.toy import PROBLEM, ToyProblem

Run = Callable[..., int]
FRESH = (*DEBUG, "--fresh", "--scheduler", "none", "--no-cache")
FILES = ("epoch_metrics.json", "results.json", "predictions.npz", "train_inputs.npy")


def test_every_epoch_has_its_own_examples_and_the_first_one_those_of_the_training_split() -> None:
    epochs = [new_examples(PROBLEM, TINY, epoch)["points"] for epoch in (2, 3)]
    splits, _ = get_splits(PROBLEM, TINY)
    assert np.array_equal(new_examples(PROBLEM, TINY, 2)["points"], epochs[0])
    all_points = np.concatenate([*epochs, *(split["points"] for split in splits)])
    assert len(np.unique(all_points, axis=0)) == len(all_points)
    assert epochs[0].shape == splits.train["points"].shape
    assert not np.array_equal(new_examples(PROBLEM, dataclasses.replace(TINY, seed=1), 2)["points"], epochs[0])
    fixed, fresh = (build(fresh=value)[0].fit() for value in (False, True))
    assert fresh[0] == fixed[0]
    assert all(one["train_loss"] != two["train_loss"] for one, two in zip(fresh[1:], fixed[1:], strict=True))


def test_the_loss_of_an_epoch_is_that_of_its_examples() -> None:
    trainer, _ = build(fresh=True, lr=1e-30, epochs=3)  # the weights hardly change
    history = trainer.fit()
    splits, _ = get_splits(PROBLEM, trainer.config)
    for row, columns in zip(history, (splits.train, *(new_examples(PROBLEM, TINY, k) for k in (2, 3))), strict=True):
        errors = predict(PROBLEM, trainer.config, trainer.model, columns) - columns["values"]
        assert row["train_loss"] == pytest.approx(np.mean(np.square(errors / trainer.model.std.item())), rel=1e-4)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_restored_trainer_continues_with_the_same_examples(epoch: int) -> None:
    trainer, record = build(fresh=True)
    history = trainer.fit()
    later, _ = build(fresh=True)
    later.restore(record.states[epoch - 1])
    assert later.fit() == history
    assert (weights(later) == weights(trainer)).all()


def test_a_longer_run_is_that_of_a_resumed_one_to_the_byte(toy_in_process: Run) -> None:
    assert toy_in_process(*FRESH, "--epochs", "5", "--run-name", "whole") == 0
    assert toy_in_process(*FRESH, "--epochs", "3", "--run-name", "part") == 0
    assert toy_in_process("--resume", "part", "--epochs", "5") == 0
    for name in FILES:
        whole, part = (Path("checkpoints") / run / name for run in ("whole", "part"))
        assert whole.read_bytes() == part.read_bytes(), name


def test_test_examples_are_compared_with_those_of_all_epochs(
    toy_in_process: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a line, and with two digits, some test points occur in every epoch."""
    generate = ToyProblem.generate

    def rounded(self: Any, config: Any, n: int, seed: Any) -> Any:
        columns = dict(generate(self, config, n, seed))
        return columns | {"points": columns["points"].round(2)}

    monkeypatch.setattr(ToyProblem, "generate", rounded)
    monkeypatch.setattr(ToyProblem, "check", lambda *_: Check({}))
    on_a_line = (*FRESH, "--dimension", "1")
    assert toy_in_process(*on_a_line, "--run-name", "r") == 0
    config = parse_args(PROBLEM, on_a_line, prog="toy.py").config
    splits, _ = get_splits(PROBLEM, config)
    n_unseen = []
    seen: set[int] = set()
    for epoch in range(1, 6):
        columns = splits.train if epoch == 1 else new_examples(PROBLEM, config, epoch)
        seen |= set(hash_inputs(PROBLEM, config, columns).tolist())
        n_unseen.append(sum(each not in seen for each in hash_inputs(PROBLEM, config, splits.test).tolist()))
    assert n_unseen == sorted(set(n_unseen), reverse=True)  # every epoch has some that were new
    results = read(Path("checkpoints/r"), "results.json")
    assert results["n_unseen"] == n_unseen[-1]
    assert len(np.load("checkpoints/r/train_inputs.npy")) == len(seen)


def test_a_run_that_is_not_over_does_not_claim_to_know_its_examples(
    toy_in_process: Run, toy_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy_in_process(*FRESH, "--run-name", "r") == 0
    assert "The baselines know the examples of the first epoch only." in capsys.readouterr().out
    info = Path("checkpoints/r/run_info.json")
    info.write_text(info.read_text(encoding="utf-8").replace('"finished"', '"interrupted"'), encoding="utf-8")
    capsys.readouterr()
    assert toy_in_process(*DEBUG, "--init-from", "r", "--run-name", "s") == 2
    assert "that run has --fresh and is not over" in capsys.readouterr().err
    done = run_command("r", "--num-test", "20", "--name", "n", cwd=Path.cwd(), script="evaluate.py")
    assert done.returncode == 0, done.stderr
    assert (
        "it is not known which examples occur in the training data: the run, which has --fresh, is not" in done.stdout
    )
    assert read(Path("checkpoints/r/evaluations"), "n.json")["n_unseen"] is None


def test_a_check_of_new_examples_prints_failures_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, _ = build(fresh=True, epochs=3)
    checks = iter([Check({}, "", "all is well"), Check({}, "too hot", "bad")])
    monkeypatch.setattr(ToyProblem, "check", lambda *_: next(checks))
    trainer.fit()
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "warning: the training (epoch 3) split: too hot\n")


def test_fresh_data_need_a_generator() -> None:
    file = dataclasses.replace(TINY.data, file="x.npz")
    with pytest.raises(ValueError, match="--fresh does nothing with --data"):
        dataclasses.replace(TINY, train=TrainConfig(fresh=True, batch_size=2), data=file)


@pytest.mark.slow
def test_all_processes_generate_the_same_examples(tmp_path: Path) -> None:
    for n in (1, 2):
        done = run_ranks(n, *FRESH, "--threads", "1", "--run-name", f"r{n}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (read(tmp_path / "checkpoints" / f"r{n}", "epoch_metrics.json") for n in (1, 2))
    for row, other in zip(one, two, strict=True):
        assert row == pytest.approx(other, rel=1e-3)
