"""Naive turn-over dropout: masks by hash, and training in which every example sees its own half.

Rows are those of `oracles.sgd`: factors with the bias at the end. An example's gradient is that
of an ordinary example whose rows are the kept ones, cut out.
"""

from __future__ import annotations

import math

import numpy as np

from .random import draw, stream
from .sgd import BPR, SQUARED, negatives, score_gradients

FIRST_SET = 2**33


def mask(seed, number, example, k):
    """(k,) zeros and twos."""
    key = stream(seed, FIRST_SET + number, example)
    return np.array([2.0 * draw(key, f, 2) for f in range(k)])


def score(theta, user, item, mean, m):
    p, q = theta["user", user], theta["item", item]
    return mean + p[-1] + q[-1] + sum(m[f] * p[f] * q[f] for f in range(len(m)))


def gradients(theta, user, candidates, value, hyper, loss, m):
    """dl/drow of every row the example touches."""
    f = [score(theta, user, item, hyper.mean, m) for item in candidates]
    slopes = score_gradients(f, value, loss)
    kept = np.append(m > 0, True)
    p = theta["user", user]
    found = {("user", user): hyper.regularization * kept * p}
    for item, slope in zip(candidates, slopes, strict=True):
        q = theta["item", item]
        found["user", user] = found["user", user] + slope * np.append(m * q[:-1], 1)
        found["item", item] = slope * np.append(m * p[:-1], 1) + hyper.regularization * kept * q
    if loss == BPR:  # the user's bias stands on both sides of every comparison
        found["user", user][-1] = hyper.regularization * p[-1]
    return found


def epoch(theta, squares, examples, pointers, sampler, hyper, loss, epoch, seed, number):
    """One epoch in place; returns every step: its position, and dl/drow of the rows it touched."""
    hyper = type(hyper)(*map(float, hyper))
    n_groups = math.isqrt(len(pointers) - 1)
    made = []
    for block in range(n_groups * n_groups):
        stratum, user_group = divmod(block, n_groups)
        item_group = (user_group + stratum) % n_groups
        for t in range(pointers[block], pointers[block + 1]):
            weight, value = float(examples.weights[t]), float(examples.values[t])
            if weight == 0:
                continue
            user, item, example = (
                int(a[t]) for a in (examples.users, examples.items, examples.ids)
            )
            candidates = [item]
            if loss != SQUARED and value > 0:
                candidates += negatives(sampler, epoch, example, user, item, item_group)
            m = mask(seed, number, example, len(theta["user", user]) - 1)
            slopes = gradients(theta, user, candidates, value, hyper, loss, m)
            for name, slope in slopes.items():
                rates = np.full(len(slope), hyper.learning_rate)
                if squares is not None:
                    squares[name] = squares[name] + (weight * slope) ** 2
                    rates /= np.sqrt(squares[name]) + hyper.epsilon
                theta[name] = theta[name] - rates * weight * slope
            made.append((t, slopes))
    return made
