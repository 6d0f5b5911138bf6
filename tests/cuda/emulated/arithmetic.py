"""What a GPU computes and numpy does not: fused operations, whole numbers, approximations."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "approximate_inverse",
    "divided",
    "fma32",
    "fma32_down",
    "fma64",
    "high_product",
    "leading_zeros",
    "mirrored",
    "power_of_two",
    "remainder",
    "saturated",
    "whole_number",
    "with_bits",
]


def fma32(x: Any, y: Any, z: Any) -> Any:
    """``x * y + z`` of float32, rounded once."""
    return _exact32(x, y, z).astype("float32")


def fma32_down(x: Any, y: Any, z: Any) -> Any:
    """``x * y + z`` of float32, rounded once, downwards."""
    exact = _exact32(x, y, z)
    near = exact.astype("float32")
    return np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)


def _exact32(x: Any, y: Any, z: Any) -> Any:
    return _odd_sum(np.multiply(x, y, dtype="float64"), np.asarray(z, "float64"))


def fma64(x: Any, y: Any, z: Any) -> Any:
    """``x * y + z`` of float64, rounded once where nothing underflows.

    Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", IEEE TC 2008.
    """
    high, low = _two_product(x, y)
    above, below = _two_sum(z, low)
    total, rest = _two_sum(high, above)
    return np.where(np.isfinite(rest), total + _odd_sum(rest, below), x * y + z)


def _odd_sum(a: Any, b: Any) -> Any:
    """``a + b`` rounded to odd: rounded again to fewer bits it is as if rounded once."""
    total, error = map(np.atleast_1d, _two_sum(a, b))
    bits = total.view("int64")
    inexact = (bits & 1 == 0) & (error != 0) & np.isfinite(error)
    outwards = (error > 0) == (total > 0)
    return np.where(inexact, bits + np.where(outwards, 1, -1), bits).view("float64")


def _two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _two_product(a: Any, b: Any) -> tuple[Any, Any]:
    def split(x: Any) -> tuple[Any, Any]:
        scaled = x * 134217729.0  # 2**27 + 1
        high = scaled - (scaled - x)
        return high, x - high

    product, (a1, a2), (b1, b2) = a * b, split(a), split(b)
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def divided(a: Any, b: Any) -> Any:
    """Quotient of whole numbers, towards zero."""
    quotient = a // b
    return quotient + ((a % b != 0) & ((a < 0) != (b < 0)))


def remainder(a: Any, b: Any) -> Any:
    """What `divided` leaves."""
    return a - divided(a, b) * b


def high_product(a: Any, b: Any) -> Any:
    """Upper half of the product of int64."""
    return (np.asarray(a).astype(object) * np.asarray(b).astype(object) >> 64).astype("int64")


def leading_zeros(x: Any) -> Any:
    """Bits above the highest that is set."""
    return [8 * x.itemsize - int(n).bit_length() for n in x.view(f"uint{8 * x.itemsize}")]


def mirrored(x: Any) -> Any:
    """The lowest bit is the highest, and so on."""
    bits = np.unpackbits(x.view("uint8").reshape(len(x), -1), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(x.dtype)[:, 0]


def with_bits(a: Any, b: Any, start: int, length: int) -> Any:
    """`b`, of which `length` bits from `start` on are those of `a`."""
    kind = np.asarray(b).dtype.type
    mask = kind((1 << length) - 1 << start)
    return b & ~mask | a << kind(start) & mask


def whole_number(x: Any, kind: str) -> Any:
    """Towards zero; the nearest there is for what is too large, 0 for what is not a number."""
    limits = np.iinfo(kind)
    x = np.asarray(x, "float64")
    large, small = x >= float(limits.max), x <= float(limits.min)
    whole = np.where(large | small | np.isnan(x), 0, x).astype(kind)
    return np.select([large, small], [limits.max, limits.min], whole)


def saturated(x: Any) -> Any:
    """Between 0 and 1; 0 for what is not a number."""
    return np.where(np.isnan(x), 0, np.clip(x, 0, 1))


def power_of_two(x: Any) -> Any:
    """``2**x`` of float32, nearer than a GPU's."""
    return np.exp2(x.astype("float64"))


def approximate_inverse(x: Any) -> Any:
    """``1 / x`` of float64 as rcp.approx.ftz.f64 has it: the upper half of the bits."""
    return ((1 / np.atleast_1d(x)).view("int64") & -(2**32)).view("float64")
