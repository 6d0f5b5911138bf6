"""HYDRA without Hessians: what every step left in the rows that a quantity depends on.

An example is followed by its gradients alone: those of its own steps, what momentum and decay
made of them until training ended, and nothing of what later steps made of the rows they had moved.
Momentum m and response c of an example go through a step of the run as

    m <- momentum m + decay c + s,     c <- c - rate m

where s is its gradient if the step is its own, else 0. That is linear in s, so going backwards two
numbers serve all examples: the derivatives of the last c by m and c as they stand behind a step.
"""

import numpy as np

from ..structures import GRADIENT, ITEM_BIAS, USER_BIAS
from .adjoints import add_lanes, dot_lanes
from .jit import inner_kernel, kernel
from .lanes import LANES
from .losses import BPR

__all__ = ["add_gradient", "hydra_steps", "read_row", "step_filter"]


@kernel
def step_filter(rates, taken, momentum, decay, carried, factors):
    """What a gradient of 1 in each step of an epoch is at the end of the run.

    Parameters
    ----------
    rates : (n_steps,) float64
        Learning rates.
    taken : (n_steps,) bool
        The others are no steps.
    momentum, decay : float
    carried : (2,) float64
        Derivatives of the end by response and momentum behind the epoch, at first (1, 0);
        changed in place to those before it.
    factors : (n_steps,) float64
        Written.
    """
    of_response, of_momentum = carried[0], carried[1]
    for t in range(rates.shape[0] - 1, -1, -1):
        factors[t] = 0
        if taken[t]:
            factors[t] = of_momentum - rates[t] * of_response
            of_momentum = momentum * factors[t]
            of_response += decay * factors[t]
    carried[0], carried[1] = of_response, of_momentum


@inner_kernel
def read_row(gradient, rates, left, factor, shrink, row, lane, out):
    """Credit a step with its move of one row, and let the row forget what came before.

    ``out += factor * (left * rates * gradient) . row``, then ``left *= 1 - shrink * rates``.

    Parameters
    ----------
    gradient : (d,)
        Overwritten.
    rates : (d,)
        What the optimizer multiplies the gradient with, besides the learning rate.
    left : (d,)
        The share of a change that later steps leave; changed in place.
    factor : float
        See `step_filter`.
    shrink : float
        What the step takes of the row at a rate of 1, 0 where rows do not forget.
    row : (d, LANES)
        Derivatives of the quantities by the row.
    lane : (LANES,)
        Scratch.
    out : (LANES,)
    """
    one = type(shrink)(1)
    for f in range(gradient.shape[0]):
        gradient[f] *= left[f] * rates[f]
        left[f] *= one - shrink * rates[f]
    dot_lanes(gradient, row, lane)
    add_lanes(out, lane, factor)


@inner_kernel
def _count(log, slot):
    """Number of candidates of a step."""
    count = 0
    while count < log.items.shape[1] and log.items[slot, count] >= 0:
        count += 1
    return count


@inner_kernel
def _user_gradient(log, slot, n_candidates, loss, weight, l2, gradient):
    """Write the gradient (k + 1,) of the user's row, with weight and regularization."""
    k, first = log.user_rows.shape[1], slot * log.items.shape[1]
    p = log.user_rows[slot]
    for f in range(k + 1):
        gradient[f] = 0
    for c in range(n_candidates):
        push, q = weight * log.numbers[first + c, GRADIENT], log.item_rows[first + c]
        for f in range(k):
            gradient[f] += push * q[f]
        if loss != BPR:
            gradient[k] += push
    for f in range(k):
        gradient[f] += l2 * p[f]
    gradient[k] += l2 * log.numbers[first, USER_BIAS]


@inner_kernel
def _item_gradient(log, slot, c, weight, l2, gradient):
    """Write the gradient (k + 1,) of a candidate's row, with weight and regularization."""
    k, entry = log.user_rows.shape[1], slot * log.items.shape[1] + c
    push, p, q = weight * log.numbers[entry, GRADIENT], log.user_rows[slot], log.item_rows[entry]
    for f in range(k):
        gradient[f] = push * p[f] + l2 * q[f]
    gradient[k] = push + l2 * log.numbers[entry, ITEM_BIAS]


@inner_kernel
def _adagrad_rates(squares, epsilon, rates):
    """Write ``1 / (sqrt(s) + epsilon)``; 0 where s is: nothing has ever moved there."""
    for f in range(squares.shape[0]):
        rates[f] = 0
        if squares[f] > 0:
            rates[f] = 1 / (np.sqrt(squares[f]) + epsilon)


@inner_kernel
def _step(
    rows, left, user_places, item_places, u, log, slot, hyper, loss, weight, factor, forget, out,
    work,
):  # fmt: skip
    gradient, rates, lane = work
    n_candidates, width = _count(log, slot), log.items.shape[1]
    adagrad = log.user_squares.shape[0] > 0
    l2 = weight * hyper.regularization
    shrink = hyper.learning_rate * l2 if forget else l2 * 0
    at = user_places[u]
    if at >= 0:
        _user_gradient(log, slot, n_candidates, loss, weight, l2, gradient)
        if adagrad:
            _adagrad_rates(log.user_squares[slot], hyper.epsilon, rates)
        read_row(gradient, rates, left[at], factor, shrink, rows[at], lane, out)
    for c in range(n_candidates):
        at = item_places[log.items[slot, c]]
        if at >= 0:
            _item_gradient(log, slot, c, weight, l2, gradient)
            if adagrad:
                _adagrad_rates(log.item_squares[slot * width + c], hyper.epsilon, rates)
            read_row(gradient, rates, left[at], factor, shrink, rows[at], lane, out)


@inner_kernel
def _steps(
    rows, left, user_places, item_places, examples, log, hyper, loss, factors, forget, start, stop,
    out, work,
):  # fmt: skip
    number = type(hyper.learning_rate)
    for t in range(stop - 1, start - 1, -1):
        slot = log.slots[t]
        if slot >= 0:
            _step(
                rows, left, user_places, item_places, examples.users[t], log, slot, hyper, loss,
                examples.weights[t], number(factors[t]), forget, out[examples.ids[t]], work,
            )  # fmt: skip


@kernel
def hydra_steps(
    rows, left, user_places, item_places, examples, log, hyper, loss, factors, forget, start, stop,
    out,
):  # fmt: skip
    """Credit logged steps with what they left in some rows, the last step first.

    Parameters
    ----------
    rows : (m, d, LANES)
        Derivatives of a block of quantities by the m rows they depend on, a quantity a lane;
        d = k + 1, the bias last.
    left : (m, d)
        The share of a change that later steps leave in each row; changed in place.
    user_places, item_places : (n_users,), (n_items,) int32
        Where each row of the working tables stands in `rows`, -1: nowhere.
    examples : Examples
        In the order of visits.
    log : Log
        Of these steps.
    hyper : Hyper
        Of the epoch.
    loss : {SQUARED, LOGISTIC, BPR}
    factors : (n,) float64
        Of every visit, see `step_filter`.
    forget : bool
        Whether a step's regularization shrinks what the rows it touches keep of earlier ones.
    start, stop : int
        Visits to go through.
    out : (n, LANES)
        Influence of every example, by its id, added to.
    """
    dtype, d = rows.dtype, rows.shape[1]
    work = np.empty(d, dtype), np.ones(d, dtype), np.empty(LANES, dtype)
    _steps(
        rows, left, user_places, item_places, examples, log, hyper, loss, factors, forget, start,
        stop, out, work,
    )  # fmt: skip


@kernel
def add_gradient(users, items, examples, log, hyper, loss, t, lane):
    """Add ``-learning_rate * weight * grad l`` of a logged visit to one lane of its rows (SGD).

    Parameters
    ----------
    users, items : (n_users, d, LANES), (n_items, d, LANES)
        Changed in place.
    examples, log, hyper, loss
        As for `hydra_steps`.
    t, lane : int
    """
    slot, d = log.slots[t], users.shape[1]
    gradient = np.empty(d, users.dtype)
    n_candidates, weight = _count(log, slot), examples.weights[t]
    l2 = weight * hyper.regularization
    _user_gradient(log, slot, n_candidates, loss, weight, l2, gradient)
    for f in range(d):
        users[examples.users[t], f, lane] -= hyper.learning_rate * gradient[f]
    for c in range(n_candidates):
        _item_gradient(log, slot, c, weight, l2, gradient)
        for f in range(d):
            items[log.items[slot, c], f, lane] -= hyper.learning_rate * gradient[f]
