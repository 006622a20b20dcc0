"""The options of the Ising experiment: defaults, presets, flags and config files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from config import PRESETS, DataConfig, ExperimentConfig, ModelConfig
from engine.interface.base_config import Config, load_config, options_with, to_json
from engine.options.fields import ConfigError, options_of
from engine.run_folder.run_request import parse_args
from problem import PROBLEM

OPTIONS = options_of(ExperimentConfig)


def config_of(*argv: str) -> ExperimentConfig:
    config = parse_args(PROBLEM, argv, "main.py").config
    assert isinstance(config, ExperimentConfig)
    return config


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_defaults() -> None:
    assert config_of() == PRESETS["default"]
    config = ExperimentConfig()
    assert config.model == ModelConfig(architecture="mlp", hidden=(128, 64, 32), activation="gelu", dropout=0.1)
    assert (config.model.channels, config.model.kernel_size, config.model.input_temperature) == ((16,), 2, False)
    assert (config.data.lattice_size, config.data.temp_min, config.data.temp_max) == (8, 1.0, 4.0)
    assert (config.data.num_train, config.data.num_val, config.data.num_test) == (10_000, 2_000, 2_000)
    assert (config.task, config.data.sampler, config.data.sweeps) == ("energy", "multispin", None)


# For every option of the experiment, a value other than the default: as you type it, and as it is in the config.
# Those of every problem are tested in engine/test_run_request.py.
CHANGES: dict[str, tuple[list[str], Any]] = {
    "model.architecture": (["residual_mlp"], "residual_mlp"),
    "model.hidden": (["256", "128", "64", "8"], (256, 128, 64, 8)),
    "model.channels": (["8", "4"], (8, 4)),
    "model.kernel_size": (["3"], 3),
    "model.activation": (["tanh"], "tanh"),
    "model.dropout": (["0.2"], 0.2),
    "model.initial_scale": (["0.7"], 0.7),
    "model.input_temperature": ([], True),
    "data.lattice_size": (["16"], 16),
    "data.temp_min": (["1.5"], 1.5),
    "data.temp_max": (["3.5"], 3.5),
    "data.sweeps": (["7"], 7),
    "data.sampler": (["numpy"], "numpy"),
    "data.spins_key": (["C"], "C"),
    "data.temperatures_key": (["T"], "T"),
    "data.temperature": (["2.27"], 2.27),
    "task": (["phase"], "phase"),
}


def test_every_option_is_tested() -> None:
    assert set(CHANGES) == {".".join(path) for path in OPTIONS.keys() - options_of(Config).keys()}


@pytest.mark.parametrize("name", CHANGES)
def test_a_flag_sets_its_field_and_no_other(name: str) -> None:
    words, value = CHANGES[name]
    flag = OPTIONS[tuple(name.split("."))].flag
    # Options that only one network uses also need this network, and those for a file need a file.
    needed = ("--architecture", "cnn") if flag in ("--channels", "--kernel-size") else ()
    needed = (
        ("--data", "x.npz") if ("data", name.partition(".")[2]) in options_with(ExperimentConfig, "reader") else needed
    )
    default = dataclasses.asdict(config_of(*needed))
    changed = dataclasses.asdict(config_of(flag, *words, *needed))
    *section, key = name.split(".")
    expected = default[section[0]] if section else default
    assert expected[key] != value
    expected[key] = value
    assert changed == default


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_complete_and_survive_json(preset: str, tmp_path: Path) -> None:
    config = config_of("--preset", preset)
    assert config == PRESETS[preset]
    path = write(tmp_path, to_json(config))
    assert load_config(ExperimentConfig, path) == config == config_of("--config", str(path))


def test_a_list_in_python_becomes_a_tuple_and_is_validated() -> None:
    assert ModelConfig(hidden=[8, 4]).hidden == (8, 4)  # type: ignore[arg-type]
    for hidden in ([8, 4.0], [8, True], ["8"], [0], [4097], []):
        with pytest.raises(ValidationError):
            ModelConfig(hidden=hidden)  # type: ignore[arg-type]


# Config files with invalid options of the experiment, and what the error must contain.
BROKEN_FILES: dict[str, tuple[str, list[str]]] = {
    "number for a list": ('{"model": {"hidden": 8}}', ["model.hidden 8", "1 to 32 values"]),
    "empty list": ('{"model": {"hidden": []}}', ["model.hidden []", "1 to 32 values"]),
    "true in a list": ('{"model": {"hidden": [8, true]}}', ["model.hidden.1 true", "an integer"]),
    "options that contradict": ('{"data": {"temp_min": 3, "temp_max": 2}}', ["--temp-min 3.0", "--temp-max 2.0"]),
    "another experiment": ('{"absolute": true, "model": {"kind": "mlp"}}', ["absolute: no such key", "model.kind"]),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_refused_in_one_line_with_all_its_faults(name: str, tmp_path: Path) -> None:
    content, named = BROKEN_FILES[name]
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load_config(ExperimentConfig, path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert all(words in message for words in named), message


def test_config_json_has_all_keys_in_order() -> None:
    content = json.loads(to_json(ExperimentConfig()))
    assert list(content) == ["format", "task", "model", "train", "data", "log", "seed", "device", "threads", "compile"]
    assert list(content["data"])[:5] == ["lattice_size", "temp_min", "temp_max", "sweeps", "sampler"]
    assert content["model"]["hidden"] == [128, 64, 32]
    assert content["train"]["patience"] is None


def test_the_kernel_size_is_only_compared_with_the_size_of_sampled_lattices() -> None:
    wide = ModelConfig(architecture="cnn", kernel_size=9)
    with pytest.raises(ValidationError, match="--kernel-size 9 is above --lattice-size 8"):
        ExperimentConfig(model=wide)
    assert ExperimentConfig(model=wide, data=DataConfig(file="x.npz")).model == wide


def test_temperature_options_are_not_checked_for_data_from_a_file() -> None:
    narrow = DataConfig(temp_max=2.0)
    with pytest.raises(ValidationError, match=r"--temp-max 2\.0 include only one phase: include T_c"):
        ExperimentConfig(task="phase", data=narrow)
    assert ExperimentConfig(task="phase", data=dataclasses.replace(narrow, file="x.npz")).data.temp_max == 2.0
