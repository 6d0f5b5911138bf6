"""Substitution with a Cholesky factor by one warp, for 16 right-hand sides.

A thread holds coordinate i of 8 and the four lanes from q on. Substitution goes by tiles of 8 x 8:
a tile's own 8 steps exchange numbers by shuffles, the products with other tiles read the vector
from shared memory (the room, whole tiles of it), four lanes a load. Places of factors are unsigned:
signed ones are reckoned from the end where they are negative.
"""

import numpy as np

from ..errors import DeviceError
from ..structures import LANES
from .fours import add4, put4, times4
from .jit import cuda, inner_kernel
from .simd import WHOLE, load4

__all__ = ["TILE", "backward", "forward", "rooms"]

TILE = 8  # coordinates a warp holds at a time, of 16 lanes in quads

_SHARED_BYTES = 48 * 1024  # of a block


def rooms(d, dtype, most):
    """How many warps of a block, `most` at most, have room for a vector of d coordinates.

    Returns
    -------
    length : int
        Numbers of a room.
    warps : int
    shared : int
        Bytes of shared memory for all of them.

    Raises
    ------
    DeviceError
        There is no room for a single vector.
    """
    length = -(-d // TILE) * TILE * LANES
    of_warp = length * np.dtype(dtype).itemsize
    warps = min(most, _SHARED_BYTES // of_warp)
    if warps == 0:
        raise DeviceError(
            f"a row of {d:,} numbers takes {of_warp:,} bytes of shared memory for {LANES} "
            f"right-hand sides in {np.dtype(dtype)}, and a block of threads has "
            f"{_SHARED_BYTES:,}: use fewer factors, or device='cpu'"
        )
    return length, warps, warps * of_warp


@inner_kernel
def _from_thread(lanes, source):
    """Four lanes of another thread of the warp."""
    return (
        cuda.shfl_sync(WHOLE, lanes[0], source),
        cuda.shfl_sync(WHOLE, lanes[1], source),
        cuda.shfl_sync(WHOLE, lanes[2], source),
        cuda.shfl_sync(WHOLE, lanes[3], source),
    )


@inner_kernel
def forward(factors, divisors, row, first, lanes, room, base, i, q):
    """Coordinates `first` to ``first + 8`` of ``L y = b``, with those before them in the room.

    `lanes` is the thread's part of b, four lanes of coordinate ``first + i``; y is returned, and
    put into the room.
    """
    d = factors.shape[1]
    f = np.uintp(min(first + i, d - 1))  # beyond the last coordinate whatever can be read will do
    factor = factors[np.uintp(row), f]
    for tile in range(0, first, TILE):
        for j in range(TILE):
            x = -factor[np.uintp(tile + j)]
            lanes = add4(lanes, x, load4(room, base + LANES * (tile + j) + q))
    one = divisors[np.uintp(row), f]
    after = i if first + i < d else 0  # so many steps concern this coordinate
    for j in range(TILE):
        solved = _from_thread(times4(one, lanes), 4 * j + q // 4)
        if i == j:
            lanes = solved
        if j < after:
            x = -factor[np.uintp(first + j)]
            lanes = add4(lanes, x, solved)
    if first + i >= d:
        lanes = times4(room.dtype.type(0), lanes)
    put4(room, base + LANES * (first + i) + q, lanes)
    cuda.syncwarp()
    return lanes


@inner_kernel
def backward(factors, divisors, row, room, base, i, q):
    """``L'^-1 y`` of a row in place of y, which is in the room; each tile is taken out of those
    before.

    By rows of L, as in the forward pass: those read last are the first to be read again. A thread
    then has coordinate i of every tile, its four lanes, where it may read them without waiting.
    """
    d = factors.shape[1]
    for back in range(0, d, TILE):
        first = (d - 1) // TILE * TILE - back
        f = np.uintp(min(first + i, d - 1))
        here = base + LANES * first + q
        lanes, one = load4(room, here + LANES * i), divisors[np.uintp(row), f]
        for n in range(TILE):
            j = TILE - 1 - n
            solved = _from_thread(times4(one, lanes), 4 * j + q // 4)
            if i == j:
                lanes = solved
            if i < j:
                x = -factors[np.uintp(row), np.uintp(min(first + j, d - 1)), f]
                lanes = add4(lanes, x, solved)
        put4(room, here + LANES * i, lanes)
        cuda.syncwarp()
        for tile in range(0, first, TILE):
            place = base + LANES * (tile + i) + q
            lanes = load4(room, place)
            for j in range(TILE):
                x = -factors[np.uintp(row), np.uintp(min(first + j, d - 1)), np.uintp(tile + i)]
                lanes = add4(lanes, x, load4(room, here + LANES * j))
            put4(room, place, lanes)
