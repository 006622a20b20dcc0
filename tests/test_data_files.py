"""Files of other programs: what is converted, what is refused, what is warned of, and the recipes of the page."""

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import evaluate
import main
from config import DataConfig, ExperimentConfig
from engine.datasets.file_formats import OTHER_FORMATS, read_columns, read_to_predict
from engine.datasets.splits import load_data, save_data
from engine.evaluation.evaluation_request import parse_args as parse_evaluation
from engine.interface.base_config import TrainConfig, to_dict
from engine.interface.base_problem import Columns
from engine.machine.errors import UnusableFileError
from engine.machine.repository import provenance
from engine.run_folder.run_request import parse_args
from ising import exact, metropolis, multispin
from ising.lattice import energy
from ising.statistics import neighbour_correlation
from problem import PROBLEM
from tests.conftest import ROOT, read
from tests.test_docs import PAGES, anchors, blocks

Arrays = dict[str, NDArray[Any]]

PAGE = PAGES["docs/data-files.md"]
CONFIG = ExperimentConfig(train=TrainConfig(batch_size=1))

VALUES = np.array([2.0, 2.5, 3.0])
SPINS = np.concatenate([exact.sample(8, value, 40, seed=i) for i, value in enumerate(VALUES)])  # (120, 8, 8)
TEMPERATURES = np.repeat(VALUES, 40)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config_for(file: str = "data.npz", **options: Any) -> ExperimentConfig:
    sizes = {"num_train": 80, "num_val": 20, "num_test": 20}
    return replace(CONFIG, data=DataConfig(**{"file": file, **sizes, **options}))


def read_arrays(arrays: Arrays, **options: Any) -> Columns:
    np.savez("data.npz", **arrays)  # type: ignore[arg-type]
    return read_columns(PROBLEM, config_for(**options), "data.npz")


def refusal(arrays: Arrays, **options: Any) -> str:
    with pytest.raises(UnusableFileError) as error:
        read_arrays(arrays, **options)
    assert str(error.value).startswith("data.npz: ")
    assert "\n" not in str(error.value)
    return str(error.value)


def require_equal(columns: Columns, spins: NDArray[Any] = SPINS, temperatures: NDArray[Any] = TEMPERATURES) -> None:
    assert columns["spins"].dtype == np.int8
    np.testing.assert_array_equal(columns["spins"], spins)
    np.testing.assert_array_equal(columns["temperatures"], temperatures)


# ---------------------------------------------------------------------------------------------------------- conversions

BITS = (SPINS > 0).astype(np.uint8)

# Spins and temperatures as other programs store them, and the lines that the program prints.
CONVERTED: dict[str, tuple[NDArray[Any], NDArray[Any], list[str]]] = {
    "integers": (SPINS.astype(np.int64), TEMPERATURES, []),
    "floats": (SPINS.astype(np.float16), TEMPERATURES.astype(np.float32), []),
    "big-endian, Fortran order": (np.asfortranarray(SPINS.astype(">i4")), TEMPERATURES.astype(">f8"), []),
    "zeros and ones": (BITS, TEMPERATURES, ["spins: 0 and 1 converted to -1 and +1"]),
    "zeros and ones as floats": (BITS.astype(float), TEMPERATURES, ["spins: 0 and 1 converted to -1 and +1"]),
    "Booleans": (SPINS > 0, TEMPERATURES, ["spins: False and True converted to -1 and +1"]),
    "uint8 that wrapped": (SPINS.astype(np.uint8), TEMPERATURES, ["spins: 255 and 1 converted to -1 and +1"]),
    "uint8 that wrapped, as floats": (
        *(SPINS.astype(np.uint8).astype(np.float32), TEMPERATURES),
        ["spins: 255 and 1 converted to -1 and +1"],
    ),
    "uint16 that wrapped": (SPINS.astype(np.uint16), TEMPERATURES, ["spins: 65535 and 1 converted to -1 and +1"]),
    "rows of sites": (SPINS.reshape(120, 64), TEMPERATURES, ["spins: (120, 64) reshaped to (120, 8, 8)"]),
    "as many rows as sites": (
        *(SPINS[:64].reshape(64, 64), TEMPERATURES[:64]),
        ["spins: (64, 64) reshaped to (64, 8, 8)"],
    ),
    "channels": (SPINS[:, None], TEMPERATURES, ["spins: (120, 1, 8, 8) reshaped to (120, 8, 8)"]),
    "a column of temperatures": (SPINS, TEMPERATURES[:, None], ["temperatures: (120, 1) reshaped to (120,)"]),
    "axes for temperatures": (
        *(SPINS.reshape(3, 40, 8, 8), VALUES),
        [
            "spins: (3, 40, 8, 8) reshaped to (120, 8, 8)",
            "temperatures: each of 3 repeated for 40 configurations",
        ],
    ),
    "axes for temperatures and sites": (
        *(SPINS.reshape(3, 40, 64), TEMPERATURES.reshape(3, 40)),
        ["spins: (3, 40, 64) reshaped to (120, 8, 8)", "temperatures: (3, 40) reshaped to (120,)"],
    ),
    "one temperature": (SPINS[:40], np.array(2.0), ["temperatures: 2 for all configurations"]),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_conventions_with_one_meaning_are_converted_with_a_line_each(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spins, temperatures, lines = CONVERTED[name]
    columns = read_arrays({"spins": spins, "temperatures": temperatures})
    n = len(columns["spins"])
    require_equal(columns, SPINS[:n], TEMPERATURES[:n])
    shown = capsys.readouterr()
    assert shown.out.splitlines() == lines
    assert shown.err == ""


def test_names_and_a_temperature_are_given_by_options(capsys: pytest.CaptureFixture[str]) -> None:
    require_equal(read_arrays({"C": SPINS, "T": TEMPERATURES}, spins_key="C", temperatures_key="T"))
    assert capsys.readouterr().out == ""
    columns = read_arrays({"spins": SPINS[:40]}, temperature=2.0)
    require_equal(columns, SPINS[:40], TEMPERATURES[:40])
    both = read_arrays({"spins": SPINS, "temperatures": TEMPERATURES}, temperature=2.5)
    assert set(both["temperatures"]) == {2.5}
    assert "temperatures: all 2.5, as --temperature says, instead of 'temperatures'" in capsys.readouterr().out


GOOD: Arrays = {"spins": SPINS, "temperatures": TEMPERATURES}
UNUSABLE: dict[str, tuple[Arrays, str]] = {
    "other names": (
        {"T": TEMPERATURES, "C": BITS},
        "no array 'spins'; the file has T (120,) float64, C (120, 8, 8) uint8: give --spins-key C --temperatures-key T",
    ),
    "no temperatures": ({"spins": SPINS}, "--temperature with the one temperature of the whole file"),
    "no spins": ({"temperatures": TEMPERATURES, "m": TEMPERATURES}, "none has the shape (N, L, L)"),
    "text for spins": ({**GOOD, "spins": np.array(["up", "down"])}, "spins has the dtype"),
    "objects": ({**GOOD, "spins": np.array([SPINS, None], object)}, "docs/data-files.md#pickles"),
    "records": ({**GOOD, "spins": np.zeros(120, "i4,f8")}, "spins has the dtype"),
    "complex numbers": ({**GOOD, "spins": SPINS * 1j}, "spins has the dtype complex128"),
    "three values": ({**GOOD, "spins": np.arange(120 * 64).reshape(120, 8, 8) % 3}, "3 different values (0, 1, 2)"),
    "a picture": ({**GOOD, "spins": BITS * 255}, "0 and 255, and must be -1 or +1, or 0 or 1: store np.where(spins =="),
    "not a number": ({**GOOD, "spins": np.full((120, 8, 8), np.nan)}, "spins is infinite or not a number"),
    "one lattice": ({"spins": SPINS[0], "temperatures": np.ones(8)}, "(N, L, L)"),
    "one lattice or rows": ({"spins": np.ones((64, 64)), "temperatures": np.array(2.0)}, "(N, L, L)"),
    "rectangles": ({"spins": np.ones((3, 8, 6)), "temperatures": np.ones(3)}, "(N, L, L)"),
    "no lattice": ({"spins": np.ones((0, 8, 8)), "temperatures": np.ones(0)}, "no configurations"),
    "odd": ({"spins": np.ones((3, 5, 5)), "temperatures": np.ones(3)}, "5 x 5"),
    "on the last axis": ({**GOOD, "spins": np.moveaxis(SPINS, 0, -1)}, "store np.moveaxis(spins, -1, 0) instead"),
    "columns": ({**GOOD, "spins": SPINS.reshape(120, 64).T}, "store spins.T instead"),
    "temperatures on the second axis": (
        {"spins": SPINS.reshape(40, 3, 8, 8), "temperatures": VALUES},
        "store np.swapaxes(spins, 0, 1) instead",
    ),
    "too few temperatures": ({**GOOD, "temperatures": np.ones(3)}, "120 configurations and 3 temperatures"),
    "a table of labels": ({"C": SPINS, "labels": np.ones((120, 2))}, "give --spins-key C --temperatures-key labels"),
    "a table of temperatures": (
        {**GOOD, "temperatures": np.ones((120, 2))},
        "has 2 columns; store temperatures[:, 0]",
    ),
    "another array": ({**GOOD, "spins": TEMPERATURES, "m": SPINS}, "the file also has m (120, 8, 8)"),
    "labels": ({**GOOD, "temperatures": np.arange(120) % 2}, "positive and at most"),
    "no temperature": ({**GOOD, "temperatures": np.full(120, np.nan)}, "positive and at most"),
    "too cold": ({**GOOD, "temperatures": np.full(120, 1e-201)}, "not below 1e-200"),
    "too hot": ({**GOOD, "temperatures": np.full(120, 1e160)}, "positive and at most"),
    "infinite halves": ({**GOOD, "temperatures": np.full(120, np.inf, np.float16)}, "positive and at most"),
    "long and Greek names": ({"a" * 300: SPINS, "\u03b2": TEMPERATURES}, "--temperatures-key \u03b2"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_other_arrays_are_refused_in_one_line_that_says_what_to_do(name: str) -> None:
    arrays, message = UNUSABLE[name]
    assert message in refusal(arrays)


def test_the_error_does_not_suggest_temperatures_that_an_option_gives() -> None:
    line = refusal({"T": TEMPERATURES, "C": SPINS}, temperature=2.0)
    assert line.endswith("give --spins-key C")


def test_a_table_with_one_column_per_site_is_refused_with_its_recipe() -> None:
    names = ",".join([*(f"s{i}" for i in range(64)), "T"])
    for header in (names, ""):
        np.savetxt("x.csv", np.c_[SPINS.reshape(120, 64), TEMPERATURES], header=header, comments="", delimiter=",")
        if not header:
            Path("x.csv").write_text(Path("x.csv").read_text(encoding="utf-8").lstrip("\n"), encoding="utf-8")
        with pytest.raises(UnusableFileError, match=r"docs/data-files\.md#tables"):
            read_columns(PROBLEM, config_for("x.csv"), "x.csv")


def test_every_section_that_an_error_names_is_on_the_page() -> None:
    text = "".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("data.py", "data_files.py", "engine/datasets/file_formats.py", "engine/datasets/archives.py")
    )
    named = set(re.findall(r"(?:data-files\.md|\{PAGE\}|\{RECIPES\})#([\w-]+)", text))
    named |= {section for *_, section in OTHER_FORMATS}
    assert len(named) >= 7
    assert named <= anchors(PAGE)


def test_of_two_readings_the_one_with_exact_energies_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """Ten temperatures with 16 lattices of 4x4 each look like ten lattices of 16x16."""
    temperatures = np.linspace(1.8, 3.0, 10)
    spins = multispin.sample(4, np.repeat(temperatures, 16), 200, 5)
    np.savez("data.npz", spins=spins.reshape(10, 16, 16), temperatures=temperatures)
    columns = read_columns(PROBLEM, config_for(), "data.npz")
    np.testing.assert_array_equal(columns["spins"], spins)
    np.testing.assert_array_equal(columns["temperatures"], np.repeat(temperatures, 16))
    assert "(10, 16, 16) are 160 lattices of 4 x 4, whose energies are the exact ones" in capsys.readouterr().out
    large = multispin.sample(16, temperatures, 500, 5)
    np.savez("data.npz", spins=large, temperatures=temperatures)
    np.testing.assert_array_equal(read_columns(PROBLEM, config_for(), "data.npz")["spins"], large)
    noise = np.random.default_rng(1).choice([-1, 1], (10, 16, 16))
    np.savez("data.npz", spins=noise, temperatures=np.full(10, 1e6))
    assert "may be lattices of 16 x 16 or of 4 x 4" in refusal_of_file("data.npz")


def test_rectangular_lattices_are_refused_and_a_last_axis_of_one_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    temperatures = np.linspace(2.2, 3.5, 60)
    spins = multispin.sample(16, temperatures, 500, 5)
    np.savez("data.npz", spins=spins[:, :8], temperatures=temperatures)
    assert "the lattices are 8 x 16, and must be square" in refusal_of_file("data.npz")
    np.savez("data.npz", spins=spins[..., None], temperatures=temperatures)
    np.testing.assert_array_equal(read_columns(PROBLEM, config_for(), "data.npz")["spins"], spins)
    assert "spins: (60, 16, 16, 1) without its last axis" in capsys.readouterr().out


def refusal_of_file(path: str) -> str:
    with pytest.raises(UnusableFileError) as caught:
        read_columns(PROBLEM, config_for(), path)
    return str(caught.value)


def test_python_users_get_the_conversions_of_the_command() -> None:
    """`predict` in Python gave wrong energies for bits, silently."""
    spins = multispin.sample(8, np.full(5, 2.5), 100, 1)
    config = PROBLEM.presets["debug"]
    for given in (
        spins,
        spins == 1,
        (spins + 1) // 2,
        spins.astype(np.uint8),
        spins.reshape(5, 64),
        spins.astype(float),
    ):
        (found,) = PROBLEM.inputs(config, {"spins": given})
        assert found.dtype == np.int8
        np.testing.assert_array_equal(found, spins)
    with pytest.raises(ValueError, match=r"contains -0\.5 and 0\.5, and must be -1 or"):
        PROBLEM.inputs(config, {"spins": spins / 2})


def test_spins_are_predicted_without_temperatures() -> None:
    spins = multispin.sample(8, np.full(5, 2.5), 100, 1)
    np.savez("data.npz", spins=spins == 1)
    found = read_to_predict(PROBLEM, config_for(), "data.npz")
    assert set(found.columns) == {"spins"}
    np.testing.assert_array_equal(found.columns["spins"], spins)


# -------------------------------------------------------------------------------------------------------------- options


def test_the_options_are_kept_with_the_run_compared_when_resumed_and_not_used_for_another_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("one.npz", C=SPINS, T=TEMPERATURES)
    np.savez("other.npz", **GOOD)  # type: ignore[arg-type]
    line = "--preset debug --device cpu --data one.npz --spins-key C --temperatures-key T --num-train 80 --num-val 20"
    command = parse_args(PROBLEM, [*line.split(), "--num-test", "20"], "main.py")
    main.run(PROBLEM, command.config, Path("checkpoints/one"))
    stored = read(Path("checkpoints/one"), "config.json")["data"]
    assert (stored["spins_key"], stored["temperatures_key"], stored["temperature"]) == ("C", "T", None)
    assert parse_args(PROBLEM, ["--resume", "one"], "main.py").config == command.config
    with pytest.raises(SystemExit):
        parse_args(PROBLEM, ["--resume", "one", "--spins-key", "X"], "main.py")
    assert "--spins-key X: the run has C: drop it" in capsys.readouterr().err

    assert evaluate.evaluate_run(parse_evaluation(["one", "--data", "other.npz"]))["n"] == 120
    words = ["one", "--data", "one.npz", "--spins-key", "C", "--temperature", "2.5", "--name", "again"]
    result = evaluate.evaluate_run(parse_evaluation(words))
    assert (result["data"]["spins_key"], result["data"]["temperature"]) == ("C", 2.5)
    with pytest.raises(UnusableFileError, match="give --spins-key C --temperatures-key T"):
        evaluate.evaluate_run(parse_evaluation(["one", "--data", "one.npz"]))
    with pytest.raises(SystemExit):
        parse_evaluation(["one", "--temperature", "2"])
    assert "--temperature does nothing without --data: give a file, or drop it" in capsys.readouterr().err


def test_generated_data_have_no_options_for_a_file() -> None:
    assert not {"spins_key", "temperatures_key", "temperature"} & set(to_dict(ExperimentConfig())["data"])


# ---------------------------------------------------------------------------------------------------------- equilibrium


CHECKERBOARD = 1 - 2 * (np.indices((8, 8)).sum(axis=0) % 2)
ALTERNATIVES: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "inverse temperatures": (lambda a: {**a, "temperatures": 1 / a["temperatures"]}, "inverse temperatures 1 / T"),
    "bonds counted twice": (lambda a: {**a, "temperatures": 2 * a["temperatures"]}, "counted twice"),
    "bonds counted half": (lambda a: {**a, "temperatures": a["temperatures"] / 2}, "counted half"),
    "units of T_c": (lambda a: {**a, "temperatures": a["temperatures"] / exact.T_CRITICAL}, "in units of T_c"),
    "an antiferromagnet": (lambda a: {**a, "spins": a["spins"] * CHECKERBOARD}, "J is negative"),
}


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_a_convention_that_explains_the_energies_is_named_with_a_fix_that_works(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, reason = ALTERNATIVES[name]
    arrays = change(GOOD)
    np.savez("data.npz", **arrays)  # type: ignore[arg-type]
    load_data(PROBLEM, config_for())
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1  # of the whole file
    assert warnings[0].startswith("warning: the configurations are not in equilibrium")
    assert reason in warnings[0]
    assert warnings[0].count("they are in equilibrium") == 1  # no other convention explains them
    fix = warnings[0].partition("store ")[2]
    exec(fix, {"np": np, **arrays}, arrays)  # such as temperatures = 1 / temperatures
    np.savez("data.npz", **arrays)  # type: ignore[arg-type]
    load_data(PROBLEM, config_for())
    assert capsys.readouterr().err == ""


def test_the_fix_for_one_temperature_is_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("data.npz", spins=exact.sample(8, 2.5, 120, seed=1))
    load_data(PROBLEM, config_for(temperature=0.4))
    assert "give --temperature 2.5" in capsys.readouterr().err.splitlines()[0]


def test_no_convention_is_named_if_none_explains_the_energies(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("data.npz", spins=SPINS, temperatures=TEMPERATURES * 1.4)
    data = load_data(PROBLEM, config_for())
    warning = capsys.readouterr().err.splitlines()[0]
    assert "they are in equilibrium" not in warning
    assert warning.endswith("see docs/data-files.md#energies")
    assert data.train["temperatures"].max() == 3.0 * 1.4  # the data are not changed


# ---------------------------------------------------------------------------------------------------- correlated rows


def chain(n: int, spacing: int, values: NDArray[Any]) -> NDArray[np.int8]:
    """Every `spacing`-th configuration of one Markov chain per temperature: (T, n, 8, 8)."""
    rng = np.random.default_rng(1)
    spins = np.moveaxis(metropolis.sample(8, values, 200, seed=1), 0, -1).copy()
    kept = []
    for _ in range(n):
        for _ in range(spacing):
            metropolis.sweep(spins, values.astype(np.float32), rng)
        kept.append(np.moveaxis(spins, -1, 0).copy())
    return np.stack(kept, axis=1)


@pytest.mark.parametrize("order", ["by temperature", "by time"])
def test_a_markov_chain_is_warned_of(order: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.array([2.2, 2.3, 2.4])
    spins, temperatures = chain(200, 1, values), np.broadcast_to(values[:, None], (3, 200))
    if order == "by time":
        spins, temperatures = np.swapaxes(spins, 0, 1), temperatures.T
    read_arrays({"spins": spins.reshape(-1, 8, 8), "temperatures": temperatures.reshape(-1)})
    warning = capsys.readouterr().err
    assert warning.startswith("warning: neighbouring configurations at one temperature have correlated energies (+0.")
    assert "docs/data-files.md#one-markov-chain" in warning
    assert warning.count("\n") == 1


def test_independent_configurations_are_never_warned_of() -> None:
    values = np.linspace(1.5, 4, 6)
    pools = [energy(exact.sample(4, value, 20_000, seed=1)) for value in values]
    rng = np.random.default_rng(0)
    for n_values, n in ((6, 3), (6, 10), (2, 50), (1, 500)):
        temperatures = np.repeat(values[-n_values:], n)
        z = []
        for _ in range(300):
            energies = np.concatenate([rng.choice(pool, n) for pool in pools[-n_values:]])
            z.append(neighbour_correlation(energies, temperatures)[1])
        assert np.abs(z).max() < 4.5
        assert np.std(z) == pytest.approx(1, abs=0.15)  # the standard error is right, also for short groups
        assert abs(np.mean(z)) < 0.25


def test_data_without_information_about_correlations_are_not_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    order = np.argsort(TEMPERATURES, kind="stable")
    read_arrays({"spins": SPINS[order], "temperatures": TEMPERATURES[order]})
    read_arrays({"spins": SPINS, "temperatures": np.sort(np.random.default_rng(0).uniform(1, 4, 120))})  # all differ
    read_arrays({"spins": np.ones((120, 8, 8)), "temperatures": np.full(120, 0.5)})  # equal energies
    rare = np.ones((120, 8, 8), np.int8)
    rare[40:42, 3, 3] = -1  # two neighbouring excitations
    read_arrays({"spins": rare, "temperatures": np.full(120, 0.5)})
    read_arrays({"spins": SPINS[:1], "temperatures": TEMPERATURES[:1]})
    assert "correlated" not in capsys.readouterr().err


def test_generated_data_are_not_tested_for_correlations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_files._warn_of_correlations", lambda *_: pytest.fail("called"))
    data = DataConfig(lattice_size=4, num_train=30, num_val=10, num_test=10)
    load_data(PROBLEM, replace(CONFIG, data=data))


# -------------------------------------------------------------------------------------------------------------- recipes


def pickled(content: Any, name: str) -> None:
    Path(name).write_bytes(pickle.dumps(content))


def per_temperature(save: Callable[[str, NDArray[Any]], object], name: str) -> None:
    for i, value in enumerate(VALUES):
        save(name.format(value), SPINS[40 * i : 40 * (i + 1)])


def rows_of_text(name: str, spins: NDArray[Any]) -> None:
    np.savetxt(name, spins.reshape(len(spins), -1), fmt="%d")


def packed_bits() -> None:
    pickled(np.packbits(SPINS.reshape(120, 64) > 0, axis=-1), "packed.pkl")
    np.savetxt("temperatures.txt", TEMPERATURES)


def files_of_configurations() -> None:
    for i, (spins, value) in enumerate(zip(SPINS, TEMPERATURES, strict=True)):
        np.savetxt(f"T{value:.2f}_{i:04d}.txt", spins, fmt="%d")


def a_table() -> None:
    header = ",".join([*(f"s{i}" for i in range(64)), "T"])
    np.savetxt("table.csv", np.c_[SPINS.reshape(120, 64), TEMPERATURES], header=header, comments="", delimiter=",")


def an_hdf5_file() -> None:
    with h5py.File("ising.h5", "w") as file:
        file["configurations"], file["T"] = SPINS, TEMPERATURES


def two_npy_files() -> None:
    np.save("spins.npy", SPINS)
    np.save("temperatures.npy", TEMPERATURES)


def tensors() -> None:
    torch.save({"spins": torch.from_numpy(SPINS), "temperatures": torch.from_numpy(TEMPERATURES)}, "ising.pt")


# The file that each recipe reads, in the order of the page, by words that only occur in this recipe.
FILES: dict[str, Callable[[], object]] = {
    "betas.npz": lambda: np.savez("betas.npz", X=SPINS, betas=1 / TEMPERATURES),
    "bits.npz": lambda: np.savez("bits.npz", X=(SPINS < 0).astype(np.uint8), T=TEMPERATURES),
    "spins.npy": two_npy_files,
    "spins_T*.npy": lambda: per_temperature(np.save, "spins_T{:.2f}.npy"),
    "T*.txt": lambda: per_temperature(rows_of_text, "T{:.2f}.txt"),
    "T*_*.txt": files_of_configurations,
    "table.csv": a_table,
    "ising.h5": an_hdf5_file,
    "ising.pt": tensors,
    "ising.pkl": lambda: pickled(GOOD, "ising.pkl"),
    "by_temperature.pkl": lambda: pickled({t: SPINS[t == TEMPERATURES] for t in VALUES.tolist()}, "by_temperature.pkl"),
    "packed.pkl": packed_bits,
}
RECIPES = [code for code in blocks(PAGE, "python") if '"data.npz"' in code]


@pytest.mark.parametrize("file", FILES)
def test_a_recipe_writes_the_same_configurations_for_data(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (code for code in RECIPES if f'"{file}"' in code)
    assert len(code.splitlines()) <= 10
    FILES[file]()
    exec(code, {})
    config = config_for()
    columns = read_columns(PROBLEM, config, "data.npz")
    require_equal({**columns, "temperatures": columns["temperatures"].round(12)})
    load_data(PROBLEM, config)
    assert capsys.readouterr().err == ""  # the energies are those of equilibrium


def test_every_recipe_is_tested() -> None:
    assert [file for code in RECIPES for file in (*FILES, "chain.npz") if f'"{file}"' in code] == [*FILES, "chain.npz"]


def test_the_recipe_for_a_markov_chain_removes_the_warning(capsys: pytest.CaptureFixture[str]) -> None:
    values = np.array([2.2, 2.4])
    np.savez("chain.npz", spins=chain(1500, 2, values).reshape(-1, 8, 8), temperatures=np.repeat(values, 1500))
    read_columns(PROBLEM, config_for("chain.npz"), "chain.npz")
    assert "correlated" in capsys.readouterr().err
    (code,) = (code for code in RECIPES if '"chain.npz"' in code)
    exec(code, {})
    assert len(read_columns(PROBLEM, config_for(), "data.npz")["spins"]) > 30
    assert capsys.readouterr().err == ""


# ----------------------------------------------------------------------------------------------------------- provenance


def test_saved_data_say_how_they_were_made_and_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--preset debug --lattice-size 4 --num-train 30 --sweeps 150 --temp-min 2 --seed 7 --save-data ising16.npz"
    command = parse_args(PROBLEM, words.split(), "main.py")
    assert command.save_data is not None
    save_data(PROBLEM, command.config, command.save_data)
    capsys.readouterr()
    (code,) = (code for code in blocks(PAGE, "python") if '"provenance"' in code)
    exec(code, {})
    found = json.loads(capsys.readouterr().out)
    assert {"problem": "ising", "seed": 7}.items() <= found.items()
    expected = {"lattice_size": 4, "temp_min": 2.0, "temp_max": 4.0, "sweeps": 150, "sampler": "multispin"}
    assert expected.items() <= found["data"].items()
    assert found["git_commit"] == provenance()["git_commit"]
    assert set(read_columns(PROBLEM, config_for(), "ising16.npz")) == {"spins", "temperatures"}
