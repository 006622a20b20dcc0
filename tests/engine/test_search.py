"""sweep.py --search: the values that are tried, which runs are stopped early, and the confirmation of the best ones."""

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.machine.errors import BadRequestError, PrunedError
from engine.many_runs.groups import compare, find_groups
from engine.many_runs.search import STARTUP_TRIALS, Pruner
from engine.many_runs.sweep_request import parse_args
from engine.many_runs.sweeps import load_sweep
from tests.conftest import read
from tests.engine.test_sweep import SMALL, contents, runs, start

Run = Callable[..., int]

FOLDER = Path("checkpoints") / "s"
LR = ("--search", "lr=1e-6..1e-1:log")


def epochs_of(folder: Path) -> int:
    return len(read(folder, "epoch_metrics.json"))


def statuses(setting: str = "trial*") -> list[str]:
    return [read(path.parent, "run_info.json")["status"] for path in sorted(FOLDER.glob(f"{setting}/run_info.json"))]


def test_suggested_values_are_in_their_ranges_and_only_depend_on_the_seed(sweep_in_process: Run) -> None:
    search = (
        "--search",
        "lr=1e-5..1e-2:log",
        "hidden=4..7",
        "kind=mlp,pooled",
        "dropout=0..0.5",
        "absolute=true,false",
    )
    command = (*SMALL, "--epochs", "1", *search, "--trials", "6")
    assert sweep_in_process("s", *command) == 0
    trials = read(FOLDER, "trials.json")
    assert len(trials) == 6
    for number, trial in enumerate(trials):
        assert 1e-5 <= trial["train.lr"] <= 1e-2
        assert trial["model.hidden"] in range(4, 8)
        assert 0 <= trial["model.dropout"] <= 0.5
        assert trial["model.kind"] in ("mlp", "pooled")
        assert trial["absolute"] in (True, False)
        config = read(FOLDER / f"trial{number:03}-seed42", "config.json")
        assert config["train"]["lr"] == trial["train.lr"]
        assert {key: config["model"][key] for key in ("hidden", "dropout", "kind")} == {
            key: trial[f"model.{key}"] for key in ("hidden", "dropout", "kind")
        }
    rates = [math.log10(trial["train.lr"]) for trial in trials]
    assert min(rates) < -3.5 < max(rates)  # the middle of the logarithmic range; that of a linear one is at -2.3
    assert len({trial["model.hidden"] for trial in trials}) > 1

    assert sweep_in_process("again", *command) == 0
    assert read(Path("checkpoints") / "again", "trials.json") == trials
    assert sweep_in_process("other", *command, "--seed", "1") == 0
    assert read(Path("checkpoints") / "other", "trials.json") != trials


def test_bad_runs_are_pruned_after_a_quarter_of_the_epochs(sweep_in_process: Run) -> None:
    command = (*SMALL, "--epochs", "8", "--optimizer", "sgd", *LR, "--trials", "12")
    assert sweep_in_process("s", *command) == 0
    assert statuses().count("pruned") >= 2
    assert statuses()[:STARTUP_TRIALS] == ["finished"] * STARTUP_TRIALS
    for path in FOLDER.glob("trial*/run_info.json"):
        is_pruned = read(path.parent, "run_info.json")["status"] == "pruned"
        assert 2 < epochs_of(path.parent) < 8 if is_pruned else epochs_of(path.parent) == 8
    trials = read(FOLDER, "summary.json")["trials"]
    assert [trial["state"] for trial in trials].count("pruned") == statuses().count("pruned")
    complete = [trial["val_loss"] for trial in trials if trial["state"] == "complete"]
    assert complete == sorted(complete)
    for trial in trials[:2]:
        rows = read(FOLDER / f"{trial['name']}-seed42", "epoch_metrics.json")
        assert trial["val_loss"] == min(row["val_loss"] for row in rows)

    before = contents(FOLDER)
    assert sweep_in_process("s", *command) == 0
    assert contents(FOLDER) == before


def test_no_run_is_pruned_with_no_pruning(sweep_in_process: Run) -> None:
    command = (*SMALL, "--epochs", "8", "--optimizer", "sgd", *LR, "--trials", "9", "--no-pruning")
    assert sweep_in_process("s", *command) == 0
    assert statuses() == ["finished"] * 9


def test_the_pruner_starts_after_a_quarter_of_the_epochs_and_repeats_epochs() -> None:
    curves = [[1.0] * 16 for _ in range(STARTUP_TRIALS)]

    def first_pruned(earlier: list[float], start: int) -> int:
        watch = Pruner(curves, earlier, 16)
        for epoch in range(start, 17):
            try:
                watch({"epoch": epoch, "val_loss": 2.0})
            except PrunedError:
                return epoch
        return 0

    assert first_pruned([], 1) == 5
    assert first_pruned([2.0] * 8, 7) == 7  # resumed from the checkpoint of epoch 6
    assert Pruner(curves[1:], [], 16)({"epoch": 9, "val_loss": 2.0}) is None  # too few trials to compare with


def test_a_trial_that_diverges_counts_and_is_not_among_the_best(
    sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ("--search", "lr=1e30,1e-2,1e-3", "--optimizer", "sgd", "--trials", "6", "--confirm", "6", "--seeds", "1")
    assert sweep_in_process("s", *SMALL, *search) == 0
    assert "diverged" in statuses()
    assert len(read(FOLDER, "trials.json")) == 6
    assert f"{6 - statuses('trial*-seed42').count('diverged')} complete" in capsys.readouterr().out
    assert set(statuses("*-seed43")) == {"finished"}


def test_a_search_continues_with_more_trials(sweep_in_process: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep_in_process("s", *SMALL, *LR, "--trials", "2") == 0
    first = read(FOLDER, "trials.json")
    assert sweep_in_process("s", *SMALL, *LR, "--trials", "4") == 0
    assert read(FOLDER, "trials.json")[:2] == first
    assert len(runs()) == 4
    assert sweep_in_process("all", *SMALL, *LR, "--trials", "4") == 0  # the same as without the interruption
    assert read(Path("checkpoints") / "all", "trials.json") == read(FOLDER, "trials.json")
    before = contents(FOLDER)
    capsys.readouterr()
    for flags, words in (
        (["--trials", "3"], "also has 4 trials"),
        (["--trials", "4", "--no-pruning"], "has another choice of pruning"),
        (["--trials", "4", "--trial-seeds", "2"], "has another trial seeds"),
    ):
        assert sweep_in_process("s", *SMALL, *LR, *flags) == 2
        assert words in capsys.readouterr().err
    assert sweep_in_process("s", *SMALL, "--search", "lr=1e-6..1", "--trials", "4") == 2
    assert "has another search" in capsys.readouterr().err
    assert contents(FOLDER) == before


def test_the_best_settings_are_confirmed_with_other_seeds(
    sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("s", *SMALL, *LR, "--trials", "4", "--trial-seeds", "2", "--confirm", "2", "--seeds", "2")
    assert sweep_in_process(*command) == 0
    content = read(FOLDER, "summary.json")
    losses: dict[str, float] = {}
    for number in range(4):
        folders = [FOLDER / f"trial{number:03}-seed{seed}" for seed in (42, 43)]
        if all(folder.is_dir() and read(folder, "run_info.json")["status"] == "finished" for folder in folders):
            rows = [read(folder, "epoch_metrics.json") for folder in folders]
            losses[f"trial{number:03}"] = sum(min(row["val_loss"] for row in each) for each in rows) / 2
    best = sorted(losses, key=losses.__getitem__)[:2]
    assert [trial["name"] for trial in content["trials"][:2]] == best
    assert content["trials"][0]["val_loss"] == pytest.approx(losses[best[0]], rel=1e-12)
    assert [label.partition(":")[0] for label in content["settings"]] == ["unchanged", *best]
    for name in ("unchanged", *best):
        assert (FOLDER / f"{name}-seed44").is_dir()
        assert (FOLDER / f"{name}-seed45").is_dir()
    assert read(FOLDER / "unchanged-seed44", "config.json")["train"]["lr"] == 0.01  # of the preset
    assert content["reference"] == "unchanged"
    output = capsys.readouterr().out
    assert "--confirm K" not in output
    assert "minus unchanged" in output
    # Comparisons leave out the runs with which the trials were selected.
    compared = find_groups(["s"])
    assert [len(records) for records in compared.values()] == [2, 2, 2]
    assert next(iter(compared)) == "s/unchanged"
    assert {record.seed for records in compared.values() for record in records} == {44, 45}
    records = compared["s/unchanged"]
    others = [record._replace(info=record.info | {"problem": "another"}) for record in records]
    with pytest.raises(BadRequestError, match="compare runs of one problem"):
        compare({"a": records, "b": others})


def test_optuna_is_only_needed_for_a_search(
    sweep_in_process: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert sweep_in_process("t", *SMALL, *LR, "--trials", "2") == 2
    error = "--search needs the package optuna: run `pip install -r requirements.txt`"
    assert capsys.readouterr().err == f"sweep.py: error: {error}\n"
    assert list(Path.cwd().iterdir()) == []
    assert sweep_in_process("s", *SMALL, "--seeds", "1") == 0


@pytest.mark.parametrize("damage", ["{", "{}", "3", "[3]", "[[]]", '[{"train.lr": 0.001, "x": 1}]', '["train.lr"]'])
def test_a_damaged_list_of_trials_is_reported_in_one_line(
    damage: str, sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("s", *SMALL, "--epochs", "1", *LR, "--trials", "1")
    assert sweep_in_process(*command) == 0
    (FOLDER / "trials.json").write_text(damage, encoding="utf-8")
    before = contents(FOLDER)
    capsys.readouterr()
    for arguments in (command, ("s", "--work")):
        assert sweep_in_process(*arguments) == 3
        error = capsys.readouterr().err
        assert error.startswith("sweep.py: error: checkpoints/s/trials.json is damaged (")
        assert error.count("\n") == 1
        assert contents(FOLDER) == before


def test_damaged_metrics_of_a_trial_are_reported_in_one_line(
    sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("s", *SMALL, "--epochs", "1", *LR, "--trials", "1")
    assert sweep_in_process(*command) == 0
    capsys.readouterr()
    for damage in ("{", "3", "[]", '[{"epoch": 1}]'):
        (FOLDER / "trial000-seed42" / "epoch_metrics.json").write_text(damage, encoding="utf-8")
        assert sweep_in_process(*command) == 3
        error = "trial000-seed42/epoch_metrics.json is damaged: remove this run to train it again\n"
        assert capsys.readouterr().err == f"sweep.py: error: checkpoints/s/{error}"
    shutil.rmtree(FOLDER / "trial000-seed42")
    assert sweep_in_process(*command) == 0


def test_a_process_continues_when_another_one_has_added_trials(sweep_in_process: Run) -> None:
    """The last trials may have been added by a process that was then killed."""
    command = ["s", *SMALL, "--epochs", "1", *LR, "--trials", "2", "--problem", "tests.toy", "--device", "cpu"]
    start(parse_args(command))
    ours, other = load_sweep(FOLDER), load_sweep(FOLDER)
    assert ours.search is not None
    assert other.search is not None
    assert other.search.add()
    assert other.search.add()
    assert [run.name for run in ours.open_runs(())] == ["trial000-seed42", "trial001-seed42"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--search", "lr=0.1..0.1", "--trials", "2"], "not a range: write"),
        (["--search", "lr=0.2..0.1", "--trials", "2"], "not a range: write"),
        (["--search", "lr=1e-4...1e-2", "--trials", "2"], "not a range: write lr=low..high"),
        (["--search", "rounds=none..3", "--trials", "2"], "not a range: write"),
        (["--search", "lr=..0.1", "--trials", "2"], "--lr"),
        (["--search", "lr=0..0.1", "--trials", "2"], "--lr 0: must be a number, above 0"),
        (["--search", "dropout=0..0.1:log", "--trials", "2"], "dropout=low..high:log above 0"),
        (["--search", "lr=0.1..1:lin", "--trials", "2"], "not a range"),
        (["--search", "kind=mlp..pooled", "--trials", "2"], "only a number has a range; write kind=v1,v2"),
        (["--search", "hidden=1.5..3", "--trials", "2"], "--hidden 1.5: must be an integer"),
        (["--search", "lr=nan..1", "--trials", "2"], "must be a number"),
        (["--search", "lr=0.1..inf", "--trials", "2"], "must be a number"),
        (
            ["--search", "lr=0.1..1", "--lr", "0.2", "--trials", "2"],
            "given twice, as a flag and among the values to try",
        ),
        (["--search", "lr=0.1..1"], "--search needs --trials N"),
        (["--search", "lr=0.1..1", "--trials", "0"], "--trials 0: must be"),
        (["--search", "lr=0.1..1", "--trials", "2", "--seeds", "3"], "--seeds does nothing with --search"),
        (["--search", "lr=0.1..1", "--trials", "2", "--confirm", "1"], "--confirm needs --seeds N"),
        (["--search", "lr=0.1..1", "--trials", "2", "--trial-seeds", "2", "--seed", str(2**64 - 1)], "below 2^64"),
        (
            ["--search", "lr=0.1..1", "--trials", "2", "--confirm", "1", "--seed-list", "42"],
            "the trials of the search have the seed 42",
        ),
        (["--search", "lr=0.1..1", "hidden=1..2", "--trials", "2", "--grid", "spread=1,2"], "--grid does nothing"),
        (["--search", "lr=0.1..1", "--grid", "lr=1,2", "--trials", "2"], "--grid does nothing"),
        (["--search", "lrr=0.1..1", "--trials", "2"], "did you mean --lr"),
    ],
)
def test_a_bad_search_is_refused_in_one_line(
    arguments: list[str], words: str, sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep_in_process("s", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("sweep.py: error: ")
    assert error.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []
