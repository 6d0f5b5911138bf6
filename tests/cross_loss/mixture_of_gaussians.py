"""A mixture of Gaussians in deep embedded clusters: trained by one loss, explained by another.

The experiment of arXiv 2012.01685. A network of 2, 12 and 12 units embeds points of the plane;
its soft assignment q of a point to three centres follows Student's t. It is trained without
labels (`SGD`: minimise KL(p || q), the target p being q sharpened), and what is explained is the
held-out kind of loss, minus log q of a point's own component.

All of it is batched over a leading axis of weights: one call trains once for every row. So
leaving each example out is a call with rows ``1 - e_j``, and the exact derivative by each
weight is a call with rows ``1 + ih e_j``: the complex step, which goes through every
operation of every step and rounds like the training itself.

Arrays: ``theta`` (..., 228), ``weights`` (..., n), points (n, 2), assignments (..., n, 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MEANS = np.array([[0, 0], [5, 5], [5, -5]])
DEVIATION, OF_EACH, LEARNING_RATE = 1.25, 50, 0.5
SHAPES = [(2, 12), (1, 12), (12, 12), (1, 12), (3, 12)]  # two layers, weights and biases; centres
BOUNDS = np.cumsum([0] + [a * b for a, b in SHAPES])
STEP = 1e-30  # of the complex step: no cancellation, so it may be as small as we like


@dataclass
class Problem:
    """Points, what they are to be assigned to, and the start of training."""

    points: np.ndarray  # (n, 2)
    labels: np.ndarray  # (n,): the centre that the start assigns to the mean of the component
    start: np.ndarray  # (228,)

    @property
    def n(self):
        """Number of examples."""
        return len(self.points)

    @property
    def truth(self):
        """The assignment that the labels ask for, (n, 3)."""
        return np.eye(3)[self.labels]


def problem(seed, noise=0.0):
    """Draw the data and the start: layers uniform in +-1/sqrt(inputs), centres in the middle.

    A centre starts in the middle of the embeddings of a component, as k-means would put it,
    displaced by `noise` times a standard normal vector.
    """
    rng = np.random.default_rng(seed)
    components = np.repeat(np.arange(3), OF_EACH)
    points = MEANS[components] + DEVIATION * rng.standard_normal((len(components), 2))
    layers = [rng.uniform(-1, 1, shape) / np.sqrt(fan) for shape, fan in
              zip(SHAPES[:4], (2, 2, 12, 12), strict=True)]  # fmt: skip
    theta = np.concatenate([layer.ravel() for layer in layers] + [np.zeros(36)])
    embedded = embed(theta, points)[1]
    centres = np.stack([embedded[components == c].mean(0) for c in range(3)])
    theta[-36:] = (centres + noise * rng.standard_normal(centres.shape)).ravel()
    labels = assign(theta, MEANS).argmax(1)[components]
    return Problem(points, labels, theta)


# ---------------------------------------------------------------- the model


def parts(theta):
    """The five tables of the parameters, each (..., rows, columns)."""
    return [
        theta[..., start:stop].reshape(theta.shape[:-1] + shape)
        for (start, stop), shape in zip(pairwise(BOUNDS), SHAPES, strict=True)
    ]


def embed(theta, points):
    """Hidden units (..., n, 12), cut off at 0, and embedding (..., n, 12)."""
    first, first_bias, second, second_bias, _ = parts(theta)
    hidden = points @ first + first_bias
    hidden = np.where(hidden.real > 0, hidden, 0)
    return hidden, hidden @ second + second_bias


def closeness(embedded, centres):
    """``1 / (1 + |z - c|^2)`` of every point and centre, (..., n, 3)."""
    squares = (embedded**2).sum(-1)[..., :, None] + (centres**2).sum(-1)[..., None, :]
    return 1 / (1 + squares - 2 * embedded @ centres.swapaxes(-1, -2))


def assign(theta, points):
    """Soft assignment q of every point to every centre, (..., n, 3)."""
    close = closeness(embed(theta, points)[1], parts(theta)[-1])
    return close / close.sum(-1, keepdims=True)


def sharpened(assignment, weights):
    """Target distribution: ``q^2 / sum_j w_j q_j``, each point's normalised, (..., n, 3)."""
    sharp = assignment**2 / (weights[..., None] * assignment).sum(-2, keepdims=True)
    return sharp / sharp.sum(-1, keepdims=True)


def targets_at(problem, theta):
    """Target distribution of the clustering loss with all examples there, (..., n, 3)."""
    return sharpened(assign(theta, problem.points), np.ones(problem.n))


def gradient(theta, points, targets, weights):
    """Gradient of ``-sum_j w_j sum_k p_jk log q_jk`` at fixed targets p, (..., 228).

    Of KL(p || q) and, with one target 1 and the others 0, of the negative log-likelihood.
    """
    hidden, embedded = embed(theta, points)
    *_, second, _, centres = parts(theta)
    close = closeness(embedded, centres)
    assignment = close / close.sum(-1, keepdims=True)
    pull = 2 * weights[..., None] * close * (targets - assignment)  # twice that of the square
    by_embedded = pull.sum(-1)[..., None] * embedded - pull @ centres
    by_centres = pull.sum(-2)[..., None] * centres - pull.swapaxes(-1, -2) @ embedded
    by_hidden = by_embedded @ second.swapaxes(-1, -2) * (hidden != 0)
    tables = [
        points.T @ by_hidden,
        by_hidden.sum(-2),
        hidden.swapaxes(-1, -2) @ by_embedded,
        by_embedded.sum(-2),
        by_centres,
    ]
    batch = np.broadcast_shapes(theta.shape[:-1], weights.shape[:-1])
    return np.concatenate([table.reshape((*batch, -1)) for table in tables], axis=-1)


# ---------------------------------------------------------------- training


def descent(problem, theta, weights, detached=False):
    """Mean gradient of a step of clustering; the divisor is that of all examples, always.

    The target is a constant of the *gradient*, and yet a function of theta and of the weights
    where the *step* is differentiated. With `detached` it loses its imaginary part, as if
    stop-gradient meant the second as well: the trap.
    """
    targets = sharpened(assign(theta, problem.points), weights)
    targets = targets.real if detached else targets
    return gradient(theta, problem.points, targets, weights) / problem.n


def train(problem, weights, n_steps, detached=False):
    """Parameters (..., 228) after `n_steps` full-batch steps of SGD, one training per row."""
    theta = np.broadcast_to(problem.start, (*weights.shape[:-1], len(problem.start)))
    for _ in range(n_steps):
        theta = theta - LEARNING_RATE * descent(problem, theta, weights, detached)
    return theta


# ---------------------------------------------------------------- what is explained


def likelihoods(problem, theta):
    """phi = minus the NLL of every point as a query, (..., n): not what training minimises."""
    return (np.log(assign(theta, problem.points)) * problem.truth).sum(-1)


def training_losses(problem, theta, targets):
    """phi = minus the training loss of every point at the given targets, (..., n)."""
    return (targets * np.log(assign(theta, problem.points) / targets)).sum(-1)


# ---------------------------------------------------------------- influence (n_queries, n_train)


def leave_one_out(problem, n_steps, phi=likelihoods):
    """Value with an example minus value without it, by training again without each."""
    everyone = np.ones(problem.n)
    whole = phi(problem, train(problem, everyone, n_steps))
    without = phi(problem, train(problem, everyone - np.eye(problem.n), n_steps))
    return (whole - without).T


def replay(problem, n_steps, phi=likelihoods, detached=False):
    """The exact derivative of phi after training by the weight of every example."""
    weights = 1 + 1j * STEP * np.eye(problem.n)
    return phi(problem, train(problem, weights, n_steps, detached)).imag.T / STEP


def influence_function(problem, n_steps, targets=None, detached=False):
    """``-grad phi (J + damping)^-1 grad l_j / n`` at the end point, J the derivative of `descent`.

    phi is the likelihood, or with `targets` the training loss. J of clustering is not
    symmetric unless the target is `detached`. The damping is 1 / (learning rate * steps), as
    training for so long leaves flat directions where they are.
    """
    everyone, each = np.ones(problem.n), np.eye(problem.n)
    theta = train(problem, everyone, n_steps)
    moved = theta + 1j * STEP * np.eye(len(theta))
    jacobian = descent(problem, moved, everyone, detached).imag.T / STEP
    by_weight = descent(problem, theta, everyone + 1j * STEP * each, detached).imag / STEP
    damping = 1 / (LEARNING_RATE * n_steps)
    effects = -np.linalg.solve(jacobian + damping * np.eye(len(theta)), by_weight.T)
    asked = problem.truth if targets is None else targets
    return -gradient(theta, problem.points, asked, each) @ effects
