"""The script for SLURM, examples/sweep.sbatch, with stand-ins for the programs of SLURM."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import HANG, ROOT

SCRIPT = ROOT / "examples" / "sweep.sbatch"

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def test_the_documented_script_is_the_file() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    assert f"```bash\n{SCRIPT.read_text(encoding='utf-8')}```\n" in page


def test_slurm_reads_all_options_of_the_script() -> None:
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/bash"
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert [line for line in lines[:first_command] if line.startswith("#SBATCH")] == options
    assert "#SBATCH --signal=USR1@120" in options  # to the program, not to the script: without B:
    assert not any("#" in option[1:] for option in options)  # not every version allows a comment behind an option


@needs_bash
@pytest.mark.parametrize(("code", "is_queued_again"), [(0, False), (1, False), (143, True)])
def test_the_script_is_queued_again_if_the_sweep_was_stopped_by_a_signal(
    code: int, is_queued_again: bool, tmp_path: Path
) -> None:
    for name, text in {
        ".venv/bin/activate": 'PATH="$PWD/bin:$PATH"\n',
        "bin/srun": f'#!/bin/sh\necho "srun $*"\nexit {code}\n',
        "bin/scontrol": '#!/bin/sh\necho "scontrol $*"\n',
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPT), "width"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_ID": "7"},
        capture_output=True,
        encoding="utf-8",
        timeout=HANG,
        check=False,
    )
    expected = ["srun --cpus-per-task=2 python sweep.py width --work", "scontrol requeue 7"]
    assert done.stdout.splitlines() == expected[: 1 + is_queued_again]
    assert (done.returncode, done.stderr) == (code, "")
