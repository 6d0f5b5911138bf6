"""What objectives become for one model: scalars of its parameters, by integer codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.functions import call_function
from fastinfluence.kernels.structures import Tables

__all__ = [
    "Average",
    "FunctionValue",
    "Losses",
    "Margins",
    "PairWeights",
    "Parameters",
    "Quantity",
    "RowGradients",
    "Scores",
]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_PAIRS_AT_ONCE = 2**16  # gathered in float64: some 70 MB at 64 factors


class RowGradients(NamedTuple):
    """d phi_q / d row, one entry a query and row; entries of the same query and row add up."""

    user_queries: Numbers  # (m,) int64
    users: Codes  # (m,)
    user_rows: Array  # (m, k + 1), dtype of the tables, the bias last
    item_queries: Numbers  # (l,) int64
    items: Codes  # (l,)
    item_rows: Array  # (l, k + 1)


class PairWeights(NamedTuple):
    """d phi_q / d score(user, item), in the order of the queries; equal entries add up."""

    queries: Numbers  # (m,) int64, ascending
    users: Codes  # (m,)
    items: Codes  # (m,)
    slopes: Floats  # (m,)


class Parameters(NamedTuple):
    """What the function of a `Function` objective is given: read-only, by integer code.

    The score of user u and item i is ``global_mean + user_biases[u] + item_biases[i] +
    user_factors[u] @ item_factors[i]``; ``data.user_index`` and ``data.item_index`` of the
    training data give the codes of raw ids.
    """

    user_factors: Array  # (n_users, k)
    item_factors: Array  # (n_items, k)
    user_biases: Array  # (n_users,)
    item_biases: Array  # (n_items,)
    global_mean: float


class Quantity(ABC):
    """An objective bound to a model: n differentiable scalars phi of the parameters.

    Tables are in the order of the codes, `mean` is the model's global mean.

    Attributes
    ----------
    n : int
        Number of queries.
    users, items : (n,) int32, or None
        The pair each query is about; None where there is no such pair.
    """

    n: int
    users: Codes | None = None
    items: Codes | None = None

    def __len__(self) -> int:
        return self.n

    @abstractmethod
    def values(self, tables: Any, mean: float) -> Floats:
        """phi (n,) float64."""

    @abstractmethod
    def gradients(self, tables: Any, mean: float) -> Any:
        """d phi / d parameters: `RowGradients`, or `RowVectors` of a model of triples."""

    def pairs(self, tables: Any, mean: float) -> PairWeights | None:
        """d phi / d scores; None where phi is not a function of the scores of some pairs."""
        return None

    def of_scores(self, scores: Floats, queries: slice = slice(None)) -> Floats:
        """phi (..., m) of some queries, by default of all, from the scores of their pairs.

        Parameters
        ----------
        scores : (..., l) float64
            Of the pairs that `pairs` names for these queries, in its order.
        queries : slice
        """
        raise NotImplementedError(f"{type(self).__name__} is not a function of scores")

    @property
    def codes(self) -> dict[str, Array]:
        """What each query is about, in columns (n,) of codes; none where nobody knows."""
        if self.users is None or self.items is None:
            return {}
        return {"user": self.users, "item": self.items}

    def columns(self, data: Any) -> dict[str, Array]:
        """What each query is about, in columns (n,) of raw ids; none where nobody knows.

        Parameters
        ----------
        data : Interactions or Triples
            The training data.
        """
        if self.users is None or self.items is None:
            return {}
        return {"user": data.user_ids[self.users], "item": data.item_ids[self.items]}


class _OfScores(Quantity):
    """A quantity that depends on the parameters through scores only, a main pair a query."""

    users: Codes
    items: Codes

    def __init__(self, users: Codes, items: Codes) -> None:
        self.n, self.users, self.items = len(users), users, items

    @abstractmethod
    def pairs(self, tables: Tables, mean: float) -> PairWeights: ...

    def gradients(self, tables: Tables, mean: float) -> RowGradients:
        queries, users, items, slopes = self.pairs(tables, mean)
        user_rows = _scaled_rows(tables.item_factors, items, slopes)
        item_rows = _scaled_rows(tables.user_factors, users, slopes)
        return RowGradients(queries, users, user_rows, queries, items, item_rows)

    def _weights(self, slopes: Floats) -> PairWeights:
        return PairWeights(np.arange(self.n), self.users, self.items, slopes)


class Scores(_OfScores):
    """phi = f(u, i)."""

    def values(self, tables: Tables, mean: float) -> Floats:
        """Scores (n,) float64."""
        return _scores(tables, mean, self.users, self.items)

    def of_scores(self, scores: Floats, queries: slice = slice(None)) -> Floats:
        """The scores themselves."""
        return scores

    def pairs(self, tables: Tables, mean: float) -> PairWeights:
        """Every pair with slope 1."""
        return self._weights(np.ones(self.n))


class Margins(_OfScores):
    """phi = f(u, i) - f(u, over)."""

    def __init__(self, users: Codes, items: Codes, over: Codes) -> None:
        super().__init__(users, items)
        self.over = over

    def values(self, tables: Tables, mean: float) -> Floats:
        """Differences (n,) float64 of two scores."""
        upper = _scores(tables, mean, self.users, self.items)
        return upper - _scores(tables, mean, self.users, self.over)

    def of_scores(self, scores: Floats, queries: slice = slice(None)) -> Floats:
        """Differences of every two neighbours."""
        return scores[..., ::2] - scores[..., 1::2]

    def pairs(self, tables: Tables, mean: float) -> PairWeights:
        """Both pairs of every query, with slopes 1 and -1."""
        return PairWeights(
            np.repeat(np.arange(self.n), 2),
            np.repeat(self.users, 2),
            np.column_stack([self.items, self.over]).ravel(),
            np.tile([1.0, -1.0], self.n),
        )


class Losses(_OfScores):
    """phi = -loss(f(u, i), y): squared, or logistic with y in {0, 1}."""

    def __init__(self, users: Codes, items: Codes, targets: Floats, loss: str) -> None:
        super().__init__(users, items)
        self.targets, self.loss = targets, loss

    def values(self, tables: Tables, mean: float) -> Floats:
        """Losses (n,) float64, negated."""
        return self.of_scores(_scores(tables, mean, self.users, self.items))

    def of_scores(self, scores: Floats, queries: slice = slice(None)) -> Floats:
        """Losses, negated."""
        targets = self.targets[queries]
        if self.loss == "squared":
            return -0.5 * (scores - targets) ** 2
        # log sigmoid(s f), s = 2 y - 1, without overflow
        return -np.logaddexp(0.0, (1.0 - 2.0 * targets) * scores)

    def pairs(self, tables: Tables, mean: float) -> PairWeights:
        """Every pair with slope y - f, or y - sigmoid(f)."""
        scores = _scores(tables, mean, self.users, self.items)
        if self.loss == "squared":
            return self._weights(self.targets - scores)
        sign = 2.0 * self.targets - 1.0  # y - sigmoid(f) = s sigmoid(-s f), without cancellation
        return self._weights(sign * np.exp(-np.logaddexp(0.0, sign * scores)))


class Average(Quantity):
    """phi = mean of all the phi of another quantity."""

    n = 1

    def __init__(self, inner: Quantity) -> None:
        self.inner = inner

    def values(self, tables: Tables, mean: float) -> Floats:
        """The mean (1,) float64."""
        return np.array([self.inner.values(tables, mean).mean()])

    def of_scores(self, scores: Floats, queries: slice = slice(None)) -> Floats:
        """The mean (..., 1)."""
        means: Floats = self.inner.of_scores(scores).mean(axis=-1, keepdims=True)
        return means

    def gradients(self, tables: Tables, mean: float) -> RowGradients:
        """Those of the other quantity, divided by their number."""
        found: RowGradients = self.inner.gradients(tables, mean)
        n = self.inner.n
        return found._replace(
            user_queries=np.zeros_like(found.user_queries),
            user_rows=found.user_rows / n,
            item_queries=np.zeros_like(found.item_queries),
            item_rows=found.item_rows / n,
        )

    def pairs(self, tables: Tables, mean: float) -> PairWeights | None:
        """Those of the other quantity, divided by their number."""
        found = self.inner.pairs(tables, mean)
        if found is None:
            return None
        return found._replace(
            queries=np.zeros_like(found.queries), slopes=found.slopes / self.inner.n
        )


class FunctionValue(Quantity):
    """phi = value of a function that also returns its gradient."""

    n = 1

    def __init__(self, function: Callable[[Parameters], tuple[Any, Any]]) -> None:
        self.function = function

    def values(self, tables: Tables, mean: float) -> Floats:
        """Value (1,) float64."""
        return np.array([self._call(tables, mean)[0]])

    def gradients(self, tables: Tables, mean: float) -> RowGradients:
        """The rows on which the function's gradient is not zero."""
        gradient = self._call(tables, mean)[1]
        users, user_rows = _rows_with_any(gradient.user_factors, gradient.user_biases)
        items, item_rows = _rows_with_any(gradient.item_factors, gradient.item_biases)
        one_query = (np.zeros(len(codes), np.int64) for codes in (users, items))
        return RowGradients(next(one_query), users, user_rows, next(one_query), items, item_rows)

    def _call(self, tables: Tables, mean: float) -> tuple[float, Tables]:
        return call_function(self.function, Parameters(*tables, float(mean)), tables)


def _scores(tables: Tables, mean: float, users: Codes, items: Codes) -> Floats:
    """Scores (n,) of pairs of codes, added up in float64 whatever the tables hold."""
    found = np.empty(len(users))
    for start in range(0, len(users), _PAIRS_AT_ONCE):
        some = slice(start, start + _PAIRS_AT_ONCE)
        p = tables.user_factors[users[some]].astype(np.float64)
        q = tables.item_factors[items[some]].astype(np.float64)
        np.einsum("nk,nk->n", p, q, out=found[some])
    found += tables.user_biases[users]
    found += tables.item_biases[items]
    found += mean
    return found


def _scaled_rows(factors: Array, codes: Codes, slopes: Floats) -> Array:
    """Rows (m, k + 1) ``slope * (factors[code], 1)``."""
    rows = np.empty((len(codes), factors.shape[1] + 1), factors.dtype)
    rows[:, :-1] = factors[codes]
    rows[:, -1] = 1
    rows *= slopes.astype(factors.dtype)[:, None]
    return rows


def _rows_with_any(factors: Array, biases: Array) -> tuple[Codes, Array]:
    """Codes (m,) and rows (m, k + 1) that are not all zero."""
    codes = np.flatnonzero(factors.any(axis=1) | (biases != 0))
    return codes.astype(np.int32), np.column_stack([factors[codes], biases[codes]])
