"""From physics to arrays: splits drawn from independent chains, and the check that they are in equilibrium.

This file and ising/ are what a reader replaces for a problem of their own.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from config import DataConfig, Sampler
from ising import exact, lattice, metropolis
from utils import BadRequestError, say

SPINS_PER_BLOCK = 2**18  # of the NumPy sampler: chains that fit a core's cache, and whose temporaries are small


@dataclass(frozen=True)
class Split:
    """Configurations, each the last of a chain of its own, at a temperature of its own."""

    spins: NDArray[np.int8]  # (N, L, L) in {-1, +1}
    temperatures: NDArray[np.float64]  # (N,) in J / k_B


class Splits(NamedTuple):
    train: Split
    val: Split
    test: Split


class Equilibrium(NamedTuple):
    """How far the energies of a split are from exact theory, in standard errors."""

    energy_z: float  # all chains together
    chi2_per_dof: float  # by temperature
    largest_bin_z: float  # in the temperature bin that is off most


def memory_needed(config: DataConfig) -> int:
    """Bytes that the data of a run take: a byte a spin, and up to four copies while energies are summed up.

    Later the copy on the device and the one that is shuffled for an epoch have their room.
    """
    n_configurations = config.num_train + config.num_val + config.num_test
    return 5 * n_configurations * config.lattice_size**2


def working_sampler(name: Sampler) -> Sampler:
    """The sampler of that name, ready to run; if Numba is missing, the one that does without."""
    if name == "multispin":
        try:
            from ising import multispin  # half a second, which data from the cache need not wait for

            if (seconds := multispin.get_ready()) is not None:
                say(f"compiled the sampler in {seconds:.1f} s, once for all runs")
        except ImportError as error:
            say(f"Numba cannot be imported ({error}): drawing with the sampler numpy, which is slower")
            return "numpy"
        except Exception as error:  # Numba keeps files, and trusts those that it finds
            say(f"Numba fails ({error!r}; a damaged __pycache__?): drawing with the sampler numpy, which is slower")
            return "numpy"
    return name


def make_splits(config: DataConfig, seed: int, n_threads: int | None = None) -> Splits:
    """Draw the three splits: a function of (config, seed) alone, and each split of its own size alone.

    The work is shared among so many threads; without a number, among as many as there are cores.
    """
    sizes = (config.num_train, config.num_val, config.num_test)
    children = np.random.SeedSequence(seed).spawn(len(sizes))
    n_updates = sum(sizes) * config.lattice_size**2 * n_sweeps(config)
    with tqdm(
        total=n_updates, desc="sampling", unit=" flips", unit_scale=True, delay=2, leave=False, disable=None
    ) as bar:
        return Splits(
            *(_draw(config, n, child, n_threads, bar.update) for n, child in zip(sizes, children, strict=True))
        )


def n_sweeps(config: DataConfig) -> int:
    """Sweeps before a configuration is taken."""
    return metropolis.equilibration_sweeps(config.lattice_size) if config.sweeps is None else config.sweeps


def _draw(
    config: DataConfig, n: int, seed: np.random.SeedSequence, n_threads: int | None, advance: Callable[[int], object]
) -> Split:
    temperature_seed, chain_seed = seed.spawn(2)
    temperatures = np.random.default_rng(temperature_seed).uniform(config.temp_min, config.temp_max, n)
    size, sweeps = config.lattice_size, n_sweeps(config)
    if config.sampler == "multispin":
        from ising import multispin

        spins = multispin.sample(size, temperatures, sweeps, chain_seed, n_threads, advance=advance)
        return Split(spins, temperatures)
    spins = np.empty((n, size, size), dtype=np.int8)
    block = max(1, SPINS_PER_BLOCK // size**2)
    for start in range(0, n, block):
        chains = slice(start, start + block)
        spins[chains] = metropolis.sample(size, temperatures[chains], sweeps, chain_seed.spawn(1)[0])
        advance(spins[chains].size * sweeps)
    return Split(spins, temperatures)


def check_equilibrium(split: Split, n_bins: int = 10) -> Equilibrium:
    """Hold the energies of a split against Kaufman's exact U(T) and C(T) for this lattice, chain by chain.

    z = sum_i (E_i - U(T_i)) / sqrt(sum_i T_i^2 C(T_i) + 8^2), for all chains and for those of each of `n_bins`
    neighbourhoods in temperature. 8 J, the price of one flipped spin in the ground state, is the resolution of an
    energy: without it one excitation where 0.01 is expected, far below T_c, would count as ten standard errors. It
    makes z, and with it chi-square, a little too small where a bin holds few or cold chains.
    """
    n_sites = split.spins[0].size
    order = np.argsort(split.temperatures)
    temperatures = split.temperatures[order]
    parts = np.array_split(temperatures, 1 + len(order) // 4096)  # Kaufman's sums take 2 L numbers a temperature
    energy, specific_heat = np.hstack([exact.kaufman(part, split.spins.shape[-1]) for part in parts])
    excess = lattice.energy(split.spins)[order] - n_sites * energy  # (N,)
    variance = n_sites * temperatures**2 * specific_heat  # (N,): T^2 C is the variance of E in equilibrium
    bins = np.array_split(np.arange(len(order)), min(n_bins, len(order)))
    z = np.array([excess[chains].sum() / np.sqrt(variance[chains].sum() + 8**2) for chains in bins])
    total = excess.sum() / np.sqrt(variance.sum() + 8**2)
    return Equilibrium(float(total), float(np.mean(z**2)), float(z[np.argmax(np.abs(z))]))


def require_equilibrium(name: str, check: Equilibrium, made_here: bool = True) -> None:
    """Raise BadRequestError if the energies of a split are off: beyond 5 standard errors, 6 in one temperature bin.

    With honest samples this happens in less than one of 10^3 runs; of 10^5, unless the chains are few and cold. About
    data that were made elsewhere, whoever made them may know better: there is a warning and no error.
    """
    if abs(check.energy_z) <= 5 and abs(check.largest_bin_z) <= 6:
        return
    fault = (
        f"the {name} split is not in equilibrium: its energy is {check.energy_z:+.1f} standard errors from exact "
        f"(at most 5), {check.largest_bin_z:+.1f} in a temperature bin (at most 6)"
    )
    if made_here:
        raise BadRequestError(f"{fault}: raise --sweeps, or leave it out")
    say(f"warning: {fault}")


def examples_around_tc(split: Split, n: int = 4) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Configurations to look at: the n nearest to a temperature below, at and above T_c, if the split has them.

    The outer two temperatures lie halfway to the coldest and the hottest of the split, from T_c or, if all lie on one
    side of it, from the middle.

    Returns:
        spins (3, n, L, L) int8, temperatures (3, n) in J / k_B; n is less if the split has not three times as many.
    """
    coldest, hottest = split.temperatures.min(), split.temperatures.max()
    centre = exact.T_CRITICAL if coldest < exact.T_CRITICAL < hottest else (coldest + hottest) / 2
    wanted = np.array([(coldest + centre) / 2, centre, (hottest + centre) / 2])
    chosen = np.abs(split.temperatures - wanted[:, None]).argsort(axis=1)[:, : max(1, min(n, len(split.spins) // 3))]
    return split.spins[chosen], split.temperatures[chosen]


def fingerprint(splits: Splits) -> str:
    """SHA-256 of all spins and temperatures: equal if and only if the data are."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.spins.tobytes())
        digest.update(split.temperatures.astype("<f8").tobytes())
    return digest.hexdigest()
