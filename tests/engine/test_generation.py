"""Generators: what they return, and slow ones, which are called for blocks of examples in several processes."""

import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import SeedSequence
from numpy.typing import NDArray

from engine.datasets import splits as module
from engine.datasets.generation import generate_split
from engine.datasets.splits import fingerprint, get_splits, load_data, new_examples
from engine.interface.base_problem import Columns
from engine.interface.returned_values import input_arrays
from engine.machine.errors import ProblemError
from tests.conftest import HANG, Program, run_process, start_command
from tests.slow import PROBLEM, SlowProblem
from tests.toy import ToyConfig, ToyDataConfig, ToyProblem

CONFIG = ToyConfig(data=ToyDataConfig(num_train=70, num_val=20, num_test=10))
FAST = replace(CONFIG, data=replace(CONFIG.data, cache=False))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def calls() -> Counter[str]:
    """How often each block was generated."""
    path = Path("calls.txt")
    return Counter(path.read_text(encoding="utf-8").splitlines()) if path.exists() else Counter()


def blocks() -> list[Path]:
    return sorted(Path("cache").glob("*/*.npz"))


# -------------------------------------------------------------------------------------------------------- one example


@pytest.mark.parametrize("source", ["global", "own"])
def test_a_generator_that_does_not_only_depend_on_its_seed_is_refused(source: str) -> None:
    class Unseeded(ToyProblem):
        def generate(self, config: ToyConfig, n: int, seed: SeedSequence) -> Columns:
            columns = dict(super().generate(config, n, seed))
            rng = np.random if source == "global" else np.random.default_rng()
            return columns | {"values": rng.normal(size=n)}

    with pytest.raises(
        ProblemError, match="generate returned different values of 'values' for the same seed: take all"
    ):
        get_splits(Unseeded(), FAST)


def test_a_generator_that_fails_for_no_examples_is_refused() -> None:
    class Stacking(ToyProblem):
        def generate(self, config: ToyConfig, n: int, seed: SeedSequence) -> Columns:
            return {"points": np.stack([np.zeros(3) for _ in range(n)])}

    with pytest.raises(ProblemError, match=r"generate fails for n = 0 \(ValueError\('need at least one array"):
        generate_split(Stacking(), CONFIG, 0, SeedSequence(0))


def test_columns_cannot_be_written_to() -> None:
    class Writing(ToyProblem):
        def inputs(self, config: ToyConfig, columns: Columns) -> tuple[NDArray[Any], ...]:
            columns["points"][:] *= 2
            return super().inputs(config, columns)

    data = load_data(PROBLEM, FAST)
    assert not any(column.flags.writeable for split in data[:3] for column in split.values())
    with pytest.raises(ProblemError, match=r"inputs changes a column in place \(.*read-only\): columns are read-only"):
        input_arrays(Writing(), CONFIG, data.train)


# ------------------------------------------------------------------------------------------------------------- blocks


def test_a_slow_generator_is_called_for_blocks_with_seeds_of_their_own() -> None:
    splits, source = get_splits(PROBLEM, CONFIG)
    assert [len(split["values"]) for split in splits] == [70, 20, 10]
    assert sorted(calls()) == ["10 (0, 3)", "10 (2, 0)", "20 (0, 0)", "20 (0, 1)", "20 (0, 2)", "20 (1, 0)"]
    assert source == f"in {blocks()[0].parent.as_posix()}"
    points = np.concatenate([split["points"] for split in splits])
    assert len(np.unique(points, axis=0)) == 100
    expected = ToyProblem.generate(PROBLEM, CONFIG, 20, SeedSequence(CONFIG.seed, spawn_key=(0, 1)))
    np.testing.assert_array_equal(splits.train["points"][20:40], expected["points"])


def test_finished_blocks_are_not_generated_again_also_for_more_examples() -> None:
    first, _ = get_splits(PROBLEM, CONFIG)
    again, _ = get_splits(PROBLEM, CONFIG)
    assert fingerprint(first) == fingerprint(again)
    assert set(calls().values()) == {1}
    more, _ = get_splits(PROBLEM, replace(CONFIG, data=replace(CONFIG.data, num_train=100)))
    np.testing.assert_array_equal(more.train["points"][:60], first.train["points"][:60])
    assert sum(calls().values()) == 6 + 2  # the last block, which has become larger, and a new one


def test_without_a_cache_the_examples_are_the_same_and_nothing_is_kept() -> None:
    assert fingerprint(get_splits(PROBLEM, FAST)[0]) == fingerprint(get_splits(PROBLEM, CONFIG)[0])
    assert len(blocks()) == 6
    assert {path.name for path in Path().iterdir()} == {"cache", "calls.txt"}


def test_an_interruption_loses_only_the_block_in_work() -> None:
    class Stopped(SlowProblem):
        left = 3

        def generate(self, config: ToyConfig, n: int, seed: SeedSequence) -> Columns:
            self.left -= n > 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().generate(config, n, seed)

    problem = Stopped()
    with pytest.raises(KeyboardInterrupt):
        get_splits(problem, CONFIG)
    assert len(blocks()) == 3
    problem.left = 1000
    splits, _ = get_splits(problem, CONFIG)
    assert set(calls().values()) == {1}
    assert fingerprint(splits) == fingerprint(get_splits(PROBLEM, FAST)[0])


def test_a_damaged_block_is_generated_again(capsys: pytest.CaptureFixture[str]) -> None:
    splits, _ = get_splits(PROBLEM, CONFIG)
    content = blocks()[2].read_bytes()
    blocks()[2].write_bytes(content[:-70] + b"x" * 70)
    assert fingerprint(get_splits(PROBLEM, CONFIG)[0]) == fingerprint(splits)
    assert f"warning: {blocks()[2]} is damaged: generating this block again" in capsys.readouterr().err
    assert blocks()[2].read_bytes() == content


def test_new_examples_of_a_slow_generator_have_seeds_of_their_own() -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, fresh=True))
    one, two = (new_examples(PROBLEM, config, epoch)["points"] for epoch in (2, 3))
    assert len(np.unique(np.concatenate([one, two]), axis=0)) == 140


def test_workers_are_an_option_of_slow_generators_only(toy: Program) -> None:
    assert "--workers: no such option" in toy("--workers", "2").stderr
    done = toy("--workers", "2", "--data", "x.npz", script=("-m", "tests.slow"))
    assert "--workers does nothing with --data: drop it" in done.stderr


@pytest.mark.slow
def test_examples_do_not_depend_on_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_SHARE", 0.0)
    splits, _ = get_splits(PROBLEM, CONFIG, n_workers=3)
    assert set(calls().values()) == {1}
    assert fingerprint(splits) == fingerprint(get_splits(PROBLEM, FAST)[0])


@pytest.mark.slow
def test_an_error_in_another_process_is_shown_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_SHARE", 0.0)
    Path("fail.txt").touch()
    with pytest.raises(ProblemError, match=r"generate failed in block \d: ZeroDivisionError: no such point"):
        get_splits(PROBLEM, CONFIG, n_workers=2)
    assert 'slow.py", line' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_same_command_continues_an_interrupted_generation(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECONDS", "0.3")
    command = ("--device", "cpu", "--epochs", "1", "--num-train", "300", "--run-name", "r", "--workers", "2")
    with start_command(*command, cwd=Path(), script=("-m", "tests.slow")) as process:
        while len(blocks()) < 3:
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(number)
        _, error = process.communicate(timeout=HANG)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "the blocks of examples that are ready are kept: the same command continues" in error
    kept = {path: path.stat().st_mtime_ns for path in blocks()}
    monkeypatch.setenv("SECONDS", "0")
    result = run_process(*command, cwd=Path(), script=("-m", "tests.slow"))
    assert result.returncode == 0, result.stderr
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    assert sum(count - 1 for count in calls().values()) <= 2  # at most the blocks in work were generated twice
