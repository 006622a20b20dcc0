"""A training step, prepared so that repeating it costs little: one CUDA graph, which starts all its kernels at once."""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], None]  # takes spins (B, L, L) int8 and targets (B,); changes the weights

N_EAGER = 3  # steps before the capture, in which libraries set themselves up and the optimiser makes its state


class GraphedStep:
    """A step on batches of one shape, on a CUDA device: eager at first, then captured, then replayed.

    The step must do the same each time, with tensors that stay where they are: a graph remembers addresses, not names.
    It may not wait for the device. Random numbers go on from replay to replay as they would without the graph.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.n_calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, spins: Tensor, targets: Tensor) -> None:
        self.n_calls += 1
        if self.n_calls <= N_EAGER:
            self._aside(spins, targets)
            return
        if self.graph is None:
            self.spins, self.targets = spins.clone(), targets.clone()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # records, and does nothing
                self.step(self.spins, self.targets)
        self.spins.copy_(spins)
        self.targets.copy_(targets)
        self.graph.replay()

    def _aside(self, spins: Tensor, targets: Tensor) -> None:
        """Take a step on a stream of its own, as the capture will, and have the main stream wait for it."""
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(main)
        with torch.cuda.stream(side):
            self.step(spins, targets)
        main.wait_stream(side)
