# Machinery: keep, and skip at first.
"""The methods that every logger has, here without any effect. The logger in logger.py writes the files of a run."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

# Called with the row of metrics of each epoch. An error that it raises stops the run.
Watch = Callable[[Mapping[str, float]], None]


class NullLogger:
    """A logger that writes nothing: for training without a folder, and for processes other than rank 0."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record how the run ended."""

    def note(self, **facts: Any) -> None:
        """Record facts that may differ between two equal runs."""

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Show the metrics of an epoch."""

    def log_state(self, state: Mapping[str, Any]) -> None:
        """Receive the state of training after an epoch, and save it now or later."""

    def flush(self) -> None:
        """Save the newest state, if it has not been saved."""

    def log_weights(self, epoch: int, weights: Mapping[str, Any]) -> None:
        """Save the weights with which the network is tested, which are those of the best epoch."""

    def log_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Save named arrays."""

    def log_results(self, results: Mapping[str, Any]) -> None:
        """Record the results of the run."""

    def summary(self, results: Mapping[str, Any]) -> str:
        """Format the results for the terminal."""
        return ""
