"""Dropout-compressed influence functions: most of a gradient left out before the solve."""

from __future__ import annotations

import copy
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.dense import DenseAttribution
from fastinfluence.attribution.influence_function import InfluenceFunction
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import LANES
from fastinfluence.memory import aligned_zeros
from fastinfluence.models.base import Model
from fastinfluence.models.matrix_factorization import MatrixFactorization
from fastinfluence.training.endpoint import Endpoint
from fastinfluence.training.recipe import seed_of

__all__ = ["DropoutInfluence"]

Array = npt.NDArray[Any]


class DropoutInfluence(InfluenceFunction):
    """Influence functions of gradients compressed by dropout (Zhang & Amiri 2025).

    A random mask M keeps some coordinates of every row of factors and biases; the others are
    dropped from all gradients, and with them from the Gauss-Newton matrix H::

        influence_j = -1/keep  M grad phi . (M H M + damping I)^-1 M w_j grad l_j

    All examples and queries share the mask. Axes are (n_queries, n_train); positive: training on
    j raised phi. Division by `keep` makes the mean over masks that of `InfluenceFunction` as far
    as H is diagonal, and to first order in 1 / damping. What coordinates do to one another is
    lost with those dropped, so the values order the examples (``units = "rank"``).

    **A baseline.** Dropout was proposed for networks of millions of parameters whose gradients do
    not fit memory. A gradient here is a few rows of factors, and a solve goes through the same
    data with or without the mask: nothing is saved, and with half of the coordinates dropped the
    order of the examples depends on the seed.

    Parameters
    ----------
    model : MatrixFactorization
        Fitted.
    keep : float, default 0.5
        Probability of every coordinate to be kept; 1 is `InfluenceFunction`.
    rng : int, Generator or None, default 0
        Seed of the mask.
    damping : float, optional
        ``default_damping`` of the trajectory.
    rtol : float, default 1e-3
        A query is solved when ``|residual| <= rtol |M grad phi|``.
    max_iterations : int, default 200
        Queries that take more are returned as they are, and a ConvergenceWarning is given.
    n_threads : int, optional
        All processors by default; it never changes a result.
    device : {"auto", "cpu"}, default "auto"
    memory_budget : int, optional
        Bytes; a quarter of RAM by default.
    show_progress : bool, optional

    Attributes
    ----------
    keep : float
    seed : int
    damping_ : float
    report_ : SolveReport
        Of the queries asked last.

    Raises
    ------
    NotFittedError
    ParameterError
        An option out of range, or a model that is no matrix factorization.
    DataError
        Parameters that are not finite.

    Notes
    -----
    As for `InfluenceFunction`, and two products with the mask an iteration.

    References
    ----------
    Toward efficient influence function: dropout as a compression tool, 2025, arXiv 2509.15651.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> fi.DropoutInfluence(model, keep=0.7).influence([("bob", "y")]).shape
    (1, 3)
    """

    name = "dropout-influence"
    units = "rank"
    served = ("cpu",)

    keep: float
    seed: int

    def __new__(cls, model: object = None, **options: Any) -> Any:
        """Make this method; it has no scopes to choose from."""
        return DenseAttribution.__new__(cls, model, **options)

    def __init__(
        self,
        model: Any,
        *,
        keep: float = 0.5,
        rng: int | np.random.Generator | None = 0,
        damping: float | None = None,
        rtol: float = 1e-3,
        max_iterations: int = 200,
        n_threads: int | None = None,
        device: str = "auto",
        memory_budget: int | None = None,
        show_progress: bool | None = None,
    ) -> None:
        if isinstance(model, Model) and not isinstance(model, MatrixFactorization):
            raise ParameterError(
                "DropoutInfluence drops factors of users and items, and a "
                f"{type(model).__name__} has none: use InfluenceFunction"
            )
        super().__init__(
            model,
            damping=damping,
            rtol=rtol,
            max_iterations=max_iterations,
            n_threads=n_threads,
            device=device,
            memory_budget=memory_budget,
            show_progress=show_progress,
        )
        if isinstance(keep, bool) or not isinstance(keep, Real) or not 0 < keep <= 1:
            raise ParameterError(f"keep must be a number in (0, 1], not {keep!r}")
        self.keep, self.seed = float(keep), seed_of(rng)

    def _options_for(self, queries: Any) -> dict[str, Any]:
        """Another model gets the same mask, also where `rng` would give another now."""
        return super()._options_for(queries) | {"rng": self.seed}

    @cached_property
    def _endpoint(self) -> Any:
        trajectory = self.model.trajectory_
        whole = trajectory.program.endpoint(trajectory.end.tables, n_threads=self._n_threads)
        kept = np.random.default_rng(self.seed).random(whole.rows.shape) < self.keep
        return _MaskedEndpoint(whole, kept, self.keep)


class _MaskedEndpoint:
    """An `Endpoint` of which only some coordinates exist; their credit is divided by a share.

    Dropped coordinates are zeros of panels, products and the gradients of examples.
    """

    def __init__(self, whole: Endpoint, kept: npt.NDArray[np.bool_], share: float) -> None:
        self._whole, self._kept, self._share = whole, kept, share
        self._mask: Array = kept.astype(whole.dtype)[:, :, None]
        self.n_rows, self.d, self.n = whole.n_rows, whole.d, whole.n
        self.dtype, self.rows, self.device = whole.dtype, whole.rows, whole.device

    def twin(self) -> _MaskedEndpoint:
        return self._around(self._whole.twin())

    def reweighted(self, weights: npt.NDArray[np.float64]) -> _MaskedEndpoint:
        return self._around(self._whole.reweighted(weights))

    def _around(self, whole: Endpoint) -> _MaskedEndpoint:
        """The same mask of another endpoint; scratch memory is not shared."""
        other = copy.copy(self)
        vars(other).pop("_scratch", None)
        other._whole = whole
        return other

    def panel(self, quantity: Any, start: int) -> Array:
        panel = self._whole.panel(quantity, start)
        panel *= self._mask
        return panel

    def credit(self, panel: Array) -> Array:
        found = self._whole.credit(self._masked(panel))
        found /= self.dtype.type(self._share)
        return found

    def product(self, panel: Array, out: Array, *, full: bool = False) -> None:
        self._whole.product(self._masked(panel), out, full=full)
        out *= self._mask

    def blocks(self) -> Array:
        """Blocks with a one for every dropped coordinate, which keeps them positive definite."""
        blocks = self._whole.blocks()
        blocks *= self._mask
        blocks *= self._mask.transpose(0, 2, 1)
        rows, dropped = np.nonzero(~self._kept)
        blocks[rows, dropped, dropped] = 1
        return blocks

    def _masked(self, panel: Array) -> Array:
        return np.multiply(panel, self._mask, out=self._scratch)

    @cached_property
    def _scratch(self) -> Array:
        return aligned_zeros((self.n_rows, self.d, LANES), self.dtype)
