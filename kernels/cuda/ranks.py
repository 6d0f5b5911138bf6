"""Ranks: how many candidates score above the answer of a question, and how many tie with it.

2 * n * d operations a question, compared in registers; nothing but counts leaves the chip. Scores
have the CPU's bits (see `tiles`), so counts are the CPU's, and so are ties.
"""

import numpy as np

from . import memory
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch, processors
from .simd import WHOLE, tree_sum
from .tiles import LEFT, RIGHT, THREADS, column_of, pack, row_of, score_at, tile_product

__all__ = ["count_ranks"]

_THREADS = 32 if SIMULATED else 256
_BLOCKS = 4  # a multiprocessor: candidates are divided where there are few questions


def count_ranks(rows, n, vectors, targets, excluded, start, stop, greater, equal):
    """Count the candidates that score above, and the others that score as, the right answers.

    See the twin in kernels.cpu. Counts are added up by atomic operations on whole numbers.
    """
    m, d = stop - start, vectors.shape[1]
    if m <= 0:
        return
    packed, own = pack(vectors, start, stop), memory.empty(m, vectors.dtype)
    launch(
        _start_counts, -(-m * 32 // _THREADS), _THREADS, rows, n, vectors, targets, excluded,
        start, stop, own, greater, equal, wait=False,
    )  # fmt: skip
    tiles, heights = -(-n // RIGHT), -(-m // LEFT)
    widths = min(tiles, max(1, _BLOCKS * processors() // heights))
    launch(_count_tiles, (heights, widths), THREADS, rows, n, packed, own, d, start, greater, equal)


@kernel
def _start_counts(rows, n, vectors, targets, excluded, start, stop, own, greater, equal):
    """Scores of the answers; counts begin below 0 by what the tiles will count in vain.

    That are the answer itself and what is left out. A warp for each question.
    """
    q, lane = start + cuda.grid(1) // 32, cuda.grid(1) % 32
    if q >= stop:
        return
    target = targets[q]
    score = score_at(vectors, q, rows, n, target)
    above, ties = np.int32(0), np.int32(0)
    for place in range(excluded.starts[q] + lane, excluded.stops[q], 32):
        c = excluded.places[place]
        if c != target:
            other = score_at(vectors, q, rows, n, c)
            above += np.int32(not other <= score)
            ties += np.int32(other == score)
    above = tree_sum(WHOLE, above + cuda.shfl_xor_sync(WHOLE, above, 16))
    ties = tree_sum(WHOLE, ties + cuda.shfl_xor_sync(WHOLE, ties, 16))
    if lane == 0:
        own[q - start] = score
        greater[q] = -above - np.int32(not score <= score)
        equal[q] = -ties - np.int32(score == score)


@kernel
def _count_tiles(rows, n, packed, own, d, start, greater, equal):
    """Add the counts of every gridDim.y-th tile of candidates."""
    top, m = cuda.blockIdx.x * LEFT, own.shape[0]
    sums = cuda.local.array(64, own.dtype)
    counts = cuda.local.array(16, np.int32)
    for i in range(16):
        counts[i] = 0
    for tile in range(cuda.blockIdx.y, (n + RIGHT - 1) // RIGHT, cuda.gridDim.y):
        base = tile * RIGHT
        tile_product(packed, top, rows, n, base, d, sums)
        _count_row(sums, 0, n - base, own, top, counts)
        _count_row(sums, 1, n - base, own, top, counts)
        _count_row(sums, 2, n - base, own, top, counts)
        _count_row(sums, 3, n - base, own, top, counts)
        _count_row(sums, 4, n - base, own, top, counts)
        _count_row(sums, 5, n - base, own, top, counts)
        _count_row(sums, 6, n - base, own, top, counts)
        _count_row(sums, 7, n - base, own, top, counts)
    for r in range(8):
        above, ties = tree_sum(WHOLE, counts[2 * r]), tree_sum(WHOLE, counts[2 * r + 1])
        q = top + row_of(r)
        if cuda.threadIdx.x == 0 and q < m:
            cuda.atomic.add(greater, start + q, above)
            cuda.atomic.add(equal, start + q, ties)


@inner_kernel(forceinline=True)
def _count_row(sums, r, left, own, top, counts):
    """Count a thread's r-th row of scores, of the `left` candidates from the tile on."""
    q = top + row_of(r)
    score = own[np.uintp(min(q, own.shape[0] - 1))]
    for c in range(8):
        inside = column_of(c) < left
        counts[2 * r] += np.int32(inside and not sums[8 * r + c] <= score)
        counts[2 * r + 1] += np.int32(inside and sums[8 * r + c] == score)
