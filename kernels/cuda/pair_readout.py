"""Read-out for pairs that have vectors of their own to be multiplied with, and nothing bilinear.

See the twin in kernels.cpu: the influence of an example on the score of such a pair is
``x_u . gamma_u`` where it shares the user plus ``x_i . gamma_i`` where it shares the item.

No two pairs share a vector, so a row is read for 2 d operations: its bytes are the bound, 4 d in
float32, and those of its training index. A block has a pair and a thread a row, at neighbouring
places, which are neighbouring numbers of their panels; nothing is summed across threads. Whether
an example shares the other half of the pair too is looked up by bisection in the other half's
indices, a few steps in the first-level cache for d loads of a row. It is counted with the user's
rows, and passed over with the item's.

For lists, scores that beat the last entry of the pair's list wait in shared memory, as in
`readout`, until a warp is full of them; the first warp then sorts and merges them.
"""

import functools

import numpy as np

from ..structures import LANES
from . import memory
from .bisection import first_from, group_of
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch
from .panels import decoder, place_of
from .rows import check_dtypes
from .select import LAST, WARP, before, into_list, sort_lanes
from .simd import WHOLE, fma, tree_sum

__all__ = ["THREADS", "own_of_pairs", "sparse_pairs", "top_of_pairs"]

THREADS = 64 if SIMULATED else 128
"""Of a block that has a pair."""

_ROOM = THREADS + WARP  # scores that wait: fewer than a warp of them, and those of a round
_WARPS, _HALVES = THREADS // WARP, THREADS // 16
_EXAMPLES = 32 if SIMULATED else 128  # of a block that has examples


# ---------------------------------------------------------------- scores


@functools.cache
def _product(element):
    """Make the inner product of a packed row with row q of some vectors."""
    decode = decoder(element)

    @inner_kernel
    def product(side, group, place, vectors, q):
        d, total = vectors.shape[1], vectors.dtype.type(0)
        at, step = place_of(side.pointers, group, place, d)
        for f in range(d):
            total = fma(vectors.dtype.type(decode(side.rows[at + f * step])), vectors[q, f], total)
        return total

    return product


# ---------------------------------------------------------------- sparse rows


@functools.cache
def _sparse_reader(element):
    product = _product(element)

    @kernel
    def read_pair(user_side, item_side, by_user, by_item, users, items, starts, indices, values):
        """A pair and one of its sides a block; shared examples are counted so far."""
        counts = cuda.shared.array(_WARPS, np.int32)
        q, t = cuda.blockIdx.x, cuda.threadIdx.x
        warp, lane = t >> 5, t & 31
        of_user = cuda.blockIdx.y == 0
        side, other = (user_side, item_side) if of_user else (item_side, user_side)
        mine, its = (by_user, by_item) if of_user else (by_item, by_user)
        group, across = (users[q], items[q]) if of_user else (items[q], users[q])
        first, stop = side.pointers[group], side.pointers[group + 1]
        low, high = other.pointers[across], other.pointers[across + 1]
        n_shared = 0
        for top in range(first, stop, THREADS):
            place, at, shared = top + t, low, False
            if place < stop:
                at = first_from(other.order, low, high, side.order[place])
                shared = at < high and other.order[at] == side.order[place]
            found = cuda.ballot_sync(WHOLE, shared)
            if lane == 0:
                counts[warp] = cuda.popc(found)
            cuda.syncthreads()
            ahead = n_shared + cuda.popc(found & np.uint32((1 << lane) - 1))
            for w in range(_WARPS):
                ahead += counts[w] if w < warp else 0
                n_shared += counts[w]
            cuda.syncthreads()
            if place < stop and (of_user or not shared):
                value = product(side, group, place, mine, q)
                if shared:
                    value += product(other, across, at, its, q)
                # Behind those of its own side and those of the other one, each counted once.
                to = starts[q] + place - first + at - low - ahead
                indices[to], values[to] = side.order[place], value

    return read_pair


def sparse_pairs(user_side, item_side, by_user, by_item, users, items, starts, indices, values):
    """Influence of every example that shares a row with a pair, as CSR rows.

    See the twin in kernels.cpu.
    """
    check_dtypes(by_user, user_side, item_side)
    launch(
        _sparse_reader(np.dtype(user_side.rows.dtype)), (users.shape[0], 2), THREADS, user_side,
        item_side, by_user, by_item, users, items, starts, indices, values,
    )  # fmt: skip


# ---------------------------------------------------------------- lists


@functools.cache
def _top_reader(dtype, element):
    product, nothing = _product(element), dtype.type(-np.inf)

    @inner_kernel
    def score(user_side, item_side, by_user, by_item, user, item, q, row, first_item):
        """Score and index of a pair's row, the item's from `first_item` on; LAST: there is none."""
        zero = by_user.dtype.type(0)
        if row < first_item:
            place = user_side.pointers[user] + row
            if place >= user_side.pointers[user + 1]:
                return zero, LAST
            example = user_side.order[place]
            start, stop = item_side.pointers[item], item_side.pointers[item + 1]
            value, at = zero, first_from(item_side.order, start, stop, example)
            if at < stop and item_side.order[at] == example:
                value = product(item_side, item, at, by_item, q)
            return value + product(user_side, user, place, by_user, q), np.int32(example)
        place = item_side.pointers[item] + row - first_item
        if place >= item_side.pointers[item + 1]:
            return zero, LAST
        example = item_side.order[place]
        start, stop = user_side.pointers[user], user_side.pointers[user + 1]
        at = first_from(user_side.order, start, stop, example)
        if at < stop and user_side.order[at] == example:
            return zero, LAST
        return product(item_side, item, place, by_item, q), np.int32(example)

    @kernel
    def read_top(sign, user_side, item_side, by_user, by_item, users, items, start, top):
        """A pair a block."""
        scores = cuda.shared.array(_ROOM, dtype)
        of_scores = cuda.shared.array(_ROOM, np.int32)
        count = cuda.shared.array(1, np.int32)
        bar = cuda.shared.array(1, dtype)
        bar_index = cuda.shared.array(1, np.int32)
        absolutes = cuda.shared.array(_HALVES, np.float64)
        q, t, k = start + cuda.blockIdx.x, cuda.threadIdx.x, top.values.shape[1]
        user, item = users[q], items[q]
        n_users = user_side.pointers[user + 1] - user_side.pointers[user]
        first_item = (n_users + LANES - 1) // LANES * LANES  # panels begin where threads do
        n = first_item + item_side.pointers[item + 1] - item_side.pointers[item]
        if t == 0:
            count[0], bar[0], bar_index[0] = 0, top.values[q, k - 1], top.indices[q, k - 1]
        cuda.syncthreads()
        absolute = 0.0
        for row in range(t, n + t, THREADS):
            value, index = score(
                user_side, item_side, by_user, by_item, user, item, q, row, first_item
            )
            value *= sign
            absolute += abs(np.float64(value))
            if index != LAST and before(value, index, bar[0], bar_index[0]):
                slot = cuda.atomic.add(count, 0, 1)
                scores[slot], of_scores[slot] = value, index
            cuda.syncthreads()
            waiting = count[0]
            cuda.syncthreads()  # all have read it
            if waiting > WARP or row - t + THREADS >= n:
                if t < WARP:
                    for e in range(t, waiting + t, WARP):
                        value, index = nothing, LAST
                        if e < waiting:
                            value, index = scores[e], of_scores[e]
                        value, index = sort_lanes(t, value, index)
                        value, index = into_list(t, value, index, top.values, top.indices, q)
                    if t == 0:
                        count[0] = 0
                        if waiting > 0:
                            bar[0], bar_index[0] = value, index
                cuda.syncthreads()
        if top.totals.shape[0] > 0:
            absolute = tree_sum(WHOLE, absolute)
            if t % 16 == 0:
                absolutes[t // 16] = absolute
            cuda.syncthreads()
            if t == 0:
                for half in range(1, _HALVES):
                    absolute += absolutes[half]
                top.totals[q] = absolute

    return read_top


def top_of_pairs(sign, user_side, item_side, by_user, by_item, users, items, start, stop, top):
    """Find the k most influential examples of pairs `start` to `stop`.

    See the twin in kernels.cpu.
    """
    check_dtypes(by_user, user_side, item_side)
    dtype = np.dtype(by_user.dtype)
    launch(
        _top_reader(dtype, np.dtype(user_side.rows.dtype)), stop - start, THREADS,
        dtype.type(sign), user_side, item_side, by_user, by_item, users, items, start, top,
    )  # fmt: skip


# ---------------------------------------------------------------- examples on their own pairs


@functools.cache
def _own_reader(element):
    product = _product(element)

    @kernel
    def read_own(
        user_side, item_side, by_user, by_item, users, items, bounds, user_places, item_places, out
    ):
        """An example a thread."""
        m = users.shape[0]
        e = bounds[0] + cuda.grid(1)
        if e < bounds[m]:
            q, place = group_of(bounds, 0, m, e), user_places[e]
            value = product(user_side, users[q], place, by_user, q)
            value += product(item_side, items[q], item_places[e], by_item, q)
            out[user_side.order[place]] = value

    return read_own


def own_of_pairs(
    user_side, item_side, by_user, by_item, users, items, bounds, own_places, out
):  # fmt: skip
    """Influence of training examples on the score of their own pair: see `kernels.cpu`."""
    check_dtypes(by_user, user_side, item_side)
    m = users.shape[0]
    first, last = (int(memory.fetch(bounds[n : n + 1])[0]) for n in (0, m))
    launch(
        _own_reader(np.dtype(user_side.rows.dtype)), -(-(last - first) // _EXAMPLES), _EXAMPLES,
        user_side, item_side, by_user, by_item, users, items, bounds, *own_places, out,
    )  # fmt: skip
