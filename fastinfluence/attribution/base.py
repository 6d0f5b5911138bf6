"""What the methods with a row store share: bulk explanation, influence, self-influence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch, readout
from fastinfluence.attribution.bulk import (
    check_batch,
    equal_batches,
    fingerprint,
    write_batches,
)
from fastinfluence.attribution.explanations import Explanations
from fastinfluence.attribution.matrix import Combination, degrees_of_pairs, influence_on_pairs
from fastinfluence.attribution.method import Attribution, check_result, main_pairs
from fastinfluence.attribution.objectives import Objective, Score, as_objective
from fastinfluence.attribution.quantities import Quantity
from fastinfluence.attribution.queries import query_codes
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import Top
from fastinfluence.memory import memory_budget
from fastinfluence.models.matrix_factorization import MatrixFactorization, scores
from fastinfluence.progress import progress

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from fastinfluence.attribution.rows import RowStore

__all__ = ["RowAttribution"]

Codes = npt.NDArray[np.int32]

_MOST_QUERIES = 2**20  # in one batch: its lists stay well below the memory of a laptop


class RowAttribution(Attribution):
    """Attribution by rows: every example is credited a change of its user's and item's row.

    The influence of example j on the score of a query is the score with the model's rows minus
    the score with j's changes taken back, so only examples of the query's user or item have
    any. Axes are (n_queries, n_train); positive is a *proponent*: training on j raised the
    score.

    Parameters
    ----------
    model : MatrixFactorization
        Fitted.
    n_threads : int, optional
        All processors by default; it never changes a result.
    device : str, default "auto"
        Where the most influential examples are looked for: those a method says it serves.
    """

    _rows: RowStore  # made by the method

    def __init__(
        self,
        model: MatrixFactorization,
        *,
        n_threads: int | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__(model, n_threads=n_threads, device=device)
        self._item_vectors = readout.with_ones(model.item_factors_)
        self._user_vectors = readout.with_ones(model.user_factors_)

    @property
    def rows(self) -> RowStore:
        """The row store the influences are read from: the changes credited to every example."""
        return self._rows

    def _options_for(self, queries: Any) -> dict[str, Any]:
        # A folder holds the rows of one model.
        return super()._options_for(queries) | {"path": None}

    @property
    def _settings(self) -> dict[str, Any]:
        """What influence depends on besides the model, for a folder that is gone on with."""
        return {}

    def _check_held(self, users: Codes, items: Codes) -> None:
        """Raise ParameterError unless the store holds the rows of these users and items."""

    # ---------------------------------------------------------------- explaining

    def explain(
        self,
        queries: Any,
        k: int = 10,
        *,
        proponents: bool = True,
        batch_size: int | None = None,
        show_progress: bool | None = None,
    ) -> Explanations:
        """Find the k most influential training examples of every query.

        Parameters
        ----------
        queries : sequence of (user, item) pairs, (n, 2) array, table, Interactions, or Objective
            Raw ids. A pair may have been trained on; a user or item without ratings has
            fewer examples, or none. A `fastinfluence.objectives.Margin` or `HeldOutLoss`
            explains something else than the score, its value is then the `prediction`.
        k : int, default 10
        proponents : bool, default True
            The examples that raised the score most; False: those that lowered it most.
        batch_size : int, optional
            Queries done at a time.
        show_progress : bool, optional

        Returns
        -------
        Explanations
            Lists in the order of the queries, the most influential first, ties by training
            index.

        Raises
        ------
        UnknownIdError
            A user or item is not in the training data.
        ParameterError
            k < 1, or an objective that is not about pairs (a `Mean`, a `Function`).

        Notes
        -----
        O((d_u + d_i) * n_factors) a query, d_u and d_i the numbers of examples of its user and
        item; memory O(n_queries * k). The n_queries x n_train matrix never exists.
        """
        readout.check_k(k)
        objective = as_objective(queries)
        size = check_batch(batch_size, _MOST_QUERIES)
        if isinstance(objective, Score):
            users, items = query_codes(objective.queries, self.data)
            prediction = self._scores(users, items, n_threads=self._n_threads)
            batches = equal_batches(len(users), size)
        else:
            quantity, combination = self._combine(objective)
            users, items = main_pairs(quantity, objective)
            prediction = quantity.values(*self._parameters)
            batches = (
                combination.batches() if batch_size is None else equal_batches(len(users), size)
            )

        def top_of(start: int, stop: int) -> Top:
            if not isinstance(objective, Score):
                return combination.top(start, stop, k, proponents=proponents)
            pairs = users[start:stop], items[start:stop]
            return self._top(*pairs, k, proponents, totals=True, n_threads=self._n_threads)

        bar = progress(batches, description="explain", show=show_progress, unit="batch")
        tops = [top_of(*batch) for batch in bar]
        # A single batch, the usual case, is not copied.
        top = tops[0] if len(tops) == 1 else Top(*map(np.concatenate, zip(*tops, strict=True)))
        return Explanations(
            users=users,
            items=items,
            prediction=prediction,
            train_index=top.indices,
            influence=top.values,
            total_influence=top.totals,
            data=self.data,
            method=self.name,
            units=self.units,
            proponents=proponents,
        )

    def explain_to(
        self,
        path: str | os.PathLike[str],
        queries: Any = None,
        k: int = 10,
        *,
        proponents: bool = True,
        batch_size: int | None = None,
        resume: bool = False,
        show_progress: bool | None = None,
    ) -> int:
        """Explain any number of queries into a folder, in bounded memory.

        Shards of the columns ``user``, ``item`` (codes), ``prediction``, ``train_index`` (n, k)
        and ``influence`` (n, k) are written while the next batch is computed;
        `fastinfluence.storage.open_shards` reads them. A killed run is continued with
        ``resume=True``.

        Parameters
        ----------
        path : path-like
        queries : pairs as for `explain`, or None for every pair of a user and an item
        k, proponents, batch_size, show_progress
            As for `explain`.
        resume : bool, default False
            Go on behind the complete shards of an earlier call with the same arguments.

        Returns
        -------
        int
            Number of queries explained, those of earlier calls included.
        """
        # A device has one batch to work at while another one is written.
        n_threads = self._n_threads if self._device == "cpu" else 2
        size = check_batch(batch_size, max(2**14, _MOST_QUERIES // n_threads))
        readout.check_k(k)
        if queries is None:
            pairs = None
            n_queries = self.data.n_users * self.data.n_items
        else:
            pairs = query_codes(queries, self.data)
            n_queries = len(pairs[0])
        meta = {
            "method": self.name,
            "units": self.units,
            "model": self.model.trajectory_.fingerprint(),
            "row_dtype": self.rows.dtype,
            **self._settings,
            "k": int(k),
            "proponents": proponents,
            "n_queries": n_queries,
            "queries": "all pairs" if pairs is None else fingerprint(*pairs),
        }

        def columns_of(batch: tuple[Codes, Codes]) -> dict[str, npt.NDArray[Any]]:
            top = self._top(*batch, k, proponents, totals=False, n_threads=1)
            return {
                "user": batch[0],
                "item": batch[1],
                "prediction": self._scores(*batch, n_threads=1),
                "train_index": top.indices,
                "influence": top.values,
            }

        return write_batches(
            path,
            lambda start: self._batches(pairs, start, n_queries, size),
            columns_of,
            n_queries,
            meta=meta,
            resume=resume,
            n_threads=n_threads,
            show_progress=show_progress,
        )

    def _batches(
        self, pairs: tuple[Codes, Codes] | None, start: int, stop: int, size: int
    ) -> Iterator[tuple[Codes, Codes]]:
        """Codes of queries ``start:stop``, in batches; all pairs go user by user."""
        n_items = self.data.n_items
        while start < stop:
            end = min(start + size, stop)
            if pairs is not None:
                yield pairs[0][start:end], pairs[1][start:end]
            else:
                if size >= n_items:  # whole users: their tiles need no gathering
                    end = min((start // n_items + size // n_items) * n_items, stop)
                numbers = np.arange(start, end)
                users, items = np.divmod(numbers, n_items)
                yield users.astype(np.int32), items.astype(np.int32)
            start = end

    def _top(
        self, users: Codes, items: Codes, k: int, proponents: bool, *, totals: bool, n_threads: int
    ) -> Top:
        self._check_held(users, items)
        return self.rows.top(
            *self._vectors_there,
            users,
            items,
            k,
            proponents=proponents,
            totals=totals,
            n_threads=n_threads,
            device=self._device,
        )

    @cached_property
    def _vectors_there(self) -> tuple[Any, Any]:
        """What rows are multiplied with, where the read-out is done."""
        vectors = self._item_vectors, self._user_vectors
        there: tuple[Any, Any] = dispatch.memory(self._device).put(vectors)
        return there

    def _scores(self, users: Codes, items: Codes, *, n_threads: int) -> npt.NDArray[Any]:
        return scores(*self._parameters, users, items, n_threads)

    # ---------------------------------------------------------------- influence

    def influence(
        self, queries: Any, *, dense: bool = False
    ) -> csr_array | npt.NDArray[np.floating[Any]]:
        """Influence (n_queries, n_train) of every training example on every query.

        An objective other than a `Score` is followed through the scores it is made of: to first
        order, which for a `Margin` and a `Mean` of scores is exact in the rows.

        Parameters
        ----------
        queries : as for `explain`, and any Objective but a `Function`
        dense : bool, default False
            Return an array; otherwise a `scipy.sparse.csr_array` of the examples that share
            the user or the item of the query, in ascending order.

        Raises
        ------
        UnknownIdError
            A user or item is not in the training data.
        ParameterError
            A `Function`, or the result would not fit the memory budget (a quarter of RAM): use
            `explain`.
        """
        import scipy.sparse

        objective = as_objective(queries)
        if isinstance(objective, Score):
            pairs = query_codes(objective.queries, self.data)
            self._check_held(*pairs)
            degrees = degrees_of_pairs(self.rows, *pairs, self._n_threads)
            self._check_budget(len(degrees), int(degrees.sum()), dense)
            matrix = self._pair_influence(*pairs, degrees)
        else:
            quantity, combination = self._combine(objective)
            self._check_budget(len(quantity), combination.n_entries, dense)
            parts = [combination.rows(*batch) for batch in combination.batches()]
            matrix = scipy.sparse.vstack(parts, format="csr")
        return matrix.toarray() if dense else matrix

    def _pair_influence(
        self, users: Codes, items: Codes, degrees: npt.NDArray[np.int64]
    ) -> csr_array:
        return influence_on_pairs(
            self.rows,
            (self._item_vectors, self._user_vectors),
            users,
            items,
            degrees,
            len(self.data),
            self._n_threads,
        )

    def _combine(self, objective: Objective) -> tuple[Quantity, Combination]:
        """Bind an objective that is not a score, and tell how it is made of scores."""
        quantity = self._bind(objective)
        weights = quantity.pairs(*self._parameters)
        if weights is None:
            raise ParameterError(
                f"{type(self).__name__} only knows what examples did to scores, and "
                f"{type(objective).__name__} may be of anything: use Replay(model).influence(), "
                "which differentiates through training"
            )
        self._check_held(weights.users, weights.items)
        degrees = degrees_of_pairs(self.rows, weights.users, weights.items, self._n_threads)
        return quantity, Combination(
            weights, len(quantity), len(self.data), degrees, self._pair_influence
        )

    def _check_budget(self, n_queries: int, n_entries: int, dense: bool) -> None:
        size = self._item_vectors.dtype.itemsize
        needed = n_queries * len(self.data) * size if dense else n_entries * (size + 4)
        check_result(n_queries, needed, memory_budget(), dense=dense)

    def self_influence(self) -> npt.NDArray[np.floating[Any]]:
        """Influence (n_train,) of every training example on the score of its own pair.

        Large values mark examples the model would not predict without them: outliers and
        errors stand at the top.
        """
        return self.rows.self_influence(
            self._item_vectors,
            self._user_vectors,
            self.data.users,
            self.data.items,
            n_threads=self._n_threads,
            device=self._device,
        )
