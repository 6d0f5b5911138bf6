"""Products of four vectors with a matrix, put right and credited: what `curvature` makes of them.

All four are multiplied by the matrix behind the batch. What a later touch's step would have done to
it follows from inner products of the vectors, and is put right afterwards, output by output.
"""

import numpy as np

from .jit import cuda, inner_kernel
from .plans import DECAY, N_SUMS, OWN, PUSH, STEP, TARGET, places_of, plan_of
from .rank4 import RANK
from .simd import WHOLE, load4, store4

__all__ = ["bias_held", "finish", "held", "sum_products"]

_ROOM = 16  # for the sums of a warp, a power of two
_NUMBERS = 4 * RANK  # of a plan that its products are put right with: OWN, DECAY, STEP, PUSH


@inner_kernel
def sum_products(threads, work, group, right):
    """Sums over inputs of a group: 4 of the bias's row with the lefts, 6 of rights and lefts.

    Of every warp, to be added up by whoever reads them. Pairs (q, r) are numbered as
    ``r (r - 1) / 2 + q``, from 4 on.
    """
    t, at, floats = cuda.threadIdx.x, work.at, work.floats
    sums = cuda.local.array(_ROOM, floats.dtype)
    for n in range(_ROOM):
        sums[n] = 0
    base = at.first + group * at.group
    for f in range(t, at.width + 1, threads):
        last = floats[np.uintp(at.last + f)]
        a, b, c, d = load4(floats, base + RANK * f)
        e, g, h, _ = load4(floats, right + RANK * f)
        sums[0] += last * a
        sums[1] += last * b
        sums[2] += last * c
        sums[3] += last * d
        sums[4] += e * b
        sums[5] += e * c
        sums[6] += g * c
        sums[7] += e * d
        sums[8] += g * d
        sums[9] += h * d
    # Sum n of the warp ends in lanes 2 n and 2 n + 1.
    lane = t % 32
    for step in range(4):
        bit, half = 16 >> step, _ROOM >> (step + 1)
        upper = lane & bit
        for n in range(half):
            mine, its = sums[n], sums[n + half]
            if upper:
                mine, its = its, mine
            sums[n] = mine + cuda.shfl_xor_sync(WHOLE, its, bit)
    total = sums[0] + cuda.shfl_xor_sync(WHOLE, sums[0], 1)
    if lane % 2 == 0 and lane // 2 < N_SUMS:
        floats[np.uintp(base + at.sums + t // 32 * N_SUMS + lane // 2)] = total


@inner_kernel
def _ends(shift, r):
    """Whether vector r is the last of its touch in its group."""
    return r + 1 == RANK or (r + 1) >> shift != r >> shift


@inner_kernel
def _held_by(credits, target, r):
    return credits[np.uintp(target), np.uintp(r)] if target >= 0 else credits.dtype.type(0)


@inner_kernel
def held(credits, work, group, turn, r):
    """What the targets of four vectors have been credited so far in output r."""
    zero = work.floats.dtype.type(0)
    if r >= credits.shape[1]:
        return zero, zero, zero, zero
    a, b, c, d = load4(work.places, places_of(group, turn) + RANK * TARGET)
    return (
        _held_by(credits, a, r), _held_by(credits, b, r),
        _held_by(credits, c, r), _held_by(credits, d, r),
    )  # fmt: skip


@inner_kernel
def bias_held(shift, bias_credits, work, group, turn):
    """Likewise of their biases: of vector q, in thread q, which if it is a touch's last credits it.

    The others' must not be read: of several groups the touch is the same, and credited by each.
    """
    if cuda.threadIdx.x < RANK and _ends(shift, cuda.threadIdx.x):
        places = places_of(group, turn) + RANK * TARGET
        target = work.places[np.uintp(places + cuda.threadIdx.x)]
        if target >= 0:
            return bias_credits[np.uintp(target)]
    return work.floats.dtype.type(0)


@inner_kernel
def _weigh(threads, shift, work, group, plan, sums):
    """The sums of four vectors; those of pairs as what the later lacks of the other.

    The vectors of one step all meet the M behind it.
    """
    at = work.at
    warps, zero = at.first + group * at.group + at.sums, work.floats.dtype.type(0)
    for n in range(N_SUMS):
        sums[n] = zero
    for warp in range(threads // 32):
        for n in range(0, N_SUMS, 4):
            a, b, c, d = load4(work.floats, warps + warp * N_SUMS + n)
            sums[n] += a
            sums[n + 1] += b
            sums[n + 2] += c
            sums[n + 3] += d
    a, b, c, _ = load4(work.floats, plan + RANK * PUSH)
    sums[4] *= a if shift < 1 else zero
    sums[5] *= a if shift < 2 else zero
    sums[6] *= b if shift < 2 else zero
    sums[7] *= a if shift < 2 else zero
    sums[8] *= b if shift < 2 else zero
    sums[9] *= c if shift < 1 else zero


@inner_kernel
def _put_right(shift, work, plan, lacks, y, value, totals):
    """Put one output of four products right, find what it credits, and leave it pending.

    The last vector of a touch has the touch's total. Returns M times the row behind it all.
    """
    numbers = cuda.local.array(_NUMBERS, work.floats.dtype)
    for n in range(4):
        a, b, c, d = load4(work.floats, plan + RANK * n)
        numbers[4 * n], numbers[4 * n + 1], numbers[4 * n + 2], numbers[4 * n + 3] = a, b, c, d
    total = type(value)(0)
    for r in range(RANK):
        for q in range(r):
            y[r] += lacks[RANK + r * (r - 1) // 2 + q] * y[q]
        if r >> shift << shift == r:
            total = type(value)(0)
        total += numbers[RANK * OWN + r] * y[r] + numbers[RANK * DECAY + r] * value
        value += numbers[RANK * STEP + r] * y[r]
        totals[r] = total
    for r in range(RANK):
        y[r] *= numbers[RANK * PUSH + r]
    return value


@inner_kernel
def _finish_bias(
    threads, shift, work, group, turn, plan, right, keep, sums, value, so_far, bias_credits
):  # fmt: skip
    """Credit the bias as output; its row of M takes four products in at once."""
    t, at, floats = cuda.threadIdx.x, work.at, work.floats
    y = cuda.local.array(RANK, floats.dtype)
    totals = cuda.local.array(RANK, floats.dtype)
    for r in range(RANK):
        y[r] = sums[r]
    value = _put_right(shift, work, plan, sums, y, value, totals)
    places = places_of(group, turn) + RANK * TARGET
    total, b, c, d = totals[0], totals[1], totals[2], totals[3]
    if t > 0:
        total = b if t == 1 else c if t == 2 else d
    if t < RANK and _ends(shift, t):
        target = work.places[np.uintp(places + t)]
        if target >= 0:
            bias_credits[np.uintp(target)] = so_far + total
    for f in range(t, at.width + 1, threads):
        place = np.uintp(at.last + f)
        last = floats[place]
        if keep >= 0:
            last *= floats[np.uintp(keep + f)]
        a, b, c, d = load4(floats, right + RANK * f)
        floats[place] = last + y[0] * a + y[1] * b + y[2] * c + y[3] * d
    return value


@inner_kernel
def _credit(shift, work, places, q, credits, r, total):
    """Output r of a touch's credit, if vector q is its last."""
    if _ends(shift, q):
        target = work.places[np.uintp(places + q)]
        if target >= 0:
            credits[np.uintp(target), r] = total


@inner_kernel
def _finish_rows(
    threads, shift, work, group, turn, plan, right, out, keep, lacks, so_far, credits
):  # fmt: skip
    """Credit the k outputs, and leave the products pending; the bias's column takes them in."""
    t, at, floats = cuda.threadIdx.x, work.at, work.floats
    y = cuda.local.array(RANK, floats.dtype)
    totals = cuda.local.array(RANK, floats.dtype)
    places = places_of(group, turn) + RANK * TARGET
    a, b, c, d = load4(floats, right + RANK * at.width)
    for r in range(t, credits.shape[1], threads):
        if group > 0 or r > t:
            so_far = held(credits, work, group, turn, r)
        y[0], y[1], y[2], y[3] = load4(floats, out + RANK * r)
        place = np.uintp(r)  # of its value
        floats[place] = _put_right(shift, work, plan, lacks, y, floats[place], totals)
        _credit(shift, work, places, 0, credits, place, so_far[0] + totals[0])
        _credit(shift, work, places, 1, credits, place, so_far[1] + totals[1])
        _credit(shift, work, places, 2, credits, place, so_far[2] + totals[2])
        _credit(shift, work, places, 3, credits, place, so_far[3] + totals[3])
        store4(floats, out + RANK * r, y[0], y[1], y[2], y[3])
        place = np.uintp(at.column + r)
        column = floats[place]
        if keep >= 0:
            column *= floats[np.uintp(keep + at.width)]
        floats[place] = column + y[0] * a + y[1] * b + y[2] * c + y[3] * d


@inner_kernel
def finish(
    adagrad, threads, shift, work, group, turn, half, bias_value, so_far, bias_so_far,
    credits, bias_credits,
):  # fmt: skip
    """Put four products right, credit them to their examples, and leave them pending.

    Returns the new value of the bias.
    """
    at = work.at
    plan = plan_of(work, group, turn)
    sums = cuda.local.array(N_SUMS, work.floats.dtype)
    _weigh(threads, shift, work, group, plan, sums)
    base = at.first + group * at.group
    right, out = base + at.rights + half * at.vector, base + at.pending + half * at.output
    keep = at.keeps + half * at.keep if adagrad and group == 0 else -1
    if group > 0:
        bias_so_far = bias_held(shift, bias_credits, work, group, turn)
    bias_value = _finish_bias(
        threads, shift, work, group, turn, plan, right, keep, sums, bias_value, bias_so_far,
        bias_credits,
    )  # fmt: skip
    _finish_rows(
        threads, shift, work, group, turn, plan, right, out, keep, sums, so_far, credits
    )  # fmt: skip
    return bias_value
