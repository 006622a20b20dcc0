"""What cannot be done is refused by the real program: one line, exit code 2, nothing written, nothing touched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config import PRESETS, to_json
from tests.conftest import DEBUG, ROOT, Program

# A command line and what its error must name: what was given, and what to do about it.
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
        (f"--num-{split} {n}", [f"--num-{split} {n}", "at least 1"])
        for split in ("train", "val", "test")
        for n in (0, -5)
    ),
    ("--sweeps -1", ["--sweeps -1", "at least 0"]),
    ("--epochs 0", ["--epochs 0", "at least 1"]),
    ("--batch-size 0", ["--batch-size 0", "at least 1"]),
    ("--batch-size 10001", ["--batch-size 10001", "--num-train 10000", "lower"]),
    *(
        (f"--lr {lr}", ["--lr", "a number, above 0"])
        for lr in ("0", "-1", "-1e-3", "-inf", "nan", "1e400", "inf", "x", "")
    ),
    ("--weight-decay -0.1", ["--weight-decay -0.1", "at least 0"]),
    *((f"--dropout {p}", ["--dropout", "at least 0, below 1"]) for p in ("1", "-0.1", "nan")),
    ("--patience 0", ["--patience 0", "at least 1"]),
    ("--patience 5 --epochs 5", ["--patience 5", "--epochs 5", "drop it"]),
    ("--grad-clip 0", ["--grad-clip 0", "above 0"]),
    ("--hidden 0", ["--hidden 0", "at least 1"]),
    ("--hidden 8 0 8", ["--hidden 0", "at least 1"]),
    ("--hidden", ["--hidden", "at least one"]),
    ("--hidden" + " 8" * 33, ["--hidden [8, 8,", "1 to 32 values"]),
    ("--hidden 100000", ["--hidden 100000", "at most 4096"]),
    ("--seed -1", ["--seed -1", "at least 0"]),
    ("--seed 18446744073709551616", ["--seed 18446744073709551616", "at most 18446744073709551615"]),
    ("--architecture transformer", ["transformer", "mlp, residual_mlp, symmetric_mlp, cnn"]),
    ("--activation swish", ["swish", "relu, gelu, silu, tanh, sigmoid"]),
    ("--optimizer lion", ["lion", "adam, adamw, sgd"]),
    ("--scheduler linear", ["linear", "none, cosine, step"]),
    ("--preset tiny", ["tiny", "debug", "small", "default", "exact", "large"]),
    ("--device tpu", ["tpu", "auto, cuda, mps, cpu"]),
    ("--task dance", ["--task", "dance", "energy, phase"]),
    ("--task phase --input-temperature", ["--input-temperature", "--task phase", "drop one"]),
    ("--task phase --temp-max 2.2", ["--temp-max 2.2", "--task phase", "T_c"]),
    ("--architecture cnn --hidden 8", ["--hidden does nothing with --architecture cnn", "drop"]),
    ("--channels 8", ["--channels does nothing with --architecture mlp", "drop"]),
    ("--preset exact --hidden 8", ["--hidden does nothing", "drop"]),
    ("--architecture symmetric_mlp --hidden 8 --dropout 0", ["--dropout does nothing with symmetric_mlp", "drop"]),
    ("--kernel-size 3", ["--kernel-size does nothing with --architecture mlp", "drop"]),
    ("--architecture cnn --kernel-size 0", ["--kernel-size 0", "at least 1"]),
    ("--architecture cnn --kernel-size 9", ["--kernel-size 9", "--lattice-size 8", "lower"]),
    ("--architecture cnn --channels 0", ["--channels 0", "at least 1"]),
    ("--warmup-epochs 100", ["--warmup-epochs 100", "--epochs 100", "lower"]),
    ("--warmup-epochs 7 --patience 8 --epochs 5", ["--warmup-epochs 7", "--patience 8", "--epochs 5", "lower"]),
    ("--sampler wolff", ["wolff", "multispin, numpy"]),
    ("--data x.npz --sweeps 5 --no-cache", ["--sweeps, --cache does nothing with --data", "drop"]),
    ("--save-data x.npz --lr 0.1", ["--lr does nothing with --save-data", "drop"]),
    ("--save-data x.npz --data y.npz", ["--save-data does nothing with --data", "drop"]),
    ("--save-data x.npz --print-config", ["--save-data does nothing with --print-config", "drop"]),
    ("--save-data x.npz --run-name a", ["--run-name does nothing with --save-data", "drop"]),
    ("--save-data no/such/folder/x.npz", ["no/such/folder/x.npz", "give another path"]),
    *((f"--save-data {path} --overwrite", [f"--save-data {path}", "give another path"]) for path in (".", "a.json")),
    ("--epoch 3", ["--epoch", "--epochs"]),
    ("--epochs 1_0", ["1_0", "an integer"]),
    ("--epochs \uff11\uff10", ["--epochs", "an integer"]),
    ("--lr 1_0.5", ["1_0.5", "a number"]),
    (f"--seed {'9' * 5000}", ["--seed", "an integer"]),
    ("--config none.json", ["none.json", "No such file"]),
    ("--config .", [".", "Is a directory"]),
    ("--print-config --overwrite", ["--overwrite", "--print-config", "drop one"]),
    ("--overwrite", ["--overwrite", "--run-name"]),
    ("--run-name -x", ["--run-name", "-x"]),
    ("--hidden 8 -8", ["--hidden -8", "at least 1"]),
    ("debug", ["debug", "no such option"]),
]

BAD_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "/abs",
    "a/b",
    "a\\b",
    ".hidden",
    "=-dash",
    "x" * 65,
    "CON",
    "nul.txt",
    "a b",
    "a\nb",
]


def assert_refused(
    program: Program, folder: Path, arguments: list[str], named: list[str], *, torch_is_needed: bool = False
) -> None:
    before = snapshot(folder)
    if torch_is_needed:
        done = program(*arguments)
    else:  # a refusal that does not wait for torch: loading it would end the program in another way
        trap = folder.parent / f"{folder.name}-trap"
        trap.mkdir(exist_ok=True)
        (trap / "torch.py").write_text("raise SystemExit('torch was loaded')")
        done = program(*arguments, PYTHONPATH=str(trap))
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("main.py: error: ")
    assert done.stderr.count("\n") == 1
    assert all(words in done.stderr for words in named), done.stderr
    assert snapshot(folder) == before


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """All that lies in a folder, and when it was last written."""
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(("line", "named"), BAD_OPTIONS, ids=[line[:40] for line, _ in BAD_OPTIONS])
def test_bad_option(line: str, named: list[str], program: Program, tmp_path: Path) -> None:
    assert_refused(program, tmp_path, line.split(" "), named)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_run_name(name: str, program: Program, tmp_path: Path) -> None:
    assert_refused(program, tmp_path, [f"--run-name={name.removeprefix('=')}"], ["--run-name"])


def test_names_at_the_edge_of_what_is_allowed(program: Program) -> None:
    for name in ("x" * 64, "0", "_", "a.b-c_d", "CONSOLE"):
        assert program("--print-config", "--run-name", name).returncode == 0


def test_bad_config_file(program: Program, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"seed": 1, "seed": 2}')
    assert_refused(program, tmp_path, ["--config", "c.json"], ["c.json", '"seed"', "twice"])
    (tmp_path / "c.json").write_text('{"seed": -1, "model": {"hiden": [3]}, "train": {"lr": 0}}')
    assert_refused(program, tmp_path, ["--config", "c.json"], ["seed -1", "model.hiden", "train.lr 0"])


def test_a_preset_under_a_whole_config_does_nothing(program: Program, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(to_json(PRESETS["small"]))
    assert_refused(program, tmp_path, ["--preset", "debug", "--config", "c.json"], ["--preset debug", "c.json", "drop"])


@pytest.mark.parametrize(
    "arguments", [("--num-train", "1000000000000"), ("--lattice-size", "1024", "--num-test", "10000000")]
)
def test_more_than_the_memory_there_is(arguments: tuple[str, ...], program: Program, tmp_path: Path) -> None:
    assert_refused(program, tmp_path, list(arguments), ["GiB of memory", "this machine has", "--num-train"])


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there(device: str, program: Program, tmp_path: Path) -> None:
    import torch

    if (device == "cuda" and torch.cuda.is_available()) or (device == "mps" and torch.backends.mps.is_available()):
        pytest.skip("this machine has it")
    assert_refused(
        program,
        tmp_path,
        ["--preset", "debug", "--device", device],
        [f"--device {device}", "--device auto"],
        torch_is_needed=True,
    )


def test_an_earlier_run_is_not_touched(program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert_refused(program, tmp_path, [*DEBUG, "--run-name", "mine"], ["mine", "--overwrite", "--run-name"])


def test_overwrite_spares_folders_that_are_no_runs(program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "thesis"
    folder.mkdir(parents=True)
    (folder / "chapter1.tex").write_text("years of work")
    done = program(*DEBUG, "--run-name", "thesis", "--overwrite")
    assert done.returncode == 2
    assert "not the folder of a run" in done.stderr
    assert (folder / "chapter1.tex").read_text() == "years of work"


def test_a_run_folder_that_is_a_link_or_a_file(program: Program, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "checkpoints" / "file").write_text("")
    for name, extra in (("link", []), ("file", ["--overwrite"])):
        arguments = [*DEBUG, "--run-name", name, *extra]
        assert_refused(program, tmp_path, arguments, [f"checkpoints/{name} is a link or a file", "--run-name"])


def test_a_run_that_another_process_is_writing(program: Program, tmp_path: Path) -> None:
    import fcntl

    folder = tmp_path / "checkpoints" / "busy"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({}))
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        for extra in ([], ["--overwrite"]):
            arguments = [*DEBUG, "--run-name", "busy", *extra]
            assert_refused(program, tmp_path, arguments, ["busy", f"process {os.getpid()}"])


def test_sweeps_that_are_too_few(program: Program, tmp_path: Path, finished_run: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "checkpoints" / "good")
    before = snapshot(tmp_path / "checkpoints" / "good" / "figures")
    done = program(*DEBUG, "--sweeps", "3", "--run-name", "good", "--overwrite")
    assert done.returncode == 2
    assert done.stderr.startswith("main.py: error: the train split is not in equilibrium")
    assert "--sweeps" in done.stderr
    assert snapshot(tmp_path / "checkpoints" / "good" / "figures") == before  # the earlier run is still there
    assert (tmp_path / "checkpoints" / "good" / "best.pt").read_bytes() == (finished_run / "best.pt").read_bytes()

    for sweeps in ("3", "100"):  # a refused run leaves nothing that is in the way of the next
        done = program(*DEBUG, "--sweeps", sweeps, "--run-name", "new", "--epochs", "1")
        assert done.returncode == (2 if sweeps == "3" else 0), done.stderr


def test_a_file_is_refused_in_one_line_whatever_it_holds(program: Program, tmp_path: Path) -> None:
    for content, named in (
        ('{"train": "x"}', ["train", "an object"]),
        ('{"a\\nb": 1}', ["no such key"]),
        ('{"trian": {}}', ["did you mean train?"]),
        ('{"device": "\\ud800"}', ["not Unicode"]),
        (" " * 2**21, ["larger than"]),
    ):
        (tmp_path / "c.json").write_text(content)
        assert_refused(program, tmp_path, ["--config", "c.json", "--lr", "0.1"], ["c.json", *named])
    for arguments in (["--preset=--"], ["--config=--"], ["a\nb"], ["--config", "a\nb"]):
        assert_refused(program, tmp_path, arguments, [])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_refusal_that_nobody_can_read_has_its_exit_code() -> None:
    command = [sys.executable, "main.py", "--preset", "debug", "--data", "missing.npz"]
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(command, cwd=ROOT, stderr=full, check=False).returncode == 3


def test_help_waits_for_neither_torch_nor_numpy(program: Program, tmp_path: Path) -> None:
    for module in ("torch", "numpy"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('loaded')")
    done = program("--help", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: main.py")
