"""Top-k selection from one row of scores, merged into a running list.

A threshold is guessed (from the mean and deviation of the row, or the worst entry of a full
list), the entries above it are counted with vector instructions, and the guess corrected until
few enough survive to be ranked at once. Most of a row is thus read once or twice and never
moved.
"""

import numpy as np

from .jit import inner_kernel, kernel
from .lanes import LANES
from .scan import compress_at_least, count_at_least, rank_merged

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


@inner_kernel(forceinline=True)
def _raise_threshold(tile, start, stop, low, count, k, room, guess, step):
    """A threshold that k to `room` entries reach; with many ties `room` may be passed.

    The logarithm of the count falls almost linearly in the tail of a row of scores, so two
    counts place the third guess.
    """
    half = np.float32(0.5)
    known = low > np.finfo(tile.dtype).min
    bounded = False
    high, beyond = guess, count
    for attempt in range(40):
        reached = count_at_least(tile, start, stop, guess)
        if reached >= k:
            low, count, known = guess, reached, True
            if reached <= room:
                break
        else:
            high, beyond, bounded = guess, reached, True
        if not bounded:
            guess += step
        elif not known:
            guess -= step
        else:
            share = half  # attempt > 4: ties or a strange tail
            if attempt <= 4:
                upper = np.log(np.float32(count))
                wanted = upper - np.log(half * np.float32(k + room))
                share = wanted / (upper - np.log(np.float32(beyond) + half))
            guess = low + (high - low) * min(max(share, np.float32(0.05)), np.float32(0.95))
            if guess <= low or guess >= high:  # nothing between them: ties
                break
        step += step
    return low, count


@kernel
def _merge_many(kept, indices, count, top_values, top_indices, at, k):
    """Merge any number of unsorted entries, rising in index, into a list of any length."""
    falling = np.argsort(-kept[:count], kind="mergesort")
    old_values = top_values[at : at + k].copy()
    old_indices = top_indices[at : at + k].copy()
    mine = theirs = 0
    for e in range(k):
        take = False
        if theirs < count:
            new, index = kept[falling[theirs]], indices[falling[theirs]]
            old = old_values[mine]
            take = new > old or (new == old and index < old_indices[mine])
        if take:
            top_values[at + e], top_indices[at + e] = new, index
            theirs += 1
        else:
            top_values[at + e], top_indices[at + e] = old_values[mine], old_indices[mine]
            mine += 1


@inner_kernel(forceinline=True)
def merge_row(
    tile, start, stop, n, order, base, top_values, top_indices, at, k, guess, step,
    kept, places, values, indices, ranks, top_ranks,
):  # fmt: skip
    """Merge the entries of a row of scores into a sorted list of the best k.

    Parameters
    ----------
    tile : (size,) float
        The row is ``tile[start:stop]``, whole vectors; entries past `n`, and entries to
        ignore, are -inf.
    n : int
        Number of candidates.
    order : integer
        ``order[base + c]`` is the index of candidate c, ascending in c; ties break by it.
    top_values : float
        The list so far is ``top_values[at : at + k]``, falling, empty places -inf at the end;
        changed in place.
    top_indices : int32
        Its indices, likewise, empty places -1; changed in place.
    guess, step : float
        First threshold and first correction, used when the list is not yet full.
    kept, places : float, int32
        Scratch with room for n + 32 entries.
    values, indices : (48,) float, int32
        Scratch.
    ranks, top_ranks : (16,) int32
        Scratch.
    """
    lowest = np.finfo(tile.dtype).min
    room = survivors_room(k)
    threshold = top_values[at + k - 1]
    if threshold >= lowest:  # a full list: only what beats or ties its last entry counts
        count = count_at_least(tile, start, stop, threshold)
        if count == 0:
            return
        if count > room:
            rise = abs(threshold) * np.float32(0.25) + np.finfo(tile.dtype).tiny
            threshold, count = _raise_threshold(
                tile, start, stop, threshold, count, k, room, threshold + rise, rise
            )
    else:
        threshold, count = lowest, n
        if n > room:
            threshold, count = _raise_threshold(tile, start, stop, lowest, n, k, room, guess, step)
    count = compress_at_least(tile, start, stop, threshold, kept, places)
    for e in range(count):
        places[e] = order[base + places[e]]
    if count > LANES or k > LANES:
        _merge_many(kept, places, count, top_values, top_indices, at, k)
        return
    rank_merged(kept, places, count, top_values, top_indices, at, k, ranks, top_ranks)
    for e in range(k):
        values[top_ranks[e]] = top_values[at + e]
        indices[top_ranks[e]] = top_indices[at + e]
    for e in range(count):
        values[ranks[e]] = kept[e]
        indices[ranks[e]] = places[e]
    for e in range(k):
        top_values[at + e] = values[e]
        top_indices[at + e] = indices[e]
