"""Arithmetic on rows of adjoints: 16 lanes, one a quantity, for every coordinate.

A warp shares a step. Each of its threads has four lanes, those from `lanes` on, of every eighth
coordinate, `rank` the first: together they read 512 bytes of a row (d * LANES,) at once.
"""

import math

from ..structures import CURVATURE, GRADIENT, ITEM_BIAS, LANES, USER_BIAS
from .fours import add4, put4, same4, times4
from .jit import inner_kernel
from .losses import BPR
from .simd import fma, load4, product

__all__ = ["RANKS", "adjoint_dots", "move_adjoints", "set_factors"]

RANKS = 8
"""Threads of a warp that have the same lanes."""


@inner_kernel
def _adjoint_at(adagrad, row, sums, shared, factors, f, lanes):
    """Adjoint of what a step took from a coordinate: the row's own, or through Adagrad's rate.

    `row` and `sums` are the adjoints of a row and of its sums of squares; from the place `factors`
    on, `shared` has what `_pull_factors` makes of its coordinates.
    """
    four = load4(row, f * LANES + lanes)
    if not adagrad:
        return four
    d, at = row.shape[0] // LANES, factors + f
    pulled = times4(shared[at], four)
    return add4(pulled, shared[at + d], load4(sums, f * LANES + lanes))


@inner_kernel
def _put_adjoint(adagrad, row, sums, shared, factors, f, lanes, moved):
    at = f * LANES + lanes
    if adagrad:
        before, bend = load4(row, at), shared[factors + 2 * (row.shape[0] // LANES) + f]
        put4(sums, at, add4(load4(sums, at), bend, before))
        moved = add4(moved, type(bend)(1), before)
    put4(row, at, moved)


@inner_kernel
def _pull_factors(gradient, square, hyper):
    """How Adagrad's gradient is pulled by the row and by its sum, and the sum by the row."""
    zero = type(square)(0)
    if square == zero:  # has not moved at any rate; 1 / epsilon would enter here
        return zero, zero, zero
    root = math.sqrt(square)
    divisor = root + hyper.epsilon
    # -1 / D + g^2 / (sqrt(s) D^2), in which the first gradients of a row cancel: s is then g^2.
    rest = max(square - product(gradient, gradient), zero)
    left = (rest + hyper.epsilon * root) / (root * divisor)
    of_sum = gradient / (root + root) * (hyper.learning_rate / (divisor * divisor))
    return -hyper.learning_rate / divisor * left, gradient + gradient, of_sum


@inner_kernel
def set_factors(log, slot, count, loss, hyper, weight, shared, factors, member):
    """Write the pull factors of a step of Adagrad, (3, d) for every row, the user's behind all.

    Gradients are those of training to the last bit.
    """
    k, width = log.user_rows.shape[1], log.items.shape[1]
    first, size = slot * width, 3 * (k + 1)
    number = type(weight)
    l2, share = weight * hyper.regularization, number(loss != BPR)
    for f in range(member, k + 1, 32):
        p = log.user_rows[slot, f] if f < k else log.numbers[first, USER_BIAS]
        x = p if f < k else number(1)
        of_user = number(0)
        for c in range(count):
            push = weight * log.numbers[first + c, GRADIENT]
            q = log.item_rows[first + c, f] if f < k else log.numbers[first + c, ITEM_BIAS]
            of_user += product(push, q if f < k else share)
            of_item = product(push, x) + product(l2, q)
            pulls = _pull_factors(of_item, log.item_squares[first + c, f], hyper)
            _set(shared, factors + size * c + f, k + 1, pulls)
        of_user += product(l2, p)
        pulls = _pull_factors(of_user, log.user_squares[slot, f], hyper)
        _set(shared, factors + size * width + f, k + 1, pulls)


@inner_kernel
def _set(shared, at, d, three):
    shared[at], shared[at + d], shared[at + 2 * d] = three


@inner_kernel
def adjoint_dots(
    adagrad, user, item, user_sums, item_sums, shared, user_factors, item_factors, log, slot,
    place, share, rank, lanes,
):  # fmt: skip
    """A thread's part of the inner products of the adjoints of a pair of rows.

    Returns
    -------
    score, norms
        Of four lanes: ``q . user + p . item + share * user_bias + item_bias`` and ``p . user +
        p_bias * user_bias, q . item + q_bias * item_bias``; see the twin in `kernels.cpu`.
    """
    k, p, q = log.user_rows.shape[1], log.user_rows[slot], log.item_rows[place]
    score = of_user = of_item = same4(type(share)(0))
    for f in range(rank, k, RANKS):
        x, z = p[f], q[f]
        u = _adjoint_at(adagrad, user, user_sums, shared, user_factors, f, lanes)
        v = _adjoint_at(adagrad, item, item_sums, shared, item_factors, f, lanes)
        score = add4(add4(score, z, u), x, v)
        of_user, of_item = add4(of_user, x, u), add4(of_item, z, v)
    if rank == k % RANKS:
        p_bias, q_bias = log.numbers[place, USER_BIAS], log.numbers[place, ITEM_BIAS]
        u = _adjoint_at(adagrad, user, user_sums, shared, user_factors, k, lanes)
        v = _adjoint_at(adagrad, item, item_sums, shared, item_factors, k, lanes)
        score = add4(add4(score, share, u), type(share)(1), v)
        of_user, of_item = add4(of_user, p_bias, u), add4(of_item, q_bias, v)
    return score, of_user, of_item


@inner_kernel
def _along4(total, on, factor, slope, other, push):
    """``total - (factor * slope + push * other)`` in the lanes whose bit is set."""
    return (
        total[0] - fma(factor, slope[0], push * other[0]) if on & 1 else total[0],
        total[1] - fma(factor, slope[1], push * other[1]) if on & 2 else total[1],
        total[2] - fma(factor, slope[2], push * other[2]) if on & 4 else total[2],
        total[3] - fma(factor, slope[3], push * other[3]) if on & 8 else total[3],
    )


@inner_kernel
def _bends(log, place, c, loss, rate, shared, totals, lanes):
    """How much rate dL/df of a candidate changes; of BPR's example itself nothing is told."""
    slopes = load4(shared, totals + c * LANES + lanes)
    if loss == BPR:
        slopes = add4(slopes, -type(rate)(1), load4(shared, totals + lanes))
    return times4(rate * log.numbers[place, CURVATURE], slopes)


@inner_kernel
def move_adjoints(
    adagrad, adjoint, sums, u, log, slot, count, loss, rate, keep, shared, totals, factors,
    allowed_users, allowed_items, rank, lanes,
):  # fmt: skip
    """Take the adjoints of all rows of a step back through it.

    ``v <- keep v - rate H v`` for the rows v of the step, H without the regularization: the row
    itself in SGD; in Adagrad it is added to the row. All candidates meet the old row of the user.
    Lanes that may not live on a row are pushed by nothing there.
    """
    k, width = log.user_rows.shape[1], log.items.shape[1]
    first, size = slot * width, 3 * (k + 1)
    number = type(rate)
    user, user_sums = adjoint.users[u], sums.users[u]
    user_on, of_user = allowed_users[u] >> lanes, factors + size * width
    # The example itself is looked up once: most steps have no other candidate.
    i_0 = log.items[slot, 0]
    bend_0 = _bends(log, first, 0, loss, rate, shared, totals, lanes)
    for c in range(1, count if loss == BPR else 0):
        bend = _bends(log, first + c, c, loss, rate, shared, totals, lanes)
        bend_0 = add4(bend_0, -number(1), bend)
    push_0, on_0 = rate * log.numbers[first, GRADIENT], allowed_items[i_0] >> lanes
    for f in range(rank, k + 1, RANKS):
        inside = number(f < k)
        old = _adjoint_at(adagrad, user, user_sums, shared, of_user, f, lanes)
        x = log.user_rows[slot, f] if f < k else number(1)
        moved, i, bend, push, item_on = times4(keep, old), i_0, bend_0, push_0, on_0
        for c in range(count):
            if c > 0:
                i = log.items[slot, c]
                bend = _bends(log, first + c, c, loss, rate, shared, totals, lanes)
                push, item_on = rate * log.numbers[first + c, GRADIENT], allowed_items[i] >> lanes
            z = log.item_rows[first + c, f] if f < k else number(loss != BPR)
            item, item_sums, of_item = adjoint.items[i], sums.items[i], factors + size * c
            v = _adjoint_at(adagrad, item, item_sums, shared, of_item, f, lanes)
            moved = _along4(moved, user_on, z, bend, v, inside * push)
            change = _along4(times4(keep, v), item_on, x, bend, old, inside * push)
            _put_adjoint(adagrad, item, item_sums, shared, of_item, f, lanes, change)
        _put_adjoint(adagrad, user, user_sums, shared, of_user, f, lanes, moved)
