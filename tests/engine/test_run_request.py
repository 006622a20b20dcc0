"""The command line: how a config is merged, and how a command ends."""

import dataclasses
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.dataclasses import dataclass

from engine import interface
from engine.interface.base_config import OF_FILES, LogConfig, TrainConfig, load_config, to_json
from engine.machine.errors import BadRequestError, DivergedError, ProblemError, RunError, UnusableFileError
from engine.machine.exit_code import ExitCode
from engine.machine.signals import STOP_SIGNALS, Interrupted
from engine.options.fields import options_of
from engine.run_folder.find_run import run_folder
from engine.run_folder.run_request import Command, build_parser, parse_args
from main import resume_hint
from tests.toy import PROBLEM, ToyConfig, ToyDataConfig, ToyProblem

OPTIONS = options_of(ToyConfig)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def command_of(*argv: str) -> Command:
    return parse_args(PROBLEM, argv, prog="toy.py")


def config_of(*argv: str) -> Any:
    return command_of(*argv).config


def refusal_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The line of the error with which a command line is refused."""
    with pytest.raises(SystemExit) as refusal:
        command_of(*argv)
    assert refusal.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("toy.py: error: ")
    assert line.count("\n") == 1
    return line


# ----------------------------------------------------------------------------------------------------------- configs


def test_without_flags_the_config_is_the_default_preset() -> None:
    assert command_of() == Command(ToyConfig(), print_config=False, overwrite=False, save_data=None, resume=None)
    assert PROBLEM.presets["default"] == ToyConfig()


# For every option, a value other than the default: as you type it, and as it is in the config.
CHANGES: dict[str, tuple[list[str], Any]] = {
    "absolute": ([], True),
    "model.kind": (["pooled"], "pooled"),
    "model.hidden": (["256"], 256),
    "model.skip": ([], True),
    "model.dropout": (["0.5"], 0.5),
    "train.epochs": (["200"], 200),
    "train.batch_size": (["32"], 32),
    "train.lr": (["5e-4"], 0.0005),
    "train.optimizer": (["sgd"], "sgd"),
    "train.betas": (["0.8", "0.99"], (0.8, 0.99)),
    "train.scheduler": (["step"], "step"),
    "train.warmup_epochs": (["5"], 5),
    "train.weight_decay": ([".5"], 0.5),
    "train.grad_clip": (["1"], 1.0),
    "train.patience": (["10"], 10),
    "train.fresh": ([], True),
    "train.init_from": (["a"], "a"),
    "data.num_train": (["300"], 300),
    "data.num_val": (["301"], 301),
    "data.num_test": (["302"], 302),
    "data.num_calibration": (["303"], 303),
    "data.dimension": (["4"], 4),
    "data.spread": (["1.5"], 1.5),
    "data.rounds": (["7"], 7),
    "data.corrupt": ([], True),
    "data.cache": ([], False),
    "data.file": (["some.npz"], "some.npz"),
    "data.points_key": (["x"], "x"),
    "data.drop_missing": ([], True),
    "data.group": (["chain"], "chain"),
    "data.test_above": (["x", "-1.5"], ("x", "-1.5")),
    "data.test_below": (["x", "2"], ("x", "2")),
    "data.folds": (["5"], 5),
    "data.fold": (["3"], 3),
    "log.run_name": (["some.name_1-2"], "some.name_1-2"),
    "log.wandb": ([], True),
    "log.checkpoints": ([], False),
    "seed": (["18446744073709551615"], 2**64 - 1),
    "device": (["cpu"], "cpu"),
    "threads": (["2"], 2),
    "compile": ([], True),
}


def test_every_option_is_tested() -> None:
    assert set(CHANGES) == {".".join(path) for path in OPTIONS}


@pytest.mark.parametrize("name", CHANGES)
def test_a_flag_sets_its_field_and_no_other(name: str) -> None:
    words, value = CHANGES[name]
    flag = OPTIONS[tuple(name.split("."))].flag
    if value is False:
        flag = "--no-" + flag[2:]
    needed = ["--data", "x.npz"] if OPTIONS[tuple(name.split("."))].scope in OF_FILES else []
    needed += ["--folds", "9"] if name == "data.fold" else []
    expected = dataclasses.asdict(config_of(*needed))
    changed = dataclasses.asdict(config_of(flag, *words, *needed))
    *section, key = name.split(".")
    place = expected[section[0]] if section else expected
    assert place[key] != value
    place[key] = value
    assert changed == expected


@pytest.mark.parametrize("flag", ["--patience", "--grad-clip", "--init-from", "--rounds", "--run-name", "--threads"])
def test_none_switches_an_option_off(flag: str) -> None:
    config = ToyConfig(
        train=TrainConfig(patience=3, grad_clip=1, init_from="a"),
        data=ToyDataConfig(rounds=5),
        log=LogConfig(run_name="a"),
        threads=2,
    )
    Path("c.json").write_text(to_json(config), encoding="utf-8", newline="\n")
    path = next(path for path, option in OPTIONS.items() if option.flag == flag)
    before, after = config_of("--config", "c.json"), config_of("--config", "c.json", flag, "none")
    assert before == config
    for key in path:
        before, after = getattr(before, key), getattr(after, key)
    assert before is not None
    assert after is None


def test_precedence_is_defaults_preset_file_flags_in_any_order() -> None:
    Path("c.json").write_text('{"train": {"epochs": 30, "lr": 0.5}, "seed": 1}', encoding="utf-8", newline="\n")
    words = [["--preset", "debug"], ["--config", "c.json"], ["--lr", "0.25"]]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        config = config_of(*(word for i in order for word in words[i]))
        assert config.data == PROBLEM.presets["debug"].data  # of the preset, over the defaults
        assert (config.train.epochs, config.seed) == (30, 1)  # of the file, over the preset
        assert config.train.lr == 0.25  # of the flag, over the file
        assert config.train.batch_size == 64  # of the defaults


@pytest.mark.parametrize("preset", PROBLEM.presets)
def test_presets_are_complete_and_survive_json(preset: str) -> None:
    config = config_of("--preset", preset)
    assert config == PROBLEM.presets[preset]
    Path("c.json").write_text(to_json(config), encoding="utf-8", newline="\n")
    assert config_of("--config", "c.json") == config


def test_an_error_names_the_flag_or_the_file_of_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.json").write_text('{"train": {"lr": -1}}', encoding="utf-8", newline="\n")
    line = refusal_of(capsys, "--config", "c.json", "--dropout", "2")
    assert "--dropout 2: must be a number, at least 0, below 1" in line
    assert "c.json: train.lr -1: must be a number, above 0" in line


def test_a_flag_replaces_an_invalid_value_of_a_file() -> None:
    Path("c.json").write_text('{"train": {"lr": -1}}', encoding="utf-8", newline="\n")
    assert config_of("--config", "c.json", "--lr", "0.5") == ToyConfig(train=TrainConfig(lr=0.5))


def test_a_printed_config_can_be_read() -> None:
    command = command_of("--print-config", "--preset", "debug", "--seed", "9")
    assert command.print_config
    Path("c.json").write_text(to_json(command.config), encoding="utf-8", newline="\n")
    assert load_config(ToyConfig, "c.json") == command.config


def test_save_data_needs_only_the_data_to_be_valid() -> None:
    Path("c.json").write_text(
        '{"train": {"lr": -1, "batch_size": 1000}, "data": {"dimension": 7}, "seed": 3}', encoding="utf-8", newline="\n"
    )
    command = command_of("--config", "c.json", "--save-data", "x.npz", "--overwrite")
    assert (command.save_data, command.overwrite) == (Path("x.npz"), True)
    assert (command.config.data, command.config.seed) == (ToyDataConfig(dimension=7), 3)


def test_the_help_shows_the_values_of_the_chosen_preset(capsys: pytest.CaptureFixture[str]) -> None:
    for words, epochs in (((), 100), (("--preset", "debug"), 5), (("--preset", "no"), 100)):
        with pytest.raises(SystemExit):
            parse_args(PROBLEM, (*words, "--help"), prog="toy.py")
        assert (f"at most 1000000; default: {epochs})" in " ".join(capsys.readouterr().out.split())) == (
            "no" not in words
        )


def test_the_config_of_a_run_of_another_problem_is_refused_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("checkpoints/other")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"counts": 3}', encoding="utf-8")
    (folder / "run_info.json").write_text('{"problem": "decay"}', encoding="utf-8")
    with pytest.raises(SystemExit):
        command_of("--config", "checkpoints/other/config.json")
    assert "this is the config of a run of decay: use it with decay" in capsys.readouterr().err


def test_the_help_is_grouped_and_states_every_default() -> None:
    text = " ".join(build_parser(PROBLEM, "toy.py").format_help().split())
    assert text.startswith("usage: toy.py [options] Predict the squared length of a point, with a sign.")
    groups = [text.index(f" {name}: ") for name in ("command", "experiment", "model", "train", "data", "log")]
    assert groups == sorted(groups)
    for option in OPTIONS.values():
        assert f"{option.flag} " in text or f"{option.flag}, " in text
        assert f"{option.info.description} ({option.allowed}; default: {option.default})" in text


def test_the_program_name_is_that_of_the_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/folder/program.py", "--lr", "0"])
    with pytest.raises(SystemExit):
        parse_args(PROBLEM)
    assert capsys.readouterr().err == "program.py: error: --lr 0: must be a number, above 0\n"


# ------------------------------------------------------------------------------------------------------------ resume


def earlier_run(name: str = "a", **sections: Any) -> ToyConfig:
    """Write the config.json of a run, and return its config."""
    config = dataclasses.replace(PROBLEM.presets["debug"], **sections)
    folder = Path("checkpoints") / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config), encoding="utf-8", newline="\n")
    return config


def test_a_run_is_found_by_its_name_and_by_its_folder() -> None:
    earlier_run()
    assert run_folder("a") == run_folder("checkpoints/a") == Path("checkpoints/a")
    assert run_folder(str(Path("checkpoints/a").resolve())) == Path("checkpoints/a").resolve()
    for name in ("b", "checkpoints/b", "x" * 5000):
        assert run_folder(name) is None


def test_a_run_of_a_sweep_is_found_by_both_names_unless_there_is_such_a_path() -> None:
    earlier_run("width/seed42")
    assert run_folder("width/seed42") == Path("checkpoints/width/seed42")
    assert run_folder("width") is None
    shutil.copytree("checkpoints/width", "width")
    assert run_folder("width/seed42") == Path("width/seed42")
    Path("checkpoints/width/sweep.json").touch()
    assert run_folder("width", "sweep.json") == Path("checkpoints/width")


def test_a_resumed_run_has_the_config_of_the_run() -> None:
    config = earlier_run(seed=5)
    command = command_of("--resume", "a")
    assert command == Command(config, print_config=False, overwrite=False, save_data=None, resume=Path("checkpoints/a"))


def test_a_resumed_run_may_become_longer_and_run_on_another_machine() -> None:
    earlier_run(threads=1)
    config = config_of(
        *("--resume", "a", "--epochs", "7", "--device", "cpu", "--threads", "2"),
        *("--no-cache", "--no-checkpoints", "--wandb", "--compile"),
    )
    assert (config.train.epochs, config.device, config.threads) == (7, "cpu", 2)
    assert (config.data.cache, config.log.checkpoints, config.log.wandb, config.compile) == (False, False, True, True)


def test_flags_that_repeat_the_config_of_the_run_are_accepted() -> None:
    config = earlier_run()
    assert config_of("--resume", "a", "--lr", "0.01", "--num-train", "200", "--no-skip") == config


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--lr 0.5", "--lr 0.5: the run has 0.01: drop it, or start another run"),
        ("--seed 1", "--seed 1: the run has 42: drop it"),
        ("--rounds 3", "--rounds 3: the run has none: drop it"),
        ("--absolute", "--absolute: the run has --no-absolute: drop it"),
        ("--epochs 4", "--epochs 4: the run has 5; give at least as many"),
        ("--preset debug", "--preset does nothing with --resume, which takes the config of the run: drop it"),
        (
            "--config c.json --overwrite",
            "--config, --overwrite do nothing with --resume, which takes the config of the run: drop them",
        ),
        ("--save-data x.npz", "--save-data does nothing with --resume"),
    ],
)
def test_flags_that_contradict_the_run_are_refused(flags: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    earlier_run()
    assert words in refusal_of(capsys, "--resume", "a", *flags.split())


def test_a_run_that_cannot_be_resumed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    earlier_run("without", log=LogConfig(checkpoints=False))
    Path("checkpoints/empty").mkdir()
    for name, words in {
        "none": "there is no such run, or it has no config.json",
        "empty": "there is no such run, or it has no config.json",
        "without": "the run has --no-checkpoints",
    }.items():
        assert f"--resume {name}: nothing to resume: {words}" in refusal_of(capsys, "--resume", name)


def test_the_hint_after_an_interruption_shows_how_to_continue() -> None:
    started, checkpoints = command_of("--run-name", "a"), Path("checkpoints")
    assert resume_hint(started, checkpoints / "a") == "nothing was saved yet"
    earlier_run()
    record = checkpoints / "a" / "run_info.json"
    record.write_text('{"pid": 1}', encoding="utf-8", newline="\n")
    assert resume_hint(started, checkpoints / "a") == "nothing was saved yet"  # it is the run to be overwritten
    record.write_text(f'{{"pid": {os.getpid()}}}', encoding="utf-8", newline="\n")
    assert resume_hint(started, checkpoints / "a").endswith(" --resume a continues after the last completed epoch")
    absolute = Path("checkpoints").resolve() / "a"
    assert f" --resume {absolute} continues" in resume_hint(started, absolute)
    without = command_of("--no-checkpoints")
    assert resume_hint(without, checkpoints / "a") == (
        "its metrics are in checkpoints/a; it cannot be resumed, because of --no-checkpoints"
    )


# ------------------------------------------------------------------------------------------- the end of a command


@pytest.fixture
def _signal_handlers() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


ENDINGS: dict[str, tuple[BaseException, int, str]] = {
    "request": (BadRequestError("--lr 0: above 0"), 2, "toy.py: error: --lr 0: above 0\n"),
    "file": (UnusableFileError("x.npz: a\nb"), 3, "toy.py: error: x.npz: a\\nb\n"),
    "diverged": (DivergedError("loss is not finite"), 4, "toy.py: error: loss is not finite\n"),
    "problem": (ProblemError("generate: no"), 1, "toy.py: error: generate: no\n"),
    "processes": (RunError("another process"), 1, "toy.py: error: another process\n"),
    "disk": (OSError(28, "No space left"), 5, "toy.py: error: [Errno 28] No space left: free space on the disk, or "),
    "removed": (
        FileNotFoundError(2, "No such file", "checkpoints/a/b.json"),
        5,
        "toy.py: error: [Errno 2] No such file: 'checkpoints/a/b.json': checkpoints/a, or a folder that contains it",
    ),
    "folder": (
        IsADirectoryError(21, "Is a directory", "checkpoints/a/b"),
        5,
        "toy.py: error: [Errno 21] Is a director",
    ),
    "SIGINT": (Interrupted(signal.SIGINT), 130, "toy.py: interrupted: continue by hand\n"),
    "SIGTERM": (Interrupted(signal.SIGTERM), 143, "toy.py: interrupted: continue by hand\n"),
    "SIGUSR1": (Interrupted(signal.SIGUSR1), 143, "toy.py: interrupted: continue by hand\n"),
}


@pytest.mark.usefixtures("_signal_handlers")
@pytest.mark.parametrize("name", ENDINGS)
def test_an_error_becomes_one_line_and_an_exit_code(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, code, line = ENDINGS[name]
    monkeypatch.setattr(sys, "argv", ["some/toy.py"])
    with ExitCode() as end:
        end.prepare(Path("checkpoints/a"), lambda: "continue by hand")
        raise error
    assert end.code == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(line)
    assert printed.err.count("\n") == 1


@pytest.mark.usefixtures("_signal_handlers")
def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), ExitCode():
        raise ZeroDivisionError


@pytest.mark.usefixtures("_signal_handlers")
def test_without_an_error_the_exit_code_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    with ExitCode() as end:
        end.prepare(Path("checkpoints/a"), lambda: "")
    assert end.code == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("_signal_handlers")
def test_the_first_signal_interrupts_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with ExitCode() as end:
        signal.raise_signal(signal.SIGTERM)
    assert end.code == 143
    assert "interrupted: nothing was saved" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the second one ends the process


def with_option(name: str, scope: str = "") -> ToyProblem:
    """The toy problem with one more option outside of sections."""
    fields: dict[str, Any] = {"__annotations__": {name: int}, name: interface.option(1, "a number", scope=scope)}
    kind = dataclass(frozen=True, kw_only=True, config=interface.STRICT)(type("More", (ToyConfig,), fields))
    problem = ToyProblem()
    vars(problem).update(config_type=kind, presets={"default": kind()})
    return problem


def test_a_problem_cannot_have_an_option_that_files_of_runs_cannot_store() -> None:
    assert build_parser(with_option("number"), "x")
    with pytest.raises(ProblemError, match="field `format`"):
        build_parser(with_option("format"), "x")
    for scope in ("machine", "execution", "storage", "seed", "name"):
        with pytest.raises(ProblemError, match=f"number has the scope '{scope}'"):
            build_parser(with_option("number", scope), "x")
