"""README.md against the program. `python -m tests.test_readme` writes its tables anew."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
from benchmarks import sampler, training
from command import build_parser, parse_args
from config import OPTIONS, to_json
from tests.conftest import ROOT

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
    for option in OPTIONS.values():
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


def test_every_command_is_one_that_the_program_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line, comments=True) for block in SHELL for line in block.splitlines()]
    ours = [words[2:] for words in commands if words[:2] == ["python", "main.py"]]
    assert len(ours) >= 7
    for words in commands:
        if words[:2] == ["python", "evaluate.py"]:
            assert evaluate.build_parser().parse_args(words[2:]).run
    for words in ours:
        if "--config" in words:
            path = Path(words[words.index("--config") + 1])
            path.parent.mkdir(parents=True)
            path.write_text(to_json(parse_args([]).config))
        parse_args(words)


def test_the_option_table_is_that_of_the_fields() -> None:
    assert option_table() in TEXT, "run `python -m tests.test_readme`"


def test_every_flag_that_is_named_exists() -> None:
    known = {flag for action in build_parser()._actions for flag in action.option_strings}
    known.add("--nproc-per-node")  # of torchrun
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
        if name == "ising/":
            folder = name
    assert all((ROOT / name).exists() for name in listed)
    modules = {
        path.relative_to(ROOT).as_posix() for pattern in ("*.py", "ising/[!_]*.py") for path in ROOT.glob(pattern)
    }
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
    assert len(names) > 15
    for name, path in names:
        module, *attributes = name.split(".")
        assert path == f"{module}.py"
        found = importlib.import_module(module)
        for attribute in attributes:
            found = getattr(found, attribute)


def test_links_lead_somewhere() -> None:
    for page in (README, ROOT / "journal.md", ROOT / "checkpoints" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("code", PYTHON, ids=["a run", "configurations"])
def test_the_python_of_the_readme_runs(code: str, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "checkpoints" / "residual")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
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


if __name__ == "__main__":
    for block, content in (
        ("options", option_table()),
        *((name, measured(name)) for name in (*BENCHMARKS, *EXPERIMENTS)),
    ):
        start, end = re.search(rf"<!-- {block}[^>]*-->\n", TEXT), TEXT.index(f"<!-- end of {block} -->")
        assert start
        TEXT = TEXT[: start.end()] + content + "\n" + TEXT[end:]
    README.write_text(TEXT)
