"""Scores of packed rows, a tile of 64 queries x 128 rows for a block of 128 threads.

Coordinates go through shared memory, 32 bytes a row at a time, twice: while one half is worked
with the other is filled. A thread keeps 8 x 8 sums in registers: 64 fused multiply-adds for four
loads of four numbers. Each score is summed in the order of the coordinates.

What does not change from one stage to the next is kept in shared memory as well: the compiler
would keep it in registers, of which the sums leave few. Loads are of some number in any case: a
branch around each would make them wait for one another.
"""

import functools

import numpy as np

from ..structures import LANES
from .jit import SIMULATED, cuda, inner_kernel
from .panels import decoder
from .simd import load4
from .tiles import add_row

__all__ = ["QUERIES", "ROWS", "THREADS", "stage_sizes", "stages"]

THREADS = 32 if SIMULATED else 128
QUERIES = THREADS // 2
"""Queries of a tile: 16 threads beside each other have 8, thread t those from ``t // 16 * 8``."""
ROWS = 128
"""Rows of a tile: thread t has four from ``t % 16 * 4`` on, and four half a tile behind them."""

# Numbers of a coordinate in shared memory: neighbouring threads write to different banks.
_A_PITCH, _B_PITCH = QUERIES + 4, ROWS + 16


def stage_sizes(dtype):
    """Coordinates of a stage, numbers of shared memory for queries and for rows.

    Then how many of either a thread takes.
    """
    depth = 32 // dtype.itemsize
    rooms = 2 * depth * _A_PITCH, 2 * depth * _B_PITCH
    return depth, *rooms, depth * QUERIES // THREADS, depth * ROWS // THREADS


@functools.cache
def stages(dtype, element):
    """Make the four parts of a product, for vectors and packed rows of these dtypes.

    ``ask`` and ``take`` a stage's coordinates of queries and rows, ``share`` them with the other
    threads, ``multiply`` what all have shared.
    """
    decode, zero = decoder(element), dtype.type(0)
    depth, _, _, n_a, n_b = stage_sizes(dtype)
    a_room, b_room = depth * _A_PITCH, depth * _B_PITCH
    bits = depth.bit_length() - 1

    @inner_kernel(forceinline=True)
    def number_of(i):
        """Number in a stage of this thread's i-th coordinate.

        The mask changes nothing, but tells the compiler how many threads there are and that none
        is negative; and places are unsigned, for what signed ones below 0 stand for is worked out
        each time. With neither a stage has twice the instructions beside its products.
        """
        return (cuda.threadIdx.x & THREADS - 1) + i * THREADS

    @inner_kernel(forceinline=True)
    def ask(queries, columns, sign, first, asked):
        """Take this thread's coordinates of the queries, from `first` on."""
        for i in range(n_a):
            at = number_of(i)
            f, column = first + (at & depth - 1), columns[at >> bits]
            inside = column >= 0 and f < queries.vectors.shape[1]
            value = queries.vectors[np.uintp(column if inside else 0), np.uintp(f if inside else 0)]
            asked[i] = sign * value if inside else zero

    @inner_kernel(forceinline=True)
    def take(packed, panels, widths, d, first, taken):
        """Take this thread's coordinates of the rows, from `first` on."""
        for i in range(n_b):
            at = number_of(i)
            f, lane, panel = first + (at >> 4 & depth - 1), at & LANES - 1, at >> bits + 4
            inside = lane < widths[panel] and f < d
            place = panels[panel] + f * widths[panel] + lane if inside else 0
            element = packed[np.uintp(place)]
            taken[i] = dtype.type(decode(element)) if inside else zero

    @inner_kernel(forceinline=True)
    def share(asked, taken, a, b, half):
        """Put what was taken where all threads find it."""
        for i in range(n_a):
            at = number_of(i)
            to = half * a_room + (at & depth - 1) * _A_PITCH + (at >> bits)
            a[np.uintp(to)] = asked[i]
        for i in range(n_b):
            at = number_of(i)
            f, lane, panel = at >> 4 & depth - 1, at & LANES - 1, at >> bits + 4
            to = half * b_room + f * _B_PITCH + panel * LANES + lane
            b[np.uintp(to)] = taken[i]

    @inner_kernel(forceinline=True)
    def multiply(a, b, half, n, sums):
        """Add the products of n coordinates to this thread's 8 x 8 scores."""
        y, x = (cuda.threadIdx.x >> 4) * 8, (cuda.threadIdx.x & 15) * 4
        for f in range(n):
            at, to = half * a_room + f * _A_PITCH + y, half * b_room + f * _B_PITCH + x
            a0, a1, a2, a3 = load4(a, at)
            a4, a5, a6, a7 = load4(a, at + 4)
            b0, b1, b2, b3 = load4(b, to)
            b4, b5, b6, b7 = load4(b, to + ROWS // 2)
            rows = (b0, b1, b2, b3, b4, b5, b6, b7)
            # As a loop the compiler would keep the sums in memory.
            add_row(a0, rows, sums, 0)
            add_row(a1, rows, sums, 8)
            add_row(a2, rows, sums, 16)
            add_row(a3, rows, sums, 24)
            add_row(a4, rows, sums, 32)
            add_row(a5, rows, sums, 40)
            add_row(a6, rows, sums, 48)
            add_row(a7, rows, sums, 56)

    return ask, take, share, multiply
