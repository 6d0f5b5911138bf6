"""The Hessian of the training loss at fixed parameters, times 16 vectors at once.

The loss is a function of scores, and a score of two rows: with the edges of `Edges`, the rows
``x = (factors, 1)`` at their other ends and a direction V, (n_rows, d, LANES), the product is

    S_e = x_item . V_user + x_user . V_item        the scores' slopes along V
    B   = (d2L/df2) S                              example by example
    (H V)_row = sum_e B_e x_other + l2_row V_row   + sum_e g_e (V_other, 0) in the full Hessian

Without the last term it is the Gauss-Newton matrix. Whoever works on a row writes to that row
alone, and on an edge in the same order, so the bits do not depend on the number of threads.
"""

import numpy as np

from .adjoints import add_four_rows, add_lanes, dot_four_rows, dot_lanes, set_lanes
from .jit import inner_kernel, kernel
from .lanes import LANES
from .losses import BPR
from .simd import add_outer_products, dot, prefetch

__all__ = [
    "bend",
    "credit",
    "gradient_norms",
    "own_credit",
    "pull",
    "row_blocks",
    "row_dots",
    "slopes",
]

_TOGETHER = 32  # rows whose outer products are added up at once
_AHEAD = 16  # places: the edges of an item lie far apart


@inner_kernel
def _ask(edges, rows, table, place):
    """Ask for the rows and edges of four places further on."""
    per_line = 64 // rows.itemsize
    for soon in range(place + _AHEAD, min(place + _AHEAD + 4, edges.others.shape[0])):
        other, edge = rows[edges.others[soon]], table[edges.numbers[soon]]
        for f in range(0, other.shape[0], per_line):
            prefetch(other, f)
        for q in range(0, LANES, per_line):
            prefetch(edge, q)


@inner_kernel
def _slopes(rows, edges, panel, start, stop, added, out, four):
    one = four.dtype.type(1)
    others, numbers = edges.others, edges.numbers
    for row in range(start, stop):
        place, behind = edges.pointers[row], edges.pointers[row + 1]
        adjoint = panel[row]
        while place < behind:
            count = min(4, behind - place)
            _ask(edges, rows, out, place)
            if count == 4:
                dot_four_rows(
                    rows, np.int64(others[place]), np.int64(others[place + 1]),
                    np.int64(others[place + 2]), np.int64(others[place + 3]), adjoint, four,
                )  # fmt: skip
            else:
                for n in range(count):
                    dot_lanes(rows[others[place + n]], adjoint, four[n])
            for n in range(count):
                if added:
                    add_lanes(out[numbers[place + n]], four[n], one)
                else:
                    set_lanes(out[numbers[place + n]], four[n], one)
            place += count


@kernel
def slopes(rows, edges, panel, start, stop, added, out):
    """One end's part of the slopes of all scores along a panel of vectors.

    Parameters
    ----------
    rows : (n_rows, d)
        Factors and a one.
    edges : Edges
    panel : (n_rows, d, LANES)
    start, stop : int
        Rows to go through: those of users or of items.
    added : bool
        Add to `out` instead of setting it.
    out : (m, LANES)
        By edge: ``rows[other] . panel[row]``.
    """
    _slopes(rows, edges, panel, start, stop, added, out, np.empty((4, LANES), rows.dtype))


@kernel
def bend(loss, first, curvatures, start, stop, slopes, out):
    """Change of dL/df of every edge along the slopes of all.

    Parameters
    ----------
    loss : {SQUARED, LOGISTIC, BPR}
    first : (n + 1,) int64
        Bounds of the edges of each example.
    curvatures : (m,)
        See `losses.candidate_curvatures`, times the weight.
    start, stop : int
        Examples.
    slopes : (m, LANES)
    out : (m, LANES)
        May be `slopes`.
    """
    one = curvatures.dtype.type(1)
    for j in range(start, stop):
        own = first[j]
        if loss != BPR:
            for e in range(own, first[j + 1]):
                set_lanes(out[e], slopes[e], curvatures[e])
            continue
        for e in range(own + 1, first[j + 1]):  # of the lead over the example
            set_lanes(out[e], slopes[e], one)
            add_lanes(out[e], slopes[own], -one)
            set_lanes(out[e], out[e], curvatures[e])
        set_lanes(out[own], slopes[own], one * 0)
        for e in range(own + 1, first[j + 1]):
            add_lanes(out[own], out[e], -one)


@inner_kernel
def _add_factors(target, source, factor):
    """``target += factor * source`` but for the biases, the last of each."""
    for f in range(target.shape[0] - 1):
        add_lanes(target[f], source[f], factor)


@inner_kernel
def _pull(rows, edges, bends, gradients, panel, l2, start, stop, out, four):
    others, numbers = edges.others, edges.numbers
    d = rows.shape[1]
    for row in range(start, stop):
        target, place, behind = out[row], edges.pointers[row], edges.pointers[row + 1]
        for f in range(d):
            set_lanes(target[f], panel[row, f], l2[row])
        while place < behind:
            count = min(4, behind - place)
            _ask(edges, rows, bends, place)
            if count == 4:
                for n in range(4):
                    set_lanes(four[n], bends[numbers[place + n]], l2.dtype.type(1))
                add_four_rows(
                    target, rows, np.int64(others[place]), np.int64(others[place + 1]),
                    np.int64(others[place + 2]), np.int64(others[place + 3]), four,
                )  # fmt: skip
            else:
                for n in range(count):
                    other, bends_of = rows[others[place + n]], bends[numbers[place + n]]
                    for f in range(d):
                        add_lanes(target[f], bends_of, other[f])
            if gradients is not None:
                for n in range(count):
                    _add_factors(target, panel[others[place + n]], gradients[numbers[place + n]])
            place += count


@kernel
def pull(rows, edges, bends, gradients, panel, l2, start, stop, out):
    """Bring the changes of all dL/df back to rows `start` to `stop`: see the top of this file.

    Parameters
    ----------
    rows : (n_rows, d)
        Factors and a one.
    edges : Edges
    bends : (m, LANES)
    gradients : (m,) or None
        dL/df times the weight, for the full Hessian.
    panel : (n_rows, d, LANES)
    l2 : (n_rows,)
        Coefficient of each row in the regularization, damping included.
    start, stop : int
    out : (n_rows, d, LANES)
        Rows `start` to `stop` are set.
    """
    four = np.empty((4, LANES), rows.dtype)
    _pull(rows, edges, bends, gradients, panel, l2, start, stop, out, four)


@kernel
def row_dots(parameters, panel, start, stop, out):
    """``out[row] = parameters[row] . panel[row]``: (n_rows, LANES)."""
    for row in range(start, stop):
        dot_lanes(parameters[row], panel[row], out[row])


@kernel
def credit(edges, users, items, gradients, l2, slopes, dots, start, stop, out):
    """Minus the slope of every example's own loss along the panel.

    Parameters
    ----------
    edges : Edges
    users : (n,) int32
        Row of the user of each example, in the order of the edges.
    items : (m,) int32
        Row of the item of each edge.
    gradients, l2 : (m,)
        dL/df and the coefficient of the item's row in the regularization, both times the weight;
        that of the user's row is that of the own edge.
    slopes : (m, LANES)
        Of the scores.
    dots : (n_rows, LANES)
        Of the parameters with the panel: see `row_dots`.
    start, stop : int
        Examples.
    out : (n, LANES)
        By training index.
    """
    for j in range(start, stop):
        mine, own = out[edges.examples[j]], edges.first[j]
        set_lanes(mine, dots[users[j]], -l2[own])
        for e in range(own, edges.first[j + 1]):
            add_lanes(mine, slopes[e], -gradients[e])
            add_lanes(mine, dots[items[e]], -l2[e])


@kernel
def gradient_norms(parameters, rows, edges, users, items, gradients, l2, start, stop, out):
    """Norms of the gradients of examples' own losses: ``out[training index]``.

    Parameters
    ----------
    parameters, rows : (n_rows, d)
        Factors and the bias; factors and a one.
    edges, users, items, gradients, l2
        As for `credit`.
    start, stop : int
        Examples.
    out : (n,)
    """
    d = rows.shape[1]
    of_user, of_item = np.empty(d), np.empty(d)
    for j in range(start, stop):
        u, own, behind = users[j], edges.first[j], edges.first[j + 1]
        for f in range(d):
            of_user[f] = l2[own] * parameters[u, f]
        total = 0.0
        for e in range(own, behind):
            i = items[e]
            known = False  # drawn in several epochs: its gradients belong together
            for before in range(own, e):
                known = known or items[before] == i
            for f in range(d):
                of_user[f] += gradients[e] * rows[i, f]
            if known:
                continue
            for f in range(d):
                of_item[f] = 0.0
            for same in range(e, behind):
                if items[same] == i:
                    for f in range(d):
                        of_item[f] += gradients[same] * rows[u, f] + l2[same] * parameters[i, f]
            total += np.dot(of_item, of_item)
        out[edges.examples[j]] = np.sqrt(total + np.dot(of_user, of_user))


@kernel
def own_credit(parameters, rows, edges, users, items, gradients, l2, start, stop, out):
    """Minus the slope of every example's own loss along the gradient of its own score.

    Parameters
    ----------
    parameters, rows : (n_rows, d)
        Factors and the bias; factors and a one.
    edges, users, items, gradients, l2
        As for `credit`.
    start, stop : int
        Examples.
    out : (n,)
        By training index.
    """
    for j in range(start, stop):
        u, own = users[j], edges.first[j]
        i = items[own]
        p, q = rows[u], rows[i]
        total = np.float64(l2[own]) * dot(parameters[u], q)
        for e in range(own, edges.first[j + 1]):
            total += np.float64(gradients[e]) * dot(rows[items[e]], q)
            if items[e] == i:
                total += np.float64(gradients[e]) * dot(p, p)
                total += np.float64(l2[e]) * dot(parameters[i], p)
        out[edges.examples[j]] = -total


@kernel
def row_blocks(loss, rows, edges, items, curvatures, l2, n_users, start, stop, out):
    """Diagonal blocks of the Gauss-Newton matrix, one a row: ``sum h x x' + l2 I``.

    Parameters
    ----------
    loss : {SQUARED, LOGISTIC, BPR}
    rows : (n_rows, d)
        Factors and a one.
    edges : Edges
    items : (m,) int32
        Row of the item of each edge.
    curvatures : (m,)
    l2 : (n_rows,)
    n_users : int
    start, stop : int
        Rows.
    out : (n_rows, d, d)
        Rows `start` to `stop` are set.
    """
    d = rows.shape[1]
    left = np.zeros((_TOGETHER, -(-d // 4) * 4), rows.dtype)
    right = np.zeros((_TOGETHER, -(-d // 32) * 32), rows.dtype)
    total = np.empty((left.shape[1], right.shape[1]), rows.dtype)
    for row in range(start, stop):
        total[:] = 0
        leads = loss == BPR and row < n_users
        filled = 0
        for place in range(edges.pointers[row], edges.pointers[row + 1]):
            e, other = edges.numbers[place], rows[edges.others[place]]
            own = edges.owns[e]
            if leads and e == own:
                continue
            for f in range(d):
                x = other[f]
                if leads:
                    x -= rows[items[own], f]
                right[filled, f] = x
                left[filled, f] = curvatures[e] * x
            filled += 1
            if filled == _TOGETHER:
                add_outer_products(total, left, right)
                filled = 0
        if filled > 0:
            add_outer_products(total, left[:filled], right[:filled])
        for f in range(d):
            for g in range(f):
                out[row, f, g] = out[row, g, f] = total[f, g]
            out[row, f, f] = total[f, f] + l2[row]
