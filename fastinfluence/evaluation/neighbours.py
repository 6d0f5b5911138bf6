"""What is asked about a model, and which training examples stand beside each query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.objectives import Quantity, as_objective
from fastinfluence.errors import ParameterError
from fastinfluence.evaluation.metrics import FEWEST
from fastinfluence.models import MatrixFactorization
from fastinfluence.models.base import trajectory_of

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = [
    "adjacent_mask",
    "bind",
    "check_count",
    "check_fitted",
    "draw",
    "neighbours",
    "sample_examples",
    "sample_queries",
]

Codes = npt.NDArray[np.int64]


def bind(model: Any, queries: Any) -> Quantity:
    """Return what is asked, as a function of the model's parameters.

    Parameters
    ----------
    model : MatrixFactorization
        Fitted.
    queries : pairs as for `explain`, Objective, or Quantity of this model

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
    return as_objective(queries).bind(model.data_, model.trajectory_.recipe)


def check_fitted(model: object) -> None:
    """Raise ParameterError or NotFittedError unless `model` has a Trajectory to train again."""
    if not isinstance(model, MatrixFactorization):
        raise ParameterError(f"a MatrixFactorization is needed, not {type(model).__name__}")
    if 0 not in trajectory_of(model, "evaluating it").checkpoints:
        raise ParameterError(
            "the Trajectory of the model does not hold where training started, so that nothing "
            "can be trained again from there: fit the model anew"
        )


def adjacent_mask(
    model: MatrixFactorization, quantity: Quantity, train_index: Codes
) -> npt.NDArray[np.bool_]:
    """Whether (n_queries, m) the example touches a row that the query depends on directly.

    For a score that is every example of its user or item; for a margin also those of the other
    item, for a mean those of any of its users and items.
    """
    of_users, of_items = _own_rows(model, quantity)
    users, items = (codes[train_index] for codes in (model.data_.users, model.data_.items))
    mask: npt.NDArray[np.bool_] = (of_users[:, users] + of_items[:, items]).toarray()
    return mask


def sample_examples(
    model: MatrixFactorization,
    queries: Any,
    adjacent: int = 125,
    others: int = 300,
    rng: int | np.random.Generator = 0,
) -> Codes:
    """Draw examples to leave out: neighbours of every query, and others.

    Parameters
    ----------
    model : MatrixFactorization
        Fitted.
    queries : pairs as for `explain`, or Objective
    adjacent : int, default 125
        Examples that share a row with a query (its user, its item): so many of each query.
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
    chosen = [draw(seen, others, generator)]
    chosen += [draw(own, adjacent, generator) for own in neighbours(model, quantity)]
    return np.unique(np.concatenate(chosen))


def sample_queries(
    model: MatrixFactorization, n: int = 20, rng: int | np.random.Generator = 0
) -> list[tuple[Any, Any]]:
    """Draw predictions worth explaining: the best recommendation of each of n random users.

    Parameters
    ----------
    model : MatrixFactorization
        Fitted.
    n : int, default 20
    rng : int or Generator, default 0
        Draws among the users with 15 examples or more; where fewer than n have so many, the n
        users with the most are taken.

    Returns
    -------
    list of n (user, item)
        Raw ids, users in the order of their codes. No item is one its user has in the data.

    Raises
    ------
    ParameterError
        Fewer than n users have examples, and an item left to recommend.
    """
    check_fitted(model)
    check_count("n", n, 1)
    data = model.data_
    pairs = np.unique(data.users.astype(np.int64) * data.n_items + data.items)
    n_known = np.bincount(pairs // data.n_items, minlength=data.n_users)
    seen = model.trajectory_.program.weights > 0
    n_examples = np.bincount(data.users[seen], minlength=data.n_users)
    able = np.flatnonzero((n_examples > 0) & (n_known < data.n_items))
    if n > len(able):
        raise ParameterError(
            f"{len(able):,} users have examples and an item left to recommend: {n:,} queries "
            "cannot be drawn"
        )
    frequent = able[n_examples[able] >= FEWEST]
    if len(frequent) < n:
        frequent = able[np.argsort(-n_examples[able], kind="stable")[:n]]
    chosen = data.user_ids[np.sort(draw(frequent, n, np.random.default_rng(rng)))]
    items, _ = model.recommend(chosen, k=1)
    return [*zip(chosen.tolist(), items[:, 0].tolist(), strict=True)]


def neighbours(model: MatrixFactorization, quantity: Quantity) -> list[Codes]:
    """Training indices with a weight that share a row with each query, ascending."""
    data, seen = model.data_, model.trajectory_.program.weights > 0
    of_users, of_items = _own_rows(model, quantity)
    found = []
    for q in range(len(quantity)):
        # An example of both its user and its item stands in both lists.
        own = np.union1d(
            _examples_of(of_users, q, *data.by_user), _examples_of(of_items, q, *data.by_item)
        )
        found.append(own[seen[own]])
    return found


def draw(examples: Codes, n: int, generator: np.random.Generator) -> Codes:
    """Draw n of some examples, or all where there are fewer, each at most once."""
    return generator.choice(examples, min(n, len(examples)), replace=False)


def check_count(name: str, value: object, least: int = 0) -> int:
    """Return an integer of at least `least`, or raise ParameterError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ParameterError(f"{name} must be an integer >= {least}, not {value!r}")
    return int(value)


def _own_rows(model: MatrixFactorization, quantity: Quantity) -> tuple[csr_array, csr_array]:
    """Whether each query's gradient has an entry at each user, and at each item: sparse bools."""
    from scipy.sparse import csr_array

    found = quantity.gradients(model.trajectory_.end.tables, model.global_mean_)
    n, data = len(quantity), model.data_
    of_users, of_items = (
        csr_array((np.ones(len(codes), bool), (queries, codes)), shape=(n, size))
        for queries, codes, size in (
            (found.user_queries, found.users, data.n_users),
            (found.item_queries, found.items, data.n_items),
        )
    )
    return of_users, of_items


def _examples_of(rows: csr_array, query: int, pointers: Codes, order: Codes) -> Codes:
    groups = rows.indices[rows.indptr[query] : rows.indptr[query + 1]]
    found = [order[pointers[g] : pointers[g + 1]] for g in groups]
    return np.concatenate(found) if found else np.zeros(0, np.int64)
