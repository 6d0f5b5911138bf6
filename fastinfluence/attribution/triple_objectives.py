"""Objectives that only triples have: how likely an entity is among all, and where it ranks."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from fastinfluence.attribution.objective import Data, QueryObjective, Recipes
from fastinfluence.attribution.triple_quantities import LogProbabilities, Probabilities, Ranks
from fastinfluence.data import Triples
from fastinfluence.errors import ParameterError

__all__ = ["LogProbability", "Probability", "Rank"]


class LogProbability(QueryObjective):
    """The log-probability of a triple's answer, ``phi = z_t - log sum_c exp(z_c)``.

    c goes over all entities in the place asked for, known answers among them, t is the
    triple's own; z are scores. Positive influence: training on the example made the answer
    more likely.

    Parameters
    ----------
    queries : sequence of (head, relation, tail) triples, (n, 3) array, table or Triples
        Raw ids. None as tail or head asks for the model's own best one.
    predict : {"tail", "head"}, or (n,) of them, default "tail"
        Which end of a triple is asked for.
    """

    def bind(self, data: Data, recipe: Recipes) -> LogProbabilities:
        """Log-probabilities of the triples of codes."""
        return LogProbabilities(*self._asked(_triples(self, data), recipe))


class Probability(QueryObjective):
    """The probability of a triple's answer, ``phi = exp(z_t) / sum_c exp(z_c)``.

    c goes over all entities in the place asked for, known answers among them. Positive
    influence: training on the example made the answer more probable.

    Parameters
    ----------
    queries, predict : as for `LogProbability`
    """

    def bind(self, data: Data, recipe: Recipes) -> Probabilities:
        """Probabilities of the triples of codes."""
        return Probabilities(*self._asked(_triples(self, data), recipe))


class Rank(QueryObjective):
    """A smooth rank of a triple's answer, negated.

    ``phi = -(1 + sum_c sigmoid((z_c - z_t) / temperature))`` over all other entities c: an
    entity far ahead counts 1, one far behind 0, an equal one 1/2. As the temperature goes to 0,
    -phi becomes the (unfiltered) rank with ties in the middle, and the derivative vanishes
    wherever no other entity is near. Positive influence: training on the example brought the
    answer further to the front, in places.

    Parameters
    ----------
    queries, predict : as for `LogProbability`
    temperature : float > 0, default 1.0
        In units of the score.
    """

    def __init__(self, queries: Any, predict: Any = "tail", temperature: float = 1.0) -> None:
        super().__init__(queries, predict)
        fits = isinstance(temperature, Real) and np.isfinite(temperature) and temperature > 0
        if not fits or isinstance(temperature, bool):
            raise ParameterError(f"temperature must be a finite number > 0, not {temperature!r}")
        self.temperature = float(temperature)

    def bind(self, data: Data, recipe: Recipes) -> Ranks:
        """Ranks of the triples of codes."""
        return Ranks(*self._asked(_triples(self, data), recipe), self.temperature)


def _triples(objective: QueryObjective, data: Data) -> Triples:
    if not isinstance(data, Triples):
        raise ParameterError(
            f"{type(objective).__name__} is of triples, and the model was trained on pairs of a "
            "user and an item: explain their Score, a Margin or a HeldOutLoss"
        )
    return data
