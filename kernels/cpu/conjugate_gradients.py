"""Preconditioned conjugate gradients for 16 right-hand sides in lock step, row by row.

Everything between two products with the matrix is done in one pass over the rows, whose part of
the inner products is added up by the caller in the order of the rows: the bits do not depend on
the number of threads. The preconditioner is block-Jacobi, a Cholesky factor for every row.

Numbers of the lanes (steps, keeps, factors) are numpy arrays on every device.
"""

import numpy as np

from .adjoints import add_lanes, dot_lanes, set_lanes
from .jit import inner_kernel, kernel
from .lanes import LANES
from .simd import dot

__all__ = [
    "advance",
    "clear",
    "damp",
    "factor_rows",
    "inner_products",
    "precondition_rows",
    "scale",
    "subtract_from",
    "take_steps",
    "total",
    "turn",
]

_SINGULAR = 1e-30  # of a diagonal: what is left of it is nothing


@inner_kernel
def _products(left, right, scratch, out):
    """Inner products (LANES,) float64 of two (d, LANES), lane by lane."""
    for q in range(LANES):
        scratch[q] = 0
    for f in range(left.shape[0]):
        for q in range(LANES):
            scratch[q] += left[f, q] * right[f, q]
    for q in range(LANES):
        out[q] = scratch[q]


@inner_kernel
def _solve(factor, divisors, vector, scratch):
    """Solve ``L L' z = vector`` in place of the vector (d, LANES); divisors are 1 / diag L."""
    d = vector.shape[0]
    for f in range(d):
        if f > 0:  # into the scratch: adding to the vector itself would wait for every store
            dot_lanes(factor[f, :f], vector[:f], scratch)
            add_lanes(vector[f], scratch, divisors.dtype.type(-1))
        set_lanes(vector[f], vector[f], divisors[f])
    for f in range(d - 1, -1, -1):
        set_lanes(vector[f], vector[f], divisors[f])
        for g in range(f):
            add_lanes(vector[g], vector[f], -factor[f, g])


@inner_kernel
def _precondition(factors, divisors, row, residual, target, scratch):
    for f in range(target.shape[0]):
        set_lanes(target[f], residual[f], target.dtype.type(1))
    if factors is not None:
        _solve(factors[row], divisors[row], target, scratch)


@kernel
def factor_rows(damping, blocks, start, stop, divisors):
    """Cholesky factors of damped blocks of rows `start` to `stop`, in place of their lower parts.

    Parameters
    ----------
    damping : float
        Added to the diagonals first.
    blocks : (n_rows, d, d)
    start, stop : int
    divisors : (n_rows, d)
        One over the diagonals of the factors; 0 in the first place of a block that is not positive
        definite.
    """
    number = blocks.dtype.type(damping)
    for row in range(start, stop):
        block, ones = blocks[row], divisors[row]
        for f in range(block.shape[0]):
            block[f, f] += number
            for g in range(f):
                block[f, g] = (block[f, g] - dot(block[f, :g], block[g, :g])) * ones[g]
            pivot = block[f, f] - dot(block[f, :f], block[f, :f])
            # Rounding leaves a pivot of a singular block a little above or below 0.
            if not pivot > block.dtype.type(_SINGULAR) * abs(block[f, f]):
                ones[0] = 0
                break
            block[f, f] = np.sqrt(pivot)
            ones[f] = 1 / block[f, f]


@kernel
def precondition_rows(factors, divisors, residual, start, stop, out):
    """``out = M^-1 residual`` for rows `start` to `stop`.

    Parameters
    ----------
    factors : (n_rows, d, d) or None
        Lower Cholesky factors of the blocks of M; None is no preconditioner.
    divisors : (n_rows, d) or None
        One over their diagonals.
    residual, out : (n_rows, d, LANES)
    start, stop : int
    """
    scratch = np.empty(LANES, residual.dtype)
    for row in range(start, stop):
        _precondition(factors, divisors, row, residual[row], out[row], scratch)


@kernel
def damp(damping, direction, start, stop, image, products):
    """``A p += damping p`` for rows `start` to `stop`, and the inner products ``p . A p`` of each.

    Parameters
    ----------
    damping : float
    direction, image : (n_rows, d, LANES)
        p, and A p, changed in place.
    start, stop : int
    products : (n_rows, LANES) float64
    """
    scratch = np.empty(LANES, direction.dtype)
    number = direction.dtype.type(damping)
    for row in range(start, stop):
        for f in range(direction.shape[1]):
            add_lanes(image[row, f], direction[row, f], number)
        _products(direction[row], image[row], scratch, products[row])


@kernel
def inner_products(left, right, start, stop, out):
    """``out[row] = left[row] . right[row]``, lane by lane: (n_rows, LANES) float64."""
    scratch = np.empty(LANES, left.dtype)
    for row in range(start, stop):
        _products(left[row], right[row], scratch, out[row])


@kernel
def advance(
    factors, divisors, steps, direction, image, start, stop, x, residual, target, squares, products
):
    """``x += step p``, ``r -= step A p``, ``z = M^-1 r`` for rows `start` to `stop`.

    Parameters
    ----------
    factors, divisors
        As for `precondition_rows`.
    steps : (LANES,)
    direction, image : (n_rows, d, LANES)
        p and A p.
    start, stop : int
    x, residual, target : (n_rows, d, LANES)
        x, r and z, changed in place.
    squares, products : (n_rows, LANES) float64
        ``r . r`` and ``r . z`` of each row.
    """
    d = x.shape[1]
    scratch = np.empty(LANES, x.dtype)
    for row in range(start, stop):
        for f in range(d):
            for q in range(LANES):
                x[row, f, q] += steps[q] * direction[row, f, q]
                residual[row, f, q] -= steps[q] * image[row, f, q]
        _precondition(factors, divisors, row, residual[row], target[row], scratch)
        _products(residual[row], residual[row], scratch, squares[row])
        _products(residual[row], target[row], scratch, products[row])


@kernel
def turn(keeps, target, start, stop, direction):
    """``p = z + keep p`` for rows `start` to `stop`, lane by lane."""
    for row in range(start, stop):
        for f in range(target.shape[1]):
            for q in range(LANES):
                direction[row, f, q] = target[row, f, q] + keeps[q] * direction[row, f, q]


@kernel
def take_steps(steps, direction, start, stop, x):
    """``x += step p`` for rows `start` to `stop`, lane by lane."""
    for row in range(start, stop):
        for f in range(x.shape[1]):
            for q in range(LANES):
                x[row, f, q] += steps[q] * direction[row, f, q]


@kernel
def subtract_from(left, start, stop, out):
    """``out = left - out`` for rows `start` to `stop` of two panels (n_rows, d, LANES)."""
    for row in range(start, stop):
        for f in range(out.shape[1]):
            for q in range(LANES):
                out[row, f, q] = left[row, f, q] - out[row, f, q]


@kernel
def scale(factors, start, stop, panel):
    """``panel *= factors`` for rows `start` to `stop`, lane by lane: factors are (LANES,)."""
    for row in range(start, stop):
        for f in range(panel.shape[1]):
            for q in range(LANES):
                panel[row, f, q] *= factors[q]


@kernel
def clear(start, stop, panel):
    """``panel = 0`` for rows `start` to `stop`."""
    panel[start:stop] = 0


def total(products, start, stop):
    """Sums (LANES,) float64, in CPU memory, of products (n_rows, LANES) of rows, in their order."""
    return products[start:stop].sum(axis=0)
