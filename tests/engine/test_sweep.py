"""sweep.py: which runs a sweep has, how it continues, its summary, and how it refuses bad input."""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sweep
from engine.interface.base_config import load_config
from engine.many_runs.sweep_request import SweepRequest, parse_args
from engine.many_runs.sweeps import Sweep, open_sweep
from engine.options.config_values import FORMAT
from engine.options.fields import check_name
from engine.run_folder.run_lock import lock_run
from tests.conftest import DEBUG, read
from tests.toy import PROBLEM, ToyConfig, ToyProblem

Run = Callable[..., int]

FOLDER = Path("checkpoints") / "s"
SMALL = ("--preset", "debug", "--epochs", "2")


def runs(folder: Path = FOLDER) -> list[str]:
    """The names of the runs in a sweep."""
    return sorted(path.parent.name for path in folder.glob("*/config.json"))


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def planned(*arguments: str) -> list[str]:
    """The names of the runs that a command line plans, without training any."""
    request = parse_args(["s", "--problem", "tests.toy", *arguments])
    assert request.plan is not None
    return [run.name for run in Sweep(request.folder, request.plan, PROBLEM).open_runs(())]


def start(request: SweepRequest) -> None:
    """Start a sweep, without training its runs."""
    assert request.plan is not None
    open_sweep(request.folder, request.plan)


# ---------------------------------------------------------------------------------------------------------- the plan


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--seeds", "2"], ["seed42", "seed43"]),
        (["--seeds", "2", "--seed", "7"], ["seed7", "seed8"]),
        (["--seed-list", "5,1"], ["seed5", "seed1"]),
        (["--seed-list", str(2**64 - 1)], [f"seed{2**64 - 1}"]),
        (["--grid", "lr=0.01,1e-3"], ["lr0.01-seed42", "lr0.001-seed42"]),
        (["--grid=--lr=0.01"], ["lr0.01-seed42"]),
        (["--grid", "skip=true,false"], ["skip-seed42", "no-skip-seed42"]),
        (["--grid", "rounds=none, 2"], ["roundsnone-seed42", "rounds2-seed42"]),
        (["--grid", "kind=mlp,pooled"], ["kindmlp-seed42", "kindpooled-seed42"]),
        (
            ["--grid", "lr=0.01,0.02", "--grid", "hidden=4,8"],
            [f"lr{lr}-hidden{hidden}-seed42" for lr in (0.01, 0.02) for hidden in (4, 8)],
        ),
    ],
)
def test_a_sweep_has_every_combination_and_every_seed(arguments: list[str], names: list[str]) -> None:
    assert planned(*arguments) == names


@pytest.mark.parametrize(
    "grid",
    [
        ["points-key=a b,a_b,a-b,a.b,A.b,a:b,a/b,é,ü,x,.,.."],
        [f"points-key={'x' * 60}1,{'x' * 60}2,{'x' * 300}"],
        ["lr=0.1234567890123456,0.1234567890123457", "spread=0.1234567890123456,0.1234567890123457"],
        ["points-key=a,a-optimizersgd", "optimizer=sgd,adam"],
        ["points-key=con,CON,nul,Nul"],
    ],
)
def test_different_values_have_different_valid_names(grid: list[str], tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data.npz")) if grid[0].startswith("points-key") else ()
    (tmp_path / "data.npz").touch()
    names = planned("--grid", *grid, "--seed", str(2**63), *data)
    assert len({name.lower() for name in names}) == math.prod(word.count(",") + 1 for word in grid)
    for name in names:
        assert check_name(name) == name


def test_a_config_of_a_run_only_differs_in_its_setting_and_seed() -> None:
    request = parse_args(["s", "--problem", "tests.toy", "--preset", "debug", "--grid", "lr=0.5", "--seed-list", "3"])
    assert request.plan is not None
    (run,) = Sweep(request.folder, request.plan, PROBLEM).open_runs(())
    preset = PROBLEM.presets["debug"]
    assert (run.config.train.lr, run.config.seed, run.config.log.run_name) == (0.5, 3, "lr0.5-seed3")
    assert run.config.data == preset.data
    assert run.config.train.epochs == preset.train.epochs
    assert run.config.threads == 1


def test_runs_have_one_thread_unless_it_is_set(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"threads": 2}', encoding="utf-8")
    for arguments, threads in (
        ([], 1),
        (["--threads", "3"], 3),
        (["--threads", "none"], None),
        (["--config", str(tmp_path / "c.json")], 2),
    ):
        request = parse_args(["s", "--problem", "tests.toy", "--seeds", "2", *arguments])
        assert request.plan is not None
        assert request.plan.config["threads"] == threads


# ------------------------------------------------------------------------------------------------------- continuing


def test_the_same_command_continues_and_trains_nothing_again(
    sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("s", *SMALL, "--grid", "lr=0.01,0.001", "--seeds", "2")
    assert sweep_in_process(*command) == 0
    assert runs() == ["lr0.001-seed42", "lr0.001-seed43", "lr0.01-seed42", "lr0.01-seed43"]
    output, before = capsys.readouterr(), contents(FOLDER)
    assert output.err == ""
    assert output.out.count("finished after epoch 2 of 2, test mae 0.") == 4
    assert sweep_in_process(*command) == 0
    assert contents(FOLDER) == before
    assert "finished after" not in capsys.readouterr().out

    for extended in (
        ("s", *SMALL, "--grid", "lr=0.01,0.001", "--seeds", "3"),
        ("s", *SMALL, "--grid", "lr=0.1,0.001,0.01", "--seed-list", "44,43,42"),
    ):
        assert sweep_in_process(*extended) == 0
        assert capsys.readouterr().out.count("finished after") == (2 if "--seeds" in extended else 3)
        after = contents(FOLDER)
        assert {name: after[name] for name in before if "/" in name} == {
            name: content for name, content in before.items() if "/" in name
        }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "1", "--grid", "lr=0.01,0.02"], "also has seed 43: keep these"),
        (["--seed-list", "42,44", "--grid", "lr=0.01,0.02"], "also has seed 43: keep these"),
        (["--seeds", "2", "--grid", "lr=0.01"], "also has train.lr=0.02: keep these"),
        (["--seeds", "2"], "has another grid"),
        (["--seeds", "2", "--grid", "lr=0.01,0.02", "hidden=4,8"], "has another grid"),
        (
            ["--seeds", "2", "--grid", "lr=0.01,0.02", "--epochs", "3"],
            "--epochs 3: the sweep s has 2: give the options",
        ),
        (["--seeds", "2", "--grid", "lr=0.01,0.02", "--skip"], "--skip: the sweep s has --no-skip"),
        (["--seeds", "2", "--seed", "43", "--grid", "lr=0.01,0.02"], "--seed 43: the sweep s has 42"),
        (["--search", "lr=0.01..0.02", "--trials", "1"], "has another grid"),
    ],
)
def test_other_options_are_refused(
    arguments: list[str], words: str, sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    FOLDER.mkdir(parents=True)
    command = ["s", *SMALL, "--problem", "tests.toy", "--device", "cpu", "--seeds", "2", "--grid", "lr=0.01,0.02"]
    start(parse_args(command))
    before = contents(FOLDER)
    base = SMALL if "--epochs" not in arguments else SMALL[:2]
    assert sweep_in_process("s", *base, *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert contents(FOLDER) == before


def test_a_sweep_continues_after_an_option_was_added_to_the_problem(sweep_in_process: Run) -> None:
    command = ("s", *SMALL, "--seeds", "1")
    assert sweep_in_process(*command) == 0
    plan = read(FOLDER, "sweep.json")
    del plan["config"]["model"]["dropout"]
    (FOLDER / "sweep.json").write_text(json.dumps(plan), encoding="utf-8")
    assert sweep_in_process("s", "--work") == 0
    assert sweep_in_process(*command) == 0


def test_a_sweep_that_was_killed_when_it_started_continues(sweep_in_process: Run) -> None:
    FOLDER.mkdir(parents=True)
    assert sweep_in_process("s", *SMALL, "--seeds", "1") == 0
    for name in ("sweep.json", "summary.json"):
        (FOLDER / name).unlink()
    (FOLDER / ".sweep.json.123.tmp").touch()
    assert sweep_in_process("s", *SMALL, "--seeds", "1") == 0
    assert not list(FOLDER.glob(".*.tmp"))


def test_edited_code_is_reported_when_a_sweep_continues(
    sweep_in_process: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("s", *SMALL, "--seeds", "2")
    assert sweep_in_process(*command) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("engine.run_folder.changed_code.code_hash", lambda *_, **__: "other")
    assert sweep_in_process(*command) == 0
    warning = "warning: the code of tests.toy, or of a file that it imports, has changed since checkpoints/s/seed42 was"
    assert capsys.readouterr().err.startswith(warning)


# ------------------------------------------------------------------------------------------------------ the summary


def test_the_summary_has_means_errors_and_paired_differences(
    sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep_in_process("s", *SMALL, "--grid", "lr=0.0001,0.01", "--seeds", "5") == 0
    found = read(FOLDER, "summary.json")
    reference, other = "--lr 0.0001", "--lr 0.01"
    values = {
        label: [read(FOLDER / f"{label[2:].replace(' ', '')}-seed{seed}", "results.json") for seed in range(42, 47)]
        for label in (reference, other)
    }
    by_seed = {label: [results["test"]["mae"] for results in each] for label, each in values.items()}
    for label, numbers in by_seed.items():
        mae = found["settings"][label]["metrics"]["test_mae"]
        assert mae["values"] == {str(42 + i): number for i, number in enumerate(numbers)}
        assert mae["n"] == 5
        assert mae["mean"] == pytest.approx(statistics.mean(numbers), rel=1e-12)
        assert mae["standard_error"] == pytest.approx(statistics.stdev(numbers) / math.sqrt(5), rel=1e-12)
        states = {seed: run["status"] for seed, run in found["settings"][label]["runs"].items()}
        assert states == {str(seed): "finished" for seed in range(42, 47)}
    paired = [b - a for a, b in zip(by_seed[reference], by_seed[other], strict=True)]
    difference = found["differences"][other]["test_mae"]
    assert list(difference["values"].values()) == paired
    assert difference["mean"] == pytest.approx(statistics.mean(paired), rel=1e-12)
    assert difference["standard_error"] == pytest.approx(statistics.stdev(paired) / math.sqrt(5), rel=1e-12)
    t = statistics.mean(paired) / (statistics.stdev(paired) / math.sqrt(5))
    assert t < -2.776  # the value of Student's t for 4 degrees of freedom and 5 %
    assert found["verdicts"] == {other: "better"}
    output = capsys.readouterr().out
    assert found["table"] in output
    assert f"minus {reference}" in output


def test_there_is_no_verdict_with_four_seeds(sweep_in_process: Run) -> None:
    assert sweep_in_process("s", *SMALL, "--epochs", "1", "--grid", "lr=0.0001,0.1", "--seeds", "4") == 0
    assert read(FOLDER, "summary.json")["verdicts"] == {"--lr 0.1": "no verdict: 4 seeds, 5 are needed"}


class BrokenProblem(ToyProblem):
    """The toy problem, which fails with the seed 43."""

    def network(self, config, input_shapes, target_shape):  # type: ignore[no-untyped-def]
        if config.seed == 43:
            raise ZeroDivisionError("seed 43")
        return super().network(config, input_shapes, target_shape)


def test_a_run_that_fails_does_not_stop_the_others(
    sweep_in_process: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("s", *SMALL, "--seeds", "3")
    with monkeypatch.context() as patch:
        patch.setattr("tests.toy.PROBLEM", BrokenProblem())
        for _ in range(2):  # it is tried again by every command
            assert sweep_in_process(*command) == 1
            output = capsys.readouterr()
            line = "seed43: failed: ZeroDivisionError: seed 43 (checkpoints/s/output/seed43.txt)\n"
            assert output.err.endswith(line)
            assert output.err.count("failed") == 1
    assert (FOLDER / "output" / "seed43.txt").read_text(encoding="utf-8").count("Traceback") == 2
    assert sweep_in_process(*command) == 0
    assert capsys.readouterr().out.count("finished after") == 1
    statuses = read(FOLDER, "summary.json")["settings"]["mlp-d3"]["runs"].values()
    assert [each["status"] for each in statuses] == ["finished"] * 3


def test_a_run_of_a_sweep_keeps_its_length(
    sweep_in_process: Run, toy_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep_in_process("s", *SMALL, "--seeds", "2") == 0
    assert toy_in_process("--resume", "checkpoints/s/seed42", "--epochs", "9") == 2
    assert "is a run of a sweep" in capsys.readouterr().err


def test_a_sweep_whose_initial_weights_are_missing_is_not_started(
    sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep_in_process("s", *SMALL, "--seeds", "2") == 0
    for start in ("s", "missing"):
        assert sweep_in_process("t", *SMALL, "--seeds", "2", "--init-from", start) == 2
        assert f"--init-from {start}: there is no such run" in capsys.readouterr().err
        assert not Path("checkpoints/t").exists()


def test_a_run_whose_folder_cannot_be_used_does_not_stop_the_others(
    sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep_in_process("s", *SMALL, "--seeds", "1") == 0
    (FOLDER / "seed42" / "run_info.json").write_text("{", encoding="utf-8")
    (FOLDER / "seed43").write_text("mine", encoding="utf-8")
    (FOLDER / "seed44").mkdir()
    (FOLDER / "seed44" / "mine.txt").write_text("mine", encoding="utf-8")
    capsys.readouterr()
    assert sweep_in_process("s", *SMALL, "--seeds", "4") == 1
    output = capsys.readouterr()
    assert output.out.count("finished after") == 1
    errors = output.err.splitlines()
    assert [line.partition(":")[0] for line in errors] == ["seed42", "seed43", "seed44"]
    for line, words in zip(
        errors, ("run_info.json is damaged", "a link or a file", "is not the folder of a run"), strict=True
    ):
        assert words in line
    assert (FOLDER / "seed43").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in (FOLDER / "seed44").iterdir()] == ["mine.txt"]


def test_a_run_that_diverges_is_reported_and_not_continued(
    sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("s", *SMALL, "--optimizer", "sgd", "--grid", "lr=1e30,0.01", "--seeds", "1")
    for attempt in range(2):
        assert sweep_in_process(*command) == 0
        output = capsys.readouterr().out
        assert (": diverged after epoch" in output) == (attempt == 0)
        assert "| 1 diverged" in output
    assert read(FOLDER, "summary.json")["settings"]["--lr 1e+30"]["runs"]["42"]["status"] == "diverged"


# ------------------------------------------------------------------------------------------------- several processes


def test_a_process_that_helps_takes_the_runs_that_are_free(
    sweep_in_process: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*SMALL, "--problem", "tests.toy", "--device", "cpu", "--seeds", "3"]
    start(parse_args(["s", *command]))
    with lock_run(FOLDER / "seed43"):
        assert sweep_in_process("s", "--work") == 0
        assert runs() == ["seed42", "seed44"]
        assert len(read(FOLDER, "summary.json")["settings"]["mlp-d3"]["runs"]) == 2
    capsys.readouterr()

    # The main command waits for the run of another process, and takes it over when this process ends.
    monkeypatch.setattr(sweep, "SECONDS_BETWEEN_ATTEMPTS", 0.01)
    lock, waited = lock_run(FOLDER / "seed43"), []
    lock.__enter__()
    sleep = time.sleep

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 20:
            lock.__exit__(None, None, None)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", wait)
    assert sweep_in_process("s", *command) == 0
    assert len(waited) >= 20
    assert capsys.readouterr().out.count(": finished after") == 1


def test_a_run_that_another_process_has_just_finished_is_not_trained_again(sweep_in_process: Run) -> None:
    assert sweep_in_process("s", *SMALL, "--seeds", "1", "--no-checkpoints") == 0
    (run,) = runs()
    before = contents(FOLDER)
    config = load_config(ToyConfig, FOLDER / run / "config.json")
    assert sweep.train_run("tests.toy", config, FOLDER / run, None) == "taken"
    assert contents(FOLDER) == before


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["s"], "nothing to vary: give --seeds"),
        ([], "NAME"),
        (["a/b", "--seeds", "2"], "a/b: the name of a sweep: use 1 to 64"),
        (["..", "--seeds", "2"], "..: the name of a sweep"),
        (["con", "--seeds", "2"], "reserved on Windows"),
        (["s\n", "--seeds", "2"], "the name of a sweep"),
        (["s", "--seeds", "1e3"], "--seeds 1e3: must be an integer"),
        (["s", "--seeds", "٣"], "--seeds ٣: must be an integer"),
        (["s", "--seeds", "\uff15"], "--seeds \uff15: must be an integer"),
        (["s", "--seeds", "0"], "--seeds 0: must be an integer, at least 1"),
        (["s", "--seeds", "-1"], "--seeds -1: must be"),
        (["s", "--seeds", "9" * 5000], "must be an integer"),
        (["s", "--seeds", ""], "--seeds : must be"),
        (["s", "--seeds=--"], "--seeds"),
        (["s", "--seeds", "2", "--workers", "0"], "--workers 0: must be"),
        (["s", "--seeds", "2", "--seed", str(2**64 - 1)], "must be below 2^64"),
        (["s", "--seed-list", "1,x"], "must be integers from 0"),
        (["s", "--seed-list", "1,\uff12"], "must be integers from 0"),
        (["s", "--seed-list", f"{2**64}"], "must be integers from 0"),
        (["s", "--seed-list", "1,2", "--seeds", "2"], "--seeds does nothing with --seed-list"),
        (["s", "--seed-list", "1,2", "--seed", "2"], "--seed does nothing"),
        (["s", "--grid", "lrr=1,2"], "--lrr: no such option; did you mean --lr"),
        (["s", "--grid", "=1,2"], "no such option"),
        (["s", "--grid", "lr"], "--grid lr: has no values; write lr=v1,v2"),
        (["s", "--grid", "lr="], "--grid lr=: has no values"),
        (["s", "--grid", "lr=0.1,"], "--grid: --lr"),
        (["s", "--grid", "lr=0.1,abc"], '--grid: --lr "abc": must be a number'),
        (["s", "--grid", "lr=0.1,nan"], '--grid: --lr "nan": must be a number'),
        (["s", "--grid", "lr=0.1", "lr=0.2"], "--lr is given twice"),
        (["s", "--grid", "lr=0.1", "--lr", "0.2"], "--lr is given twice, as a flag and among the values to try"),
        (["s", "--grid", "seed=1,2"], "cannot be varied; --seeds and --seed-list"),
        (["s", "--grid", "run-name=a,b"], "cannot be varied"),
        (["s", "--grid", "skip=yes,no"], "--grid skip=yes: must be true or false"),
        (["s", "--grid", "hidden=4 8"], "--hidden"),
        (["s", "--grid", "skip=true", "absolute=true,false"], "--absolute and --skip do not go together"),
        (["s", "--grid", "skip=true,false", "kind=mlp,pooled"], "--skip does nothing with --kind pooled"),
        (["s", "--grid", "data=a.npz,b.npz"], "--grid: --data a.npz: no such file"),
        (["s", "--seeds", "2", "--data", "x" * 300], "no such file"),
        (["s", "--grid", "lr=" + ",".join(["0.1"] * 400), "hidden=" + ",".join(["4"] * 400)], "160,000 runs"),
        (["s", "--grid", f"points-key={'x' * 5000}", "--lr", "-1"], "--lr -1"),
        (["s", "--seeds", "10000", "--grid", "lr=0.1,0.2"], "the sweep has 20,000 runs, and at most 10,000"),
        (["s", "--seeds", "2", "--run-name", "x"], "--run-name"),
        (["s", "--seeds", "2", "--resume", "x"], "--resume: the same command continues a sweep"),
        (["s", "--seeds", "2", "--overwrite"], "--overwrite: no such option"),
        (["s", "--seeds", "2", "--lrr", "1"], "--lrr: no such option; did you mean --lr"),
        (["s", "--seeds", "2", "--preset", "nothing"], "--preset"),
        (["s", "--seeds", "2", "--config", "nothing.json"], "nothing.json"),
        (["s", "--seeds", "2", "--trials", "2"], "--trials does nothing without --search"),
        (["s", "--seeds", "2", "--confirm", "2"], "--confirm does nothing without --search"),
        (["s", "--grid", "lr=0.1", "--confirm", "2"], "--confirm does nothing without --search"),
        (["s", "t", "--seeds", "2"], "t"),
        (["s", "--work", "--seeds", "2"], "--seeds does nothing with --work"),
        (["s", "--work", "--lr", "2"], "--lr does nothing with --work"),
        (["s", "--work"], "checkpoints/s is not a sweep"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str], words: str, sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep_in_process(*arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("sweep.py: error: ")
    assert output.err.count("\n") == 1
    assert words in output.err
    assert output.out == ""
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("nothing", "there is no module nothing"),
        ("tests.conftest", "has no PROBLEM"),
        ("", ": not a module"),
        ("--", "not a module"),
        (".x", "not a module"),
        ("examples/potential.py", "not a module"),
    ],
)
def test_a_problem_that_cannot_be_loaded_is_refused(
    problem: str, words: str, sweep_in_process: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", "s", f"--problem={problem}", "--seeds", "2"])
    with pytest.raises(SystemExit) as end:
        sweep.main()
    assert end.value.code in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("sweep.py: error: ")
    assert error.count("\n") == 1
    assert words in error
    assert list(Path.cwd().iterdir()) == []


def test_the_folder_of_something_else_is_kept(
    sweep_in_process: Run, toy_in_process: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert toy_in_process(*DEBUG, "--epochs", "1", "--run-name", "run") == 0
    (Path("checkpoints") / "file").write_text("mine", encoding="utf-8")
    (Path("checkpoints") / "folder").mkdir()
    (Path("checkpoints") / "folder" / "mine.txt").write_text("mine", encoding="utf-8")
    (Path("checkpoints") / "link").symlink_to("nowhere")
    before = contents(Path())
    capsys.readouterr()
    for name, what in (("run", "a run"), ("file", "not a sweep"), ("folder", "not a sweep"), ("link", "not a sweep")):
        assert sweep_in_process(name, "--seeds", "2") == 2
        fix = "so it is kept: choose another name for the sweep"
        assert capsys.readouterr().err == f"sweep.py: error: checkpoints/{name} is {what}, {fix}\n"
        assert contents(Path()) == before
        assert sweep_in_process(name, "--work") == 2
        assert f"checkpoints/{name} is not a sweep" in capsys.readouterr().err
    assert contents(Path()) == before


def test_a_sweep_is_not_used_as_a_run(
    sweep_in_process: Run, toy_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep_in_process("s", *SMALL, "--epochs", "1", "--seeds", "1") == 0
    before = contents(FOLDER)
    capsys.readouterr()
    for arguments in (["--resume", "s"], [*DEBUG, "--run-name", "s"], [*DEBUG, "--run-name", "s", "--overwrite"]):
        assert toy_in_process(*arguments) == 2
        assert "checkpoints/s is a sweep" in capsys.readouterr().err
    assert contents(FOLDER) == before


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", "null", '{"problem": "tests.toy"}', "wrong type", "unknown"])
def test_a_damaged_plan_is_reported_in_one_line(
    damage: str, sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("s", *SMALL, "--epochs", "1", "--grid", "lr=0.1,0.2")
    assert sweep_in_process(*command) == 0
    plan = read(FOLDER, "sweep.json")
    content = {
        "wrong type": json.dumps(plan | {"seeds": "42"}),
        "unknown": json.dumps(plan | {"grid": {"train.nothing": [1]}}),
    }.get(damage, damage)
    (FOLDER / "sweep.json").write_text(content, encoding="utf-8")
    before = contents(FOLDER)
    capsys.readouterr()
    for arguments in (command, ("s", "--work")):
        assert sweep_in_process(*arguments) == 3
        error = capsys.readouterr().err
        assert error.startswith("sweep.py: error: checkpoints/s/sweep.json ")
        assert error.count("\n") == 1
        assert contents(FOLDER) == before
    (FOLDER / "sweep.json").unlink()  # as the error says
    assert sweep_in_process(*command) == 0
    assert "finished after" not in capsys.readouterr().out
    assert read(FOLDER, "sweep.json") == plan


def test_the_plan_has_the_number_of_the_format_of_its_config(
    sweep_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("s", *SMALL, "--epochs", "1", "--seeds", "1")
    assert sweep_in_process(*command) == 0
    plan = read(FOLDER, "sweep.json")
    assert plan["config"]["format"] == FORMAT
    plan["config"]["format"] = FORMAT + 1
    (FOLDER / "sweep.json").write_text(json.dumps(plan), encoding="utf-8")
    capsys.readouterr()
    assert sweep_in_process(*command) == 3
    assert f"checkpoints/s/sweep.json: format {FORMAT + 1}: this program reads" in capsys.readouterr().err
