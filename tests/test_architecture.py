"""The house rules: who may import whom, what is loaded when, and how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each room may import of the others. `main` and `evaluate` may import all.
MAY_IMPORT: dict[str, set[str]] = {
    "options": set(),
    "config": {"options"},
    "command": {"config", "options"},
    "utils": set(),
    "data": {"config", "ising", "utils"},
    "datafiles": {"config", "data", "utils"},
    "model": {"config", "ising"},
    "task": {"ising"},
    "checkpoint": {"config", "utils"},
    "processes": {"utils"},
    "graphs": set(),
    "logger": {"checkpoint", "config", "utils"},
    "trainer": {"config", "graphs", "logger", "processes", "task", "utils"},
    "plots": {"ising", "options"},
    "evaluate": {
        *("checkpoint", "command", "config", "data", "datafiles", "ising", "logger", "model", "options", "plots"),
        *("task", "utils"),
    },
    "main": {
        *(
            "checkpoint",
            "command",
            "config",
            "data",
            "datafiles",
            "logger",
            "model",
            "options",
            "plots",
            "processes",
            "task",
        ),
        *("trainer", "utils"),
    },
}
ISING_MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "lattice": set(),
    "exact": {"lattice"},
    "metropolis": {"lattice", "exact"},
    "kernel": {"exact"},
    "multispin": {"kernel", "lattice"},
    "scaling": set(),
}


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by its full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_room_is_on_the_plan() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == set(MAY_IMPORT)
    assert {path.stem for path in (ROOT / "ising").glob("*.py")} == set(ISING_MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_between_rooms_are_those_of_the_plan(room: str) -> None:
    rooms = {*MAY_IMPORT, "ising"}
    siblings = {name.partition(".")[0] for name in imported_modules(ROOT / f"{room}.py")} & rooms
    assert siblings <= MAY_IMPORT[room]


@pytest.mark.parametrize("room", ISING_MAY_IMPORT)
def test_physics_knows_libraries_of_numbers_alone(room: str) -> None:
    imports = imported_modules(ROOT / "ising" / f"{room}.py")
    outside = {name.partition(".")[0] for name in imports} - {"ising"} - sys.stdlib_module_names
    assert outside <= {"numpy"} | {"kernel": {"numba"}, "scaling": {"scipy"}}.get(room, set())
    inside = {name.split(".")[1] for name in imports if name.startswith("ising.")}
    assert inside & set(ISING_MAY_IMPORT) <= ISING_MAY_IMPORT[room]


@pytest.mark.parametrize("module", ["config", "command", "utils", "processes", "data", "datafiles"])
def test_what_refuses_a_request_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("path", [*ROOT.glob("*.py"), *ROOT.glob("ising/*.py")], ids=lambda path: path.name)
def test_a_file_is_read_in_one_sitting_and_a_function_fits_on_a_screen(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 320
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            documentation = len((ast.get_docstring(node) or "").splitlines())
            assert node.end_lineno - node.lineno - documentation <= 60, node.name
