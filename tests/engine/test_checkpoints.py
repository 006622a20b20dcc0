"""Checkpoints: damage is detected, other files are refused, reading runs no code, and older weights can be read."""

import dataclasses
import io
import os
import pickle
import shutil
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.interface.base_config import TrainConfig, load_config, to_dict
from engine.learning.standardized import Shapes
from engine.machine.atomic_files import CHECKSUM, read_checked, write_checked
from engine.machine.errors import ProblemError, UnusableFileError
from engine.options.fields import ConfigError
from engine.run_folder import checkpoints
from evaluate import load_run
from tests.conftest import read
from tests.toy import PROBLEM, ToyConfig, ToyModelConfig

CONFIG = PROBLEM.presets["debug"]


def write_torch(path: Path, content: object) -> None:
    """Write a file with any content and a correct checksum."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_checked(path, buffer.getvalue())


def read_torch(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(io.BytesIO(read_checked(path)), weights_only=True)
    return content


def test_fifty_flipped_bits_and_fifty_truncated_files_are_detected(toy_run: Path, tmp_path: Path) -> None:
    whole = (toy_run / "last.pt").read_bytes()
    path = tmp_path / "last.pt"
    path.write_bytes(whole)
    assert checkpoints.load(path, CONFIG)["epoch"] == 5
    for k in range(50):
        offset = k * (len(whole) - 1) // 49
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << k % 8
        for content in (bytes(damaged), whole[:offset]):
            path.write_bytes(content)
            with pytest.raises(UnusableFileError, match=r"last\.pt"):
                checkpoints.load(path, CONFIG)


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_reading_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    harmful = Harm(f"touch {tmp_path / 'harm'}")
    write_torch(path, {"format": checkpoints.FORMAT, "config": harmful})
    with pytest.raises(UnusableFileError, match="not a checkpoint of this program"):
        checkpoints.load(path, CONFIG)
    write_checked(path, pickle.dumps(harmful))
    with pytest.raises(UnusableFileError, match="not a checkpoint of this program"):
        checkpoints.load(path, CONFIG)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [{"format": checkpoints.FORMAT}, [1], {"epoch": 3}, {"format": "x", "config": {}}])
def test_files_of_other_programs_are_refused(content: object, tmp_path: Path) -> None:
    write_torch(tmp_path / "last.pt", content)
    with pytest.raises(UnusableFileError, match="not a checkpoint of this program") as caught:
        checkpoints.load(tmp_path / "last.pt", CONFIG)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoints.save(path, CONFIG, {"epoch": 3})
    assert checkpoints.load(path, CONFIG)["epoch"] == 3
    longer = dataclasses.replace(CONFIG, train=TrainConfig(epochs=100), seed=1)
    assert checkpoints.load(path, longer)["epoch"] == 3  # the network does not depend on the training
    for other in (
        dataclasses.replace(CONFIG, model=ToyModelConfig(hidden=17)),
        dataclasses.replace(CONFIG, absolute=True),  # changes what the network predicts
    ):
        with pytest.raises(
            ConfigError, match=r"config\.json: (model\.hidden 17: the run has 16|absolute .*): restore it"
        ):
            checkpoints.load(path, other)
    with pytest.raises(ConfigError, match=r"config\.json: train\.lr 0\.001: the run has 0\.01: restore it"):
        checkpoints.load(path, longer, same_run=True)


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
@pytest.mark.parametrize(("oldest", "needed"), [(3, "3 to 5"), (5, "5")])
def test_only_known_formats_are_read(version: int, oldest: int, needed: str, tmp_path: Path) -> None:
    assert (checkpoints.OLDEST, checkpoints.FORMAT) == (3, 5)
    path = tmp_path / "last.pt"
    if oldest <= version <= 5:
        write_torch(path, {"format": version, "config": to_dict(CONFIG)})
        assert checkpoints.load(path, CONFIG, oldest)["format"] == version
        return
    write_torch(path, {"format": version, "config": {"an option": "of another version"}})
    with pytest.raises(UnusableFileError, match=f"has format {version}, and this program needs {needed}: use"):
        checkpoints.load(path, CONFIG, oldest)


def test_a_save_keeps_the_earlier_file_if_requested(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for epoch in (1, 2, 3):
        checkpoints.save(last, CONFIG, {"epoch": epoch}, keep=previous)
    assert [checkpoints.load(path, CONFIG)["epoch"] for path in (last, previous)] == [3, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1),
        np.ones(2),
        {1},
        [{"a": np.int64(1)}],
        defaultdict(float),
        Shapes((), ()),
        {np.int64(1): 1},
        {"a": [deque()]},
    ],
)
def test_values_that_could_not_be_read_again_are_not_saved(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"last\.pt.* is of the type \w+: use tensors, numbers"):
        checkpoints.save(tmp_path / "last.pt", CONFIG, {"epoch": 1, "mine": value})
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_does_not_change_with_the_state() -> None:
    state: dict[str, Any] = {
        "weights": {"w": torch.zeros(2)},
        "mine": [torch.zeros(2), {"n": [1]}],
        "rows": [{"epoch": 1}],
    }
    taken = checkpoints.snapshot(state)
    state["weights"]["w"] += 1
    state["mine"][0] += 1
    state["mine"][1]["n"].append(2)
    state["rows"].append({"epoch": 2})
    assert taken["weights"]["w"].tolist() == taken["mine"][0].tolist() == [0, 0]
    assert (taken["mine"][1], taken["rows"]) == ({"n": [1]}, [{"epoch": 1}])


def test_torch_load_reads_a_checkpoint_directly(toy_run: Path) -> None:
    raw = (toy_run / "last.pt").read_bytes()
    assert raw.startswith(b"PK")
    assert CHECKSUM in raw[-100:]
    saved = torch.load(toy_run / "last.pt", weights_only=True)
    assert saved["epoch"] == 5
    assert saved["rows"] == read(toy_run, "epoch_metrics.json")
    best = torch.load(toy_run / "best.pt", weights_only=True)
    assert best["shapes"] == {"inputs": [[3], []], "target": []}
    assert set(best["model"]) >= {"mean", "std", "input_means", "input_stds"}


# ------------------------------------------------------------------------------------------------------- loading a run


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "other network", "no json", "no info"])
def test_a_run_that_cannot_be_loaded_is_refused(damage: str, toy_run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "best.pt", "run_info.json"):
        shutil.copy(toy_run / name, tmp_path)
    whole, config = (tmp_path / "best.pt").read_bytes(), (tmp_path / "config.json").read_text(encoding="utf-8")
    match damage:
        case "missing":
            (tmp_path / "best.pt").unlink()
        case "empty":
            (tmp_path / "best.pt").write_bytes(b"")
        case "truncated":
            (tmp_path / "best.pt").write_bytes(whole[:-100])
        case "other network":
            (tmp_path / "config.json").write_text(
                config.replace('"hidden": 16', '"hidden": 17'), encoding="utf-8", newline="\n"
            )
        case "no json":
            (tmp_path / "config.json").write_text("{", encoding="utf-8", newline="\n")
        case "no info":
            (tmp_path / "run_info.json").write_text("[", encoding="utf-8", newline="\n")
    with pytest.raises(UnusableFileError) as caught:
        load_run(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["renamed", "missing", "resized", "none"])
def test_weights_that_do_not_fit_the_network_are_refused(change: str, toy_run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "run_info.json"):
        shutil.copy(toy_run / name, tmp_path)
    saved = read_torch(toy_run / "best.pt")
    weights = saved["model"]
    match change:
        case "renamed":
            weights["network.other"] = weights.pop("network.last.weight")
        case "missing":
            del weights["network.last.bias"]
        case "resized":
            weights["network.last.weight"] = torch.zeros(1, 17)
        case "none":
            del saved["model"]
    write_torch(tmp_path / "best.pt", saved)
    with pytest.raises(UnusableFileError, match=r"best\.pt does not contain weights of this network: ") as caught:
        load_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_without_shapes_use_those_of_generated_data(toy_run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "run_info.json"):
        shutil.copy(toy_run / name, tmp_path)
    saved = read_torch(toy_run / "best.pt")
    del saved["shapes"]
    write_torch(tmp_path / "best.pt", {**saved, "format": checkpoints.OLDEST})
    points, signs = torch.rand(5, 3), torch.tensor([1, -1, 1, -1, 1], dtype=torch.int8)
    then, now = (load_run(folder)[1](points, signs) for folder in (toy_run, tmp_path))
    assert torch.equal(now, then)
    assert checkpoints.load_network(tmp_path, PROBLEM).shapes == checkpoints.load_network(toy_run, PROBLEM).shapes


def test_a_loaded_network_is_ready_for_predictions(toy_run: Path) -> None:
    config, model = load_run(str(toy_run))
    assert config == load_config(ToyConfig, toy_run / "config.json")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model(torch.zeros(4, 3), torch.ones(4, dtype=torch.int8)).shape == (4,)
