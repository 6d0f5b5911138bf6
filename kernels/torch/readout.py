"""Read-out: the k most influential rows for every query, by matrix products and top-k.

Groups of about the same size make a batch of products [queries of a group] x [examples of the
group], as many as memory allows; the scores are forgotten as soon as their best k are merged
into the lists. Rows in bfloat16 are multiplied in the dtype of the queries' vectors: float32,
or bfloat16 where the vectors are that.
"""

import torch

from .batches import alike, padded, ranges
from .panels import unpack_rows
from .reports import reported
from .rows import own_influence
from .select import best, merge

__all__ = ["TILE", "find_pairs", "read_own", "read_side", "tile_units"]

TILE = 2**22
"""Scores of one unit, as far as it has more than 16 queries."""


def tile_units(pointers, query_pointers):
    """Cut every group's queries into tiles: (n_units, 3) of group, first and last + 1 query."""
    sizes, counts = pointers.diff(), query_pointers.diff()
    heights = (TILE // sizes.clamp(min=1)).clamp(16, 1024)
    n_units = torch.where(sizes > 0, (counts + heights - 1) // heights, 0)
    groups, numbers = ranges(torch.zeros_like(n_units), n_units)
    starts = query_pointers[groups] + numbers * heights[groups]
    stops = torch.minimum(starts + heights[groups], query_pointers[groups + 1])
    return torch.stack([groups, starts, stops], 1)


@reported("the read-out")
def read_side(sign, side, queries, exclusions, units, first_unit, last_unit, top):
    """Merge the scores of one side into the lists of the best k. See the twin in kernels.cpu."""
    groups, starts, stops = units[first_unit:last_unit].unbind(1)
    bases, ends = side.pointers[groups], side.pointers[groups + 1]
    d, size = queries.vectors.shape[1], top.values.itemsize

    def bytes_of(height, width):
        return 10 * size * height * width + (24 * width + 2 * size * height) * d

    for some, (height, width) in alike(bytes_of, stops - starts, ends - bases):
        places, there = padded(bases[some], ends[some], width)
        rows = unpack_rows(
            side, groups[some, None].expand(places.shape), places, d, queries.vectors.dtype
        )
        numbers, asked = padded(starts[some], stops[some], height)
        scores = queries.vectors[queries.columns[numbers]] @ rows.mT
        units_of_queries = asked.nonzero()[:, 0]
        _merge_scores(
            sign * scores[asked],
            there[units_of_queries],
            queries.ids[numbers[asked]],
            bases[some][units_of_queries],
            side.order,
            exclusions,
            top,
        )


def _merge_scores(scores, seen, ids, bases, order, exclusions, top):
    """Merge rows of scores (m, n) of queries `ids`; column c is the example at ``bases + c``."""
    rows, at = ranges(exclusions.starts[ids], exclusions.stops[ids])
    seen[rows, exclusions.places[at] - bases[rows]] = False
    scores.masked_fill_(~seen, -torch.inf)
    if len(top.totals):
        scores_seen = scores.masked_fill(~seen, 0).abs_()
        top.totals[ids] += scores_seen.sum(1, dtype=top.totals.dtype)
    values, columns = best(scores, top.values.shape[1])
    places = (bases[:, None] + columns).clamp_(max=len(order) - 1)  # padding lies behind the end
    merge(top, ids, values, order[places])


@reported("the read-out of own pairs")
def read_own(sign, user_side, item_side, own, item_places, vectors, users, items, top):
    """Put the examples that are the query's own pair into its list. See kernels.cpu."""
    counts = own.stops - own.starts
    d, size = vectors[0].shape[1], vectors[0].itemsize
    for some, (width,) in alike(lambda width: width * d * (48 + 8 * size), counts):
        places, there = padded(own.starts[some], own.stops[some], width)
        at = own.places[places]
        u, i = (column[some, None].expand(at.shape) for column in (users, items))
        values = sign * own_influence(
            user_side, item_side, u, i, at, item_places[places], vectors[0][i], vectors[1][u]
        )
        if len(top.totals):
            top.totals[some] += (values.abs() * there).sum(1, dtype=top.totals.dtype)
        merge(top, some, values.masked_fill(~there, -torch.inf), user_side.order[at])


@reported("the search for pairs")
def find_pairs(known_pointers, known_items, users, items, start, stop, starts, stops):
    """Bounds of each query's own pair among the training pairs, for queries ``start:stop``."""
    if start == stop:
        return
    owners, _ = ranges(known_pointers[:-1], known_pointers[1:])
    wanted = items[start:stop].long() + 1
    base = max(int(wanted.max()), int(known_items.max()) + 1 if len(known_items) else 0) + 1
    known = owners * base + known_items + 1  # items that are not held are -1
    pairs = users[start:stop].long() * base + wanted
    starts[start:stop] = torch.searchsorted(known, pairs)
    stops[start:stop] = torch.searchsorted(known, pairs, right=True)
