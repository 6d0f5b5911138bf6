"""Naive top-k: sort everything."""

from __future__ import annotations

import math


def best(candidates, k):
    """The k best of (value, index), the largest value first, then the lowest index.

    Returns values and indices, filled up with -inf and -1; candidates of -inf do not count.
    """
    real = [(value, index) for value, index in candidates if value > -math.inf]
    real.sort(key=lambda candidate: (-candidate[0], candidate[1]))
    real = real[:k] + [(-math.inf, -1)] * (k - len(real))
    return [value for value, _ in real], [index for _, index in real]
