# Machinery: keep, and skip at first.
"""Whether the code of a problem and of the trainer has changed since a run was trained."""

from pathlib import Path
from typing import Any

from engine.datasets.code_hash import code_hash, hash_of_file
from engine.interface.base_problem import Problem
from engine.interface.find_problem import module_name
from engine.machine.repository import ROOT
from engine.machine.terminal import warn
from engine.run_folder.saved_run import read_info


def hashes_of_code(problem: Problem[Any]) -> dict[str, str | None]:
    """Hashes of the code that the training of a network depends on, as stored in run_info.json."""
    of_problem = code_hash(type(problem).network, whole_file=True)
    return {"problem_sha256": of_problem, "trainer_sha256": hash_of_file(ROOT / "trainer.py")}


def warn_if_changed(problem: Problem[Any], folder: Path, *, training: bool) -> None:
    """Warn if the code of the problem has changed since a run was trained. With `training`, check trainer.py too."""
    info, now = read_info(folder), hashes_of_code(problem)
    names = {"problem_sha256": f"{module_name(problem)}, or of a file that it imports,", "trainer_sha256": "trainer.py"}
    for key, name in names.items():
        if info.get(key, now[key]) != now[key] and (training or key == "problem_sha256"):
            warn(f"warning: the code of {name} has changed since {folder} was trained: results may differ")
