"""Curvature Rollback for triples: what became of each triple's own updates, row by row.

The change a step makes to a row is carried to the end of training by the later steps on the same
row: with M the derivative of the row's end by what it is behind a step, and K that by the
step's gradient G,

    credit = K G,   M (before the step) = M + K H,   K = -M D,

D the optimizer's scaling as it was recorded and H the block of the step's Hessian on the row. Adam
also keeps the derivative B by the row's momentum:

    K = (1 - beta1) (B - M D),   B (before the step) = beta1 (B - M D).

Blocks of H, with x, z, g of `graph_sgd` and h the curvatures (softmax: diag(p) - p p'):

    candidate   h_cc x x'
    subject     sum_c h_cc y_c y_c' - (softmax: y y', y = sum_c p_c y_c),  y_c = dz_c/drow
    relation    the same

and the regularization's multiple of the identity on the subject, the relation and the answer. A
subject that is its own candidate has both parts and what z has as second derivative there.
"""

from typing import Any, NamedTuple

import numpy as np

from .bilinear import pull_relation, pull_subject
from .graph_replay import take_again
from .graph_sgd import question
from .jit import inner_kernel, kernel
from .link_losses import SOFTMAX
from .row_optimizers import ADAGRAD, ADAM, DENSE_ADAM, NEGLIGIBLE, SGD, step_sizes
from .simd import dot

__all__ = ["roll_back_triples"]

SUBJECT, RELATION = -2, -1  # places of a step's rows before those of its candidates

VANISHED = 1e-18
"""A matrix whose root mean square gain is below this is zero for good: nothing of what it carries
reaches the end, and soon its entries would be denormal numbers, twenty times slower than others."""

LOOK_EVERY = 32  # touches of a row between looks at the size of its matrix


class Scratch(NamedTuple):
    """What a step needs while it is rolled back; C is the most candidates."""

    x: Any  # (d,)
    pull: Any  # (d,)
    gradient: Any  # (d,)
    scores: Any  # (C,)
    gradients: Any  # (C,)
    curvatures: Any  # (C,)
    scaling: Any  # (d,)
    carried: Any  # (d, d): K, where it is not a multiple of M
    block: Any  # (d, d): H
    product: Any  # (d, d)
    pulls: Any  # (C, d): y_c
    weighted: Any  # (C, d): h_c y_c
    vector: Any  # (d,)


@inner_kernel
def _scale(hyper, log, entry, place, time, size, gradient, scaling):
    """The optimizer's scaling D of a row's gradient, as it was at a step."""
    number = gradient.dtype.type
    rate, epsilon = number(size), number(hyper.epsilon)
    if hyper.optimizer == ADAGRAD:
        squares = log.squares[entry, place]
        for f in range(scaling.shape[0]):
            scaling[f] = rate / (np.sqrt(squares[f] + gradient[f] * gradient[f]) + epsilon)
        return
    keep = hyper.beta2
    if hyper.optimizer == DENSE_ADAM:
        keep = hyper.beta2 ** (time - log.clocks[entry, place] + 1)
    beta2, rest2 = number(keep), number(1 - hyper.beta2)
    squares = log.squares[entry, place]
    for f in range(scaling.shape[0]):
        root = np.sqrt(beta2 * squares[f] + rest2 * gradient[f] * gradient[f])
        scaling[f] = rate / (root + epsilon)


@inner_kernel
def _carry(hyper, matrix, momentum, scaling, carried):
    """Write K to `carried`; take Adam's B back over the step."""
    number = matrix.dtype.type
    beta1, rest1 = number(hyper.beta1), number(1 - hyper.beta1)
    for a in range(matrix.shape[0]):
        row, out = matrix[a], carried[a]
        if hyper.optimizer == ADAGRAD:
            for f in range(out.shape[0]):
                out[f] = -row[f] * scaling[f]
            continue
        behind = momentum[a]
        for f in range(out.shape[0]):
            left = behind[f] - row[f] * scaling[f]
            out[f] = rest1 * left
            behind[f] = beta1 * left


@inner_kernel
def _add_product(matrix, factor, vector, target):
    """``target += factor * matrix @ vector``."""
    for a in range(matrix.shape[0]):
        target[a] += factor * dot(matrix[a], vector)


@inner_kernel
def _add_candidate(matrix, carried, factor, x, curvature, shrink, vector):
    """``M += K (curvature x x' + shrink)``, K being ``factor * carried``."""
    d = x.shape[0]
    for a in range(d):
        vector[a] = factor * curvature * dot(carried[a], x)
    shrink = factor * shrink
    for a in range(d):
        row, other, push = matrix[a], carried[a], vector[a]
        if shrink == 0:
            for f in range(d):
                row[f] += push * x[f]
        else:
            for f in range(d):
                row[f] += push * x[f] + shrink * other[f]


@kernel
def _add_block(matrix, carried, factor, scratch, weight, shrink, softmax, bend, relation, half, m):
    """``M += K (weight * sum_c h_c y_c y_c' ... + shrink)`` from the y_c in ``scratch.pulls``.

    ``2 bend Re(w)`` more on the diagonal; `half` is the number of real parts in `relation`.
    """
    d = matrix.shape[0]
    pulls, weighted, vector = scratch.pulls[:m], scratch.weighted[:m], scratch.vector
    vector[:] = 0
    for c in range(m):
        h, y, out = scratch.curvatures[c], pulls[c], weighted[c]
        for f in range(d):
            out[f] = h * y[f]
            vector[f] += out[f]
    np.dot(pulls.T, weighted, scratch.block)
    for a in range(d):
        row = scratch.block[a]
        mean = vector[a] if softmax else vector[a] * 0
        for f in range(d):
            row[f] = weight * (row[f] - mean * vector[f])
        row[a] += shrink + (bend + bend) * relation[a % half]
    np.dot(carried, scratch.block, scratch.product)
    for a in range(d):
        row, other = matrix[a], scratch.product[a]
        for f in range(d):
            row[f] += factor * other[f]


@inner_kernel
def _watch(matrix, growth, touched, slot):
    """Now and then, the root mean square of a matrix; tells one that has vanished (touched < 0)."""
    touched[slot] += 1
    if touched[slot] % LOOK_EVERY != 0:
        return
    total = 0.0
    for a in range(matrix.shape[0]):
        total += dot(matrix[a], matrix[a])
    growth[slot] = max(growth[slot], np.sqrt(total / matrix.shape[0]))
    if total < VANISHED * VANISHED * matrix.shape[0]:
        for a in range(matrix.shape[0]):
            for f in range(matrix.shape[0]):
                matrix[a, f] = 0
        touched[slot] = -1


@inner_kernel
def _wait_back(hyper, matrix, momentum, squares, clock, time, first, sizes):
    """Take B of dense Adam back over the steps that did not touch the row, scaling as it was."""
    if time == clock:
        return
    number = matrix.dtype.type
    d = matrix.shape[0]
    beta2_root = np.sqrt(hyper.beta2)
    keep = number(hyper.beta1 ** (time - clock))
    for f in range(d):
        root = np.float64(np.sqrt(squares[f]))
        total, shrink1, shrink2 = 0.0, 1.0, 1.0
        for t in range(clock + 1, time + 1):
            shrink1 *= hyper.beta1
            shrink2 *= beta2_root
            if shrink1 < NEGLIGIBLE:
                break
            total += sizes[t - first] * shrink1 / (shrink2 * root + hyper.epsilon)
        push = number(total)
        for a in range(d):
            momentum[a, f] = keep * momentum[a, f] - push * matrix[a, f]


@kernel
def roll_back_triples(
    matrices, momenta, slots, touched, growth, graph, examples, log, hyper, epoch, start, stop,
    changes,
):  # fmt: skip
    """Walk back over visits `start` to `stop` of an epoch.

    Parameters
    ----------
    matrices : (m, d, d)
        M of the rows that are looked at, behind the visits; changed in place.
    momenta : (m, d, d) or (0, d, d)
        Adam's B.
    slots : (n_rows,) int32
        Which matrix is that of each row, -1: none. Threads share a walk by taking rows each.
    touched : (m,) int64
        Touches so far; -1 where a matrix has vanished, which earlier steps leave alone.
    growth : (m,) float64
        The greatest root mean square gain of each matrix seen.
    graph : Graph
    examples : TripleExamples
    log : GraphLog
    hyper : GraphHyper
    epoch, start, stop : int
    changes : (n, S, d)
        Credits of every visit, as in `TripleRecord`, added to.
    """
    n, d = examples.heads.shape[0], matrices.shape[1]
    number, sides = matrices.dtype, hyper.sides
    most = log.candidates.shape[1]
    first = epoch * n * sides
    sizes = step_sizes(hyper, first, stop * sides)
    scratch = Scratch(
        np.empty(d, number), np.empty(d, number), np.empty(d, number),
        np.empty(most, number), np.empty(most, number), np.empty(most, number),
        np.empty(d, number), np.empty((d, d), number), np.empty((d, d), number),
        np.empty((d, d), number), np.empty((most, d), number), np.empty((most, d), number),
        np.empty(d, number),
    )  # fmt: skip
    own, shrink_own = scratch.gradient, changes.dtype.type(hyper.regularization)
    dense = hyper.optimizer == DENSE_ADAM
    if dense and stop == n:
        for r in range(slots.shape[0]):
            slot = slots[r]
            if slot >= 0 and touched[slot] >= 0:
                _wait_back(
                    hyper, matrices[slot], momenta[slot], log.settled.squares[r],
                    log.settled.clocks[r], first + n * sides, first, sizes,
                )  # fmt: skip
    for t in range(stop - 1, start - 1, -1):
        weight = examples.weights[t]
        if weight == 0 or log.slots[t] < 0:
            continue
        head = examples.heads[t]
        for side in range(sides - 1, -1, -1):
            time = first + t * sides + side
            size, entry = sizes[time - first + 1], log.slots[t] * sides + side
            subject, relation, flip, _ = question(graph, examples, t, side)
            m = log.n_candidates[entry]
            candidates, rows = log.candidates[entry, :m], log.rows[entry]
            place, alive = -1, 0
            for c in range(m):
                if candidates[c] == subject:
                    place = c
                slot = slots[candidates[c]]
                if slot >= 0 and touched[slot] >= 0:
                    alive += 1
            of_subject, of_relation = slots[subject], slots[relation]
            if of_subject >= 0 and touched[of_subject] < 0:
                of_subject = -1
            if of_relation >= 0 and touched[of_relation] < 0:
                of_relation = -1
            if alive == 0 and of_subject < 0 and of_relation < 0:
                continue
            take_again(
                graph.complex, flip, hyper.loss, rows, log.counts[entry, :m], scratch.x,
                scratch.pull, scratch.scores, scratch.gradients, scratch.curvatures,
            )  # fmt: skip
            for place_of in range(SUBJECT, m):
                if place_of == SUBJECT:
                    r, slot, at = subject, of_subject, 0
                elif place_of == RELATION:
                    r, slot, at = relation, of_relation, 1
                else:
                    r, slot, at = candidates[place_of], slots[candidates[place_of]], 2 + place_of
                    if place_of == place:
                        continue
                if slot < 0 or touched[slot] < 0:
                    continue
                _gradient(
                    graph.complex, flip, rows, scratch, place_of, place, shrink_own, weight, own
                )
                matrix = matrices[slot]
                carried, factor = matrix, matrix.dtype.type(-size)
                if hyper.optimizer != SGD:
                    _scale(hyper, log, entry, at, time, size, own, scratch.scaling)
                    momentum = momenta[slot] if hyper.optimizer >= ADAM else matrix
                    _carry(hyper, matrix, momentum, scratch.scaling, scratch.carried)
                    carried, factor = scratch.carried, matrix.dtype.type(1)
                credited = -1
                if place_of == RELATION:
                    credited = 3 if side == 1 and graph.reciprocal else 2
                elif place_of <= 0:
                    credited = 0 if r == head else 1
                if credited >= 0:
                    _add_product(carried, factor, own, changes[t, credited])
                _bend_matrix(
                    graph.complex, flip, hyper.loss, rows, scratch, matrix, carried, factor,
                    place_of, place, weight, shrink_own, m,
                )  # fmt: skip
                if dense:
                    _wait_back(
                        hyper, matrix, momenta[slot], log.squares[entry, at],
                        log.clocks[entry, at], time, first, sizes,
                    )  # fmt: skip
                _watch(matrix, growth, touched, slot)


@inner_kernel
def _gradient(is_complex, flip, rows, scratch, place_of, place, regularization, weight, out):
    """The weighted gradient of one of a step's rows."""
    x, number = scratch.x, out.dtype.type
    slope, shrink, row = number(0), regularization, rows[0]
    if place_of == SUBJECT:
        pull_subject(is_complex, flip, rows[1], scratch.pull, out)
        if place >= 0:
            slope = scratch.gradients[place]
    elif place_of == RELATION:
        pull_relation(is_complex, flip, rows[0], scratch.pull, out)
        row = rows[1]
    else:
        for f in range(out.shape[0]):
            out[f] = 0
        slope, row = scratch.gradients[place_of], rows[2 + place_of]
        if place_of > 0:
            shrink = number(0)
    for f in range(out.shape[0]):
        out[f] = weight * (out[f] + slope * x[f] + shrink * row[f])


@kernel
def _bend_matrix(
    is_complex, flip, loss, rows, scratch, matrix, carried, factor, place_of, place, weight,
    regularization, m,
):  # fmt: skip
    """``M += K H`` for one of a step's rows."""
    number, x = matrix.dtype.type, scratch.x
    if place_of >= 0:
        h = scratch.curvatures[place_of]
        if loss == SOFTMAX:
            h = h * (number(1) - h)
        shrink = weight * regularization if place_of == 0 else number(0)
        _add_candidate(matrix, carried, factor, x, weight * h, shrink, scratch.vector)
        return
    for c in range(m):
        if place_of == SUBJECT:
            pull_subject(is_complex, flip, rows[1], rows[2 + c], scratch.pulls[c])
            if c == place:
                for f in range(x.shape[0]):
                    scratch.pulls[c, f] += x[f]
        else:
            pull_relation(is_complex, flip, rows[0], rows[2 + c], scratch.pulls[c])
    bend, d = number(0), x.shape[0]
    if place_of == SUBJECT and place >= 0:
        bend = weight * scratch.gradients[place]
    half = d // 2 if is_complex else d
    _add_block(
        matrix, carried, factor, scratch, weight, weight * regularization, loss == SOFTMAX, bend,
        rows[1], half, m,
    )  # fmt: skip
