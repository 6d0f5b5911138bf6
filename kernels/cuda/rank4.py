"""Four rank-one updates of a small matrix, then four products with it, in registers.

Vectors of inputs and of outputs are interleaved by four, ``vectors[4 f + q]`` is element f of
vector q: one 128-bit load serves four multiply-adds of every element that a thread holds. Each
thread holds a tile of `rows` x `columns`, the same in every pass; the products of a tile are
summed over the threads of a row of tiles by halving: of 4 * rows sums a thread hands on half,
then half of what is left, until it is left with one output of all four vectors.

Counts, not measurements: a pass over a matrix of 64 x 64 is 512 multiply-adds, 24 loads of shared
memory, and 28 shuffles with as many sums and twice as many choices a thread. 648 instructions are
issued for 512 multiply-adds, so at most 79 % of the float32 rate can be had, less what `products`
and `plans` take; shared memory is asked for at most 24 * 4 + 28 = 124 cycles of a multiprocessor a
warp, where arithmetic alone takes 128. A thread has 64 elements and 32 sums: less would be more
loads for each multiply-add, more would leave the registers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .jit import SIMULATED, cuda, inner_kernel
from .simd import WHOLE, load4, store4

__all__ = ["RANK", "Matrix", "in_memory", "in_registers"]

RANK = 4

_TILES = {  # (width, bytes of a number): rows and columns of a tile, threads across a row
    (16, 4): (4, 2, 8),
    (32, 4): (8, 4, 8),
    (64, 4): (8, 8, 8),
    (128, 4): (8, 8, 16),
    (16, 8): (4, 2, 8),
    (32, 8): (4, 4, 8),
}


class Matrix(NamedTuple):
    """What a kernel does with a matrix that its block holds in one way or another.

    It is given transposed, ``matrix[f, r]``, with k inputs f and k outputs r.
    """

    threads: int  # of a block
    size: int  # elements a thread holds; 0: none
    load: Callable[..., None] | None  # (tile, matrix, k)
    store: Callable[..., None] | None  # (tile, matrix, k)
    scale: Callable[..., None]  # (tile, k, factor)
    shrink: Callable[..., None]  # (tile, k, keeps, start): column f by keeps[start + f]
    update: Callable[..., None]  # (tile, k, floats, out, right): see below
    multiply: Callable[..., None]  # (tile, k, floats, left, column, width, out)


# Groups of four vectors begin at `left`, `right` and `out` of the numbers of a block, `floats`, and
# a column of `width` numbers at `column`. `update` adds the sum of out_q right_q^T; `multiply`
# makes out_q = tile left_q + left_q[width] column, the last input being the bias.


@functools.cache
def in_registers(width: int, number: Any) -> Matrix | None:
    """Matrices of up to `width` numbers a side, spread over a block; None if they are too large.

    Parameters
    ----------
    width : {16, 32, 64, 128}
    number : {np.float32, np.float64}
    """
    if (width, number(0).itemsize) not in _TILES:
        return None
    rows, columns, across = _TILES[width, number(0).itemsize]
    size, n_sums, share = rows * columns, RANK * rows, across // rows
    halvings, folds = rows.bit_length() - 1, share.bit_length() - 1

    @inner_kernel
    def load(tile, matrix, k):
        first, c = cuda.threadIdx.x // across * rows, cuda.threadIdx.x % across
        for j in range(columns):
            f = c + across * j
            for i in range(rows):
                r = first + i
                tile[i * columns + j] = matrix[f, r] if f < k and r < k else number(0)

    @inner_kernel
    def store(tile, matrix, k):
        # The index is asked of itself: places that the compiler knows from `load` would be kept
        # in registers all the while.
        t = cuda.shfl_sync(WHOLE, cuda.threadIdx.x, cuda.threadIdx.x)
        first, c = t // across * rows, t % across
        for j in range(columns):
            f = c + across * j
            for i in range(rows):
                if f < k and first + i < k:
                    matrix[f, first + i] = tile[i * columns + j]

    @inner_kernel
    def scale(tile, k, factor):
        for n in range(size):
            tile[n] *= factor

    @inner_kernel
    def shrink(tile, k, keeps, start):
        for j in range(columns):
            keep = keeps[np.uintp(start + cuda.threadIdx.x % across + across * j)]
            for i in range(rows):
                tile[i * columns + j] *= keep

    @inner_kernel
    def update(tile, k, floats, out, right):
        first, c = cuda.threadIdx.x // across * rows, cuda.threadIdx.x % across
        held = cuda.local.array(n_sums, number)
        for i in range(rows):
            a, b, c4, d = load4(floats, out + RANK * (first + i))
            held[4 * i], held[4 * i + 1], held[4 * i + 2], held[4 * i + 3] = a, b, c4, d
        for j in range(columns):
            a, b, c4, d = load4(floats, right + RANK * (c + across * j))
            for i in range(rows):
                tile[i * columns + j] += held[4 * i] * a
                tile[i * columns + j] += held[4 * i + 1] * b
                tile[i * columns + j] += held[4 * i + 2] * c4
                tile[i * columns + j] += held[4 * i + 3] * d

    @inner_kernel
    def multiply(tile, k, floats, left, column, width, out):
        t = cuda.threadIdx.x
        sums = cuda.local.array(n_sums, number)
        for n in range(n_sums):
            sums[n] = number(0)
        for j in range(columns):
            a, b, c, d = load4(floats, left + RANK * (t % across + across * j))
            for i in range(rows):
                m = tile[i * columns + j]
                sums[4 * i] += m * a
                sums[4 * i + 1] += m * b
                sums[4 * i + 2] += m * c
                sums[4 * i + 3] += m * d
        for step in range(halvings):
            bit, half = across >> (step + 1), n_sums >> (step + 1)
            upper = t & bit
            for n in range(half):
                mine, its = sums[n], sums[n + half]
                if upper:
                    mine, its = its, mine
                sums[n] = mine + cuda.shfl_xor_sync(WHOLE, its, bit)
        for step in range(folds):
            for q in range(RANK):
                sums[q] += cuda.shfl_xor_sync(WHOLE, sums[q], share >> (step + 1))
        if t % across % share == 0:
            r = t // across * rows + t % across // share
            a, b, c, d = load4(floats, left + RANK * width)
            bias = floats[np.uintp(column + r)]
            store4(
                floats, out + RANK * r, sums[0] + bias * a, sums[1] + bias * b,
                sums[2] + bias * c, sums[3] + bias * d,
            )  # fmt: skip

    threads = width // rows * across
    return Matrix(threads, size, load, store, scale, shrink, update, multiply)


@functools.cache
def in_memory(number: Any) -> Matrix:
    """Matrices of any size, left where they are: bound by the L2 that their rows come from."""
    threads = 32 if SIMULATED else 256

    @inner_kernel
    def scale(matrix, k, factor):
        for r in range(cuda.threadIdx.x, k, threads):
            for f in range(k):
                matrix[f, r] *= factor

    @inner_kernel
    def shrink(matrix, k, keeps, start):
        for r in range(cuda.threadIdx.x, k, threads):
            for f in range(k):
                matrix[f, r] *= keeps[start + f]

    @inner_kernel
    def update(matrix, k, floats, out, right):
        for r in range(cuda.threadIdx.x, k, threads):
            p, g = load4(floats, out + RANK * r), np.uintp(r)
            for f in range(k):
                a, b, c, d = load4(floats, right + RANK * f)
                matrix[f, g] += p[0] * a + p[1] * b + p[2] * c + p[3] * d

    @inner_kernel
    def multiply(matrix, k, floats, left, column, width, out):
        for r in range(cuda.threadIdx.x, k, threads):
            x, g = load4(floats, left + RANK * width), np.uintp(r)
            bias = floats[np.uintp(column + r)]
            a, b, c, d = bias * x[0], bias * x[1], bias * x[2], bias * x[3]
            for f in range(k):
                x, m = load4(floats, left + RANK * f), matrix[f, g]
                a += m * x[0]
                b += m * x[1]
                c += m * x[2]
                d += m * x[3]
            store4(floats, out + RANK * r, a, b, c, d)

    return Matrix(threads, 0, None, None, scale, shrink, update, multiply)
