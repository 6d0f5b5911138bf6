"""The training loss of matrix factorization at fixed parameters, its gradients, its Hessian.

Naive loops over examples and candidates, in float64. Rows are those of the users, then those of
the items, ``(factors, bias)``. An example's own loss is

    L(own pair) + mean over epochs of the sum over the epoch's negatives of L(negative)
    + regularization / 2 * (|user|^2 + |item|^2 + mean over epochs of the sum of |negative|^2)

with L a function of one number: a score or, in BPR, the lead of a negative over the item.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import sgd
from .sgd import BPR, LOGISTIC, SQUARED, sigmoid, softplus


class Example(NamedTuple):
    user: int
    item: int
    negatives: list[list[int]]  # of every epoch that is averaged
    value: float
    weight: float


class Problem(NamedTuple):
    examples: list[Example]
    parameters: np.ndarray  # (n_users + n_items, d) float64
    n_users: int
    loss: int
    mean: float
    regularization: float


class Term(NamedTuple):
    """A part of a loss, share and weight included: a function of a signed sum of scores."""

    signs: dict[int, int]  # of the scores, by item
    cost: float
    slope: float
    curvature: float


def of_program(program, tables, n_epochs=4):
    """What a training run minimises: the negatives are those of its last epochs."""
    data, recipe = program.data, program.recipe
    epochs = range(max(0, recipe.n_epochs - n_epochs), recipe.n_epochs)
    examples = []
    for j in range(len(data)):
        user, item = int(data.users[j]), int(data.items[j])
        drawn = [_drawn(program, epoch, j, user, item) for epoch in epochs]
        value, weight = float(data.values[j]), float(program.weights[j])
        examples.append(Example(user, item, drawn, value, weight))
    halves = [
        np.column_stack([factors, biases]).astype(float)
        for factors, biases in zip(tables[:2], tables[2:], strict=True)
    ]
    mean, regularization = program.mean, recipe.regularization
    rows = np.concatenate(halves)
    return Problem(examples, rows, data.n_users, recipe.loss_code, mean, regularization)


def _drawn(program, epoch, j, user, item):
    if program.recipe.loss == "squared" or not program.data.values[j] > 0:
        return []
    user, item = int(program.places[0][user]), int(program.places[1][item])
    bounds = program.sampler.pool_pointers.tolist()
    group = max(g for g, start in enumerate(bounds[:-1]) if start <= item)
    places = sgd.negatives(program.sampler, epoch, j, user, item, group)
    return [int(program.schedule.pool[place]) for place in places]


def counted(example):
    """(item, how much it counts) of the example's own item and of every negative drawn."""
    share = 1 / len(example.negatives)
    return [(example.item, 1.0)] + [(i, share) for drawn in example.negatives for i in drawn]


def score(problem, user, item):
    p, q = problem.parameters[user], problem.parameters[problem.n_users + item]
    return problem.mean + p[-1] + q[-1] + float(p[:-1] @ q[:-1])


def terms(problem, example):
    own = score(problem, example.user, example.item)
    if problem.loss == SQUARED:
        off = own - example.value
        return [_weighted(example.weight, {example.item: 1}, off**2 / 2, off, 1.0)]
    found = []
    for number, (item, share) in enumerate(counted(example)):
        z, signs = score(problem, example.user, item), {item: 1}
        target = example.value if number == 0 else 0.0
        if problem.loss == BPR:
            if number == 0:
                continue
            z, signs = z - own, {item: 1, example.item: -1}
        cost = softplus(-z) if target > 0 else softplus(z)
        numbers = cost, sigmoid(z) - target, sigmoid(z) * sigmoid(-z)
        found.append(_weighted(example.weight * share, signs, *numbers))
    assert problem.loss in (LOGISTIC, BPR)
    return found


def _weighted(weight, signs, *numbers):
    return Term(signs, *(weight * number for number in numbers))


def shrunk(problem, example):
    """(row, coefficient) of everything the example's regularization is about."""
    strength = example.weight * problem.regularization
    of_items = [(problem.n_users + item, strength * share) for item, share in counted(example)]
    return [(example.user, strength), *of_items]


def losses(problem):
    """(n,): weighted, regularization included."""
    found = np.zeros(len(problem.examples))
    for j, example in enumerate(problem.examples):
        found[j] = sum(term.cost for term in terms(problem, example))
        for row, strength in shrunk(problem, example):
            found[j] += strength / 2 * float(problem.parameters[row] @ problem.parameters[row])
    return found


def jacobian(problem, user, signs):
    """(n_rows, d): derivative of a signed sum of scores of a user."""
    found = np.zeros(problem.parameters.shape)
    for item, sign in signs.items():
        row = problem.n_users + item
        found[user] += sign * np.append(problem.parameters[row, :-1], 1)
        found[row] += sign * np.append(problem.parameters[user, :-1], 1)
    return found


def gradients(problem):
    """(n, n_rows, d): of `losses`."""
    found = np.zeros((len(problem.examples), *problem.parameters.shape))
    for j, example in enumerate(problem.examples):
        for term in terms(problem, example):
            found[j] += term.slope * jacobian(problem, example.user, term.signs)
        for row, strength in shrunk(problem, example):
            found[j, row] += strength * problem.parameters[row]
    return found


def hessian(problem, *, full=False, members=None):
    """(P, P) of the sum of all losses, or of some examples': Gauss-Newton, or the matrix itself."""
    size, d = problem.parameters.size, problem.parameters.shape[1]
    found = np.zeros((size, size))
    for j in range(len(problem.examples)) if members is None else members:
        example = problem.examples[j]
        for term in terms(problem, example):
            x = jacobian(problem, example.user, term.signs).ravel()
            found += term.curvature * np.outer(x, x)
            for item, sign in term.signs.items() if full else ():
                a = example.user * d + np.arange(d - 1)  # equal factors multiply
                b = (problem.n_users + item) * d + np.arange(d - 1)
                found[a, b] += sign * term.slope
                found[b, a] += sign * term.slope
        for row, strength in shrunk(problem, example):
            own = np.arange(row * d, (row + 1) * d)
            found[own, own] += strength
    return found
