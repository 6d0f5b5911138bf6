"""Read-out for pairs that have vectors of their own to be multiplied with, and nothing bilinear.

The influence of an example on the score of such a pair is ``x_u . gamma_u`` where it shares the
user plus ``x_i . gamma_i`` where it shares the item. The vectors belong to the pair, so there is no
product of many queries with the rows of a group: a pair is read on its own, in one pass over
the examples of its user and of its item.
"""

import numpy as np

from .jit import inner_kernel, kernel
from .lanes import LANES
from .panels import panel_scores, unpack_row
from .scan import moments
from .select import merge_row, tail_quantile
from .simd import dot

__all__ = ["own_of_pairs", "sparse_pairs", "top_of_pairs"]


@inner_kernel
def _merge_sides(user_side, item_side, u, i, sign, by_user, by_item, scores, indices, values, at):
    """Write the examples of a pair's rows, ascending, and their influence; returns their end."""
    d = by_user.shape[1]
    left, left_stop = user_side.pointers[u], user_side.pointers[u + 1]
    right, right_stop = item_side.pointers[i], item_side.pointers[i + 1]
    of_user, of_item = scores
    panel_scores(user_side.rows, left * d, left_stop - left, by_user, 1, of_user, 0, sign)
    panel_scores(item_side.rows, right * d, right_stop - right, by_item, 1, of_item, 0, sign)
    first_left, first_right = left, right
    while left < left_stop or right < right_stop:
        mine = user_side.order[left] if left < left_stop else np.int64(2**62)
        other = item_side.order[right] if right < right_stop else np.int64(2**62)
        value = values.dtype.type(0)
        if mine <= other:
            value += of_user[left - first_left]
            left += 1
        if other <= mine:
            value += of_item[right - first_right]
            right += 1
        indices[at], values[at] = min(mine, other), value
        at += 1
    return at


@kernel
def _room(side, groups):
    """Scratch for the scores of the longest of some groups."""
    longest = 0
    for group in groups:
        longest = max(longest, side.pointers[group + 1] - side.pointers[group])
    return longest + LANES


@kernel
def sparse_pairs(user_side, item_side, by_user, by_item, users, items, starts, indices, values):
    """Influence of every example that shares a row with a pair, as CSR rows.

    Parameters
    ----------
    user_side, item_side : Side
    by_user, by_item : (m, d)
        What rows of a pair's user, and of its item, are multiplied with.
    users, items : (m,) int32
    starts : (m,) int64
        Where each pair's entries begin.
    indices : int32, out
        Training indices, ascending for each pair.
    values : float, out
    """
    dtype = by_user.dtype
    scores = (
        np.empty(_room(user_side, users), dtype), np.empty(_room(item_side, items), dtype)
    )  # fmt: skip
    for n in range(users.shape[0]):
        _merge_sides(
            user_side, item_side, users[n], items[n], dtype.type(1), by_user[n : n + 1],
            by_item[n : n + 1], scores, indices, values, starts[n],
        )  # fmt: skip


@kernel
def top_of_pairs(sign, user_side, item_side, by_user, by_item, users, items, start, stop, top):
    """Find the k most influential examples of pairs `start` to `stop`.

    Parameters
    ----------
    sign : {1.0, -1.0}
        -1 finds the most negative: the lists then hold negated influences.
    user_side, item_side : Side
    by_user, by_item : (m, d)
        What rows of a pair's user, and of its item, are multiplied with.
    users, items : (m,) int32
    top : Top
        Empty lists; changed in place.
    """
    k, dtype = top.values.shape[1], by_user.dtype
    scores = (
        np.empty(_room(user_side, users[start:stop]), dtype),
        np.empty(_room(item_side, items[start:stop]), dtype),
    )
    room = scores[0].shape[0] + scores[1].shape[0]
    indices, tile = np.empty(room, np.int32), np.empty(room, dtype)
    kept, places = np.empty(room + LANES, dtype), np.empty(room + LANES, np.int32)
    values, numbers = np.empty(3 * LANES, dtype), np.empty(3 * LANES, np.int32)
    ranks, top_ranks = np.empty(LANES, np.int32), np.empty(LANES, np.int32)
    lists = top.values.reshape(-1), top.indices.reshape(-1)
    for q in range(start, stop):
        n = _merge_sides(
            user_side, item_side, users[q], items[q], sign, by_user[q : q + 1],
            by_item[q : q + 1], scores, indices, tile, 0,
        )  # fmt: skip
        width = (n + LANES - 1) // LANES * LANES
        tile[n:width] = 0
        total, squares, absolute = moments(tile, 0, width)
        if top.totals.shape[0] > 0:
            top.totals[q] = absolute
        tile[n:width] = -np.inf
        share = np.float32(1 / n)
        mean = total * share
        deviation = np.sqrt(max(squares * share - mean * mean, total * 0))
        guess = mean + deviation * np.float32(tail_quantile(n, k))
        step = np.float32(0.3) * deviation + np.finfo(dtype).tiny
        merge_row(
            tile, 0, width, n, indices, 0, lists[0], lists[1], q * k, k, guess, step,
            kept, places, values, numbers, ranks, top_ranks,
        )  # fmt: skip


@kernel
def own_of_pairs(
    user_side, item_side, by_user, by_item, users, items, bounds, own_places, out
):  # fmt: skip
    """Influence of training examples on the score of their own pair.

    Parameters
    ----------
    user_side, item_side : Side
    by_user, by_item : (m, d)
        What rows of a pair's user, and of its item, are multiplied with.
    users, items : (m,) int32
    bounds : (m + 1,) int64
        Bounds of each pair's examples among those sorted by pair.
    own_places : tuple of (n,) int64
        Places in user order and in item order of the examples sorted by pair.
    out : (n_train,) float, out
        By training index.
    """
    work = np.empty((2, by_user.shape[1]), by_user.dtype)
    for q in range(users.shape[0]):
        for e in range(bounds[q], bounds[q + 1]):
            place = own_places[0][e]
            unpack_row(user_side.rows, user_side.pointers, users[q], place, work[0])
            unpack_row(item_side.rows, item_side.pointers, items[q], own_places[1][e], work[1])
            out[user_side.order[place]] = dot(work[0], by_user[q]) + dot(work[1], by_item[q])
