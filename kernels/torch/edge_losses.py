"""The training loss of matrix factorization, example by example, at fixed parameters."""

import torch

from .batches import segment_sums, stretches
from .reports import reported

__all__ = ["BPR", "LOGISTIC", "SQUARED", "edge_losses"]

SQUARED, LOGISTIC, BPR = 0, 1, 2


@reported("the losses of examples")
def edge_losses(
    loss, parameters, edges, users, items, values, weights, share, mean, regularization, start,
    stop, gradients, curvatures, losses,
):  # fmt: skip
    """Loss of examples `start` to `stop`, and its derivatives by the scores of their edges.

    See the twin in kernels.cpu. ``losses`` are summed in float64.
    """
    bounds = edges.first[start : stop + 1]
    bytes_of_edge = 6 * parameters.shape[1] * parameters.itemsize + 100
    for begin, end in stretches(bounds.diff() * bytes_of_edge):
        some = slice(start + begin, start + end)
        pointers = bounds[begin : end + 1]
        first, behind = pointers[[0, -1]].tolist()
        ours, pointers = slice(first, behind), pointers - first
        counts, own = pointers.diff(), pointers[:-1]
        rows, others = parameters[users[some]], parameters[items[ours]]
        scores, norms = _scores(rows.repeat_interleave(counts, 0), others, mean)
        parts = torch.full_like(norms, share)  # what every edge counts
        parts[own] = 1
        if loss == SQUARED:
            slopes = scores - values[some]
            bends, costs = torch.ones_like(slopes), 0.5 * slopes.double().square()
        else:
            slopes, bends, costs = _softplus(loss, scores, values[some], pointers)
            slopes, bends = (column * parts.to(column.dtype) for column in (slopes, bends))
            if loss == BPR:
                slopes[own], bends[own] = (
                    sign * segment_sums(column, pointers)
                    for sign, column in ((-1, slopes), (1, bends))
                )
        totals = segment_sums(parts * (costs + 0.5 * regularization * norms), pointers)
        totals += 0.5 * regularization * rows.double().square().sum(1)
        losses[some] = weights[some] * totals
        heavy = weights[some].repeat_interleave(counts)
        gradients[ours], curvatures[ours] = heavy * slopes, heavy * bends


def _scores(rows, others, mean):
    """Scores (m,) of pairs of rows, and squared norms (m,) float64 of the others."""
    products = (rows[:, :-1] * others[:, :-1]).sum(1)
    return mean + rows[:, -1] + others[:, -1] + products, others.double().square().sum(1)


def _softplus(loss, scores, values, pointers):
    """Slope, curvature and value of softplus(x) of every edge; 0 of a pair's own lead.

    x is the score of what should score low, negated for a positive example, or the lead over it.
    """
    own, counts = pointers[:-1], pointers.diff()
    sign = torch.ones_like(scores)
    if loss == BPR:
        scores = scores - scores[own].repeat_interleave(counts)
    else:
        sign[own] = torch.where(values > 0, -1, 1).to(scores.dtype)
    x = sign * scores
    slopes, wide = x.sigmoid(), x.double()
    bends, costs = slopes * (1 - slopes), wide.clamp(min=0) + torch.log1p((-wide.abs()).exp())
    if loss == BPR:
        for column in (slopes, bends, costs):
            column[own] = 0
    return sign * slopes, bends, costs
