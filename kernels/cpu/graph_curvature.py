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
from .simd import add_combination, add_scaled, dot

__all__ = ["RELATION", "SUBJECT", "add_gauss_newton", "roll_back_triples"]

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
    vector: Any  # (d,)
    pulls: Any  # (C, d): y_c
    weights: Any  # (C,)


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
    for a in range(x.shape[0]):
        vector[a] = factor * curvature * dot(carried[a], x)
    for a in range(x.shape[0]):
        if shrink != 0:
            add_scaled(matrix[a], carried[a], factor * shrink)
        add_scaled(matrix[a], x, vector[a])


@inner_kernel
def _add_block(matrix, carried, factor, block, vector):
    """``M += K H``, K being ``factor * carried``, which may be M itself."""
    d = matrix.shape[0]
    for a in range(d):
        left = carried[a]
        for f in range(d):
            vector[f] = factor * left[f]
        add_combination(matrix[a], vector, block)


@inner_kernel
def add_gauss_newton(is_complex, flip, loss, rows, scratch, role, place, weight, m, block):
    """Add a step's Gauss-Newton matrix on the row of its subject or relation to `block` (d, d)."""
    x, mean, pulls = scratch.x, scratch.vector, scratch.pulls
    weights, shares = scratch.weights[:m], scratch.scores[:m]  # the scores are of no more use
    d, one = x.shape[0], x.dtype.type(1)
    for a in range(d):
        mean[a] = 0
    for c in range(m):
        if role == SUBJECT:
            pull_subject(is_complex, flip, rows[1], rows[2 + c], pulls[c])
            if c == place:
                add_scaled(pulls[c], x, one)
        else:
            pull_relation(is_complex, flip, rows[0], rows[2 + c], pulls[c])
        weights[c] = weight * scratch.curvatures[c]
    add_combination(mean, weights, pulls)
    for a in range(d):
        for c in range(m):
            shares[c] = weights[c] * pulls[c, a]
        add_combination(block[a], shares, pulls)
        if loss == SOFTMAX:
            add_scaled(block[a], mean, -mean[a] / weight)


@inner_kernel
def _block(is_complex, flip, loss, rows, scratch, role, place, weight, regularization, m):
    """Write H on the row of the subject or of the relation to ``scratch.block``."""
    block, d = scratch.block, scratch.x.shape[0]
    bend, half = regularization * 0, d // 2 if is_complex else d
    if role == SUBJECT and place >= 0:  # its score has a second derivative: twice Re(w), diagonal
        bend = weight * scratch.gradients[place]
    for a in range(d):
        for f in range(d):
            block[a, f] = 0
    add_gauss_newton(is_complex, flip, loss, rows, scratch, role, place, weight, m, block)
    for a in range(d):
        block[a, a] += weight * regularization + (bend + bend) * rows[1, a % half]


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


@inner_kernel
def _gradient(is_complex, flip, rows, scratch, role, place, regularization, weight):
    """Write the weighted gradient of one of a step's rows to ``scratch.gradient``."""
    number, out = scratch.x.dtype.type, scratch.gradient
    slope, shrink, row = number(0), regularization, rows[0]
    if role == SUBJECT:
        pull_subject(is_complex, flip, rows[1], scratch.pull, out)
        if place >= 0:
            slope = scratch.gradients[place]
    elif role == RELATION:
        pull_relation(is_complex, flip, rows[0], scratch.pull, out)
        row = rows[1]
    else:
        for f in range(out.shape[0]):
            out[f] = 0
        slope, row = scratch.gradients[role], rows[2 + role]
        if role > 0:
            shrink = number(0)
    for f in range(out.shape[0]):
        out[f] = weight * (out[f] + slope * scratch.x[f] + shrink * row[f])


@inner_kernel
def _take_row_back(
    walk, slot, graph, log, hyper, entry, flip, role, place, m, time, size, weight, credited,
    scratch,
):  # fmt: skip
    """Credit a step's triple with what it did to one row, and take the row's matrix back over it.

    `credited` (d,) is what to add the credit to, or (0,).
    """
    number, rows = scratch.x.dtype.type, log.rows[entry]
    matrix, regularization = walk.matrices[slot], number(hyper.regularization)
    carried, factor = matrix, number(-size)
    needed = credited.shape[0] > 0 or hyper.optimizer != SGD
    if needed:
        _gradient(graph.complex, flip, rows, scratch, role, place, regularization, weight)
    if hyper.optimizer != SGD:
        momentum = walk.momenta[slot] if hyper.optimizer >= ADAM else matrix
        _scale(hyper, log, entry, 2 + role, time, size, scratch.gradient, scratch.scaling)
        _carry(hyper, matrix, momentum, scratch.scaling, scratch.carried)
        carried, factor = scratch.carried, number(1)
    if credited.shape[0] > 0:
        _add_product(carried, factor, scratch.gradient, credited)
    if role >= 0:
        h = scratch.curvatures[role]
        if hyper.loss == SOFTMAX:
            h = h * (number(1) - h)
        shrink = weight * regularization if role == 0 else number(0)
        _add_candidate(matrix, carried, factor, scratch.x, weight * h, shrink, scratch.vector)
    else:
        _block(
            graph.complex, flip, hyper.loss, rows, scratch, role, place, weight, regularization, m
        )
        _add_block(matrix, carried, factor, scratch.block, scratch.vector)


@inner_kernel
def _alive(walk, r):
    """Place of a row's matrix; -1 if it is not looked at, or has vanished."""
    slot = walk.slots[r]
    return slot if slot >= 0 and walk.touched[slot] >= 0 else -1


@inner_kernel
def _step_back(walk, graph, examples, log, hyper, t, side, time, first, sizes, changes, scratch):
    """Take all rows that are looked at back over one step."""
    entry, size = log.slots[t] * hyper.sides + side, sizes[time - first + 1]
    subject, relation, flip, _ = question(graph, examples, t, side)
    m = log.n_candidates[entry]
    candidates, weight = log.candidates[entry], examples.weights[t]
    place, any_alive = -1, _alive(walk, subject) >= 0 or _alive(walk, relation) >= 0
    for c in range(m):
        if candidates[c] == subject:
            place = c
        any_alive = any_alive or _alive(walk, candidates[c]) >= 0
    if not any_alive:
        return
    take_again(
        graph.complex, flip, hyper.loss, log.rows[entry], log.counts[entry, :m], scratch.x,
        scratch.pull, scratch.scores, scratch.gradients, scratch.curvatures,
    )  # fmt: skip
    head, credits = examples.heads[t], changes[t]
    for role in range(SUBJECT, m):
        if role >= 0 and role == place:
            continue
        r = subject if role == SUBJECT else relation if role == RELATION else candidates[role]
        slot = _alive(walk, r)
        if slot < 0:
            continue
        credited = credits[0, :0]
        if role == RELATION:
            credited = credits[3 if side == 1 and graph.reciprocal else 2]
        elif role <= 0:
            credited = credits[0 if r == head else 1]
        _take_row_back(
            walk, slot, graph, log, hyper, entry, flip, role, place, m, time, size, weight,
            credited, scratch,
        )  # fmt: skip
        if hyper.optimizer == DENSE_ADAM:
            _wait_back(
                hyper, walk.matrices[slot], walk.momenta[slot], log.squares[entry, 2 + role],
                log.clocks[entry, 2 + role], time, first, sizes,
            )  # fmt: skip
        _watch(walk.matrices[slot], walk.growth, walk.touched, slot)


@kernel
def roll_back_triples(walk, graph, examples, log, hyper, epoch, start, stop, changes):
    """Walk back over visits `start` to `stop` of an epoch.

    Parameters
    ----------
    walk : GraphCurvature
        The rows that are looked at, behind the visits; changed in place.
    graph : Graph
    examples : TripleExamples
    log : GraphLog
    hyper : GraphHyper
    epoch, start, stop : int
    changes : (n, S, d)
        Credits of every visit, as in `TripleRecord`, added to.
    """
    n, d = examples.heads.shape[0], walk.matrices.shape[1]
    number, sides = walk.matrices.dtype, hyper.sides
    most = log.candidates.shape[1]
    first = epoch * n * sides
    sizes = step_sizes(hyper, first, stop * sides)
    scratch = Scratch(
        np.empty(d, number), np.empty(d, number), np.empty(d, number),
        np.empty(most, number), np.empty(most, number), np.empty(most, number),
        np.empty(d, number), np.empty((d, d), number), np.empty((d, d), number),
        np.empty(d, number), np.empty((most, d), number), np.empty(most, number),
    )  # fmt: skip
    if hyper.optimizer == DENSE_ADAM and stop == n:
        for r in range(walk.slots.shape[0]):
            slot = _alive(walk, r)
            if slot >= 0:
                _wait_back(
                    hyper, walk.matrices[slot], walk.momenta[slot], log.settled.squares[r],
                    log.settled.clocks[r], first + n * sides, first, sizes,
                )  # fmt: skip
    for t in range(stop - 1, start - 1, -1):
        if examples.weights[t] == 0 or log.slots[t] < 0:
            continue
        for side in range(sides - 1, -1, -1):
            time = first + t * sides + side
            _step_back(
                walk, graph, examples, log, hyper, t, side, time, first, sizes, changes, scratch
            )
