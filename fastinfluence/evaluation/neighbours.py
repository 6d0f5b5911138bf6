"""What is asked about a model, and which training examples stand beside each query."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastinfluence.attribution.objectives import Quantity, as_objective
from fastinfluence.data import Triples
from fastinfluence.errors import ParameterError
from fastinfluence.evaluation.family import Codes, Family, Mask, draw
from fastinfluence.evaluation.pairs import PAIRS
from fastinfluence.evaluation.triples import TRIPLES
from fastinfluence.models import Model
from fastinfluence.models.base import trajectory_of

__all__ = [
    "adjacent_mask",
    "bind",
    "check_count",
    "check_fitted",
    "family_of",
    "sample_examples",
    "sample_queries",
]


def bind(model: Any, queries: Any) -> Quantity:
    """Return what is asked, as a function of the model's parameters.

    Parameters
    ----------
    model : Model
        Fitted.
    queries : as for `explain`, Objective, or Quantity of this model
        Where they leave an answer to the model it is that of this model.

    Raises
    ------
    ParameterError, NotFittedError
        The model is none, or not fitted.
    DataError, UnknownIdError
        No queries, or not of this model.
    """
    check_fitted(model)
    if isinstance(queries, Quantity):
        return queries
    objective = as_objective(queries).answered(model)
    return objective.bind(model.data_, model.trajectory_.recipe)


def family_of(data: object) -> Family:
    """What evaluation has to know of the data of a model."""
    return TRIPLES if isinstance(data, Triples) else PAIRS


def check_fitted(model: object) -> None:
    """Raise ParameterError or NotFittedError unless `model` has a Trajectory to train again."""
    if not isinstance(model, Model):
        raise ParameterError(
            f"a DistMult, ComplEx or MatrixFactorization is needed, not {type(model).__name__}"
        )
    if 0 not in trajectory_of(model, "evaluating it").checkpoints:
        raise ParameterError(
            "the Trajectory of the model does not hold where training started, so that nothing "
            "can be trained again from there: fit the model anew"
        )


def adjacent_mask(model: Model, quantity: Quantity, train_index: Codes) -> Mask:
    """Whether (n_queries, m) the example touches what the query depends on directly.

    For a score that is every example of its user or item; for a margin also those of the other
    item, for a mean those of any of its users and items. For a triple it is every one with its
    relation or an entity of it in any place.
    """
    return family_of(model.data_).adjacent(model, quantity, train_index)


def sample_examples(
    model: Model,
    queries: Any,
    adjacent: int = 125,
    others: int = 300,
    rng: int | np.random.Generator = 0,
) -> Codes:
    """Draw examples to leave out: neighbours of every query, and others.

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
        Fitted.
    queries : as for `explain`, or Objective
    adjacent : int, default 125
        Examples that share something with a query (its user, its item; its relation, an
        entity): so many of each query.
    others : int, default 300
        Examples drawn from all, for all queries together.
    rng : int or Generator, default 0

    Returns
    -------
    (m,) int64
        Training indices, ascending; examples of weight 0, which no model has seen, are not
        among them.
    """
    check_count("adjacent", adjacent)
    check_count("others", others)
    quantity = bind(model, queries)
    generator = np.random.default_rng(rng)
    seen = np.flatnonzero(model.trajectory_.program.weights > 0)
    near = family_of(model.data_).neighbours(model, quantity)
    chosen = [draw(seen, others, generator)]
    chosen += [draw(own, adjacent, generator) for own in near]
    return np.unique(np.concatenate(chosen))


def sample_queries(
    model: Model, n: int = 20, rng: int | np.random.Generator = 0
) -> list[tuple[Any, ...]]:
    """Draw predictions worth explaining.

    For a matrix factorization the best recommendation of each of n random users. For a
    knowledge graph the best tail for each of n random questions (head, relation, ?): those of
    the test triples, or of the training triples where there is no test.

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
        Fitted.
    n : int, default 20
    rng : int or Generator, default 0
        Draws among the users with 15 examples or more (where fewer than n have so many, the n
        users with the most are taken), or among the distinct questions.

    Returns
    -------
    list of n (user, item) or (head, relation, tail)
        Raw ids, in the order of the codes of what is asked. No item is one its user has in the
        data, no tail one that training or validation triples hold.

    Raises
    ------
    ParameterError
        Fewer than n users have examples, and an item left to recommend; fewer than n
        questions have a tail left to predict.
    """
    check_fitted(model)
    check_count("n", n, 1)
    return family_of(model.data_).sample_queries(model, n, np.random.default_rng(rng))


def check_count(name: str, value: object, least: int = 0) -> int:
    """Return an integer of at least `least`, or raise ParameterError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ParameterError(f"{name} must be an integer >= {least}, not {value!r}")
    return int(value)
