"""Bad requests to the Ising experiment: an error of one line, exit code 2, no files. tests/engine has general ones."""

import os
import shutil
from pathlib import Path

import pytest

import main
from engine.machine.errors import BadRequestError
from engine.run_folder.run_request import parse_args
from problem import PROBLEM
from tests.conftest import DEBUG, ROOT, run_process

# Command lines, and what the error must contain: what was given, and what is allowed or what to do.
BAD_OPTIONS: list[tuple[str, list[str]]] = [
    *(
        (f"--lattice-size {size}", [f"--lattice-size {size}", "at least 4"])
        for size in (0, -4, 1, 2, 15, 10**6, "16.0")
    ),
    *(
        (f"--temp-min {t}", ["--temp-min", "at least 0.02"])
        for t in ("0", "-1", "-1e-3", "-inf", "0.01", "nan", "inf", "11", "1e400")
    ),
    *((f"--temp-max {t}", ["--temp-max", "at most 10"]) for t in ("0", "-1", "nan", "inf", "10.5")),
    ("--temp-min 3 --temp-max 2", ["--temp-min 3.0", "--temp-max 2.0", "widen"]),
    ("--temp-min 2 --temp-max 2", ["--temp-min 2.0", "--temp-max 2.0", "widen"]),
    *(
        (f"--{name} 2", [f"--{name} does nothing without --data", "give a file"])
        for name in ("spins-key", "temperatures-key", "temperature")
    ),
    ("--data x.npz --temperature 0", ["--temperature 0", "above 0"]),
    ("--data x.npz --temperature 2 --temperatures-key T", ["--temperature and --temperatures-key T", "drop one"]),
    ("--num-train none", ["--num-train", "none", "an integer, at least 1"]),
    ("--sweeps -1", ["--sweeps -1", "at least 0, or none"]),
    ("--batch-size 10001", ["--batch-size 10001", "--num-train 10000", "lower"]),
    *((f"--dropout {p}", ["--dropout", "at least 0, below 1"]) for p in ("1", "-0.1", "nan")),
    ("--hidden 0", ["--hidden 0", "at least 1"]),
    ("--hidden 8 0 8", ["--hidden 0", "at least 1"]),
    ("--hidden", ["--hidden", "at least one"]),
    ("--hidden 128,64", [": must be 1 to 32 values, each an integer, at least 1, at most 4096, separated by spaces\n"]),
    ("--hidden" + " 8" * 33, ["--hidden [8, 8,", "1 to 32 values"]),
    ("--hidden 100000", ["--hidden 100000", "at most 4096"]),
    ("--architecture transformer", ["transformer", "mlp, residual_mlp, symmetric_mlp, cnn"]),
    ("--activation swish", ["swish", "relu, gelu, silu, tanh, sigmoid"]),
    ("--task dance", ["--task", "dance", "energy, phase"]),
    ("--task phase --input-temperature", ["--input-temperature", "--task phase", "drop one"]),
    ("--task phase --temp-max 2.2", ["--temp-max 2.2", "--task phase", "T_c"]),
    ("--architecture cnn --hidden 8", ["--hidden does nothing with --architecture cnn", "drop"]),
    ("--channels 8", ["--channels does nothing with --architecture mlp", "drop"]),
    ("--preset exact --hidden 8", ["--hidden does nothing", "drop"]),
    ("--architecture symmetric_mlp --hidden 8 --dropout 0", ["--dropout does nothing with symmetric_mlp", "drop"]),
    ("--architecture symmetric_mlp --hidden 8 --activation relu", ["--activation does nothing with symmetric_mlp"]),
    ("--kernel-size 3", ["--kernel-size does nothing with --architecture mlp", "drop"]),
    *(
        (f"--architecture residual_mlp --hidden {n}", ["--hidden 1", "residual_mlp", "at least 2"])
        for n in ("1", "1 8")
    ),
    ("--architecture cnn --kernel-size 0", ["--kernel-size 0", "at least 1"]),
    ("--architecture cnn --kernel-size 9", ["--kernel-size 9", "--lattice-size 8", "lower"]),
    ("--architecture cnn --channels 0", ["--channels 0", "at least 1"]),
    ("--sampler cluster", ["cluster", "multispin, multispin_wolff, numpy, wolff"]),
    ("--data x.npz --sweeps 5 --no-cache", ["--sweeps, --cache do nothing with --data", "drop them"]),
    *(
        (f"--data x.npz {flags}", [f"{flags.split()[0]} does nothing with --data", "drop"])
        for flags in ("--lattice-size 8", "--temp-min 1", "--temp-max 4", "--sampler numpy")
    ),
    ("--save-data x.npz --task phase", ["--task does nothing with --save-data", "drop"]),
    ("--model cnn", ["did you mean --architecture?"]),
    ("--arch cnn", ["did you mean --architecture?"]),
    ("--cnn", ["did you mean --architecture cnn?"]),
    ("--L 16", ["did you mean --lattice-size?"]),
    ("--size 16", ["did you mean --kernel-size, --batch-size or --lattice-size?"]),
    ("--temp 3", ["did you mean --temperature?"]),
    ("--hidden 8 -8", ["--hidden -8", "at least 1"]),
]


@pytest.mark.parametrize(("line", "named"), BAD_OPTIONS, ids=[line[:40] for line, _ in BAD_OPTIONS])
def test_an_invalid_option_is_refused_in_one_line(
    line: str, named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        parse_args(PROBLEM, line.split(" "), "main.py")
    shown = capsys.readouterr()
    assert (end.value.code, shown.out) == (2, "")
    assert shown.err.startswith("main.py: error: ")
    assert shown.err.count("\n") == 1
    assert all(words in shown.err for words in named), shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [("--num-train", "1000000000000"), ("--lattice-size", "1024", "--num-test", "10000000")]
)
def test_data_that_exceed_the_memory_are_refused_before_torch_is_imported(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "torch.py").write_text("raise SystemExit('torch was loaded')", encoding="utf-8", newline="\n")
    path = {"PYTHONPATH": f"{trap}{os.pathsep}{ROOT}"}
    done = run_process(*arguments, cwd=tmp_path, script="main.py", **path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert all(words in done.stderr for words in ("GiB of memory", "this machine or job has", "--num-train"))


def test_too_few_sweeps_are_refused_and_the_earlier_run_is_kept(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "checkpoints/good")
    command = parse_args(PROBLEM, [*DEBUG, "--sweeps", "3", "--run-name", "good", "--overwrite"], "main.py")
    with pytest.raises(BadRequestError, match=r"the train split: not in equilibrium.*--sweeps"):
        main.run(PROBLEM, command.config, Path("checkpoints/good"), overwrite=True)
    for path in finished_run.rglob("*"):  # the earlier run is unchanged
        if path.is_file() and path.name != ".lock":
            assert (Path("checkpoints/good") / path.relative_to(finished_run)).read_bytes() == path.read_bytes()


def test_help_imports_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('loaded')", encoding="utf-8", newline="\n")
    (tmp_path / "matplotlib.py").write_text("raise SystemExit('loaded')", encoding="utf-8", newline="\n")
    done = run_process("--help", cwd=tmp_path, script="main.py", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: main.py")
