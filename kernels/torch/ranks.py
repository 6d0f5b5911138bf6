"""Ranks: how many candidates score above the answer of a question, and how many tie with it.

Questions by the hundred against all candidates in one matrix product. Whether equal rows get
scores of equal bits is up to the device's matrix product.
"""

import torch

from ..structures import Side
from .batches import CHUNK, ranges
from .panels import unpack_rows
from .reports import reported

__all__ = ["count_ranks"]


@reported("the counting of ranks")
def count_ranks(rows, n, vectors, targets, excluded, start, stop, greater, equal):
    """Count the candidates that score above, and the others that score as, the right answers.

    See the twin in kernels.cpu.
    """
    places = torch.arange(n, device=vectors.device)
    side = Side(rows, torch.tensor([0, n], device=vectors.device), places)
    candidates = unpack_rows(side, 0 * places, places, vectors.shape[1], vectors.dtype)
    step = max(1, CHUNK // (n * (vectors.itemsize + 4)))
    for first in range(start, stop, step):
        some = slice(first, min(first + step, stop))
        scores = vectors[some] @ candidates.mT
        seen = torch.ones_like(scores, dtype=torch.bool)
        questions, at = ranges(excluded.starts[some], excluded.stops[some])
        seen[questions, excluded.places[at]] = False
        targets_here = targets[some, None].long()
        seen.scatter_(1, targets_here, False)
        own = scores.gather(1, targets_here)
        greater[some] = (~(scores <= own) & seen).sum(1)
        equal[some] = ((scores == own) & seen).sum(1)
