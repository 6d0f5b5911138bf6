"""Leaving groups of examples out: random subsets, and what a method ranks first."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.base_explanations import BaseExplanations
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.evaluation.display import text_table
from fastinfluence.evaluation.neighbours import bind, check_count
from fastinfluence.evaluation.retraining import leave_out
from fastinfluence.models import Model
from fastinfluence.storage import tables
from fastinfluence.training.trajectory import training_indices

__all__ = ["DeletionCurve", "SubsetRemoval", "deletion_curve", "subset_removal"]

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SubsetRemoval:
    """What random subsets of the training examples did to n queries, by retraining.

    Attributes
    ----------
    fraction : float
        Share of the examples in each subset.
    removals : tuple of M (size,) int32
        Training indices of each subset, ascending.
    change : (n, M) float64
        ``phi(trained on all) - phi(trained without the subset)``.
    """

    fraction: float
    removals: tuple[npt.NDArray[np.int32], ...]
    change: Floats

    def __repr__(self) -> str:
        size = len(self.removals[0])
        return (
            f"SubsetRemoval({len(self.removals):,} subsets of {size:,} examples "
            f"({self.fraction:.3g} of all), {len(self.change):,} queries)"
        )


def subset_removal(
    model: Model,
    queries: Any,
    fraction: float,
    n_subsets: int = 100,
    *,
    rng: int | np.random.Generator = 0,
    n_threads: int | None = None,
    path: str | os.PathLike[str] | None = None,
    show_progress: bool | None = None,
) -> SubsetRemoval:
    """Leave random subsets out, a share of all examples each, and train again.

    With the sums of estimated influence over the same subsets this gives the
    `linear_datamodeling_score`; look at several fractions (.001, .01, .05, .2, .5): methods that
    overstate single examples fail at the small ones.

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
        Fitted.
    queries : as for `explain`, or Objective
    fraction : float
        Between 0 and 1, of the examples with a weight; at least one of them is left out.
    n_subsets : int, default 100
    rng : int or Generator, default 0
    n_threads, path, show_progress
        As for `leave_out`.
    """
    quantity = bind(model, queries)
    check_count("n_subsets", n_subsets, 1)
    if not 0 < fraction < 1:
        raise ParameterError(f"fraction must lie between 0 and 1, not {fraction!r}")
    seen = np.flatnonzero(model.trajectory_.program.weights > 0).astype(np.int32)
    size = max(1, round(fraction * len(seen)))
    generator = np.random.default_rng(rng)
    removals = tuple(np.sort(generator.choice(seen, size, replace=False)) for _ in range(n_subsets))
    change = leave_out(
        model, quantity, removals, n_threads=n_threads, path=path, show_progress=show_progress
    )
    return SubsetRemoval(fraction=fraction, removals=removals, change=change)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DeletionCurve:
    """How much n queries really fall when the examples ranked first are left out together.

    Attributes
    ----------
    names : tuple of str
        The rankings.
    sizes : tuple of int
        How many examples were left out.
    drop : (n_names, n_sizes, n) float64
        ``phi(trained on all) - phi(trained without them)``: large where the ranking put the
        examples first that carry the prediction.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    drop: Floats

    def __repr__(self) -> str:
        heads = ["mean drop without the first", *(f"{size:,}" for size in self.sizes)]
        rows = [
            [name, *(f"{drop:.4g}" for drop in drops)]
            for name, drops in zip(self.names, self.drop.mean(axis=2), strict=True)
        ]
        return text_table(heads, rows)

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return long columns ``name``, ``size``, ``query``, ``drop`` as numpy arrays."""
        name, size, query = (array.ravel() for array in np.indices(self.drop.shape))
        return {
            "name": np.array(self.names)[name],
            "size": np.array(self.sizes)[size],
            "query": query,
            "drop": self.drop.ravel(),
        }

    def to_pandas(self) -> Any:
        """Return the columns of `to_dict` as a `pandas.DataFrame`."""
        return tables.to_pandas(self.to_dict())


def deletion_curve(
    model: Model,
    queries: Any,
    rankings: Mapping[str, npt.ArrayLike | BaseExplanations[Any]],
    sizes: Sequence[int] = (1, 10, 50),
    *,
    n_threads: int | None = None,
    path: str | os.PathLike[str] | None = None,
    show_progress: bool | None = None,
) -> DeletionCurve:
    """Leave out, for every query, the examples a method ranks first for it, and train again.

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
        Fitted.
    queries : as for `explain`, or Objective
    rankings : mapping of name to Explanations or (n_queries, K) int array
        Training indices, the most influential first; -1 where a query has fewer.
    sizes : sequence of int, default (1, 10, 50)
        How many to leave out, at most K.
    n_threads, path, show_progress
        As for `leave_out`.

    Raises
    ------
    ParameterError
        A size that is larger than a ranking is long.
    DataError
        A ranking of other queries, or no ranking.
    """
    quantity = bind(model, queries)
    lists, sizes = first_of(rankings, sizes, len(quantity), len(model.data_))
    sets = DistinctSets()
    own = np.array(
        [[[sets.number(first) for first in of_size] for of_size in by_size] for by_size in lists]
    )
    change = leave_out(
        model, quantity, sets.all, n_threads=n_threads, path=path, show_progress=show_progress
    )
    drop = change[np.broadcast_to(np.arange(len(quantity)), own.shape), own]
    return DeletionCurve(names=tuple(rankings), sizes=sizes, drop=drop)


class DistinctSets:
    """Sets of examples to leave out, each once: methods agree often."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self.all: list[Codes] = []

    def number(self, examples: Codes) -> int:
        """Take up a set, ascending; where it stands in `all`."""
        number = self._numbers.setdefault(examples.tobytes(), len(self.all))
        if number == len(self.all):
            self.all.append(examples)
        return number


def first_of(
    rankings: Mapping[str, npt.ArrayLike | BaseExplanations[Any]],
    sizes: Sequence[int],
    n_queries: int,
    n_train: int,
) -> tuple[list[list[list[Codes]]], tuple[int, ...]]:
    """Distinct examples that each ranking has first, by ranking, size and query; the sizes.

    Raises
    ------
    DataError, ParameterError
        As for `deletion_curve`.
    """
    sizes = tuple(check_count("a size", size, 1) for size in sizes)
    if not rankings or not sizes:
        raise DataError("at least one ranking and one size are needed to leave examples out")
    found = []
    for name, given in rankings.items():
        ranking = _ranking(name, given, n_queries, sizes)
        found.append(
            [
                [
                    np.unique(training_indices(first[first != -1], n_train, name))
                    for first in ranking[:, :size]
                ]
                for size in sizes
            ]
        )
    return found, sizes


def _ranking(
    name: str, given: npt.ArrayLike | BaseExplanations[Any], n_queries: int, sizes: Sequence[int]
) -> npt.NDArray[Any]:
    found = np.asarray(given.train_index if isinstance(given, BaseExplanations) else given)
    if found.ndim != 2 or len(found) != n_queries:
        raise DataError(
            f"the ranking {name!r} has shape {found.shape}: one list for each of the "
            f"{n_queries:,} queries is needed"
        )
    if max(sizes) > found.shape[1]:
        raise ParameterError(
            f"the ranking {name!r} holds {found.shape[1]} examples a query, but {max(sizes)} are "
            f"to be left out: explain with k={max(sizes)}, or ask for smaller sizes"
        )
    return found
