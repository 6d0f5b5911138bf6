"""Reading what a caller wants explained of a knowledge graph: triples, some with an open end."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.queries import columns_of_rows, is_table
from fastinfluence.data import Interactions, Triples
from fastinfluence.data.tables import table_columns, triple_columns
from fastinfluence.errors import DataError, ParameterError, UnseenWarning, plural
from fastinfluence.kernels.structures import Graph

if TYPE_CHECKING:
    from fastinfluence.training import GraphRecipe

__all__ = ["OPEN", "Questions", "check_seen", "graph_of", "read_questions"]

Codes = npt.NDArray[np.int32]

OPEN = -1  # stands for the entity that a query asks the model for
_NAMES = ("head", "relation", "tail")
_SIDES = ("tail", "head")
_TRIPLES = (
    "queries are a sequence of (head, relation, tail) triples, an (n, 3) array, a table with "
    "columns 'head', 'relation' and 'tail', or Triples"
)


class Questions(NamedTuple):
    """Triples of codes, and which end of each is asked for."""

    heads: Codes  # (n,), OPEN where the model is to say it
    relations: Codes  # (n,)
    tails: Codes  # (n,), OPEN where the model is to say it
    predict_head: npt.NDArray[np.bool_]  # (n,)

    @property
    def targets(self) -> Codes:
        """The entities asked for, OPEN where the model is to say it."""
        return np.where(self.predict_head, self.heads, self.tails)

    def answered(self, targets: Codes) -> Questions:
        """The same questions with these entities (n,) in the places asked for."""
        return self._replace(
            heads=np.where(self.predict_head, targets, self.heads),
            tails=np.where(self.predict_head, self.tails, targets),
        )


def read_questions(queries: Any, predict: Any, data: Triples) -> Questions:
    """Codes of the triples to explain.

    Parameters
    ----------
    queries : sequence of (head, relation, tail) triples, (n, 3) array, table or Triples
        Raw ids as in the training data. A table (pandas, polars, Arrow, mapping of columns)
        has columns ``head``, ``relation`` and ``tail``, or just three. None as tail asks for
        the model's own best tail, None as head for its best head.
    predict : {"tail", "head"}, or (n,) of them
        Which end is asked for. Where one is None it is that one.

    Raises
    ------
    DataError
        No queries, or not triples; a missing relation, or both ends missing.
    UnknownIdError
        An id is not in the training data.
    ParameterError
        `predict` is something else.
    """
    heads, relations, tails = _codes(queries, data)
    if not len(heads) == len(relations) == len(tails):
        raise DataError(
            f"the queries have {len(heads):,} heads, {len(relations):,} relations and "
            f"{len(tails):,} tails"
        )
    if len(heads) == 0:
        raise DataError("no queries to explain: give at least one (head, relation, tail) triple")
    both = (heads == OPEN) & (tails == OPEN)
    if both.any():
        raise DataError(
            f"query {both.argmax()} has neither head nor tail: a model can be asked for one of them"
        )
    predict_head = (_asked_heads(predict, len(heads)) | (heads == OPEN)) & (tails != OPEN)
    return Questions(heads, relations, tails, predict_head)


def graph_of(data: Triples, recipe: GraphRecipe) -> Graph:
    """What kind of model the recipe makes of the data."""
    return Graph(data.n_entities, data.n_relations, recipe.has_reciprocals, recipe.complex)


def check_seen(questions: Questions, data: Triples) -> None:
    """Warn of entities and relations that no training triple holds (UnseenWarning)."""
    entities = np.concatenate([questions.heads, questions.tails])
    for kind, asked, unseen, ids in (
        ("entity", entities, data.unseen_entities, data.entity_ids),
        ("relation", questions.relations, data.unseen_relations, data.relation_ids),
    ):
        strange = np.intersect1d(asked, unseen)
        if len(strange):
            others = len(strange) - 1
            more = f" or {others:,} other {plural(kind, others)} of the queries" if others else ""
            warnings.warn(
                f"no training triple holds the {kind} {ids[strange[0]].item()!r}{more}: training "
                "never moved such a row but as a negative, if at all, so what is predicted of it "
                "means little, and its explanation no more",
                UnseenWarning,
                stacklevel=2,
            )


def _codes(queries: Any, data: Triples) -> tuple[Codes, Codes, Codes]:
    if isinstance(queries, Interactions):
        raise DataError(f"the model was trained on triples: {_TRIPLES}; not Interactions")
    if isinstance(queries, Triples):
        maps = queries.entity_map, queries.relation_map
        if maps[0] is data.entity_map and maps[1] is data.relation_map:  # a split, say
            return queries.heads, queries.relations, queries.tails
        heads, relations, tails = queries.columns().values()
    elif is_table(queries):
        names, column_at = table_columns(queries)
        named = _NAMES if set(_NAMES) <= set(names) else (None, None, None)
        heads, relations, tails = map(column_at, triple_columns(names, *named))
    else:
        heads, relations, tails = columns_of_rows(queries, 3, _TRIPLES)
    return (
        _entity_codes(heads, data),
        data.relation_index(relations),
        _entity_codes(tails, data),
    )


def _entity_codes(raw: Any, data: Triples) -> Codes:
    """Codes (n,) of raw ids, OPEN where there is None."""
    if isinstance(raw, np.ndarray) and raw.dtype != object:
        return data.entity_index(raw)
    raw = list(raw)
    is_open = np.array([value is None for value in raw], bool)
    if not is_open.any():
        return data.entity_index(raw)
    codes = np.full(len(raw), OPEN, np.int32)
    if not is_open.all():
        # Something known in the open places, so that an error counts the others rightly.
        known = raw[int(is_open.argmin())]
        closed = data.entity_index([known if value is None else value for value in raw])
        codes[~is_open] = closed[~is_open]
    return codes


def _asked_heads(predict: Any, n: int) -> npt.NDArray[np.bool_]:
    if isinstance(predict, str) and predict in _SIDES:
        return np.full(n, predict == "head")
    if isinstance(predict, Sequence | np.ndarray) and not isinstance(predict, str):
        if len(predict) != n:
            raise ParameterError(
                f"predict says a side of {len(predict):,} queries, but there are {n:,}: give one "
                "for each, or one for all"
            )
        if all(isinstance(side, str) and side in _SIDES for side in predict):
            return np.array([side == "head" for side in predict], bool)
    raise ParameterError(f"predict={predict!r:.60} is not known: use 'tail' or 'head'")
