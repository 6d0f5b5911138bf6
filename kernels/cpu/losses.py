"""The losses as functions of the scores of a step's candidates: value, slopes, curvature."""

import numpy as np

from .falling import falling_exponential
from .jit import inner_kernel

__all__ = ["BPR", "LOGISTIC", "SQUARED", "candidate_curvatures", "candidate_gradients"]

SQUARED, LOGISTIC, BPR = 0, 1, 2


@inner_kernel
def candidate_gradients(loss, scores, value, n_negatives, gradients):
    """dL/df of every candidate, from the scores; returns L.

    L is a sum of softplus(x), x the score of what should score low (negated for a positive
    example) or, in BPR, its lead over the example. With softplus(x) = max(x, 0) -
    log(sigmoid(|x|)) nothing cancels or overflows, and one logarithm of the product of the
    sigmoids, each at least 1/2, serves all candidates.
    """
    zero, one = type(value)(0), type(value)(1)
    gradients[0] = zero
    positive_parts, log_product = 0.0, 0.0
    product = 1.0  # float64: half to the power of up to hundreds
    for c in range(1 if loss == BPR else 0, n_negatives + 1):
        x = scores[c]
        if loss == BPR:
            x -= scores[0]
        elif c == 0 and value > 0:
            x = -x
        small = falling_exponential(-abs(x))
        upper = one / (one + small)  # sigmoid(|x|)
        slope = upper if x > zero else small * upper
        positive_parts += max(x, zero)
        product *= upper
        if product < 1e-200:
            log_product += np.log(product)
            product = 1.0
        if loss == BPR:
            gradients[c] = slope
            gradients[0] -= slope
        else:
            gradients[c] = -slope if c == 0 and value > 0 else slope
    return positive_parts - log_product - np.log(product)


@inner_kernel
def candidate_curvatures(loss, value, n_negatives, gradients, curvatures):
    """Curvature of L in the score of every candidate, from the slopes.

    ``logistic``: d2L/df_c2. ``bpr``: the second derivative in the lead ``f_c - f_0`` of every
    negative, and their sum for the example itself, which is d2L/df_0^2.
    """
    one = type(value)(1)
    curvatures[0] = type(value)(0)
    for c in range(1 if loss == BPR else 0, n_negatives + 1):
        slope = abs(gradients[c])  # sigmoid of something; its derivative is even
        curvatures[c] = slope * (one - slope)
        if loss == BPR:
            curvatures[0] += curvatures[c]
