"""Deleting explanations: do predictions fall, and recommendations change, without them?"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.base_explanations import BaseExplanations
from fastinfluence.attribution.objectives import Objective, Quantity
from fastinfluence.errors import ParameterError
from fastinfluence.evaluation.display import text_table
from fastinfluence.evaluation.family import BestAnswers, draw
from fastinfluence.evaluation.groups import DistinctSets, first_of
from fastinfluence.evaluation.metrics import probability_drop, top1_change
from fastinfluence.evaluation.neighbours import bind, check_fitted, family_of
from fastinfluence.evaluation.retraining import retrain_values
from fastinfluence.models import Model
from fastinfluence.storage import tables

__all__ = ["CONTROLS", "DeletionEffect", "deletion_effect"]

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

CONTROLS = ("random", "neighbourhood", "nothing")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DeletionEffect:
    """What n predictions became without their explanations. Shows itself as a table.

    Attributes
    ----------
    methods : tuple of c str
        What was left out, a condition each: the first examples of a ranking, or of the controls
        ``random``, ``neighbourhood`` and ``nothing``.
    sizes : tuple of c int
        How many were to be left out.
    n_removed : (c, n) int64
        How many were: fewer where a ranking, or a neighbourhood, ends before.
    before : (n,) float64
        The explained quantity in the model.
    after : (c, n) float64
        The same after retraining.
    best_before : (n,) int64
        Code of the best item of the query's user, of those the user does not have in the data
        of the model; -1 for a user who has them all. Of triples: of the best entity in the
        place asked for, of the query's own and those that no training or validation triple
        holds there.
    best_after : (c, n) int64
        The same after retraining, of the same candidates: what was left out is none.
    n_retrainings : int
        Distinct sets left out; methods agree often.
    """

    methods: tuple[str, ...]
    sizes: tuple[int, ...]
    n_removed: Codes
    before: Floats
    after: Floats
    best_before: Codes
    best_after: Codes
    n_retrainings: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a condition.

        ``method``, ``size``, ``examples`` (mean number left out), ``probability_drop`` (PD) and
        ``top1_change`` (TC) in percent of the queries, ``mean_drop`` of the quantity.
        """
        return [
            {
                "method": method,
                "size": size,
                "examples": float(self.n_removed[number].mean()),
                "probability_drop": probability_drop(self.before, self.after[number]),
                "top1_change": top1_change(self.best_before, self.best_after[number]),
                "mean_drop": float((self.before - self.after[number]).mean()),
            }
            for number, (method, size) in enumerate(zip(self.methods, self.sizes, strict=True))
        ]

    def __repr__(self) -> str:
        heads = ["left out", "examples", "prediction falls", "top-1 changes", "mean drop"]
        lines = [
            [
                row["method"],
                f"{row['examples']:.3g}",
                f"{row['probability_drop']:.0f}%",
                f"{row['top1_change']:.0f}%",
                f"{row['mean_drop']:.3g}",
            ]
            for row in self.rows
        ]
        return f"{len(self.before):,} queries\n{text_table(heads, lines)}"

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return `rows` as columns: numpy arrays by name."""
        rows = self.rows
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def to_pandas(self) -> Any:
        """Return `rows` as a `pandas.DataFrame`."""
        return tables.to_pandas(self.to_dict())


def deletion_effect(
    model: Model,
    queries: Any,
    rankings: Mapping[str, npt.ArrayLike | BaseExplanations[Any]],
    sizes: Sequence[int] = (1, 10),
    *,
    rng: int | np.random.Generator = 0,
    n_threads: int | None = None,
    path: str | os.PathLike[str] | None = None,
    show_progress: bool | None = None,
) -> DeletionEffect:
    """Leave explanations out, train again, and count predictions that fall and change.

    PD and TC of the Gradient Rollback paper, beside controls of the same size: examples drawn
    from all (``random``), examples drawn from those that share the user or the item of the
    query, or the relation or an entity in any place (``neighbourhood``), and ``nothing``, which
    must give 0 % of either.

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
        Fitted.
    queries : as for `explain`, or an Objective about pairs or triples
        Usually the best recommendation of a user, or the best tail, as `sample_queries` draws
        them. Plain triples mean their `Probability`: explain that too.
    rankings : mapping of name to Explanations or (n_queries, K) int array
        Training indices, the most influential first; -1 where a query has fewer.
    sizes : sequence of int, default (1, 10)
        How many to leave out, at most K; K itself for sets of any sizes.
    rng : int or Generator, default 0
        Draws the controls, as many examples as the longest of the rankings has.
    n_threads, path, show_progress
        As for `leave_out`.

    Returns
    -------
    DeletionEffect

    Raises
    ------
    ParameterError
        A size that is larger than a ranking is long; an objective that is not about pairs
        or triples.
    DataError
        A ranking of other queries, or no ranking.

    References
    ----------
    Lawrence, Sztyler & Niepert, Explaining neural matrix factorization with gradient rollback,
    AAAI 2021, arXiv 2010.05516.
    """
    check_fitted(model)
    family = family_of(model.data_)
    if not isinstance(queries, Objective | Quantity):
        queries = family.deleted(queries)
    quantity = bind(model, queries)
    readout = _ValueAndBest(quantity, family.best_answers(model, quantity))
    conditions = _conditions(model, quantity, rankings, sizes, np.random.default_rng(rng))
    sets = DistinctSets()
    own = np.array([[sets.number(removed) for removed in of.removed] for of in conditions])
    values = retrain_values(
        model, readout, sets.all, n_threads=n_threads, path=path, show_progress=show_progress
    )
    now = readout.values(model.trajectory_.end.tables, model.global_mean_)
    n = len(quantity)
    queries_of = np.broadcast_to(np.arange(n), own.shape)
    return DeletionEffect(
        methods=tuple(of.method for of in conditions),
        sizes=tuple(of.size for of in conditions),
        n_removed=np.array([[len(removed) for removed in of.removed] for of in conditions]),
        before=now[:n],
        after=values[:n][queries_of, own],
        best_before=now[n:].astype(np.int64),
        best_after=values[n:][queries_of, own].astype(np.int64),
        n_retrainings=len(sets.all),
    )


class _Condition(NamedTuple):
    """What is left out for every query."""

    method: str
    size: int
    removed: list[Codes]


def _conditions(
    model: Model,
    quantity: Quantity,
    rankings: Mapping[str, npt.ArrayLike | BaseExplanations[Any]],
    sizes: Sequence[int],
    generator: np.random.Generator,
) -> list[_Condition]:
    """Of every size the rankings and the controls; in the end nothing."""
    for name in rankings:
        if name in CONTROLS:
            raise ParameterError(f"{name!r} is the name of a control: call the ranking otherwise")
    first, sizes = first_of(rankings, sizes, len(quantity), len(model.data_))
    near = family_of(model.data_).neighbours(model, quantity)
    seen = np.flatnonzero(model.trajectory_.program.weights > 0)
    conditions = []
    for number, size in enumerate(sizes):
        of_size = [by_size[number] for by_size in first]
        conditions += [
            _Condition(name, size, lists) for name, lists in zip(rankings, of_size, strict=True)
        ]
        counts = [max(map(len, lists)) for lists in zip(*of_size, strict=True)]
        for name, pools in (("random", [seen] * len(counts)), ("neighbourhood", near)):
            drawn = (draw(*some, generator) for some in zip(pools, counts, strict=True))
            conditions.append(_Condition(name, size, [np.sort(lists) for lists in drawn]))
    return [*conditions, _Condition("nothing", 0, [np.zeros(0, np.int64)] * len(quantity))]


class _ValueAndBest:
    """The values of n queries, and behind them the best answer to each, from one retraining."""

    def __init__(self, quantity: Quantity, best_answers: BestAnswers) -> None:
        self._quantity, self._best_answers = quantity, best_answers
        self.codes = quantity.codes

    def __len__(self) -> int:
        return 2 * len(self._quantity)

    def values(self, tables: Any, mean: float) -> Floats:
        """(2 n,) float64: values, then codes of answers."""
        values = self._quantity.values(tables, mean)
        return np.concatenate([values, self._best_answers(tables, mean)])
