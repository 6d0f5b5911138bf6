"""The training loss of matrix factorization, example by example, at fixed parameters, on a GPU.

16 threads an example. A row an edge is read, whose bytes are the bound.
"""

import math

import numpy as np

from .hessian import half_sum
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch
from .losses import BPR, SQUARED

__all__ = ["THREADS", "edge_losses"]

THREADS = 32 if SIMULATED else 128


@inner_kernel
def _norm(row, lane):
    """This thread's part of the squared norm of a row."""
    total = 0.0
    for f in range(lane, row.shape[0], 16):
        total += np.float64(row[f]) * np.float64(row[f])
    return total


@inner_kernel
def _score(row, other, mean, lane):
    """The same in each of 16 threads."""
    k = row.shape[0] - 1
    total = row.dtype.type(0)
    for f in range(lane, k, 16):
        total += row[f] * other[f]
    return mean + row[k] + other[k] + half_sum(total)


@inner_kernel
def _softplus(x):
    """softplus(x), its slope sigmoid(x) and its curvature; nothing cancels or overflows."""
    one = type(x)(1)
    small = type(x)(math.exp(-abs(x)))
    upper = one / (one + small)  # sigmoid(|x|)
    slope = upper if x > 0 else small * upper
    return max(np.float64(x), 0.0) - math.log(np.float64(upper)), slope, slope * (one - slope)


@inner_kernel
def _derivatives(loss, score, own_score, is_own, value):
    """A candidate's part of the loss, its slope and curvature in the score (in bpr: the lead)."""
    if loss == SQUARED:
        slope = score - value
        return 0.5 * np.float64(slope) * np.float64(slope), slope, type(slope)(1)
    if loss == BPR:
        return _softplus(score - own_score)
    if is_own and value > 0:
        cost, slope, bend = _softplus(-score)
        return cost, -slope, bend
    return _softplus(score)


@kernel
def losses_of_examples(
    loss, parameters, first, users, items, values, weights, share, mean, regularization, start,
    stop, gradients, curvatures, losses,
):  # fmt: skip
    """16 threads an example; scores stand in `gradients` until all of them are there."""
    thread = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    j, lane = start + thread // 16, thread % 16
    if j >= stop:
        return
    own, behind, row = first[j], first[j + 1], parameters[users[j]]
    value, weight = values[j], weights[j]
    own_score, norms = value, _norm(row, lane)
    for e in range(own, behind):
        other = parameters[items[e]]
        score = _score(row, other, mean, lane)
        norms += (1.0 if e == own else share) * _norm(other, lane)
        if e == own:
            own_score = score
        if lane == 0:
            gradients[e] = score
    cuda.syncwarp(0xFFFF << (cuda.threadIdx.x & 16))
    cost, leads, bends = 0.0, type(value)(0), type(value)(0)
    for e in range(own + lane + (1 if loss == BPR else 0), behind, 16):
        counted = 1.0 if e == own else share
        part, slope, bend = _derivatives(loss, gradients[e], own_score, e == own, value)
        slope, bend = slope * type(slope)(counted), bend * type(bend)(counted)
        gradients[e], curvatures[e] = weight * slope, weight * bend
        cost, leads, bends = cost + counted * part, leads + slope, bends + bend
    cost, norms = half_sum(cost), half_sum(norms)
    leads, bends = half_sum(leads), half_sum(bends)
    if lane == 0:
        if loss == BPR:
            gradients[own], curvatures[own] = -weight * leads, weight * bends
        losses[j] = np.float64(weight) * (cost + 0.5 * regularization * norms)


def edge_losses(
    loss, parameters, edges, users, items, values, weights, share, mean, regularization, start,
    stop, gradients, curvatures, losses,
):  # fmt: skip
    """Loss of examples and its derivatives by the scores of their edges: see `kernels.cpu`."""
    launch(
        losses_of_examples, -(-16 * (stop - start) // THREADS), THREADS, loss, parameters,
        edges.first, users, items, values, weights, float(share), parameters.dtype.type(mean),
        float(regularization), start, stop, gradients, curvatures, losses,
    )  # fmt: skip
