"""Training DistMult and ComplEx: one step is one triple, one end of it asked for.

Visit t of triple (h, r, o) asks for its tail and, with two sides, then for its head. A step
scores its candidates from the rows as they stand before it,

    x = compose(e_subject, w'),  z_c = <x, e_c>,  l = L(z) + regularization / 2 * (|e_subject|^2 +
    |w|^2 + |e_answer|^2)

(w' conjugated where a head is asked for without reciprocal relations) and then moves every row it
touched: with g_c = dL/dz_c and v = sum_c g_c e_c those of the candidates along g_c x, the
subject's and the relation's along what <x, v> has as derivatives. Candidates are distinct; the
subject may be one of them.

Arithmetic is strict and every sum has a fixed order: with a record or a log, in one piece or
several, an epoch leaves the same bits.
"""

from typing import Any, NamedTuple

import numpy as np

from .bilinear import compose, pull_relation, pull_subject
from .graph_candidates import take_candidates
from .jit import inner_kernel, kernel
from .lanes import LANES
from .link_losses import LOGISTIC, SOFTMAX, link_gradients
from .row_optimizers import (
    ADAGRAD,
    ADAM,
    DENSE_ADAM,
    SGD,
    TERMS,
    catch_up,
    decays,
    move,
    settle,
    step_sizes,
)
from .simd import add_scaled, dot, pull_and_move, pull_row

__all__ = [
    "ADAGRAD",
    "ADAM",
    "DENSE_ADAM",
    "LOGISTIC",
    "SGD",
    "SOFTMAX",
    "graph_epoch",
    "question",
]

UPDATE, GRADIENT = 0, 1  # what a record adds up


@inner_kernel
def question(graph, examples, t, side):
    """(subject, relation row, flip, answer) of one side of visit t."""
    h, r, o = examples.heads[t], examples.relations[t], examples.tails[t]
    row = graph.n_entities + r
    if side == 0:
        return h, row, False, o
    if graph.reciprocal:
        return o, row + graph.n_relations, False, h
    return o, row, True, h


@inner_kernel
def _scores(x, rows, candidates, scores):
    for c in range(scores.shape[0]):
        scores[c] = dot(x, rows[candidates[c]])


@inner_kernel
def _pull(rows, candidates, gradients, skipped, rate, x, v):
    """Write the sum of the candidates' rows, weighted with their slopes, to `v` (whole vectors).

    With a `rate` (SGD's, times the weight) the negatives move as well while their rows are at
    hand, all but the one at place `skipped`.
    """
    for f in range(v.shape[0]):
        v[f] = 0
    for c in range(gradients.shape[0]):
        row, slope = rows[candidates[c]], gradients[c]
        if rate == 0 or c == 0 or c == skipped:
            pull_row(v, row, slope)
        else:
            pull_and_move(v, row, x, slope, rate * slope)


@inner_kernel
def _scale(gradient, factor):
    for f in range(gradient.shape[0]):
        gradient[f] *= factor


@inner_kernel
def _row_gradients(graph, hyper, rows, subject, relation, flip, answer, own, x, v, parts):
    """Gradients of the rows of the subject, the relation and the answer, regularization included.

    `own` are the slopes of the subject and of the answer as candidates, 0 where the subject is
    none. Where both are one entity all of it is in the first.
    """
    number = x.dtype.type
    regularization = number(hyper.regularization)
    of_subject, of_relation, of_answer = parts[0], parts[1], parts[2]
    pull_subject(graph.complex, flip, rows[relation], v, of_subject)
    pull_relation(graph.complex, flip, rows[subject], v, of_relation)
    add_scaled(of_subject, rows[subject], regularization)
    add_scaled(of_relation, rows[relation], regularization)
    add_scaled(of_subject, x, own[0])
    if subject == answer:
        return
    for f in range(x.shape[0]):
        of_answer[f] = own[1] * x[f]
    add_scaled(of_answer, rows[answer], regularization)


@inner_kernel
def _normalise(row):
    norm = np.sqrt(dot(row, row))
    if norm > 0:
        for f in range(row.shape[0]):
            row[f] /= norm


@inner_kernel
def _move_candidates(hyper, state, candidates, gradients, skipped, weight, size, x, scratch):
    """Move the negatives, all but the one at place `skipped`; SGD's have moved already."""
    if hyper.optimizer == SGD and not hyper.unit_norm:
        return
    for c in range(1, gradients.shape[0]):
        if c == skipped:
            continue
        r = candidates[c]
        row, push = state.rows[r], weight * gradients[c]
        if hyper.optimizer != SGD:
            for f in range(x.shape[0]):
                scratch[f] = push * x[f]
            momenta = state.momenta[r] if hyper.optimizer >= ADAM else row
            move(hyper, row, momenta, state.squares[r], scratch, size)
        if hyper.unit_norm:
            _normalise(row)


@inner_kernel
def _move_one(hyper, state, r, gradient, size, is_entity):
    row = state.rows[r]
    momenta = state.momenta[r] if hyper.optimizer >= ADAM else row
    squares = state.squares[r] if hyper.optimizer >= ADAGRAD else row
    move(hyper, row, momenta, squares, gradient, size)
    if hyper.unit_norm and is_entity:
        _normalise(row)


@inner_kernel
def _prepare(hyper, state, r, time, first, sizes, table, sums):
    """Bring a row of dense Adam to the time before a step."""
    catch_up(
        hyper, state.rows[r], state.momenta[r], state.squares[r], state.clocks[r], time, first,
        sizes, table, sums,
    )  # fmt: skip
    state.clocks[r] = time


@inner_kernel
def _copy(source, target):
    for f in range(target.shape[0]):
        target[f] = source[f]


@inner_kernel
def _log_one_state(log, entry, place, state, r, hyper):
    if hyper.optimizer >= ADAGRAD:
        _copy(state.squares[r], log.squares[entry, place])
    if hyper.optimizer >= ADAM:
        _copy(state.momenta[r], log.momenta[entry, place])
    if hyper.optimizer == DENSE_ADAM:
        log.clocks[entry, place] = state.clocks[r]


@inner_kernel
def _log_state(log, t, side, hyper, state, subject, relation, candidates, counts):
    """Log the candidates of a step and what the optimizer holds before it, before catching up."""
    if log.slots[t] < 0:
        return
    entry, m = log.slots[t] * hyper.sides + side, candidates.shape[0]
    log.n_candidates[entry] = m
    for c in range(m):
        log.candidates[entry, c] = candidates[c]
        log.counts[entry, c] = counts[c]
    if hyper.optimizer == SGD:
        return
    _log_one_state(log, entry, 0, state, subject, hyper)
    _log_one_state(log, entry, 1, state, relation, hyper)
    for c in range(m):
        _log_one_state(log, entry, 2 + c, state, candidates[c], hyper)


@inner_kernel
def _log_rows(log, t, side, sides, rows, subject, relation, candidates):
    """Log the rows that a step reads."""
    if log.slots[t] < 0:
        return
    entry = log.slots[t] * sides + side
    _copy(rows[subject], log.rows[entry, 0])
    _copy(rows[relation], log.rows[entry, 1])
    for c in range(candidates.shape[0]):
        _copy(rows[candidates[c]], log.rows[entry, 2 + c])


@inner_kernel
def _record(record, credit, hyper, state, t, slot, r, gradient, before, size):
    """Add to a record what the step did to row r."""
    changes, row = record.changes[t, slot], state.rows[r]
    if credit == UPDATE or hyper.optimizer <= ADAGRAD:
        for f in range(row.shape[0]):
            changes[f] += row[f] - before[f]
        return
    number = row.dtype.type
    squares = state.squares[r]
    for f in range(row.shape[0]):
        changes[f] -= number(size) * gradient[f] / (np.sqrt(squares[f]) + number(hyper.epsilon))


class Scratch(NamedTuple):
    """What a step needs; C is the most candidates."""

    candidates: Any  # (C,) int32
    counts: Any  # (C,)
    scores: Any  # (C,)
    gradients: Any  # (C,): slopes
    marks: Any  # (n_entities,) int64
    places: Any  # (n_entities,) int64
    x: Any  # (d,)
    pull: Any  # (d rounded up to whole vectors,)
    vector: Any  # (d,)
    parts: Any  # (3, d): gradients of the subject, the relation and the answer
    before: Any  # (3, d): their rows
    own: Any  # (2,)
    table: Any  # (n, TERMS + 2): see `row_optimizers.decays`
    sums: Any  # (TERMS,)


@kernel
def _scratch(n_entities, most, d, dtype, hyper):
    return Scratch(
        np.empty(most, np.int32), np.empty(most, dtype), np.empty(most, dtype),
        np.empty(most, dtype), np.full(n_entities, -1, np.int64), np.empty(n_entities, np.int64),
        np.empty(d, dtype), np.zeros(-(-d // LANES) * LANES, dtype), np.empty(d, dtype),
        np.zeros((3, d), dtype), np.empty((3, d), dtype), np.zeros(2, dtype), decays(hyper),
        np.empty(TERMS),
    )  # fmt: skip


@inner_kernel
def _bring_up(hyper, state, subject, relation, candidates, time, first, sizes, table, sums):
    """Bring the rows of a step to the time before it (dense Adam)."""
    _prepare(hyper, state, subject, time, first, sizes, table, sums)
    _prepare(hyper, state, relation, time, first, sizes, table, sums)
    for c in range(candidates.shape[0]):
        _prepare(hyper, state, candidates[c], time, first, sizes, table, sums)


@inner_kernel
def _set_clocks(state, subject, relation, candidates, time):
    state.clocks[subject] = time
    state.clocks[relation] = time
    for c in range(candidates.shape[0]):
        state.clocks[candidates[c]] = time


@inner_kernel
def _record_step(record, credit, hyper, state, graph, head, t, side, rows, size, parts, before):
    """Add to a record what a step did to the rows of its triple."""
    subject, relation, answer = rows
    slot = 3 if side == 1 and graph.reciprocal else 2
    at = 0 if subject == head else 1
    _record(record, credit, hyper, state, t, at, subject, parts[0], before[0], size)
    _record(record, credit, hyper, state, t, slot, relation, parts[1], before[1], size)
    if answer != subject:
        at = 0 if answer == head else 1
        _record(record, credit, hyper, state, t, at, answer, parts[2], before[2], size)


@inner_kernel
def _take_step(
    state, graph, examples, sampler, hyper, epoch, t, side, time, first, sizes, scratch, record,
    credit, log,
):  # fmt: skip
    """Take one step; returns its loss, and has not moved anything if that is not finite."""
    weight, x, parts = examples.weights[t], scratch.x, scratch.parts
    number, dense = x.dtype.type, hyper.optimizer == DENSE_ADAM
    subject, relation, flip, answer = question(graph, examples, t, side)
    m, place = take_candidates(
        graph.n_entities, sampler, epoch, side, examples.ids[t], subject, answer, time,
        scratch.marks, scratch.places, scratch.candidates, scratch.counts,
    )  # fmt: skip
    candidates, gradients = scratch.candidates[:m], scratch.gradients[:m]
    if log is not None:
        counts = scratch.counts[:m]
        _log_state(log, t, side, hyper, state, subject, relation, candidates, counts)
    if dense:
        _bring_up(
            hyper, state, subject, relation, candidates, time, first, sizes, scratch.table,
            scratch.sums,
        )  # fmt: skip
    if log is not None:
        _log_rows(log, t, side, hyper.sides, state.rows, subject, relation, candidates)
    compose(graph.complex, flip, state.rows[subject], state.rows[relation], x)
    _scores(x, state.rows, candidates, scratch.scores[:m])
    loss = link_gradients(hyper.loss, scratch.scores[:m], scratch.counts[:m], gradients)
    if not np.isfinite(loss):
        return loss
    size = sizes[time - first + 1]
    rate = number(size) * weight if hyper.optimizer == SGD else number(0)
    _pull(state.rows, candidates, gradients, place, rate, x, scratch.pull)
    scratch.own[0] = gradients[place] if place >= 0 else number(0)
    scratch.own[1] = gradients[0]
    pull = scratch.pull[: x.shape[0]]
    _row_gradients(
        graph, hyper, state.rows, subject, relation, flip, answer, scratch.own, x, pull, parts
    )
    if record is not None:
        _copy(state.rows[subject], scratch.before[0])
        _copy(state.rows[relation], scratch.before[1])
        _copy(state.rows[answer], scratch.before[2])
    if weight != 1:
        for part in range(3):
            _scale(parts[part], weight)
    _move_candidates(hyper, state, candidates, gradients, place, weight, size, x, scratch.vector)
    _move_one(hyper, state, subject, parts[0], size, True)
    _move_one(hyper, state, relation, parts[1], size, False)
    if answer != subject:
        _move_one(hyper, state, answer, parts[2], size, True)
    if dense:
        _set_clocks(state, subject, relation, candidates, time + 1)
    if record is not None:
        _record_step(
            record, credit, hyper, state, graph, examples.heads[t], t, side,
            (subject, relation, answer), size, parts, scratch.before,
        )  # fmt: skip
    return loss


@kernel
def graph_epoch(
    state, graph, examples, sampler, hyper, epoch, start, stop, record=None, credit=0, log=None
):
    """Run visits `start` to `stop` of an epoch, in place.

    Parameters
    ----------
    state : RowState
        At the beginning of visit `start`; dense Adam's rows are settled where an epoch begins
        and where it ends (``stop == n``).
    graph : Graph
    examples : TripleExamples
    sampler : GraphSampler
    hyper : GraphHyper
    epoch, start, stop : int
    record : TripleRecord or None
        Row changes of every triple are added to it.
    credit : int
        What they are: 0 the actual change of the rows in the triple's own steps, 1 its
        gradient times the optimizer's scaling. The same but for Adam.
    log : GraphLog or None
        What the steps of visits with a slot saw is written to it.

    Returns
    -------
    total : float
        Sum of the weighted losses of the steps.
    broken : int
        The first step whose loss is not finite, and none was taken from there on; else -1.
    """
    n, sides = examples.heads.shape[0], hyper.sides
    most = graph.n_entities if sampler.n_negatives < 0 else sampler.n_negatives + 1
    first = epoch * n * sides
    sizes = step_sizes(hyper, first, stop * sides)
    scratch = _scratch(graph.n_entities, most, state.rows.shape[1], state.rows.dtype, hyper)
    total = 0.0
    for t in range(start, stop):
        if examples.weights[t] == 0:
            continue
        for side in range(sides):
            time = first + t * sides + side  # steps before this one
            loss = _take_step(
                state, graph, examples, sampler, hyper, epoch, t, side, time, first, sizes,
                scratch, record, credit, log,
            )  # fmt: skip
            if not np.isfinite(loss):
                return total, time
            total += examples.weights[t] * loss
    if hyper.optimizer == DENSE_ADAM and stop == n:
        if log is not None:
            log.settled.rows[:] = state.rows
            log.settled.momenta[:] = state.momenta
            log.settled.squares[:] = state.squares
            log.settled.clocks[:] = state.clocks
        settle(state, hyper, first + n * sides, first, sizes, scratch.table)
    return total, -1
