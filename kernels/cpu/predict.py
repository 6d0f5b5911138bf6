"""Scores of single pairs."""

from .jit import inner_kernel
from .simd import dot

__all__ = ["pair_scores"]


@inner_kernel
def pair_scores(tables, mean, users, items, start, stop, out):
    """``out[n] = mean + b_u + b_i + p_u . q_i`` for pairs ``start:stop``.

    Parameters
    ----------
    tables : Tables
    mean : float
        In the dtype of the tables.
    users, items : (n,) int32
    start, stop : int
    out : (n,) float
    """
    for n in range(start, stop):
        u, i = users[n], items[n]
        product = dot(tables.user_factors[u], tables.item_factors[i])
        out[n] = mean + tables.user_biases[u] + tables.item_biases[i] + product
