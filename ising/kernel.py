"""What multispin.py compiles: the Metropolis algorithm on 64 lattices at once, one in each bit of a machine word.

It is the Markov chain of metropolis.py, which is the file to read first. Here a word of 64 bits holds one site of 64
independent chains, bit 1 for spin up, so that one instruction works on all of them; and the compiler joins eight words,
or as many as the machine can, into one vector (SIMD).

**Which flips are free.** Flipping a spin changes the energy by dE = 8 - 4 u, where u of its four neighbours are unlike
it. XOR says which are, in 64 chains at a time: a, b, c, d. Then (a & b) | (c & d) | ((a ^ b) & (c ^ d)) means u >= 2,
so that dE <= 0 and the spin is flipped; of the others, a ^ b ^ c ^ d means u = 1, a flip with p = exp(-4 / T), and all
else u = 0, a flip with p^2 = exp(-8 / T). Every chain has its own T and so its own p.

**A bit that is 1 with probability p.** Toss a coin until it shows heads; if that is toss k, take the k-th binary digit
of p = 0.p1 p2 p3 ...: it is 1 with probability sum_k 2^-k p_k = p. A random word is one toss for 64 chains, here four:

                chain 3   2   1   0        p of chain 3 = 0.101..., of 2 = 0.011..., of 1 = 0.110..., of 0 = 0.010...
    1st word          0   1   0   0        heads for chain 2, which takes its 1st digit: 0
    2nd word          1   1   0   1        heads for 3 and 0 (and 2, which is decided): their 2nd digits: 0 and 1
    3rd word          0   0   1   0        heads for 1: its 3rd digit: 0

One draw serves for p and p^2, since all that matters is whose digit is taken. After TOSSES tosses one bit in 1024 is
undecided. Such a bit draws a random number of 64 bits for itself, and is 1 if that is below the rest of p, behind the
digits that were tossed for: p is right to double precision, cut off below 2^-64.

**Random numbers.** Each lane of a vector has a stream of its own (xoshiro256++: D. Blackman, S. Vigna, ACM Trans. Math.
Softw. 47, 36 (2021)), which belongs to one word of chains and one position on the lattice; a chain has its own bit of
it. So no two chains share a random bit, and it makes no difference how chains are shared out among blocks and threads.

All that is compiled is in this one file: Numba caches the result, and only looks for changes in the caller's file.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy import uint64
from numpy.typing import NDArray

from ising.exact import T_CRITICAL

LANES = 128  # sites, times words of chains, that are offered a flip together
TOSSES = 10  # for all lanes alike; from 16 on the compiler does not unroll their loop and makes no vectors

Words = NDArray[np.uint64]
Function = TypeVar("Function", bound=Callable[..., Any])

# What the inner loops work on. In a record of arrays of fixed length the compiler sees that no two of them overlap;
# else it would not dare to use vectors.
LANE_ARRAYS = np.dtype(
    [
        ("state", np.uint64, (4, LANES)),  # of the lane's random stream
        ("digit", np.uint64, (2, TOSSES, LANES)),  # the first binary digits of p^2 (index 0) and of p (index 1)
        ("flip", np.uint64, LANES),  # the chains that flip the spin; while starting, those that start cold
        ("one", np.uint64, LANES),  # the chains in which one neighbour is unlike the spin
        ("undecided", np.uint64, LANES),  # the chains to toss on for; while comparing, a neighbour
    ]
)


class Blocks(NamedTuple):
    """B blocks of W words of chains. The two colours of the checkerboard are stored apart, W words for each site:

        row 0   x . x . x .       colour 0: columns 0 2 4       colour 1: columns 1 3 5
        row 1   . x . x . x                 columns 1 3 5                 columns 0 2 4

    The neighbours of a site are, in the other colour: the one in the same place, the one beside that, left or right
    depending on the row, the one above and the one below.
    """

    spins: Words  # (B, 2, L + 2, L W / 2): by colour and row; the row before the first is a copy of the last, and so on
    beside: NDArray[np.int32]  # (2, L^2 W / 2): how far from the first the second neighbour in the same row stands
    lanes: NDArray[np.void]  # (B,) LANE_ARRAYS; lane (s % P) W + w serves site s of word w; P = min(L^2 / 2, LANES)
    rest: Words  # (B, 2, W, 64): of p^2 and p, behind the digits that are tossed for, in units of 2^-64


def compiled(function: Function) -> Function:
    """Compile a function with Numba, when it is first called on a machine: the result is kept, if there is a place."""
    try:
        return cast(Function, numba.njit(nogil=True, cache=True)(function))
    except (RuntimeError, OSError):
        return cast(Function, numba.njit(nogil=True)(function))


@compiled
def _next(a: uint64, b: uint64, c: uint64, d: uint64) -> tuple[uint64, uint64, uint64, uint64, uint64]:
    """The next word of a stream and its state behind that (xoshiro256++)."""
    total = a + d
    word = (total << uint64(23) | total >> uint64(41)) + a
    shifted = b << uint64(17)
    c ^= a
    d ^= b
    b ^= c
    a ^= d
    c ^= shifted
    d = d << uint64(45) | d >> uint64(19)
    return word, a, b, c, d


@compiled
def _draw(lanes: Any, lane: int) -> uint64:
    """A random word from the stream of one lane."""
    state = lanes.state
    word, a, b, c, d = _next(state[0, lane], state[1, lane], state[2, lane], state[3, lane])
    state[0, lane], state[1, lane], state[2, lane], state[3, lane] = a, b, c, d
    return word


@compiled
def _hash(key: uint64, counter: uint64) -> uint64:
    """A word that looks random and differs for every counter (SplitMix64: S. Vigna's advice for seeding xoshiro)."""
    z = key + counter * uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> uint64(30)) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> uint64(27)) * uint64(0x94D049BB133111EB)
    return z ^ z >> uint64(31)


def new_blocks(lattice_size: int, n_blocks: int, n_words: int) -> Blocks:
    """Room for blocks of chains, to be filled by `start`."""
    half = lattice_size // 2
    # Column j of a colour has its neighbours in the same row at columns j and, by turns, j - 1 or j + 1 of the other.
    colour, row, column = np.indices((2, lattice_size, half))
    beside = (column + np.where((colour + row) % 2, 1, -1)) % half - column
    return Blocks(
        spins=_zeros((n_blocks, 2, lattice_size + 2, half * n_words), np.dtype(np.uint64)),
        beside=np.repeat(beside.reshape(2, -1) * n_words, n_words, axis=1).astype(np.int32),
        lanes=_zeros((n_blocks,), LANE_ARRAYS),
        rest=np.empty((n_blocks, 2, n_words, 64), np.uint64),
    )


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array that begins with a cache line of 64 bytes: a vector that lies across two takes twice as long to load."""
    n_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(n_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


@compiled
def start(blocks: Blocks, temperatures: NDArray[np.float64], key: Words, first_word: int) -> None:
    """Set up streams, probabilities, and spins: random ones, ordered below T_c.

    temperatures (B, W, 64); key (4,) of all streams; the number of the first word here among all that are drawn.
    """
    n_blocks, n_words, _ = temperatures.shape
    n_positions = min(blocks.beside.shape[1] // n_words, LANES)
    row_length = blocks.spins.shape[3]
    for block in range(n_blocks):
        lanes = blocks.lanes[block]
        _set_probabilities(lanes, blocks.rest[block], temperatures[block])
        for lane in range(n_positions * n_words):
            position, word = divmod(lane, n_words)
            stream = uint64((first_word + block * n_words + word) * n_positions + position)
            for i in range(4):
                lanes.state[i, lane] = _hash(key[i], stream)
            for one in range(2):
                for k in range(TOSSES):
                    lanes.digit[one, k, lane] = lanes.digit[one, k, word]
        for colour in range(2):
            spins = blocks.spins[block, colour].reshape(-1)
            for i in range(row_length, spins.size - row_length):
                cold = lanes.flip[i % n_words]
                spins[i] = cold | _draw(lanes, (i - row_length) % (n_positions * n_words))


@compiled
def _set_probabilities(lanes: Any, rest: Words, temperatures: NDArray[np.float64]) -> None:
    """Binary digits of p^2 and p, in the first W lanes, and the chains that start cold, in their `flip`."""
    for word in range(len(temperatures)):
        for chain in range(64):
            temperature = temperatures[word, chain]
            lanes.flip[word] |= uint64(temperature < T_CRITICAL) << uint64(chain)
            p = min(math.exp(-4 / temperature), 1 - 2.0**-53)
            for one in range(2):
                binary = uint64((p if one else p * p) * 2.0**64)
                for k in range(TOSSES):
                    lanes.digit[one, k, word] |= (binary >> uint64(63 - k) & uint64(1)) << uint64(chain)
                rest[one, word, chain] = binary << uint64(TOSSES)


@compiled
def sweep(blocks: Blocks, n_sweeps: int) -> None:
    """Offer every spin of every chain a flip, n_sweeps times."""
    n_blocks, _, _, row_length = blocks.spins.shape
    n_words = blocks.rest.shape[2]
    n_lanes = min(blocks.beside.shape[1] // n_words, LANES) * n_words
    for block in range(n_blocks):
        lanes = blocks.lanes[block]
        for half_sweep in range(2 * n_sweeps):
            colour = half_sweep % 2
            here = blocks.spins[block, colour].reshape(-1)[row_length:-row_length]
            there = blocks.spins[block, 1 - colour].reshape(-1)
            for i in range(row_length):  # periodic boundaries
                there[i] = there[here.size + i]
                there[row_length + here.size + i] = there[row_length + i]
            for first in range(0, here.size, n_lanes):
                spins = here[first : first + n_lanes]
                _compare(lanes, spins, there[first:], blocks.beside[colour, first:], row_length)
                _toss(lanes, spins.size)
                _decide(lanes, blocks.rest[block], spins.size)
                for i in range(spins.size):
                    spins[i] ^= lanes.flip[i]


@compiled
def _compare(lanes: Any, spins: Words, there: Words, beside: NDArray[np.int32], row_length: int) -> None:
    """Find out where two neighbours or more are unlike the spin, and where exactly one is."""
    above, same, below = there, there[row_length:], there[2 * row_length :]
    for i in range(spins.size):
        # copied first, so that the loop below reads memory in order; an index below 0 would count from the end
        lanes.undecided[i] = there[row_length + i + beside[i]]
    for i in range(spins.size):
        a = spins[i] ^ above[i]
        b = spins[i] ^ below[i]
        c = spins[i] ^ same[i]
        d = spins[i] ^ lanes.undecided[i]
        two = a & b | c & d | (a ^ b) & (c ^ d)
        lanes.flip[i] = two
        lanes.one[i] = (a ^ b ^ c ^ d) & ~two


@compiled
def _toss(lanes: Any, n: int) -> None:
    """Toss for the chains where the flip costs energy: nearly all of the time is spent here."""
    for i in range(n):
        a, b, c, d = lanes.state[0, i], lanes.state[1, i], lanes.state[2, i], lanes.state[3, i]
        flip, one = lanes.flip[i], lanes.one[i]
        undecided = ~flip
        for k in range(TOSSES):
            heads, a, b, c, d = _next(a, b, c, d)
            digit = one & lanes.digit[1, k, i] | ~one & lanes.digit[0, k, i]
            flip |= undecided & heads & digit
            undecided &= ~heads
        lanes.state[0, i], lanes.state[1, i], lanes.state[2, i], lanes.state[3, i] = a, b, c, d
        lanes.flip[i], lanes.undecided[i] = flip, undecided


@compiled
def _decide(lanes: Any, rest: Words, n: int) -> None:
    """Decide what is left by a random number for each chain. rest (2, W, 64)."""
    for i in range(n):
        undecided = lanes.undecided[i]
        while undecided:
            bit = undecided & (~undecided + uint64(1))  # the lowest that is set
            chain = math.frexp(bit)[1] - 1
            one = 1 if lanes.one[i] & bit else 0
            if _draw(lanes, i) < rest[one, i % rest.shape[1], chain]:
                lanes.flip[i] |= bit
            undecided ^= bit


@compiled
def unpack(blocks: Blocks, configurations: NDArray[np.int8]) -> None:
    """Flip each chain as a whole or not, and write it as -1 and +1. configurations (N, L, L), N <= 64 B W."""
    n_chains, size, _ = configurations.shape
    n_words = blocks.rest.shape[2]
    for first in range(0, n_chains, 64):
        block, word = divmod(first // 64, n_words)
        turn = _draw(blocks.lanes[block], word)
        for row in range(size):
            for chain in range(min(64, n_chains - first)):
                for column in range(size):
                    spins = blocks.spins[block, (row + column) % 2, 1 + row, column // 2 * n_words + word] ^ turn
                    up = spins >> uint64(chain) & uint64(1)
                    configurations[first + chain, row, column] = 2 * np.int8(up) - 1
