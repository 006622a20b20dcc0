"""The limits of the machine, of a job and of a container: cores, memory, locks, and a missing home folder."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import filelock
import psutil
import pytest
import torch
from torch import nn

from engine.learning.network_memory import require_memory_for_training
from engine.learning.standardized import Shapes
from engine.machine import atomic_files as files
from engine.machine import hardware
from engine.machine.atomic_files import write_atomic, write_json
from engine.machine.errors import BadRequestError
from engine.machine.hardware import available_cores, is_out_of_memory, physical_memory
from engine.run_folder.run_lock import lock_run, require_free
from tests.conftest import DEBUG, HANG, ROOT, environment, read, run_process
from tests.toy import PROBLEM, ToyConfig, ToyModelConfig, ToyProblem
from trainer import Trainer

Run = Callable[..., int]
MIB = 2**20


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, dict[str, str]], None]:
    """A function that makes a machine with 16 cores, 64 GiB and some control groups: its list, and its files."""

    def make(groups: str, limits: dict[str, str]) -> None:
        (tmp_path / "list").write_text(groups, encoding="utf-8", newline="\n")
        for name, content in limits.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content + "\n", encoding="utf-8", newline="\n")

    for name in ("SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hardware, "CGROUPS_OF_PROCESS", tmp_path / "list")
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    memory = psutil.virtual_memory()._replace(total=64 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    return make


V1 = "9:memory:/job\n4:cpu,cpuacct:/job/step\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("groups", "limits", "cores", "mib"),
    [
        ("0::/\n", {}, 16, 65536),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000", "job/step/memory.max": "max"}, 16, 65536),
        ("0::/job/step\n", {"job/step/cpu.max": "250000 100000", "job/step/memory.max": f"{512 * MIB}"}, 3, 512),
        ("0::/job/step\n", {"job/cpu.max": "50000 100000", "job/memory.max": f"{512 * MIB}"}, 1, 512),  # inherited
        ("0::/../other\n", {"cpu.max": "200000 100000", "memory.max": f"{512 * MIB}"}, 2, 512),  # in a container
        (V1, {"memory/job/memory.limit_in_bytes": f"{256 * MIB}"}, 16, 256),
        (V1, {"memory/memory.limit_in_bytes": f"{2**63 - 4096}"}, 16, 65536),  # no limit
        (V1, {"cpu/job/step/cpu.cfs_quota_us": "400000", "cpu/job/step/cpu.cfs_period_us": "100000"}, 4, 65536),
        (V1, {"cpu/job/step/cpu.cfs_quota_us": "-1", "cpu/job/step/cpu.cfs_period_us": "100000"}, 16, 65536),
    ],
)  # fmt: skip
def test_control_groups_limit_cores_and_memory(
    groups: str, limits: dict[str, str], cores: int, mib: int, machine: Callable[..., None]
) -> None:
    machine(groups, limits)
    assert (available_cores(), physical_memory()) == (cores, mib * MIB)


@pytest.mark.parametrize(
    ("variables", "cores", "mib"),
    [
        ({"SLURM_CPUS_PER_TASK": "4"}, 4, 65536),
        ({"SLURM_CPUS_PER_TASK": "x", "SLURM_MEM_PER_NODE": "0"}, 16, 65536),  # 0: all memory of the node
        ({"SLURM_MEM_PER_NODE": "2000"}, 16, 2000),
        ({"SLURM_CPUS_PER_TASK": "2", "SLURM_MEM_PER_CPU": "1500"}, 2, 3000),
    ],
)
def test_slurm_limits_cores_and_memory(
    variables: dict[str, str], cores: int, mib: int, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("0::/\n", {})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (available_cores(), physical_memory()) == (cores, mib * MIB)


def test_large_networks_use_the_cores_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(hardware, "available_cores", lambda: 3)
    assert hardware.choose_num_threads(nn.Linear(1000, 1000), 1000, 1000) == 3
    assert hardware.choose_num_threads(nn.Linear(1, 1), 1, 1) == 1


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("missing", [0, 1])
def test_a_network_that_does_not_fit_in_memory_is_refused_before_data_are_generated(
    missing: int, toy_in_process: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    n_bytes = 5 * 4 * ((3 + 1 + 1) * 1000 + 1000 + 1)  # the weights and biases of two layers, 5 times, as float32
    monkeypatch.setattr(hardware, "physical_memory", lambda: n_bytes - missing)
    monkeypatch.setattr("engine.datasets.splits.require_memory", lambda *_: None)
    assert toy_in_process(*DEBUG, "--hidden", "1000", "--run-name", "r") == (2 if missing else 0)
    if missing:
        error = capsys.readouterr().err
        assert error.startswith("toy.py: error: to train it, the network needs 0.0 GiB of memory and this machine or")
        assert error.endswith("choose a smaller network\n")
        assert error.count("\n") == 1
        assert not Path("cache").exists()
        assert not Path("checkpoints").exists()


def test_a_network_is_counted_without_being_allocated_and_a_broken_one_is_not_counted() -> None:
    config = ToyConfig(model=ToyModelConfig(hidden=10**6))
    with pytest.raises(BadRequestError, match=r"needs 18,\d\d\d\.\d GiB"):
        require_memory_for_training(PROBLEM, config, lambda: Shapes(((10**6,), ()), ()))

    class ReadsNumbers(ToyProblem):
        def network(self, config: ToyConfig, input_shapes: object, target_shape: object) -> nn.Module:
            return nn.Linear(int(torch.ones(()).item()), 10**6)

    require_memory_for_training(ReadsNumbers(), config, lambda: Shapes(((3,), ()), ()))


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50), lambda: bytearray(2**62)])
def test_memory_that_cannot_be_allocated_ends_the_run_with_one_line(
    allocate: Callable[[], object],
    toy_in_process: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Trainer, "train_epoch", lambda *_: allocate())
    assert toy_in_process(*DEBUG, "--run-name", "r") == 2
    error = capsys.readouterr().err
    assert error.startswith("toy.py: error: not enough memory (")
    assert error.count("\n") == 1
    assert read(Path("checkpoints/r"), "run_info.json")["status"] == "failed"


def test_errors_about_memory_are_recognised() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(None)


# ---------------------------------------------------------------------------------------------- file systems and links


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    rename = Path.replace

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        done.append("folder" if stat.S_ISDIR(found.st_mode) else f"{found.st_size} bytes")

    def replace(source: Path, target: Path) -> None:
        done.append("name")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_atomic(tmp_path / "file", b"content")
    assert done == ["7 bytes", "name", "folder"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_and_without_fsync_of_folders_is_a_warning(
    number: int, toy_in_process: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    fsync = os.fsync
    monkeypatch.setattr(filelock.FileLock, "_acquire", fail)
    monkeypatch.setattr(os, "fsync", lambda fd: fail() if stat.S_ISDIR(os.fstat(fd).st_mode) else fsync(fd))
    assert toy_in_process(*DEBUG, "--run-name", "r") == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: the file system cannot lock checkpoints/r: ")
    assert error.count("\n") == 1
    assert toy_in_process("--resume", "r", "--epochs", "6") == 0


def test_other_errors_of_locks_and_of_fsync_are_reported(
    toy_in_process: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(filelock.FileLock, "_acquire", fail)
        assert toy_in_process(*DEBUG, "--run-name", "r") == 5
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        files.sync_folder(Path())
    assert capsys.readouterr().err.count("Input/output error") == 1


def test_a_locked_folder_is_free_again_after_the_block(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with lock_run(folder):
        write_json(folder / "run_info.json", {"status": "running", "pid": 321})
        with pytest.raises(BadRequestError, match="is being written by process 321: wait"):
            require_free(folder, overwrite=True)
    require_free(folder, overwrite=True)


def test_replacing_a_file_that_another_process_reads_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []
    replace = os.replace

    def busy(source: Path, target: Path) -> None:
        attempts.append(target)
        if len(attempts) < 3:
            raise PermissionError(errno.EACCES, "used by another process")
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    write_json(tmp_path / "a.json", {"a": 1})
    assert read(tmp_path, "a.json") == {"a": 1}
    assert len(attempts) == 3
    attempts[:] = [Path()] * -(10**3)
    monkeypatch.setattr("time.sleep", lambda _: attempts.clear())
    with pytest.raises(PermissionError):
        write_json(tmp_path / "a.json", {"a": 2})
    assert read(tmp_path, "a.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("kind", ["link", "dangling", "loop"])
def test_checkpoints_may_be_a_link_to_a_folder(
    kind: str, toy_in_process: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").mkdir()
    Path("checkpoints").symlink_to({"link": "disk", "dangling": "missing", "loop": "checkpoints"}[kind])
    code = toy_in_process(*DEBUG, "--run-name", "r")
    error = capsys.readouterr().err
    if kind == "link":
        assert (code, error) == (0, "")
        assert (tmp_path / "disk" / "r" / "results.json").is_file()
    else:
        assert code == 2
        assert error.startswith("toy.py: error: checkpoints is a link to a missing folder: ")
        assert error.count("\n") == 1


@pytest.mark.slow
def test_a_checkout_behind_a_link_gives_the_same_run_and_the_same_hashes_of_code(toy_run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(ROOT)
    done = run_process(*DEBUG, "--run-name", "first", cwd=tmp_path, PYTHONPATH=str(tmp_path / "link"))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(
        path.name for path in (toy_run.parents[1] / "cache").iterdir()
    )
    folder = tmp_path / "checkpoints" / "first"
    for name in ("problem", "problem_sha256", "trainer_sha256"):
        assert read(folder, "run_info.json")[name] == read(toy_run, "run_info.json")[name]


# --------------------------------------------------------------------------------------------------------------- ending

WAITING = """
import atexit, sys, threading
from engine.machine import exit_code
exit_code.SECONDS_TO_END = 0.1
sys.modules["wandb"] = sys
atexit.register(lambda: threading.Event().wait())
exit_code.quick_exit(130)
"""


def test_the_program_ends_although_wandb_waits_for_a_server() -> None:
    done = subprocess.run([sys.executable, "-c", WAITING], cwd=ROOT, env=environment(), timeout=HANG, check=False)
    assert done.returncode == 130
