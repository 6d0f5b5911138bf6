"""Sums over the edges of a row of outer products: `hessian.pull` and `hessian.row_blocks`.

A block works on a row, whose edges' other ends come to shared memory 32 at a time, and a thread
keeps 4 x 4 numbers of the sum in registers: two loads of four numbers for 16 multiplications, so
shared memory and arithmetic are the bound. `pull` moves d + 16 numbers an edge for 32 d
floating-point operations; in the full Hessian 16 d numbers more, which then bound it. `row_blocks`
moves d numbers for d (d + 4) floating-point operations.

A block per row, not per piece of one, needs no second pass: the longest row of MovieLens takes
some hundred rounds of 32 while the other blocks do the rest.

Places are unsigned and loops are no `range` for the reasons given in `edge_slopes`.
"""

import functools

import numpy as np

from .fours import add4, gather4, put4, same4
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch
from .losses import BPR
from .simd import load4

__all__ = ["block_shape", "pull", "pull_shape", "row_blocks"]

_TOGETHER = 32  # edges whose rows are in shared memory at once
_WIDEST = 128  # columns of a block
_MOST = 32 if SIMULATED else 256  # threads of a block
_STREAMS = 8
_SHARED = 48 * 1024


@inner_kernel
def _other(others, place):
    """Which row is at the other end of a place."""
    return np.uintp(others[np.uintp(place)])


@inner_kernel
def _fill(rows, others, place, count, first, columns, room, stride):
    """Columns of the rows of some places to shared memory, zeros behind them up to the stride."""
    lane, e, n_warps = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5, cuda.blockDim.x >> 5
    while e < count:
        a, b, c = e + n_warps, e + 2 * n_warps, e + 3 * n_warps
        row_e, row_a = _other(others, place + e), _other(others, place + min(a, count - 1))
        row_b = _other(others, place + min(b, count - 1))
        row_c = _other(others, place + min(c, count - 1))
        for f in range(lane, stride, 32):
            x0 = x1 = x2 = x3 = rows.dtype.type(0)
            if f < columns:  # four loads before the first is waited for
                column = np.uintp(first + f)
                x0, x1 = rows[row_e, column], rows[row_a, column]
                x2, x3 = rows[row_b, column], rows[row_c, column]
            room[np.uintp(e * stride + f)] = x0
            if a < count:
                room[np.uintp(a * stride + f)] = x1
            if b < count:
                room[np.uintp(b * stride + f)] = x2
            if c < count:
                room[np.uintp(c * stride + f)] = x3
        e += 4 * n_warps


# ---------------------------------------------------------------- pull


@inner_kernel
def _sum_streams(room, stream, streams, at, step, s0, s1, s2, s3):
    """Sums of all streams, one after the other, in shared memory."""
    for turn in range(streams):
        if stream == turn and turn == 0:
            put4(room, at, s0)
            put4(room, at + step, s1)
            put4(room, at + 2 * step, s2)
            put4(room, at + 3 * step, s3)
        elif stream == turn:
            gather4(room, at, s0)
            gather4(room, at + step, s1)
            gather4(room, at + 2 * step, s2)
            gather4(room, at + 3 * step, s3)
        cuda.syncthreads()


@inner_kernel
def _write(out, panel, d, l2, row, f, lanes, room, at):
    """``l2 V`` and the sums."""
    if f < d:
        there = (row * d + f) * 16 + lanes
        put4(out, there, add4(load4(room, at), l2[row], load4(panel, there)))


@inner_kernel
def _beside(panel, d, other, f, lanes, slope, total):
    """Add a slope times number f of the row at the other end, unless that is the bias."""
    if f < d - 1:
        return add4(total, slope, load4(panel, (other * d + f) * 16 + lanes))
    return total


@functools.cache
def pull_kernel(full):
    """The kernel of `pull`, without what only the full Hessian needs or with it."""

    @kernel
    def pull_rows(
        rows, pointers, others, numbers, bends, gradients, panel, l2, start, width, streams, out
    ):
        """A block a row, or `width` of its columns; four columns and four lanes a thread.

        Stream n of threads takes the edges n, n + streams, ... of every round. Panels are flat.
        """
        room = cuda.shared.array(0, rows.dtype, alignment=16)
        thread, groups, zero = cuda.threadIdx.x, width // 4, rows.dtype.type(0)
        row, first, d = start + cuda.blockIdx.x, cuda.blockIdx.y * width, rows.shape[1]
        lanes, stream = (thread & 3) * 4, (thread >> 2) // groups
        group = (thread >> 2) - stream * groups
        f, of_bends = first + 4 * group, _TOGETHER * width
        s0 = s1 = s2 = s3 = same4(zero)
        place, behind = pointers[row], pointers[row + 1]
        while place < behind:
            count = min(_TOGETHER, behind - place)
            _fill(rows, others, place, count, first, min(width, d - first), room, width)
            n = thread
            while n < 4 * count:
                edge = np.uintp(numbers[np.uintp(place + (n >> 2))])
                put4(room, of_bends + 4 * n, load4(bends[edge], (n & 3) * 4))
                n += cuda.blockDim.x
            cuda.syncthreads()
            e = stream if stream < streams else count
            while e < count:
                x, four = load4(room, e * width + 4 * group), load4(room, of_bends + 16 * e + lanes)
                s0, s1 = add4(s0, x[0], four), add4(s1, x[1], four)
                s2, s3 = add4(s2, x[2], four), add4(s3, x[3], four)
                if full:
                    at = np.uintp(place + e)
                    other, slope = others[at], gradients[np.uintp(numbers[at])]
                    s0 = _beside(panel, d, other, f, lanes, slope, s0)
                    s1 = _beside(panel, d, other, f + 1, lanes, slope, s1)
                    s2 = _beside(panel, d, other, f + 2, lanes, slope, s2)
                    s3 = _beside(panel, d, other, f + 3, lanes, slope, s3)
                e += streams
            cuda.syncthreads()
            place += count
        of_sums, step = 16 * group + lanes, 16 * groups
        _sum_streams(room, stream, streams, of_sums, step, s0, s1, s2, s3)
        if stream == 0:
            _write(out, panel, d, l2, row, f, lanes, room, of_sums)
            _write(out, panel, d, l2, row, f + 1, lanes, room, of_sums + step)
            _write(out, panel, d, l2, row, f + 2, lanes, room, of_sums + 2 * step)
            _write(out, panel, d, l2, row, f + 3, lanes, room, of_sums + 3 * step)

    return pull_rows


def pull_shape(d, itemsize):
    """Parts of a row, columns of each, streams, threads and bytes of shared memory of a block."""
    parts = -(-d // _WIDEST)
    width = 4 * -(-d // (4 * parts))
    streams = min(_STREAMS, max(1, _MOST // width))
    threads = -(-width * streams // 32) * 32
    return parts, width, streams, threads, itemsize * _TOGETHER * (width + 16)


def pull(rows, edges, bends, gradients, panel, l2, start, stop, out):
    """Bring the changes of all dL/df back to rows: see the twin in `kernels.cpu`."""
    parts, width, streams, threads, shared = pull_shape(rows.shape[1], rows.dtype.itemsize)
    full = gradients is not None
    launch(
        pull_kernel(full), (stop - start, parts), threads, rows, edges.pointers, edges.others,
        edges.numbers, bends, gradients if full else l2, panel.reshape(panel.size), l2, start,
        width, streams, out.reshape(out.size), shared=shared,
    )  # fmt: skip


# ---------------------------------------------------------------- diagonal blocks


@inner_kernel
def _subtract_own(rows, numbers, owns, items, place, count, room, stride):
    """Turn the rows of items into their leads over the example's; thread by thread as `_fill`."""
    lane, e, n_warps = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5, cuda.blockDim.x >> 5
    while e < count:
        edge = np.uintp(numbers[np.uintp(place + e)])
        own = rows[np.uintp(items[np.uintp(owns[edge])])]
        for f in range(lane, rows.shape[1], 32):
            room[np.uintp(e * stride + f)] -= own[np.uintp(f)]
        e += n_warps


@inner_kernel
def _write_block(block, f, g, four, shrinkage):
    """Numbers of row f of a block from column g on, up to the diagonal, and their mirror images."""
    if f < block.shape[0]:
        for n in range(4):
            if g + n <= f:
                value = four[n] + shrinkage if g + n == f else four[n]
                block[f, g + n] = value
                block[g + n, f] = value


@kernel
def block_rows(
    loss, rows, pointers, others, numbers, owns, items, curvatures, l2, n_users, start, stride,
    together, n_tiles, out,
):  # fmt: skip
    """A block a row, or `n_tiles` of the lower triangle of 4 x 4 tiles, one a thread."""
    room = cuda.shared.array(0, rows.dtype, alignment=16)
    row, thread, zero = start + cuda.blockIdx.x, cuda.threadIdx.x, rows.dtype.type(0)
    below, right = 0, cuda.blockIdx.y * n_tiles + thread
    while right > below:
        below += 1
        right -= below
    busy, leads = thread < n_tiles and 4 * below < stride, loss == BPR and row < n_users
    s0 = s1 = s2 = s3 = same4(zero)
    place, behind = pointers[row], pointers[row + 1]
    while place < behind:
        count = min(together, behind - place)
        _fill(rows, others, place, count, 0, rows.shape[1], room, stride)
        if leads:
            _subtract_own(rows, numbers, owns, items, place, count, room, stride)
        n = thread
        while n < count:
            edge = np.uintp(numbers[np.uintp(place + n)])
            bare = leads and np.uintp(owns[edge]) == edge
            room[np.uintp(together * stride + n)] = zero if bare else curvatures[edge]
            n += cuda.blockDim.x
        cuda.syncthreads()
        for e in range(count if busy else 0):
            x, y = load4(room, e * stride + 4 * below), load4(room, e * stride + 4 * right)
            bend = room[np.uintp(together * stride + e)]
            s0, s1 = add4(s0, bend * x[0], y), add4(s1, bend * x[1], y)
            s2, s3 = add4(s2, bend * x[2], y), add4(s3, bend * x[3], y)
        cuda.syncthreads()
        place += count
    if busy:
        block, f, g = out[row], 4 * below, 4 * right
        _write_block(block, f, g, s0, l2[row])
        _write_block(block, f + 1, g, s1, l2[row])
        _write_block(block, f + 2, g, s2, l2[row])
        _write_block(block, f + 3, g, s3, l2[row])


def block_shape(d, itemsize):
    """Parts of a row, tiles of each, stride of rows, how many at once, threads, shared bytes."""
    stride = -(-d // 4) * 4
    tiles = stride // 4 * (stride // 4 + 1) // 2
    parts = -(-tiles // _MOST)
    n_tiles = -(-tiles // parts)
    together = max(1, min(_TOGETHER, _SHARED // (itemsize * (stride + 1))))
    threads = -(-n_tiles // 32) * 32
    return parts, n_tiles, stride, together, threads, itemsize * together * (stride + 1)


def row_blocks(loss, rows, edges, items, curvatures, l2, n_users, start, stop, out):
    """Diagonal blocks of the Gauss-Newton matrix: see the twin in `kernels.cpu`."""
    parts, n_tiles, stride, together, threads, shared = block_shape(
        rows.shape[1], rows.dtype.itemsize
    )
    launch(
        block_rows, (stop - start, parts), threads, loss, rows, edges.pointers, edges.others,
        edges.numbers, edges.owns, items, curvatures, l2, n_users, start, stride, together,
        n_tiles, out, shared=shared,
    )  # fmt: skip
