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
    "TERMS",
    "catch_up",
    "decays",
    "move",
    "settle",
    "step_sizes",
]

SGD, ADAGRAD, ADAM, DENSE_ADAM = 0, 1, 2, 3

NEGLIGIBLE = 1e-20
"""Momentum that has decayed so far moves nothing any more: at beta1 = .9 after 437 steps."""


TERMS = 10
"""Terms of the series that sums up the steps a row of dense Adam has waited."""


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


@kernel
def decays(hyper):
    """What dense Adam leaves after i steps without a gradient, i = 0, 1, ... until nothing is left.

    Returns
    -------
    (n, TERMS + 2) float64
        ``beta1^i (1 - sqrt(beta2^i))^k`` for k < TERMS, then ``beta1^i`` and ``beta2^i``.
    """
    n = 1
    if hyper.optimizer == DENSE_ADAM:
        n += int(np.log(NEGLIGIBLE) / np.log(hyper.beta1))
    table = np.empty((n, TERMS + 2))
    for i in range(n):
        left = hyper.beta1**i
        for k in range(TERMS):
            table[i, k] = left * (1 - hyper.beta2 ** (0.5 * i)) ** k
        table[i, TERMS], table[i, TERMS + 1] = left, hyper.beta2**i
    return table


@inner_kernel
def catch_up(hyper, row, momenta, squares, clock, time, first, sizes, table, sums):
    """Bring a row of dense Adam from time `clock` to `time`: steps on which its gradient is 0.

    After i of them momentum is beta1^i m and the root of the squares b_i r, b_i = sqrt(beta2^i),
    so the row moves by ``m * sum_i size_i beta1^i / (b_i r + epsilon)``. With ``D = r + epsilon``
    and ``q = r / D`` that quotient is ``1 / (D (1 - (1 - b_i) q))``, a geometric series, and the
    sum over i is ``(sum_k q^k mu_k) / D`` with ``mu_k = sum_i size_i beta1^i (1 - b_i)^k``
    alike for all coordinates. At beta1 = .9 and beta2 = .999 mu_k falls like k! / 200^k: five
    terms are exact to the rounding of float32, ten to that of float64, however many the steps.

    Parameters
    ----------
    row, momenta, squares : (d,)
    clock, time, first : int
        `sizes` are those of the times behind `first`.
    table : (n, TERMS + 2)
        See `decays`.
    sums : (TERMS,) float64
        Scratch.
    """
    number = row.dtype.type
    waited = time - clock
    if waited == 0:
        return
    for k in range(TERMS):
        sums[k] = 0
    for i in range(1, min(waited + 1, table.shape[0])):
        size = sizes[clock + i - first]
        for k in range(TERMS):
            sums[k] += size * table[i, k]
    if waited < table.shape[0]:
        keep1, keep2 = number(table[waited, TERMS]), number(table[waited, TERMS + 1])
    else:
        keep1, keep2 = number(0), number(hyper.beta2**waited)
    epsilon = number(hyper.epsilon)
    s0, s1, s2, s3, s4 = (
        number(sums[0]), number(sums[1]), number(sums[2]), number(sums[3]), number(sums[4]),
    )  # fmt: skip
    if row.itemsize == 4:
        for f in range(row.shape[0]):
            root = np.sqrt(squares[f])
            back = number(1) / (root + epsilon)
            q = root * back
            total = s0 + q * (s1 + q * (s2 + q * (s3 + q * s4)))
            row[f] -= momenta[f] * (total * back)
            momenta[f] *= keep1
            squares[f] *= keep2
        return
    s5, s6, s7, s8, s9 = (
        number(sums[5]), number(sums[6]), number(sums[7]), number(sums[8]), number(sums[9]),
    )  # fmt: skip
    for f in range(row.shape[0]):
        root = np.sqrt(squares[f])
        back = number(1) / (root + epsilon)
        q = root * back
        total = s5 + q * (s6 + q * (s7 + q * (s8 + q * s9)))
        total = s0 + q * (s1 + q * (s2 + q * (s3 + q * (s4 + q * total))))
        row[f] -= momenta[f] * (total * back)
        momenta[f] *= keep1
        squares[f] *= keep2


@kernel
def settle(state, hyper, time, first, sizes, table):
    """Bring all rows of dense Adam to `time`, in place."""
    sums = np.empty(TERMS)
    for r in range(state.rows.shape[0]):
        catch_up(
            hyper, state.rows[r], state.momenta[r], state.squares[r], state.clocks[r], time,
            first, sizes, table, sums,
        )  # fmt: skip
        state.clocks[r] = time
