"""Cholesky factorization of a matrix by a block of threads, in panels of 16 columns.

Of a panel as many rows as there are threads are in shared memory at a time:

- what the columns before explain is subtracted, 4 x 4 numbers a thread, in registers: eight loads
  for 16 multiplications, which are all but a few of the n^3 / 6;
- the first 16 rows, the corner, are factored by a warp, a row a lane;
- every other row is divided by the corner, a row a thread.

The factor itself stays in the memory of the device, that is in its caches: n^3 / 96 numbers come
from there, for 32 floating-point operations each. So no matrix is too large, and a block takes so
little shared memory that others can work while its warp is at the corner.

The factor stands in both triangles, so that neighbouring threads read neighbouring numbers of it.
"""

import math

import numpy as np

from .fours import add4
from .jit import SIMULATED, cuda, inner_kernel
from .simd import WHOLE, fma, load4

__all__ = ["FACTOR_ROOM", "FACTOR_THREADS", "factor", "renumbered", "solve_last_row"]

FACTOR_THREADS = 32 if SIMULATED else 128
"""Of a block that factors a matrix."""

_WIDTH = 16  # columns of a panel
_PITCH = _WIDTH + 1  # of rows in shared memory: neighbouring ones lie in different banks
_CORNER = _WIDTH * _WIDTH
_BITS = 4  # of a column's number
_ROWS = FACTOR_THREADS // _WIDTH  # of a panel that threads have one number each of

FACTOR_ROOM = FACTOR_THREADS * _PITCH
"""Numbers of shared memory that `factor` is given."""


@inner_kernel
def renumbered(threads):
    """Number of the thread, by way of shared memory (FACTOR_THREADS,) int32.

    A loop over matrices begins with it: the compiler would keep all that is made of the number it
    knows from one matrix to the next, in a hundred registers.
    """
    threads[cuda.threadIdx.x] = cuda.threadIdx.x
    cuda.syncthreads()
    return threads[cuda.threadIdx.x]


# Places by unsigned numbers: the compiler need not count negative ones from the end, and keeps
# no more than half as many registers.


@inner_kernel
def _at(matrix, f, g):
    return matrix[np.uintp(f), np.uintp(g)]


@inner_kernel
def _set(matrix, f, g, value):
    matrix[np.uintp(f), np.uintp(g)] = value


@inner_kernel
def _read(room, place):
    return room[np.uintp(place)]


@inner_kernel
def _put(room, place, value):
    room[np.uintp(place)] = value


@inner_kernel
def factor(t, tolerance, matrix, n, room):
    """Factor ``A = L L'`` in place; rows below A become ``(L^-1 row')'``. For all of a block.

    Parameters
    ----------
    t : int
        Number of the thread, `renumbered` in a kernel that factors several matrices.
    tolerance : float
        A pivot as small as this times what the diagonal was counts as zero.
    matrix : (m, m)
        The lower triangle of A in its first n rows and columns, any rows below. L is written to
        both triangles, columns of the other rows too.
    n : int
    room : (FACTOR_ROOM,), shared

    Returns
    -------
    bool
        Whether A is positive definite, the same in all threads. The matrix may be read.
    """
    corner = cuda.shared.array(_CORNER, matrix.dtype, alignment=16)  # by columns
    ones = cuda.shared.array(_WIDTH, matrix.dtype)  # over its diagonal
    failed = cuda.shared.array(1, np.int32)
    for first in range(0, n, _WIDTH):
        width = min(_WIDTH, n - first)
        for top in range(first, matrix.shape[0], FACTOR_THREADS):
            cuda.syncthreads()
            _subtract(t, matrix, first, top, room)
            cuda.syncthreads()
            if top == first:
                if t < 32:
                    _factor_corner(t, tolerance, matrix, first, width, room, corner, ones, failed)
                cuda.syncthreads()
                if failed[0] != 0:
                    cuda.syncthreads()
                    return False
            if top > first or t >= width:
                _divide(t, width, corner, ones, room)
            cuda.syncthreads()
            _write(t, matrix, first, width, top, room)
    cuda.syncthreads()
    return True


@inner_kernel
def _subtract(t, matrix, first, top, room):
    """Columns of a panel, of the rows from `top` on, without what the columns before explain.

    A thread has every fourth column of every 32nd row. What lies above the diagonal, or beyond
    the matrix, is anything that can be read.
    """
    step, last = FACTOR_THREADS // 4, matrix.shape[0] - 1
    x, y = t & 3, t >> 2
    c0, c1 = min(first + x, last), min(first + x + 4, last)
    c2, c3 = min(first + x + 8, last), min(first + x + 12, last)
    r0, r1 = min(top + y, last), min(top + y + step, last)
    r2, r3 = min(top + y + 2 * step, last), min(top + y + 3 * step, last)
    s0 = _at(matrix, r0, c0), _at(matrix, r0, c1), _at(matrix, r0, c2), _at(matrix, r0, c3)
    s1 = _at(matrix, r1, c0), _at(matrix, r1, c1), _at(matrix, r1, c2), _at(matrix, r1, c3)
    s2 = _at(matrix, r2, c0), _at(matrix, r2, c1), _at(matrix, r2, c2), _at(matrix, r2, c3)
    s3 = _at(matrix, r3, c0), _at(matrix, r3, c1), _at(matrix, r3, c2), _at(matrix, r3, c3)
    for g in range(first):
        four = _at(matrix, g, c0), _at(matrix, g, c1), _at(matrix, g, c2), _at(matrix, g, c3)
        s0, s1 = add4(s0, -_at(matrix, g, r0), four), add4(s1, -_at(matrix, g, r1), four)
        s2, s3 = add4(s2, -_at(matrix, g, r2), four), add4(s3, -_at(matrix, g, r3), four)
    _put_columns(room, y * _PITCH + x, s0)
    _put_columns(room, (y + step) * _PITCH + x, s1)
    _put_columns(room, (y + 2 * step) * _PITCH + x, s2)
    _put_columns(room, (y + 3 * step) * _PITCH + x, s3)


@inner_kernel
def _put_columns(room, at, four):
    _put(room, at, four[0])
    _put(room, at + 4, four[1])
    _put(room, at + 8, four[2])
    _put(room, at + 12, four[3])


@inner_kernel
def _factor_corner(lane, tolerance, matrix, first, width, room, corner, ones, failed):
    """Factor the first rows of the room, by a warp; tell whether there is no factor."""
    row, zero, one = lane * _PITCH, matrix.dtype.type(0), matrix.dtype.type(1)
    least = zero
    if lane < width:
        least = matrix.dtype.type(tolerance) * abs(_at(matrix, first + lane, first + lane))
    if lane == 0:
        failed[0] = 0
    for j in range(width):
        value = zero
        if j <= lane < width:
            value = _read(room, row + j)
            for g in range(j):
                value = fma(-_read(room, row + g), _read(room, j * _PITCH + g), value)
        pivot, bound = cuda.shfl_sync(WHOLE, value, j), cuda.shfl_sync(WHOLE, least, j)
        if not pivot > bound:
            if lane == 0:
                failed[0] = 1
            return
        root = math.sqrt(pivot)
        if lane == j:
            _put(ones, j, one / root)
            _put(room, row + j, root)
            _put(corner, j * _WIDTH + j, root)
        elif j < lane < width:
            value *= one / root
            _put(room, row + j, value)
            _put(corner, j * _WIDTH + lane, value)
        cuda.syncwarp()


@inner_kernel
def _divide(t, width, corner, ones, room):
    """A row of the room times the inverse of the corner's transpose, four columns at a time."""
    row = t * _PITCH
    for b in range(0, width, 4):
        four = (
            _read(room, row + b),
            _read(room, row + b + 1),
            _read(room, row + b + 2),
            _read(room, row + b + 3),
        )
        for g in range(b):
            four = add4(four, -_read(room, row + g), load4(corner, g * _WIDTH + b))
        y0 = four[0] * _read(ones, b)
        four = add4(four, -y0, load4(corner, b * _WIDTH + b))
        y1 = four[1] * _read(ones, b + 1)
        four = add4(four, -y1, load4(corner, (b + 1) * _WIDTH + b))
        y2 = four[2] * _read(ones, b + 2)
        four = add4(four, -y2, load4(corner, (b + 2) * _WIDTH + b))
        _put(room, row + b, y0)
        _put(room, row + b + 1, y1)
        _put(room, row + b + 2, y2)
        _put(room, row + b + 3, four[3] * _read(ones, b + 3))


@inner_kernel
def _write(t, matrix, first, width, top, room):
    """Write the rows in the room to both triangles of the matrix."""
    rows, c = matrix.shape[0], t & (_WIDTH - 1)
    for e in range(_WIDTH):
        r = (t >> _BITS) + e * _ROWS
        if top + r < rows and c < width and first + c <= top + r:
            _set(matrix, top + r, first + c, _read(room, r * _PITCH + c))
    for c in range(width):
        if first + c < top + t < rows:
            _set(matrix, first + c, top + t, _read(room, t * _PITCH + c))


@inner_kernel
def solve_last_row(t, matrix, room):
    """Let the last row of a factored matrix, ``(L^-1 b)'``, become ``(A^-1 b)'``.

    For all of a block; the matrix may be read behind it.
    """
    n, c = matrix.shape[0] - 1, t & (_WIDTH - 1)
    for back in range(0, n, _WIDTH):
        first = ((n - 1) & ~(_WIDTH - 1)) - back
        width = min(_WIDTH, n - first)
        for e in range(_WIDTH // _ROWS):
            r = (t >> _BITS) + e * _ROWS
            if c <= r < width:
                _put(room, r * _PITCH + c, _at(matrix, first + r, first + c))
        cuda.syncthreads()
        if t < 32:
            _solve_corner(t, matrix, first, width, room)
        cuda.syncthreads()
        for f in range(t, first, FACTOR_THREADS):
            value = _at(matrix, n, f)
            for g in range(first, first + width):
                value = fma(-_at(matrix, g, f), _at(matrix, n, g), value)
            _set(matrix, n, f, value)
        cuda.syncthreads()


@inner_kernel
def _solve_corner(lane, matrix, first, width, room):
    """Solve for some numbers of the last row, those behind having been taken out; by a warp."""
    n = matrix.shape[0] - 1
    value = one = matrix.dtype.type(0)
    if lane < width:
        value = _at(matrix, n, first + lane)
        one = matrix.dtype.type(1) / _read(room, lane * _PITCH + lane)
    for back in range(width):
        j = width - 1 - back
        solved = cuda.shfl_sync(WHOLE, value * one, j)
        if lane == j:
            value = solved
        elif lane < j:
            value = fma(-_read(room, j * _PITCH + lane), solved, value)
    if lane < width:
        _set(matrix, n, first + lane, value)
