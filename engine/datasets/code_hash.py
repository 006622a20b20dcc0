# Machinery: keep, and skip at first.
"""Hashes of Python code that ignore formatting and comments, and the code that all problems share."""

import ast
import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.datasets.needed_code import needed_code
from engine.machine.repository import ROOT, is_hashed


def code_hash(function: Callable[..., Any], *, whole_file: bool = False) -> str | None:
    """A hash of the code of its file on which a function can depend, and of the files of the repository it imports.

    The hash does not depend on comments, docstrings and formatting, nor on code that only type checkers read
    (`if TYPE_CHECKING`) or that only runs in a script (`if __name__ == "__main__"`). The result is None if the function
    has no source file.

    Args:
        whole_file: use all code of the file, also that on which the function cannot depend.
    """
    try:
        start = Path(inspect.getsourcefile(inspect.unwrap(function)) or "").resolve()
    except TypeError:
        return None
    return hash_of_file(start, "" if whole_file else function.__name__) if start.is_file() else None


def hash_of_file(start: Path, function: str = "") -> str:
    """A hash of the code of a file and of the files of the repository that it imports; see code_hash.

    Args:
        function: the name of a function, if only the code of the file on which it can depend is wanted.
    """
    trees: dict[Path, str] = {}
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path not in trees:
            folders, of = frozenset({ROOT, start.parent}), function if path == start else ""
            trees[path], imported = _code_of(path, path.read_bytes(), folders, of)
            waiting += [file for file in imported if is_hashed(file)]
    # Use relative paths, so that a copy of the repository, or of the folder, has the same hash.
    named = [
        (Path(os.path.relpath(path, ROOT if path.is_relative_to(ROOT) else start.parent)).as_posix(), trees[path])
        for path in trees
    ]
    return hashlib.sha256(repr(sorted(named)).encode()).hexdigest()


@functools.cache  # a run hashes its generator and its network, which import many of the same files
def _code_of(path: Path, content: bytes, folders: frozenset[Path], function: str) -> tuple[str, set[Path]]:
    """The code of a file as text that does not depend on formatting and comments, and the files that it imports."""
    nodes: Sequence[ast.AST] = _essential(ast.parse(content).body)
    if function:
        nodes = needed_code(nodes, function)  # type: ignore[arg-type]
    imports = [each for node in nodes for each in ast.walk(node) if isinstance(each, ast.Import | ast.ImportFrom)]
    return repr([ast.dump(node) for node in nodes]), _imported_files(path, imports, folders)


def _essential(body: list[ast.stmt]) -> list[ast.stmt]:
    """Remove docstrings, and blocks that only type checkers or scripts use."""
    kept: list[ast.stmt] = []
    for statement in body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        if isinstance(statement, ast.If) and ast.unparse(statement.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            kept += _essential(statement.orelse)  # when the file is imported, only the else branch runs
            continue
        for block in (statement, *getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
            for name in ("body", "orelse", "finalbody"):
                if inner := getattr(block, name, None):
                    setattr(block, name, _essential(inner))
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
