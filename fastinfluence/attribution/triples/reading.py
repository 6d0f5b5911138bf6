"""Influence on every kind of quantity of triples, read from changes of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.bulk import limited_batches
from fastinfluence.attribution.triple_quantities import TripleAverage
from fastinfluence.attribution.triples.rows import LinkReadout
from fastinfluence.kernels.structures import GraphTables, Links

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["QuantityReadout"]

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]

_OF_LINKS = ("score", "log-probability", "probability")


class QuantityReadout:
    """Influence on the queries of a quantity: phi as it is, minus phi with changes taken back.

    Exact in the rows for scores and probabilities and what is made of them (margins, held-out
    losses, means); to first order, along the gradient, for ranks and for functions.

    Parameters
    ----------
    readout : LinkReadout
    quantity : TripleQuantity
    parameters : (tables, mean)
        Of the model.
    """

    def __init__(
        self, readout: LinkReadout, quantity: Any, parameters: tuple[GraphTables, float]
    ) -> None:
        self._readout, self._quantity, self._parameters = readout, quantity, parameters
        self._n_train = len(readout.store.heads)

    @property
    def entries(self) -> Counts:
        """At most so many (n,) triples have influence on each query."""
        quantity = self._quantity
        if quantity.links is None:
            return np.full(quantity.n, self._n_train)
        found = self._readout.degrees(quantity.links)
        if quantity.over is not None:
            found += self._readout.degrees(quantity.over)
        return np.minimum(found, self._n_train)

    def rows(self, start: int, stop: int, n_threads: int) -> csr_array:
        """Influence (stop - start, n_train) on some of the queries, sorted by training index."""
        quantity = self._quantity
        if isinstance(quantity, TripleAverage):
            return self._average(n_threads)
        if quantity.links is None:
            gradient = quantity.total_gradient(*self._parameters)
            return self._sparse(self._readout.linear(gradient)[None])
        links = _part(quantity.links, start, stop)
        if quantity.kind in _OF_LINKS:
            return self._readout.influence(quantity.kind, links, n_threads)
        if quantity.kind == "margin":
            over = self._readout.influence("score", _part(quantity.over, start, stop), n_threads)
            difference: csr_array = self._readout.influence("score", links, n_threads) - over
            return difference
        if quantity.kind == "log-sigmoid":
            return self._log_sigmoids(links, n_threads)
        return self._along_gradients(start, stop, n_threads)

    def _average(self, n_threads: int) -> csr_array:
        """The mean of the influences on all queries of another quantity."""
        inner = self._quantity.inner
        others = QuantityReadout(self._readout, inner, self._parameters)
        total = np.zeros(self._n_train)
        for start, stop in limited_batches(others.entries):
            total += others.rows(start, stop, n_threads).sum(axis=0)
        dtype = self._readout.tables.rows.dtype
        return self._sparse((total / inner.n).astype(dtype)[None])

    def _log_sigmoids(self, links: Links, n_threads: int) -> csr_array:
        """``log s(z) - log s(z - c)`` where a score z moves by c, s being the sigmoid."""
        matrix = self._readout.influence("score", links, n_threads)
        scores = np.repeat(self._readout.scores(links), np.diff(matrix.indptr))
        change, other = matrix.data.astype(np.float64), -np.logaddexp(0.0, scores)  # log s(-z)
        # The quotient of both is s(z) + s(-z) exp(c) = 1 + s(-z) (exp(c) - 1).
        small = np.log1p(np.exp(other) * np.expm1(np.clip(change, -1, 1)))
        large = np.logaddexp(-np.logaddexp(0.0, -scores), other + change)
        matrix.data = np.where(np.abs(change) < 1, small, large).astype(matrix.dtype)
        return matrix

    def _along_gradients(self, start: int, stop: int, n_threads: int) -> csr_array:
        """To first order, for triples that share an entity or the relation with a query."""
        import scipy.sparse

        readout = self._readout
        links = _part(self._quantity.links, start, stop)
        pointers, indices = readout.candidates(links, n_threads)
        values = np.empty(len(indices), readout.tables.rows.dtype)
        for query in range(stop - start):
            at = start + query
            gradient = self._quantity.dense_gradient(at, at + 1, *self._parameters)[:, :, 0]
            some = slice(pointers[query], pointers[query + 1])
            values[some] = readout.linear(gradient, indices[some])
        return scipy.sparse.csr_array(
            (values, indices, pointers), shape=(stop - start, self._n_train)
        )

    def _sparse(self, dense: Array) -> csr_array:
        import scipy.sparse

        return scipy.sparse.csr_array(dense)


def _part(links: Links, start: int, stop: int) -> Links:
    return Links(*(column[start:stop] for column in links))
