"""Unlearning, beside training again without the examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.unlearning import examples_to_unlearn
from fastinfluence.errors import ParameterError
from fastinfluence.evaluation.neighbours import check_fitted
from fastinfluence.kernels.structures import Tables
from fastinfluence.models import MatrixFactorization

if TYPE_CHECKING:
    from fastinfluence.attribution.base import RowAttribution

__all__ = ["UnlearningDistance", "unlearning_distance"]

_SCORES_AT_ONCE = 2**22  # 32 MiB, a few times


class UnlearningDistance(NamedTuple):
    """How far unlearning ends from training again, 0 where it is the same.

    The first two are relative: 1 is as far as the model that was never told to unlearn, more
    is worse than doing nothing. NaN where training again changes nothing.
    """

    affected_rows: float
    """|unlearned - retrained| / |model - retrained| over rows of the examples' users and items."""
    all_parameters: float
    """The same over all parameters; the effect on other rows is not unlearned."""
    predictions: float
    """Root mean square of unlearned - retrained scores, of every item for the examples' users."""
    predictions_before: float
    """The same of model - retrained scores: what there was to unlearn."""


def unlearning_distance(
    model: MatrixFactorization,
    examples: npt.ArrayLike,
    method: str | RowAttribution = "curvature-rollback",
) -> UnlearningDistance:
    """Unlearn examples, train again without them, and compare.

    Parameters
    ----------
    model : MatrixFactorization
        Fitted.
    examples : sequence of int
        Training indices.
    method : as for `MatrixFactorization.unlearn`

    Returns
    -------
    UnlearningDistance

    Raises
    ------
    DataError
        No examples, an index outside the data, or nothing left to train on.
    ParameterError
        The method credits no rows, or is that of another model; the model is of triples, which
        are not unlearned.
    ReplayMismatch
        Training on all examples does not give the model's parameters again.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> fi.evaluation.unlearning_distance(model, [2]).all_parameters < 1
    True
    """
    check_fitted(model)
    if not isinstance(model, MatrixFactorization):
        raise ParameterError(
            f"a {type(model).__name__} has no unlearn(): train it again without the triples, "
            "model.trajectory_.retrain(without=examples)"
        )
    trajectory, data = model.trajectory_, model.data_
    chosen = examples_to_unlearn(examples, len(data))
    n_threads = dispatch.thread_count(model.n_threads)
    trajectory.verify(n_threads=n_threads)
    truth = trajectory.retrain(without=chosen, n_threads=n_threads)
    now, then = trajectory.end.tables, model.unlearn(chosen, method=method)._tables()
    users, items = np.unique(data.users[chosen]), np.unique(data.items[chosen])
    affected = (users, items, users, items)
    everything: tuple[Any, ...] = (slice(None),) * 4
    return UnlearningDistance(
        affected_rows=_relative(then, now, truth, affected),
        all_parameters=_relative(then, now, truth, everything),
        predictions=_rms_of_scores(then, truth, users),
        predictions_before=_rms_of_scores(now, truth, users),
    )


def _relative(then: Tables, now: Tables, truth: Tables, rows: tuple[Any, ...]) -> float:
    nothing_done = _distance(now, truth, rows)
    return _distance(then, truth, rows) / nothing_done if nothing_done else np.nan


def _distance(a: Tables, b: Tables, rows: tuple[Any, ...]) -> float:
    differences = (
        (mine[some].astype(np.float64) - its[some]).ravel()
        for mine, its, some in zip(a, b, rows, strict=True)
    )
    return float(np.linalg.norm(np.concatenate(list(differences))))


def _rms_of_scores(a: Tables, b: Tables, users: npt.NDArray[np.int32]) -> float:
    """Root mean square of the differences of the scores of every item for some users."""
    n_items, total = len(a.item_factors), 0.0
    step = max(1, _SCORES_AT_ONCE // n_items)
    for start in range(0, len(users), step):
        some = users[start : start + step]
        total += float(np.square(_scores(a, some) - _scores(b, some)).sum())
    return float(np.sqrt(total / (len(users) * n_items)))


def _scores(tables: Tables, users: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Scores (n, n_items), without the global mean."""
    p, q, b, c = (table.astype(np.float64) for table in tables)
    scores: npt.NDArray[np.float64] = p[users] @ q.T + b[users][:, None] + c
    return scores
