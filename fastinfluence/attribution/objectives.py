"""What is explained: a score, a margin, a held-out loss, a mean, any differentiable function.

An objective is made of raw ids and knows no model; `Objective.bind` turns it into a `Quantity`
of one model's parameters. Influence on it is ``phi(trained with j) - phi(trained without j)``:
positive where training on example j raised it.

The queries of a matrix factorization are pairs (user, item), those of a knowledge graph are
triples (head, relation, tail), of which the model is asked for one end. Probabilities and ranks
are of triples only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.objective import Data, Objective, QueryObjective, Recipes, kept
from fastinfluence.attribution.quantities import (
    Average,
    FunctionValue,
    Losses,
    Margins,
    PairWeights,
    Parameters,
    Quantity,
    RowGradients,
    Scores,
)
from fastinfluence.attribution.queries import query_codes
from fastinfluence.attribution.triple_objectives import LogProbability, Probability, Rank
from fastinfluence.attribution.triple_quantities import (
    LogProbabilities,
    LogSigmoids,
    TripleAverage,
    TripleFunctionValue,
    TripleMargins,
    TripleParameters,
    TripleScores,
)
from fastinfluence.attribution.triple_quantity import RowVectors, TripleQuantity
from fastinfluence.data import Interactions, Triples
from fastinfluence.errors import DataError, ParameterError

__all__ = [
    "Function",
    "HeldOutLoss",
    "LogProbability",
    "Margin",
    "Mean",
    "Objective",
    "PairWeights",
    "Parameters",
    "Probability",
    "Quantity",
    "Rank",
    "RowGradients",
    "RowVectors",
    "Score",
    "TripleParameters",
    "TripleQuantity",
    "as_objective",
]

Codes = npt.NDArray[np.int32]

_LOSSES = ("squared", "logistic", "softmax")
_LOSSES_OF_PAIRS = ("squared", "logistic")  # those that one pair has by itself


class Score(QueryObjective):
    """The score of a pair or of a triple.

    ``phi = f(u, i) = mean + b_u + b_i + p_u . q_i`` of a matrix factorization; of DistMult and
    ComplEx the score of the triple. Plain queries mean this objective. Positive influence:
    training on the example raised the score.

    Parameters
    ----------
    queries : sequence of (user, item) pairs, (n, 2) array, table or Interactions
        Raw ids. For a knowledge graph: a sequence of (head, relation, tail) triples, an (n, 3)
        array, a table or Triples; None as tail or head asks for the model's own best one.
    predict : {"tail", "head"}, or (n,) of them, default "tail"
        Which end of a triple is asked for.
    """

    def bind(self, data: Data, recipe: Recipes) -> Scores | TripleScores:
        """Scores of the pairs or triples of codes."""
        if isinstance(data, Triples):
            return TripleScores(*self._asked(data, recipe))
        return Scores(*_pairs(self, data))


class Margin(QueryObjective):
    """How far an item is ahead of another, ``phi = f(u, i) - f(u, over)``.

    Of a triple: how far the entity in the place asked for is ahead of another one there.
    Positive influence: training on the example set it further ahead.

    Parameters
    ----------
    queries : as for `Score`
    over : raw item or entity id, or (n,) of them
        What each query's own is compared with.
    predict : as for `Score`
    """

    def __init__(self, queries: Any, over: Any, predict: Any = "tail") -> None:
        super().__init__(queries, predict)
        self.over = kept(over)

    def bind(self, data: Data, recipe: Recipes) -> Margins | TripleMargins:
        """Margins between the pairs or triples of codes."""
        if isinstance(data, Triples):
            asked = self._asked(data, recipe)
            over = data.entity_index(self.over)
            return TripleMargins(*asked, self._one_each(over, len(asked.links.targets), "entities"))
        users, items = _pairs(self, data)
        return Margins(
            users, items, self._one_each(data.item_index(self.over), len(users), "items")
        )

    def _one_each(self, over: Codes, n: int, things: str) -> Codes:
        if len(over) not in (1, n):
            raise DataError(
                f"over has {len(over):,} {things} for {n:,} queries: give one for each, or one "
                "for all"
            )
        return np.resize(over, n)


class HeldOutLoss(QueryObjective):
    """The loss on a pair or triple, negated: ``phi = -loss``.

    Of a pair: ``loss = (f - y)^2 / 2`` (squared), or ``-log sigmoid(f)`` for y = 1 and ``-log
    sigmoid(-f)`` for y = 0 (logistic). Of a triple: minus its log-probability among all
    entities (softmax), or ``-log sigmoid(f)`` (logistic: of the triple itself, without
    negatives). Negated, so that positive influence means that training on the example lowered
    the loss.

    Parameters
    ----------
    queries : as for `Score`
    values : number or (n,) array-like, optional
        y of every pair. By default those of `queries` where they are Interactions with values,
        otherwise 1 for the logistic loss; the squared loss needs values. Triples have none.
    loss : {"squared", "logistic", "softmax"}, optional
        That of the model by default. A model trained with BPR, which compares pairs, has no
        loss of one pair: ask for "logistic".
    predict : as for `Score`
    """

    def __init__(
        self, queries: Any, values: Any = None, loss: str | None = None, predict: Any = "tail"
    ) -> None:
        super().__init__(queries, predict)
        self.values, self.loss = kept(values), loss
        if loss is not None and loss not in _LOSSES:
            raise ParameterError(
                f"loss={loss!r} is not known: use 'squared' or 'logistic', of triples 'softmax' or "
                "'logistic'"
            )

    def bind(self, data: Data, recipe: Recipes) -> Losses | LogProbabilities | LogSigmoids:
        """Losses of the pairs or triples of codes."""
        loss = self.loss or recipe.loss
        if isinstance(data, Triples):
            return self._of_triples(data, recipe, loss)
        if loss not in _LOSSES_OF_PAIRS:
            raise ParameterError(
                f"a model trained with loss={loss!r} has no loss of a single pair: ask for "
                "HeldOutLoss(..., loss='logistic'), or explain a Margin"
                if self.loss is None
                else f"loss={loss!r} is of triples: pairs have a 'squared' or 'logistic' one"
            )
        users, items = _pairs(self, data)
        return Losses(users, items, self._targets(len(users), loss), loss)

    def _of_triples(
        self, data: Triples, recipe: Recipes, loss: str
    ) -> LogProbabilities | LogSigmoids:
        if loss == "squared":
            raise ParameterError(
                "loss='squared' is of pairs with a value: triples have a 'softmax' or 'logistic' "
                "one"
            )
        if self.values is not None:
            raise ParameterError("triples have no values: HeldOutLoss(queries) takes them as true")
        asked = self._asked(data, recipe)
        return LogProbabilities(*asked) if loss == "softmax" else LogSigmoids(*asked)

    def _targets(self, n: int, loss: str) -> npt.NDArray[np.float64]:
        values, queries = self.values, self.queries
        if values is None and isinstance(queries, Interactions) and queries.has_values:
            values = queries.values
        if values is None:
            if loss == "squared":
                raise DataError("the squared loss on a pair needs its value: give values=")
            values = 1
        try:
            targets = np.asarray(values, np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"values must be numbers: {error}") from error
        if targets.shape not in ((), (n,)):
            raise DataError(
                f"values has shape {targets.shape} for {n:,} queries: give one number for each, "
                "or one for all"
            )
        targets = np.broadcast_to(targets, n)
        logistic = loss == "logistic"
        bad = (targets != 0) & (targets != 1) if logistic else ~np.isfinite(targets)
        if bad.any():
            raise DataError(
                f"values[{bad.argmax()}] is {targets[bad][0]:g}: the {loss} loss needs "
                + ("values of 0 or 1" if logistic else "finite values")
            )
        return targets


class Mean(Objective):
    """The mean of all quantities of another objective, ``phi = sum_q phi_q / n``: one query.

    Parameters
    ----------
    objective : Objective, or queries as for `Score`
        For example ``HeldOutLoss(test)``: what made the loss on a whole test set.
    """

    def __init__(self, objective: Any) -> None:
        self.objective = as_objective(objective)

    def bind(self, data: Data, recipe: Recipes) -> Average | TripleAverage:
        """Mean of the bound objective."""
        inner = self.objective.bind(data, recipe)
        return TripleAverage(inner) if isinstance(inner, TripleQuantity) else Average(inner)

    def answered(self, model: Any) -> Mean:
        """Fill in what the queries of the objective leave open."""
        return Mean(self.objective.answered(model))


class Function(Objective):
    """Any differentiable function of the parameters, with its gradient: one query.

    The quantity explained need not be one that training knows. What is returned is checked
    (DataError); the gradient itself is trusted.

    Parameters
    ----------
    function : callable
        ``function(parameters) -> (value, gradient)``: `parameters` a `Parameters` of read-only
        arrays, `value` a finite number, `gradient` a mapping from some of "user_factors",
        "item_factors", "user_biases" and "item_biases" to arrays of the same shape as those
        parameters; a name left out has gradient 0. Of a model of triples: a `TripleParameters`,
        whose names are "entity_factors" and "relation_factors".

    Examples
    --------
    >>> import numpy as np
    >>> import fastinfluence as fi
    >>> def size_of_items(parameters):
    ...     factors = parameters.item_factors
    ...     return (factors**2).sum() / 2, {"item_factors": factors}
    >>> objective = fi.objectives.Function(size_of_items)
    """

    def __init__(self, function: Callable[[Any], tuple[Any, Any]]) -> None:
        if not callable(function):
            raise ParameterError(f"Function needs a callable, not {type(function).__name__}")
        self.function = function

    def bind(self, data: Data, recipe: Recipes) -> FunctionValue | TripleFunctionValue:
        """Value of the function; it holds no ids to look up."""
        if isinstance(data, Triples):
            return TripleFunctionValue(self.function, data.n_entities)
        return FunctionValue(self.function)


def as_objective(queries: Any) -> Objective:
    """Return an objective as it is; anything else are queries whose `Score` is meant."""
    return queries if isinstance(queries, Objective) else Score(queries)


def _pairs(objective: QueryObjective, data: Interactions) -> tuple[Codes, Codes]:
    if not isinstance(objective.predict, str) or objective.predict != "tail":
        raise ParameterError(
            f"predict={objective.predict!r:.60} is a side of triples, and the model was trained on "
            "pairs of a user and an item"
        )
    users, items = query_codes(objective.queries, data)
    if len(users) == 0:
        raise DataError("no queries to explain: give at least one (user, item) pair")
    return users, items
