"""A run in several processes: it gives the same numbers, only rank 0 writes, and all processes end if one dies."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.learning.distributed import SINGLE_PROCESS, Group, group_from_environment
from engine.machine.atomic_files import write_json
from engine.machine.errors import BadRequestError
from engine.run_folder.open_run import is_restart
from tests.conftest import (
    DEBUG,
    HANG,
    ROOT,
    TORCHRUN,
    TOY,
    environment,
    read,
    run_command,
    run_process,
    run_ranks,
    start_command,
    wait_for,
)

# The last batch has one example, which is fewer than there are processes. Other numbers cannot be divided evenly.
UNEVEN = [*DEBUG, "--num-train", "226", "--num-val", "51", "--num-test", "50", "--batch-size", "45"]

# A problem with a metric that is not a mean, so that it cannot be computed from the metrics of shards.
WORST = """
import numpy as np

from main import main
from tests.toy import ToyProblem


class WorstProblem(ToyProblem):
    def metrics(self, config, columns, predictions, targets):
        mean_metrics = super().metrics(config, columns, predictions, targets)
        return {**mean_metrics, "worst": float(np.abs(predictions - targets).max())}


PROBLEM = WorstProblem()

if __name__ == "__main__":
    main(PROBLEM)
"""

# A program that checks collective operations in each process of a group.
COLLECTIVES = """
import os

import torch

from engine.learning.distributed import group_from_environment
from engine.learning.prediction import build_model, evaluate, prepare
from tests.engine.training import TINY
from tests.toy import PROBLEM

from engine.datasets.splits import get_splits

group = group_from_environment()
assert group.size == 3
with group.init(torch.device("cpu")):
    for n in (1, 2, 3, 5, 64):  # also with fewer rows than processes
        for dtype in (torch.float32, torch.int64):
            rows = (torch.rand(n, 2) * 1000).to(dtype)
            rows = group.broadcast(lambda: rows)
            gathered = group.gather(group.shard(rows), n)
            assert gathered.dtype == dtype
            assert torch.equal(gathered, rows)
    assert group.broadcast(lambda: group.rank) == 0
    assert torch.equal(group.all_reduce(torch.tensor([group.rank, 1.0])), torch.tensor([3.0, 3.0]))

    columns = get_splits(PROBLEM, TINY)[0].val
    model = build_model(PROBLEM, TINY, columns)
    examples = prepare(PROBLEM, TINY, model, columns)
    single, together = evaluate(PROBLEM, TINY, model, examples), evaluate(PROBLEM, TINY, model, examples, group)
    assert together.predicted.values.shape == single.predicted.values.shape == (100,)
    assert abs(together.predicted.values - single.predicted.values).max() < 1e-5
    for name, value in single.metrics.items():
        assert abs(together.metrics[name] - value) < 1e-5, name
os.write(1, f"process {group.rank} is done\\n".encode())  # one write: print may write the end of the line later
"""


def torchrun(n: int, *arguments: str, cwd: Path, script: tuple[str, ...] = TOY) -> subprocess.CompletedProcess[str]:
    """Run `torchrun --nproc-per-node N SCRIPT ARGUMENTS` in the folder `cwd`."""
    return subprocess.run(
        [sys.executable, *TORCHRUN, str(n), *script, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=HANG,
        check=False,
    )


# --------------------------------------------------------------------------------------------------------- one process


def test_the_shards_of_a_batch_together_are_the_batch() -> None:
    for n in (0, 1, 5, 64):
        batch = torch.arange(n)
        for size in (1, 2, 3, 7):
            shards = [Group(rank, size).shard(batch) for rank in range(size)]
            assert torch.equal(torch.cat(shards), batch)
            assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_every_process_gets_the_whole_batch_if_it_is_smaller_than_the_group() -> None:
    batch = (torch.arange(2), torch.arange(4).reshape(2, 2))
    assert all(Group(rank, 3).shard_batch(batch) is batch for rank in range(3))
    shares = [Group(rank, 2).shard_batch(batch) for rank in range(2)]
    for i in range(2):
        assert torch.equal(torch.cat([share[i] for share in shares]), batch[i])


def test_gradients_and_losses_are_averaged_over_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is that of one process with all examples. Here, two processes have 1 and 3 examples."""
    used, unused = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(3))
    sent: list[torch.Tensor] = []

    def keep(group: Group, tensor: torch.Tensor) -> torch.Tensor:
        sent.append(tensor.clone())
        return tensor

    for gradient, loss, n in ((1.0, 10.0, 1), (5.0, 20.0, 3)):
        used.grad = torch.full((2, 2), gradient)
        monkeypatch.setattr(Group, "all_reduce", keep)
        Group(0, 2).average(torch.tensor(loss), [used, unused], n)
    monkeypatch.setattr(Group, "all_reduce", lambda self, tensor: sent[0] + sent[1])
    mean = Group(0, 2).average(torch.tensor(20.0), [used, unused], 3)
    assert used.grad is not None
    assert (used.grad.tolist(), unused.grad) == ([[4.0, 4.0], [4.0, 4.0]], None)
    assert (float(mean), mean.shape) == (17.5, ())
    assert Group().average(mean, [used], 1) is mean


def test_the_group_is_read_from_the_environment_variables_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert group_from_environment() == Group(0, 1, 0) == SINGLE_PROCESS
    assert SINGLE_PROCESS.is_main
    for name, value in {"MASTER_ADDR": "somewhere", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert group_from_environment() == Group(5, 8, 1)
    assert not group_from_environment().is_main


@pytest.mark.parametrize("variables", [{"MASTER_ADDR": "somewhere"}, {"RANK": "1", "WORLD_SIZE": "2"}])
def test_variables_that_a_cluster_sets_for_every_job_do_not_make_a_group(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert group_from_environment() is SINGLE_PROCESS


@pytest.mark.parametrize("changes", [{"WORLD_SIZE": "x"}, {"RANK": ""}])
def test_variables_that_are_not_those_of_torchrun_are_refused(
    changes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"MASTER_ADDR": "somewhere", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **changes}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadRequestError, match="RANK, WORLD_SIZE and LOCAL_RANK must be integers"):
        group_from_environment()


def test_a_single_process_sends_nothing() -> None:
    tensor = torch.arange(6.0).reshape(3, 2)
    with SINGLE_PROCESS.init(torch.device("cpu")):
        assert SINGLE_PROCESS.shard(tensor) is tensor
        assert SINGLE_PROCESS.gather(tensor, 3) is tensor
        assert SINGLE_PROCESS.all_reduce(tensor) is tensor
        assert SINGLE_PROCESS.broadcast(lambda: "made") == "made"
        assert not torch.distributed.is_initialized()
    assert torch.equal(tensor, torch.arange(6.0).reshape(3, 2))


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("n", [1, 5, 64])
def test_gather_restores_the_order_of_the_rows(n: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.rand(n, 2, generator=torch.Generator().manual_seed(0))
    contributions: list[torch.Tensor] = []

    def keep(group: Group, tensor: torch.Tensor) -> torch.Tensor:
        contributions.append(tensor)
        return tensor

    monkeypatch.setattr(Group, "all_reduce", keep)
    for rank in range(size):
        group = Group(rank, size)
        group.gather(group.shard(rows), n)
    assert torch.equal(torch.stack(contributions).sum(dim=0), rows)


# --------------------------------------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_uneven_shards_are_gathered_and_evaluated_together(tmp_path: Path) -> None:
    script = tmp_path / "collectives.py"
    script.write_text(COLLECTIVES, encoding="utf-8", newline="\n")
    done = run_ranks(3, cwd=tmp_path, script=(str(script),))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"process {rank} is done" for rank in range(3)]


@pytest.mark.slow
def test_one_two_and_three_processes_give_the_same_metrics(tmp_path: Path) -> None:
    """This includes the metric `worst`, which is a maximum."""
    script = (str(tmp_path / "worst.py"),)
    Path(*script).write_text(WORST, encoding="utf-8", newline="\n")
    single = run_command(*UNEVEN, "--grad-clip", "0.5", "--run-name", "1", cwd=tmp_path, script=script)
    assert single.returncode == 0, single.stderr
    expected = read(tmp_path / "checkpoints" / "1", "epoch_metrics.json")
    for n in (2, 3):
        done = run_ranks(n, *UNEVEN, "--grad-clip", "0.5", "--run-name", str(n), cwd=tmp_path, script=script)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 1/5") == 1  # only rank 0 prints
        folder = tmp_path / "checkpoints" / str(n)
        rows = read(folder, "epoch_metrics.json")
        assert all(row["val_worst"] > row["val_rmse"] > 0 for row in rows)
        for row, one in zip(rows, expected, strict=True):
            assert row == pytest.approx(one, rel=2e-5, abs=1e-6)
        info, info_single = (read(tmp_path / "checkpoints" / name, "run_info.json") for name in (str(n), "1"))
        assert info["processes"] == n
        assert info["data_sha256"] == info_single["data_sha256"]
        with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
            worst = np.abs(arrays["predictions"] - arrays["targets"]).max()
        assert read(folder, "results.json")["test"]["worst"] == pytest.approx(worst, rel=1e-12)


@pytest.mark.slow
def test_runs_with_dropout_in_two_processes_are_equal(tmp_path: Path) -> None:
    options = [*DEBUG, "--epochs", "2", "--dropout", "0.1"]
    for name in ("a", "b"):
        done = run_ranks(2, *options, "--run-name", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    a, b = ((tmp_path / "checkpoints" / name / "epoch_metrics.json").read_bytes() for name in "ab")
    assert a == b


# Problems whose processes could have different weights: one normalises batches, one adds its own noise to gradients.
OTHERS = """
import torch
from torch import nn

from main import main
from tests.toy import ToyProblem


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 1), nn.Flatten(0))

    def forward(self, points, signs):
        return self.layers(points) * signs


class NormProblem(ToyProblem):
    def network(self, config, input_shapes, target_shape):
        return Norm()


class NoisyProblem(ToyProblem):
    def trainer(self):
        from trainer import Trainer

        class NoisyTrainer(Trainer):
            def step(self, inputs, targets):
                loss = super().step(inputs, targets)
                if self.epoch == 2:
                    next(self.network.parameters()).data += 1e-3 * torch.rand(())
                return loss

        return NoisyTrainer


PROBLEM = NAME()

if __name__ == "__main__":
    main(PROBLEM)
"""


@pytest.mark.slow
def test_the_best_loss_is_that_of_the_saved_weights_with_batch_normalisation(tmp_path: Path) -> None:
    (tmp_path / "norm.py").write_text(OTHERS.replace("NAME", "NormProblem"), encoding="utf-8")
    done = run_ranks(2, *DEBUG, "--run-name", "r", cwd=tmp_path, script=("norm.py",))
    assert done.returncode == 0, done.stderr
    code = (
        "from norm import PROBLEM; from evaluate import load_run; from engine.datasets.splits import get_splits; "
        "from engine.learning.prediction import evaluate, prepare; config, model = load_run('r', PROBLEM); "
        "val = prepare(PROBLEM, config, model, get_splits(PROBLEM, config)[0].val); "
        "print(evaluate(PROBLEM, config, model, val).metrics['loss'])"
    )
    done = run_process(cwd=tmp_path, script=("-c", code), PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "checkpoints" / "r", "epoch_metrics.json")
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(min(row["val_loss"] for row in rows), rel=1e-6)


@pytest.mark.slow
def test_weights_that_differ_between_processes_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(OTHERS.replace("NAME", "NoisyProblem"), encoding="utf-8")
    assert run_ranks(1, *DEBUG, "--run-name", "one", cwd=tmp_path, script=("noisy.py",)).returncode == 0
    done = run_ranks(2, *DEBUG, "--run-name", "two", cwd=tmp_path, script=("noisy.py",))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: the weights differ between the processes after epoch 2: change them in the same way" in done.stderr
    assert len(read(tmp_path / "checkpoints" / "two", "epoch_metrics.json")) == 1


@pytest.mark.slow
def test_a_run_of_two_processes_continues_in_one_and_in_two(tmp_path: Path) -> None:
    assert run_ranks(2, *UNEVEN, "--run-name", "r", cwd=tmp_path).returncode == 0
    assert run_command("--resume", "r", "--epochs", "7", cwd=tmp_path).returncode == 0
    done = run_ranks(2, "--resume", "r", "--epochs", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch 7 of 8" in done.stdout
    assert run_ranks(2, "--resume", "r", cwd=tmp_path).stdout.count("is finished") == 1
    assert [row["epoch"] for row in read(tmp_path / "checkpoints" / "r", "epoch_metrics.json")] == list(range(1, 9))


@pytest.mark.slow
def test_a_refused_request_ends_all_processes(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "r"
    folder.mkdir(parents=True)
    for name in (".lock", "config.json"):
        (folder / name).write_text("", encoding="utf-8", newline="\n")
    done = torchrun(2, *DEBUG, "--run-name", "r", cwd=tmp_path)
    assert done.returncode != 0
    assert "exists already" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "config.json"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_process_dies_the_others_end_and_the_run_can_be_resumed(rank: int, tmp_path: Path) -> None:
    with start_command(
        *DEBUG,
        *("--epochs", "30000", "--run-name", "r"),
        cwd=tmp_path,
        script=(*TORCHRUN, "2", *TOY),
        stderr=subprocess.STDOUT,
    ) as process:
        wait_for("epoch 2/", process.stdout)
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        workers = [int(child) for task in tasks for child in (task / "children").read_text(encoding="utf-8").split()]
        ranks = {
            int(found[1]): worker
            for worker in workers
            if (
                found := re.search(
                    r"\0RANK=(\d+)", (Path("/proc") / str(worker) / "environ").read_text(encoding="utf-8")
                )
            )
        }
        os.kill(ranks[rank], signal.SIGKILL)
        try:
            process.communicate(timeout=HANG)
        finally:
            process.kill()
        assert process.returncode != 0
        for worker in workers:
            with pytest.raises(ProcessLookupError):
                os.kill(worker, 0)
    folder = tmp_path / "checkpoints" / "r"
    n_epochs = len(read(folder, "epoch_metrics.json"))
    assert read(folder, "run_info.json")["status"] in (("running",) if rank == 0 else ("failed", "interrupted"))
    with start_command("--resume", "r", cwd=tmp_path, stderr=subprocess.DEVNULL) as again:
        assert again.stdout is not None
        found = next(filter(None, (re.match(r"continuing after epoch (\d+) of 30000", line) for line in again.stdout)))
        again.kill()
    assert int(found[1]) in (n_epochs - 1, n_epochs)


# ------------------------------------------------------------------------------------------------- waiting, restarting

ALONE = """
from engine.learning import distributed
from main import main
from tests.toy import PROBLEM
distributed.SECONDS_TO_NOTICE = 0.2
main(PROBLEM)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize(("rank", "name"), [(0, "SIGINT"), (0, "SIGTERM"), (1, "SIGINT")])
def test_a_process_that_waits_for_others_says_so_and_ends_at_a_signal(rank: int, name: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    env = environment(**variables, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with subprocess.Popen(
        [sys.executable, "-c", ALONE, *DEBUG], cwd=tmp_path, env=env, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith(
            f"process {rank} of 2 (RANK, WORLD_SIZE) still waits for the others, which connect to 127"
        )
        process.send_signal(getattr(signal, name))
        process.wait(HANG)
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == -getattr(signal, name)


CRASH = """
import os
import time
from main import main
from tests.toy import PROBLEM
from trainer import Trainer

train_epoch = Trainer.train_epoch

def crash(trainer):
    if trainer.epoch == 3 and trainer.group.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        time.sleep(1)  # rank 0 writes at most one checkpoint per second
        os._exit(1)
    return train_epoch(trainer)

Trainer.train_epoch = crash
main(PROBLEM)
"""


@pytest.mark.slow
def test_a_run_that_torchrun_restarts_is_resumed(tmp_path: Path) -> None:
    script = tmp_path / "crash.py"
    script.write_text(CRASH, encoding="utf-8", newline="\n")
    done = torchrun(2, *DEBUG, cwd=tmp_path, script=("--max-restarts", "1", str(script)))
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch" in done.stdout
    (folder,) = (tmp_path / "checkpoints").iterdir()  # the default name, which contains the time, does not change
    assert [row["epoch"] for row in read(folder, "epoch_metrics.json")] == [1, 2, 3, 4, 5]


def test_a_restart_only_resumes_the_run_that_the_same_torchrun_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "run_info.json", {"torchrun": str(datetime.fromtimestamp(0))})
    write_json(tmp_path / "config.json", {})
    monkeypatch.setattr("engine.run_folder.open_run.torchrun_start", lambda: datetime.fromtimestamp(0))
    assert not is_restart(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not is_restart(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert is_restart(tmp_path)
    assert not is_restart(tmp_path / "new")
    monkeypatch.setattr("engine.run_folder.open_run.torchrun_start", lambda: datetime.fromtimestamp(1))
    assert not is_restart(tmp_path)


@pytest.mark.slow
def test_splits_with_fewer_examples_than_processes(tmp_path: Path) -> None:
    script = tmp_path / "flat.py"
    script.write_text(FLAT, encoding="utf-8", newline="\n")
    sizes = ["--num-train", "2", "--batch-size", "1", "--num-val", "1", "--num-test", "6"]
    done = run_ranks(3, *DEBUG, *sizes, "--run-name", "r", cwd=tmp_path, script=(str(script),))
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "checkpoints" / "r", "epoch_metrics.json")) == 5


FLAT = """
from main import main
from tests import toy

class Network(toy.ToyNetwork):
    def forward(self, points, signs):
        return super().forward(points.view(len(points), -1), signs)  # fails for an empty batch

toy.ToyNetwork = Network
main(toy.PROBLEM)
"""


@pytest.mark.slow
def test_torchrun_evaluates_once(toy_run: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_run.parent, tmp_path / "checkpoints")
    done = run_ranks(2, "first", "--num-test", "20", "--device", "cpu", cwd=tmp_path, script="evaluate.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("20 examples: ") == 1
    assert (tmp_path / "checkpoints" / "first" / "evaluations" / "d3-num-test20.json").is_file()
