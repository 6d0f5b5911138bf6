"""Rows of single examples: on their own pairs, in rows of the influence matrix, added up."""

import torch

from .batches import CHUNK, ranges, segment_sums, stretches
from .panels import unpack_rows
from .reports import reported

__all__ = ["add_rows", "entries", "own_influence", "self_influence", "sparse_influence"]


def own_influence(user_side, item_side, users, items, user_places, item_places, x, y):
    """Influence of examples on the scores of their own pairs: both of their rows move at once.

    Parameters
    ----------
    user_side, item_side : Side
    users, items, user_places, item_places : (...) int
        Groups and places of the examples in the two stores, of any shape.
    x, y : (..., d)
        ``(q, 1)`` and ``(p, 1)``.
    """
    by_user = unpack_rows(user_side, users, user_places, x.shape[-1], x.dtype)
    by_item = unpack_rows(item_side, items, item_places, x.shape[-1], x.dtype)
    between = (by_user * by_item)[..., :-1].sum(-1)
    return (by_user * x).sum(-1) + (by_item * y).sum(-1) - between


def entries(user_side, item_side, by_user, by_item, users, items, corrected):
    """Yield the examples that share a row with queries, and their influence.

    Parameters
    ----------
    user_side, item_side : Side
    by_user, by_item : callable
        ``by_user(some)`` is what rows of the users of some queries are multiplied with, (m, d).
    users, items : (n,) int32
    corrected : bool
        Of an example that shares both rows, take ``du . di`` off, factors only: what two rows
        that move at once do to their product.

    Yields
    ------
    start, stop : int
        Queries.
    queries, indices, values : (e,)
        By query, counted from `start`, then by training index.
    """
    sides = (user_side, users.long(), by_user), (item_side, items.long(), by_item)
    bounds = [(side.pointers[g], side.pointers[g + 1]) for side, g, _ in sides]
    d = by_user(slice(0, 1)).shape[1]
    counts = sum(stops - starts for starts, stops in bounds)
    for start, stop in stretches(counts * (40 * d)):
        some = slice(start, stop)
        found = []
        for (side, groups, vectors), (starts, stops) in zip(sides, bounds, strict=True):
            queries, places = ranges(starts[some], stops[some])
            x = vectors(some)[queries]
            rows = unpack_rows(side, groups[some][queries], places, d, x.dtype)
            found.append((queries, side.order[places], rows, (rows * x).sum(1)))
        yield start, stop, *_united(*found, corrected)


def _united(by_user, by_item, corrected):
    """Join the entries of both sides; those of the same query and example become one."""
    queries, indices, values = (
        torch.cat([by_user[part], by_item[part]]) for part in (0, 1, 3)
    )  # fmt: skip
    keys = (queries << 32) + indices  # training indices are int32
    keys, order = keys.sort(stable=True)  # the user's first
    queries, indices, values = queries[order], indices[order], values[order]
    twice = (keys[1:] == keys[:-1]).nonzero()[:, 0]
    values[twice] += values[twice + 1]
    if corrected:
        n = len(by_user[0])
        mine, its = by_user[2][order[twice]], by_item[2][order[twice + 1] - n]
        values[twice] -= (mine * its)[:, :-1].sum(1)
    once = torch.ones_like(keys, dtype=torch.bool)
    once[twice + 1] = False
    return queries[once], indices[once], values[once]


@reported("rows of the influence matrix")
def sparse_influence(
    user_side, item_side, item_vectors, user_vectors, users, items, pointers, indices, values
):
    """Influence of every example that shares a row with a query, as CSR rows."""
    found = entries(
        user_side, item_side, lambda some: item_vectors[items[some]],
        lambda some: user_vectors[users[some]], users, items, True,
    )  # fmt: skip
    for start, stop, _, some_indices, some_values in found:
        first, last = pointers[[start, stop]].tolist()
        indices[first:last], values[first:last] = some_indices, some_values


@reported("self-influence")
def self_influence(
    user_side, item_side, own_places, item_vectors, user_vectors, users, items, examples, start, out
):
    """Influence of examples on the scores of their own pairs: ``out[j]`` for j in `examples`."""
    step = max(1, CHUNK // (80 * item_vectors.shape[1]))
    for first in range(0, len(examples), step):
        some = examples[first : first + step]
        places = slice(start + first, start + first + len(some))
        u, i = users[some], items[some]
        out[some] = own_influence(
            user_side, item_side, u, i, own_places[0][places], own_places[1][places],
            item_vectors[i], user_vectors[u],
        )  # fmt: skip


@reported("sums of rows")
def add_rows(side, groups, places, targets, sums):
    """Add up rows of a store: ``sums[targets[n]] += row of the example at places[n]``."""
    d = sums.shape[1]
    targets, order = targets.sort(stable=True)
    step = max(1, CHUNK // (24 * d))
    for first in range(0, len(places), step):
        some = order[first : first + step]
        rows = unpack_rows(side, groups[some], places[some], d, sums.dtype)
        names, counts = torch.unique_consecutive(targets[first : first + step], return_counts=True)
        sums[names] += segment_sums(rows, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
