"""A saved run, loaded again: its config, and its network with the best weights."""

from pathlib import Path

import checkpoint
from config import ExperimentConfig, load_config
from model import InPhysicalUnits, create_model
from options import ConfigError
from utils import UnusableFileError


def load_run(run_dir: str | Path) -> tuple[ExperimentConfig, InPhysicalUnits]:
    """The config of a run and its network, on the CPU and ready to be used: spins (B, L, L) int8 -> energies (B,).

    Raises:
        UnusableFileError: config.json or best.pt is missing, damaged, or of another network.
    """
    folder = Path(run_dir)
    if not (folder / "best.pt").is_file():
        raise UnusableFileError(f"{folder} has no best.pt: give the folder of a run that kept its weights")
    try:
        config = load_config(folder / "config.json")
        model = create_model(config.model, config.data.lattice_size)
        model.load_state_dict(checkpoint.load(folder / "best.pt", config)["model"])
    except ConfigError as error:
        raise UnusableFileError(str(error)) from None
    return config, model.eval().requires_grad_(False)
