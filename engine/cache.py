"""The cache of generated data: files in the folder `cache`, with names made from everything that the data depend on.

The folder is in the working directory, next to `checkpoints`. You can delete it at any time. Several processes can use
it at the same time, because a file only appears when it is complete, and never changes afterwards.
"""

import ast
import functools
import hashlib
import inspect
import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import Config, generator_options
from engine.files import read_checked, read_info, write_checked
from engine.io import to_npz
from engine.loading import ROOT, module_name
from engine.problem import Problem, Splits
from utils import warn

VERSION = 2  # increase it when engine/ changes what is generated, or how it is stored

# These files call the generator and do not change what it returns. Their code is not part of any hash.
MACHINERY = ("engine", "main.py", "evaluate.py", "trainer.py", "logger.py")


def cache_path(problem: Problem[Any], config: Config) -> Path | None:
    """The cache file for the data of a config. Its name depends on generator options, sizes, seed and code.

    The result is None if the generator has no source file, as in a notebook: changes of its code cannot be detected.
    """
    if (code := code_hash(problem.generate)) is None:
        return None
    data = asdict(config.data)
    key = {
        "problem": f"{module_name(problem)}.{type(problem).__name__}",
        "options": {path[-1]: data[path[-1]] for path in generator_options(type(config))},
        "sizes": [data["num_train"], data["num_val"], data["num_test"]],
        "seed": config.seed,
        "code": code,
        "version": VERSION,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return Path("cache") / f"{problem.name}-seed{config.seed}-{digest[:32]}.npz"


def load(path: Path) -> Splits:
    """Read the splits from a cache file.

    Raises:
        OSError: the file does not exist or cannot be read.
        UnusableFileError: the file is damaged.
    """
    splits: dict[str, dict[str, Any]] = {name: {} for name in Splits._fields}
    with np.load(io.BytesIO(read_checked(path)), allow_pickle=False) as arrays:
        for key in arrays.files:
            split, _, name = key.partition("/")
            splits[split][name] = arrays[key]
    return Splits(**splits)


def store(path: Path, splits: Splits) -> None:
    """Write splits to a cache file. Every array keeps its dtype, shape and values. Raises OSError if writing fails."""
    arrays = {f"{split}/{name}": column for split, part in splits._asdict().items() for name, column in part.items()}
    path.parent.mkdir(exist_ok=True)
    write_checked(path, to_npz(arrays))


def code_hash(function: Callable[..., Any]) -> str | None:
    """A hash of the code of the file that defines a function, and of the files of the repository that it imports.

    The hash does not depend on comments, docstrings and formatting, nor on code that only type checkers read
    (`if TYPE_CHECKING`) or that only runs in a script (`if __name__ == "__main__"`). The result is None if the function
    has no source file.
    """
    try:
        start = Path(inspect.getsourcefile(inspect.unwrap(function)) or "").resolve()
    except TypeError:
        return None
    return hash_of_file(start) if start.is_file() else None


def hash_of_file(start: Path) -> str:
    """A hash of the code of a file and of the files of the repository that it imports; see code_hash."""
    trees: dict[Path, str] = {}
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path not in trees:
            trees[path], imported = _code_of(path, path.read_bytes(), frozenset({ROOT, start.parent}))
            waiting += [file for file in imported if not _is_machinery(file)]
    # Use relative paths, so that a copy of the repository, or of the folder, has the same hash.
    named = [
        (Path(os.path.relpath(path, ROOT if path.is_relative_to(ROOT) else start.parent)).as_posix(), trees[path])
        for path in trees
    ]
    return hashlib.sha256(repr(sorted(named)).encode()).hexdigest()


def hashes_of_code(problem: Problem[Any]) -> dict[str, str | None]:
    """Hashes of the code that the training of a network depends on, as stored in run_info.json."""
    return {"problem_sha256": code_hash(type(problem).network), "trainer_sha256": hash_of_file(ROOT / "trainer.py")}


def warn_if_changed(problem: Problem[Any], folder: Path, *, training: bool) -> None:
    """Warn if the code of the problem has changed since a run was trained. With `training`, check trainer.py too."""
    info, now = read_info(folder), hashes_of_code(problem)
    names = {"problem_sha256": f"{module_name(problem)}, or of a file that it imports,", "trainer_sha256": "trainer.py"}
    for key, name in names.items():
        if info.get(key, now[key]) != now[key] and (training or key == "problem_sha256"):
            warn(f"warning: the code of {name} has changed since {folder} was trained: results may differ")


@functools.cache  # a run hashes its generator and its network, which import many of the same files
def _code_of(path: Path, content: bytes, folders: frozenset[Path]) -> tuple[str, set[Path]]:
    """The code of a file as text that does not depend on formatting and comments, and the files that it imports."""
    tree = ast.parse(content)
    imports: list[ast.Import | ast.ImportFrom] = []
    tree.body = _essential(tree.body, imports)
    return ast.dump(tree), _imported_files(path, imports, folders)


def _essential(body: list[ast.stmt], imports: list[ast.Import | ast.ImportFrom]) -> list[ast.stmt]:
    """Remove docstrings, and blocks that only type checkers or scripts use. Append import statements to `imports`."""
    kept: list[ast.stmt] = []
    for statement in body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        if isinstance(statement, ast.If) and ast.unparse(statement.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            kept += _essential(statement.orelse, imports)  # when the file is imported, only the else branch runs
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imports.append(statement)
        for block in (statement, *getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
            for name in ("body", "orelse", "finalbody"):
                if inner := getattr(block, name, None):
                    setattr(block, name, _essential(inner, imports))
        kept.append(statement)
    return kept


def _imported_files(path: Path, imports: list[ast.Import | ast.ImportFrom], folders: frozenset[Path]) -> set[Path]:
    """The files in the given folders that a file imports. Relative imports are followed in every folder."""
    places: set[Path] = set()
    for node in imports:
        if isinstance(node, ast.Import):
            modules, level = [alias.name for alias in node.names], 0
        else:
            start = [node.module] if node.module else []
            modules = [*start, *(".".join([*start, alias.name]) for alias in node.names)]
            level = node.level
        bases = {path.parents[level - 1]} if level else folders
        places |= {base.joinpath(*module.split(".")) for base in bases for module in modules}
    return {file for place in places for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}


def _is_machinery(path: Path) -> bool:
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in MACHINERY
