"""The pool of processes: outcomes, processes that are killed, and how it stops."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.machine.pool import Outcome, Pool
from tests.conftest import HANG, environment
from tests.engine.tasks import Unloadable, work

PROGRAM = """
import sys
from engine.machine.exit_code import ExitCode
from engine.machine.pool import Pool
from tests.engine.tasks import work

if __name__ == "__main__":
    with ExitCode() as code, Pool(2, work) as pool:
        for number in range(2):
            pool.start(f"task {number}", f"wait {number}")
        while True:
            print(pool.wait(), flush=True)
    sys.exit(code.code)
"""


def all_outcomes(pool: Pool) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    while pool.running:
        found |= {outcome.key: outcome for outcome in pool.wait()}
    return found


def test_a_task_that_fails_or_kills_its_process_does_not_stop_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    tasks = ["error", "bug", "killed", Unloadable(), "exit", "fine"]
    with Pool(1, work) as pool:
        found: dict[str, Outcome] = {}
        for number, task in enumerate(tasks):
            pool.start(str(number), task)
            assert pool.is_full
            found |= all_outcomes(pool)
        assert pool.running == set()
    assert found["0"] == Outcome("0", None, "one line", "")
    assert found["1"].error == "ZeroDivisionError: a bug"
    assert "Traceback" in found["1"].details
    assert found["2"] == Outcome("2", error="its process was ended by SIGKILL")
    assert found["3"].error.startswith("ModuleNotFoundError: No module named 'a_module_that_was_removed'")
    assert found["4"] == Outcome("4", error="its process was ended with exit code 3")
    assert found["5"] == Outcome("5", "fine")
    assert capfd.readouterr() == ("", "")


def test_a_process_does_one_task_after_the_other_and_is_replaced_if_it_was_killed() -> None:
    with Pool(1, work) as pool:
        processes: list[int] = []
        for number in range(3):
            if number == 2:
                os.kill(processes[-1], signal.SIGKILL)
                pool.idle[0].process.join()
            pool.start(str(number), "process")
            processes.append(all_outcomes(pool)[str(number)].value)
    assert processes[0] == processes[1] != processes[2]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").split()[2] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("number", "to_group", "code"),
    [
        (signal.SIGINT, True, 130),
        (signal.SIGINT, False, 130),
        (signal.SIGTERM, False, 143),
        (signal.SIGTERM, True, 143),
        (signal.SIGKILL, False, -9),
        (signal.SIGHUP, True, 129),
        (signal.SIGUSR1, True, 143),
    ],
)
def test_a_signal_stops_all_processes_which_save_their_state(
    number: signal.Signals, to_group: bool, code: int, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        while len(list(tmp_path.glob("*.pid"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.1)
        pids = [int(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*.pid")]
        (os.killpg if to_group else os.kill)(process.pid, number)
        output, error = process.communicate(timeout=HANG)
    assert process.returncode == code
    assert error == ("" if code == -9 else "program.py: interrupted: nothing was saved\n")
    assert output == ""
    end = time.monotonic() + HANG
    while any(map(alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == ["wait-0.saved", "wait-1.saved"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_signal_while_processes_start_leaves_one_line(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    for number, delay in ((signal.SIGTERM, 0.0), (signal.SIGINT, 0.03), (signal.SIGINT, 0.1)):
        with subprocess.Popen(
            [sys.executable, str(program)],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        ) as process:
            end = time.monotonic() + HANG
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            try:
                while len(children.read_text(encoding="utf-8").split()) < 2:  # the resource tracker and a process
                    assert time.monotonic() < end
                    time.sleep(0.001)
                time.sleep(delay)
                os.killpg(process.pid, number)
                error = process.communicate(timeout=HANG)[1]
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # or the end of the block would wait forever
                raise
        assert process.returncode == 128 + number
        assert error == "program.py: interrupted: nothing was saved\n"
