"""Steps of training, each made by half a warp.

Lane l has the numbers l, 16 + l, ... of every row, the lanes of the CPU's vectors, and every
operation is the CPU's and rounded alike, so that the numbers are the same to the last bit. Four
vectors of a row are asked for before the first is used. Without Adagrad, a record or a log their
arrays are empty. Places in a row are unsigned: signed ones are reckoned from its end where they are
below 0, which makes ten instructions of a load's three.
"""

import math

import numpy as np

from ..structures import (
    CURVATURE,
    GRADIENT,
    ITEM_BIAS,
    LANES,
    N_CANDIDATES,
    SCORE,
    USER_BIAS,
    WEIGHT,
)
from .jit import cuda, inner_kernel
from .losses import BPR, LOGISTIC, sigmoids
from .simd import fma, product, tree_sum

__all__ = ["candidate", "n_drawn", "row_dot", "sampled_losses", "sampled_step", "squared_step"]

_VECTORS = 4  # of a row in registers at a time
_CHUNK = _VECTORS * LANES


@inner_kernel
def _load(row, start, lane, numbers):
    """The lane's numbers of a chunk of a row; 0 beyond its end."""
    for v in range(_VECTORS):
        f = start + v * LANES + lane
        numbers[v] = row[np.uintp(f)] if f < row.shape[0] else row.dtype.type(0)


@inner_kernel
def row_dot(left, right, lane, mask):
    """Inner product of two rows, in every lane; the order of the CPU's `simd.dot`."""
    k = left.shape[0]
    x, z = cuda.local.array(_VECTORS, left.dtype), cuda.local.array(_VECTORS, left.dtype)
    even = odd = left.dtype.type(0)
    for start in range(0, k, _CHUNK):
        _load(left, start, lane, x)
        _load(right, start, lane, z)
        for v in range(_VECTORS):
            behind = start + (v + 1) * LANES
            if behind - LANES < k:
                if v % 2 == 1 or behind > k:
                    odd = fma(x[v], z[v], odd)
                else:
                    even = fma(x[v], z[v], even)
    return tree_sum(mask, even + odd)


@inner_kernel
def _adagrad(old, gradient, square, hyper):
    """New value of a coordinate; `square` includes this gradient's."""
    root = type(old)(math.sqrt(square))
    return old - product(hyper.learning_rate, gradient) / (root + hyper.epsilon)


@inner_kernel
def _move_bias(adagrad, biases, squares, row, push, shrink, hyper):
    """Move a bias; returns by how much."""
    old, rate = biases[row], hyper.learning_rate
    if not adagrad:
        keep = type(rate)(1) - product(rate, shrink)
        new = product(keep, old) - product(rate, push)
    else:
        gradient = push + product(shrink, old)
        squares[row] += product(gradient, gradient)
        new = _adagrad(old, gradient, squares[row], hyper)
    biases[row] = new
    return new - old


@inner_kernel
def _log_row(logged, row, lane):
    for f in range(lane, row.shape[0], LANES):
        logged[np.uintp(f)] = row[np.uintp(f)]


@inner_kernel
def _log_squares(logged, rows, biases, row, lane):
    """Adagrad's sums behind a step, the bias's last."""
    _log_row(logged, rows[row], lane)
    if lane == 0:
        logged[rows.shape[1]] = biases[row]


@inner_kernel
def _log_candidate(log, slot, c, item, numbers):
    """Log one candidate; `numbers` go from its gradient to how many candidates there are."""
    log.items[slot, c] = item
    place = slot * log.items.shape[1] + c
    log.numbers[place, GRADIENT] = numbers[0]
    log.numbers[place, CURVATURE] = numbers[1]
    log.numbers[place, SCORE] = numbers[2]
    log.numbers[place, ITEM_BIAS] = numbers[3]
    log.numbers[place, USER_BIAS] = numbers[4]
    log.numbers[place, WEIGHT] = numbers[5]
    log.numbers[place, N_CANDIDATES] = numbers[6]


# ---------------------------------------------------------------- the squared loss


@inner_kernel
def squared_step(adagrad, tables, squares, examples, hyper, t, user, item, record, log, lane, mask):
    """One step of the squared loss; returns the weighted loss before it."""
    weight, value = examples.weights[t], examples.values[t]
    b_u, b_i = tables.user_biases[user], tables.item_biases[item]
    p, q = tables.user_factors[user], tables.item_factors[item]
    interaction = row_dot(p, q, lane, mask)
    error = hyper.mean + b_u + b_i + interaction - value
    slot = log.slots[t] if log.slots.shape[0] > 0 else np.int32(-1)
    if slot >= 0:
        _log_row(log.user_rows[slot], p, lane)
        _log_row(log.item_rows[slot * log.items.shape[1]], q, lane)
        if lane == 0:
            one = type(error)(1)
            _log_candidate(log, slot, 0, item, (error, one, error + value, b_i, b_u, weight, one))
            for c in range(1, log.items.shape[1]):
                log.items[slot, c] = -1
    cuda.syncwarp(mask)  # all lanes have read the biases
    shrink = product(weight, hyper.regularization)
    push = product(weight, error)
    if lane == 0:
        biases, sums = tables.user_biases, squares.user_biases
        change_u = _move_bias(adagrad, biases, sums, user, push, shrink, hyper)
        biases, sums = tables.item_biases, squares.item_biases
        change_i = _move_bias(adagrad, biases, sums, item, push, shrink, hyper)
        if record.biases.shape[0] > 0:
            record.biases[t, 0] += change_u
            record.biases[t, 1] += change_i
    if not adagrad:
        _move_pair(p, q, hyper, push, shrink, record, t, lane)
    else:
        of_user, of_item = squares.user_factors, squares.item_factors
        sums = of_user[user], of_item[item]
        _move_pair_adagrad(p, q, sums, hyper, push, shrink, record, t, lane)
        if slot >= 0:
            place = slot * log.items.shape[1]
            _log_squares(log.user_squares[slot], of_user, squares.user_biases, user, lane)
            _log_squares(log.item_squares[place], of_item, squares.item_biases, item, lane)
    return 0.5 * np.float64(weight) * np.float64(error) * np.float64(error)


@inner_kernel
def _move_pair(p, q, hyper, push, shrink, record, t, lane):
    """``p, q = keep * p - step * q, keep * q - step * p``, both from the old rows."""
    rate = hyper.learning_rate
    keep, back = type(rate)(1) - product(rate, shrink), -product(rate, push)
    x, z = cuda.local.array(_VECTORS, p.dtype), cuda.local.array(_VECTORS, p.dtype)
    dx, dz = cuda.local.array(_VECTORS, p.dtype), cuda.local.array(_VECTORS, p.dtype)
    recorded = record.user_rows.shape[0] > 0
    for start in range(0, p.shape[0], _CHUNK):
        _load(p, start, lane, x)
        _load(q, start, lane, z)
        if recorded:
            _load(record.user_rows[t], start, lane, dx)
            _load(record.item_rows[t], start, lane, dz)
        for v in range(_VECTORS):
            place = start + v * LANES + lane
            if place < p.shape[0]:
                f = np.uintp(place)
                new_x = fma(back, z[v], product(keep, x[v]))
                new_z = fma(back, x[v], product(keep, z[v]))
                p[f], q[f] = new_x, new_z
                if recorded:
                    record.user_rows[t, f] = dx[v] + (new_x - x[v])
                    record.item_rows[t, f] = dz[v] + (new_z - z[v])


@inner_kernel
def _move_pair_adagrad(p, q, sums, hyper, push, shrink, record, t, lane):
    for place in range(lane, p.shape[0], LANES):
        f = np.uintp(place)
        x, z = p[f], q[f]
        of_x = product(push, z) + product(shrink, x)
        of_z = product(push, x) + product(shrink, z)
        square_x, square_z = sums[0][f] + product(of_x, of_x), sums[1][f] + product(of_z, of_z)
        sums[0][f], sums[1][f] = square_x, square_z
        new_x, new_z = _adagrad(x, of_x, square_x, hyper), _adagrad(z, of_z, square_z, hyper)
        p[f], q[f] = new_x, new_z
        if record.user_rows.shape[0] > 0:
            record.user_rows[t, f] += new_x - x
            record.item_rows[t, f] += new_z - z


# ---------------------------------------------------------------- sampled losses


@inner_kernel
def candidate(examples, drawn, t, before, c):
    """Candidate number c of visit t: its item, then its negatives."""
    return examples.items[t] if c == 0 else drawn[t - before, c - 1]


@inner_kernel
def n_drawn(drawn, place):
    """How many negatives a visit has."""
    n = 0
    while n < drawn.shape[1] and drawn[place, n] >= 0:
        n += 1
    return n


@inner_kernel
def sampled_losses(
    tables, examples, drawn, hyper, loss, t, before, n_negatives, scores, slopes, lane, mask
):
    """Fill the scores and slopes of a visit's candidates; the lane's part of the loss."""
    user = examples.users[t]
    zero = type(hyper.mean)(0)
    b_u, p = tables.user_biases[user], tables.user_factors[user]
    for c in range(n_negatives + 1):
        item = candidate(examples, drawn, t, before, c)
        interaction = row_dot(p, tables.item_factors[item], lane, mask)
        score = hyper.mean + b_u + tables.item_biases[item] + interaction
        if lane == c % LANES:
            scores[c] = score
    cuda.syncwarp(mask)
    positive = examples.values[t] > zero
    total = 0.0
    for c in range(lane, n_negatives + 1, LANES):
        if loss == LOGISTIC or c > 0:
            own = c == 0 and positive
            x = scores[c] - scores[0] if loss == BPR else (-scores[c] if own else scores[c])
            slope, upper = sigmoids(x)
            slopes[c] = -slope if own and loss == LOGISTIC else slope
            total += np.float64(max(x, zero)) - np.float64(math.log(upper))
    cuda.syncwarp(mask)
    if loss == BPR and lane == 0:
        of_own = zero
        for c in range(1, n_negatives + 1):
            of_own -= slopes[c]
        slopes[0] = of_own
    cuda.syncwarp(mask)
    return total


@inner_kernel
def sampled_step(
    adagrad, tables, squares, examples, drawn, hyper, loss, t, before, record, log, scores, slopes,
    lane, mask,
):  # fmt: skip
    """One step of a loss with negatives; returns the lane's part of the weighted loss."""
    user, weight = examples.users[t], examples.weights[t]
    n_negatives = n_drawn(drawn, t - before)
    total = sampled_losses(
        tables, examples, drawn, hyper, loss, t, before, n_negatives, scores, slopes, lane, mask
    )
    slot = log.slots[t] if log.slots.shape[0] > 0 else np.int32(-1)
    if slot >= 0:
        _log_sampled(
            tables, examples, drawn, loss, t, before, n_negatives, log, slot, scores, slopes, lane
        )
        cuda.syncwarp(mask)
    shrink = product(weight, hyper.regularization)
    if lane == 0:
        _move_biases(
            adagrad, tables, squares, examples, drawn, hyper, loss, t, before, n_negatives, shrink,
            record, slopes,
        )  # fmt: skip
    for start in range(0, tables.user_factors.shape[1], _CHUNK):
        _move_chunk(
            adagrad, tables, squares, examples, drawn, hyper, t, before, n_negatives, shrink,
            record, slopes, start, lane,
        )  # fmt: skip
    if adagrad and slot >= 0:
        cuda.syncwarp(mask)
        of_user, of_item = squares.user_factors, squares.item_factors
        _log_squares(log.user_squares[slot], of_user, squares.user_biases, user, lane)
        for c in range(n_negatives + 1):
            item, place = candidate(examples, drawn, t, before, c), slot * log.items.shape[1] + c
            _log_squares(log.item_squares[place], of_item, squares.item_biases, item, lane)
    return np.float64(weight) * total


@inner_kernel
def _log_sampled(
    tables, examples, drawn, loss, t, before, n_negatives, log, slot, scores, slopes, lane
):
    user, weight = examples.users[t], examples.weights[t]
    one, n_candidates = type(weight)(1), type(weight)(n_negatives + 1)
    _log_row(log.user_rows[slot], tables.user_factors[user], lane)
    for c in range(n_negatives + 1 + lane, log.items.shape[1], LANES):
        log.items[slot, c] = -1
    for c in range(n_negatives + 1):
        item = candidate(examples, drawn, t, before, c)
        place = slot * log.items.shape[1] + c
        _log_row(log.item_rows[place], tables.item_factors[item], lane)
        if lane == 0:
            if loss == BPR and c == 0:
                curvature = type(weight)(0)
                for other in range(1, n_negatives + 1):
                    curvature += product(slopes[other], one - slopes[other])
            else:
                curvature = product(abs(slopes[c]), one - abs(slopes[c]))
            b_u, b_i = tables.user_biases[user], tables.item_biases[item]
            numbers = slopes[c], curvature, scores[c], b_i, b_u, weight, n_candidates
            _log_candidate(log, slot, c, item, numbers)


@inner_kernel
def _move_biases(
    adagrad, tables, squares, examples, drawn, hyper, loss, t, before, n_negatives, shrink, record,
    slopes,
):  # fmt: skip
    user, weight = examples.users[t], examples.weights[t]
    of_user = type(weight)(0)
    for c in range(n_negatives + 1):
        item, push = candidate(examples, drawn, t, before, c), product(weight, slopes[c])
        if loss == LOGISTIC:  # in BPR the user's bias cancels; its rounding must not stay
            of_user += push
        biases, sums = tables.item_biases, squares.item_biases
        change = _move_bias(adagrad, biases, sums, item, push, shrink, hyper)
        if c == 0 and record.biases.shape[0] > 0:
            record.biases[t, 1] += change
    biases, sums = tables.user_biases, squares.user_biases
    change = _move_bias(adagrad, biases, sums, user, of_user, shrink, hyper)
    if record.biases.shape[0] > 0:
        record.biases[t, 0] += change


@inner_kernel
def _move_chunk(
    adagrad, tables, squares, examples, drawn, hyper, t, before, n_negatives, shrink, record,
    slopes, start, lane,
):  # fmt: skip
    """Move a chunk of the rows of a step, the candidates' first, all from the old user's row."""
    user, weight, rate = examples.users[t], examples.weights[t], hyper.learning_rate
    p, k = tables.user_factors[user], tables.user_factors.shape[1]
    keep = type(rate)(1) - product(rate, shrink)
    recorded = record.user_rows.shape[0] > 0
    x, z = cuda.local.array(_VECTORS, p.dtype), cuda.local.array(_VECTORS, p.dtype)
    pull = cuda.local.array(_VECTORS, p.dtype)
    _load(p, start, lane, x)
    for v in range(_VECTORS):
        pull[v] = type(rate)(0)
    for c in range(n_negatives + 1):
        item, push = candidate(examples, drawn, t, before, c), product(weight, slopes[c])
        q, step = tables.item_factors[item], product(rate, push)
        _load(q, start, lane, z)
        for v in range(_VECTORS):
            place = start + v * LANES + lane
            if place < k:
                f = np.uintp(place)
                pull[v] += product(push, z[v])
                if adagrad:
                    gradient = product(push, x[v]) + product(shrink, z[v])
                    square = squares.item_factors[item, f] + product(gradient, gradient)
                    squares.item_factors[item, f] = square
                    new = _adagrad(z[v], gradient, square, hyper)
                else:
                    new = product(keep, z[v]) - product(step, x[v])
                q[f] = new
                if c == 0 and recorded:
                    record.item_rows[t, f] += new - z[v]
    for v in range(_VECTORS):
        place = start + v * LANES + lane
        if place < k:
            f = np.uintp(place)
            if adagrad:
                gradient = pull[v] + product(shrink, x[v])
                square = squares.user_factors[user, f] + product(gradient, gradient)
                squares.user_factors[user, f] = square
                new = _adagrad(x[v], gradient, square, hyper)
            else:
                new = product(keep, x[v]) - product(rate, pull[v])
            p[f] = new
            if recorded:
                record.user_rows[t, f] += new - x[v]
