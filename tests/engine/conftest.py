"""Fixtures for the tests of sweeps."""

import pickle
import sys
from collections.abc import Callable
from typing import Any, Self

import pytest

import sweep
from engine.machine.pool import Outcome, _call


class OneProcess:
    """A stand-in for Pool that does its tasks in this process, one after the other."""

    def __init__(self, size: int, function: Callable[..., Any], prepare: object = None) -> None:
        self.function = function
        self.tasks: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def is_full(self) -> bool:
        return len(self.tasks) == 1

    @property
    def running(self) -> set[str]:
        return set(self.tasks)

    def start(self, key: str, *arguments: Any) -> None:
        self.tasks[key] = pickle.dumps(arguments)

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        key, content = self.tasks.popitem()
        return [Outcome(key, *_call(self.function, content))]


@pytest.fixture
def sweep_in_process(toy_in_process: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A function that runs sweep.py on the toy problem in this process, and returns its exit code.

    The new folder in which it runs is the working directory of the test.
    """

    def run(*arguments: str) -> int:
        problem = () if "--work" in arguments else ("--problem", "tests.toy", "--device", "cpu")
        monkeypatch.setattr(sys, "argv", ["sweep.py", *arguments, *problem])
        with pytest.raises(SystemExit) as end:
            sweep.main()
        return int(end.value.code or 0)

    monkeypatch.setattr(sweep, "Pool", OneProcess)
    monkeypatch.setattr(sweep, "redirect_output", lambda path: None)
    return run
