"""What the methods share that take back changes of rows: explanation and influence of triples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.bulk import (
    check_batch,
    equal_batches,
    fingerprint,
    limited_batches,
    write_batches,
)
from fastinfluence.attribution.method import Attribution, check_result
from fastinfluence.attribution.objectives import as_objective
from fastinfluence.attribution.ranking import top_of_rows
from fastinfluence.attribution.triples.method import TripleAttribution
from fastinfluence.attribution.triples.reading import QuantityReadout
from fastinfluence.attribution.triples.rows import LinkReadout
from fastinfluence.kernels.structures import TripleRows
from fastinfluence.memory import memory_budget
from fastinfluence.models import KnowledgeGraphModel
from fastinfluence.models.base import Model
from fastinfluence.progress import progress
from fastinfluence.readout import check_k

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from fastinfluence.attribution.triple_explanations import TripleExplanations

__all__ = ["TripleRowAttribution"]

Array = npt.NDArray[Any]

_SHARD_QUERIES = 2**10  # explained by a thread at a time


class TripleRowAttribution(TripleAttribution):
    """Attribution by rows: every triple is credited changes of its entities' and relation's rows.

    The influence of triple j on a query is phi of the model's rows minus phi of the rows with
    j's changes taken back: exactly, however large the changes, for scores, probabilities and
    what is made of them. Only triples that share an entity, in either place, or the relation
    with the query have influence; what the others do to the normaliser of a probability is
    left out. Axes are (n_queries, n_train); positive is a *proponent*: training on j raised phi.

    Parameters
    ----------
    model : DistMult or ComplEx
        Fitted.
    n_threads : int, optional
        All processors by default; it never changes a result.
    device : {"auto", "cpu", "cuda"} or "torch:<device>", default "auto"
        Where influence is read from the rows; training is followed on the CPU.
    """

    explains: ClassVar[type[Model]] = KnowledgeGraphModel
    served: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "torch")

    _readout: LinkReadout  # made by the method

    def __init__(
        self,
        model: KnowledgeGraphModel,
        *,
        n_threads: int | None = None,
        device: str = "auto",
    ) -> None:
        # Not super: the next class may be the method for users and items.
        Attribution.__init__(self, model, n_threads=n_threads, device=device)

    def _set_changes(self, changes: Array) -> None:
        """Take the changes (n, S, d) of every triple's rows, by training index."""
        tables, graph = self.model.trajectory_.end.tables, self.model.graph_
        self._readout = LinkReadout(
            self.data, graph, tables, changes, self._n_threads, self._device
        )

    @property
    def rows(self) -> TripleRows:
        """The changes credited to every triple, and which triples each row occurs in."""
        return self._readout.store

    def _options_for(self, queries: Any) -> dict[str, Any]:
        return Attribution._options_for(self, queries)

    def _check_quantity(self, quantity: Any) -> None:
        """Raise ParameterError unless the changes that a quantity needs are there."""

    def _amplification(self, quantity: Any) -> Array | None:
        """How much training amplified small changes (n,), where the method knows it."""
        return None

    def _quantity(self, queries: Any, *, named: bool) -> Any:
        objective = as_objective(queries)
        quantity = self._bind(objective)
        if named:
            self._check_named(quantity, objective)
        self._check_quantity(quantity)
        return quantity

    def _reading(self, quantity: Any) -> QuantityReadout:
        return QuantityReadout(self._readout, quantity, self._parameters)

    # ---------------------------------------------------------------- explaining

    def explain(
        self,
        queries: Any,
        k: int = 10,
        *,
        proponents: bool = True,
        batch_size: int | None = None,
        show_progress: bool | None = None,
    ) -> TripleExplanations:
        """Find the k most influential training triples of every query.

        Parameters
        ----------
        queries : sequence of (head, relation, tail) triples, (n, 3) array, table, Triples, or \
Objective
            Raw ids; plain queries mean the `Score` of their tail. None as tail or head is the
            model's own best one. A query may be a training triple, which is then a candidate
            like any other.
        k : int, default 10
        proponents : bool, default True
            The triples that raised phi most; False: those that lowered it most.
        batch_size : int, optional
            Queries done at a time.
        show_progress : bool, optional

        Returns
        -------
        TripleExplanations
            Lists in the order of the queries, the most influential first, ties by training
            index. Totals are over all triples that share an entity or the relation.

        Raises
        ------
        UnknownIdError
            An entity or relation is not in the data.
        ParameterError
            k < 1, or an objective that is not about triples (a `Mean`, a `Function`).

        Notes
        -----
        O(n_factors) a candidate for scores. For probabilities O(n_entities * n_factors) a
        candidate that holds the relation or the entity that is given, in one matrix product for
        all queries that ask the same question. Memory O(n_queries * k) and 64 MiB.
        """
        check_k(k)
        quantity = self._quantity(queries, named=True)
        reading = self._reading(quantity)
        if batch_size is None:
            batches = limited_batches(reading.entries)
        else:
            batches = equal_batches(quantity.n, check_batch(batch_size, quantity.n))
        bar = progress(batches, description="explain", show=show_progress, unit="batch")
        tops = [
            top_of_rows(reading.rows(start, stop, self._n_threads), k, proponents)
            for start, stop in bar
        ]
        train_index, influence, total = map(np.concatenate, zip(*tops, strict=True))
        found: TripleExplanations = self._explained(
            quantity,
            (train_index, influence, total),
            proponents,
            amplification=self._amplification(quantity),
        )
        return found

    def explain_to(
        self,
        path: str | os.PathLike[str],
        queries: Any,
        k: int = 10,
        *,
        proponents: bool = True,
        batch_size: int | None = None,
        resume: bool = False,
        show_progress: bool | None = None,
    ) -> int:
        """Explain any number of queries into a folder.

        Shards of the columns ``head``, ``relation``, ``tail`` (codes), ``predict_head`` (bool),
        ``prediction``, ``train_index`` (n, k) and ``influence`` (n, k) are written while the
        next batch is computed; `fastinfluence.storage.open_shards` reads them. A killed run is
        continued with ``resume=True``.

        Parameters
        ----------
        path : path-like
        queries, k, proponents, batch_size, show_progress
            As for `explain`.
        resume : bool, default False
            Go on behind the complete shards of an earlier call with the same arguments.

        Returns
        -------
        int
            Number of queries explained, those of earlier calls included.
        """
        size = check_batch(batch_size, _SHARD_QUERIES)
        check_k(k)
        quantity = self._quantity(queries, named=True)
        reading, prediction = self._reading(quantity), quantity.values(*self._parameters)
        named = {
            "head": quantity.heads,
            "relation": quantity.relations,
            "tail": quantity.tails,
            "predict_head": quantity.predict_head,
        }
        meta = {
            "method": self.name,
            "units": self.units,
            "model": self.model.trajectory_.fingerprint(),
            "changes": fingerprint(self.rows.changes),
            "quantity": quantity.kind,
            "k": int(k),
            "proponents": proponents,
            "n_queries": quantity.n,
            "queries": fingerprint(*named.values(), prediction),
        }

        def columns_of(batch: tuple[int, int]) -> dict[str, Array]:
            some = slice(*batch)
            train_index, influence, _ = top_of_rows(reading.rows(*batch, 1), k, proponents)
            return {name: column[some] for name, column in named.items()} | {
                "prediction": prediction[some],
                "train_index": train_index,
                "influence": influence,
            }

        def batches(start: int) -> Iterator[tuple[int, int]]:
            for first in range(start, quantity.n, size):
                yield first, min(first + size, quantity.n)

        return write_batches(
            path,
            batches,
            columns_of,
            quantity.n,
            meta=meta,
            resume=resume,
            n_threads=self._n_threads,
            show_progress=show_progress,
        )

    # ---------------------------------------------------------------- influence

    def influence(self, queries: Any, *, dense: bool = False) -> csr_array | Array:
        """Influence (n_queries, n_train) of every training triple on every query.

        Parameters
        ----------
        queries : as for `explain`, and any Objective
            Of a `Mean` it is the mean of the influences. A `Rank` and a `Function` are followed
            along their gradient, to first order.
        dense : bool, default False
            Return an array; otherwise a `scipy.sparse.csr_array` of the triples that share an
            entity or the relation with the query, in ascending order.

        Raises
        ------
        UnknownIdError
            An entity or relation is not in the data.
        ParameterError
            The result would not fit the memory budget (a quarter of RAM): use `explain`.
        """
        import scipy.sparse

        quantity = self._quantity(queries, named=False)
        reading = self._reading(quantity)
        entries = reading.entries
        size = self.rows.changes.itemsize
        wanted = quantity.n * len(self.data) * size if dense else int(entries.sum()) * (size + 4)
        check_result(quantity.n, wanted, memory_budget(), dense=dense)
        parts = [reading.rows(*batch, self._n_threads) for batch in limited_batches(entries)]
        matrix = parts[0] if len(parts) == 1 else scipy.sparse.vstack(parts, format="csr")
        return matrix.toarray() if dense else matrix

    def self_influence(self) -> npt.NDArray[np.floating[Any]]:
        """Influence (n_train,) of every training triple on the score of itself.

        Of its tail, given head and relation. Large values mark triples the model would not
        predict without them: outliers and errors stand at the top.
        """
        data = self.data
        links = self.model.links(data.heads, data.relations, data.tails)
        return self._readout.self_influence(links, self._n_threads)
