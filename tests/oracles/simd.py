"""Naive vector building blocks: one lane at a time, every rounding in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

LANES = 16


def rounded(exact, dtype):
    """The number of `dtype` nearest to a fraction, ties to the even one."""
    value = float(exact)
    near = dtype(value)
    other = np.nextafter(near, dtype(np.inf if value > near else -np.inf))
    if abs(value - float(near)) < abs(value - float(other)):
        return near
    # Halfway between two float32 after rounding to float64: the fraction itself decides.
    bits = {np.float32: np.int32, np.float64: np.int64}[dtype]

    def distance(z):
        return abs(Fraction(float(z)) - exact), int(z.view(bits)) & 1

    return min(near, other, key=distance)


def fma(x, y, z):
    """``x * y + z``, rounded once."""
    return rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), type(z))


def tree_sum(lanes):
    """Sum of 16 numbers: 8 + 8, 4 + 4, 2 + 2, 1 + 1."""
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [lanes[i] + lanes[half + i] for i in range(half)]
    return lanes[0]


def dot(x, y):
    """Inner product in the order that defines it.

    Vectors of 16 lanes go to two accumulators in turn; an incomplete last vector always goes
    to the second. The accumulators are added lane by lane, then the lanes as a tree.
    """
    dtype = x.dtype.type
    sums = [[dtype(0)] * LANES, [dtype(0)] * LANES]
    for i in range(len(x)):
        vector, lane = divmod(i, LANES)
        complete = (vector + 1) * LANES <= len(x)
        accumulator = sums[vector % 2 if complete else 1]
        accumulator[lane] = fma(x[i], y[i], accumulator[lane])
    return tree_sum([a + b for a, b in zip(*sums, strict=True)])


def moments(row):
    values = [float(x) for x in row]
    return math.fsum(values), math.fsum(x * x for x in values), math.fsum(map(abs, values))


def count_at_least(row, threshold):
    return sum(1 for x in row if x >= threshold)


def compress_at_least(row, threshold):
    """Values and positions of the entries >= threshold."""
    positions = [i for i, x in enumerate(row) if x >= threshold]
    return [row[i] for i in positions], positions


def move_pair(p, q, keep, step):
    """``keep * p - step * q`` and ``keep * q - step * p``: the product, then one fma."""

    def moved(own, other):
        return [fma(-step, b, keep * a) for a, b in zip(own, other, strict=True)]

    return np.array(moved(p, q), p.dtype), np.array(moved(q, p), p.dtype)
