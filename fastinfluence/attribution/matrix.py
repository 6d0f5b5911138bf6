"""The matrix of influences (n_queries, n_train), read from a row store."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.bulk import limited_batches
from fastinfluence.attribution.placed_rows import placed
from fastinfluence.attribution.quantities import PairWeights
from fastinfluence.attribution.ranking import top_of_rows
from fastinfluence.kernels.structures import Top

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from fastinfluence.attribution.rows import RowStore

__all__ = ["Combination", "degrees_of_pairs", "influence_on_pairs"]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]


def degrees_of_pairs(store: RowStore, users: Codes, items: Codes, n_threads: int) -> Counts:
    """Numbers (n,) of examples that share the user or the item of each pair."""
    starts, stops = store.find_pairs(users, items, n_threads)
    of_users = np.diff(store.user_side.pointers)[users]
    of_both: Counts = of_users + np.diff(store.item_side.pointers)[items] - (stops - starts)
    return of_both


def influence_on_pairs(
    store: RowStore,
    vectors: tuple[Array, Array],
    users: Codes,
    items: Codes,
    degrees: Counts,
    n_train: int,
    n_threads: int,
) -> csr_array:
    """Influence (n, n_train) on the scores of pairs, of the examples that share a row with them.

    Parameters
    ----------
    store : RowStore
    vectors : (n_items, d), (n_users, d)
        ``(q_i, 1)`` and ``(p_u, 1)``.
    users, items : (n,) int32
    degrees : (n,) int64
        As `degrees_of_pairs` counts them.
    n_train, n_threads : int
    """
    import scipy.sparse

    pointers = np.concatenate([[0], np.cumsum(degrees)])
    indices = np.empty(pointers[-1], np.int32)
    values = np.empty(pointers[-1], vectors[0].dtype)

    there = placed(store, "cpu")

    def part(start: int, stop: int) -> None:
        dispatch.kernels("rows").sparse_influence(
            there.user_side,
            there.item_side,
            *vectors,
            users[start:stop],
            items[start:stop],
            pointers[start : stop + 1],
            indices,
            values,
        )

    parts = dispatch.even_parts(degrees + 1.0, 4 * n_threads)
    dispatch.run_parts(part, parts, n_threads)
    return scipy.sparse.csr_array((values, indices, pointers), shape=(len(users), n_train))


class Combination:
    """Influence on functions of scores: ``sum over a query's pairs of slope * influence(pair)``.

    First order in the scores, exact where the quantity is linear in them.

    Parameters
    ----------
    weights : PairWeights
    n_queries, n_train : int
    degrees : (m,) int64
        Examples that have influence on each pair.
    influence_of : callable
        ``influence_of(users, items, degrees)``: influence (m, n_train) on the scores of pairs.
    """

    def __init__(
        self,
        weights: PairWeights,
        n_queries: int,
        n_train: int,
        degrees: Counts,
        influence_of: Callable[[Codes, Codes, Counts], csr_array],
    ) -> None:
        self._weights, self._pair_degrees, self._influence_of = weights, degrees, influence_of
        self._pointers = np.searchsorted(weights.queries, np.arange(n_queries + 1))
        entries = np.concatenate([[0], np.cumsum(degrees)])[self._pointers]
        self._degrees = np.minimum(np.diff(entries), n_train)

    @property
    def n_entries(self) -> int:
        """Entries the whole matrix has at most."""
        return int(self._degrees.sum())

    def batches(self) -> list[tuple[int, int]]:
        """Bounds of stretches of the queries whose rows take little memory."""
        return limited_batches(self._degrees)

    def rows(self, start: int, stop: int) -> csr_array:
        """Influence (stop - start, n_train) on some of the queries, without zeros, sorted."""
        import scipy.sparse

        some = slice(self._pointers[start], self._pointers[stop])
        queries, slopes = self._weights.queries[some] - start, self._weights.slopes[some]
        users, items = self._weights.users[some], self._weights.items[some]
        degrees = self._pair_degrees[some]
        total: csr_array | None = None
        for first, last in limited_batches(degrees):
            at = slice(first, last)
            part = self._influence_of(users[at], items[at], degrees[at])
            factors = scipy.sparse.csr_array(
                (slopes[at].astype(part.dtype), (queries[at], np.arange(last - first))),
                shape=(stop - start, last - first),
            )
            product = factors @ part
            total = product if total is None else total + product
        assert total is not None  # every query has a pair
        total.sort_indices()  # zeros are not among the entries of a product
        return total

    def top(self, start: int, stop: int, k: int, *, proponents: bool) -> Top:
        """The k most influential examples of some of the queries."""
        indices, values, totals = top_of_rows(self.rows(start, stop), k, proponents)
        return Top(values, indices, totals)
