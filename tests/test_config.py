"""Configs: defaults, presets, precedence, strict JSON, and a command line that follows from the fields."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from command import build_parser, parse_args
from config import (
    OPTIONS,
    PRESETS,
    T_CRITICAL,
    Architecture,
    DataConfig,
    ExperimentConfig,
    LogConfig,
    ModelConfig,
    TrainConfig,
    load_config,
    to_json,
)
from ising import exact
from options import ConfigError


def config_of(*argv: str) -> ExperimentConfig:
    return parse_args(argv).config


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_defaults_are_those_that_are_promised() -> None:
    config = config_of()
    assert config == PRESETS["default"] == ExperimentConfig()
    assert config.model == ModelConfig(architecture="mlp", hidden=(128, 64, 32), activation="gelu", dropout=0.1)
    assert (config.train.lr, config.train.epochs, config.train.batch_size) == (0.001, 100, 64)
    assert (config.train.optimizer, config.train.scheduler, config.train.patience) == ("adamw", "cosine", None)
    assert (config.data.lattice_size, config.data.temp_min, config.data.temp_max) == (8, 1.0, 4.0)
    assert (config.data.num_train, config.data.num_val, config.data.num_test) == (10_000, 2_000, 2_000)
    assert (config.seed, config.device, config.data.sweeps) == (42, "auto", None)
    assert config.log == LogConfig(run_name=None, wandb=False, checkpoints=True)


# A value other than the default for every option, as it is typed and as it arrives.
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
    "data.lattice_size": (["16"], 16),
    "data.num_train": (["300"], 300),
    "data.num_val": (["301"], 301),
    "data.num_test": (["302"], 302),
    "data.temp_min": (["1.5"], 1.5),
    "data.temp_max": (["3.5"], 3.5),
    "data.sweeps": (["7"], 7),
    "data.sampler": (["numpy"], "numpy"),
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


def test_the_critical_temperature_is_that_of_exact_theory() -> None:
    assert exact.T_CRITICAL == T_CRITICAL


def test_every_option_is_tested() -> None:
    assert set(CHANGES) == {".".join(path) for path in OPTIONS}


@pytest.mark.parametrize("name", CHANGES)
def test_a_flag_sets_its_field_and_no_other(name: str) -> None:
    words, value = CHANGES[name]
    flag = OPTIONS[tuple(name.split("."))].flag
    if value is False:
        flag = "--no-" + flag[2:]
    # Of options that one network alone looks at, beside that network.
    network = ("--architecture", "cnn") if flag in ("--channels", "--kernel-size") else ()
    default = dataclasses.asdict(config_of(*network))
    changed = dataclasses.asdict(config_of(flag, *words, *network))
    *section, key = name.split(".")
    expected = default[section[0]] if section else default
    assert expected[key] != value
    expected[key] = value
    assert changed == default


@pytest.mark.parametrize("flag", ["--patience", "--grad-clip", "--sweeps", "--run-name"])
def test_none_switches_an_option_off(flag: str, tmp_path: Path) -> None:
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
        assert config.data == PRESETS["debug"].data  # of the preset, over the defaults
        assert (config.train.epochs, config.seed) == (30, 1)  # of the file, over the preset
        assert config.train.lr == 0.25  # of the flag, over the file
        assert config.train.batch_size == 64  # of the defaults


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_whole_and_survive_json(preset: str, tmp_path: Path) -> None:
    config = config_of("--preset", preset)
    assert config == PRESETS[preset]
    path = write(tmp_path, to_json(config))
    assert load_config(path) == config == config_of("--config", str(path))


configs = st.builds(
    ExperimentConfig,
    model=st.builds(
        ModelConfig,
        architecture=st.sampled_from(get_args(Architecture)),
        hidden=st.lists(st.integers(1, 4096), min_size=1, max_size=32).map(tuple),
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
    assert load_config(write(tmp_path, to_json(config))) == config


def test_configs_are_frozen_and_valid_however_they_are_made() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExperimentConfig().seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        dataclasses.replace(TrainConfig(), lr=-1.0)
    assert ModelConfig(hidden=[8, 4]).hidden == (8, 4)  # type: ignore[arg-type]
    for hidden in ([8, 4.0], [8, True], ["8"]):
        with pytest.raises(ValidationError):
            ModelConfig(hidden=hidden)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        ExperimentConfig(data=DataConfig(num_train=10))  # fewer than the default batch


# What a config.json may not be, and what the one line of the error must name.
BROKEN_FILES: dict[str, tuple[str | bytes, list[str]]] = {
    "empty": ("", ["line 1 column 1"]),
    "malformed": ('{\n "seed": 1,\n}', ["line 3 column 1"]),
    "trailing text": ('{"seed": 1} x', ["line 1 column 13"]),
    "duplicate key": ('{"train": {"lr": 0.1, "lr": 0.2}}', ['"lr"', "twice"]),
    "unknown section": ('{"trian": {}}', ["trian", "no such key"]),
    "unknown key": ('{"model": {"hiden": [3]}}', ["model.hiden", "model.hidden"]),
    "key of another section": ('{"model": {"lr": 1}}', ["model.lr", "train.lr"]),
    "section that is a number": ('{"model": 3}', ["model 3", "an object"]),
    "section that is null": ('{"train": null}', ["train null", "an object"]),
    "true for a number": ('{"train": {"lr": true}}', ["train.lr true", "a number, above 0"]),
    "string for a number": ('{"train": {"epochs": "8"}}', ['train.epochs "8"', "an integer, at least 1"]),
    "8.0 for an integer": ('{"data": {"lattice_size": 8.0}}', ["data.lattice_size 8.0", "an integer"]),
    "number for true": ('{"log": {"wandb": 1}}', ["log.wandb 1", "true or false"]),
    "number for a name": ('{"log": {"run_name": 1}}', ["log.run_name", "a name"]),
    "NUL in a name": ('{"log": {"run_name": "a\\u0000b"}}', ['log.run_name "a\\u0000b"']),
    "null for a number": ('{"seed": null}', ["seed null", "an integer"]),
    "list for a number": ('{"seed": [1]}', ["seed [1]", "an integer"]),
    "number for a list": ('{"model": {"hidden": 8}}', ["model.hidden 8", "1 to 32 values"]),
    "empty list": ('{"model": {"hidden": []}}', ["model.hidden []", "1 to 32 values"]),
    "true in a list": ('{"model": {"hidden": [8, true]}}', ["model.hidden.1 true", "an integer"]),
    "NaN": ('{"train": {"lr": NaN}}', ["train.lr NaN", "a number"]),
    "Infinity": ('{"train": {"lr": Infinity}}', ["train.lr Infinity", "a number"]),
    "1e999": ('{"train": {"lr": 1e999}}', ["train.lr", "a number"]),
    "5000 digits": (f'{{"seed": {"9" * 5000}}}', ["seed", "an integer"]),
    "5000 digits unknown": (f'{{"seeed": {"9" * 5000}}}', ["seeed", "seed"]),
    "deep nesting": ('{"model":' * 10_000 + "1" + "}" * 10_000, ["nested too deeply"]),
    "deep list": ('{"seed":' + "[" * 10_000 + "]" * 10_000 + "}", ["nested too deeply"]),
    "not UTF-8": (b'{"seed": 1, "\xff": 2}', ["byte 13", "UTF-8"]),
    "lone surrogate": ('{"device": "\\ud800"}', ["config.json"]),
    "BOM": (b'\xef\xbb\xbf{"seed": 1}', ["BOM"]),
    "array at top level": ('[{"seed": 1}]', ["no object"]),
    "several faults": (
        '{"seed": -1, "train": {"lr": 0}, "data": {"lattice_size": 15, "colour": 1}}',
        ["seed -1", "train.lr 0", "data.lattice_size 15", "data.colour"],
    ),
    "options that contradict": ('{"data": {"temp_min": 3, "temp_max": 2}}', ["--temp-min 3.0", "--temp-max 2.0"]),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_refused_in_one_line_with_all_its_faults(name: str, tmp_path: Path) -> None:
    content, named = BROKEN_FILES[name]
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message or name == "options that contradict"
    assert all(words in message for words in named), message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)


def test_the_line_of_an_error_names_the_flag_if_the_value_came_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, '{"train": {"lr": -1}}')
    with pytest.raises(SystemExit):
        parse_args(["--config", str(path), "--dropout", "2"])
    error = capsys.readouterr().err
    assert error.startswith("main.py: error: --dropout 2: must be a number, at least 0, below 1; ")
    assert f"{path}: train.lr -1: must be a number, above 0" in error


def test_print_config_is_a_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = parse_args(["--print-config", "--preset", "large", "--seed", "9"])
    assert command.print_config
    assert load_config(write(tmp_path, to_json(command.config))) == command.config


def test_help_is_grouped_and_tells_every_default() -> None:
    text = " ".join(build_parser().format_help().split())
    groups = [text.index(f" {name}: ") for name in ("command", "experiment", "model", "train", "data", "log")]
    assert groups == sorted(groups)
    for option in OPTIONS.values():
        assert f"{option.flag} " in text or f"{option.flag}, " in text
        assert f"{option.allowed}; default: {option.default})" in text


def test_config_json_has_all_keys_in_order() -> None:
    content = json.loads(to_json(ExperimentConfig()))
    assert list(content) == ["task", "model", "train", "data", "log", "seed", "device", "threads", "compile"]
    assert content["model"]["hidden"] == [128, 64, 32]
    assert content["train"]["patience"] is None
