"""Read-out: the k most influential rows for every query, never the matrix of all scores.

Queries are grouped by the row they share with the training examples (their user, then their
item). A tile of scores [queries of a group] x [examples of the group] comes from one matrix
product small enough to stay in cache; each of its rows is merged into its query's list of the
best k. The user side goes first; on the item side a query's k-th value is the threshold that
nearly everything fails.
"""

import numpy as np

from .jit import inner_kernel, kernel
from .lanes import LANES
from .panels import panel_scores
from .rows import own_influence
from .scan import moments
from .select import merge_row, tail_quantile
from .simd import prefetch

__all__ = ["TILE", "find_pairs", "read_own", "read_side", "tile_units"]

TILE = 128 * 1024
"""Scores a tile holds (512 KiB of float32, half the second-level cache)."""

_AHEAD = 6  # lists asked for in advance: queries of an item are far apart in memory


@kernel
def tile_units(pointers, query_pointers):
    """Cut every group's queries into tiles: (n_units, 3) of group, first and last + 1 query.

    The cut depends on the group alone, so the tiles and their rounding are the same at any
    number of threads.
    """
    n_groups = pointers.shape[0] - 1
    units = np.empty((n_groups + query_pointers[n_groups] // LANES, 3), np.int64)
    n_units = 0
    for group in range(n_groups):
        n = pointers[group + 1] - pointers[group]
        height = _tile_height(n)
        start = query_pointers[group]
        while n > 0 and start < query_pointers[group + 1]:
            stop = min(start + height, query_pointers[group + 1])
            units[n_units, 0], units[n_units, 1], units[n_units, 2] = group, start, stop
            n_units += 1
            start = stop
    return units[:n_units]


@kernel
def _stride(n):
    return (n + LANES - 1) // LANES * LANES


@kernel
def _tile_height(n):
    return max(LANES, min(1024, TILE // max(_stride(n), 1)))


@kernel
def _query_block(queries, start, stop, gathered):
    """Vectors of queries ``start:stop``: a view where their columns are neighbours."""
    first = queries.columns[start]
    neighbours = True
    for s in range(start, stop):
        neighbours &= queries.columns[s] - first == s - start
    if neighbours:
        return queries.vectors[first : first + stop - start]
    for s in range(start, stop):
        source, target = queries.vectors[queries.columns[s]], gathered[s - start]
        for f in range(source.shape[0]):
            target[f] = source[f]
    return gathered


@kernel
def read_side(sign, side, queries, exclusions, units, first_unit, last_unit, top):
    """Merge the scores of one side into the lists of the best k.

    Parameters
    ----------
    sign : {1.0, -1.0}
        -1 finds the most negative scores: the lists then hold negated values.
    side : Side
    queries : Queries
    exclusions : Exclusions
        Candidates to leave out, query by query.
    units : (n_units, 3) int64
        From `tile_units`; units ``first_unit:last_unit`` are done by this call.
    top : Top
        Changed in place; calls on different units may run at the same time.
    """
    k, d = top.values.shape[1], queries.vectors.shape[1]
    dtype = queries.vectors.dtype
    longest = highest = 1
    for unit in range(first_unit, last_unit):
        group = units[unit, 0]
        longest = max(longest, side.pointers[group + 1] - side.pointers[group])
        highest = max(highest, units[unit, 2] - units[unit, 1])
    space = np.empty(max(TILE, _stride(longest) * LANES) + LANES, dtype)
    tile = space[(-space.ctypes.data % 64) // space.itemsize :]
    gathered = np.empty((highest, d), dtype)
    work = (
        np.empty(longest + 2 * LANES, dtype),
        np.empty(longest + 2 * LANES, np.int32),
        np.empty(3 * LANES, dtype),
        np.empty(3 * LANES, np.int32),
        np.empty(LANES, np.int32),
        np.empty(LANES, np.int32),
    )
    lists = top.values.reshape(-1), top.indices.reshape(-1)
    for unit in range(first_unit, last_unit):
        group, start, stop = units[unit, 0], units[unit, 1], units[unit, 2]
        base = side.pointers[group]
        n = side.pointers[group + 1] - base
        block = _query_block(queries, start, stop, gathered)
        panel_scores(side.rows, base * d, n, block, stop - start, tile, _stride(n), sign)
        _merge_tile(
            tile, n, side.order, base, queries.ids, start, stop, exclusions, k, lists[0], lists[1],
            top.totals, work,
        )  # fmt: skip


@inner_kernel
def _merge_tile(
    tile, n, order, base, ids, start, stop, exclusions, k, top_values, top_indices, totals, work
):
    """Merge the rows of a tile, the scores of queries ``ids[start:stop]``, into their lists."""
    kept, places, values, indices, ranks, top_ranks = work
    lowest = np.finfo(tile.dtype).min
    stride = _stride(n)
    quantile = np.float32(tail_quantile(n, k))
    share = np.float32(1 / n)
    with_totals = totals.shape[0] > 0
    for s in range(start, stop):
        ahead = ids[min(s + _AHEAD, stop - 1)] * k
        prefetch(top_values, ahead)
        prefetch(top_indices, ahead)
        prefetch(top_values, ahead + k - 1)
        prefetch(top_indices, ahead + k - 1)
        query = ids[s]
        at, first, last = query * k, (s - start) * stride, (s - start + 1) * stride
        excluded, stop_excluded = exclusions.starts[query], exclusions.stops[query]
        guess = step = lowest * 0
        full = top_values[at + k - 1] >= lowest
        if with_totals or not full:
            for e in range(excluded, stop_excluded):
                tile[first + exclusions.places[e] - base] = 0
            total, squares, absolute = moments(tile, first, last)
            if with_totals:
                totals[query] += absolute
            if not full:
                mean = total * share
                deviation = np.sqrt(max(squares * share - mean * mean, lowest * 0))
                guess = mean + deviation * quantile
                step = np.float32(0.3) * deviation + np.finfo(tile.dtype).tiny
        for j in range(first + n, last):
            tile[j] = -np.inf
        for e in range(excluded, stop_excluded):
            tile[first + exclusions.places[e] - base] = -np.inf
        merge_row(
            tile, first, last, n, order, base, top_values, top_indices, at, k, guess, step,
            kept, places, values, indices, ranks, top_ranks,
        )  # fmt: skip


@kernel
def read_own(sign, user_side, item_side, own, item_places, vectors, users, items, top):
    """Put the examples that are the query's own pair into its list.

    Such an example moves both rows of the query; it is excluded from both sides and scored
    here by the exact bilinear difference.

    Parameters
    ----------
    sign : {1.0, -1.0}
    user_side, item_side : Side
    own : Exclusions
        Places in user order of each query's own examples.
    item_places : int64
        Places in item order, parallel to ``own.places``.
    vectors : tuple of (n_items, d), (n_users, d)
        ``(q_i, 1)`` and ``(p_u, 1)``.
    users, items : (n_queries,) int32
    top : Top
    """
    k = top.values.shape[1]
    work = np.empty((2, vectors[0].shape[1]), vectors[0].dtype)
    for query in range(users.shape[0]):
        for e in range(own.starts[query], own.stops[query]):
            place = own.places[e]
            u, i = users[query], items[query]
            value = sign * own_influence(
                user_side, item_side, u, i, place, item_places[e], vectors[0][i], vectors[1][u],
                work,
            )  # fmt: skip
            index = user_side.order[place]
            if top.totals.shape[0] > 0:
                top.totals[query] += abs(value)
            values, indices = top.values[query], top.indices[query]
            at = k
            while at > 0 and (
                values[at - 1] < value or (values[at - 1] == value and indices[at - 1] > index)
            ):
                at -= 1
            if at < k:
                for later in range(k - 1, at, -1):
                    values[later], indices[later] = values[later - 1], indices[later - 1]
                values[at], indices[at] = value, index


@inner_kernel
def find_pairs(known_pointers, known_items, users, items, start, stop, starts, stops):
    """Bounds of each query's own pair among the training pairs, for queries ``start:stop``.

    `known_items` are the items of the examples sorted by (user, item), bounded user by user
    by `known_pointers`; ``starts[q] == stops[q]`` where query q was not trained on.
    """
    for query in range(start, stop):
        low, end = known_pointers[users[query]], known_pointers[users[query] + 1]
        high = end
        while low < high:
            middle = (low + high) >> 1
            if known_items[middle] < items[query]:
                low = middle + 1
            else:
                high = middle
        starts[query] = low
        while low < end and known_items[low] == items[query]:
            low += 1
        stops[query] = low
