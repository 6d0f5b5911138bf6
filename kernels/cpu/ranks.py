"""Ranks: how many candidates score above the answer of a question, and how many tie with it.

Scores come tile by tile from the matrix product of the read-out and are counted while in cache;
nothing is kept but the counts. The bits of a score depend on the row and the question alone
(see `panels`), so equal rows tie exactly and no number of threads changes a count.
"""

import numpy as np

from .jit import inner_kernel, kernel
from .lanes import LANES
from .panels import panel_scores

__all__ = ["count_ranks"]

QUESTIONS = 256  # of a tile
CANDIDATES = 256  # of a tile: 256 KiB of float32


@kernel
def count_ranks(rows, n, vectors, targets, excluded, start, stop, greater, equal):
    """Count the candidates that score above, and the others that score as, the right answers.

    A NaN ranks worst as an answer and counts as above as a candidate: a rank is never better
    for a score that is no number.

    Parameters
    ----------
    rows : (n * d,) float
        One group of packed rows, the candidates.
    n : int
    vectors : (n_questions, d) float
        C-contiguous; the score of candidate c for question q is ``vectors[q] . row c``.
    targets : (n_questions,) int32
        The right answers, candidates themselves.
    excluded : Exclusions
        Candidates to leave out, ascending for every question; the answer may be among them.
    start, stop : int
        Questions ``start:stop`` are counted; calls on different ones may run at the same time.
    greater, equal : (n_questions,) int64, out
    """
    d = vectors.shape[1]
    tile = np.empty(QUESTIONS * CANDIDATES, vectors.dtype)
    own = np.empty(QUESTIONS, vectors.dtype)
    places = np.empty(QUESTIONS, np.int64)
    for first in range(start, stop, QUESTIONS):
        last = min(first + QUESTIONS, stop)
        block = vectors[first:last]
        for q in range(first, last):
            own[q - first] = _score_of(rows, n, vectors[q : q + 1], targets[q], tile)
            places[q - first] = excluded.starts[q]
            greater[q] = equal[q] = 0
        for base in range(0, n, CANDIDATES):
            width = min(CANDIDATES, n - base)
            one = own.dtype.type(1)
            panel_scores(rows, base * d, width, block, last - first, tile, CANDIDATES, one)
            _count_tile(tile, base, width, targets, excluded, own, places, first, last,
                        greater, equal)  # fmt: skip


@inner_kernel
def _score_of(rows, n, vector, candidate, tile):
    """The score of one candidate, with the bits it has in a tile."""
    panel = candidate // LANES * LANES
    width = min(LANES, n - panel)
    one = tile.dtype.type(1)
    panel_scores(rows, panel * vector.shape[1], width, vector, 1, tile, LANES, one)
    return tile[candidate - panel]


@inner_kernel
def _count_tile(tile, base, width, targets, excluded, own, places, first, last, greater, equal):
    """Add the counts of candidates ``base : base + width``, then take back what is left out."""
    for q in range(first, last):
        scores = tile[(q - first) * CANDIDATES : (q - first) * CANDIDATES + width]
        score, target = own[q - first], targets[q]
        above, ties = np.int32(0), np.int32(0)  # as wide as the scores: they add up as vectors
        for c in range(width):
            above += np.int32(not scores[c] <= score)
            ties += np.int32(scores[c] == score)
        place = places[q - first]
        while place < excluded.stops[q] and excluded.places[place] < base + width:
            c = excluded.places[place] - base
            if c + base != target:
                above -= np.int32(not scores[c] <= score)
                ties -= np.int32(scores[c] == score)
            place += 1
        places[q - first] = place
        if base <= target < base + width:
            above -= np.int32(not score <= score)
            ties -= np.int32(score == score)
        greater[q] += above
        equal[q] += ties
