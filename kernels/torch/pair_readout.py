"""Read-out for pairs that have vectors of their own to be multiplied with, and nothing bilinear.

See the twin in kernels.cpu: the influence of an example on the score of such a pair is
``x_u . gamma_u`` where it shares the user plus ``x_i . gamma_i`` where it shares the item.
"""

import torch

from .batches import alike, padded, ranges, stretches
from .panels import unpack_rows
from .reports import reported
from .rows import entries
from .select import best, merge

__all__ = ["own_of_pairs", "sparse_pairs", "top_of_pairs"]


@reported("rows of the influence matrix")
def sparse_pairs(user_side, item_side, by_user, by_item, users, items, starts, indices, values):
    """Influence of every example that shares a row with a pair, as CSR rows."""
    for start, stop, queries, some_indices, some_values in _entries(
        user_side, item_side, by_user, by_item, users, items
    ):
        pointers = _pointers(queries, stop - start)
        order = torch.arange(len(queries), device=queries.device)
        where = starts[start:stop][queries] + order - pointers[queries]
        indices[where] = some_indices.to(indices.dtype)
        values[where] = some_values


@reported("the read-out of pairs")
def top_of_pairs(sign, user_side, item_side, by_user, by_item, users, items, start, stop, top):
    """Find the k most influential examples of pairs `start` to `stop`."""
    size = by_user.itemsize
    columns = (column[start:stop] for column in (by_user, by_item, users, items))
    for first, last, queries, indices, values in _entries(user_side, item_side, *columns):
        values *= sign
        pointers = _pointers(queries, last - first)
        for some, (width,) in alike(lambda width: width * (8 * size + 25), pointers.diff()):
            at, there = padded(pointers[some], pointers[some + 1], width)
            scores = values[at].masked_fill_(~there, 0)
            ids = start + first + some
            if len(top.totals):
                top.totals[ids] = scores.abs().sum(1, dtype=top.totals.dtype)
            found, columns_of = best(scores.masked_fill_(~there, -torch.inf), top.values.shape[1])
            merge(top, ids, found, indices[at.gather(1, columns_of)])


@reported("self-influence")
def own_of_pairs(user_side, item_side, by_user, by_item, users, items, bounds, own_places, out):
    """Influence of training examples on the score of their own pair."""
    d = by_user.shape[1]
    for start, stop in stretches(bounds.diff() * (60 * d)):
        pairs, at = ranges(bounds[start:stop], bounds[start + 1 : stop + 1])
        total = 0
        for side, groups, vectors, places in (
            (user_side, users, by_user, own_places[0]),
            (item_side, items, by_item, own_places[1]),
        ):
            x = vectors[start:stop][pairs]
            rows = unpack_rows(side, groups[start:stop][pairs], places[at], d, x.dtype)
            total = total + (rows * x).sum(1)
        out[user_side.order[own_places[0][at]]] = total


def _entries(user_side, item_side, by_user, by_item, users, items):
    return entries(
        user_side, item_side, by_user.__getitem__, by_item.__getitem__, users, items, False
    )


def _pointers(queries, n):
    """Bounds (n + 1,) of the entries of each query, given in their order."""
    numbers = torch.arange(n + 1, device=queries.device)
    return torch.searchsorted(queries, numbers)
