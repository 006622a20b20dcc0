"""The evaluation of a sweep: all its networks on the same new data, their means and errors, and their ensemble."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evaluate
import main
from engine.datasets.overlap import hash_inputs, load_hashes
from engine.datasets.splits import get_splits, save_data
from engine.evaluation.ensembles import uncertainty
from engine.evaluation.evaluation_request import SweepRequest, parse_args, parse_sweep
from engine.learning.prediction import predict
from engine.machine.errors import BadRequestError, UnusableFileError
from engine.many_runs.sweep_request import parse_args as parse_plan
from engine.many_runs.sweeps import open_sweep
from evaluate import evaluate_run, evaluate_sweep, load_run, new_data
from tests.conftest import plot_nothing, read
from tests.toy import PROBLEM, ToyProblem

DEBUG = "--problem tests.toy --preset debug --device cpu"
SWEEPS = {
    "seeds": "--seed 1 --seeds 3 --dimension 5 --rounds 0",
    "width": "--seed 1 --seeds 5 --grid hidden=4,32 --num-train 100 --batch-size 50 --epochs 3",
    "size": "--seed 1 --seeds 2 --grid dimension=2,3 --kind pooled --epochs 2",
    "confirmed": "--search lr=0.01,0.001 --trials 2 --no-pruning --confirm 1 --seeds 2 --epochs 1",
    "search": "--search lr=0.01,0.001 --trials 2 --trial-seeds 2 --no-pruning --epochs 1",
}
OF_PROCESS = ("source", "pid", "git_commit", "git_dirty", "host", "platform", "python", "torch", "numpy")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished sweeps of the toy problem."""
    cwd = tmp_path_factory.mktemp("sweeps")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        plot_nothing(patch)
        for name, line in SWEEPS.items():
            request = parse_plan([name, *DEBUG.split(), *line.split()])
            assert request.plan is not None
            sweep = open_sweep(request.folder, request.plan)
            while planned := next(sweep.open_runs(()), None):
                main.run(PROBLEM, planned.config, sweep.folder / planned.name)
    return cwd


@pytest.fixture
def sweeps(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of these sweeps, which is the working directory of the test. Figures are not plotted."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "checkpoints"


def asked(line: str) -> SweepRequest:
    request = parse_sweep(line.split())
    assert request is not None
    return request


def evaluated(line: str) -> dict[str, Any]:
    return evaluate_sweep(asked(line))


def set_status(run: Path, status: str) -> None:
    info = read(run, "run_info.json")
    (run / "run_info.json").write_text(json.dumps({**info, "status": status}), encoding="utf-8")


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path("checkpoints").rglob("*") if path.is_file()}


@pytest.mark.usefixtures("sweeps")
def test_the_numbers_are_those_of_the_networks_and_of_their_mean_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated("seeds --rounds 0 --num-test 400")
    assert read(Path("checkpoints/seeds/evaluations"), "d5-rounds0-num-test400-seed4.json") == result
    (entry,) = result["settings"].values()

    columns, _ = new_data(
        parse_args(["seeds/seed1", "--rounds", "0", "--num-test", "400", "--seed", "4"])
    )  # above all seeds
    values, hashes = columns["values"], hash_inputs(PROBLEM, PROBLEM.presets["debug"], columns)
    folders = [Path(f"checkpoints/seeds/seed{seed}") for seed in (1, 2, 3)]
    each = np.array([predict(PROBLEM, *load_run(folder), columns) for folder in folders])
    is_seen = np.zeros(400, bool)
    for folder in folders:
        trained_on = load_hashes(folder)
        assert trained_on is not None
        is_seen |= np.isin(hashes, trained_on)
    assert 0 < is_seen.sum() < 400

    assert entry["runs"] == {"1": "seed1", "2": "seed2", "3": "seed3"}
    assert (entry["n"], entry["n_unseen"], entry["seed"]) == (400, int((~is_seen).sum()), 4)
    for name, chosen in (("mae", slice(None)), ("unseen_mae", ~is_seen)):
        of_each = np.abs(each - values)[:, chosen].mean(axis=1)
        found = entry["metrics"][name]
        assert [found["values"][seed] for seed in "123"] == pytest.approx(of_each, rel=1e-12)
        assert found["mean"] == pytest.approx(of_each.mean(), rel=1e-12)
        assert found["standard_error"] == pytest.approx(of_each.std(ddof=1) / math.sqrt(3), rel=1e-9)
        of_mean = np.abs(each.mean(axis=0) - values)[chosen].mean()
        assert entry["ensemble"]["metrics"][name] == pytest.approx(of_mean, rel=1e-12)
    assert "loss" not in entry["ensemble"]["metrics"]  # its units are those of a network

    ensemble, rmse = entry["ensemble"], math.sqrt(np.mean((each.mean(axis=0) - values) ** 2))
    assert ensemble["spread"] == pytest.approx(math.sqrt(each.var(axis=0, ddof=1).mean()), rel=1e-12)
    assert ensemble["spread_error_ratio"] == pytest.approx(math.sqrt(4 / 3) * ensemble["spread"] / rmse, rel=1e-12)
    of_networks = np.mean([each**2 for each in entry["metrics"]["rmse"]["values"].values()])
    assert of_networks == pytest.approx(rmse**2 + ensemble["spread"] ** 2 * 2 / 3, rel=1e-9)  # an identity

    shown = capsys.readouterr().out
    assert shown.count("data generated") == 1
    assert f"the inputs of {is_seen.sum()} of these 400 examples also occur in the training data of at least" in shown
    assert f"{result['table']}\n" in shown
    header, _, row, last = result["table"].splitlines()
    names = ["setting", "mae", "rmse", "r2", "unseen_mae", "spread", "spread/error"]
    assert [cell.strip() for cell in header.strip("|").split("|")] == names
    assert "(n = 3)" in row
    assert f"{ensemble['metrics']['mae']:.4g}" in last
    assert last.startswith("| mlp-d5, ensemble |")


def test_the_ratio_of_spread_and_error_is_one_if_the_truth_is_like_another_network() -> None:
    truth, *networks = 5 + 0.3 * np.random.default_rng(0).normal(size=(4, 20000))
    spread, ratio = uncertainty(networks, truth)
    assert spread == pytest.approx(0.3, rel=0.01)
    assert ratio == pytest.approx(1, rel=0.01)
    assert uncertainty([truth, truth], truth) == (0.0, None)


def test_the_files_of_the_runs_are_those_of_their_own_evaluation(sweeps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(sweeps.parent)
    evaluated("seeds --rounds 0 --num-test 60")
    for seed in (1, 2, 3):
        run = sweeps / "seeds" / f"seed{seed}"
        evaluate_run(parse_args(f"{run} --rounds 0 --num-test 60 --seed 4 --name alone".split()))
        of_sweep, alone = (
            {key: value for key, value in read(run / "evaluations", f"{name}.json").items() if key not in OF_PROCESS}
            for name in ("d5-rounds0-num-test60-seed4", "alone")
        )
        assert list(of_sweep.items()) == list(alone.items())
        image = (run / "evaluations" / "alone.png").read_bytes()
        assert (run / "evaluations" / "d5-rounds0-num-test60-seed4.png").read_bytes() == image


@pytest.mark.usefixtures("sweeps")
def test_settings_are_compared_by_differences_that_are_paired_by_seed() -> None:
    result = evaluated("width --name compared")
    few, many = (result["settings"][f"--hidden {width}"]["metrics"]["mae"]["values"] for width in (4, 32))
    difference = result["differences"]["--hidden 32"]["mae"]
    assert result["reference"] == "--hidden 4"
    assert difference["values"] == {seed: many[seed] - few[seed] for seed in "12345"}
    assert result["verdicts"] == {"--hidden 32": "better"}  # three epochs are too few for the small one
    assert "| verdict on mae |" in result["table"]
    assert [line.split("|")[1].strip() for line in result["table"].splitlines() if line.startswith("| -")] == [
        *("--hidden 4", "--hidden 4, ensemble", "--hidden 32", "--hidden 32, ensemble", "--hidden 32")
    ]


@pytest.mark.usefixtures("sweeps")
def test_settings_with_different_data_keep_them_and_are_not_compared() -> None:
    result = evaluated("size")
    assert Path("checkpoints/size/evaluations/seed3.json").is_file()  # what is special about all data
    assert Path("checkpoints/size/dimension3-seed1/evaluations/seed3.json").is_file()
    assert [entry["data"]["dimension"] for entry in result["settings"].values()] == [2, 3]
    assert "differences" not in result
    assert result["table"].endswith(
        "The settings were evaluated on different data, so there are no differences between them."
    )
    on_the_same = evaluated("size --dimension 4")
    assert Path("checkpoints/size/evaluations/d4-seed3.json").is_file()
    assert list(on_the_same["differences"]) == ["--dimension 3"]
    assert on_the_same["verdicts"] == {"--dimension 3": "no verdict: 2 seeds, 5 are needed"}


@pytest.mark.usefixtures("sweeps")
def test_a_file_of_data(capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = load_run("checkpoints/seeds/seed2")
    save_data(PROBLEM, config, Path("measured.npz"))
    result = evaluated("seeds --data measured.npz")
    (entry,) = result["settings"].values()
    assert (entry["n"], entry["seed"]) == (300, None)
    assert entry["n_unseen"] < 100  # the training data of the second network are in the file
    assert "warning: the inputs of" in capsys.readouterr().err
    evaluate_run(parse_args(["seeds/seed1", "--data", "measured.npz"]))  # the same evaluation, which may be repeated


@pytest.mark.usefixtures("sweeps")
def test_data_are_loaded_once_for_each_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return get_splits(*arguments)

    monkeypatch.setattr(evaluate, "get_splits", counted)
    evaluated("width --no-cache")
    assert len(calls) == 2


def test_runs_that_are_not_finished_are_left_out(sweeps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_status(sweeps / "seeds" / "seed1", "diverged")
    shutil.rmtree(sweeps / "seeds" / "seed3")
    (entry,) = evaluated("seeds")["settings"].values()
    assert "left out: 1 diverged, 1 not started\n" in capsys.readouterr().out
    assert entry["runs"] == {"2": "seed2"}
    assert entry["ensemble"] is None
    assert (entry["metrics"]["mae"]["n"], entry["metrics"]["mae"]["standard_error"]) == (1, None)
    set_status(sweeps / "seeds" / "seed2", "interrupted")
    with pytest.raises(SystemExit) as end:
        asked("seeds")
    assert end.value.code == 2
    expected = "none of its runs has finished (1 diverged, 1 interrupted, 1 not started)"
    assert capsys.readouterr().err == f"evaluate.py: error: {Path('checkpoints/seeds')}: {expected}\n"


def test_a_network_whose_training_data_are_not_known(sweeps: Path) -> None:
    (sweeps / "seeds" / "seed2" / "train_inputs.npy").unlink()
    (entry,) = evaluated("seeds --rounds 0")["settings"].values()
    assert entry["n_unseen"] is None
    assert not any(name.startswith("unseen_") for name in entry["metrics"])


def test_predictions_that_are_not_in_the_units_of_the_target(sweeps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyProblem, "scales_target", lambda *_: False)
    (entry,) = evaluated("seeds")["settings"].values()
    assert entry["ensemble"]["spread_error_ratio"] is None
    assert entry["ensemble"]["metrics"]["loss"] > 0


@pytest.mark.usefixtures("sweeps")
def test_the_trials_of_a_search_are_evaluated_without_a_reference() -> None:
    result = evaluated("search")
    assert [label.partition(":")[0] for label in result["settings"]] == ["trial000", "trial001"]
    assert [entry["metrics"]["mae"]["n"] for entry in result["settings"].values()] == [2, 2]
    assert "differences" not in result
    assert "different data" not in result["table"]


def test_the_confirmed_settings_of_a_search_are_evaluated(sweeps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (worse,) = (trial for trial in (0, 1) if not (sweeps / "confirmed" / f"trial00{trial}-seed43").exists())
    set_status(sweeps / "confirmed" / f"trial00{worse}-seed42", "failed")
    result = evaluated("confirmed")
    assert "left out: 2 trials\n" in capsys.readouterr().out
    assert [label.partition(":")[0] for label in result["settings"]] == ["unchanged", f"trial00{1 - worse}"]
    assert result["reference"] == "unchanged"


def test_another_result_is_only_replaced_with_overwrite(sweeps: Path) -> None:
    first = evaluated("seeds --name kept")
    assert evaluated("seeds --name kept")["settings"] == first["settings"]
    with pytest.raises(BadRequestError, match=r"kept\.json has the result of another evaluation: --overwrite"):
        evaluated("seeds --name kept --num-test 20")
    assert read(sweeps / "seeds" / "evaluations", "kept.json") == json.loads(json.dumps(first))
    evaluated("seeds --name kept --num-test 20 --overwrite")
    set_status(sweeps / "seeds" / "seed3", "interrupted")
    with pytest.raises(BadRequestError, match=r"seeds.evaluations.kept\.json has the result of another"):
        evaluated("seeds --name kept --num-test 20")  # of other networks


@pytest.mark.usefixtures("sweeps")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("seeds --epochs 3", "--epochs: no such option"),
        ("seeds --dimension 0", "--dimension 0: must be"),
        ("seeds --data x.npz --seed 3", "--seed does nothing with --data"),
        ("seeds --name ../x", "--name ../x"),
    ],
)
def test_bad_requests_end_with_one_line(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        asked(line)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("evaluate.py: error: ")
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.usefixtures("sweeps")
def test_nothing_is_written_if_one_network_cannot_be_evaluated() -> None:
    (Path("checkpoints/width/hidden32-seed5") / "best.pt").write_bytes(b"damaged")
    before = contents()
    with pytest.raises(UnusableFileError, match=r"hidden32-seed5.best\.pt"):
        evaluated("width")
    with pytest.raises(BadRequestError, match=r"--dimension 2: the inputs have the shape \(2,\)"):
        evaluated("seeds --dimension 2")
    assert contents() == before


@pytest.mark.usefixtures("sweeps")
@pytest.mark.parametrize(
    ("word", "of_sweep"),
    [
        ("seeds", True),
        ("checkpoints/seeds", True),
        ("checkpoints/seeds/", True),
        ("checkpoints/seeds/seed1", False),
        ("seeds/seed1", False),
        ("seeds/seed1 --name seeds", False),
        ("--name seeds/seed1 seeds --name x", True),
    ],
)
def test_a_sweep_and_a_run_of_it_are_found_by_name_and_by_folder(word: str, of_sweep: bool) -> None:
    assert (parse_sweep(word.split()) is not None) == of_sweep
    if not of_sweep:
        assert parse_args(word.split()).folder == Path("checkpoints/seeds/seed1")


@pytest.mark.usefixtures("toy_in_process", "sweeps")  # the first one restores the handlers of signals
def test_the_command_prints_the_table_and_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(evaluate, "quick_exit", ended.append)
    monkeypatch.setattr("sys.argv", ["evaluate.py", "seeds"])
    evaluate.main()
    assert ended == [0]
    assert capsys.readouterr().out.endswith(f"|\n\n{Path('checkpoints/seeds/evaluations/d5-seed4.json')}\n")
