"""Finding noisy examples: does self-influence put corrupted ratings first?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution import GradientRollback
from fastinfluence.data import Interactions, Triples
from fastinfluence.errors import ParameterError
from fastinfluence.evaluation.family import draw
from fastinfluence.evaluation.metrics import auc
from fastinfluence.evaluation.neighbours import check_fitted, family_of
from fastinfluence.evaluation.truth import fit_again
from fastinfluence.models import Model

__all__ = ["corrupt", "noisy_example_auc"]

Data = TypeVar("Data", Interactions, Triples)


def noisy_example_auc(
    model: Model,
    method: Callable[[Any], Any] = GradientRollback,
    fraction: float = 0.1,
    *,
    rng: int | np.random.Generator = 0,
    n_threads: int | None = None,
) -> float:
    """Corrupt some examples, train on them, and see whether self-influence finds them.

    A noisy example is one that the others do not bear out, so the model predicts it only because
    it was trained on it: its influence on itself is large.

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
        Fitted; a model of the same hyper-parameters, seed and weights is fitted to its data
        with a share of them corrupted (`corrupt`).
    method : callable, default `GradientRollback`
        Makes an attribution object of the fitted model: a class, or a `functools.partial` of
        one.
    fraction : float, default .1
        Share of the examples with a weight that is corrupted.
    rng : int or Generator, default 0
        Draws the examples and what becomes of them; the same for two methods compares them.
    n_threads : int, optional
        Of the training.

    Returns
    -------
    float
        `auc` of the absolute self-influence: the probability that a corrupted example is ahead
        of another. .5 is chance.

    Raises
    ------
    ParameterError
        A fraction that is not between 0 and 1.
    DataError
        Nothing that could be corrupted.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> 0 <= fi.evaluation.noisy_example_auc(model, fi.GradientRollback, fraction=0.4) <= 1
    True
    """
    check_fitted(model)
    seen = np.flatnonzero(model.trajectory_.program.weights > 0)
    data, noisy = corrupt(model.data_, fraction, among=seen, rng=rng)
    found = method(fit_again(model, data=data, n_threads=n_threads)).self_influence()
    return auc(np.abs(found[seen]), noisy[seen])


def corrupt(
    data: Data,
    fraction: float,
    *,
    among: npt.ArrayLike | None = None,
    rng: int | np.random.Generator = 0,
) -> tuple[Data, npt.NDArray[np.bool_]]:
    """Replace a share of the examples by noise.

    Where the data have values that differ, a corrupted example gets another of these values,
    all equally likely. Where they are all the same (clicks) it gets another item: one the user
    has nowhere in the data, all equally likely and none twice. A triple gets another tail: an
    entity of the training triples that no split holds there, all equally likely.

    Parameters
    ----------
    data : Interactions or Triples
    fraction : float
        Between 0 and 1; at least one example is corrupted. They are somewhat fewer where users
        with hardly an item left are to get another one (questions with hardly an entity left).
    among : int array, optional
        Training indices the share is drawn from, all by default.
    rng : int or Generator, default 0

    Returns
    -------
    data : Interactions or Triples
        Over the same ids, the examples in the same order.
    noisy : (n,) bool
        Which of them were corrupted.

    Raises
    ------
    ParameterError
        A fraction that is not between 0 and 1.
    DataError
        No example could be corrupted.
    """
    if not 0 < fraction < 1:
        raise ParameterError(f"fraction must lie between 0 and 1, not {fraction!r}")
    generator = np.random.default_rng(rng)
    pool = np.arange(len(data)) if among is None else np.asarray(among)
    chosen = np.sort(draw(pool, max(1, round(fraction * len(pool))), generator))
    corrupted, changed = family_of(data).corrupted(data, chosen, generator)
    noisy = np.zeros(len(data), bool)
    noisy[changed] = True
    return corrupted, noisy
