"""Preconditioned conjugate gradients for 16 right-hand sides in lock step.

See the twin in kernels.cpu for the parameters. Vectors (LANES,) may be numpy's.
"""

import torch

from .reports import reported

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


def _lanes(numbers, panel):
    """A vector (LANES,) as numbers of the panel's device and dtype."""
    return torch.as_tensor(numbers, dtype=panel.dtype, device=panel.device)


@reported("factors of blocks")
def factor_rows(damping, blocks, start, stop, divisors):
    """Cholesky factors of damped blocks of rows `start` to `stop`, in place of them."""
    if start == stop:
        return
    some = blocks[start:stop]
    some.diagonal(dim1=1, dim2=2).add_(float(damping))
    factors, failed = torch.linalg.cholesky_ex(some)
    pivots = factors.diagonal(dim1=1, dim2=2)
    least = _SINGULAR * some.diagonal(dim1=1, dim2=2).abs()
    definite = (failed == 0) & (pivots.square() > least).all(1)
    divisors[start:stop] = torch.where(definite[:, None], 1 / pivots, 0)
    some.copy_(factors)


@reported("preconditioning")
def precondition_rows(factors, divisors, residual, start, stop, out):
    """``out = M^-1 residual`` for rows `start` to `stop`."""
    if factors is None or start == stop:
        out[start:stop] = residual[start:stop]
    else:
        out[start:stop] = torch.cholesky_solve(residual[start:stop], factors[start:stop])


def damp(damping, direction, start, stop, image, products):
    """``A p += damping p`` for rows `start` to `stop`, and the inner products ``p . A p``."""
    image[start:stop].add_(direction[start:stop], alpha=float(damping))
    inner_products(direction, image, start, stop, products)


def inner_products(left, right, start, stop, out):
    """``out[row] = left[row] . right[row]``, lane by lane: (n_rows, LANES) float64."""
    out[start:stop] = (left[start:stop] * right[start:stop]).sum(1)


@reported("a step of conjugate gradients")
def advance(
    factors, divisors, steps, direction, image, start, stop, x, residual, target, squares, products
):
    """``x += step p``, ``r -= step A p``, ``z = M^-1 r`` for rows `start` to `stop`."""
    take_steps(steps, direction, start, stop, x)
    residual[start:stop].addcmul_(image[start:stop], _lanes(steps, image), value=-1)
    precondition_rows(factors, divisors, residual, start, stop, target)
    inner_products(residual, residual, start, stop, squares)
    inner_products(residual, target, start, stop, products)


def turn(keeps, target, start, stop, direction):
    """``p = z + keep p`` for rows `start` to `stop`, lane by lane."""
    direction[start:stop].mul_(_lanes(keeps, direction)).add_(target[start:stop])


def take_steps(steps, direction, start, stop, x):
    """``x += step p`` for rows `start` to `stop`, lane by lane."""
    x[start:stop].addcmul_(direction[start:stop], _lanes(steps, x))


def total(products, start, stop):
    """Sum (LANES,) float64 of the products of rows `start` to `stop`, as a numpy array."""
    return products[start:stop].sum(0).cpu().numpy()


def subtract_from(left, start, stop, out):
    """``out = left - out`` for rows `start` to `stop`."""
    torch.sub(left[start:stop], out[start:stop], out=out[start:stop])


def scale(factors, start, stop, panel):
    """``panel *= factors`` for rows `start` to `stop`, lane by lane."""
    panel[start:stop].mul_(_lanes(factors, panel))


def clear(start, stop, panel):
    """Make rows `start` to `stop` zero."""
    panel[start:stop] = 0
