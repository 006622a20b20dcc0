"""Configs are complete, valid and frozen. They are written as strict JSON and read back without loss."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.interface.base_config import (
    Config,
    DataConfig,
    LogConfig,
    TrainConfig,
    load_config,
    options_with,
    replace_unchecked,
    to_dict,
    to_json,
)
from engine.machine.errors import ProblemError
from engine.options.config_values import FORMAT, NOT_IN_SETTING
from engine.options.fields import ConfigError, option, options_of
from engine.options.scopes import SCOPES
from tests.toy import PROBLEM, ToyConfig, ToyDataConfig, ToyModelConfig


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_shared_defaults_are_the_documented_ones() -> None:
    config = Config()
    assert (config.train.lr, config.train.epochs, config.train.batch_size) == (0.001, 100, 64)
    assert (config.train.optimizer, config.train.scheduler, config.train.patience) == ("adamw", "cosine", None)
    assert (config.train.weight_decay, config.train.grad_clip, config.train.warmup_epochs) == (0.01, None, 0)
    assert config.data == DataConfig(num_train=None, num_val=None, num_test=None, cache=True, file=None)
    assert config.log == LogConfig(run_name=None, wandb=False, checkpoints=True)
    assert (config.seed, config.device, config.threads, config.compile) == (42, "auto", None, False)


def test_config_json_has_all_keys_and_those_of_the_problem_come_first() -> None:
    content = json.loads(to_json(ToyConfig()))
    assert list(content) == [
        "format",
        "absolute",
        "model",
        "train",
        "data",
        "log",
        "seed",
        "device",
        "threads",
        "compile",
    ]
    assert list(content["data"])[:4] == ["dimension", "spread", "rounds", "corrupt"]
    assert set(content["data"]) == {field.name for field in dataclasses.fields(ToyDataConfig)} - OF_FILES
    assert content["train"]["patience"] is None


def test_config_json_of_data_from_a_file_omits_generator_options(tmp_path: Path) -> None:
    config = ToyConfig(data=ToyDataConfig(file="x.npz", num_train=300))
    content = to_dict(config)
    sizes = {"num_train", "num_val", "num_test", "num_calibration"}
    assert set(content["data"]) == {*OF_FILES, *sizes, "cache", "file"}
    assert load_config(ToyConfig, write(tmp_path, to_json(config))) == config


OF_FILES = {"points_key", "drop_missing", "group", "test_above", "test_below", "folds", "fold"}  # only with --data

SCOPED = {
    "network": {"absolute", "model.kind", "model.hidden", "model.dropout", "model.skip"},
    "duration": {"train.epochs"},
    "generator": {"data.dimension", "data.spread", "data.rounds", "data.corrupt"},
    "reader": {"data.points_key", "data.drop_missing"},
    "split": {"data.group", "data.test_above", "data.test_below", "data.folds"},
    "fold": {"data.fold"},
    "size": {"data.num_train", "data.num_val", "data.num_calibration"},
    "test_size": {"data.num_test"},
    "place": {"data.file"},
    "seed": {"seed"},
    "storage": {"data.cache"},
    "machine": {"device", "threads"},
    "execution": {"log.wandb", "log.checkpoints", "compile"},
    "name": {"log.run_name"},
}


def test_every_option_has_its_scope() -> None:
    """Also if a problem replaces a field, such as num_train: the scope is that of the field in the base class."""
    options = options_of(ToyConfig)
    for scope, names in SCOPED.items():
        assert {".".join(path) for path in options_with(ToyConfig, scope)} == names, scope
    assert {path[0] for path in options_with(ToyConfig, "training")} == {"train"}
    assert sum(len(options_with(ToyConfig, scope)) for scope in SCOPES) == len(options)
    assert options_with(Config, "generator", "network") == {}


def test_lists_of_runs_know_which_options_are_part_of_a_setting() -> None:
    """The names in config_values.py, which is read without the options, agree with the scopes."""
    options = {".".join(path): option for path, option in options_of(Config).items()}
    out = {name for name, option in options.items() if not SCOPES[option.scope].in_setting}
    named = {name for name in options if name in NOT_IN_SETTING or name.partition(".")[0] in NOT_IN_SETTING}
    assert named == out


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(ProblemError, match="scope 'generater' must be one of network, training"):
        option(1, "a number", scope="generater")


@pytest.mark.parametrize("preset", PROBLEM.presets)
def test_presets_survive_json(preset: str, tmp_path: Path) -> None:
    config = PROBLEM.presets[preset]
    assert load_config(ToyConfig, write(tmp_path, to_json(config))) == config


configs = st.builds(
    ToyConfig,
    model=st.builds(
        ToyModelConfig,
        kind=st.sampled_from(["mlp", "pooled"]),
        hidden=st.integers(1, 10**6),
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
    data=st.builds(
        ToyDataConfig,
        dimension=st.integers(1, 10**6),
        spread=st.floats(1, 1e6),
        rounds=st.none() | st.integers(0, 10),
        corrupt=st.booleans(),
    ),
    absolute=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs)
def test_any_config_survives_json(config: ToyConfig, tmp_path: Path) -> None:
    assert load_config(ToyConfig, write(tmp_path, to_json(config))) == config


def test_keys_that_a_file_leaves_out_have_their_defaults(tmp_path: Path) -> None:
    config = load_config(ToyConfig, write(tmp_path, '{"train": {"lr": 0.5}, "seed": 7}'))
    assert config == ToyConfig(train=TrainConfig(lr=0.5), seed=7)


def test_configs_are_frozen_and_always_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ToyConfig().seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        dataclasses.replace(TrainConfig(), lr=-1.0)
    with pytest.raises(ValidationError, match="unexpected_keyword_argument"):
        TrainConfig(epoch=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        TrainConfig(epochs=3.0)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="--batch-size 64 is above --num-train 10: lower it"):
        ToyConfig(data=ToyDataConfig(num_train=10))


def test_an_evaluation_may_combine_sections_that_a_run_may_not() -> None:
    config = ToyConfig(train=TrainConfig(batch_size=400))
    data = ToyDataConfig(num_train=1)
    changed = replace_unchecked(config, data=data, seed=5)
    assert (changed.train, changed.data, changed.seed) == (config.train, data, 5)
    assert config == ToyConfig(train=TrainConfig(batch_size=400))  # unchanged


# Invalid files config.json, and phrases in the error message.
BROKEN_FILES: dict[str, tuple[str | bytes, list[str]]] = {
    "empty": ("", ["line 1 column 1"]),
    "malformed": ('{\n "seed": 1,\n}', ["line 3 column 1"]),
    "trailing text": ('{"seed": 1} x', ["line 1 column 13"]),
    "duplicate key": ('{"train": {"lr": 0.1, "lr": 0.2}}', ['duplicate key "lr"', "keep one"]),
    "unknown section": ('{"trian": {}}', ["trian: no such key", "did you mean train?"]),
    "unknown key": ('{"model": {"hiden": [3]}}', ["model.hiden: no such key", "did you mean model.hidden?"]),
    "key of another section": ('{"model": {"lr": 1}}', ["model.lr", "did you mean train.lr?"]),
    "section that is a number": ('{"model": 3}', ["model 3", "an object"]),
    "section that is null": ('{"train": null}', ["train null", "an object"]),
    "section that is text": ('{"train": "x"}', ['train "x"', "an object"]),
    "true for a number": ('{"train": {"lr": true}}', ["train.lr true", "a number, above 0"]),
    "string for a number": ('{"train": {"epochs": "8"}}', ['train.epochs "8"', "an integer, at least 1"]),
    "8.0 for an integer": ('{"data": {"dimension": 8.0}}', ["data.dimension 8.0", "an integer"]),
    "number for true": ('{"log": {"wandb": 1}}', ["log.wandb 1", "true or false"]),
    "number for a name": ('{"log": {"run_name": 1}}', ["log.run_name 1", "a name"]),
    "bad run name": ('{"log": {"run_name": "a/b"}}', ['log.run_name "a/b"', "use 1 to 64 characters"]),
    "NUL in a name": ('{"log": {"run_name": "a\\u0000b"}}', ['log.run_name "a\\u0000b"', "use 1 to 64 characters"]),
    "null for a number": ('{"seed": null}', ["seed null", "an integer"]),
    "list for a number": ('{"seed": [1]}', ["seed [1]", "an integer"]),
    "unknown choice": ('{"train": {"optimizer": "nonsense"}}', ['train.optimizer "nonsense"', "adam, adamw, sgd"]),
    "NaN": ('{"train": {"lr": NaN}}', ["train.lr NaN", "a number"]),
    "Infinity": ('{"train": {"lr": Infinity}}', ["train.lr Infinity", "a number"]),
    "1e999": ('{"train": {"lr": 1e999}}', ["train.lr", "a number"]),
    "5000 digits": (f'{{"seed": {"9" * 5000}}}', ["seed", "an integer"]),
    "5000 digits unknown": (f'{{"seeed": {"9" * 5000}}}', ["seeed", "did you mean seed?"]),
    "deep nesting": ('{"model":' * 10_000 + "1" + "}" * 10_000, ["nested too deeply"]),
    "deep list": ('{"seed":' + "[" * 10_000 + "]" * 10_000 + "}", ["nested too deeply"]),
    "not UTF-8": (b'{"seed": 1, "\xff": 2}', ["byte 13 is not UTF-8"]),
    "lone surrogate": ('{"device": "\\ud800"}', ["not Unicode"]),
    "BOM": (b'\xef\xbb\xbf{"seed": 1}', ["BOM"]),
    "array at top level": ('[{"seed": 1}]', ["is not an object"]),
    "too large": (" " * 2**21, ["is larger than 1,048,576 bytes"]),
    "several faults": (
        '{"seed": -1, "train": {"lr": 0}, "data": {"dimension": 0, "colour": 1}}',
        ["seed -1", "train.lr 0", "data.dimension 0", "data.colour"],
    ),
    "contradiction in a section": (
        '{"data": {"rounds": 0, "spread": 0.5}}',
        ["--rounds 0", "--spread 0.5", "raise one"],
    ),
    "contradiction of sections": (
        '{"absolute": true, "model": {"skip": true}}',
        ["--absolute and --skip", "drop one"],
    ),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_refused_in_one_line_with_all_its_faults(name: str, tmp_path: Path) -> None:
    content, named = BROKEN_FILES[name]
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load_config(ToyConfig, path)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert all(words in message for words in named), message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*; give the path of a config\.json"):
        load_config(ToyConfig, tmp_path / "none.json")
    with pytest.raises(ConfigError, match=r"is a folder; give the path of a config\.json"):
        load_config(ToyConfig, tmp_path)


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for number, words in (
        (FORMAT + 1, f"format {FORMAT + 1}: this program reads formats up to {FORMAT}"),
        *((each, f"must be an integer from 0 to {FORMAT}") for each in (-1, 1.0, True, "1", None)),
    ):
        path.write_text(json.dumps({"format": number}), encoding="utf-8")
        with pytest.raises(ConfigError, match=words):
            load_config(ToyConfig, path)


def test_the_key_replay_is_only_accepted_in_files_without_a_format(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"replay": true, "seed": 7}', encoding="utf-8")
    assert load_config(ToyConfig, path) == ToyConfig(seed=7)
    path.write_text(f'{{"format": {FORMAT}, "replay": true}}', encoding="utf-8")
    with pytest.raises(ConfigError, match="replay: no such key"):
        load_config(ToyConfig, path)
