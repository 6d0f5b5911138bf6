"""Touches of an embedding row as vectors, four by four: what `curvature` multiplies with.

A batch is as many touches as fit four vectors, or one of more vectors in several groups of four.
Its *plan* is the scalars and the places in the log of all its vectors; a vector's numbers follow
from those, element by element.
"""

import math
from typing import NamedTuple

from ..structures import (
    CURVATURE,
    GRADIENT,
    ITEM_BIAS,
    N_CANDIDATES,
    SCORE,
    USER_BIAS,
    WEIGHT,
)
from .jit import cuda, inner_kernel
from .rank4 import RANK
from .simd import store4

__all__ = [
    "DECAY", "FLUSH", "N_NUMBERS", "N_PLACES", "OWN", "PLANS", "PUSH", "STEP", "TARGET", "Shape",
    "fetch", "plan", "put", "rate_of", "shape_of",
]  # fmt: skip

SMALLEST_SCALE = 1e-10
"""Shrinking gathered outside of M is put into it when it gets below this."""

PLANS = 3
"""Batches that are planned at a time."""

_ALL = 0xFFFFFFFF

# Numbers of a vector of a plan. Adagrad has in `LEFT` the l2 that its step shrinks by.
OWN, DECAY, STEP, PUSH, LEFT, RIGHT, BIAS, FLUSH, N_NUMBERS = range(9)
# Places of a vector of a plan, -1 for none.
ITEM, LESS, USER, TARGET, N_PLACES = range(5)


class Shape(NamedTuple):
    """How touches are cut into vectors; see `shape_of`."""

    of_users: bool
    bpr: bool
    slots: int  # vectors of a touch
    per: int  # touches of a batch: 4, 2 or 1
    shift: int  # vector v of a batch is of its touch v >> shift; if there is but one, of that
    groups: int  # of four vectors, of a batch


def shape_of(of_users: bool, bpr: bool, n_candidates: int, adagrad: bool) -> Shape:
    """Every touch has room for as many vectors as any may have."""
    slots = 1
    if of_users:
        slots = max(1, n_candidates - 1) if bpr else n_candidates
    slots += adagrad
    per = 1 if adagrad or slots > 2 else RANK // slots
    shift = {4: 0, 2: 1, 1: 2}[per]
    return Shape(of_users, bpr, slots, per, shift, -(-slots * per // RANK))


@inner_kernel
def _place_of_vector(shape, log, touches, e, number):
    """Entry of the touch and that of its vector `number`; the latter -1: it has not so many."""
    entry = touches.entries[e]
    if not shape.of_users:
        return entry, entry if number == 0 else -1
    n_candidates = int(log.numbers[entry, N_CANDIDATES])
    if shape.bpr and n_candidates > 1:
        return entry, entry + 1 + number if number + 1 < n_candidates else -1
    return entry, entry + number if number < n_candidates else -1


@inner_kernel
def plan(shape, adagrad, hyper, log, touches, first, e, scale, turn, work):
    """Plan the batch that begins with touch `e`, as number `turn` of the plans kept.

    Plain SGD's shrinking by l2, `scale`, is kept out of M. Where it is to be put into M behind the
    batch, as behind the last one, `FLUSH` says so. Returns the scale behind the batch, which only
    threads that plan know.
    """
    t, one, room = cuda.threadIdx.x, type(hyper.mean)(1), RANK * shape.groups
    before = behind = scale
    if not adagrad and t < 32:  # the warp that plans: a touch a lane, then the product of all
        mine = min(t >> shape.shift, shape.per - 1)
        shrink = one - one
        if e - mine >= first:
            shrink = hyper.learning_rate * log.numbers[touches.entries[e - mine], WEIGHT]
        keep = one - shrink * hyper.regularization
        for number in range(shape.per):
            if number == mine:
                before = behind
            behind *= cuda.shfl_sync(_ALL, keep, number << shape.shift)
    flush = one - one
    if behind < type(behind)(SMALLEST_SCALE) or e - shape.per < first:
        flush, behind = behind, one
    for s in range(t, room if t < 32 else 0, 32):
        mine = min(s >> shape.shift, shape.per - 1)
        numbers = work.numbers[N_NUMBERS * (turn * room + s) : N_NUMBERS * (turn * room + s + 1)]
        places = work.places[N_PLACES * (turn * room + s) : N_PLACES * (turn * room + s + 1)]
        for n in range(N_NUMBERS):
            numbers[n] = 0
        for n in range(N_PLACES):
            places[n] = -1
        if e - mine >= first:
            number = s - (mine << shape.shift)
            _describe(
                shape, adagrad, hyper, log, touches, e - mine, number, before, numbers, places
            )
        numbers[FLUSH] = flush
    return behind


@inner_kernel
def _describe(shape, adagrad, hyper, log, touches, e, number, scale, numbers, places):
    """Scalars and places of one vector of a touch."""
    one, rate, l2 = type(hyper.mean)(1), hyper.learning_rate, hyper.regularization
    entry, other = _place_of_vector(shape, log, touches, e, number)
    weight = log.numbers[entry, WEIGHT]
    slot = entry // log.items.shape[1]
    places[TARGET] = touches.places[e]
    if number >= shape.slots:
        return
    if adagrad:
        numbers[LEFT] = weight * l2
        if number == shape.slots - 1:  # the row itself, which carries its regularization
            numbers[OWN] = -weight * l2
            if shape.of_users:
                places[USER], numbers[BIAS] = slot, log.numbers[entry, USER_BIAS]
            else:
                places[ITEM], numbers[BIAS] = entry, log.numbers[entry, ITEM_BIAS]
            return
    if other < 0:
        return
    if not shape.of_users:
        places[USER] = slot
    else:
        places[ITEM] = other
        if shape.bpr:
            places[LESS] = entry
    numbers[BIAS] = 0 if shape.of_users and shape.bpr else 1
    push = weight * log.numbers[other, GRADIENT]
    bend = weight * log.numbers[other, CURVATURE]
    if shape.of_users and shape.bpr and other == entry:
        push = bend = type(push)(0)  # no negative was found: nothing to learn, only to shrink
    numbers[PUSH] = -bend
    if adagrad:
        numbers[OWN] = -push
        return
    shrink = rate * weight * l2
    keep = one - shrink
    numbers[OWN] = -push * (one + shrink / keep)
    numbers[DECAY] = -shrink / keep if number == 0 else type(push)(0)
    numbers[STEP] = push - bend * _along(shape, hyper, log, entry, other)
    numbers[LEFT] = rate * scale
    numbers[RIGHT] = one / (scale * keep)


@inner_kernel
def _along(shape, hyper, log, entry, other):
    """Product of a vector with the row: the score without what other rows add to it."""
    score = log.numbers[other, SCORE]
    if not shape.of_users:
        return score - hyper.mean - log.numbers[other, USER_BIAS]
    if not shape.bpr:
        return score - hyper.mean - log.numbers[other, ITEM_BIAS]
    own = log.numbers[entry, SCORE] - log.numbers[entry, ITEM_BIAS]
    return score - log.numbers[other, ITEM_BIAS] - own


# ---------------------------------------------------------------- vectors


@inner_kernel
def _element(log, places, numbers, at, f):
    """Input f of the vector planned at `at`; its bias for f = k."""
    k = log.user_rows.shape[1]
    item, less, user = (
        places[N_PLACES * at + ITEM], places[N_PLACES * at + LESS], places[N_PLACES * at + USER]
    )  # fmt: skip
    x = type(numbers[0])(0)
    if f >= k:
        return numbers[N_NUMBERS * at + BIAS]
    if user >= 0:
        x = log.user_rows[user, f]
    elif item >= 0:
        x = log.item_rows[item, f]
        if less >= 0:
            x -= log.item_rows[less, f]
    return x


@inner_kernel
def fetch(log, work, at, f):
    """Input f of the four vectors planned from `at` on."""
    places, numbers = work.places, work.numbers
    return (
        _element(log, places, numbers, at, f),
        _element(log, places, numbers, at + 1, f),
        _element(log, places, numbers, at + 2, f),
        _element(log, places, numbers, at + 3, f),
    )


@inner_kernel
def rate_of(of_users, hyper, log, touches, first, e, f):
    """Adagrad's D of a touch in input f, the bias for f = k."""
    zero = type(hyper.mean)(0)
    if e < first or f > log.user_rows.shape[1]:
        return zero
    entry = touches.entries[e]
    squares = log.user_squares[entry // log.items.shape[1], f] if of_users else (
        log.item_squares[entry, f]
    )  # fmt: skip
    # A sum of zero has not moved its coordinate yet (BPR: the user's bias, ever).
    if squares > zero:
        return hyper.learning_rate / (math.sqrt(squares) + hyper.epsilon)
    return zero


@inner_kernel
def put(adagrad, width, k, work, at, group, half, groups, f, x, rate):
    """Input f of the four vectors of a group to shared memory, scaled for either use."""
    numbers, vector = work.numbers, RANK * (width + 1)
    place = f if f < k else width
    left, right = group * vector + RANK * place, (half * groups + group) * vector + RANK * place
    if adagrad:
        store4(work.lefts, left, rate * x[0], rate * x[1], rate * x[2], rate * x[3])
        store4(work.rights, right, x[0], x[1], x[2], x[3])
        if group == 0:
            shrunk = numbers[N_NUMBERS * at + LEFT] * rate
            work.keeps[half * (width + 4) + place] = type(rate)(1) - shrunk
    else:
        a, b, c, d = (
            N_NUMBERS * at, N_NUMBERS * (at + 1), N_NUMBERS * (at + 2), N_NUMBERS * (at + 3)
        )  # fmt: skip
        store4(
            work.lefts, left, numbers[a + LEFT] * x[0], numbers[b + LEFT] * x[1],
            numbers[c + LEFT] * x[2], numbers[d + LEFT] * x[3],
        )  # fmt: skip
        store4(
            work.rights, right, numbers[a + RIGHT] * x[0], numbers[b + RIGHT] * x[1],
            numbers[c + RIGHT] * x[2], numbers[d + RIGHT] * x[3],
        )  # fmt: skip
