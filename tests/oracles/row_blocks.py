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
    l2: float


def score_row(row):
    """Derivative of a score by the row at the other end."""
    return np.append(row[:-1], 1.0)


def own_gradients(example, user_rows, item_rows):
    """Gradient of the example's loss by its user's row and by its own item's row."""
    p, q = user_rows[example.user], item_rows[example.candidates[0]]
    by_user = example.l2 * p
    for item, slope in zip(example.candidates, example.gradients, strict=True):
        by_user = by_user + slope * score_row(item_rows[item])
    return by_user, example.l2 * q + example.gradients[0] * score_row(p)


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
        of_users[example.user] += example.l2 * np.eye(d)
        for item in example.candidates:
            of_items[item] += example.l2 * np.eye(d)
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


def influence(examples, user, item, user_rows, item_rows, loss, *, damping, full):
    """Influence (n,) on the score of a pair, NaN of examples that share neither row.

    ``-x' (H + damping)^-1 g_j``, the Hessian that of both rows together.
    """
    d = user_rows.shape[1]
    of_users, of_items = blocks(examples, user_rows, item_rows, loss)
    hessian = np.zeros((2 * d, 2 * d))
    hessian[:d, :d], hessian[d:, d:] = of_users[user], of_items[item]
    between = coupling(examples, user, item, user_rows, item_rows, loss, full=full)
    hessian[:d, d:], hessian[d:, :d] = between, between.T
    x = np.concatenate([score_row(item_rows[item]), score_row(user_rows[user])])
    solved = np.linalg.solve(hessian + damping * np.eye(2 * d), x)
    found = np.full(len(examples), np.nan)
    for j, example in enumerate(examples):
        by_user, by_item = own_gradients(example, user_rows, item_rows)
        if example.user == user:
            found[j] = -by_user @ solved[:d]
        if example.candidates[0] == item:
            found[j] = np.nan_to_num(found[j]) - by_item @ solved[d:]
    return found
