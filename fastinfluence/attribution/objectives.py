"""What is explained: a score, a margin, a held-out loss, a mean, any differentiable function.

An objective is made of raw ids and knows no model; `Objective.bind` turns it into a `Quantity`
of one model's parameters. Influence on it is ``phi(trained with j) - phi(trained without j)``:
positive where training on example j raised it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

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
from fastinfluence.data import Interactions
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.training.recipe import Recipe

__all__ = [
    "Function",
    "HeldOutLoss",
    "Margin",
    "Mean",
    "Objective",
    "PairWeights",
    "Parameters",
    "Quantity",
    "RowGradients",
    "Score",
    "as_objective",
]

Codes = npt.NDArray[np.int32]

_LOSSES = ("squared", "logistic")  # those that one pair has by itself


class Objective(ABC):
    """A scalar phi of the parameters for each of n queries, not yet bound to a model."""

    @abstractmethod
    def bind(self, data: Interactions, recipe: Recipe) -> Quantity:
        """Look the ids up in a model's training data.

        Parameters
        ----------
        data : Interactions
            Training data of the model. A user or item that has an id there but no example may
            be asked about.
        recipe : Recipe
            The model's hyper-parameters.

        Raises
        ------
        UnknownIdError
            An id is not in the training data.
        DataError
            No queries, or not what the objective is made of.
        ParameterError
            The objective does not fit the model.
        """


class Score(Objective):
    """The score of a pair, ``phi = f(u, i) = mean + b_u + b_i + p_u . q_i``.

    Plain queries mean this objective. Positive influence: training on the example raised the
    score.

    Parameters
    ----------
    queries : sequence of (user, item) pairs, (n, 2) array, table or Interactions
        Raw ids.
    """

    def __init__(self, queries: Any) -> None:
        self.queries = _kept(queries)

    def bind(self, data: Interactions, recipe: Recipe) -> Scores:
        """Scores of the pairs of codes."""
        return Scores(*_codes(self.queries, data))


class Margin(Objective):
    """How far an item is ahead of another, ``phi = f(u, i) - f(u, over)``.

    Positive influence: training on the example set `i` further ahead.

    Parameters
    ----------
    queries : as for `Score`
    over : raw item id, or (n,) of them
        The item each query's own is compared with.
    """

    def __init__(self, queries: Any, over: Any) -> None:
        self.queries, self.over = _kept(queries), _kept(over)

    def bind(self, data: Interactions, recipe: Recipe) -> Margins:
        """Margins between the pairs of codes."""
        users, items = _codes(self.queries, data)
        over = data.item_index(self.over)
        if len(over) not in (1, len(users)):
            raise DataError(
                f"over has {len(over):,} items for {len(users):,} queries: give one for each, or "
                "one for all"
            )
        return Margins(users, items, np.resize(over, len(users)))


class HeldOutLoss(Objective):
    """The loss on a pair, negated: ``phi = -loss(f(u, i), y)``.

    ``loss = (f - y)^2 / 2`` (squared), or ``-log sigmoid(f)`` for y = 1 and ``-log sigmoid(-f)``
    for y = 0 (logistic). Negated, so that positive influence means that training on the example
    lowered the loss.

    Parameters
    ----------
    queries : as for `Score`
    values : number or (n,) array-like, optional
        y of every pair. By default those of `queries` where they are Interactions with values,
        otherwise 1 for the logistic loss; the squared loss needs values.
    loss : {"squared", "logistic"}, optional
        That of the model by default. A model trained with BPR, which compares pairs, has no
        loss of one pair: ask for "logistic".
    """

    def __init__(self, queries: Any, values: Any = None, loss: str | None = None) -> None:
        self.queries, self.values, self.loss = _kept(queries), _kept(values), loss
        if loss is not None and loss not in _LOSSES:
            raise ParameterError(f"loss={loss!r} is not known: use 'squared' or 'logistic'")

    def bind(self, data: Interactions, recipe: Recipe) -> Losses:
        """Losses of the pairs of codes."""
        loss = self.loss or recipe.loss
        if loss not in _LOSSES:
            raise ParameterError(
                f"a model trained with loss={loss!r} has no loss of a single pair: ask for "
                "HeldOutLoss(..., loss='logistic'), or explain a Margin"
            )
        users, items = _codes(self.queries, data)
        return Losses(users, items, self._targets(len(users), loss), loss)

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

    def bind(self, data: Interactions, recipe: Recipe) -> Average:
        """Mean of the bound objective."""
        return Average(self.objective.bind(data, recipe))


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
        parameters; a name left out has gradient 0.

    Examples
    --------
    >>> import numpy as np
    >>> import fastinfluence as fi
    >>> def size_of_items(parameters):
    ...     factors = parameters.item_factors
    ...     return (factors**2).sum() / 2, {"item_factors": factors}
    >>> objective = fi.objectives.Function(size_of_items)
    """

    def __init__(self, function: Callable[[Parameters], tuple[Any, Any]]) -> None:
        if not callable(function):
            raise ParameterError(f"Function needs a callable, not {type(function).__name__}")
        self.function = function

    def bind(self, data: Interactions, recipe: Recipe) -> FunctionValue:
        """Value of the function; it holds no ids to look up."""
        return FunctionValue(self.function)


def as_objective(queries: Any) -> Objective:
    """Return an objective as it is; anything else are queries whose `Score` is meant."""
    return queries if isinstance(queries, Objective) else Score(queries)


def _kept(given: Any) -> Any:
    """Lists instead of iterators: an objective is bound once for every model."""
    return list(given) if isinstance(given, Iterator) else given


def _codes(queries: Any, data: Interactions) -> tuple[Codes, Codes]:
    users, items = query_codes(queries, data)
    if len(users) == 0:
        raise DataError("no queries to explain: give at least one (user, item) pair")
    return users, items
