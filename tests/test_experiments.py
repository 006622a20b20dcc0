"""Every experiment, as a command, in its quick version: it works and leaves what is committed alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("[!_]*.py"))


def kept() -> dict[Path, float]:
    files = [*(ROOT / "experiments" / "results").iterdir(), *(ROOT / "docs" / "figures").iterdir()]
    return {path: path.stat().st_mtime for path in files}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_quickly_and_keeps_nothing(name: str) -> None:
    before = kept()
    command = [sys.executable, "-W", "error", "-m", f"experiments.{name}", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert kept() == before


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_left_its_numbers_and_its_figure(name: str) -> None:
    assert (ROOT / "experiments" / "results" / f"{name}.json").exists()
    assert (ROOT / "docs" / "figures" / f"{name}.png").exists()
    assert f"python -m experiments.{name}" in (ROOT / "journal.md").read_text()
