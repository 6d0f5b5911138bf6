"""Products of the rows at the ends of edges with a panel: what `hessian.slopes` is made of.

An edge moves d numbers of the row at its other end and 16 of its own, for 32 d floating-point
operations. The rows mostly come from the L2 cache, so shared memory and arithmetic are the bound:
a warp brings 32 rows to shared memory number by number, whole lines at a time (d is no multiple
of four), and a thread reads them four at a time for 4 edges x 4 lanes: two loads of four numbers
for 16 multiplications.

Places are cast to unsigned integers: signed ones are reckoned from the end where they are negative,
two instructions a dimension. A `range` with a step that is no constant divides.
"""

import numpy as np

from .bisection import group_of
from .fours import add4, gather4, put4, same4
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch, processors
from .simd import load4

__all__ = ["THREADS", "slopes"]

_WARPS = 1 if SIMULATED else 4
THREADS = 32 * _WARPS
# Blocks for a multiprocessor: it has room for six in float32, for four in float64, so that either
# is done in whole rounds, and few wait for the last.
_BLOCKS = 1 if SIMULATED else 24
_STRIDE = 36  # of rows of 32 numbers: whole vectors of four, each of eight on banks of its own
_TILE = 32 * _STRIDE
_TILES = _WARPS * _TILE


@inner_kernel
def _number(rows, others, place, behind, f):
    """Number f of the row at the other end of a place; 0 where there is no such place or f."""
    if place < behind and f < rows.shape[1]:
        return rows[np.uintp(others[np.uintp(place)]), np.uintp(f)]
    return rows.dtype.type(0)


@inner_kernel
def _fill(rows, others, place, behind, first, tile, base, lane):
    """Columns from `first` on of the rows of 32 places: a warp reads along one or more of them."""
    width, shift = 32, 5
    while width > 8 and width // 2 >= rows.shape[1] - first:
        width, shift = width // 2, shift - 1
    column, step = lane & (width - 1), 32 >> shift
    f, e = first + column, lane >> shift
    while e < 32:  # eight loads before the first is waited for
        x0 = _number(rows, others, place + e, behind, f)
        x1 = _number(rows, others, place + e + step, behind, f)
        x2 = _number(rows, others, place + e + 2 * step, behind, f)
        x3 = _number(rows, others, place + e + 3 * step, behind, f)
        x4 = _number(rows, others, place + e + 4 * step, behind, f)
        x5 = _number(rows, others, place + e + 5 * step, behind, f)
        x6 = _number(rows, others, place + e + 6 * step, behind, f)
        x7 = _number(rows, others, place + e + 7 * step, behind, f)
        at = base + e * _STRIDE + column
        tile[np.uintp(at)] = x0
        tile[np.uintp(at + step * _STRIDE)] = x1
        tile[np.uintp(at + 2 * step * _STRIDE)] = x2
        tile[np.uintp(at + 3 * step * _STRIDE)] = x3
        tile[np.uintp(at + 4 * step * _STRIDE)] = x4
        tile[np.uintp(at + 5 * step * _STRIDE)] = x5
        tile[np.uintp(at + 6 * step * _STRIDE)] = x6
        tile[np.uintp(at + 7 * step * _STRIDE)] = x7
        e += 8 * step


@inner_kernel
def _write(out, numbers, place, behind, at, added, four):
    if place >= behind:
        return
    slopes = out[np.uintp(numbers[np.uintp(place)])]
    if added:
        gather4(slopes, at, four)
    else:
        put4(slopes, at, four)


@kernel
def along_panel(rows, pointers, others, numbers, panel, start, stop, added, out):
    """A warp: up to 32 edges of one row at a time, four edges and four lanes a thread.

    The panel is flat.
    """
    tile = cuda.shared.array(_TILES, rows.dtype, alignment=16)
    lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
    base, group, at = warp * _TILE, lane >> 2, (lane & 3) * 4
    d, zero = rows.shape[1], rows.dtype.type(0)
    number, n_warps = cuda.blockIdx.x * _WARPS + warp, cuda.gridDim.x * _WARPS
    n_places = pointers[stop] - pointers[start]
    place = pointers[start] + n_places * number // n_warps
    last = pointers[start] + n_places * (number + 1) // n_warps
    row = group_of(pointers, start, stop, place)
    while place < last:
        while pointers[np.uintp(row + 1)] <= place:
            row += 1
        behind = min(place + 32, min(last, pointers[np.uintp(row + 1)]))
        s0 = s1 = s2 = s3 = same4(zero)
        for first in range(0, d, 32):
            _fill(rows, others, place, behind, first, tile, base, lane)
            cuda.syncwarp()
            for f in range(0, min(32, d - first), 4):
                x0 = load4(tile, base + group * _STRIDE + f)
                x1 = load4(tile, base + (group + 8) * _STRIDE + f)
                x2 = load4(tile, base + (group + 16) * _STRIDE + f)
                x3 = load4(tile, base + (group + 24) * _STRIDE + f)
                there, left = (row * d + first + f) * 16 + at, d - 1 - first - f
                four = load4(panel, there)
                s0, s1 = add4(s0, x0[0], four), add4(s1, x1[0], four)
                s2, s3 = add4(s2, x2[0], four), add4(s3, x3[0], four)
                four = load4(panel, there + 16 * min(1, left))  # behind the last all x are 0
                s0, s1 = add4(s0, x0[1], four), add4(s1, x1[1], four)
                s2, s3 = add4(s2, x2[1], four), add4(s3, x3[1], four)
                four = load4(panel, there + 16 * min(2, left))
                s0, s1 = add4(s0, x0[2], four), add4(s1, x1[2], four)
                s2, s3 = add4(s2, x2[2], four), add4(s3, x3[2], four)
                four = load4(panel, there + 16 * min(3, left))
                s0, s1 = add4(s0, x0[3], four), add4(s1, x1[3], four)
                s2, s3 = add4(s2, x2[3], four), add4(s3, x3[3], four)
            cuda.syncwarp()
        mine = place + group
        _write(out, numbers, mine, behind, at, added, s0)
        _write(out, numbers, mine + 8, behind, at, added, s1)
        _write(out, numbers, mine + 16, behind, at, added, s2)
        _write(out, numbers, mine + 24, behind, at, added, s3)
        place = behind


def slopes(rows, edges, panel, start, stop, added, out):
    """One end's part of the slopes of all scores along a panel: see the twin in `kernels.cpu`.

    Every warp has an even share of the edges of the rows, whatever rows they are of.
    """
    if start < stop:
        full = -(-edges.owns.shape[0] // THREADS)  # of a side there are so many; 32 for a warp
        launch(
            along_panel, min(_BLOCKS * processors(), full), THREADS, rows, edges.pointers,
            edges.others, edges.numbers, panel.reshape(panel.size), start, stop, bool(added), out,
        )  # fmt: skip
