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

from .adjoints import add_lanes, adjoint_dots, move_adjoints, set_lanes
from .jit import inner_kernel, kernel
from .lanes import LANES
from .losses import BPR

__all__ = ["LANES", "replay_steps"]


@inner_kernel
def _candidates(log, slot, allowed_items):
    """Number of candidates of a step, and the lanes that live on any of them."""
    count, lanes = 0, 0
    while count < log.items.shape[1] and log.items[slot, count] >= 0:
        lanes |= allowed_items[log.items[slot, count]]
        count += 1
    return count, lanes


@inner_kernel
def _bend(loss, log, slot, n_candidates, factor, dots, bends):
    """``factor * (d2L/df2 @ slopes)``: how much dL/df of every candidate changes.

    The slopes of the scores are ``dots[:, 0]``. The losses are sums over candidates, or in BPR
    over the leads of the negatives over the example.
    """
    set_lanes(bends[0], dots[0, 0], factor * 0)
    for c in range(n_candidates):
        bend = factor * log.curvatures[slot, c]
        if loss != BPR:
            set_lanes(bends[c], dots[c, 0], bend)
        elif c > 0:
            set_lanes(bends[c], dots[c, 0], bend)
            add_lanes(bends[c], dots[0, 0], -bend)
            add_lanes(bends[0], bends[c], type(bend)(-1))


@inner_kernel
def _through_step(
    user, items, numbers, n_candidates, log, slot, loss, l2, rate, keep, user_lanes, allowed_items,
    out, work,
):  # fmt: skip
    """``out -= rate v . grad l`` and ``v <- keep v - rate H v`` for the rows v of a step.

    Here H leaves out the regularization, which `keep` has in it.

    Parameters
    ----------
    user : (k + 1, LANES)
        v of the user's row.
    items : (_, k + 1, LANES)
        v of the candidate c in ``items[numbers[c]]``.
    """
    dots, bends, partial = work
    width = log.items.shape[1]
    p, one = log.user_rows[slot], type(rate)(1)
    share = one * (loss != BPR)  # of the user's bias, which in BPR cancels
    for c in range(n_candidates):
        q, q_bias = log.item_rows[slot * width + c], log.item_biases[slot, c]
        adjoint_dots(user, items[numbers[c]], p, q, log.user_biases[slot], q_bias, share, dots[c])
    add_lanes(out, dots[0, 1], -rate * l2)
    for c in range(n_candidates):
        add_lanes(out, dots[c, 0], -rate * log.gradients[slot, c])
        add_lanes(out, dots[c, 2], -rate * l2)
    _bend(loss, log, slot, n_candidates, rate, dots, bends)
    for c in range(n_candidates):
        # All candidates meet the old row of the user; the new one is gathered beside it.
        move_adjoints(
            user if c == n_candidates - 1 else partial,
            user if c == 0 else partial,
            user,
            items[numbers[c]],
            p,
            log.item_rows[slot * width + c],
            bends[c],
            rate * log.gradients[slot, c],
            share,
            keep if c == 0 else one,
            keep,
            user_lanes,
            allowed_items[log.items[slot, c]],
        )


@inner_kernel
def _pull(row, sums, squares, gradients, hyper, pulls):
    """Adjoint of a row's gradient in a step of Adagrad, from those of the row and of its sums."""
    zero = hyper.epsilon * 0
    for f in range(squares.shape[0]):
        g = gradients[f]
        if squares[f] == zero:  # has not moved at any rate; 1 / epsilon would enter here
            set_lanes(pulls[f], row[f], zero)
            continue
        root = np.sqrt(squares[f])
        divisor = root + hyper.epsilon
        add_lanes(sums[f], row[f], g / (root + root) * (hyper.learning_rate / (divisor * divisor)))
        set_lanes(pulls[f], row[f], -hyper.learning_rate / divisor)
        add_lanes(pulls[f], sums[f], g + g)


@inner_kernel
def _adagrad_step(
    adjoint, squares, u, n_candidates, log, slot, loss, hyper, weight, user_lanes, allowed_items,
    out, of_step, of_adagrad,
):  # fmt: skip
    numbers, gradients, user_pulls, item_pulls = of_adagrad
    k, width = log.user_rows.shape[1], log.items.shape[1]
    l2, one = weight * hyper.regularization, type(weight)(1)
    p = log.user_rows[slot]
    for f in range(k):
        gradients[f] = l2 * p[f]
    gradients[k] = l2 * log.user_biases[slot]
    for c in range(n_candidates):
        push, q = weight * log.gradients[slot, c], log.item_rows[slot * width + c]
        for f in range(k):
            gradients[f] += push * q[f]
        if loss != BPR:
            gradients[k] += push
    _pull(adjoint.users[u], squares.users[u], log.user_squares[slot], gradients, hyper, user_pulls)
    for c in range(n_candidates):
        place, i = slot * width + c, log.items[slot, c]
        push, q = weight * log.gradients[slot, c], log.item_rows[place]
        for f in range(k):
            gradients[f] = push * p[f] + l2 * q[f]
        gradients[k] = push + l2 * log.item_biases[slot, c]
        _pull(
            adjoint.items[i], squares.items[i], log.item_squares[place], gradients, hyper,
            item_pulls[c],
        )  # fmt: skip
        numbers[c] = c
    _through_step(
        user_pulls, item_pulls, numbers, n_candidates, log, slot, loss, hyper.regularization,
        -weight, l2, user_lanes, allowed_items, out, of_step,
    )  # fmt: skip
    for f in range(k + 1):
        add_lanes(adjoint.users[u, f], user_pulls[f], one)
        for c in range(n_candidates):
            add_lanes(adjoint.items[log.items[slot, c], f], item_pulls[c, f], one)


@inner_kernel
def _steps(
    adjoint, squares, examples, log, hyper, loss, allowed_users, allowed_items, start, stop, out,
    of_step, of_adagrad,
):  # fmt: skip
    for t in range(stop - 1, start - 1, -1):
        slot = log.slots[t]
        if slot < 0:
            continue
        u = examples.users[t]
        n_candidates, lanes = _candidates(log, slot, allowed_items)
        if (lanes | allowed_users[u]) == 0:
            continue
        weight = examples.weights[t]
        if squares is not None:
            _adagrad_step(
                adjoint, squares, u, n_candidates, log, slot, loss, hyper, weight,
                allowed_users[u], allowed_items, out[t], of_step, of_adagrad,
            )  # fmt: skip
        else:
            # v = -learning_rate u is u itself up to a factor
            rate = hyper.learning_rate * weight
            keep = type(rate)(1) - rate * hyper.regularization
            _through_step(
                adjoint.users[u], adjoint.items, log.items[slot], n_candidates, log, slot, loss,
                hyper.regularization, rate, keep, allowed_users[u], allowed_items, out[t], of_step,
            )  # fmt: skip


@kernel
def replay_steps(
    adjoint, squares, examples, log, hyper, loss, allowed_users, allowed_items, start, stop, out
):
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
    start, stop : int
        The first visit, and the one behind the last.
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
        adjoint, squares, examples, log, hyper, loss, allowed_users, allowed_items, start, stop,
        out, of_step, of_adagrad,
    )  # fmt: skip
