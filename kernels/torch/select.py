"""Lists of the best k: torch's top-k, made to break ties by training index."""

import torch

__all__ = ["best", "merge"]


def best(scores, k):
    """The k greatest of every row (m, n), and their places; ties go to the earlier place.

    Returns (m, min(k, n)) each, in no certain order where values are equal.
    """
    k = min(k, scores.shape[1])
    values, places = scores.topk(k, dim=1)
    last = values[:, -1:]
    # topk takes any of those that tie with the last: where there are more, they are sorted.
    open_ties = ((scores >= last).sum(1) > k) & (last[:, 0] > -torch.inf)
    rows = open_ties.nonzero()[:, 0]
    if len(rows):
        falling, order = scores[rows].sort(dim=1, descending=True, stable=True)
        values[rows], places[rows] = falling[:, :k], order[:, :k]
    return values, places


def merge(top, ids, values, indices):
    """Merge entries into the lists of the best k.

    Parameters
    ----------
    top : Top
        Changed in place.
    ids : (m,) int64
        Lists, each once.
    values : (m, n) float
        -inf is no entry.
    indices : (m, n) int
        Training indices.
    """
    k = top.values.shape[1]
    values = torch.cat([top.values[ids], values.to(top.values.dtype)], 1)
    indices = torch.cat([top.indices[ids], indices.to(top.indices.dtype)], 1)
    indices.masked_fill_(values == -torch.inf, -1)
    indices, by_index = indices.sort(dim=1)
    values, by_value = values.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    top.values[ids] = values[:, :k]
    top.indices[ids] = indices.gather(1, by_value[:, :k])
