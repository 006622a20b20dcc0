"""A saved run on new data: another lattice size, other temperatures, configurations from elsewhere.

python evaluate.py exact --lattice-size 32
python evaluate.py exact --temp-min 2 --temp-max 2.5 --num-test 10000 --name near_tc
python evaluate.py exact --data ising16.npz
"""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from command import run_folder
from config import OPTIONS, ExperimentConfig, load_config
from options import ConfigError, Parser, add_flags, check_name, flags_given, merge, one_line, validate
from utils import (
    BadRequestError,
    Interrupted,
    RunError,
    UnusableFileError,
    complain,
    leave,
    provenance,
    require_memory,
    say,
    select_device,
    stop_on_signals,
    write_atomic,
)

if TYPE_CHECKING:
    from data import Split
    from model import InPhysicalUnits


def load_run(run_dir: str | Path) -> tuple[ExperimentConfig, "InPhysicalUnits"]:
    """The config of a run and its network, on the CPU and ready to be used: spins (B, L, L) int8 -> predictions (B,).

    Raises:
        UnusableFileError: config.json or best.pt is missing, damaged, or of another network.
    """
    import checkpoint
    from model import create_model

    folder = Path(run_dir)
    if not (folder / "best.pt").is_file():
        raise UnusableFileError(f"{folder} has no best.pt: give the folder of a run that kept its weights")
    try:
        config = load_config(folder / "config.json")
        model = create_model(config.model, config.data.lattice_size)
        model.load_state_dict(checkpoint.load(folder / "best.pt", config)["model"])
    except ConfigError as error:
        raise UnusableFileError(str(error)) from None
    except (KeyError, RuntimeError) as error:
        raise UnusableFileError(
            f"{folder / 'best.pt'} has no weights of this network: {one_line(str(error))}"
        ) from None
    return config, model.eval().requires_grad_(False)


class Request(NamedTuple):
    """What one command line asks for."""

    folder: Path  # of the run
    config: ExperimentConfig  # the run's, with the data, seed, device and threads of the evaluation
    name: str  # of what is written


# What an evaluation may have otherwise than its run.
DATA_FLAGS = ("--lattice-size", "--num-test", "--temp-min", "--temp-max", "--sweeps", "--sampler", "--cache", "--seed")
FLAGS = {
    path: option for path, option in OPTIONS.items() if option.flag in (*DATA_FLAGS, "--data", "--device", "--threads")
}


def build_parser() -> Parser:
    """The parser of evaluate.py."""
    parser = Parser(
        prog="evaluate.py",
        usage="evaluate.py RUN [options]",
        description="Hold the network of a saved run against new data; the result goes to the folder of the run.",
    )
    parser.add_argument("run", metavar="RUN", help="the run, by name or folder")
    parser.add_argument("--name", help="name of the result (default: L and the lattice size, or that of the file)")
    defaults = dict.fromkeys((option.flag for option in FLAGS.values()), "the run's")
    defaults |= {"--seed": "the run's plus one", "--sweeps": "as the lattice needs", "--data": "none"}
    add_flags(parser, FLAGS, "evaluation", defaults)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Request:
    """What a command line asks for, complete and valid. A fault ends the program with one line and exit code 2."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    try:
        return _resolve(given)
    except ConfigError as error:
        parser.error(str(error))


def _resolve(given: dict[str, Any]) -> Request:
    folder = run_folder(given["run"])
    if folder is None:
        raise ConfigError(f"{given['run'][:100]}: is no run: give the name of one in checkpoints, or its folder")
    earlier = load_config(folder / "config.json")
    flags = flags_given(given, FLAGS)
    used = [option.flag for path, option in FLAGS.items() if ".".join(path) in given]
    file = flags.get("data", {}).get("file")
    if file is not None and (idle := [flag for flag in used if flag in DATA_FLAGS]):
        raise ConfigError(f"{', '.join(idle)} does nothing with --data, all of which is taken: drop it")
    values = merge(asdict(earlier), {"seed": (earlier.seed + 1) % 2**64, "data": {"file": None, "sweeps": None}})
    # Of the network and what it predicts the run's config tells; what is looked at need not fit them together anew.
    values = merge(values, {"task": "energy", "model": {"kernel_size": 1}})
    config = validate(ExperimentConfig, merge(values, flags), source=str(folder / "config.json"), flags=flags)
    name = str(given.get("name", Path(file).stem if file else f"L{config.data.lattice_size}"))
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"--name {name}: {error}") from None
    return Request(folder, config, name)


def new_data(request: Request) -> tuple["Split", str]:
    """The configurations that are asked for, and where they came from.

    Raises:
        RunError: they cannot be had.
    """
    import data
    from datafiles import get_splits, read_configurations

    wanted = replace(request.config.data, num_train=1, num_val=1)
    if wanted.file is not None:
        return read_configurations(wanted.file), f"taken from {wanted.file}"
    require_memory(data.memory_needed(wanted))
    splits, source = get_splits(wanted, request.config.seed, request.config.threads)
    return splits.test, source


def require_size(config: ExperimentConfig, lattice_size: int) -> None:
    """Raise BadRequestError unless the network of a run takes lattices of that size."""
    from model import ARCHITECTURES

    architecture, trained_on = config.model.architecture, config.data.lattice_size
    if architecture == "cnn" and config.model.kernel_size > lattice_size:
        kernel = f"{config.model.kernel_size} sites wide"
        raise BadRequestError(f"--lattice-size {lattice_size}: the network's kernels are {kernel}: take no smaller one")
    if lattice_size != trained_on and not ARCHITECTURES[architecture].any_lattice_size:
        able = ", ".join(name for name, network in ARCHITECTURES.items() if network.any_lattice_size)
        raise BadRequestError(
            f"--lattice-size {lattice_size}: {architecture} takes the size it was trained on alone, {trained_on}: "
            f"train {able}, which takes any, or another run at that size"
        )


def evaluate_run(request: Request) -> dict[str, Any]:
    """Evaluate, and write the result and its figure; return the result.

    Raises:
        RunError: what was asked for cannot be done.
    """
    import numpy as np  # noqa: F401  # torch goes on if it is interrupted while it loads NumPy, with half of it
    import torch

    import data
    import plots
    from ising import exact, lattice
    from logger import write_json
    from task import TASKS, by_temperature, predict

    place = request.folder / "evaluations"
    if not os.access(place if place.exists() else request.folder, os.W_OK) or place.is_file():
        raise PermissionError(f"{place} cannot be written to")
    config, model = load_run(request.folder)
    device = select_device(request.config.device)
    if request.config.data.file is None:
        require_size(config, request.config.data.lattice_size)  # before anything is drawn
    split, source = new_data(request)
    require_size(config, size := split.spins.shape[-1])
    say(f"data {source}")
    check = data.check_equilibrium(split)
    say(f"energy {check.energy_z:+.2f} standard errors from exact, chi2/dof {check.chi2_per_dof:.2f}")
    data.require_equilibrium("new", check, made_here=request.config.data.file is None)

    torch.set_num_threads(request.config.threads or torch.get_num_threads())
    task = TASKS[config.task](size**2, model.mean.item(), model.std.item())
    examples = task.examples(split.spins, split.temperatures, device)
    predictions = predict(model.to(device), examples)
    result = {
        "lattice_size": size,
        "n": len(predictions),
        "metrics": task.metrics(task.sums(predictions, examples.targets)),
        "by_temperature": by_temperature(task, predictions, examples),
        "equilibrium": check._asdict(),
        "source": source,
        "seed": request.config.seed,
        "data": asdict(request.config.data),
        "weights_sha256": hashlib.sha256((request.folder / "best.pt").read_bytes()).hexdigest(),
        **provenance(),
    }
    if config.task == "energy":
        errors = predictions.cpu().double() - examples.targets.cpu().double()
        result["worst_error"] = errors.abs().max().item() * size**2  # of a total energy, in J
        figure = plots.error_by_temperature(split.temperatures, errors.numpy())
    else:
        # The best there is for whoever expects these temperatures; the network expects those of its training.
        bayes = exact.phase_log_odds(lattice.energy(split.spins), split.temperatures, size)
        result["bayes"] = task.metrics(task.sums(torch.from_numpy(bayes), examples.targets))
        answers = {"network": predictions.cpu().numpy(), "Bayes": bayes}
        ceiling = plots.bayes_ceiling(asdict(request.config.data))
        figure = plots.phase_by_temperature(split.temperatures, answers, ceiling)
    place.mkdir(exist_ok=True)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    write_atomic(place / f"{request.name}.png", picture.getvalue())
    write_json(place / f"{request.name}.json", result)
    return result


def summary(result: dict[str, Any]) -> str:
    """The result in a line or two."""
    words = [f"{name} {value:.4g}" for name, value in result["metrics"].items()]
    lines = [f"{result['n']:,} configurations of {result['lattice_size']}x{result['lattice_size']}: {', '.join(words)}"]
    if "worst_error" in result:
        lines.append(f"the worst total energy is {result['worst_error']:.2g} J off; below 2 it is nearest to its level")
    return "\n".join(lines)


def main() -> int:
    """Evaluate what the command line asks for; return the exit code."""
    stop_on_signals()
    try:
        request = parse_args()
        say(summary(evaluate_run(request)))
        say(f"{request.folder / 'evaluations' / request.name}.json")
    except RunError as error:
        complain(f"evaluate.py: error: {one_line(str(error))}")
        return error.exit_code
    except OSError as error:
        complain(f"evaluate.py: error: {error}: make room on the disk, and the run a place to write")
        return 5
    except Interrupted as error:
        complain("evaluate.py: interrupted")
        return error.exit_code
    return 0


if __name__ == "__main__":
    leave(main())
