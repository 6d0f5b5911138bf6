"""Exponentials of changes: the twin of the CPU's sums, which the tiles add up themselves.

Of float32 the device library's two functions are some 30 instructions, a number of the product
in front of them has d.
"""

import math

from ..cpu.exponential import LIMIT
from .jit import inner_kernel

__all__ = ["LIMIT", "exponential"]


@inner_kernel
def exponential(x):
    """``exp(x) - 1`` and ``exp(x)``, each accurate to units in the last place.

    Beyond LIMIT the latter is NaN, so that a sum tells; below -LIMIT x is taken for it.
    """
    number = type(x)
    if not x <= number(LIMIT):  # NaN as well: a GPU's max would make -LIMIT of it
        return number(0), number(math.nan)
    x = max(x, number(-LIMIT))
    return number(math.expm1(x)), number(math.exp(x))
