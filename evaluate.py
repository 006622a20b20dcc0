# Command: keep.
"""Evaluate a saved run, or all networks of a sweep, on new data: other generator options, or the examples of a file.

python evaluate.py RUN --num-test 10000 --name more
python evaluate.py RUN --data measured.npz
python evaluate.py SWEEP                             all networks on the same data, and their ensemble
python evaluate.py RUN --help                        lists the options of the generator of the run, too
"""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.datasets.file_formats import read_columns
from engine.datasets.overlap import are_comparable, hash_inputs, load_hashes, unseen
from engine.datasets.splits import fingerprint, get_splits, report_check, require_memory_for
from engine.evaluation.ensembles import Network, Networks, NewData, compare_networks
from engine.evaluation.evaluation_request import Request, SweepRequest, parse_args, parse_sweep
from engine.evaluation.preconditions import (
    described,
    require_no_other,
    require_writable,
    status_of,
    warn_if_trained_on_a_file,
)
from engine.interface.base_problem import Columns, Problem
from engine.interface.returned_values import check_of, input_arrays, read_only, report_of
from engine.learning.distributed import group_from_environment
from engine.machine.atomic_files import inside, write_atomic, write_json
from engine.machine.exit_code import ExitCode, quick_exit
from engine.machine.hardware import default_num_threads, select_device
from engine.machine.repository import provenance
from engine.many_runs.comparison import Member
from engine.run_folder.changed_code import warn_if_changed
from engine.run_folder.figures_of_run import draw_if_possible
from engine.run_folder.find_run import run_folder
from engine.run_folder.saved_run import problem_of, read_info, read_run
from utils import print_line, warn

if TYPE_CHECKING:
    from engine.learning.standardized import Standardized


def load_run(run: str | Path, problem: Problem[Any] | None = None) -> tuple[Any, "Standardized"]:
    """Load the config of a run, and its network in evaluation mode on the CPU: inputs (B, ...) -> predictions (B, ...).

    Args:
        run: the folder of the run, or its name in checkpoints.
        problem: the problem of the run. It is only needed if that is neither a file of this repository nor imported.

    Raises:
        BadRequestError: the problem is needed.
        UnusableFileError: config.json or best.pt is missing or damaged, or was written for another network.
    """
    from engine.run_folder.checkpoints import load_network

    folder = run_folder(str(run)) or Path(run)
    saved = load_network(folder, problem or problem_of(folder))
    return saved.config, saved.model


def new_data(request: Request) -> tuple[Columns, str]:
    """Get the examples of an evaluation, and a phrase that says where they came from.

    Raises:
        RunError: they cannot be read or generated.
    """
    config = request.config
    if config.data.file is not None:
        return read_only(read_columns(request.problem, config, config.data.file)), f"read from {config.data.file}"
    splits, source = get_splits(request.problem, config, request.n_workers)
    return splits.test, source


def load_new_data(request: Request) -> NewData:
    """Get the examples of an evaluation, print where they came from, and let the problem check them.

    Raises:
        RunError: they cannot be read or generated, or generated data are wrong.
    """
    problem, config = request.problem, request.config
    columns, source = new_data(request)
    print_line(f"data {source}")
    check = check_of(problem, config, columns)
    report_check("new", check, is_external=config.data.file is not None)
    return NewData(columns, source, fingerprint([columns]), check.numbers)


def report_overlap(request: Request, result: Mapping[str, Any], where: str = "the training data") -> None:
    """If examples also occur in training, print a line. It is a warning if all do, or if they are from a file."""
    n, n_unseen, metrics = (result.get(key) for key in ("n", "n_unseen", "metrics_unseen"))
    if n is None or n_unseen is None or n_unseen == n:
        return
    others = f"; the other {n_unseen:,}: {_shown(metrics)}" if metrics else ""
    line = f"the inputs of {n - n_unseen:,} of these {n:,} examples also occur in {where}{others}"
    if n_unseen == 0 or request.config.data.file is not None:
        warn(f"warning: {line}")
    else:
        print_line(line)


def _shown(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def numbers_of(result: Mapping[str, Any]) -> str:
    """The metrics of a result, and the numbers of the problem's report, in words."""
    return _shown(result["metrics"] | {name: value for name, value in result.items() if isinstance(value, float)})


def evaluate_network(request: Request, data: NewData | None = None) -> Network:
    """Evaluate the network of a run. Nothing is written.

    Args:
        data: the examples, if they have been loaded for another run with the same options.

    Raises:
        RunError: the request cannot be met.
    """
    problem, config = request.problem, request.config
    require_writable(request.folder)
    warn_if_changed(problem, request.folder, training=False)

    import torch

    from engine.learning.prediction import evaluate, metrics_on_unseen, prepare
    from engine.learning.standardized import shapes_of
    from engine.run_folder.checkpoints import fit_to, generated_shapes, load_network

    saved = load_network(request.folder, problem)
    identity = {**described(config), "weights_sha256": saved.sha256}
    require_no_other(request, identity)
    device = select_device(config.device)
    status = status_of(request.folder, saved)
    if config.data.file is None:
        require_memory_for(problem, config, flags="--num-test")
        warn_if_trained_on_a_file(request, saved)
        fit_to(saved, config, generated_shapes(problem, config), request.subject)  # refuse a wrong shape early

    data = data or load_new_data(request)
    identity["data_sha256"] = data.sha256
    require_no_other(request, identity)
    model = fit_to(saved, config, shapes_of(problem, config, data.columns), request.subject).to(device)

    torch.set_num_threads(config.threads or default_num_threads())
    examples = prepare(problem, config, model, data.columns)
    metrics, predicted = evaluate(problem, config, model, examples)
    report = report_of(problem, config, {**data.columns, **predicted.others}, predicted.values)
    is_unseen, on_unseen = None, None
    if saved.config.train.fresh and status != "finished":  # the file has only the examples of the first epoch
        print_line("it is not known which examples occur in the training data: the run, which has --fresh, is not over")
    elif not are_comparable(read_info(request.folder), input_arrays(problem, config, data.columns)):
        print_line("it is not known which examples occur in the training data: an older version made the run")
    elif (train_hashes := load_hashes(request.folder)) is not None:
        is_unseen = unseen(train_hashes, hash_inputs(problem, config, data.columns))
        on_unseen, _ = metrics_on_unseen(problem, config, model, examples, is_unseen, predicted=predicted, baselines={})
    result = {
        "n": len(predicted.values),
        "metrics": metrics,
        "n_unseen": None if is_unseen is None else int(is_unseen.sum()),
        "metrics_unseen": on_unseen,
        **report,
        "check": data.check,
        "source": data.source,
        "epoch": saved.epoch,
        "run_status": status,
        **identity,
        **provenance(),
    }
    run = read_run(request.folder)
    overlap = 0.0 if run is None else run.overlap
    return Network(request, data, model, examples, result, predicted, is_unseen, overlap)


def write(network: Network) -> None:
    """Write the result of a network and its figure to the folder of its run."""
    request, examples = network.request, network.examples
    write_json(inside(request.folder, f"evaluations/{request.name}.json"), network.result)
    arrays = {**examples.columns, "targets": examples.physical_targets, **network.predicted.arrays()}
    figures = draw_if_possible(lambda: dict(islice(request.problem.figures(request.config, arrays).items(), 1)))
    for image in figures.values():
        write_atomic(inside(request.folder, f"evaluations/{request.name}.png"), image)


def evaluate_run(request: Request) -> dict[str, Any]:
    """Evaluate a run, write the result and its figure, and return the result.

    Raises:
        RunError: the request cannot be met.
    """
    network = evaluate_network(request)
    print_line(f"{network.result['n']:,} examples: {numbers_of(network.result)}")
    report_overlap(request, network.result)
    write(network)
    return network.result


def evaluate_sweep(asked: SweepRequest) -> dict[str, Any]:
    """Evaluate all finished networks of a sweep, write the results, and return that of the sweep.

    Raises:
        RunError: the request cannot be met. Nothing was written.
    """
    if asked.left_out:
        print_line(f"left out: {asked.left_out}")
    require_writable(asked.folder)
    for runs in asked.groups.values():
        for request in runs.values():
            require_no_other(request, described(request.config))  # early
    groups: dict[str, Networks] = {}
    known: dict[str, NewData] = {}
    for label, runs in asked.groups.items():
        data: NewData | None = None
        by_seed: dict[Member, Network] = {}
        for seed, request in runs.items():
            network = evaluate_network(request, data)
            data = known.setdefault(network.data.sha256, network.data)  # settings with equal data share them
            by_seed[seed] = network.without_tensors(data)
            print_line(f"{request.folder.name}: {numbers_of(network.result)}")
        groups[label] = by_seed
    networks = [network for by_seed in groups.values() for network in by_seed.values()]
    keys = ("weights_sha256", "data_sha256")
    identity = {"runs": {each.request.folder.name: {key: each.result[key] for key in keys} for each in networks}}
    require_no_other(asked, identity)
    result = compare_networks(asked, groups) | identity | provenance()
    for entry in {each["data_sha256"]: each for each in result["settings"].values()}.values():
        report_overlap(networks[0].request, entry, "the training data of at least one network")
    for network in networks:
        write(network)
    write_json(inside(asked.folder, f"evaluations/{asked.name}.json"), result)
    print_line(f"\n{result['table']}\n")
    return result


def main() -> None:
    """Do the evaluation that the command line requests, and end the program with its exit code."""
    with ExitCode() as exit_code:
        if group_from_environment().is_main:  # torchrun also starts other processes, which have nothing to do
            request = parse_sweep() or parse_args()
            exit_code.place = request.folder
            if isinstance(request, SweepRequest):
                evaluate_sweep(request)
            else:
                evaluate_run(request)
            result = request.folder / "evaluations" / request.name
            print_line("\n".join(f"{result}{end}" for end in (".json", ".png") if Path(f"{result}{end}").exists()))
    quick_exit(exit_code.code)


if __name__ == "__main__":
    main()
