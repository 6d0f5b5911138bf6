"""What an objective is, and what those have in common that are made of queries."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple, Self, TypeAlias, cast

from fastinfluence.attribution.quantities import Quantity
from fastinfluence.attribution.triple_queries import (
    OPEN,
    Questions,
    check_seen,
    graph_of,
    read_questions,
)
from fastinfluence.data import Interactions, Triples
from fastinfluence.errors import DataError
from fastinfluence.kernels.structures import Graph, Links
from fastinfluence.models.link_scores import top_entities
from fastinfluence.models.links import make_links
from fastinfluence.training import GraphRecipe, Recipe

__all__ = ["Data", "Objective", "QueryObjective", "Recipes", "kept"]

Data: TypeAlias = Interactions | Triples
Recipes: TypeAlias = Recipe | GraphRecipe


class Objective(ABC):
    """A scalar phi of the parameters for each of n queries, not yet bound to a model."""

    @abstractmethod
    def bind(self, data: Data, recipe: Recipes) -> Quantity:
        """Look the ids up in a model's training data.

        Parameters
        ----------
        data : Interactions or Triples
            Training data of the model. A user or item that has an id there but no example may
            be asked about; of an entity or relation without a triple an UnseenWarning is given.
        recipe : Recipe or GraphRecipe
            The model's hyper-parameters.

        Raises
        ------
        UnknownIdError
            An id is not in the training data.
        DataError
            No queries, or not what the objective is made of; a query of which one end is left
            open (`answered` fills it in).
        ParameterError
            The objective does not fit the model.
        """

    def answered(self, model: Any) -> Objective:
        """Fill in what the queries leave to the model: its own best head or tail.

        To be called before `bind`, with the model that is explained: another one, trained
        without some examples, may answer otherwise, and still be asked about the same triple.

        Parameters
        ----------
        model : MatrixFactorization, DistMult or ComplEx
            Fitted.

        Returns
        -------
        Objective
            Itself, if nothing is open.
        """
        return self


class QueryObjective(Objective):
    """An objective of pairs or triples.

    Parameters
    ----------
    queries : pairs or triples of raw ids, as for `fastinfluence.objectives.Score`
    predict : {"tail", "head"}, or (n,) of them, default "tail"
        Which end of a triple is asked for.
    """

    def __init__(self, queries: Any, predict: Any = "tail") -> None:
        self.queries, self.predict = kept(queries), kept(predict)
        self._last: tuple[Triples, Questions] | None = None

    def _questions(self, data: Triples) -> Questions:
        """Look the triples up, once for the same data."""
        if self._last is None or self._last[0] is not data:
            self._last = data, read_questions(self.queries, self.predict, data)
        return self._last[1]

    def answered(self, model: Any) -> Self:
        """Fill in the model's own best entity, known ones included, where one is left open."""
        data = model.data_
        if not isinstance(data, Triples):
            return self
        questions = self._questions(data)
        is_open = questions.targets == OPEN
        if not is_open.any():
            return self
        tables, recipe = model.trajectory_.end.tables, model.trajectory_.recipe
        graph = graph_of(data, recipe)
        links = make_links(recipe, graph, *questions)
        asked = Links(*(column[is_open] for column in links))
        targets = questions.targets.copy()
        targets[is_open] = top_entities(graph, tables, asked, 1)[0][:, 0]
        found = copy.copy(self)
        found.queries, found.predict = _raw(questions.answered(targets), data)
        found._last = None
        return found

    def _asked(self, data: Triples, recipe: Recipes) -> _Asked:
        """Look the triples up, and where a model of the recipe keeps their rows."""
        recipe = cast(GraphRecipe, recipe)
        questions = self._questions(data)
        is_open = questions.targets == OPEN
        if is_open.any():
            raise DataError(
                f"query {is_open.argmax()} leaves its answer to a model: answered(model) fills it "
                "in, as explain and influence do"
            )
        check_seen(questions, data)
        graph = graph_of(data, recipe)
        return _Asked(questions, make_links(recipe, graph, *questions), graph)


class _Asked(NamedTuple):
    questions: Questions
    links: Links
    graph: Graph


def kept(given: Any) -> Any:
    """Lists instead of iterators: an objective is bound once for every model."""
    return list(given) if isinstance(given, Iterator) else given


def _raw(questions: Questions, data: Triples) -> tuple[list[tuple[Any, ...]], list[str]]:
    """Triples of raw ids, and the side asked for in each."""
    columns = (
        data.entity_ids[questions.heads],
        data.relation_ids[questions.relations],
        data.entity_ids[questions.tails],
    )
    triples = list(zip(*(column.tolist() for column in columns), strict=True))
    return triples, ["head" if head else "tail" for head in questions.predict_head]
