"""Greatest norms in a naive run on triples, and what the loss of a step has as derivatives."""

from __future__ import annotations

import numpy as np

from .graph_sgd import gradients, vector


def graph_norms(setting, steps):
    """As the kernel of the same name has them."""
    found = np.zeros(7)
    for step in steps:
        s, w, answer = (
            np.abs(vector(setting, step.before[row]))
            for row in (step.link.subject, step.link.relation, step.link.target)
        )
        found = np.maximum(
            found,
            [
                np.linalg.norm(s * w), 0, 0, s.max(), w.max(),
                np.linalg.norm(np.concatenate([s, w, answer])),
                step.link.subject in step.candidates,
            ],
        )  # fmt: skip
        for candidate in step.candidates:
            o = np.abs(vector(setting, step.before[candidate]))
            norms = [0, np.linalg.norm(w * o), np.linalg.norm(s * o), o.max(), 0, 0, 0]
            found = np.maximum(found, norms)
    return found


def loss_gradient(setting, step, rows):
    """Gradient of a step's loss by all rows, flat; the triple's weight is not in it."""
    found = gradients(setting, rows, step.link, step.candidates, step.counts)
    return np.concatenate([found.get(row, np.zeros_like(rows[row])) for row in range(len(rows))])


def loss_hessian(setting, step, rows, distance=1e-5):
    """Second derivative of a step's loss by all rows, flat."""
    columns = []
    for at in np.ndindex(*rows.shape):
        ends = []
        for offset in (distance, -distance):
            moved = rows.copy()
            moved[at] += offset
            ends.append(loss_gradient(setting, step, moved))
        columns.append((ends[0] - ends[1]) / (2 * distance))
    return np.stack(columns, axis=1)
