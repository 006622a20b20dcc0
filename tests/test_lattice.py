"""Energies, magnetisations and correlations, compared with explicit sums over bonds and checked for symmetries."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ising import lattice


@st.composite
def configurations(draw: st.DrawFn) -> NDArray[np.int8]:
    size = draw(st.sampled_from([4, 6, 8, 10]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.choice(np.array([-1, 1], dtype=np.int8), size=(size, size))


@given(configurations())
def test_energy_is_minus_the_sum_over_bonds(spins: NDArray[np.int8]) -> None:
    size = len(spins)
    bonds = 0
    for row in range(size):
        for column in range(size):
            here = int(spins[row, column])
            bonds += here * int(spins[row, (column + 1) % size]) + here * int(spins[(row + 1) % size, column])
    assert lattice.energy(spins) == -bonds


@given(configurations())
def test_energy_does_not_change_under_the_symmetries_of_the_model(spins: NDArray[np.int8]) -> None:
    energy = lattice.energy(spins)
    images = [-spins, np.rot90(spins), spins.T, spins[::-1], np.roll(spins, (1, 3), axis=(0, 1))]
    assert all(lattice.energy(image) == energy for image in images)
    assert all(np.array_equal(lattice.correlations(image), lattice.correlations(spins)) for image in images)


def test_known_configurations() -> None:
    up = np.ones((4, 4), dtype=np.int8)
    checkerboard = (1 - 2 * (np.indices((4, 4)).sum(axis=0) % 2)).astype(np.int8)
    one_flipped = up.copy()
    one_flipped[1, 2] = -1
    spins = np.array([up, -up, checkerboard, one_flipped])
    assert lattice.energy(spins).tolist() == [-32, -32, 32, -24]
    assert lattice.magnetization(spins).tolist() == [1, -1, 0, 14 / 16]
    assert lattice.energy(spins).dtype == np.int64
    assert lattice.magnetization(spins).dtype == np.float64


FUNCTIONS = [
    lattice.energy,
    lattice.magnetization,
    lattice.correlations,
    lambda spins: lattice.random_symmetries(spins, np.random.default_rng(0)),
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint64, complex, object])
def test_bits_and_unsigned_spins_are_refused(function: Callable[..., NDArray[Any]], dtype: type) -> None:
    with pytest.raises(ValueError, match=r"use 2 \* bits.astype\(np.int8\) - 1 for bits"):
        function(np.ones((3, 4, 4), dtype))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.float16, np.float32, np.float64])
def test_all_signed_types_give_the_same_results(function: Callable[..., NDArray[Any]], dtype: type) -> None:
    spins = np.random.default_rng(1).choice(np.array([-1, 1], np.int8), (5, 16, 16))
    np.testing.assert_array_equal(function(spins.astype(dtype)), function(spins))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", [(), (4,), (4, 6), (3, 4, 6)])
def test_other_shapes_are_refused(function: Callable[..., NDArray[Any]], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(..., L, L\)"):
        function(np.ones(shape, np.int8))


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4, 4)])
def test_random_symmetries_require_three_axes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(N, L, L\)"):
        lattice.random_symmetries(np.ones(shape, np.int8), np.random.default_rng(0))


def test_energies_do_not_overflow() -> None:
    assert lattice.energy(np.ones((1024, 1024), dtype=np.int8)) == -2 * 1024**2
    assert lattice.energy(np.full((4, 4), -100, np.int8)) == -320_000


def test_spins_may_have_other_values() -> None:
    assert lattice.energy(np.full((1, 4, 4), 0.5)).tolist() == [-8]
    assert lattice.energy([[1, -1], [1, 1]]) == 0
    spins = np.random.default_rng(5).uniform(-1, 1, (2, 6, 6))
    assert lattice.energy(spins) == pytest.approx(-72 * lattice.correlations(spins)[:, 0])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_spins_that_are_not_finite_are_refused(function: Callable[..., NDArray[Any]], value: float) -> None:
    with pytest.raises(ValueError, match="infinite or not a number"):
        function(np.full((3, 4, 4), value))


def test_children_of_a_seed_are_those_of_spawn_and_stay_the_same() -> None:
    for seed in (np.random.SeedSequence(3), np.random.SeedSequence(3, spawn_key=(1, 2), pool_size=8)):
        seed.spawn(1)
        children = [lattice.children(seed, 2) for _ in range(2)]
        states = [[child.generate_state(4).tolist() for child in each] for each in (*children, seed.spawn(2))]
        assert states[0] == states[1] == states[2]
    assert lattice.children(3, 1)[0].spawn_key == (0,)


@given(configurations())
def test_correlations_are_means_over_pairs(spins: NDArray[np.int8]) -> None:
    size = len(spins)
    values = spins.astype(int)
    by_class: dict[tuple[int, int], list[float]] = {}
    for down in range(size):
        for right in range(size):
            far, near = sorted((min(down, size - down), min(right, size - right)), reverse=True)
            by_class.setdefault((far, near), []).append(float((values * np.roll(values, (down, right), (0, 1))).mean()))
    expected = [np.mean(by_class[key]) for key in sorted(by_class) if key != (0, 0)]
    np.testing.assert_allclose(lattice.correlations(spins), expected, atol=1e-15)
    assert lattice.energy(spins) == pytest.approx(-2 * size**2 * lattice.correlations(spins)[0], abs=1e-9)


@pytest.mark.parametrize(("size", "classes"), [(4, 5), (8, 14), (16, 44)])
def test_number_of_classes(size: int, classes: int) -> None:
    assert lattice.correlations(np.ones((3, size, size), dtype=np.int8)).shape == (3, classes)


@pytest.mark.parametrize("size", [-4, 0, 1, 2, 3, 15])
def test_lattices_without_a_checkerboard_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"lattice size {size}"):
        lattice.check_lattice_size(size)


def test_random_symmetries_conserve_energies_and_correlations_and_give_every_image() -> None:
    rng = np.random.default_rng(0)
    spins = rng.choice(np.array([-1, 1], np.int8), size=(50, 6, 6))
    moved = lattice.random_symmetries(spins, rng)
    assert moved.dtype == np.int8
    assert not np.array_equal(moved, spins)
    np.testing.assert_array_equal(lattice.energy(moved), lattice.energy(spins))
    np.testing.assert_array_equal(lattice.correlations(moved), lattice.correlations(spins))
    # A configuration without symmetries has 16 shifts x 8 rotations and reflections x 2 signs, all equally likely.
    lone = np.ones((4, 4), np.int8)
    lone[0, 0] = lone[0, 1] = lone[1, 2] = lone[2, 0] = -1
    assert len({image.tobytes() for image in images_of(lone)}) == 256
    n = 256 * 200
    images = lattice.random_symmetries(np.broadcast_to(lone, (n, 4, 4)), rng)
    found, counts = np.unique(images.reshape(n, -1), axis=0, return_counts=True)
    assert len(found) == 256
    assert abs(((counts - 200) ** 2 / 200).sum() - 255) < 5 * np.sqrt(2 * 255)


def images_of(spins: NDArray[np.int8]) -> list[NDArray[np.int8]]:
    shifts = [np.roll(spins, (i, j), (0, 1)) for i in range(4) for j in range(4)]
    rotated = [np.rot90(each, k) for each in shifts for k in range(4)]
    return [sign * image for each in rotated for image in (each, each.T) for sign in (1, -1)]
