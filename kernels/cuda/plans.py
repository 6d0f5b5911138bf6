"""Touches of an embedding row as vectors, four by four: what `curvature` multiplies with.

A batch is as many touches as fit four vectors, or one of more vectors in several groups of four.
Its *plan* is the scalars and the places in the log of all its vectors; a vector's numbers follow
from those, element by element.

Indices known not to be negative are made unsigned: signed ones cost a comparison and a choice each.
"""

import math
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
from .jit import cuda, inner_kernel
from .rank4 import RANK
from .simd import WHOLE, load4, store4

__all__ = [
    "DECAY",
    "FLUSH",
    "N_SUMS",
    "OWN",
    "PLANS",
    "PUSH",
    "STEP",
    "TARGET",
    "Layout",
    "Shape",
    "Work",
    "fetch",
    "layout",
    "layout_of",
    "places_of",
    "plan",
    "plan_of",
    "put",
    "rate_of",
    "shape_of",
    "sizes",
]  # fmt: skip

SMALLEST_SCALE = 1e-10
"""Shrinking gathered outside of M is put into it when it gets below this."""

PLANS = 3
"""Batches that are planned at a time."""

N_SUMS = 12
"""Of a warp and a group: 4 with the bias's row, 6 of pairs, in whole loads of four."""


# Numbers of a vector of a plan. Adagrad has in `LEFT` the l2 that its step shrinks by.
OWN, DECAY, STEP, PUSH, LEFT, RIGHT, BIAS, FLUSH, _N_NUMBERS = range(9)
# Places of a vector of a plan, -1 for none.
ITEM, LESS, USER, TARGET, _N_PLACES = range(5)


class Layout(NamedTuple):
    """Where things begin among the numbers of a block, and how long they are.

    First M times the row, then what follows; from `first` on come the groups of four vectors, each
    beginning with its lefts: with a constant width all is constant but for the group. Vectors are
    interleaved, see `rank4`. Batches take turns at the halves, plans at the thirds.
    """

    width: int
    column: int  # of M: of the bias as input
    last: int  # row of M: of the bias as output
    keeps: int  # 2: Adagrad's shrinking of every column
    keep: int  # numbers of one
    first: int  # group
    group: int  # numbers of one
    vector: int  # numbers of four vectors of width + 1 inputs, the bias last
    output: int  # likewise of width outputs
    rights: int  # 2, within a group: x, joined with what its product leaves pending
    pending: int  # 2, within a group: y, then y times its push
    sums: int  # within a group: of every warp, see `curvature`
    plans: int  # 3, within a group: number n of vector q at 4 n + q


class Work(NamedTuple):
    """What a block keeps beside its matrix."""

    floats: Any
    places: Any  # groups, 3: place n of vector q at 4 n + q (int32)
    at: Layout


def layout_of(width: int, threads: int) -> Layout:
    """The layout for matrices of up to `width` numbers a side."""
    vector, output, keep = RANK * (width + 1), RANK * width, width + 4
    column, last = width, 2 * width
    keeps = last + keep
    pending = 3 * vector
    sums = pending + 2 * output
    plans = sums + threads // 32 * N_SUMS
    group = plans + PLANS * RANK * _N_NUMBERS
    return Layout(
        width, column, last, keeps, keep, keeps + 2 * keep, group, vector, output, vector, pending,
        sums, plans,
    )  # fmt: skip


layout = inner_kernel(layout_of)


def sizes(width: int, groups: int, threads: int) -> tuple[int, int]:
    """Numbers and places that a block keeps."""
    at = layout_of(width, threads)
    return at.first + groups * at.group, groups * PLANS * RANK * _N_PLACES


@inner_kernel
def plan_of(work, group, turn):
    """Where the numbers of four vectors of a plan begin."""
    return work.at.first + group * work.at.group + work.at.plans + turn * (RANK * _N_NUMBERS)


@inner_kernel
def places_of(group, turn):
    """Where the places of four vectors of a plan begin."""
    return (group * PLANS + turn) * (RANK * _N_PLACES)


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
    batch, as behind the last one, it is `FLUSH`, which otherwise is 1. Returns the scale behind the
    batch, which only threads that plan know.
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
            behind *= cuda.shfl_sync(WHOLE, keep, number << shape.shift)
    flush = one
    if behind < type(behind)(SMALLEST_SCALE) or e - shape.per < first:
        flush, behind = behind, one
    for s in range(t, room if t < 32 else 0, 32):
        mine, q = min(s >> shape.shift, shape.per - 1), s % RANK
        numbers, places = plan_of(work, s // RANK, turn) + q, places_of(s // RANK, turn) + q
        for n in range(_N_NUMBERS):
            work.floats[np.uintp(numbers + RANK * n)] = 0
        for n in range(_N_PLACES):
            work.places[np.uintp(places + RANK * n)] = -1
        if e - mine >= first:
            number = s - (mine << shape.shift)
            _describe(
                shape, adagrad, hyper, log, touches, e - mine, number, before,
                work.floats[numbers:], work.places[places:],
            )  # fmt: skip
        work.floats[np.uintp(numbers + RANK * FLUSH)] = flush
    return behind


@inner_kernel
def _describe(shape, adagrad, hyper, log, touches, e, number, scale, numbers, places):
    """Scalars and places of one vector of a touch."""
    one, rate, l2 = type(hyper.mean)(1), hyper.learning_rate, hyper.regularization
    entry, other = _place_of_vector(shape, log, touches, e, number)
    weight = log.numbers[entry, WEIGHT]
    slot = entry // log.items.shape[1]
    places[RANK * TARGET] = touches.places[e]
    if number >= shape.slots:
        return
    if adagrad:
        numbers[RANK * LEFT] = weight * l2
        if number == shape.slots - 1:  # the row itself, which carries its regularization
            numbers[RANK * OWN] = -weight * l2
            bias = log.numbers[entry, USER_BIAS if shape.of_users else ITEM_BIAS]
            numbers[RANK * BIAS] = bias
            if shape.of_users:
                places[RANK * USER] = slot
            else:
                places[RANK * ITEM] = entry
            return
    if other < 0:
        return
    if not shape.of_users:
        places[RANK * USER] = slot
    else:
        places[RANK * ITEM] = other
        if shape.bpr:
            places[RANK * LESS] = entry
    numbers[RANK * BIAS] = 0 if shape.of_users and shape.bpr else 1
    push = weight * log.numbers[other, GRADIENT]
    bend = weight * log.numbers[other, CURVATURE]
    if shape.of_users and shape.bpr and other == entry:
        push = bend = type(push)(0)  # no negative was found: nothing to learn, only to shrink
    numbers[RANK * PUSH] = -bend
    if adagrad:
        numbers[RANK * OWN] = -push
        return
    shrink = rate * weight * l2
    keep = one - shrink
    numbers[RANK * OWN] = -push * (one + shrink / keep)
    numbers[RANK * DECAY] = -shrink / keep if number == 0 else type(push)(0)
    numbers[RANK * STEP] = push - bend * _along(shape, hyper, log, entry, other)
    numbers[RANK * LEFT] = rate * scale
    numbers[RANK * RIGHT] = one / (scale * keep)


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
def _element(log, item, less, user, f):
    """Element f of the vector with these places."""
    x = log.user_rows.dtype.type(0)
    if user >= 0:
        x = log.user_rows[np.uintp(user), f]
    elif item >= 0:
        x = log.item_rows[np.uintp(item), f]
        if less >= 0:
            x -= log.item_rows[np.uintp(less), f]
    return x


@inner_kernel
def fetch(log, work, group, turn, f):
    """Input f of four vectors of a plan; their biases for f = k."""
    if f >= log.user_rows.shape[1]:
        return load4(work.floats, plan_of(work, group, turn) + RANK * BIAS)
    places, g = places_of(group, turn), np.uintp(f)
    items, lesses, users = (
        load4(work.places, places + RANK * ITEM), load4(work.places, places + RANK * LESS),
        load4(work.places, places + RANK * USER),
    )  # fmt: skip
    return (
        _element(log, items[0], lesses[0], users[0], g),
        _element(log, items[1], lesses[1], users[1], g),
        _element(log, items[2], lesses[2], users[2], g),
        _element(log, items[3], lesses[3], users[3], g),
    )


@inner_kernel
def rate_of(shape, hyper, log, work, turn, f):
    """Adagrad's D of a plan's touch in input f, the bias for f = k: by the row's own vector."""
    zero, g = type(hyper.mean)(0), np.uintp(f)
    own = shape.slots - 1
    kind = USER if shape.of_users else ITEM
    place = work.places[np.uintp(places_of(own // RANK, turn) + RANK * kind + own % RANK)]
    if f > log.user_rows.shape[1] or place < 0:
        return zero
    place = np.uintp(place)
    squares = log.user_squares[place, g] if shape.of_users else log.item_squares[place, g]
    # A sum of zero has not moved its coordinate yet (BPR: the user's bias, ever).
    if squares > zero:
        return hyper.learning_rate / (math.sqrt(squares) + hyper.epsilon)
    return zero


@inner_kernel
def put(adagrad, k, work, group, turn, half, f, x, rate):
    """Input f of a plan's four vectors to the lefts and a half of the rights, scaled for each."""
    at, floats, numbers = work.at, work.floats, plan_of(work, group, turn)
    place = f if f < k else at.width
    left = at.first + group * at.group + RANK * place
    right = left + at.rights + half * at.vector
    a, b, c, d = load4(floats, numbers + RANK * LEFT)
    if adagrad:
        if group == 0:
            floats[np.uintp(at.keeps + half * at.keep + place)] = type(rate)(1) - a * rate
        store4(floats, left, rate * x[0], rate * x[1], rate * x[2], rate * x[3])
        store4(floats, right, x[0], x[1], x[2], x[3])
    else:
        store4(floats, left, a * x[0], b * x[1], c * x[2], d * x[3])
        a, b, c, d = load4(floats, numbers + RANK * RIGHT)
        store4(floats, right, a * x[0], b * x[1], c * x[2], d * x[3])
