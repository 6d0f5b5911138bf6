"""HYDRA without Hessians for triples: what every step left in the rows a quantity depends on.

See `hydra`. A step's gradients are made again from the rows it saw (`graph_replay.take_again`) and
scaled as the optimizer scaled the gradient of that step: for Adam by its step size over the root
of its squares, its momentum left out.
"""

import numpy as np

from .bilinear import pull_relation, pull_subject
from .graph_replay import take_again
from .graph_sgd import question
from .hydra import read_row
from .jit import inner_kernel, kernel
from .lanes import LANES
from .row_optimizers import ADAGRAD, DENSE_ADAM, SGD, step_sizes

__all__ = ["hydra_triples"]


@inner_kernel
def _rates(hyper, log, entry, place, time, gradient, rates):
    """What the optimizer multiplies this gradient with, besides the step size."""
    if hyper.optimizer == SGD:
        return
    number, squares = gradient.dtype.type, log.squares[entry, place]
    keep, rest = number(1), number(1)
    if hyper.optimizer != ADAGRAD:
        waited = time - log.clocks[entry, place] if hyper.optimizer == DENSE_ADAM else 0
        keep, rest = number(hyper.beta2 ** (waited + 1)), number(1 - hyper.beta2)
    for f in range(gradient.shape[0]):
        root = np.sqrt(keep * squares[f] + rest * gradient[f] * gradient[f])
        rates[f] = 1 / (root + number(hyper.epsilon)) if root > 0 else number(0)


@inner_kernel
def _any(places, subject, relation, candidates):
    """Whether a step moves any of the rows."""
    found = places[subject] >= 0 or places[relation] >= 0
    for c in range(candidates.shape[0]):
        found = found or places[candidates[c]] >= 0
    return found


@inner_kernel
def _step(
    rows, left, places, graph, log, entry, asked, candidates, hyper, time, weight, factor, shrink,
    out, work,
):  # fmt: skip
    subject, relation, flip = asked
    x, pull, gradient, rates, scores, slopes, curvatures, lane = work
    m, seen, number = candidates.shape[0], log.rows[entry], x.dtype.type
    take_again(
        graph.complex, flip, hyper.loss, seen, log.counts[entry, :m], x, pull, scores, slopes,
        curvatures,
    )  # fmt: skip
    regularization, own = number(hyper.regularization), number(0)
    for c in range(m):
        if candidates[c] == subject:
            own = slopes[c]
            continue
        at = places[candidates[c]]
        if at < 0:
            continue
        l2 = regularization if c == 0 else number(0)
        for f in range(x.shape[0]):
            gradient[f] = weight * (slopes[c] * x[f] + l2 * seen[2 + c, f])
        _rates(hyper, log, entry, 2 + c, time, gradient, rates)
        taken = shrink if c == 0 else number(0)
        read_row(gradient, rates, left[at], factor, taken, rows[at], lane, out)
    at = places[subject]
    if at >= 0:
        pull_subject(graph.complex, flip, seen[1], pull, gradient)
        for f in range(x.shape[0]):
            gradient[f] = weight * (gradient[f] + own * x[f] + regularization * seen[0, f])
        _rates(hyper, log, entry, 0, time, gradient, rates)
        read_row(gradient, rates, left[at], factor, shrink, rows[at], lane, out)
    at = places[relation]
    if at >= 0:
        pull_relation(graph.complex, flip, seen[0], pull, gradient)
        for f in range(x.shape[0]):
            gradient[f] = weight * (gradient[f] + regularization * seen[1, f])
        _rates(hyper, log, entry, 1, time, gradient, rates)
        read_row(gradient, rates, left[at], factor, shrink, rows[at], lane, out)


@kernel
def hydra_triples(
    rows, left, places, graph, examples, log, hyper, epoch, factors, forget, start, stop, out
):
    """Credit logged steps with what they left in some rows, the last step first.

    Parameters
    ----------
    rows : (m, d, LANES)
        Derivatives of a block of quantities by the m rows they depend on, a quantity a lane.
    left : (m, d)
        The share of a change that later steps leave in each row; changed in place.
    places : (n_rows,) int32
        Where each row of the model stands in `rows`, -1: nowhere.
    graph : Graph
    examples : TripleExamples
    log : GraphLog
    hyper : GraphHyper
    epoch : int
    factors : (n * sides,) float64
        Of every step of the epoch, see `hydra.step_filter`.
    forget : bool
        Whether a step's regularization shrinks what its rows keep of earlier ones.
    start, stop : int
        Visits to go through.
    out : (n, LANES)
        Influence of every triple, by its id, added to.
    """
    number, sides, d = rows.dtype.type, hyper.sides, rows.shape[1]
    most, first = log.candidates.shape[1], epoch * examples.heads.shape[0] * sides
    sizes = step_sizes(hyper, first, stop * sides)
    work = (
        np.empty(d, rows.dtype), np.empty(d, rows.dtype), np.empty(d, rows.dtype),
        np.ones(d, rows.dtype), np.empty(most, rows.dtype), np.empty(most, rows.dtype),
        np.empty(most, rows.dtype), np.empty(LANES, rows.dtype),
    )  # fmt: skip
    for t in range(stop - 1, start - 1, -1):
        weight = examples.weights[t]
        if weight == 0 or log.slots[t] < 0:  # no step: what a log holds there was never written
            continue
        for side in range(sides - 1, -1, -1):
            number_of_step, entry = t * sides + side, log.slots[t] * sides + side
            subject, relation, flip, _ = question(graph, examples, t, side)
            candidates = log.candidates[entry, : log.n_candidates[entry]]
            if not _any(places, subject, relation, candidates):
                continue
            shrink = number(0)
            if forget:
                shrink = number(sizes[number_of_step + 1] * hyper.regularization) * weight
            _step(
                rows, left, places, graph, log, entry, (subject, relation, flip), candidates,
                hyper, first + number_of_step, weight, number(factors[number_of_step]), shrink,
                out[examples.ids[t]], work,
            )  # fmt: skip
