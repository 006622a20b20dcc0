"""One run in several processes, as torchrun starts them: who they are, and what they do together.

A run by itself is the first of one process, and sends nothing.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from utils import RunError, leave

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

# The first process may draw data for hours while the others wait. One that dies is noticed at once, by its connections.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Group:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine

    @property
    def first(self) -> bool:
        """Whether this is the process that draws the data and writes."""
        return self.rank == 0

    @contextmanager
    def joined(self, device: "torch.device") -> Iterator[None]:
        """Be connected with the other processes. Here and below, one that has ended is a RunError to the others."""
        if self.size == 1:
            yield
            return
        from torch import distributed

        # Arrays and sums of metrics travel between CPUs; gradients from where they are.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _connection():
            distributed.init_process_group(backend, timeout=PATIENCE)
        try:
            yield
        finally:
            distributed.destroy_process_group()

    def part(self, tensor: "Tensor") -> "Tensor":
        """What falls to this process: one of `size` nearly equal parts along the first dimension, a view."""
        return tensor if self.size == 1 else tensor.tensor_split(self.size)[self.rank]

    def add_up(self, tensor: "Tensor") -> "Tensor":
        """Replace a tensor, in all processes, by the sum over them; return it."""
        if self.size > 1:
            from torch import distributed

            with _connection():
                distributed.all_reduce(tensor)
        return tensor

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, in all of them; the others do not call it."""
        if self.size == 1:
            return make()
        from torch import distributed

        box: list[Any] = [make() if self.first else None]
        with _connection():
            distributed.broadcast_object_list(box)
        made: T = box[0]
        return made

    def end(self, code: int) -> NoReturn:
        """End the process.

        One of several does so without taking the interpreter apart: a thread of gloo's may still be about to let go of
        a tensor, for which it needs the interpreter's lock, and aborts the process where there is none any more.
        """
        if self.size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        leave(code)


ALONE = Group()


@contextmanager
def _connection() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of the connection: nothing is computed in such a block
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"another process of this run has ended, or cannot be reached ({reason})") from error


def group_from_environment() -> Group:
    """The group that torchrun, or whoever sets the same variables, has started this process in."""
    if "MASTER_ADDR" not in os.environ:
        return ALONE
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Group(rank, size, int(os.environ.get("LOCAL_RANK", rank)))
