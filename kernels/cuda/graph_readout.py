"""Read-out of row changes on triples: what a link would be with a triple's changes taken back.

Everything is computed as a change, as in the twin in kernels.cpu. A score needs a triple's one or
two changed rows: d to 4 * d numbers from memory, which is the bound; its dx is written to scratch
memory in the layout of a matrix product's operand. For probabilities the product with all entities
is the bound (see `graph_softmax`).
"""

import math

import numpy as np

from ..cpu.graph_readout import LOG_PROBABILITY, PROBABILITY, SCORE
from ..structures import LANES
from . import memory
from .bilinear import composed
from .bisection import first_from, group_of
from .graph_softmax import Answers, Moves, answer, fix_of, log_changes
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch, processors
from .simd import fma, tree_sum
from .tiles import LEFT

__all__ = [
    "LOG_PROBABILITY",
    "PROBABILITY",
    "SCORE",
    "TOGETHER",
    "read_links",
    "self_influence",
]

TOGETHER = LEFT
"""Triples whose scores make a tile."""

SCRATCH = 2**28
"""Bytes that scores of questions, and changes of triples, take at a time."""

_THREADS = 32 if SIMULATED else 256
_HALVES = _THREADS // LANES  # half-warps of a block
_BLOCKS = 4  # a multiprocessor: triples of an entity are divided where there are few links
_ROUNDED = 1e-3  # of a normaliser: where less is left, the rounding of 1 would be seen


def read_links(kind, graph, rows, packed, store, groups, units, start, stop, out):
    """Influence of triples on links: phi with all rows minus phi with the triple's taken back.

    See the twin in kernels.cpu. Units are in the order of their groups.
    """
    if start >= stop:
        return
    bounds, pointers = memory.fetch(units)[:stop], memory.fetch(groups.pointers)
    d, n, size = rows.shape[1], graph.n_entities, rows.dtype.itemsize
    at_once = max(1, SCRATCH // ((d if kind == SCORE else d + 2 * n) * size))
    units_at_once = min(stop - start, max(1, SCRATCH // (TOGETHER * d * size)))
    moves = _scratch(units_at_once * TOGETHER, d, rows.dtype)
    behind = bounds[-1, 0] + 1
    for group in range(bounds[start, 0], behind, at_once):
        last = min(group + at_once, behind)
        x = memory.empty((last - group, d), rows.dtype)
        _launch(_compose, (last - group) * d, graph, rows, groups, group, x)
        if kind == SCORE:
            nothing = memory.empty((0, 0), rows.dtype)
            answers = Answers(nothing, nothing, memory.empty(0, np.float64))
        else:
            answers = answer(packed, n, x)
        first, end = start + np.searchsorted(bounds[start:, 0], [group, last])
        opened = group + (bounds[first, 1] > 0)  # a unit before `start` did this group's targets
        place = pointers[opened]
        n_links = pointers[last] - place
        launch(
            _read_untouched, (n_links, -(-_BLOCKS * processors() // max(n_links, 1))), _THREADS,
            kind, graph, x, answers, store, groups, place, group, out, wait=False,
        )  # fmt: skip
        for unit in range(first, end, units_at_once):
            some = min(units_at_once, end - unit)
            launch(_find_moves, some, _THREADS, kind, graph, rows, store, groups, units, unit,
                   moves, wait=False)  # fmt: skip
            if kind != SCORE:
                log_changes(packed, n, d, units, unit, some, group, answers, moves)
            launch(_read_touched, some, TOGETHER, kind, rows, answers, groups, units, unit, group,
                   moves, out)  # fmt: skip


def _scratch(n, d, dtype):
    """Room for the moves of n triples."""
    return Moves(
        memory.empty(n * d, dtype),
        memory.empty((n, 2), dtype),
        memory.empty((n, 2), np.int32),
        memory.empty(n, np.float64),
    )


def self_influence(graph, rows, store, links, start, stop, out):
    """Influence of triples ``start:stop`` on the scores of their own links, to `out` (n,)."""
    blocks = -(-max(stop - start, 0) * LANES // _THREADS)
    launch(_self_influence, blocks, _THREADS, graph, rows, store, links, start, stop, out)


def _launch(function, n, *arguments):
    """Run a kernel with a thread for each of n numbers; another launch follows."""
    launch(function, -(-n // _THREADS), _THREADS, *arguments, wait=False)


# ---------------------------------------------------------------- what triples moved


@kernel
def _compose(graph, rows, groups, first_group, x):
    """Vectors of the questions."""
    at = cuda.grid(1)
    question, f = at // x.shape[1], at % x.shape[1]
    if question < x.shape[0]:
        group = first_group + question
        entity, relation = rows[groups.subjects[group]], rows[groups.relations[group]]
        x[question, f] = composed(graph.complex, groups.flips[group], entity, relation, f)


@inner_kernel
def _relation_slot(graph, relation):
    """Where triples keep what they changed in this row, and the code of its relation."""
    if relation >= graph.n_entities + graph.n_relations:
        return 3, relation - graph.n_entities - graph.n_relations
    return 2, relation - graph.n_entities


@inner_kernel
def _entity_slot(store, j, entity):
    """Where triple j keeps what it changed in the row of an entity; -1: it does not hold it."""
    if store.heads[j] == entity:
        return 0
    return 1 if store.tails[j] == entity else -1


@inner_kernel
def _move(graph, rows, store, j, subject, relation, flip, f):
    """Number f of x, and what triple j added to it."""
    slot, code = _relation_slot(graph, relation)
    at, entity, other = _entity_slot(store, j, subject), rows[subject], rows[relation]
    x = composed(graph.complex, flip, entity, other, f)
    move = type(x)(0)
    if store.relations[j] == code:
        move += composed(graph.complex, flip, entity, store.changes[j, slot], f)
        if at >= 0:  # (e - de) * dw + de * w
            change = store.changes[j, at]
            move -= composed(graph.complex, flip, change, store.changes[j, slot], f)
    if at >= 0:
        move += composed(graph.complex, flip, store.changes[j, at], other, f)
    return x, move


@kernel
def _find_moves(kind, graph, rows, store, groups, units, first_unit, moves):
    """Write the moves of a unit's triples. A block for each unit, a half-warp for each triple."""
    unit, d = first_unit + cuda.blockIdx.x, rows.shape[1]
    group, first = units[unit, 0], units[unit, 1]
    subject, relation, flip = groups.subjects[group], groups.relations[group], groups.flips[group]
    lane = cuda.threadIdx.x % LANES
    half = 0xFFFF << (cuda.threadIdx.x & LANES)
    for m in range(cuda.threadIdx.x // LANES, TOGETHER, _HALVES):
        at = cuda.blockIdx.x * TOGETHER + m
        to = at // LANES * LANES * d + at % LANES
        if m >= units[unit, 2] - first:
            for f in range(lane, d, LANES):
                moves.rows[to + LANES * f] = 0
            if lane == 0:
                moves.places[at, 0] = moves.places[at, 1] = -1
            continue
        j = groups.touched[groups.touched_pointers[group] + first + m]
        fixed = kind != SCORE or _moves_target(store, j, groups, group)
        by_head = by_tail = moves.rows.dtype.type(0)
        for f in range(lane, d, LANES):
            x, move = _move(graph, rows, store, j, subject, relation, flip, f)
            moves.rows[to + LANES * f] = move
            if fixed:
                by_head = fma(x - move, store.changes[j, 0, f], by_head)
                by_tail = fma(x - move, store.changes[j, 1, f], by_tail)
        by_head, by_tail = tree_sum(half, by_head), tree_sum(half, by_tail)
        if lane == 0:
            head, tail = store.heads[j], store.tails[j]
            moves.places[at, 0], moves.places[at, 1] = head, tail if tail != head else -1
            moves.fixes[at, 0], moves.fixes[at, 1] = by_head, by_tail


@inner_kernel
def _moves_target(store, j, groups, group):
    """Whether triple j may hold a target of the group."""
    place = groups.pointers[group]
    alone = groups.pointers[group + 1] == place + 1
    return not alone or _entity_slot(store, j, groups.targets[place]) >= 0


@kernel
def _self_influence(graph, rows, store, links, start, stop, out):
    """A half-warp for each triple."""
    j, lane = start + cuda.grid(1) // LANES, cuda.threadIdx.x % LANES
    half = 0xFFFF << (cuda.threadIdx.x & LANES)
    if j >= stop:
        return
    target = links.targets[j]
    at = _entity_slot(store, j, target)
    total = rows.dtype.type(0)
    for f in range(lane, rows.shape[1], LANES):
        x, move = _move(
            graph, rows, store, j, links.subjects[j], links.relations[j], links.flips[j], f
        )
        total = fma(move, rows[target, f], total)
        if at >= 0:
            total = fma(x - move, store.changes[j, at, f], total)
    total = tree_sum(half, total)
    if lane == 0:
        out[j] = total


# ---------------------------------------------------------------- influences


@inner_kernel
def _place_of(out, row, j):
    """Where triple j stands in a row of the matrix."""
    return first_from(out.indices, out.pointers[row], out.pointers[row + 1], j)


@inner_kernel
def _phi_change(kind, log_probability, change):
    """Change of phi, of the change of the score or of the log-probability."""
    if kind != PROBABILITY:
        return change
    if abs(change) < 1.0:
        return -math.exp(log_probability) * math.expm1(-change)
    return math.exp(log_probability) - math.exp(log_probability - change)


@kernel
def _read_touched(kind, rows, answers, groups, units, first_unit, first_group, moves, out):
    """Fill in triples that move subject or relation. A block for each unit, a thread a triple."""
    unit, d = first_unit + cuda.blockIdx.x, rows.shape[1]
    group, m = units[unit, 0], units[unit, 1] + cuda.threadIdx.x
    if m >= units[unit, 2]:
        return
    at = cuda.blockIdx.x * TOGETHER + cuda.threadIdx.x
    column = at // LANES * LANES * d + at % LANES
    j = groups.touched[groups.touched_pointers[group] + m]
    for place in range(groups.pointers[group], groups.pointers[group + 1]):
        target, row = groups.targets[place], groups.links[place]
        total, own, log = rows.dtype.type(0), 0.0, 0.0
        for f in range(d):
            total = fma(moves.rows[column + LANES * f], rows[target, f], total)
        if kind != SCORE:
            question = group - first_group
            own = answers.scores[question, target] - answers.log_totals[question]
            log = moves.logs[at]
        change = np.float64(total) + fix_of(moves, at, target) + log
        out.values[_place_of(out, row, j)] = _phi_change(kind, own, change)


@kernel
def _read_untouched(kind, graph, x, answers, store, groups, first_place, first_group, out):
    """Fill in triples that move the target of a link, but neither subject nor relation.

    A block for each link, several where there are few links, a half-warp for each triple.
    """
    place = first_place + cuda.blockIdx.x
    group = group_of(groups.pointers, 0, groups.pointers.shape[0] - 1, place)
    question, target, row = group - first_group, groups.targets[place], groups.links[place]
    _, code = _relation_slot(graph, groups.relations[group])
    lane = cuda.threadIdx.x % LANES
    half = 0xFFFF << (cuda.threadIdx.x & LANES)
    first = cuda.blockIdx.y * _HALVES + cuda.threadIdx.x // LANES + store.entity_pointers[target]
    for entry in range(first, store.entity_pointers[target + 1], _HALVES * cuda.gridDim.y):
        j = store.by_entity[entry]
        if store.relations[j] == code or _entity_slot(store, j, groups.subjects[group]) >= 0:
            continue
        slot = _entity_slot(store, j, target)
        other = store.tails[j] if slot == 0 else store.heads[j]
        change = second = x.dtype.type(0)
        for f in range(lane, x.shape[1], LANES):
            change = fma(x[question, f], store.changes[j, slot, f], change)
            if kind != SCORE and other != target:
                second = fma(x[question, f], store.changes[j, 1 - slot, f], second)
        change, own = np.float64(tree_sum(half, change)), 0.0
        second = np.float64(tree_sum(half, second))
        if kind != SCORE:
            log_total = answers.log_totals[question]
            own = answers.scores[question, target] - log_total
            change += _log_change_of_two(
                half, lane, answers.scores[question], log_total, graph.n_entities, target, -change,
                other, -second,
            )  # fmt: skip
        if lane == 0:
            out.values[_place_of(out, row, j)] = _phi_change(kind, own, change)


@inner_kernel
def _log_change_of_two(half, lane, scores, log_total, n, target, first, other, second):
    """Change of the log of the normaliser where only the scores of two entities move.

    By `first` and `second`; `other` may be `target`. What the rest of the entities have is 1 less
    these two: where hardly more than that difference's rounding is left of the normaliser the
    half-warp adds it up instead.
    """
    first_log, second_log = scores[target] - log_total, -math.inf
    if other != target:
        second_log = scores[other] - log_total
    a, b = math.exp(first_log), math.exp(second_log)
    top = max(0.0, first, second)
    if top < 1.0:
        less_one = a * math.expm1(first) + b * math.expm1(second)
        if abs(less_one) < 0.5:
            return math.log1p(less_one)
    rest = max(1.0 - a - b, 0.0)
    moved = math.exp(first_log + first - top) + math.exp(second_log + second - top)
    if rest * math.exp(-top) + moved < _ROUNDED * math.exp(-top):
        rest = 0.0
        for c in range(lane, n, LANES):
            if c != target and c != other:
                rest += math.exp(scores[c] - log_total)
        rest = tree_sum(half, rest)
    return top + math.log(rest * math.exp(-top) + moved)
