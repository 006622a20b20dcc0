"""Time of one core per independent configuration at T_c, compared with the best algorithms of other packages.

`python -m benchmarks.sampler --only independent` runs this part of the benchmark.

A Markov chain in equilibrium is measured after every step. n successive measurements are worth n / (2 tau) independent
configurations, where tau is the integrated autocorrelation time of the energy or of |m|, whichever is longer. The cost
of a configuration is 2 tau times the time per step of one chain. tau is estimated from the series of all repetitions
together. These are the samplers of this project:

- `multispin`: one configuration of each chain, after the automatic number of sweeps. Configurations are independent, so
  the cost is the wall time divided by their number.
- `multispin series` and `multispin_wolff series`: measurements of running chains. A step consists of a few sweeps, or
  of one sweep and one cluster of each chain. The time includes the equilibration of the chains and the measurements.
- `wolff`: a step is one cluster. Its time contains neither equilibration nor measurements, as for other packages.

The time of the other packages does not include the equilibration of their chain:

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
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ising import exact, lattice, metropolis, multispin, wolff
from ising.exact import T_CRITICAL
from ising.statistics import autocorrelation_time

SIZES = (8, 16, 32, 64, 128, 256, 512)
N_REPETITIONS = 4
MIN_SECONDS = 0.3  # duration of the timed steps of a repetition
MIN_SPINS = 1e7  # number of spins times steps in a series: on small lattices, longer series take little time

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


class Wolff:
    """A chain of wolff.py, which starts ordered."""

    def __init__(self, size: int) -> None:
        self.spins = np.ones((size, size), np.int8)
        self.queue, self.state = np.empty(size**2 + 1, np.uint32), np.ones(1, np.uint64)
        self.n_series = self.n_clusters = self.n_flipped = 0

    def advance(self, n_steps: int) -> None:
        p = -math.expm1(-2 / T_CRITICAL)
        self.n_flipped += wolff.flip_clusters(self.spins, n_steps, p, self.queue, self.state)
        self.n_clusters += n_steps

    def record(self, n_steps: int) -> Floats:
        """The series of another chain, since `wolff.series` starts a new one."""
        size, self.n_series = len(self.spins), self.n_series + 1
        start = metropolis.equilibration_sweeps(size, clusters=True)
        energies, m = wolff.series(size, T_CRITICAL, n_steps, seed=self.n_series, start=start)
        return np.array([energies, np.abs(m)]) / size**2


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
    "wolff": Algorithm(Wolff, 1.7, 0.55, 600),
    "mcising Metropolis": Algorithm(functools.partial(Mcising, "metropolis"), 3.1, 2.0, 200, SIZES[:5]),
    "mcising Wolff": Algorithm(functools.partial(Mcising, "wolff"), 1.7, 0.55, 600),
    "mcising Swendsen-Wang": Algorithm(functools.partial(Mcising, "swendsen_wang"), 2.6, 0.32, 600),
    "peapods Metropolis + Wolff": Algorithm(Peapods, 1.05, 0.5, 600),
}


def run_chain(chain: Chain, n_steps: int) -> tuple[float, Floats]:
    """Time steps of a chain, then record a series: seconds per step, series (2, n_steps)."""
    n_batch, n_timed = math.ceil(n_steps / 5), 0
    start = time.perf_counter()
    while (seconds := time.perf_counter() - start) < MIN_SECONDS:
        chain.advance(n_batch)
        n_timed += n_batch
    return seconds / n_timed, chain.record(n_steps)


def run_configurations(size: int, seed: int) -> tuple[float, Floats]:
    """Seconds per configuration, and energies per spin and |m| of independent configurations: (2, N)."""
    n_sweeps = metropolis.equilibration_sweeps(size)
    n_chains = 64 * math.ceil(MIN_SECONDS * 1e10 / (64 * n_sweeps * size**2))  # at 1e10 attempted flips per second
    temperatures = np.full(n_chains, T_CRITICAL)
    start = time.perf_counter()
    spins = multispin.sample(size, temperatures, n_sweeps, seed=seed, n_threads=1)
    seconds = time.perf_counter() - start
    return seconds / n_chains, np.array([lattice.energy(spins) / size**2, np.abs(lattice.magnetization(spins))])


def run_series(size: int, seed: int, *, clusters: bool) -> tuple[float, Floats]:
    """Seconds per step of a chain, and energies per spin and |m|: (2, chains, steps)."""
    # About the slower autocorrelation time at T_c; longer series than in `sample` make equilibration less important.
    tau = 1.1 * (size / 8) ** 0.55 if clusters else 3.1 * (size / 8) ** 2.05
    every = 1 if clusters else max(1, round(tau / 5))
    start = metropolis.equilibration_sweeps(size, clusters=clusters)
    n_steps = math.ceil(max(120 * tau, 5 * start) / every)
    n_chains = 4096 if size <= 16 else 512 if clusters or size == 32 else 64
    temperatures = np.full(n_chains, T_CRITICAL)
    begin = time.perf_counter()
    found = multispin.series(
        size, temperatures, n_steps, seed, n_threads=1, every=every, start=start, clusters=clusters
    )
    seconds = time.perf_counter() - begin
    return seconds / found.energies.size, np.array([found.energies, np.abs(found.magnetizations)]) / size**2


# Our samplers of many chains, with the sizes at which they are measured.
MULTISPIN: dict[str, tuple[Callable[[int, int], tuple[float, Floats]], tuple[int, ...]]] = {
    "multispin": (run_configurations, SIZES[:5]),
    "multispin series": (functools.partial(run_series, clusters=False), SIZES[:5]),
    "multispin_wolff series": (functools.partial(run_series, clusters=True), SIZES[:6]),
}
OURS = (*MULTISPIN, "wolff")


def summarize(name: str, size: int, seconds: list[float], series: Floats) -> dict[str, Any]:
    """The results of all repetitions. series: (2, chains, steps). A step of `multispin` is a configuration."""
    energies = series[0]
    is_independent = name == "multispin"
    taus = [(0.5, 0.0)] * 2 if is_independent else [autocorrelation_time(values) for values in series]
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


def measure(scale: float, sizes: Sequence[int]) -> dict[str, Any]:
    """Make all measurements on one core. For tests, scale < 1 shortens the series."""
    for clusters in (False, True):  # compile
        multispin.series(8, [T_CRITICAL], 1, seed=0, start=1, clusters=clusters)
    chains: dict[tuple[int, str], Chain] = {}
    found: dict[tuple[int, str], list[tuple[float, Floats]]] = {}
    for repetition in range(N_REPETITIONS):
        for size in sizes:
            for name, (run, measured) in MULTISPIN.items():
                if size in measured:
                    found.setdefault((size, name), []).append(run(size, repetition))
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
        together = np.concatenate([each.reshape(2, -1, each.shape[-1]) for each in series], axis=1)
        cases.append(summarize(name, size, list(seconds), together))
        if isinstance(chain := chains.get((size, name)), Wolff):
            cases[-1]["flips_per_step"] = chain.n_flipped / chain.n_clusters
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


def best(cases: dict[str, dict[str, Any]], names: Iterable[str]) -> str:
    """The fastest of some algorithms at one lattice size."""
    return min((name for name in names if name in cases), key=lambda name: cost(cases[name])[0])


def table(results: dict[str, Any]) -> str:
    """Milliseconds per independent configuration, and comparisons of the fastest algorithms."""
    sizes = by_size(results)
    lines = [
        f"| ms of one core, at T_c | {' | '.join(f'L = {size}' for size in sizes)} |",
        "|---|" + "---:|" * len(sizes),
    ]
    for name in (*MULTISPIN, *ALGORITHMS):
        cells = [with_error(*cost(cases[name])) if name in cases else "" for cases in sizes.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    factors = []
    for cases in sizes.values():
        ours, other = best(cases, OURS), best(cases, set(ALGORITHMS) - set(OURS))
        factors.append(f"{with_error(*ratio(cases[other], cases[ours]))}: {other} / {ours}")
    lines.append(f"| best of other packages / best of this project | {' | '.join(factors)} |")
    gains = [
        f"{with_error(*ratio(cases['multispin'], cases['multispin series']))} at L = {size}"
        for size, cases in sizes.items()
        if "multispin series" in cases
    ]
    single = {size: cases["wolff"] for size, cases in sizes.items()}
    times = [
        f"{1e9 * float(np.median(case['seconds_per_step'])) / case['flips_per_step']:.1f} at L = {size}"
        for size, case in single.items()
    ]
    found = results["independent"]
    worst = max(abs(case["energy_z"]) for case in found["cases"])
    lines += ["", f"- time of multispin / time of multispin series: {', '.join(gains)}"]
    lines += [f"- ns per flipped spin of wolff: {', '.join(times)}"]
    lines += [f"- largest deviation of a mean energy from the exact one: {worst:.1f} standard errors"]
    if found["scale"] != 1:
        lines.append(f"- provisional: series of {found['scale']:g} times the full length")
    return "\n".join(lines)


def plot(axes: Any, results: dict[str, Any]) -> None:
    """Plot the time per independent configuration against the lattice size; dashed lines are other packages."""
    sizes = by_size(results)
    for k, name in enumerate((*MULTISPIN, *ALGORITHMS)):
        measured = [size for size, cases in sizes.items() if name in cases]
        values, errors = np.transpose([cost(sizes[size][name]) for size in measured])
        style = "o-" if name in OURS else "x--"
        axes.errorbar(measured, values, errors, fmt=style, color=f"C{k}", ms=4, lw=1, capsize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel="L", ylabel="ms of one core per configuration")
    axes.set_title("time per independent configuration at $T_c$")
    axes.set_xticks(list(sizes), [str(size) for size in sizes])
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
