# Experiment: yours, to replace.
"""The data of the Ising problem: generated, and compared with exact energies. data_files.py reads them from a file.

The columns are `spins` (N, L, L) int8 in {-1, +1} and `temperatures` (N,) float64 in J / k_B. Each generated
configuration is the last one of an independent Markov chain at its own temperature.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from engine.interface import Check, Columns
from engine.machine.errors import BadRequestError
from engine.machine.hardware import available_cores
from ising import exact, lattice, metropolis
from ising.statistics import temperature_bins
from utils import print_line

if TYPE_CHECKING:
    from config import DataConfig, ExperimentConfig

SPINS_PER_BLOCK = 2**18  # chains and temporary arrays of the NumPy sampler fit into the cache of a core


def generate(config: "ExperimentConfig", n: int, seed: np.random.SeedSequence) -> Columns:
    """Sample n configurations from independent chains, at temperatures uniform between temp_min and temp_max.

    Raises:
        BadRequestError: the compiled sampler does not work on this machine.
    """
    options = config.data
    temperature_seed, chain_seed = lattice.children(seed, 2)
    temperatures = np.random.default_rng(temperature_seed).uniform(options.temp_min, options.temp_max, n)
    if n == 0:
        spins = np.empty((0, options.lattice_size, options.lattice_size), np.int8)
    elif options.sampler == "numpy":
        spins = _sample_in_blocks(metropolis.sample, options, temperatures, chain_seed)
    else:
        spins = _sample_compiled(options, temperatures, chain_seed, config.threads)

    return {"spins": spins, "temperatures": temperatures}


def n_sweeps(options: "DataConfig") -> int:
    """The number of sweeps before a configuration is stored."""
    if options.sweeps is not None:
        return options.sweeps
    return metropolis.equilibration_sweeps(options.lattice_size, clusters="wolff" in options.sampler)


def _progress(options: "DataConfig", n: int) -> "tqdm[Any]":
    total = n * options.lattice_size**2 * n_sweeps(options)
    return tqdm(total=total, desc="sampling", unit=" flips", unit_scale=True, delay=2, leave=False, disable=None)


def _sample_compiled(
    options: "DataConfig", temperatures: NDArray[np.float64], seed: np.random.SeedSequence, n_threads: int | None
) -> NDArray[np.int8]:
    try:
        # Imported here, because Numba takes half a second, for which a run with cached data need not wait.
        from ising import multispin, wolff

        clusters = options.sampler == "multispin_wolff"
        ready = wolff.get_ready() if options.sampler == "wolff" else multispin.get_ready(clusters=clusters)
        if ready is not None:
            print_line(f"compiled the sampler in {ready:.1f} s, once for all runs")
    except Exception as error:  # Numba is missing, or a file in its own cache is damaged
        raise BadRequestError(
            f"--sampler {options.sampler}: Numba fails ({error!r}): check its settings, reinstall numba, remove "
            "ising/__pycache__ if it is damaged, or use --sampler numpy, which is slower"
        ) from None
    if options.sampler == "wolff":
        return _sample_in_blocks(wolff.sample, options, temperatures, seed)
    n, n_threads = n_sweeps(options), n_threads or available_cores()
    with _progress(options, len(temperatures)) as bar:
        return multispin.sample(
            options.lattice_size, temperatures, n, seed, n_threads, clusters=clusters, advance=bar.update
        )


def _sample_in_blocks(
    sample: Callable[..., NDArray[np.int8]],
    options: "DataConfig",
    temperatures: NDArray[np.float64],
    seed: np.random.SeedSequence,
) -> NDArray[np.int8]:
    """Sample with a function that uses one thread and does not report its progress."""
    size, sweeps = options.lattice_size, n_sweeps(options)
    spins = np.empty((len(temperatures), size, size), dtype=np.int8)
    block = max(1, SPINS_PER_BLOCK // size**2)
    with _progress(options, len(temperatures)) as bar:
        starts = range(0, len(temperatures), block)
        for start, child in zip(starts, lattice.children(seed, len(starts)), strict=True):
            chains = slice(start, start + block)
            spins[chains] = sample(size, temperatures[chains], sweeps, child)
            bar.update(spins[chains].size * sweeps)
    return spins


class Equilibrium(NamedTuple):
    """The difference between the energies of a split and exact theory, in standard errors."""

    energy_z: float  # of the mean energy of all configurations
    chi2_per_dof: float  # mean of z^2 over temperature bins
    largest_bin_z: float  # of the temperature bin with the largest |z|


def check_equilibrium(columns: Columns) -> Equilibrium:
    """Compare the energies of a split with Kaufman's exact U(T) and C(T) for this lattice, chain by chain.

    z = sum_i (E_i - U(T_i)) / sqrt(sum_i T_i^2 C(T_i) + 8^2), for all chains and for those of each temperature bin. In
    the ground state, flipping one spin costs 8 J. The term 8^2 keeps z small far below T_c: without it, one flipped
    spin where 0.01 are expected would be a deviation of ten standard errors. For bins with few or cold chains, this
    term makes z and chi-square slightly too small.
    """
    spins, temperatures = columns["spins"], columns["temperatures"]
    n_sites = spins[0].size
    order = np.argsort(temperatures)
    temperatures = temperatures[order]
    parts = np.array_split(temperatures, 1 + len(order) // 4096)  # kaufman needs 2 L numbers per temperature
    energy, specific_heat = np.hstack([exact.kaufman(part, spins.shape[-1]) for part in parts])
    excess = lattice.energy(spins)[order] - n_sites * energy  # (N,)
    variance = n_sites * temperatures**2 * specific_heat  # (N,): T^2 C is the variance of E in equilibrium
    bins = temperature_bins(temperatures)
    z = np.array([excess[chains].sum() / np.sqrt(variance[chains].sum() + 8**2) for chains in bins])
    total = excess.sum() / np.sqrt(variance.sum() + 8**2)
    return Equilibrium(float(total), float(np.mean(z**2)), float(z[np.argmax(np.abs(z))]))


def equilibrium_fault(found: Equilibrium) -> str:
    """What is wrong with the energies: "" if they are at most 5 standard errors from exact, and 6 in each bin.

    Correct samples fail in less than one of 10^3 runs, and in less than one of 10^5 unless there are few chains, all at
    low temperature.
    """
    if abs(found.energy_z) <= 5 and abs(found.largest_bin_z) <= 6:
        return ""
    return (
        f"not in equilibrium: the energy is {found.energy_z:+.1f} standard errors from exact (at most 5), "
        f"{found.largest_bin_z:+.1f} in one temperature bin (at most 6)"
    )


def check(config: "ExperimentConfig", columns: Columns) -> Check:
    """Check the energies of a split. Those of a file have been checked as a whole, when data_files.py read it."""
    found = check_equilibrium(columns)
    fault = equilibrium_fault(found) if config.data.file is None else ""
    summary = f"energy {found.energy_z:+.2f} standard errors from exact, chi2/dof {found.chi2_per_dof:.2f}"
    return Check(found._asdict(), f"{fault}: raise --sweeps, or leave it out" if fault else "", summary)


def examples_around_tc(config: "ExperimentConfig", test: Columns) -> NDArray[np.integer]:
    """Choose configurations below, at and above T_c: indices (3, 4), one row per temperature.

    The first temperature is halfway between the lowest one and T_c, the third halfway between T_c and the highest one.
    If T_c is outside the range, the middle of the range replaces it. If the split has fewer than 12 configurations,
    there are fewer columns.
    """
    temperatures = test["temperatures"]
    coldest, hottest = temperatures.min(), temperatures.max()
    centre = exact.T_CRITICAL if coldest < exact.T_CRITICAL < hottest else (coldest + hottest) / 2
    wanted = np.array([(coldest + centre) / 2, centre, (hottest + centre) / 2])
    nearest: NDArray[np.intp] = np.abs(temperatures - wanted[:, None]).argsort(axis=1)
    return nearest[:, : max(1, min(4, len(temperatures) // 3))]
