"""Naive influence by vectors that belong to the pair: products with what examples are credited."""

from __future__ import annotations

import numpy as np


def influence(by_user, by_item, user_changes, item_changes, users, items, queries):
    """(n_queries, n_train) float64, NaN where an example shares neither row.

    Parameters
    ----------
    by_user, by_item : (n_queries, d)
        What the changes of a query's user, and of its item, are multiplied with.
    user_changes, item_changes : (n_train, d)
    users, items : (n_train,)
    queries : list of (user, item)
    """
    matrix = np.full((len(queries), len(users)), np.nan)
    for n, (u, i) in enumerate(queries):
        for j in range(len(users)):
            shares = []
            if users[j] == u:
                shares.append(float(by_user[n].astype(float) @ user_changes[j].astype(float)))
            if items[j] == i:
                shares.append(float(by_item[n].astype(float) @ item_changes[j].astype(float)))
            if shares:
                matrix[n, j] = sum(shares)
    return matrix
