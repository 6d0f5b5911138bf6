"""The training loss of matrix factorization, example by example, at fixed parameters."""

import numpy as np

from .jit import kernel
from .losses import BPR, SQUARED, candidate_curvatures, candidate_gradients
from .simd import dot

__all__ = ["edge_losses"]


@kernel
def edge_losses(
    loss, parameters, edges, users, items, values, weights, share, mean, regularization, start,
    stop, gradients, curvatures, losses,
):  # fmt: skip
    """Loss of examples `start` to `stop`, and its derivatives by the scores of their edges.

    Parameters
    ----------
    loss : {SQUARED, LOGISTIC, BPR}
    parameters : (n_rows, d)
        Factors, then the bias.
    edges : Edges
    users, values, weights : (n,)
        Of the examples, in the order of the edges.
    items : (m,) int32
        Row of the item of each edge.
    share : float
        What a negative counts: one over the number of epochs whose negatives are edges.
    mean, regularization : float
    start, stop : int
    gradients, curvatures : (m,)
        ``dL/df`` and the curvature (see `losses.candidate_curvatures`), times the weight.
    losses : (n,) float64
        With regularization, times the weight.
    """
    most = 0
    for j in range(start, stop):
        most = max(most, edges.first[j + 1] - edges.first[j])
    dtype, k = parameters.dtype, parameters.shape[1] - 1
    scores, slopes, bends = np.empty(most, dtype), np.empty(most, dtype), np.empty(most, dtype)
    for j in range(start, stop):
        own, n_negatives = edges.first[j], edges.first[j + 1] - edges.first[j] - 1
        row, value, weight = parameters[users[j]], dtype.type(values[j]), weights[j]
        norms = np.float64(dot(row, row))
        for c in range(n_negatives + 1):
            other = parameters[items[own + c]]
            scores[c] = dtype.type(mean) + row[k] + other[k] + dot(row[:k], other[:k])
            norms += (1.0 if c == 0 else share) * np.float64(dot(other, other))
        if loss == SQUARED:
            slopes[0], bends[0] = scores[0] - value, dtype.type(1)
            cost = 0.5 * np.float64(slopes[0]) ** 2
        else:
            of_own = 0.0
            if loss != BPR:
                of_own = candidate_gradients(loss, scores, value, 0, slopes)
            of_all = candidate_gradients(loss, scores, value, n_negatives, slopes)
            cost = of_own + share * (of_all - of_own)
            candidate_curvatures(loss, value, n_negatives, slopes, bends)
            for c in range(0 if loss == BPR else 1, n_negatives + 1):
                slopes[c] *= dtype.type(share)
                bends[c] *= dtype.type(share)
        for c in range(n_negatives + 1):
            gradients[own + c], curvatures[own + c] = weight * slopes[c], weight * bends[c]
        losses[j] = weight * (cost + 0.5 * regularization * norms)
