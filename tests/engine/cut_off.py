"""Cut off a run, resume it, and compare the result with that of an uninterrupted run. Repeat this for many positions.

python -m tests.engine.cut_off writes     kill the run before or after each write and each rename
python -m tests.engine.cut_off full       let the disk be full, beginning with every second write or rename
python -m tests.engine.cut_off moments    kill the run at 15 random moments

Runs are forks of this process, which has already loaded all modules, so that a run takes a fraction of a second. The
output has one line of JSON per cut: its position, the exit codes, and the files that differ afterwards.
"""

import errno
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import logger
import main
import trainer  # noqa: F401 - loaded here, not in every fork
from engine.machine import repository
from engine.machine.atomic_files import read_checked
from engine.run_folder import figures_of_run
from tests.toy import PROBLEM

RUN = ["--num-train", "100", "--num-val", "20", "--num-test", "20", "--hidden", "4", "--dropout", "0.2"]
RUN += ["--batch-size", "32", "--epochs", "2", "--lr", "0.01", "--device", "cpu", "--threads", "1", "--run-name", "r"]
FOLDER = Path("checkpoints") / "r"
PLACE = "/dev/shm" if Path("/dev/shm").is_dir() else None  # in memory, where other programs do not slow down fsync


def forked(arguments: list[str], prepare: Callable[[], object] = lambda: None) -> int:
    """Fork a process that runs `python -m tests.toy ARGUMENTS` in the working directory, and return its id."""
    if child := os.fork():
        return child
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        prepare()
        sys.argv = ["toy.py", *arguments]
        main.main(PROBLEM)
    except SystemExit as end:
        os._exit(int(end.code or 0))
    finally:
        os._exit(1)  # a bug


def exit_code(process: int) -> int:
    """Wait for a forked process, and return its exit code, which is negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


class CutAt:
    """Counts the operations on the disk, and calls `act` before the n-th one and all later ones."""

    def __init__(self, n: int, act: Callable[[], object], after_renames: bool) -> None:
        self.left, self.act, self.after_renames = n, act, after_renames

    def __call__(self) -> None:
        sync, rename = os.fsync, os.replace

        def fsync(descriptor: int) -> None:
            self.count()
            sync(descriptor)

        def replace(source: Any, target: Any) -> None:
            self.count()
            rename(source, target)
            if self.after_renames:
                self.count()

        os.fsync, os.replace = fsync, replace  # type: ignore[assignment]

    def count(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.act()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def be_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def outcome() -> dict[str, Any]:
    """Everything that must not depend on where a run was cut off."""
    names = ("epoch_metrics.json", "results.json", "predictions.npz", "config.json", "train_inputs.npy")
    found: dict[str, Any] = {name: (FOLDER / name).read_bytes() for name in names}
    for name in ("best.pt", "last.pt"):
        saved = torch.load(io.BytesIO(read_checked(FOLDER / name)), weights_only=True)
        found[name] = json.dumps(saved, default=lambda tensor: tensor.tolist())
    found["left over"] = sorted(path.name for path in FOLDER.glob(".*.tmp"))
    found["status"] = json.loads((FOLDER / "run_info.json").read_text(encoding="utf-8"))["status"]
    return found


def resume() -> list[int]:
    """Resume the run in the working directory. If there is nothing to resume, start it. Return the exit codes."""
    codes = [exit_code(forked(["--resume", "r"]))]
    if codes[0] == 2:
        codes.append(exit_code(forked(RUN)))
    return codes


def cut(reference: dict[str, Any], where: str, start: Callable[[], int]) -> int:
    """Call `start`, which cuts off a run in a new folder. Resume the run, and print what differs from the reference."""
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        os.chdir(folder)
        first = start()
        rows = json.loads(path.read_text(encoding="utf-8")) if (path := FOLDER / "epoch_metrics.json").exists() else []
        codes = resume()
        now = outcome()
        differ = [name for name in reference if now[name] != reference[name]]
        print(json.dumps({"cut": where, "first": first, "epochs": len(rows), "then": codes, "differ": differ}))
        os.chdir("/")
    return first


def cut_at_moments(reference: dict[str, Any], seconds: float) -> None:
    """Kill 15 runs at random moments within the time that an uninterrupted run takes."""
    moments, n_killed = random.Random(0), 0
    while n_killed < 15:  # some runs may be faster than the one that was timed, and end before they are killed
        moment = moments.uniform(0, seconds)

        def kill_later(moment: float = moment) -> int:
            process = forked(RUN)
            time.sleep(moment)
            os.kill(process, signal.SIGKILL)
            return exit_code(process)

        n_killed += cut(reference, f"{moment:.3f} s of {seconds:.3f}", kill_later) == -signal.SIGKILL


def cut_at_operations(reference: dict[str, Any], act: Callable[[], object], after_renames: bool, step: int) -> None:
    """Cut off a run at its first operation on the disk, another `step` later, and so on, until a run is complete."""
    n = 1
    while cut(reference, str(n), lambda: exit_code(forked(RUN, CutAt(n, act, after_renames)))) != 0:  # noqa: B023
        n += step


def command() -> None:
    """Make the reference, then the cuts of the mode that the command line names."""
    mode = sys.argv[1]
    torch.set_num_threads(1)
    # Skip figures and git, which take longer than everything else. Figures are plotted from files that are compared.
    figures_of_run.plot_run, repository._git = (lambda *_: []), (lambda *_: None)
    logger.SECONDS_BETWEEN_WRITES = 0  # an epoch takes milliseconds, and every epoch should be written
    if mode == "moments":
        RUN.extend(["--epochs", "20"])  # most of the time is then training
        logger.SECONDS_BETWEEN_WRITES = 0.02  # some epochs are written, others are only kept in memory
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        os.chdir(folder)
        assert exit_code(forked(RUN)) == 0  # loads files from the disk that are then in memory
        start = time.perf_counter()
        assert exit_code(forked([*RUN, "--overwrite"])) == 0
        seconds = time.perf_counter() - start
        reference = outcome()
        os.chdir("/")
    if mode == "moments":
        cut_at_moments(reference, seconds)
    else:
        act, after_renames, step = {"writes": (die, True, 1), "full": (be_full, False, 2)}[mode]
        cut_at_operations(reference, act, after_renames, step)


if __name__ == "__main__":
    command()
