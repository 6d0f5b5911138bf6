"""Rows of single examples: on their own pairs, in rows of the influence matrix, added up."""

import numpy as np

from .jit import inner_kernel, kernel
from .lanes import LANES
from .panels import panel_scores, unpack_row
from .simd import dot

__all__ = ["add_rows", "own_influence", "self_influence", "sparse_influence"]


@inner_kernel
def own_influence(user_side, item_side, user, item, user_place, item_place, x, y, work):
    """Influence of an example on the score of its own pair: both of its rows move at once.

    ``f(p, q) - f(p - dp, q - dq) = dp . (q, 1) + dq . (p, 1) - dp . dq`` (factors only in the
    last term).

    Parameters
    ----------
    user_side, item_side : Side
    user, item : int
    user_place, item_place : int
        Places of the example in the two stores.
    x, y : (d,) float
        ``(q, 1)`` and ``(p, 1)``.
    work : (2, d) float
        Scratch.
    """
    unpack_row(user_side.rows, user_side.pointers, user, user_place, work[0])
    unpack_row(item_side.rows, item_side.pointers, item, item_place, work[1])
    k = x.shape[0] - 1
    return dot(work[0], x) + dot(work[1], y) - dot(work[0, :k], work[1, :k])


@kernel
def sparse_influence(
    user_side, item_side, item_vectors, user_vectors, users, items, pointers, indices, values
):
    """Influence of every example that shares a row with a query, as CSR rows.

    Parameters
    ----------
    user_side, item_side : Side
    item_vectors, user_vectors : (n_items, d), (n_users, d)
        ``(q_i, 1)`` and ``(p_u, 1)``.
    users, items : (m,) int32
        Queries.
    pointers : (m + 1,) int64
        Bounds of the rows (an example that shares both rows counts once).
    indices : (pointers[-1],) int32, out
        Training indices, ascending within a row.
    values : (pointers[-1],) float, out
    """
    d = item_vectors.shape[1]
    work = np.empty((2, d), item_vectors.dtype)
    one = item_vectors.dtype.type(1)
    for n in range(users.shape[0]):
        u, i = users[n], items[n]
        left, left_stop = user_side.pointers[u], user_side.pointers[u + 1]
        right, right_stop = item_side.pointers[i], item_side.pointers[i + 1]
        by_user = np.empty(left_stop - left + LANES, item_vectors.dtype)
        by_item = np.empty(right_stop - right + LANES, item_vectors.dtype)
        panel_scores(
            user_side.rows, left * d, left_stop - left, item_vectors[i : i + 1], 1, by_user, 0, one
        )
        panel_scores(
            item_side.rows, right * d, right_stop - right, user_vectors[u : u + 1], 1, by_item, 0,
            one,
        )  # fmt: skip
        first_left, first_right = left, right
        at = pointers[n]
        while left < left_stop or right < right_stop:
            mine = user_side.order[left] if left < left_stop else np.int64(2**62)
            other = item_side.order[right] if right < right_stop else np.int64(2**62)
            if mine < other:
                indices[at], values[at] = mine, by_user[left - first_left]
                left += 1
            elif other < mine:
                indices[at], values[at] = other, by_item[right - first_right]
                right += 1
            else:  # the query's own pair stands in both lists
                indices[at] = mine
                values[at] = own_influence(
                    user_side, item_side, u, i, left, right, item_vectors[i], user_vectors[u], work
                )
                left += 1
                right += 1
            at += 1


@kernel
def self_influence(
    user_side,
    item_side,
    own_places,
    item_vectors,
    user_vectors,
    users,
    items,
    examples,
    start,
    out,
):
    """Influence of examples on the scores of their own pairs: ``out[j]`` for j in `examples`.

    Parameters
    ----------
    user_side, item_side : Side
    own_places : tuple of (n,) int64
        Places in user order and in item order of the examples sorted by pair.
    item_vectors, user_vectors : (n_items, d), (n_users, d)
    users, items : (n,) int32
        Of the training examples.
    examples : (m,) int64
        Training indices: a stretch of those sorted by pair, from number `start` on.
    start : int
    out : (n,) float
    """
    work = np.empty((2, item_vectors.shape[1]), item_vectors.dtype)
    for number in range(examples.shape[0]):
        j = examples[number]
        u, i = users[j], items[j]
        out[j] = own_influence(
            user_side,
            item_side,
            u,
            i,
            own_places[0][start + number],
            own_places[1][start + number],
            item_vectors[i],
            user_vectors[u],
            work,
        )


@kernel
def add_rows(side, groups, places, targets, sums):
    """Add up rows of a store: ``sums[targets[n]] += row of the example at places[n]``.

    Parameters
    ----------
    side : Side
    groups : (m,) int32
        Group of each example.
    places : (m,) int64
        Where in the side it stands.
    targets : (m,) int64
    sums : (n_targets, d) float, out
    """
    row = np.empty(sums.shape[1], sums.dtype)
    for n in range(places.shape[0]):
        unpack_row(side.rows, side.pointers, groups[n], places[n], row)
        total = sums[targets[n]]
        for f in range(row.shape[0]):
            total[f] += row[f]
