"""README.md against the program. `python -m tests.test_readme` writes its tables anew."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import evaluate
from benchmarks import sampler, training
from config import ExperimentConfig
from engine.cli import build_parser, parse_args
from engine.config import to_json
from engine.options import options_of
from engine.problem import Problem
from examples import potential, table
from problem import PROBLEM
from tests.conftest import ROOT, environment, run_command

README = ROOT / "README.md"
TEXT = README.read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)
SHELL = [content.strip() for language, content in BLOCKS if language == "sh"]
PYTHON = [content for language, content in BLOCKS if language == "python"]


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def option_table() -> str:
    lines = ["| option | default | allowed | what |", "|---|---|---|---|"]
    for option in options_of(ExperimentConfig).values():
        flags = f"`{option.flag}`, `--no-{option.flag[2:]}`" if option.kind is bool else f"`{option.flag}`"
        allowed = "on or off" if option.kind is bool else option.allowed
        lines.append(f"| {flags} | `{option.default}` | {allowed} | {option.info.description} |")
    return "\n".join(lines)


def test_the_two_commands_set_up_all_they_need() -> None:
    run, test = SHELL[:2]
    for command in (run, test):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -r requirements.txt")
    assert run.endswith("&& .venv/bin/python main.py --preset debug")
    assert test.endswith("-r requirements-dev.txt && .venv/bin/python -m pytest")
    ci = (ROOT / ".ci" / "run").read_text()
    assert "pip install --quiet -r requirements.txt -r requirements-dev.txt" in ci
    assert 'main.py" --preset debug' in ci
    assert "python -m pytest" in ci


PROGRAMS: dict[str, Problem[Any]] = {
    "main.py": PROBLEM,
    "examples.potential": potential.PROBLEM,
    "examples.table": table.PROBLEM,
}


def test_every_command_is_one_that_the_program_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line, comments=True) for block in SHELL for line in block.splitlines()]
    n_parsed = 0
    for words in commands:
        script = words[2] if words[:2] == ["python", "-m"] else words[1]
        arguments = words[3 if words[:2] == ["python", "-m"] else 2 :]
        if script == "evaluate.py":
            assert evaluate.build_parser(PROBLEM).parse_args(arguments).run
        if script in PROGRAMS and "--resume" not in arguments:
            if "--config" in arguments:
                path = Path(arguments[arguments.index("--config") + 1])
                path.parent.mkdir(parents=True)
                path.write_text(to_json(parse_args(PROBLEM, [], "main.py").config))
            parse_args(PROGRAMS[script], arguments, script)
            n_parsed += 1
    assert n_parsed >= 10


def test_the_option_table_is_that_of_the_fields() -> None:
    assert option_table() in TEXT, "run `python -m tests.test_readme`"


def test_every_flag_that_is_named_exists() -> None:
    known = {"--nproc-per-node", "--name"}  # of torchrun and of evaluate.py
    for problem in PROGRAMS.values():
        known |= {flag for action in build_parser(problem, "x")._actions for flag in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT)) <= known


def test_the_file_tree_is_the_one_there_is() -> None:
    tree = section("The files")
    block = re.search(r"```\n(.*?)```", tree, flags=re.DOTALL)
    assert block
    listed, folder = set(), ""
    for line in block[1].splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = ""
        listed.add(folder + name.rstrip("/"))
        if name in ("ising/", "engine/"):
            folder = name
        listed |= {folder + other for other in re.findall(r"\b(\w+\.py)\b", line)}
    assert all((ROOT / name).exists() for name in listed)
    modules = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("ising/[!_]*.py", "engine/[!_]*.py")
        for path in ROOT.glob(pattern)
    }
    modules |= {"main.py", "evaluate.py", "trainer.py", "logger.py", "utils.py", "problem.py"}  # others may be added
    assert modules <= listed


def test_the_files_of_a_run_are_those_that_a_run_leaves(finished_run: Path) -> None:
    text = section("The files of a run")
    listed = set(re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE))
    assert listed == {path.name for path in finished_run.iterdir()} | {"wandb", "evaluations"}
    row = json.loads((finished_run / "epoch_metrics.json").read_text())[0]
    results = json.loads((finished_run / "results.json").read_text())
    figures = [path.name for path in (finished_run / "figures").iterdir()]
    for name in (*row, *results, *results["equilibrium"]["train"], *figures):
        assert f"`{name}`" in text


def test_names_of_the_code_are_where_they_are_said_to_be() -> None:
    names = re.findall(r"\[`(\w+(?:\.\w+)+)`\]\(([^)]+)\)", TEXT)
    assert len(names) >= 15
    for name, path in names:
        module, *attributes = name.split(".")
        assert path == f"{module}.py"
        found = importlib.import_module(module)
        for attribute in attributes:
            found = getattr(found, attribute)


def test_links_lead_somewhere() -> None:
    for page in (README, ROOT / "journal.md", ROOT / "checkpoints" / "README.md", *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("code", PYTHON, ids=["a run", "configurations"])
def test_the_python_of_the_readme_runs(code: str, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "checkpoints" / "residual")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == code.count("print(")


BENCHMARKS = {"sampler": sampler, "training": training}
EXPERIMENTS = re.findall(r"^<!-- (\w+): printed by `python -m experiments", TEXT, flags=re.MULTILINE)


def measured(name: str) -> str:
    """The tables of a benchmark or an experiment."""
    if name in BENCHMARKS:
        report: str = BENCHMARKS[name].report(json.loads(BENCHMARKS[name].RESULTS.read_text()))
        return report
    return str(json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())["report"])


@pytest.mark.parametrize("name", [*BENCHMARKS, *EXPERIMENTS])
def test_the_tables_are_those_that_were_measured(name: str) -> None:
    assert measured(name) in TEXT, "run `python -m tests.test_readme`"


GUIDE = (ROOT / "docs" / "your-own-problem.md").read_text()


@pytest.mark.slow
def test_the_problem_of_the_guide_runs_with_all_its_commands(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    assert code
    (tmp_path / "decay.py").write_text(code[1])
    path = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    commands = [shlex.split(line, comments=True) for line in GUIDE.splitlines() if line.startswith("python decay.py")]
    assert len(commands) >= 5
    for words in commands:
        arguments = [*words[2:], *(["--epochs", "5"] if "--lr" in words else [])]
        if "--resume" in words:
            arguments += ["--epochs", "7"]
        done = run_command(*arguments, cwd=tmp_path, script=("decay.py",), **path)
        assert done.returncode == 0, done.stderr
    for words in (["first", "--counts", "120", "--num-test", "20"], ["first", "--data", "decay.npz"]):
        done = run_command(*words, cwd=tmp_path, script="evaluate.py", **path)
        assert done.returncode == 0, done.stderr
    assert run_command("checkpoints/first", cwd=tmp_path, script="plots.py", **path).returncode == 0
    notebook = next(
        block for block in re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL) if "history =" in block
    )
    lines = ("from decay import PROBLEM", notebook, 'assert predictions.shape == data.test["rates"].shape')
    (tmp_path / "notebook.py").write_text("\n".join(lines))
    done = run_command(cwd=tmp_path, script=("notebook.py",), **path)
    assert done.returncode == 0, done.stderr


def test_the_guide_names_every_method_of_a_problem() -> None:
    methods = {name for name in vars(Problem) if not name.startswith("_") and callable(getattr(Problem, name))}
    assert {name for name in methods if f"`{name}(" not in GUIDE} == set()


if __name__ == "__main__":
    for block, content in (
        ("options", option_table()),
        *((name, measured(name)) for name in (*BENCHMARKS, *EXPERIMENTS)),
    ):
        start, end = re.search(rf"<!-- {block}[^>]*-->\n", TEXT), TEXT.index(f"<!-- end of {block} -->")
        assert start
        TEXT = TEXT[: start.end()] + content + "\n" + TEXT[end:]
    README.write_text(TEXT)
