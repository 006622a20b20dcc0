# Machinery: keep, and skip at first.
"""The folder of a run, as its files describe it. Reading it needs neither torch nor the module of its problem.

Somebody else may have made the run. Its files are data: what they say is checked, and no code is imported because they
name it, except by `problem_of`.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.machine.errors import UnusableFileError
from engine.machine.foreign_files import MOST_BYTES, MOST_BYTES_OF_LIST, is_file, read_bytes, read_json
from engine.options.config_values import setting_of, upgrade

if TYPE_CHECKING:
    from engine.interface.base_config import Config
    from engine.interface.base_problem import Columns, Problem
    from engine.run_folder.checkpoints import SavedNetwork


class Run(NamedTuple):
    """The folder of a run. Its weights and arrays are read when they are asked for.

    A file that cannot be read makes the run `damaged`.
    """

    folder: Path
    name: str  # relative to checkpoints/: `wide`, or `width/seed42` for a run of a sweep
    config: dict[str, Any]  # config.json
    info: dict[str, Any]  # run_info.json; empty if it is missing
    status: str  # running, finished, interrupted, diverged, failed, pruned, damaged, or unknown
    results: dict[str, Any] | None  # results.json; None if it is missing

    @property
    def seed(self) -> Any:
        """The seed, or None if the config cannot be read."""
        return self.config.get("seed")

    @property
    def member(self) -> Any:
        """What distinguishes the run from others of its setting: the seed or, in a cross-validation, seed and fold."""
        return self.seed if self.fold is None else f"{self.seed}-fold{self.fold}"

    @property
    def fold(self) -> int | None:
        """The fold that the run tests, if it is one of a cross-validation."""
        return self._data.get("fold")

    @property
    def overlap(self) -> float:
        """The number of test examples divided by that of training examples, if the run divides a file at random.

        Other runs that divide the same file have mostly the same training examples. The value is 0 for generated data,
        for a test that does not depend on the seed, and for runs of older versions.
        """
        if self._data.get("test_above") or self._data.get("test_below") or not self.results:
            return 0.0
        n_train = self.results.get("n_train")  # only recorded for files
        return self.results["n_test"] / n_train if n_train else 0.0

    @property
    def _data(self) -> dict[str, Any]:
        found = self.config.get("data")
        return found if isinstance(found, dict) else {}

    @property
    def setting(self) -> dict[str, Any]:
        """What the config says without the seed and the machine. The file of --data is named by its content if known.

        Runs of older versions did not record the content: then it is named by its path.
        """
        setting = setting_of(self.config)
        if (content := self.info.get("data_file_sha256")) is not None and isinstance(setting.get("data"), dict):
            setting["data"] = setting["data"] | {"file": f"sha256:{content}"}
        return setting

    @property
    def problem(self) -> str:
        """The name of the module of the problem."""
        return str(self.info.get("problem", "problem"))  # the first version did not write the name

    @property
    def label(self) -> str:
        """A short description of the config: that of the problem or, for older runs, the name of the folder."""
        return str(self.info.get("label", self.folder.name))[:200]

    @property
    def date(self) -> str:
        """When the run was started, in ISO 8601, or an empty string."""
        return str(self.info.get("started", ""))

    @property
    def changed(self) -> dict[str, Any] | None:
        """The options that differ from the preset `default`, by dotted path, or None for older runs."""
        return self.info.get("changed")

    @property
    def main_metric(self) -> tuple[str, str]:
        """The metric by which runs are compared, and whether small ("min") or large ("max") values are good.

        Older runs do not name it: then it is the first one that is not the loss.
        """
        if "main_metric" in self.info:
            name, direction = self.info["main_metric"]
            return str(name), str(direction)
        names = [name for name in (self.results or {}).get("test", {}) if name != "loss"]
        return (names or ["loss"])[0], "min"

    @property
    def is_finished(self) -> bool:
        """Whether the run has results that no process is about to replace."""
        return self.status == "finished" and self.results is not None

    @property
    def epochs(self) -> int:
        """The number of epochs that were trained and recorded."""
        trained = self.results.get("epochs_trained") if self.is_finished and self.results else None
        return len(self.rows()) if trained is None else int(trained)

    @property
    def epochs_planned(self) -> int | None:
        """The number of epochs in the config."""
        planned = self.config.get("train", {}).get("epochs")
        return planned if isinstance(planned, int) else None

    def rows(self) -> list[dict[str, float]]:
        """The rows of epoch_metrics.json. The list is empty if the file is missing or damaged."""
        path = self.folder / "epoch_metrics.json"
        try:
            found = path.stat()
        except OSError:
            return []
        return _rows(path, found.st_mtime_ns, found.st_size)

    def val_losses(self) -> dict[int, float]:
        """The validation losses by epoch."""
        return {int(row["epoch"]): row["val_loss"] for row in self.rows()}

    def test_metrics(self) -> dict[str, float]:
        """The test metrics of a finished run: `test_mae`, ..., and `test_unseen_mae`, ... without those of training."""
        metrics: dict[str, float] = {}
        if self.is_finished and self.results:
            for split in ("test", "test_unseen"):
                metrics |= {f"{split}_{name}": value for name, value in _numbers(self.results.get(split)).items()}
        return metrics

    def validation_metrics(self) -> dict[str, float]:
        """The metrics of the epoch with the lowest validation loss: `val_loss`, `val_mae`, ..."""
        best = min(self.rows(), key=lambda row: row["val_loss"], default={})
        return {name: value for name, value in _numbers(best).items() if name.startswith("val_")}

    def metrics(self) -> dict[str, float]:
        """All metrics by name, first those of the test."""
        return self.test_metrics() | self.validation_metrics()

    def predictions(self) -> "Columns":
        """The arrays of predictions.npz: targets and predictions on the test split, and what figures need.

        Raises:
            UnusableFileError: the file is missing or damaged.
        """
        from engine.datasets.archives import from_npz

        try:
            arrays = from_npz(read_bytes(self.folder / "predictions.npz"))
            if (
                not {"targets", "predictions"} <= arrays.keys()
                or arrays["targets"].shape[:1] != arrays["predictions"].shape[:1]
            ):
                raise UnusableFileError("without targets, or as many predictions")
            return arrays
        except (OSError, UnusableFileError) as error:
            raise UnusableFileError(
                f"{self.folder / 'predictions.npz'} is missing or damaged ({error}): run it again with --overwrite"
            ) from None

    def checkpoint(self, config: "Config") -> dict[str, Any] | None:
        """The newest state of its trainer, or None if it has not finished an epoch.

        Raises:
            UnusableFileError: there are checkpoints, but none can be used.
            ConfigError: this is not the config of the run.
        """
        from engine.run_folder.checkpoints import load_last

        return load_last(self.folder, config)

    def network(self, problem: "Problem[Any] | None" = None) -> "SavedNetwork":
        """The network with the weights of its best epoch, on the CPU. The default problem is that of `problem_of`.

        Raises:
            UnusableFileError: config.json or best.pt is missing or damaged, or was written for another network.
        """
        from engine.run_folder.checkpoints import load_network

        return load_network(self.folder, problem or problem_of(self.folder))


def read_info(folder: Path) -> dict[str, Any]:
    """Read the run_info.json of a run. The result is empty if there is no such file.

    Raises:
        UnusableFileError: the file is damaged.
    """
    path = folder / "run_info.json"
    try:
        info = read_json(path)
        if not isinstance(info, dict) or not _is_info(info):
            raise UnusableFileError(f"{path} is damaged")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except UnusableFileError as error:
        raise UnusableFileError(f"{error}: remove it to continue without it") from None
    return info


def problem_of(folder: Path, given: str | None = None) -> "Problem[Any]":
    """Load the problem of a run from the module that its run_info.json names: see load_saved_problem.

    Args:
        given: the name of the module, as the user gives it.

    Raises:
        RunError: run_info.json is damaged, or the module cannot be imported.
    """
    from engine.interface.find_problem import load_saved_problem

    name = str(read_info(folder).get("problem", "problem"))  # the first version did not write the name
    return load_saved_problem(name, folder, given)


def read_run(folder: Path) -> Run | None:
    """Read the files of a run. The result is None if the folder has no config.json."""
    try:
        if (config := read_or_empty(folder / "config.json", dict, _is_config)) is None:
            return None
        info = read_or_empty(folder / "run_info.json", dict, _is_info)
        results = read_or_empty(folder / "results.json", dict, _is_results)
    except OSError:  # for example, not a folder that may be read
        return None
    config = upgrade(config)
    status = "damaged" if {} in (config, info, results) else str((info or {}).get("status", "unknown"))
    of_sweep = is_file(folder.parent / "sweep.json")
    name = f"{folder.parent.name}/{folder.name}" if of_sweep else folder.name
    return Run(folder, name, config, info or {}, status, results or None)


def status_of(folder: Path) -> str:
    """How a run ended, as its run_info.json says, or an empty string. Its other files may be damaged or missing."""
    try:
        return str(read_info(folder).get("status", ""))
    except UnusableFileError:
        return ""


def read_or_empty(
    path: Path, kind: type, is_sound: Callable[[Any], bool] = lambda content: True, most: int = MOST_BYTES
) -> Any:
    """The content of a JSON file, None if there is no such file, or an empty `kind` if it is damaged."""
    try:
        content = read_json(path, most)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnusableFileError:
        return kind()
    return content if isinstance(content, kind) and is_sound(content) else kind()


def _is_config(config: dict[str, Any]) -> bool:
    with suppress(ValueError):
        upgrade(config)
        return isinstance(config.get("train", {}), dict) and isinstance(config.get("seed"), int)
    return False


# The types of what is read from run_info.json. Keys may be missing, and values may be null.
TYPES = {
    **dict.fromkeys(("status", "problem", "label", "started", "host", "git_commit", "torchrun", "wandb_id"), str),
    **dict.fromkeys(("data_sha256", "data_file_sha256", "problem_sha256", "trainer_sha256", "torch", "device"), str),
    **dict.fromkeys(("changed", "init_from"), dict),
    **dict.fromkeys(("main_metric", "earlier"), list),
    **dict.fromkeys(("pid", "hash_format"), int),
}


def _is_info(info: dict[str, Any]) -> bool:
    main = info.get("main_metric", ["", ""])
    are_typed = all(info.get(name) is None or isinstance(info[name], kind) for name, kind in TYPES.items())
    return are_typed and isinstance(main, list) and len(main) == 2


def _is_results(results: dict[str, Any]) -> bool:
    names = ("best_epoch", "epochs_trained", "n_train", "n_test")
    are_epochs = all(isinstance(results.get(name, 0), int) for name in names)
    return isinstance(results.get("test"), dict) and are_epochs


@lru_cache(maxsize=1)
def _rows(path: Path, mtime_ns: int, size: int) -> list[dict[str, float]]:
    """The rows in epoch_metrics.json. They are read once for all numbers in a line of a list."""
    rows = read_or_empty(path, list, most=MOST_BYTES_OF_LIST)
    return [row for row in rows or () if _is_row(row)]


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and "val_loss" in _numbers(row) and type(row.get("epoch")) is int and row["epoch"] > 0


def _numbers(values: Any) -> dict[str, float]:
    """The entries of a dictionary that are numbers, and whose squares are finite."""
    if not isinstance(values, dict):
        return {}
    return {name: v for name, v in values.items() if isinstance(v, int | float) and abs(v) < 1e150}
