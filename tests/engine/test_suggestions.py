"""What is suggested for an option, a key or a column that does not exist."""

import pytest

from engine.machine.errors import BadRequestError
from engine.options.fields import validate
from engine.options.suggestions import Known, suggest
from engine.run_folder.run_request import parse_args
from tests.toy import PROBLEM, ToyConfig

# What users type, and what is suggested for the options of the toy problem.
MEANT = {
    "--train.lr": "--lr",
    "--data.file": "--data",
    "--train.learning_rate": "--lr",
    "--learning-rate": "--lr",
    "--batchsize": "--batch-size",
    "--bs": "--batch-size",
    "--wd": "--weight-decay",
    "--n-epochs": "--epochs",
    "--num-epochs": "--epochs",
    "--n-train": "--num-train",
    "--model": "--kind",
    "--optim": "--optimizer",
    "--size": "--batch-size",
    "--gpu": "--device",
    "--cuda": "--device cuda",
    "--cpu": "--device cpu",
    "--adam": "--optimizer adam",
    "--pooled": "--kind pooled",
    "--name": "--run-name",
    "--output": "--run-name",
    "--output-dir": "--run-name",
    "--config-file": "--config",
    "--continue": "--resume",
    "--early-stopping": "--patience",
    "debug": "--preset debug",
    "--no-skipp": "--skip",
}


@pytest.mark.parametrize("typed", MEANT)
def test_the_option_that_was_meant_is_suggested(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(PROBLEM, [typed, "3"], prog="toy.py")
    error = capsys.readouterr().err
    assert error == f"toy.py: error: {typed}: no such option; did you mean {MEANT[typed]}?\n"


@pytest.mark.parametrize("typed", ["--colour", "--x", "--8", "--", "--.", "--zzz.zzz"])
def test_nothing_is_suggested_if_nothing_is_similar(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(PROBLEM, [f"{typed}=3"], prog="toy.py")
    assert "no such option; --help lists all options\n" in capsys.readouterr().err


def test_the_key_that_was_meant_is_suggested() -> None:
    with pytest.raises(BadRequestError, match=r"train\.learning_rate: no such key; did you mean train\.lr\?"):
        validate(ToyConfig, {"train": {"learning_rate": 1.0}}, source="c.json")


def test_at_most_three_equally_similar_names_are_suggested() -> None:
    known = [Known(f"--{name}-size", (f"{name}-size",)) for name in ("black", "brown", "green", "white")]
    assert suggest("size", known[:1], "") == "did you mean --black-size?"
    assert suggest("size", known[:2], "") == "did you mean --black-size or --brown-size?"
    assert suggest("size", known, "") == "did you mean --black-size, --brown-size or --green-size?"
    assert suggest("size", [], "none") == "none"
