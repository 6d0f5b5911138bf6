"""The protocol of the demonstration released with arXiv 2012.01685, step for step.

Two models leave the same start by two full-batch Adam steps: one by the clustering loss, one by
the likelihood. Influence on the NLL of a point is estimated at either with one pass of LiSSA
over the data: *cross-loss* at the first with the Hessian and gradients of the clustering loss,
*matched* at the second with those of the likelihood. The truth is training the second without
each example, and all these trainings share one optimizer, whose moments are never reset.
"""

from __future__ import annotations

import mixture_of_gaussians as mixture
import numpy as np


class Adam:
    """Adam with its usual constants, whose moments outlive the parameters they were made of."""

    def __init__(self):
        self.first = self.second = self.steps = 0

    def step(self, theta, gradient):
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first = self.first / (1 - 0.9**self.steps)
        second = self.second / (1 - 0.999**self.steps)
        return theta - 0.001 * first / (np.sqrt(second) + 1e-8)

    def two_steps(self, problem, weights, clustering=False):
        theta = problem.start
        for _ in range(2):
            targets = mixture.targets_at(problem, theta) if clustering else problem.truth
            gradient = mixture.gradient(theta, problem.points, targets, weights)
            theta = self.step(theta, gradient / weights.sum())
        return theta


def lissa(problem, theta, targets, share=1.0, damping=0.01, scale=25):
    """Influence (n_queries, n_train) on the NLL of every point: the examples once, in order.

    The training loss of an example counts `share` times.
    """
    each, one = np.eye(problem.n), np.full(1, share)
    asked = mixture.gradient(theta, problem.points, problem.truth, each)
    found = asked
    for j in range(problem.n):
        moved = theta + 1j * mixture.STEP * found
        product = mixture.gradient(moved, problem.points[j : j + 1], targets[j : j + 1], one)
        found = asked + (1 - damping) * found - product.imag / mixture.STEP / scale
    return -found @ mixture.gradient(theta, problem.points, targets, share * each).T / problem.n


def estimates(problem):
    """Influence by the cross-loss and by the matched form, each (n_queries, n_train)."""
    everyone = np.ones(problem.n)
    clustered = Adam().two_steps(problem, everyone, clustering=True)
    supervised = Adam().two_steps(problem, everyone)
    # The demonstration divides the clustering loss of an example by its three classes.
    cross = lissa(problem, clustered, mixture.targets_at(problem, clustered), share=1 / 3)
    matched = lissa(problem, supervised, problem.truth)
    return {"cross-loss": cross, "matched": matched, "matched, read back": read_back(matched)}


def read_back(influence):
    """As the demonstration reads its own files: the last nine characters of six decimals.

    ``-12.345678`` has ten, and comes back positive.
    """
    return np.vectorize(lambda value: float(f"{value:.6f}"[-9:]))(influence)


def truth(problem):
    """NLL of every point, trained with all examples minus trained without each, one by one."""
    everyone, optimizer = np.ones(problem.n), Adam()
    whole = mixture.likelihoods(problem, Adam().two_steps(problem, everyone))
    change = np.empty((problem.n, problem.n))
    for query in range(problem.n):
        for j in range(problem.n):
            weights = everyone.copy()
            weights[j] = 0
            theta = optimizer.two_steps(problem, weights)
            change[query, j] = mixture.likelihoods(problem, theta)[query] - whole[query]
    return change
