# Experiment: yours, to replace.
"""Ising configurations from a file of --data. Arrays of other programs are converted, with a line for each conversion.

docs/data-files.md shows what can be read, and how to convert other files.
"""

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from data import check_equilibrium, equilibrium_fault
from engine.interface import Columns
from ising import exact, lattice
from ising.statistics import neighbour_correlation
from utils import print_line, warn

if TYPE_CHECKING:
    from config import DataConfig, ExperimentConfig

HOTTEST = 1e6  # the highest temperature that is accepted; spins are practically independent there
PAGE = "docs/data-files.md"


def read(config: "ExperimentConfig", columns: Columns) -> Columns:
    """Read the spins and temperatures of a file, check and convert them, and print a line for each conversion.

    Raises:
        KeyError, ValueError: an array is missing or wrong.
    """
    names = config.data.spins_key, config.data.temperatures_key
    spins = _look_up(config.data, columns, names[0])
    if config.data.temperature is None:
        temperatures = _look_up(config.data, columns, names[1]).astype(np.float64)
    else:
        temperatures = np.array(config.data.temperature)
        if names[1] in columns:
            print_line(f"temperatures: all {config.data.temperature}, as --temperature says, instead of {names[1]!r}")
    try:
        if spins.ndim == 4 and spins.shape[-1] == 1:
            print_line(f"spins: {spins.shape} without its last axis")
            spins = spins[..., 0]
        shape, n_given = spins.shape, temperatures.size
        spins, temperatures = _in_one_shape(spins, temperatures, names)
        spins = _as_signs(spins, names[0])
        _check_temperatures(temperatures, names[1])
        if len(shape) == 3 and n_given in (1, shape[0]):
            spins, temperatures = _in_the_right_reading(spins, temperatures, shape, names[0])
    except ValueError as error:
        others = [f"{name} {shape}" for name, shape in _shapes(columns).items() if name not in names]
        more = f"; the file also has {', '.join(others[:20])}" if others else ""
        raise ValueError(f"{error}{more}") from None
    _warn_of_energies(config.data, spins, temperatures)
    _warn_of_correlations(spins, temperatures)
    return {"spins": spins, "temperatures": temperatures}


def read_inputs(config: "ExperimentConfig", columns: Columns) -> Columns:
    """Read what a network needs to predict: the spins and, with --input-temperature, the temperatures."""
    if config.model.input_temperature:
        return read(config, columns)
    return {"spins": as_lattices(_look_up(config.data, columns, config.data.spins_key), config.data.spins_key)}


def as_lattices(spins: NDArray[Any], name: str) -> NDArray[np.int8]:
    """Convert spins to (N, L, L) int8 in {-1, +1}, from (N, L, L) or (N, L^2) and from the values that `read` accepts.

    Raises:
        ValueError: they have another shape or other values.
    """
    if spins.dtype == np.int8 and spins.ndim == 3 and spins.shape[1] == spins.shape[2] and (np.abs(spins) == 1).all():
        return spins
    root = math.isqrt(spins.shape[-1] if spins.ndim else 0)
    is_flat = spins.ndim == 2 and root**2 == spins.shape[-1]
    if not is_flat and (spins.ndim != 3 or spins.shape[1] != spins.shape[2]):
        raise ValueError(f"{name} has the shape {spins.shape}, and must be (N, L, L) or (N, L^2); see {PAGE}")
    return _as_signs(spins.reshape(-1, root, root) if is_flat else spins, name)


def _in_the_right_reading(
    spins: NDArray[np.int8], temperatures: NDArray[np.float64], given: tuple[int, ...], name: str
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Of the two readings of an array with three axes, (N, L, L) and (T, n, L^2), the one whose energies are exact.

    Args:
        given: the shape of the array, whose first axis has as many entries as there are temperatures.
    """

    def is_good(reading: tuple[NDArray[np.int8], NDArray[np.float64]]) -> bool:
        return not _fault(*reading)

    root, plain = math.isqrt(given[-1]), (spins, temperatures)
    if given[1] != given[2]:
        if not is_good(plain):
            lattices = f"{given[1]} x {given[2]}"
            raise ValueError(f"{name} has the shape {given}: the lattices are {lattices}, and must be square")
        return plain
    if root**2 != given[-1] or root % 2 or root < 4:
        return plain
    other = spins.reshape(-1, root, root), np.repeat(temperatures, given[1])
    good = [reading for reading in (plain, other) if is_good(reading)]
    if len(good) == 2:
        raise ValueError(
            f"{name} {given} may be lattices of {given[1]} x {given[1]} or of {root} x {root}, and both have the right "
            f"energies: store {name}[:, None], or {name}.reshape(-1, {root}, {root}) with a temperature for each"
        )
    if good and good[0] is other:
        print_line(f"spins: {given} are {len(other[0])} lattices of {root} x {root}, whose energies are the exact ones")
        return other
    return plain


def _look_up(options: "DataConfig", columns: Columns, name: str) -> NDArray[Any]:
    """Look up the spins or the temperatures. If they are missing, the error says what to type."""
    try:
        return columns[name]
    except KeyError as error:
        message = str(error.args[0])
    if len(columns) > 16:  # such as a table
        raise KeyError(f"{message}: if it has one column per site, convert it as {PAGE}#tables shows") from None
    shapes = _shapes(columns)
    spins = [each for each, shape in shapes.items() if len(shape) > 1 and math.prod(shape) >= 16]
    temperatures = [each for each, shape in shapes.items() if len(shape) == 1 or (len(shape) == 2 and shape[1] < 16)]
    flags = []
    if name == options.spins_key:
        if not spins:
            raise KeyError(f"{message}: none has the shape (N, L, L) or (N, L^2) of spins; see {PAGE}") from None
        flags.append(f"--spins-key {spins[0]}")
    if options.temperature is None and options.temperatures_key not in columns:
        one = "--temperature with the one temperature of the whole file"
        flags.append(f"--temperatures-key {temperatures[0]}" if temperatures else one)
    raise KeyError(f"{message}: give {' '.join(flags)}") from None


def _shapes(columns: Columns) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of a file that contain numbers."""
    shapes = {}
    for name in columns:
        with suppress(KeyError, ValueError):  # text, objects, or a damaged array
            shapes[name] = columns[name].shape
    return shapes


def _check_temperatures(temperatures: NDArray[np.float64], name: str) -> None:
    if not np.all((temperatures >= exact.COLDEST) & (temperatures <= HOTTEST)):
        raise ValueError(
            f"{name} has values from {temperatures.min():g} to {temperatures.max():g}; temperatures must be positive "
            f"and at most {HOTTEST:.0f}, and not below {exact.COLDEST:g}: --temperatures-key names another array"
        )


def _in_one_shape(
    spins: NDArray[Any], temperatures: NDArray[np.float64], names: tuple[str, str]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Bring arrays of other shapes into the shapes (N, L, L) and (N,)."""
    given = f"{names[0]} {spins.shape} and {names[1]} {temperatures.shape}"
    size, before = _lattice_axes(spins, temperatures, names)
    if spins.size == 0:
        raise ValueError(f"{names[0]} has the shape {spins.shape}: there are no configurations")
    if size % 2 or not 4 <= size <= 1024:
        raise ValueError(f"{names[0]} {spins.shape}: the lattices are {size} x {size}; L must be even, from 4 to 1024")
    n = math.prod(before)
    if spins.shape != (n, size, size):
        print_line(f"spins: {spins.shape} reshaped to {(n, size, size)}")
    if temperatures.size == 1 and n > 1:
        print_line(f"temperatures: {temperatures.item():g} for all configurations")
        return spins.reshape(n, size, size), np.full(n, temperatures.item())
    if temperatures.shape == (n,):
        return spins.reshape(n, size, size), temperatures
    if temperatures.size == n and temperatures.shape in (before, (n, 1), (1, n)):
        print_line(f"temperatures: {temperatures.shape} reshaped to {(n,)}")
        return spins.reshape(n, size, size), temperatures.reshape(n)
    if temperatures.size == before[0] and temperatures.shape in ((before[0],), (before[0], 1)):
        print_line(f"temperatures: each of {temperatures.size} repeated for {n // before[0]} configurations")
        return spins.reshape(n, size, size), np.repeat(temperatures, n // before[0])
    if len(before) == 2 and temperatures.shape == before[1:]:
        _refuse(given, "the temperatures belong to the second axis", f"np.swapaxes({names[0]}, 0, 1)")
    if temperatures.ndim == 2 and len(temperatures) == n:
        possible = [k for k, column in enumerate(temperatures.T) if column.min() > 0]
        column = f"{names[1]}[:, {possible[0]}]" if possible else "the column with the temperatures"
        _refuse(given, f"{names[1]} has {temperatures.shape[1]} columns", f"{column} as an array of its own")
    if temperatures.ndim > 1:
        raise ValueError(f"{given}: give one temperature per configuration, ({n},), with --temperatures-key")
    raise ValueError(f"{given}: these are {n} configurations and {temperatures.size} temperatures; give one for each")


def _lattice_axes(
    spins: NDArray[Any], temperatures: NDArray[np.float64], names: tuple[str, str]
) -> tuple[int, tuple[int, ...]]:
    """The lattice size L, and the axes before those of the lattice, which are (..., L, L) or (..., L^2)."""
    shape, root = spins.shape, math.isqrt(spins.shape[-1] if spins.ndim else 0)
    given = f"{names[0]} has the shape {shape}"
    if spins.ndim >= 3 and shape[-1] == shape[-2]:
        return shape[-1], shape[:-2]
    if spins.ndim == 3 and shape[0] == shape[1] and temperatures.shape == shape[2:]:
        _refuse(given, "the configurations are on the last axis", f"np.moveaxis({names[0]}, -1, 0)")
    if spins.ndim == 2 and shape[0] != temperatures.size == shape[1] > 1 and math.isqrt(shape[0]) ** 2 == shape[0]:
        _refuse(given, "the configurations are on the last axis", f"{names[0]}.T")
    if spins.ndim >= 2 and root**2 == shape[-1] and (shape != (root**2, root**2) or temperatures.size > 1):
        return root, shape[:-1]
    raise ValueError(f"{given}, and must be (N, L, L) or (N, L^2): --spins-key names another array; see {PAGE}")


def _refuse(given: str, reason: str, fix: str) -> NoReturn:
    raise ValueError(f"{given}: {reason}; store {fix} instead")


def _as_signs(spins: NDArray[Any], name: str) -> NDArray[np.int8]:
    """Convert spins to int8 in {-1, +1}: 0 and 1, Booleans, and -1 that an unsigned type has made its largest value."""
    is_up = spins == 1
    largest = np.iinfo(spins.dtype).max if spins.dtype.kind == "u" else 255
    for down in (-1, 0, 255, largest):
        if np.all(is_up | (spins == down)):
            if down != -1:
                given = "False and True" if spins.dtype.kind == "b" else f"{down} and 1"
                print_line(f"spins: {given} converted to -1 and +1")
            return np.where(is_up, np.int8(1), np.int8(-1))
    if spins.dtype.kind == "f" and not np.isfinite(spins).all():
        raise ValueError(f"{name} is infinite or not a number in some places, and must be -1 or +1: correct the file")
    values: list[float] = np.unique(spins).tolist()
    if len(values) == 2:
        low, high = values[0], values[1]
        raise ValueError(
            f"{name} contains {low:g} and {high:g}, and must be -1 or +1, or 0 or 1: store "
            f"np.where({name} == {high:g}, 1, -1) instead"
        )
    shown = ", ".join(f"{value:g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")
    raise ValueError(
        f"{name} contains {len(values)} different values ({shown}), and must be -1 or +1, or 0 or 1: --spins-key names "
        "another array"
    )


def _fault(spins: NDArray[np.int8], temperatures: NDArray[np.float64]) -> str:
    """What is wrong with the energies of configurations: "" if they agree with exact ones."""
    if temperatures.min() < exact.COLDEST:
        return "temperatures too low"
    return equilibrium_fault(check_equilibrium({"spins": spins, "temperatures": temperatures}))


def _warn_of_energies(options: "DataConfig", spins: NDArray[np.int8], temperatures: NDArray[np.float64]) -> None:
    """Warn if the energies of a file are not the exact ones, and name conventions with which they would be."""
    if not (fault := _fault(spins, temperatures)):
        return
    size = spins.shape[-1]
    checkerboard = (1 - 2 * (np.indices((size, size)).sum(axis=0) % 2)).astype(np.int8)
    scaled = {
        "the values are inverse temperatures 1 / T": ("1 / temperatures", 1 / temperatures),
        "every bond is counted twice (J = 2)": ("temperatures / 2", temperatures / 2),
        "every bond is counted half (J = 1/2)": ("2 * temperatures", 2 * temperatures),
        "they are in units of T_c": ("2.269185314 * temperatures", exact.T_CRITICAL * temperatures),
    }
    is_option = options.temperature is not None
    found = [
        f"if {reason}, they are in equilibrium: "
        + (f"give --temperature {others[0]:.10g}" if is_option else f"store temperatures = {formula}")
        for reason, (formula, others) in scaled.items()
        if not _fault(spins, others)
    ]
    if not _fault(spins * checkerboard, temperatures):
        found.append(
            "if J is negative (an antiferromagnet), they are in equilibrium: store "
            f"spins = spins * (1 - 2 * (np.indices(({size}, {size})).sum(axis=0) % 2))"
        )
    warn(f"warning: the configurations are {'; '.join([fault, *found]) if found else f'{fault}; see {PAGE}#energies'}")


def _warn_of_correlations(spins: NDArray[np.int8], temperatures: NDArray[np.float64]) -> None:
    """Warn if configurations that follow each other at one temperature seem to come from one Markov chain."""
    correlation, z = neighbour_correlation(lattice.energy(spins), temperatures)
    if z > 5:
        warn(
            f"warning: neighbouring configurations at one temperature have correlated energies ({correlation:+.2f}, "
            f"{z:.0f} standard errors from 0): if the file is divided at random, the test error is too small; store "
            f"one configuration every few autocorrelation times, as {PAGE}#one-markov-chain shows"
        )
