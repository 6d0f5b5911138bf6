"""The Hessian of the training loss at fixed parameters, times 16 vectors at once, on a GPU.

Products with panels are in `edge_slopes` and `edge_sums`. What is here goes through its arrays
once, and their bytes are the bound: 128 an edge for `bend` and 80 for `credit` in float32, 64 a
number for `row_dots`, a row an edge for the others.
"""

import math

import numpy as np

from .edge_slopes import slopes
from .edge_sums import pull, row_blocks
from .fours import add4, put4, same4, sum4, times4
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch
from .losses import BPR
from .simd import load4, tree_sum

__all__ = [
    "bend",
    "credit",
    "gradient_norms",
    "own_credit",
    "pull",
    "row_blocks",
    "row_dots",
    "slopes",
]

THREADS = 32 if SIMULATED else 128
"""Of a block of every kernel here."""


def _launch(kernel, n, team, *arguments):
    """Run a kernel with a team of threads for each of n rows or examples."""
    launch(kernel, -(-n * team // THREADS), THREADS, *arguments)


@inner_kernel
def _member(team, start):
    """Which one this thread is for, counted from `start`, and its number in the team."""
    thread = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    return start + thread // team, thread % team


# ---------------------------------------------------------------- by lanes: four threads each


@kernel
def bend_examples(loss, first, curvatures, start, stop, slopes, out):
    """Four threads an example, four lanes each."""
    j, lanes = _member(4, start)
    if j >= stop:
        return
    lanes *= 4
    zero, one, own = curvatures.dtype.type(0), curvatures.dtype.type(1), first[j]
    if loss != BPR:
        for e in range(own, first[j + 1]):
            put4(out[e], lanes, times4(curvatures[e], load4(slopes[e], lanes)))
        return
    mine = load4(slopes[own], lanes)
    total = same4(zero)
    for e in range(own + 1, first[j + 1]):  # of the lead over the example
        lead = times4(curvatures[e], add4(load4(slopes[e], lanes), -one, mine))
        put4(out[e], lanes, lead)
        total = add4(total, -one, lead)
    put4(out[own], lanes, total)


def bend(loss, first, curvatures, start, stop, slopes, out):
    """Change of dL/df of every edge along the slopes of all: see the twin in `kernels.cpu`."""
    _launch(bend_examples, stop - start, 4, loss, first, curvatures, start, stop, slopes, out)


@kernel
def credit_examples(
    first, examples, users, items, gradients, l2, slopes, dots, start, stop, out
):  # fmt: skip
    """Four threads an example, four lanes each."""
    j, lanes = _member(4, start)
    if j >= stop:
        return
    lanes *= 4
    own = first[j]
    total = times4(-l2[own], load4(dots[users[j]], lanes))
    for e in range(own, first[j + 1]):
        total = add4(total, -gradients[e], load4(slopes[e], lanes))
        total = add4(total, -l2[e], load4(dots[items[e]], lanes))
    put4(out[examples[j]], lanes, total)


def credit(edges, users, items, gradients, l2, slopes, dots, start, stop, out):
    """Minus the slope of every example's own loss along the panel: see `kernels.cpu`."""
    _launch(
        credit_examples, stop - start, 4, edges.first, edges.examples, users, items, gradients,
        l2, slopes, dots, start, stop, out,
    )  # fmt: skip


# ---------------------------------------------------------------- by numbers of a row


@kernel
def dots_of_rows(parameters, panel, start, stop, out):
    """A warp a row: eight of its numbers at once, four lanes a thread."""
    row, lane = _member(32, start)
    if row >= stop:
        return
    lanes, zero = lane % 4 * 4, parameters.dtype.type(0)
    total = same4(zero)
    for f in range(lane // 4, parameters.shape[1], 8):
        total = add4(total, parameters[row, f], load4(panel[row, f], lanes))
    total = sum4(total)
    if lane < 4:
        put4(out[row], lanes, total)


def row_dots(parameters, panel, start, stop, out):
    """``out[row] = parameters[row] . panel[row]``: (n_rows, LANES)."""
    _launch(dots_of_rows, stop - start, 32, parameters, panel, start, stop, out)


@inner_kernel
def half_sum(value):
    """Sum over the 16 threads of this half of a warp."""
    return tree_sum(0xFFFF << (cuda.threadIdx.x & 16), value)


@kernel
def norms_of_gradients(
    parameters, rows, first, examples, users, items, gradients, l2, start, stop, out
):
    """16 threads an example: each takes every sixteenth number of all rows, in float64."""
    j, lane = _member(16, start)
    if j >= stop:
        return
    u, own, behind, total = users[j], first[j], first[j + 1], 0.0
    for f in range(lane, rows.shape[1], 16):
        slope = np.float64(l2[own]) * parameters[u, f]
        for e in range(own, behind):
            slope += np.float64(gradients[e]) * rows[items[e], f]
        total += slope * slope
    for e in range(own, behind):
        i, known = items[e], False  # drawn in several epochs: its gradients belong together
        for before in range(own, e):
            known = known or items[before] == i
        for f in range(lane, 0 if known else rows.shape[1], 16):
            slope = 0.0
            for same in range(e, behind):
                if items[same] == i:
                    slope += np.float64(gradients[same]) * rows[u, f]
                    slope += np.float64(l2[same]) * parameters[i, f]
            total += slope * slope
    total = half_sum(total)
    if lane == 0:
        out[examples[j]] = math.sqrt(total)


def gradient_norms(parameters, rows, edges, users, items, gradients, l2, start, stop, out):
    """Norms of the gradients of examples' own losses: see the twin in `kernels.cpu`."""
    _launch(
        norms_of_gradients, stop - start, 16, parameters, rows, edges.first, edges.examples,
        users, items, gradients, l2, start, stop, out,
    )  # fmt: skip


@kernel
def credit_of_own(parameters, rows, first, examples, users, items, gradients, l2, start, stop, out):
    """16 threads an example: each takes every sixteenth number of all rows, in float64."""
    j, lane = _member(16, start)
    if j >= stop:
        return
    u, own, total = users[j], first[j], 0.0
    i = items[own]
    for f in range(lane, rows.shape[1], 16):
        p, q = np.float64(rows[u, f]), np.float64(rows[i, f])
        slope = q * l2[own] * parameters[u, f]
        for e in range(own, first[j + 1]):
            slope += q * gradients[e] * rows[items[e], f]
            if items[e] == i:
                slope += p * gradients[e] * p + p * l2[e] * parameters[i, f]
        total += slope
    total = half_sum(total)
    if lane == 0:
        out[examples[j]] = -total


def own_credit(parameters, rows, edges, users, items, gradients, l2, start, stop, out):
    """Minus the slope of every example's own loss along its own score: see `kernels.cpu`."""
    _launch(
        credit_of_own, stop - start, 16, parameters, rows, edges.first, edges.examples, users,
        items, gradients, l2, start, stop, out,
    )  # fmt: skip
