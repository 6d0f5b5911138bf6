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
from .lanes import LANES
from .losses import BPR
from .rank4 import PAIRS, RANK, finish, gram, put_scaled, shrink, sweep
from .simd import prefetch

__all__ = ["roll_back_rows"]

SMALLEST_SCALE = 1e-10
"""Shrinking gathered outside of M is put into it when it gets below this."""

NEGLIGIBLE = 1e8
"""Entries of M below so many times the least normal number are taken for zero (see `_shrink`)."""

PREFETCH_TOUCHES = 8


class _Work(NamedTuple):
    """Room for one batch of vectors and for what the batch before it has left pending."""

    lefts: Any  # (room, stride): D x, multiplied by M
    rights: Any  # (room, stride): x, joined with what its product leaves pending
    old_rights: Any  # (room, stride): those of the batch before
    products: Any  # (room, width): y
    pending: Any  # (room, width): y times its push, to be joined with its right vector
    bias_pending: Any  # (room,)
    nothing: Any  # (4, stride): zeros
    no_push: Any  # (4, width): zeros
    no_bias_push: Any  # (4,): zeros
    trash: Any  # (width + 1,): credits of nobody
    diagonal: Any  # (d,): Adagrad's D
    inner: Any  # (4 + 6,): from `gram`
    steps: Any  # (room,): number of every vector's step in the batch, -1 for none
    targets: Any  # (room,): where its credit goes, -1 for nowhere
    scalars: Any  # (room, 4): own, decay, step, push of `finish`


@kernel
def _new_work(most, k, width, dtype):
    room = (max(most, RANK) + RANK - 1) // RANK * RANK
    return _Work(
        lefts=np.zeros((room, width + LANES), dtype),
        rights=np.zeros((room, width + LANES), dtype),
        old_rights=np.zeros((room, width + LANES), dtype),
        products=np.empty((room, width), dtype),
        pending=np.empty((room, width), dtype),
        bias_pending=np.zeros(room, dtype),
        nothing=np.zeros((RANK, width + LANES), dtype),
        no_push=np.zeros((RANK, width), dtype),
        no_bias_push=np.zeros(RANK, dtype),
        trash=np.zeros(width + 1, dtype),
        diagonal=np.empty(k + 1, dtype),
        inner=np.empty(RANK + len(PAIRS), dtype),
        steps=np.empty(room, np.int64),
        targets=np.empty(room, np.int64),
        scalars=np.empty((room, 4), dtype),
    )


@inner_kernel(forceinline=True)
def _slot(log, entry):
    """Place in the log of the step of a candidate's entry."""
    n_candidates = log.items.shape[1]
    return entry if n_candidates == 1 else entry // n_candidates


@inner_kernel(forceinline=True)
def _count_vectors(of_users, loss, adagrad, n_candidates):
    """Vectors x of one touch; at least one, if need be zero, to carry its regularization."""
    count = 1
    if of_users:
        count = max(1, n_candidates - 1) if loss == BPR else n_candidates
    return count + 1 if adagrad else count


@inner_kernel(forceinline=True)
def _put(row, bias, scales, adagrad, work, rights, n):
    """Make ``(row, bias)`` vector n, scaled for either use."""
    k = row.shape[0]
    if adagrad:
        left, right = work.lefts[n], rights[n]
        for f in range(k):
            left[f] = work.diagonal[f] * row[f]
            right[f] = row[f]
        left[k] = work.diagonal[k] * bias
        right[k] = bias
    else:
        put_scaled(row, scales[0], work.lefts, scales[1], rights, n)
        work.lefts[n, k] = scales[0] * bias
        rights[n, k] = scales[1] * bias


@inner_kernel
def _put_difference(row, other, scales, adagrad, work, rights, n):
    """Make ``row - other`` vector n; the biases cancel."""
    k = row.shape[0]
    left, right = work.lefts[n], rights[n]
    for f in range(k):
        x = row[f] - other[f]
        left[f] = (work.diagonal[f] if adagrad else scales[0]) * x
        right[f] = x if adagrad else scales[1] * x
    left[k] = 0
    right[k] = 0


@inner_kernel(forceinline=True)
def _put_touch(of_users, loss, adagrad, hyper, log, entry, first, behind, n, work, rights, scales):
    """Make the vectors of one touch, and the scalars that go with them, from vector n on.

    `entry` is the touched candidate's; its vectors are made of the entries ``first`` to
    ``behind - 1``. Returns the number of vectors.
    """
    zero, one = type(hyper.mean)(0), type(hyper.mean)(1)
    slot = _slot(log, entry)
    weight = log.numbers[entry, WEIGHT]
    shrink = hyper.learning_rate * weight * hyper.regularization
    start = n
    for other in range(first, behind):
        numbers = log.numbers[other]
        gradient, curvature = numbers[GRADIENT], numbers[CURVATURE]
        if not of_users:
            _put(log.user_rows[slot], one, scales, adagrad, work, rights, n)
            along = numbers[SCORE] - hyper.mean - numbers[USER_BIAS]
        elif loss == BPR:
            _put_difference(
                log.item_rows[other], log.item_rows[entry], scales, adagrad, work, rights, n
            )
            along = numbers[SCORE] - numbers[ITEM_BIAS]
            along -= log.numbers[entry, SCORE] - log.numbers[entry, ITEM_BIAS]
            if other == entry:  # no negative was found: nothing to learn, only to shrink
                gradient, curvature = zero, zero
        else:
            _put(log.item_rows[other], one, scales, adagrad, work, rights, n)
            along = numbers[SCORE] - hyper.mean - numbers[ITEM_BIAS]
        push, bend = weight * gradient, weight * curvature
        scalars = work.scalars[n]
        scalars[3] = -bend
        if adagrad:
            scalars[0], scalars[1], scalars[2] = -push, zero, zero
        else:
            keep = one - shrink
            scalars[0] = -push * (one + shrink / keep)
            scalars[1] = -shrink / keep if n == start else zero
            scalars[2] = push - bend * along
        n += 1
    if adagrad:
        if of_users:
            _put(log.user_rows[slot], log.numbers[entry, USER_BIAS], scales, True, work, rights, n)
        else:
            bias = log.numbers[entry, ITEM_BIAS]
            _put(log.item_rows[entry], bias, scales, True, work, rights, n)
        scalars = work.scalars[n]
        scalars[0], scalars[1], scalars[2] = -weight * hyper.regularization, zero, zero
        scalars[3] = zero
        n += 1
    return n


@inner_kernel
def _set_diagonal(of_users, hyper, log, entry, diagonal):
    squares = log.user_squares[_slot(log, entry)]
    if not of_users:
        squares = log.item_squares[entry]
    for f in range(diagonal.shape[0]):
        # A sum of zero has not moved its coordinate yet (BPR: the user's bias, ever).
        moved = squares[f] > 0
        diagonal[f] = hyper.learning_rate / (np.sqrt(squares[f]) + hyper.epsilon) if moved else 0


@inner_kernel(forceinline=True)
def _prefetch_touch(of_users, log, entry):
    prefetch(log.numbers[entry], 0)
    row = log.item_rows[entry] if of_users else log.user_rows[_slot(log, entry)]
    for f in range(0, row.shape[0], 64 // row.itemsize):
        prefetch(row, f)


@inner_kernel(forceinline=True)
def _prefetch_credits(touches, first, e, credits):
    """Ask for the credits of the next batch: apart from its vectors, the queue is short."""
    for ahead in range(max(first, e - RANK + 1), e + 1):
        place = touches.places[ahead]
        if place >= 0:
            for f in range(0, credits.shape[1], 64 // credits.itemsize):
                prefetch(credits[place], f)


@inner_kernel(forceinline=True)
def _gather(of_users, loss, adagrad, log, hyper, touches, first, e, scale, work, rights):
    """Fill a batch with whole touches, from number `e` down: (vectors, next number, scale)."""
    one, rate = type(hyper.mean)(1), hyper.learning_rate
    n = n_steps = 0
    while e >= first:
        entry = touches.entries[e]
        n_candidates = int(log.numbers[entry, N_CANDIDATES])
        count = _count_vectors(of_users, loss, adagrad, n_candidates)
        if n > 0 and (adagrad or n + count > RANK):
            break
        _prefetch_touch(of_users, log, touches.entries[max(first, e - PREFETCH_TOUCHES)])
        keep = one - rate * log.numbers[entry, WEIGHT] * hyper.regularization
        if adagrad:
            _set_diagonal(of_users, hyper, log, entry, work.diagonal)
        scales = rate * scale, one / (scale * keep)
        start, behind = entry, entry + 1
        if of_users:
            behind = entry + n_candidates
            start = entry + 1 if loss == BPR and n_candidates > 1 else entry
        end = _put_touch(
            of_users, loss, adagrad, hyper, log, entry, start, behind, n, work, rights, scales
        )
        for r in range(n, end):
            work.steps[r], work.targets[r] = n_steps, touches.places[e]
        if not adagrad:
            scale *= keep
        n = end
        n_steps += 1
        e -= 1
    while n % RANK:
        left, right = work.lefts[n], rights[n]
        for f in range(left.shape[0]):
            left[f] = 0
            right[f] = 0
        for number in range(4):
            work.scalars[n, number] = 0
        work.steps[n], work.targets[n] = -1, -1
        n += 1
    return n, e, scale


@inner_kernel(forceinline=True)
def _apply_pending(matrix, last_row, work, rights, start, stop):
    """Join pending groups with their right vectors and add them to M."""
    nothing = work.nothing
    stride = nothing.shape[1]
    for g in range(start, stop):
        sweep(matrix, work.pending, rights, g, nothing, work.products, 0)
        gram(last_row, work.bias_pending, rights, g, nothing, nothing, 0, stride, work.inner)


@inner_kernel(forceinline=True)
def _batch(
    matrix, last_row, value, bias_value, n, waiting, touches, first, e, credits, bias_credits,
    work, rights, old_rights,
):  # fmt: skip
    """Multiply, correct and credit the n vectors of a batch; returns the new bias value."""
    stride = work.lefts.shape[1]
    _apply_pending(matrix, last_row, work, old_rights, 0, waiting - 1)
    # The idle group of zeros stands in where nothing is pending. All products come before the
    # first `finish`, which overwrites what is pending.
    for g in range(n // RANK):
        if g == 0 and waiting > 0:
            sweep(
                matrix, work.pending, old_rights, waiting - 1, work.lefts, work.products, g
            )  # fmt: skip
        else:
            sweep(matrix, work.no_push, rights, 0, work.lefts, work.products, g)
    _prefetch_credits(touches, first, e, credits)
    for g in range(n // RANK):
        if g == 0 and waiting > 0:
            gram(
                last_row, work.bias_pending, old_rights, waiting - 1, work.lefts, rights, g, stride,
                work.inner,
            )  # fmt: skip
        else:
            gram(last_row, work.no_bias_push, rights, 0, work.lefts, rights, g, stride, work.inner)
        bias_value = finish(
            work.products, work.pending, work.bias_pending, g, value, bias_value, work.inner,
            work.scalars, work.steps, work.targets, credits, bias_credits, work.trash,
        )  # fmt: skip
    return bias_value


@inner_kernel
def _shrink(matrix, last_row, value, scale, negligible):
    """``M *= scale``, and what has all but vanished becomes zero.

    Under a popular item M decays for tens of thousands of touches. Arithmetic on what then lies
    below the least normal number is twenty times slower, and shows in no credit.
    """
    for f in range(matrix.shape[0]):
        shrink(matrix[f], scale, negligible)
    shrink(last_row, scale, negligible)
    shrink(value, type(scale)(1), negligible)


@inner_kernel
def _shrink_columns(matrix, last_row, l2, diagonal):
    """``M *= 1 - l2 * diagonal``, column by column."""
    for f in range(matrix.shape[0]):
        keep = type(l2)(1) - l2 * diagonal[f]
        put_scaled(matrix[f], keep, matrix, keep, matrix, f)
        last_row[f] *= keep


@inner_kernel
def _roll_back_row(
    curvature, touches, of_users, log, hyper, loss, credits, bias_credits, negligible, row, work
):  # fmt: skip
    first, e = touches.pointers[row], touches.pointers[row + 1] - 1
    matrix, last_row = curvature.matrices[row], curvature.last_rows[row]
    value, bias_value = curvature.values[row], curvature.bias_values[row]
    rights, old_rights = work.rights, work.old_rights
    adagrad = log.user_squares.shape[0] > 0
    one = type(hyper.mean)(1)
    scale = one
    waiting = 0  # groups of pending vectors
    while e >= first:
        n, e, scale = _gather(
            of_users, loss, adagrad, log, hyper, touches, first, e, scale, work, rights
        )
        bias_value = _batch(
            matrix, last_row, value, bias_value, n, waiting, touches, first, e, credits,
            bias_credits, work, rights, old_rights,
        )  # fmt: skip
        rights, old_rights = old_rights, rights
        waiting = n // RANK
        if adagrad:  # its only touch of the batch; what is pending is not to be shrunk
            l2 = log.numbers[touches.entries[e + 1], WEIGHT] * hyper.regularization
            _shrink_columns(matrix, last_row, l2, work.diagonal)
        if e < first or scale < SMALLEST_SCALE:
            _apply_pending(matrix, last_row, work, old_rights, 0, waiting)
            waiting = 0
            _shrink(matrix, last_row, value, scale, negligible)
            scale = one
    curvature.bias_values[row] = bias_value


@kernel
def roll_back_rows(
    curvature, touches, of_users, log, hyper, loss, credits, bias_credits, start, stop
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
    log : Log
        With sums of squares: Adagrad.
    hyper : Hyper
        Of the stage's epoch.
    loss : {SQUARED, LOGISTIC, BPR}
    credits : (m, k)
        Changes of row, in the direction of the update, added to.
    bias_credits : (m,)
        Likewise, of the biases.
    start, stop : int

    Notes
    -----
    O(k^2) for every touch; with plain SGD 4 k^2 floating-point operations.
    """
    most = log.items.shape[1] + 1
    work = _new_work(most, credits.shape[1], curvature.values.shape[1], credits.dtype)
    tiny = np.finfo(credits.dtype).tiny
    negligible = type(tiny)(NEGLIGIBLE * tiny)
    for row in range(start, stop):
        _roll_back_row(
            curvature, touches, of_users, log, hyper, loss, credits, bias_credits, negligible, row,
            work,
        )  # fmt: skip
