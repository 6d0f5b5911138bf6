"""The exponential of what is not positive: the operations of the CPU's, and so its bits."""

import math
from typing import Any

import numpy as np

from ..cpu.falling import KINDS, emit_falling
from .jit import SIMULATED
from .simd import fma

__all__ = ["falling_exponential"]

if SIMULATED:

    def falling_exponential(x: Any) -> Any:
        """Do what `emit_falling` has the device do."""
        kind = type(x)
        bits = 8 * x.itemsize
        n_terms, n_fraction, bias, upper, lower, least = KINDS[bits]
        if x < least:
            return kind(0)
        magic = kind(1.5 * 2.0**n_fraction + bias)
        shifted = fma(x, kind(1 / math.log(2)), magic)
        n = shifted - magic
        integer = shifted.view(f"u{x.itemsize}")
        power = np.left_shift(integer, integer.dtype.type(n_fraction)).view(kind)
        r = fma(n, kind(-lower), fma(n, kind(-upper), x))
        series = kind(1 / math.factorial(n_terms))
        for term in range(n_terms - 1, 1, -1):
            series = fma(series, r, kind(1 / math.factorial(term)))
        return fma(power, fma(r * r, series, r), power)

else:
    from numba import types
    from numba.cuda.extending import intrinsic

    @intrinsic
    def falling_exponential(typing_context: Any, x: Any) -> Any:
        """``exp(x)`` for ``x <= 0``, with the bits of the CPU."""
        if x not in (types.float32, types.float64):
            return None

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return emit_falling(builder, args[0], signature.return_type.bitwidth)

        return x(x), codegen
