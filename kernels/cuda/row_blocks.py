"""The Hessian of the training loss on one embedding row, or on the two rows of a pair, on a GPU.

See the twin in kernels.cpu for the formulas. All is solved by Cholesky in float64 (see `cholesky`),
a block of threads a matrix, which lies in scratch memory that stays in the L2 cache: there is one
for each block of threads at work, not for each row or pair.

A pair that was trained on takes 8/3 d^3 floating-point operations and reads 20 d^2 bytes of
couplings and blocks (in float32) and 8 (2 d)^3 / 96 of its factor: at d = 65 two operations for
each byte, mostly of the cache, so either bounds it. An example of a row takes 4 d^2 operations and
two passes over its row. `couple` writes 8 d^2 bytes a pair, for nearly no arithmetic.
"""

import numpy as np

from ..structures import LANES
from . import memory
from .cholesky import FACTOR_ROOM, FACTOR_THREADS, factor, renumbered, solve_last_row
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch, processors
from .losses import BPR
from .simd import load4
from .substitution import TILE, backward, forward, rooms

__all__ = ["THREADS", "couple", "link_pairs", "own_gradients", "solve_rows"]

THREADS = 32 if SIMULATED else 128

_AT_ONCE = 1 if SIMULATED else 4  # blocks of `FACTOR_THREADS` on a multiprocessor
_SCRATCH = 2**28  # bytes of matrices, at most
_PART = 32 if SIMULATED else 512  # examples solved with one factor, which is the work of d / 6


# ---------------------------------------------------------------- gradients


@kernel
def gradients_of_examples(
    rows, parameters, first, examples, users, items, gradients, l2, user_places, item_places,
    start, stop, user_rows, user_biases, item_rows, item_biases,
):  # fmt: skip
    """16 threads an example: each takes every sixteenth number of its rows."""
    thread = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    j, lane = start + thread // 16, thread % 16
    if j >= stop:
        return
    own, k = first[j], user_rows.shape[1]
    user, item, shrinkage = users[j], items[own], l2[own]
    by_user, by_item = user_places[examples[j]], item_places[examples[j]]
    for f in range(lane, k + 1, 16):
        mine = shrinkage * parameters[user, f]
        for e in range(own, first[j + 1]):
            mine += gradients[e] * rows[items[e], f]
        its = shrinkage * parameters[item, f] + gradients[own] * rows[user, f]
        if f < k:
            user_rows[by_user, f], item_rows[by_item, f] = mine, its
        else:
            user_biases[by_user], item_biases[by_item] = mine, its


def own_gradients(
    rows, parameters, edges, users, items, gradients, l2, places, start, stop,
    user_rows, user_biases, item_rows, item_biases,
):  # fmt: skip
    """Gradient of every example's own loss by its two rows: see the twin in `kernels.cpu`."""
    launch(
        gradients_of_examples, -(-16 * (stop - start) // THREADS), THREADS, rows, parameters,
        edges.first, edges.examples, users, items, gradients, l2, *places, start, stop,
        user_rows, user_biases, item_rows, item_biases,
    )  # fmt: skip


# ---------------------------------------------------------------- single rows


@inner_kernel
def _damped(block, f, g, damping):
    """A number of a block, in float64."""
    return np.float64(block[f, g]) + (damping if f == g else 0.0)


@inner_kernel
def _put_block(t, block, damping, matrix):
    """The damped lower triangle: a warp a row."""
    for f in range(t >> 5, block.shape[0], FACTOR_THREADS // 32):
        for g in range(t & 31, f + 1, 32):
            matrix[f, g] = _damped(block, f, g, damping)


@inner_kernel
def _number(rows, biases, place, behind, f):
    """Number f of a gradient; 0 where there is no such gradient or number."""
    if place >= behind or f > rows.shape[1]:
        return 0.0
    return np.float64(rows[place, f] if f < rows.shape[1] else biases[place])


@inner_kernel
def _negate(rows, biases, place, behind, f, value):
    """Write minus a number of a gradient, where there is such a one."""
    if place < behind:
        if f < rows.shape[1]:
            rows[place, f] = -value
        else:
            biases[place] = -value


@inner_kernel
def _solve_panel(lane, factors, divisors, slot, rows, biases, place, behind, room, base):
    """Solve for up to 16 examples, by a warp."""
    d = factors.shape[1]
    i, q = lane >> 2, (lane & 3) << 2
    mine = place + q
    for first in range(0, d, TILE):
        f = first + i
        lanes = (
            _number(rows, biases, mine, behind, f),
            _number(rows, biases, mine + 1, behind, f),
            _number(rows, biases, mine + 2, behind, f),
            _number(rows, biases, mine + 3, behind, f),
        )
        forward(factors, divisors, slot, first, lanes, room, base, i, q)
    backward(factors, divisors, slot, room, base, i, q)
    for f in range(i, d, TILE):
        four = load4(room, base + LANES * f + q)
        _negate(rows, biases, mine, behind, f, four[0])
        _negate(rows, biases, mine + 1, behind, f, four[1])
        _negate(rows, biases, mine + 2, behind, f, four[2])
        _negate(rows, biases, mine + 3, behind, f, four[3])


@kernel(launch_bounds=(FACTOR_THREADS, _AT_ONCE))
def solve_units(
    blocks, damping, tolerance, units, rows, biases, length, warps, factors, divisors, definite
):
    """A unit a block: some examples of a group, whose factor is found first."""
    room = cuda.shared.array(0, factors.dtype, alignment=16)
    threads = cuda.shared.array(FACTOR_THREADS, np.int32)
    slot, d, matrix = cuda.blockIdx.x, blocks.shape[1], factors[cuda.blockIdx.x]
    for unit in range(slot, units.shape[0], cuda.gridDim.x):
        t = renumbered(threads)
        warp = t >> 5
        group, behind = units[unit, 0], units[unit, 2]
        _put_block(t, blocks[group], damping, matrix)
        if factor(t, tolerance, matrix, d, room):
            for f in range(t, d, FACTOR_THREADS):
                divisors[slot, f] = 1.0 / matrix[f, f]
            cuda.syncthreads()
            if warp < warps:
                for place in range(units[unit, 1] + LANES * warp, behind, LANES * warps):
                    _solve_panel(
                        t & 31, factors, divisors, slot, rows, biases, place, behind, room,
                        warp * length,
                    )  # fmt: skip
        elif t == 0 and units[unit, 3] == 0:
            definite[group] = False
        cuda.syncthreads()


def solve_rows(blocks, damping, tolerance, pointers, rows, biases, start, stop, definite):
    """Multiply the gradients of every group of examples with ``-(block + damping)^-1``.

    See the twin in kernels.cpu.

    Raises
    ------
    DeviceError
        A row is too long for shared memory.
    """
    d = blocks.shape[1]
    length, warps, shared = rooms(d, np.float64, FACTOR_THREADS // 32)
    units = _units(memory.fetch(pointers[start : stop + 1]), start)
    slots = _slots(len(units), d)
    factors, divisors = (memory.empty((slots, *shape), np.float64) for shape in ((d, d), (d,)))
    memory.store(definite[start:stop], np.ones(stop - start, bool))
    launch(
        solve_units, slots, FACTOR_THREADS, blocks, float(damping), float(tolerance),
        memory.put(units), rows, biases, length, warps, factors, divisors, definite,
        shared=max(shared, 8 * FACTOR_ROOM),
    )  # fmt: skip


def _units(pointers, first_group):
    """What a block does (n_units, 4): group, first and last + 1 example, number of the part.

    The most work first.
    """
    parts = -(-np.diff(pointers) // _PART)
    groups = np.repeat(np.arange(len(parts)), parts)
    part = np.arange(len(groups)) - np.repeat(np.cumsum(parts) - parts, parts)
    starts = pointers[groups] + part * _PART
    stops = np.minimum(starts + _PART, pointers[groups + 1])
    units = np.stack([groups + first_group, starts, stops, part], 1).astype(np.int64)
    return units[np.argsort(starts - stops, kind="stable")]


def _slots(n, d):
    """How many matrices (d, d) are worked on at a time."""
    return min(n, _AT_ONCE * processors(), max(1, _SCRATCH // (8 * d * d)))


# ---------------------------------------------------------------- pairs


@inner_kernel
def _pull(loss, rows, items, curvatures, own, behind, f):
    """Curvature times number f of the derivative of an example's own score by its user's row."""
    other = np.float64(rows[items[own], f])
    if loss != BPR:
        return curvatures[own] * other
    pull = 0.0
    for e in range(own + 1, behind):
        pull += curvatures[e] * (other - rows[items[e], f])
    return pull


@kernel
def couple_pairs(
    loss, full, rows, first, users, items, gradients, curvatures, owns, starts, stops, out
):
    """A pair a block: all of its examples have the same user's row at one end."""
    pulls = cuda.shared.array(0, np.float64)
    q, t, d = cuda.blockIdx.x, cuda.threadIdx.x, rows.shape[1]
    start, stop = starts[q], stops[q]
    for f in range(t, d, THREADS):
        total = 0.0
        for at in range(start, stop):
            own, behind = first[owns[at]], first[owns[at] + 1]
            total += _pull(loss, rows, items, curvatures, own, behind, f)
        pulls[f] = total
    slope = 0.0
    for at in range(start, stop if full else start):
        slope += gradients[first[owns[at]]]
    user = users[owns[start]] if start < stop else 0
    cuda.syncthreads()
    for f in range(t // 32, d, THREADS // 32):
        for g in range(t % 32, d, 32):
            between = slope if f == g and f < d - 1 else 0.0
            out[q, f, g] = pulls[f] * rows[user, g] + between


def couple(loss, full, rows, edges, users, items, gradients, curvatures, owns, starts, stops, out):
    """The block between the two rows of pairs that were trained on: see `kernels.cpu`."""
    launch(
        couple_pairs, starts.shape[0], THREADS, loss, full, rows, edges.first, users, items,
        gradients, curvatures, owns, starts, stops, out, shared=8 * rows.shape[1],
    )  # fmt: skip


@inner_kernel
def _put_pair(t, mine, its, coupling, damping, p, q, matrix):
    """The damped lower triangle of a pair's system, and its right-hand side below."""
    d, lane = mine.shape[0], t & 31
    for f in range(t >> 5, d, FACTOR_THREADS // 32):
        for g in range(lane, d, 32):
            matrix[d + f, g] = coupling[g, f]
            if g <= f:
                matrix[f, g] = _damped(mine, f, g, damping)
                matrix[d + f, d + g] = _damped(its, f, g, damping)
    for f in range(t, d, FACTOR_THREADS):
        matrix[2 * d, f], matrix[2 * d, d + f] = q[f], p[f]


@kernel(launch_bounds=(FACTOR_THREADS, _AT_ONCE))
def link_each(
    blocks, damping, tolerance, rows, couplings, users, items, matrices, by_user, by_item, definite
):
    """A pair a block."""
    room = cuda.shared.array(FACTOR_ROOM, matrices.dtype)
    threads = cuda.shared.array(FACTOR_THREADS, np.int32)
    slot, d, matrix = cuda.blockIdx.x, rows.shape[1], matrices[cuda.blockIdx.x]
    for n in range(slot, users.shape[0], cuda.gridDim.x):
        t = renumbered(threads)
        u, i, coupling = users[n], items[n], couplings[n]
        _put_pair(t, blocks[u], blocks[i], coupling, damping, rows[u], rows[i], matrix)
        solvable = factor(t, tolerance, matrix, 2 * d, room)
        if t == 0:
            definite[n] = solvable
        if solvable:
            solve_last_row(t, matrix, room)
            for f in range(t, d, FACTOR_THREADS):
                mine, its = np.float64(rows[i, f]), np.float64(rows[u, f])
                for g in range(d):
                    mine -= coupling[f, g] * matrix[2 * d, d + g]
                    its -= coupling[g, f] * matrix[2 * d, g]
                by_user[n, f], by_item[n, f] = mine, its
        cuda.syncthreads()


def link_pairs(
    blocks, damping, tolerance, rows, couplings, users, items, by_user, by_item, definite
):
    """What the changes of a pair's rows are multiplied with, the rows being linked to each other.

    See the twin in kernels.cpu.
    """
    n = 2 * rows.shape[1] + 1
    slots = _slots(users.shape[0], n)
    launch(
        link_each, slots, FACTOR_THREADS, blocks, float(damping), float(tolerance), rows,
        couplings, users, items, memory.empty((slots, n, n), np.float64), by_user, by_item,
        definite,
    )  # fmt: skip
