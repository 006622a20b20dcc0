"""Files that somebody else made are data: reading them ends, and neither fills the memory nor runs code from them.

What the commands do with them is tested by damaged_files.py.
"""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.interface import find_problem
from engine.interface.base_config import to_dict
from engine.interface.find_problem import load_saved_problem
from engine.learning.standardized import Shapes, new_model
from engine.machine import foreign_files
from engine.machine.atomic_files import append_inside, inside, write_atomic, write_checked
from engine.machine.errors import BadRequestError, UnusableFileError
from engine.machine.foreign_files import leaves, read_bytes, read_json
from engine.machine.pickle_size import require_small_pickle
from engine.machine.repository import _git
from engine.machine.terminal import print_line
from engine.many_runs.plan import MOST_RUNS
from engine.many_runs.sweeps import load_sweep
from engine.run_folder import checkpoints
from tests.engine.damaged_files import make_runs, trials
from tests.toy import PROBLEM, ToyConfig

ON_UNIX = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices of Unix")

# ----------------------------------------------------------------------------------------------------------- reading


@ON_UNIX
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse"])
def test_only_a_regular_file_of_a_limited_size_is_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "sparse":
            with path.open("wb") as file:
                file.truncate(2**40)
    with pytest.raises(UnusableFileError, match=r"file: is (a folder|not a regular file|larger than 1,000 bytes)$"):
        read_bytes(path, 1000)


def test_a_file_of_the_largest_size_is_read_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link", 1000) == b"x" * 1000
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


@pytest.mark.parametrize("content", ["", "{", "NaN", "[1, -Infinity]", "1e999", f"[{10**400}]", "[" * 40 + "]" * 40])
def test_json_has_finite_numbers_and_few_levels(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(UnusableFileError, match=r"a\.json is damaged \("):
        read_json(tmp_path / "a.json")


def test_sound_json_is_read(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, True, {"b": "ü"}], "seed": 2**64 - 1, "c": {}}
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == content
    assert sorted(map(str, leaves(content))) == sorted(map(str, [1, 2.5, None, True, "ü", 2**64 - 1]))


def exponential() -> list[Any]:
    """A list of 40 lists with 2^40 values in all."""
    content: list[Any] = [1]
    for _ in range(40):
        content = [content, content]
    return content


def test_values_that_share_memory_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_files, "MOST_VALUES", 2**16)
    with pytest.raises(ValueError, match="too many values"):
        leaves(exponential())


# ------------------------------------------------------------------------------------------------------- checkpoints


def saved(path: Path, content: dict[str, Any], compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a checkpoint of the toy problem with the right checksum."""
    buffer, packed = io.BytesIO(), io.BytesIO()
    config = json.loads(json.dumps(to_dict(ToyConfig())))
    torch.save({"format": checkpoints.FORMAT, "config": config, **content}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(packed, "w", compression) as new:
        for each in old.infolist():
            new.writestr(each.filename, old.read(each))
    write_checked(path, packed.getvalue())
    return path


HARMFUL: dict[str, Any] = {
    "text of 20 GiB": ["x" * 2**20] * 20_000,
    "tuples": ((exponential(),) * 2,),
    "a value of 4 TiB": torch.zeros(1).expand(2**40),
    "2^40 values": exponential(),
    "a sparse tensor": torch.eye(3).to_sparse(),
    "a tensor without values": torch.zeros(9, device="meta"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_checkpoint_does_not_unpack_to_more_than_its_size(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableFileError, match=r"best\.pt is not a checkpoint of this program: "):
        checkpoints.load(saved(tmp_path / "best.pt", {"model": {"w": HARMFUL[name]}}), ToyConfig())


def test_a_pickle_with_something_else_than_tensors_is_not_loaded() -> None:
    for value in (bytearray(9), {1}, Path("x"), 2**3000):
        with pytest.raises(ValueError, match="it has "):
            require_small_pickle(pickle.dumps(value, protocol=2))
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="a value contains itself"):
        require_small_pickle(pickle.dumps(endless, protocol=2))
    require_small_pickle(pickle.dumps([1, 2.5, "a", {"b": (True, None, (1, 2), [3] * 9)}, 2**63], protocol=2))


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    path, content = tmp_path / "best.pt", {"model": {"w": torch.zeros(10**6)}}
    assert checkpoints.load(saved(path, content), ToyConfig())["model"]["w"].shape == (10**6,)
    with pytest.raises(UnusableFileError, match="not an archive of uncompressed tensors"):
        checkpoints.load(saved(path, content, zipfile.ZIP_DEFLATED), ToyConfig())


def weights(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The content of best.pt, after a change of its weights."""
    shapes = Shapes(((3,), ()), ())
    model = dict(new_model(PROBLEM, ToyConfig(), shapes).state_dict())
    change(model)
    return {"epoch": 1, "shapes": {"inputs": [[3], []], "target": []}, "model": model}


@pytest.mark.parametrize(
    "content",
    [
        weights(lambda w: w.update({"network.last.bias": w["network.last.bias"].to(torch.complex64)})),
        weights(lambda w: w.update({"network.last.bias": w["network.last.bias"].double()})),
        weights(lambda w: w["network.last.bias"].fill_(float("nan"))),
        weights(lambda w: w.update({"network.last.bias": 1.0})),
        {**weights(lambda w: w), "epoch": "1"},
        {**weights(lambda w: w), "shapes": {"inputs": [[-3], []], "target": []}},
        {**weights(lambda w: w), "shapes": [3]},
        {"epoch": 1, "model": [1]},
    ],
)
def test_weights_of_another_kind_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path / "best.pt", content)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UnusableFileError, match=r"best\.pt does not contain weights of this network: .+") as caught:
        checkpoints.load_network(tmp_path, PROBLEM)
    assert "\n" not in str(caught.value)


def test_a_network_that_is_larger_than_its_weights_is_not_built(tmp_path: Path) -> None:
    """It would have 32 TiB."""
    saved(tmp_path / "best.pt", {**weights(lambda w: w), "shapes": {"inputs": [[2**39], []], "target": []}})
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UnusableFileError, match=r"the network has 35,184,372,\d\d\d,\d\d\d bytes of weights"):
        checkpoints.load_network(tmp_path, PROBLEM)


# -------------------------------------------------------------------------------------------------------------- code

EVIL = "import pathlib; (pathlib.Path(__file__).parent / 'HARM').touch(); from tests.toy import PROBLEM"


@pytest.mark.parametrize(
    ("file", "run"),
    [
        ("checkpoints/r/payload.py", "checkpoints/r"),
        ("checkpoints/payload.py", "elsewhere/r"),
        ("cache/payload.py", "checkpoints/r"),
        ("shared/payload.py", "shared/r"),  # came in the same folder as the run
        ("shared/other/payload.py", "checkpoints/r"),  # a folder with a run_info.json
        ("link.py", "checkpoints/r"),  # leads to a file of a run
        ("checkpoints/r/trusted.py", "checkpoints/r"),  # a link to a file of this repository, in a package of the run
        ("../outside.py", "checkpoints/r"),
    ],
)
def test_no_code_is_imported_that_may_have_come_with_a_run(
    file: str, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "repository"
    for folder in (root / "checkpoints" / "r", root / run, root / "shared" / "other", (root / file).parent):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "shared" / "other" / "run_info.json").write_text("{}", encoding="utf-8")
    (root / "checkpoints" / "r" / "real.py").write_text(EVIL, encoding="utf-8")
    (root / "problem.py").write_text("from tests.toy import PROBLEM", encoding="utf-8")
    if file == "link.py":
        (root / file).symlink_to("checkpoints/r/real.py")
    elif file.endswith("trusted.py"):
        (root / file).symlink_to(root / "problem.py")
        (root / file).with_name("__init__.py").write_text(EVIL, encoding="utf-8")
    else:
        (root / file).write_text(EVIL, encoding="utf-8")
    monkeypatch.setattr(find_problem, "ROOT", root)
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.syspath_prepend(str(tmp_path))
    name = file.removeprefix("../").removesuffix(".py").replace("/", ".")
    with pytest.raises(
        BadRequestError, match=rf"r was started with the module {name}, which is not a file of this repo"
    ):
        load_saved_problem(name, root / run)
    assert list(tmp_path.rglob("HARM")) == []
    if "link" not in file and "trusted" not in file:
        assert load_saved_problem(name, root / run, name) is PROBLEM  # the user trusts it
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_no_code_is_imported_if_a_run_was_unpacked_in_place_of_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("problem.py", "data.py"):
        (tmp_path / name).write_text("from tests.toy import PROBLEM", encoding="utf-8")
    monkeypatch.setattr(find_problem, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "problem", raising=False)
    assert find_problem._is_trusted("problem", tmp_path / "r")
    (tmp_path / "data").mkdir()  # Python would import this folder instead of data.py
    (tmp_path / "data" / "__init__.py").write_text(EVIL, encoding="utf-8")
    with pytest.raises(BadRequestError, match="was started with the module problem, which is not a file of this"):
        load_saved_problem("problem", tmp_path / "data")


def test_a_problem_of_this_repository_is_imported_or_one_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_saved_problem("tests.toy", Path("checkpoints/r")) is PROBLEM
    assert load_saved_problem("examples.table", Path("checkpoints/r")).name == "table"
    monkeypatch.setitem(sys.modules, "of_a_notebook", sys.modules["tests.toy"])
    assert load_saved_problem("of_a_notebook", Path("checkpoints/r")) is PROBLEM
    with pytest.raises(BadRequestError, match=r"--problem problem: r was started with tests\.toy: name this module"):
        load_saved_problem("tests.toy", Path("r"), "problem")


def test_git_reads_no_repository_around_this_one(tmp_path: Path) -> None:
    harm, inner = tmp_path / "harm", tmp_path / "project"
    inner.mkdir()
    (inner / "a.py").write_text("1", encoding="utf-8")
    for words in (
        ["init", "--quiet"],
        ["add", "project/a.py"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "a"],
        ["config", "filter.harm.clean", f"touch {harm}; cat"],
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (tmp_path / ".gitattributes").write_text("* filter=harm\n", encoding="utf-8")
    (inner / "a.py").write_text("2", encoding="utf-8")
    assert _git(tmp_path, "rev-parse", "HEAD") is not None
    assert _git(inner, "rev-parse", "HEAD") is None
    assert _git(inner, "status", "--porcelain") is None
    assert not harm.exists()


# ------------------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("link", ["figures", "figures/a.png"])
def test_nothing_is_written_through_a_link_in_a_run(link: str, tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / link).parent.mkdir(parents=True)
    outside.mkdir()
    (run / link).symlink_to(outside if link == "figures" else outside / "a.png")
    for write in (inside, append_inside):
        with pytest.raises(UnusableFileError, match=rf"{link} is a link, and nothing is written through it: remove it"):
            write(run, "figures/a.png")
    assert list(outside.iterdir()) == []
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "seed42").symlink_to(run)
    assert inside(tmp_path / "sweep" / "seed42", "a.json").parent.samefile(run)
    (tmp_path / "sweep" / "sweep.json").touch()
    with pytest.raises(UnusableFileError, match="seed42 is a link, and nothing is written through it"):
        inside(tmp_path / "sweep" / "seed42", "a.json")
    assert inside(run, "evaluations/a.json") == run / "evaluations" / "a.json"
    assert (run / "evaluations").is_dir()


def test_a_file_that_also_has_another_name_is_not_appended_to(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep", encoding="utf-8")
    (tmp_path / "run" / "output").mkdir(parents=True)
    os.link(tmp_path / "precious", tmp_path / "run" / "output" / "a.txt")
    with pytest.raises(UnusableFileError, match="is not a regular file of its own"):
        append_inside(tmp_path / "run", "output/a.txt")


@ON_UNIX
def test_output_is_not_appended_to_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    os.mkfifo(tmp_path / "output" / "a.txt")
    with pytest.raises(UnusableFileError, match="is not a regular file"):
        append_inside(tmp_path, "output/a.txt")


def test_two_processes_with_the_same_number_write_different_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, replace = set(), Path.replace

    def rename(source: Path, target: Path) -> None:
        names.add(source.name)
        replace(source, target)

    monkeypatch.setattr(Path, "replace", rename)
    for _ in range(2):
        write_atomic(tmp_path / "a", b"1")
    assert len(names) == 2
    assert all(name.startswith(".a.") and name.endswith(".tmp") for name in names)


def test_what_a_terminal_would_obey_is_printed_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("a\x1b[2Jb\x9b1m\r\ud800 ü\n second line")
    assert capsys.readouterr().out == "a\\x1b[2Jb\\x9b1m\\r\\ud800 ü\n second line\n"


# ------------------------------------------------------------------------------------------------------------- sweeps


@pytest.mark.parametrize(
    "change",
    [
        {"grid": {f"train.{i}": list(range(59)) for i in range(6)}},
        {"seeds": list(range(MOST_RUNS + 1))},
        {"trials": 10**9},
        {"trials": -1},
        {"seeds": []},
        {"seeds": [], "grid": {f"train.{i}": list(range(1000)) for i in range(3)}},
        {"search": {"train.lr": {"low": 1, "high": 0, "log": False}}},
        {"search": {"train.lr": {"low": "0", "high": 1, "log": False}}},
        {"search": {"train.lr": {"choices": []}}},
        {"config": {"train": {"lr": "fast"}}},
        {"problem": 3},
    ],
)
def test_a_plan_that_cannot_be_right_is_damaged(change: dict[str, Any], tmp_path: Path) -> None:
    plan = {"problem": "tests.toy", "config": {}, "grid": {}, "search": {}, "trials": 1, "trial_seeds": [1]}
    plan |= {"pruning": True, "confirm": 0, "seeds": [2], "command": "python sweep.py"}
    (tmp_path / "sweep.json").write_text(json.dumps(plan), encoding="utf-8")
    assert load_sweep(tmp_path).plan.config["train"]["lr"] == ToyConfig().train.lr
    (tmp_path / "sweep.json").write_text(json.dumps(plan | change), encoding="utf-8")
    with pytest.raises(UnusableFileError, match=r"sweep\.json"):
        load_sweep(tmp_path)


# ----------------------------------------------------------------------------------------------------------- commands


@pytest.mark.slow
@pytest.mark.figures
@pytest.mark.skipif(sys.platform != "linux", reason="commands are forks")
def test_damaged_files_of_runs_end_a_command_with_one_line_at_most() -> None:
    assert [fault for fault, *_ in trials(120, first=10**6) if fault is not None] == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="commands are forks")
def test_the_commands_succeed_if_nothing_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.engine.damaged_files import COMMANDS

    monkeypatch.chdir(tmp_path)
    make_runs()
    assert {name: command().code for name, command in COMMANDS.items()} == dict.fromkeys(COMMANDS, 0)
