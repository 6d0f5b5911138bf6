"""Replay for triples: the exact derivative of a training run, from its last step to its first.

A step with the gradient ``G = w * grad l``, its Hessian H and the adjoint of the rows it touches
is met backwards as

    v = adjoint of G (see row_adjoints),  w dphi/dw += v . G,  u += w H v.

With x, z, g and v of `graph_sgd` (there v is the candidates' pull, here called pull), directions
a_s, a_w, a_c of subject, relation and candidates give

    x' = compose(a_s, w) + compose(e_s, a_w),   z'_c = <x', e_c> + <x, a_c>
    g' = (d2L/dz2) z',   pull' = sum_c g'_c e_c + g_c a_c
    (H a)_c = g'_c x + g_c x'
    (H a)_s = pull_subject(a_w, pull) + pull_subject(w, pull'), the relation's alike,

and the regularization its multiple of the subject's, the relation's and the answer's. Every lane
of a vector is a quantity of its own, so a quantity has the same bits in any company.
"""

from typing import Any, NamedTuple

import numpy as np

from .adjoints import add_lanes, dot_lanes, pull_adjoints
from .bilinear import compose, pull_relation, pull_subject
from .graph_lanes import (
    add_row_lanes,
    bend_lanes,
    clear_lanes,
    compose_lanes,
    compose_relation_lanes,
    pull_relation_lanes,
    pull_subject_lanes,
)
from .graph_sgd import question
from .jit import inner_kernel, kernel
from .lanes import LANES
from .link_losses import link_curvatures, link_gradients
from .row_adjoints import catch_up_back, move_back
from .row_optimizers import ADAGRAD, DENSE_ADAM, SGD, step_sizes
from .simd import dot

__all__ = ["replay_triples", "take_again"]


@inner_kernel
def _mask(row, allowed):
    """Zero the lanes that may not live on a row."""
    if allowed == 0xFFFF:
        return
    for f in range(row.shape[0]):
        for q in range(LANES):
            if not (allowed >> q) & 1:
                row[f, q] = 0


class Scratch(NamedTuple):
    """What a step needs while it is taken back; C is the most candidates."""

    x: Any  # (d,)
    pull: Any  # (d,)
    gradient: Any  # (d,)
    scores: Any  # (C,)
    gradients: Any  # (C,)
    curvatures: Any  # (C,)
    of_candidates: Any  # (C, d, LANES), or with SGD (1, d, LANES): adjoints of the gradients
    of_subject: Any  # (d, LANES)
    of_relation: Any  # (d, LANES)
    turned: Any  # (d, LANES): x'
    pulled: Any  # (d, LANES): pull'
    slopes: Any  # (C, LANES): z'
    bends: Any  # (C, LANES): g'
    lane: Any  # (LANES,)


@inner_kernel
def take_again(
    is_complex, flip, loss, rows, counts, x, pull, scores_at, gradients_at, curvatures_at
):
    """Compute x, slopes, curvatures and pull of a step from the rows it saw; returns its loss."""
    m = counts.shape[0]
    compose(is_complex, flip, rows[0], rows[1], x)
    for c in range(m):
        scores_at[c] = dot(x, rows[2 + c])
    gradients = gradients_at[:m]
    value = link_gradients(loss, scores_at[:m], counts, gradients)
    link_curvatures(loss, counts, gradients, curvatures_at[:m])
    for f in range(x.shape[0]):
        pull[f] = 0
    for c in range(m):
        row = rows[2 + c]
        for f in range(x.shape[0]):
            pull[f] += gradients[c] * row[f]
    return value


@inner_kernel
def _row_back(adjoint, log, hyper, entry, place, r, time, size, gradient, out, lane, mine):
    """The adjoint of a row's gradient, to `out`; adds what it says of the weight to `mine`."""
    number = gradient.dtype.type
    u = adjoint.rows[r]
    if hyper.optimizer == SGD:
        move_back(hyper, size, gradient, gradient, gradient, number(1), number(1), u, u, u, out)
    elif hyper.optimizer == ADAGRAD:
        squares, of_squares = log.squares[entry, place], adjoint.squares[r]
        move_back(
            hyper, size, gradient, gradient, squares, number(1), number(1), u, u, of_squares, out
        )
    else:
        keep1, keep2 = number(1), number(1)
        if hyper.optimizer == DENSE_ADAM:
            waited = time - log.clocks[entry, place]
            keep1, keep2 = number(hyper.beta1**waited), number(hyper.beta2**waited)
        move_back(
            hyper, size, gradient, log.momenta[entry, place], log.squares[entry, place], keep1,
            keep2, u, adjoint.momenta[r], adjoint.squares[r], out,
        )  # fmt: skip
    dot_lanes(gradient, out, lane)
    add_lanes(mine, lane, number(1))


@inner_kernel
def _gradients_back(
    adjoint, graph, log, hyper, entry, asked, place, candidates, weight, time, size, scratch,
    mine,
):  # fmt: skip
    """Adjoints of the gradients of all rows of a step, but of SGD's negatives."""
    subject, relation, flip = asked
    number = scratch.x.dtype.type
    regularization, gradient, x = number(hyper.regularization), scratch.gradient, scratch.x
    rows = log.rows[entry]
    d = x.shape[0]
    for c in range(1 if hyper.optimizer == SGD else candidates.shape[0]):
        if c == place:
            continue
        slope, shrink = scratch.gradients[c], regularization if c == 0 else number(0)
        for f in range(d):
            gradient[f] = weight * (slope * x[f] + shrink * rows[2 + c, f])
        _row_back(
            adjoint, log, hyper, entry, 2 + c, candidates[c], time, size, gradient,
            scratch.of_candidates[c], scratch.lane, mine,
        )  # fmt: skip
    pull_subject(graph.complex, flip, rows[1], scratch.pull, gradient)
    own = scratch.gradients[place] if place >= 0 else number(0)
    for f in range(d):
        gradient[f] = weight * (gradient[f] + own * x[f] + regularization * rows[0, f])
    _row_back(
        adjoint, log, hyper, entry, 0, subject, time, size, gradient, scratch.of_subject,
        scratch.lane, mine,
    )  # fmt: skip
    pull_relation(graph.complex, flip, rows[0], scratch.pull, gradient)
    for f in range(d):
        gradient[f] = weight * (gradient[f] + regularization * rows[1, f])
    _row_back(
        adjoint, log, hyper, entry, 1, relation, time, size, gradient, scratch.of_relation,
        scratch.lane, mine,
    )  # fmt: skip


@inner_kernel
def _bends(adjoint, graph, log, hyper, entry, flip, place, candidates, weight, size, scratch, mine):
    """The change of the slopes along the adjoints, to ``scratch.bends``."""
    rows, x, lane = log.rows[entry], scratch.x, scratch.lane
    number = x.dtype.type
    m = candidates.shape[0]
    clear_lanes(scratch.turned)
    compose_lanes(graph.complex, flip, scratch.of_subject, rows[1], scratch.turned)
    compose_relation_lanes(graph.complex, flip, rows[0], scratch.of_relation, scratch.turned)
    for c in range(m):
        slopes = scratch.slopes[c]
        dot_lanes(rows[2 + c], scratch.turned, slopes)
        if c == place:
            dot_lanes(x, scratch.of_subject, lane)
            add_lanes(slopes, lane, number(1))
        elif hyper.optimizer == SGD and c > 0:
            # Its gradient is slope * x: what it says of the weight is in here as well.
            dot_lanes(x, adjoint.rows[candidates[c]], lane)
            add_lanes(slopes, lane, -number(size))
            add_lanes(mine, lane, -number(size) * weight * scratch.gradients[c])
        else:
            dot_lanes(x, scratch.of_candidates[c], lane)
            add_lanes(slopes, lane, number(1))
    bend_lanes(hyper.loss, scratch.curvatures[:m], scratch.slopes, scratch.bends, lane)


@inner_kernel
def _push(
    adjoint, graph, log, hyper, entry, asked, place, candidates, weight, size, allowed, scratch
):
    """Add ``weight * H v`` to the adjoints of all rows of a step."""
    subject, relation, flip = asked
    rows, x, turned, pulled = log.rows[entry], scratch.x, scratch.turned, scratch.pulled
    number = x.dtype.type
    shrink = weight * number(hyper.regularization)
    clear_lanes(pulled)
    for c in range(candidates.shape[0]):
        u, slope = adjoint.rows[candidates[c]], scratch.gradients[c]
        of_row, factor = scratch.of_subject, slope
        if c != place and hyper.optimizer == SGD and c > 0:
            of_row, factor = u, -number(size) * slope
        elif c != place:
            of_row = scratch.of_candidates[c]
        pull_adjoints(
            u, pulled, of_row, turned, x, rows[2 + c], scratch.bends[c], slope, factor, weight
        )
        if c == 0 and c != place:
            add_row_lanes(u, of_row, shrink)
        _mask(u, allowed[candidates[c]])
    # x' is of no more use: its room takes the pushes of the subject and of the relation
    clear_lanes(turned)
    pull_subject_lanes(
        graph.complex, flip, rows[1], scratch.pull, scratch.of_relation, pulled, turned
    )
    u = adjoint.rows[subject]
    add_row_lanes(u, turned, weight)
    add_row_lanes(u, scratch.of_subject, shrink)
    _mask(u, allowed[subject])
    clear_lanes(turned)
    pull_relation_lanes(
        graph.complex, flip, rows[0], scratch.pull, scratch.of_subject, pulled, turned
    )
    u = adjoint.rows[relation]
    add_row_lanes(u, turned, weight)
    add_row_lanes(u, scratch.of_relation, shrink)
    _mask(u, allowed[relation])


@inner_kernel
def _waiting_back(adjoint, log, hyper, entry, place, r, time, first, sizes):
    """Take a row of dense Adam back over the steps before this one that did not touch it."""
    catch_up_back(
        hyper, log.momenta[entry, place], log.squares[entry, place], log.clocks[entry, place],
        time, first, sizes, adjoint.rows[r], adjoint.momenta[r], adjoint.squares[r],
    )  # fmt: skip


@inner_kernel
def _settle_back(adjoint, settled, hyper, time, first, sizes):
    """Take all rows of dense Adam back over the settling at the end of an epoch."""
    for r in range(adjoint.rows.shape[0]):
        catch_up_back(
            hyper, settled.momenta[r], settled.squares[r], settled.clocks[r], time, first, sizes,
            adjoint.rows[r], adjoint.momenta[r], adjoint.squares[r],
        )  # fmt: skip


@kernel
def replay_triples(adjoint, graph, examples, log, hyper, epoch, start, stop, allowed, influence):
    """Take a block of quantities back over visits `start` to `stop` of an epoch.

    Parameters
    ----------
    adjoint : RowAdjoint
        Behind the visits; changed in place to before them.
    graph : Graph
    examples : TripleExamples
    log : GraphLog
    hyper : GraphHyper
    epoch, start, stop : int
    allowed : (n_rows,) uint16
        Bits of the lanes that may live on each row.
    influence : (n, LANES)
        ``w_j dphi/dw_j`` of every visit, added to.
    """
    n, d = examples.heads.shape[0], adjoint.rows.shape[1]
    number, sides = adjoint.rows.dtype, hyper.sides
    most = log.candidates.shape[1]
    first = epoch * n * sides
    sizes = step_sizes(hyper, first, stop * sides)
    kept = 1 if hyper.optimizer == SGD else most
    scratch = Scratch(
        np.empty(d, number), np.empty(d, number), np.empty(d, number),
        np.empty(most, number), np.empty(most, number), np.empty(most, number),
        np.empty((kept, d, LANES), number),
        np.empty((d, LANES), number), np.empty((d, LANES), number),
        np.empty((d, LANES), number), np.empty((d, LANES), number),
        np.empty((most, LANES), number), np.empty((most, LANES), number),
        np.empty(LANES, number),
    )  # fmt: skip
    dense = hyper.optimizer == DENSE_ADAM
    if dense and stop == n:
        _settle_back(adjoint, log.settled, hyper, first + n * sides, first, sizes)
    for t in range(stop - 1, start - 1, -1):
        weight, mine = examples.weights[t], influence[t]
        if weight == 0 or log.slots[t] < 0:
            continue
        for side in range(sides - 1, -1, -1):
            time = first + t * sides + side
            size, entry = sizes[time - first + 1], log.slots[t] * sides + side
            subject, relation, flip, _ = question(graph, examples, t, side)
            m = log.n_candidates[entry]
            candidates = log.candidates[entry, :m]
            place = -1
            for c in range(m):
                if candidates[c] == subject:
                    place = c
            asked = subject, relation, flip
            counts = log.counts[entry, :m]
            take_again(
                graph.complex, flip, hyper.loss, log.rows[entry], counts, scratch.x,
                scratch.pull, scratch.scores, scratch.gradients, scratch.curvatures,
            )  # fmt: skip
            _gradients_back(
                adjoint, graph, log, hyper, entry, asked, place, candidates, weight, time, size,
                scratch, mine,
            )  # fmt: skip
            _bends(
                adjoint, graph, log, hyper, entry, flip, place, candidates, weight, size,
                scratch, mine,
            )  # fmt: skip
            _push(
                adjoint, graph, log, hyper, entry, asked, place, candidates, weight, size,
                allowed, scratch,
            )  # fmt: skip
            if dense:
                _waiting_back(adjoint, log, hyper, entry, 0, subject, time, first, sizes)
                _waiting_back(adjoint, log, hyper, entry, 1, relation, time, first, sizes)
                for c in range(m):
                    if c != place:
                        r = candidates[c]
                        _waiting_back(adjoint, log, hyper, entry, 2 + c, r, time, first, sizes)
