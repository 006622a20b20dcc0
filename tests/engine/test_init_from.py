"""--init-from: a run that starts from the weights of another run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import main
import trainer
from engine.datasets.overlap import hash_inputs
from engine.datasets.splits import get_splits
from engine.interface.base_config import load_config
from engine.learning.prediction import predict
from engine.run_folder.checkpoints import load_network
from evaluate import load_run
from tests.conftest import DEBUG, read, run_command, run_ranks
from tests.toy import PROBLEM, ToyConfig

Run = Callable[..., int]

RUNS = Path("checkpoints")
A, B = RUNS / "a", RUNS / "b"
POOLED = (*DEBUG, "--kind", "pooled", "--no-cache")  # this network accepts points of any dimension
FROM_A = (*POOLED, "--init-from", "a", "--run-name", "b", "--seed", "7")


@pytest.fixture
def with_a(toy_in_process: Run) -> Run:
    """A function that runs the program in a folder with the finished run `a`."""
    assert toy_in_process(*POOLED, "--run-name", "a") == 0
    return toy_in_process


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def contents(*names: str) -> list[bytes]:
    return [(B / name).read_bytes() for name in names]


@pytest.fixture
def first_weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The state of the model at the start of each training."""
    found: list[dict[str, torch.Tensor]] = []
    fit = trainer.Trainer.fit

    def recording(self: trainer.Trainer) -> list[dict[str, float]]:
        found.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return fit(self)

    monkeypatch.setattr(trainer.Trainer, "fit", recording)
    return found


# --------------------------------------------------------------------------------------------------------- the weights


def test_a_run_starts_with_the_weights_and_the_scales_of_the_best_epoch_of_the_other(
    with_a: Run, first_weights: list[dict[str, torch.Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert with_a(*FROM_A, "--spread", "3", "--dimension", "5") == 0
    expected = load_network(A, PROBLEM).model.state_dict()
    assert {"mean", "std", "input_means", "network.last.weight"} <= expected.keys() == first_weights[0].keys()
    assert all(torch.equal(value, first_weights[0][name]) for name, value in expected.items())
    assert f"starting from checkpoints/a, epoch {load_network(A, PROBLEM).epoch}\n" in capsys.readouterr().out
    trained = load_network(B, PROBLEM).model.state_dict()
    assert not torch.equal(trained["network.last.weight"], expected["network.last.weight"])
    assert torch.equal(trained["std"], expected["std"])
    info = read(B, "run_info.json")["init_from"]
    assert info == {
        "run": "a",
        "epoch": load_network(A, PROBLEM).epoch,
        "weights_sha256": load_network(A, PROBLEM).sha256,
        "commit": read(A, "run_info.json")["git_commit"],
    }
    assert read(A, "run_info.json")["init_from"] is None


def test_before_training_the_network_predicts_what_the_earlier_run_predicted(with_a: Run) -> None:
    assert with_a(*FROM_A, "--lr", "1e-30", "--weight-decay", "0", "--epochs", "1", "--spread", "3") == 0
    config = load_config(ToyConfig, B / "config.json")
    test = get_splits(PROBLEM, config)[0].test
    with np.load(B / "predictions.npz") as arrays:
        assert arrays["predictions"] == pytest.approx(predict(PROBLEM, config, load_run("a")[1], test))


def test_the_config_of_a_run_repeats_it_with_equal_bytes(with_a: Run) -> None:
    names = ("epoch_metrics.json", "results.json", "train_inputs.npy", "predictions.npz")
    assert with_a(*FROM_A) == 0
    first = contents(*names)
    assert read(B, "config.json")["train"]["init_from"] == "a"
    assert with_a("--config", "checkpoints/b/config.json", "--run-name", "c") == 0
    assert [(RUNS / "c" / name).read_bytes() for name in names] == first
    for flags in (["--init-from", "checkpoints/a"], ["--init-from", str(A.resolve())]):
        assert with_a(*FROM_A, *flags, "--overwrite") == 0
        assert contents(*names) == first
    assert with_a(*FROM_A, "--init-from", "none", "--overwrite") == 0
    assert contents("epoch_metrics.json") != first[:1]
    assert read(B, "run_info.json")["init_from"] is None


def test_a_network_of_a_file_is_fine_tuned_on_another_file(
    with_a: Run, first_weights: list[dict[str, torch.Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--num-train", "100", "--num-val", "20", "--num-test", "20")
    assert with_a(*sizes, "--dimension", "4", "--save-data", "four.npz") == 0
    flags = ("--kind", "pooled", "--device", "cpu", "--epochs", "2", "--data", "four.npz")
    assert with_a(*sizes, *flags, "--init-from", "a", "--run-name", "b") == 0
    assert torch.equal(
        first_weights[0]["network.last.weight"], load_network(A, PROBLEM).model.state_dict()["network.last.weight"]
    )
    assert with_a(*DEBUG, "--run-name", "mlp") == 0
    capsys.readouterr()
    assert with_a(*sizes, "--device", "cpu", "--data", "four.npz", "--init-from", "mlp", "--run-name", "c") == 2
    error = capsys.readouterr().err
    assert error.startswith("toy.py: error: --init-from mlp: the inputs have the shape (4,) and (), and this network")
    assert "only accepts (3,) and (), which it was trained with" in error
    assert not (RUNS / "c").exists()


@pytest.mark.slow
def test_two_processes_start_with_the_weights(with_a: Run, tmp_path: Path) -> None:
    flags = (*POOLED, "--init-from", "a", "--spread", "3")
    assert run_command(*flags, "--run-name", "one", cwd=tmp_path).returncode == 0
    done = run_ranks(2, *flags, "--run-name", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("starting from checkpoints/a") == 1
    one, two = (read(RUNS / name, "epoch_metrics.json") for name in ("one", "two"))
    assert [row["val_loss"] for row in one] == pytest.approx([row["val_loss"] for row in two], rel=1e-4)
    assert (RUNS / "one" / "train_inputs.npy").read_bytes() == (RUNS / "two" / "train_inputs.npy").read_bytes()
    done = run_ranks(2, *flags, "--init-from", "missing", "--run-name", "three", cwd=tmp_path)
    assert done.returncode != 0
    assert "--init-from missing: there is no such run" in done.stderr


# ----------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--init-from missing", "--init-from missing: there is no such run in {cwd}: give its name in checkpoints, or"),
        ("--init-from no/such", "--init-from no/such: there is no such run in {cwd}"),
        ("--init-from=", '--init-from "": must be a name'),
        ("--init-from a --kind mlp", "--init-from a: that run has --kind pooled: give these options"),
        ("--init-from a --hidden 8 --absolute", "a: that run has --no-absolute --hidden 16: give these options"),
        ("--init-from a --dropout 0.5", "--init-from a: that run has --dropout 0.0: give these options"),
        ("--init-from a --save-data x.npz", "--init-from does nothing with --save-data"),
        ("--init-from a --run-name a --overwrite", "a: --overwrite would remove that run: choose another --run-name"),
        ("--init-from checkpoints/../checkpoints/a --run-name a --overwrite", "--overwrite would remove that run"),
    ],
)
def test_a_run_that_cannot_be_used_is_refused_before_anything_is_generated_or_replaced(
    flags: str, error: str, with_a: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert with_a(*POOLED, "--run-name", "b") == 0
    monkeypatch.setattr("engine.run_folder.open_run.load_data", None)
    before = sorted((path, path.stat().st_mtime_ns) for path in RUNS.rglob("*") if path.is_file())
    capsys.readouterr()
    options = () if "--save-data" in flags else (*POOLED, "--run-name", "b", "--overwrite")
    assert with_a(*options, *flags.split()) == 2
    line = capsys.readouterr().err
    assert error.format(cwd=Path.cwd()) in line
    assert line.count("\n") == 1
    assert sorted((path, path.stat().st_mtime_ns) for path in RUNS.rglob("*") if path.is_file()) == before


def test_a_network_for_another_shape_is_refused_before_anything_is_generated(
    toy_in_process: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert toy_in_process(*DEBUG, "--run-name", "a") == 0
    monkeypatch.setattr("engine.run_folder.open_run.load_data", None)
    capsys.readouterr()
    assert toy_in_process(*DEBUG, "--init-from", "a", "--dimension", "4", "--run-name", "b") == 2
    assert capsys.readouterr().err == (
        "toy.py: error: --init-from a: the inputs have the shape (4,) and (), and this network (mlp-d3) only accepts "
        "(3,) and (), which it was trained with: use such data, or train a network that accepts inputs of any size\n"
    )
    assert not B.exists()


def test_weights_of_another_network_with_the_same_options_are_refused(
    with_a: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    # --skip is not compared, because it is declared to do nothing here. The network has the linear term nevertheless.
    Path("skip.json").write_text('{"model": {"skip": true}}', encoding="utf-8")
    assert with_a(*FROM_A, "--config", "skip.json") == 2
    error = "--init-from a: the weights of that run do not fit this network: give the options of its config.json\n"
    assert capsys.readouterr().err == f"toy.py: error: {error}"


@pytest.mark.parametrize(
    ("damage", "code", "error"),
    [
        (lambda: edit(A / "run_info.json", problem="examples.table"), 2, "was started with examples.table: choose a"),
        ((A / "best.pt").unlink, 3, "checkpoints/a has no best.pt"),
        (lambda: (A / "best.pt").write_bytes(b"?"), 3, "checkpoints/a/best.pt is damaged"),
        ((A / "train_inputs.npy").unlink, 3, "train_inputs.npy, by which test examples are compared"),
        (lambda: (A / "train_inputs.npy").write_bytes(b"?"), 3, "is missing or damaged: restore it, or start from"),
    ],
)
def test_a_run_of_another_problem_and_a_damaged_one_are_refused(
    damage: Callable[[], object], code: int, error: str, with_a: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    damage()
    capsys.readouterr()
    assert with_a(*FROM_A) == code
    line = capsys.readouterr().err
    assert error in line
    assert line.count("\n") == 1
    assert not B.exists()


# ----------------------------------------------------------------------------------------------------------- resumed


def interrupted_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the next training, as Ctrl-C does, in the epoch after the given number of epochs."""
    train_epoch = trainer.Trainer.train_epoch

    def stopping(self: trainer.Trainer) -> float:
        if self.epoch == epochs + 1:
            monkeypatch.setattr(trainer.Trainer, "train_epoch", train_epoch)
            raise KeyboardInterrupt
        return train_epoch(self)

    monkeypatch.setattr(trainer.Trainer, "train_epoch", stopping)


def interrupt(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(ToyConfig, B / "config.json")
    shutil.rmtree(B)
    interrupted_after(epochs, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        main.run(PROBLEM, config, B)


RESULTS = ("config.json", "epoch_metrics.json", "results.json", "train_inputs.npy", "predictions.npz")


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_resumed_run_has_the_bytes_of_an_uninterrupted_one(
    epochs: int, with_a: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert with_a(*FROM_A, "--spread", "3") == 0  # the scales of `a` are not those of these data
    expected = contents(*RESULTS)
    info = read(B, "run_info.json")["init_from"]
    interrupt(epochs, monkeypatch)
    assert (B / "last.pt").exists() == (epochs > 0)
    if epochs:  # the checkpoint has all weights
        shutil.rmtree(A)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert with_a("--resume", str(tmp_path / B)) == 0
    monkeypatch.chdir(tmp_path)
    assert contents(*RESULTS) == expected
    assert read(B, "run_info.json")["init_from"] == info


def test_a_run_without_a_checkpoint_is_only_resumed_with_the_same_weights(
    with_a: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert with_a(*FROM_A) == 0
    interrupt(0, monkeypatch)
    assert with_a(*POOLED, "--seed", "3", "--run-name", "a", "--overwrite") == 0
    capsys.readouterr()
    assert with_a("--resume", "b") == 3
    error = capsys.readouterr().err
    assert f"a/best.pt has changed since {B} was started: restore it, or start another run\n" in error
    shutil.rmtree(A)
    assert with_a("--resume", "b") == 2
    assert f"--init-from a: there is no such run in {tmp_path}: restore it, or" in capsys.readouterr().err
    assert with_a("--resume", "b", "--init-from", "none") == 2
    assert "--init-from none: the run has a: drop it" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- unseen examples


def test_examples_of_the_earlier_training_are_seen_even_if_another_run_is_in_between(
    toy_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    repeated = (*POOLED, "--dimension", "1", "--rounds", "2")  # 402 possible inputs
    assert toy_in_process(*repeated, "--run-name", "a") == 0
    assert toy_in_process(*repeated, "--seed", "1", "--init-from", "a", "--run-name", "b") == 0
    assert toy_in_process(*repeated, "--seed", "2", "--init-from", "b", "--run-name", "c") == 0
    configs = [load_config(ToyConfig, RUNS / name / "config.json") for name in "abc"]
    splits = [get_splits(PROBLEM, config)[0] for config in configs]
    trained = [set(hash_inputs(PROBLEM, configs[0], each.train).tolist()) for each in splits]
    assert set(np.load(RUNS / "c" / "train_inputs.npy").tolist()) == set.union(*trained)
    tested = hash_inputs(PROBLEM, configs[2], splits[2].test).tolist()
    n_unseen = [sum(each not in set.union(*trained[first:]) for each in tested) for first in range(3)]
    assert 0 < n_unseen[0] < n_unseen[1] < n_unseen[2]
    assert read(RUNS / "c", "results.json")["n_unseen"] == n_unseen[0]
    assert f"The inputs of {50 - n_unseen[0]} of the 50 test examples also occur" in capsys.readouterr().out
