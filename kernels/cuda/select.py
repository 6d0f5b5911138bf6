"""Sorted lists of the best, 32 entries at a time: what a warp does with them.

An entry comes before another one if its value is larger, or equal and its index lower: no two
are alike, so a list does not depend on the order in which its entries came. Lanes hold an entry
each; sorting 32 takes fifteen exchanges with another lane, merging them into a list six for
every 32 entries of it.
"""

import numpy as np

from .jit import cuda, inner_kernel

__all__ = ["LAST", "WARP", "into_list", "sorted_entries"]

WARP = 32
LAST = np.int32(2**31 - 1)
"""Index of an entry that is none; its value is -inf."""

_ALL = 0xFFFFFFFF


@inner_kernel
def _before(value, index, other, other_index):
    return value > other or (value == other and index < other_index)


@inner_kernel
def _merged(lane, value, index):
    """Sort entries that rise and then fall, or fall and then rise."""
    distance = 16
    while distance > 0:
        other = cuda.shfl_xor_sync(_ALL, value, distance)
        other_index = cuda.shfl_xor_sync(_ALL, index, distance)
        if _before(value, index, other, other_index) != (lane & distance == 0):
            value, index = other, other_index
        distance >>= 1
    return value, index


@inner_kernel
def sorted_entries(lane, value, index):
    """Sort the entries of the lanes, the first in lane 0."""
    size = 2
    while size < WARP:
        distance = size >> 1
        while distance > 0:
            other = cuda.shfl_xor_sync(_ALL, value, distance)
            other_index = cuda.shfl_xor_sync(_ALL, index, distance)
            leading = (lane & distance == 0) == (lane & size == 0)
            if _before(value, index, other, other_index) != leading:
                value, index = other, other_index
            distance >>= 1
        size <<= 1
    return _merged(lane, value, index)


@inner_kernel
def into_list(lane, value, index, values, indices, row):
    """Merge sorted entries into the list ``values[row], indices[row]``; give its last entry.

    Parameters
    ----------
    lane : int
    value, index
        Of the lane's entry.
    values, indices : (n, k)
        Sorted lists, -inf and -1 where empty; changed in place.
    row : int
    """
    k = values.shape[1]
    last, last_index = value, index
    for first in range(0, k, WARP):
        at = first + lane
        mine, mine_index = values.dtype.type(-np.inf), LAST
        if at < k:
            mine, mine_index = values[row, at], indices[row, at]
        # The better half of two sorted lists, one of them backwards, rises and falls once.
        other = cuda.shfl_xor_sync(_ALL, value, WARP - 1)
        other_index = cuda.shfl_xor_sync(_ALL, index, WARP - 1)
        if _before(mine, mine_index, other, other_index):
            value, index = other, other_index
        else:
            value, index, mine, mine_index = mine, mine_index, other, other_index
        mine, mine_index = _merged(lane, mine, mine_index)
        if at < k:
            values[row, at], indices[row, at] = mine, mine_index
        if first + WARP < k:
            value, index = _merged(lane, value, index)
        else:
            last = cuda.shfl_sync(_ALL, mine, (k - 1) % WARP)
            last_index = cuda.shfl_sync(_ALL, mine_index, (k - 1) % WARP)
    return last, last_index
