"""runs.py: the list of runs, comparisons over seeds, and reports."""

import gc
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import runs
from engine.interface.generic_figures import COLOURS, estimates_by_group, validation_curves
from engine.machine.signals import STOP_SIGNALS
from tests.conftest import read

Make = Callable[..., Path]
Runs = Callable[..., tuple[int, str, str]]


@pytest.fixture
def make(toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A function that writes the files of a run to a folder in checkpoints, with other values than those of toy_run."""

    def run(name: str, seed: int = 1, mae: float | None = 0.1, **changes: Any) -> Path:
        folder = Path("checkpoints") / name
        folder.mkdir(parents=True)
        config, info, results, rows = (
            read(toy_run, f"{file}.json") for file in ("config", "run_info", "results", "epoch_metrics")
        )
        config["seed"] = seed
        config["train"]["lr"] = changes.pop("lr", 0.01)
        info["changed"]["train.lr"] = config["train"]["lr"]
        info["data_sha256"] = f"data of seed {seed}"
        info |= changes
        results["test"]["mae"] = mae
        results["test_unseen"] = None
        files = {"config": config, "run_info": info, "epoch_metrics": rows}
        for file, content in (files | ({"results": results} if mae is not None else {})).items():
            (folder / f"{file}.json").write_text(json.dumps(content), encoding="utf-8", newline="\n")
        if "/" in name:
            (folder.parent / "sweep.json").write_text("{}", encoding="utf-8", newline="\n")
        return folder

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Runs]:
    """A function that runs runs.py in this process, and returns the exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["runs.py", *arguments])
        with pytest.raises(SystemExit) as end:
            runs.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
    gc.unfreeze()


@pytest.fixture
def make_sweep(make: Make) -> Callable[[str], None]:
    """A function that makes a sweep with two settings and six seeds, of which the second one has smaller errors."""

    def sweep(name: str) -> None:
        for seed in range(1, 7):
            make(f"{name}/lr0.1-seed{seed}", seed, 0.5 + seed / 100, lr=0.1)
            make(f"{name}/lr0.2-seed{seed}", seed, 0.4 + seed / 90, lr=0.2)

    return sweep


def names(listed: str) -> list[str]:
    """The first column of a list, without its title."""
    return [line.split()[0] for line in listed.partition("\n\n")[0].splitlines()[1:]]


# ----------------------------------------------------------------------------------------------------------- the list


def test_the_list_shows_runs_by_date_and_sweeps_in_one_line(make: Make, make_sweep: Any, command: Runs) -> None:
    make("b", 3, 0.25, started="2026-11-02T10:20:30+00:00")
    make("a", 4, None, lr=0.5, status="interrupted", started="2026-11-01T10:20:30+00:00")
    make_sweep("width")
    shutil.rmtree("checkpoints/width/lr0.1-seed1/results.json", ignore_errors=True)
    Path("checkpoints/README.md").touch()
    code, out, _ = command()
    assert code == 0
    assert names(out) == ["a", "b", "width/"]
    assert re.search(r"^a +2026-11-01 10:20 +interrupted +4 +5 +[\d.]+ val +lr=0.5$", out, flags=re.M)
    assert re.search(r"^b +2026-11-02 10:20 +finished +3 +5 +0.25 +lr=0.01$", out, flags=re.M)
    assert re.search(r"^width/ .* 12/12 finished +0.4389 +2 settings, best lr=0.2$", out, flags=re.M)
    assert "14 runs of tests.toy: 13 finished, 1 interrupted\n" in out
    assert "all runs outside sweeps have epochs=5 num_train=200 num_val=50 num_test=50\n" in out
    assert len(names(command("--all")[1])) == 14
    assert names(command("width")[1])[0] == names(command("checkpoints/width")[1])[0] == "width/lr0.1-seed1"
    assert names(command("width/lr0.1-seed1")[1]) == ["width/lr0.1-seed1"]


def test_the_list_can_be_sorted_and_filtered(make: Make, command: Runs) -> None:
    for name, mae, lr in (("a1", 0.3, 0.1), ("a2", 0.1, 0.3), ("b", 0.2, 0.2)):
        make(name, 1, mae, lr=lr)
    make("c", 2, None, lr=0.001, status="diverged")
    make("d", 2, 0.9, main_metric=["r2", "max"], problem="tests.toy2")
    for column in ("mae", "test_mae"):
        assert names(command("--sort", column)[1]) == ["a2", "b", "a1", "d", "c"]
    for column in ("lr", "--lr", "train.lr"):
        assert names(command(f"--sort={column}")[1]) == ["c", "d", "a1", "b", "a2"]
    assert names(command("--sort", "val_loss", "--filter", "name=a*")[1]) == ["a1", "a2"]
    assert names(command("--filter", "lr=3e-1")[1]) == ["a2"]
    assert names(command("--filter", "status=finished", "name=a?")[1]) == ["a1", "a2"]
    assert names(command("--filter", "problem=tests.toy", "seed=2")[1]) == ["c"]
    assert names(command("--filter", "skip=true")[1]) == []
    assert names(command("--filter", "rounds=none", "kind=mlp", "--filter", "seed=2")[1]) == ["c", "d"]
    assert "0 of 5 runs: none" in command("--filter", "name=z")[1]


def test_metrics_of_which_large_values_are_good_are_sorted_in_that_order(make: Make, command: Runs) -> None:
    for name, mae in (("a", 0.3), ("b", 0.5), ("c", 0.4)):
        make(name, 1, mae, main_metric=["mae", "max"])
    assert names(command("--sort", "metric")[1]) == ["b", "c", "a"]


def test_a_run_whose_process_is_gone_was_killed(make: Make, command: Runs) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = platform.node()
    mine = {"status": "running", "host": here, "pid": os.getpid()}
    make("alive", **mine, started="2100-01-01T00:00:00+00:00")  # later than the start of this process
    make("reused", **mine, started="2020-01-01T00:00:00+00:00")  # the number belongs to a later process
    make("gone", status="running", host=here, pid=ended.pid)
    make("other", status="running", host=here + "2", pid=ended.pid)
    out = command()[1]
    for name, status in (("alive", "running"), ("reused", "killed"), ("gone", "killed"), ("other", "running")):
        assert re.search(rf"^{name} .* {status} ", out, flags=re.M), name
    assert names(command("--filter", "status=killed")[1]) == ["reused", "gone"]


def test_damaged_and_earlier_runs_are_listed(make: Make, command: Runs) -> None:
    make("a")
    (make("b") / "results.json").write_text("{", encoding="utf-8", newline="\n")
    (make("c") / "run_info.json").unlink()
    old = make("d")
    info = read(old, "run_info.json")
    for key in ("changed", "label", "main_metric", "host"):
        del info[key]
    (old / "run_info.json").write_text(json.dumps(info), encoding="utf-8", newline="\n")
    text = json.dumps(info | {"problem": "no.such.module"})
    (make("f") / "run_info.json").write_text(text, encoding="utf-8", newline="\n")
    (make("e", lr=0.3) / "config.json").write_text("[]", encoding="utf-8", newline="\n")
    code, out, _ = command("--sort", "name")
    assert code == 0
    assert names(out) == ["a", "b", "c", "d", "e", "f"]
    assert "2 damaged, 3 finished, 1 unknown" in out
    assert re.search(r"^d .* 0.1$", out, flags=re.M)  # what it differs in was not recorded, and no problem is asked


def test_without_runs_the_list_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Runs) -> None:
    monkeypatch.chdir(tmp_path)
    assert command() == (0, "there are no runs in checkpoints\n", "")


# --------------------------------------------------------------------------------------------------------- comparisons


@pytest.mark.figures
def test_a_sweep_is_compared_by_setting(make_sweep: Any, command: Runs) -> None:
    make_sweep("width")
    code, out, err = command("compare", "width")
    assert (code, err) == (0, "")
    assert "| width/lr0.1 | 0.1 |" in out
    assert re.search(r"^\| width/lr0.1 +\| 0.5350 ± 0.0076 \(n = 6\) +\|", out, flags=re.M)
    assert re.search(r"^\| width/lr0.2 +\| better +\| -0.09611 ± 0.00085 \(n = 6\) +\|", out, flags=re.M)
    assert "Paired runs have the same data" in out
    assert out.endswith("\ncheckpoints/comparison.png\n")
    assert Path("checkpoints/comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "test_unseen" not in out
    assert "test_rmse" not in command("compare", "width", "--metrics", "mae")[1]


def test_runs_that_only_differ_in_the_seed_are_one_group(make: Make, command: Runs) -> None:
    for seed in (1, 2):
        make(f"plain-{seed}", seed, 0.5 + seed / 10)
    make(
        "edited", 1, 0.3, trainer_sha256="0" * 64, data_sha256="other", torch="3.0", git_commit="1" * 40, git_dirty=True
    )
    make("plain-1-again", 1, 0.6)
    make("failed", 3, None, status="failed")
    code, out, _ = command("compare", *map(str, Path("checkpoints").glob("*")), "--figure", "new/figure.svg")
    assert code == 0
    assert out.count("tests.toy") == 0
    label = "mlp-d3"  # the names of the runs have nothing in common
    assert re.search(rf"^\| {label} +\| 0.650 ± 0.050 \(n = 2\) .*\| 1 failed +\|$", out, flags=re.M)
    assert re.search(r"^\| edited .*, with changes +\| 0000000000 +\| 3.0 +\|$", out, flags=re.M)
    assert "do not have the same data" in out
    assert f"{label}: 1 of the runs have the seed of a newer one" in out
    assert "<svg" in Path("new/figure.svg").read_text(encoding="utf-8")
    for arguments in (("plain-1", "plain-2"), ("plain-[12]",), ("checkpoints/plain-?",)):
        assert "| plain " in command("compare", *arguments, "edited")[1]


def test_two_sweeps_with_the_same_settings_are_not_merged(make_sweep: Any, command: Runs) -> None:
    make_sweep("before")
    make_sweep("after")
    code, out, _ = command("compare", "before", "after")
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("| after/lr0.1 ")]
    assert re.search(r"^\| after/lr0.1 +\| no significant difference +\| 0 ± 0 \(n = 6\)", out, flags=re.M)
    assert "5 % / 3 comparisons" in out


def test_one_group_has_estimates_without_differences(make: Make, command: Runs) -> None:
    make("a", 1, 0.5)
    code, out, _ = command("compare", "a", "checkpoints/a")
    assert code == 0
    assert "0.5 (n = 1)" in out
    assert "minus" not in out


def test_trained_runs_are_compared(
    toy_in_process: Callable[..., int], command: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in ("1", "2"):
        flags = ("--preset", "debug", "--device", "cpu", "--seed", seed)
        assert toy_in_process(*flags, "--run-name", f"plain-{seed}") == 0
        assert toy_in_process(*flags, "--run-name", f"wide-{seed}", "--hidden", "64") == 0
    capsys.readouterr()
    code, out, _ = command("compare", "plain-1", "plain-2", "wide-1", "wide-2")
    assert code == 0
    assert re.search(r"^\| wide +\| 64 +\|$", out, flags=re.M)
    assert re.search(r"^\| wide +\| no verdict: 2 seeds, 5 are needed +\|", out, flags=re.M)
    assert "Paired runs have the same data" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "widht"], "widht: there is no such run or sweep; did you mean width?"),
        (["compare", "checkpoints/brokn"], "checkpoints/brokn: there is no such run or sweep; did you mean broken?"),
        (["compare", "x" * 5000], "there is no such run or sweep; `python runs.py` lists all runs"),
        (["compare", "b*n-*"], "b*n-*: there is no such run or sweep; `python runs.py` lists all runs"),
        (["compare", "empty"], "empty: this sweep has no runs yet: run it first"),
        (["compare", "broken"], "no run is finished, so that there is nothing to compare (broken: 1 failed)"),
        (
            ["compare", "width", "--metrics", "maee"],
            "--metrics maee: no such metric; did you mean test_mae or val_mae?",
        ),
        (["compare", "width", "--figure", "a.txt"], "--figure a.txt: the name has to end with .png, .svg or .pdf"),
        (["compare"], "the following arguments are required: RUN"),
        (["report", "width"], "the following arguments are required: --output"),
        (["--sort", "lrr"], "--sort lrr: no such column; did you mean lr?"),
        (["--filter", "statu=x"], "--filter statu: no such column; did you mean status?"),
        (["--filter", "status"], "--filter status: write COLUMN=VALUE"),
        (["widht"], "widht: there is no such folder, sweep or run; did you mean width?"),
        (["x" * 5000], "there is no such folder, sweep or run"),
    ],
)
def test_a_bad_request_is_one_line(
    arguments: list[str], words: str, make: Make, make_sweep: Any, command: Runs
) -> None:
    make_sweep("width")
    make("broken", mae=None, status="failed")
    Path("checkpoints/empty").mkdir()
    Path("checkpoints/empty/sweep.json").touch()
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


# ------------------------------------------------------------------------------------------------------------- reports


class Page(HTMLParser):
    """Collects the elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.figures
def test_a_report_is_one_page_that_needs_no_other_file(make_sweep: Any, make: Make, command: Runs) -> None:
    make_sweep("width")
    make("bad", 1, 0.2, label="<script>", status="finished", torch="<b>&", changed={"model.kind": "<i>"})
    code, out, err = command("report", "width", "bad", "--output", "new/report.html")
    assert (code, out, err) == (0, "new/report.html\n", "")
    text = Path("new/report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("svg") == 2
    assert page.tags.count("details") == 3
    assert not {"script", "b", "i", "link", "img"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    for words in ("python runs.py report width bad --output new/report.html", "<b>&", "kind=<i>", "width/lr0.2-seed6"):
        assert words in page.text
    assert "0.5350 ± 0.0076 (n = 6)" in page.text
    assert command("report", "width", "--output", "new/report.html")[0] == 0  # replaces it


def test_a_report_does_not_replace_another_file(make: Make, command: Runs) -> None:
    make("a")
    Path("notes.html").write_text("mine", encoding="utf-8", newline="\n")
    for name in ("notes.html", "checkpoints"):
        code, _, err = command("report", "a", "--output", name)
        assert code == 2
        assert f"--output {name}: exists and is not a report of runs.py: choose another name" in err
    assert Path("notes.html").read_text(encoding="utf-8") == "mine"


def test_figures_accept_many_groups_and_any_name() -> None:
    groups: dict[str, list[dict[int, float]]] = {
        f"_$group{i}{{$": [{1: 1.0, 2: 0.5 + i}, {1: 2.0, 2: 0.7, 3: 0.1}] for i in range(40)
    }
    shown = list(groups)[: len(COLOURS)]
    figure = validation_curves(groups, shown)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == [*shown, "33 others"]
    assert figure.axes[0].get_yscale() == "log"
    assert validation_curves({"a": [{1: -1.0}]}, ["a"]).axes[0].get_yscale() == "linear"
    estimates_by_group({"_$a{$": (0.1, None), "b": (30.0, 40.0)}, "test_mae").draw_without_rendering()
