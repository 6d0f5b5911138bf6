"""Four lanes of a panel in the registers of a thread."""

from .jit import cuda, inner_kernel
from .simd import WHOLE, fma, load4, store4

__all__ = ["add4", "gather4", "put4", "same4", "sum4", "times4"]


@inner_kernel
def same4(number):
    """The same in all lanes."""
    return number, number, number, number


@inner_kernel
def add4(total, factor, four):
    """``total + factor * four``."""
    return (
        fma(factor, four[0], total[0]),
        fma(factor, four[1], total[1]),
        fma(factor, four[2], total[2]),
        fma(factor, four[3], total[3]),
    )


@inner_kernel
def times4(factor, four):
    """``factor * four``."""
    return factor * four[0], factor * four[1], factor * four[2], factor * four[3]


@inner_kernel
def put4(target, at, four):
    """Write them to a place of a flat array and the three behind it."""
    store4(target, at, four[0], four[1], four[2], four[3])


@inner_kernel
def gather4(target, at, four):
    """Add them to a place of a flat array and the three behind it."""
    old = load4(target, at)
    store4(target, at, old[0] + four[0], old[1] + four[1], old[2] + four[2], old[3] + four[3])


@inner_kernel
def sum4(four):
    """Sums over the eight threads of a warp that have the same four lanes, every fourth."""
    a, b, c, d = four
    distance = 16
    while distance > 2:
        a += cuda.shfl_xor_sync(WHOLE, a, distance)
        b += cuda.shfl_xor_sync(WHOLE, b, distance)
        c += cuda.shfl_xor_sync(WHOLE, c, distance)
        d += cuda.shfl_xor_sync(WHOLE, d, distance)
        distance >>= 1
    return a, b, c, d
