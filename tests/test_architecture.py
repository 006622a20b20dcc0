"""Import rules of ising/ and the files of the experiment, and a check that the engine works without them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.engine.test_architecture import imported_modules

# The modules of this project that the files of the experiment may import.
MAY_IMPORT: dict[str, set[str]] = {
    "config": {"engine", "ising"},
    "data": {"config", "engine", "ising", "utils"},
    "data_files": {"config", "data", "engine", "ising", "utils"},
    "model": {"config"},
    "task": {"engine", "ising"},
    "plots": {"config", "engine", "ising", "task"},
    "problem": {"config", "data", "data_files", "engine", "ising", "model", "plots", "task"},
}
ISING_MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "lattice": set(),
    "exact": {"lattice"},
    "metropolis": {"lattice", "exact"},
    "kernel": {"exact"},
    "multispin": {"exact", "kernel", "lattice"},
    "wolff": {"kernel", "lattice"},
    "triangular": {"lattice", "wolff"},
    "scaling": {"lattice"},
    "statistics": set(),
}
EXPERIMENT = [*(f"{name}.py" for name in MAY_IMPORT), "ising", "experiments", "benchmarks", "examples"]


def test_every_file_has_an_import_rule() -> None:
    assert {*MAY_IMPORT, "main", "evaluate", "sweep", "trainer", "logger", "utils"} <= {
        path.stem for path in ROOT.glob("*.py")
    }
    assert {path.stem for path in (ROOT / "ising").glob("*.py")} == set(ISING_MAY_IMPORT)


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_files_of_the_experiment_only_import_allowed_modules(name: str) -> None:
    own = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert {module.partition(".")[0] for module in imported_modules(ROOT / f"{name}.py")} & own <= MAY_IMPORT[name]


@pytest.mark.parametrize("name", ISING_MAY_IMPORT)
def test_ising_only_imports_numerical_libraries(name: str) -> None:
    imports = imported_modules(ROOT / "ising" / f"{name}.py")
    external = {module.partition(".")[0] for module in imports} - {"ising"} - sys.stdlib_module_names
    assert external <= {"numpy"} | {"kernel": {"numba"}, "scaling": {"scipy"}, "statistics": {"scipy"}}.get(name, set())
    inside = {module.split(".")[1] for module in imports if module.startswith("ising.")}
    assert inside & set(ISING_MAY_IMPORT) <= ISING_MAY_IMPORT[name]


def test_importing_the_problem_imports_neither_torch_nor_matplotlib() -> None:
    code = "import sys, problem; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# The tests of engine/ that run its programs. To run all of them takes minutes, and the others import what they use.
IN_COPY = ("runs", "sweep")


def test_tests_of_the_engine_import_nothing_from_the_experiment() -> None:
    for path in (ROOT / "tests" / "engine").glob("*.py"):
        imported = {name.partition(".")[0] for name in imported_modules(path)}
        assert not imported & {*MAY_IMPORT, "ising", "experiments", "benchmarks", "examples"}, path


@pytest.mark.slow
def test_the_engine_passes_its_tests_without_the_experiment(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    for name in tracked.splitlines():
        path = Path(name)
        is_ising_test = path.parts[0] == "tests" and len(path.parts) == 2 and path.stem.startswith("test_")
        if path.parts[0] not in EXPERIMENT and not is_ising_test and (ROOT / path).is_file():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, copy / path)
    files = [f"tests/engine/test_{name}.py" for name in IN_COPY]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "-n", "0", "-m", "not slow", "-p", "no:cacheprovider"],
        cwd=copy,
        env={key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTEST_XDIST_WORKER")},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
