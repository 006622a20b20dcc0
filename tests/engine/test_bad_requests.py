"""Bad requests are refused with one line and exit code 2 or 3. Nothing is generated, written or changed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from numpy.random import SeedSequence

from engine.interface.base_config import to_json
from engine.interface.base_problem import Columns
from engine.machine.atomic_files import write_json
from engine.machine.errors import BadRequestError
from engine.machine.hardware import physical_memory
from engine.run_folder.run_lock import lock_run
from tests.conftest import DEBUG, TOY, Program, environment, run_process
from tests.toy import PROBLEM, ToyConfig, ToyProblem

Run = Callable[..., int]

# Command lines, and phrases in the error message: what was given, what is allowed, what to do.
BAD_OPTIONS: list[tuple[str, list[str]]] = [
    *(
        (f"--dimension {n}", [f"--dimension {n}", "an integer, at least 1, at most 1000000"])
        for n in (0, -4, 10**6 + 1, "16.0")
    ),
    *(
        (f"--spread {x}", ["--spread", "a number, above 0, at most 1000000.0"])
        for x in ("0", "-1", "-1e-3", "-inf", "nan", "inf", "1e7", "1e400")
    ),
    ("--rounds 1 --spread 0.01", ["--rounds 1", "--spread 0.01", "raise one"]),
    *(
        (f"--num-{split} {n}", [f"--num-{split} {n}", "an integer, at least 1"])
        for split in ("train", "val", "test")
        for n in (0, -5)
    ),
    ("--epochs 0", ["--epochs 0", "at least 1"]),
    ("--batch-size 0", ["--batch-size 0", "at least 1"]),
    ("--batch-size 501", ["--batch-size 501", "--num-train 500", "lower it"]),
    *(
        (f"--lr {lr}", ["--lr", "a number, above 0"])
        for lr in ("0", "-1", "-1e-3", "-inf", "nan", "1e400", "inf", "x", "")
    ),
    ("--weight-decay -0.1", ["--weight-decay -0.1", "at least 0"]),
    *((f"--dropout {p}", ["--dropout", "at least 0, below 1"]) for p in ("1", "-0.1", "nan")),
    *((f"--betas {betas}", ["--betas", "2 values, each a number, at least 0, below 1"]) for betas in ("0.9", "1 0.9")),
    ("--betas 0.9 0.99 --optimizer sgd", ["--betas does nothing with --optimizer sgd: drop it"]),
    ("--patience 0", ["--patience 0", "at least 1"]),
    ("--patience 5 --epochs 5", ["--patience 5", "--epochs 5", "drop it"]),
    ("--grad-clip 0", ["--grad-clip 0", "above 0"]),
    ("--hidden 0", ["--hidden 0", "at least 1"]),
    ("--hidden", ["--hidden", "expected one argument"]),
    ("--hidden 8 8", ["8: no such option"]),
    ("--threads 0", ["--threads 0", "at least 1, at most 1024, or none"]),
    ("--seed -1", ["--seed -1", "at least 0"]),
    ("--seed 18446744073709551616", ["--seed 18446744073709551616", "at most 18446744073709551615"]),
    (f"--seed {'9' * 5000}", ["--seed", "an integer"]),
    ("--kind transformer", ["--kind", "transformer", "one of mlp, pooled"]),
    ("--optimizer nonsense", ["--optimizer", "nonsense", "adam, adamw, sgd"]),
    ("--scheduler nonsense", ["--scheduler", "nonsense", "none, linear, cosine, step"]),
    ("--preset tiny", ["--preset", "tiny", "debug", "default"]),
    ("--device tpu", ["--device", "tpu", "auto, cuda, mps, cpu"]),
    ("--absolute --skip", ["--absolute", "--skip", "drop one"]),
    ("--kind pooled --skip", ["--skip does nothing with --kind pooled: drop it"]),
    ("--warmup-epochs 100", ["--warmup-epochs 100", "--epochs 100", "lower it"]),
    ("--warmup-epochs 7 --patience 8 --epochs 5", ["--warmup-epochs 7", "--patience 8", "--epochs 5", "lower it"]),
    ("--data x.npz --rounds 5 --no-cache", ["--rounds, --cache do nothing with --data: drop them or --data"]),
    ("--data x.npz --no-corrupt", ["--corrupt does nothing with --data"]),
    ("--data=", ['--data ""', "a name"]),
    ("--save-data x.npz --data y.npz", ["--save-data does nothing with --data", "drop"]),
    ("--save-data x.npz --lr 0.1", ["--lr does nothing with --save-data", "drop"]),
    ("--save-data x.npz --absolute", ["--absolute does nothing with --save-data", "drop"]),
    ("--save-data x.npz --print-config", ["--save-data does nothing with --print-config", "drop"]),
    ("--save-data x.npz --run-name a", ["--run-name does nothing with --save-data", "drop"]),
    ("--save-data x.npz --no-checkpoints", ["--checkpoints does nothing with --save-data", "drop"]),
    ("--save-data no/such/folder/x.npz", ["no/such/folder/x.npz", "give another path"]),
    *(
        (f"--save-data {path} --overwrite", [f"--save-data {path}", "give the path of a regular .npz file"])
        for path in (".", "a.json")
    ),
    ("--epoch 3", ["--epoch: no such option; did you mean --epochs?"]),
    ("--epoch=3", ["--epoch=3: no such option; did you mean --epochs?"]),
    ("-epochs 3", ["-epochs: no such option; did you mean --epochs?"]),
    ("--no-absolut", ["--no-absolut: no such option; did you mean --absolute?"]),
    ("--colour red", ["--colour: no such option; --help lists all options"]),
    ("--epochs 1_0", ["1_0", "an integer"]),
    ("--epochs \uff11\uff10", ["--epochs", "an integer"]),
    ("--lr 1_0.5", ["1_0.5", "a number"]),
    ("--config none.json", ["none.json", "No such file", "give the path of a config.json"]),
    ("--config .", [".", "is a folder", "give the path of a config.json"]),
    ("--print-config --overwrite", ["--overwrite does nothing with --print-config: drop it or --print-config"]),
    ("--overwrite", ["--overwrite", "--run-name", "name the run to replace"]),
    ("--resume none", ["--resume none", "nothing to resume"]),
    ("--resume ../none", ["--resume ../none", "nothing to resume"]),
    ("--run-name -x", ["--run-name", "-x"]),
    ("debug", ["debug: no such option"]),
    ("--preset=--", ["--preset"]),
    ("--config=--", ["--config"]),
    ("--resume=--", ["--resume"]),
    ("--save-data=--", ["--save-data"]),
    ("a\nb", ["a\\nb: no such option"]),
    ("--config a\nb", ["a\\nb"]),
]

BAD_NAMES = ["", "../x", "x" * 65, "a\nb"]  # all kinds are tested in test_options.py


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The content of all files in a folder, and when files and folders were last written."""
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
    }


@pytest.fixture
def refuse(
    toy_in_process: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """A function that runs the program with a command line that it must refuse, and returns the line on stderr."""
    generate = ToyProblem.generate

    def only_shapes(self: ToyProblem, config: ToyConfig, n: int, seed: SeedSequence) -> Columns:
        assert n == 0, "examples were generated"
        return generate(self, config, n, seed)

    def refused(*arguments: str, named: list[str], code: int = 2) -> str:
        before = snapshot(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(ToyProblem, "generate", only_shapes)
            assert toy_in_process(*arguments) == code
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("toy.py: error: ")
        assert printed.err.count("\n") == 1
        assert all(words in printed.err for words in named), printed.err
        assert snapshot(tmp_path) == before
        return printed.err

    return refused


# ---------------------------------------------------------------------------------------------- options and config.json


@pytest.mark.parametrize(("line", "named"), BAD_OPTIONS, ids=[line[:40] for line, _ in BAD_OPTIONS])
def test_bad_option(line: str, named: list[str], refuse: Callable[..., str]) -> None:
    refuse(*line.split(" "), named=named)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_run_name(name: str, refuse: Callable[..., str]) -> None:
    refuse(f"--run-name={name}", named=["--run-name"])


def test_unusual_but_valid_run_names_are_accepted(toy_in_process: Run) -> None:
    for name in ("x" * 64, "0", "_", "a.b-c_d", "CONSOLE"):
        assert toy_in_process("--print-config", "--run-name", name) == 0


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"seed": 1, "seed": 2}', ['duplicate key "seed"', "keep one"]),
        ('{"seed": -1, "model": {"hiden": 3}, "train": {"epochs": 0}}', ["seed -1", "model.hiden", "train.epochs 0"]),
        ('{"train": "x"}', ['train "x"', "an object"]),
        ('{"a\\nb": 1}', ["a\\nb: no such key"]),
        ('{"trian": {}}', ["did you mean train?"]),
        ('{"device": "\\ud800"}', ["not Unicode"]),
        (" " * 2**21, ["larger than"]),
        ('{"seed": 1,}', ["line 1 column 12"]),
        ("[1]", ["is not an object"]),
    ],
)
def test_bad_config_file(content: str, named: list[str], refuse: Callable[..., str]) -> None:
    Path("c.json").write_text(content, encoding="utf-8", newline="\n")
    refuse("--config", "c.json", "--lr", "0.1", named=["c.json", *named])


def test_a_preset_with_a_complete_config_is_refused(refuse: Callable[..., str]) -> None:
    Path("c.json").write_text(to_json(PROBLEM.presets["default"]), encoding="utf-8", newline="\n")
    refuse("--preset", "debug", "--config", "c.json", named=["--preset debug does nothing", "c.json", "drop one"])


def test_generator_options_are_refused_if_the_config_has_a_data_file(refuse: Callable[..., str]) -> None:
    Path("c.json").write_text('{"data": {"file": "x.npz"}}', encoding="utf-8", newline="\n")
    for flags in (["--dimension", "5"], ["--cache"], ["--save-data", "y.npz"]):
        refuse("--config", "c.json", *flags, named=[f"{flags[0]} does nothing with --data", "or give --data none"])


def test_generator_options_are_accepted_if_the_data_file_is_switched_off(toy_in_process: Run) -> None:
    Path("c.json").write_text('{"data": {"file": "x.npz"}}', encoding="utf-8", newline="\n")
    assert toy_in_process("--config", "c.json", "--data", "none", "--dimension", "5", "--print-config") == 0


# ------------------------------------------------------------------------------------------------------- the machine


@pytest.mark.parametrize(
    "arguments", [["--num-train", "1000000000000"], ["--dimension", "1000000", "--num-val", "9" * 9]]
)
def test_data_that_do_not_fit_in_memory(arguments: list[str], refuse: Callable[..., str]) -> None:
    figure = f"this machine or job has {physical_memory() / 2**30:,.1f} GiB"
    line = refuse(*arguments, named=["the data need ", "GiB of memory", figure, "lower --num-train"])
    assert line == refuse(*arguments, "--save-data", "x.npz", named=[])


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_this_machine_lacks(device: str, refuse: Callable[..., str]) -> None:
    if (device == "cuda" and torch.cuda.is_available()) or (device == "mps" and torch.backends.mps.is_available()):
        pytest.skip("this machine has it")
    refuse(
        "--preset", "debug", "--device", device, named=[f"--device {device}", "this machine has none", "--device auto"]
    )


def test_compilation_without_a_compiler(refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    refuse(*DEBUG, "--compile", named=["--compile", "no C++ compiler", "install g++, or drop --compile"])


# ------------------------------------------------------------------------------------------------------- run folders


def run_folder(name: str, config: str = "{}") -> Path:
    folder = Path("checkpoints") / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config, encoding="utf-8", newline="\n")
    return folder


def test_a_run_that_exists_already(refuse: Callable[..., str]) -> None:
    run_folder("mine")
    named = ["checkpoints/mine exists already", "--resume mine", "--overwrite", "another --run-name"]
    refuse(*DEBUG, "--run-name", "mine", named=named)


def test_overwrite_does_not_replace_folders_that_are_not_runs(refuse: Callable[..., str]) -> None:
    folder = Path("checkpoints/thesis")
    folder.mkdir(parents=True)
    (folder / "chapter1.tex").write_text("years of work", encoding="utf-8", newline="\n")
    refuse(*DEBUG, "--run-name", "thesis", "--overwrite", named=["thesis is not the folder of a run", "--run-name"])
    assert (folder / "chapter1.tex").read_text(encoding="utf-8") == "years of work"


def test_a_run_folder_that_is_a_link_or_a_file(refuse: Callable[..., str], tmp_path: Path) -> None:
    Path("target").mkdir()
    Path("checkpoints").mkdir()
    Path("checkpoints/link").symlink_to(tmp_path / "target")
    Path("checkpoints/file").write_text("", encoding="utf-8", newline="\n")
    for name, extra in (("link", []), ("link", ["--overwrite"]), ("file", ["--overwrite"])):
        arguments = [*DEBUG, "--run-name", name, *extra]
        refuse(*arguments, named=[f"checkpoints/{name} is a link or a file", "another --run-name"])


def test_a_run_that_another_process_is_writing(refuse: Callable[..., str]) -> None:
    folder = run_folder("busy", to_json(PROBLEM.presets["debug"]))
    for info, writer in (({}, "another process"), ({"status": "running", "pid": 123}, "process 123")):
        write_json(folder / "run_info.json", info)
        with FileLock(folder / ".lock"):
            for arguments in (
                [*DEBUG, "--run-name", "busy"],
                [*DEBUG, "--run-name", "busy", "--overwrite"],
                ["--resume", "busy"],
            ):
                refuse(*arguments, named=[f"busy is being written by {writer}: wait, or choose another"])


def test_flags_that_contradict_a_resumed_run(refuse: Callable[..., str]) -> None:
    run_folder("a", to_json(PROBLEM.presets["debug"]))
    refuse("--resume", "a", "--lr", "0.5", named=["--lr 0.5", "the run has 0.01", "drop it"])
    refuse("--resume", "a", "--epochs", "3", named=["--epochs 3", "the run has 5"])
    refuse("--resume", "a", "--seed", "3", "--overwrite", named=["--overwrite does nothing with --resume", "drop it"])


def test_wrong_data_do_not_replace_an_earlier_run(
    toy_in_process: Run, toy_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(toy_run, "checkpoints/good")
    before = snapshot(Path("checkpoints/good/figures"))
    assert toy_in_process(*DEBUG, "--corrupt", "--run-name", "good", "--overwrite") == 2
    assert capsys.readouterr().err == "toy.py: error: the train split: the values are not those of the points\n"
    assert snapshot(Path("checkpoints/good/figures")) == before  # the earlier run is still there
    assert Path("checkpoints/good/best.pt").read_bytes() == (toy_run / "best.pt").read_bytes()


def test_a_refused_run_leaves_nothing_and_does_not_block_the_next_one(toy_in_process: Run) -> None:
    for flags, code in ((["--corrupt"], 2), ([], 0)):
        assert toy_in_process(*DEBUG, *flags, "--run-name", "new", "--epochs", "1") == code
        assert Path("checkpoints/new").exists() == (code == 0)


def test_a_network_that_is_refused_leaves_nothing(
    toy_in_process: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def network(self: ToyProblem, *_: object) -> None:
        raise ValueError("use points of another dimension")

    monkeypatch.setattr(ToyProblem, "network", network)
    assert toy_in_process(*DEBUG, "--run-name", "new") == 2
    captured = capsys.readouterr()
    assert captured.err == "toy.py: error: use points of another dimension\n"
    assert captured.out == ""  # before data were generated
    assert not Path("checkpoints/new").exists()


def test_processes_that_create_and_remove_a_folder_at_once_exclude_each_other(tmp_path: Path) -> None:
    folder, inside, entered = tmp_path / "checkpoints" / "r", [], []

    def use(number: int) -> None:
        for _ in range(100):
            try:
                with lock_run(folder):
                    inside.append(number)
                    assert inside == [number]
                    assert (folder / ".lock").exists()
                    inside.remove(number)
                    entered.append(number)
            except BadRequestError as error:
                assert "process" in str(error)  # noqa: PT017 - others are allowed to be refused

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(use, number) for number in range(4)]:
            future.result()
    assert entered
    assert not folder.exists()


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["missing.npz", ".", "data.npz", "data.csv", "a\nb.npz"])
def test_an_unusable_file_ends_the_run_with_exit_code_3(
    name: str, toy_in_process: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data.npz").write_bytes(b"PK")
    Path("data.csv").write_text("x,y\n1,2\n", encoding="utf-8", newline="\n")
    assert toy_in_process(*DEBUG, "--data", name) == 3
    printed = capsys.readouterr()
    shown = name.replace("\n", "\\n")
    assert printed.err.startswith(f"toy.py: error: {shown}: ")
    assert printed.err.count("\n") == 1
    assert list(Path("checkpoints").iterdir()) == []


# ------------------------------------------------------------------------------------------------------ whole programs

# A problem that loads torch only for its network, as base_problem.py recommends.
LAZY = '''"""A problem without a network."""

from pydantic.dataclasses import dataclass

from engine.interface.base_config import STRICT, Config, DataConfig
from engine.options.fields import option
from engine.interface.base_problem import Problem
from main import main

import numpy as np


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LazyDataConfig(DataConfig):
    num_train: int = option(500, "for training", ge=1)
    num_val: int = option(100, "for validation", ge=1)
    num_test: int = option(100, "for the test", ge=1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LazyConfig(Config):
    data: LazyDataConfig = LazyDataConfig()


class Lazy(Problem[LazyConfig]):
    """Does nothing."""

    name = "lazy"
    config_type = LazyConfig
    presets = {"default": LazyConfig()}

    def generate(self, config, n, seed):
        return {"x": np.zeros(n)}

    def inputs(self, config, columns):
        return (columns["x"],)

    def target(self, config, columns):
        return columns["x"]

    def network(self, config, input_shapes, target_shape):
        raise NotImplementedError


PROBLEM = Lazy()

if __name__ == "__main__":
    main(PROBLEM)
'''


@pytest.fixture
def lazy(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A function that runs the program of a problem. An attempt to load torch, matplotlib or wandb ends it."""
    folder = tmp_path_factory.mktemp("lazy")
    (folder / "lazy.py").write_text(LAZY, encoding="utf-8", newline="\n")
    for module in ("torch", "matplotlib", "wandb"):
        (folder / f"{module}.py").write_text(f"raise SystemExit('{module} was loaded')", encoding="utf-8", newline="\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        path = f"{folder}{os.pathsep}{environment()['PYTHONPATH']}"
        return run_process(*arguments, cwd=tmp_path, script=("-m", "lazy"), PYTHONPATH=path)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--lr", "0"],
        ["--num-train", "1000000000000"],
        ["--run-name", "mine"],
    ],
)
def test_bad_requests_are_refused_without_torch(arguments: list[str], lazy: Program, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "mine").mkdir(parents=True)
    (tmp_path / "checkpoints" / "mine" / "config.json").write_text("{}", encoding="utf-8", newline="\n")
    before = snapshot(tmp_path)
    done = lazy(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("lazy.py: error: ")
    assert done.stderr.count("\n") == 1
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_help_and_print_config_do_not_load_torch(lazy: Program) -> None:
    done = lazy("--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: lazy.py [options]")
    done = lazy("--print-config")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--preset debug --data missing.npz", 3),
        ("--preset debug --corrupt --no-cache", 2),
    ],
)
def test_the_program_has_the_exit_code_and_prints_one_line(line: str, code: int, toy: Program, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8", newline="\n")
    done = toy(*line.split())
    assert done.returncode == code
    assert done.stderr.startswith("toy.py: error: ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(("line", "code"), [("--lr 0", 2)])
def test_the_exit_code_is_the_same_if_the_error_cannot_be_printed(line: str, code: int, tmp_path: Path) -> None:
    command = [sys.executable, *TOY, *line.split()]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, cwd=tmp_path, env=environment(), stderr=full, check=False)
    assert done.returncode == code
