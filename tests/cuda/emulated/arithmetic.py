"""What a GPU computes, with numpy: arithmetic of PTX that numpy has not."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "approximate_inverse",
    "divide",
    "float_to_int",
    "fma32",
    "fma32_down",
    "fma64",
    "remainder",
    "saturated",
]


def fma32(x: Any, y: Any, z: Any) -> Any:
    """``x * y + z`` of float32, rounded once."""
    return _odd_sum(np.multiply(x, y, dtype="f8"), np.asarray(z, "f8")).astype("f4")


def fma32_down(x: Any, y: Any, z: Any) -> Any:
    """``x * y + z`` of float32, rounded once, and down."""
    exact = _odd_sum(np.multiply(x, y, dtype="f8"), np.asarray(z, "f8"))
    near = exact.astype("f4")
    return np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)


def fma64(x: Any, y: Any, z: Any) -> Any:
    """``x * y + z`` of float64, rounded once (Boldo and Melquiond, 2008), without underflow."""
    x, y, z = np.broadcast_arrays(x, y, z)
    high, low = _two_product(x, y)
    above, below = _two_sum(z, low)
    sum_, rest = _two_sum(high, above)
    found = sum_ + _odd_sum(rest, below)
    return np.where(np.isfinite(high) & np.isfinite(rest), found, x * y + z)


def _odd_sum(a: Any, b: Any) -> Any:
    """``a + b`` rounded to odd: what is rounded once more is as if it had been rounded once."""
    total, error = _two_sum(a, b)
    bits = np.atleast_1d(total).view("i8")
    even = (bits & 1 == 0) & (np.atleast_1d(error) != 0) & np.isfinite(np.atleast_1d(error))
    # One bit towards the exact sum: away from zero where the error has the sign of the sum.
    outwards = (np.atleast_1d(error) > 0) == (np.atleast_1d(total) > 0)
    return np.where(even, bits + np.where(outwards, 1, -1), bits).view("f8").reshape(total.shape)


def _two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    total = np.asarray(a + b)
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _two_product(a: Any, b: Any) -> tuple[Any, Any]:
    def split(x: Any) -> tuple[Any, Any]:
        scaled = x * 134217729.0
        high = scaled - (scaled - x)
        return high, x - high

    product, (a1, a2), (b1, b2) = a * b, split(a), split(b)
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def divide(a: Any, b: Any) -> Any:
    """Quotient of whole numbers, towards zero."""
    a, b = np.broadcast_arrays(a, b)
    quotient = a // b
    return quotient + ((a % b != 0) & ((a < 0) != (b < 0)))


def remainder(a: Any, b: Any) -> Any:
    """What `divide` leaves."""
    return a - divide(a, b) * b


def saturated(x: Any) -> Any:
    """Between 0 and 1; 0 for what is not a number."""
    return np.where(np.isnan(x), np.float32(0), np.clip(x, np.float32(0), np.float32(1)))


def approximate_inverse(x: Any) -> Any:
    """``1 / x`` of float64 to the precision of rcp.approx.ftz.f64: the upper half of the bits."""
    return ((1 / np.asarray(x)).view("i8") & ~0xFFFFFFFF).view("f8")


def float_to_int(x: Any, kind: str) -> Any:
    """Towards zero; the nearest there is for what is too large, 0 for what is not a number."""
    limits = np.iinfo(kind)
    whole = np.trunc(np.where(np.isnan(x), 0, x).astype("f8"))
    large, small = whole >= float(limits.max), whole <= float(limits.min)
    found = np.where(large | small, 0, whole).astype(kind)
    return np.where(large, limits.max, np.where(small, limits.min, found)).astype(kind)
