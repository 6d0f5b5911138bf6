"""Read-out of row changes on triples: what a link would be with a triple's changes taken back.

Everything is computed as a change, never as the difference of two results: if ``x = e_s * w``
moves by dx and the row of entity c by de, its score moves by ``<dx, e_c> + <x - dx, de>``, and
the log of the normaliser by ``log(1 + sum_c p_c (exp(change of c) - 1))``. So float32 is as
accurate for small influences as for large ones, and the probabilities p are those of the model
as it stands, one pass over the entities for all links that differ only in the target.

Triples that move neither the subject nor the relation change at most two scores. For the others
all scores come tile by tile from the matrix product of the read-out, [their dx] x [entities],
corrected in at most two places, and go through the exponential while the tile is in cache.
"""

import math

import numpy as np

from .bilinear import compose
from .exponential import LIMIT, exponential_sums
from .jit import inner_kernel, kernel
from .lanes import LANES
from .panels import panel_scores
from .simd import dot, prefetch

__all__ = [
    "LOG_PROBABILITY",
    "PROBABILITY",
    "SCORE",
    "TOGETHER",
    "read_links",
    "self_influence",
    "union_sizes",
    "unions",
]

SCORE, LOG_PROBABILITY, PROBABILITY = range(3)

TOGETHER = 256
"""Triples whose scores make a tile."""

_AHEAD = 8  # changes asked for in advance: 330 ns a triple without, 190 with
_ENTITIES = 256  # of a tile: 256 KiB of float32
_ROUNDED = 1e-3  # of a normaliser: where less is left, the rounding of 1 would be seen


@kernel
def union_sizes(first, second, start, stop, sizes):
    """Count the distinct members of one group of `first` and one of `second`, for each number.

    Parameters
    ----------
    first, second : tuple of pointers, members, groups
        Number i takes ``members[pointers[g] : pointers[g + 1]]`` with ``g = groups[i]``, int32,
        ascending and each once.
    start, stop : int
        Numbers ``start:stop`` are done.
    sizes : (n,) int64, out
    """
    for i in range(start, stop):
        (a, a_stop), (b, b_stop) = _bounds(first, i), _bounds(second, i)
        size = a_stop - a + b_stop - b
        while a < a_stop and b < b_stop:
            left, right = first[1][a], second[1][b]
            size -= left == right
            a += left <= right
            b += right <= left
        sizes[i] = size


@kernel
def unions(first, second, start, stop, pointers, out):
    """Write the members that `union_sizes` counts, ascending, from ``out[pointers[i]]`` on."""
    for i in range(start, stop):
        (a, a_stop), (b, b_stop) = _bounds(first, i), _bounds(second, i)
        at = pointers[i]
        while a < a_stop and b < b_stop:
            left, right = first[1][a], second[1][b]
            out[at] = min(left, right)
            at += 1
            a += left <= right
            b += right <= left
        while a < a_stop:
            out[at] = first[1][a]
            at += 1
            a += 1
        while b < b_stop:
            out[at] = second[1][b]
            at += 1
            b += 1


@inner_kernel
def _bounds(lists, i):
    group = lists[2][i]
    return lists[0][group], lists[0][group + 1]


@kernel
def read_links(kind, graph, rows, packed, store, groups, units, start, stop, out):
    """Influence of triples on links: phi with all rows minus phi with the triple's taken back.

    Parameters
    ----------
    kind : int
        What phi is: SCORE, LOG_PROBABILITY or PROBABILITY of the target among all entities.
    graph : Graph
    rows : (n_rows, d) float
        C-contiguous.
    packed : (n_entities * d,) float
        The entities' rows, packed as one group; not read for a SCORE.
    store : TripleRows
        Changes in the dtype of the rows.
    groups : LinkGroups
    units : (n_units, 3) int64
        Group, and bounds of at most TOGETHER of the triples it touches. Triples that move
        only a target are done in the unit that starts at 0, so every group has one.
    start, stop : int
        Units ``start:stop`` are done; calls on different ones may run at the same time.
    out : Influences
        A row for every link, of the triples that move its subject, relation or target; the
        values are filled in.
    """
    d, n = rows.shape[1], graph.n_entities
    padded = (n + LANES - 1) // LANES * LANES
    x = np.empty((1, d), rows.dtype)
    scores = np.empty(padded, rows.dtype)
    weights = np.zeros(padded, rows.dtype)
    moves = np.empty((TOGETHER, d), rows.dtype)
    fixes = np.empty((TOGETHER, 2), rows.dtype)
    logs = np.zeros(TOGETHER)
    sums = np.empty((TOGETHER, 2))
    beyond = np.empty(TOGETHER, np.bool_)
    tile = np.empty(TOGETHER * _ENTITIES, rows.dtype)
    work = np.empty((2, d), rows.dtype)
    current, log_total = -1, 0.0
    for unit in range(start, stop):
        group, first, last = units[unit, 0], units[unit, 1], units[unit, 2]
        subject, relation, flip = _question(groups, group)
        if group != current:
            compose(graph.complex, flip, rows[subject], rows[relation], x[0])
            if kind != SCORE:
                log_total = _probabilities(packed, n, x, scores, weights)
            current = group
        if first == 0:
            _read_untouched(
                kind, rows, x[0], scores, log_total, store, groups, group, relation, graph, out
            )
        members = groups.touched[groups.touched_pointers[group] + first :]
        for m in range(last - first):
            if m + _AHEAD < last - first:
                _ask_for(graph, store, members[m + _AHEAD], relation)
            _move(graph, rows, store, members[m], subject, relation, flip, work, moves[m])
            if kind != SCORE or _moves_target(store, members[m], groups, group):
                _fix(store, members[m], x[0], moves[m], work[0], fixes[m])
        if kind != SCORE:
            _sum_tiles(packed, n, store, members, last - first, moves, fixes, weights, tile, sums,
                       beyond)  # fmt: skip
            for m in range(last - first):
                logs[m] = _log_change(sums[m, 0], sums[m, 1])
                if beyond[m] or not sums[m, 1] > math.exp(-LIMIT / 2):
                    logs[m] = _log_change_slowly(
                        rows, scores, log_total, n, store, members[m], moves[m], fixes[m]
                    )
        _read_touched(
            kind, rows, scores, log_total, store, groups, group, members, last - first, moves,
            fixes, logs, out,
        )  # fmt: skip


@kernel
def self_influence(graph, rows, store, links, start, stop, out):
    """Influence of triples ``start:stop`` on the scores of their own links, to `out` (n,)."""
    x = np.empty(rows.shape[1], rows.dtype)
    move = np.empty(rows.shape[1], rows.dtype)
    fix = np.empty(2, rows.dtype)
    work = np.empty((2, rows.shape[1]), rows.dtype)
    for j in range(start, stop):
        subject, relation, flip = links.subjects[j], links.relations[j], links.flips[j]
        compose(graph.complex, flip, rows[subject], rows[relation], x)
        _move(graph, rows, store, j, subject, relation, flip, work, move)
        _fix(store, j, x, move, work[0], fix)
        out[j] = dot(move, rows[links.targets[j]]) + _fix_of(store, j, links.targets[j], fix)


@inner_kernel
def _question(groups, group):
    return groups.subjects[group], groups.relations[group], groups.flips[group]


@inner_kernel
def _relation_slot(graph, relation):
    """Where triples keep what they changed in this row, and the code of its relation."""
    if relation >= graph.n_entities + graph.n_relations:
        return 3, relation - graph.n_entities - graph.n_relations
    return 2, relation - graph.n_entities


@inner_kernel
def _ask_for(graph, store, j, relation):
    """Prefetch what triple j changed in a relation's row, which most triples are read for."""
    slot, _ = _relation_slot(graph, relation)
    _, n_slots, d = store.changes.shape
    for f in range(0, d, LANES):
        prefetch(store.changes, (np.int64(j) * n_slots + slot) * d + f)


@inner_kernel
def _entity_slot(store, j, entity):
    """Where triple j keeps what it changed in the row of an entity; -1: it does not hold it."""
    if store.heads[j] == entity:
        return 0
    return 1 if store.tails[j] == entity else -1


@inner_kernel
def _fix_of(store, j, entity, fix):
    """How far the score of an entity moves because triple j moved the entity's own row."""
    slot = _entity_slot(store, j, entity)
    return fix[slot] if slot >= 0 else fix.dtype.type(0)


@inner_kernel
def _probabilities(packed, n, x, scores, weights):
    """Scores of all entities and their probabilities; returns the log of the normaliser."""
    panel_scores(packed, 0, n, x, 1, scores, scores.shape[0], x.dtype.type(1))
    highest = scores[0]
    for c in range(1, n):
        highest = max(highest, scores[c])
    total = 0.0
    for c in range(n):
        total += math.exp(np.float64(scores[c]) - highest)
    log_total = highest + math.log(total)
    for c in range(n):
        weights[c] = math.exp(scores[c] - log_total)
    return log_total


@inner_kernel
def _move(graph, rows, store, j, subject, relation, flip, work, move):
    """Write to `move` what triple j, which holds the subject or the relation, added to x."""
    slot, code = _relation_slot(graph, relation)
    changes, at = store.changes[j], _entity_slot(store, j, subject)
    if at < 0:
        compose(graph.complex, flip, rows[subject], changes[slot], move)
    elif store.relations[j] != code:
        compose(graph.complex, flip, changes[at], rows[relation], move)
    else:
        for f in range(move.shape[0]):
            work[0, f] = rows[relation, f] - changes[slot, f]
        compose(graph.complex, flip, changes[at], work[0], move)
        compose(graph.complex, flip, rows[subject], changes[slot], work[1])
        for f in range(move.shape[0]):
            move[f] += work[1, f]


@inner_kernel
def _fix(store, j, x, move, work, fix):
    """What triple j added to the scores of its head and its tail by moving their own rows."""
    for f in range(move.shape[0]):
        work[f] = x[f] - move[f]
    fix[0] = dot(work, store.changes[j, 0])
    fix[1] = dot(work, store.changes[j, 1])


@inner_kernel
def _moves_target(store, j, groups, group):
    """Whether triple j may hold a target of the group."""
    place = groups.pointers[group]
    alone = groups.pointers[group + 1] == place + 1
    return not alone or _entity_slot(store, j, groups.targets[place]) >= 0


@inner_kernel
def _sum_tiles(packed, n, store, members, size, moves, fixes, weights, tile, sums, beyond):
    """``sum p (exp(change) - 1)`` and ``sum p exp(change)`` over all entities, for each triple.

    `beyond` tells whose changes are too large for that.
    """
    one = moves.dtype.type(1)
    sums[:size] = 0
    beyond[:size] = False
    for base in range(0, n, _ENTITIES):
        width = min(_ENTITIES, n - base)
        whole = (width + LANES - 1) // LANES * LANES
        panel_scores(packed, base * moves.shape[1], width, moves, size, tile, _ENTITIES, -one)
        for m in range(size):
            at, head, tail = m * _ENTITIES, store.heads[members[m]], store.tails[members[m]]
            if base <= head < base + width:
                tile[at + head - base] -= fixes[m, 0]
            if tail != head and base <= tail < base + width:
                tile[at + tail - base] -= fixes[m, 1]
            less_one, total, above = exponential_sums(tile, at, at + whole, weights, base)
            sums[m, 0] += less_one
            sums[m, 1] += total
            beyond[m] |= above


@inner_kernel
def _log_change(less_one, total):
    """Log of ``total = 1 + less_one``, from the one that is known better."""
    return math.log1p(less_one) if abs(less_one) < 0.5 else math.log(total)


@inner_kernel
def _log_change_slowly(rows, scores, log_total, n, store, j, move, fix):
    """How far the log of the normaliser moves, however far the scores do."""
    highest, total = -np.inf, 0.0
    for c in range(n):
        change = np.float64(dot(move, rows[c])) + _fix_of(store, j, c, fix)
        score = scores[c] - change
        if score > highest:
            total = total * math.exp(highest - score) + 1.0
            highest = score
        else:
            total += math.exp(score - highest)
    return highest + math.log(total) - log_total


@inner_kernel
def _log_change_of_two(scores, log_total, n, target, first, other, second):
    """As `_log_change_slowly` where only the scores of two entities move, `other` may be none.

    By `first` and `second`. What the rest of the entities have is 1 less these two: where
    hardly more than that difference's rounding is left of the normaliser it is added up instead.
    """
    first_log = scores[target] - log_total
    second_log = scores[other] - log_total if other != target else -np.inf
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
        for c in range(n):
            if c not in (target, other):
                rest += math.exp(scores[c] - log_total)
    return top + math.log(rest * math.exp(-top) + moved)


@inner_kernel
def _phi_change(kind, log_probability, change):
    """Change of phi, of the change of the score or of the log-probability."""
    if kind != PROBABILITY:
        return change
    if abs(change) < 1.0:
        return -math.exp(log_probability) * math.expm1(-change)
    return math.exp(log_probability) - math.exp(log_probability - change)


@inner_kernel
def _read_untouched(kind, rows, x, scores, log_total, store, groups, group, relation, graph, out):
    """Fill in the triples that move the targets of a group, but neither subject nor relation."""
    subject = groups.subjects[group]
    _, code = _relation_slot(graph, relation)
    for place in range(groups.pointers[group], groups.pointers[group + 1]):
        target, at = groups.targets[place], out.pointers[groups.links[place]]
        for entry in range(store.entity_pointers[target], store.entity_pointers[target + 1]):
            j = store.by_entity[entry]
            if store.relations[j] == code or _entity_slot(store, j, subject) >= 0:
                continue
            while out.indices[at] != j:
                at += 1
            slot = _entity_slot(store, j, target)
            change = np.float64(dot(x, store.changes[j, slot]))
            own = 0.0
            if kind != SCORE:
                own = scores[target] - log_total
                other, second = store.tails[j] if slot == 0 else store.heads[j], 0.0
                if other != target:
                    second = -np.float64(dot(x, store.changes[j, 1 - slot]))
                change += _log_change_of_two(
                    scores, log_total, graph.n_entities, target, -change, other, second
                )
            out.values[at] = _phi_change(kind, own, change)


@inner_kernel
def _read_touched(
    kind, rows, scores, log_total, store, groups, group, members, size, moves, fixes, logs, out
):
    """Fill in triples that move the subject or the relation of a group."""
    for place in range(groups.pointers[group], groups.pointers[group + 1]):
        target, row = groups.targets[place], groups.links[place]
        at, end = out.pointers[row], out.pointers[row + 1]
        if size > 0:
            at += np.searchsorted(out.indices[at:end], members[0])
        own = scores[target] - log_total if kind != SCORE else 0.0
        for m in range(size):
            while out.indices[at] != members[m]:
                at += 1
            change = np.float64(dot(moves[m], rows[target]))
            change += _fix_of(store, members[m], target, fixes[m]) + logs[m]
            out.values[at] = _phi_change(kind, own, change)
