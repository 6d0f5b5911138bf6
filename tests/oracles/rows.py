"""Naive influence by Gradient Rollback: take an example's changes back and predict again."""

from __future__ import annotations

import numpy as np


def score(p, q):
    """Prediction from a user's and an item's row, biases last (the mean plays no part)."""
    return float(p[:-1] @ q[:-1]) + float(p[-1]) + float(q[-1])


def influence(user_rows, item_rows, user_changes, item_changes, users, items, queries):
    """Change of each query's score with every example taken back alone.

    Parameters
    ----------
    user_rows, item_rows : (n_users, d), (n_items, d)
        Rows of the model, biases last.
    user_changes, item_changes : (n_train, d)
        Changes credited to each example.
    users, items : (n_train,)
        The training pairs.
    queries : list of (user, item)

    Returns
    -------
    (n_queries, n_train) float64
        NaN where an example shares neither row with the query: no candidate.
    """
    user_rows, item_rows = user_rows.astype(float), item_rows.astype(float)
    matrix = np.full((len(queries), len(users)), np.nan)
    for n, (u, i) in enumerate(queries):
        p, q = user_rows[u], item_rows[i]
        for j in range(len(users)):
            if users[j] != u and items[j] != i:
                continue
            old_p = p - user_changes[j] if users[j] == u else p
            old_q = q - item_changes[j] if items[j] == i else q
            matrix[n, j] = score(p, q) - score(old_p, old_q)
    return matrix


def sparse(matrix):
    """Pointers, indices and values of the entries that are not NaN."""
    pointers, indices, values = [0], [], []
    for row in matrix:
        columns = np.flatnonzero(~np.isnan(row))
        indices += columns.tolist()
        values += row[columns].tolist()
        pointers.append(len(indices))
    return pointers, indices, values
