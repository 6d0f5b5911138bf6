"""The passes over rows of a conjugate gradient iteration, lane by lane, in float64."""

from __future__ import annotations

import numpy as np


def cholesky(block):
    """Lower factor of a positive definite matrix, None of another."""
    d = len(block)
    factor = np.zeros((d, d))
    for f in range(d):
        for g in range(f):
            factor[f, g] = (block[f, g] - sum(factor[f, :g] * factor[g, :g])) / factor[g, g]
        pivot = block[f, f] - sum(factor[f, :f] ** 2)
        if pivot <= 1e-30 * abs(block[f, f]):
            return None
        factor[f, f] = np.sqrt(pivot)
    return factor


def precondition(blocks, panel):
    """Every block's inverse times its row (d, LANES); no blocks: the panel itself."""
    if blocks is None:
        return panel.copy()
    solved = [np.linalg.solve(block, row) for block, row in zip(blocks, panel, strict=True)]
    return np.reshape(solved, panel.shape)


def row_products(left, right):
    """(n_rows, LANES)."""
    return np.einsum("rfq,rfq->rq", left, right)


def advance(blocks, steps, direction, image, x, residual):
    """x and the residual a step further, the preconditioned residual, and their products."""
    x, residual = x + steps * direction, residual - steps * image
    target = precondition(blocks, residual)
    return x, residual, target, row_products(residual, residual), row_products(residual, target)
