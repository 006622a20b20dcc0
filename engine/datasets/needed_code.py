# Machinery: keep, and skip at first.
"""The part of a file on which a function can depend, found by the names that occur in it.

The result rather contains too much than too little: a name in a needed statement stands for everything of that name in
the file, whether it is a variable, a function, a class, an attribute or a method. Names that a program puts together
when it runs, as in getattr(self, "a" + "b"), are not found.
"""

import ast
from collections.abc import Iterator, Sequence
from typing import NamedTuple

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)


class _Unit(NamedTuple):
    """A statement at the top level, a member of a class, or the head of a class: its bases and decorators."""

    nodes: Sequence[ast.AST]
    names: set[str]  # what it defines
    words: set[str]  # the names that occur in it
    member_of: str = ""
    head_of: str = ""


def needed_code(body: Sequence[ast.stmt], name: str) -> list[ast.AST]:
    """The statements of a file, and the members of its classes, on which the functions of a name can depend."""
    units = [unit for statement in body for unit in _units(statement)]
    reached, needed = {name}, list[_Unit]()
    while True:
        classes = {unit.member_of for unit in needed}
        needed = [unit for unit in units if _is_needed(unit, reached, classes)]
        words = reached.union(*(unit.words for unit in needed))
        if words == reached and classes == {unit.member_of for unit in needed}:
            return [node for unit in needed for node in unit.nodes]
        reached = words


def _is_needed(unit: _Unit, reached: set[str], classes: set[str]) -> bool:
    if unit.names & reached or unit.head_of in classes - {""}:
        return True
    statement = unit.nodes[0]
    if unit.member_of:  # an ordinary method is called by its name; the other members of a class may be used without it
        return unit.member_of in reached and not (isinstance(statement, FUNCTIONS) and statement.name[:2] != "__")
    return not unit.head_of and not isinstance(statement, DEFINITIONS)  # for example, a call or a loop


def _units(statement: ast.stmt) -> Iterator[_Unit]:
    if not isinstance(statement, ast.ClassDef):
        yield _unit(statement)
        return
    head = [ast.Constant(statement.name), *statement.bases, *statement.keywords, *statement.decorator_list]
    yield _Unit(head, {statement.name}, _words(head[1:]), head_of=statement.name)
    for member in statement.body:
        yield _unit(member)._replace(member_of=statement.name)


def _unit(statement: ast.stmt) -> _Unit:
    names = {statement.name} if isinstance(statement, (*FUNCTIONS, ast.ClassDef)) else set()
    for node in ast.walk(statement):
        if isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Global):
            names |= set(node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and not isinstance(statement, FUNCTIONS):
            names.add(node.id)
    return _Unit([statement], names, _words([statement]))


def _words(nodes: Sequence[ast.AST]) -> set[str]:
    """All names in some nodes, including texts that could be names, but not those in annotations of functions."""
    words, found = set[str](), [each for node in nodes for each in ast.walk(node)]
    annotations = [getattr(each, "annotation", None) for each in found if isinstance(each, ast.arg)]
    annotations += [each.returns for each in found if isinstance(each, FUNCTIONS)]
    skipped = {id(part) for each in annotations if each is not None for part in ast.walk(each)}
    for node in found:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            words.add(node.value)
    return words
