# Machinery: keep, and skip at first.
"""This repository: its folder, its files that are not part of a problem, and its commit."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # without links, like all paths that are compared with it

# Hashes of the code of a problem leave these files out. They call a generator, and do not change what it returns.
NOT_HASHED = ("engine", "main.py", "evaluate.py", "trainer.py", "logger.py")


def is_hashed(path: Path) -> bool:
    """Whether a file is part of the code of a problem that imports it."""
    return not path.is_relative_to(ROOT) or path.relative_to(ROOT).parts[0] not in NOT_HASHED


def provenance() -> dict[str, Any]:
    """The origin of a result: the commit, versions and machine."""
    files = ("*.py", "requirements.txt")  # those that affect results
    changes = _git(ROOT, "status", "--porcelain", "--untracked-files=normal", "--", *files)
    return {
        "git_commit": _git(ROOT, "rev-parse", "HEAD"),
        "git_dirty": None if changes is None else changes != "",
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "host": platform.node(),
        "pid": os.getpid(),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command, or None if it fails. The environment and the settings of the user have no effect.

    It also fails if the folder is not the top of a repository: git runs programs that a repository names, and one that
    contains this project may be somebody else's.
    """
    # Without these settings, git refuses a repository of another user, and may start a program that watches files.
    settings = ("-c", f"safe.directory={folder}", "-c", "core.fsmonitor=false", "--no-optional-locks")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", folder, *settings, *arguments],
            env=environment | {"GIT_CEILING_DIRECTORIES": str(folder.parent)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # no git, or a copy without a repository
        return None
    return done.stdout.strip()
