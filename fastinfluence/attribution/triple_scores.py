"""Scores of many answers to many questions, and the way back from them, in float64.

`fastinfluence.models.link_scores` gives the model's predictions in their own dtype; here sums are
added up in float64 whatever the tables hold, so that derivatives are as good as the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence.kernels.structures import Graph, GraphTables, Links

__all__ = ["Composed", "compose", "scores_of", "weighted_rows"]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

_ENTITIES_AT_ONCE = 2**14  # of which the rows are brought to float64 together


class Composed(NamedTuple):
    """Subject and relation of each question as numbers: complex (b, d / 2), or float64 (b, d)."""

    subjects: Array
    relations: Array  # conjugated where they are read so
    flips: npt.NDArray[np.bool_]

    @property
    def vectors(self) -> Floats:
        """(b, d): the score of an answer is ``vector . row``."""
        return _rows(self.subjects * self.relations)

    def pull(self, answers: Floats) -> tuple[Floats, Floats]:
        """Derivatives (b, d) of ``vector . answer`` by the subject's and the relation's row."""
        numbers = _numbers(answers, np.iscomplexobj(self.subjects))
        by_relation = _conjugated(self.subjects.conj() * numbers, self.flips)
        return _rows(self.relations.conj() * numbers), _rows(by_relation)


def compose(graph: Graph, tables: GraphTables, links: Links) -> Composed:
    """Gather what the questions are made of; the targets of `links` are not read."""
    subjects = _numbers(tables.rows[links.subjects], graph.complex)
    relations = _numbers(tables.rows[links.relations], graph.complex)
    return Composed(subjects, _conjugated(relations, links.flips), links.flips)


def scores_of(
    graph: Graph, tables: GraphTables, vectors: Floats, answers: Codes | None = None
) -> Floats:
    """Scores (b, a) of answers (b, a), or of all entities."""
    scores: Floats
    if answers is not None:
        scores = np.einsum("bad,bd->ba", tables.rows[answers].astype(np.float64), vectors)
        return scores
    scores = np.empty((len(vectors), graph.n_entities))
    for some, rows in _entities(graph, tables):
        scores[:, some] = vectors @ rows.T
    return scores


def weighted_rows(
    graph: Graph, tables: GraphTables, weights: Floats, answers: Codes | None = None
) -> Floats:
    """Sums (b, d) of the rows of answers (b, a), or of all entities, each times its weight."""
    sums: Floats
    if answers is not None:
        sums = np.einsum("ba,bad->bd", weights, tables.rows[answers].astype(np.float64))
        return sums
    sums = np.zeros((len(weights), tables.rows.shape[1]))
    for some, rows in _entities(graph, tables):
        sums += weights[:, some] @ rows
    return sums


def _entities(graph: Graph, tables: GraphTables) -> Iterator[tuple[slice, Floats]]:
    for first in range(0, graph.n_entities, _ENTITIES_AT_ONCE):
        some = slice(first, min(first + _ENTITIES_AT_ONCE, graph.n_entities))
        yield some, tables.rows[some].astype(np.float64)


def _numbers(rows: Array, is_complex: bool) -> Array:
    rows = rows.astype(np.float64)
    half = rows.shape[1] // 2
    return rows[:, :half] + 1j * rows[:, half:] if is_complex else rows


def _rows(numbers: Array) -> Floats:
    return np.hstack([numbers.real, numbers.imag]) if np.iscomplexobj(numbers) else numbers


def _conjugated(numbers: Array, where: npt.NDArray[np.bool_]) -> Array:
    return np.where(where[:, None], numbers.conj(), numbers)
