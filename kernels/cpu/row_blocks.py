"""The Hessian of the training loss on one embedding row, or on the two rows of a pair.

Restricted to the rows ``p_u`` and ``q_i`` of a pair, the Gauss-Newton matrix is

    A_u  C        A_row = sum of h x x' + l2 I over all scores of the row,
    C'   A_i      C     = sum of h x_u x_i' over those of the pair itself

with x the derivative of a score by the row. The full Hessian has dL/df on the diagonal of C,
between the factors. All is solved by Cholesky in float64, whatever the parameters are.
"""

import numpy as np

from .adjoints import add_lanes, dot_lanes
from .jit import inner_kernel, kernel
from .lanes import LANES
from .losses import BPR
from .simd import add_scaled, dot

__all__ = ["couple", "link_pairs", "own_gradients", "solve_rows"]


@kernel
def own_gradients(
    rows, parameters, edges, users, items, gradients, l2, places, start, stop,
    user_rows, user_biases, item_rows, item_biases,
):  # fmt: skip
    """Gradient of every example's own loss by the rows of its user and of its item.

    Parameters
    ----------
    rows, parameters : (n_rows, d)
        Factors and a one; factors and the bias.
    edges : Edges
    users : (n,) int32
        Row of the user of each example, in the order of the edges.
    items : (m,) int32
        Row of the item of each edge.
    gradients, l2 : (m,)
        dL/df and the coefficient of the item's row in the regularization, both times the weight;
        that of the user's row is that of the own edge.
    places : tuple of (n,) int64
        Where the gradients by the user's row, and by the item's, go: by training index.
    start, stop : int
        Examples, in the order of the edges.
    user_rows, user_biases, item_rows, item_biases : (n, d - 1), (n,), out
    """
    k = rows.shape[1] - 1
    for j in range(start, stop):
        example, own, user = edges.examples[j], edges.first[j], users[j]
        item, by_user, by_item = items[own], places[0][example], places[1][example]
        mine, its = user_rows[by_user], item_rows[by_item]
        for f in range(k):
            mine[f] = l2[own] * parameters[user, f]
            its[f] = l2[own] * parameters[item, f] + gradients[own] * rows[user, f]
        bias = l2[own] * parameters[user, k]
        for e in range(own, edges.first[j + 1]):
            add_scaled(mine, rows[items[e], :k], gradients[e])
            bias += gradients[e]
        user_biases[by_user] = bias
        item_biases[by_item] = l2[own] * parameters[item, k] + gradients[own]


@inner_kernel
def _factor(matrix, tolerance):
    """Cholesky factor of the lower triangle, in place; False where there is none.

    A pivot that is all but rounding, as small as `tolerance` times what the diagonal was, counts
    as zero.
    """
    for i in range(matrix.shape[0]):
        least = tolerance * matrix[i, i]
        for j in range(i):
            left = matrix[i, j] - dot(matrix[i, :j], matrix[j, :j])
            matrix[i, j] = left / matrix[j, j]
        pivot = matrix[i, i] - dot(matrix[i, :i], matrix[i, :i])
        if not pivot > least or not pivot > 0:
            return False
        matrix[i, i] = np.sqrt(pivot)
    return True


@kernel
def solve_rows(blocks, damping, tolerance, pointers, rows, biases, start, stop, definite):
    """Multiply the gradients of every group of examples with ``-(block + damping)^-1``.

    Parameters
    ----------
    blocks : (n_groups, d, d)
        Lower triangles.
    damping : float
    tolerance : float
        Relative size of a pivot that is taken for zero.
    pointers : (n_groups + 1,) int64
        Bounds of the examples of each group.
    rows, biases : (n, d - 1), (n,)
        Gradients by the row of the group, group after group; changed in place.
    start, stop : int
        Groups.
    definite : (n_groups,) bool, out
        False for a block that is not positive definite: its examples are left alone.
    """
    d = blocks.shape[1]
    factor = np.empty((d, d))
    panel = np.zeros((d, LANES))
    lanes = np.empty(LANES)
    for group in range(start, stop):
        first, behind = pointers[group], pointers[group + 1]
        definite[group] = True
        if first == behind:
            continue
        factor[:] = blocks[group]
        for f in range(d):
            factor[f, f] += damping
        definite[group] = _factor(factor, tolerance)
        if not definite[group]:
            continue
        for f in range(d):
            for g in range(f):
                factor[g, f] = factor[f, g]
        while first < behind:
            n = min(LANES, behind - first)
            _solve_panel(factor, rows, biases, first, n, panel, lanes)
            first += n


@inner_kernel
def _solve_panel(factor, rows, biases, first, n, panel, lanes):
    """Solve for up to 16 examples side by side; the factor stands on both sides."""
    k = rows.shape[1]
    for lane in range(n):
        for f in range(k):
            panel[f, lane] = rows[first + lane, f]
        panel[k, lane] = biases[first + lane]
    for f in range(k + 1):
        dot_lanes(factor[f, :f], panel[:f], lanes)
        add_lanes(panel[f], lanes, -1.0)
        scale = 1.0 / factor[f, f]
        for lane in range(LANES):
            panel[f, lane] *= scale
    for f in range(k, -1, -1):
        dot_lanes(factor[f, f + 1 :], panel[f + 1 :], lanes)
        add_lanes(panel[f], lanes, -1.0)
        scale = 1.0 / factor[f, f]
        for lane in range(LANES):
            panel[f, lane] *= scale
    for lane in range(n):
        for f in range(k):
            rows[first + lane, f] = -panel[f, lane]
        biases[first + lane] = -panel[k, lane]


@kernel
def couple(loss, full, rows, edges, users, items, gradients, curvatures, owns, starts, stops, out):
    """The block between the two rows of pairs that were trained on.

    Parameters
    ----------
    loss : {SQUARED, LOGISTIC, BPR}
    full : bool
        Of the full Hessian, not of the Gauss-Newton matrix.
    rows : (n_rows, d)
        Factors and a one.
    edges : Edges
    users, items : (n,) int32, (m,) int32
        Row of the user of each example and of the item of each edge.
    gradients, curvatures : (m,)
        dL/df, and `losses.candidate_curvatures`, times the weight.
    owns : (n,) int64
        Examples (in the order of the edges) sorted by pair.
    starts, stops : (q,) int64
        Bounds of each pair's examples among them.
    out : (q, d, d) float64, out
        Rows by the user's coordinates, columns by the item's.
    """
    d = rows.shape[1]
    pull = np.empty(d)
    out[:] = 0
    for q in range(starts.shape[0]):
        for at in range(starts[q], stops[q]):
            j = owns[at]
            own, behind = edges.first[j], edges.first[j + 1]
            mine, other = rows[users[j]], rows[items[own]]
            pull[:] = 0
            if loss == BPR:
                for e in range(own + 1, behind):
                    for f in range(d):
                        pull[f] += curvatures[e] * (other[f] - rows[items[e], f])
            else:
                for f in range(d):
                    pull[f] = curvatures[own] * other[f]
            for f in range(d):
                for g in range(d):
                    out[q, f, g] += pull[f] * mine[g]
            if full:
                for f in range(d - 1):
                    out[q, f, f] += gradients[own]


@kernel
def link_pairs(
    blocks, damping, tolerance, rows, couplings, users, items, by_user, by_item, definite
):
    """What the changes of a pair's rows are multiplied with, the rows being linked to each other.

    Example j's gradients g are carried into the score of the pair by

        -x' [A_u C; C' A_i]^-1 g = x_u . gamma_u + x_i . gamma_i,     gamma_row = -A_row^-1 g_row,

    with ``x_u = (q, 1) - C v_i`` and ``x_i = (p, 1) - C' v_u``, v the solution of the system for
    ``((q, 1), (p, 1))``. Without C these are ``(q, 1)`` and ``(p, 1)``.

    Parameters
    ----------
    blocks : (n_rows, d, d)
        Lower triangles of A without damping.
    damping : float
    tolerance : float
        Relative size of a pivot that is taken for zero.
    rows : (n_rows, d)
        Factors and a one.
    couplings : (q, d, d) float64
        C of each pair.
    users, items : (q,) int
        Rows of each pair.
    by_user, by_item : (q, d), out
    definite : (q,) bool, out
        False where the system is not positive definite: nothing is written.
    """
    d = rows.shape[1]
    matrix = np.empty((2 * d, 2 * d))
    v = np.empty(2 * d)
    for q in range(users.shape[0]):
        u, i, coupling = users[q], items[q], couplings[q]
        for f in range(d):
            for g in range(f + 1):
                matrix[f, g] = blocks[u, f, g]
                matrix[d + f, d + g] = blocks[i, f, g]
            for g in range(d):
                matrix[d + f, g] = coupling[g, f]
            matrix[f, f] += damping
            matrix[d + f, d + f] += damping
            v[f], v[d + f] = rows[i, f], rows[u, f]
        definite[q] = _factor(matrix, tolerance)
        if not definite[q]:
            continue
        _solve_one(matrix, v)
        for f in range(d):
            mine = its = 0.0
            for g in range(d):
                mine += coupling[f, g] * v[d + g]
                its += coupling[g, f] * v[g]
            by_user[q, f] = rows[i, f] - mine
            by_item[q, f] = rows[u, f] - its


@inner_kernel
def _solve_one(factor, v):
    n = v.shape[0]
    for f in range(n):
        v[f] = (v[f] - dot(factor[f, :f], v[:f])) / factor[f, f]
    for f in range(n - 1, -1, -1):
        v[f] /= factor[f, f]
        add_scaled(v[:f], factor[f, :f], -v[f])
