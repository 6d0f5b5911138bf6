"""The exponential of what is not positive, in operations that every processor rounds alike.

The libraries' exponentials differ from machine to machine in the last bit, and that bit would
grow through training. Here it is made of fused multiply-adds: the same bits on any CPU and GPU.
"""

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["KINDS", "emit_falling", "falling_exponential"]

# By bits of the number: terms of the Taylor series of exp(r) on |r| <= ln(2) / 2, whose remainder
# is below a tenth of a unit in the last place; bits of the fraction, bias of the exponent; ln(2) in
# two parts, the first short enough that its multiples are exact; the logarithm of the smallest
# normal number.
KINDS = {
    32: (7, 23, 127, 0.693359375, -2.12194440054690583e-4, -87.33654),
    64: (13, 52, 1023, 6.93147180369123816490e-01, 1.90821492927058770002e-10, -708.39641),
}


def emit_falling(builder: ir.IRBuilder, x: ir.Value, bits: int) -> ir.Value:
    """Emit ``exp(x)`` for ``x <= 0``: ``2^n exp(r)`` with ``x = n ln 2 + r``, n whole."""
    n_terms, n_fraction, bias, upper, lower, least = KINDS[bits]
    kind, integer = x.type, ir.IntType(bits)
    function_type = ir.FunctionType(kind, [kind] * 3)
    fma = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.fma.f{bits}")

    def multiply_add(a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return builder.call(fma, [a, b, c])

    # In 1.5 * 2^fraction the last bit counts ones: adding it rounds to a whole number, whose
    # bits then stand at the lower end, where the exponent's bias is waiting for them.
    magic = kind(1.5 * 2.0**n_fraction + bias)
    shifted = multiply_add(x, kind(1 / math.log(2)), magic)
    n = builder.fsub(shifted, magic)
    power = builder.bitcast(
        builder.shl(builder.bitcast(shifted, integer), integer(n_fraction)), kind
    )
    r = multiply_add(n, kind(-lower), multiply_add(n, kind(-upper), x))
    series = kind(1 / math.factorial(n_terms))
    for term in range(n_terms - 1, 1, -1):
        series = multiply_add(series, r, kind(1 / math.factorial(term)))
    less_one = multiply_add(builder.fmul(r, r), series, r)
    found = multiply_add(power, less_one, power)
    return builder.select(builder.fcmp_ordered("<", x, kind(least)), kind(0.0), found)


@intrinsic
def falling_exponential(typing_context: Any, x: Any) -> Any:
    """``exp(x)`` for ``x <= 0``, float32 or float64; 0 where it is below the normal numbers."""
    if x not in (types.float32, types.float64):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        return emit_falling(builder, args[0], signature.return_type.bitwidth)

    return x(x), codegen
