"""Ising data: reproducibility, independence, the check of equilibrium, and external files."""

import hashlib
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import PRESETS, DataConfig, ExperimentConfig
from data import SPINS_PER_BLOCK, Equilibrium, check, check_equilibrium, examples_around_tc, n_sweeps
from engine.datasets.splits import fingerprint, get_splits, load_data, report_check, require_memory_for
from engine.interface.base_config import TrainConfig
from engine.interface.base_problem import Columns, Splits
from engine.machine.errors import BadRequestError
from ising import exact, lattice, multispin
from ising.exact import T_CRITICAL, kaufman
from ising.metropolis import equilibration_sweeps
from problem import PROBLEM
from tests.conftest import run_command, run_process

SMALL = DataConfig(lattice_size=4, num_train=300, num_val=200, num_test=100, cache=False)
CONFIG = ExperimentConfig(train=TrainConfig(batch_size=1))


def sampled(data: DataConfig, seed: int) -> Splits:
    return get_splits(PROBLEM, replace(CONFIG, data=data, seed=seed))[0]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -------------------------------------------------------------------------------------------------------------- samples

# SHA-256 of the spins and of the temperatures of (training, test) splits of the first version of the program.
FIRST_VERSION = {
    "multispin": [
        "0135da90605aa27510dc24ddca0a243b5ab57ebc9096cd6f54fcb92656d49ca5",
        "47e63ca61bf63fa8fee8fe3c362d54e7263d6d656772a523ac990cb972b2352e",
        "9a3f540eed5b7558c293cca5caa4b625f9d1f4c633754c9aae14a3d5bdb683ca",
        "0f04ad6b2af374fdc44b6273bbde1082f71319bd1d707a7750a3e737de5b7bc1",
    ],
    "numpy": [
        "4706f915fe74cb280eb7f2e9f1234f689338e9ab7d15b561986f086208073ab1",
        "0022c14e3975cb9cbeb978f0c445e175c235cd219c86c1940a406dd868de191d",
        "d1870562d996d8e69f5a62da7f747fd41cb45d770eacca30cec3857b617256cd",
        "02f7256d70ad0a84ad64c4edb8c019391f086c580292c4dc2d622f62f638c095",
    ],
}


@pytest.mark.parametrize("sampler", FIRST_VERSION)
def test_data_are_the_same_as_in_the_first_version(sampler: Any) -> None:
    data = replace(PRESETS["debug"].data, cache=False)
    if sampler == "numpy":
        data = replace(data, sampler="numpy", num_train=300, num_val=100, num_test=100)
    splits = sampled(data, seed=42)
    columns = [split[name] for split in (splits.train, splits.test) for name in ("spins", "temperatures")]
    assert [hashlib.sha256(column.tobytes()).hexdigest() for column in columns] == FIRST_VERSION[sampler]


def test_splits_have_the_requested_shapes_and_range() -> None:
    splits = sampled(replace(SMALL, temp_min=2.0, temp_max=3.0), seed=0)
    assert [split["spins"].shape for split in splits] == [(300, 4, 4), (200, 4, 4), (100, 4, 4)]
    for split in splits:
        assert split["spins"].dtype == np.int8
        assert set(np.unique(split["spins"])) == {-1, 1}
        assert split["temperatures"].shape == split["spins"].shape[:1]
        assert 2.0 <= split["temperatures"].min() < 2.1
        assert 2.9 < split["temperatures"].max() < 3.0


def test_data_only_depend_on_config_and_seed() -> None:
    assert fingerprint(sampled(SMALL, seed=1)) == fingerprint(sampled(SMALL, seed=1))
    assert fingerprint(sampled(SMALL, seed=1)) != fingerprint(sampled(SMALL, seed=2))
    assert fingerprint(sampled(SMALL, seed=1)) != fingerprint(sampled(replace(SMALL, sweeps=20), seed=1))
    one, other = (get_splits(PROBLEM, replace(CONFIG, data=SMALL, threads=n))[0] for n in (1, 2))
    assert fingerprint(one) == fingerprint(other)


def test_both_tasks_use_the_same_cached_data() -> None:
    cached = replace(SMALL, cache=True)
    sources = [get_splits(PROBLEM, replace(CONFIG, task=task, data=cached))[1] for task in ("energy", "phase")]
    assert sources[1].startswith("read from cache")


def test_no_split_depends_on_the_size_of_another() -> None:
    one, other = sampled(SMALL, seed=3), sampled(replace(SMALL, num_train=17), seed=3)
    np.testing.assert_array_equal(one.val["spins"], other.val["spins"])
    np.testing.assert_array_equal(one.test["spins"], other.test["spins"])
    np.testing.assert_array_equal(one.test["temperatures"], other.test["temperatures"])


def test_splits_share_no_chain() -> None:
    splits = sampled(replace(SMALL, num_val=300, num_test=300, temp_min=3, lattice_size=8), seed=4)
    configurations = [spins.tobytes() for split in splits for spins in split["spins"]]
    assert len(set(configurations)) == 900  # 900 hot configurations out of 2^64 are not equal by chance


@pytest.mark.parametrize("sampler", ["multispin_wolff", "wolff"])
def test_data_of_the_cluster_samplers_are_in_equilibrium(sampler: Any) -> None:
    data = replace(SMALL, lattice_size=16, num_train=1000, temp_min=0.5, temp_max=10.0, sampler=sampler)
    found = check_equilibrium(sampled(data, seed=1).train)

    assert abs(found.energy_z) < 4
    assert abs(found.largest_bin_z) < 5


def test_blocks_of_chains_of_the_numpy_sampler_differ() -> None:
    per_block = SPINS_PER_BLOCK // 32**2
    data = replace(SMALL, lattice_size=32, num_train=2 * per_block, num_val=1, num_test=1, sweeps=1, sampler="numpy")
    spins = sampled(data, seed=5).train["spins"]
    assert not np.array_equal(spins[:per_block], spins[per_block:])


@pytest.mark.slow
def test_without_numba_the_compiled_sampler_is_refused_and_the_numpy_sampler_works(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "numba.py").write_text(
        "raise ImportError('no LLVM on this machine')", encoding="utf-8", newline="\n"
    )
    line = ["--preset", "debug", "--num-train", "100", "--num-val", "20", "--num-test", "20", "--save-data", "x.npz"]
    path = {"PYTHONPATH": str(tmp_path / "broken")}
    done = run_process(*line, cwd=tmp_path, script="main.py", **path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--sampler multispin" in done.stderr
    assert "no LLVM on this machine" in done.stderr
    assert "--sampler numpy" in done.stderr
    assert not (tmp_path / "x.npz").exists()
    assert run_process(*line, "--sampler", "numpy", cwd=tmp_path, script="main.py", **path).returncode == 0


@pytest.mark.slow
def test_the_error_names_a_damaged_cache_of_numba(tmp_path: Path) -> None:
    line = ["--preset", "debug", "--num-train", "100", "--no-cache", "--save-data"]
    kept = {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    assert run_command(*line, "one.npz", cwd=tmp_path, script="main.py", **kept).returncode == 0
    for path in (tmp_path / "numba").rglob("*.nbi"):
        path.write_bytes(b"")
    done = run_command(*line, "two.npz", cwd=tmp_path, script="main.py", **kept)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "__pycache__" in done.stderr
    assert "--sampler numpy" in done.stderr


def test_memory_use_is_below_the_checked_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    required: list[int] = []
    monkeypatch.setattr("engine.datasets.splits.require_memory", lambda n_bytes, *_: required.append(n_bytes))
    data = replace(SMALL, lattice_size=32, num_train=15_000, num_val=1000, num_test=1000, sweeps=1, temp_min=3)
    require_memory_for(PROBLEM, replace(CONFIG, data=data))
    multispin.get_ready()  # Numba is not part of the limit
    tracemalloc.start()
    splits = sampled(data, seed=10)
    for split in splits:
        check_equilibrium(split)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(split["spins"].nbytes for split in splits) < peak < required[0]


@pytest.mark.parametrize(
    ("sampler", "clusters"), [("numpy", False), ("multispin", False), ("wolff", True), ("multispin_wolff", True)]
)
def test_chains_of_the_cluster_samplers_are_shorter_on_large_lattices(sampler: Any, clusters: bool) -> None:
    options = replace(SMALL, lattice_size=64, sampler=sampler)
    assert n_sweeps(options) == equilibration_sweeps(64, clusters=clusters)
    assert n_sweeps(replace(options, sweeps=7)) == 7


# ---------------------------------------------------------------------------------------------------------- equilibrium


@pytest.mark.parametrize(("energy_z", "bin_z", "is_good"), [(4.9, -5.9, True), (-5.1, 0.0, False), (0.0, 6.1, False)])
def test_the_mean_energy_and_every_temperature_bin_have_their_limits(
    energy_z: float, bin_z: float, is_good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.check_equilibrium", lambda _: Equilibrium(energy_z, 1.0, bin_z))
    assert (check(CONFIG, {}).fault == "") == is_good


def test_the_check_accepts_data_in_equilibrium_and_refuses_others() -> None:
    data = replace(SMALL, lattice_size=8, num_train=4000, num_val=1, num_test=1)
    train = sampled(data, seed=6).train
    found = check_equilibrium(train)
    assert abs(found.energy_z) < 4
    assert 0.1 < found.chi2_per_dof < 3
    assert check(CONFIG, train).fault == ""
    assert check(CONFIG, train).numbers == found._asdict()

    hotter = {**train, "temperatures": train["temperatures"] * 1.05}
    with pytest.raises(BadRequestError, match=r"the train split: not in equilibrium.*--sweeps"):
        report_check("train", check(CONFIG, hotter), is_external=False)

    # After too few sweeps, cold starts are still below the exact energy and hot starts above it. In the sum over all
    # chains this nearly cancels, but not in the temperature bins.
    unfinished = check_equilibrium(sampled(replace(data, sweeps=4), seed=6).train)
    assert abs(unfinished.largest_bin_z) > 6


def test_the_z_of_the_energy_equals_an_explicit_sum_over_chains() -> None:
    val = sampled(replace(SMALL, num_train=100, num_val=64, num_test=1), seed=7).val
    energy, specific_heat = kaufman(val["temperatures"], 4)
    excess = float((lattice.energy(val["spins"]) - 16 * energy).sum())
    error = float(np.sqrt((16 * val["temperatures"] ** 2 * specific_heat).sum() + 64))
    assert check_equilibrium(val).energy_z == pytest.approx(excess / error, rel=1e-12)


def test_each_of_a_few_temperatures_is_checked_separately() -> None:
    # The energies are correct on average, but too low at T = 2 and too high at T = 2.5.
    temperatures = np.repeat([2.0, 2.25, 2.5], [667, 667, 666])
    moved = exact.sample(4, 1.9, 667, seed=1), exact.sample(4, 2.25, 667, seed=2), exact.sample(4, 2.62, 666, seed=3)
    order = np.random.default_rng(4).permutation(2000)
    found = check_equilibrium({"spins": np.concatenate(moved)[order], "temperatures": temperatures[order]})
    z = []
    for temperature, spins in zip((2.0, 2.25, 2.5), moved, strict=True):
        energy, specific_heat = kaufman(temperature, 4)
        error = np.sqrt(len(spins) * 16 * temperature**2 * specific_heat + 64)
        z.append(float((lattice.energy(spins) - 16 * energy).sum() / error))
    assert found.chi2_per_dof == pytest.approx(np.mean(np.square(z)), rel=1e-9)
    assert found.largest_bin_z == pytest.approx(max(z, key=abs), rel=1e-9)


def test_one_rare_excitation_at_low_temperature_is_not_a_fault() -> None:
    spins = np.ones((500, 8, 8), np.int8)
    spins[7, 3, 3] = -1
    found = check_equilibrium({"spins": spins, "temperatures": np.full(500, 0.55)})  # 0.02 excitations are expected
    assert 0.5 < found.energy_z < 2


@pytest.mark.parametrize("n", [1, 3])
def test_few_chains_can_be_checked(n: int) -> None:
    assert all(np.isfinite(check_equilibrium(sampled(replace(SMALL, num_test=n), seed=8).test)))


def test_examples_are_around_the_critical_temperature() -> None:
    train = sampled(replace(SMALL, num_train=100, num_val=1, num_test=1), seed=9).train
    chosen = examples_around_tc(CONFIG, train)
    assert chosen.shape == (3, 4)
    below, at, above = train["temperatures"][chosen].mean(axis=1)
    assert below < T_CRITICAL - 0.3
    assert at == pytest.approx(T_CRITICAL, abs=0.1)
    assert above > T_CRITICAL + 0.3
    for temp_min, temp_max in ((1.0, 1.6), (2.5, 4.0)):  # all on one side of T_c: the middle of the range replaces T_c
        one_side: Columns = {"spins": train["spins"], "temperatures": np.linspace(temp_min, temp_max, 100)}
        rows = one_side["temperatures"][examples_around_tc(CONFIG, one_side)].mean(axis=1)
        np.testing.assert_allclose(rows, temp_min + (temp_max - temp_min) * np.array([0.25, 0.5, 0.75]), atol=0.05)


# ------------------------------------------------------------------------------------------------------- external files


def good(n: int = 500, size: int = 8) -> dict[str, Any]:
    spins = np.concatenate([exact.sample(size, temperature, n // 2, seed=1) for temperature in (2.0, 3.0)])
    return {"spins": spins, "temperatures": np.repeat([2.0, 3.0], n // 2)}


def written(content: dict[str, Any]) -> str:
    np.savez("data.npz", **content)
    return "data.npz"


def test_the_lattice_size_is_that_of_the_file() -> None:
    spins = np.ones((30, 16, 16), np.int8)
    spins[::2, 0, 0] = -1
    np.savez("x.npz", spins=spins, temperatures=np.full(30, 0.5))
    config = replace(CONFIG, data=DataConfig(file="x.npz", num_train=20, num_val=5, num_test=5))
    assert load_data(PROBLEM, config).train["spins"].shape == (20, 16, 16)
    assert PROBLEM.label(config) == "mlp-data"


def test_training_data_with_only_one_phase_are_refused() -> None:
    np.savez("x.npz", spins=np.ones((30, 4, 4), np.int8), temperatures=np.full(30, 0.5))
    config = replace(CONFIG, task="phase", data=DataConfig(file="x.npz", num_train=20, num_val=5, num_test=5))
    with pytest.raises(BadRequestError, match="all training targets are 1"):
        load_data(PROBLEM, config)
