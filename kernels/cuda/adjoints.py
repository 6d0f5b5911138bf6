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
def _before(adagrad, row, sums, shared, factors, f, lanes, keep):
    """That adjoint, what stays of the row's own, and where Adagrad's sum goes."""
    own = _adjoint_at(adagrad, row, sums, shared, factors, f, lanes)
    if not adagrad:
        return own, times4(keep, own), own
    d, at = row.shape[0] // LANES, f * LANES + lanes
    four, bend = load4(row, at), shared[np.uintp(factors + 2 * d + f)]
    return own, add4(four, keep, own), add4(load4(sums, at), bend, four)


@inner_kernel
def _put_adjoint(adagrad, row, sums, f, lanes, moved, sum_moved):
    at = f * LANES + lanes
    if adagrad:
        put4(sums, at, sum_moved)
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
def _where(on, four):
    """Four lanes, zero in those whose bit is not set."""
    zero = type(four[0])(0)
    return (
        four[0] if on & 1 else zero,
        four[1] if on & 2 else zero,
        four[2] if on & 4 else zero,
        four[3] if on & 8 else zero,
    )


@inner_kernel
def _along4(total, factor, slopes, other, pushes):
    """``total + factor * slopes + pushes * other``."""
    return (
        fma(factor, slopes[0], fma(pushes[0], other[0], total[0])),
        fma(factor, slopes[1], fma(pushes[1], other[1], total[1])),
        fma(factor, slopes[2], fma(pushes[2], other[2], total[2])),
        fma(factor, slopes[3], fma(pushes[3], other[3], total[3])),
    )


@inner_kernel
def _bends(log, place, c, loss, rate, shared, totals, lanes):
    """How much rate dL/df of a candidate changes; of BPR's example itself nothing is told."""
    slopes = load4(shared, totals + c * LANES + lanes)
    if loss == BPR:
        slopes = add4(slopes, -type(rate)(1), load4(shared, totals + lanes))
    return times4(rate * log.numbers[np.uintp(place), CURVATURE], slopes)


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
    k, first = log.user_rows.shape[1], slot * log.items.shape[1]
    back, user_on = -rate, allowed_users[np.uintp(u)] >> lanes
    # The example itself is looked up once: most steps have no other candidate.
    bend = _bends(log, first, 0, loss, back, shared, totals, lanes)
    for c in range(1, count if loss == BPR else 0):
        bend = add4(
            bend, -type(rate)(1), _bends(log, first + c, c, loss, back, shared, totals, lanes)
        )
    i = np.uintp(log.items[np.uintp(slot), 0])
    item_on, push = allowed_items[i] >> lanes, same4(back * log.numbers[np.uintp(first), GRADIENT])
    of_user = _where(user_on, bend), _where(user_on, push)
    of_item = _where(item_on, bend), _where(item_on, push)
    f = rank
    while f < k:
        _move_coordinate(
            True, adagrad, adjoint, sums, u, i, log, slot, count, loss, back, keep, shared, totals,
            factors, allowed_items, user_on, of_user, of_item, f, lanes,
        )  # fmt: skip
        f += RANKS
    if f == k:
        _move_coordinate(
            False, adagrad, adjoint, sums, u, i, log, slot, count, loss, back, keep, shared, totals,
            factors, allowed_items, user_on, of_user, of_item, f, lanes,
        )  # fmt: skip


@inner_kernel
def _move_coordinate(
    inside, adagrad, adjoint, sums, u, i, log, slot, count, loss, back, keep, shared, totals,
    factors, allowed_items, user_on, of_user, of_item, f, lanes,
):  # fmt: skip
    """Move a coordinate of all rows: a factor, `inside`, or the biases.

    `of_user` and `of_item` are how the example itself bends and pushes its user and item `i`.
    """
    width, size = log.items.shape[1], 3 * (log.user_rows.shape[1] + 1)
    first, at, number = slot * width, np.uintp(f), type(back)
    user, user_sums = adjoint.users[np.uintp(u)], sums.users[np.uintp(u)]
    behind = factors + size * width
    old, moved, sum_moved = _before(adagrad, user, user_sums, shared, behind, f, lanes, keep)
    x, z = number(1), number(loss != BPR)
    if inside:
        x, z = log.user_rows[np.uintp(slot), at], log.item_rows[np.uintp(first), at]
    moved = _move_item(
        inside, adagrad, adjoint.items[i], sums.items[i], shared, factors, f, lanes, x, z, old,
        moved, keep, of_user, of_item,
    )  # fmt: skip
    for c in range(1, count):
        i, place = np.uintp(log.items[np.uintp(slot), np.uintp(c)]), np.uintp(first + c)
        bend = _bends(log, first + c, c, loss, back, shared, totals, lanes)
        push, item_on = same4(back * log.numbers[place, GRADIENT]), allowed_items[i] >> lanes
        if inside:
            z = log.item_rows[place, at]
        moved = _move_item(
            inside, adagrad, adjoint.items[i], sums.items[i], shared, factors + size * c, f, lanes,
            x, z, old, moved, keep, (_where(user_on, bend), _where(user_on, push)),
            (_where(item_on, bend), _where(item_on, push)),
        )  # fmt: skip
    _put_adjoint(adagrad, user, user_sums, f, lanes, moved, sum_moved)


@inner_kernel
def _move_item(
    inside, adagrad, row, sums, shared, factors, f, lanes, x, z, old, moved, keep, of_user, of_item
):  # fmt: skip
    """Move a coordinate of an item's adjoint; what `moved` of the user's becomes by it."""
    v, change, sum_moved = _before(adagrad, row, sums, shared, factors, f, lanes, keep)
    if inside:
        change = _along4(change, x, of_item[0], old, of_item[1])
        moved = _along4(moved, z, of_user[0], v, of_user[1])
    else:  # biases do not multiply each other
        change, moved = add4(change, x, of_item[0]), add4(moved, z, of_user[0])
    _put_adjoint(adagrad, row, sums, f, lanes, change, sum_moved)
    return moved
