# Machinery: keep, and skip at first.
"""One run in several processes, which torchrun starts. A run in a single process is rank 0 of 1, and sends nothing.

Every process runs the same program and trains on its shard of each batch. A process is identified by its rank, which
counts from 0. Operations such as all_reduce are collective: every process has to call them, in the same order, and
waits until all others have called them too.
"""

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from engine.machine.errors import BadRequestError, RunError
from engine.machine.exit_code import quick_exit
from engine.machine.signals import default_handlers
from engine.machine.terminal import warn

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

# A collective operation fails after this time. It is long because rank 0 may generate data for hours while the others
# wait. If a process dies, the others do not wait that long: they notice at once that its connections are closed.
TIMEOUT = timedelta(days=1)

RESTARTS = "TORCHELASTIC_RESTART_COUNT"  # torchrun sets this variable: how often it has restarted the processes

SECONDS_TO_NOTICE = 60.0  # a process that waits longer than this for others to connect prints a line


@dataclass(frozen=True)
class Group:
    """The processes of a run, as seen from one of them.

    If another process has ended, every method that communicates raises RunError.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # the rank among the processes on this machine, which selects the GPU

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the main process, which loads the data and writes the files."""
        return self.rank == 0

    @contextmanager
    def init(self, device: "torch.device") -> Iterator[None]:
        """Connect the processes while the block runs."""
        if self.size == 1:
            yield
            return
        from torch import distributed
        from torch.distributed.rendezvous import rendezvous

        # gloo transfers data between CPUs, nccl between GPUs. The device of a tensor selects one of the two: arrays and
        # predictions are on the CPU, gradients are on the device of the network.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        address = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '')}"
        notice = threading.Timer(
            SECONDS_TO_NOTICE,
            lambda: warn(
                f"process {self.rank} of {self.size} (RANK, WORLD_SIZE) still waits for the others, which connect to "
                f"{address}: start them, or stop this one"
            ),
        )
        notice.daemon = True
        notice.start()
        try:
            with _connection(), default_handlers():  # nothing has been saved, so a signal may end this process at once
                store, *_ = next(rendezvous("env://", timeout=TIMEOUT))
                # The store keeps what processes wrote into it before torchrun restarted them.
                store = distributed.PrefixStore(f"start {os.environ.get(RESTARTS, '0')}", store)  # type: ignore[attr-defined]
                distributed.init_process_group(
                    backend, store=store, rank=self.rank, world_size=self.size, timeout=TIMEOUT
                )
        finally:
            notice.cancel()
        try:
            yield
        finally:
            distributed.destroy_process_group()

    def shard(self, tensor: "Tensor") -> "Tensor":
        """The shard of this process: one of `size` nearly equal parts along the first axis, as a view."""
        return tensor if self.size == 1 else tensor.tensor_split(self.size)[self.rank]

    def shard_batch(self, batch: "Sequence[Tensor]") -> "Sequence[Tensor]":
        """The shards of this process of all tensors in a batch.

        If the batch has fewer examples than there are processes, every process gets the whole batch, because the mean
        loss of an empty shard is not defined.
        """
        return batch if self.size == 1 or len(batch[0]) < self.size else [self.shard(tensor) for tensor in batch]

    def average(self, loss: "Tensor", parameters: "Iterable[Tensor]", n: int) -> "Tensor":
        """Replace the gradients of parameters by their means over the examples of all processes.

        Call it after every `backward`, with all parameters that are then changed.

        Args:
            loss: the mean loss over the examples of this process, without dimensions.
            parameters: the same in all processes; those without a gradient are skipped.
            n: the number of examples of this process, which is its weight in the mean.

        Returns:
            The mean loss over the examples of all processes.
        """
        if self.size == 1:
            return loss
        import torch

        # Put all numbers into one tensor, which is faster to send than many. A 1 at its end becomes the total number of
        # examples, by the product with n and the sum over all processes.
        gradients = [p.grad for p in parameters if p.grad is not None]
        numbers = torch.cat([each.flatten() for each in (*gradients, loss, torch.ones_like(loss))])
        *totals, count = torch.split(self.all_reduce(numbers * n), [each.numel() for each in (*gradients, loss, loss)])
        *means, loss = (each / count for each in totals)
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
        return loss.squeeze()

    def synchronize(self, network: "nn.Module", epoch: int) -> None:
        """Average the buffers of a network over all processes, such as the means of BatchNorm, and compare its weights.

        Raises:
            RunError: the weights are not the same in all processes.
        """
        if self.size == 1:
            return
        import torch

        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.all_reduce(buffer.clone()) / self.size)
        digest = int(weights_sha256(network.state_dict())[:15], 16)  # as many digits as an int64 can have
        digests = self.gather(torch.tensor([digest]), self.size)
        if (digests != digest).any():
            raise RunError(
                f"the weights differ between the processes after epoch {epoch}: change them in the same way in all "
                "processes, and take random numbers for that from a generator with the same seed"
            )

    def all_reduce(self, tensor: "Tensor") -> "Tensor":
        """Replace a tensor in every process by its sum over all processes, and return it."""
        if self.size > 1:
            from torch import distributed

            with _connection():
                distributed.all_reduce(tensor)
        return tensor

    def gather(self, shard: "Tensor", n: int) -> "Tensor":
        """Put the shards of all processes together again: the tensor of n rows, in every process."""
        if self.size == 1:
            return shard
        import torch

        # Every process writes its own rows, and the other rows are zero. The sum over all processes is therefore exact.
        whole = torch.zeros(n, *shard.shape[1:], dtype=shard.dtype)
        self.shard(whole).copy_(shard)
        return self.all_reduce(whole).to(shard.device)

    def broadcast(self, make: Callable[[], T]) -> T:
        """Call `make` in rank 0, and return its result in all processes. The others do not call it."""
        if self.size == 1:
            return make()
        from torch import distributed

        box: list[Any] = [make() if self.is_main else None]  # in the others, None is replaced by the pickled result
        with _connection(), self._waiting():
            distributed.broadcast_object_list(box)
        made: T = box[0]
        return made

    def _waiting(self) -> AbstractContextManager[None]:
        """A context for operations in which the others wait for rank 0, perhaps for hours.

        In it, a signal ends a waiting process at once. That is safe, because these processes save nothing.
        """
        return nullcontext() if self.is_main else default_handlers()

    def exit(self, code: int) -> NoReturn:
        """End the program with an exit code."""
        if self.size > 1:
            # End without shutting the interpreter down. A thread of gloo may still need the interpreter's lock to
            # release a tensor. If the interpreter no longer existed at that time, the process would be aborted.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        quick_exit(code)


SINGLE_PROCESS = Group()


@contextmanager
def _connection() -> Iterator[None]:
    """Replace errors of the connection by a RunError."""
    try:
        yield
    except RuntimeError as error:  # from the connection, because nothing is computed in such a block
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"another process of this run has ended, or cannot be reached ({reason})") from error


def weights_sha256(weights: "Mapping[str, Tensor]") -> str:
    """The SHA-256 of the values of weights, as hexadecimal digits."""
    import torch

    digest = hashlib.sha256()
    for tensor in weights.values():
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def torchrun_start() -> datetime | None:
    """The time at which the torchrun that started this process was started, or None without torchrun.

    It is the same in all processes of this machine, and after torchrun has restarted them (--max-restarts).
    """
    if RESTARTS not in os.environ:
        return None
    import psutil

    return datetime.fromtimestamp(psutil.Process(os.getppid()).create_time())


def is_restarted() -> bool:
    """Whether torchrun has restarted the processes, because one of them failed."""
    return os.environ.get(RESTARTS, "0") != "0"


def group_from_environment() -> Group:
    """The group of this process, from the environment variables that torchrun and similar programs set.

    Raises:
        BadRequestError: a variable is missing or not an integer.
    """
    if not {"MASTER_ADDR", "RANK", "WORLD_SIZE"} <= os.environ.keys():  # some clusters set one of them for every job
        return SINGLE_PROCESS
    try:
        return Group(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    except (KeyError, ValueError) as error:
        raise BadRequestError(
            f"RANK, WORLD_SIZE and LOCAL_RANK must be integers ({error}): start with torchrun, or unset them"
        ) from None
