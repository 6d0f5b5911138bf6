"""Naive Curvature Rollback: one matrix per row, carried backwards through the run."""

from __future__ import annotations

import numpy as np

from .steps import row_hessian


def rollback(steps, *, curvature=True, regularization=True):
    """Changes credited to every example, each carried to the end by its row's own Hessians.

    A step moves a row by ``-rate * weight * dl/drow`` (`rate` per coordinate, with Adagrad as
    it was recorded). What an earlier change of that row alone becomes in the step is

        change  ->  (I - diag(rate) * weight * d2l/drow2) @ change,

    and the product of these matrices over all later steps that touch the row, be it only as a
    negative, takes the change to the end of training. Examples are credited with changes of
    their own user's and their own item's row, not with those of their negatives.

    Parameters
    ----------
    steps : list of Step
        Of the whole run, first to last.
    curvature, regularization : bool
        Parts of the Hessian to use. With neither, the matrices stay the identity: Gradient
        Rollback. With regularization alone: HYDRA with weight decay.

    Returns
    -------
    dict of (example position, "user" or "item") to vector
        In the direction of the updates, like the record of `sgd.sgd_epoch`.
    """
    matrices, record = {}, {}
    for step in reversed(steps):
        credits = {("user", step.user): "user", ("item", step.candidates[0]): "item"}
        for name, change in step.changes.items():
            identity = np.eye(len(change))
            later = matrices.get(name, identity)
            if name in credits:
                at = step.t, credits[name]
                record[at] = record.get(at, 0.0) + later @ change
            block = row_hessian(step, name, curvature=curvature, regularization=regularization)
            rates = np.diag(step.rates[name])
            matrices[name] = later @ (identity - step.weight * rates @ block)
    return record
