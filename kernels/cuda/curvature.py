"""Curvature Rollback, a block for every embedding row: twin of `kernels.cpu.curvature`.

See there for the recursion, and `rank4` for the matrix, which a block keeps in registers over all
touches of a stage. Vectors go through it in batches of as many touches as fit four vectors, a
single touch of more vectors in several groups of four. Three batches are on their way at a time:

    batch i      is multiplied, put right by its inner products, and credited
    batch i + 1  has its rows fetched while batch i is multiplied, and is put in shared memory
    batch i + 2  has its steps looked up in the log, and becomes a plan: scalars and places

The bias of outputs and that of inputs stand apart from the matrix, so that k, not k + 1, is what is
padded to 16, 32, 64 or 128.

Of a touch 4 k^2 floating-point operations are asked, and 4 k numbers are moved: the row it met, its
credit there and back, a cache line of scalars. At k = 64 arithmetic takes eight times as
long as the bytes; with the 2 * 64 multiply-adds of the bias and what the sums take, about half of
the float32 rate is the most to expect of rows of equal length, and the longest row is the least
time a stage can take: rows should come longest first.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from . import memory
from .jit import cuda, inner_kernel, kernel, launch, processors
from .losses import BPR
from .plans import (
    DECAY,
    FLUSH,
    N_NUMBERS,
    N_PLACES,
    OWN,
    PLANS,
    PUSH,
    STEP,
    TARGET,
    fetch,
    plan,
    put,
    rate_of,
    shape_of,
)
from .rank4 import RANK, Matrix, in_memory, in_registers
from .simd import load4, store4

__all__ = ["roll_back_rows"]

_SHARED = 48 * 1024
_WIDTHS = (16, 32, 64, 128)
_ALL = 0xFFFFFFFF
_SUMS = 12  # 10, in whole loads of four
_ROOM = 16  # for them, a power of two


class _Work(NamedTuple):
    """What a block keeps beside its matrix; batches take turns at the halves, plans at the thirds.

    Interleaved vectors of width + 1 inputs, the bias last, or of width outputs: see `rank4`.
    """

    lefts: Any  # groups: D x, multiplied by M
    rights: Any  # 2, groups: x, joined with what its product leaves pending
    pending: Any  # 2, groups: y, then y times its push
    values: Any  # M times the row
    column: Any  # of M: of the bias as input
    last: Any  # row of M: of the bias as output
    keeps: Any  # 2: Adagrad's shrinking of every column
    sums: Any  # groups, warps, 12: see `_sum_products`
    numbers: Any  # 3, vectors, 8: the plans
    places: Any  # 3, vectors, 4 (int64)


def _sizes(width: int, groups: int, threads: int) -> tuple[int, int]:
    """Numbers in the arrays of `_Work`, and places."""
    vectors = RANK * groups * (3 * (width + 1) + 2 * width)
    plans = PLANS * RANK * groups
    more = 2 * width + 3 * (width + 4) + groups * (threads // 32) * _SUMS
    return vectors + more + plans * N_NUMBERS, plans * N_PLACES


@inner_kernel
def _cut(floats, ints, width, groups, threads):
    """The arrays of `_Work` as views of two."""
    a = groups * RANK * (width + 1)
    b = a + 2 * groups * RANK * (width + 1)
    c = b + 2 * groups * RANK * width
    d = c + width
    e = d + width
    f = e + width + 4
    g = f + 2 * (width + 4)
    h = g + groups * (threads // 32) * _SUMS
    return _Work(
        floats[:a], floats[a:b], floats[b:c], floats[c:d], floats[d:e], floats[e:f], floats[f:g],
        floats[g:h], floats[h:], ints,
    )  # fmt: skip


@inner_kernel
def _sum_products(width, threads, work, group, right):
    """Sums over inputs of a group: 4 of the bias's row with the lefts, 6 of rights and lefts.

    Of every warp, to be added up by whoever reads them. Pairs (q, r) are numbered as
    ``r (r - 1) / 2 + q``, from 4 on.
    """
    t = cuda.threadIdx.x
    sums = cuda.local.array(_ROOM, work.lefts.dtype)
    for n in range(_ROOM):
        sums[n] = 0
    left = group * RANK * (width + 1)
    for f in range(t, width + 1, threads):
        x, z = load4(work.lefts, left + RANK * f), load4(work.rights, right + RANK * f)
        for q in range(RANK):
            sums[q] += work.last[f] * x[q]
        for r in range(1, RANK):
            for q in range(r):
                sums[RANK + r * (r - 1) // 2 + q] += z[q] * x[r]
    # Sum n of the warp ends in lanes 2 n and 2 n + 1.
    lane = t % 32
    for step in range(4):
        bit, half = 16 >> step, _ROOM >> (step + 1)
        upper = lane & bit
        for n in range(half):
            mine, its = sums[n], sums[n + half]
            if upper:
                mine, its = its, mine
            sums[n] = mine + cuda.shfl_xor_sync(_ALL, its, bit)
    total = sums[0] + cuda.shfl_xor_sync(_ALL, sums[0], 1)
    if lane % 2 == 0 and lane // 2 < _SUMS:
        work.sums[(group * (threads // 32) + t // 32) * _SUMS + lane // 2] = total


@inner_kernel
def _held(credits, places, at, r):
    """What the targets of four vectors have been credited so far in output r."""
    zero = type(credits[0, 0])(0)
    a, b, c, d = (
        places[N_PLACES * at + TARGET], places[N_PLACES * (at + 1) + TARGET],
        places[N_PLACES * (at + 2) + TARGET], places[N_PLACES * (at + 3) + TARGET],
    )  # fmt: skip
    if r >= credits.shape[1]:
        return zero, zero, zero, zero
    return (
        credits[a, r] if a >= 0 else zero,
        credits[b, r] if b >= 0 else zero,
        credits[c, r] if c >= 0 else zero,
        credits[d, r] if d >= 0 else zero,
    )


@inner_kernel
def _bias_held(bias_credits, places, at):
    """Likewise of their biases: of vector q, in thread q."""
    if cuda.threadIdx.x < RANK:
        target = places[N_PLACES * (at + cuda.threadIdx.x) + TARGET]
        if target >= 0:
            return bias_credits[target]
    return type(bias_credits[0])(0)


@inner_kernel
def _finish(
    width, threads, shift, adagrad, work, at, group, right, out, keep, bias_value, held, bias_held,
    credits, bias_credits,
):  # fmt: skip
    """Put four products right, credit them to their examples, and leave them pending.

    The bias's row and column of M take the four in at once. Returns the new value of the bias.
    """
    t, k, number = cuda.threadIdx.x, credits.shape[1], type(bias_value)
    sums = cuda.local.array(_SUMS, work.lefts.dtype)
    own = cuda.local.array(RANK, work.lefts.dtype)
    decay = cuda.local.array(RANK, work.lefts.dtype)
    step = cuda.local.array(RANK, work.lefts.dtype)
    push = cuda.local.array(RANK, work.lefts.dtype)
    y = cuda.local.array(RANK, work.lefts.dtype)
    for n in range(_SUMS):
        sums[n] = 0
    for warp in range(threads // 32):
        for part in range(_SUMS // 4):
            four = load4(work.sums, (group * (threads // 32) + warp) * _SUMS + 4 * part)
            for n in range(4):
                sums[4 * part + n] += four[n]
    for q in range(RANK):
        plan_of = N_NUMBERS * (at + q)
        own[q], decay[q] = work.numbers[plan_of + OWN], work.numbers[plan_of + DECAY]
        step[q], push[q] = work.numbers[plan_of + STEP], work.numbers[plan_of + PUSH]
    for r in range(1, RANK):
        for q in range(r):
            # What vector r lacks of q; the vectors of one step all meet the M behind it.
            together = q >> shift == r >> shift
            sums[RANK + r * (r - 1) // 2 + q] *= number(0) if together else push[q]
    total = number(0)
    for r in range(RANK):
        y[r] = sums[r]
        for q in range(r):
            y[r] += sums[RANK + r * (r - 1) // 2 + q] * y[q]
        if r >> shift << shift == r:
            total = number(0)
        total += own[r] * y[r] + decay[r] * bias_value
        bias_value += step[r] * y[r]
        if t == r and (r + 1 == RANK or (r + 1) >> shift != r >> shift):
            target = work.places[N_PLACES * (at + r) + TARGET]
            if target >= 0:
                bias_credits[target] = bias_held + total
    b0, b1, b2, b3 = push[0] * y[0], push[1] * y[1], push[2] * y[2], push[3] * y[3]
    for f in range(t, width + 1, threads):
        x = load4(work.rights, right + RANK * f)
        last = work.last[f]
        if adagrad and group == 0:
            last *= work.keeps[keep + f]
        work.last[f] = last + b0 * x[0] + b1 * x[1] + b2 * x[2] + b3 * x[3]
    x = load4(work.rights, right + RANK * width)
    r = t
    while r < k:
        found = load4(work.pending, out + RANK * r)
        value, total = work.values[r], number(0)
        for n in range(RANK):
            y[n] = found[n]
            for q in range(n):
                y[n] += sums[RANK + n * (n - 1) // 2 + q] * y[q]
            if n >> shift << shift == n:
                total = number(0)
            total += own[n] * y[n] + decay[n] * value
            value += step[n] * y[n]
            if n + 1 == RANK or (n + 1) >> shift != n >> shift:
                target = work.places[N_PLACES * (at + n) + TARGET]
                if target >= 0:
                    credits[target, r] = held[n] + total
        for n in range(RANK):
            y[n] *= push[n]
        work.values[r] = value
        store4(work.pending, out + RANK * r, y[0], y[1], y[2], y[3])
        column = work.column[r]
        if adagrad and group == 0:
            column *= work.keeps[keep + width]
        work.column[r] = column + y[0] * x[0] + y[1] * x[1] + y[2] * x[2] + y[3] * x[3]
        r += threads
        held = _held(credits, work.places, at, r)
    return bias_value


@inner_kernel
def _enter(width, threads, k, curvature, row, floats, n_floats, work):
    """Clear shared memory, padding and all, and load what stands beside the matrix."""
    t = cuda.threadIdx.x
    cuda.syncthreads()
    for n in range(t, n_floats, threads):
        floats[n] = 0
    cuda.syncthreads()
    for r in range(t, k, threads):
        work.values[r] = curvature.values[row, r]
        work.column[r] = curvature.matrices[row, k, r]
        work.last[r] = curvature.last_rows[row, r]
    if t == 0:
        work.last[width] = curvature.last_rows[row, k]
    cuda.syncthreads()


@inner_kernel
def _leave(width, threads, k, curvature, row, bias_value, work):
    t = cuda.threadIdx.x
    cuda.syncthreads()
    for r in range(t, k, threads):
        curvature.values[row, r] = work.values[r]
        curvature.matrices[row, k, r] = work.column[r]
        curvature.last_rows[row, r] = work.last[r]
    if t == 0:
        curvature.last_rows[row, k] = work.last[width]
        curvature.bias_values[row] = bias_value


@functools.cache
def _walk(matrix: Matrix, width: int, adagrad: bool) -> Any:
    """The function that takes one row back over its touches."""
    threads = matrix.threads
    late = threads > 64  # rows fetched ahead would not fit the registers of eight warps
    scale_tile, shrink, update, multiply = (
        matrix.scale, matrix.shrink, matrix.update, matrix.multiply
    )  # fmt: skip

    @inner_kernel
    def put_batch(shape, hyper, log, touches, first, e, turn, half, width, work, x, rate):
        """Vectors of a batch to shared memory; the first of this thread are at hand."""
        k = log.user_rows.shape[1]
        at = turn * RANK * shape.groups
        f = cuda.threadIdx.x
        while f <= k:
            put(adagrad, width, k, work, at, 0, half, shape.groups, f, x, rate)
            for group in range(1, shape.groups):
                more = fetch(log, work, at + RANK * group, f)
                put(
                    adagrad, width, k, work, at + RANK * group, group, half, shape.groups, f, more,
                    rate,
                )  # fmt: skip
            f += threads
            x = fetch(log, work, at, f)
            if adagrad:
                rate = rate_of(shape.of_users, hyper, log, touches, first, e, f)

    @inner_kernel
    def walk(
        tile, width, curvature, row, first, behind, shape, log, hyper, touches, credits,
        bias_credits, work,
    ):  # fmt: skip
        t, k, one = cuda.threadIdx.x, credits.shape[1], type(hyper.mean)(1)
        groups, per, room = shape.groups, shape.per, RANK * shape.groups
        vector, output = RANK * (width + 1), RANK * width
        n_batches = (behind - first + per - 1) // per
        e, turn, half = behind - 1, 0, 0
        bias_value = curvature.bias_values[row]
        scale = plan(shape, adagrad, hyper, log, touches, first, e, one, 0, work)
        scale = plan(shape, adagrad, hyper, log, touches, first, e - per, scale, 1, work)
        cuda.syncthreads()
        x, rate = fetch(log, work, 0, t), one
        if adagrad:
            rate = rate_of(shape.of_users, hyper, log, touches, first, e, t)
        put_batch(shape, hyper, log, touches, first, e, 0, 0, width, work, x, rate)
        flush = one - one
        for batch in range(n_batches + 1):
            cuda.syncthreads()
            at, following = turn * room, (turn + 1) % PLANS
            held = _held(credits, work.places, at, t)
            bias_held = _bias_held(bias_credits, work.places, at)
            if not late:
                x = fetch(log, work, following * room, t)
            if adagrad:
                rate = rate_of(shape.of_users, hyper, log, touches, first, e - per, t)
            scale = plan(
                shape, adagrad, hyper, log, touches, first, e - 2 * per, scale, (turn + 2) % PLANS,
                work,
            )  # fmt: skip
            if batch > 0:
                if adagrad:
                    shrink(tile, k, work.keeps, (1 - half) * (width + 4))
                for group in range(groups):
                    old = (1 - half) * groups + group
                    update(tile, k, work.pending, old * output, work.rights, old * vector)
                if flush > 0:
                    scale_tile(tile, k, flush)
            if batch == n_batches:
                break
            for group in range(groups):
                out = (half * groups + group) * output
                multiply(tile, k, work.lefts, group * vector, work.column, width, work.pending, out)
                _sum_products(width, threads, work, group, (half * groups + group) * vector)
            cuda.syncthreads()
            for group in range(groups):
                if group > 0:
                    held = _held(credits, work.places, at + RANK * group, t)
                    bias_held = _bias_held(bias_credits, work.places, at + RANK * group)
                bias_value = _finish(
                    width, threads, shape.shift, adagrad, work, at + RANK * group, group,
                    (half * groups + group) * vector, (half * groups + group) * output,
                    half * (width + 4), bias_value, held, bias_held, credits, bias_credits,
                )  # fmt: skip
            flush = work.numbers[N_NUMBERS * at + FLUSH]
            if flush > 0:
                for r in range(t, k, threads):
                    work.column[r] *= flush
                for f in range(t, width + 1, threads):
                    work.last[f] *= flush
            half, turn, e = 1 - half, following, e - per
            if late:
                x = fetch(log, work, turn * room, t)
            put_batch(shape, hyper, log, touches, first, e, turn, half, width, work, x, rate)
        return bias_value

    return walk


@functools.cache
def _in_registers(width: int, number: Any, adagrad: bool) -> Any:
    matrix = in_registers(width, number)
    threads, size, load, store = matrix.threads, matrix.size, matrix.load, matrix.store
    walk = _walk(matrix, width, adagrad)

    @kernel
    def rows_in_registers(
        curvature, touches, shape, log, hyper, credits, bias_credits, start, n_floats, n_places
    ):  # fmt: skip
        """A row a block."""
        row, k = start + cuda.blockIdx.x, credits.shape[1]
        first, behind = touches.pointers[row], touches.pointers[row + 1]
        if first == behind:
            return
        places = cuda.shared.array(0, np.int64)
        floats = cuda.shared.array(0, number)
        ahead = n_places * 8 // floats.itemsize
        floats = floats[ahead : ahead + n_floats]
        work = _cut(floats, places, width, shape.groups, threads)
        tile = cuda.local.array(size, number)
        _enter(width, threads, k, curvature, row, floats, n_floats, work)
        load(tile, curvature.matrices[row], k)
        bias_value = walk(
            tile, width, curvature, row, first, behind, shape, log, hyper, touches, credits,
            bias_credits, work,
        )  # fmt: skip
        store(tile, curvature.matrices[row], k)
        _leave(width, threads, k, curvature, row, bias_value, work)

    return rows_in_registers


@functools.cache
def _in_memory(number: Any, adagrad: bool) -> Any:
    matrix = in_memory(number)
    threads = matrix.threads
    walk = _walk(matrix, 0, adagrad)

    @kernel
    def rows_in_memory(
        curvature, touches, shape, log, hyper, credits, bias_credits, start, stop, width, floats,
        places,
    ):  # fmt: skip
        """Rows of large matrices, or of steps with many candidates, a block after the other."""
        k = credits.shape[1]
        mine = floats[cuda.blockIdx.x]
        work = _cut(mine, places[cuda.blockIdx.x], width, shape.groups, threads)
        for row in range(start + cuda.blockIdx.x, stop, cuda.gridDim.x):
            first, behind = touches.pointers[row], touches.pointers[row + 1]
            if first < behind:
                _enter(width, threads, k, curvature, row, mine, mine.shape[0], work)
                bias_value = walk(
                    curvature.matrices[row], width, curvature, row, first, behind, shape, log,
                    hyper, touches, credits, bias_credits, work,
                )  # fmt: skip
                _leave(width, threads, k, curvature, row, bias_value, work)

    return rows_in_memory


def roll_back_rows(
    curvature: Any,
    touches: Any,
    of_users: bool,
    log: Any,
    hyper: Any,
    loss: int,
    credits: Any,
    bias_credits: Any,
    start: int,
    stop: int,
) -> None:
    """Take rows ``start`` to ``stop - 1`` back over the touches of one stage of a run.

    See the twin in `kernels.cpu`. float32 up to k = 128 and float64 up to 32 are fast, what is
    beyond or has many negatives leaves its matrices in memory. The first rows start first: let
    them be those of most touches.
    """
    k, number = credits.shape[1], np.dtype(credits.dtype).type
    adagrad = log.user_squares.shape[0] > 0
    shape = shape_of(of_users, loss == BPR, log.items.shape[1], adagrad)
    width = next((w for w in _WIDTHS if w >= k), 0)
    held = in_registers(width, number)
    arrays = (curvature, touches, shape, log, hyper, credits, bias_credits, start)
    if held is not None:
        n_floats, n_places = _sizes(width, shape.groups, held.threads)
        shared = n_floats * number(0).itemsize + n_places * 8
        if shared <= _SHARED:
            code = _in_registers(width, number, adagrad)
            launch(code, stop - start, held.threads, *arrays, n_floats, n_places, shared=shared)
            return
    width, threads = -(-k // RANK) * RANK, in_memory(number).threads
    n_floats, n_places = _sizes(width, shape.groups, threads)
    blocks = min(stop - start, 4 * processors())
    launch(
        _in_memory(number, adagrad), blocks, threads, *arrays, stop, width,
        memory.empty((blocks, n_floats), number), memory.empty((blocks, n_places), np.int64),
    )  # fmt: skip
