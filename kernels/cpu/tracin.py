"""TracIn: what every step of training did to a quantity, to first order, by the step's example.

A step with the gradient ``G = w * grad l`` moved the rows it touched by ``-R G``, R the learning
rate (Adagrad: that of every coordinate, ``learning_rate / (sqrt(s) + epsilon)``), and phi by
``-grad phi . R G`` for a short step, grad phi taken before it. Phi is made of scores, and the
gradient of a score by its user's row is ``(q, 1)`` and by its item's ``(p, 1)``, so only the
scores are met that share the user with the step, or an item with any of its candidates.

The walk goes from the last step to the first and puts the rows of phi back to what they were
before each step, as they stand in the log: nothing is computed twice, nothing rounded.
"""

import numpy as np

from ..structures import GRADIENT, ITEM_BIAS, USER_BIAS
from .jit import inner_kernel, kernel
from .losses import BPR, SQUARED
from .simd import dot

__all__ = ["PLAIN", "own_steps", "tracin_steps"]

PLAIN = -1
"""Instead of the number of a loss: the quantities are scores themselves."""


@inner_kernel
def _at_rate(step, squares, place, hyper):
    """Multiply a row's gradient by the learning rate of each coordinate."""
    for f in range(step.shape[0]):
        if squares.shape[0] == 0:
            step[f] *= hyper.learning_rate
        else:  # a coordinate whose sum is 0 has a gradient of 0
            step[f] *= hyper.learning_rate / (np.sqrt(squares[place, f]) + hyper.epsilon)


@inner_kernel
def _user_step(log, slot, n_candidates, loss, weight, hyper, step):
    """``R G`` of the user's row, its bias last."""
    p, first, l2 = log.user_rows[slot], slot * log.items.shape[1], weight * hyper.regularization
    k = p.shape[0]
    for f in range(k):
        step[f] = l2 * p[f]
    step[k] = l2 * log.numbers[first, USER_BIAS]
    for c in range(n_candidates):
        push, q = weight * log.numbers[first + c, GRADIENT], log.item_rows[first + c]
        for f in range(k):
            step[f] += push * q[f]
        if loss != BPR:  # where the user's bias cancels
            step[k] += push
    _at_rate(step, log.user_squares, slot, hyper)


@inner_kernel
def _item_step(log, slot, c, weight, hyper, step):
    """``R G`` of the row of a candidate, its bias last."""
    place, l2 = slot * log.items.shape[1] + c, weight * hyper.regularization
    p, q = log.user_rows[slot], log.item_rows[place]
    k, push = p.shape[0], weight * log.numbers[place, GRADIENT]
    for f in range(k):
        step[f] = push * p[f] + l2 * q[f]
    step[k] = push + l2 * log.numbers[place, ITEM_BIAS]
    _at_rate(step, log.item_squares, place, hyper)


@inner_kernel
def _slope(terms, term, kind, mean):
    """d phi / d score of a term, at its rows as they stand."""
    weight, target = terms.weights[term], terms.targets[term]
    if kind == PLAIN:
        return weight
    u, i, rows = terms.users[term], terms.items[term], terms.rows
    score = mean + rows.user_biases[u] + rows.item_biases[i]
    score += dot(rows.user_factors[u], rows.item_factors[i])
    if kind == SQUARED:
        return weight * (target - score)
    # y - sigmoid(f) = s sigmoid(-s f), s = 2 y - 1, without cancellation or overflow
    one = type(score)(1)
    sign = target + target - one
    small = np.exp(-abs(score))
    upper = one / (one + small)
    return weight * sign * (small * upper if sign * score > 0 else upper)


@inner_kernel
def _put_back(terms, u, log, slot, n_candidates):
    """Set the rows of phi that a step touched to what they were before it."""
    rows, first = terms.rows, slot * log.items.shape[1]
    if u >= 0:
        rows.user_biases[u] = log.numbers[first, USER_BIAS]
        for f in range(log.user_rows.shape[1]):
            rows.user_factors[u, f] = log.user_rows[slot, f]
    for c in range(n_candidates):
        i = terms.item_slots[log.items[slot, c]]
        if i >= 0:
            rows.item_biases[i] = log.numbers[first + c, ITEM_BIAS]
            for f in range(log.item_rows.shape[1]):
                rows.item_factors[i, f] = log.item_rows[first + c, f]


@inner_kernel
def _count(log, slot):
    """Number of candidates of a step."""
    count = 0
    while count < log.items.shape[1] and log.items[slot, count] >= 0:
        count += 1
    return count


@inner_kernel
def _steps(terms, kind, examples, log, hyper, loss, start, stop, out, step):
    rows, k = terms.rows, log.user_rows.shape[1]
    for t in range(stop - 1, start - 1, -1):
        slot = log.slots[t]
        if slot < 0:
            continue
        u, j, weight = terms.user_slots[examples.users[t]], examples.ids[t], examples.weights[t]
        n_candidates, found = _count(log, slot), out[j]
        _put_back(terms, u, log, slot, n_candidates)
        if u >= 0:
            _user_step(log, slot, n_candidates, loss, weight, hyper, step)
            for place in range(terms.user_pointers[u], terms.user_pointers[u + 1]):
                term = terms.by_user[place]
                moved = dot(rows.item_factors[terms.items[term]], step) + step[k]
                found[terms.queries[term]] -= _slope(terms, term, kind, hyper.mean) * moved
        for c in range(n_candidates):
            i = terms.item_slots[log.items[slot, c]]
            if i < 0:
                continue
            _item_step(log, slot, c, weight, hyper, step)
            for place in range(terms.item_pointers[i], terms.item_pointers[i + 1]):
                term = terms.by_item[place]
                moved = dot(rows.user_factors[terms.users[term]], step) + step[k]
                found[terms.queries[term]] -= _slope(terms, term, kind, hyper.mean) * moved


@kernel
def tracin_steps(terms, kind, examples, log, hyper, loss, start, stop, out):
    """Credit logged steps, the last first, with what they did to some quantities.

    Parameters
    ----------
    terms : ScoreTerms
        Its rows are those behind the last of the steps; changed in place to those before the
        first. Users and items of `user_slots` and `item_slots` are numbered as in the log.
    kind : {PLAIN, SQUARED, LOGISTIC}
        What the terms are: scores, or minus a loss of a score and its target.
    examples : Examples
        In the order of visits; `ids` are training indices.
    log : Log
        Of these steps, at least of those that touch a row of the terms.
    hyper : Hyper
        Of the epoch.
    loss : {SQUARED, LOGISTIC, BPR}
        Of training.
    start, stop : int
        Visits to go through.
    out : (n, n_quantities)
        Influence by training index, added to. (A quantity a row, every credit of a step would be
        on a page of memory of its own.)
    """
    step = np.empty(log.user_rows.shape[1] + 1, log.user_rows.dtype)
    _steps(terms, kind, examples, log, hyper, loss, start, stop, out, step)


@inner_kernel
def _own_steps(examples, log, hyper, loss, start, stop, out, step):
    k = log.user_rows.shape[1]
    for t in range(stop - 1, start - 1, -1):
        slot = log.slots[t]
        if slot < 0:
            continue
        j, weight = examples.ids[t], examples.weights[t]
        _user_step(log, slot, _count(log, slot), loss, weight, hyper, step)
        out[j] -= dot(log.item_rows[slot * log.items.shape[1]], step) + step[k]
        _item_step(log, slot, 0, weight, hyper, step)
        out[j] -= dot(log.user_rows[slot], step) + step[k]


@kernel
def own_steps(examples, log, hyper, loss, start, stop, out):
    """Credit logged steps with what they did to the score of their own example's pair.

    Parameters
    ----------
    examples, log, hyper, loss, start, stop
        As for `tracin_steps`.
    out : (n,)
        Influence by training index, added to.
    """
    step = np.empty(log.user_rows.shape[1] + 1, log.user_rows.dtype)
    _own_steps(examples, log, hyper, loss, start, stop, out, step)
