"""Naive HYDRA without Hessians: full, two vectors an example; and lean, two numbers an example.

A run is a list of pushes, one a step, of any kind of model. With the momentum m and the response r
of an example, the push of step t, of the scaled gradient s where the step is the example's own,

    m <- momentum m + decay r + s,     r <- r - rate m.

Where rows forget, decay is 0 and what an example has in the rows of a step, r and m, shrinks first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import graph_sgd


class Push(NamedTuple):
    """One step; gradients carry the weight, the regularization and the optimizer's scaling."""

    t: int  # position of the step's example
    rate: float
    gradients: dict[Any, np.ndarray]
    shrinks: dict[Any, np.ndarray]  # share of its rows that regularization takes


def pushes_of_pairs(steps):
    """Pushes of the steps of `oracles.steps.run`."""
    found = []
    for step in steps:
        rate = step.hyper.learning_rate
        gradients = {
            name: step.rates[name] / rate * step.weight * slope
            for name, slope in step.gradients.items()
        }
        taken = step.weight * step.hyper.regularization
        shrinks = {name: step.rates[name] * taken for name in step.gradients}
        found.append(Push(step.t, rate, gradients, shrinks))
    return found


def pushes_of_triples(setting, steps, n):
    """Pushes of the steps of `oracles.graph_sgd.run` over n triples."""
    adam = setting.optimizer in (graph_sgd.ADAM, graph_sgd.DENSE)
    rate_at = graph_sgd.adam_rate if adam else graph_sgd.rate_at
    found = []
    for step in steps:
        rate = rate_at(setting, step.k, n)
        gradients = {row: step.rates[row] / rate * g for row, g in step.gradients.items()}
        taken = step.weight * setting.regularization
        regularized = step.link.subject, step.link.relation, step.link.target
        shrinks = {row: step.rates[row] * taken for row in regularized}
        found.append(Push(step.t, rate, gradients, shrinks))
    return found


def full(pushes, t, momentum=0.0, decay=None):
    """Response by row of the end of the run to the example at position t; None: rows forget."""
    momenta, responses = {}, {}
    for push in pushes:
        if decay is None:
            for row, shrink in push.shrinks.items():
                if row in responses:
                    momenta[row] = momenta[row] * (1 - shrink)
                    responses[row] = responses[row] * (1 - shrink)
        own = push.gradients if push.t == t else {}
        for row in {*responses, *own}:
            pulled = momentum * momenta.get(row, 0) + (decay or 0) * responses.get(row, 0)
            momenta[row] = pulled + own.get(row, 0)
            responses[row] = responses.get(row, 0) - push.rate * momenta[row]
    return responses


def along(gradient, response):
    """Derivative of a quantity, from its gradient by row."""
    return sum(float(gradient[row] @ r) for row, r in response.items() if row in gradient)


def lean(pushes, gradient, n, momentum=0.0, decay=0.0):
    """Influence (n,) by position: two numbers an example and quantity, first step to last."""
    momenta, responses = np.zeros(n), np.zeros(n)
    for push in pushes:
        momenta = momentum * momenta + decay * responses
        momenta[push.t] += along(gradient, push.gradients)
        responses = responses - push.rate * momenta
    return responses
