"""TracIn: what every step of training did to a prediction, added up over the examples' steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.dense import DenseAttribution
from fastinfluence.attribution.quantities import Average, Losses, PairWeights
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import LANES, ScoreTerms, Tables
from fastinfluence.training.backward import Stage
from fastinfluence.training.program import Program
from fastinfluence.training.recipe import LOSSES

if TYPE_CHECKING:
    from fastinfluence.data import Interactions
    from fastinfluence.training import Trajectory

__all__ = ["MODES", "TracIn"]

MODES = ("ideal", "checkpoints")

Array = npt.NDArray[Any]
Numbers = npt.NDArray[np.int64]


class TracIn(DenseAttribution):
    """TracIn (Pruthi, Liu, Kale & Sundararajan 2020).

    A step of training with the gradient ``w_j grad l_j`` of example j changed the explained
    quantity phi by ``-lr grad phi . w_j grad l_j``, to first order in the learning rate. The
    influence of an example is what its own steps did, all epochs together. Axes are (n_queries,
    n_train); positive: training on j raised phi. What later steps made of a change is not
    followed, so the values order the examples (``units = "rank"``); together they add up to what
    training did to phi, up to the learning rate's second order.

    ``mode="ideal"`` takes both gradients before each step, which the published method only
    approximates::

        influence_j = - sum over steps t of j   grad phi(theta_t-1) . R_t w_j grad l_j(theta_t-1)

    R_t is the learning rate, for Adagrad that of every coordinate as that step used it.
    Regularization and negatives belong to the example whose step they are part of.
    ``mode="checkpoints"`` (TracInCP) takes the gradients at the ends of epochs::

        influence_j = - sum over checkpoints c   lr_c grad phi(theta_c) . w_j grad l_j(theta_c)

    where lr_c is the learning rate of the epoch that ended there, and where the Trajectory does
    not keep every epoch, the sum of those since the checkpoint before. Negatives are those of the
    last epochs, averaged; what Adagrad makes of the learning rate is not followed.

    Parameters
    ----------
    model : MatrixFactorization
        Fitted.
    mode : {"ideal", "checkpoints"}, default "ideal"
        ``ideal`` explains what is made of scores (Score, Margin, HeldOutLoss, Mean),
        ``checkpoints`` any objective.
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
        `mode` is neither, or ``ideal`` and the model's Trajectory does not hold its start.

    Notes
    -----
    ``ideal``: training once more, with a log, for all queries that fit the memory budget, and
    O((d_u + d_i) * n_factors * n_epochs) a query, d_u and d_i the numbers of steps an epoch that
    touch its user and its item. ``checkpoints``: O(n_train * n_factors) a checkpoint and
    query. Memory O(n_queries * n_train) at a time.

    References
    ----------
    Estimating training data influence by tracing gradient descent, NeurIPS 2020, arXiv
    2002.08484, equations 1 (ideal) and 4 (checkpoints).

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> fi.TracIn(model).influence([("bob", "y")]).shape
    (1, 3)
    """

    name = "tracin"
    units = "rank"

    def __init__(
        self,
        model: Any,
        *,
        mode: str = "ideal",
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
        if mode not in MODES:
            raise ParameterError(f"mode={mode!r} is not known: use 'ideal' or 'checkpoints'")
        if mode == "ideal":
            self._check_whole(", or use mode='checkpoints'")
        self.mode = mode

    def _blocks(
        self, quantity: Any, show_progress: bool | None
    ) -> Iterator[tuple[int, Array, dict[str, Array]]]:
        blocks = self._ideal if self.mode == "ideal" else self._at_checkpoints
        for start, influence in blocks(quantity, show_progress):
            yield start, influence, {}

    def _at_once(self) -> int:
        """How many queries are done at a time: their influence, and once more to sort it."""
        size = len(self.data) * self.model.trajectory_.program.dtype.itemsize
        return max(LANES, self._budget // int(4 * size) // LANES * LANES)

    # ---------------------------------------------------------------- every step

    def self_influence(self, train_index: Any = None) -> npt.NDArray[np.floating[Any]]:
        """Influence (m,) of training examples on the score of their own pair.

        Large values mark examples the model would not predict without them: outliers and errors
        stand at the top.

        Parameters
        ----------
        train_index : (m,) int array-like, optional
            All examples by default, which takes one walk through training, or a pass over the data
            for every checkpoint. Of triples every one is a query of its own.

        Raises
        ------
        DataError
            An index outside the data.
        ReplayMismatch
            Running the Trajectory again did not give the model's parameters.
        """
        program = self.model.trajectory_.program
        if not isinstance(program, Program):
            return super().self_influence(train_index)
        wanted = self._chosen(train_index)
        own = self._own_at_checkpoints() if self.mode == "checkpoints" else self._own_steps(wanted)
        found: Array = own[wanted]
        return found

    def _own_steps(self, wanted: Numbers) -> Array:
        """Self-influence (n,), from the steps of the examples that are wanted."""
        program, n = self.model.trajectory_.program, len(self.data)
        own_steps = dispatch.kernels("tracin").own_steps
        result = np.zeros(n, program.dtype)
        only = np.zeros(n, np.bool_)
        only[self.model.trajectory_.visits()[wanted]] = True
        for stage in self._stages(only, None):
            hyper = program.hyper(stage.epoch)

            def part(start: int, stop: int, stage: Stage = stage, hyper: Any = hyper) -> None:
                visits = stage.start + start, stage.start + stop
                steps = program.examples, stage.log, hyper, program.recipe.loss_code
                own_steps(*steps, *visits, result)

            parts = dispatch.equal_parts(stage.stop - stage.start, self._n_threads)
            dispatch.run_parts(part, parts, self._n_threads)
        return result

    def _ideal(self, quantity: Any, show_progress: bool | None) -> Iterator[tuple[int, Array]]:
        followed = _followed(quantity, *self._parameters)
        at_once = self._at_once()
        for first in range(0, followed.n, at_once):
            some = followed.part(first, min(first + at_once, followed.n))
            yield first, self._walk(some, show_progress)

    def _walk(self, followed: _Followed, show_progress: bool | None) -> Array:
        """Influence (n_queries, n_train), from one walk through training.

        Every thread goes through all steps, for queries of its own and with rows of its own: a
        query's user and item move in different tiles of a stratum, so tiles cannot be parted.
        """
        trajectory = self.model.trajectory_
        program = trajectory.program
        tracin_steps = dispatch.kernels("tracin").tracin_steps
        parts = dispatch.even_parts(_work(self.data, followed), self._n_threads)
        terms = [_terms(trajectory, followed.part(*bounds)) for bounds in parts]
        found = [np.zeros((len(self.data), stop - start), program.dtype) for start, stop in parts]
        for stage in self._stages(_visits_of(trajectory, followed), show_progress):
            visits = stage.log, program.hyper(stage.epoch), program.recipe.loss_code, *stage[1:3]

            def part(start: int, stop: int, visits: tuple[Any, ...] = visits) -> None:
                for number in range(start, stop):
                    of_part = terms[number], followed.kind, program.examples, *visits
                    tracin_steps(*of_part, found[number])

            numbers = [(number, number + 1) for number in range(len(parts))]
            dispatch.run_parts(part, numbers, self._n_threads)
        influence = np.empty((followed.n, len(self.data)), program.dtype)
        for start in range(0, len(self.data), 1024):  # at once it would go twice through memory
            some = slice(start, start + 1024)
            for (first, behind), by_example in zip(parts, found, strict=True):
                influence[first:behind, some] = by_example[some].T
        return influence

    # ---------------------------------------------------------------- ends of epochs

    def _at_checkpoints(
        self, quantity: Any, show_progress: bool | None
    ) -> Iterator[tuple[int, Array]]:
        trajectory = self.model.trajectory_
        rates = self._rates()
        at_once = self._at_once()
        endpoint = trajectory.program.endpoint(trajectory.end.tables, n_threads=self._n_threads)
        for first in range(0, len(quantity), at_once):
            behind = min(first + at_once, len(quantity))
            influence = np.zeros((behind - first, len(self.data)), trajectory.program.dtype)
            for epoch, rate in rates.items():
                there = endpoint.at(trajectory.checkpoints[epoch].tables)
                for start in range(first, behind, LANES):
                    lanes = min(LANES, behind - start)
                    credit = there.credit(there.panel(quantity, start))
                    influence[start - first : start - first + lanes] += rate * credit[:, :lanes].T
            yield first, influence

    def _own_at_checkpoints(self) -> Array:
        """Self-influence (n,), without a query: the gradient of an example meets that of its pair.

        Raises
        ------
        DataError
            Parameters that are not finite.
        """
        trajectory = self.model.trajectory_
        endpoint = trajectory.program.endpoint(trajectory.end.tables, n_threads=self._n_threads)
        result = np.zeros(len(self.data), trajectory.program.dtype)
        for epoch, rate in self._rates().items():
            result += rate * endpoint.at(trajectory.checkpoints[epoch].tables).own_credit()
        return result

    def _rates(self) -> dict[int, Any]:
        """Learning rate of every checkpoint: those of all epochs since the one before."""
        trajectory = self.model.trajectory_
        kept = [
            epoch for epoch in sorted(trajectory.checkpoints) if 0 < epoch <= trajectory.n_epochs
        ]
        number = trajectory.program.dtype.type
        return {
            epoch: number(sum(trajectory.program.rate(passed) for passed in range(before, epoch)))
            for before, epoch in itertools.pairwise([0, *kept])
        }


class _Followed(NamedTuple):
    """Queries as sums of scores, or of minus the losses of scores."""

    n: int
    pairs: PairWeights  # in the order of the queries; slopes: by the score, or by minus its loss
    targets: npt.NDArray[np.float64]  # of the losses
    kind: int  # PLAIN, SQUARED or LOGISTIC, as the kernels number it

    def part(self, start: int, stop: int) -> _Followed:
        """The queries ``start:stop``, numbered from 0."""
        some = slice(*np.searchsorted(self.pairs.queries, [start, stop]))
        queries, users, items, slopes = self.pairs
        pairs = PairWeights(queries[some] - start, users[some], items[some], slopes[some])
        return _Followed(stop - start, pairs, self.targets[some], self.kind)


def _followed(quantity: Any, tables: Tables, mean: float) -> _Followed:
    """What the quantity is made of.

    Raises
    ------
    ParameterError
        It is not a function of scores.
    """
    pairs = quantity.pairs(tables, mean)
    if pairs is None:
        raise ParameterError(
            "TracIn(mode='ideal') follows scores through every step, and the objective is not made "
            "of scores: use mode='checkpoints', which takes any objective"
        )
    share, inner = 1.0, quantity
    while isinstance(inner, Average):
        share, inner = share / inner.inner.n, inner.inner
    if not isinstance(inner, Losses):
        plain = dispatch.kernels("tracin").PLAIN
        return _Followed(len(quantity), pairs, np.zeros(len(pairs.slopes)), plain)
    pairs = pairs._replace(slopes=np.full(inner.n, share))
    return _Followed(len(quantity), pairs, inner.targets, LOSSES.index(inner.loss))


def _work(data: Interactions, followed: _Followed) -> npt.NDArray[np.float64]:
    """What every query costs, about: the examples of its users and items."""
    queries, users, items, _ = followed.pairs
    touches = np.diff(data.by_user.pointers)[users] + np.diff(data.by_item.pointers)[items]
    return np.bincount(queries, touches + 1.0, minlength=followed.n).astype(np.float64)


def _terms(trajectory: Trajectory, followed: _Followed) -> ScoreTerms:
    """The terms of queries, their rows as they are behind the last step."""
    count_sort = dispatch.kernels("grouping").count_sort
    program, tables, pairs = trajectory.program, trajectory.end.tables, followed.pairs
    held: list[Array] = []
    rows_of: list[Array] = []
    slots: list[Array] = []
    groups: list[Array] = []
    for codes, places in zip((pairs.users, pairs.items), program.places, strict=True):
        some, row_of = np.unique(codes, return_inverse=True)
        slot_of = np.full(len(places), -1, np.int32)
        slot_of[places[some]] = np.arange(len(some))
        held.append(some)
        rows_of.append(row_of.astype(np.int32))
        slots.append(slot_of)
        groups += count_sort(rows_of[-1], len(some))
    return ScoreTerms(
        pairs.queries,
        rows_of[0],
        rows_of[1],
        pairs.slopes.astype(program.dtype),
        followed.targets.astype(program.dtype),
        Tables(*(table[held[side % 2]] for side, table in enumerate(tables))),
        slots[0],
        slots[1],
        *groups,
    )


def _visits_of(trajectory: Trajectory, followed: _Followed) -> npt.NDArray[np.bool_] | None:
    """Visits that touch a row of some score; None: all, as negatives may touch any."""
    data, order = trajectory.data, trajectory.program.order
    if trajectory.program.sampler.n_negatives:
        return None
    users, items = np.zeros(data.n_users, np.bool_), np.zeros(data.n_items, np.bool_)
    users[followed.pairs.users] = items[followed.pairs.items] = True
    some: npt.NDArray[np.bool_] = (users[data.users] | items[data.items])[order]
    return some
