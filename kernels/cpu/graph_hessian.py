"""The training loss of a model of triples at fixed rows: values, gradients and Hessian.

A step is that of `graph_sgd`, from the same rows for all steps. With x, z_c, g_c and v = sum_c g_c
e_c from there, and a direction u of all rows, the scores change along it by

    x' = compose(u_subject, w) + compose(e_subject, u_relation),   z'_c = <e_c, x'> + <x, u_c>,

their slopes by ``g' = (d2L/dz2) z'``, and the gradient of the step by

    candidate   g'_c x + g_c x'
    subject     d<x, v'> / d e_subject + d<compose(., u_relation), v> / d e_subject
    relation    the same by the relation's row

with ``v' = sum_c g'_c e_c + g_c u_c``, and by regularization times u on the rows of subject,
relation and answer. The Gauss-Newton matrix is what is left of that where all g_c are taken for 0.

Step `number` asks for one side of one visit in one epoch: number // (epochs * sides) is the visit.
"""

from typing import Any, NamedTuple

import numpy as np

from .adjoints import add_lanes, dot_lanes, pull_adjoints
from .bilinear import pull_relation, pull_subject
from .graph_candidates import take_candidates
from .graph_curvature import RELATION, SUBJECT, add_gauss_newton
from .graph_lanes import (
    add_row_lanes,
    bend_lanes,
    clear_lanes,
    compose_lanes,
    compose_relation_lanes,
    pull_relation_lanes,
    pull_subject_lanes,
)
from .graph_replay import take_again
from .graph_sgd import question
from .jit import inner_kernel, kernel
from .lanes import LANES
from .link_losses import SOFTMAX
from .simd import add_scaled, dot

__all__ = ["graph_blocks", "graph_credits", "graph_losses", "graph_norms", "graph_products"]


class Scratch(NamedTuple):
    """What a step needs; C is the most candidates."""

    candidates: Any  # (C,) int32
    counts: Any  # (C,)
    marks: Any  # (n_entities,) int64
    places: Any  # (n_entities,) int64
    rows: Any  # (C + 2, d): subject, relation, candidates
    x: Any  # (d,)
    pull: Any  # (d,): v
    vector: Any  # (d,)
    scores: Any  # (C,)
    gradients: Any  # (C,)
    curvatures: Any  # (C,)
    weights: Any  # (C,)
    pulls: Any  # (C, d)
    loss: Any  # (1,) float64: of the prediction


class Lanes(NamedTuple):
    """What a step needs along a block of directions."""

    turned: Any  # (d, LANES): x'
    pulled: Any  # (d, LANES): v'
    slopes: Any  # (C, LANES): z'
    bends: Any  # (C, LANES): g'
    lane: Any  # (LANES,)


@kernel
def _scratch(point):
    n, d, number = point.graph.n_entities, point.rows.shape[1], point.rows.dtype
    most = n if point.sampler.n_negatives < 0 else point.sampler.n_negatives + 1
    return Scratch(
        np.empty(most, np.int32), np.empty(most, number), np.full(n, -1, np.int64),
        np.empty(n, np.int64), np.empty((most + 2, d), number), np.empty(d, number),
        np.empty(d, number), np.empty(d, number), np.empty(most, number), np.empty(most, number),
        np.empty(most, number), np.empty(most, number), np.empty((most, d), number), np.empty(1),
    )  # fmt: skip


@kernel
def _lanes(most, d, number):
    return Lanes(
        np.empty((d, LANES), number), np.empty((d, LANES), number),
        np.empty((most, LANES), number), np.empty((most, LANES), number), np.empty(LANES, number),
    )  # fmt: skip


@inner_kernel
def _steps(point):
    """Steps of a visit."""
    return point.hyper.sides * (point.behind - point.first)


@inner_kernel
def _weight(point, number):
    weight = point.examples.weights[number // _steps(point)]
    return weight / point.rows.dtype.type(point.behind - point.first)


@inner_kernel
def _asked(point, number):
    """(subject, relation row, flip, answer) of a step."""
    side = number % point.hyper.sides
    return question(point.graph, point.examples, number // _steps(point), side)


@inner_kernel
def _copy(source, target):
    for f in range(target.shape[0]):
        target[f] = source[f]


@inner_kernel
def _look(point, number, scratch):
    """Take a step's candidates and rows, and compute its scores, slopes and curvatures.

    Returns the number of candidates and the place of the subject among them, or -1.
    """
    subject, relation, flip, answer = _asked(point, number)
    t, place_in_visit = divmod(number, _steps(point))
    epoch, side = divmod(place_in_visit, point.hyper.sides)
    m, place = take_candidates(
        point.graph.n_entities, point.sampler, point.first + epoch, side, point.examples.ids[t],
        subject, answer, number, scratch.marks, scratch.places, scratch.candidates, scratch.counts,
    )  # fmt: skip
    _copy(point.rows[subject], scratch.rows[0])
    _copy(point.rows[relation], scratch.rows[1])
    for c in range(m):
        _copy(point.rows[scratch.candidates[c]], scratch.rows[2 + c])
    scratch.loss[0] = take_again(
        point.graph.complex, flip, point.hyper.loss, scratch.rows, scratch.counts[:m], scratch.x,
        scratch.pull, scratch.scores, scratch.gradients, scratch.curvatures,
    )  # fmt: skip
    return m, place


@inner_kernel
def _slopes(point, number, panel, m, scratch, lanes):
    """Write x' to ``lanes.turned`` and z' to ``lanes.slopes``."""
    subject, relation, flip, _ = _asked(point, number)
    rows, turned, one = scratch.rows, lanes.turned, scratch.x.dtype.type(1)
    clear_lanes(turned)
    compose_lanes(point.graph.complex, flip, panel[subject], rows[1], turned)
    compose_relation_lanes(point.graph.complex, flip, rows[0], panel[relation], turned)
    for c in range(m):
        slopes = lanes.slopes[c]
        dot_lanes(rows[2 + c], turned, slopes)
        dot_lanes(scratch.x, panel[scratch.candidates[c]], lanes.lane)
        add_lanes(slopes, lanes.lane, one)


@inner_kernel
def _forget_slopes(scratch, m):
    """Leave of a step what its Gauss-Newton matrix is made of."""
    for c in range(m):
        scratch.gradients[c] = 0
    for f in range(scratch.pull.shape[0]):
        scratch.pull[f] = 0


@inner_kernel
def _push(point, number, panel, weight, m, scratch, lanes, out):
    """Add a step's product to `out`; its slopes are in ``lanes.slopes``."""
    subject, relation, flip, answer = _asked(point, number)
    rows, x, turned, pulled = scratch.rows, scratch.x, lanes.turned, lanes.pulled
    is_complex, pull = point.graph.complex, scratch.pull
    shrink = weight * x.dtype.type(point.hyper.regularization)
    bend_lanes(point.hyper.loss, scratch.curvatures[:m], lanes.slopes, lanes.bends, lanes.lane)
    clear_lanes(pulled)
    for c in range(m):
        r, slope = scratch.candidates[c], scratch.gradients[c]
        pull_adjoints(
            out[r], pulled, panel[r], turned, x, rows[2 + c], lanes.bends[c], slope, slope, weight
        )
    # x' is of no more use: its room takes the products of the subject and of the relation
    clear_lanes(turned)
    pull_subject_lanes(is_complex, flip, rows[1], pull, panel[relation], pulled, turned)
    add_row_lanes(out[subject], turned, weight)
    add_row_lanes(out[subject], panel[subject], shrink)
    clear_lanes(turned)
    pull_relation_lanes(is_complex, flip, rows[0], pull, panel[subject], pulled, turned)
    add_row_lanes(out[relation], turned, weight)
    add_row_lanes(out[relation], panel[relation], shrink)
    if answer != subject:
        add_row_lanes(out[answer], panel[answer], shrink)


@kernel
def graph_products(point, panel, full, start, stop, out):
    """Add ``H panel`` of the visits `start` to `stop` to `out`.

    Parameters
    ----------
    point : GraphPoint
    panel : (n_rows, d, LANES)
        Directions, one a lane.
    full : bool
        The Hessian; otherwise its Gauss-Newton matrix.
    start, stop : int
    out : (n_rows, d, LANES)
        Another array than `panel`.
    """
    scratch = _scratch(point)
    lanes = _lanes(scratch.counts.shape[0], scratch.x.shape[0], scratch.x.dtype)
    for number in range(start * _steps(point), stop * _steps(point)):
        weight = _weight(point, number)
        if weight == 0:
            continue
        m, _ = _look(point, number, scratch)
        if not full:
            _forget_slopes(scratch, m)
        _slopes(point, number, panel, m, scratch, lanes)
        _push(point, number, panel, weight, m, scratch, lanes, out)


@inner_kernel
def _credit(point, number, panel, weight, m, scratch, lanes, mine):
    """Take what a step's gradient is along the panel from `mine`."""
    subject, relation, _, answer = _asked(point, number)
    shrink = weight * scratch.x.dtype.type(point.hyper.regularization)
    for c in range(m):
        add_lanes(mine, lanes.slopes[c], -weight * scratch.gradients[c])
    dot_lanes(scratch.rows[0], panel[subject], lanes.lane)
    add_lanes(mine, lanes.lane, -shrink)
    dot_lanes(scratch.rows[1], panel[relation], lanes.lane)
    add_lanes(mine, lanes.lane, -shrink)
    if answer != subject:
        dot_lanes(scratch.rows[2], panel[answer], lanes.lane)
        add_lanes(mine, lanes.lane, -shrink)


@kernel
def graph_credits(point, panel, start, stop, out):
    """Take the inner products of the visits' weighted gradients with a panel from `out`.

    Parameters
    ----------
    point : GraphPoint
    panel : (n_rows, d, LANES)
    start, stop : int
        Visits.
    out : (n, LANES)
        By visit.
    """
    scratch = _scratch(point)
    lanes = _lanes(scratch.counts.shape[0], scratch.x.shape[0], scratch.x.dtype)
    for number in range(start * _steps(point), stop * _steps(point)):
        weight = _weight(point, number)
        if weight == 0:
            continue
        m, _ = _look(point, number, scratch)
        _slopes(point, number, panel, m, scratch, lanes)
        _credit(point, number, panel, weight, m, scratch, lanes, out[number // _steps(point)])


@kernel
def graph_losses(point, start, stop, out):
    """Add the weighted losses of the visits `start` to `stop`, regularization included, to `out`.

    Parameters
    ----------
    point : GraphPoint
    start, stop : int
    out : (n,) float64
        By visit.
    """
    scratch = _scratch(point)
    rows = scratch.rows
    for number in range(start * _steps(point), stop * _steps(point)):
        weight = _weight(point, number)
        if weight == 0:
            continue
        _, place = _look(point, number, scratch)
        squares = np.float64(dot(rows[0], rows[0])) + dot(rows[1], rows[1])
        if place != 0:
            squares += dot(rows[2], rows[2])
        penalty = point.hyper.regularization / 2 * squares
        out[number // _steps(point)] += weight * (scratch.loss[0] + penalty)


@inner_kernel
def _add_gradients(point, number, weight, m, scratch, total):
    """Add the weighted gradient of a step to the rows it touches."""
    subject, relation, flip, answer = _asked(point, number)
    rows, vector, is_complex = scratch.rows, scratch.vector, point.graph.complex
    shrink = weight * vector.dtype.type(point.hyper.regularization)
    for c in range(m):
        add_scaled(total[scratch.candidates[c]], scratch.x, weight * scratch.gradients[c])
    pull_subject(is_complex, flip, rows[1], scratch.pull, vector)
    add_scaled(total[subject], vector, weight)
    add_scaled(total[subject], rows[0], shrink)
    pull_relation(is_complex, flip, rows[0], scratch.pull, vector)
    add_scaled(total[relation], vector, weight)
    add_scaled(total[relation], rows[1], shrink)
    if answer != subject:
        add_scaled(total[answer], rows[2], shrink)


@inner_kernel
def _take_square(row):
    """The sum of a row's squares, which is 0 from now on: a row named twice counts once."""
    square = np.float64(dot(row, row))
    for f in range(row.shape[0]):
        row[f] = 0
    return square


@kernel
def graph_norms(point, start, stop, out):
    """Write the norms of the weighted gradients of the visits `start` to `stop` to `out`.

    Parameters
    ----------
    point : GraphPoint
    start, stop : int
    out : (n,)
        By visit; left as it is where the weight is 0.
    """
    scratch, steps = _scratch(point), _steps(point)
    total = np.zeros_like(point.rows)
    touched = np.empty(steps * (scratch.counts.shape[0] + 2), np.int32)
    for t in range(start, stop):
        n = 0
        if _weight(point, t * steps) == 0:
            continue
        for number in range(t * steps, (t + 1) * steps):
            m, _ = _look(point, number, scratch)
            _add_gradients(point, number, _weight(point, number), m, scratch, total)
            touched[n], touched[n + 1], _, _ = _asked(point, number)
            touched[n + 2 : n + 2 + m] = scratch.candidates[:m]
            n += m + 2
        square = 0.0
        for place in range(n):
            square += _take_square(total[touched[place]])
        out[t] = np.sqrt(square)


@inner_kernel
def _add_outer(block, x, factor):
    for a in range(x.shape[0]):
        add_scaled(block[a], x, factor * x[a])


@inner_kernel
def _add_identity(block, factor):
    for a in range(block.shape[0]):
        block[a, a] += factor


@inner_kernel
def _add_blocks(point, number, weight, m, place, scratch, low, high, blocks):
    """Add a step's blocks on those of its rows that are from `low` to `high`."""
    subject, relation, flip, answer = _asked(point, number)
    is_complex, loss = point.graph.complex, point.hyper.loss
    one = scratch.x.dtype.type(1)
    shrink = weight * scratch.x.dtype.type(point.hyper.regularization)
    for c in range(m):
        r, bend = scratch.candidates[c], scratch.curvatures[c]
        if c == place or not low <= r < high:
            continue
        if loss == SOFTMAX:
            bend *= one - bend
        _add_outer(blocks[r], scratch.x, weight * bend)
        if r == answer:
            _add_identity(blocks[r], shrink)
    if low <= subject < high:
        add_gauss_newton(
            is_complex, flip, loss, scratch.rows, scratch, SUBJECT, place, weight, m,
            blocks[subject],
        )  # fmt: skip
        _add_identity(blocks[subject], shrink)
    if low <= relation < high:
        add_gauss_newton(
            is_complex, flip, loss, scratch.rows, scratch, RELATION, place, weight, m,
            blocks[relation],
        )  # fmt: skip
        _add_identity(blocks[relation], shrink)


@kernel
def graph_blocks(point, low, high, blocks):
    """Add the diagonal blocks of the Gauss-Newton matrix of rows `low` to `high`.

    A row gets its sums in the order of the steps, whoever else works on other rows meanwhile.

    Parameters
    ----------
    point : GraphPoint
    low, high : int
        Rows.
    blocks : (n_rows, d, d)
    """
    scratch = _scratch(point)
    for number in range(point.examples.heads.shape[0] * _steps(point)):
        weight = _weight(point, number)
        if weight == 0:
            continue
        m, place = _look(point, number, scratch)
        _add_blocks(point, number, weight, m, place, scratch, low, high, blocks)
