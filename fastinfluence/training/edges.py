"""The scores that the loss of matrix factorization is made of, and the rows that each joins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.kernels.structures import Edges

if TYPE_CHECKING:
    from fastinfluence.data import Interactions

__all__ = ["edges_of"]

Codes = npt.NDArray[np.int32]


def edges_of(data: Interactions, negatives: Codes) -> tuple[Edges, Codes, Codes]:
    """Edges of all examples, the row of every example's user and of every edge's item.

    Parameters
    ----------
    data : Interactions
    negatives : (n, C) int32
        Items drawn for each example, by training index; -1 where there is none.

    Returns
    -------
    edges : Edges
    users : (n,) int32
        In the order of the edges.
    items : (m,) int32
    """
    n_users, n_rows = data.n_users, data.n_users + data.n_items
    _, examples = data.by_user
    users = data.users[examples]
    candidates = np.column_stack([data.items, negatives])[examples]
    real = candidates >= 0
    items = (candidates[real] + n_users).astype(np.int32)
    first = np.concatenate([[0], np.cumsum(real.sum(axis=1))])
    owns = np.repeat(first[:-1], np.diff(first)).astype(np.int32)
    of_edges = np.repeat(users, np.diff(first))
    count_sort = dispatch.kernels("grouping").count_sort
    pointers, by_item = count_sort(items - np.int32(n_users), n_rows - n_users)
    user_pointers = np.searchsorted(of_edges, np.arange(n_users + 1))
    numbers = np.concatenate([np.arange(len(items)), by_item]).astype(np.int32)
    others = np.concatenate([items, of_edges[by_item]]).astype(np.int32)
    bounds = np.concatenate([user_pointers, len(items) + pointers[1:]])
    return Edges(bounds, others, numbers, first, owns, examples), users, items
