"""One run in several processes, as torchrun starts them. A run on its own is rank 0 of 1 and sends nothing."""

import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from engine.errors import BadRequestError, RunError
from engine.signals import default_handlers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

# Rank 0 may generate data for hours while the others wait. A process that dies is noticed at once by its connections.
TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class Group:
    """The processes of a run, as seen from one of them. If another one ends, all methods raise RunError."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes on this machine

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the process that loads the data and writes."""
        return self.rank == 0

    @contextmanager
    def init(self, device: "torch.device") -> Iterator[None]:
        """Connect the processes for the duration of the block."""
        if self.size == 1:
            yield
            return
        from torch import distributed

        # Arrays and predictions travel between CPUs, gradients from where they are.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _connection(), self._waiting():
            distributed.init_process_group(backend, timeout=TIMEOUT)
        try:
            yield
        finally:
            distributed.destroy_process_group()

    def shard(self, tensor: "Tensor") -> "Tensor":
        """This process's share: one of `size` nearly equal parts along the first axis, as a view."""
        return tensor if self.size == 1 else tensor.tensor_split(self.size)[self.rank]

    def share(self, batch: "Sequence[Tensor]") -> "Sequence[Tensor]":
        """This process's share of a batch. If the batch is smaller than the group, every process gets all of it."""
        return batch if self.size == 1 or len(batch[0]) < self.size else [self.shard(tensor) for tensor in batch]

    def average(self, loss: "Tensor", parameters: "Iterable[Tensor]", n: int) -> "Tensor":
        """Replace the gradients of parameters by their mean over all processes, and return that of the loss.

        Args:
            loss: the mean loss of the examples of this process, without dimensions.
            parameters: the same ones in all processes; those without a gradient are skipped.
            n: the number of examples of this process, its weight in the mean.
        """
        if self.size == 1:
            return loss
        import torch

        gradients = [p.grad for p in parameters if p.grad is not None]
        numbers = torch.cat([each.flatten() for each in (*gradients, loss, torch.ones_like(loss))])
        *sums, count = torch.split(self.all_reduce(numbers * n), [each.numel() for each in (*gradients, loss, loss)])
        *means, loss = (each / count for each in sums)
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
        return loss.squeeze()

    def all_reduce(self, tensor: "Tensor") -> "Tensor":
        """Replace a tensor by its sum over all processes, in all of them, and return it."""
        if self.size > 1:
            from torch import distributed

            with _connection():
                distributed.all_reduce(tensor)
        return tensor

    def gather(self, shard: "Tensor", n: int) -> "Tensor":
        """The tensor of n rows that `shard` was taken from, in all processes."""
        if self.size == 1:
            return shard
        import torch

        whole = torch.zeros(n, *shard.shape[1:], dtype=shard.dtype)
        self.shard(whole).copy_(shard)
        return self.all_reduce(whole).to(shard.device)  # all other terms of the sum are zero: nothing is rounded

    def broadcast(self, make: Callable[[], T]) -> T:
        """What `make` returns in rank 0, in all processes. The others do not call it."""
        if self.size == 1:
            return make()
        from torch import distributed

        box: list[Any] = [make() if self.is_main else None]
        with _connection(), self._waiting():
            distributed.broadcast_object_list(box)
        made: T = box[0]
        return made

    def _waiting(self) -> AbstractContextManager[None]:
        """For what may take as long as rank 0 works alone. The other processes save nothing, and may be killed."""
        return nullcontext() if self.is_main else default_handlers()

    def exit(self, code: int) -> NoReturn:
        """End the program."""
        if self.size > 1:
            # A thread of gloo may still need the interpreter's lock to release a tensor. If the interpreter is gone by
            # then, the process is aborted: so it ends without shutting the interpreter down.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        quick_exit(code)


ALONE = Group()


def quick_exit(code: int) -> NoReturn:
    """End the program without a last garbage collection among all objects of torch, which takes half a second."""
    gc.freeze()
    sys.exit(code)


@contextmanager
def _connection() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of the connection: nothing is computed in such a block
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"another process of this run has ended, or cannot be reached ({reason})") from error


def group_from_environment() -> Group:
    """The group that torchrun, or another program that sets the same variables, has started this process in."""
    if not {"MASTER_ADDR", "RANK", "WORLD_SIZE"} <= os.environ.keys():  # some clusters set one of them for every job
        return ALONE
    try:
        return Group(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    except (KeyError, ValueError) as error:
        raise BadRequestError(
            f"RANK, WORLD_SIZE and LOCAL_RANK must be integers ({error}): start with torchrun, or unset them"
        ) from None
