"""A sweep of the Ising experiment, and of an example that needs another module."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.many_runs.sweep_request import parse_args
from engine.many_runs.sweeps import Sweep
from problem import PROBLEM
from tests.conftest import DEBUG, environment, read, run_command


@pytest.mark.slow
def test_a_sweep_of_the_ising_experiment_gives_the_results_of_its_runs(finished_run: Path, tmp_path: Path) -> None:
    command = ("width", *DEBUG, "--grid", "hidden=128,64", "architecture=mlp", "--seeds", "2", "--workers", "2")
    done = run_command(*command, cwd=tmp_path, script="sweep.py")
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "checkpoints" / "width"
    names = [f"hidden{hidden}-architecturemlp-seed{seed}" for hidden in ("128", "64") for seed in (42, 43)]
    assert sorted(path.parent.name for path in folder.glob("*/results.json")) == names
    summary = read(folder, "summary.json")
    labels = [f"--hidden {hidden} --architecture mlp" for hidden in ("128", "64")]
    assert list(summary["settings"]) == labels
    for file in ("results.json", "epoch_metrics.json", "predictions.npz"):  # the debug preset has these options
        assert (folder / names[0] / file).read_bytes() == (finished_run / file).read_bytes()
    assert summary["verdicts"] == {labels[1]: "no verdict: 2 seeds, 5 are needed"}
    assert summary["table"] in done.stdout


def test_help_and_refusals_load_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    code = """
import sys
from sweep import main
for words in (["--help"], ["s", "--seeds", "x"], ["s", "--grid", "lr=0.1,x"], ["s", "--search", "lr=2..1"]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        assert end.code == (0 if words == ["--help"] else 2)
assert not {"torch", "matplotlib", "optuna", "numba", "scipy"} & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_given_twice_is_tried_once() -> None:
    plan = parse_args(["s", "--seed-list", "3,1,3", "--grid", "lr=0.1,0.10,0.2"]).plan
    assert plan is not None
    assert (plan.seeds, plan.grid) == ([3, 1], {"train.lr": [0.1, 0.2]})


def test_lists_are_separated_by_spaces() -> None:
    request = parse_args(["s", "--grid", "hidden=64 32,128"])
    assert request.plan is not None
    assert request.plan.grid == {"model.hidden": [[64, 32], [128]]}
    assert list(Sweep(request.folder, request.plan, PROBLEM).settings()) == ["hidden64_32", "hidden128"]
