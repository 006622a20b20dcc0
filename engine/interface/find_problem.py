# Machinery: keep, and skip at first.
"""The module of a problem: its name, which is stored with a run, and how to import it again.

A run may come from somebody else, and so may modules in its folder. The name in a run therefore only selects code that
is already trusted: load_saved_problem.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

from engine.interface.base_problem import Problem
from engine.machine.errors import BadRequestError, ProblemError
from engine.machine.foreign_files import is_file
from engine.machine.repository import ROOT


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
    if not all(word.isidentifier() for word in name.split(".")):
        raise BadRequestError(f"{name[:100]}: not a module: write it as in an import, such as examples.potential")
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
    if not isinstance(problem, Problem):
        raise ProblemError(f"{name}.PROBLEM is {type(problem).__name__}; make it an instance of a subclass of Problem")
    return problem
