"""Similarity of gradients: the step an example would make now, along the query's gradient."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.dense import DenseAttribution
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import LANES
from fastinfluence.progress import progress
from fastinfluence.training.endpoint import Endpoint

__all__ = ["MEASURES", "GradientSimilarity"]

MEASURES = ("dot", "cosine")

Array = npt.NDArray[Any]


class GradientSimilarity(DenseAttribution):
    """Similarity of gradients at the end of training (Charpiat et al. 2019).

    What one more step along the gradient of example j would do to the explained quantity phi,
    to first order and divided by the learning rate::

        influence_j = -w_j grad l_j . grad phi

    with ``measure="cosine"`` divided by the lengths of both gradients, so that examples that are
    still fitted badly do not stand out; 0 where one of them is 0. Regularization and negatives
    belong to the example, the latter averaged over those of the last epochs. Axes are
    (n_queries, n_train); positive: training on j would raise phi. Nothing of how training went is
    known, so the values only order the examples (``units = "rank"``), and an example that was
    learned perfectly has no influence left: a baseline.

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
        Fitted.
    measure : {"dot", "cosine"}, default "dot"
    n_threads : int, optional
        All processors by default; it never changes a result.
    device : {"auto", "cpu"}, default "auto"
    memory_budget : int, optional
        Bytes; a quarter of RAM by default.
    show_progress : bool, optional
        None shows a progress bar at a terminal.

    Raises
    ------
    NotFittedError
    ParameterError
        `measure` is neither.
    DataError
        Parameters that are not finite.

    Notes
    -----
    O(n_train * n_factors) a query, 16 of them in one pass over the examples; no retraining, no
    Hessian. It is `TracIn` with the end of training as its only checkpoint.

    References
    ----------
    Charpiat, Girard, Felardos & Tarabalka, Input similarity from the neural network perspective,
    NeurIPS 2019, arXiv 2102.05262.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> fi.GradientSimilarity(model).influence([("bob", "y")]).shape
    (1, 3)
    """

    name = "gradient-similarity"
    units = "rank"

    def __init__(
        self,
        model: Any,
        *,
        measure: str = "dot",
        n_threads: int | None = None,
        device: str = "auto",
        memory_budget: int | None = None,
        show_progress: bool | None = None,
    ) -> None:
        super().__init__(
            model,
            n_threads=n_threads,
            device=device,
            memory_budget=memory_budget,
            show_progress=show_progress,
        )
        if measure not in MEASURES:
            raise ParameterError(f"measure={measure!r} is not known: use 'dot' or 'cosine'")
        self.measure = measure

    @cached_property
    def _endpoint(self) -> Any:
        trajectory = self.model.trajectory_
        return trajectory.program.endpoint(trajectory.end.tables, n_threads=self._n_threads)

    @cached_property
    def _norms(self) -> Array:
        norms: Array = self._endpoint.norms()
        return norms

    def _blocks(
        self, quantity: Any, show_progress: bool | None
    ) -> Iterator[tuple[int, Array, dict[str, Array]]]:
        endpoint = self._endpoint
        # The panel, and of every example its slopes, its credit and its influence.
        numbers = endpoint.n_rows * endpoint.d + 3 * endpoint.n
        self._fitting(LANES * numbers * endpoint.dtype.itemsize)
        show = self._shown(show_progress)
        starts = range(0, len(quantity), LANES)
        for start in progress(starts, description=self.name, show=show, unit="block"):
            lanes = min(LANES, len(quantity) - start)
            panel = endpoint.panel(quantity, start)
            found = np.ascontiguousarray(endpoint.credit(panel)[:, :lanes].T)
            if self.measure == "cosine":
                squares = np.einsum("rdq,rdq->q", panel, panel, dtype=np.float64)
                found = _normalised(found, self._norms, np.sqrt(squares[:lanes, None]))
            yield start, found, {}

    def self_influence(self, train_index: Any = None) -> npt.NDArray[np.floating[Any]]:
        """Influence (m,) of training examples on the score of their own pair.

        Large values mark examples that training has not done with.

        Parameters
        ----------
        train_index : (m,) int array-like, optional
            All examples by default: one pass over the data. Of triples every one is a query of
            its own.

        Raises
        ------
        DataError
            An index outside the data.
        """
        endpoint = self._endpoint
        if not isinstance(endpoint, Endpoint):
            return super().self_influence(train_index)
        wanted = self._chosen(train_index)
        found = endpoint.own_credit()
        if self.measure == "cosine":
            # The gradient of a score: both rows' factors, and a one for each bias.
            lengths = 1 + np.square(endpoint.rows[:, :-1], dtype=np.float64).sum(axis=1)
            users, items = self.data.users, endpoint.n_users + self.data.items
            found = _normalised(found, self._norms, np.sqrt(lengths[users] + lengths[items]))
        own: Array = found[wanted]
        return own


def _normalised(products: Array, norms: Array, others: Array) -> Array:
    """``products / (norms * others)``, 0 where that is 0 / 0."""
    lengths = norms * others
    found: Array = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return found
