"""The quick version of every experiment works, and does not change committed results."""

import ast
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.common import Study
from tests.conftest import HANG, ROOT
from tests.engine.conftest import OneProcess

EXPERIMENTS = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def kept() -> dict[Path, float]:
    files = [*(ROOT / "experiments" / "results").iterdir(), *(ROOT / "docs" / "figures").iterdir()]
    return {path: path.stat().st_mtime for path in files}


@pytest.mark.filterwarnings("ignore:the fit does not describe the data")  # of small versions
@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick_experiments_run_and_keep_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = kept()
    monkeypatch.setattr(sys, "argv", [name, "--quick"])
    monkeypatch.setattr("experiments.common.Pool", OneProcess)
    monkeypatch.delitem(sys.modules, f"experiments.{name}", raising=False)  # another experiment may have imported it
    with rc_context():  # a study changes the colours of figures
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    assert capsys.readouterr().out
    assert kept() == before


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_have_committed_results_and_a_journal_entry(name: str) -> None:
    assert (ROOT / "experiments" / "results" / f"{name}.json").exists()
    assert (ROOT / "docs" / "figures" / f"{name}.png").exists()
    assert f"python -m experiments.{name}" in (ROOT / "journal.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*EXPERIMENTS, "classifiers"])
def test_experiments_have_at_most_120_lines_of_code(name: str) -> None:
    text = (ROOT / "experiments" / f"{name}.py").read_text(encoding="utf-8")
    others: set[int] = set()  # lines of docstrings and imports
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.FunctionDef)) and ast.get_docstring(node):
            node = node.body[0]  # noqa: PLW2901
        elif not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        others |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    own = [line.strip() for k, line in enumerate(text.splitlines(), 1) if k not in others]
    assert len([line for line in own if line and not line.startswith("#")]) <= 120


def noted(folder: str, n: int) -> dict[str, Any]:
    """A case that creates a file, and fails if it is computed twice."""
    (Path(folder) / f"{n}").touch(exist_ok=False)
    return {"twice": 2 * n}


def test_saved_cases_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.common.ROOT", tmp_path)
    monkeypatch.setattr("experiments.common.Pool", OneProcess)
    monkeypatch.setattr(sys, "argv", ["study"])
    (tmp_path / "experiments" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "figures").mkdir(parents=True)
    folder = str(tmp_path)
    for cases in ([1, 2], [2, 3, 1], [3]):
        with rc_context():  # a study changes the colours of figures
            study = Study("somewhere/study.py", None)
        rows = study.measure(noted, [(folder, n) for n in cases])
        assert [row["twice"] for row in rows] == [2 * n for n in cases]  # in the requested order
        study.finish({"n": len(rows)}, Figure())
        kept = json.loads((tmp_path / "experiments" / "results" / "study.json").read_text(encoding="utf-8"))
        assert kept["summary"] == {"n": len(cases)}
        assert [row["case"][2] for row in kept["cases"]] == cases  # others are removed
    assert (tmp_path / "docs" / "figures" / "study.png").exists()


SLOW_STUDY = """
import time
from experiments.common import Study

def wait(seconds, n):
    time.sleep(seconds)
    return {}

if __name__ == "__main__":
    study = Study(__file__, None)
    study.measure(wait, [(0.0, 1), (0.0, 2), *((600.0, n) for n in range(9))])
"""


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_an_interrupted_experiment_keeps_complete_cases_and_ends_all_processes(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW_STUDY, encoding="utf-8", newline="\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(script), "--quick"]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True
    ) as run:
        deadline = time.monotonic() + HANG
        while (
            not (found := [*tmp_path.glob("*/slow.json")])
            or len(json.loads(found[0].read_text(encoding="utf-8"))["cases"]) < 2
        ):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate(timeout=HANG)
    assert run.returncode == 128 + signal.SIGINT
    assert stderr.splitlines()[-1].startswith("slow: interrupted")
    assert "Traceback" not in stderr
    while group_exists(run.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
