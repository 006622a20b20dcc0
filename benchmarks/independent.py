"""Time of one core per independent configuration at T_c, compared with the best algorithms of other packages.

`python -m benchmarks.sampler --only independent` runs this part of the benchmark.

The sampler of this project (multispin) starts one chain per configuration and runs the automatic number of sweeps, so
its configurations are independent. Its cost is the wall time divided by the number of configurations.

The other packages run one chain in equilibrium. n successive configurations are worth n / (2 tau) independent ones,
where tau is the integrated autocorrelation time of the energy or of |m|, whichever is longer. The cost is 2 tau times
the time per step. Each repetition first times steps of the chain and then records a series. tau is estimated from the
series of all repetitions together. The time to equilibrate the chain is not counted.

- mcising runs Metropolis, Wolff or Swendsen-Wang. Its sweep of Wolff is one cluster. The timed steps run in its core,
  without measurements. The chains start ordered.
- peapods adds a cluster update to a Metropolis sweep. A step is a sweep and one Wolff cluster, its fastest option: with
  Swendsen-Wang, an independent configuration took 1.5 to 2 times as long for L = 8 to 128. peapods only returns
  averages over a run. Runs of one step return the values after that step, and give a series. Longer runs are timed.
  They include its measurements, which cannot be turned off. The chains start random, and equilibrate by Swendsen-Wang.
  There is only one chain per size: peapods accepts no seed, so a second chain would repeat the first.

The mean energy of every series is compared with Kaufman's exact energy.
"""

import functools
import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ising import exact, lattice, metropolis, multispin
from ising.exact import T_CRITICAL
from ising.statistics import autocorrelation_time

SIZES = (8, 16, 32, 64, 128, 256)
N_REPETITIONS = 5
MIN_SECONDS = 0.3  # duration of the timed steps of a repetition
MIN_SPINS = 1e7  # number of spins times steps in a series: on small lattices, longer series take little time
OURS = "multispin"

Floats = NDArray[np.float64]


class Chain(Protocol):
    """A Markov chain at T_c."""

    def advance(self, n_steps: int) -> None: ...

    def record(self, n_steps: int) -> Floats:
        """Advance, and return the energy per spin and |m| after each step: (2, n_steps)."""
        ...


class Mcising:
    """A chain of mcising, which starts ordered."""

    def __init__(self, algorithm: str, size: int) -> None:
        from mcising._core import IsingSimulation

        self.simulation = IsingSimulation(size, 1.0, 0.0, 0.0, 0.0, 1, algorithm, "square")
        self.simulation.set_spins(np.ones((size, size), np.int8))

    def advance(self, n_steps: int) -> None:
        self.simulation.sweep(n_steps, temperature=T_CRITICAL)

    def record(self, n_steps: int) -> Floats:
        found = self.simulation.production_sweeps(n_steps, 1, temperature=T_CRITICAL, store_configs=False)
        return np.array([found["energies"], np.abs(found["magnetizations"])])


class Peapods:
    """A chain of peapods, equilibrated from a random start by Swendsen-Wang. Its energies have the opposite sign."""

    def __init__(self, size: int) -> None:
        import peapods

        self.model = peapods.Ising((size, size), temperatures=np.array([T_CRITICAL]))
        self._run(200, "sw")

    def _run(self, n_steps: int, cluster_mode: str) -> tuple[float, float]:
        options = {"cluster_update_interval": 1, "warmup_ratio": 0.0, "sequential": True}
        with np.errstate(divide="ignore", invalid="ignore"):  # its Binder cumulant, where m = 0
            found = self.model.sample(n_steps, cluster_mode=cluster_mode, **options)
        return -found["energies"][0], math.sqrt(found["mags2"][0])

    def advance(self, n_steps: int) -> None:
        self._run(n_steps, "wolff")

    def record(self, n_steps: int) -> Floats:
        return np.array([self._run(1, "wolff") for _ in range(n_steps)]).T


class Algorithm(NamedTuple):
    """How to start a chain, and the necessary length of its series: tau is about tau_8 (L / 8)^z."""

    start: Callable[[int], Chain]  # takes the lattice size
    tau_8: float  # steps
    z: float
    n_taus: int  # length of the series of one repetition, in units of tau
    sizes: tuple[int, ...] = SIZES

    def tau(self, size: int) -> float:
        return self.tau_8 * math.pow(size / 8, self.z)

    def n_steps(self, size: int) -> int:
        return math.ceil(max(self.n_taus * self.tau(size), MIN_SPINS / size**2))


# The names are keys in results/sampler.json. Metropolis is slow: its series are shorter, and end at L = 128.
ALGORITHMS = {
    "mcising Metropolis": Algorithm(functools.partial(Mcising, "metropolis"), 3.1, 2.0, 400, SIZES[:-1]),
    "mcising Wolff": Algorithm(functools.partial(Mcising, "wolff"), 1.7, 0.55, 1500),
    "mcising Swendsen-Wang": Algorithm(functools.partial(Mcising, "swendsen_wang"), 2.6, 0.32, 1500),
    "peapods Metropolis + Wolff": Algorithm(Peapods, 1.05, 0.5, 1500),
}


def run_chain(chain: Chain, n_steps: int) -> tuple[float, Floats]:
    """Time steps of a chain, then record a series: seconds per step, series (2, n_steps)."""
    n_batch, n_timed = math.ceil(n_steps / 5), 0
    start = time.perf_counter()
    while (seconds := time.perf_counter() - start) < MIN_SECONDS:
        chain.advance(n_batch)
        n_timed += n_batch
    return seconds / n_timed, chain.record(n_steps)


def run_ours(size: int, seed: int) -> tuple[float, Floats]:
    """Seconds per configuration, and energies per spin and |m| of independent configurations: (2, N)."""
    n_sweeps = metropolis.equilibration_sweeps(size)
    n_chains = 64 * math.ceil(MIN_SECONDS * 1e10 / (64 * n_sweeps * size**2))  # at 1e10 attempted flips per second
    temperatures = np.full(n_chains, T_CRITICAL)
    start = time.perf_counter()
    spins = multispin.sample(size, temperatures, n_sweeps, seed=seed, n_threads=1)
    seconds = time.perf_counter() - start
    return seconds / n_chains, np.array([lattice.energy(spins) / size**2, np.abs(lattice.magnetization(spins))])


def summarize(name: str, size: int, seconds: list[float], series: Floats) -> dict[str, Any]:
    """The results of all repetitions. series: (2, repetitions, steps). A step of multispin is a configuration."""
    energies = series[0]
    taus = [(0.5, 0.0), (0.5, 0.0)] if name == OURS else [autocorrelation_time(values) for values in series]
    error = float(np.std(energies)) * math.sqrt(2 * taus[0][0] / energies.size)
    excess = float(np.mean(energies) - exact.kaufman(T_CRITICAL, size)[0])
    return {
        "size": size,
        "name": name,
        "seconds_per_step": seconds,
        "n_steps": energies.shape[1],
        "tau_energy": taus[0],
        "tau_magnetization": taus[1],
        "energy_z": excess / error,
    }


def measure(scale: float) -> dict[str, Any]:
    """Make all measurements on one core. For tests, scale < 1 shortens the series and omits L >= 128."""
    multispin.get_ready()
    sizes = SIZES if scale == 1 else SIZES[:4]
    chains: dict[tuple[int, str], Chain] = {}
    found: dict[tuple[int, str], list[tuple[float, Floats]]] = {}
    for repetition in range(N_REPETITIONS):
        for size in sizes:
            found.setdefault((size, OURS), []).append(run_ours(size, repetition))
            for name, algorithm in ALGORITHMS.items():
                key = size, name
                if key not in chains and size in algorithm.sizes:
                    chains[key] = algorithm.start(size)
                    chains[key].advance(math.ceil(20 * algorithm.tau(size)))
                if key in chains:
                    result = run_chain(chains[key], round(scale * algorithm.n_steps(size)))
                    found.setdefault(key, []).append(result)
            print(f"independent configurations, repetition {repetition + 1}, L = {size}", file=sys.stderr)
    cases = []
    for (size, name), results in found.items():
        seconds, series = zip(*results, strict=True)
        cases.append(summarize(name, size, list(seconds), np.stack(series, axis=1)))
    return {"scale": scale, "n_repetitions": N_REPETITIONS, "cases": cases}


def estimate(seconds: Floats, *cases: dict[str, Any]) -> tuple[float, float]:
    """Median over repetitions, with an error that combines their spread and the errors of tau of the cases.

    The spread is the interquartile range / 1.35, which is the standard deviation of a normal distribution.
    """
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    taus = [slower_tau(case) for case in cases]
    return median, median * math.hypot((high - low) / 1.35 / median, *(error / tau for tau, error in taus))


def slower_tau(case: dict[str, Any]) -> tuple[float, float]:
    """The longer autocorrelation time, with its error."""
    tau, error = max(case["tau_energy"], case["tau_magnetization"])
    return tau, error


def milliseconds(case: dict[str, Any]) -> Floats:
    """Time per independent configuration in each repetition."""
    return 2e3 * slower_tau(case)[0] * np.array(case["seconds_per_step"])


def cost(case: dict[str, Any]) -> tuple[float, float]:
    """Milliseconds per independent configuration, with its error."""
    return estimate(milliseconds(case), case)


def ratio(case: dict[str, Any], reference: dict[str, Any]) -> tuple[float, float]:
    """Cost relative to a reference, with its error. The ratio is computed within each repetition."""
    return estimate(milliseconds(case) / milliseconds(reference), case, reference)


def by_size(results: dict[str, Any]) -> dict[int, dict[str, dict[str, Any]]]:
    """The cases by lattice size and name."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for case in results["independent"]["cases"]:
        found.setdefault(case["size"], {})[case["name"]] = case
    return found


def with_error(value: float, error: float) -> str:
    """A value and its error, rounded to two digits of the error."""
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"


def fastest(cases: dict[str, dict[str, Any]]) -> str:
    """The faster of multispin and the best of the others, and by which factor, or that they agree."""
    rival = min((name for name in cases if name != OURS), key=lambda name: ratio(cases[name], cases[OURS]))
    value, error = ratio(cases[rival], cases[OURS])
    if abs(value - 1) < 3 * error:
        return f"{OURS} and {rival} agree within three errors"
    first, second = (OURS, rival) if value > 1 else (rival, OURS)
    return f"{first}, by a factor of {with_error(*ratio(cases[second], cases[first]))}"


def table(results: dict[str, Any]) -> str:
    """Milliseconds per independent configuration, and the fastest algorithm."""
    names = [OURS, *ALGORITHMS]
    lines = [f"| ms of one core, at T_c | {' | '.join(names)} | fastest |", "|---|" + "---:|" * len(names) + "---|"]
    for size, cases in by_size(results).items():
        cells = [with_error(*cost(cases[name])) if name in cases else "" for name in names]
        lines.append(f"| {size}x{size} | {' | '.join(cells)} | {fastest(cases)} |")
    found = results["independent"]
    worst = max(abs(case["energy_z"]) for case in found["cases"])
    lines += ["", f"- largest deviation of a mean energy from the exact one: {worst:.1f} standard errors"]
    if found["scale"] != 1:
        lines.append(f"- provisional: series of {found['scale']:g} times the full length, without L = 128 and 256")
    return "\n".join(lines)


def plot(axes: Any, results: dict[str, Any]) -> None:
    """Plot costs relative to multispin against the lattice size."""
    cases = by_size(results)
    axes.axhline(1, color="C0", label=OURS)
    for k, name in enumerate(ALGORITHMS):
        sizes = np.array([size for size in cases if name in cases[size]])
        values, errors = np.transpose([ratio(cases[size][name], cases[size][OURS]) for size in sizes])
        shift = 1 + 0.03 * (k - 1.5)  # so error bars do not overlap
        axes.errorbar(sizes * shift, values, errors, fmt=".-", color=f"C{k + 1}", lw=1, capsize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel="L", ylabel="time relative to multispin")
    axes.set_title("time of one core per independent configuration at $T_c$ (above 1: multispin is faster)")
    axes.set_xticks(list(cases), [str(size) for size in cases])
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0.01, None)
    axes.legend(loc="lower left")
