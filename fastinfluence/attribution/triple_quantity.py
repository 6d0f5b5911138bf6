"""What every quantity of a model of triples has: values, gradients, neighbours."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.quantities import Quantity
from fastinfluence.data import Triples
from fastinfluence.kernels.structures import GraphTables, Links

__all__ = ["RowVectors", "TripleQuantity"]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.integer[Any]]


class RowVectors(NamedTuple):
    """d phi_q / d row; entries of the same query and row add up."""

    queries: npt.NDArray[np.int64]  # (m,) int64, ascending
    rows: Codes  # (m,) int32
    vectors: Array  # (m, d), dtype of the tables


class TripleQuantity(Quantity):
    """An objective bound to a model of triples: n differentiable scalars phi of its rows.

    Attributes
    ----------
    n : int
        Number of queries.
    kind : str
        What phi is, in words: "score", "log-probability", "probability", "margin", ...
    heads, relations, tails : (n,) int32, or None
        Codes of the triple each query is about; None where there is no such triple.
    predict_head : (n,) bool, or None
        Whether its head is asked for, and not its tail.
    links : Links, or None
        The same as rows of the table.
    over : Links, or None
        The links that those of a margin are compared with: other targets, all else the same.
    local : bool
        Whether phi depends on the rows of `links` and `over` alone.
    """

    kind: str
    heads: Codes | None = None
    relations: Codes | None = None
    tails: Codes | None = None
    predict_head: npt.NDArray[np.bool_] | None = None
    links: Links | None = None
    over: Links | None = None
    local: bool = False

    @property
    def codes(self) -> dict[str, Array]:
        """What each query is about, in columns (n,) of codes; none where nobody knows."""
        columns = {
            "head": self.heads,
            "relation": self.relations,
            "tail": self.tails,
            "predict_head": self.predict_head,
        }
        return {name: column for name, column in columns.items() if column is not None}

    def columns(self, data: Triples) -> dict[str, Array]:
        """What each query is about: raw ids (n,), and which end is asked for, "head" or "tail"."""
        codes = self.codes
        if not codes:
            return {}
        return {
            "head": data.entity_ids[codes["head"]],
            "relation": data.relation_ids[codes["relation"]],
            "tail": data.entity_ids[codes["tail"]],
            "predicted": np.where(codes["predict_head"], "head", "tail"),
        }

    @abstractmethod
    def values(self, tables: GraphTables, mean: float) -> Floats:
        """phi (n,) float64."""

    @abstractmethod
    def gradients(
        self, tables: GraphTables, mean: float, start: int = 0, stop: int | None = None
    ) -> RowVectors:
        """d phi / d rows of the queries ``start:stop``, numbered from 0.

        Of probabilities and ranks every entity's row has a part: n_entities entries a query.
        """

    @abstractmethod
    def total_gradient(self, tables: GraphTables, mean: float) -> Floats:
        """Sum (n_rows, d) float64 of the gradients of all queries."""

    @abstractmethod
    def adjacent(self, data: Triples, train_index: Indices) -> npt.NDArray[np.bool_]:
        """Whether (n, m) bool training triples share an entity or the relation with each query.

        An entity is shared wherever it stands in the triple: as head or as tail.
        """

    def dense_gradient(self, start: int, stop: int, tables: GraphTables, mean: float) -> Array:
        """d phi / d rows of the queries ``start:stop`` as an array (n_rows, d, stop - start).

        Its dtype is that of the tables.
        """
        from scipy.sparse import csr_array

        (n_rows, d), n = tables.rows.shape, stop - start
        queries, rows, vectors = self.gradients(tables, mean, start, stop)
        places = rows.astype(np.int64) * n + queries
        shape = n_rows * n, len(rows)
        adding = csr_array((np.ones_like(vectors[:, 0]), (places, np.arange(len(rows)))), shape)
        dense: Array = (adding @ vectors).reshape(n_rows, n, d)
        return np.ascontiguousarray(dense.transpose(0, 2, 1))
