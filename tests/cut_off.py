"""Cuts a run off at many moments, lets it go on, and holds the result against a run that was not cut off.

python -m tests.cut_off writes     killed before and after every write and rename there is
python -m tests.cut_off full       the disk is full from every write or rename on
python -m tests.cut_off moments    killed at 30 random moments

Runs are forks of this process, which has loaded everything, so that each takes a fraction of a second. Prints a line of
JSON for each cut: where it was, the exit codes, and the files that then differ.
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

import main
import plots
import trainer  # noqa: F401 - loaded here, not in every fork
from ising import multispin
from utils import read_checked

RUN = ["--lattice-size", "4", "--num-train", "200", "--num-val", "50", "--num-test", "50", "--hidden", "8", "--dropout"]
RUN += ["0.2", "--batch-size", "32", "--epochs", "4", "--device", "cpu", "--threads", "1", "--run-name", "r"]
FOLDER = Path("checkpoints") / "r"


def forked(arguments: list[str], prepare: Callable[[], object] = lambda: None) -> int:
    """The number of a process that runs `python main.py ARGUMENTS` in the working folder, in silence."""
    if child := os.fork():
        return child
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        plots.draw_run = lambda folder: []  # figures take longer than all the rest, and are drawn from what is tested
        prepare()
        sys.argv = ["main.py", *arguments]
        os._exit(main.main())
    except SystemExit as end:
        os._exit(int(end.code or 0))
    finally:
        os._exit(1)  # a bug


def exit_code(process: int) -> int:
    """That of a forked process, once it has ended; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


class CutAt:
    """Counts what is done to the disk, and does something in place of it from the n-th time on."""

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
    """All that must not depend on where a run was cut off."""
    found: dict[str, Any] = {name: (FOLDER / name).read_bytes() for name in ("epoch_metrics.json", "results.json")}
    for name in ("best.pt", "last.pt", "previous.pt"):
        saved = torch.load(io.BytesIO(read_checked(FOLDER / name)), weights_only=True)
        found[name] = json.dumps(saved, default=lambda tensor: tensor.tolist())
    found["left over"] = sorted(path.name for path in FOLDER.glob(".*.tmp"))
    found["status"] = json.loads((FOLDER / "run_info.json").read_text())["status"]
    return found


def go_on() -> list[int]:
    """Resume the run in the working folder or, if there is nothing to go on with, begin it; the exit codes."""
    codes = [exit_code(forked(["--resume", "r"]))]
    if codes[0] == 2:
        codes.append(exit_code(forked(RUN)))
    return codes


def cut(reference: dict[str, Any], where: str, start: Callable[[], int]) -> int:
    """Let a run start in a folder of its own, which ends it somehow; go on; say what differs from the reference."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        first = start()
        rows = json.loads(path.read_text()) if (path := FOLDER / "epoch_metrics.json").exists() else []
        codes = go_on()
        now = outcome()
        differ = [name for name in reference if now[name] != reference[name]]
        print(json.dumps({"cut": where, "first": first, "epochs": len(rows), "then": codes, "differ": differ}))
        os.chdir("/")
    return first


def command() -> None:
    """Make the reference, then as many cuts as there are."""
    torch.set_num_threads(1)
    multispin.get_ready()
    if sys.argv[1] == "moments":
        RUN.extend(["--epochs", "40"])  # most of the time is then training
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        assert exit_code(forked(RUN)) == 0  # reads from the disk what later ones find in memory
        start = time.perf_counter()
        assert exit_code(forked([*RUN, "--overwrite"])) == 0
        seconds = time.perf_counter() - start
        reference = outcome()
        os.chdir("/")
    if sys.argv[1] == "moments":
        moments, n_killed = random.Random(0), 0
        while n_killed < 30:  # some runs may be faster than the one that was timed, and end before
            moment = moments.uniform(0, seconds)

            def kill_later(moment: float = moment) -> int:
                process = forked(RUN)
                time.sleep(moment)
                os.kill(process, signal.SIGKILL)
                return exit_code(process)

            n_killed += cut(reference, f"{moment:.3f} s of {seconds:.3f}", kill_later) == -signal.SIGKILL
        return
    act, after_renames = {"writes": (die, True), "full": (be_full, False)}[sys.argv[1]]
    n = 1
    while cut(reference, str(n), lambda: exit_code(forked(RUN, CutAt(n, act, after_renames)))) != 0:  # noqa: B023
        n += 1


if __name__ == "__main__":
    command()
