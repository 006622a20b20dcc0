"""The record of a run: complete files, strict JSON, how the run ended, and the output on a terminal."""

import dataclasses
import json
import os
import platform
import pty
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import logger
from engine.interface.base_config import LogConfig, TrainConfig, load_config
from engine.machine import repository
from engine.machine.atomic_files import write_json
from engine.machine.errors import DivergedError, ProblemError
from engine.machine.signals import Interrupted
from engine.run_folder import checkpoints
from engine.run_folder.null_logger import NullLogger
from logger import RunLogger, hash_without_seed
from tests.conftest import DEBUG, TOY, environment, read, read_all
from tests.toy import PROBLEM, ToyConfig, ToyDataConfig
from utils import timed

ROW = {"epoch": 1, "step": 10, "train_loss": 0.5, "val_loss": 0.25, "val_mae": 0.1, "learning_rate": 0.001}


def state_of(epoch: int, best_epoch: int = 1) -> dict[str, Any]:
    """The state of a trainer after an epoch."""
    weights = {"w": torch.full((3,), float(epoch))}
    rows = [{**ROW, "epoch": i} for i in range(1, epoch + 1)]
    best = {"w": torch.full((3,), float(best_epoch))}
    return {"epoch": epoch, "rows": rows, "weights": weights, "best_epoch": best_epoch, "best_weights": best}


class Clock:
    """Replaces time.monotonic."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def saved_epoch(folder: Path, name: str = "last") -> int:
    return int(torch.load(folder / f"{name}.pt", weights_only=True)["epoch"])


def test_metrics_and_checkpoints_are_written_once_per_second_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with RunLogger(tmp_path, PROBLEM, ToyConfig()) as run:
        for epoch in range(1, 26):  # 0.1 s each: the first, the 11th and the 21st are written
            run.log_state(state_of(epoch))
            on_disk = epoch - (epoch - 1) % 10
            assert [row["epoch"] for row in read(tmp_path, "epoch_metrics.json")] == list(range(1, on_disk + 1))
            assert saved_epoch(tmp_path) == on_disk
            clock.now += 0.1001
        assert saved_epoch(tmp_path, "previous") == 11
        run.flush()
        assert len(read(tmp_path, "epoch_metrics.json")) == saved_epoch(tmp_path) == 25
        assert saved_epoch(tmp_path, "previous") == 21


@pytest.mark.parametrize("error", [Interrupted(2), DivergedError(), ValueError()])
def test_an_interrupted_run_saves_the_state_after_its_last_epoch(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    live = state_of(2, best_epoch=2)

    def train(run: RunLogger) -> None:
        run.log_state(state_of(1))
        run.log_state(live)
        live["weights"]["w"] += 99  # the next epoch has begun
        raise error

    run = RunLogger(tmp_path, PROBLEM, ToyConfig())
    with pytest.raises(type(error)), run:
        train(run)
    assert len(read(tmp_path, "epoch_metrics.json")) == 2
    assert torch.load(tmp_path / "last.pt", weights_only=True)["weights"]["w"].tolist() == [2, 2, 2]
    assert saved_epoch(tmp_path, "best") == 2


def test_an_interruption_while_a_state_is_written_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saves = checkpoints.save, []

    def interrupt(path: Path, *arguments: Any, **options: Any) -> None:
        saves.append(path.name)
        if saves.count("last.pt") == 2:
            saves.append("interrupted")
            raise Interrupted(15)
        save(path, *arguments, **options)

    monkeypatch.setattr(logger, "SECONDS_BETWEEN_WRITES", 0)
    monkeypatch.setattr(checkpoints, "save", interrupt)
    run = RunLogger(tmp_path, PROBLEM, ToyConfig())
    run.log_state(state_of(1))
    with pytest.raises(Interrupted), run:
        run.log_state(state_of(2))
    assert saves == ["best.pt", "last.pt", "last.pt", "interrupted", "last.pt"]
    assert saved_epoch(tmp_path) == 2


def test_a_state_that_cannot_be_saved_is_an_error_and_the_run_is_marked_as_failed(tmp_path: Path) -> None:
    run = RunLogger(tmp_path, PROBLEM, ToyConfig())
    with pytest.raises(ProblemError, match="mine is of the type ndarray"), run:
        run.log_state(state_of(1) | {"mine": np.ones(2)})
    assert read(tmp_path, "run_info.json")["status"] == "failed"
    assert not (tmp_path / "last.pt").exists()


def test_a_run_without_epochs_has_no_metrics(tmp_path: Path) -> None:
    with RunLogger(tmp_path, PROBLEM, ToyConfig()) as run:
        run.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "run_info.json"]


def test_nan_and_infinity_are_errors_and_the_old_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"r2": 1.0})
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"r2": value})
    assert json.loads(path.read_text(encoding="utf-8")) == {"r2": 1.0}
    assert list(tmp_path.iterdir()) == [path]


def test_config_and_provenance_are_recorded_at_the_start(tmp_path: Path) -> None:
    RunLogger(tmp_path, PROBLEM, ToyConfig(seed=5))
    assert load_config(ToyConfig, tmp_path / "config.json") == ToyConfig(seed=5)
    info = read(tmp_path, "run_info.json")
    assert info["status"] == "running"
    assert info["problem"] == "tests.toy"
    assert info["pid"] == os.getpid()
    assert info["torch"] == torch.__version__
    assert set(info) >= {"argv", "git_commit", "git_dirty", "python", "numpy", "platform", "started", "timings"}


def test_what_lists_of_runs_need_is_recorded(tmp_path: Path) -> None:
    config = ToyConfig(
        train=TrainConfig(lr=0.5, epochs=7),
        data=ToyDataConfig(dimension=4, cache=False),
        log=LogConfig(run_name="a"),
        seed=5,
        threads=1,
        compile=True,
    )
    RunLogger(tmp_path, PROBLEM, config).log_epoch({"epoch": 1, "train_loss": 1, "val_loss": 1, "val_mae": 1})
    info = read(tmp_path, "run_info.json")
    assert info["label"] == "mlp-d4"
    assert info["main_metric"] == ["mae", "min"]
    assert info["changed"] == {"data.dimension": 4, "train.epochs": 7, "train.lr": 0.5}
    RunLogger(tmp_path, PROBLEM, ToyConfig(data=ToyDataConfig(file="x.npz", points_key="x")))
    assert read(tmp_path, "run_info.json")["changed"] == {"data.file": "x.npz", "data.points_key": "x"}
    assert info["host"] == platform.node()


def test_only_changed_code_makes_a_commit_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    provenance = repository.provenance
    code, result = tmp_path / "engine" / "errors.py", tmp_path / "results.json"
    monkeypatch.setattr(repository, "ROOT", tmp_path)
    assert provenance()["git_commit"] is None
    git("init")
    code.parent.mkdir()
    for path in (code, result):
        path.write_text("1", encoding="utf-8", newline="\n")
    git("add", ".")
    git("commit", "-m", "all")
    assert len(provenance()["git_commit"]) == 40
    result.write_text("2", encoding="utf-8", newline="\n")
    assert provenance()["git_dirty"] is False
    code.write_text("2", encoding="utf-8", newline="\n")
    assert provenance()["git_dirty"] is True
    code.write_text("1", encoding="utf-8", newline="\n")
    (tmp_path / "new.py").touch()
    assert provenance()["git_dirty"] is True
    (tmp_path / "new.py").unlink()

    # Variables and settings of the user have no effect.
    before = provenance()
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"):  # git sets these for its hooks
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    assert provenance() == before
    settings = tmp_path / "settings"
    settings.write_text(
        f"[core]\nfsmonitor = touch {tmp_path}/ran; false\n[status]\nshowUntrackedFiles = no\n",
        encoding="utf-8",
        newline="\n",
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    settings.rename(tmp_path / ".gitconfig")
    assert provenance() == before
    assert not (tmp_path / "ran").exists()
    (tmp_path / "new.py").touch()
    assert provenance()["git_dirty"] is True


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_the_commit_is_found_in_a_repository_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", tmp_path], check=True, capture_output=True)
    monkeypatch.setattr(repository, "ROOT", tmp_path)
    for path in (tmp_path, tmp_path / ".git"):
        os.chown(path, 65534, 65534)
    assert repository.provenance()["git_dirty"] is False


@pytest.mark.parametrize(
    ("error", "status"), [(Interrupted(2), "interrupted"), (DivergedError(), "diverged"), (OSError(), "failed")]
)
def test_the_record_shows_how_a_run_ended(error: BaseException, status: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), RunLogger(tmp_path, PROBLEM, ToyConfig()):
        raise error
    assert read(tmp_path, "run_info.json")["status"] == status


def test_the_record_of_a_finished_run_has_its_timings(tmp_path: Path) -> None:
    timings: dict[str, float] = {}
    with RunLogger(tmp_path, PROBLEM, ToyConfig(), timings=timings), timed("data", timings):
        pass
    info = read(tmp_path, "run_info.json")
    assert info["status"] == "finished"
    assert info["timings"] == timings
    assert timings["data"] >= 0


def test_weights_are_saved_with_config_and_shapes_as_tensors_and_plain_values(tmp_path: Path) -> None:
    shapes: dict[str, Any] = {"inputs": [[2], []], "target": []}
    run = RunLogger(tmp_path, PROBLEM, ToyConfig(), shapes=shapes)
    run.log_state({**state_of(8, best_epoch=7), "best_weights": torch.nn.Linear(2, 3).state_dict()})
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    assert content["epoch"] == 7
    assert content["shapes"] == shapes
    assert content["config"]["model"]["hidden"] == 16
    assert content["model"]["weight"].shape == (3, 2)


def test_without_checkpoints_no_weights_are_saved(tmp_path: Path) -> None:
    run = RunLogger(tmp_path, PROBLEM, ToyConfig(log=LogConfig(checkpoints=False)))
    run.log_state(state_of(1))
    assert not list(tmp_path.glob("*.pt"))
    assert len(read(tmp_path, "epoch_metrics.json")) == 1


def test_the_best_weights_are_written_when_they_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "SECONDS_BETWEEN_WRITES", 0)
    run = RunLogger(tmp_path, PROBLEM, ToyConfig())
    for epoch, best_epoch in ((1, 1), (2, 1), (3, 3)):
        (tmp_path / "best.pt").unlink(missing_ok=True)
        run.log_state(state_of(epoch, best_epoch))
        assert (tmp_path / "best.pt").exists() == (epoch == best_epoch)


def test_a_resumed_run_restores_metrics_and_best_weights_from_its_checkpoint(tmp_path: Path) -> None:
    RunLogger(tmp_path, PROBLEM, ToyConfig()).log_state(state_of(5, best_epoch=4))
    (tmp_path / "best.pt").write_bytes(b"damaged")
    (tmp_path / "epoch_metrics.json").write_text("[", encoding="utf-8", newline="\n")
    RunLogger(tmp_path, PROBLEM, ToyConfig(), earlier={"status": "running"}, state=state_of(3, best_epoch=2))
    assert len(read(tmp_path, "epoch_metrics.json")) == 3
    assert saved_epoch(tmp_path, "best") == 2


def test_arrays_of_objects_are_not_saved(tmp_path: Path) -> None:
    run = RunLogger(tmp_path, PROBLEM, ToyConfig())
    run.log_arrays("predictions", {"a": np.arange(3), "b": np.eye(2)})
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["a", "b"]
        np.testing.assert_array_equal(arrays["b"], np.eye(2))
    with pytest.raises(ValueError, match="Object"):
        run.log_arrays("objects", {"a": np.array([{}])})
    assert not (tmp_path / "objects.npz").exists()


def test_the_null_logger_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = NullLogger()
    nothing.log_epoch(ROW)
    nothing.log_state({})
    nothing.flush()
    nothing.note(a=1)
    assert not list(tmp_path.iterdir())


def test_runs_that_only_differ_in_their_seed_are_in_one_group() -> None:
    base = ToyConfig()
    same = dataclasses.replace(base, seed=7, log=LogConfig(run_name="b"))
    other = dataclasses.replace(base, train=TrainConfig(lr=0.1))
    assert hash_without_seed(base) == hash_without_seed(same) != hash_without_seed(other)


def test_the_summary_is_an_aligned_table_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "--run-name", "a b"])
    run = RunLogger(tmp_path, PROBLEM, ToyConfig(seed=7), timings={"data": 1.25})
    run.note(git_commit="0123456789abcdef", git_dirty=True, processes=2)
    network, mean = {"loss": 1.0, "mae": 0.125, "r2": 0.5}, {"loss": 2.0, "mae": 0.5, "r2": -1e-5}
    results = {"test": network, "baselines": {"mean": mean}, "best_epoch": 3, "epochs_trained": 5}
    results |= {"n_test": 1234, "n_unseen": 1234, "test_unseen": network, "baselines_unseen": {"mean": mean}}
    header, rule, *rows, blank, command, origin = run.summary(results).split("\n")
    assert {len(line) for line in (header, rule, *rows)} == {len(header)}
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in (header, *rows)] == [
        ["on 1,234 test examples", "mae", "r2"],
        ["mlp-d3, epoch 3 of 5", "0.125", "0.5"],
        ["mean", "0.5", "-1e-05"],
    ]
    assert blank == ""
    assert command == "`python main.py --run-name 'a b'`, in 2 processes  "
    assert origin == "commit 0123456789, with changes; seed 7; data 1.2 s"


def test_the_summary_has_a_second_table_if_test_examples_occur_in_training(tmp_path: Path) -> None:
    run = RunLogger(tmp_path, PROBLEM, ToyConfig())
    results = {
        **{"test": {"loss": 1.0, "mae": 0.125}, "baselines": {"mean": {"loss": 2.0, "mae": 0.5}}},
        **{"test_unseen": {"loss": 1.5, "mae": 0.25}, "baselines_unseen": {"mean": {"loss": 2.5, "mae": 0.75}}},
        **{"n_test": 2000, "n_unseen": 1326, "best_epoch": 3, "epochs_trained": 5},
    }
    first, sentence, second, _ = run.summary(results).split("\n\n")
    assert sentence == "The inputs of 674 of the 2,000 test examples also occur in training. Without these:"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in second.splitlines()]
    assert [cells[0], *cells[2:]] == [
        ["on 1,326 test examples", "mae"],
        ["mlp-d3, epoch 3 of 5", "0.25"],
        ["mean", "0.75"],
    ]
    nothing = {"test_unseen": None, "baselines_unseen": None}
    for n, n_seen in ((1326, "674"), (0, "2,000")):  # no metrics on unseen examples; no unseen examples
        table, sentence, _ = run.summary(results | nothing | {"n_unseen": n}).split("\n\n")
        assert table == first
        assert sentence == f"The inputs of {n_seen} of the 2,000 test examples also occur in training."


def test_without_a_terminal_every_epoch_prints_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunLogger(tmp_path, PROBLEM, ToyConfig(train=TrainConfig(epochs=5)))
    for epoch in (1, 2):
        run.log_epoch({**ROW, "epoch": epoch})
    shown = capsys.readouterr()
    losses = "train loss 0.5, val loss 0.25, val mae 0.1"
    assert shown.out == f"epoch 1/5: {losses}\nepoch 2/5: {losses}\n"
    assert shown.err == ""


def test_a_terminal_shows_a_progress_bar_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 40))
    with os.fdopen(child, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with RunLogger(tmp_path, PROBLEM, ToyConfig(train=TrainConfig(epochs=5))) as run:
            for epoch in range(1, 6):
                run.log_epoch({**ROW, "epoch": epoch})
    shown = read_all(parent).decode()
    assert "training:" in shown
    assert "5/5" in shown
    assert max(map(len, shown.replace("\r", "\n").split("\n"))) <= 40
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_terminal_gets_a_bar_and_a_file_gets_lines(toy_run: Path, tmp_path: Path) -> None:
    lines = (toy_run.parent.parent / "stdout.txt").read_text(encoding="utf-8")
    assert [f"epoch {epoch}/5: train loss" in lines for epoch in range(1, 6)] == [True] * 5

    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 40))
    with subprocess.Popen(
        [sys.executable, *TOY, *DEBUG],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=child,
        encoding="utf-8",
    ) as done:
        os.close(child)
        shown = read_all(parent).decode()
        assert done.stdout is not None
        output = done.stdout.read()
    assert done.returncode == 0
    assert "training:" in shown
    assert "5/5" in shown
    assert max(map(len, shown.replace("\r", "\n").split("\n"))) <= 40
    assert "epoch 1/5" not in output
    assert "| mean" in output
