"""The read-out as plain numpy does it: the yardstick of the compiled one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import fastinfluence as fi

Array = np.ndarray[Any, Any]


class Half(NamedTuple):
    """Contiguous rows of one side: those of group g are ``rows[pointers[g]:pointers[g + 1]]``."""

    rows: Array  # (n, d)
    pointers: Array  # (n_groups + 1,)
    vectors: Array  # (n_columns, d): what the rows are multiplied with


class PlainRows(NamedTuple):
    """Both sides, in memory, float32."""

    user: Half
    item: Half


def plain_rows(model: fi.MatrixFactorization) -> PlainRows:
    """The rows of Gradient Rollback in the simplest layout a numpy user would choose."""
    trajectory, data = model.trajectory_, model.data_
    record = trajectory.replay(n_threads=2, show_progress=False)
    visits = trajectory.visits()
    p = np.column_stack([model.user_factors_, np.ones(data.n_users, np.float32)])
    q = np.column_stack([model.item_factors_, np.ones(data.n_items, np.float32)])
    halves = []
    for column, rows, (pointers, order), vectors in (
        (0, record.user_rows, data.by_user, q),
        (1, record.item_rows, data.by_item, p),
    ):
        places = visits[order]
        with_bias = np.column_stack([rows[places], record.biases[places, column]])
        halves.append(Half(with_bias, pointers, vectors))
    return PlainRows(*halves)


def explain_one_by_one(rows: PlainRows, users: Array, items: Array, k: int) -> Array:
    """The k largest influences of every query, (n, k): matmul, argpartition, sort a query."""
    (by_user, user_pointers, q), (by_item, item_pointers, p) = rows
    best = np.full((len(users), k), np.nan, np.float32)
    for number, (u, i) in enumerate(zip(users.tolist(), items.tolist(), strict=True)):
        scores = np.concatenate(
            [
                by_user[user_pointers[u] : user_pointers[u + 1]] @ q[i],
                by_item[item_pointers[i] : item_pointers[i + 1]] @ p[u],
            ]
        )
        found = np.argpartition(scores, -k)[-k:] if len(scores) > k else np.arange(len(scores))
        found = found[np.argsort(-scores[found])]
        best[number, : len(found)] = scores[found]
    return best


def best_of_groups(half: Half, groups: Array, columns: Array, k: int) -> Array:
    """The k largest scores (n, k) of one side: one matmul and one argpartition a group."""
    order = np.argsort(groups, kind="stable")
    bounds = np.searchsorted(groups[order], np.arange(len(half.pointers)))
    best = np.full((len(groups), k), -np.inf, np.float32)
    for g in np.unique(groups):
        rows = half.rows[half.pointers[g] : half.pointers[g + 1]]
        if len(rows) == 0:
            continue
        queries = order[bounds[g] : bounds[g + 1]]
        scores = half.vectors[columns[queries]] @ rows.T
        if len(rows) > k:
            found = np.argpartition(scores, -k, axis=1)[:, -k:]
            scores = np.take_along_axis(scores, found, axis=1)
        best[queries, : scores.shape[1]] = scores
    return best


def explain_by_group(rows: PlainRows, users: Array, items: Array, k: int) -> Array:
    """The k largest influences of every query, (n, k), group by group and merged."""
    both = np.concatenate(
        [
            best_of_groups(rows.user, users, items, k),
            best_of_groups(rows.item, items, users, k),
        ],
        axis=1,
    )
    best = -np.sort(-both, axis=1)[:, :k]
    return np.where(np.isneginf(best), np.nan, best)
