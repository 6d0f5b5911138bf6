"""Top-k selection from one row of scores, merged into a running list.

A threshold is guessed (from the mean and deviation of the row, or the worst entry of a full
list), the entries above it are counted with vector instructions, and the guess corrected until
few enough survive to be ranked at once. Most of a row is thus read once or twice and never
moved.
"""

import numpy as np

from .jit import kernel
from .simd import LANES, compress_at_least, count_at_least, rank_descending

__all__ = ["merge_row", "survivors_room", "tail_quantile"]


@kernel
def survivors_room(k):
    """Number of survivors at which the search for a threshold stops."""
    return max(k + k // 2, LANES)


@kernel
def tail_quantile(n, k):
    """z for which about as many of n normal scores pass mean + z * deviation as are wanted."""
    share = 0.5 * (k + survivors_room(k)) / n
    if share >= 0.5:
        return 0.0
    t = np.sqrt(-2.0 * np.log(share))  # Abramowitz & Stegun 26.2.23, good to 4.5e-4
    above = 2.515517 + 0.802853 * t + 0.010328 * t * t
    return t - above / (1.0 + 1.432788 * t + 0.189269 * t * t + 0.001308 * t * t * t)


@kernel(forceinline=True)
def _raise_threshold(row, low, count, k, room, guess, step):
    """A threshold that k to `room` entries reach; with many ties `room` may be passed.

    The logarithm of the count falls almost linearly in the tail of a row of scores, so two
    counts place the third guess (a plain bisection needs three times the passes).
    """
    known = low > np.finfo(row.dtype).min
    target = np.float32(np.log(np.float32(0.5) * np.float32(k + room)))
    high, high_log = guess, np.float32(0)
    low_log = np.float32(np.log(np.float32(count)))
    bounded = False
    for attempt in range(40):
        reached = count_at_least(row, guess)
        reached_log = np.float32(np.log(np.float32(reached) + np.float32(0.5)))
        if reached >= k:
            if reached <= room:
                return guess, reached
            low, low_log, count, known = guess, reached_log, reached, True
        else:
            high, high_log, bounded = guess, reached_log, True
        if not bounded:
            guess += step
        elif not known:
            guess -= step
        else:
            share = (low_log - target) / (low_log - high_log)
            if attempt > 4:  # ties or a strange tail: halve
                share = np.float32(0.5)
            guess = low + (high - low) * min(max(share, np.float32(0.05)), np.float32(0.95))
            if guess <= low or guess >= high:  # nothing between them: ties
                break
        step += step
    return low, count


@kernel
def _sort_many(kept, places, count, order, values, indices):
    falling = np.argsort(-kept[:count], kind="mergesort")
    for e in range(count):
        values[e] = kept[falling[e]]
        indices[e] = order[places[falling[e]]]


@kernel(forceinline=True)
def merge_row(row, n, order, k, top_values, top_indices, guess, step, work):
    """Merge the entries of a row of scores into a sorted list of the best k.

    Parameters
    ----------
    row : (m,) float
        Scores; entries past `n` are -inf up to a multiple of 16, entries to ignore too.
    n : int
        Number of candidates.
    order : (n,) integer
        Index of each candidate, ascending (ties are broken by it).
    k : int
    top_values : (k,) float
        The list so far, falling, empty places -inf at the end; changed in place.
    top_indices : (k,) int32
        Its indices, empty places -1; changed in place.
    guess, step : float
        First threshold and first correction, used when the list is not yet full.
    work : tuple of arrays
        Scratch: kept, places, values, indices with room for n + 32 entries (float, int32,
        float, int32), ranks (16,) int32, new_values and new_indices (k,).
    """
    kept, places, values, indices, ranks, new_values, new_indices = work
    lowest = np.finfo(row.dtype).min
    room = survivors_room(k)
    threshold = top_values[k - 1]
    if threshold >= lowest:  # a full list: only what beats or ties its last entry counts
        count = count_at_least(row, threshold)
        if count == 0:
            return
        if count > room:
            rise = abs(threshold) * np.float32(0.25) + np.finfo(row.dtype).tiny
            threshold, count = _raise_threshold(
                row, threshold, count, k, room, threshold + rise, rise
            )
    else:
        threshold, count = lowest, n
        if n > room:
            threshold, count = _raise_threshold(row, lowest, n, k, room, guess, step)
    count = compress_at_least(row, threshold, kept, places)
    if count <= LANES:  # ranked all at once, without a branch
        rank_descending(kept, count, ranks)
        for e in range(count):
            values[ranks[e]] = kept[e]
            indices[ranks[e]] = order[places[e]]
    else:
        _sort_many(kept, places, count, order, values, indices)
    values[count] = -np.inf
    indices[count] = np.iinfo(np.int32).max

    if top_values[0] < lowest:  # an empty list
        for e in range(min(count, k)):
            top_values[e] = values[e]
            top_indices[e] = indices[e]
        return
    mine = theirs = 0
    for e in range(k):  # without a branch: which list goes next is a coin toss
        old, new = top_values[mine], values[theirs]
        tie = (new == old) & (indices[theirs] < top_indices[mine])
        take = (new > old) | tie
        new_values[e] = new if take else old
        new_indices[e] = indices[theirs] if take else top_indices[mine]
        theirs += np.int64(take)
        mine += np.int64(1) - np.int64(take)
    for e in range(k):
        top_values[e] = new_values[e]
        top_indices[e] = new_indices[e]
