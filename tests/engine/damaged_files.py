"""Damage the files of a run and of a sweep in many ways, and give each command that reads them. Nothing may go wrong.

python -m tests.engine.damaged_files 10000     10,000 damaged files; prints those after which a command went wrong
python -m tests.engine.damaged_files 1 3488    the one with this number again, with the output of its command

Each command runs in a fork of this process, which has loaded all modules. It went wrong if it ended with a traceback or
another exit code than those in errors.py, ran for more than a minute, or wrote outside of the run.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import evaluate
import main
import runs
import sweep
from engine.machine.atomic_files import read_checked, write_checked
from engine.run_folder import figures_of_run
from tests.toy import PROBLEM

MINUTE = 60
TRAIN = ["--preset", "debug", "--device", "cpu", "--threads", "1", "--epochs", "2", "--num-train", "100"]

# Values that are no values of the files, or only of other keys.
STRANGE: list[Any] = [
    *(None, True, -1, 0, 3, 2**63, -(2**63), 10**30, 10**400, 0.5, 1e308, -1e200, float("nan"), float("inf")),
    *("", "x", "running", "min", "__main__", "os", "no.such.module", "..", "/", "a/b", "\x1b[2J", "\ud800", "$\\foo$"),
    *("x" * 100_000, "0\n1", [], {}, [1], [[]], [None], {"a": 1}, ["max", "min"], [1e9] * 3, {"epoch": []}),
]


class Result(NamedTuple):
    """How a command ended."""

    code: int  # negative: a signal ended it
    output: str
    mib: int  # its largest memory


def run_forked(command: Callable[[], None], words: list[str]) -> Result:
    """Run a command in a fork of this process."""
    with tempfile.TemporaryFile() as output:
        if not (child := os.fork()):
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                signal.alarm(MINUTE)
                sys.argv = words
                command()
                os._exit(0)
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(int(end.code or 0))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        _, status, usage = os.wait4(child, 0)
        output.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return Result(code, output.read().decode(errors="backslashreplace"), usage.ru_maxrss // 1024)


COMMANDS: dict[str, Callable[[], Result]] = {
    "list": lambda: run_forked(runs.main, ["runs.py", "--all", "--sort", "val_loss"]),
    "sweeps": lambda: run_forked(runs.main, ["runs.py", "--filter", "lr=0.01", "status=*"]),
    "compare": lambda: run_forked(runs.main, ["runs.py", "compare", "r", "s"]),
    "report": lambda: run_forked(runs.main, ["runs.py", "report", "r", "s", "--output", "report.html"]),
    "plot": lambda: run_forked(runs.main, ["runs.py", "plot", "r"]),
    "evaluate": lambda: run_forked(evaluate.main, ["evaluate.py", "r", "--num-test", "30"]),
    "evaluate sweep": lambda: run_forked(evaluate.main, ["evaluate.py", "s", "--num-test", "30"]),
    "resume": lambda: run_forked(lambda: main.main(PROBLEM), ["toy.py", "--resume", "r", "--epochs", "3"]),
    "start from": lambda: run_forked(lambda: main.main(PROBLEM), ["toy.py", *TRAIN, "--init-from", "r"]),
    "work": lambda: run_forked(sweep.main, ["sweep.py", "s", "--work", "--workers", "1"]),
}
PLOTTED = {"plot", "report", "compare"}


def make_runs() -> None:
    """Make a run, an evaluation, and a sweep of two runs in the working folder."""
    for command, words in (
        (lambda: main.main(PROBLEM), ["toy.py", *TRAIN, "--run-name", "r"]),
        (evaluate.main, ["evaluate.py", "r", "--num-test", "30"]),
        (sweep.main, ["sweep.py", "s", "--problem", "tests.toy", *TRAIN, "--seeds", "2", "--workers", "1"]),
    ):
        made = run_forked(command, words)
        assert made.code == 0, made.output


# ------------------------------------------------------------------------------------------------------------ damage


def damage(path: Path, chance: random.Random, outside: Path) -> str:
    """Damage a file, and say how."""
    kinds: list[Callable[[Path, random.Random], str]] = [_change_bytes, lambda p, c: _replace(p, c, outside)]
    kinds += {".json": [_change_json] * 4, ".npz": [_change_arrays] * 3, ".pt": [_change_tensors] * 4}.get(
        path.suffix, []
    )
    return chance.choice(kinds)(path, chance)


def _change_bytes(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes() or b"x")
    place = chance.randrange(len(content))
    kind = chance.choice(["flip", "cut", "insert", "noise", "empty", "twice"])
    if kind == "flip":
        for _ in range(chance.randint(1, 5)):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    damaged, noise = bytes(content), chance.randbytes(200)
    new: dict[str, bytes] = {
        "cut": damaged[:place],
        "noise": noise,
        "empty": b"",
        "twice": damaged + damaged,
        "flip": damaged,
    }
    path.write_bytes(new.get(kind, damaged[:place] + b"\0[{" + damaged[place:]))
    return f"{kind} at {place}"


def _replace(path: Path, chance: random.Random, outside: Path) -> str:
    kind = chance.choice(["missing", "folder", "pipe", "zero", "itself", "link", "sparse", "protected"])
    content = path.read_bytes()
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "zero" | "itself":
            path.symlink_to("/dev/zero" if kind == "zero" else path)
        case "link":
            (outside / path.name).write_bytes(content)
            path.symlink_to(outside / path.name)
        case "sparse":
            with path.open("wb") as file:
                file.truncate(2**40)
        case "protected":
            path.write_bytes(content)
            path.chmod(0)
    return kind


def _change_values(content: Any, chance: random.Random, strange: Callable[[Any], Any]) -> tuple[Any, str]:
    """Replace, remove or rename a value somewhere in dictionaries and lists."""
    if not isinstance(content, dict | list) or not content or chance.random() < 0.1:
        return strange(content), "value"
    key = chance.choice([*content] if isinstance(content, dict) else range(len(content)))
    kind = chance.choice(["go on", "go on", "remove", "rename", "strange"])
    if kind == "go on":
        content[key], how = _change_values(content[key], chance, strange)
        return content, f"{key}: {how}"
    if kind == "remove":
        del content[key]
    elif kind == "rename" and isinstance(content, dict):
        content[chance.choice(["x", "$\\foo$", "", "\x1b[2J"])] = content.pop(key)
    else:
        content[key] = strange(content[key])
    return content, f"{key}: {kind}"


def _change_json(path: Path, chance: random.Random) -> str:
    if chance.random() < 0.05:
        path.write_text("[" * 100_000 + "]" * 100_000, encoding="utf-8")
        return "deep"
    content = json.loads(path.read_text(encoding="utf-8"))
    content, how = _change_values(content, chance, lambda _: chance.choice(STRANGE))
    path.write_text(json.dumps(content), encoding="utf-8")
    return how


def _strange_array(array: Any, chance: random.Random) -> NDArray[Any]:
    makers: list[Callable[[], NDArray[Any]]] = [
        lambda: array.astype(np.complex128),
        lambda: array.astype(str),
        lambda: np.full(array.shape, np.nan),
        lambda: np.full(array.shape, 1e308),
        lambda: array[:0],
        lambda: array[:1],
        lambda: array[..., None],
        lambda: np.zeros(3, dtype=[("a", float), ("b", int)]),
        lambda: np.zeros(2**27, np.int8),
        lambda: np.array(1.0),
    ]
    return chance.choice(makers)()


def _change_arrays(path: Path, chance: random.Random) -> str:
    arrays = dict(np.load(path))
    name = chance.choice([*arrays])
    kind = chance.choice(["remove", "strange", "strange", "add"])
    array = arrays.pop(name)
    if kind == "strange":
        arrays[name] = _strange_array(array, chance)
    elif kind == "add":
        arrays |= {name: array, chance.choice(["x", "../x", "$\\foo$"]): _strange_array(array, chance)}
    with path.open("wb") as file:
        (np.savez_compressed if chance.random() < 0.5 else np.savez)(file, **arrays)
    return f"{name}: {kind}"


def _strange_tensor(value: Any, chance: random.Random) -> Any:
    if not isinstance(value, torch.Tensor):
        return chance.choice([*STRANGE, torch.zeros(2)])
    makers: list[Callable[[], Any]] = [
        lambda: value.to(torch.complex64),
        lambda: value.to(torch.float64),
        lambda: torch.full_like(value, float("nan")) if value.is_floating_point() else value * 0,
        lambda: value[None],
        lambda: torch.zeros(0),
        lambda: torch.zeros(1).expand(2**40),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.zeros(2**20, device="meta"),
        lambda: chance.choice(STRANGE),
    ]
    return chance.choice(makers)()


def _change_tensors(path: Path, chance: random.Random) -> str:
    saved = torch.load(io.BytesIO(read_checked(path)), weights_only=True)
    laughs: list[Any] = []
    for _ in range(40):  # 2^40 values in a few bytes
        laughs = [laughs, laughs]
    if chance.random() < 0.05:
        saved[chance.choice([*saved, "new"])], how = laughs, "2^40 lists"
    else:
        saved, how = _change_values(saved, chance, lambda value: _strange_tensor(value, chance))
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    content = buffer.getvalue()
    if chance.random() < 0.1:
        packed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
            for each in old.infolist():
                new.writestr(each.filename, old.read(each))
        content, how = packed.getvalue(), f"{how}, compressed"
    write_checked(path, content)
    return how


# ------------------------------------------------------------------------------------------------------------ trials


class Fault(NamedTuple):
    """A command that went wrong."""

    number: int
    file: str
    how: str
    command: str
    result: Result


def files_outside(place: Path) -> dict[str, int]:
    """The files outside of the folders of runs, and when they were written, without those that commands make."""
    made = ("checkpoints", "cache", "report.html")
    return {
        str(path.relative_to(place)): path.lstat().st_mtime_ns
        for path in place.rglob("*")
        if path.relative_to(place).parts[1:2] not in [(name,) for name in made] and path.is_file()
    }


def trials(n: int, first: int = 0) -> Iterator[tuple[Fault | None, str, Result]]:
    """Damage a file, run a command, and say whether it went wrong; n times, each time with new copies of the runs."""
    torch.set_num_threads(1)
    draw = figures_of_run.draw
    start = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "made").mkdir()
        os.chdir(place / "made")
        make_runs()
        files = sorted(
            path.relative_to(place / "made")
            for path in Path(place / "made").rglob("checkpoints/**/*")
            if path.suffix in (".json", ".npz", ".npy", ".pt") and path.is_file()
        )
        for number in range(first, first + n):
            chance = random.Random(number)
            file, command = chance.choice(files), chance.choice([*COMMANDS])
            for folder in (place / "now", place / "outside"):
                shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(place / "made", place / "now")
            (place / "outside").mkdir()
            os.chdir(place / "now")
            how = damage(Path(file), chance, place / "outside")
            before = files_outside(place)
            figures_of_run.draw = draw if command in PLOTTED else lambda make, file_type="png": {}
            result = COMMANDS[command]()
            expected = (0, 2, 3, 4, 5, *((1,) if command == "work" else ()))  # 1: a run of the sweep failed
            is_wrong = result.code not in expected or "Traceback" in result.output
            is_wrong |= "\x1b" in result.output or files_outside(place) != before
            fault = Fault(number, str(file), how, command, result) if is_wrong else None
            yield fault, command, result
        os.chdir(start)
    figures_of_run.draw = draw


def main_() -> None:
    """Print the faults, and how the commands ended."""
    n, first = int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 0
    codes: Counter[str] = Counter()
    largest, faults = 0, 0
    for fault, command, result in trials(n, first):
        codes[f"{command}: {result.code}"] += 1
        largest = max(largest, result.mib)
        if n == 1:
            print(result.output)
        if fault is not None:
            faults += 1
            last = (result.output.strip().splitlines() or [""])[-1]
            print(
                fault.number, fault.file, fault.how[:100], fault.command, result.code, last[:200], sep=" | ", flush=True
            )
    print(f"{faults} faults; largest memory {largest} MiB")
    for name, count in sorted(codes.items()):
        print(name, count)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main_()
