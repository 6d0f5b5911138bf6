"""What the loss of matrix factorization is made of: rows, the scores that join them, L2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import DataError
from fastinfluence.kernels.structures import Edges, Tables
from fastinfluence.memory import aligned_zeros

if TYPE_CHECKING:
    from fastinfluence.data import Interactions
    from fastinfluence.training.program import Program

__all__ = ["edges_of", "l2_of", "negatives_of", "rows_of"]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.float64]


def rows_of(tables: Tables, n_users: int, n_items: int, d: int, dtype: Any) -> Array:
    """Rows ``(factors, bias)`` of the users, then of the items, (n_users + n_items, d).

    Raises
    ------
    DataError
        Tables of another shape, or that are not finite.
    """
    rows: Array = aligned_zeros((n_users + n_items, d), dtype)
    halves = rows[:n_users], rows[n_users:]
    for half, factors, biases in zip(halves, tables[:2], tables[2:], strict=True):
        if factors.shape != (len(half), d - 1) or biases.shape != (len(half),):
            raise DataError(
                f"factors of shape {factors.shape} and biases of {biases.shape} are no "
                f"{len(half):,} rows of {d - 1} factors"
            )
        half[:, :-1], half[:, -1] = factors, biases
    if not np.isfinite(rows).all():
        row = int((~np.isfinite(rows)).any(1).argmax())
        kind, code = ("user", row) if row < n_users else ("item", row - n_users)
        raise DataError(
            f"the row of {kind} {code} holds NaN or infinity: the loss has no derivatives "
            "there; train again with a lower learning_rate"
        )
    return rows


def negatives_of(program: Program, n_draws: int) -> tuple[Codes, float]:
    """Negatives (n, n_draws * n_negatives) of the last epochs, and the share that each epoch has.

    By training index; -1 where there is none, and no column where none are drawn.
    """
    n, n_negatives = len(program.data), program.sampler.n_negatives
    n_epochs, schedule = program.recipe.n_epochs, program.schedule
    if not n_negatives:
        return np.zeros((n, 0), np.int32), 1.0
    epochs = range(max(0, n_epochs - n_draws), n_epochs)
    drawn = np.empty((n, len(epochs), n_negatives), np.int32)
    of_epoch = np.empty((n, n_negatives), np.int32)
    pointers = schedule.pointers
    for number, epoch in enumerate(epochs):
        dispatch.kernels("negatives").draw_epoch(
            program.examples, pointers, program.sampler, epoch, 0, len(pointers) - 1, of_epoch
        )
        codes = np.where(of_epoch < 0, -1, schedule.pool[of_epoch])
        drawn[program.order, number] = codes
    return drawn.reshape(n, -1), 1 / len(epochs)


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


def l2_of(
    edges: Edges,
    users: Codes,
    items: Codes,
    weights: Array,
    share: float,
    regularization: float,
    n_rows: int,
) -> tuple[Numbers, Numbers]:
    """L2 of the item of every edge (m,), and of every row (n_rows,), weights included.

    Parameters
    ----------
    edges, users, items
        See `edges_of`.
    weights : (n,)
        In the order of the edges.
    share : float
        Of an epoch's negatives.
    regularization : float
    n_rows : int
    """
    of_edges = np.repeat(weights.astype(np.float64), np.diff(edges.first))
    of_edges[edges.owns != np.arange(len(of_edges))] *= share
    of_edges *= regularization
    of_rows: Numbers = np.zeros(n_rows)
    of_rows += np.bincount(users, of_edges[edges.first[:-1]], n_rows)
    of_rows += np.bincount(items, of_edges, n_rows)
    return of_edges, of_rows
