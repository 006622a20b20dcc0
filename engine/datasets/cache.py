# Machinery: keep, and skip at first.
"""The cache of generated data: files in the folder `cache`, with names made from everything that the data depend on.

The folder is in the working directory, next to `checkpoints`. You can delete it at any time. Several processes can use
it at the same time, because a file only appears when it is complete, and never changes afterwards.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.datasets.archives import from_npz, to_npz
from engine.datasets.code_hash import code_hash
from engine.interface.base_config import Config, options_with
from engine.interface.base_problem import Columns, Problem
from engine.interface.find_problem import module_name
from engine.machine.atomic_files import read_checked, write_checked

VERSION = 2  # increase it when engine/ changes what is generated, or how it is stored


def cache_path(problem: Problem[Any], config: Config) -> Path | None:
    """The cache file for the data of a config. Its name depends on generator options, sizes, seed and code.

    For a slow generator, it is a folder with blocks of examples, whose name does not depend on the sizes. The result is
    None if the generator has no source file, as in a notebook: changes of its code cannot be detected.
    """
    if (code := code_hash(problem.generate)) is None:
        return None
    data = asdict(config.data)
    calibration = [data["num_calibration"]] if data["num_calibration"] else []
    key = {
        "problem": f"{module_name(problem)}.{type(problem).__name__}",
        "options": {path[-1]: data[path[-1]] for path in options_with(type(config), "generator")},
        "sizes": problem.block_size or [data["num_train"], data["num_val"], data["num_test"], *calibration],
        "seed": config.seed,
        "code": code,
        "version": VERSION,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return Path("cache") / f"{problem.name}-seed{config.seed}-{digest[:32]}{'' if problem.block_size else '.npz'}"


def load(path: Path) -> dict[str, Columns]:
    """Read the splits from a cache file, by name.

    Raises:
        OSError: the file does not exist or cannot be read.
        UnusableFileError: the file is damaged.
    """
    splits: dict[str, dict[str, Any]] = {}
    for key, array in from_npz(read_checked(path)).items():
        split, _, name = key.partition("/")
        splits.setdefault(split, {})[name] = array
    return dict(splits)


def store(path: Path, splits: Mapping[str, Columns]) -> None:
    """Write splits to a cache file. Every array keeps its dtype, shape and values. Raises OSError if writing fails."""
    arrays = {f"{split}/{name}": column for split, part in splits.items() for name, column in part.items()}
    path.parent.mkdir(exist_ok=True)
    write_checked(path, to_npz(arrays))
