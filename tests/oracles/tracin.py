"""Naive TracIn: training forwards, a whole set of rows at hand, a dictionary a gradient."""

from __future__ import annotations

import numpy as np

from .sgd import gradients, scores, sigmoid


def slope(kind, target, score):
    """Derivative of a score, or of minus its loss, by the score."""
    if kind == "squared":
        return target - score
    if kind == "logistic":
        return target - sigmoid(score)
    return 1.0


def gradient(theta, terms, mean, kind=None):
    """Gradient of ``sum of weight * (score, or minus its loss)`` by every row.

    `terms` are (user, item, weight, target).
    """
    found = {}
    for user, item, weight, target in terms:
        by_score = weight * slope(kind, target, scores(theta, user, [item], mean)[0])
        p, q = theta["user", user], theta["item", item]
        for name, other in ((("user", user), q), (("item", item), p)):
            found[name] = found.get(name, 0.0) + by_score * np.append(other[:-1], 1)
    return found


def ideal(theta, steps, gradient):
    """What the steps of the example at each position did to phi, to first order.

    Parameters
    ----------
    theta : dict of row to vector
        Where training starts.
    steps : list of Step
    gradient : callable
        Of phi at some rows.
    """
    theta, found = dict(theta), {}
    for step in steps:
        slopes = gradient(theta)
        for name, change in step.changes.items():
            if name in slopes:
                found[step.t] = found.get(step.t, 0.0) + float(slopes[name] @ change)
            theta[name] = theta[name] + change
    return found


def at_checkpoints(checkpoints, examples, gradient, hyper, loss):
    """``-sum rate * grad phi . w grad l`` of every example, at fixed rows.

    Parameters
    ----------
    checkpoints : list of (rate, theta)
    examples : list of (user, lists of candidates, value, weight)
        One list for each draw of negatives; the gradient is their mean.
    gradient : callable
        Of phi at some rows.
    """
    found = np.zeros(len(examples))
    for rate, theta in checkpoints:
        slopes = gradient(theta)
        for j, (user, draws, value, weight) in enumerate(examples):
            for candidates in draws:
                own = gradients(theta, user, candidates, value, hyper, loss)
                along = sum(
                    float(slopes[name] @ row) for name, row in own.items() if name in slopes
                )
                found[j] -= rate * weight * along / len(draws)
    return found
