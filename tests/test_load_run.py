"""Saved networks are loaded in other folders than that of the run and that of the repository, and in a notebook."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from evaluate import load_run
from examples import potential, table
from tests.conftest import DEBUG, HANG, ROOT, environment, run_command
from tests.test_docs import GUIDE, blocks

USE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from evaluate import load_run

def show(run, *shapes):
    config, model = load_run(run)
    with torch.no_grad():
        print(type(config).__name__, model(*(torch.ones(1, *shape) for shape in shapes)).item())
"""


def without_path() -> dict[str, str]:
    return {name: value for name, value in environment().items() if name != "PYTHONPATH"}


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a new process, which finds the modules of the repository by sys.path only."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=without_path(), capture_output=True, encoding="utf-8", check=False)


def shown(folder: Path, *shapes: tuple[int, ...]) -> str:
    config, model = load_run(folder)
    return f"{type(config).__name__} {model(*(torch.ones(1, *shape) for shape in shapes)).item()}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs of two examples in checkpoints. The working folder is another one."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    x = np.random.default_rng(0).normal(size=(2, 200))
    np.savez("data.npz", x1=x[0], x2=x[1], y=x[0] * x[1])
    config = table.PROBLEM.presets["debug"]
    of_file = replace(config, data=replace(config.data, file="data.npz"), device="cpu")
    main.run(table.PROBLEM, of_file, Path("checkpoints/table"))
    main.run(
        potential.PROBLEM, replace(potential.PROBLEM.presets["debug"], device="cpu"), Path("checkpoints/potential")
    )
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    return project


@pytest.mark.slow
def test_runs_are_loaded_by_their_folder_or_their_name_in_any_working_folder(finished_run: Path, project: Path) -> None:
    runs = [f"show({str(finished_run)!r}, (8, 8))", "show('../project/checkpoints/table', (), ())"]
    runs += ["show('../project/checkpoints/potential', (64,))", "import os", "os.chdir('../project')"]
    done = python("\n".join([USE, *runs, "show('table', (), ())"]), Path.cwd())
    assert done.returncode == 0, done.stderr
    in_table, in_potential = (project / "checkpoints" / name for name in ("table", "potential"))
    of_table = shown(in_table, (), ())
    assert done.stdout == shown(finished_run, (8, 8)) + of_table + shown(in_potential, (64,)) + of_table


@pytest.mark.slow
def test_a_run_of_a_file_outside_of_the_repository(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir()
    (mine / "decay.py").write_text(blocks(GUIDE, "python")[0], encoding="utf-8")
    done = run_command(*DEBUG[2:], "--epochs", "1", "--run-name", "r", cwd=mine, script=(str(mine / "decay.py"),))
    assert done.returncode == 0, done.stderr
    line = (
        "../mine/checkpoints/r was started with the module decay, which is not a file of this repository, or may have "
        "come with a run: if you trust it, add --problem decay or, in Python, give its PROBLEM"
    )
    found = f"{USE}\nsys.path.insert(0, '../mine')\n"
    assert python(f"{found}load_run('../mine/checkpoints/r')", other).stderr.endswith(f"BadRequestError: {line}\n")
    use = f"{found}from decay import PROBLEM\nprint(load_run('../mine/checkpoints/r', PROBLEM)[0].seed)"
    assert python(use, other).stdout == "42\n"
    run, evaluation = "../mine/checkpoints/r", ("--num-test", "20", "--name", "n")
    done = run_command(run, *evaluation, cwd=other, script="evaluate.py", PYTHONPATH=str(mine))
    assert (done.returncode, done.stderr) == (2, f"evaluate.py: error: {line}\n")
    for script, *words in (("evaluate.py", run, *evaluation), ("runs.py", "plot", run)):
        done = run_command(*words, "--problem", "decay", cwd=other, script=script, PYTHONPATH=str(mine))
        assert (done.returncode, done.stderr) == (0, "")
    done = run_command(run, *evaluation, "--problem", "decay", cwd=other, script="evaluate.py")
    assert done.returncode == 2
    assert "add the folder that has decay.py to PYTHONPATH" in done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Jupyter are not ours
def test_a_network_is_used_in_a_notebook_in_another_folder(finished_run: Path, project: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    in_table = project / "checkpoints" / "table"
    cells = [USE, f"show({str(finished_run)!r}, (8, 8))\nshow({str(in_table)!r}, (), ())"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])  # type: ignore[no-untyped-call]
    client = NotebookClient(notebook, timeout=int(HANG), resources={"metadata": {"path": str(Path.cwd())}})
    client.execute(env=without_path())
    assert notebook.cells[1].outputs[0]["text"] == shown(finished_run, (8, 8)) + shown(in_table, (), ())
