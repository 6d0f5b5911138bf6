"""Naive Curvature Rollback of triples: every row's own derivative, by explicit matrices.

What a row is after a step depends on what it and its momentum were before by

    momentum' = b1 momentum + (1 - b1) G(row),  row' = row - D momentum'     (Adam)
    row' = row - D G(row)                                                    (SGD, Adagrad)

with G the weighted gradient of the step by the row and D the optimizer's rates as they were. The
other rows stand still, so the derivative of a step is one matrix, made of differences of G; dense
Adam takes a step on every row at every time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .graph_sgd import ADAM, DENSE, Example, Trainer, gradients, slots_of


class Rollback(NamedTuple):
    changes: np.ndarray  # (n, S, d): as a record has them
    gains: dict[int, list[float]]  # of every row: root mean square of M behind each touch back


def hessian(setting, step, row, distance=1e-3):
    """d G / d row of a step, by differences of fourth order."""
    rows = dict(step.before)

    def gradient(coordinate, offset):
        moved = rows | {row: rows[row].copy()}
        moved[row][coordinate] += offset
        found = gradients(setting, moved, step.link, step.candidates, step.counts)
        return step.weight * found[row]

    columns = []
    for coordinate in range(len(rows[row])):
        near = gradient(coordinate, distance) - gradient(coordinate, -distance)
        far = gradient(coordinate, 2 * distance) - gradient(coordinate, -2 * distance)
        columns.append((8 * near - far) / (12 * distance))
    return np.stack(columns, axis=1)


def moves(setting, start, examples):
    """Every step of the run with the rates (n_rows, d) behind it; None where it is left out."""
    trainer, found = Trainer(setting, start, examples), []
    for epoch in range(setting.n_epochs):
        for t in range(len(trainer.examples)):
            for side in range(setting.sides):
                step = trainer.step(epoch, t, side)
                k = (epoch * len(trainer.examples) + t) * setting.sides + side
                found.append((step, [trainer.rate(row, k) for row in range(len(start))]))
    return found


def rollback(setting, start, examples):
    """Changes credited to every triple, carried to the end of training."""
    n_rows, d = start.shape
    identity, nothing = np.eye(d), np.zeros((d, d))
    has_momentum = setting.optimizer in (ADAM, DENSE)
    decay = setting.beta1 if has_momentum else 0.0
    # Derivatives of a row's end by (row, momentum); there is no momentum without Adam: decay 0.
    ends = [np.hstack([identity, nothing]) for _ in range(n_rows)]
    changes = np.zeros((len(examples), setting.n_slots, d))
    gains = {row: [] for row in range(n_rows)}
    for step, rates in reversed(moves(setting, start, examples)):
        touched = [] if step is None else list(step.gradients)
        for row in range(n_rows) if setting.optimizer == DENSE else touched:
            rate, curvature = np.diag(rates[row]), nothing
            if row in touched:
                curvature = hessian(setting, step, row)
                response = np.vstack([-(1 - decay) * rate, (1 - decay) * identity])
                if row in (step.link.subject, step.link.relation, step.link.target):
                    slot = slots_of(setting, Example(*examples[step.t])).index(row)
                    changes[step.t, slot] += ends[row] @ response @ step.gradients[row]
            momentum = np.hstack([(1 - decay) * curvature, decay * identity])
            ends[row] = ends[row] @ np.vstack(
                [np.hstack([identity, nothing]) - rate @ momentum, momentum]
            )
            if row in touched:
                gains[row].append(np.linalg.norm(ends[row][:, :d]) / np.sqrt(d))
    return Rollback(changes, gains)
