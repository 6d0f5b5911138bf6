"""The training loss near one pair, written out: gradients and Hessian of its two rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .sgd import BPR


class Example(NamedTuple):
    """A training example at fixed parameters; its weight is in all the numbers."""

    user: int
    candidates: list[int]  # its own item, then its negatives
    gradients: list[float]  # dL/df of the candidates
    curvatures: list[float]  # of their scores (``bpr``: of the leads; the first is not used)
    l2: list[float]  # of the candidates' rows; the user's is that of its own item


def score_row(row):
    """Derivative of a score by the row at the other end."""
    return np.append(row[:-1], 1.0)


def own_gradients(example, user_rows, item_rows):
    """Gradient of the example's loss by its user's row and by its own item's row."""
    p, q = user_rows[example.user], item_rows[example.candidates[0]]
    by_user = example.l2[0] * p
    for item, slope in zip(example.candidates, example.gradients, strict=True):
        by_user = by_user + slope * score_row(item_rows[item])
    return by_user, example.l2[0] * q + example.gradients[0] * score_row(p)


def _arguments(example, loss):
    """The numbers the loss is a function of: their curvature, and the sign of each score."""
    own, *negatives = example.candidates
    if loss != BPR:
        pairs = zip(example.candidates, example.curvatures, strict=True)
        return [(curvature, {item: 1.0}) for item, curvature in pairs]
    pairs = zip(negatives, example.curvatures[1:], strict=True)
    return [(curvature, {item: 1.0, own: -1.0}) for item, curvature in pairs]


def blocks(examples, user_rows, item_rows, loss):
    """Gauss-Newton blocks of all users' rows and of all items'."""
    d = user_rows.shape[1]
    of_users = np.zeros((len(user_rows), d, d))
    of_items = np.zeros((len(item_rows), d, d))
    for example in examples:
        y = score_row(user_rows[example.user])
        for curvature, signs in _arguments(example, loss):
            x = sum(sign * score_row(item_rows[item]) for item, sign in signs.items())
            of_users[example.user] += curvature * np.outer(x, x)
            for item in signs:
                of_items[item] += curvature * np.outer(y, y)
        of_users[example.user] += example.l2[0] * np.eye(d)
        for item, l2 in zip(example.candidates, example.l2, strict=True):
            of_items[item] += l2 * np.eye(d)
    return of_users, of_items


def coupling(examples, user, item, user_rows, item_rows, loss, *, full):
    """The block between the two rows of a pair, (d, d): from the examples of that pair alone."""
    d = user_rows.shape[1]
    block = np.zeros((d, d))
    for example in examples:
        if (example.user, example.candidates[0]) != (user, item):
            continue
        y = score_row(user_rows[user])
        for curvature, signs in _arguments(example, loss):
            x = sum(sign * score_row(item_rows[other]) for other, sign in signs.items())
            block += curvature * signs.get(item, 0.0) * np.outer(x, y)
        if full:  # d2 score / d user row d item row: one between equal factors
            block += example.gradients[0] * np.diag(np.append(np.ones(d - 1), 0.0))
    return block


def influence(examples, queries, user_rows, item_rows, loss, *, damping, full):
    """Influence (n_queries, n) on the scores of pairs, NaN of examples that share neither row.

    ``-x' (H + damping)^-1 g_j``, the Hessian that of both rows of the pair together.
    """
    d = user_rows.shape[1]
    of_users, of_items = blocks(examples, user_rows, item_rows, loss)
    gradients = [own_gradients(example, user_rows, item_rows) for example in examples]
    found = np.full((len(queries), len(examples)), np.nan)
    for n, (user, item) in enumerate(queries):
        between = coupling(examples, user, item, user_rows, item_rows, loss, full=full)
        hessian = np.block([[of_users[user], between], [between.T, of_items[item]]])
        x = np.concatenate([score_row(item_rows[item]), score_row(user_rows[user])])
        solved = np.linalg.solve(hessian + damping * np.eye(2 * d), x)
        for j, (example, (by_user, by_item)) in enumerate(zip(examples, gradients, strict=True)):
            own = example.candidates[0]
            if example.user == user or own == item:
                found[n, j] = 0.0
            if example.user == user:
                found[n, j] -= by_user @ solved[:d]
            if own == item:
                found[n, j] -= by_item @ solved[d:]
    return found
