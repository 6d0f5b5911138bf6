"""Naive training: dictionaries of rows, one example at a time, in float64.

A row is a vector of the factors with the bias at its end: ``theta["user", 3]``. Every step
derives the gradient of the example's own loss

    l = L(f) + regularization / 2 * (sum of squares of the user's and all candidates' rows)

from rows that nobody changes before it is complete.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .random import draw, stream

SQUARED, LOGISTIC, BPR = 0, 1, 2
MAX_ATTEMPTS = 16
VALIDATION_EPOCH = 2**32 - 1


def rows_of(tables):
    """The tables as a dictionary of float64 rows."""
    rows = {}
    for kind, factors, biases in (
        ("user", tables.user_factors, tables.user_biases),
        ("item", tables.item_factors, tables.item_biases),
    ):
        for number in range(len(biases)):
            row = [*map(float, factors[number]), float(biases[number])]
            rows[kind, number] = np.array(row)
    return rows


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x):
    """``log(1 + exp(x)) = -log(sigmoid(-x))``."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def scores(theta, user, candidates, mean):
    p = theta["user", user]
    found = []
    for item in candidates:
        q = theta["item", item]
        found.append(mean + p[-1] + q[-1] + float(p[:-1] @ q[:-1]))
    return found


def prediction_loss(f, value, loss):
    """L, without regularization; ``f[0]`` belongs to the example, the others to negatives."""
    if loss == SQUARED:
        return 0.5 * (f[0] - value) ** 2
    if loss == LOGISTIC:
        own = softplus(-f[0]) if value > 0 else softplus(f[0])
        return own + sum(softplus(x) for x in f[1:])
    return sum(softplus(x - f[0]) for x in f[1:])


def score_gradients(f, value, loss):
    """dL/df of every candidate."""
    if loss == SQUARED:
        return [f[0] - value]
    if loss == LOGISTIC:
        return [sigmoid(f[0]) - value] + [sigmoid(x) for x in f[1:]]
    pulls = [sigmoid(x - f[0]) for x in f[1:]]
    return [-sum(pulls), *pulls]


def example_loss(theta, user, candidates, value, hyper, loss):
    """The example's own loss l."""
    total = prediction_loss(scores(theta, user, candidates, hyper.mean), value, loss)
    for name in [("user", user), *(("item", item) for item in candidates)]:
        total += 0.5 * hyper.regularization * float(theta[name] @ theta[name])
    return total


def gradients(theta, user, candidates, value, hyper, loss):
    """dl/drow of every row the example touches."""
    slopes = score_gradients(scores(theta, user, candidates, hyper.mean), value, loss)
    p = theta["user", user]
    found = {("user", user): hyper.regularization * p}
    for item, slope in zip(candidates, slopes, strict=True):
        q = theta["item", item]
        found["user", user] = found["user", user] + slope * np.append(q[:-1], 1)
        found["item", item] = slope * np.append(p[:-1], 1) + hyper.regularization * q
    if loss == BPR:  # the user's bias stands on both sides of every comparison
        found["user", user][-1] = hyper.regularization * p[-1]
    return found


def negatives(sampler, epoch, example, user, item, group):
    """Distinct unknown items of the group's pool, not `item`; a slot may stay empty."""
    bounds = sampler.pool_pointers[group], sampler.pool_pointers[group + 1]
    pool = sampler.pool[bounds[0] : bounds[1]].tolist()
    bounds = sampler.known_pointers[user], sampler.known_pointers[user + 1]
    known = set(sampler.known_items[bounds[0] : bounds[1]].tolist())
    key = stream(int(sampler.seed), int(epoch), int(example))
    found = []
    for slot in range(sampler.n_negatives if pool else 0):
        for attempt in range(MAX_ATTEMPTS):
            drawn = pool[draw(key, slot * MAX_ATTEMPTS + attempt, len(pool))]
            if drawn not in known and drawn not in [item, *found]:
                found.append(drawn)
                break
    return found


class Step(NamedTuple):
    """One step of training; the dictionaries hold every row it touches, by name."""

    t: int  # position of the example in the order of visits
    user: int
    candidates: list[int]  # the example's own item, then its negatives
    value: float
    weight: float
    rows: dict[tuple[str, int], np.ndarray]  # as they stand before the step
    scores: list[float]  # of the candidates
    gradients: dict[tuple[str, int], np.ndarray]  # dl/drow, without the weight
    squares: dict[tuple[str, int], np.ndarray] | None  # Adagrad's sums, this step included
    rates: dict[tuple[str, int], np.ndarray]  # learning rate of every coordinate
    hyper: Any
    loss: int

    @property
    def changes(self):
        """What the step adds to each row."""
        return {
            name: -self.rates[name] * self.weight * gradient
            for name, gradient in self.gradients.items()
        }


def steps(theta, squares, examples, pointers, sampler, hyper, loss, epoch):
    """Train for one epoch, in place, and yield every step once it is made.

    `theta` and `squares` (None: plain SGD) come from `rows_of`. Examples of weight 0 make no
    step.
    """
    hyper = type(hyper)(*map(float, hyper))
    n_groups = math.isqrt(len(pointers) - 1)
    for block in range(n_groups * n_groups):
        stratum, user_group = divmod(block, n_groups)
        item_group = (user_group + stratum) % n_groups
        for t in range(pointers[block], pointers[block + 1]):
            weight, value = float(examples.weights[t]), float(examples.values[t])
            if weight == 0:
                continue
            user, item = int(examples.users[t]), int(examples.items[t])
            candidates = [item]
            if loss != SQUARED and value > 0:
                key = epoch, examples.ids[t]
                candidates += negatives(sampler, *key, user, item, item_group)
            slopes = gradients(theta, user, candidates, value, hyper, loss)
            rates = {}
            for name, slope in slopes.items():
                rates[name] = np.full(len(slope), hyper.learning_rate)
                if squares is not None:
                    squares[name] = squares[name] + (weight * slope) ** 2
                    rates[name] /= np.sqrt(squares[name]) + hyper.epsilon
                    # A coordinate that has never had a gradient (the user's bias in BPR) does
                    # not move at any rate. Without this, 1 / epsilon would enter derivatives.
                    rates[name][squares[name] == 0] = 0
            step = Step(
                t,
                user,
                candidates,
                value,
                weight,
                {name: theta[name] for name in slopes},
                scores(theta, user, candidates, hyper.mean),
                slopes,
                None if squares is None else {name: squares[name] for name in slopes},
                rates,
                hyper,
                loss,
            )
            for name, change in step.changes.items():
                theta[name] = theta[name] + change
            yield step


def sgd_epoch(theta, squares, examples, pointers, sampler, hyper, loss, epoch, record):
    """One epoch in place; returns the sum of weighted losses.

    `record` is a dictionary of (example position, "user" or "item") to the credit: the sum of
    the example's own preconditioned gradients, ``-rate * weight * dl/drow``.
    """
    total = 0.0
    for step in steps(theta, squares, examples, pointers, sampler, hyper, loss, epoch):
        total += step.weight * prediction_loss(step.scores, step.value, loss)
        if record is not None:
            for kind, number in (("user", step.user), ("item", step.candidates[0])):
                at = step.t, kind
                record[at] = record.get(at, 0.0) + step.changes[kind, number]
    return total


def mean_loss(tables, examples, sampler, hyper, loss):
    """Weighted mean of the prediction losses, pools dealt to the examples in turn."""
    theta, hyper = rows_of(tables), type(hyper)(*map(float, hyper))
    n_groups = len(sampler.pool_pointers) - 1
    total = weights = 0.0
    for t in range(len(examples.users)):
        user, item, value = int(examples.users[t]), int(examples.items[t]), examples.values[t]
        candidates = [item]
        if loss != SQUARED and value > 0:
            key = VALIDATION_EPOCH, examples.ids[t]
            candidates += negatives(sampler, *key, user, item, t % n_groups)
        f = scores(theta, user, candidates, hyper.mean)
        total += float(examples.weights[t]) * prediction_loss(f, value, loss)
        weights += float(examples.weights[t])
    return total / weights
