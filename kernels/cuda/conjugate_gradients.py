"""Preconditioned conjugate gradients for 16 right-hand sides in lock step, row by row, on CUDA.

Work on a row is that of one warp: its threads hold 8 coordinates by 4 quads of lanes, which is
512 bytes of a panel side by side, and no thread waits for another warp. Substitution goes by
tiles of 8 x 8: a tile's own 8 steps exchange numbers by shuffles, the products with other tiles
read the vector from shared memory, four lanes a load.

`advance` moves 7 panels, 7 * 64 d bytes a row in float32, and reads 2 d^2 of each triangular pass
for 32 d^2 operations of both: memory bounds it below d of about 200, the waiting of a tile's steps
for one another is hidden by the other warps (44 of them a multiprocessor at d = 65). The passes
over panels are bound by memory as well. `factor_rows` is d^3 / 3 operations a row (see `cholesky`),
done once for all iterations.
"""

import functools

import numpy as np

from ..structures import LANES
from . import memory
from .cholesky import FACTOR_ROOM, FACTOR_THREADS, factor
from .fours import put4, same4, sum4, times4
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch, processors
from .simd import fma, load4
from .substitution import TILE, backward, forward, rooms

__all__ = [
    "advance",
    "clear",
    "damp",
    "factor_rows",
    "inner_products",
    "precondition_rows",
    "scale",
    "subtract_from",
    "take_steps",
    "total",
    "turn",
]

_SINGULAR = 1e-30  # of a diagonal: what is left of it is nothing

_WARPS = 2 if SIMULATED else 4  # of a block: a row each
_THREADS = 32 if SIMULATED else 256  # of a block of the passes over panels; a multiple of 4
_PER_PROCESSOR = 1 if SIMULATED else 8  # such blocks
_GROUPS = 2 if SIMULATED else 16  # of 16 threads, of a block that adds up rows
_PARTS = 2 if SIMULATED else 128  # such blocks, whatever the device: they are an order of summing


@inner_kernel
def _plus(factors, left, right):
    """``factors * left + right``, lane by lane."""
    return (
        fma(factors[0], left[0], right[0]),
        fma(factors[1], left[1], right[1]),
        fma(factors[2], left[2], right[2]),
        fma(factors[3], left[3], right[3]),
    )


@inner_kernel
def _write_sums(sums, i, q, out):
    """Add up what the threads of a warp have of each lane, in float64 and always the same order."""
    wide = np.float64(sums[0]), np.float64(sums[1]), np.float64(sums[2]), np.float64(sums[3])
    wide = sum4(wide)
    if i == 0:
        put4(out, q, wide)


# ---------------------------------------------------------------- substitution


@inner_kernel
def _put_room(room, base, i, q, out):
    """Write what a thread left in its warp's room: coordinate i of every tile, four lanes."""
    for f in range(i, out.shape[0], TILE):
        put4(out[np.uintp(f)], q, load4(room, base + LANES * f + q))


@kernel
def precondition_row(length, factors, divisors, residual, start, stop, out):
    room = cuda.shared.array(0, residual.dtype, alignment=16)
    warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
    i, q = lane // 4, lane % 4 * 4
    row = start + cuda.blockIdx.x * (cuda.blockDim.x // 32) + warp
    d = residual.shape[1]
    base = warp * length
    if row >= stop:
        return
    for first in range(0, d, TILE):
        lanes = same4(residual.dtype.type(0))
        if first + i < d:
            lanes = load4(residual[row, first + i], q)
        if factors.shape[0] > 0:
            forward(factors, divisors, row, first, lanes, room, base, i, q)
        elif first + i < d:
            put4(out[row, first + i], q, lanes)
    if factors.shape[0] > 0:
        backward(factors, divisors, row, room, base, i, q)
        _put_room(room, base, i, q, out[row])


@kernel
def advance_row(
    length, factors, divisors, steps, direction, image, start, stop, x, residual, target, squares,
    products,
):  # fmt: skip
    room = cuda.shared.array(0, x.dtype, alignment=16)
    warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
    i, q = lane // 4, lane % 4 * 4
    row = start + cuda.blockIdx.x * (cuda.blockDim.x // 32) + warp
    d = x.shape[1]
    base = warp * length
    if row >= stop:
        return
    step = load4(steps, q)
    back = times4(x.dtype.type(-1), step)
    squared, produced = same4(x.dtype.type(0)), same4(x.dtype.type(0))
    for first in range(0, d, TILE):
        f, lanes = first + i, same4(x.dtype.type(0))
        if f < d:
            moved = _plus(step, load4(direction[row, f], q), load4(x[row, f], q))
            lanes = _plus(back, load4(image[row, f], q), load4(residual[row, f], q))
            put4(x[row, f], q, moved)
            put4(residual[row, f], q, lanes)
        squared = _plus(lanes, lanes, squared)
        if factors.shape[0] > 0:
            lanes = forward(factors, divisors, row, first, lanes, room, base, i, q)
            # r . M^-1 r is the square of L^-1 r: the residual need not be read again.
            produced = _plus(lanes, lanes, produced)
        elif f < d:
            put4(target[row, f], q, lanes)
    if factors.shape[0] > 0:
        backward(factors, divisors, row, room, base, i, q)
        _put_room(room, base, i, q, target[row])
    else:
        produced = squared
    _write_sums(squared, i, q, squares[row])
    _write_sums(produced, i, q, products[row])


@kernel
def factor_row(damping, blocks, start, divisors):
    room = cuda.shared.array(FACTOR_ROOM, blocks.dtype)
    row, t, d = start + cuda.blockIdx.x, cuda.threadIdx.x, blocks.shape[1]
    block, one = blocks[row], blocks.dtype.type(1)
    for f in range(t, d, FACTOR_THREADS):
        block[f, f] += damping
    if factor(t, _SINGULAR, block, d, room):
        for f in range(t, d, FACTOR_THREADS):
            divisors[row, f] = one / block[f, f]
    elif t == 0:
        divisors[row, 0] = 0


def factor_rows(damping, blocks, start, stop, divisors):
    """Cholesky factors of damped blocks of rows `start` to `stop`, in place of their lower parts.

    See the twin in kernels.cpu. Their upper parts are overwritten, too.
    """
    number = blocks.dtype.type(damping)
    launch(factor_row, stop - start, FACTOR_THREADS, number, blocks, start, divisors)


def precondition_rows(factors, divisors, residual, start, stop, out):
    """``out = M^-1 residual`` for rows `start` to `stop`; see the twin in kernels.cpu."""
    factors, divisors = _present(factors, divisors, residual.dtype)
    arguments = factors, divisors, residual, start, stop, out
    _launch_by_row(precondition_row, residual, start, stop, arguments)


def advance(
    factors, divisors, steps, direction, image, start, stop, x, residual, target, squares, products
):
    """``x += step p``, ``r -= step A p``, ``z = M^-1 r`` for rows `start` to `stop`.

    See the twin in kernels.cpu. ``r . z`` is summed as the square of ``L^-1 r``.
    """
    factors, divisors = _present(factors, divisors, x.dtype)
    before = factors, divisors, memory.put(steps), direction, image
    after = x, residual, target, squares, products
    _launch_by_row(advance_row, x, start, stop, (*before, start, stop, *after))


def _present(factors, divisors, dtype):
    return _nothing(np.dtype(dtype)) if factors is None else (factors, divisors)


@functools.cache
def _nothing(dtype):
    """What stands for no preconditioner: None is no argument of a kernel."""
    return memory.empty((0, 0, 0), dtype), memory.empty((0, 0), dtype)


def _launch_by_row(function, panel, start, stop, arguments):
    """A warp for every row, with room for a vector."""
    length, warps, shared = rooms(panel.shape[1], panel.dtype, _WARPS)
    blocks = -(-max(0, stop - start) // warps)
    launch(function, blocks, 32 * warps, length, *arguments, shared=shared)


# ---------------------------------------------------------------- inner products


@kernel
def damp_row(damping, direction, start, stop, image, products):
    lane = cuda.threadIdx.x & 31
    i, q = lane >> 2, (lane & 3) * 4
    row = start + cuda.blockIdx.x * (cuda.blockDim.x >> 5) + (cuda.threadIdx.x >> 5)
    if row >= stop:
        return
    number, sums = same4(damping), same4(direction.dtype.type(0))
    for f in range(i, direction.shape[1], TILE):
        at = np.uintp(row), np.uintp(f)
        p = load4(direction[at], q)
        lanes = _plus(number, p, load4(image[at], q))
        put4(image[at], q, lanes)
        sums = _plus(p, lanes, sums)
    _write_sums(sums, i, q, products[np.uintp(row)])


@kernel
def multiply_row(left, right, start, stop, out):
    lane = cuda.threadIdx.x & 31
    i, q = lane >> 2, (lane & 3) * 4
    row = start + cuda.blockIdx.x * (cuda.blockDim.x >> 5) + (cuda.threadIdx.x >> 5)
    if row >= stop:
        return
    sums = same4(left.dtype.type(0))
    for f in range(i, left.shape[1], TILE):
        at = np.uintp(row), np.uintp(f)
        sums = _plus(load4(left[at], q), load4(right[at], q), sums)
    _write_sums(sums, i, q, out[np.uintp(row)])


@kernel
def add_rows(products, start, stop, out):
    """Sums of as many runs of rows as there are blocks."""
    sums = cuda.shared.array((_GROUPS, LANES), np.float64)
    q, group = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES
    length = (stop - start + cuda.gridDim.x - 1) // cuda.gridDim.x
    first = start + cuda.blockIdx.x * length
    value = 0.0
    for row in range(first + group, min(first + length, stop), _GROUPS):
        value += products[row, q]
    sums[group, q] = value
    cuda.syncthreads()
    if group == 0:
        for n in range(1, _GROUPS):
            value += sums[n, q]
        out[cuda.blockIdx.x, q] = value


def damp(damping, direction, start, stop, image, products):
    """``A p += damping p`` for rows `start` to `stop`, and the inner products ``p . A p`` of each.

    See the twin in kernels.cpu.
    """
    number, blocks = direction.dtype.type(damping), -(-max(0, stop - start) // _WARPS)
    launch(damp_row, blocks, 32 * _WARPS, number, direction, start, stop, image, products)


def inner_products(left, right, start, stop, out):
    """``out[row] = left[row] . right[row]``, lane by lane: (n_rows, LANES) float64."""
    blocks = -(-max(0, stop - start) // _WARPS)
    launch(multiply_row, blocks, 32 * _WARPS, left, right, start, stop, out)


def total(products, start, stop):
    """Sums (LANES,) float64, in CPU memory, of products (n_rows, LANES) of rows."""
    if start >= stop:
        return np.zeros(LANES)
    parts = memory.empty((_PARTS, LANES), np.float64)
    launch(add_rows, _PARTS, _GROUPS * LANES, products, start, stop, parts, wait=False)
    return memory.fetch(parts).sum(axis=0)


# ---------------------------------------------------------------- passes over panels
#
# Panels are flat here, `first` and `stop` count quads of lanes. A thread's quads are all of the
# same four lanes, as a grid is a multiple of 4 threads.


@kernel
def turn_quads(keeps, target, first, stop, direction):
    thread = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    keep = load4(keeps, (thread & 3) * 4)
    quad = first + thread
    while quad < stop:
        place = 4 * quad
        put4(direction, place, _plus(keep, load4(direction, place), load4(target, place)))
        quad += cuda.gridDim.x * cuda.blockDim.x


@kernel
def step_quads(steps, direction, first, stop, x):
    thread = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    step = load4(steps, (thread & 3) * 4)
    quad = first + thread
    while quad < stop:
        place = 4 * quad
        put4(x, place, _plus(step, load4(direction, place), load4(x, place)))
        quad += cuda.gridDim.x * cuda.blockDim.x


@kernel
def subtract_quads(left, first, stop, out):
    thread = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    minus = same4(out.dtype.type(-1))
    quad = first + thread
    while quad < stop:
        place = 4 * quad
        put4(out, place, _plus(minus, load4(out, place), load4(left, place)))
        quad += cuda.gridDim.x * cuda.blockDim.x


@kernel
def scale_quads(factors, first, stop, panel):
    thread = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    a, b, c, d = load4(factors, (thread & 3) * 4)
    quad = first + thread
    while quad < stop:
        place = 4 * quad
        w, x, y, z = load4(panel, place)
        put4(panel, place, (a * w, b * x, c * y, d * z))
        quad += cuda.gridDim.x * cuda.blockDim.x


@kernel
def clear_quads(first, stop, panel):
    thread = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    nothing = same4(panel.dtype.type(0))
    quad = first + thread
    while quad < stop:
        put4(panel, 4 * quad, nothing)
        quad += cuda.gridDim.x * cuda.blockDim.x


def turn(keeps, target, start, stop, direction):
    """``p = z + keep p`` for rows `start` to `stop`, lane by lane."""
    _launch_flat(turn_quads, (memory.put(keeps), _flat(target)), start, stop, direction)


def take_steps(steps, direction, start, stop, x):
    """``x += step p`` for rows `start` to `stop`, lane by lane."""
    _launch_flat(step_quads, (memory.put(steps), _flat(direction)), start, stop, x)


def subtract_from(left, start, stop, out):
    """``out = left - out`` for rows `start` to `stop` of two panels (n_rows, d, LANES)."""
    _launch_flat(subtract_quads, (_flat(left),), start, stop, out)


def scale(factors, start, stop, panel):
    """``panel *= factors`` for rows `start` to `stop`, lane by lane: factors are (LANES,)."""
    _launch_flat(scale_quads, (memory.put(factors),), start, stop, panel)


def clear(start, stop, panel):
    """``panel = 0`` for rows `start` to `stop`."""
    _launch_flat(clear_quads, (), start, stop, panel)


def _flat(panel):
    return panel.reshape(panel.size)


def _launch_flat(function, before, start, stop, panel):
    quads = panel.shape[1] * LANES // 4
    blocks = -(-max(0, stop - start) * quads // _THREADS)
    blocks = min(blocks, _PER_PROCESSOR * processors())
    launch(function, blocks, _THREADS, *before, start * quads, stop * quads, _flat(panel))
