"""docs/notebook.ipynb, and runs in the kernel of a notebook."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HANG, ROOT, environment, read

FILE = ROOT / "docs" / "notebook.ipynb"

INTERRUPT = """
import json, os, signal, threading, time

folder = Path("checkpoints") / "interrupted"

def interrupt():
    while not (folder / "epoch_metrics.json").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)  # what the stop button of a notebook does

threading.Thread(target=interrupt).start()
try:
    main.run(PROBLEM, replace(config, train=replace(config.train, epochs=100_000)), folder)
except KeyboardInterrupt:
    print("interrupted")
"""

PROBLEM_IN_A_CELL = """
class MyProblem(type(PROBLEM)):
    pass

main.run(MyProblem(), config, Path("checkpoints") / "mine")
"""


def test_the_notebook_has_the_usual_format_and_no_outputs() -> None:
    content = json.loads(FILE.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    assert [cell["outputs"] for cell in content["cells"] if cell["cell_type"] == "code"] == [[]] * 6


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Jupyter are not ours
def test_the_notebook_and_runs_in_its_kernel(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook: Any = nbformat.read(FILE, as_version=4)  # type: ignore[no-untyped-call]
    for extra in (INTERRUPT, PROBLEM_IN_A_CELL):
        notebook.cells.append(nbformat.v4.new_code_cell(extra))  # type: ignore[no-untyped-call]
    (tmp_path / "docs").mkdir()
    client = NotebookClient(notebook, timeout=int(HANG), resources={"metadata": {"path": str(tmp_path / "docs")}})
    client.execute(env=environment())  # fails if a cell does

    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    texts = ["".join(output.get("text", "") for output in each) for each in outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs[3])
    assert 0 < float(texts[5].partition("mean absolute error: ")[2].split()[0]) < 0.25
    assert "epoch 10/10" in texts[4]
    assert "`main.run(...)`" in texts[4]  # and not the command line of the kernel
    assert texts[6].endswith("interrupted\n")
    runs = {folder.name: read(folder, "run_info.json") for folder in (tmp_path / "checkpoints").iterdir()}
    ends = {name: (info["status"], info["problem"], info["argv"]) for name, info in runs.items()}
    assert ends == {
        "notebook": ("finished", "problem", []),
        "interrupted": ("interrupted", "problem", []),
        "mine": ("finished", "__main__", []),
    }
    assert list((tmp_path / "checkpoints" / "interrupted").glob("last.pt"))
