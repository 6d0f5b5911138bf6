"""Naive derivatives of a whole training run by the examples' weights: reverse and forward.

With the gradient of a step ``g = weight * dl/dtheta``, a step of SGD is ``theta -= rate * g``,
and one of Adagrad

    s += g^2,    theta -= rate(s) * g,    rate(s) = learning_rate / (sqrt(s) + epsilon).

SGD is written as the case of a rate that does not depend on s. Everything is exact: the
Hessian of a step is that of its whole loss, over all rows it touches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .steps import hessian_product


class Adjoint(NamedTuple):
    """Derivatives of a scalar phi of the parameters that training ends in."""

    weights: dict[int, float]  # dphi/dw of the example at each position; absent: no step
    rows: dict[tuple[str, int], np.ndarray]  # dphi/drow at the start; absent: zero
    squares: dict[tuple[str, int], np.ndarray]  # dphi/ds, Adagrad's sums at the start


def score_gradient(theta, user, item):
    """Gradient of the score of a pair, by row."""
    p, q = theta["user", user], theta["item", item]
    return {("user", user): np.append(q[:-1], 1), ("item", item): np.append(p[:-1], 1)}


def rate_slopes(step, name):
    """d rate / ds of every coordinate."""
    slopes = np.zeros(len(step.rows[name]))
    if step.squares is not None:
        moved = step.squares[name] > 0  # elsewhere the rate is taken to be 0: see sgd.steps
        root = np.sqrt(step.squares[name][moved])
        slopes[moved] = -step.hyper.learning_rate / (2 * root * (root + step.hyper.epsilon) ** 2)
    return slopes


def reverse(steps, gradient, hops=None):
    """Replay: the derivatives of phi by every weight and by the start, last step to first.

    Parameters
    ----------
    steps : list of Step
        Of the whole run, first to last.
    gradient : dict of row to vector
        dphi/drow where the run ends; absent: zero.
    hops : set of rows or None
        Rows the derivative may pass through; at all others it is set to zero, which
        truncates the sum over all ways an example can reach phi. None is exact.

    Returns
    -------
    Adjoint
    """
    rows = {name: u for name, u in gradient.items() if hops is None or name in hops}
    squares, weights = {}, {}
    for step in reversed(steps):
        pulls = {}  # dphi/dg
        for name, slope in step.gradients.items():
            g, zero = step.weight * slope, np.zeros(len(slope))
            u = rows.get(name, zero)
            squares[name] = squares.get(name, zero) - rate_slopes(step, name) * g * u
            pulls[name] = -step.rates[name] * u + squares[name] * 2 * g
        direct = sum(float(pulls[name] @ slope) for name, slope in step.gradients.items())
        weights[step.t] = weights.get(step.t, 0.0) + direct
        for name, product in hessian_product(step, pulls).items():
            if hops is None or name in hops:
                rows[name] = rows.get(name, 0.0) + step.weight * product
    return Adjoint(weights, rows, squares)


def forward(steps, t):
    """dtheta/dw at the end of the run, w the weight of the example at position t, by row."""
    rows, squares = {}, {}
    for step in steps:
        at = {name: rows.get(name, np.zeros(len(row))) for name, row in step.rows.items()}
        product = hessian_product(step, at)
        for name, slope in step.gradients.items():
            g, moved = step.weight * slope, step.weight * product[name]
            if step.t == t:
                moved = moved + slope
            squares[name] = squares.get(name, 0.0) + 2 * g * moved
            rate_moved = rate_slopes(step, name) * squares[name]
            rows[name] = at[name] - step.rates[name] * moved - rate_moved * g
    return rows
