"""How well estimated influence agrees with the truth: free functions on (scores, truth).

Scores A and truth D are 1-D and finite, one entry an example; `per_query` applies a metric to
every row of a matrix. A metric that is not defined (a constant has no rank correlation) is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import DataError, ParameterError
from fastinfluence.training.trajectory import training_indices

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = [
    "auc",
    "bootstrap_interval",
    "linear_datamodeling_score",
    "noise_ceiling",
    "pearson",
    "per_query",
    "probability_drop",
    "relative_error",
    "scale",
    "spearman",
    "top1_change",
    "top1_ratio",
]

Floats: TypeAlias = npt.NDArray[np.float64]
Metric: TypeAlias = Callable[[Floats, Floats], float]

FEWEST = 15
"""Adjacent examples a query needs for a figure of its own: a correlation of fewer is noise."""

_MOST_SPLITS = 100  # into halves: more change the mean of their correlations by nothing


def pearson(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Pearson's correlation of (n,) and (n,), NaN where either is constant.

    ``sum((A - mean A) (D - mean D)) / sqrt(sum((A - mean A)^2) sum((D - mean D)^2))``

    Raises
    ------
    DataError
        Not two 1-D arrays of one length, or NaN or infinity among them; so in all metrics.
    """
    a, d = (_centred(array) for array in _checked(scores, truth))
    norm = np.sqrt((a @ a) * (d @ d))
    return float(np.clip(a @ d / norm, -1, 1)) if norm > 0 else np.nan


def spearman(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Spearman's correlation of (n,) and (n,): Pearson's of the ranks, ties ranked by their mean.

    NaN where either is constant.
    """
    from scipy.stats import rankdata

    return pearson(*map(rankdata, _checked(scores, truth)))


def scale(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Return the factor by which the scores fit the truth best: ``sum(A D) / sum(A^2)``.

    1 is right, .05 an estimate twenty times too large; NaN where all scores are 0.
    """
    a, d = _checked(scores, truth)
    unit = np.abs(a).max(initial=0)
    if unit == 0:
        return np.nan
    a = a / unit  # squares of small numbers do not underflow
    return float(a @ d / (a @ a) / unit)


def relative_error(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Mean absolute error relative to the truth: ``mean |A - D| / mean |D|``.

    1 is what scores of 0 have; NaN where the truth is 0 throughout.
    """
    a, d = _checked(scores, truth)
    size = np.abs(d).sum()
    return float(np.abs(a - d).sum() / size) if size > 0 else np.nan


def top1_ratio(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Effect of the example ranked first relative to the largest there is: ``D[argmax A] / max D``.

    Ties go to the first example; NaN where no example raised the quantity (max D <= 0).
    """
    a, d = _checked(scores, truth)
    best = d.max(initial=0)
    return float(d[a.argmax()] / best) if best > 0 else np.nan


def probability_drop(before: npt.ArrayLike, after: npt.ArrayLike) -> float:
    """PD: percentage of predictions that fall when their explanation is left out.

    ``100 * mean(after < before)``, unrounded and strict. A probability is an increasing function
    of its score (the sigmoid, in a model of clicks), so scores and probabilities give the same.

    Parameters
    ----------
    before, after : (n,)
        The explained quantity of each query in the model, and after retraining.

    Returns
    -------
    float
        0 to 100; NaN without queries.

    References
    ----------
    Lawrence, Sztyler & Niepert, Explaining neural matrix factorization with gradient rollback,
    AAAI 2021.
    """
    b, a = _checked(before, after)
    return float(100 * np.mean(a < b)) if len(b) else np.nan


def top1_change(before: npt.ArrayLike, after: npt.ArrayLike) -> float:
    """TC: percentage of predictions whose user has another best item than before.

    Parameters
    ----------
    before, after : (n,)
        The best item of each query's user in the model, and after retraining: codes or ids.

    Returns
    -------
    float
        0 to 100; NaN without queries.
    """
    b, a = np.asarray(before), np.asarray(after)
    if b.ndim != 1 or b.shape != a.shape:
        raise DataError(f"two 1-D arrays of one length are compared, not {b.shape} and {a.shape}")
    return float(100 * np.mean(a != b)) if len(b) else np.nan


def auc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Area under the ROC curve: ``P(s+ > s-) + P(s+ = s-) / 2``.

    Parameters
    ----------
    scores : (n,)
    positive : (n,) bool
        Which examples ought to score high, corrupted ones by self-influence say.

    Returns
    -------
    float
        1 where every positive is ahead of every other, .5 by chance; NaN where one kind is
        missing.
    """
    from scipy.stats import rankdata

    wanted = np.asarray(positive)
    if wanted.dtype != bool:
        raise DataError(f"positive must be an array of bool, not {wanted.dtype}")
    s, _ = _checked(scores, wanted)
    n_positive = np.count_nonzero(wanted)
    n_pairs = n_positive * (len(s) - n_positive)
    if n_pairs == 0:
        return np.nan
    # The rank of a positive counts the scores below it: those of positives are taken off.
    wins = rankdata(s)[wanted].sum() - n_positive * (n_positive + 1) / 2
    return float(wins / n_pairs)


def per_query(
    metric: Metric,
    scores: npt.ArrayLike,
    truth: npt.ArrayLike,
    where: npt.NDArray[np.bool_] | None = None,
    *,
    at_least: int = 1,
) -> Floats:
    """Apply a metric to every query.

    Parameters
    ----------
    metric : callable
        Of (scores, truth), as in this module.
    scores, truth : (n_queries, m)
    where : (n_queries, m) bool, optional
        The entries that count, all by default.
    at_least : int, default 1
        A query with fewer entries gets NaN.

    Returns
    -------
    (n_queries,) float64
    """
    a, d = np.asarray(scores, np.float64), np.asarray(truth, np.float64)
    if a.ndim != 2 or a.shape != d.shape or (where is not None and where.shape != a.shape):
        shapes = [np.shape(array) for array in (scores, truth, where) if array is not None]
        raise DataError(f"scores, truth and where need one shape (n_queries, m), not {shapes}")
    rows: Any = np.broadcast_to(True, a.shape) if where is None else where
    return np.array(
        [
            metric(a[q][some], d[q][some]) if np.count_nonzero(some) >= at_least else np.nan
            for q, some in enumerate(rows)
        ]
    )


def linear_datamodeling_score(
    influence: csr_array | npt.NDArray[np.floating[Any]],
    removals: Sequence[npt.ArrayLike],
    changes: npt.ArrayLike,
) -> Floats:
    """Rank correlation, over subsets, of summed influence and the true effect of removing them.

    ``spearman_m( sum_{j removed in m} A[q, j], phi_q - phi_q(without m) )`` for every query.

    Parameters
    ----------
    influence : (n_queries, n_train) array or csr_array
    removals : sequence of M sequences of int
        Training indices of each subset.
    changes : (n_queries, M)
        As `fastinfluence.evaluation.subset_removal` gives them, with the removals.

    Returns
    -------
    (n_queries,) float64

    References
    ----------
    Park et al., TRAK: attributing model behavior at scale, ICML 2023.
    """
    truth = np.asarray(changes, np.float64)
    n_queries, n_train = influence.shape
    if truth.shape != (n_queries, len(removals)):
        raise DataError(
            f"changes has shape {truth.shape}; influence on {n_queries} queries and "
            f"{len(removals)} removals need {(n_queries, len(removals))}"
        )
    sums = np.empty_like(truth)
    for m, removed in enumerate(removals):
        gone = np.zeros(n_train, influence.dtype)
        gone[training_indices(removed, n_train, f"removals[{m}]")] = 1
        sums[:, m] = influence @ gone
    return per_query(spearman, sums, truth)


def noise_ceiling(
    truths: npt.ArrayLike,
    where: npt.NDArray[np.bool_] | None = None,
    *,
    at_least: int = 1,
    rng: int | np.random.Generator = 0,
) -> Floats:
    """Highest correlation any estimate can reach with the mean of a truth that depends on the seed.

    With r the correlation of the means of two halves of the seeds (averaged over splits into
    halves), the mean over all has reliability ``R = 2 r / (1 + r)`` and ``sqrt(R)`` is attainable.

    Parameters
    ----------
    truths : (n_seeds, n_queries, m)
        At least two seeds. Of an odd number S each split leaves one out; R is then that of a
        mean over ``n = S / (S // 2)`` halves (Spearman and Brown), ``n r / (1 + (n - 1) r)``.
    where, at_least
        As for `per_query`.
    rng : int or Generator, default 0
        Draws the splits.

    Returns
    -------
    (n_queries,) float64
        0 where the halves do not correlate.
    """
    stack = np.asarray(truths, np.float64)
    if stack.ndim != 3 or len(stack) < 2:
        raise DataError(
            f"truths has shape {stack.shape}: (n_seeds, n_queries, m) with two seeds or more is "
            "needed"
        )
    generator = np.random.default_rng(rng)
    n_seeds, half = len(stack), len(stack) // 2
    n_splits = 1 if n_seeds == 2 else _MOST_SPLITS
    total = np.zeros(stack.shape[1])
    for _ in range(n_splits):
        order = generator.permutation(n_seeds)
        first, second = stack[order[:half]].mean(0), stack[order[half : 2 * half]].mean(0)
        total += per_query(pearson, first, second, where, at_least=at_least)
    r = np.maximum(total / n_splits, 0)
    length = n_seeds / half
    ceiling: Floats = np.sqrt(length * r / (1 + (length - 1) * r))
    return ceiling


def bootstrap_interval(
    values: npt.ArrayLike,
    n_resamples: int = 2000,
    level: float = 0.95,
    rng: int | np.random.Generator = 0,
    *,
    statistic: Callable[..., Any] = np.mean,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over queries.

    Parameters
    ----------
    values : (n_queries,)
        One figure a query; NaN (not defined for it) is left out.
    n_resamples : int, default 2000
    level : float, default .95
    rng : int or Generator, default 0
    statistic : callable, default `numpy.mean`
        Takes an array and ``axis=``.

    Returns
    -------
    low, high : float
        Both NaN where no value is left.
    """
    if not 0 < level < 1:
        raise ParameterError(f"level must lie between 0 and 1, not {level!r}")
    if n_resamples < 1:
        raise ParameterError(f"n_resamples must be at least 1, not {n_resamples!r}")
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if len(known) == 0:
        return np.nan, np.nan
    draws = np.random.default_rng(rng).integers(len(known), size=(n_resamples, len(known)))
    found = statistic(known[draws], axis=1)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(scores: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[Floats, Floats]:
    a, d = np.asarray(scores, np.float64), np.asarray(truth, np.float64)
    if a.ndim != 1 or a.shape != d.shape:
        raise DataError(f"two 1-D arrays of one length are compared, not {a.shape} and {d.shape}")
    if not (np.isfinite(a).all() and np.isfinite(d).all()):
        raise DataError("NaN and infinity cannot be compared: leave those examples out")
    return a, d


def _centred(values: Floats) -> Floats:
    """Values less their mean, on a scale of 1; exactly 0 where all are equal."""
    if len(values) == 0 or (values == values[0]).all():
        return np.zeros_like(values)
    values = values / np.abs(values).max()
    centred: Floats = values - values.mean()
    size = np.abs(centred).max()
    return centred / size if size > 0 else centred
