"""Leave-one-out retraining: what each training example really did to each query."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.objectives import Quantity, as_objective
from fastinfluence.data import Interactions, Triples
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.evaluation.metrics import FEWEST, noise_ceiling
from fastinfluence.evaluation.neighbours import adjacent_mask, bind, check_count, check_fitted
from fastinfluence.evaluation.retraining import leave_out
from fastinfluence.models import Model
from fastinfluence.storage import tables
from fastinfluence.training.trajectory import training_indices

__all__ = ["SeedTruth", "Truth", "fit_again", "leave_one_out", "multi_seed"]

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Truth:
    """The change of n queries that each of m training examples made, by retraining.

    Attributes
    ----------
    train_index : (m,) int64
        The examples left out, ascending.
    value : (n,) float64
        The quantity explained, phi, as the model has it.
    change : (n, m) float64
        ``phi(trained on all) - phi(trained without the example)``: positive where the example
        raised phi.
    adjacent : (n, m) bool
        Whether the example shares something with the query: a row (a user, an item) that it
        depends on directly; of triples the relation, or an entity in any place.
    quantity : Quantity
        What is explained.
    data : Interactions or Triples
        The training data.
    """

    train_index: Codes
    value: Floats
    change: Floats
    adjacent: npt.NDArray[np.bool_]
    quantity: Quantity
    data: Interactions | Triples

    def __len__(self) -> int:
        return len(self.value)

    def __repr__(self) -> str:
        return (
            f"Truth({len(self):,} queries, {len(self.train_index):,} examples left out one at a "
            f"time, {self.adjacent.sum(axis=1).mean():.0f} of them adjacent to a query)"
        )

    @property
    def users(self) -> npt.NDArray[np.int32] | None:
        """(n,) int32: code of the user of each query, where it is about a pair."""
        return self.quantity.users

    @property
    def items(self) -> npt.NDArray[np.int32] | None:
        """(n,) int32: code of the item of each query, where it is about a pair."""
        return self.quantity.items

    def at(self, train_index: npt.ArrayLike) -> Floats:
        """Changes (n, k) that lists of examples made, as those of `Explanations`.

        Parameters
        ----------
        train_index : (n, k) int
            One list a query; -1 gives NaN.

        Raises
        ------
        DataError
            An example that was not left out.
        """
        asked = np.asarray(train_index)
        if asked.ndim != 2 or len(asked) != len(self) or asked.dtype.kind not in "iu":
            raise DataError(
                f"train_index must be integers of shape ({len(self)}, k), not "
                f"{asked.dtype} of shape {asked.shape}"
            )
        there = asked >= 0
        place = np.minimum(np.searchsorted(self.train_index, asked), len(self.train_index) - 1)
        missing = there & (self.train_index[place] != asked)
        if missing.any():
            raise DataError(f"example {asked[missing][0]} was not left out")
        return np.where(there, np.take_along_axis(self.change, place, axis=1), np.nan)

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return long columns, one row for each query and example, as numpy arrays.

        ``query`` (its position), what it is about as raw ids (``user`` and ``item``; ``head``,
        ``relation``, ``tail`` and ``predicted``, "tail" or "head"; none for a mean or a
        function), ``value``, ``train_index``, the example in the same columns as ``train_user``,
        ``train_item``, ``train_value`` or ``train_head``, ``train_relation``, ``train_tail``,
        ``change``, ``adjacent``.
        """
        query, place = (array.ravel() for array in np.indices(self.change.shape))
        example = self.train_index[place]
        about = self.quantity.columns(self.data)
        return {
            "query": query,
            **{name: column[query] for name, column in about.items()},
            "value": self.value[query],
            "train_index": example,
            **{f"train_{name}": column for name, column in self.data.columns(example).items()},
            "change": self.change.ravel(),
            "adjacent": self.adjacent.ravel(),
        }

    def to_pandas(self) -> Any:
        """Return the columns of `to_dict` as a `pandas.DataFrame`."""
        return tables.to_pandas(self.to_dict())


def leave_one_out(
    model: Model,
    queries: Any,
    train: npt.ArrayLike | None = None,
    *,
    n_threads: int | None = None,
    path: str | os.PathLike[str] | None = None,
    show_progress: bool | None = None,
) -> Truth:
    """Leave training examples out, one at a time, and train again: the truth about influence.

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
        Fitted.
    queries : as for `explain`, or Objective
        What is explained.
    train : int array, optional
        Training indices to leave out: (m,), or lists as in ``Explanations.train_index``, whose
        -1 are skipped. Each is left out once and holds for all queries. All examples by
        default.
    n_threads, path, show_progress
        As for `leave_out`.

    Returns
    -------
    Truth

    Raises
    ------
    DataError, ReplayMismatch, RunDirectoryError
        As for `leave_out`.

    Notes
    -----
    One training an example; memory O(n_queries * m).

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> truth = fi.evaluation.leave_one_out(model, [("bob", "y")])
    >>> truth.change.shape
    (1, 3)
    """
    quantity, data = bind(model, queries), model.data_
    examples = np.arange(len(data)) if train is None else _examples(train, len(data))
    change = leave_out(
        model,
        quantity,
        examples[:, None],
        n_threads=n_threads,
        path=path,
        show_progress=show_progress,
    )
    return Truth(
        train_index=examples,
        value=quantity.values(model.trajectory_.end.tables, model.global_mean_),
        change=change,
        adjacent=adjacent_mask(model, quantity, examples),
        quantity=quantity,
        data=data,
    )


def _examples(train: npt.ArrayLike, n: int) -> Codes:
    """Distinct training indices, ascending; the empty places of lists are skipped."""
    asked = np.asarray(train)
    if asked.ndim == 2:
        asked = asked[asked != -1]
    examples = np.unique(training_indices(asked, n, "train"))
    if len(examples) == 0:
        raise DataError("train holds no example to leave out")
    return examples


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SeedTruth:
    """Leave-one-out changes under several seeds, everything but the seed the same.

    Attributes
    ----------
    seeds : tuple of int
    truths : tuple of Truth
        One a seed, of the same queries and examples.
    """

    seeds: tuple[int, ...]
    truths: tuple[Truth, ...]

    def __repr__(self) -> str:
        return f"SeedTruth(seeds={self.seeds}, mean={self.mean!r})"

    @property
    def change(self) -> Floats:
        """(n_seeds, n, m) float64."""
        return np.stack([truth.change for truth in self.truths])

    @property
    def mean(self) -> Truth:
        """The mean over the seeds of values and changes."""
        first = self.truths[0]
        return Truth(
            train_index=first.train_index,
            value=np.mean([truth.value for truth in self.truths], axis=0),
            change=self.change.mean(axis=0),
            adjacent=first.adjacent,
            quantity=first.quantity,
            data=first.data,
        )

    @property
    def deviation(self) -> Floats:
        """(n, m) float64: standard deviation of the changes from seed to seed."""
        deviation: Floats = self.change.std(axis=0, ddof=1)
        return deviation

    def noise_ceiling(self, *, adjacent: bool = False) -> Floats:
        """(n,) float64: the highest correlation an estimate can have with the mean.

        Over all examples, or over the adjacent ones (NaN where a query has fewer than 15).
        """
        where = self.truths[0].adjacent if adjacent else None
        return noise_ceiling(self.change, where, at_least=FEWEST if adjacent else 2)


def multi_seed(
    model: Model,
    queries: Any,
    seeds: Sequence[int],
    train: npt.ArrayLike | None = None,
    *,
    n_threads: int | None = None,
    path: str | os.PathLike[str] | None = None,
    show_progress: bool | None = None,
) -> SeedTruth:
    """Leave examples out of models that differ from `model` in nothing but their seed.

    Each seed draws a start, an order and negatives of its own, which the model trained on all
    examples and those trained without one of them have in common (paired seeds).

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
        Fitted; its data, weights, hyper-parameters and number of epochs are used.
    queries, train : as for `leave_one_out`
    seeds : sequence of int
        Two or more.
    n_threads, show_progress : as for `leave_one_out`
    path : path-like, optional
        Folder with a folder for each seed, as for `leave_one_out`.
    """
    chosen = tuple(check_count("a seed", seed) for seed in seeds)
    if len(set(chosen)) < max(2, len(chosen)):
        raise ParameterError(f"two or more different seeds are needed, not {list(seeds)}")
    check_fitted(model)
    # An iterator is gone through only once, and all seeds answer for the triples of this model.
    queries = queries if isinstance(queries, Quantity) else as_objective(queries).answered(model)
    bind(model, queries)  # errors come before any work
    truths = []
    for seed in chosen:
        again = fit_again(model, seed=seed, n_threads=n_threads)
        folder = None if path is None else Path(path, f"seed-{seed}")
        truths.append(
            leave_one_out(
                again, queries, train, n_threads=n_threads, path=folder, show_progress=show_progress
            )
        )
    return SeedTruth(seeds=chosen, truths=tuple(truths))


def fit_again(
    model: Model,
    *,
    data: Interactions | Triples | None = None,
    seed: int | None = None,
    n_threads: int | None = None,
) -> Model:
    """Fit a model again, for as many epochs as it was trained for, on other data or another seed.

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
        Fitted; its weights and hyper-parameters are used.
    data : Interactions or Triples, optional
        As many examples, over the same ids.
    seed : int, optional
    n_threads : int, optional
    """
    recipe = model.trajectory_.recipe.to_dict()
    parameters = {name: recipe[name] for name in model.get_params() if name in recipe}
    parameters["n_epochs"] = model.n_epochs_  # fewer where it was stopped early
    rng = recipe["seed"] if seed is None else seed
    kind: Any = type(model)
    fitted: Model = kind(**parameters, rng=rng, n_threads=n_threads).fit(
        model.data_ if data is None else data,
        sample_weight=model.trajectory_.program.weights,
        show_progress=False,
    )
    return fitted
