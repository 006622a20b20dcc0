"""A run of the first version of this program (tests/first_version) can still be loaded and evaluated.

It was made at commit 779cd14 by `python main.py --preset debug --hidden 8 --num-train 200 --num-val 50 --num-test 50
--batch-size 50 --device cpu --run-name old`.
"""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

import evaluate
import main
from engine.datasets.splits import get_splits
from engine.evaluation import evaluation_request as evaluation
from engine.interface.base_config import load_config, to_json
from engine.learning.prediction import evaluate as evaluate_model
from engine.learning.prediction import prepare
from engine.machine.signals import STOP_SIGNALS
from engine.run_folder.run_request import parse_args
from problem import PROBLEM
from tests.conftest import ROOT, read

OLD = ROOT / "tests" / "first_version"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run in the working folder of the test."""
    monkeypatch.chdir(tmp_path)
    folder = Path("checkpoints") / "old"
    shutil.copytree(OLD, folder)
    (folder / ".lock").touch()  # every run has this file; it is not in the repository
    return folder


def test_its_config_has_the_same_values() -> None:
    config = load_config(PROBLEM.config_type, OLD / "config.json")
    values = {"format": 1, **read(OLD, "config.json")}
    values["train"] |= {"init_from": None, "fresh": False, "betas": None}  # newer options
    values["model"]["initial_scale"] = 1.0
    values["data"]["num_calibration"] = None
    assert json.loads(to_json(config)) == values
    assert parse_args(PROBLEM, ["--config", str(OLD / "config.json")], prog="main.py").config == config


def test_its_network_predicts_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, model = evaluate.load_run(OLD)
    splits, _ = get_splits(PROBLEM, config)
    results = read(OLD, "results.json")
    metrics, _ = evaluate_model(PROBLEM, config, model, prepare(PROBLEM, config, model, splits.test))
    assert metrics == pytest.approx(results["test"], rel=1e-5)
    equilibrium = {name: PROBLEM.check(config, columns).numbers for name, columns in splits._asdict().items()}
    for name, numbers in equilibrium.items():  # chi-square differs: the temperature bins have changed
        assert numbers["energy_z"] == pytest.approx(results["equilibrium"][name]["energy_z"], rel=1e-9)


def test_it_can_be_evaluated_on_new_data(old: Path) -> None:
    line = [str(old), "--num-test", "100", "--temp-min", "2", "--temp-max", "3", "--no-cache", "--name", "new"]
    result = evaluate.evaluate_run(evaluation.parse_args(line))
    assert result["n"] == 100
    assert (result["n_unseen"], result["metrics_unseen"]) == (None, None)  # it did not store its training inputs
    assert read(old / "evaluations", "new.json")["metrics"] == result["metrics"]


def test_it_cannot_be_resumed(old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(old / "best.pt", old / "last.pt")  # an intact file of the same format
    before = {path.name: path.read_bytes() for path in old.iterdir() if path.name != ".lock"}
    monkeypatch.setattr(sys, "argv", ["main.py", "--resume", "old", "--epochs", "6"])
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with pytest.raises(SystemExit) as end:
        main.main(PROBLEM)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert end.value.code == 3
    needed = "this program needs 5: use the version that wrote it, or start another run"
    assert capsys.readouterr().err == f"main.py: error: checkpoints/old/last.pt has format 3, and {needed}\n"
    assert {path.name: path.read_bytes() for path in old.iterdir() if path.name != ".lock"} == before
