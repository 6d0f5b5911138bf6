"""One row's move along its gradient: SGD, Adagrad, Adam on touched rows, Adam on all rows.

Adam is written with its bias corrections in the step size (Kingma & Ba 2015, end of section
2): ``row -= size * m / (sqrt(s) + epsilon)``, ``size = rate * sqrt(1 - beta2^t) / (1 -
beta1^t)``. Time t counts all steps of the run from 1, those of left-out triples too.
"""

import numpy as np

from .jit import inner_kernel, kernel

__all__ = [
    "ADAGRAD",
    "ADAM",
    "DENSE_ADAM",
    "SGD",
    "catch_up",
    "move",
    "settle",
    "step_sizes",
]

SGD, ADAGRAD, ADAM, DENSE_ADAM = 0, 1, 2, 3

NEGLIGIBLE = 1e-20
"""Momentum that has decayed so far moves nothing any more: at beta1 = .9 after 437 steps."""


@kernel
def step_sizes(hyper, first, n):
    """Step sizes (n + 1,) float64 of times ``first + 1`` to ``first + n``, at their difference.

    The rate of SGD and Adagrad, what stands before Adam's quotient.
    """
    sizes = np.empty(n + 1)
    sizes[0] = np.nan
    adam = hyper.optimizer >= ADAM
    power1, power2 = 1.0, 1.0
    if adam:
        power1, power2 = hyper.beta1**first, hyper.beta2**first
    for i in range(1, n + 1):
        sizes[i] = hyper.learning_rate - hyper.decline * (first + i - 1)
        if adam:
            power1 *= hyper.beta1
            power2 *= hyper.beta2
            sizes[i] *= np.sqrt(1 - power2) / (1 - power1)
    return sizes


@inner_kernel(forceinline=True)
def move(hyper, row, momenta, squares, gradient, size):
    """Move `row` (d,) along its `gradient`, with the optimizer's state of the row."""
    number = row.dtype.type
    rate, epsilon = number(size), number(hyper.epsilon)
    if hyper.optimizer == SGD:
        for f in range(row.shape[0]):
            row[f] -= rate * gradient[f]
    elif hyper.optimizer == ADAGRAD:
        for f in range(row.shape[0]):
            squares[f] += gradient[f] * gradient[f]
            row[f] -= rate * gradient[f] / (np.sqrt(squares[f]) + epsilon)
    else:
        beta1, beta2 = number(hyper.beta1), number(hyper.beta2)
        rest1, rest2 = number(1 - hyper.beta1), number(1 - hyper.beta2)
        for f in range(row.shape[0]):
            momenta[f] = beta1 * momenta[f] + rest1 * gradient[f]
            squares[f] = beta2 * squares[f] + rest2 * gradient[f] * gradient[f]
            row[f] -= rate * momenta[f] / (np.sqrt(squares[f]) + epsilon)


@inner_kernel
def catch_up(hyper, row, momenta, squares, clock, time, first, sizes, root):
    """Bring a row of dense Adam from time `clock` to `time`: steps on which its gradient is 0.

    ``momenta`` shrinks by beta1 and ``squares`` by beta2 a step, so all that varies from
    step to step are two scalars; momentum that has decayed to nothing ends the sum.

    Parameters
    ----------
    row, momenta, squares : (d,)
    clock, time, first : int
        `sizes` are those of the times behind `first`.
    root : (d,)
        Scratch.
    """
    number = row.dtype.type
    epsilon = number(hyper.epsilon)
    d = row.shape[0]
    if time == clock:
        return
    for f in range(d):
        root[f] = np.sqrt(squares[f])
    shrink1, shrink2 = 1.0, 1.0
    beta2_root = np.sqrt(hyper.beta2)
    for t in range(clock + 1, time + 1):
        shrink1 *= hyper.beta1
        shrink2 *= beta2_root
        if shrink1 < NEGLIGIBLE:
            break
        push, width = number(sizes[t - first] * shrink1), number(shrink2)
        for f in range(d):
            row[f] -= push * momenta[f] / (width * root[f] + epsilon)
    keep1, keep2 = number(hyper.beta1 ** (time - clock)), number(hyper.beta2 ** (time - clock))
    for f in range(d):
        momenta[f] *= keep1
        squares[f] *= keep2


@kernel
def settle(state, hyper, time, first, sizes):
    """Bring all rows of dense Adam to `time`, in place."""
    root = np.empty_like(state.rows[0])
    for r in range(state.rows.shape[0]):
        catch_up(
            hyper, state.rows[r], state.momenta[r], state.squares[r], state.clocks[r], time,
            first, sizes, root,
        )  # fmt: skip
        state.clocks[r] = time
