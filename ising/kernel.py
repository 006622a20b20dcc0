# Experiment: yours, to replace.
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

**Clusters.** wolff.py explains the algorithm. Here, one cluster is flipped in each chain at the same time. The tosses
choose all bonds of the lattice, each with the probability of its chain. Each chain has its own random site, as a bit in
a word of that site. Then the clusters grow along the bonds, in all chains at once, by

    cluster[neighbour] |= cluster[site] & bond[site]

along the rows and from row to row, until nothing changes.

**Measuring.** The number of unlike pairs and of spins up is counted for 64 chains at once, by adding words as binary
numbers: one word holds the last digit of 64 sums, another one the next digit, and so on.

All code of this sampler that is compiled is in this file, because Numba caches the result and only checks the caller's
file for changes.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy import uint64
from numpy.typing import NDArray

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

WORDS = 8  # number of words of chains in a block whose clusters are flipped
LARGEST_SIZE = 1024  # of lattices whose clusters are flipped
ROW_ARRAYS = np.dtype(  # one row of a lattice: its even and odd columns, and the bonds of its sites of colour 0
    [(name, np.uint64, (LARGEST_SIZE // 2, WORDS)) for name in ("even", "odd", "same", "beside")]
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
    lanes: NDArray[np.void]  # (B,) LANE_ARRAYS; lane (s % P) W + w serves site s of word w
    n_positions: int  # P

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


def new_blocks(lattice_size: int, n_blocks: int, n_words: int, n_positions: int) -> Blocks:
    """Allocate blocks of chains, which `start` fills. P is at most L^2 / 2, and P W at most LANES."""
    half = lattice_size // 2
    # In the same row, column j of one colour has its neighbours at columns j and j - 1 or j + 1 of the other colour;
    # the sign alternates with the row.
    colour, row, column = np.indices((2, lattice_size, half))
    beside = (column + np.where((colour + row) % 2, 1, -1)) % half - column
    return Blocks(
        spins=_zeros((n_blocks, 2, lattice_size + 2, half * n_words), np.dtype(np.uint64)),
        beside=np.repeat(beside.reshape(2, -1) * n_words, n_words, axis=1).astype(np.int32),
        lanes=_zeros((n_blocks,), LANE_ARRAYS),
        n_positions=n_positions,
        remainders=np.empty((n_blocks, 2, n_words, 64), np.uint64),
    )


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros that begin at a cache line (64 bytes): a vector that lies across two lines takes twice as long to load."""
    n_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(n_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


@compiled
def start(blocks: Blocks, temperatures: NDArray[np.float64], key: Words, first_word: int, ordered_below: float) -> None:
    """Set up random streams, probabilities, and spins: ordered below a temperature, random otherwise.

    Args:
        temperatures: (B, W, 64), in J / k_B.
        key: (4,), the seed of all streams.
        first_word: index of the first word of these blocks among all words of the call.
    """
    n_blocks, n_words, _ = temperatures.shape
    n_positions = blocks.n_positions
    row_length = blocks.spins.shape[3]
    for block in range(n_blocks):
        lanes = blocks.lanes[block]
        for word in range(n_words):
            for chain in range(64):
                temperature = temperatures[block, word, chain]
                lanes.flip[word] |= uint64(temperature < ordered_below) << uint64(chain)
                p = math.exp(-4 / temperature)
                _set_probability(lanes, blocks.remainders[block], 0, word, chain, p * p)
                _set_probability(lanes, blocks.remainders[block], 1, word, chain, p)
        _set_streams(lanes, n_words, n_positions, key, first_word + block * n_words)

        for colour in range(2):
            spins = blocks.spins[block, colour].reshape(-1)
            for i in range(row_length, spins.size - row_length):
                ordered = lanes.flip[i % n_words]
                spins[i] = ordered | _random_word(lanes, (i - row_length) % (n_positions * n_words))


@compiled
def _set_probability(lanes: Any, remainders: Words, one: int, word: int, chain: int, p: float) -> None:  # noqa: PLR0917
    """Set the binary digits of a probability: the first ones in lane `word`, the others in `remainders`."""
    binary = uint64(min(p, 1 - 2.0**-53) * 2.0**64)  # 1 would overflow
    for k in range(TOSSES):
        lanes.digit[one, k, word] |= (binary >> uint64(63 - k) & uint64(1)) << uint64(chain)
    remainders[one, word, chain] = binary << uint64(TOSSES)


@compiled
def _set_streams(lanes: Any, n_words: int, n_positions: int, key: Words, first_word: int) -> None:
    """Set up the random stream of every lane, and copy the digits of the first lanes to the others."""
    for lane in range(n_positions * n_words):
        position, word = divmod(lane, n_words)
        stream = uint64((first_word + word) * n_positions + position)
        for i in range(4):
            lanes.state[i, lane] = _hash(key[i], stream)
        for one in range(2):
            for k in range(TOSSES):
                lanes.digit[one, k, lane] = lanes.digit[one, k, word]


@compiled
def sweep(blocks: Blocks, n_sweeps: int) -> None:
    """Propose one flip of every spin of every chain, n_sweeps times."""
    n_blocks, _, _, row_length = blocks.spins.shape
    n_words = blocks.remainders.shape[2]
    n_lanes = blocks.n_positions * n_words
    for block in range(n_blocks):
        lanes = blocks.lanes[block]
        for half_sweep in range(2 * n_sweeps):
            colour = half_sweep % 2
            here = blocks.spins[block, colour].reshape(-1)[row_length:-row_length]
            there = blocks.spins[block, 1 - colour].reshape(-1)
            _copy_boundary(there, row_length)
            for first in range(0, here.size, n_lanes):
                spins = here[first : first + n_lanes]
                _compare(lanes, spins, there[first:], blocks.beside[colour, first:], row_length)
                _toss(lanes, spins.size)
                _decide(lanes, blocks.remainders[block], spins.size)
                for i in range(spins.size):
                    spins[i] ^= lanes.flip[i]


@compiled
def _copy_boundary(spins: Words, row_length: int) -> None:
    """Copy the last row before the first, and the first row behind the last: periodic boundaries."""
    end = spins.size - row_length
    for i in range(row_length):
        spins[i] = spins[end - row_length + i]
        spins[end + i] = spins[row_length + i]


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


# ---------------------------------------------------------------------------------------------------- Wolff's algorithm


class Clusters(NamedTuple):
    """What the Wolff algorithm needs in addition to B blocks of W = WORDS words of chains.

    Each site of colour 0 has four neighbours of colour 1. There are no other pairs, so their bonds are all bonds.
    """

    bonds: Words  # (B, 4, L^2 W / 2): chains with a bond to the neighbour at the same place, beside it, above, below
    cluster: Words  # (B, 2, L, L W / 2): chains whose cluster contains the site
    lanes: NDArray[np.void]  # (B,) LANE_ARRAYS, in which digit[1] is that of the probability of a bond
    remainders: Words  # (B, 2, W, 64): as in Blocks
    changed: NDArray[np.uint8]  # (L,): see _flood
    row: NDArray[np.void]  # (1,) ROW_ARRAYS, for _spread


def new_clusters(blocks: Blocks) -> Clusters:
    """Allocate the arrays for some blocks of chains, which `start_clusters` fills."""
    n_blocks, _, n_rows, row_length = blocks.spins.shape
    size = n_rows - 2
    return Clusters(
        bonds=_zeros((n_blocks, 4, size * row_length), np.dtype(np.uint64)),
        cluster=_zeros((n_blocks, 2, size, row_length), np.dtype(np.uint64)),
        lanes=_zeros((n_blocks,), LANE_ARRAYS),
        remainders=np.zeros_like(blocks.remainders),
        changed=np.zeros(size, np.uint8),
        row=_zeros((1,), ROW_ARRAYS),
    )


@compiled
def start_clusters(
    blocks: Blocks, clusters: Clusters, temperatures: NDArray[np.float64], key: Words, first_word: int
) -> None:
    """Set up random streams, and the probability of a bond, 1 - exp(-2 / T). The arguments are those of `start`."""
    n_blocks, n_words, _ = temperatures.shape
    for block in range(n_blocks):
        lanes = clusters.lanes[block]
        lanes.one[:] = ~uint64(0)
        for word in range(n_words):
            for chain in range(64):
                p = -math.expm1(-2 / temperatures[block, word, chain])
                _set_probability(lanes, clusters.remainders[block], 1, word, chain, p)
        _set_streams(lanes, n_words, blocks.n_positions, key, first_word + block * n_words)


@compiled
def flip_clusters(blocks: Blocks, clusters: Clusters) -> None:
    """Flip one cluster in every chain: U. Wolff, Phys. Rev. Lett. 62, 361 (1989).

    Neighbours that are alike are connected by a bond with probability 1 - exp(-2 / T). The cluster consists of all
    sites that bonds connect to a random site.
    """
    n_blocks, _, _, row_length = blocks.spins.shape
    n_words, size = blocks.remainders.shape[2], len(clusters.changed)
    for block in range(n_blocks):
        lanes, cluster = clusters.lanes[block], clusters.cluster[block]
        _choose_bonds(blocks, clusters, block)
        cluster[:], clusters.changed[:] = 0, 0
        for word in range(n_words):
            for chain in range(64):
                site = np.int64((_random_word(lanes, word) >> uint64(32)) * uint64(size * size) >> uint64(32))
                column = site % size
                cluster[(site // size + column) % 2, site // size, column // 2 * n_words + word] |= uint64(1) << uint64(
                    chain
                )
                clusters.changed[site // size] = 3
        for row in range(size):
            if clusters.changed[row]:
                _spread(cluster, clusters.bonds[block], row, clusters.row[0], n_words)
        _flood(cluster, clusters.bonds[block], clusters.changed, clusters.row[0], n_words)
        for colour in range(2):
            spins = blocks.spins[block, colour].reshape(-1)[row_length:-row_length]
            flipped = cluster[colour].reshape(-1)
            for i in range(flipped.size):
                spins[i] ^= flipped[i]


@compiled
def _choose_bonds(blocks: Blocks, clusters: Clusters, block: int) -> None:
    """Connect each pair of like neighbours with probability 1 - exp(-2 / T)."""
    row_length, n_words = blocks.spins.shape[3], blocks.remainders.shape[2]
    lanes, n_lanes = clusters.lanes[block], blocks.n_positions * n_words
    here = blocks.spins[block, 0].reshape(-1)[row_length:-row_length]
    there = blocks.spins[block, 1].reshape(-1)
    _copy_boundary(there, row_length)
    for first in range(0, here.size, n_lanes):
        spins = here[first : first + n_lanes]
        for k in range(4):
            bonds = clusters.bonds[block, k, first : first + spins.size]
            if k == 1:
                for i in range(spins.size):
                    bonds[i] = spins[i] ^ there[row_length + first + i + blocks.beside[0, first + i]]
            else:
                neighbours = there[first + (row_length, 0, 0, 2 * row_length)[k] :]
                for i in range(spins.size):
                    bonds[i] = spins[i] ^ neighbours[i]
            for i in range(spins.size):
                lanes.flip[i] = bonds[i]  # no toss for chains in which the two are unlike
            _toss(lanes, spins.size)
            _decide(lanes, clusters.remainders[block], spins.size)
            for i in range(spins.size):
                bonds[i] = lanes.flip[i] & ~bonds[i]


@compiled
def _flood(cluster: Words, bonds: Words, changed: NDArray[np.uint8], arrays: Any, n_words: int) -> None:
    """Add all sites that bonds connect to the clusters. Pass down and up the rows until no row changes.

    changed: (L,), bit 0 if the row below, and bit 1 if the row above, has not been compared with the row since it
        changed.
    """
    size, row_length = cluster.shape[1:]
    again = True
    while again:
        again = False
        for bit in (1, 2):
            for i in range(size):
                row = i if bit == 1 else size - 1 - i
                if not changed[row] & bit:
                    continue
                changed[row] ^= bit
                other = (row + 1 if bit == 1 else row - 1 + size) % size
                # From colour 0 to the row below or above, and from colour 1, with the bonds of the other end
                out, back = (bonds[3, row * row_length :], bonds[2, other * row_length :])
                if bit == 2:
                    out, back = (bonds[2, row * row_length :], bonds[3, other * row_length :])
                new = _join(cluster[0, row], out, cluster[1, other]) | _join(cluster[1, row], back, cluster[0, other])
                if new:
                    _spread(cluster, bonds, other, arrays, n_words)
                    changed[other] = 3
                    again = True


@compiled
def _join(sites: Words, bonds: Words, neighbours: Words) -> uint64:
    """Add the neighbours that are connected to cluster sites. The result is 0 if all of them are already included."""
    new = uint64(0)
    for i in range(sites.size):
        joined = sites[i] & bonds[i] & ~neighbours[i]
        neighbours[i] |= joined
        new |= joined
    return new


@compiled
def _spread(cluster: Words, bonds: Words, row: int, arrays: Any, n_words: int) -> None:
    """Add the sites of a row that bonds within it connect to the cluster: to the right, then to the left.

    The row is copied to `arrays`, whose fields do not overlap, so that the compiler vectorizes the loops over words.
    """
    n = cluster.shape[2]
    even, odd = cluster[row % 2, row], cluster[1 - row % 2, row]
    same, beside = bonds[0, row * n : (row + 1) * n], bonds[1, row * n : (row + 1) * n]
    copied_even, copied_odd = arrays.even.reshape(-1), arrays.odd.reshape(-1)
    copied_same, copied_beside = arrays.same.reshape(-1), arrays.beside.reshape(-1)
    for i in range(n):
        copied_even[i], copied_odd[i], copied_same[i] = even[i], odd[i], same[i]
    # In even rows, the sites of colour 0 are in the even columns, and the neighbours beside them to their left.
    shift = n_words * (1 - row % 2)
    for i in range(n - shift):
        copied_beside[i] = beside[shift + i]
    for i in range(shift):
        copied_beside[n - shift + i] = beside[i]
    # Now arrays.same[j] is the bond from the even column j to the odd one, and arrays.beside[j] that from the odd
    # column j to the even column j + 1. The loops are repeated if a cluster grows across the periodic boundary.
    half = n // n_words
    new = ~uint64(0)
    while new:
        for j in range(half):
            after = j + 1 if j + 1 < half else 0
            for w in range(WORDS):
                odd_site = arrays.odd[j, w] | arrays.even[j, w] & arrays.same[j, w]
                arrays.odd[j, w] = odd_site
                arrays.even[after, w] |= odd_site & arrays.beside[j, w]
        new = uint64(0)
        for w in range(WORDS):
            new |= arrays.even[0, w] & arrays.same[0, w] & ~arrays.odd[0, w]
    new = ~uint64(0)
    while new:
        for j in range(half - 1, -1, -1):
            after = j + 1 if j + 1 < half else 0
            for w in range(WORDS):
                odd_site = arrays.odd[j, w] | arrays.even[after, w] & arrays.beside[j, w]
                arrays.odd[j, w] = odd_site
                arrays.even[j, w] |= odd_site & arrays.same[j, w]
        new = uint64(0)
        for w in range(WORDS):
            new |= arrays.even[0, w] & arrays.beside[half - 1, w] & ~arrays.odd[half - 1, w]
    for i in range(n):
        even[i], odd[i] = copied_even[i], copied_odd[i]


# ------------------------------------------------------------------------------------------------------------ measuring


@compiled
def measure(blocks: Blocks, energies: NDArray[np.int32], magnetizations: NDArray[np.int32]) -> None:
    """Measure the total energy and magnetisation of every chain, without unpacking. Both results are (B, W, 64).

    Pairs of unlike neighbours and spins that point up are counted by bits: a counter of 64 chains consists of words,
    one for each binary digit. There is one counter for each place in a row. Their sum is the result.
    """
    n_blocks, _, n_rows, row_length = blocks.spins.shape
    n_words, size = blocks.remainders.shape[2], n_rows - 2
    n_digits = 1
    while 2**n_digits <= 2 * size * size:
        n_digits += 1
    unlike = np.empty((n_digits + 3, row_length), np.uint64)  # the last three rows are what is added
    up = np.empty((n_digits + 3, row_length), np.uint64)
    carry = np.empty(row_length, np.uint64)
    for block in range(n_blocks):
        unlike[:], up[:] = 0, 0
        for row in range(size):
            even, odd = blocks.spins[block, row % 2, 1 + row], blocks.spins[block, 1 - row % 2, 1 + row]
            below = 1 + (row + 1) % size
            below_even, below_odd = blocks.spins[block, 1 - row % 2, below], blocks.spins[block, row % 2, below]
            _count_row(even, odd, below_even, below_odd, unlike[n_digits:], up[n_digits:], n_words)
            _add(unlike[:n_digits], unlike[n_digits:], carry)
            _add(up[:n_digits], up[n_digits : n_digits + 2], carry)
        for counter, result in ((unlike, energies), (up, magnetizations)):
            for i in range(n_words, row_length, n_words):  # add all places in the row to the first one
                _add(counter[:n_digits, :n_words], counter[:n_digits, i : i + n_words], carry)
            for word in range(n_words):
                _extract(counter[:n_digits, word], result[block, word])
        n_sites = size * size
        for word in range(n_words):
            for chain in range(64):
                energies[block, word, chain] = 2 * energies[block, word, chain] - 2 * n_sites
                magnetizations[block, word, chain] = 2 * magnetizations[block, word, chain] - n_sites


@compiled
def _extract(digits: Words, numbers: NDArray[np.int32]) -> None:
    """Read the counters of 64 chains, whose binary digits are words: (digits,) -> (64,)."""
    numbers[:] = 0
    for k in range(len(digits)):
        digit = digits[k]
        for chain in range(64):
            numbers[chain] += np.int32(digit >> uint64(chain) & uint64(1)) << k


@compiled
def _count_row(  # noqa: PLR0917 - Numba has no keyword-only arguments
    even: Words, odd: Words, below_even: Words, below_odd: Words, unlike: Words, up: Words, n_words: int
) -> None:
    """Count the unlike pairs at two neighbouring sites of a row, 0 to 4 as 3 digits, and the spins up, as 2 digits."""
    n = even.size
    for i in range(n):
        a, b = even[i], odd[i]
        up[0, i], up[1, i] = a ^ b, a & b
        unlike[0, i] = b ^ even[i + n_words - (n if i + n_words >= n else 0)]
    for i in range(n):
        a, b, c, d = unlike[0, i], even[i] ^ odd[i], even[i] ^ below_even[i], odd[i] ^ below_odd[i]
        ab, cd = a ^ b, c ^ d
        two, other_two, carried = a & b, c & d, ab & cd
        unlike[0, i] = ab ^ cd
        unlike[1, i] = two ^ other_two ^ carried
        unlike[2, i] = two & other_two


@compiled
def _add(counter: Words, number: Words, carry: Words) -> None:
    """Add numbers to counters, both as binary digits: (digits, n), (fewer or as many digits, n)."""
    n = counter.shape[1]
    for i in range(n):
        carry[i] = 0
    for k in range(counter.shape[0]):
        digit = counter[k]
        if k < number.shape[0]:
            other = number[k]
            for i in range(n):
                x, y, c = digit[i], other[i], carry[i]
                digit[i] = x ^ y ^ c
                carry[i] = x & y | (x ^ y) & c
        else:
            for i in range(n):
                x, c = digit[i], carry[i]
                digit[i] = x ^ c
                carry[i] = x & c
