"""Replay: the exact derivative of a training run, from its last step to its first.

The adjoint of a row is the derivative of the explained quantity phi by what the row holds at
some moment of training; behind the last step it is the gradient of phi. A step with the gradient
``G = w * grad l``, its Hessian H and the adjoint u of the rows it touches is met backwards as

    SGD       v = -learning_rate u
    Adagrad   v = -learning_rate u / D + 2 G a,   a += learning_rate u G / (2 sqrt(s) D^2)

where s are the sums behind the step, ``D = sqrt(s) + epsilon`` and a (updated first) is their own
adjoint; then

    w dphi/dw += v . G        u += w H v

H is that of the whole loss of the example: over all rows it touches, with the derivatives of the
rows by each other and the regularization. Every lane of a vector is a quantity of its own, so
a quantity has the same bits in any company.
"""

import numpy as np

from ..structures import CURVATURE, GRADIENT, ITEM_BIAS, USER_BIAS
from .adjoints import add_lanes, adjoint_dots, move_adjoints, set_lanes
from .jit import inner_kernel, kernel
from .lanes import LANES
from .losses import BPR
from .simd import prefetch

__all__ = ["LANES", "replay_steps", "walk_order"]

PREFETCH_STEPS = 6
"""The log of a step is asked for so many steps ahead: `walk_order` jumps about in it."""


@kernel
def walk_order(examples, pointers, n_users, n_items):
    """Order of the visits that goes back as theirs does, and meets rows again while in cache.

    Steps that share no row may change places. From a step one goes on to the earlier one of its
    user or of its item if that one's other row is free as well, otherwise to the step that became
    free last. On MovieLens 1M four rows in ten are then among the last six, instead of two in a
    hundred, which saves a tenth of the time.

    Parameters
    ----------
    examples : Examples
        Of a loss without negatives.
    pointers : (n_blocks + 1,) int64
        Bounds of the blocks; each keeps its visits.
    n_users, n_items : int

    Returns
    -------
    (n,) int32
        Visits, to be gone through from the last to the first.
    """
    n = examples.users.shape[0]
    order, free = np.empty(n, np.int32), np.empty(n, np.int32)
    earlier, waiting = np.full((n, 2), -1, np.int32), np.zeros(n, np.int8)
    of_users, of_items = np.full(n_users, -1, np.int32), np.full(n_items, -1, np.int32)
    for block in range(pointers.shape[0] - 1):
        start, stop = pointers[block], pointers[block + 1]
        for t in range(start, stop):
            for side in range(2):
                row = examples.users[t] if side == 0 else examples.items[t]
                last = of_users if side == 0 else of_items
                if last[row] >= start:
                    earlier[t, side] = last[row]
                    waiting[last[row]] += 1
                last[row] = t
        n_free = 0
        for t in range(start, stop):
            if waiting[t] == 0:
                free[n_free] = t
                n_free += 1
        at = stop
        while n_free > 0:
            n_free -= 1
            t = free[n_free]
            at -= 1
            order[at] = t
            for side in range(2):
                other = earlier[t, side]
                if other >= 0:
                    waiting[other] -= 1
                    if waiting[other] == 0:
                        free[n_free] = other
                        n_free += 1
    return order


@inner_kernel(inline="always")
def _candidates(log, slot, allowed_items):
    """Number of candidates of a step, and the lanes that live on any of them."""
    count, lanes = 0, 0
    while count < log.items.shape[1] and log.items[slot, count] >= 0:
        lanes |= allowed_items[log.items[slot, count]]
        count += 1
    return count, lanes


@inner_kernel
def _bend(loss, numbers, first, n_candidates, factor, dots, bends):
    """``factor * (d2L/df2 @ slopes)``: how much dL/df of every candidate changes.

    The slopes of the scores are ``dots[:, 0]``. The losses are sums over candidates, or in BPR
    over the leads of the negatives over the example.
    """
    set_lanes(bends[0], dots[0, 0], factor * 0)
    for c in range(n_candidates):
        bend = factor * numbers[first + c, CURVATURE]
        if loss != BPR:
            set_lanes(bends[c], dots[c, 0], bend)
        elif c > 0:
            set_lanes(bends[c], dots[c, 0], bend)
            add_lanes(bends[c], dots[0, 0], -bend)
            add_lanes(bends[0], bends[c], type(bend)(-1))


@inner_kernel(inline="always")  # a call, which hands over the whole log, takes 30 ns
def _through_step(
    user, items, places, n_candidates, log, slot, loss, l2, rate, keep, user_lanes, allowed_items,
    next_user, next_item, out, work,
):  # fmt: skip
    """``out -= rate v . grad l`` and ``v <- keep v - rate H v`` for the rows v of a step.

    Here H leaves out the regularization, which `keep` has in it.

    Parameters
    ----------
    user : (k + 1, LANES)
        v of the user's row.
    items : (_, k + 1, LANES)
        v of the candidate c in ``items[places[c]]``.
    next_user, next_item : (k + 1, LANES)
        Rows that are needed next.
    """
    dots, bends, partial = work
    p, first, one = log.user_rows[slot], slot * log.items.shape[1], type(rate)(1)
    share = one * (loss != BPR)  # of the user's bias, which in BPR cancels
    for c in range(n_candidates):
        numbers = log.numbers[first + c]
        adjoint_dots(
            user, items[places[c]], p, log.item_rows[first + c], numbers[USER_BIAS],
            numbers[ITEM_BIAS], share, dots[c],
        )  # fmt: skip
    add_lanes(out, dots[0, 1], -rate * l2)
    for c in range(n_candidates):
        add_lanes(out, dots[c, 0], -rate * log.numbers[first + c, GRADIENT])
        add_lanes(out, dots[c, 2], -rate * l2)
    _bend(loss, log.numbers, first, n_candidates, rate, dots, bends)
    for c in range(n_candidates):
        # All candidates meet the old row of the user; the new one is gathered beside it.
        move_adjoints(
            user if c == n_candidates - 1 else partial,
            user if c == 0 else partial,
            user,
            items[places[c]],
            p,
            log.item_rows[first + c],
            bends[c],
            rate * log.numbers[first + c, GRADIENT],
            share,
            keep if c == 0 else one,
            keep,
            user_lanes,
            allowed_items[log.items[slot, c]],
            next_user,
            next_item,
        )


@inner_kernel
def _pull(row, sums, squares, gradients, hyper, pulls):
    """Adjoint of a row's gradient in a step of Adagrad, from those of the row and of its sums."""
    zero = hyper.epsilon * 0
    for f in range(squares.shape[0]):
        g, s = gradients[f], squares[f]
        if s == zero:  # has not moved at any rate; 1 / epsilon would enter here
            set_lanes(pulls[f], row[f], zero)
            continue
        root = np.sqrt(s)
        divisor = root + hyper.epsilon
        # -1 / D + g^2 / (sqrt(s) D^2), in which the first gradients of a row cancel: s is then g^2.
        left = (max(s - g * g, zero) + hyper.epsilon * root) / (root * divisor)
        set_lanes(pulls[f], row[f], -hyper.learning_rate / divisor * left)
        add_lanes(pulls[f], sums[f], g + g)
        add_lanes(sums[f], row[f], g / (root + root) * (hyper.learning_rate / (divisor * divisor)))


@inner_kernel
def _adagrad_step(
    adjoint, squares, u, n_candidates, log, slot, loss, hyper, weight, user_lanes, allowed_items,
    next_user, next_item, out, of_step, of_adagrad,
):  # fmt: skip
    places, gradients, user_pulls, item_pulls = of_adagrad
    k, first = log.user_rows.shape[1], slot * log.items.shape[1]
    l2, zero, one = weight * hyper.regularization, weight * 0, type(weight)(1)
    p = log.user_rows[slot]
    # To the last bit the gradients that training had.
    for f in range(k + 1):
        gradients[f] = zero
    for c in range(n_candidates):
        push, q = weight * log.numbers[first + c, GRADIENT], log.item_rows[first + c]
        for f in range(k):
            gradients[f] += push * q[f]
        if loss != BPR:
            gradients[k] += push
    for f in range(k):
        gradients[f] += l2 * p[f]
    gradients[k] += l2 * log.numbers[first, USER_BIAS]
    _pull(adjoint.users[u], squares.users[u], log.user_squares[slot], gradients, hyper, user_pulls)
    for c in range(n_candidates):
        i, q, numbers = log.items[slot, c], log.item_rows[first + c], log.numbers[first + c]
        push = weight * numbers[GRADIENT]
        for f in range(k):
            gradients[f] = push * p[f] + l2 * q[f]
        gradients[k] = push + l2 * numbers[ITEM_BIAS]
        _pull(
            adjoint.items[i], squares.items[i], log.item_squares[first + c], gradients, hyper,
            item_pulls[c],
        )  # fmt: skip
        places[c] = c
    _through_step(
        user_pulls, item_pulls, places, n_candidates, log, slot, loss, hyper.regularization,
        -weight, l2, user_lanes, allowed_items, next_user, next_item, out, of_step,
    )  # fmt: skip
    for f in range(k + 1):
        add_lanes(adjoint.users[u, f], user_pulls[f], one)
        for c in range(n_candidates):
            add_lanes(adjoint.items[log.items[slot, c], f], item_pulls[c, f], one)


@inner_kernel(inline="always")
def _prefetch_log(log, slot, out):
    per_line = 64 // log.user_rows.itemsize
    for f in range(0, log.user_rows.shape[1], per_line):
        prefetch(log.user_rows[slot], f)
        for c in range(log.items.shape[1]):
            prefetch(log.item_rows[slot * log.items.shape[1] + c], f)
    prefetch(log.numbers[slot * log.items.shape[1]], 0)
    prefetch(out, 0)


@inner_kernel
def _steps(
    adjoint, squares, examples, log, hyper, loss, allowed_users, allowed_items, order, start, stop,
    out, of_step, of_adagrad,
):  # fmt: skip
    for n in range(stop - 1, start - 1, -1):
        t = order[n]
        slot = log.slots[t]
        if slot < 0:
            continue
        u = examples.users[t]
        n_candidates, lanes = _candidates(log, slot, allowed_items)
        if (lanes | allowed_users[u]) == 0:
            continue
        soon = order[max(n - PREFETCH_STEPS, start)]
        if log.slots[soon] >= 0:
            _prefetch_log(log, log.slots[soon], out[soon])
        after = order[max(n - 1, start)]
        next_user, next_item = (
            adjoint.users[examples.users[after]],
            adjoint.items[examples.items[after]],
        )
        weight = examples.weights[t]
        if squares is not None:
            _adagrad_step(
                adjoint, squares, u, n_candidates, log, slot, loss, hyper, weight,
                allowed_users[u], allowed_items, next_user, next_item, out[t], of_step, of_adagrad,
            )  # fmt: skip
        else:
            # v = -learning_rate u is u itself up to a factor.
            rate = hyper.learning_rate * weight
            keep = type(rate)(1) - rate * hyper.regularization
            if log.items.shape[1] == 1:  # compiled for one candidate: 25 ns less
                _through_step(
                    adjoint.users[u], adjoint.items, log.items[slot], 1, log, slot, loss,
                    hyper.regularization, rate, keep, allowed_users[u], allowed_items, next_user,
                    next_item, out[t], of_step,
                )  # fmt: skip
            else:
                _through_step(
                    adjoint.users[u], adjoint.items, log.items[slot], n_candidates, log, slot, loss,
                    hyper.regularization, rate, keep, allowed_users[u], allowed_items, next_user,
                    next_item, out[t], of_step,
                )  # fmt: skip


@kernel
def replay_steps(
    adjoint, squares, examples, log, hyper, loss, allowed_users, allowed_items, order, bounds,
    start, stop, out,
):  # fmt: skip
    """Take the adjoints of a block of quantities back over logged steps, the last first.

    Parameters
    ----------
    adjoint : Adjoint
        dphi / d parameters behind the last of the steps; changed in place to those before the
        first. Rows of the working tables, as in the log.
    squares : Adjoint or None
        The same of Adagrad's sums of squared gradients; None is plain SGD.
    examples : Examples
        In the order of visits.
    log : Log
        Of these steps.
    hyper : Hyper
        Of the epoch.
    loss : {SQUARED, LOGISTIC, BPR}
    allowed_users, allowed_items : (n_users,), (n_items,) uint16
        Bit b: the adjoint of lane b may live on that row. It is zero elsewhere and stays so.
    order : (n,) int32
        Visits, to be gone through from the last to the first.
    bounds : (n_tiles + 1,) int64
        Of tiles of `order`.
    start, stop : int
        The tiles to go through.
    out : (n, LANES)
        ``w_j dphi/dw_j`` of the example of every visit, added to.
    """
    dtype, width = log.user_rows.dtype, log.items.shape[1]
    d = log.user_rows.shape[1] + 1
    of_step = (
        np.empty((width, 3, LANES), dtype),
        np.empty((width, LANES), dtype),
        np.empty((d, LANES), dtype),
    )
    of_adagrad = (
        np.empty(width, np.int32),
        np.empty(d, dtype),
        np.empty((d, LANES), dtype),
        np.empty((width, d, LANES), dtype),
    )
    _steps(
        adjoint, squares, examples, log, hyper, loss, allowed_users, allowed_items, order,
        bounds[start], bounds[stop], out, of_step, of_adagrad,
    )  # fmt: skip
