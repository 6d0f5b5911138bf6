"""Sorted lists of the best, 32 entries at a time: what a warp does with them.

An entry comes before another one if its value is larger, or equal and its index lower: no two
are alike, so a list does not depend on the order in which its entries came. Lanes hold an entry
each; sorting 32 takes fifteen exchanges with another lane, merging them into a list six for
every 32 entries of it.

So a score is not merged at once: those of a tile (see `row_tiles`) that beat the last entry of
their query's list, its *bar*, wait in shared memory until 32 are there.
"""

import numpy as np

from .jit import cuda, inner_kernel
from .row_tiles import ROWS, THREADS
from .simd import WHOLE

__all__ = [
    "LAST",
    "WAITING",
    "WARP",
    "before",
    "into_list",
    "leave_out",
    "let_wait",
    "merge_waiting",
    "sort_lanes",
]

WARP = 32
LAST = np.int32(2**31 - 1)
"""Index of an entry that is none; its value is -inf."""

WAITING = WARP
"""Scores of a query that can wait."""


@inner_kernel
def before(value, index, other, other_index):
    """Whether an entry comes before another one."""
    return value > other or (value == other and index < other_index)


@inner_kernel
def _merged(lane, value, index):
    """Sort entries that rise and then fall, or fall and then rise."""
    distance = 16
    while distance > 0:
        other = cuda.shfl_xor_sync(WHOLE, value, distance)
        other_index = cuda.shfl_xor_sync(WHOLE, index, distance)
        if before(value, index, other, other_index) != (lane & distance == 0):
            value, index = other, other_index
        distance >>= 1
    return value, index


@inner_kernel
def sort_lanes(lane, value, index):
    """Sort the entries of the lanes, the first in lane 0."""
    size = 2
    while size < WARP:
        distance = size >> 1
        while distance > 0:
            other = cuda.shfl_xor_sync(WHOLE, value, distance)
            other_index = cuda.shfl_xor_sync(WHOLE, index, distance)
            leading = (lane & distance == 0) == (lane & size == 0)
            if before(value, index, other, other_index) != leading:
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
        other = cuda.shfl_xor_sync(WHOLE, value, WARP - 1)
        other_index = cuda.shfl_xor_sync(WHOLE, index, WARP - 1)
        if before(mine, mine_index, other, other_index):
            value, index = other, other_index
        else:
            value, index, mine, mine_index = mine, mine_index, other, other_index
        mine, mine_index = _merged(lane, mine, mine_index)
        if at < k:
            values[row, at], indices[row, at] = mine, mine_index
        if first + WARP < k:
            value, index = _merged(lane, value, index)
        else:
            last = cuda.shfl_sync(WHOLE, mine, (k - 1) % WARP)
            last_index = cuda.shfl_sync(WHOLE, mine_index, (k - 1) % WARP)
    return last, last_index


@inner_kernel(forceinline=True)
def leave_out(i, absent, sums, with_totals, absolutes, zero, nothing):
    """Make scores of a thread's i-th query that are none -inf; add the others up."""
    thread = cuda.threadIdx.x
    word, shift = ((thread >> 4) * 8 + i) * (ROWS // 32) + (thread >> 3 & 1), (thread & 7) * 4
    bits = np.int64(absent[word]) >> shift & 15
    bits |= (np.int64(absent[word + ROWS // 64]) >> shift & 15) << 4
    if with_totals:
        total = zero
        for c in range(8):
            total += zero if bits >> c & 1 else abs(sums[8 * i + c])
        absolutes[i * THREADS + thread] += np.float64(total)
    for c in range(8):
        sums[8 * i + c] = nothing if bits >> c & 1 else sums[8 * i + c]


@inner_kernel(forceinline=True)
def let_wait(i, sums, order, place, waiting, nothing):
    """Let scores of a thread's i-th query that beat its bar wait; those are taken out of `sums`.

    Returns whether there was no room for one.
    """
    scores, indices, counts, bars, bar_indices = waiting
    thread = cuda.threadIdx.x
    q = (thread >> 4) * 8 + i
    bar, left_over = bars[q], False
    best = sums[8 * i]
    for c in range(1, 8):
        best = max(best, sums[8 * i + c])
    if best >= bar and best > nothing:
        for c in range(8):
            score = sums[8 * i + c]
            if score >= bar and score > nothing:
                row = c // 4 * (ROWS // 2) + (thread & 15) * 4 + c % 4
                index = np.int32(order[place + row])
                if score > bar or index < bar_indices[q]:
                    slot = cuda.atomic.add(counts, q, 1)
                    if slot < WAITING:
                        scores[q * WAITING + slot] = score
                        indices[q * WAITING + slot] = index
                        sums[8 * i + c] = nothing
                    else:
                        left_over = True
    return left_over


@inner_kernel
def merge_waiting(q, waiting, values, indices, row, nothing):
    """Merge scores of query q that wait into the list of a row; with a warp."""
    scores, of_scores, counts, bars, bar_indices = waiting
    lane = cuda.threadIdx.x % WARP
    value, index = nothing, LAST
    if lane < counts[q]:
        value, index = scores[q * WAITING + lane], of_scores[q * WAITING + lane]
    value, index = sort_lanes(lane, value, index)
    value, index = into_list(lane, value, index, values, indices, row)
    cuda.syncwarp()  # all have read the count
    # Lists of a part begin empty: their last entry may be below the bar of the query's own list.
    if lane == 0:
        counts[q] = 0
        if before(value, index, bars[q], bar_indices[q]):
            bars[q], bar_indices[q] = value, index
    cuda.syncwarp()
