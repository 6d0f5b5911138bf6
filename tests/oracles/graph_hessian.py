"""The training loss of triples at fixed rows, its gradients and its Gauss-Newton matrix: naive.

A step is asked once an epoch for every side of every triple; its share of the loss is the
triple's weight divided by the number of epochs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .graph_sgd import (
    SOFTMAX,
    Example,
    Link,
    candidates_of,
    example_loss,
    gradients,
    link_of,
    score,
    score_gradients,
    sigmoid,
    slots,
)


class Step(NamedTuple):
    t: int  # position of the triple in the order of visits
    link: Link
    candidates: list[int]
    counts: list[int]
    share: float


def steps_of(setting, examples, epochs):
    found = []
    for t, example in enumerate(Example(*example) for example in examples):
        for epoch in epochs:
            for side in range(setting.sides):
                link = link_of(setting, example, side)
                candidates, counts = candidates_of(setting, example, link, side, epoch)
                share = example.weight / len(epochs)
                found.append(Step(t, link, candidates, counts, share))
    return found


def losses(setting, rows, examples, epochs):
    """(n,): weighted, regularization included."""
    found = np.zeros(len(examples))
    for step in steps_of(setting, examples, epochs):
        found[step.t] += step.share * example_loss(setting, rows, *step[1:4])
    return found


def gradients_of(setting, rows, examples, epochs):
    """(n, n_rows, d): the gradients of `losses`."""
    found = np.zeros((len(examples), *rows.shape))
    for step in steps_of(setting, examples, epochs):
        for row, gradient in gradients(setting, rows, *step[1:4]).items():
            found[step.t, row] += step.share * gradient
    return found


def curvature(setting, scores, counts):
    """d2loss/dz2 (m, m)."""
    drawn = slots(scores, counts)
    if setting.loss == SOFTMAX:
        top = max(drawn)
        weights = np.array(counts) * np.exp(np.array(scores) - top)
        p = weights / weights.sum()
        return np.diag(p) - np.outer(p, p)
    slopes = [sigmoid(z) * sigmoid(-z) for z in scores]
    return np.diag(np.array(counts) * slopes) / len(drawn)


def gauss_newton(setting, rows, examples, epochs):
    """(n_rows * d, n_rows * d): the sum of J' (d2loss/dz2) J, and the regularization."""
    d = rows.shape[1]
    found = np.zeros((rows.size, rows.size))
    for step in steps_of(setting, examples, epochs):
        jacobian = np.zeros((len(step.candidates), *rows.shape))
        for c, entity in enumerate(step.candidates):
            for row, gradient in score_gradients(setting, rows, step.link, entity):
                jacobian[c, row] += gradient
        jacobian = jacobian.reshape(len(step.candidates), -1)
        scores = [score(setting, rows, step.link, entity) for entity in step.candidates]
        bends = curvature(setting, scores, step.counts)
        found += step.share * jacobian.T @ bends @ jacobian
        for row in {step.link.subject, step.link.relation, step.link.target}:
            own = np.arange(row * d, (row + 1) * d)
            found[own, own] += step.share * setting.regularization
    return found
