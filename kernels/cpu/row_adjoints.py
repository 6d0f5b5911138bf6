"""The derivatives of a row's move: `row_optimizers`, taken backwards.

With u the adjoint of a row behind a step, a that of Adagrad's or Adam's squares and b that of
Adam's momenta, the adjoint v of the gradient G is

    SGD       v = -rate u
    Adagrad   a += rate u G / (2 sqrt(s) D^2),  v = -rate u / D + 2 G a
    Adam      b -= size u / D,  a += size u m / (2 sqrt(s) D^2),
              v = (1 - beta1) b + 2 (1 - beta2) G a,  then b *= beta1, a *= beta2

where m and s are those behind the step and ``D = sqrt(s) + epsilon``. Where s is 0 its adjoint
stays: nothing but zeros went into it. u itself is not changed by the optimizer.
"""

import numpy as np

from .jit import inner_kernel
from .lanes import LANES
from .row_optimizers import ADAGRAD, NEGLIGIBLE, SGD

__all__ = ["catch_up_back", "move_back"]


@inner_kernel
def move_back(
    hyper, size, gradient, momenta, squares, keep1, keep2, adjoint, of_momenta, of_squares, out
):
    """Write the adjoint v (d, LANES) of a row's gradient to `out`.

    Parameters
    ----------
    hyper : GraphHyper
    size : float
        See `row_optimizers.step_sizes`.
    gradient : (d,)
        What the optimizer was given.
    momenta, squares : (d,)
        Logged, before the step and before dense Adam's catch-up. What the optimizer does
        without is not looked at; nor are its adjoints.
    keep1, keep2 : float
        What the catch-up left of each.
    adjoint, of_momenta, of_squares : (d, LANES)
        Adjoints behind the step; the latter two are changed to those before it.
    """
    number = gradient.dtype.type
    rate, epsilon, zero, two = number(size), number(hyper.epsilon), number(0), number(2)
    if hyper.optimizer == SGD:
        for f in range(gradient.shape[0]):
            for q in range(LANES):
                out[f, q] = -rate * adjoint[f, q]
        return
    if hyper.optimizer == ADAGRAD:
        for f in range(gradient.shape[0]):
            g = gradient[f]
            root = np.sqrt(squares[f] + g * g)
            width = root + epsilon
            bend = rate * g / (two * root * width * width) if root > 0 else zero
            back = -rate / width if root > 0 else zero
            for q in range(LANES):
                of_squares[f, q] += bend * adjoint[f, q]
                out[f, q] = back * adjoint[f, q] + two * g * of_squares[f, q]
        return
    beta1, beta2 = number(hyper.beta1), number(hyper.beta2)
    rest1, rest2 = number(1 - hyper.beta1), number(1 - hyper.beta2)
    for f in range(gradient.shape[0]):
        g = gradient[f]
        m = beta1 * (keep1 * momenta[f]) + rest1 * g
        root = np.sqrt(beta2 * (keep2 * squares[f]) + rest2 * g * g)
        width = root + epsilon
        bend = rate * m / (two * root * width * width) if root > 0 else zero
        back = rate / width if root > 0 else zero
        twice = two * rest2 * g
        for q in range(LANES):
            b = of_momenta[f, q] - back * adjoint[f, q]
            a = of_squares[f, q] + bend * adjoint[f, q]
            out[f, q] = rest1 * b + twice * a
            of_momenta[f, q] = beta1 * b
            of_squares[f, q] = beta2 * a


@inner_kernel
def catch_up_back(
    hyper, momenta, squares, clock, time, first, sizes, adjoint, of_momenta, of_squares
):
    """Take adjoints back over the catch-up of a row of dense Adam from `clock` to `time`.

    `momenta` and `squares` (d,) are those before it; other parameters as for
    `row_optimizers.catch_up`.
    """
    if time == clock:
        return
    number = momenta.dtype.type
    beta2_root = np.sqrt(hyper.beta2)
    keep1, keep2 = number(hyper.beta1 ** (time - clock)), number(hyper.beta2 ** (time - clock))
    for f in range(momenta.shape[0]):
        root = np.float64(np.sqrt(squares[f]))
        of_m, of_s = 0.0, 0.0
        shrink1, shrink2 = 1.0, 1.0
        if root > 0:
            for t in range(clock + 1, time + 1):
                shrink1 *= hyper.beta1
                shrink2 *= beta2_root
                if shrink1 < NEGLIGIBLE:
                    break
                width = shrink2 * root + hyper.epsilon
                push = sizes[t - first] * shrink1 / width
                of_m += push
                of_s += push * shrink2 / (2 * root * width)
        back, bend = number(of_m), number(of_s * momenta[f])
        for q in range(LANES):
            u = adjoint[f, q]
            of_momenta[f, q] = keep1 * of_momenta[f, q] - back * u
            of_squares[f, q] = keep2 * of_squares[f, q] + bend * u
