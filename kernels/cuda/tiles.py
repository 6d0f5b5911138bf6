"""Products of packed rows, a tile of 128 x 128 for a block: what ranks and softmaxes are made of.

A block walks along the coordinates sixteen at a time, through shared memory, and every thread
keeps 8 x 8 sums in registers: 64 fused multiply-adds for four loads of four numbers, so the
arithmetic is the bound. Each product is summed in the order of the coordinates, one rounding a
step: its bits depend on nothing but the two rows, as on the CPU, and are the CPU's.

Packed rows stand in panels of sixteen, coordinate by coordinate, the last panel as wide as what
is left (see `panels` in kernels.cpu): a panel's part of a stage is 1 KiB without a gap.

The read-out has a tile of its own, in `row_tiles`: queries are gathered there, rows may be
bfloat16, and its lists take the shared memory that a tile of this size would.
"""

import numpy as np

from ..structures import LANES
from . import memory
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch
from .simd import fma, load4, store4

__all__ = [
    "LEFT",
    "RIGHT",
    "THREADS",
    "add_row",
    "column_of",
    "pack",
    "row_of",
    "score_at",
    "tile_product",
]

_Y = 2 if SIMULATED else 16
THREADS = (16, _Y)
"""Of a block that calls `tile_product`."""
LEFT = 8 * _Y
"""Rows of a tile."""
RIGHT = 128
"""Columns of a tile."""

_HALF = LEFT // 2
_DEPTH = 8 if SIMULATED else 16  # coordinates of a stage
# Sixteen more than a row has: two coordinates of a panel then lie in different banks.
_LEFT_PITCH, _RIGHT_PITCH = LEFT + 16, RIGHT + 16
_LEFT_ROOM, _RIGHT_ROOM = _DEPTH * _LEFT_PITCH, _DEPTH * _RIGHT_PITCH
_WIDTH = 16 * _Y  # threads of a block
_LEFT_SHARE, _RIGHT_SHARE = LEFT * _DEPTH // _WIDTH, RIGHT * _DEPTH // _WIDTH  # of a thread
_PACKERS = 32 if SIMULATED else 256


# Masks of threads change nothing, but tell the compiler that none is negative: else what a place
# below 0 stands for is worked out, and kept, for each place. Other places are made unsigned for it.


@inner_kernel
def row_of(r):
    """Row in the tile of a thread's r-th row of sums."""
    return (r // 4) * _HALF + 4 * (cuda.threadIdx.y & _Y - 1) + r % 4


@inner_kernel
def column_of(c):
    """Column in the tile of a thread's c-th column of sums."""
    return (c // 4) * (RIGHT // 2) + 4 * (cuda.threadIdx.x & 15) + c % 4


@inner_kernel(forceinline=True)
def tile_product(left, top, right, n, base, d, sums):
    """Inner products of rows ``top : top + LEFT`` with rows ``base : base + RIGHT``; 0 behind n.

    Parameters
    ----------
    left, right : flat, packed rows
        `left` in whole tiles, from `pack`.
    top : int
        A multiple of LEFT.
    n : int
        How many rows `right` has.
    base : int
        A multiple of RIGHT.
    d : int
    sums : (64,), local, out
        Of `row_of` r and `column_of` c at ``8 * r + c``.
    """
    a = cuda.shared.array(_LEFT_ROOM, sums.dtype, alignment=16)
    b = cuda.shared.array(_RIGHT_ROOM, sums.dtype, alignment=16)
    x, y = cuda.local.array(_LEFT_SHARE, sums.dtype), cuda.local.array(_RIGHT_SHARE, sums.dtype)
    for i in range(64):
        sums[i] = 0
    for f in range(0, d, _DEPTH):
        whole = f + _DEPTH <= d and base + RIGHT <= n
        if whole:  # all loads are on their way before the first is waited for
            _take(left, top, d, f, x)
            _take(right, base, d, f, y)
        cuda.syncthreads()  # the stage before has been read
        if whole:
            _share(x, a, _LEFT_PITCH)
            _share(y, b, _RIGHT_PITCH)
        else:
            _copy(left, top + LEFT, top, d, f, a, LEFT, _LEFT_PITCH)
            _copy(right, n, base, d, f, b, RIGHT, _RIGHT_PITCH)
        cuda.syncthreads()
        _multiply(a, b, sums)


@inner_kernel(forceinline=True)
def _place(four):
    """Coordinate of a stage, panel and lane that four numbers beside each other begin at."""
    return four // 4 % _DEPTH, four // (4 * _DEPTH), four % 4 * 4


@inner_kernel(forceinline=True)
def _thread():
    return cuda.threadIdx.x + 16 * cuda.threadIdx.y & _WIDTH - 1


@inner_kernel(forceinline=True)
def _take(packed, first, d, f, taken):
    """Take this thread's part of a whole stage."""
    for i in range(taken.shape[0] // 4):
        coordinate, panel, lane = _place(_thread() + i * _WIDTH)
        at = (first + LANES * panel) * d + LANES * (f + coordinate) + lane
        to = 4 * i
        taken[to], taken[to + 1], taken[to + 2], taken[to + 3] = load4(packed, at)


@inner_kernel(forceinline=True)
def _share(taken, room, pitch):
    """Put what was taken where all threads find it."""
    for i in range(taken.shape[0] // 4):
        coordinate, panel, lane = _place(_thread() + i * _WIDTH)
        to, at = coordinate * pitch + LANES * panel + lane, 4 * i
        store4(room, to, taken[at], taken[at + 1], taken[at + 2], taken[at + 3])


@inner_kernel(forceinline=True)
def _copy(packed, n, first, d, f, room, size, pitch):
    """Copy a stage of `size` rows number by number; what is not there is 0."""
    for four in range(_thread(), size * (_DEPTH // 4), _WIDTH):
        coordinate, panel, lane = _place(four)
        width = min(LANES, n - first - LANES * panel)
        at = (first + LANES * panel) * d + (f + coordinate) * width + lane
        to = coordinate * pitch + LANES * panel + lane
        for p in range(4):
            inside = f + coordinate < d and lane + p < width
            room[to + p] = packed[np.uintp(at + p)] if inside else room.dtype.type(0)


@inner_kernel(forceinline=True)
def _multiply(a, b, sums):
    for f in range(_DEPTH):
        x0, x1, x2, x3 = load4(a, f * _LEFT_PITCH + 4 * cuda.threadIdx.y)
        x4, x5, x6, x7 = load4(a, f * _LEFT_PITCH + _HALF + 4 * cuda.threadIdx.y)
        y0, y1, y2, y3 = load4(b, f * _RIGHT_PITCH + 4 * cuda.threadIdx.x)
        y4, y5, y6, y7 = load4(b, f * _RIGHT_PITCH + RIGHT // 2 + 4 * cuda.threadIdx.x)
        y = (y0, y1, y2, y3, y4, y5, y6, y7)
        # As a loop the compiler would keep the sums in memory.
        add_row(x0, y, sums, 0)
        add_row(x1, y, sums, 8)
        add_row(x2, y, sums, 16)
        add_row(x3, y, sums, 24)
        add_row(x4, y, sums, 32)
        add_row(x5, y, sums, 40)
        add_row(x6, y, sums, 48)
        add_row(x7, y, sums, 56)


@inner_kernel(forceinline=True)
def add_row(x, y, sums, at):
    """Add the products of x with eight numbers to sums, from `at` on.

    This much of a tile all tiles share: a function for eight rows of sums costs ranks 37 registers,
    and with them every other block of a multiprocessor.
    """
    for c in range(8):
        sums[at + c] = fma(x, y[c], sums[at + c])


@inner_kernel
def score_at(vectors, q, packed, n, c):
    """Inner product of a row of `vectors` (m, d) with packed row c, with the bits of a tile."""
    d = vectors.shape[1]
    panel = c // LANES * LANES
    width = min(LANES, n - panel)
    total = vectors.dtype.type(0)
    for f in range(d):
        total = fma(vectors[q, f], packed[panel * d + f * width + c - panel], total)
    return total


def pack(vectors, start, stop):
    """Rows ``start:stop`` of `vectors` (n, d), packed in whole tiles, zeros behind the last."""
    d = vectors.shape[1]
    out = memory.empty(-(-(stop - start) // LEFT) * LEFT * d, vectors.dtype)
    launch(_pack, -(-out.size // _PACKERS), _PACKERS, vectors, start, stop, out, wait=False)
    return out


@kernel
def _pack(vectors, start, stop, out):
    at, d = cuda.grid(1), vectors.shape[1]
    if at < out.shape[0]:
        row = start + at // (LANES * d) * LANES + at % LANES
        out[at] = vectors[row, at // LANES % d] if row < stop else out.dtype.type(0)
