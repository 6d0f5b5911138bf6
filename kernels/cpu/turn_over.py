"""Training with turn-over dropout: at all its visits an example sees its own half of the factors.

A hash of (seed, mask set, example, factor) gives each example j a mask m of zeros and twos, either
with probability 1/2. With the candidates c of its step (its item and its own negatives)

    f_c = mean + b_u + b_c + sum_f m_f p_uf q_cf
    l_j = L(f) + regularization / 2 * (|p_u|^2 + b_u^2 + sum_c |q_c|^2 + b_c^2)

the norms over the factors with m_f > 0 alone. So no step of j moves a factor that its mask leaves
out, and the half that 2 - m keeps has only the biases from j. Arithmetic is strict and every sum
has a fixed order.
"""

import numpy as np

from .jit import inner_kernel, kernel
from .losses import BPR, SQUARED, candidate_gradients
from .negatives import take_negatives
from .random import draw, stream
from .simd import dot

__all__ = ["differences", "own_differences", "turn_over_epoch"]

MASKS = 2**33
"""Mask sets are numbered from here on where negatives have their epoch: no draw serves both."""


@inner_kernel
def _fill_mask(seed, number, example, mask):
    key = stream(seed, MASKS + number, example)
    for f in range(mask.shape[0]):
        mask[f] = 2 * draw(key, f, 2)


@inner_kernel
def _move_row(side, squares, place, gradient, hyper):
    """Move a row and its bias along the gradient, that of the bias last."""
    factors, biases = side
    k = factors.shape[1]
    if squares is None:
        for f in range(k):
            factors[place, f] -= hyper.learning_rate * gradient[f]
        biases[place] -= hyper.learning_rate * gradient[k]
    else:
        of_factors, of_biases = squares
        for f in range(k):
            of_factors[place, f] += gradient[f] * gradient[f]
            root = np.sqrt(of_factors[place, f]) + hyper.epsilon
            factors[place, f] -= hyper.learning_rate * gradient[f] / root
        of_biases[place] += gradient[k] * gradient[k]
        root = np.sqrt(of_biases[place]) + hyper.epsilon
        biases[place] -= hyper.learning_rate * gradient[k] / root


@inner_kernel
def _step(users, items, squares, u, value, weight, n_negatives, hyper, loss, work):
    """One step; `users` and `items` are factors and biases, `squares` a pair of such or Nones."""
    candidates, scores, slopes, mask, kept, gradient, pull = work
    p, b_u = users[0][u], users[1][u]
    k = p.shape[0]
    for f in range(k):
        kept[f] = mask[f] * p[f]
    for c in range(n_negatives + 1):
        i = candidates[c]
        scores[c] = hyper.mean + b_u + items[1][i] + dot(kept, items[0][i])
    if loss == SQUARED:
        slopes[0] = scores[0] - value
    else:
        candidate_gradients(loss, scores, value, n_negatives, slopes)
    shrink = weight * hyper.regularization
    half = shrink / type(shrink)(2)  # the mask, which is 0 or 2, makes it 0 or whole
    for f in range(k):
        pull[f] = half * p[f]
    pull[k] = shrink * b_u
    for c in range(n_negatives + 1):
        i = candidates[c]
        q, push = items[0][i], weight * slopes[c]
        for f in range(k):
            pull[f] += push * q[f]
            gradient[f] = mask[f] * (push * p[f] + half * q[f])
        if loss != BPR:  # there the user's bias cancels; its rounding must not stay
            pull[k] += push
        gradient[k] = push + shrink * items[1][i]
        _move_row(items, squares[1], i, gradient, hyper)
    for f in range(k):
        pull[f] *= mask[f]
    _move_row(users, squares[0], u, pull, hyper)


@kernel
def turn_over_epoch(
    tables, squares, examples, pointers, sampler, hyper, loss, epoch, seed, number
):  # fmt: skip
    """Visit every example of an epoch in one sequence, under its mask; update tables in place.

    Parameters
    ----------
    tables, squares, examples, pointers, sampler, hyper, loss, epoch
        As for `sgd.sgd_epoch`. ``examples.ids`` are keys of the masks as well.
    seed : int
        Of the masks.
    number : int
        Which set of masks.
    """
    dtype, k = tables.user_factors.dtype, tables.user_factors.shape[1]
    n_candidates = sampler.n_negatives + 1
    candidates, mask = np.empty(n_candidates, np.int64), np.empty(k, dtype)
    work = (
        candidates,
        np.empty(n_candidates, dtype),
        np.empty(n_candidates, dtype),
        mask,
        np.empty(k, dtype),
        np.empty(k + 1, dtype),
        np.empty(k + 1, dtype),
    )
    users = tables.user_factors, tables.user_biases
    items = tables.item_factors, tables.item_biases
    if squares is None:
        of_rows = None, None
    else:
        of_rows = (
            (squares.user_factors, squares.user_biases),
            (squares.item_factors, squares.item_biases),
        )
    n_groups = sampler.pool_pointers.shape[0] - 1
    for block in range(pointers.shape[0] - 1):
        stratum, user_group = divmod(block, n_groups)
        group = (user_group + stratum) % n_groups
        for t in range(pointers[block], pointers[block + 1]):
            weight, value = examples.weights[t], examples.values[t]
            if weight == 0:
                continue
            u, example = examples.users[t], examples.ids[t]
            candidates[0] = examples.items[t]
            n_negatives = 0
            if loss != SQUARED and value > 0:
                n_negatives = take_negatives(sampler, epoch, t, example, u, group, candidates)
            _fill_mask(seed, number, example, mask)
            _step(users, items, of_rows, u, value, weight, n_negatives, hyper, loss, work)


@kernel
def differences(seed, number, start, stop, products, out):
    """Differences between scores under the masks of examples and under what those leave out.

    ``out[j - start, e] = sum_f (2 m_jf - 2) products[e, f]`` for examples ``start:stop``.

    Parameters
    ----------
    seed, number
        As for `turn_over_epoch`.
    start, stop : int
    products : (n_pairs, k) float
        ``p_uf q_if`` of every pair.
    out : (stop - start, n_pairs) float
    """
    signs = np.empty(products.shape[1], products.dtype)
    for j in range(start, stop):
        _fill_signs(seed, number, j, signs)
        for e in range(products.shape[0]):
            out[j - start, e] = dot(signs, products[e])


@kernel
def own_differences(seed, number, examples, products, out):
    """Find the differences under the masks of examples, a pair each.

    Parameters
    ----------
    seed, number
        As for `turn_over_epoch`.
    examples : (m,) int64
    products : (m, k) float
    out : (m,) float
        What `differences` gives for ``examples[n]`` and ``products[n]``, bit for bit.
    """
    signs = np.empty(products.shape[1], products.dtype)
    for n in range(examples.shape[0]):
        _fill_signs(seed, number, examples[n], signs)
        out[n] = dot(signs, products[n])


@inner_kernel
def _fill_signs(seed, number, example, signs):
    """2 where the example's mask keeps a factor, -2 elsewhere."""
    _fill_mask(seed, number, example, signs)
    for f in range(signs.shape[0]):
        signs[f] = 2 * signs[f] - 2
