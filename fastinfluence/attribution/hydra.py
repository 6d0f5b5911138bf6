"""HYDRA: what every example's own steps left in the parameters, at the end of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.dense import DenseAttribution
from fastinfluence.attribution.responses import Responses
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import LANES
from fastinfluence.memory import aligned_zeros
from fastinfluence.training.backward import Stage
from fastinfluence.training.trajectory import training_indices

if TYPE_CHECKING:
    pass

__all__ = ["Block", "Entries", "Hydra"]

Array = npt.NDArray[Any]
Numbers = npt.NDArray[np.int64]


class Hydra(DenseAttribution):
    """HYDRA (Chen, Li, Yu, Wu & Miao 2021): training followed forwards, without Hessians.

    The influence of example j is what its own steps did to the explained quantity phi, seen from
    the end of training::

        influence_j = sum over steps t of j   kappa_t grad phi(theta_T) . w_j grad l_j(theta_t-1)

    where -kappa_t is the learning rate of the step (for Adagrad that of every coordinate), times
    what momentum and decay made of it until the end. How later steps reacted to the change, which
    takes Hessians, is left out: values order the examples (``units = "rank"``). Axes are
    (n_queries, n_train); positive: training on j raised phi. Regularization and negatives belong
    to the example whose step they are part of.

    ``hessian="forward"`` leaves nothing out: the derivative ``tau_j`` of all parameters by the
    weight of j is carried through every step of training, Hessians included::

        tau_j <- tau_j - lr (w_i H_i tau_j + [i = j] grad l_j),   influence_j = grad phi . w_j tau_j

    These are the numbers of `Replay`, in the units of phi (``units = "effect"``). Replay walks
    through training for 16 queries at a time; this walks for 16 examples at a time, once, and any
    later queries are answered at once: for few examples and many queries.

    Parameters
    ----------
    model : MatrixFactorization
        Fitted.
    hessian : {None, "forward"}, default None
    momentum : float, default 0.0
        In [0, 1): influence is followed as if training had had it. With `weight_decay` None the
        velocity of a row shrinks as the row does.
    weight_decay : float, optional
        None is what training did: a step that touches a row takes ``lr * w * regularization`` of
        all that earlier steps left in it. A number is the published rule: every step of the run
        shrinks what is left in all rows alike by ``lr * weight_decay``; 0 shrinks nothing.
    examples : (m,) int array-like, optional
        Training indices to follow with ``hessian="forward"``; all by default. The influence of
        the others is NaN, and explanations leave them out.
    n_threads : int, optional
        All processors by default; it never changes a result.
    device : {"auto", "cpu"}, default "auto"
    memory_budget : int, optional
        Bytes; a quarter of RAM by default. It decides how many queries one walk through
        training serves and never changes a result.
    show_progress : bool, optional
        None shows a progress bar at a terminal.

    Raises
    ------
    NotFittedError
    ParameterError
        An argument outside its range; momentum, a number as weight decay or
        ``hessian="forward"`` for a model that was not trained with SGD; these two or `examples`
        where `hessian` has no use for them; the model's Trajectory does not hold its start.
    DataError
        An index outside the data among `examples`.

    Notes
    -----
    Training once more, with a log, for all queries that fit the memory budget, and O((d_u + d_i) *
    n_factors * n_epochs) a query, d_u and d_i the numbers of steps an epoch that touch its user
    and its item: the two scalars an example that make HYDRA lean are linear in its gradients,
    so going backwards two scalars serve all examples. Memory for 16 queries: ``64 bytes * (rows *
    (n_factors + 1) + 2 * n_train)`` at most in float32.

    ``hessian="forward"``: for every 16 examples some ten times as long as training, and ``64 bytes
    * rows * (n_factors + 1)``.

    References
    ----------
    HYDRA: Hypergradient data relevance analysis for interpreting deep neural networks, AAAI 2021,
    arXiv 2102.02515.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> fi.Hydra(model).influence([("bob", "y")]).shape
    (1, 3)
    """

    name = "hydra"
    units: Literal["effect", "rank"] = "rank"

    def __init__(
        self,
        model: Any,
        *,
        hessian: str | None = None,
        momentum: float = 0.0,
        weight_decay: float | None = None,
        examples: Any = None,
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
        if hessian not in (None, "forward"):
            raise ParameterError(f"hessian={hessian!r} is not known: use None or 'forward'")
        self.hessian = hessian
        self.momentum = _number(momentum, "momentum", 1.0)
        self.weight_decay = weight_decay
        if weight_decay is not None:
            self.weight_decay = _number(weight_decay, "weight_decay", math.inf)
        self._check_whole()
        self._check_options(examples)
        if hessian == "forward":
            self.units = "effect"
            n = len(self.data)
            followed = np.arange(n) if examples is None else examples
            self._followed = np.unique(training_indices(followed, n, "examples"))

    def _check_options(self, examples: Any) -> None:
        """Raise ParameterError where options do not go together, or not with the optimizer."""
        optimizer = self.model.trajectory_.recipe.optimizer
        filtered = self.momentum != 0 or self.weight_decay is not None
        if self.hessian is None and examples is not None:
            raise ParameterError("examples= are followed with hessian='forward' only")
        if self.hessian == "forward" and filtered:
            raise ParameterError(
                "hessian='forward' follows training as it was: leave momentum and weight_decay out"
            )
        if optimizer != "sgd" and self.hessian == "forward":
            raise ParameterError(
                f"hessian='forward' follows SGD, and this model was trained with {optimizer}: use "
                "Replay, which gives the same numbers for any optimizer"
            )
        if optimizer != "sgd" and filtered:
            raise ParameterError(
                f"momentum and a number as weight_decay stand for SGD, and this model was trained "
                f"with {optimizer}: leave them out"
            )

    def _blocks(
        self, quantity: Any, show_progress: bool | None
    ) -> Iterator[tuple[int, Array, dict[str, Array]]]:
        found = self._responded if self.hessian == "forward" else self._walked
        for start, influence in found(quantity, show_progress):
            yield start, influence, {}

    # ---------------------------------------------------------------- without Hessians

    def _walked(self, quantity: Any, show_progress: bool | None) -> Iterator[tuple[int, Array]]:
        n, entries_of = len(quantity), self._entries(quantity)
        at_once = LANES * self._blocks_at_once()
        for first in range(0, n, at_once):
            starts = range(first, min(first + at_once, n), LANES)
            blocks = [self._block(entries_of(start)) for start in starts]
            self._walk(blocks, show_progress)
            for start, block in zip(starts, blocks, strict=True):
                m = min(LANES, n - start)
                yield start, np.ascontiguousarray(block.influence[:, :m].T)

    def _walk(self, blocks: list[Block], show_progress: bool | None) -> None:
        """Take all blocks from the last step to the first."""
        stages = self._stages(self._visits_of(blocks), show_progress)
        step_filter = dispatch.kernels("hydra").step_filter
        decay, carried = self.weight_decay or 0.0, np.array([1.0, 0.0])
        epoch, factors = -1, np.empty(0)
        for stage in stages:
            if stage.epoch != epoch:
                epoch = stage.epoch
                rates, taken = self._steps(epoch)
                factors = np.empty(len(rates))
                step_filter(rates, taken, self.momentum, decay, carried, factors)

            def part(start: int, stop: int, stage: Stage = stage, factors: Array = factors) -> None:
                for block in blocks[start:stop]:
                    self._credit(block, stage, factors)

            numbers = [(number, number + 1) for number in range(len(blocks))]
            dispatch.run_parts(part, numbers, self._n_threads)

    def _block(self, entries: Entries) -> Block:
        program = self.model.trajectory_.program
        n_rows, d = self._shape
        held, places = np.unique(entries.rows, return_inverse=True)
        slots = np.full(n_rows, -1, np.int32)
        slots[held] = np.arange(len(held))
        rows = aligned_zeros((len(held), d, LANES), program.dtype)
        at: Any = (places, slice(None), entries.queries)
        np.add.at(rows, at, entries.vectors)
        influence = aligned_zeros((len(self.data), LANES), program.dtype)
        return Block(slots, rows, np.ones((len(held), d), program.dtype), influence)

    def _blocks_at_once(self) -> int:
        """How many blocks fit the memory budget beside the log, should they need every row."""
        program, (n_rows, d) = self.model.trajectory_.program, self._shape
        # Twice the influence: once more while it is turned round.
        size = LANES * program.dtype.itemsize * (n_rows * d + 2 * len(self.data))
        return self._fitting(size, self._log_bytes)

    # ---------------------------------------------------------------- with them, for some examples

    def _responded(self, quantity: Any, show_progress: bool | None) -> Iterator[tuple[int, Array]]:
        responses, entries_of, n = self._responses, self._entries(quantity), len(quantity)
        for start in range(0, n, LANES):
            block, m = self._block(entries_of(start)), min(LANES, n - start)
            influence = np.full((m, len(self.data)), np.nan, block.rows.dtype)
            influence[:, self._followed] = responses.along(block.slots, block.rows)[:m]
            yield start, influence

    @cached_property
    def _responses(self) -> Responses:
        """How the end of training responds to the examples followed: one walk through it."""
        return Responses.of(
            self.model.trajectory_,
            self._followed,
            memory_budget=self._budget,
            n_threads=self._n_threads,
            description=self.name,
            show_progress=self._show_progress,
        )

    # ---------------------------------------------------------------- of users and items

    @property
    def _shape(self) -> tuple[int, int]:
        """Rows of the model, those of users before those of items, and their length."""
        return self.data.n_users + self.data.n_items, self.model.trajectory_.recipe.n_factors + 1

    def _entries(self, quantity: Any) -> Callable[[int], Entries]:
        """Give the gradients of the 16 queries from a first one on."""
        users, items = self.model.trajectory_.program.places
        found = quantity.gradients(*self._parameters)
        queries = np.concatenate([found.user_queries, found.item_queries])
        rows = np.concatenate([users[found.users], self.data.n_users + items[found.items]])
        vectors = np.concatenate([found.user_rows, found.item_rows])

        def entries(start: int) -> Entries:
            ours = (queries >= start) & (queries < start + LANES)
            return Entries(queries[ours] - start, rows[ours], vectors[ours])

        return entries

    def _visits_of(self, blocks: list[Block]) -> npt.NDArray[np.bool_] | None:
        """Visits that touch a row of some block; None: all, as negatives may touch any."""
        program = self.model.trajectory_.program
        if program.sampler.n_negatives:
            return None
        rows = np.logical_or.reduce([block.slots >= 0 for block in blocks])
        users, items = rows[: self.data.n_users], rows[self.data.n_users :]
        some: npt.NDArray[np.bool_] = users[program.examples.users] | items[program.examples.items]
        return some

    def _steps(self, epoch: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Learning rates of an epoch's steps, and which of them were taken."""
        program = self.model.trajectory_.program
        rate = float(program.hyper(epoch).learning_rate)
        return np.full(len(self.data), rate), program.examples.weights != 0

    def _credit(self, block: Block, stage: Stage, factors: Array) -> None:
        """Add what the steps of a stage left to the influence of their examples."""
        program = self.model.trajectory_.program
        dispatch.kernels("hydra").hydra_steps(
            block.rows,
            block.left,
            block.slots[: self.data.n_users],
            block.slots[self.data.n_users :],
            program.examples,
            stage.log,
            program.hyper(stage.epoch),
            program.recipe.loss_code,
            factors,
            self.weight_decay is None,
            stage.start,
            stage.stop,
            block.influence,
        )


class Entries(NamedTuple):
    """d phi_q / d row of a block's queries; entries of the same query and row add up."""

    queries: Numbers  # (m,) int64, numbered from 0
    rows: Array  # (m,) int, rows of the working tables
    vectors: Array  # (m, d)


class Block(NamedTuple):
    """Queries that go through training side by side, one a lane."""

    slots: npt.NDArray[np.int32]  # (n_rows,): where each row of the model stands below, or -1
    rows: Array  # (m, d, LANES): derivatives by the rows that the queries depend on
    left: Array  # (m, d): what later steps leave of a change of each row
    influence: Array  # (n_train, LANES), by training index


def _number(value: Any, name: str, below: float) -> float:
    """A hyper-parameter in [0, below) as a float."""
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < below:
        allowed = "finite number >= 0" if below == math.inf else f"number in [0, {below:g})"
        raise ParameterError(f"{name} must be a {allowed}, not {value!r}")
    return number
