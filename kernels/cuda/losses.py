"""The losses as functions of the scores of a step's candidates, with the bits of the CPU.

Only the loss itself, which is but reported, has the device's logarithm.
"""

import math

import numpy as np

from .falling import falling_exponential
from .jit import inner_kernel
from .simd import product

__all__ = [
    "BPR",
    "LOGISTIC",
    "SQUARED",
    "candidate_curvatures",
    "candidate_gradients",
    "sigmoids",
]

SQUARED, LOGISTIC, BPR = 0, 1, 2


@inner_kernel
def sigmoids(x):
    """``sigmoid(x)`` and ``sigmoid(|x|)``."""
    one = type(x)(1)
    small = falling_exponential(-abs(x))
    upper = one / (one + small)
    return upper if x > type(x)(0) else small * upper, upper


@inner_kernel
def candidate_gradients(loss, scores, value, n_negatives, gradients):
    """dL/df of every candidate, from the scores; returns L. See the twin in `kernels.cpu`."""
    zero = type(value)(0)
    gradients[0] = zero
    positive_parts, log_product = 0.0, 0.0
    uppers = 1.0
    for c in range(1 if loss == BPR else 0, n_negatives + 1):
        x = scores[c]
        if loss == BPR:
            x -= scores[0]
        elif c == 0 and value > zero:
            x = -x
        slope, upper = sigmoids(x)
        positive_parts += np.float64(max(x, zero))
        uppers *= np.float64(upper)
        if uppers < 1e-200:
            log_product += math.log(uppers)
            uppers = 1.0
        if loss == BPR:
            gradients[c] = slope
            gradients[0] -= slope
        else:
            gradients[c] = -slope if c == 0 and value > zero else slope
    return positive_parts - log_product - math.log(uppers)


@inner_kernel
def candidate_curvatures(loss, value, n_negatives, gradients, curvatures):
    """Curvature of L in the score of every candidate. See the twin in `kernels.cpu`."""
    one = type(value)(1)
    curvatures[0] = type(value)(0)
    for c in range(1 if loss == BPR else 0, n_negatives + 1):
        slope = abs(gradients[c])
        curvatures[c] = product(slope, one - slope)
        if loss == BPR:
            curvatures[0] += curvatures[c]
