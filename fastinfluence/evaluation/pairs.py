"""What evaluation has to know of pairs of users and items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.objectives import Quantity, Score
from fastinfluence.data import Interactions
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.evaluation.family import Codes, Family, Mask, draw, other_answers
from fastinfluence.evaluation.metrics import FEWEST
from fastinfluence.kernels.structures import Tables
from fastinfluence.models import MatrixFactorization
from fastinfluence.models.matrix_factorization import scores

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["PAIRS"]


class _Pairs(Family):
    """Adjacent is an example of a query's user or item, an answer is an item."""

    deleted = Score

    def adjacent(self, model: MatrixFactorization, quantity: Quantity, train_index: Codes) -> Mask:
        of_users, of_items = _own_rows(model, quantity)
        users, items = (codes[train_index] for codes in (model.data_.users, model.data_.items))
        mask: Mask = (of_users[:, users] + of_items[:, items]).toarray()
        return mask

    def neighbours(self, model: MatrixFactorization, quantity: Quantity) -> list[Codes]:
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

    def sample_queries(
        self, model: MatrixFactorization, n: int, generator: np.random.Generator
    ) -> list[tuple[Any, ...]]:
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
        chosen = data.user_ids[np.sort(draw(frequent, n, generator))]
        items, _ = model.recommend(chosen, k=1)
        return [*zip(chosen.tolist(), items[:, 0].tolist(), strict=True)]

    def best_answers(self, model: MatrixFactorization, quantity: Quantity) -> _BestItems:
        if quantity.users is None:
            raise ParameterError(
                "leaving out explanations needs queries about users and their items, not a mean "
                "or a function"
            )
        users, own = np.unique(quantity.users, return_inverse=True)
        pointers, order = model.data_.by_user
        known = [model.data_.items[order[pointers[user] : pointers[user + 1]]] for user in users]
        return _BestItems(users, own, known)

    def corrupted(
        self, data: Interactions, chosen: Codes, generator: np.random.Generator
    ) -> tuple[Interactions, Codes]:
        arrays = data.arrays()
        levels, at = np.unique(data.values, return_inverse=True)
        if len(levels) > 1:
            values = data.values.copy()
            shift = generator.integers(1, len(levels), len(chosen))
            values[chosen] = levels[(at[chosen] + shift) % len(levels)]
            return Interactions.from_parts(arrays | {"values": values}), chosen
        pointers, order = data.by_user
        places, drawn = other_answers(
            data.users[chosen],
            lambda user: data.items[order[pointers[user] : pointers[user + 1]]],
            np.arange(data.n_items),
            generator,
        )
        if len(places) == 0:
            raise DataError(
                "none of the examples drawn can be corrupted: all values are the same, and their "
                "users have every item"
            )
        items = data.items.copy()
        items[chosen[places]] = drawn
        return Interactions.from_parts(arrays | {"items": items}), chosen[places]


PAIRS = _Pairs()


@dataclass(frozen=True)
class _BestItems:
    """The best item of each query's user, of those the user does not have."""

    users: npt.NDArray[np.int32]  # distinct
    own: npt.NDArray[np.int64]  # (n,): which of them is the query's
    known: list[npt.NDArray[np.int32]]  # items of each of them

    def __call__(self, tables: Tables, mean: float) -> Codes:
        items = np.arange(len(tables.item_biases), dtype=np.int32)
        best = np.empty(len(self.users), np.int64)
        for number, (user, known) in enumerate(zip(self.users, self.known, strict=True)):
            of_all = scores(tables, mean, user, items)
            of_all[known] = -np.inf
            first = of_all.argmax()
            best[number] = first if of_all[first] > -np.inf else -1
        return best[self.own]


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
