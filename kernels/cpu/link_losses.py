"""Losses of a question among candidates: value, slopes and curvatures by the scores.

Candidate c counts ``counts[c]`` times, the answer (c = 0) once.
"""

import numpy as np

from .jit import inner_kernel

__all__ = ["LOGISTIC", "SOFTMAX", "link_curvatures", "link_gradients"]

SOFTMAX, LOGISTIC = 0, 1


@inner_kernel
def link_gradients(loss, scores, counts, gradients):
    """dL/dz of every candidate from the scores; returns L.

    ``softmax``: minus the log-probability of the answer among the candidates. ``logistic``: the
    mean over the candidates of the logistic loss, 1 for the answer and 0 for the others.
    """
    one = counts.dtype.type(1)
    n = scores.shape[0]
    total = 0.0
    if loss == SOFTMAX:
        highest = scores[0]
        for c in range(1, n):
            highest = max(highest, scores[c])
        for c in range(n):
            gradients[c] = counts[c] * np.exp(scores[c] - highest)
            total += gradients[c]
        scale = one / counts.dtype.type(total)
        for c in range(n):
            gradients[c] *= scale
        gradients[0] -= one
        return np.log(total) + highest - scores[0]
    slots = counts.dtype.type(0)
    for c in range(n):
        slots += counts[c]
    scale = one / slots
    for c in range(n):
        z = -scores[c] if c == 0 else scores[c]
        small = np.exp(-abs(z))
        upper = one / (one + small)  # sigmoid(|z|)
        slope = upper if z > 0 else small * upper
        total += counts[c] * (max(z, counts.dtype.type(0)) - np.log(upper))
        gradients[c] = -slope * scale if c == 0 else slope * counts[c] * scale
    return total * scale


@inner_kernel
def link_curvatures(loss, counts, gradients, curvatures):
    """Weights of the curvature of L from the slopes.

    ``softmax``: probabilities p, the curvature is ``diag(p) - p p'``. ``logistic``: its diagonal.
    """
    one = counts.dtype.type(1)
    n = gradients.shape[0]
    if loss == SOFTMAX:
        for c in range(n):
            curvatures[c] = gradients[c]
        curvatures[0] += one
        return
    slots = counts.dtype.type(0)
    for c in range(n):
        slots += counts[c]
    for c in range(n):
        share = counts[c] / slots
        slope = abs(gradients[c]) / share  # sigmoid of something; its derivative is even
        curvatures[c] = share * slope * (one - slope)
