"""Rules for the code that all problems share: no physics, allowed imports, fast start, and limits of length."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# The modules that each file may import. Files in the first layer import none of the others.
LAYERS: list[dict[str, set[str]]] = [
    {
        "utils": set(),
        "engine.errors": set(),
        "engine.signals": set(),
        "engine.compiler": set(),
        "engine.setting": set(),
        "engine.suggestions": set(),
    },
    {
        "engine.options": {"engine.errors", "engine.suggestions"},
        "engine.files": {"utils", "engine.errors"},
        "engine.figures": {"engine.errors"},
        "engine.hardware": {"engine.errors"},
        "engine.distributed": {"utils", "engine.errors", "engine.signals"},
    },
    {
        "engine.config": {"engine.options", "engine.setting"},
        "engine.flags": {"utils", "engine.options", "engine.suggestions"},
        "engine.problem": {"engine.config", "engine.errors", "engine.figures", "engine.setting"},
        "engine.loading": {"engine.errors", "engine.files", "engine.problem"},
        "engine.baselines": {"engine.problem"},
        "engine.memory": {"engine.config", "engine.hardware", "engine.problem"},
    },
    {
        "engine.cli": {
            *("engine.files", "engine.hardware"),
            *("utils", "engine.config", "engine.distributed", "engine.errors", "engine.options", "engine.problem"),
            *("engine.flags", "engine.loading", "engine.signals"),
        },
        "engine.io": {
            *("engine.config", "engine.errors", "engine.files", "engine.hardware", "engine.options", "engine.problem"),
            "engine.suggestions",
        },
        "engine.cache": {"utils", "engine.config", "engine.files", "engine.io", "engine.loading", "engine.problem"},
        "engine.datasets": {
            *("utils", "engine.cache", "engine.config", "engine.errors", "engine.hardware", "engine.io"),
            "engine.problem",
        },
        "engine.overlap": {"utils", "engine.config", "engine.errors", "engine.files", "engine.problem"},
        "engine.prediction": {
            *("utils", "engine.config", "engine.distributed", "engine.errors", "engine.memory", "engine.overlap"),
            "engine.problem",
        },
        "engine.plotting": {
            *("utils", "engine.cli", "engine.config", "engine.distributed", "engine.errors", "engine.figures"),
            *("engine.files", "engine.flags", "engine.loading", "engine.problem"),
        },
    },
    {
        "engine.evaluation": {
            *("engine.cli", "engine.config", "engine.flags", "engine.loading", "engine.options", "engine.problem"),
            *(".comparison", ".summary", ".sweeps"),
        },
        "engine.preconditions": {
            *("utils", "engine.checkpoints", "engine.config", "engine.errors", "engine.evaluation", "engine.files"),
            *("engine.prediction", "engine.problem"),
        },
        "engine.checkpoints": {
            *("utils", "engine.config", "engine.datasets", "engine.errors", "engine.files", "engine.options"),
            *("engine.loading", "engine.prediction", "engine.problem", "engine.setting"),
        },
        "engine.init_from": {
            *("utils", "engine.checkpoints", "engine.cli", "engine.config", "engine.errors", "engine.files"),
            *("engine.loading", "engine.options", "engine.overlap", "engine.prediction", "engine.problem"),
        },
        "logger": {
            *("utils", "engine.checkpoints", "engine.cli", "engine.config", "engine.errors", "engine.files"),
            *("engine.hardware", "engine.io", "engine.loading", "engine.problem", "engine.setting"),
            "engine.signals",
        },
        "trainer": {
            *("logger", "utils", "engine.compiler", "engine.config", "engine.distributed", "engine.errors"),
            *("engine.prediction", "engine.problem"),
        },
        "engine.run": {
            *("logger", "trainer", "utils", "engine.checkpoints", "engine.config", "engine.datasets"),
            *("engine.distributed", "engine.errors", "engine.files", "engine.hardware"),
            *("engine.cache", "engine.options", "engine.overlap", "engine.plotting", "engine.prediction"),
            *("engine.init_from", "engine.memory", "engine.problem"),
        },
    },
]
# The modules of engine.many_runs; their names begin with a dot, here and above.
MANY_RUNS: dict[str, set[str]] = {
    ".plan": {"engine.config"},
    ".pool": {"utils", "engine.errors", "engine.signals"},
    ".records": {"engine.setting"},
    ".comparison": {".records"},
    ".search": {"utils", "engine.errors", "engine.files", "engine.options", ".plan"},
    ".sweeps": {
        *("engine.config", "engine.errors", "engine.files", "engine.loading", "engine.options", ".plan", ".search"),
        "engine.setting",
    },
    ".cli": {
        *("engine.cli", "engine.config", "engine.errors", "engine.flags", "engine.loading", "engine.options"),
        *("engine.problem", ".plan"),
    },
    ".summary": {"engine.files", ".comparison", ".plan", ".records", ".sweeps"},
    ".ensembles": {"engine.evaluation", "engine.prediction", "engine.problem", ".comparison"},
    ".listing": {
        *("utils", "engine.errors", "engine.loading", "engine.problem", "engine.setting", "engine.suggestions"),
        *(".comparison", ".records"),
    },
    ".groups": {
        *("engine.cli", "engine.errors", "engine.setting", "engine.suggestions", ".comparison", ".listing", ".records"),
    },
    ".report": {
        *("engine.errors", "engine.figures", "engine.files", "engine.plotting", "engine.setting"),
        *(".comparison", ".groups", ".listing", ".records"),
    },
}


def full_name(name: str) -> str:
    return f"engine.many_runs{name}" if name.startswith(".") else name


MAY_IMPORT = {
    full_name(name): {full_name(each) for each in allowed}
    for layer in (*LAYERS, MANY_RUNS)
    for name, allowed in layer.items()
}
COMMANDS = {"main", "evaluate", "runs", "sweep"}  # these may import all modules above
MACHINERY = sorted({*MAY_IMPORT, *COMMANDS, "engine.__init__", "engine.many_runs.__init__"})

PHYSICS = re.compile(r"\bspins?\b|lattice|temperature|\bising|magneti|energ(y|ies)|kaufman", re.IGNORECASE)
CRITICAL = re.compile(r"\bT_c\b|T_CRITICAL")


def file_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


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


def test_every_file_in_engine_is_listed() -> None:
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "engine").rglob("*.py")]
    assert {".".join(path.parts) for path in files} == {name for name in MACHINERY if name.startswith("engine.")}


@pytest.mark.parametrize("module", MACHINERY)
def test_shared_code_contains_no_physics(module: str) -> None:
    text = file_of(module).read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if PHYSICS.search(line) or CRITICAL.search(line)] == []


def test_words_of_physics_are_detected() -> None:
    for line in ("E = energy(x)", "# of the Ising model", "LATTICE_SIZE", "magnetization", "T < T_c", "a spin"):
        assert PHYSICS.search(line) or CRITICAL.search(line), line
    assert not PHYSICS.search("raising an error, spinning")


@pytest.mark.parametrize("module", MACHINERY)
def test_only_allowed_modules_are_imported(module: str) -> None:
    own = {path.stem for path in ROOT.glob("*.py")} | {"ising", "examples", "experiments", "benchmarks", "tests"}
    imports = imported_modules(file_of(module))
    ours = {name for name in imports if name in MACHINERY or name.partition(".")[0] in own}
    ours = {name if name in MACHINERY else name.partition(".")[0] for name in ours}
    allowed = {*MACHINERY, "problem"} if module == "main" else MAY_IMPORT.get(module, set(MACHINERY))
    assert ours <= allowed


def test_main_only_imports_the_problem_when_it_is_the_script() -> None:
    tree = ast.parse(file_of("main").read_text(encoding="utf-8"))
    script = tree.body.pop()
    assert ast.unparse(script).startswith("if __name__ == '__main__':")
    assert "problem import PROBLEM" in ast.unparse(script)
    assert not {"problem"} & {name for name in ast.unparse(tree).split() if name == "problem.PROBLEM"}
    assert "from problem import" not in ast.unparse(tree)


@pytest.mark.parametrize(
    "module",
    [
        "utils",
        "engine.options",
        "engine.config",
        "engine.problem",
        "engine.cli",
        "engine.datasets",
        "engine.overlap",
        "engine.run",
        "runs",
        "sweep",
    ],
)
def test_modules_that_check_a_request_do_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("module", MACHINERY)
def test_files_have_at_most_330_lines_and_functions_at_most_60(module: str) -> None:
    text = file_of(module).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 330
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            documentation = len((ast.get_docstring(node) or "").splitlines())
            assert node.end_lineno - node.lineno - documentation <= 60, node.name
