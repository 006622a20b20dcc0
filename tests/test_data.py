"""Splits: functions of config and seed alone, independent of each other, and in equilibrium or refused."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from config import DataConfig
from data import (
    SPINS_PER_BLOCK,
    Split,
    check_equilibrium,
    examples_around_tc,
    fingerprint,
    make_splits,
    memory_needed,
    require_equilibrium,
)
from ising import lattice
from ising.exact import T_CRITICAL
from utils import BadRequestError

SMALL = DataConfig(lattice_size=4, num_train=300, num_val=200, num_test=100)


def test_splits_have_the_shapes_and_the_range_that_were_asked_for() -> None:
    splits = make_splits(dataclasses.replace(SMALL, temp_min=2.0, temp_max=3.0), seed=0)
    assert [split.spins.shape for split in splits] == [(300, 4, 4), (200, 4, 4), (100, 4, 4)]
    for split in splits:
        assert split.spins.dtype == np.int8
        assert set(np.unique(split.spins)) == {-1, 1}
        assert split.temperatures.shape == split.spins.shape[:1]
        assert 2.0 <= split.temperatures.min() < 2.1
        assert 2.9 < split.temperatures.max() < 3.0


def test_data_are_a_function_of_config_and_seed() -> None:
    assert fingerprint(make_splits(SMALL, seed=1)) == fingerprint(make_splits(SMALL, seed=1))
    assert fingerprint(make_splits(SMALL, seed=1)) != fingerprint(make_splits(SMALL, seed=2))
    assert fingerprint(make_splits(SMALL, seed=1)) != fingerprint(
        make_splits(dataclasses.replace(SMALL, sweeps=20), seed=1)
    )


def test_no_split_depends_on_the_size_of_another() -> None:
    one = make_splits(SMALL, seed=3)
    other = make_splits(dataclasses.replace(SMALL, num_train=17), seed=3)
    np.testing.assert_array_equal(one.val.spins, other.val.spins)
    np.testing.assert_array_equal(one.test.spins, other.test.spins)
    np.testing.assert_array_equal(one.test.temperatures, other.test.temperatures)


def test_splits_share_no_chain() -> None:
    splits = make_splits(dataclasses.replace(SMALL, num_val=300, num_test=300, temp_min=3, lattice_size=8), seed=4)
    configurations = [spins.tobytes() for split in splits for spins in split.spins]
    assert len(set(configurations)) == 900  # 2^64 configurations: by chance no two of 900 hot ones are equal


def test_blocks_of_chains_differ() -> None:
    per_block = SPINS_PER_BLOCK // 32**2
    config = DataConfig(lattice_size=32, num_train=2 * per_block, num_val=1, num_test=1, sweeps=1, temp_min=3)
    spins = make_splits(config, seed=5).train.spins
    assert not np.array_equal(spins[:per_block], spins[per_block:])


def test_equilibrium_is_confirmed_and_its_absence_seen() -> None:
    config = DataConfig(num_train=4000, num_val=1, num_test=1)
    split = make_splits(config, seed=6).train
    check = check_equilibrium(split)
    assert abs(check.energy_z) < 4
    assert 0.1 < check.chi2_per_dof < 3
    require_equilibrium("train", check)

    hotter = Split(split.spins, split.temperatures * 1.05)
    with pytest.raises(BadRequestError, match=r"train split is not in equilibrium.*--sweeps"):
        require_equilibrium("train", check_equilibrium(hotter))

    # Cold starts lie below the exact energy and hot starts above: with too few sweeps the sum nearly cancels, the
    # temperature bins do not.
    unfinished = check_equilibrium(make_splits(dataclasses.replace(config, sweeps=4), seed=6).train)
    assert abs(unfinished.largest_bin_z) > 6


def test_equilibrium_z_is_the_sum_over_chains_by_hand() -> None:
    split = make_splits(DataConfig(lattice_size=4, num_train=100, num_val=64, num_test=1), seed=7).val
    from ising.exact import kaufman

    energy, specific_heat = kaufman(split.temperatures, 4)
    excess = float((lattice.energy(split.spins) - 16 * energy).sum())
    error = float(np.sqrt((16 * split.temperatures**2 * specific_heat).sum() + 64))
    assert check_equilibrium(split).energy_z == pytest.approx(excess / error, rel=1e-12)


def test_one_rare_excitation_in_the_cold_is_no_failure() -> None:
    spins = np.ones((500, 8, 8), np.int8)
    spins[7, 3, 3] = -1
    check = check_equilibrium(Split(spins, np.full(500, 0.55)))  # 0.02 excitations are expected
    assert 0.5 < check.energy_z < 2


@pytest.mark.parametrize("n", [1, 3])
def test_few_chains_can_be_checked(n: int) -> None:
    split = make_splits(dataclasses.replace(SMALL, num_test=n), seed=8).test
    assert all(np.isfinite(check_equilibrium(split)))


def test_examples_lie_around_the_critical_temperature() -> None:
    split = make_splits(DataConfig(num_train=100, num_val=1, num_test=1), seed=9).train
    spins, temperatures = examples_around_tc(split, n=5)
    assert spins.shape == (3, 5, 8, 8)
    assert temperatures.shape == (3, 5)
    below, at, above = temperatures.mean(axis=1)
    assert below < T_CRITICAL - 0.3
    assert at == pytest.approx(T_CRITICAL, abs=0.1)
    assert above > T_CRITICAL + 0.3

    for temp_min, temp_max in ((1.0, 1.6), (2.5, 4.0)):  # all on one side of T_c: the middle takes its place
        cold_or_hot = Split(split.spins, np.linspace(temp_min, temp_max, 100))
        rows = examples_around_tc(cold_or_hot, n=5)[1].mean(axis=1)
        np.testing.assert_allclose(rows, temp_min + (temp_max - temp_min) * np.array([0.25, 0.5, 0.75]), atol=0.05)
    index = int(np.flatnonzero(split.temperatures == temperatures[1, 0])[0])
    np.testing.assert_array_equal(split.spins[index], spins[1, 0])


def test_memory_is_no_more_than_was_said() -> None:
    config = DataConfig(lattice_size=32, num_train=15_000, num_val=1000, num_test=1000, sweeps=1, temp_min=3)
    tracemalloc.start()
    splits = make_splits(config, seed=10)
    for split in splits:
        check_equilibrium(split)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(split.spins.nbytes for split in splits) < peak < memory_needed(config)
