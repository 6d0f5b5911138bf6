"""The training loss at fixed parameters, dense and naive: losses, gradients, Gauss-Newton matrix.

The loss of an example is the mean over the last four epochs, whose negatives it meets again. Axes
are those of an endpoint: examples by training index, rows of users, then of items, by code, each
factors and a bias.
"""

from __future__ import annotations

import numpy as np

from . import steps as walk
from .sgd import example_loss, rows_of, steps

N_EPOCHS = 4


def steps_at(program, tables):
    """(training index, share, Step) of every visit of the last epochs, at these tables."""
    theta = rows_of(program.enter(program.start()._replace(tables=tables, squares=None)).tables)
    n_epochs, loss = program.recipe.n_epochs, program.recipe.loss_code
    epochs = range(max(0, n_epochs - N_EPOCHS), n_epochs)
    for epoch in epochs:
        visits = program.examples, program.schedule.pointers, program.sampler
        still = program.hyper(epoch)._replace(learning_rate=0)
        for step in steps(theta, None, *visits, still, loss, epoch):
            yield program.schedule.order[step.t], 1 / len(epochs), step


def row_number(program, name):
    """Row of the endpoint of a row of the working tables."""
    kind, place = name
    if kind == "user":
        return program.schedule.user_order[place]
    return program.data.n_users + program.schedule.pool[place]


def shape_of(program):
    return program.data.n_users + program.data.n_items, program.recipe.n_factors + 1


def losses(program, tables):
    """``w_j l_j`` (n,)."""
    found = np.zeros(len(program.data))
    for j, share, step in steps_at(program, tables):
        asked = step.user, step.candidates, step.value, step.hyper, step.loss
        found[j] += share * step.weight * example_loss(step.rows, *asked)
    return found


def loss_gradients(program, tables):
    """``w_j grad l_j`` (n, n_rows, d)."""
    found = np.zeros((len(program.data), *shape_of(program)))
    for j, share, step in steps_at(program, tables):
        for name, row in step.gradients.items():
            found[j, row_number(program, name)] += share * step.weight * row
    return found


def gauss_newton(program, tables):
    """(n_rows, d, n_rows, d), regularization included."""
    shape = shape_of(program)
    matrix = np.zeros((*shape, *shape))
    for _, share, step in steps_at(program, tables):
        for z in walk.arguments(step):
            slope = np.zeros(shape)
            for name, row in walk.jacobian(step, z).items():
                slope[row_number(program, name)] += row
            matrix += share * step.weight * z.curvature * np.multiply.outer(slope, slope)
        for name in step.rows:
            row = row_number(program, name)
            coefficient = share * step.weight * step.hyper.regularization
            matrix[row, :, row, :] += coefficient * np.eye(shape[1])
    return matrix


def score_gradient(program, tables, user, item):
    """Gradient (n_rows, d) of a score."""
    found = np.zeros(shape_of(program))
    found[user] = np.append(tables.item_factors[item], 1)
    found[program.data.n_users + item] = np.append(tables.user_factors[user], 1)
    return found
