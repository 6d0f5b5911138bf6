"""Random systems, panels and comparisons for the kernels of conjugate gradients."""

from __future__ import annotations

import numpy as np

from fastinfluence.kernels.structures import LANES

TOLERANCE = {np.float32: 1e-3, np.float64: 1e-10}


def blocks_of(n_rows, d, seed):
    """Random positive definite blocks of condition at most some thousands."""
    factors = np.random.default_rng(seed).standard_normal((n_rows, d, d)) / np.sqrt(d)
    return factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(d)


def factored(kernels, blocks, dtype, damping=0.0):
    """What `factor_rows` makes of blocks, of which it sees the lower triangles."""
    factors = np.tril(blocks).astype(dtype)
    divisors = np.zeros(blocks.shape[:2], dtype)
    kernels.factor_rows(damping, factors, 0, len(blocks), divisors)
    return factors, divisors


def panels(n, n_rows, d, dtype, seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n_rows, d, LANES)).astype(dtype) for _ in range(n)]


def room(n_rows):
    return np.full((n_rows, LANES), np.nan)


def assert_near(got, expected, dtype):
    scale = max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[dtype] * scale)
