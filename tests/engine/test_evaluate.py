"""The evaluation of a saved run on new data: which data it uses, what it writes, and what it refuses."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import main
from engine.datasets.splits import get_splits, save_data
from engine.evaluation.evaluation_request import Request, parse_args
from engine.machine.errors import BadRequestError, RunError, UnusableFileError
from engine.run_folder import checkpoints
from evaluate import evaluate_run, load_run, new_data
from tests.conftest import plot_nothing, run_command
from tests.toy import PROBLEM, ToyConfig, ToyModelConfig

DEBUG = replace(PROBLEM.presets["debug"], device="cpu")
DEBUG_POOLED: ToyConfig = replace(DEBUG, model=ToyModelConfig(kind="pooled"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs: `mlp`, and `pooled`, whose network accepts points of any dimension."""
    cwd = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        plot_nothing(patch)
        for kind in ("mlp", "pooled"):
            config: ToyConfig = replace(DEBUG, model=ToyModelConfig(kind=kind))
            main.run(PROBLEM, config, Path("checkpoints") / kind)
    return cwd


@pytest.fixture(autouse=True)
def _beside_the_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)


def request(line: str) -> Request:
    return parse_args(line.split())


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("checkpoints").rglob("*") if path.is_file()}


@pytest.mark.figures
def test_the_result_that_is_written_is_correct(capsys: pytest.CaptureFixture[str]) -> None:
    asked = request("pooled --dimension 7 --num-test 300")
    result = evaluate_run(asked)
    place = Path("checkpoints/pooled/evaluations")
    assert json.loads((place / "d7-num-test300.json").read_text(encoding="utf-8")) == result
    assert (place / "d7-num-test300.png").read_bytes().startswith(b"\x89PNG")
    weights = Path("checkpoints/pooled/best.pt").read_bytes()
    assert result["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert {"n", "metrics", "check", "source", "seed", "data", "git_commit", "torch", "worst_error"} <= set(result)
    assert (result["n"], result["data"]["dimension"], result["seed"]) == (300, 7, 43)

    config, model = load_run("checkpoints/pooled")
    assert config == replace(DEBUG, model=ToyModelConfig(kind="pooled"))
    columns, _ = new_data(asked)
    points, signs = torch.tensor(columns["points"]), torch.tensor(columns["signs"])
    errors = model(points, signs).double().numpy() - columns["values"]
    assert result["metrics"]["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert result["worst_error"] == pytest.approx(np.abs(errors).max(), rel=1e-5)
    shown = capsys.readouterr().out
    assert f"mae {result['metrics']['mae']:.4g}" in shown
    assert f"worst_error {result['worst_error']:.4g}" in shown


def test_new_data_are_new() -> None:
    columns, _ = new_data(request("mlp --num-test 50"))
    seen, _ = get_splits(PROBLEM, load_run("checkpoints/mlp")[0])
    assert not any(np.array_equal(columns["points"][:50], split["points"][:50]) for split in seen)


def test_the_examples_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    signs = np.ones(40, np.int8)
    values = (points.astype(float) ** 2).sum(axis=1)
    np.savez(tmp_path / "five.npz", points=points, signs=signs, values=values)
    result = evaluate_run(request(f"pooled --data {tmp_path / 'five.npz'}"))
    assert result["n"] == 40
    assert Path("checkpoints/pooled/evaluations/five.json").exists()
    assert "dimension" not in result["data"]  # an option of the generator

    np.savez(tmp_path / "wrong.npz", points=points, signs=signs, values=values + 1)
    evaluate_run(request(f"pooled --data {tmp_path / 'wrong.npz'}"))
    assert "warning: the new split: the values are not those of the points" in capsys.readouterr().err
    with pytest.raises(BadRequestError, match=r"wrong\.npz: the inputs have the shape \(5,\).*only accepts \(3,\)"):
        evaluate_run(request(f"mlp --data {tmp_path / 'wrong.npz'}"))


def test_generator_options_with_the_default_none_are_reset(tmp_path: Path) -> None:
    shutil.copytree("checkpoints/mlp", "checkpoints/rounded", dirs_exist_ok=True)
    path = Path("checkpoints/rounded/config.json")
    path.write_text(
        path.read_text(encoding="utf-8").replace('"rounds": null', '"rounds": 2'), encoding="utf-8", newline="\n"
    )
    assert request("rounded").config.data.rounds is None  # type: ignore[attr-defined]
    assert request("rounded --rounds 1").config.data.rounds == 1  # type: ignore[attr-defined]


def test_options_for_a_file_are_those_of_the_command_line_and_need_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("checkpoints/mlp", "checkpoints/read", dirs_exist_ok=True)
    path = Path("checkpoints/read/config.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    content["data"] |= {"file": "x.npz", "points_key": "x"}
    path.write_text(json.dumps(content), encoding="utf-8")
    file = str(tmp_path / "y.npz")
    assert request(f"read --data {file}").config.data.points_key == "points"  # type: ignore[attr-defined]
    assert request(f"read --data {file} --points-key z").config.data.points_key == "z"  # type: ignore[attr-defined]
    with pytest.raises(SystemExit):
        request("read --points-key z")
    assert "--points-key does nothing without --data: give a file, or drop it" in capsys.readouterr().err


def test_data_that_the_network_could_not_be_trained_on_are_evaluated() -> None:
    path = Path("checkpoints/mlp/config.json")
    assert request("mlp --num-test 1").config.data.num_test == 1
    assert json.loads(path.read_text(encoding="utf-8"))["train"]["batch_size"] == 64


def test_a_network_for_other_shapes_is_refused_before_data_are_generated() -> None:
    before, cached = contents(), set(Path("cache").iterdir())
    with pytest.raises(BadRequestError, match=r"--dimension 4: the inputs have the shape \(4,\).*mlp-d3.*only accepts"):
        evaluate_run(request("mlp --dimension 4"))
    assert contents() == before
    assert set(Path("cache").iterdir()) == cached


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("unknown", ["unknown", "not a run"]),
        ("mlp --dimension 0", ["--dimension 0", "at least 1"]),
        ("mlp --num-test 0", ["--num-test 0", "at least 1"]),
        ("mlp --spread -1", ["--spread -1", "above 0"]),
        (
            "mlp --data x.npz --num-test 5",
            ["--num-test does nothing with --data, of which all examples are used: drop it"],
        ),
        ("mlp --data x.npz --seed 5 --num-test 5", ["--num-test, --seed do nothing with --data", "drop them"]),
        ("mlp --data x.npz --dimension 5", ["--dimension does nothing with --data", "drop"]),
        ("mlp --name ../x", ["--name ../x", "letter"]),
        ("mlp --name=", ["--name", "letter"]),
        ("mlp --epochs 5", ["--epochs: no such option"]),
        ("mlp --n-test 5", ["--n-test: no such option; did you mean --num-test?"]),
        ("unknown --dimension 5", ["unknown: not a run"]),
        ("mlp --device tpu", ["tpu", "cpu"]),
        ("x" * 300, ["not a run"]),
    ],
)
def test_a_bad_request_is_refused_in_one_line(line: str, named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = contents()
    with pytest.raises(SystemExit) as end:
        request(line)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("evaluate.py: error: ")
    assert error.count("\n") == 1
    assert all(words in error for words in named), error
    assert contents() == before


@pytest.mark.parametrize(
    ("line", "code", "named"),
    [
        ("mlp --num-test 10000000 --dimension 1000000", 2, "GiB of memory.*: lower --num-test, or the size"),
        ("mlp --corrupt", 2, "the values are not those of the points"),
        ("mlp --data missing.npz", 3, "missing.npz: no such file"),
    ],
)
def test_errors_that_are_found_later_write_nothing(line: str, code: int, named: str) -> None:
    before = contents()
    with pytest.raises(RunError, match=named) as error:
        evaluate_run(request(line))
    assert error.value.exit_code == code
    assert contents() == before


def test_the_result_of_another_evaluation_is_only_replaced_with_overwrite() -> None:
    path = Path("checkpoints/pooled/evaluations/kept.json")
    first = evaluate_run(request("pooled --num-test 60 --name kept"))
    advice = r"kept\.json has the result of another evaluation: --overwrite replaces it, another --name keeps it"
    with pytest.raises(BadRequestError, match=advice):
        evaluate_run(request("pooled --num-test 70 --name kept"))
    assert json.loads(path.read_text(encoding="utf-8")) == first
    assert evaluate_run(request("pooled --num-test 60 --name kept --no-cache"))["metrics"] == first["metrics"]
    evaluate_run(request("pooled --num-test 70 --name kept --overwrite"))
    assert json.loads(path.read_text(encoding="utf-8"))["n"] == 70


@pytest.mark.parametrize("what", ["weights", "file"])
def test_a_result_of_other_weights_or_of_a_changed_file_is_not_replaced(what: str) -> None:
    folder = Path("checkpoints/changing")
    shutil.copytree("checkpoints/pooled", folder)
    save_data(PROBLEM, replace(DEBUG, seed=7), Path("changing.npz"), overwrite=True)
    evaluate_run(request("changing --data changing.npz"))
    if what == "weights":
        shutil.copy(folder / "best.pt", folder / "good.pt")
        content = checkpoints.load(folder / "best.pt", DEBUG_POOLED)
        content["model"]["network.last.bias"] += 1
        checkpoints.save(folder / "best.pt", DEBUG_POOLED, {key: content[key] for key in ("epoch", "shapes", "model")})
    else:
        save_data(PROBLEM, replace(DEBUG, seed=8), Path("changing.npz"), overwrite=True)
    with pytest.raises(BadRequestError, match=r"changing\.json has the result of another evaluation"):
        evaluate_run(request("changing --data changing.npz"))
    shutil.rmtree(folder)


def test_the_hash_of_the_weights_is_that_of_the_weights_that_were_used(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("checkpoints/overwritten")
    shutil.copytree("checkpoints/pooled", folder)
    before = hashlib.sha256((folder / "best.pt").read_bytes()).hexdigest()

    def then_overwritten(asked: Request) -> Any:
        (folder / "best.pt").write_bytes(b"by a run that is still training")
        return new_data(asked)

    monkeypatch.setattr("evaluate.new_data", then_overwritten)
    assert evaluate_run(request("overwritten"))["weights_sha256"] == before
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("", "d3"),
        ("--dimension 7", "d7"),  # the label of the data shows it
        ("--dimension 3 --seed 43 --num-test 50", "d3"),  # those of an evaluation without flags
        ("--seed 7", "d3-seed7"),
        ("--dimension 7 --spread 2 --corrupt --seed 7", "d7-spread2.0-corrupt-seed7"),
        ("--num-test 20 --device cpu --no-cache", "d3-num-test20"),
        ("--data measured.npz", "measured"),
        ("--data some/con.npz", "_con"),
        (f"--data {'x' * 100}.npz", "x" * 64),
    ],
)
def test_the_default_name_says_what_is_special(flags: str, name: str) -> None:
    assert request(f"pooled {flags}").name == name


def test_the_name_of_any_file_becomes_a_valid_name() -> None:
    assert parse_args(["pooled", "--data", "my data (2).npz"]).name == "my_data__2_"


def test_the_value_of_an_option_may_be_the_name_of_a_run() -> None:
    asked = request("--name mlp pooled")
    assert (asked.folder, asked.name) == (Path("checkpoints/pooled"), "mlp")


# ---------------------------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("interrupted", "was interrupted"),
        ("running", "has not finished"),
        ("diverged", "diverged"),
        ("failed", "failed"),
    ],
)
def test_an_unfinished_run_is_named_as_such(
    status: str, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("checkpoints/unfinished")
    shutil.copytree("checkpoints/pooled", folder)
    info = json.loads((folder / "run_info.json").read_text(encoding="utf-8"))
    (folder / "run_info.json").write_text(json.dumps({**info, "status": status}), encoding="utf-8", newline="\n")
    rows = json.loads((folder / "epoch_metrics.json").read_text(encoding="utf-8"))
    (folder / "epoch_metrics.json").write_text(json.dumps(rows[:4]), encoding="utf-8", newline="\n")
    best = checkpoints.load(folder / "best.pt", DEBUG_POOLED)["epoch"]
    result = evaluate_run(request("unfinished"))
    shutil.rmtree(folder)
    line = f"{folder} {words} after epoch 4 of 5: evaluating the best epoch so far, epoch {best}"
    assert capsys.readouterr().err == f"warning: {line}\n"
    assert (result["run_status"], result["epoch"]) == (status, best)


def test_a_finished_run_gives_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_run(request("pooled --name quiet"))["run_status"] == "finished"
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def _run_on_a_file(runs: Path) -> None:
    """A run `measured`, which was trained on points of dimension 5 in a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        data = replace(DEBUG.data, dimension=5)
        save_data(PROBLEM, replace(DEBUG, data=data), Path("five.npz"))
        config = replace(DEBUG, data=replace(DEBUG.data, file="five.npz"))
        main.run(PROBLEM, config, Path("checkpoints/measured"))


@pytest.mark.usefixtures("_run_on_a_file")
def test_generated_data_for_a_run_on_a_file_are_announced(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_run(request("measured --dimension 5 --name generated"))
    line = (
        "checkpoints/measured was trained on five.npz, and these data are generated with --dimension 5 and the "
        "defaults --spread 1.0 --rounds none --no-corrupt: give a file with --data"
    )
    assert capsys.readouterr().err == f"warning: {line}\n"
    with pytest.raises(BadRequestError, match=r"^the data without options: the inputs have the shape \(3,\)"):
        evaluate_run(request("measured"))
    assert "generated with the defaults --dimension 3 --spread 1.0" in capsys.readouterr().err
    evaluate_run(request("measured --data five.npz"))
    assert "generated" not in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- help


def help_of(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        parse_args([*words, "--help"])
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_help_of_a_run_has_the_options_of_its_generator(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("pooled", capsys=capsys)
    assert "--dimension X coordinates of a point (an integer, at least 1, at most 1000000; default: that of the" in text
    assert (
        "--rounds X decimal places of the coordinates; none: all of them (an integer, at least 0, or none; def" in text
    )
    assert "RUN --help" not in text


def test_the_help_without_a_run_says_how_to_see_more(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys=capsys)
    assert "--dimension" not in text
    assert "--lattice-size" not in text
    assert "`evaluate.py RUN --help` also lists the options of the generator of a run." in text


@pytest.mark.parametrize("words", [[], ["pooled"]])
def test_the_help_is_about_evaluation(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(*words, capsys=capsys)
    for phrase in ("--num-test X examples to evaluate", "--seed X random seed of the generated data", "--overwrite"):
        assert phrase in text
    assert not {"train", "epoch", "batches", "weights", "test"} & set(text.replace("--num-test", "").split())


def test_a_damaged_run_is_refused() -> None:
    folder = Path("checkpoints/damaged")
    shutil.copytree("checkpoints/mlp", folder)
    content = bytearray((folder / "best.pt").read_bytes())
    content[200] ^= 1
    (folder / "best.pt").write_bytes(content)
    with pytest.raises(UnusableFileError, match=r"best\.pt is damaged"):
        load_run(folder)
    shutil.copy(folder / "last.pt", folder / "best.pt")  # intact, but of another kind
    with pytest.raises(UnusableFileError, match=r"best\.pt does not contain weights of this network"):
        load_run(folder)
    (folder / "best.pt").unlink()
    with pytest.raises(UnusableFileError, match=r"has no best\.pt"):
        load_run(folder)
    shutil.rmtree(folder)


def test_a_folder_that_is_not_writable_is_detected_first() -> None:
    folder = Path("checkpoints/blocked")
    shutil.copytree("checkpoints/mlp", folder)
    (folder / "evaluations").write_text("a file in the place of the folder", encoding="utf-8", newline="\n")
    with pytest.raises(PermissionError, match="cannot be written"):
        evaluate_run(request("blocked"))
    shutil.rmtree(folder)


def test_the_network_of_a_run_is_ready_for_use() -> None:
    _, model = load_run(Path("checkpoints/mlp"))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    outputs: Any = model(torch.zeros(4, 3), torch.ones(4, dtype=torch.int8))
    assert outputs.shape == (4,)


@pytest.mark.figures
@pytest.mark.slow
def test_the_command_evaluates_a_run(runs: Path) -> None:
    done = run_command("mlp", "--num-test", "20", "--name", "twenty", cwd=runs, script="evaluate.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("checkpoints/mlp/evaluations/twenty.json\ncheckpoints/mlp/evaluations/twenty.png\n")
    done = run_command("mlp", "--dimension", "4", cwd=runs, script="evaluate.py")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = run_command("mlp", "--help", cwd=runs, script="evaluate.py")
    assert done.returncode == 0
    assert "--dimension" in done.stdout
