"""Runs that were killed or interrupted, or that failed, can be resumed and give the result of an uninterrupted run."""

import io
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.interface.base_config import load_config
from engine.machine.atomic_files import read_checked, write_checked
from engine.run_folder import checkpoints
from engine.run_folder.run_lock import lock_run
from tests.conftest import DEBUG, HANG, ROOT, TOY, environment, read, run_command, start_command, wait_for
from tests.toy import ToyConfig

Run = Callable[..., int]

FIRST = Path("checkpoints") / "first"


@pytest.fixture
def finished(toy_run: Path, toy_in_process: Run) -> Run:
    """A function that runs the program in a folder with a copy of the run `first`, which trained for 5 epochs."""
    shutil.copytree(toy_run.parent.parent, ".", dirs_exist_ok=True)
    return toy_in_process


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ------------------------------------------------------------------------------------------------------------- killed


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "ending", "fewest"), [("writes", -9, 40), ("full", 5, 13), ("moments", -9, 15)])
def test_a_run_that_is_cut_off_anywhere_gives_the_same_result_when_resumed(mode: str, ending: int, fewest: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.cut_off", mode],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=2 * HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cuts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [cut for cut in cuts if cut["differ"] or cut["then"] not in ([0], [2, 0])] == []
    assert [cut for cut in cuts if cut["first"] not in (ending, 0)] == []
    assert sum(cut["first"] == ending for cut in cuts) >= fewest
    assert {cut["epochs"] for cut in cuts} >= {0, 1, 2} or mode == "moments"


@pytest.mark.slow
def test_a_disk_that_fills_up_while_saving_leaves_the_earlier_checkpoint(toy_run: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_run.parent.parent, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / FIRST
    before = read_checked(folder / "last.pt")
    assert (folder / "best.pt").stat().st_size < 6000 < len(before)  # only last.pt exceeds the limit below
    done = subprocess.run(
        [sys.executable, *TOY, "--resume", "first", "--epochs", "7"],
        cwd=tmp_path,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        encoding="utf-8",
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)),
    )
    assert done.returncode == 5
    assert done.stderr.startswith("toy.py: error: ")
    assert done.stderr.count("\n") == 1
    assert before in (read_checked(path) for path in folder.glob("*.pt"))
    assert read(folder, "run_info.json")["status"] == "failed"
    done = run_command("--resume", "first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch 5 of 7" in done.stdout
    assert "the schedule is now that of the longer run: the learning rate continues at 0.00" in done.stdout


# ------------------------------------------------------------------------------------------------------------ resumed


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--lr", "0.5"], ["--lr 0.5", "0.01"]),
        (["--hidden", "8"], ["--hidden 8", "16"]),
        (["--spread", "2"], ["--spread 2", "1.0"]),
        (["--epochs", "4"], ["--epochs 4", "5"]),
        (["--seed", "1"], ["--seed 1", "42"]),
        (["--run-name", "other"], ["--run-name other", "first"]),
        (["--overwrite"], ["--overwrite"]),
        (["--preset", "default"], ["--preset"]),
        (["--epochs", "0"], ["--epochs 0"]),
    ],
)
def test_options_that_define_a_run_cannot_be_changed(
    flags: list[str], named: list[str], finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(FIRST)
    assert finished("--resume", "first", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(words in error for words in named)
    assert contents(FIRST) == before


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (('"lr": 0.01', '"lr": 0.5'), "train.lr 0.5: the run has 0.01: restore it, or start another run"),
        (('"optimizer": "adamw"', '"optimizer": "sgd"'), 'train.optimizer "sgd": the run has "adamw": restore it'),
        (('"epochs": 5', '"epochs": 3'), "train.epochs 3: the run has 5; give at least as many"),
        (('"hidden": 16', '"hidden": 8'), "model.hidden 8: the run has 16: restore it"),
        (('"absolute": false', '"absolute": true'), "absolute true: the run has false: restore it"),
        (('"dimension": 3', '"dimension": 4'), "data.dimension 4: the run has 3: restore it"),
    ],
)
def test_a_config_that_was_edited_is_refused_like_a_flag(
    edit: tuple[str, str], error: str, finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = FIRST / "config.json"
    assert edit[0] in path.read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8").replace(*edit), encoding="utf-8", newline="\n")
    before = contents(FIRST)
    for flags in ([], ["--threads", "1"]):
        assert finished("--resume", "first", *flags) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"toy.py: error: checkpoints/first/config.json: {error}")
        assert line.count("\n") == 1
        assert contents(FIRST) == before


def test_settings_in_a_config_that_may_change_can_be_edited(finished: Run, toy_run: Path) -> None:
    path = FIRST / "config.json"
    edited = (
        path.read_text(encoding="utf-8")
        .replace('"epochs": 5', '"epochs": 6')
        .replace('"threads": null', '"threads": 1')
    )
    path.write_text(edited, encoding="utf-8", newline="\n")
    assert finished("--resume", "first") == 0
    assert read(FIRST, "results.json")["epochs_trained"] == 6
    assert path.read_text(encoding="utf-8") == edited


# ----------------------------------------------------------------------------------------------- the file of the data


@pytest.fixture
def with_file(toy_in_process: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The program, in the folder `other`. In the folder `project`, the run `r` was trained on the file data.npz."""
    for name in ("project", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "project")
    sizes = ["--num-train", "100", "--num-val", "50", "--num-test", "50"]
    training = ["--device", "cpu", "--epochs", "2", "--batch-size", "10"]
    assert toy_in_process(*sizes, "--save-data", "data.npz") == 0
    assert toy_in_process(*sizes, *training, "--data", "data.npz", "--run-name", "r") == 0
    monkeypatch.chdir(tmp_path / "other")
    return toy_in_process


def test_a_run_with_a_relative_data_file_is_resumed_in_another_folder(with_file: Run) -> None:
    assert with_file("--resume", "../project/checkpoints/r", "--epochs", "3") == 0
    folder = Path("../project/checkpoints/r")
    assert read(folder, "results.json")["epochs_trained"] == 3
    assert read(folder, "config.json")["data"]["file"] == "data.npz"


def test_a_project_can_be_moved(with_file: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").rename(tmp_path / "moved")
    assert with_file("--resume", str(tmp_path / "moved" / "checkpoints" / "r"), "--epochs", "3") == 0
    monkeypatch.chdir(tmp_path / "moved")
    assert with_file("--resume", "r", "--epochs", "4") == 0


def test_a_data_file_that_was_moved_is_given_with_data(
    with_file: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project" / "data.npz").rename("renamed.npz")
    run = ("--resume", "../project/checkpoints/r", "--epochs", "3")
    assert with_file(*run) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    looked = f"is not in {tmp_path / 'project'} or {tmp_path / 'other'}: give its new path with --data"
    assert f"data.npz, the data of ../project/checkpoints/r, {looked}" in error
    assert with_file(*run, "--data", "renamed.npz") == 0
    assert read(Path("../project/checkpoints/r"), "config.json")["data"]["file"] == "../other/renamed.npz"
    monkeypatch.chdir(tmp_path / "project")
    assert with_file("--resume", "r", "--epochs", "4") == 0


def test_a_resumed_run_only_accepts_a_file_with_the_same_data(
    with_file: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert with_file("--num-train", "200", "--seed", "3", "--save-data", "wrong.npz") == 0
    before = contents(Path("../project"))
    run = ("--resume", "../project/checkpoints/r", "--epochs", "3", "--data")
    assert with_file(*run, "wrong.npz") == 3
    assert "the data have changed since ../project/checkpoints/r was trained" in capsys.readouterr().err
    assert with_file(*run, "none") == 2
    assert "--data none: the run has data.npz: drop it" in capsys.readouterr().err
    assert contents(Path("../project")) == before


def test_resuming_a_finished_run_changes_nothing(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(FIRST)
    # Flags that agree with the run, or that may be changed, are allowed.
    for arguments in (["first"], ["checkpoints/first", "--lr", "0.01", "--run-name", "first", "--threads", "1"]):
        assert finished("--resume", *arguments) == 0
        assert "is finished" in capsys.readouterr().out
        assert contents(FIRST) == before


def test_a_resumed_run_can_be_longer(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = read(FIRST, "epoch_metrics.json")
    assert finished("--resume", "first", "--epochs", "7") == 0
    assert "continuing after epoch 5 of 7" in capsys.readouterr().out
    rows = read(FIRST, "epoch_metrics.json")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert rows[:5] == before
    assert rows[5]["learning_rate"] > rows[4]["learning_rate"]  # on the longer schedule
    info = read(FIRST, "run_info.json")
    assert info["status"] == "finished"
    assert [earlier["status"] for earlier in info["earlier"]] == ["finished"]
    assert load_config(ToyConfig, FIRST / "config.json").train.epochs == 7
    assert finished("--resume", "first", "--epochs", "8") == 0
    assert [earlier["status"] for earlier in read(FIRST, "run_info.json")["earlier"]] == ["finished", "finished"]


def test_a_run_of_another_problem_is_not_resumed(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    info = read(FIRST, "run_info.json") | {"problem": "another.problem"}
    (FIRST / "run_info.json").write_text(json.dumps(info), encoding="utf-8", newline="\n")
    assert finished("--resume", "first") == 2
    words = "this run was started with another.problem: resume it with another.problem"
    assert capsys.readouterr().err == f"toy.py: error: --resume first: {words}\n"


def test_a_run_that_stopped_early_is_finished(toy_in_process: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert toy_in_process(*DEBUG, "--epochs", "60", "--patience", "1", "--lr", "0.1", "--run-name", "r") == 0
    folder = Path("checkpoints") / "r"
    before = (folder / "results.json").read_bytes()
    assert json.loads(before)["epochs_trained"] < 60
    for flags in ([], ["--epochs", "100"]):
        assert toy_in_process("--resume", "r", *flags) == 0
        assert "is finished" in capsys.readouterr().out
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize("name", ["unknown", "checkpoints/unknown", "", ".", "..", "two\nlines", "x" * 300])
def test_a_run_to_resume_must_exist(name: str, toy_in_process: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert toy_in_process("--resume", name) == 2
    error = capsys.readouterr().err
    assert error.startswith("toy.py: error: --resume")
    assert error.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []


def test_a_run_without_checkpoints_cannot_be_resumed(toy_in_process: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert toy_in_process(*DEBUG, "--epochs", "1", "--no-checkpoints", "--run-name", "n") == 0
    assert list(Path("checkpoints", "n").glob("*.pt")) == []
    assert toy_in_process("--resume", "n") == 2
    assert "--no-checkpoints" in capsys.readouterr().err


def test_a_run_with_other_data_is_not_resumed(toy_in_process: Run, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--num-train", "100", "--num-val", "50", "--num-test", "50"]
    training = ["--device", "cpu", "--epochs", "2", "--batch-size", "10"]
    assert toy_in_process(*sizes, "--save-data", "a.npz") == 0
    assert toy_in_process(*sizes, *training, "--data", "a.npz", "--run-name", "r") == 0
    before = contents(Path("checkpoints"))
    assert toy_in_process(*sizes, "--seed", "1", "--save-data", "a.npz", "--overwrite") == 0
    assert toy_in_process("--resume", "r", "--epochs", "3") == 3
    assert "the data have changed since checkpoints/r was trained" in capsys.readouterr().err
    assert contents(Path("checkpoints")) == before


def test_only_one_process_writes_a_run(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(FIRST)
    with lock_run(FIRST, overwrite=True):
        assert finished("--resume", "first", "--epochs", "7") == 2
    assert "checkpoints/first is being written by another process: wait" in capsys.readouterr().err
    assert contents(FIRST) == before


@pytest.mark.slow
def test_a_run_in_progress_cannot_be_resumed(tmp_path: Path) -> None:
    with start_command(*DEBUG, "--epochs", "3000", "--run-name", "r", cwd=tmp_path) as process:
        wait_for("epoch 1/", process.stdout)
        done = run_command("--resume", "r", cwd=tmp_path)
        process.kill()
    assert done.returncode == 2
    assert f"is being written by process {process.pid}" in done.stderr


# ------------------------------------------------------------------------------------------------------------ damaged


@pytest.mark.parametrize("damage", ["flipped", "empty", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(
    damage: str, finished: Run, toy_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (FIRST / "last.pt").read_bytes()
    (FIRST / "last.pt").write_bytes({"flipped": whole[:5000] + b"?" + whole[5001:]}.get(damage, b""))
    if damage == "missing":
        (FIRST / "last.pt").unlink()
    (FIRST / "run_info.json").write_text(
        (FIRST / "run_info.json").read_text(encoding="utf-8").replace("finished", "running"),
        encoding="utf-8",
        newline="\n",
    )
    (FIRST / "best.pt").write_bytes(b"damaged as well")
    assert finished("--resume", "first") == 0
    output = capsys.readouterr()
    # The run took less than a second, so that only the first and the last epoch were saved.
    assert "continuing after epoch 1 of 5" in output.out
    warning = "warning: checkpoints/first/last.pt is damaged: continuing from previous.pt, after epoch 1\n"
    assert output.err == (warning if damage != "missing" else "")
    for name in ("epoch_metrics.json", "results.json", "predictions.npz", "train_inputs.npy"):
        assert (FIRST / name).read_bytes() == (toy_run / name).read_bytes()
    config = load_config(ToyConfig, FIRST / "config.json")
    for name in ("best.pt", "last.pt"):
        now, then = (checkpoints.load(folder / name, config) for folder in (FIRST, toy_run))
        assert now.pop("sha256")
        assert then.pop("sha256")
        assert json.dumps(now, default=torch.Tensor.tolist) == json.dumps(then, default=torch.Tensor.tolist)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_resumed(
    finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("last.pt", "previous.pt"):
        (FIRST / name).write_bytes(b"")
    before = contents(FIRST)
    assert finished("--resume", "first", "--epochs", "6") == 3
    error = capsys.readouterr().err
    assert error == "toy.py: error: checkpoints/first/last.pt is damaged\n"
    assert contents(FIRST) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("epoch", -5), ("n_steps", -1), ("best_epoch", 6), ("best_loss", "x"), ("rows", [1]), ("best_weights", None)],
)
def test_a_checkpoint_that_cannot_be_right_is_damaged(
    key: str, value: object, finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = torch.load(io.BytesIO(read_checked(FIRST / "last.pt")), weights_only=True)
    buffer = io.BytesIO()
    torch.save({**saved, key: value}, buffer)
    write_checked(FIRST / "last.pt", buffer.getvalue())
    (FIRST / "previous.pt").unlink()
    assert finished("--resume", "first", "--epochs", "6") == 3
    error = capsys.readouterr().err
    assert error == "toy.py: error: checkpoints/first/last.pt is damaged: its epoch, or its metrics, cannot be right\n"


def test_moments_of_another_shape_are_refused(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Fused optimisers would write beyond the end of their memory."""
    saved = torch.load(io.BytesIO(read_checked(FIRST / "last.pt")), weights_only=True)
    for state in saved["optimizer"]["state"].values():
        state["exp_avg"] = torch.zeros(2, 1)
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    write_checked(FIRST / "last.pt", buffer.getvalue())
    assert finished("--resume", "first", "--epochs", "6") == 3
    assert "the state exp_avg of a parameter has the shape (2, 1)" in capsys.readouterr().err


def test_the_error_about_a_damaged_record_shows_how_to_continue(
    finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (FIRST / "run_info.json").write_text("{", encoding="utf-8", newline="\n")
    assert finished("--resume", "first", "--epochs", "6") == 3
    error = capsys.readouterr().err
    assert "checkpoints/first/run_info.json is damaged" in error
    assert "remove it to continue without it" in error
    (FIRST / "run_info.json").unlink()
    assert finished("--resume", "first", "--epochs", "6") == 0
    assert read(FIRST, "results.json")["epochs_trained"] == 6
