"""Sweeps in the jobs of a cluster: plans, runs that other jobs train or leave, and signals."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Self

import filelock
import pytest

import sweep
from engine.machine.atomic_files import write_json
from engine.machine.errors import BadRequestError
from engine.machine.pool import Outcome
from engine.many_runs.sweep_request import parse_args
from engine.many_runs.sweeps import Sweep, load_sweep, open_sweep
from engine.run_folder.run_lock import lock_run
from tests.conftest import DEBUG, HANG, environment, read, run_command

Seeds = Callable[[int], Sweep]

PLAN = ("--problem", "tests.toy", *DEBUG)


@pytest.fixture
def seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seeds:
    """A function that plans a sweep of some seeds of the toy problem in a new folder."""

    def plan(n: int) -> Sweep:
        request = parse_args(["s", *PLAN, "--seeds", str(n)])
        assert request.plan is not None
        return open_sweep(request.folder, request.plan)

    monkeypatch.chdir(tmp_path)
    return plan


class FakePool:
    """A pool that runs one task at a time, and calls `train(name)` for it instead of training."""

    train: Callable[[str], str]
    key = ""

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def is_full(self) -> bool:
        return bool(self.key)

    @property
    def running(self) -> set[str]:
        return {self.key} - {""}

    def start(self, key: str, *_: Any) -> None:
        self.key = key

    def wait(self, timeout: float | None) -> list[Outcome]:
        key, self.key = self.key, ""
        return [Outcome(key, type(self).train(key))]


def test_a_job_takes_the_runs_that_other_jobs_left_after_its_own_run(
    seeds: Seeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, attempts = seeds(4), []

    def train(name: str) -> str:
        attempts.append(name)
        # Another job trains the first run until it is cancelled. A third one trains the second run until the end.
        if name == "seed43" or attempts == ["seed42"]:
            return "taken"
        (planned.folder / name).mkdir()
        write_json(planned.folder / name / "run_info.json", {"status": "finished"})
        return "over"

    monkeypatch.setattr(sweep, "Pool", FakePool)
    monkeypatch.setattr(FakePool, "train", staticmethod(train), raising=False)
    assert sweep.train_all(planned, 1, wait=False) == {}  # ends, although the second run is not over
    assert attempts[:4] == ["seed42", "seed43", "seed44", "seed42"]
    assert {run.name for run in planned.open_runs(())} == {"seed43"}


def test_a_run_of_another_job_is_left_without_a_word_in_its_output(seeds: Seeds) -> None:
    folder = seeds(1).folder / "seed42"
    with lock_run(folder):
        (run,) = seeds(1).open_runs(())
        assert sweep.train_run("tests.toy", run.config, folder, None) == "taken"
    assert not (folder.parent / "output").exists()


def test_jobs_are_refused_if_the_file_system_has_no_locks(seeds: Seeds, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = seeds(1)
    planned.require_locks()

    def fail(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "_acquire", fail)
    with pytest.raises(BadRequestError, match=r"--work: the file system cannot lock checkpoints.s, so two machines"):
        planned.require_locks()
    monkeypatch.setattr(sys, "argv", ["sweep.py", "s", "--work"])
    with pytest.raises(SystemExit, match="2"):
        sweep.main()
    assert not (planned.folder / "seed42").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--plan",), "nothing to vary: give --seeds"),
        (("--plan", "--seeds", "2", "--workers", "2"), "--workers does nothing with --plan: drop it"),
    ],
)
def test_flags_that_contradict_a_plan_are_refused(
    flags: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args(["s", *PLAN, *flags])
    assert words in capsys.readouterr().err


def test_a_plan_and_work_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args(["s", "--plan", "--work"])
    assert "--plan does nothing with --work" in capsys.readouterr().err


def test_a_plan_trains_nothing(sweep_in_process: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep_in_process("s", "--seeds", "2", "--plan") == 0
    folder = Path("checkpoints/s")
    words = f"{folder / 'sweep.json'} is written: `python sweep.py s --work` trains its runs\n"
    assert capsys.readouterr() == (words, "")
    assert {path.name for path in folder.iterdir()} == {"sweep.json", "sweep.lock"}
    command = "python sweep.py s --seeds 2 --problem tests.toy --device cpu"
    assert read(folder, "sweep.json")["command"] == command  # which trains the sweep, without --plan


@pytest.mark.slow
def test_jobs_train_a_planned_sweep(tmp_path: Path) -> None:
    assert run_command("s", *PLAN, "--seeds", "3", "--plan", cwd=tmp_path, script="sweep.py").returncode == 0
    for _ in range(2):  # the second job finds nothing to do
        done = run_command("s", "--work", cwd=tmp_path, script="sweep.py", SLURM_CPUS_PER_TASK="1")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(
            f"processes: 1; problem: tests.toy; what the runs print is in {Path('checkpoints/s/output')}\n"
        )
        assert "(n = 3)" in done.stdout
    runs = next(iter(read(tmp_path / "checkpoints/s", "summary.json")["settings"].values()))["runs"]
    assert {run["status"] for run in runs.values()} == {"finished"}
    assert [run.name for run in load_sweep(tmp_path / "checkpoints/s").open_runs(())] == []


SAVING = """
import sys
import time
from pathlib import Path
from engine.machine.pool import Pool
from engine.machine.signals import Interrupted, stop_on_signals

def work():
    try:
        print("working", flush=True)
        time.sleep(60)
    except Interrupted:
        print("saving", flush=True)
        while not Path("go on").exists():
            time.sleep(0.01)
        print("saved", flush=True)

if __name__ == "__main__":
    stop_on_signals()
    try:
        with Pool(1, work) as pool:
            pool.start("a")
            pool.wait()
    except Interrupted as stopped:
        print("ended", flush=True)
        sys.exit(stopped.exit_code)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGTERM to a handler")
def test_a_second_sigterm_does_not_stop_a_pool_that_waits_for_its_processes(tmp_path: Path) -> None:
    # At the end of its time, a job of SLURM receives SIGTERM more than once.
    (tmp_path / "saving.py").write_text(SAVING, encoding="utf-8")
    command = [sys.executable, "saving.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGTERM)
        (tmp_path / "go on").touch()
        timer = threading.Timer(HANG, process.kill)  # otherwise, a process that waits for ever would block the tests
        timer.start()
        assert process.stdout.read() == "saved\nended\n"
        assert process.wait() == 128 + signal.SIGTERM
        timer.cancel()
