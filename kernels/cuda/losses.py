"""What the losses are numbered by, and the sigmoid their slopes are, with the bits of the CPU."""

from .falling import falling_exponential
from .jit import inner_kernel

__all__ = ["BPR", "LOGISTIC", "SQUARED", "sigmoids"]

SQUARED, LOGISTIC, BPR = 0, 1, 2


@inner_kernel
def sigmoids(x):
    """``sigmoid(x)`` and ``sigmoid(|x|)``."""
    one = type(x)(1)
    small = falling_exponential(-abs(x))
    upper = one / (one + small)
    return upper if x > type(x)(0) else small * upper, upper
