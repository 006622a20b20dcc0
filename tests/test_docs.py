"""Check README.md and docs/ against the program. `python -m tests.test_docs` regenerates the tables in them."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tokenize
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import sampler, stages, sweep, time_to_exact, training
from config import PRESETS, ExperimentConfig
from engine.datasets.splits import load_data
from engine.evaluation import evaluation_request as evaluation
from engine.evaluation import prediction_request as prediction
from engine.interface.base_config import TrainConfig, to_json
from engine.interface.base_problem import Columns, Problem
from engine.learning.prediction import build_model, evaluate, prepare
from engine.learning.trial import try_problem
from engine.many_runs import sweep_request as sweep_cli
from engine.options.fields import options_of
from engine.run_folder.run_request import build_parser, parse_args
from examples import classes, field, potential, table
from problem import PROBLEM
from tests.conftest import ROOT, run_command, run_process
from trainer import Trainer
from utils import print_line

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
}
README, INDEX, GUIDE = PAGES["README.md"], PAGES["docs/README.md"], PAGES["docs/your-own-problem.md"]
TUTORIAL = "docs/tutorial.md"  # test_tutorial.py checks its code and names
FILES = "docs/data-files.md"  # test_data_files.py checks its code
EVERYTHING = "\n".join(PAGES.values())


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page that are marked with a language."""
    return [
        code for name, code in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.M) if name == language
    ]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```\n", "", text, flags=re.DOTALL | re.MULTILINE)


def section(page: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    assert found, f"{page}: {title}"
    return found[1]


def problem_of_the_guide() -> Problem[Any]:
    module = types.ModuleType("decay")
    sys.modules["decay"] = module  # pydantic looks up the names in annotations there
    exec(blocks(GUIDE, "python")[0], vars(module))
    problem: Problem[Any] = module.PROBLEM
    return problem


PROGRAMS: dict[str, Problem[Any]] = {
    "main.py": PROBLEM,
    "examples.potential": potential.PROBLEM,
    "examples.classes": classes.PROBLEM,
    "examples.field": field.PROBLEM,
    "examples.table": table.PROBLEM,
    "decay.py": problem_of_the_guide(),
}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_index_has_one_line_for_each_page() -> None:
    for path in ROOT.glob("docs/*.md"):
        if path.name != "README.md":
            assert len(re.findall(rf"^- \[[^]]+\]\({path.name}\): .+", INDEX, flags=re.MULTILINE)) == 1, path.name
    assert "(docs/README.md)" in README


# Commands and flags


def test_the_two_setup_commands_are_complete_and_used_in_ci() -> None:
    run, test = (command.strip() for command in blocks(README, "sh")[:2])
    for command in (run, test):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -r requirements.txt")
    assert run.endswith("&& .venv/bin/python main.py --preset debug")
    assert test.endswith("-r requirements-dev.txt && .venv/bin/python -m pytest")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install --quiet -r requirements.txt -r requirements-dev.txt" in ci
    assert 'main.py" --preset debug' in ci
    assert "python -m pytest" in ci


def commands(text: str) -> list[list[str]]:
    """The commands of a page that start a program of this project, from code blocks, console output and sentences."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    lines += re.findall(r"^\$ (.*)", text, flags=re.MULTILINE)
    lines += re.findall(r"`((?:python|torchrun) [^`\n]+)`", without_code(text))
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:2] == ["torchrun", "--nproc-per-node"]:
            words = ["python", *words[3:]]
        if words[:1] == ["python"]:
            found.append(words[2:] if words[1] == "-m" else words[1:])
    return found


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_programs_accept_every_command(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for script, *arguments in commands(PAGES[page]):
        if "--help" in arguments:
            continue
        if script == "evaluate.py":
            problem = PROGRAMS["decay.py" if PAGES[page] is GUIDE else "main.py"]
            assert evaluation.build_parser(problem).parse_args(arguments).run
        elif script == "predict.py":
            assert prediction.build_parser(PROGRAMS["main.py"]).parse_args(arguments).run
        elif script == "sweep.py":
            Path("FILE").touch()  # as the pages call the user's data
            assert sweep_cli.parse_args(arguments).folder
        elif script not in PROGRAMS:
            assert (
                script == "pytest" or (ROOT / script).exists() or (ROOT / (script.replace(".", "/") + ".py")).exists()
            )
        elif "--resume" in arguments:
            assert build_parser(PROGRAMS[script], script).parse_args(arguments)
        else:
            if "--config" in arguments:
                path = Path(arguments[arguments.index("--config") + 1])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(
                    to_json(parse_args(PROGRAMS[script], [], script).config), encoding="utf-8", newline="\n"
                )
            parse_args(PROGRAMS[script], arguments, script)


def test_commands_are_found() -> None:
    found = {words[0] for words in commands(README)}
    assert found >= {"main.py", "evaluate.py", "predict.py", "sweep.py", "runs.py"}
    assert sum(len(commands(text)) for text in PAGES.values()) >= 50


def test_the_documented_error_is_that_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(PROBLEM, ["--lattice-size", "7"], "main.py")
    assert capsys.readouterr().err.splitlines()[-1].partition("error: ")[2] in PAGES["docs/options.md"]


def test_documented_versions_are_the_required_ones() -> None:
    versions = re.findall(r"\b[a-z]+==[\d.]+", EVERYTHING)
    assert versions
    assert set(versions) <= set((ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())


# Flags of runs.py, evaluate.py, predict.py, the experiments, torchrun, pip and ruff.
OTHER_FLAGS = {"--all", "--figure", "--filter", "--metrics", "--output", "--sort"}
OTHER_FLAGS |= {
    "--interval",
    "--setting",
    "--name",
    "--quick",
    "--nproc-per-node",
    "--max-restarts",
    "--index-url",
    "--check",
}
# Flags of SLURM, and of torchrun on several nodes.
OTHER_FLAGS |= {"--array", "--cpus-per-task", "--gres", "--mem-per-cpu", "--nodes", "--ntasks", "--ntasks-per-node"}
OTHER_FLAGS |= {"--open-mode", "--requeue", "--signal", "--time"}
OTHER_FLAGS |= {"--replay"}  # which docs/performance.md says was removed
OTHER_FLAGS |= {"--nnodes", "--rdzv-backend", "--rdzv-endpoint"}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_documented_flag_exists(page: str) -> None:
    known = OTHER_FLAGS | {flag for each in sweep_cli.build_parser(None)._actions for flag in each.option_strings}
    for problem in PROGRAMS.values():
        known |= {flag for action in build_parser(problem, "x")._actions for flag in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGES[page])) <= known


# Links, names and files


def anchors(text: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)", without_code(text), flags=re.MULTILINE)
    plain = [re.sub(r"<[^>]+>|&\w+;", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in plain}


def test_links_and_anchors_exist() -> None:
    n_anchors = 0
    assert all((ROOT / name).exists() for name in re.findall(r"\btests/[\w/]+\.py", EVERYTHING))
    for page in (*map(ROOT.joinpath, PAGES), ROOT / "journal.md", ROOT / "checkpoints" / "README.md"):
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
            if target.startswith("https://"):
                continue
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in anchors(path.read_text(encoding="utf-8")), f"{page.name}: {target}#{anchor}"
                n_anchors += 1
    assert n_anchors >= 5


def test_documented_names_are_in_the_linked_files() -> None:
    n_found = 0
    for page, text in PAGES.items():
        if page == TUTORIAL:
            continue
        for name, path in re.findall(r"\[`(\w+(?:\.\w+)+)`\]\(([^)]+)\)", text):
            if name.endswith((".py", ".md", ".yaml")):
                continue
            module, *attributes = name.split(".")
            assert (ROOT / page).parent / path == (ROOT / page).parent / ("../" * page.count("/") + f"{module}.py")
            found = importlib.import_module(module)
            for attribute in attributes:
                found = getattr(found, attribute)
            n_found += 1
    assert n_found >= 15


def test_the_documented_files_exist_and_no_module_is_missing() -> None:
    listed, folder = set(), ""
    files, layers = (section("docs/code.md", title) for title in ("The files", "The layers of the machinery"))
    for line in (blocks(files, "")[0] + blocks(layers, "")[0]).splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = ""
        listed.add(folder + name.rstrip("/"))
        if name == "ising/" or name.startswith("engine/"):
            folder = name
    assert all((ROOT / name).exists() for name in listed)
    modules = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("ising/[!_]*.py", "engine/*/[!_]*.py")
        for path in ROOT.glob(pattern)
    }
    modules |= {
        "main.py",
        "evaluate.py",
        "runs.py",
        "sweep.py",
        "trainer.py",
        "logger.py",
        "utils.py",
        "problem.py",
    }  # others are optional
    assert modules <= listed


def test_files_that_comments_and_docstrings_name_exist() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    paths = [path for path in tracked.stdout.split() if not path.startswith("tests/")]
    known = {"/".join(path.split("/")[-k:]) for path in tracked.stdout.split() for k in range(1, path.count("/") + 2)}
    n_found = 0
    for path in paths:
        with (ROOT / path).open("rb") as file:
            tokens = list(tokenize.tokenize(file.readline))
        texts = [each.string for each in tokens if each.type == tokenize.COMMENT or each.string.startswith('"""')]
        names = {name for text in texts for name in re.findall(r"[\w/]+\.py\b", text)}
        n_found += len(names)
        assert names <= known | {"decay.py", "examples/cnn_demo.py"}, path  # of the guide, and of another project
    assert n_found > 50


def test_the_first_line_of_a_file_says_whose_it_is() -> None:
    marks = {"keep": "Command: keep.", "keep, edit freely": "Shared: keep, and edit", "yours": "Experiment: yours, to"}
    n_files = 0
    for line in blocks(section("docs/code.md", "The files"), "")[0].splitlines():
        name, *_, whose = re.split(r" {2,}", line)
        if name.endswith(".py") and whose in marks:
            n_files += 1
            assert (ROOT / name).read_text(encoding="utf-8").startswith(f"# {marks[whose]}"), name
    assert n_files == len([*ROOT.glob("*.py")])
    for folder, mark in (
        ("ising", "Experiment: yours, to replace."),
        ("engine", "Machinery: keep, and skip at first."),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.read_text(encoding="utf-8").startswith(f"# {mark}\n"), path


def test_the_documented_files_of_a_run_are_those_of_a_run(finished_run: Path) -> None:
    text = PAGES["docs/run-files.md"]
    listed = set(re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE))
    assert listed == {path.name for path in finished_run.iterdir()} | {"wandb", "evaluations", "calibration.npz"}
    row = json.loads((finished_run / "epoch_metrics.json").read_text(encoding="utf-8"))[0]
    results = json.loads((finished_run / "results.json").read_text(encoding="utf-8"))
    figures = [path.name for path in (finished_run / "figures").iterdir()]
    for name in (*row, *results, *results["checks"]["train"], *figures):
        assert f"`{name}`" in text


# Numbers


def option_table() -> str:
    lines = ["| option | default | allowed | what |", "|---|---|---|---|"]
    for option in options_of(ExperimentConfig).values():
        flags = f"`{option.flag}`, `--no-{option.flag[2:]}`" if option.kind is bool else f"`{option.flag}`"
        allowed = "on or off" if option.kind is bool else option.allowed
        default = option.typed(option.value_in(PRESETS["default"]))
        lines.append(f"| {flags} | `{default}` | {allowed} | {option.info.description} |")
    return "\n".join(lines)


BENCHMARKS = {each.__name__.rpartition(".")[2]: each for each in (sampler, stages, sweep, time_to_exact, training)}
EXPERIMENTS = re.findall(r"^<!-- (\w+): printed by `python -m experiments", EVERYTHING, flags=re.MULTILINE)


def generated(name: str) -> str:
    """The table of options, or the tables of a benchmark or an experiment."""
    if name == "options":
        return option_table()
    if name in BENCHMARKS:
        report: str = BENCHMARKS[name].report(json.loads(BENCHMARKS[name].RESULTS.read_text(encoding="utf-8")))
        return report
    return str(json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text(encoding="utf-8"))["report"])


def with_tables(text: str) -> str:
    """The text of a page with regenerated tables."""
    for name in re.findall(r"^<!-- end of (\w+) -->", text, flags=re.MULTILINE):
        if name in ("options", *BENCHMARKS, *EXPERIMENTS):
            start, end = re.search(rf"<!-- {name}: [^>]*-->\n", text), text.index(f"<!-- end of {name} -->")
            assert start, name
            text = text[: start.end()] + generated(name) + "\n" + text[end:]
    return text


@pytest.mark.parametrize("page", sorted(PAGES))
def test_generated_tables_are_up_to_date(page: str) -> None:
    assert with_tables(PAGES[page]) == PAGES[page], "run `python -m tests.test_docs`"


def test_every_benchmark_and_every_experiment_has_a_table() -> None:
    ends = re.findall(r"^<!-- end of (\w+) -->", EVERYTHING, flags=re.MULTILINE)
    assert len(ends) == len(set(ends))
    assert {"options", *BENCHMARKS, *EXPERIMENTS} <= set(ends)
    results = {path.stem for path in (ROOT / "experiments" / "results").glob("*.json")}
    assert results == set(EXPERIMENTS)


def test_the_output_in_the_readme_is_that_of_a_run(finished_run: Path) -> None:
    checks = json.loads((finished_run / "results.json").read_text(encoding="utf-8"))["checks"]
    for split, numbers in checks.items():
        line = f"{split}: energy {numbers['energy_z']:+.2f} standard errors from exact, "
        assert f"{line}chi2/dof {numbers['chi2_per_dof']:.2f}\n" in README


def test_the_numbers_in_the_readme_occur_in_the_pages() -> None:
    number = r"(?<![\w.])\d[\d,.]*\d|(?<![\w.,])\d"
    known = set(re.findall(number, PAGES["docs/results.md"] + PAGES["docs/performance.md"]))
    named = set(re.findall(number, section("README.md", "Results")))
    assert len(named) >= 10
    assert named <= known


# Python


@pytest.mark.parametrize(
    "code",
    [
        code
        for page, text in PAGES.items()
        if text not in (README, GUIDE) and page not in (TUTORIAL, FILES)
        for code in blocks(text, "python")
    ],
)
def test_python_code_runs(
    code: str, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished_run, tmp_path / "checkpoints" / "residual")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert len(capsys.readouterr().out.splitlines()) >= code.count("print(") > 0


@pytest.mark.slow
def test_the_network_in_the_readme_is_exact(tmp_path: Path) -> None:
    (code,) = blocks(README, "python")
    (tmp_path / "code.py").write_text(code, encoding="utf-8", newline="\n")
    done = run_command(cwd=tmp_path, script=("code.py",))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 1e-3  # the largest error


@pytest.mark.slow
def test_the_problem_of_the_guide_runs_with_all_documented_commands(tmp_path: Path) -> None:
    python = blocks(GUIDE, "python")
    (tmp_path / "decay.py").write_text(python[0], encoding="utf-8", newline="\n")
    path = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    lines = [shlex.split(line, comments=True) for line in GUIDE.splitlines() if line.startswith("python decay.py")]
    assert len(lines) >= 5
    for words in lines:
        arguments = [*words[2:], *(["--epochs", "5"] if "--lr" in words else [])]
        if "--resume" in words:
            arguments += ["--epochs", "7"]
        done = run_command(*arguments, cwd=tmp_path, script=("decay.py",), **path)
        assert done.returncode == 0, done.stderr
    mine = ("--problem", "decay")  # here, decay.py is not in the folder of the repository
    for words in (["first", "--counts", "120", "--num-test", "20"], ["first", "--data", "decay.npz"]):
        done = run_command(*words, *mine, cwd=tmp_path, script="evaluate.py", **path)
        assert done.returncode == 0, done.stderr
    assert run_command("checkpoints/first", *mine, cwd=tmp_path, script="plots.py", **path).returncode == 0
    notebook = next(block for block in python if "history =" in block)
    measured = next(block for block in python if "load_run" in block)
    code = (
        "from decay import PROBLEM",
        notebook,
        'assert predictions.shape == data.test["rates"].shape',
        'counts = data.test["counts"]',
        measured,
        "assert rates.shape == (len(counts),)",
    )
    (tmp_path / "notebook.py").write_text("\n".join(code), encoding="utf-8", newline="\n")
    done = run_command(cwd=tmp_path, script=("notebook.py",), **path)
    assert done.returncode == 0, done.stderr


def variants_of_the_guide() -> dict[str, Any]:
    """The classes of the section "Other targets", by name."""
    space = vars(sys.modules["decay"])
    for code in blocks(section("docs/your-own-problem.md", "Other targets"), "python"):
        exec(code, space)
    return {name: each for name, each in space.items() if isinstance(each, type) and issubclass(each, Problem)}


def trained_variant(name: str, path: str | None = None) -> tuple[dict[str, float], dict[str, Any], Columns]:
    """Metrics, predictions and columns of the test split, for a class of the guide."""
    problem = variants_of_the_guide()[name]()
    config = replace(problem.presets["default"], device="cpu", threads=1)
    config = replace(config, train=TrainConfig(epochs=8, lr=0.01), data=replace(config.data, cache=False, file=path))
    data = load_data(problem, config)
    model = build_model(problem, config, data.train)
    try_problem(problem, config, model, data)
    Trainer(problem, config, model, data.train, data.val).fit()
    metrics, predicted = evaluate(problem, config, model, prepare(problem, config, model, data.test))
    return metrics, predicted.arrays(), data.test


def test_the_classifiers_of_the_guide_work_also_with_names_of_classes_in_a_file(tmp_path: Path) -> None:
    plain, predicted, test = trained_variant("RateClasses")
    assert plain["accuracy"] > 0.8
    assert set(predicted["predictions"]) == {0, 1, 2}
    _, with_weights, _ = trained_variant("WeightedClasses")
    assert (with_weights["predictions"] == 2).sum() > (predicted["predictions"] == 2).sum()
    labels = np.digitize(test["rates"], [0.5, 1.0])
    names = np.array(["slow", "medium", "fast"])[np.tile(labels, 10)]
    np.savez(tmp_path / "kinds.npz", counts=np.tile(test["counts"], (10, 1)), kind=names)
    named, _, columns = trained_variant("NamedClasses", str(tmp_path / "kinds.npz"))
    assert named["accuracy"] > 0.8
    assert columns["classes"].dtype == np.int64


def test_the_uncertainties_of_the_guide_have_the_stated_coverage() -> None:
    metrics, predicted, test = trained_variant("WithDeviation")
    assert metrics["within_std"] == pytest.approx(0.68, abs=0.1)
    assert predicted["predicted_std"].shape == (500,)
    _, predicted, test = trained_variant("WithQuantiles")
    for level in (16, 84):
        below = (test["rates"] < predicted[f"predicted_quantile_{level}"]).mean()
        assert below == pytest.approx(level / 100, abs=0.08)


@pytest.mark.slow
def test_a_network_is_added_as_it_is_described(tmp_path: Path) -> None:
    for name in ("engine", "ising", *(path.name for path in ROOT.glob("*.py"))):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    example = next(code for code in blocks(PAGES["docs/code.md"], "python") if "class LinearNetwork" in code)
    new_class = example[example.index("class LinearNetwork") : example.index("print(")]
    text = (tmp_path / "model.py").read_text(encoding="utf-8")
    table = "ARCHITECTURES: dict[str, type[Network]] = {\n"
    assert table in text
    (tmp_path / "model.py").write_text(
        text.replace(table, f'{new_class}{table}    "linear": LinearNetwork,\n'), encoding="utf-8", newline="\n"
    )
    text = (tmp_path / "config.py").read_text(encoding="utf-8")
    assert '"symmetric_mlp", "cnn"]' in text
    (tmp_path / "config.py").write_text(text.replace('"cnn"]', '"cnn", "linear"]', 1), encoding="utf-8", newline="\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_process(*arguments, cwd=tmp_path, script=("main.py",), PYTHONPATH=str(tmp_path))

    assert "cnn, linear" in " ".join(run("--help").stdout.split())
    done = run("--architecture", "linear", "--input-temperature", "--epochs", "1", "--num-train", "128")
    assert "linear-L8, epoch 1 of 1" in done.stdout, done.stderr
    done = run("--architecture", "linear", "--hidden", "8")
    assert "--hidden does nothing with --architecture linear" in done.stderr


def test_the_guide_names_every_method_of_a_problem() -> None:
    methods = {name for name in vars(Problem) if not name.startswith("_") and callable(getattr(Problem, name))}
    assert {name for name in methods if f"`{name}(" not in GUIDE} == set()


if __name__ == "__main__":
    for page, text in PAGES.items():
        new = with_tables(text)
        (ROOT / page).write_text(new, encoding="utf-8", newline="\n")
        print_line(f"{page}: {'unchanged' if new == text else 'updated'}")
