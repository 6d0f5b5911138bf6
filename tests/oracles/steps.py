"""A whole training run, step by step, and the derivatives of one step, in float64.

The loss L of an example is a sum of functions of one number each, its *arguments*: the score
for ``squared``; the score of every candidate for ``logistic``; for ``bpr`` the lead of every
negative over the example, ``f_c - f_0``. Each argument is a sum of scores with signs,

    z = sum_c sign_c * f_c,     f_c = mean + b_u + b_c + p_u . q_c,

so that all derivatives of the example's own loss ``l = L + regularization / 2 * |rows|^2`` are

    gradient       = sum_z L'(z) dz + regularization * row
    Hessian @ v    = sum_z L''(z) (dz . v) dz + L'(z) d2z @ v  + regularization * v
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .sgd import LOGISTIC, SQUARED, Step, rows_of, sigmoid, steps


class Run(NamedTuple):
    """All steps of a run, first to last, and the rows it ends in.

    Rows are named by their place in the working tables: see `name_of`.
    """

    steps: list[Step]
    end: dict[tuple[str, int], np.ndarray]


def run(program, start, n_epochs):
    """Train for some epochs from a State in the order of the codes, as a Trajectory holds it."""
    state = program.enter(start)
    theta = rows_of(state.tables)
    squares = state.squares and rows_of(state.squares)
    made = []
    for epoch in range(n_epochs):
        made += steps(
            theta,
            squares,
            program.examples,
            program.schedule.pointers,
            program.sampler,
            program.hyper(epoch),
            program.recipe.loss_code,
            epoch,
        )
    return Run(made, theta)


def name_of(program, kind, code):
    """Name in a run of the row of a user's or an item's code."""
    order = program.schedule.user_order if kind == "user" else program.schedule.pool
    return kind, order.tolist().index(code)


def in_training_order(program, numbers):
    """Numbers by position in the order of visits as an array by training index, 0 if absent."""
    found = np.zeros(len(program.data))
    for t, number in numbers.items():
        found[program.schedule.order[t]] = number
    return found


# ---------------------------------------------------------------- derivatives of one step


class Argument(NamedTuple):
    """One of the numbers z that the loss is made of."""

    signs: dict[int, int]  # of the scores in z, by item
    slope: float  # L'(z)
    curvature: float  # L''(z)


def arguments(step):
    own, *negatives = step.candidates
    f_0, *others = step.scores
    if step.loss == SQUARED:
        return [Argument({own: 1}, f_0 - step.value, 1.0)]
    if step.loss == LOGISTIC:
        return [Argument({own: 1}, sigmoid(f_0) - step.value, sigmoid(f_0) * sigmoid(-f_0))] + [
            Argument({item: 1}, sigmoid(f), sigmoid(f) * sigmoid(-f))
            for item, f in zip(negatives, others, strict=True)
        ]
    return [
        Argument({item: 1, own: -1}, sigmoid(f - f_0), sigmoid(f - f_0) * sigmoid(f_0 - f))
        for item, f in zip(negatives, others, strict=True)
    ]


def score_slopes(step):
    """dL/df of every candidate."""
    return [
        sum(z.signs[item] * z.slope for z in arguments(step) if item in z.signs)
        for item in step.candidates
    ]


def score_curvatures(step):
    """d2L/df2 of every candidate (for ``bpr`` the curvatures of the leads, their sum first)."""
    return [
        sum(z.curvature for z in arguments(step) if item in z.signs) for item in step.candidates
    ]


def jacobian(step, z):
    """dz/drow of every row that z depends on."""
    user = "user", step.user
    found = {user: np.zeros_like(step.rows[user])}
    for item, sign in z.signs.items():
        found[user] = found[user] + sign * np.append(step.rows["item", item][:-1], 1)
        found["item", item] = sign * np.append(step.rows[user][:-1], 1)
    return found


def row_hessian(step, name, *, curvature=True, regularization=True):
    """d2l/drow2: the block of one row alone. The arguments are linear in a single row.

    The flags leave out the part of the loss and the part of the regularization.
    """
    size = len(step.rows[name])
    block = np.zeros((size, size))
    if curvature:
        for z in arguments(step):
            x = jacobian(step, z).get(name, np.zeros(size))
            block += z.curvature * np.outer(x, x)
    if regularization:
        block += step.hyper.regularization * np.eye(size)
    return block


def hessian_product(step, v):
    """The Hessian of l, of all rows the step touches, times v: both dictionaries of rows."""
    user = "user", step.user
    product = {name: step.hyper.regularization * v[name] for name in step.rows}
    for z in arguments(step):
        dz = jacobian(step, z)
        along = sum(float(dz[name] @ v[name]) for name in dz)
        for name in dz:
            product[name] = product[name] + z.curvature * along * dz[name]
        for item, sign in z.signs.items():  # d2z: p_u and q_c multiply, biases only add
            other = sign * np.append(v["item", item][:-1], 0)
            product[user] = product[user] + z.slope * other
            other = sign * np.append(v[user][:-1], 0)
            product["item", item] = product["item", item] + z.slope * other
    return product
