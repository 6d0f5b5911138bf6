"""Softmaxes over all entities: of questions as they are, and how triples' changes move them.

For every triple that moves the vector x of a question all scores move: 2 * n_entities * d
operations and n_entities pairs of exponentials, which a block does for LEFT triples, tile by tile
(see `tiles`): bound by arithmetic. The changes of the scores leave no trace but two sums a triple,
of a tile in the dtype of the rows, of all tiles in float64, in a fixed order.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ..structures import LANES
from . import memory
from .exponential import LIMIT, exponential
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch
from .simd import WHOLE, fma, tree_sum
from .tiles import LEFT, RIGHT, THREADS, column_of, pack, row_of, tile_product

__all__ = ["Answers", "Moves", "answer", "fix_of", "log_changes"]

_THREADS = 32 if SIMULATED else 256


class Answers(NamedTuple):
    """What the model answers to some questions; (0, 0) and (0,) where nobody asks for it."""

    scores: Any  # (m, padded): of all entities, in whole tiles
    weights: Any  # (m, padded): their probabilities, 0 behind the last entity
    log_totals: Any  # (m,) float64: logs of the normalisers


class Moves(NamedTuple):
    """What the triples of some units, LEFT places each, changed in the score of a question."""

    rows: Any  # (n * d,): their dx, packed; 0 where a unit is not full
    fixes: Any  # (n, 2): what they added to the scores of head and tail by moving those rows
    places: Any  # (n, 2) int32: head and tail; the tail of a self loop is -1
    logs: Any  # (n,) float64: how far the log of the normaliser moved


def answer(packed, n, x):
    """Answers of n packed entities to questions with the vectors x (m, d)."""
    m, d = x.shape
    tiles = -(-n // RIGHT)
    padded = RIGHT * tiles
    scores, weights = (memory.empty((m, padded), x.dtype) for _ in range(2))
    log_totals = memory.empty(m, np.float64)
    grid = tiles, -(-m // LEFT)  # more than 65,535 tiles are allowed only first
    launch(_score, grid, THREADS, packed, n, pack(x, 0, m), d, scores, wait=False)
    launch(_normalise, m, _THREADS, scores, n, weights, log_totals, wait=False)
    return Answers(scores, weights, log_totals)


def log_changes(packed, n, d, units, first_unit, n_units, first_group, answers, moves):
    """Fill in ``moves.logs`` of `n_units` units."""
    some = units, first_unit, first_group, answers, moves
    launch(_sum_tiles, n_units, THREADS, packed, n, d, *some, wait=False)
    launch(_sum_slowly, n_units, _THREADS, packed, n, d, *some, wait=False)


@kernel
def _score(packed, n, vectors, d, scores):
    m = scores.shape[0]
    top, base = cuda.blockIdx.y * LEFT, cuda.blockIdx.x * RIGHT
    sums = cuda.local.array(64, scores.dtype)
    tile_product(vectors, top, packed, n, base, d, sums)
    for r in range(8):
        row = top + row_of(r)
        for c in range(8):
            if row < m:
                scores[np.uintp(row), np.uintp(base + column_of(c))] = sums[8 * r + c]


@kernel
def _normalise(scores, n, weights, log_totals):
    """Probabilities, and the log of the normaliser. A block for each question."""
    question, total = cuda.blockIdx.x, 0.0
    highest = -math.inf
    for c in range(cuda.threadIdx.x, n, _THREADS):
        highest = max(highest, np.float64(scores[question, c]))
    highest = _of_block(highest, True)
    for c in range(cuda.threadIdx.x, n, _THREADS):
        total += math.exp(np.float64(scores[question, c]) - highest)
    log_total = highest + math.log(_of_block(total, False))
    for c in range(cuda.threadIdx.x, scores.shape[1], _THREADS):
        weight = math.exp(np.float64(scores[question, c]) - log_total) if c < n else 0.0
        weights[question, c] = weight
    if cuda.threadIdx.x == 0:
        log_totals[question] = log_total


@inner_kernel
def _of_block(value, greatest):
    """The greatest of all threads' numbers, or their sum, in a fixed order."""
    room = cuda.shared.array(_THREADS, np.float64)
    thread, width = cuda.threadIdx.x, _THREADS // 2
    room[thread] = value
    cuda.syncthreads()
    while width > 0:
        if thread < width:
            other = room[thread + width]
            room[thread] = max(room[thread], other) if greatest else room[thread] + other
        cuda.syncthreads()
        width //= 2
    found = room[0]
    cuda.syncthreads()
    return found


@kernel
def _sum_tiles(packed, n, d, units, first_unit, first_group, answers, moves):
    """Log of ``1 + sum p (exp(change) - 1)``: NaN where changes are too large for that.

    A block for each unit.
    """
    top = cuda.blockIdx.x * LEFT
    weights = answers.weights[units[first_unit + cuda.blockIdx.x, 0] - first_group]
    sums = cuda.local.array(64, moves.rows.dtype)
    totals = cuda.shared.array((LEFT, 2), np.float64)
    thread = cuda.threadIdx.x + 16 * cuda.threadIdx.y
    if thread < LEFT:
        totals[thread, 0] = totals[thread, 1] = 0.0
    for base in range(0, n, RIGHT):
        tile_product(moves.rows, top, packed, n, base, d, sums)
        _add_row(sums, 0, base, weights, top, moves, totals)
        _add_row(sums, 1, base, weights, top, moves, totals)
        _add_row(sums, 2, base, weights, top, moves, totals)
        _add_row(sums, 3, base, weights, top, moves, totals)
        _add_row(sums, 4, base, weights, top, moves, totals)
        _add_row(sums, 5, base, weights, top, moves, totals)
        _add_row(sums, 6, base, weights, top, moves, totals)
        _add_row(sums, 7, base, weights, top, moves, totals)
    cuda.syncthreads()
    if thread < LEFT:
        moves.logs[top + thread] = _log_change(totals[thread, 0], totals[thread, 1])


@inner_kernel(forceinline=True)
def _add_row(sums, r, base, weights, top, moves, totals):
    """Add a tile's ``p (exp(change) - 1)`` and ``p exp(change)`` of a thread's r-th triple."""
    row = row_of(r)
    place = np.uintp(top + row)
    head, tail = moves.places[place, 0] - base, moves.places[place, 1] - base
    less_one = whole = sums.dtype.type(0)
    cuda.syncwarp()  # what rows have in common is loaded anew: kept, it would cost 40 registers
    for c in range(8):
        column = column_of(c)
        change = -sums[8 * r + c]
        if column == head:
            change -= moves.fixes[place, 0]
        if column == tail:
            change -= moves.fixes[place, 1]
        one, other = exponential(change)
        weight = weights[np.uintp(base + column)]
        less_one, whole = fma(weight, one, less_one), fma(weight, other, whole)
    less_one, whole = tree_sum(WHOLE, less_one), tree_sum(WHOLE, whole)
    if cuda.threadIdx.x == 0:  # of its half-warp: no other thread adds to this triple
        totals[row, 0] += less_one
        totals[row, 1] += whole


@inner_kernel
def _log_change(less_one, total):
    """Log of ``total = 1 + less_one``, from the one that is known better."""
    if not total > math.exp(-LIMIT / 2):
        return math.nan
    return math.log1p(less_one) if abs(less_one) < 0.5 else math.log(total)


@kernel
def _sum_slowly(packed, n, d, units, first_unit, first_group, answers, moves):
    """Where that gave NaN: how far the log of the normaliser moves, however far scores do."""
    top, unit = cuda.blockIdx.x * LEFT, first_unit + cuda.blockIdx.x
    question = units[unit, 0] - first_group
    for m in range(top, top + units[unit, 2] - units[unit, 1]):
        if not math.isnan(moves.logs[m]):
            continue
        highest, total = -math.inf, 0.0
        for c in range(cuda.threadIdx.x, n, _THREADS):
            score = answers.scores[question, c] - _change(packed, n, d, c, moves, m)
            if score > highest:
                total = total * math.exp(highest - score) + 1.0
                highest = score
            else:
                total += math.exp(score - highest)
        most = _of_block(highest, True)
        total = _of_block(total * math.exp(highest - most), False)
        if cuda.threadIdx.x == 0:
            moves.logs[m] = most + math.log(total) - answers.log_totals[question]


@inner_kernel
def _change(packed, n, d, c, moves, m):
    """What the triple at place m added to the score of entity c, in float64."""
    panel, place = c // LANES * LANES, m // LANES * LANES
    width = min(LANES, n - panel)
    total = moves.rows.dtype.type(0)
    for f in range(d):
        move = moves.rows[place * d + f * LANES + m - place]
        total = fma(move, packed[panel * d + f * width + c - panel], total)
    return np.float64(total) + fix_of(moves, m, c)


@inner_kernel
def fix_of(moves, m, entity):
    """What the triple at place m added to an entity's score by moving the entity's own row."""
    if moves.places[m, 0] == entity:
        return moves.fixes[m, 0]
    return moves.fixes[m, 1] if moves.places[m, 1] == entity else moves.fixes.dtype.type(0)
