"""Curvature Rollback, a block for every embedding row: twin of `kernels.cpu.curvature`.

See there for the recursion, and `rank4` for the matrix, which a block keeps in registers over all
touches of a stage. Vectors go through it in batches of as many touches as fit four vectors, a
single touch of more vectors in several groups of four. Three batches are on their way at a time:

    batch i      is multiplied, put right by its inner products, and credited
    batch i + 1  has its rows fetched while batch i is multiplied, and is put in shared memory
    batch i + 2  has its steps looked up in the log, and becomes a plan: scalars and places

The loop begins with batch -2, so that each of this is written, and compiled, once.

The bias of outputs and that of inputs stand apart from the matrix, so that k, not k + 1, is what is
padded to 16, 32, 64 or 128.

Of a touch 4 k^2 floating-point operations are asked, and 4 k numbers are moved: the row it met, its
credit there and back, a cache line of scalars. At k = 64 in float32 that is 16 operations for
each byte, so arithmetic and shared memory bound the kernel (`rank4` counts their cycles), not the
memory of the device. A block takes its touches one after another: the longest row is the least
time a stage can take, and rows should come longest first.
"""

import functools
from typing import Any

import numpy as np

from . import memory
from .jit import cuda, inner_kernel, kernel, launch, processors
from .losses import BPR
from .plans import (
    FLUSH,
    PLANS,
    Work,
    fetch,
    layout,
    plan,
    plan_of,
    put,
    rate_of,
    shape_of,
    sizes,
)
from .products import bias_held, finish, held, sum_products
from .rank4 import RANK, Matrix, in_memory, in_registers

__all__ = ["roll_back_rows"]

_SHARED = 48 * 1024
_WIDTHS = (16, 32, 64, 128)
_STEP = 64  # of widths in memory: constants of the compiler, too
_BLOCKS = 8  # a processor, of one launch: what each keeps lies in memory, too


@inner_kernel
def _enter(threads, k, curvature, row, n_floats, work):
    """Clear shared memory, padding and all, and load what stands beside the matrix."""
    t, at, floats = cuda.threadIdx.x, work.at, work.floats
    cuda.syncthreads()
    for n in range(t, n_floats, threads):
        floats[np.uintp(n)] = 0
    cuda.syncthreads()
    for r in range(t, k, threads):
        floats[r] = curvature.values[row, r]
        floats[at.column + r] = curvature.matrices[row, k, r]
        floats[at.last + r] = curvature.last_rows[row, r]
    if t == 0:
        floats[at.last + at.width] = curvature.last_rows[row, k]
    cuda.syncthreads()


@inner_kernel
def _leave(threads, k, curvature, row, bias_value, work):
    t, at, floats = cuda.threadIdx.x, work.at, work.floats
    cuda.syncthreads()
    for r in range(t, k, threads):
        curvature.values[row, r] = floats[r]
        curvature.matrices[row, k, r] = floats[at.column + r]
        curvature.last_rows[row, r] = floats[at.last + r]
    if t == 0:
        curvature.last_rows[row, k] = floats[at.last + at.width]
        curvature.bias_values[row] = bias_value


@inner_kernel
def _scale_beside(threads, k, work, factor):
    """Multiply the bias's column and row of M."""
    at = work.at
    for r in range(cuda.threadIdx.x, k, threads):
        work.floats[np.uintp(at.column + r)] *= factor
    for f in range(cuda.threadIdx.x, at.width + 1, threads):
        work.floats[np.uintp(at.last + f)] *= factor


@functools.cache
def _walk(matrix: Matrix, adagrad: bool) -> Any:
    """The function that takes one row back over its touches."""
    threads = matrix.threads
    late = matrix.size == 0  # loops over matrices in memory leave no registers for rows
    scale_tile, shrink, update, multiply = (
        matrix.scale, matrix.shrink, matrix.update, matrix.multiply
    )  # fmt: skip

    @inner_kernel
    def join(tile, k, work, groups, half):
        """Let the matrix take in what a batch has left pending."""
        at = work.at
        if adagrad:
            shrink(tile, k, work.floats, at.keeps + half * at.keep)
        for group in range(groups):
            base = at.first + group * at.group
            right, out = base + at.rights + half * at.vector, base + at.pending + half * at.output
            update(tile, k, work.floats, out, right)

    @inner_kernel
    def push(tile, k, work, groups, half):
        """Multiply the matrix with the lefts of a batch."""
        at = work.at
        for group in range(groups):
            base = at.first + group * at.group
            out = base + at.pending + half * at.output
            multiply(tile, k, work.floats, base, at.column, at.width, out)
            sum_products(threads, work, group, base + at.rights + half * at.vector)

    @inner_kernel
    def put_batch(shape, hyper, log, k, work, turn, half, x, rate):
        """Vectors of a batch to shared memory; unless late, the first of a thread is at hand."""
        for group in range(shape.groups):
            for f in range(cuda.threadIdx.x, k + 1, threads):
                if late or group > 0 or f > cuda.threadIdx.x:
                    x = fetch(log, work, group, turn, f)
                    if adagrad:
                        rate = rate_of(shape, hyper, log, work, turn, f)
                put(adagrad, k, work, group, turn, half, f, x, rate)

    @inner_kernel
    def walk(
        tile, curvature, row, first, behind, shape, log, hyper, touches, credits, bias_credits,
        work,
    ):  # fmt: skip
        t, k, one = cuda.threadIdx.x, credits.shape[1], type(hyper.mean)(1)
        groups, per = shape.groups, shape.per
        n_batches = (behind - first + per - 1) >> (2 - shape.shift)
        e, turn, half = behind - 1, 0, 0  # of the batch that is planned; of the one multiplied
        bias_value, scale, rate, flush = curvature.bias_values[row], one, one, one
        bias_so_far = one - one
        x = so_far = bias_so_far, bias_so_far, bias_so_far, bias_so_far
        for batch in range(-2, n_batches + 1):
            active, coming = 0 <= batch < n_batches, -1 <= batch < n_batches - 1
            current, following = (turn + 1) % PLANS, (turn + 2) % PLANS
            cuda.syncthreads()
            if active:
                so_far = held(credits, work, 0, current, t)
                bias_so_far = bias_held(shape.shift, bias_credits, work, 0, current)
            if coming and not late and t <= k:
                x = fetch(log, work, 0, following, t)
                if adagrad:
                    rate = rate_of(shape, hyper, log, work, following, t)
            if batch + 2 < n_batches:
                scale = plan(shape, adagrad, hyper, log, touches, first, e, scale, turn, work)
            if batch > 0:
                join(tile, k, work, groups, 1 - half)
                if flush != one:
                    scale_tile(tile, k, flush)
            if active:
                push(tile, k, work, groups, half)
            cuda.syncthreads()
            if active:
                for group in range(groups):
                    bias_value = finish(
                        adagrad, threads, shape.shift, work, group, current, half, bias_value,
                        so_far, bias_so_far, credits, bias_credits,
                    )  # fmt: skip
                flush = work.floats[np.uintp(plan_of(work, 0, current) + RANK * FLUSH)]
                if flush != one:
                    _scale_beside(threads, k, work, flush)
            if coming:
                put_batch(shape, hyper, log, k, work, following, 1 - half, x, rate)
            half, turn, e = 1 - half, (turn + 1) % PLANS, e - per
        return bias_value

    return walk


@functools.cache
def _in_registers(width: int, number: Any, adagrad: bool) -> Any:
    matrix = in_registers(width, number)
    threads, size, load, store = matrix.threads, matrix.size, matrix.load, matrix.store
    walk = _walk(matrix, adagrad)

    @kernel
    def rows_in_registers(
        curvature, touches, shape, log, hyper, credits, bias_credits, start, n_floats
    ):  # fmt: skip
        """A row a block."""
        row, k = start + cuda.blockIdx.x, credits.shape[1]
        first, behind = touches.pointers[row], touches.pointers[row + 1]
        if first == behind:
            return
        floats = cuda.shared.array(0, number)
        places = cuda.shared.array(0, np.int32)
        places = places[n_floats * floats.itemsize // 4 :]
        work = Work(floats, places, layout(width, threads))
        tile = cuda.local.array(size, number)
        _enter(threads, k, curvature, row, n_floats, work)
        load(tile, curvature.matrices[row], k)
        bias_value = walk(
            tile, curvature, row, first, behind, shape, log, hyper, touches, credits,
            bias_credits, work,
        )  # fmt: skip
        store(tile, curvature.matrices[row], k)
        _leave(threads, k, curvature, row, bias_value, work)

    return rows_in_registers


@functools.cache
def _in_memory(width: int, number: Any, adagrad: bool) -> Any:
    matrix = in_memory(number)
    threads = matrix.threads
    walk = _walk(matrix, adagrad)

    # With "one block" said, ptxas does not spill to make room for several.
    @kernel(launch_bounds=(threads, 1))
    def rows_in_memory(
        curvature, touches, shape, log, hyper, credits, bias_credits, start, floats, places
    ):  # fmt: skip
        """A row a block: a large one, or of steps with many candidates."""
        row, k = start + cuda.blockIdx.x, credits.shape[1]
        first, behind = touches.pointers[row], touches.pointers[row + 1]
        if first == behind:
            return
        work = Work(floats[cuda.blockIdx.x], places[cuda.blockIdx.x], layout(width, threads))
        _enter(threads, k, curvature, row, floats.shape[1], work)
        bias_value = walk(
            curvature.matrices[row], curvature, row, first, behind, shape, log, hyper, touches,
            credits, bias_credits, work,
        )  # fmt: skip
        _leave(threads, k, curvature, row, bias_value, work)

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
    arrays = (curvature, touches, shape, log, hyper, credits, bias_credits)
    if held is not None:
        n_floats, n_places = sizes(width, shape.groups, held.threads)
        shared = n_floats * number(0).itemsize + n_places * 4
        if shared <= _SHARED:
            code = _in_registers(width, number, adagrad)
            launch(code, stop - start, held.threads, *arrays, start, n_floats, shared=shared)
            return
    width, threads = -(-k // _STEP) * _STEP, in_memory(number).threads
    n_floats, n_places = sizes(width, shape.groups, threads)
    at_once = max(1, min(stop - start, _BLOCKS * processors()))
    floats = memory.empty((at_once, n_floats), number)
    places = memory.empty((at_once, n_places), np.int32)
    code = _in_memory(width, number, adagrad)
    for row in range(start, stop, at_once):
        last = row + at_once >= stop
        blocks = stop - row if last else at_once
        launch(code, blocks, threads, *arrays, row, floats, places, wait=last)
