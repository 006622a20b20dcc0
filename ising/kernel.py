"""The compiled part of multispin.py: the Metropolis algorithm on 64 lattices at once, one per bit of a machine word.

The Markov chain is that of metropolis.py; read that file first. Here, a word of 64 bits holds the spins of one site in
64 independent chains (1: spin up), so one instruction updates all of them. The compiler also packs eight words, or as
many as the processor supports, into one vector (SIMD).

**Three kinds of flips.** Flipping a spin changes the energy by dE = 8 - 4 u, where u of its four neighbours are unlike
it (have the opposite sign). XOR of the spin with each neighbour gives four words a, b, c, d, with a 1 for each chain in
which this neighbour is unlike. The word (a & b) | (c & d) | ((a ^ b) & (c ^ d)) is 1 where u >= 2. There dE <= 0, and
the spin is flipped. Among the other chains, a ^ b ^ c ^ d is 1 where u = 1: the spin is flipped with probability
p = exp(-4 / T). In the remaining chains u = 0: the spin is flipped with probability p^2 = exp(-8 / T). Each chain has
its own T and p.

**Bits that are 1 with probability p.** Toss a coin until it shows heads. If this happens at toss k, the result is the
k-th binary digit of p = 0.p1 p2 p3 ...: it is 1 with probability sum_k 2^-k p_k = p. One random word is one toss for
each of 64 chains. An example with four chains:

                chain 3   2   1   0        p of chain 3 = 0.101..., of 2 = 0.011..., of 1 = 0.110..., of 0 = 0.010...
    1st word          0   1   0   0        heads in chain 2: the result is the 1st digit of its p, 0
    2nd word          1   1   0   1        heads in chains 3 and 0 (2 is already decided): their 2nd digits, 0 and 1
    3rd word          0   0   1   0        heads in chain 1: its 3rd digit, 0

The same tosses serve p and p^2, since they only select which digit is used. After TOSSES tosses, one bit in 1024 is
undecided. For each undecided bit, a random integer of 64 bits is compared with the remaining digits of p, and the bit
is 1 if the integer is smaller. The probability is therefore p in double precision, truncated below 2^-64.

**Random numbers.** Each lane of a vector has its own random stream (xoshiro256++: D. Blackman, S. Vigna, ACM Trans.
Math. Softw. 47, 36 (2021)). A stream is used for one word of chains at one position on the lattice, and each chain uses
its own bit. No two chains share a random bit, so the result does not depend on how chains are divided among blocks and
threads.

All compiled code is in this file, because Numba caches the result and only checks the caller's file for changes.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy import uint64
from numpy.typing import NDArray

from ising.exact import T_CRITICAL

LANES = 128  # number of sites times number of words of chains that are updated together
TOSSES = 10  # for all lanes; from 16 on, the compiler neither unrolls nor vectorizes the loop over tosses

Words = NDArray[np.uint64]
Function = TypeVar("Function", bound=Callable[..., Any])

# The arrays of the inner loops. They are fields of fixed length in one record, so the compiler knows that they do not
# overlap. Otherwise it would not vectorize the loops.
LANE_ARRAYS = np.dtype(
    [
        ("state", np.uint64, (4, LANES)),  # of the random stream of each lane
        ("digit", np.uint64, (2, TOSSES, LANES)),  # the first binary digits of p^2 (index 0) and p (index 1)
        ("flip", np.uint64, LANES),  # chains in which the spin is flipped; in `start`, those that start ordered
        ("one", np.uint64, LANES),  # chains in which exactly one neighbour is unlike the spin
        ("undecided", np.uint64, LANES),  # chains that need more tosses; in `_compare`, a neighbour
    ]
)


class Blocks(NamedTuple):
    """B blocks of W words of chains. The two colours of the checkerboard are stored separately, W words for each site:

        row 0   x . x . x .       colour 0: columns 0 2 4       colour 1: columns 1 3 5
        row 1   . x . x . x                 columns 1 3 5                 columns 0 2 4

    A site has four neighbours in the arrays of the other colour: at the same place, beside it (left or right, depending
    on the row), above and below.
    """

    spins: Words  # (B, 2, L + 2, L W / 2): by colour and row; row 0 is a copy of row L, and row L + 1 of row 1
    beside: NDArray[np.int32]  # (2, L^2 W / 2): offset of the second neighbour in the same row from the first
    lanes: NDArray[np.void]  # (B,) LANE_ARRAYS; lane (s % P) W + w serves site s of word w; P = min(L^2 / 2, LANES)
    remainders: Words  # (B, 2, W, 64): digits of p^2 and p after the first TOSSES, in units of 2^-64


def compiled(function: Function) -> Function:
    """Compile a function with Numba when it is first called. The machine code is cached on disk if possible."""
    try:
        Path.home()  # raises RuntimeError if there is no home folder: Numba could then create a folder named "~"
        return cast(Function, numba.njit(nogil=True, cache=True)(function))
    except (RuntimeError, OSError):
        return cast(Function, numba.njit(nogil=True)(function))


def require_compiler() -> None:
    """Raise RuntimeError if the settings of Numba switch compilation off. Sampling would take hours."""
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise RuntimeError("NUMBA_DISABLE_JIT or .numba_config.yaml switches the compiler off: unset it")


@compiled
def _next(a: uint64, b: uint64, c: uint64, d: uint64) -> tuple[uint64, uint64, uint64, uint64, uint64]:
    """The next word of a random stream, and its new state (xoshiro256++)."""
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
def _random_word(lanes: Any, lane: int) -> uint64:
    """The next word of the random stream of one lane."""
    state = lanes.state
    word, a, b, c, d = _next(state[0, lane], state[1, lane], state[2, lane], state[3, lane])
    state[0, lane], state[1, lane], state[2, lane], state[3, lane] = a, b, c, d
    return word


@compiled
def _hash(key: uint64, counter: uint64) -> uint64:
    """A pseudo-random word that differs for every counter (SplitMix64, which S. Vigna recommends to seed xoshiro)."""
    z = key + counter * uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> uint64(30)) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> uint64(27)) * uint64(0x94D049BB133111EB)
    return z ^ z >> uint64(31)


def new_blocks(lattice_size: int, n_blocks: int, n_words: int) -> Blocks:
    """Allocate blocks of chains, which `start` fills."""
    half = lattice_size // 2
    # In the same row, column j of one colour has its neighbours at columns j and j - 1 or j + 1 of the other colour;
    # the sign alternates with the row.
    colour, row, column = np.indices((2, lattice_size, half))
    beside = (column + np.where((colour + row) % 2, 1, -1)) % half - column
    return Blocks(
        spins=_zeros((n_blocks, 2, lattice_size + 2, half * n_words), np.dtype(np.uint64)),
        beside=np.repeat(beside.reshape(2, -1) * n_words, n_words, axis=1).astype(np.int32),
        lanes=_zeros((n_blocks,), LANE_ARRAYS),
        remainders=np.empty((n_blocks, 2, n_words, 64), np.uint64),
    )


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros that begin at a cache line (64 bytes): a vector that lies across two lines takes twice as long to load."""
    n_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(n_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


@compiled
def start(blocks: Blocks, temperatures: NDArray[np.float64], key: Words, first_word: int) -> None:
    """Set up random streams, probabilities, and spins: ordered below T_c, random otherwise.

    Args:
        temperatures: (B, W, 64), in J / k_B.
        key: (4,), the seed of all streams.
        first_word: index of the first word of these blocks among all words of the call.
    """
    n_blocks, n_words, _ = temperatures.shape
    n_positions = min(blocks.beside.shape[1] // n_words, LANES)
    row_length = blocks.spins.shape[3]
    for block in range(n_blocks):
        lanes = blocks.lanes[block]
        _set_probabilities(lanes, blocks.remainders[block], temperatures[block])
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
                ordered = lanes.flip[i % n_words]
                spins[i] = ordered | _random_word(lanes, (i - row_length) % (n_positions * n_words))


@compiled
def _set_probabilities(lanes: Any, remainders: Words, temperatures: NDArray[np.float64]) -> None:
    """Set the binary digits of p^2 and p in the first W lanes, and the chains that start ordered in their `flip`."""
    for word in range(len(temperatures)):
        for chain in range(64):
            temperature = temperatures[word, chain]
            lanes.flip[word] |= uint64(temperature < T_CRITICAL) << uint64(chain)
            p = min(math.exp(-4 / temperature), 1 - 2.0**-53)  # 1 would overflow below
            for one in range(2):
                binary = uint64((p if one else p * p) * 2.0**64)
                for k in range(TOSSES):
                    lanes.digit[one, k, word] |= (binary >> uint64(63 - k) & uint64(1)) << uint64(chain)
                remainders[one, word, chain] = binary << uint64(TOSSES)


@compiled
def sweep(blocks: Blocks, n_sweeps: int) -> None:
    """Propose one flip of every spin of every chain, n_sweeps times."""
    n_blocks, _, _, row_length = blocks.spins.shape
    n_words = blocks.remainders.shape[2]
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
                _decide(lanes, blocks.remainders[block], spins.size)
                for i in range(spins.size):
                    spins[i] ^= lanes.flip[i]


@compiled
def _compare(lanes: Any, spins: Words, there: Words, beside: NDArray[np.int32], row_length: int) -> None:
    """Find the chains in which two or more neighbours are unlike the spin (`flip`) or exactly one is (`one`)."""
    above, same, below = there, there[row_length:], there[2 * row_length :]
    for i in range(spins.size):
        # Copied first, so the loop below reads memory in order. `same[i + beside[i]]` would be wrong: its index can be
        # -1, which counts from the end.
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
    """Toss for the chains in which the flip costs energy. Nearly all of the time is spent here."""
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
def _decide(lanes: Any, remainders: Words, n: int) -> None:
    """Decide the undecided bits, with one random number for each of them. remainders: (2, W, 64)."""
    for i in range(n):
        undecided = lanes.undecided[i]
        while undecided:
            bit = undecided & (~undecided + uint64(1))  # the lowest bit that is set
            chain = math.frexp(bit)[1] - 1  # its index: bit = 2^chain
            one = 1 if lanes.one[i] & bit else 0
            if _random_word(lanes, i) < remainders[one, i % remainders.shape[1], chain]:
                lanes.flip[i] |= bit
            undecided ^= bit


@compiled
def unpack(blocks: Blocks, configurations: NDArray[np.int8]) -> None:
    """Write chains as -1 and +1, and flip each as a whole with probability 1/2. configurations: (N, L, L)."""
    n_chains, size, _ = configurations.shape
    n_words = blocks.remainders.shape[2]
    for first in range(0, n_chains, 64):
        block, word = divmod(first // 64, n_words)
        flipped = _random_word(blocks.lanes[block], word)  # one bit per chain
        for row in range(size):
            for chain in range(min(64, n_chains - first)):
                for column in range(size):
                    spins = blocks.spins[block, (row + column) % 2, 1 + row, column // 2 * n_words + word] ^ flipped
                    up = spins >> uint64(chain) & uint64(1)
                    configurations[first + chain, row, column] = 2 * np.int8(up) - 1
