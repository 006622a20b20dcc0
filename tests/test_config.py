"""The options of the Ising experiment: defaults, presets, flags and config files."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from config import PRESETS, Architecture, DataConfig, ExperimentConfig, ModelConfig
from engine.interface.base_config import LogConfig, TrainConfig, load_config, options_with, to_json
from engine.options.fields import ConfigError, options_of
from engine.run_folder.run_request import build_parser, parse_args
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
    config = config_of()
    assert config == PRESETS["default"] == ExperimentConfig()
    assert config.model == ModelConfig(architecture="mlp", hidden=(128, 64, 32), activation="gelu", dropout=0.1)
    assert (config.model.channels, config.model.kernel_size, config.model.input_temperature) == ((16,), 2, False)
    assert (config.train.lr, config.train.epochs, config.train.batch_size) == (0.001, 100, 64)
    assert (config.train.optimizer, config.train.scheduler, config.train.patience) == ("adamw", "cosine", None)
    assert (config.data.lattice_size, config.data.temp_min, config.data.temp_max) == (8, 1.0, 4.0)
    assert (config.data.num_train, config.data.num_val, config.data.num_test) == (10_000, 2_000, 2_000)
    assert (config.seed, config.device, config.data.sweeps) == (42, "auto", None)
    assert (config.task, config.data.sampler) == ("energy", "multispin")
    assert config.log == LogConfig(run_name=None, wandb=False, checkpoints=True)


# For every option, a value other than the default: the words on the command line, and the value in the config.
CHANGES: dict[str, tuple[list[str], Any]] = {
    "model.architecture": (["residual_mlp"], "residual_mlp"),
    "model.hidden": (["256", "128", "64", "8"], (256, 128, 64, 8)),
    "model.channels": (["8", "4"], (8, 4)),
    "model.kernel_size": (["3"], 3),
    "model.activation": (["tanh"], "tanh"),
    "model.dropout": (["0"], 0.0),
    "model.input_temperature": ([], True),
    "train.epochs": (["200"], 200),
    "train.batch_size": (["32"], 32),
    "train.lr": (["5e-4"], 0.0005),
    "train.optimizer": (["sgd"], "sgd"),
    "train.scheduler": (["step"], "step"),
    "train.warmup_epochs": (["5"], 5),
    "train.weight_decay": ([".5"], 0.5),
    "train.grad_clip": (["1"], 1.0),
    "train.patience": (["10"], 10),
    "train.init_from": (["a"], "a"),
    "data.lattice_size": (["16"], 16),
    "data.num_train": (["300"], 300),
    "data.num_val": (["301"], 301),
    "data.num_test": (["302"], 302),
    "data.temp_min": (["1.5"], 1.5),
    "data.temp_max": (["3.5"], 3.5),
    "data.sweeps": (["7"], 7),
    "data.sampler": (["numpy"], "numpy"),
    "data.spins_key": (["C"], "C"),
    "data.temperatures_key": (["T"], "T"),
    "data.temperature": (["2.27"], 2.27),
    "data.cache": ([], False),
    "data.file": (["some.npz"], "some.npz"),
    "log.run_name": (["some.name_1-2"], "some.name_1-2"),
    "log.wandb": ([], True),
    "log.checkpoints": ([], False),
    "task": (["phase"], "phase"),
    "seed": (["18446744073709551615"], 2**64 - 1),
    "device": (["cpu"], "cpu"),
    "threads": (["2"], 2),
    "compile": ([], True),
}


def test_every_option_is_tested() -> None:
    assert set(CHANGES) == {".".join(path) for path in OPTIONS}


@pytest.mark.parametrize("name", CHANGES)
def test_a_flag_sets_its_field_and_no_other(name: str) -> None:
    words, value = CHANGES[name]
    flag = OPTIONS[tuple(name.split("."))].flag
    if value is False:
        flag = "--no-" + flag[2:]
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


@pytest.mark.parametrize("flag", ["--patience", "--grad-clip", "--sweeps", "--run-name"])
def test_none_disables_an_option(flag: str, tmp_path: Path) -> None:
    config = ExperimentConfig(
        train=TrainConfig(patience=3, grad_clip=1), data=DataConfig(sweeps=5), log=LogConfig(run_name="a")
    )
    path = write(tmp_path, to_json(config))
    section, key = next(path for path, option in OPTIONS.items() if option.flag == flag)
    assert getattr(getattr(config_of("--config", str(path), flag, "none"), section), key) is None


def test_precedence_is_defaults_preset_file_flags_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path, '{"train": {"epochs": 30, "lr": 0.5}, "seed": 1}')
    words = [["--preset", "debug"], ["--config", str(path)], ["--lr", "0.25"]]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        config = config_of(*(word for i in order for word in words[i]))
        assert config.data == PRESETS["debug"].data  # the preset overrides the defaults
        assert (config.train.epochs, config.seed) == (30, 1)  # the file overrides the preset
        assert config.train.lr == 0.25  # the flag overrides the file
        assert config.train.batch_size == 64  # the default


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_complete_and_survive_json(preset: str, tmp_path: Path) -> None:
    config = config_of("--preset", preset)
    assert config == PRESETS[preset]
    path = write(tmp_path, to_json(config))
    assert load_config(ExperimentConfig, path) == config == config_of("--config", str(path))


configs = st.builds(
    ExperimentConfig,
    model=st.builds(
        ModelConfig,
        architecture=st.sampled_from(get_args(Architecture)),
        hidden=st.lists(st.integers(2, 4096), min_size=1, max_size=32).map(tuple),
        dropout=st.floats(0, 1, exclude_max=True),
    ),
    train=st.builds(
        TrainConfig,
        epochs=st.integers(11, 10**6),
        lr=st.floats(0, exclude_min=True, allow_infinity=False),
        grad_clip=st.none() | st.floats(0, 1e300, exclude_min=True),
        patience=st.none() | st.integers(1, 10),
        warmup_epochs=st.integers(0, 10),
    ),
    data=st.builds(DataConfig, lattice_size=st.integers(2, 512).map(lambda n: 2 * n), temp_min=st.floats(0.02, 3.99)),
    seed=st.integers(0, 2**64 - 1),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs)
def test_any_config_survives_json(config: ExperimentConfig, tmp_path: Path) -> None:
    assert load_config(ExperimentConfig, write(tmp_path, to_json(config))) == config


def test_configs_are_frozen_and_always_validated() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExperimentConfig().seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        dataclasses.replace(TrainConfig(), lr=-1.0)
    assert ModelConfig(hidden=[8, 4]).hidden == (8, 4)  # type: ignore[arg-type]
    for hidden in ([8, 4.0], [8, True], ["8"], [0], [4097], []):
        with pytest.raises(ValidationError):
            ModelConfig(hidden=hidden)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        ExperimentConfig(data=DataConfig(num_train=10))  # less than the default batch size


# Config files with invalid options of the experiment, and what the error must contain.
BROKEN_FILES: dict[str, tuple[str, list[str]]] = {
    "unknown key": ('{"model": {"hiden": [3]}}', ["model.hiden", "model.hidden"]),
    "key of another section": ('{"model": {"lr": 1}}', ["model.lr", "train.lr"]),
    "section that is a number": ('{"model": 3}', ["model 3", "an object"]),
    "8.0 for an integer": ('{"data": {"lattice_size": 8.0}}', ["data.lattice_size 8.0", "an integer"]),
    "number for a list": ('{"model": {"hidden": 8}}', ["model.hidden 8", "1 to 32 values"]),
    "empty list": ('{"model": {"hidden": []}}', ["model.hidden []", "1 to 32 values"]),
    "true in a list": ('{"model": {"hidden": [8, true]}}', ["model.hidden.1 true", "an integer"]),
    "several faults": (
        '{"seed": -1, "train": {"lr": 0}, "data": {"lattice_size": 15, "colour": 1}}',
        ["seed -1", "train.lr 0", "data.lattice_size 15", "data.colour"],
    ),
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


def test_the_help_is_grouped_and_states_every_default() -> None:
    text = " ".join(build_parser(PROBLEM, "main.py").format_help().split())
    groups = [text.index(f" {name}: ") for name in ("command", "experiment", "model", "train", "data", "log")]
    assert groups == sorted(groups)
    for option in OPTIONS.values():
        assert f"{option.flag} " in text or f"{option.flag}, " in text
        assert f"{option.allowed}; default: {option.default})" in text


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
