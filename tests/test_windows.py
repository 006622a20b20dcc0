"""The program in a Python that lacks what Windows lacks: see tests/windows/sitecustomize.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEBUG, ROOT, environment, read

# Windows decodes the command line and the names of files as Unicode, whatever the encoding of files and pipes.
WINDOWS = {
    "PYTHONPATH": f"{ROOT / 'tests' / 'windows'}:{ROOT}",
    "PYTHONUTF8": "0",
    "PYTHONIOENCODING": "cp1252",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a stand-in for this system")


@pytest.mark.slow
def test_the_program_runs_on_windows(tmp_path: Path) -> None:
    cwd = tmp_path / "Łódź and spaces"  # cp1252 has no Ł
    cwd.mkdir()
    table = cwd / "mesures été Ł.csv"
    table.write_text(
        "x1,x2,y\n" + "".join(f"{i},{i % 7},{2 * i}\n" for i in range(200)), encoding="utf-8", newline="\n"
    )
    run = cwd / "checkpoints" / "r"
    for script, *arguments in (
        ("main.py", *DEBUG, "--run-name", "r"),
        ("main.py", "--resume", "r", "--epochs", "6"),
        ("evaluate.py", "r", "--num-test", "50"),
        ("sweep.py", "s", *DEBUG, "--epochs", "1", "--seeds", "2", "--workers", "1"),
        (("-m", "examples.table"), *("--data", table.name, "--inputs", "x1", "x2", "--target", "y", "--epochs", "2")),
    ):
        start = (str(ROOT / script),) if isinstance(script, str) else script
        command = [sys.executable, "-W", "error", *start, *arguments]
        done = subprocess.run(
            command, cwd=cwd, env=environment(**WINDOWS), capture_output=True, encoding="cp1252", check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert "data read from mesures été \\u0141.csv" in done.stdout
    assert len(read(run, "epoch_metrics.json")) == 6
    assert [path.suffix for path in sorted((run / "evaluations").iterdir())] == [".json", ".png"]
    assert len(list((cwd / "checkpoints" / "s").glob("seed4*/results.json"))) == 2
    assert list((cwd / "cache").glob("ising-seed42-*.npz"))
    for path in run.rglob("*.json"):
        assert b"\r" not in path.read_bytes()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import fcntl", "Windows has no module fcntl"),
        ("from signal import SIGUSR1", "cannot import name 'SIGUSR1'"),
        ("import os; os.sysconf", "Windows has no os.sysconf"),
        ("import os; os.open('.', os.O_RDONLY)", "Permission denied"),
        ("print(open('utf8.txt').read())", "'charmap' codec can't decode"),
        ("from pathlib import Path; Path('utf8.txt').replace('other')", "cannot access the file"),
    ],
)
def test_the_stand_in_has_the_limits_of_windows(code: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "utf8.txt").write_bytes("Ё".encode())  # the second byte has no meaning in cp1252
    command = (
        f"exec(compile({code!r}, {str(ROOT / 'utils.py')!r}, 'exec'))"  # as if it were in a file of the repository
    )
    run = [sys.executable, "-c", command]
    done = subprocess.run(run, cwd=tmp_path, env=WINDOWS, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert error in done.stderr
