"""Naive packing and scoring of rows, one number at a time."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np

from .simd import LANES, fma


def widened(element):
    """The float32 whose upper half are these 16 bits."""
    return np.uint32(int(element) << 16).view(np.float32)


def bfloat16(value):
    """Bits of the bfloat16 nearest to a finite float32, ties to the even one."""
    truncated = int(np.float32(value).view(np.uint32)) >> 16
    exact = Fraction(float(value))

    def distance(bits):
        neighbour = float(widened(bits))
        if np.isinf(neighbour):  # beyond the largest: as if the exponents went on
            neighbour = np.copysign(2.0**128, neighbour)
        return abs(Fraction(neighbour) - exact), bits & 1

    return min(truncated, truncated + 1, key=distance)


def pack_rows(factors, biases, sources, pointers, dtype):
    """All groups, sixteen rows to a panel, the panel's first coordinates first."""
    rows = np.column_stack([factors, biases])
    packed = []
    for start, stop in itertools.pairwise(pointers):
        for panel in range(start, stop, LANES):
            members = rows[sources[panel : min(panel + LANES, stop)]]
            packed += [row[f] for f in range(rows.shape[1]) for row in members]
    if dtype == np.uint16:
        packed = [bfloat16(x) for x in packed]
    return np.array(packed, dtype)


def panel_scores(rows, queries):
    """``queries @ rows.T`` of unpacked rows, each score summed in order by fma."""
    dtype = queries.dtype.type
    scores = np.zeros((len(queries), len(rows)), dtype)
    for q, query in enumerate(queries):
        for j, row in enumerate(rows):
            total = dtype(0)
            for x, y in zip(row, query, strict=True):
                total = fma(dtype(x), y, total)
            scores[q, j] = total
    return scores
