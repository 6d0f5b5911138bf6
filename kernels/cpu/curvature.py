"""Curvature Rollback: what later steps made of every example's own updates, row by row.

Each embedding row (factors and bias, d numbers) carries a matrix M, the product of what all
later steps do to a small change of it, the identity behind the last step. A step of example j
with weight w, the gradient ``sum_c g_c x_c + l2 * row`` and the curvature ``sum_c h_c x_c x_c^T +
l2`` in the row is met backwards, with D = learning_rate (Adagrad: divided by the root of its sums,
taken as recorded), as

    credit_j -= w M D (sum_c g_c x_c + l2 * row)
    M        <- M (1 - w D (sum_c h_c x_c x_c^T + l2))

With the products ``y_c = M D x_c`` at hand, plain SGD needs no second product with the row: it
carries ``value = M row`` along. Its shrinking by l2 is a number and stays outside of M until
the last touch of a stage. Adagrad takes the row in as one more vector, with g = l2 and h = 0,
and shrinks the columns of M step by step.

Vectors go through M in groups of four, of as many steps as fit (see `rank4`). Rows are
independent, so any thread may do any of them.
"""

from typing import Any, NamedTuple

import numpy as np

from .jit import inner_kernel, kernel
from .lanes import LANES
from .losses import BPR
from .rank4 import PAIRS, RANK, finish, gram, sweep
from .simd import prefetch

__all__ = ["roll_back_rows"]

N_PAIRS = len(PAIRS)

SMALLEST_SCALE = 1e-10
"""Shrinking gathered outside of M is put into it when it gets below this."""

PREFETCH_TOUCHES = 8


class _Work(NamedTuple):
    """Room for one batch of vectors and for what the batch before it has left pending."""

    lefts: Any  # (room * stride,): D x, multiplied by M
    products: Any  # (room * width,): y
    pending: Any  # (room * width,): y times its push, to be joined with its right vector
    bias_pending: Any  # (room,)
    nothing: Any  # (4 * stride,): zeros
    trash: Any  # (width,): credits of nobody
    diagonal: Any  # (d,): Adagrad's D
    inner: Any  # (4 + 6,): from `gram`
    coefficients: Any  # (6 + 16,): for `finish`
    bias_products: Any  # (4,)
    four: Any  # (4,): targets for `finish`
    steps: Any  # (room,): number of every vector's step in the batch, -1 for none
    targets: Any  # (room,): where its credit goes, -1 for nowhere
    slopes: Any  # (room,): g
    bends: Any  # (room,): h
    alongs: Any  # (room,): x . row
    scalars: Any  # (room, 4): own, decay, step, push of `finish`


@kernel
def _new_work(most, k, width, dtype):
    room = (max(most, RANK) + RANK - 1) // RANK * RANK
    stride = width + LANES
    return _Work(
        np.zeros(room * stride, dtype),
        np.empty(room * width, dtype),
        np.empty(room * width, dtype),
        np.zeros(room, dtype),
        np.zeros(RANK * stride, dtype),
        np.empty(width, dtype),
        np.empty(k + 1, dtype),
        np.empty(RANK + N_PAIRS, dtype),
        np.empty(N_PAIRS + 4 * RANK, dtype),
        np.empty(RANK, dtype),
        np.empty(RANK, np.int64),
        np.empty(room, np.int64),
        np.empty(room, np.int64),
        np.empty(room, dtype),
        np.empty(room, dtype),
        np.empty(room, dtype),
        np.empty((room, 4), dtype),
    )


@inner_kernel
def _count_vectors(of_users, loss, adagrad, log, slot):
    """Vectors x of one touch; at least one, if need be zero, to carry its regularization."""
    count = 1
    if of_users:
        while count < log.items.shape[1] and log.items[slot, count] >= 0:
            count += 1
        if loss == BPR:
            count = max(1, count - 1)
    return count + 1 if adagrad else count


@inner_kernel
def _place_vector(row, bias, scales, adagrad, work, rights, start):
    """Write a vector at `start`, scaled for either use."""
    k = row.shape[0]
    lefts, diagonal = work.lefts, work.diagonal
    left, right = scales
    if adagrad:
        for f in range(k):
            x = row[f]
            lefts[start + f] = diagonal[f] * x
            rights[start + f] = x
        lefts[start + k] = diagonal[k] * bias
        rights[start + k] = bias
    else:
        for f in range(k):
            x = row[f]
            lefts[start + f] = left * x
            rights[start + f] = right * x
        lefts[start + k] = left * bias
        rights[start + k] = right * bias


@inner_kernel
def _place_difference(row, other, scales, adagrad, work, rights, start):
    """Write ``row - other``, whose biases cancel."""
    k = row.shape[0]
    lefts, diagonal = work.lefts, work.diagonal
    left, right = scales
    for f in range(k):
        x = row[f] - other[f]
        lefts[start + f] = (diagonal[f] if adagrad else left) * x
        rights[start + f] = x if adagrad else right * x
    lefts[start + k] = 0
    rights[start + k] = 0


@inner_kernel
def _place_touch(of_users, loss, adagrad, hyper, log, slot, c, n, scales, work, rights):
    """Write the vectors of one touch behind the n of the batch; returns their new number."""
    one = hyper.learning_rate * 0 + 1
    stride = work.nothing.shape[0] // RANK
    n_candidates = log.items.shape[1]
    place = slot * n_candidates
    first, behind = (0, n_candidates) if of_users else (c, c + 1)
    if loss == BPR and of_users:
        first = 1
    for other in range(first, behind):
        if log.items[slot, other] < 0:
            break
        start = n * stride
        score = log.scores[slot, other]
        if not of_users:
            _place_vector(log.user_rows[slot], one, scales, adagrad, work, rights, start)
            along = score - hyper.mean - log.user_biases[slot]
        elif loss == BPR:
            rows = log.item_rows[place + other], log.item_rows[place]
            _place_difference(rows[0], rows[1], scales, adagrad, work, rights, start)
            along = score - log.item_biases[slot, other]
            along -= log.scores[slot, 0] - log.item_biases[slot, 0]
        else:
            _place_vector(log.item_rows[place + other], one, scales, adagrad, work, rights, start)
            along = score - hyper.mean - log.item_biases[slot, other]
        work.slopes[n], work.bends[n] = log.gradients[slot, other], log.curvatures[slot, other]
        work.alongs[n] = along
        n += 1
    if loss == BPR and of_users and log.items.shape[1] > 1 and log.items[slot, 1] < 0:
        row = log.item_rows[place]
        _place_difference(row, row, scales, adagrad, work, rights, n * stride)
        work.slopes[n], work.bends[n], work.alongs[n] = 0, 0, 0
        n += 1
    if adagrad:
        own, bias = log.user_rows[slot], log.user_biases[slot]
        if not of_users:
            own, bias = log.item_rows[place + c], log.item_biases[slot, c]
        _place_vector(own, bias, scales, True, work, rights, n * stride)
        work.slopes[n], work.bends[n], work.alongs[n] = hyper.regularization, 0, 0
        n += 1
    return n


@inner_kernel
def _set_diagonal(of_users, hyper, log, slot, c, diagonal):
    squares = log.user_squares[slot]
    if not of_users:
        squares = log.item_squares[slot * log.items.shape[1] + c]
    for f in range(diagonal.shape[0]):
        diagonal[f] = hyper.learning_rate / (np.sqrt(squares[f]) + hyper.epsilon)


@inner_kernel
def _prefetch_touch(of_users, log, slot, place, credits):
    rows = log.user_rows[slot]
    if of_users:
        rows = log.item_rows[slot * log.items.shape[1]]
    for f in range(0, rows.shape[0], 64 // rows.itemsize):
        prefetch(rows, f)
        if place >= 0:
            prefetch(credits[place], f)


@inner_kernel
def _gather(
    of_users, loss, adagrad, examples, log, hyper, places, credits, entries, first, e, scale, work,
    rights,
):  # fmt: skip
    """Fill a batch with whole touches, from entry `e` down: (vectors, next entry, scale)."""
    n_candidates = log.items.shape[1]
    one, rate = hyper.learning_rate * 0 + 1, hyper.learning_rate
    n = n_steps = 0
    while e >= first:
        t, c = divmod(entries[e], n_candidates)
        slot = log.slots[t]
        count = _count_vectors(of_users, loss, adagrad, log, slot)
        if n > 0 and (adagrad or n + count > RANK):
            break
        ahead = entries[max(first, e - PREFETCH_TOUCHES)] // n_candidates
        _prefetch_touch(of_users, log, log.slots[ahead], places[ahead], credits)
        weight = examples.weights[t]
        shrink = rate * weight * hyper.regularization
        keep = one - shrink
        if adagrad:
            _set_diagonal(of_users, hyper, log, slot, c, work.diagonal)
        scales = rate * scale, one / (scale * keep)
        end = _place_touch(of_users, loss, adagrad, hyper, log, slot, c, n, scales, work, rights)
        for r in range(n, end):
            work.steps[r] = n_steps
            work.targets[r] = places[t] if c == 0 else -1
            push, bend = weight * work.slopes[r], weight * work.bends[r]
            scalars = work.scalars[r]
            scalars[3] = -bend
            if adagrad:
                scalars[0], scalars[1], scalars[2] = -push, 0, 0
            else:
                scalars[0] = -push * (one + shrink / keep)
                scalars[1] = -shrink / keep if r == n else 0
                scalars[2] = push - bend * work.alongs[r]
        if not adagrad:
            scale *= keep
        n = end
        n_steps += 1
        e -= 1
    stride = work.nothing.shape[0] // RANK
    while n % RANK:
        for f in range(n * stride, (n + 1) * stride):
            work.lefts[f] = 0
            rights[f] = 0
        for number in range(4):
            work.scalars[n, number] = 0
        work.steps[n], work.targets[n] = -1, -1
        n += 1
    return n, e, scale


@inner_kernel
def _apply_pending(matrix, last_row, d, work, rights, start, stop):
    """Join pending groups with their right vectors and add them to M."""
    stride = work.nothing.shape[0] // RANK
    width = stride - LANES
    nothing = work.nothing
    for g in range(start, stop):
        sweep(matrix, work.pending, rights, g, nothing, work.products, 0, d, width)
        gram(last_row, work.bias_pending, rights, g, nothing, nothing, 0, stride, work.inner)


@inner_kernel
def _credit(g, value, bias_value, credits, bias_credits, work):
    """Put the products of a group right, credit them and leave them pending."""
    base, pair = g * RANK, 0
    for r in range(RANK):
        product = work.inner[r]
        for q in range(r):
            correction = work.scalars[base + q, 3] * work.inner[RANK + pair]
            if work.steps[base + q] == work.steps[base + r]:
                correction *= 0  # one step's vectors all meet the M behind it
            work.coefficients[pair] = correction
            product += correction * work.bias_products[q]
            pair += 1
        work.bias_products[r] = product
        own, decay, step, push = work.scalars[base + r]
        target = work.targets[base + r]
        if target >= 0:
            bias_credits[target] += own * product + decay * bias_value
        bias_value += step * product
        work.bias_pending[base + r] = push * product
        work.four[r] = target
        for number in range(4):
            work.coefficients[N_PAIRS + number * RANK + r] = work.scalars[base + r, number]
    width = value.shape[0]
    finish(
        work.products, work.pending, g, width, value, work.coefficients, credits, work.four,
        work.trash,
    )  # fmt: skip
    return bias_value


@inner_kernel
def _batch(
    matrix, last_row, value, bias_value, d, n, waiting, credits, bias_credits, work, rights,
    old_rights,
):  # fmt: skip
    """Multiply, correct and credit the n vectors of a batch; returns the new bias value."""
    width = value.shape[0]
    stride = width + LANES
    _apply_pending(matrix, last_row, d, work, old_rights, 0, waiting - 1)
    # The idle group of zeros stands in where nothing is pending. All products come before the
    # first `_credit`, which overwrites what is pending.
    for g in range(n // RANK):
        if g == 0 and waiting > 0:
            sweep(
                matrix, work.pending, old_rights, waiting - 1, work.lefts, work.products, g, d,
                width,
            )  # fmt: skip
        else:
            sweep(matrix, work.nothing, rights, 0, work.lefts, work.products, g, d, width)
    for g in range(n // RANK):
        if g == 0 and waiting > 0:
            gram(
                last_row, work.bias_pending, old_rights, waiting - 1, work.lefts, rights, g, stride,
                work.inner,
            )  # fmt: skip
        else:
            gram(last_row, work.nothing, rights, 0, work.lefts, rights, g, stride, work.inner)
        bias_value = _credit(g, value, bias_value, credits, bias_credits, work)
    return bias_value


@inner_kernel
def _shrink_columns(matrix, last_row, d, width, factors, factor, by_column):
    """Multiply column f of M by ``factors[f]``, or all by `factor`."""
    for f in range(d):
        by = 1 - factor * factors[f] if by_column else factor
        for r in range(f * width, (f + 1) * width):
            matrix[r] *= by
        last_row[f] *= by


@kernel
def roll_back_rows(
    curvature, touches, of_users, examples, log, hyper, loss, places, credits, bias_credits, start,
    stop,
):  # fmt: skip
    """Take rows ``start`` to ``stop - 1`` back over the touches of one stage of a run.

    Parameters
    ----------
    curvature : Curvature
        Matrices and values of the rows, float32 or float64, changed in place. Behind the last
        step they are the identity and the row itself.
    touches : Touches
        Of these rows, in the order of the visits.
    of_users : bool
        Whether the rows are those of users or of items.
    examples : Examples
    log : Log
        With sums of squares: Adagrad.
    hyper : Hyper
        Of the stage's epoch.
    loss : {SQUARED, LOGISTIC, BPR}
    places : (n,) int64
        Where the credit of every visit goes; -1: nowhere.
    credits : (m, k)
        Changes of row, in the direction of the update, added to.
    bias_credits : (m,)
        Likewise, of the biases.
    start, stop : int

    Notes
    -----
    O(k^2) for every touch; with plain SGD 4 k^2 floating-point operations.
    """
    width, d = curvature.values.shape[1], credits.shape[1] + 1
    adagrad = log.user_squares.shape[0] > 0
    most = log.items.shape[1] + 1
    work = _new_work(most, d - 1, width, credits.dtype)
    rights, old_rights = np.zeros_like(work.lefts), np.zeros_like(work.lefts)
    one = hyper.learning_rate * 0 + 1
    entries = touches.entries
    for row in range(start, stop):
        first, e = touches.pointers[row], touches.pointers[row + 1] - 1
        matrix, last_row = curvature.matrices[row], curvature.last_rows[row]
        value, bias_value = curvature.values[row], curvature.bias_values[row]
        scale = one
        waiting = 0  # groups of pending vectors
        while e >= first:
            n, e, scale = _gather(
                of_users, loss, adagrad, examples, log, hyper, places, credits, entries, first, e,
                scale, work, rights,
            )  # fmt: skip
            bias_value = _batch(
                matrix, last_row, value, bias_value, d, n, waiting, credits, bias_credits, work,
                rights, old_rights,
            )  # fmt: skip
            rights, old_rights = old_rights, rights
            waiting = n // RANK
            if adagrad:  # its only touch of the batch; what is pending is not to be shrunk
                weight = examples.weights[entries[e + 1] // log.items.shape[1]]
                l2 = weight * hyper.regularization
                _shrink_columns(matrix, last_row, d, width, work.diagonal, l2, True)
            if e < first or scale < SMALLEST_SCALE:
                _apply_pending(matrix, last_row, d, work, old_rights, 0, waiting)
                waiting = 0
                if not adagrad:
                    _shrink_columns(matrix, last_row, d, width, work.diagonal, scale, False)
                scale = one
        curvature.bias_values[row] = bias_value
