"""What objectives become for a model of triples: scalars of its rows, by integer codes.

A query asks which entity stands at the other end of a link; c is any of the entities, t the one
the query is about, z_c the score of c, and p_c its probability, ``exp(z_c) / sum exp(z)`` over
all entities.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.functions import call_function
from fastinfluence.attribution.triple_quantity import RowVectors, TripleQuantity
from fastinfluence.attribution.triple_queries import Questions
from fastinfluence.attribution.triple_scores import compose, scores_of, weighted_rows
from fastinfluence.data import Triples
from fastinfluence.kernels.structures import Graph, GraphTables, Links

__all__ = [
    "LogProbabilities",
    "LogSigmoids",
    "Probabilities",
    "Ranks",
    "RowVectors",
    "TripleAverage",
    "TripleFunctionValue",
    "TripleMargins",
    "TripleParameters",
    "TripleQuantity",
    "TripleScores",
]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.integer[Any]]

_NUMBERS_AT_ONCE = 2**22  # scores held in float64: 32 MB


class TripleParameters(NamedTuple):
    """What the function of a `Function` objective is given: read-only, by integer code.

    The rows are those of the model's `entity_factors_` and `relation_factors_`;
    ``data.entity_index`` and ``data.relation_index`` of the training data give the codes of raw
    ids.
    """

    entity_factors: Array  # (n_entities, d)
    relation_factors: Array  # (n_relations or 2 n_relations, d)


class _Slopes(NamedTuple):
    """Derivatives of some queries by rows; that of an answer's row is ``slope * vector``."""

    some: slice
    answers: Codes | None  # (b, a) rows; None: all entities
    slopes: Floats  # (b, a)
    vectors: Floats  # (b, d): subject and relation composed
    subjects: Floats  # (b, d)
    relations: Floats  # (b, d)


class _OfScores(TripleQuantity):
    """A quantity of the scores of some answers, or of all entities, to each query's question.

    Parameters
    ----------
    questions : Questions
        None of them open.
    links : Links
        The same as rows.
    graph : Graph
    """

    heads: Codes
    relations: Codes
    tails: Codes
    predict_head: npt.NDArray[np.bool_]
    links: Links
    local = True

    def __init__(self, questions: Questions, links: Links, graph: Graph) -> None:
        self.n, self.links, self._graph = len(questions.heads), links, graph
        self.heads, self.relations, self.tails, self.predict_head = questions

    @abstractmethod
    def _phi(self, scores: Floats, targets: Numbers) -> Floats:
        """phi (b,) of scores (b, a), the target's in column ``targets``."""

    @abstractmethod
    def _dphi(self, scores: Floats, targets: Numbers) -> Floats:
        """d phi / d scores (b, a)."""

    def _answers(self, some: slice) -> Codes | None:
        """Rows (b, a) whose scores phi depends on, the target first; None: all entities."""
        return self.links.targets[some, None]

    def values(self, tables: GraphTables, mean: float) -> Floats:
        """phi (n,) float64."""
        found = np.empty(self.n)
        for some in self._blocks(tables, 0, self.n):
            vectors = compose(self._graph, tables, self._links(some)).vectors
            scores = scores_of(self._graph, tables, vectors, self._answers(some))
            found[some] = self._phi(scores, self._targets(some))
        return found

    def gradients(
        self, tables: GraphTables, mean: float, start: int = 0, stop: int | None = None
    ) -> RowVectors:
        """d phi / d rows: of the answers, of the subject and of the relation."""
        stop = self.n if stop is None else stop
        n, width = stop - start, self._width
        rows = np.empty((n, width + 2), np.int32)
        vectors = np.empty((n, width + 2, tables.rows.shape[1]), tables.rows.dtype)
        for found in self._slopes(tables, start, stop):
            some = slice(found.some.start - start, found.some.stop - start)
            rows[some, :width] = np.arange(width) if found.answers is None else found.answers
            rows[some, width] = self.links.subjects[found.some]
            rows[some, width + 1] = self.links.relations[found.some]
            np.multiply(  # nothing of that size in float64
                found.slopes[:, :, None],
                found.vectors[:, None, :],
                out=vectors[some, :width],
                casting="same_kind",
            )
            vectors[some, width] = found.subjects
            vectors[some, width + 1] = found.relations
        queries = np.repeat(np.arange(n), width + 2)
        return RowVectors(queries, rows.ravel(), vectors.reshape(rows.size, vectors.shape[2]))

    def total_gradient(self, tables: GraphTables, mean: float) -> Floats:
        """Sum (n_rows, d) float64 of the gradients of all queries."""
        total = np.zeros(tables.rows.shape)
        for found in self._slopes(tables, 0, self.n):
            if found.answers is None:
                total[: self._graph.n_entities] += found.slopes.T @ found.vectors
            else:
                vectors = found.slopes[:, :, None] * found.vectors[:, None, :]
                np.add.at(total, found.answers, vectors)
            np.add.at(total, self.links.subjects[found.some], found.subjects)
            np.add.at(total, self.links.relations[found.some], found.relations)
        return total

    def adjacent(self, data: Triples, train_index: Indices) -> npt.NDArray[np.bool_]:
        """Whether (n, m) bool training triples share an entity or the relation with each query."""
        heads, relations, tails = (
            codes[train_index] for codes in (data.heads, data.relations, data.tails)
        )
        near: npt.NDArray[np.bool_] = self.relations[:, None] == relations
        others = () if self.over is None else (self.over.targets,)
        for entities in (self.heads, self.tails, *others):
            near |= entities[:, None] == heads
            near |= entities[:, None] == tails
        return near

    # ---------------------------------------------------------------- inner

    @property
    def _width(self) -> int:
        """How many scores of a query phi depends on."""
        answers = self._answers(slice(0, 1))
        return self._graph.n_entities if answers is None else answers.shape[1]

    def _links(self, some: slice) -> Links:
        return Links(*(column[some] for column in self.links))

    def _targets(self, some: slice) -> Numbers:
        """Columns (b,) of the targets among the answers."""
        targets = self.links.targets[some].astype(np.int64)
        return targets if self._answers(some) is None else np.zeros_like(targets)

    def _blocks(self, tables: GraphTables, start: int, stop: int) -> Iterator[slice]:
        size = max(1, _NUMBERS_AT_ONCE // (self._width + tables.rows.shape[1]))
        for first in range(start, stop, size):
            yield slice(first, min(first + size, stop))

    def _slopes(self, tables: GraphTables, start: int, stop: int) -> Iterator[_Slopes]:
        graph = self._graph
        for some in self._blocks(tables, start, stop):
            composed, answers = compose(graph, tables, self._links(some)), self._answers(some)
            vectors = composed.vectors
            scores = scores_of(graph, tables, vectors, answers)
            slopes = self._dphi(scores, self._targets(some))
            back = composed.pull(weighted_rows(graph, tables, slopes, answers))
            yield _Slopes(some, answers, slopes, vectors, *back)


class TripleScores(_OfScores):
    """phi = z_t."""

    kind = "score"

    def _phi(self, scores: Floats, targets: Numbers) -> Floats:
        return scores[:, 0]

    def _dphi(self, scores: Floats, targets: Numbers) -> Floats:
        return np.ones_like(scores)


class TripleMargins(_OfScores):
    """phi = z_t - z_over.

    Parameters
    ----------
    questions, links, graph
        As for all quantities of scores.
    over : (n,) int32
        Entities.
    """

    kind = "margin"
    over: Links

    def __init__(self, questions: Questions, links: Links, graph: Graph, over: Codes) -> None:
        super().__init__(questions, links, graph)
        self.over = links._replace(targets=over)

    def _answers(self, some: slice) -> Codes:
        return np.column_stack([self.links.targets[some], self.over.targets[some]])

    def _phi(self, scores: Floats, targets: Numbers) -> Floats:
        return scores[:, 0] - scores[:, 1]

    def _dphi(self, scores: Floats, targets: Numbers) -> Floats:
        return np.broadcast_to([1.0, -1.0], scores.shape)


class LogSigmoids(_OfScores):
    """phi = log sigmoid(z_t)."""

    kind = "log-sigmoid"

    def _phi(self, scores: Floats, targets: Numbers) -> Floats:
        return -np.logaddexp(0.0, -scores[:, 0])

    def _dphi(self, scores: Floats, targets: Numbers) -> Floats:
        return np.exp(-np.logaddexp(0.0, scores))


class _OfAllScores(_OfScores):
    """A quantity of the scores of all entities that stays the same if all of them rise alike."""

    local = False

    def _answers(self, some: slice) -> None:
        return None


class LogProbabilities(_OfAllScores):
    """phi = log p_t."""

    kind = "log-probability"

    def _phi(self, scores: Floats, targets: Numbers) -> Floats:
        return _at(_log_softmax(scores), targets)

    def _dphi(self, scores: Floats, targets: Numbers) -> Floats:
        return _balanced(-np.exp(_log_softmax(scores)), targets)


class Probabilities(_OfAllScores):
    """phi = p_t."""

    kind = "probability"

    def _phi(self, scores: Floats, targets: Numbers) -> Floats:
        return np.exp(_at(_log_softmax(scores), targets))

    def _dphi(self, scores: Floats, targets: Numbers) -> Floats:
        p = np.exp(_log_softmax(scores))
        return _balanced(-p * _at(p, targets)[:, None], targets)


class Ranks(_OfAllScores):
    """phi = -(1 + sum over the other c of sigmoid((z_c - z_t) / temperature))."""

    kind = "rank"

    def __init__(
        self, questions: Questions, links: Links, graph: Graph, temperature: float
    ) -> None:
        super().__init__(questions, links, graph)
        self.temperature = temperature

    def _phi(self, scores: Floats, targets: Numbers) -> Floats:
        ahead = np.exp(-np.logaddexp(0.0, -self._leads(scores, targets)))
        phi: Floats = _at(ahead, targets) - ahead.sum(1) - 1.0
        return phi

    def _dphi(self, scores: Floats, targets: Numbers) -> Floats:
        leads = self._leads(scores, targets)
        slopes = np.exp(-np.logaddexp(0.0, leads) - np.logaddexp(0.0, -leads))
        return _balanced(-slopes / self.temperature, targets)

    def _leads(self, scores: Floats, targets: Numbers) -> Floats:
        return (scores - _at(scores, targets)[:, None]) / self.temperature


class _OfTables(TripleQuantity):
    """One quantity, of which no query's triple is known."""

    n = 1

    def gradients(
        self, tables: GraphTables, mean: float, start: int = 0, stop: int | None = None
    ) -> RowVectors:
        """The rows on which the gradient is not zero."""
        total = self.total_gradient(tables, mean)
        rows = np.flatnonzero(total.any(axis=1))
        vectors = total[rows].astype(tables.rows.dtype)
        return RowVectors(np.zeros(len(rows), np.int64), rows.astype(np.int32), vectors)


class TripleAverage(_OfTables):
    """phi = mean of all the phi of another quantity."""

    def __init__(self, inner: TripleQuantity) -> None:
        self.inner, self.kind = inner, f"mean {inner.kind}"

    def values(self, tables: GraphTables, mean: float) -> Floats:
        """The mean (1,) float64."""
        return np.array([self.inner.values(tables, mean).mean()])

    def total_gradient(self, tables: GraphTables, mean: float) -> Floats:
        """That of the other quantity, divided by the number of its queries."""
        return self.inner.total_gradient(tables, mean) / self.inner.n

    def adjacent(self, data: Triples, train_index: Indices) -> npt.NDArray[np.bool_]:
        """Whether (1, m) bool training triples are adjacent to any query of the other quantity."""
        return np.atleast_2d(self.inner.adjacent(data, train_index).any(0))


class TripleFunctionValue(_OfTables):
    """phi = value of a function that also returns its gradient."""

    kind = "value"

    def __init__(
        self, function: Callable[[TripleParameters], tuple[Any, Any]], n_entities: int
    ) -> None:
        self.function, self._n_entities = function, n_entities

    def values(self, tables: GraphTables, mean: float) -> Floats:
        """Value (1,) float64."""
        return np.array([self._call(tables)[0]])

    def total_gradient(self, tables: GraphTables, mean: float) -> Floats:
        """The function's gradient (n_rows, d), in float64."""
        return np.concatenate(self._call(tables)[1]).astype(np.float64)

    def adjacent(self, data: Triples, train_index: Indices) -> npt.NDArray[np.bool_]:
        """All true (1, m): nobody knows which rows the function reads."""
        return np.ones((1, len(train_index)), bool)

    def _call(self, tables: GraphTables) -> tuple[float, TripleParameters]:
        n = self._n_entities
        parameters = TripleParameters(tables.rows[:n], tables.rows[n:])
        return call_function(self.function, parameters, parameters)


def _at(scores: Floats, targets: Numbers) -> Floats:
    """The entry (b,) of each row at its target."""
    found: Floats = np.take_along_axis(scores, targets[:, None], 1)[:, 0]
    return found


def _log_softmax(scores: Floats) -> Floats:
    shifted: Floats = scores - scores.max(1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(1, keepdims=True))
    return shifted


def _balanced(slopes: Floats, targets: Numbers) -> Floats:
    """Slopes of the others, the target's such that all add up to 0: without cancellation."""
    rows = np.arange(len(slopes))
    slopes[rows, targets] = 0.0
    slopes[rows, targets] = -slopes.sum(1)
    return slopes
