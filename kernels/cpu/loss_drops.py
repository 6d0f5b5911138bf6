"""What moving a few rows takes off the loss of the examples that touch them."""

import numpy as np

from .jit import inner_kernel, kernel
from .losses import BPR, SQUARED

__all__ = ["loss_drops"]


@inner_kernel
def _score(p, q, dp, dq):
    """A score without the mean, and by how much it rises when the rows move."""
    k = p.shape[0] - 1
    score, rise = np.float64(p[k]) + np.float64(q[k]), dp[k] + dq[k]
    for f in range(k):
        x, y = np.float64(p[f]), np.float64(q[f])
        score += x * y
        rise += dp[f] * (y + dq[f]) + x * dq[f]
    return score, rise


@inner_kernel
def _squares_rise(row, change):
    total = 0.0
    for f in range(row.shape[0]):
        total += change[f] * (2 * np.float64(row[f]) + change[f])
    return total


@inner_kernel
def _softplus_rise(x, rise):
    """``softplus(x + rise) - softplus(x)``: a small rise is not lost in a large value."""
    if abs(rise) < 1:
        small = np.exp(-abs(x))
        sigmoid = (1.0 if x > 0 else small) / (1 + small)
        return np.log1p(sigmoid * np.expm1(rise))
    y = x + rise
    ends = max(y, 0.0) - max(x, 0.0)
    return ends + np.log1p(np.exp(-abs(y))) - np.log1p(np.exp(-abs(x)))


@inner_kernel
def _drop(loss, rows, changes, edges, users, items, value, share, mean, regularization, j):
    u, own = users[j], edges.first[j]
    i = items[own]
    p, dp = rows[u], changes[u]
    score, rise = _score(p, rows[i], dp, changes[i])
    squares = _squares_rise(p, dp) + _squares_rise(rows[i], changes[i])
    if loss == SQUARED:
        drop = -rise * (score + mean - value + rise / 2)
    elif loss == BPR:
        drop = 0.0
    else:
        sign = -1.0 if value > 0 else 1.0
        drop = -_softplus_rise(sign * (score + mean), sign * rise)
    for e in range(own + 1, edges.first[j + 1]):
        other, change = rows[items[e]], changes[items[e]]
        x, dx = _score(p, other, dp, change)
        if loss == BPR:
            drop -= share * _softplus_rise(x - score, dx - rise)
        else:
            drop -= share * _softplus_rise(x + mean, dx)
        squares += share * _squares_rise(other, change)
    return drop - 0.5 * regularization * squares


@kernel
def loss_drops(
    loss, rows, changes, moved, edges, users, items, values, weights, share, mean, regularization,
    n_users, out,
):  # fmt: skip
    """Loss of examples at `rows` minus that at ``rows + changes``, as differences all the way.

    Parameters
    ----------
    loss : {SQUARED, LOGISTIC, BPR}
    rows : (n_rows, d)
        Factors, then the bias.
    changes : (n_rows, d) float64
    moved : (a,) int64
        The rows that change; all others have zeros in `changes`.
    edges : Edges
    users, values, weights : (n,)
        Of the examples, in the order of the edges.
    items : (m,) int32
        Row of the item of each edge.
    share : float
        What a negative counts.
    mean, regularization : float
    n_users : int
    out : (n,) float64
        By training index, times the weight; examples that touch no moved row are left alone.
    """
    for row in moved:
        for place in range(edges.pointers[row], edges.pointers[row + 1]):
            e = edges.numbers[place]
            if row < n_users and e != edges.owns[e]:
                continue  # once an example
            j = np.searchsorted(edges.first, e, "right") - 1
            drop = _drop(
                loss, rows, changes, edges, users, items, np.float64(values[j]), share, mean,
                regularization, j,
            )  # fmt: skip
            out[edges.examples[j]] = weights[j] * drop
