"""Forward influence: which examples' losses fall when the model learns the query."""

from __future__ import annotations

import copy
import queue
from collections.abc import Iterator
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.dense import DenseAttribution
from fastinfluence.attribution.quantities import Quantity
from fastinfluence.errors import DivergenceError, ParameterError
from fastinfluence.kernels.structures import Tables
from fastinfluence.models.base import Model
from fastinfluence.models.matrix_factorization import MatrixFactorization
from fastinfluence.progress import progress
from fastinfluence.training.endpoint import Endpoint

__all__ = ["ForwardInfluence"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

_SHARE = 0.1  # of the model's learning rate


class ForwardInfluence(DenseAttribution):
    """Forward influence, by the Mirrored Influence Hypothesis (Ko et al. 2024).

    What an example does to a prediction mirrors what the prediction would do to the example:
    take the model a few small steps along the gradient of the explained quantity phi, from theta
    to theta', and see whose loss has fallen::

        influence_j = w_j (l_j(theta) - l_j(theta')) / (n_steps * learning_rate)

    Axes are (n_queries, n_train); positive: what raises phi helps j, and so training on j raised
    phi. Regularization and negatives belong to the example, the latter averaged over those of
    the last epochs. Each query is learned by itself, so that influence does not depend on what
    else is asked. For a learning rate near 0 it is the dot product of `GradientSimilarity`; steps
    of some size add how the losses bend on the way. The values order the examples (``units =
    "rank"``).

    Parameters
    ----------
    model : MatrixFactorization
        Fitted.
    n_steps : int, default 1
    learning_rate : float, optional
        Of the steps, plain gradient ascent on phi. By default a tenth of the model's own: a step
        is then small beside those that training took.
    n_threads : int, optional
        All processors by default; it never changes a result.
    device : {"auto", "cpu"}, default "auto"
    memory_budget : int, optional
        Bytes; a quarter of RAM by default. What `influence` returns has to fit.
    show_progress : bool, optional
        None shows a progress bar at a terminal.

    Attributes
    ----------
    n_steps : int
    learning_rate : float

    Raises
    ------
    NotFittedError
    ParameterError
        `n_steps` is no integer >= 1, `learning_rate` no finite number > 0, or a model that is no
        matrix factorization.
    DataError
        Parameters that are not finite.
    DivergenceError
        From its methods: the steps left the finite numbers.

    Notes
    -----
    Only the rows that phi depends on move, so only the examples that touch them, negatives
    included, have influence, and only their losses are computed: O(n_factors) for each of them
    and each of their negatives, whatever the number of steps. Rows and losses are
    differences in float64 all the way, exact also for steps that float32 would swallow.

    References
    ----------
    The Mirrored Influence Hypothesis: efficient data influence estimation by harnessing forward
    passes, CVPR 2024, arXiv 2402.08922.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> fi.ForwardInfluence(model).influence([("bob", "y")]).shape
    (1, 3)
    """

    name = "forward-influence"
    units = "rank"

    n_steps: int
    learning_rate: float

    def __init__(
        self,
        model: Any,
        *,
        n_steps: int = 1,
        learning_rate: float | None = None,
        n_threads: int | None = None,
        device: str = "auto",
        memory_budget: int | None = None,
        show_progress: bool | None = None,
    ) -> None:
        if isinstance(model, Model) and not isinstance(model, MatrixFactorization):
            raise ParameterError(
                "ForwardInfluence moves rows of users and items, and a "
                f"{type(model).__name__} has none: use GradientSimilarity, which it is for small "
                "steps"
            )
        super().__init__(
            model,
            n_threads=n_threads,
            device=device,
            memory_budget=memory_budget,
            show_progress=show_progress,
        )
        if isinstance(n_steps, bool) or not isinstance(n_steps, Integral) or n_steps < 1:
            raise ParameterError(f"n_steps must be an integer >= 1, not {n_steps!r}")
        self.n_steps = int(n_steps)
        if learning_rate is None:
            learning_rate = _SHARE * model.trajectory_.recipe.learning_rate
        if (
            isinstance(learning_rate, bool)
            or not isinstance(learning_rate, Real)
            or not 0 < learning_rate < np.inf
        ):
            raise ParameterError(
                f"learning_rate must be a finite number > 0, not {learning_rate!r}"
            )
        self.learning_rate = float(learning_rate)

    @cached_property
    def _endpoint(self) -> Endpoint:
        trajectory = self.model.trajectory_
        endpoint: Endpoint = trajectory.program.endpoint(trajectory.end.tables)
        return endpoint

    def _blocks(
        self, quantity: Any, show_progress: bool | None
    ) -> Iterator[tuple[int, Array, dict[str, Array]]]:
        endpoint, mean = self._endpoint, self.model.global_mean_
        n_threads = max(1, min(self._n_threads, len(quantity)))
        free: queue.SimpleQueue[_Climb] = queue.SimpleQueue()
        for _ in range(n_threads):
            free.put(_Climb(endpoint, mean))

        def drops(number: int) -> Floats:
            climb = free.get()
            try:
                return climb.drops(_alone(quantity, number), self.n_steps, self.learning_rate)
            finally:
                free.put(climb)

        show = self._shown(show_progress)
        found = dispatch.in_order(drops, range(len(quantity)), n_threads)
        bar = progress(found, description=self.name, show=show, unit="query")
        for number, of_query in enumerate(bar):
            if not np.isfinite(of_query).all():
                raise DivergenceError(
                    f"{self.n_steps} steps of learning_rate={self.learning_rate:g} along query "
                    f"{number} left the finite numbers: give a lower learning_rate"
                )
            influence = of_query / (self.n_steps * self.learning_rate)
            yield number, influence[None].astype(endpoint.dtype), {}


class _Climb:
    """Room for steps from an endpoint along the gradients of one query after the other."""

    def __init__(self, endpoint: Endpoint, mean: float) -> None:
        self._endpoint, self._mean = endpoint, mean
        self._here = endpoint.rows.astype(np.float64)
        self._changes = np.zeros_like(self._here)
        users, items = self._here[: endpoint.n_users], self._here[endpoint.n_users :]
        self._tables = Tables(users[:, :-1], items[:, :-1], users[:, -1], items[:, -1])

    def drops(self, quantity: Quantity, n_steps: int, learning_rate: float) -> Floats:
        """How far ``w_j l_j`` (n,) falls on the way up a quantity of one query."""
        moved = np.empty(0, np.int64)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found later
            for _ in range(n_steps):
                moved = np.union1d(moved, self._step(quantity, learning_rate))
                self._stand(moved)
            found = self._endpoint.loss_drops(self._changes, moved)
        self._changes[moved] = 0
        self._stand(moved)
        return found

    def _step(self, quantity: Quantity, learning_rate: float) -> Numbers:
        """Add one step to the changes; the rows that it moves."""
        found = quantity.gradients(self._tables, self._mean)
        users, items = found.users, found.items + self._endpoint.n_users
        np.add.at(self._changes, users, learning_rate * found.user_rows)
        np.add.at(self._changes, items, learning_rate * found.item_rows)
        return np.concatenate([users, items])

    def _stand(self, moved: Numbers) -> None:
        """Bring rows to where the changes are from the endpoint."""
        self._here[moved] = self._endpoint.rows[moved] + self._changes[moved]


def _alone(quantity: Quantity, number: int) -> Quantity:
    """A quantity of one query of several, which have an entry each in all arrays."""
    if len(quantity) == 1:
        return quantity
    alone = copy.copy(quantity)
    alone.n = 1
    for name, column in vars(quantity).items():
        if isinstance(column, np.ndarray):
            setattr(alone, name, column[number : number + 1])
    return alone
