"""Stochastic gradient descent for biased matrix factorization: the bits of `kernels.cpu.sgd`.

A block of threads goes through a block of the schedule; those of a stratum share no row. It looks
at a window of as many steps as it has half warps, and makes all steps side by side that come
before the first one that shares a row with an earlier one: such steps commute exactly. Row
numbers meet in a table in shared memory, where two rows that fall on one place end a window too
early but do no harm.

A step at k = 64 with a record moves 2 KiB, of which the half that is the record comes from memory;
what bounds the kernel is the time that one window takes, of some 1,000 cycles, times the number of
windows of a block.
"""

import functools

import numpy as np

from ..errors import DeviceError
from ..structures import LANES, Log, Record, Tables
from . import memory
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch, processors
from .losses import BPR, LOGISTIC, SQUARED
from .negatives import draw_dealt, draw_epoch
from .sgd_steps import n_drawn, row_dot, sampled_losses, sampled_step, squared_step
from .simd import tree_sum

__all__ = ["BPR", "LOGISTIC", "SQUARED", "mean_loss", "sgd_epoch"]

_THREADS = 64 if SIMULATED else 512
_WIDTH = _THREADS // LANES
_PLACES = 16 if SIMULATED else 2048
"""Places of the tables of rows that are taken: rows of a group follow one another, and a group
has rarely more."""
_CLAIMS = 2 * _PLACES
_LATEST = 2**31 - 1
"""Above the keys of all steps; before a window's would be negative the tables are cleared."""
_SHARED = 24 * 1024
"""Bytes for the scores and slopes of a window; with the tables below what any GPU has."""


@inner_kernel
def _row(examples, drawn, t, stop, before, n):
    """Row number n that visit t changes: its user, its item, its negatives; -1: none."""
    visit = np.uintp(t)
    if t >= stop or n > drawn.shape[1] + 1 or examples.weights[visit] == 0:
        return np.int32(-1)
    if n == 0:
        return examples.users[visit]
    if n == 1:
        return examples.items[visit]
    return drawn[np.uintp(t - before), np.uintp(n - 2)]


@inner_kernel
def _place(row, n):
    return np.uintp((row & (_PLACES - 1)) + (0 if n == 0 else _PLACES))


@inner_kernel
def _forget(claims):
    for n in range(cuda.threadIdx.x, _CLAIMS, cuda.blockDim.x):
        claims[n] = _LATEST


@inner_kernel
def _take(claims, key, row, examples, drawn, t, stop, before, lane):
    """Write the key of a step beside all rows it changes, unless there is a smaller one.

    `row` is the first of the lane's, which few steps have more of.
    """
    n = lane
    while row >= 0:
        cuda.atomic.min(claims, _place(row, n), key)
        n += LANES
        row = _row(examples, drawn, t, stop, before, n)


@inner_kernel
def _is_free(claims, key, row, examples, drawn, t, stop, before, lane):
    """Whether no earlier step of the window changes the lane's rows of this one."""
    n, free = lane, True
    while row >= 0:
        free = free and claims[_place(row, n)] >= key
        n += LANES
        row = _row(examples, drawn, t, stop, before, n)
    return free


@inner_kernel
def _half_warp():
    """Number of the half warp in its block, of the thread in it, mask of the half in its warp."""
    half, lane = cuda.threadIdx.x // LANES, cuda.threadIdx.x % LANES
    return half, lane, 0xFFFF << (half % 2 * LANES)


@inner_kernel
def _in_order(totals, half, lane, total):
    """Sum over the half warps of a block, in order; the first thread has it."""
    if lane == 0:
        totals[half] = total
    cuda.syncthreads()
    found = 0.0
    for other in range(cuda.blockDim.x // LANES):
        found += totals[other]
    return found


@functools.cache
def steps_of(squared, adagrad, most):
    """Kernel of the steps of a stratum, at most so many threads for each of its blocks.

    Training without Adagrad, with one candidate, takes no registers for what it does not do.
    """

    # With "one block" said, ptxas does not spill to make room for several.
    @kernel(launch_bounds=(most, 1))
    def stratum_steps(
        tables, squares, examples, pointers, drawn, hyper, loss, stratum, before, record, log,
        losses,
    ):  # fmt: skip
        # The tables hold keys that fall from window to window and rise from step to step: what
        # is left of an earlier window is greater than any key of this one.
        claims = cuda.shared.array(_CLAIMS, np.int32)
        firsts = cuda.shared.array(2, np.int32)  # steps to make, of even and of odd windows
        totals = cuda.shared.array(_WIDTH, np.float64)
        numbers = cuda.shared.array(0, tables.user_factors.dtype)
        half, lane, mask = _half_warp()
        width, n_candidates = cuda.blockDim.x // LANES, drawn.shape[1] + 1
        scores = numbers[half * n_candidates : (half + 1) * n_candidates]
        slopes = numbers[(width + half) * n_candidates : (width + half + 1) * n_candidates]
        _forget(claims)
        if cuda.threadIdx.x < 2:
            firsts[cuda.threadIdx.x] = width
        cuda.syncthreads()

        number = stratum * cuda.gridDim.x + cuda.blockIdx.x
        at, stop = pointers[number], pointers[number + 1]
        key, odd = np.int32(_LATEST - width + half), 0
        total = 0.0
        row = _row(examples, drawn, at + half, stop, before, lane)
        _take(claims, key, row, examples, drawn, at + half, stop, before, lane)
        cuda.syncthreads()
        while at < stop:
            t = at + half
            if not _is_free(claims, key, row, examples, drawn, t, stop, before, lane):
                cuda.atomic.min(firsts, odd, half)
            if cuda.threadIdx.x == 0:
                firsts[1 - odd] = width
            cuda.syncthreads()
            first = firsts[odd]
            if half < first and t < stop and examples.weights[t] != 0:
                if squared:
                    cost = squared_step(
                        adagrad, tables, squares, examples, hyper, t, examples.users[t],
                        examples.items[t], record, log, lane, mask,
                    )  # fmt: skip
                    total += cost if lane == 0 else 0.0
                else:
                    total += sampled_step(
                        adagrad, tables, squares, examples, drawn, hyper, loss, t, before, record,
                        log, scores, slopes, lane, mask,
                    )  # fmt: skip
            at, odd, key = at + first, 1 - odd, np.int32(key - width)
            if key < half:
                _forget(claims)
                cuda.syncthreads()
                key = np.int32(_LATEST - width + half)
            row = _row(examples, drawn, at + half, stop, before, lane)
            _take(claims, key, row, examples, drawn, at + half, stop, before, lane)
            cuda.syncthreads()
        total = _in_order(totals, half, lane, tree_sum(mask, total))
        if cuda.threadIdx.x == 0:
            losses[number] = total

    return stratum_steps


def sgd_epoch(
    tables, squares, examples, pointers, sampler, hyper, loss, epoch, strata, record, log
):
    """Visit every example of an epoch, or of some of its strata, and update the tables in place.

    See the twin in `kernels.cpu`; the parameters have the same bits, the loss is the same to
    rounding.

    Raises
    ------
    DeviceError
        More negatives than fit the memory of a multiprocessor.
    """
    dtype, k = tables.user_factors.dtype, tables.user_factors.shape[1]
    n_groups = sampler.pool_pointers.shape[0] - 1
    most = most_threads(squares is not None, dtype)
    threads, shared = shape(sampler.n_negatives if loss != SQUARED else 0, dtype, most)
    steps = steps_of(loss == SQUARED, squares is not None, most)
    drawn, before = _drawn(examples, pointers, sampler, loss, epoch, strata, n_groups)
    none, no_row, nowhere = (memory.empty(s, dtype) for s in ((0,), (0, k), (0, 2)))
    squares = squares or Tables(no_row, no_row, none, none)
    record = record or Record(no_row, no_row, nowhere)
    if log is None:
        slots, items = memory.empty((0,), np.int32), memory.empty((0, 1), np.int32)
        log = Log(slots, items, *[no_row] * 5)
    losses = memory.zeros(n_groups * n_groups, np.float64)
    for stratum in range(*strata):
        launch(
            steps, n_groups, threads, tables, squares, examples, pointers, drawn, hyper, loss,
            stratum, before, record, log, losses, shared=shared, wait=stratum + 1 == strata[1],
        )  # fmt: skip
    return _total(losses)


def most_threads(adagrad, dtype):
    """Threads of a block whose steps stay in registers."""
    return _THREADS // 2 if adagrad or np.dtype(dtype).itemsize == 8 else _THREADS


def shape(n_negatives, dtype, most=_THREADS):
    """Threads of a block, and the bytes for the scores and slopes of their candidates."""
    size = 2 * (n_negatives + 1) * np.dtype(dtype).itemsize
    # Whole warps, or else the exchanges of the last would wait for lanes that are not there.
    warps = min(most // 32, _SHARED // (2 * size))
    if warps == 0:
        raise DeviceError(
            f"{n_negatives} negatives of a step do not fit the shared memory of a GPU: train on "
            f"the CPU, or with at most {_SHARED // (4 * np.dtype(dtype).itemsize) - 1}"
        )
    return 32 * warps, 2 * warps * size


def _drawn(examples, pointers, sampler, loss, epoch, strata, n_groups):
    """Negatives of some strata of an epoch, and the visit of their first row."""
    if loss == SQUARED:
        return memory.empty((0, 0), np.int32), 0
    if sampler.drawn.shape[0] > 0:
        return sampler.drawn, 0
    blocks = strata[0] * n_groups, strata[1] * n_groups
    bounds = memory.fetch(pointers)
    before = int(bounds[blocks[0]])
    drawn = memory.empty((int(bounds[blocks[1]]) - before, sampler.n_negatives), np.int32)
    draw_epoch(examples, pointers, sampler, epoch, *blocks, drawn, before, wait=False)
    return drawn, before


def _total(losses):
    """Sum in order."""
    total = 0.0
    for loss in memory.fetch(losses):
        total += loss
    return total


@kernel(launch_bounds=_THREADS)
def example_losses(tables, examples, drawn, hyper, loss, totals, weights):
    """Weighted losses and weights of examples, added up by each block of threads."""
    sums = cuda.shared.array(_WIDTH, np.float64)
    sums_of_weights = cuda.shared.array(_WIDTH, np.float64)
    numbers = cuda.shared.array(0, tables.user_factors.dtype)
    half, lane, mask = _half_warp()
    width, n_candidates = cuda.blockDim.x // LANES, drawn.shape[1] + 1
    scores = numbers[half * n_candidates : (half + 1) * n_candidates]
    slopes = numbers[(width + half) * n_candidates : (width + half + 1) * n_candidates]
    total, weight = 0.0, 0.0
    first = cuda.blockIdx.x * width + half
    for t in range(first, examples.users.shape[0], cuda.gridDim.x * width):
        cost = 0.0
        if loss == SQUARED:
            u, i = examples.users[t], examples.items[t]
            p, q = tables.user_factors[u], tables.item_factors[i]
            interaction = row_dot(p, q, lane, mask)
            score = hyper.mean + tables.user_biases[u] + tables.item_biases[i] + interaction
            error = np.float64(score - examples.values[t])
            cost = 0.5 * error * error if lane == 0 else 0.0
        else:
            cost = sampled_losses(
                tables, examples, drawn, hyper, loss, t, 0, n_drawn(drawn, t), scores, slopes,
                lane, mask,
            )  # fmt: skip
        total += np.float64(examples.weights[t]) * cost
        weight += np.float64(examples.weights[t])
    total = _in_order(sums, half, lane, tree_sum(mask, total))
    weight = _in_order(sums_of_weights, half, lane, weight)
    if cuda.threadIdx.x == 0:
        totals[cuda.blockIdx.x], weights[cuda.blockIdx.x] = total, weight


def mean_loss(tables, examples, sampler, hyper, loss):
    """Weighted mean loss of examples under fixed parameters. See the twin in `kernels.cpu`."""
    n = examples.users.shape[0]
    drawn = memory.empty((0, 0), np.int32)
    if loss != SQUARED:
        drawn = memory.empty((n, sampler.n_negatives), np.int32)
        draw_dealt(examples, sampler, 0xFFFFFFFF, drawn)
    threads, shared = shape(drawn.shape[1], tables.user_factors.dtype)
    blocks = min(-(-n * LANES // threads), 4 * processors())
    totals, weights = (memory.zeros(max(blocks, 1), np.float64) for _ in range(2))
    arguments = tables, examples, drawn, hyper, loss, totals, weights
    launch(example_losses, blocks, threads, *arguments, shared=shared)
    return np.float64(_total(totals)) / np.float64(_total(weights))
