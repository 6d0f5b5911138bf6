"""Stochastic gradient descent for biased matrix factorization, with per-example records.

One step belongs to one example j = (u, i, y, w) and, for sampled losses, its own negatives.
All candidates c (the item itself and the negatives) are scored from the rows as they stand
before the step:

    f_c = mean + b_u + b_c + p_u . q_c
    l_j = L(f) + regularization / 2 * (|p_u|^2 + b_u^2 + sum_c |q_c|^2 + b_c^2)

and every touched row moves by ``-a * dl_j/drow``, ``a = learning_rate * w``. The candidates of a
step are distinct rows, so they may be updated one after the other.

Arithmetic is strict and every sum has a fixed order: a run with and without records, in one
thread or many, leaves the same bits.
"""

import numba
import numpy as np

from ..structures import (
    CURVATURE,
    GRADIENT,
    ITEM_BIAS,
    N_CANDIDATES,
    SCORE,
    USER_BIAS,
    WEIGHT,
)
from .jit import inner_kernel, kernel
from .losses import BPR, LOGISTIC, SQUARED, candidate_curvatures, candidate_gradients
from .negatives import draw_negatives, take_negatives
from .simd import dot, move_pair, move_pair_recorded, prefetch

__all__ = [
    "BPR",
    "LOGISTIC",
    "SQUARED",
    "mean_loss",
    "sgd_epoch",
    "sgd_epoch_parallel",
]

PREFETCH_STEPS = 16
"""Record rows are asked for this many steps ahead.

On an AMD Zen 5 it takes a step at k=64 from 38 to 29.6 ns; on an Intel Xeon it is lost in the
noise.
"""


@inner_kernel
def _move(old, gradient, squares, index, learning_rate, epsilon):
    """New value of one coordinate after its gradient (Adagrad: the sum includes this one)."""
    if squares is None:
        return old - learning_rate * gradient
    squares[index] += gradient * gradient
    return old - learning_rate * gradient / (np.sqrt(squares[index]) + epsilon)


@inner_kernel
def _log_candidate(log, slot, c, item, row, numbers):
    """Log one candidate; `numbers` are gradient, curvature, score and both biases."""
    log.items[slot, c] = item
    place = slot * log.items.shape[1] + c
    for f in range(row.shape[0]):
        log.item_rows[place, f] = row[f]
    logged = log.numbers[place]
    logged[GRADIENT], logged[CURVATURE], logged[SCORE] = numbers[0], numbers[1], numbers[2]
    logged[ITEM_BIAS], logged[USER_BIAS] = numbers[3], numbers[4]


@inner_kernel
def _log_step(log, slot, row, weight, n_candidates):
    """Log the rest of a step: the user's row before it, and how much there is of it."""
    for f in range(row.shape[0]):
        log.user_rows[slot, f] = row[f]
    first = slot * log.items.shape[1]
    for c in range(log.items.shape[1]):
        if c < n_candidates:
            log.numbers[first + c, WEIGHT] = weight
            log.numbers[first + c, N_CANDIDATES] = n_candidates
        else:
            log.items[slot, c] = -1


@inner_kernel
def _log_squares(logged, place, squares, of_bias):
    """Adagrad's sums behind a step, the bias's last."""
    k = squares.shape[0]
    for f in range(k):
        logged[place, f] = squares[f]
    logged[place, k] = of_bias


@inner_kernel
def _squared_block(tables, squares, examples, hyper, start, stop, record, log):
    """Steps of the squared loss: one candidate, both rows in one pass. Returns the loss."""
    user_factors, item_factors, user_biases, item_biases = tables
    k = user_factors.shape[1]
    total = 0.0
    for t in range(start, stop):
        weight = examples.weights[t]
        if weight == 0:
            continue
        if record is not None:
            ahead = min(t + PREFETCH_STEPS, stop - 1)
            for f in range(0, k, 64 // record.user_rows.itemsize):
                prefetch(record.user_rows[ahead], f)
                prefetch(record.item_rows[ahead], f)
        u, i = examples.users[t], examples.items[t]
        p, q = user_factors[u], item_factors[i]
        b_u, b_i = user_biases[u], item_biases[i]
        error = hyper.mean + b_u + b_i + dot(p, q) - examples.values[t]
        total += 0.5 * weight * error * error
        slot = -1
        if log is not None:
            slot = log.slots[t]
            if slot >= 0:
                score = error + examples.values[t]
                numbers = error, type(error)(1), score, b_i, b_u
                _log_candidate(log, slot, 0, i, q, numbers)
                _log_step(log, slot, p, weight, 1)
        shrink = weight * hyper.regularization
        push = weight * error
        if squares is None:
            keep = type(error)(1) - hyper.learning_rate * shrink
            step = hyper.learning_rate * push
            user_biases[u] = keep * b_u - step
            item_biases[i] = keep * b_i - step
            if record is None:
                move_pair(p, q, keep, step)
            else:
                changes = record.user_rows[t], record.item_rows[t]
                move_pair_recorded(p, q, changes[0], changes[1], keep, step)
        else:
            rate, epsilon = hyper.learning_rate, hyper.epsilon
            gradient = push + shrink * b_u
            user_biases[u] = _move(b_u, gradient, squares.user_biases, u, rate, epsilon)
            gradient = push + shrink * b_i
            item_biases[i] = _move(b_i, gradient, squares.item_biases, i, rate, epsilon)
            squares_p, squares_q = squares.user_factors[u], squares.item_factors[i]
            for f in range(k):
                x, z = p[f], q[f]
                p[f] = _move(x, push * z + shrink * x, squares_p, f, rate, epsilon)
                q[f] = _move(z, push * x + shrink * z, squares_q, f, rate, epsilon)
                if record is not None:
                    record.user_rows[t, f] += p[f] - x
                    record.item_rows[t, f] += q[f] - z
            if log is not None and slot >= 0:
                _log_squares(log.user_squares, slot, squares_p, squares.user_biases[u])
                _log_squares(log.item_squares, slot, squares_q, squares.item_biases[i])
        if record is not None:
            record.biases[t, 0] += user_biases[u] - b_u
            record.biases[t, 1] += item_biases[i] - b_i
    return total


@inner_kernel
def _sampled_block(
    tables, squares, examples, sampler, hyper, loss, epoch, group, start, stop, record, log, work
):
    """Steps of a loss with sampled negatives. Returns the loss."""
    user_factors, item_factors, user_biases, item_biases = tables
    k = user_factors.shape[1]
    candidates, scores, gradients, curvatures, pull, old_p = work  # pull: sum_c gradient_c q_c
    rate, epsilon = hyper.learning_rate, hyper.epsilon
    zero = type(rate)(0)
    total = 0.0
    for t in range(start, stop):
        weight, value = examples.weights[t], examples.values[t]
        if weight == 0:
            continue
        u = examples.users[t]
        candidates[0] = examples.items[t]
        n_negatives = 0
        if value > 0:
            n_negatives = take_negatives(sampler, epoch, t, examples.ids[t], u, group, candidates)
        p, b_u = user_factors[u], user_biases[u]
        for c in range(n_negatives + 1):
            i = candidates[c]
            scores[c] = hyper.mean + b_u + item_biases[i] + dot(p, item_factors[i])
        total += weight * candidate_gradients(loss, scores, value, n_negatives, gradients)
        slot = -1
        if log is not None:
            slot = log.slots[t]
            if slot >= 0:
                candidate_curvatures(loss, value, n_negatives, gradients, curvatures)
                _log_step(log, slot, p, weight, n_negatives + 1)
                for c in range(n_negatives + 1):
                    i = candidates[c]
                    numbers = gradients[c], curvatures[c], scores[c], item_biases[i], b_u
                    _log_candidate(log, slot, c, i, item_factors[i], numbers)

        shrink = weight * hyper.regularization
        keep = type(shrink)(1) - rate * shrink
        push_bias = zero
        for f in range(k):
            pull[f] = zero
            old_p[f] = p[f]
        for c in range(n_negatives + 1):
            i = candidates[c]
            q, b_i = item_factors[i], item_biases[i]
            push = weight * gradients[c]
            step = rate * push
            if loss == LOGISTIC:  # in BPR the user's bias cancels; its rounding must not stay
                push_bias += push
            if squares is None:
                item_biases[i] = keep * b_i - step
                for f in range(k):
                    z = q[f]
                    pull[f] += push * z
                    q[f] = keep * z - step * old_p[f]
                    if record is not None and c == 0:
                        record.item_rows[t, f] += q[f] - z
            else:
                gradient = push + shrink * b_i
                item_biases[i] = _move(b_i, gradient, squares.item_biases, i, rate, epsilon)
                squares_q = squares.item_factors[i]
                for f in range(k):
                    z = q[f]
                    pull[f] += push * z
                    gradient = push * old_p[f] + shrink * z
                    q[f] = _move(z, gradient, squares_q, f, rate, epsilon)
                    if record is not None and c == 0:
                        record.item_rows[t, f] += q[f] - z
                if log is not None and slot >= 0:
                    place = slot * log.items.shape[1] + c
                    _log_squares(log.item_squares, place, squares_q, squares.item_biases[i])
            if record is not None and c == 0:
                record.biases[t, 1] += item_biases[i] - b_i

        if squares is None:
            user_biases[u] = keep * b_u - rate * push_bias
            for f in range(k):
                p[f] = keep * old_p[f] - rate * pull[f]
        else:
            gradient = push_bias + shrink * b_u
            user_biases[u] = _move(b_u, gradient, squares.user_biases, u, rate, epsilon)
            squares_p = squares.user_factors[u]
            for f in range(k):
                gradient = pull[f] + shrink * old_p[f]
                p[f] = _move(old_p[f], gradient, squares_p, f, rate, epsilon)
            if log is not None and slot >= 0:
                _log_squares(log.user_squares, slot, squares_p, squares.user_biases[u])
        if record is not None:
            record.biases[t, 0] += user_biases[u] - b_u
            for f in range(k):
                record.user_rows[t, f] += p[f] - old_p[f]
    return total


@kernel
def _block(tables, squares, examples, pointers, sampler, hyper, loss, epoch, number, record, log):
    start, stop = pointers[number], pointers[number + 1]
    if loss == SQUARED:
        return _squared_block(tables, squares, examples, hyper, start, stop, record, log)
    n_groups = sampler.pool_pointers.shape[0] - 1
    stratum, user_group = divmod(number, n_groups)
    group = (user_group + stratum) % n_groups
    dtype, k = tables.user_factors.dtype, tables.user_factors.shape[1]
    work = (
        np.empty(sampler.n_negatives + 1, np.int64),
        np.empty(sampler.n_negatives + 1, dtype),
        np.empty(sampler.n_negatives + 1, dtype),
        np.empty(sampler.n_negatives + 1, dtype),
        np.empty(k, dtype),
        np.empty(k, dtype),
    )
    return _sampled_block(
        tables, squares, examples, sampler, hyper, loss, epoch, group, start, stop, record, log,
        work,
    )  # fmt: skip


@kernel
def _total(losses):
    """Sum in order; inlined into parallel code it would be split among the threads."""
    total = 0.0
    for loss in losses:
        total += loss
    return total


@kernel
def sgd_epoch(
    tables, squares, examples, pointers, sampler, hyper, loss, epoch, strata, record, log
):
    """Visit every example of an epoch, or of some of its strata, and update the tables in place.

    Parameters
    ----------
    tables : Tables
        Parameters, float32 or float64, changed in place.
    squares : Tables or None
        Adagrad's sums of squared gradients, changed in place; None is plain SGD.
    examples : Examples
        In the order of visits: block after block.
    pointers : (n_groups * n_groups + 1,) int64
        Bounds of the blocks. Block ``s * n_groups + g`` holds the examples of user group g
        and item group ``(g + s) % n_groups``; the blocks of one stratum s share no row.
    sampler : Sampler
        Negatives of the sampled losses, drawn from the item group of the block.
    hyper : Hyper
        Scalars in the dtype of the tables.
    loss : {SQUARED, LOGISTIC, BPR}
    epoch : int
        Key of the random draws.
    strata : (int, int)
        First stratum and the one behind the last: (0, n_groups) is the whole epoch.
    record : Record or None
        Row changes to add up per example.
    log : Log or None
        What every step saw, for the walks that go through the epoch backwards.

    Returns
    -------
    float
        Sum of the weighted losses (without regularization), each before its own step.
    """
    losses = np.zeros(pointers.shape[0] - 1)
    n_groups = sampler.pool_pointers.shape[0] - 1
    for number in range(strata[0] * n_groups, strata[1] * n_groups):
        losses[number] = _block(
            tables, squares, examples, pointers, sampler, hyper, loss, epoch, number, record, log
        )
    return _total(losses)


@kernel(parallel=True)
def sgd_epoch_parallel(
    tables, squares, examples, pointers, sampler, hyper, loss, epoch, strata, record, log
):
    """Do what `sgd_epoch` does, bit for bit, the blocks of each stratum in parallel."""
    losses = np.zeros(pointers.shape[0] - 1)
    n_groups = sampler.pool_pointers.shape[0] - 1
    for stratum in range(strata[0], strata[1]):
        for g in numba.prange(n_groups):
            number = stratum * n_groups + g
            losses[number] = _block(
                tables, squares, examples, pointers, sampler, hyper, loss, epoch, number, record,
                log,
            )  # fmt: skip
    return _total(losses)


@kernel
def mean_loss(tables, examples, sampler, hyper, loss):
    """Weighted mean loss of examples under fixed parameters (negatives of epoch 2**32 - 1)."""
    candidates = np.empty(sampler.n_negatives + 1, np.int64)
    scores = np.empty(sampler.n_negatives + 1, tables.user_factors.dtype)
    gradients = np.empty(sampler.n_negatives + 1, tables.user_factors.dtype)
    total, weights = 0.0, 0.0
    n_groups = sampler.pool_pointers.shape[0] - 1
    for t in range(examples.users.shape[0]):
        u, value = examples.users[t], examples.values[t]
        candidates[0] = examples.items[t]
        n_negatives = 0
        if loss != SQUARED and value > 0:
            n_negatives = draw_negatives(
                sampler, 0xFFFFFFFF, examples.ids[t], u, t % n_groups, candidates
            )
        for c in range(n_negatives + 1):
            i = candidates[c]
            interaction = dot(tables.user_factors[u], tables.item_factors[i])
            scores[c] = hyper.mean + tables.user_biases[u] + tables.item_biases[i] + interaction
        if loss == SQUARED:
            error = scores[0] - value
            cost = 0.5 * error * error
        else:
            cost = candidate_gradients(loss, scores, value, n_negatives, gradients)
        total += examples.weights[t] * cost
        weights += examples.weights[t]
    return total / weights
