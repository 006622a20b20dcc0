"""Sweeps in several processes that are killed, interrupted and helped give the result of an undisturbed sweep.

python -m tests.engine.test_sweep_processes 60     kill a sweep at 60 random moments
"""

import contextlib
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HANG, ROOT, environment, made_once, read, run_command

SWEEP = str(ROOT / "sweep.py")
DEBUG_TOY = ("s", "--problem", "tests.toy", "--preset", "debug", "--device", "cpu")
COMMAND = (*DEBUG_TOY, "--epochs", "150", "--seeds", "2", "--grid", "lr=0.01,0.001", "--workers", "2")
SEARCH = (
    *(*DEBUG_TOY, "--epochs", "60", "--search", "lr=1e-5..1e-1:log", "--trials", "4"),
    *("--confirm", "1", "--seeds", "1", "--workers", "1"),
)

WITHOUT_GIT = {"PATH": os.devnull}  # the summary has the commit, and the repository may be edited during a test

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]


def started(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start sweep.py in a new group of processes."""
    return subprocess.Popen(
        [sys.executable, SWEEP, *arguments],
        cwd=cwd,
        env=environment(**WITHOUT_GIT),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )


def group_of(process: int) -> list[int]:
    """The processes of a group that are alive, except its first one."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, _, group = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:3]
            if int(group) == process and state != "Z" and entry.name != str(process):
                found.append(int(entry.name))
    return found


def wait_for_end(process: int) -> None:
    """Wait until no process of a group is left."""
    end = time.monotonic() + HANG
    while left := group_of(process):
        assert time.monotonic() < end, left
        time.sleep(0.02)


def outcome(folder: Path) -> dict[str, Any]:
    """Everything about a sweep that must not depend on interruptions."""
    names = ("epoch_metrics.json", "results.json", "predictions.npz", "config.json")
    found: dict[str, Any] = {
        f"{run.parent.name}/{name}": (run.parent / name).read_bytes() if (run.parent / name).exists() else None
        for run in folder.glob("*/config.json")
        for name in names
    }
    found |= {name: (folder / name).read_bytes() for name in ("sweep.json", "summary.json")}
    if (folder / "trials.json").exists():
        found["trials.json"] = (folder / "trials.json").read_bytes()
    found["left over"] = [str(path) for path in folder.rglob(".*.tmp")]
    return found


def reference(command: tuple[str, ...], cwd: Path) -> tuple[dict[str, Any], float]:
    """The outcome of an undisturbed sweep, and how long it takes."""
    start = time.monotonic()
    done = run_command(*command, cwd=cwd, script="sweep.py", **WITHOUT_GIT)
    assert (done.returncode, done.stderr) == (0, "")
    return outcome(cwd / "checkpoints" / "s"), time.monotonic() - start


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The outcome of COMMAND, and how long it takes."""

    def make(cwd: Path) -> None:
        (cwd / "outcome").write_bytes(pickle.dumps(reference(COMMAND, cwd)))

    folder = made_once(tmp_path_factory, "undisturbed", make)
    found: tuple[dict[str, Any], float] = pickle.loads((folder / "outcome").read_bytes())
    return found


def training(folder: Path, process: "subprocess.Popen[str]", epochs: int = 1) -> None:
    """Wait until two runs of a sweep are being trained."""
    while len([path for path in folder.glob("*/epoch_metrics.json") if path.stat().st_size > 100 * epochs]) < 2:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)


def kill(process: "subprocess.Popen[str]", victim: str, choice: random.Random) -> None:
    """Kill a sweep: the whole group, only the parent, or one of the others."""
    if victim == "group":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    elif victim == "parent":
        process.kill()
    elif others := group_of(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(choice.choice(others), signal.SIGKILL)


def kill_often(
    command: tuple[str, ...], cwd: Path, seed: int, victims: Iterable[str], seconds: float
) -> Iterator[tuple[str, float, str]]:
    """Kill processes of a sweep at random moments, each time after the same command was given again."""
    choice = random.Random(seed)
    for victim in victims:
        delay = choice.uniform(0.1, seconds)
        with started(*command, cwd=cwd) as process:
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                kill(process, victim, choice)
            output, error = process.communicate(timeout=HANG)
            assert "Traceback" not in output + error, error
        wait_for_end(process.pid)
        yield victim, delay, error


def require_same_result_after_kills(
    command: tuple[str, ...], victims: list[str], cwd: Path, undisturbed: tuple[dict[str, Any], float]
) -> None:
    list(kill_often(command, cwd, 1, victims, seconds=undisturbed[1]))
    done = run_command(*command, cwd=cwd, script="sweep.py", **WITHOUT_GIT)
    assert (done.returncode, done.stderr) == (0, "")
    assert outcome(cwd / "checkpoints" / "s") == undisturbed[0]


def test_a_sweep_that_is_killed_at_any_moment_gives_the_same_result(
    undisturbed: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    require_same_result_after_kills(COMMAND, ["group", "worker"], tmp_path, undisturbed)


def test_a_search_that_is_killed_at_any_moment_gives_the_same_result(tmp_path: Path) -> None:
    for name in ("reference", "killed"):
        (tmp_path / name).mkdir()
    require_same_result_after_kills(SEARCH, ["parent"], tmp_path / "killed", reference(SEARCH, tmp_path / "reference"))


@pytest.mark.parametrize(
    ("number", "to_group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, True, 143)],
)
def test_a_signal_interrupts_the_runs_which_then_continue(
    number: signal.Signals, to_group: bool, code: int, undisturbed: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints" / "s"
    with started(*COMMAND, cwd=tmp_path) as process:
        training(folder, process)
        (os.killpg if to_group else os.kill)(process.pid, number)
        output, error = process.communicate(timeout=HANG)
    assert process.returncode == code
    assert error == "sweep.py: interrupted: the same command continues; checkpoints/s has the runs so far\n"
    wait_for_end(process.pid)
    statuses = [read(path.parent, "run_info.json")["status"] for path in folder.glob("*/run_info.json")]
    assert statuses.count("interrupted") == 2 - output.count("finished")
    assert "running" not in statuses
    done = run_command(*COMMAND, cwd=tmp_path, script="sweep.py", **WITHOUT_GIT)
    assert (done.returncode, done.stderr) == (0, "")
    assert outcome(folder) == undisturbed[0]


def test_a_run_whose_process_is_killed_fails_alone(undisturbed: tuple[dict[str, Any], float], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "s"
    with started(*COMMAND, cwd=tmp_path) as process:
        training(folder, process)
        infos = [read(path.parent, "run_info.json") for path in folder.glob("*/run_info.json")]
        victim = next(info["pid"] for info in infos if info["status"] == "running")
        os.kill(victim, signal.SIGKILL)
        output, error = process.communicate(timeout=HANG)
    assert process.returncode == 1
    assert error.count("\n") == 1
    name = error.partition(":")[0]
    assert error == f"{name}: failed: its process was ended by SIGKILL (checkpoints/s/output/{name}.txt)\n"
    assert output.count("finished after epoch 150 of 150") == 3
    assert "1 running" in output
    done = run_command(*COMMAND, cwd=tmp_path, script="sweep.py", **WITHOUT_GIT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("finished after") == 1
    assert outcome(folder) == undisturbed[0]


def test_helpers_on_other_machines_share_the_runs(undisturbed: tuple[dict[str, Any], float], tmp_path: Path) -> None:
    """The processes only share the folder. One of the helpers is killed."""
    folder = tmp_path / "main" / "checkpoints" / "s"
    (tmp_path / "main" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other machine").mkdir()
    (tmp_path / "other machine" / "checkpoints").symlink_to("../main/checkpoints")
    with started(*COMMAND[:-1], "1", cwd=tmp_path / "main") as main:
        while not (folder / "sweep.json").exists():
            time.sleep(0.01)
        helper = started("s", "--work", "--workers", "1", cwd=tmp_path / "other machine")
        with helper, started("s", "--work", "--workers", "2", cwd=tmp_path / "main") as killed:
            training(folder, killed)
            kill(killed, "group", random.Random(0))
            assert helper.wait(HANG) == 0
            errors = [each.communicate(timeout=HANG)[1] for each in (main, helper, killed)]
        assert main.returncode == 0
    assert errors == ["", "", ""]
    now = outcome(folder)
    plan = json.loads(now.pop("sweep.json"))
    assert plan["seeds"] == [42, 43]
    for name, content in undisturbed[0].items():
        if name not in ("sweep.json", "summary.json"):
            assert now[name] == content, name
    summary, expected = (json.loads(each) for each in (now["summary.json"], undisturbed[0]["summary.json"]))
    for key in ("settings", "differences", "verdicts"):
        assert summary[key] == expected[key]
    for path in folder.glob("output/*.txt"):  # no run was started again before it was left
        assert path.read_text(encoding="utf-8").count("epoch 1/150") <= 2


@pytest.mark.figures
def test_a_run_of_a_sweep_is_an_ordinary_run(undisturbed: tuple[dict[str, Any], float], tmp_path: Path) -> None:
    """Its numbers are those of main.py in a fresh process, and the other commands accept its folder."""
    cwd = tmp_path / "dossier é"
    cwd.mkdir()
    sizes = ("--num-train", "100", "--num-val", "50", "--num-test", "50")
    assert run_command(*sizes, "--save-data", "data.npz", cwd=cwd).returncode == 0
    command = ("s", "--problem", "tests.toy", "--device", "cpu", "--epochs", "3", "--grid", "hidden=4,8")
    without_home = {"HOME": "", "MPLCONFIGDIR": str(tmp_path)}
    done = run_command(*command, *sizes, "--data", "data.npz", cwd=cwd, script="sweep.py", **without_home)
    assert (done.returncode, done.stderr) == (0, "")
    folder = Path("checkpoints") / "s" / "hidden4-seed42"
    done = run_command("--config", f"{folder}/config.json", "--run-name", "other", cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("epoch_metrics.json", "results.json", "predictions.npz"):
        assert (cwd / folder / name).read_bytes() == (cwd / "checkpoints" / "other" / name).read_bytes()
    figures = sorted(path.name for path in (cwd / folder / "figures").iterdir())
    shutil.rmtree(cwd / folder / "figures")
    info = read(cwd / folder, "run_info.json") | {"status": "interrupted"}  # it then needs its data again
    (cwd / folder / "run_info.json").write_text(json.dumps(info), encoding="utf-8", newline="\n")
    for script, *arguments in (
        (("-m", "tests.toy"), "--resume", f"checkpoints/s/{folder.name}"),
        ("runs.py", "plot", str(folder)),
    ):
        done = run_command(*arguments, cwd=cwd, script=script)
        assert (done.returncode, done.stderr) == (0, "")
    assert run_command(str(folder), "--data", "data.npz", cwd=cwd, script="evaluate.py").returncode == 0
    assert sorted(path.name for path in (cwd / folder / "figures").iterdir()) == figures
    assert len(read(cwd / folder, "epoch_metrics.json")) == 3


def test_a_sweep_without_streams_is_complete(tmp_path: Path) -> None:
    command = f"'{sys.executable}' '{SWEEP}' s --problem tests.toy --preset debug --device cpu --epochs 1 --seeds 2"
    env = environment(LC_ALL="C", PYTHONIOENCODING="ascii")
    subprocess.run(["bash", "-c", f"{command} >&- 2>&- <&-"], cwd=tmp_path, env=env, check=True)
    found = read(tmp_path / "checkpoints" / "s", "summary.json")["settings"]["mlp-d3"]["runs"]
    assert [run["status"] for run in found.values()] == ["finished"] * 2


def main(n: int) -> None:
    """Kill sweeps n times. Print each time which files of a sweep that then was complete differ: none should."""
    for command in (COMMAND, SEARCH):
        with tempfile.TemporaryDirectory() as top:
            undisturbed, killed = (Path(top) / name for name in ("undisturbed", "killed"))
            undisturbed.mkdir()
            killed.mkdir()
            expected, seconds = reference(command, undisturbed)
            victims = itertools.islice(itertools.cycle(["group", "parent", "worker"]), n)
            for victim, delay, error in kill_often(command, killed, 0, victims, 0.8 * seconds):
                print(f"{victim} after {delay:.2f} of {seconds:.2f} s", error.strip()[:200], flush=True)
                if (killed / "checkpoints" / "s" / "summary.json").exists():
                    code = run_command(*command, cwd=killed, script="sweep.py", **WITHOUT_GIT).returncode
                    now = outcome(killed / "checkpoints" / "s")
                    print("complete:", code, [name for name in expected if now.get(name) != expected[name]], flush=True)
                    shutil.rmtree(killed / "checkpoints")


if __name__ == "__main__":
    main(int(sys.argv[1]))
