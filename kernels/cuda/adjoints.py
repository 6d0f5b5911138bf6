"""Arithmetic on rows of adjoints: 16 lanes, one a quantity, for every coordinate.

A warp shares a step. Each of its threads has four lanes, those from `lanes` on, of every eighth
coordinate, `rank` the first: together they read 512 bytes of a row (d * LANES,) at once.
"""

import math

import numpy as np

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
    pulled = times4(shared[np.uintp(at)], four)
    return add4(pulled, shared[np.uintp(at + d)], load4(sums, f * LANES + lanes))


@inner_kernel
def _put_adjoint(adagrad, row, sums, shared, factors, f, lanes, moved):
    at = f * LANES + lanes
    if adagrad:
        d, before = row.shape[0] // LANES, load4(row, at)
        bend = shared[np.uintp(factors + 2 * d + f)]
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
    number, user = type(weight), np.uintp(slot)
    l2, share = weight * hyper.regularization, number(loss != BPR)
    f = member
    while f < k + 1:
        at = np.uintp(f)
        p = log.user_rows[user, at] if f < k else log.numbers[np.uintp(first), USER_BIAS]
        x = p if f < k else number(1)
        of_user = number(0)
        for c in range(count):
            item = np.uintp(first + c)
            push = weight * log.numbers[item, GRADIENT]
            q = log.item_rows[item, at] if f < k else log.numbers[item, ITEM_BIAS]
            of_user += product(push, q if f < k else share)
            of_item = product(push, x) + product(l2, q)
            pulls = _pull_factors(of_item, log.item_squares[item, at], hyper)
            _set(shared, factors + size * c + f, k + 1, pulls)
        of_user += product(l2, p)
        pulls = _pull_factors(of_user, log.user_squares[user, at], hyper)
        _set(shared, factors + size * width + f, k + 1, pulls)
        f += 32


@inner_kernel
def _set(shared, at, d, three):
    shared[np.uintp(at)], shared[np.uintp(at + d)], shared[np.uintp(at + 2 * d)] = three


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
    k, numbers = log.user_rows.shape[1], log.numbers[np.uintp(place)]
    p, q = log.user_rows[np.uintp(slot)], log.item_rows[np.uintp(place)]
    score = of_user = of_item = same4(type(share)(0))
    f = rank
    while f < k:
        x, z = p[np.uintp(f)], q[np.uintp(f)]
        u = _adjoint_at(adagrad, user, user_sums, shared, user_factors, f, lanes)
        v = _adjoint_at(adagrad, item, item_sums, shared, item_factors, f, lanes)
        score = add4(add4(score, z, u), x, v)
        of_user, of_item = add4(of_user, x, u), add4(of_item, z, v)
        f += RANKS
    if f == k:
        p_bias, q_bias = numbers[USER_BIAS], numbers[ITEM_BIAS]
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
    return times4(rate * log.numbers[np.uintp(place), CURVATURE], slopes)


@inner_kernel
def _move_item(
    adagrad, row, sums, shared, factors, f, lanes, x, z, old, moved, keep, bend, push, user_on,
    item_on,
):  # fmt: skip
    """Move coordinate `f` of an item's adjoint; that of the user, `old` so far, as moved by it."""
    v = _adjoint_at(adagrad, row, sums, shared, factors, f, lanes)
    change = _along4(times4(keep, v), item_on, x, bend, old, push)
    _put_adjoint(adagrad, row, sums, shared, factors, f, lanes, change)
    return _along4(moved, user_on, z, bend, v, push)


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
    number, items = type(rate), log.items[np.uintp(slot)]
    user, user_sums = adjoint.users[np.uintp(u)], sums.users[np.uintp(u)]
    user_on, of_user = allowed_users[np.uintp(u)] >> lanes, factors + size * width
    # The example itself is looked up once: most steps have no other candidate.
    i = np.uintp(items[0])
    item, item_sums, item_on = adjoint.items[i], sums.items[i], allowed_items[i] >> lanes
    bend_0 = _bends(log, first, 0, loss, rate, shared, totals, lanes)
    for c in range(1, count if loss == BPR else 0):
        bend = _bends(log, first + c, c, loss, rate, shared, totals, lanes)
        bend_0 = add4(bend_0, -number(1), bend)
    push_0 = rate * log.numbers[np.uintp(first), GRADIENT]
    p, q = log.user_rows[np.uintp(slot)], log.item_rows[np.uintp(first)]
    f = rank
    while f <= k:
        inside, at = number(f < k), np.uintp(f)
        old = _adjoint_at(adagrad, user, user_sums, shared, of_user, f, lanes)
        x, z = (p[at], q[at]) if f < k else (number(1), number(loss != BPR))
        moved = _move_item(
            adagrad, item, item_sums, shared, factors, f, lanes, x, z, old, times4(keep, old),
            keep, bend_0, inside * push_0, user_on, item_on,
        )  # fmt: skip
        for c in range(1, count):
            i, place = np.uintp(items[np.uintp(c)]), np.uintp(first + c)
            bend = _bends(log, first + c, c, loss, rate, shared, totals, lanes)
            push = inside * (rate * log.numbers[place, GRADIENT])
            z = log.item_rows[place, at] if f < k else number(loss != BPR)
            moved = _move_item(
                adagrad, adjoint.items[i], sums.items[i], shared, factors + size * c, f, lanes,
                x, z, old, moved, keep, bend, push, user_on, allowed_items[i] >> lanes,
            )  # fmt: skip
        _put_adjoint(adagrad, user, user_sums, shared, of_user, f, lanes, moved)
        f += RANKS
