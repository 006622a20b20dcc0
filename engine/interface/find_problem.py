# Machinery: keep, and skip at first.
"""The module of a problem: its name, which is stored with a run, and how to import it again.

A run may come from somebody else, and so may modules in its folder. The name in a run therefore only selects code that
is already trusted: load_saved_problem.
"""

import difflib
import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.interface.base_config import Config
from engine.interface.base_problem import Problem
from engine.machine.errors import BadRequestError, ProblemError
from engine.machine.foreign_files import is_file
from engine.machine.repository import ROOT
from engine.options.fields import folder_name


def module_name(problem: Problem[Any]) -> str:
    """The name under which load_problem can import the module of a problem, even if the module runs as a script."""
    name = type(problem).__module__
    if name != "__main__":
        return name
    main = sys.modules["__main__"]
    if main.__spec__ is not None:  # python -m package.module
        return main.__spec__.name
    if not hasattr(main, "__file__"):  # defined in a notebook, whose session is the only one that has it
        return name
    path = Path(str(main.__file__)).resolve()
    return ".".join(path.relative_to(ROOT).with_suffix("").parts) if path.is_relative_to(ROOT) else path.stem


def load_saved_problem(name: str, folder: Path, given: str | None = None) -> Problem[Any]:
    """Import the problem that the files of a run or of a sweep name.

    The module has to be in use already, or a file of this repository, outside of the folders with runs, or `given`.

    Args:
        name: the module, as the files name it.
        folder: of the run or of the sweep.
        given: the module, as the user names it, who trusts it.

    Raises:
        BadRequestError: the user names another module, or has to name it.
        ProblemError: the module cannot be imported, or has no PROBLEM.
    """
    if given is not None and given != name:
        raise BadRequestError(f"--problem {given[:100]}: {folder} was started with {name[:100]}: name this module")
    is_loaded = hasattr(sys.modules.get(name), "PROBLEM")
    if given is None and name != "__main__" and not is_loaded and not _is_trusted(name, folder):
        raise BadRequestError(
            f"{folder} was started with the module {name[:100]}, which is not a file of this repository, or may have "
            f"come with a run: if you trust it, add --problem {name[:100]} or, in Python, give its PROBLEM"
        )
    return load_problem(name)


def _is_trusted(name: str, folder: Path) -> bool:
    """Whether a module is a file of this repository that has not come with a run, and neither has what it imports."""
    file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    if not is_file(file) or file.resolve() != file:  # no links, which could lead to a file of a run
        return False
    # Python prefers a package to a file of the same name. A run that was unpacked here could be one.
    if any(is_file(each.with_suffix("") / "__init__.py") for each in (file, *ROOT.glob("*.py"))):
        return False
    above = [ROOT / parent for parent in file.relative_to(ROOT).parents[:-1]]  # without the repository itself
    of_runs = {ROOT / "checkpoints", ROOT / "cache"}
    if (place := folder.resolve()).is_relative_to(ROOT) and place != ROOT:
        of_runs.add(ROOT / place.relative_to(ROOT).parts[0])  # where the run was unpacked, perhaps with other files
    has_runs = (each in of_runs or is_file(each / "run_info.json") or is_file(each / "sweep.json") for each in above)
    return not any(has_runs)


def load_problem(name: str) -> Problem[Any]:
    """Import a module and return its object PROBLEM.

    Raises:
        BadRequestError: there is no such module, or the name is invalid.
        ProblemError: the module cannot be imported, or has no PROBLEM.
    """
    main = sys.modules["__main__"]
    if not all(word.isidentifier() for word in name.split(".")) or name.endswith(".py"):
        module = ".".join(Path(name).with_suffix("").parts) if name.endswith(".py") else "examples.potential"
        raise BadRequestError(f"{name[:100]}: not a module: write it as in an import, such as {module[:100]}")
    try:
        if (running := getattr(main, "PROBLEM", None)) is not None and module_name(running) == name:
            return running  # type: ignore[no-any-return]
        if name == "__main__":
            raise BadRequestError("the problem was defined in a notebook: define it in this session, too, as PROBLEM")
        problem = importlib.import_module(name).PROBLEM
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0] and error.name != name:
            raise ProblemError(f"the module {name} cannot be imported: {error}") from error
        file = f"{name.replace('.', '/')}.py"
        raise BadRequestError(
            f"there is no module {name}: add the folder that has {file} to PYTHONPATH or, in Python, to sys.path"
        ) from None
    except (ImportError, AttributeError) as error:
        raise ProblemError(f"the module {name} has no PROBLEM, or cannot be imported: {error}") from error
    try:
        require_problem(problem)
    except ProblemError as error:
        raise ProblemError(f"{name}: {error}") from None
    return problem  # type: ignore[no-any-return]


def require_problem(problem: Any) -> None:
    """Raise ProblemError unless this is an instance of a subclass of Problem, with the attributes that it has to have.

    Methods and attributes with names that are nearly those of the interface are refused, too: they would be ignored.
    """
    if isinstance(problem, type) and issubclass(problem, Problem):
        raise ProblemError(
            f"PROBLEM is the class {problem.__name__}: make it an instance, PROBLEM = {problem.__name__}()"
        )
    if not isinstance(problem, Problem):
        raise ProblemError(f"PROBLEM is {type(problem).__name__}: make it an instance of a subclass of Problem")
    kind, known = type(problem), [name for name in (*dir(Problem), *Problem.__annotations__) if name[0] != "_"]
    for name in sorted({name for each in kind.__mro__ for name in vars(each)} | vars(problem).keys()):
        similar = difflib.get_close_matches(name, known, 1, cutoff=0.88)
        # `names = [...]` is no method, and if `name` is missing, that is reported below
        is_meant = similar and callable(getattr(problem, name)) == callable(getattr(Problem, similar[0], None))
        if is_meant and name not in known and similar[0] not in ("name", "presets", "config_type"):
            raise ProblemError(f"{kind.__name__} has {name}, which is ignored: did you mean {similar[0]}? Rename it")
    _require_methods(problem)
    if missing := [name for name in ("name", "config_type", "presets") if not hasattr(problem, name)]:
        raise ProblemError(f"{kind.__name__} has no {missing[0]}: set it in the class")
    if not isinstance(problem.name, str) or folder_name(problem.name) != problem.name:
        raise ProblemError(
            f"the name of {kind.__name__} is {problem.name!r}: use A-Z a-z 0-9 . _ -, at most 40 characters"
        )
    if not isinstance(problem.config_type, type) or not issubclass(problem.config_type, Config):
        raise ProblemError(f"config_type of {kind.__name__} is {problem.config_type!r}: make it a subclass of Config")
    if not isinstance(problem.presets, Mapping) or "default" not in problem.presets:
        raise ProblemError('presets has no key "default": add a preset with this name')
    for name, preset in problem.presets.items():
        if not isinstance(preset, problem.config_type):
            given, wanted = type(preset).__name__, problem.config_type.__name__
            raise ProblemError(f"the preset {name} is {given}: make it an instance of config_type, {wanted}(...)")
    size = problem.block_size
    if size is not None and (type(size) is not int or size < 1):
        raise ProblemError(f"block_size is {size!r}: use a number of examples, at least 1, or None")


def _require_methods(problem: Problem[Any]) -> None:
    """Raise ProblemError unless the methods of a problem can be called with the arguments that they get."""
    kind = type(problem).__name__
    for name, method in vars(Problem).items():
        if name[0] == "_" or not callable(method):
            continue
        expected, own = list(inspect.signature(method).parameters)[1:], getattr(problem, name)
        if not callable(own):
            head = f"def {name}(self, {', '.join(expected)})"
            raise ProblemError(f"{kind}.{name} is {own!r}: make it a method, {head}, that returns it")
        try:
            inspect.signature(own).bind(*expected)
        except TypeError as error:
            raise ProblemError(f"{kind}.{name} is called with ({', '.join(expected)}): {error}") from None
