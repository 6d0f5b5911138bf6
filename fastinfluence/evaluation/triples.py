"""What evaluation has to know of triples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.objectives import Probability, TripleQuantity
from fastinfluence.attribution.triple_answers import Candidates
from fastinfluence.data import Triples
from fastinfluence.data.ids import freeze
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.evaluation.family import BestAnswers, Codes, Family, Mask, draw, other_answers
from fastinfluence.kernels.structures import Exclusions
from fastinfluence.models import KnowledgeGraphModel
from fastinfluence.models.link_scores import top_entities

__all__ = ["TRIPLES"]

_CELLS_AT_ONCE = 2**24  # of masks: 16 MiB, a few times


class _Triples(Family):
    """Adjacent is a triple with an entity of the query's or its relation, an answer is an entity.

    Known answers are those of training and validation triples; test triples are what is asked
    about.
    """

    deleted = Probability

    def adjacent(
        self, model: KnowledgeGraphModel, quantity: TripleQuantity, train_index: Codes
    ) -> Mask:
        return quantity.adjacent(model.data_, train_index)

    def neighbours(self, model: KnowledgeGraphModel, quantity: TripleQuantity) -> list[Codes]:
        seen = np.flatnonzero(model.trajectory_.program.weights > 0)
        step = max(1, _CELLS_AT_ONCE // len(quantity))
        parts: list[list[Codes]] = [[] for _ in range(len(quantity))]
        for start in range(0, len(seen), step):
            some = seen[start : start + step]
            for part, mask in zip(parts, quantity.adjacent(model.data_, some), strict=True):
                part.append(some[mask])
        return [np.concatenate(part) for part in parts]

    def sample_queries(
        self, model: KnowledgeGraphModel, n: int, generator: np.random.Generator
    ) -> list[tuple[Any, ...]]:
        data = model.data_
        known = data.taught
        heads, relations = _questions(data, model.trajectory_.program.weights > 0)
        starts, stops = known.answers("tail", heads, relations)
        able = np.flatnonzero(stops - starts < data.n_entities)
        if n > len(able):
            raise ParameterError(
                f"{len(able):,} questions (head, relation, ?) of {_asked_of(data)} triples have a "
                f"tail left to predict: {n:,} queries cannot be drawn"
            )
        chosen = np.sort(draw(able, n, generator))
        heads, relations = heads[chosen], relations[chosen]
        excluded = Exclusions(starts[chosen], stops[chosen], known.known("tail").answers)
        links = model.links(heads, relations, heads, "tail")  # the targets are not looked at
        tables = model.trajectory_.end.tables
        tails = top_entities(model.graph_, tables, links, 1, excluded=excluded)[0][:, 0]
        raw = (data.entity_ids[heads], data.relation_ids[relations], data.entity_ids[tails])
        return [*zip(*(column.tolist() for column in raw), strict=True)]

    def best_answers(self, model: KnowledgeGraphModel, quantity: TripleQuantity) -> BestAnswers:
        if quantity.links is None:
            raise ParameterError(
                "leaving out explanations needs queries about triples, not a mean or a function"
            )
        candidates = Candidates(model.data_, model.graph_, quantity)
        return lambda tables, mean: candidates.best(tables)[:, 0]

    def corrupted(
        self, data: Triples, chosen: Codes, generator: np.random.Generator
    ) -> tuple[Triples, Codes]:
        heads, relations = data.heads[chosen], data.relations[chosen]
        starts, stops = data.answers("tail", heads, relations)
        answers = data.known("tail").answers
        first, groups = np.unique(starts, return_index=True, return_inverse=True)[1:]
        places, drawn = other_answers(
            groups,
            lambda group: answers[starts[first[group]] : stops[first[group]]],
            np.setdiff1d(np.arange(data.n_entities), data.unseen_entities),
            generator,
        )
        if len(places) == 0:
            raise DataError(
                "none of the triples drawn can be corrupted: every entity is a known tail of "
                "their head and relation"
            )
        tails = data.tails.copy()
        tails[chosen[places]] = drawn
        return replace(data, tails=freeze(tails)), chosen[places]


TRIPLES = _Triples()


def _asked_of(data: Triples) -> str:
    return "training" if data.test is None else "test"


def _questions(data: Triples, seen: Mask) -> tuple[npt.NDArray[np.int32], ...]:
    """Heads and relations (n,) of distinct test triples whose head and relation training holds.

    Of training triples where there is no test.
    """
    asked = data if data.test is None else data.test
    of_entity, of_relation = np.zeros(data.n_entities, bool), np.zeros(data.n_relations, bool)
    of_entity[data.heads[seen]] = of_entity[data.tails[seen]] = True
    of_relation[data.relations[seen]] = True
    trained = of_entity[asked.heads] & of_relation[asked.relations]
    both = np.stack([asked.heads, asked.relations])[:, trained]
    return tuple(np.unique(both, axis=1))
