"""Rules for the code that all problems share: the order of its layers, no physics, fast start, limits of length."""

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# The sub-packages of engine/. A file only imports from its own layer and from those before it.
LAYERS = ["machine", "options", "interface", "datasets", "learning", "run_folder", "many_runs", "evaluation"]
ENGINE = sorted((ROOT / "engine").rglob("*.py"))
SHARED = [
    *ENGINE,
    *(ROOT / f"{name}.py" for name in ("evaluate", "logger", "main", "runs", "sweep", "trainer", "utils")),
]

PHYSICS = re.compile(r"\bspins?\b|lattice|temperature|\bising|magneti|energ(y|ies)|kaufman", re.IGNORECASE)
CRITICAL = re.compile(r"\bT_c\b|T_CRITICAL")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by its full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_in_engine_only_go_down_and_have_no_cycle() -> None:
    assert {path.name for path in (ROOT / "engine").iterdir() if path.name[:2] != "__"} == set(LAYERS)
    own = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    graph = {}
    for path in ENGINE:
        imports = {name for name in imported_modules(path) if name.partition(".")[0] in own}
        above = LAYERS[LAYERS.index(module_of(path).split(".")[1]) + 1 :] if path.parent.name != "engine" else LAYERS
        wrong = {name for name in imports if not name.startswith("engine.") or name.split(".")[1] in above}
        assert not wrong, f"{path} imports {wrong}"
        graph[module_of(path)] = imports & {module_of(each) for each in ENGINE}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_no_two_files_have_the_same_name() -> None:
    files = list(ROOT.glob("*.py")) + [path for path in ENGINE if path.name != "__init__.py"]
    assert [name for name, n in Counter(path.name for path in files).items() if n > 1] == []


def test_shared_code_contains_no_physics() -> None:
    lines = [(path.name, line) for path in SHARED for line in path.read_text(encoding="utf-8").splitlines()]
    assert [each for each in lines if PHYSICS.search(each[1]) or CRITICAL.search(each[1])] == []


def test_words_of_physics_are_detected() -> None:
    for line in ("E = energy(x)", "# of the Ising model", "LATTICE_SIZE", "magnetization", "T < T_c", "a spin"):
        assert PHYSICS.search(line) or CRITICAL.search(line), line
    assert not PHYSICS.search("raising an error, spinning")


def test_main_only_imports_the_problem_when_it_is_the_script() -> None:
    tree = ast.parse((ROOT / "main.py").read_text(encoding="utf-8"))
    script = tree.body.pop()
    assert ast.unparse(script).startswith("if __name__ == '__main__':")
    assert "from problem import PROBLEM" in ast.unparse(script)
    assert "from problem import" not in ast.unparse(tree)


@pytest.mark.parametrize("module", ["utils", "runs", "sweep", "engine.run_folder.open_run"])
def test_modules_that_check_a_request_do_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_files_have_at_most_330_lines_and_functions_at_most_60() -> None:
    for path in SHARED:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 330, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                documentation = len((ast.get_docstring(node) or "").splitlines())
                assert node.end_lineno - node.lineno - documentation <= 60, f"{path}: {node.name}"
