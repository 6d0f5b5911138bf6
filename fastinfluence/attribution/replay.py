"""Replay: go back through training, and find what every example did to a prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.dense import DenseAttribution
from fastinfluence.attribution.quantities import RowGradients
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import LANES, Adjoint
from fastinfluence.memory import aligned_zeros
from fastinfluence.training.backward import Stage

if TYPE_CHECKING:
    from fastinfluence.training import Trajectory

__all__ = ["Replay"]

Array = npt.NDArray[Any]
Bits = npt.NDArray[np.uint16]

_ALL_LANES = 2**LANES - 1


class Replay(DenseAttribution):
    """The exact derivative of a prediction by the weight of every training example.

    With phi the explained quantity after training with the weights w, the influence of example
    j is ::

        w_j * dphi(w) / dw_j

    to first order ``phi(trained with j) - phi(trained without j)``, in the units of phi
    (``units = "effect"``). Axes are (n_queries, n_train); positive: training on j raised phi.
    Nothing is left out: every way an example reached the prediction is followed, through all
    rows, steps and negatives, so examples that share neither user nor item with a query
    have an influence as well. What remains between it and retraining is that leaving an
    example out is not an infinitesimal change.

    Training is run again epoch by epoch, and each epoch gone through backwards: behind the last
    step the adjoint u of a row is dphi/drow, and a step with the gradient ``w_j grad l_j``
    and its Hessian ``w_j H_j`` over all rows it touches gives ::

        influence_j -= lr * u . w_j grad l_j        u -= lr * w_j H_j u

    (Adagrad: through its sums of squared gradients too).

    Parameters
    ----------
    model : MatrixFactorization
        Fitted.
    hops : {None, 1, 2}, default None
        None is exact. 1 follows an example's influence only as long as it stays in the rows
        that phi itself depends on, 2 also in the rows one training example away from those.
        Steps of other rows are passed over: 1 is several times faster, 2 only where few
        examples are near. Negatives that were drawn make no neighbours.
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
        `hops` is none of those, or the model's Trajectory does not hold its start.

    Notes
    -----
    O(steps * rows of a step * n_factors) a query, whatever the query. Sixteen queries take no
    longer than one: some ten times as long as training. Further ones share the training
    that is run again. Memory: the log of the steps of an epoch or of a part of it (a quarter of
    the budget at most), and for every 16 queries ``64 bytes * (rows * (n_factors + 1) + 2 *
    n_train)`` in float32, rows those of users and items (Adagrad: twice as many).

    References
    ----------
    Hara, Nitanda & Maehara, Data cleansing for models trained with SGD, NeurIPS 2019, arXiv
    1906.08473; Ilyas & Engstrom, MAGIC: near-optimal data attribution for deep learning, arXiv
    2504.16430.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> fi.Replay(model).influence([("bob", "y")]).shape
    (1, 3)
    """

    name = "replay"
    units = "effect"

    def __init__(
        self,
        model: Any,
        *,
        hops: int | None = None,
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
        if isinstance(hops, bool) or hops not in (None, 1, 2):
            raise ParameterError(f"hops must be 1, 2 or None (exact), not {hops!r}")
        self._check_whole(
            ", or use GradientRollback if its rows were recorded by fit(record='rollback')"
        )
        self.hops = hops

    # ---------------------------------------------------------------- walking back

    def _blocks(
        self, quantity: Any, show_progress: bool | None
    ) -> Iterator[tuple[int, Array, dict[str, Array]]]:
        trajectory = self.model.trajectory_
        begin = self._beginning(quantity)
        visits, n = trajectory.visits(), len(quantity)
        at_once = LANES * self._blocks_at_once()
        all_facts = []
        for first in range(0, n, at_once):
            starts = range(first, min(first + at_once, n), LANES)
            blocks = [begin(start) for start in starts]
            only = self._visits_of(blocks) if self.hops else None
            for stage in self._stages(only, show_progress):
                self._step_back(stage, blocks)
            found = [(block.influence, self._facts(block)) for block in blocks]
            del blocks  # their adjoints are of no more use
            for start, (influence, facts) in zip(starts, found, strict=True):
                m = min(LANES, n - start)
                all_facts.append({name: array[:m] for name, array in facts.items()})
                yield start, _by_query(influence, visits, m), all_facts[-1]
        self._conclude(all_facts)

    def _beginning(self, quantity: Any) -> Callable[[int], Any]:
        """Make the block of the queries from a first one on, behind the last step."""
        trajectory = self.model.trajectory_
        gradients = quantity.gradients(*self._parameters)
        return lambda start: _start(trajectory, gradients, start, self.hops)

    def _visits_of(self, blocks: list[Any]) -> npt.NDArray[np.bool_] | None:
        return _visits_of(self.model.trajectory_, blocks)

    def _step_back(self, stage: Stage, blocks: list[Any]) -> None:
        _step_back(self.model.trajectory_, stage, self._order, blocks, self._n_threads)

    def _facts(self, block: Any) -> dict[str, Array]:
        """What is known of each lane's query besides its influence."""
        return {}

    def _conclude(self, facts: list[dict[str, Array]]) -> None:
        """Say once what all queries together give reason to say."""

    @cached_property
    def _order(self) -> npt.NDArray[np.int32]:
        return _order(self.model.trajectory_)

    def _blocks_at_once(self) -> int:
        program, data = self.model.trajectory_.program, self.data
        tables = 2 if program.recipe.optimizer == "adagrad" else 1
        rows = tables * (data.n_users + data.n_items)
        # Twice the influence: once more while it is brought into the order of the data.
        numbers = rows * (program.recipe.n_factors + 1) + 2 * len(data)
        return self._fitting(LANES * program.dtype.itemsize * numbers, self._log_bytes)


class _Block(NamedTuple):
    """Queries that go back side by side, one a lane."""

    adjoint: Adjoint
    squares: Adjoint | None  # of Adagrad's sums
    allowed: tuple[Bits, Bits]  # lanes that may live on each user's, each item's row
    influence: Array  # (n, LANES), by visit


def _start(trajectory: Trajectory, gradients: RowGradients, start: int, hops: int | None) -> _Block:
    """The block of the queries from `start` on, behind the last step."""
    program, data = trajectory.program, trajectory.data
    d = program.recipe.n_factors + 1

    def zeros() -> Adjoint:
        shapes = ((n, d, LANES) for n in (data.n_users, data.n_items))
        return Adjoint(*(aligned_zeros(shape, program.dtype) for shape in shapes))

    adjoint = zeros()
    for table, places, (queries, codes, rows) in zip(
        adjoint, program.places, (gradients[:3], gradients[3:]), strict=True
    ):
        ours = (queries >= start) & (queries < start + LANES)
        at: Any = (places[codes[ours]], slice(None), queries[ours] - start)
        np.add.at(table, at, rows[ours])
    return _Block(
        adjoint,
        zeros() if program.recipe.optimizer == "adagrad" else None,
        _allowed(trajectory, adjoint, hops),
        aligned_zeros((len(data), LANES), program.dtype),
    )


def _allowed(trajectory: Trajectory, adjoint: Adjoint, hops: int | None) -> tuple[Bits, Bits]:
    if hops is None:
        users, items = (np.full(len(rows), _ALL_LANES, np.uint16) for rows in adjoint)
        return users, items
    users, items = (
        np.packbits(rows.any(axis=1), axis=1, bitorder="little").view("<u2").ravel()
        for rows in adjoint
    )
    if hops == 1:
        return users, items
    examples = trajectory.program.examples
    trained = examples.weights != 0
    of_examples = examples.users[trained], examples.items[trained]
    more_users, more_items = users.copy(), items.copy()
    np.bitwise_or.at(more_users, of_examples[0], items[of_examples[1]])
    np.bitwise_or.at(more_items, of_examples[1], users[of_examples[0]])
    return more_users, more_items


def _visits_of(trajectory: Trajectory, blocks: list[_Block]) -> npt.NDArray[np.bool_] | None:
    """Visits that touch a row some lane may live on; None: all, as negatives may touch any."""
    program = trajectory.program
    if program.sampler.n_negatives:
        return None
    users, items = (
        np.logical_or.reduce([block.allowed[side] != 0 for block in blocks]) for side in (0, 1)
    )
    some: npt.NDArray[np.bool_] = users[program.examples.users] | items[program.examples.items]
    return some


def _by_query(influence: Array, visits: npt.NDArray[np.int64], m: int) -> Array:
    """Influence (m, n_train) on the first m lanes, from that by visit."""
    n = len(visits)
    found = np.empty((m, n), influence.dtype)
    for start in range(0, n, 4096):  # at once it would go twice through memory
        some = slice(start, start + 4096)
        found[:, some] = influence[visits[some], :m].T
    return found


def _order(trajectory: Trajectory) -> npt.NDArray[np.int32]:
    """The visits, to be gone through from the last to the first."""
    program, data = trajectory.program, trajectory.data
    if program.sampler.n_negatives:
        return np.arange(len(data), dtype=np.int32)
    order: npt.NDArray[np.int32] = dispatch.kernels("replay").walk_order(
        program.examples, program.schedule.pointers, data.n_users, data.n_items
    )
    return order


def _step_back(
    trajectory: Trajectory,
    stage: Stage,
    order: npt.NDArray[np.int32],
    blocks: list[_Block],
    n_threads: int,
) -> None:
    """Take all blocks back over a stage, its strata one after the other.

    The tiles of a stratum share no row, negatives included, so its groups of users may go back
    side by side as they trained side by side: threads find work in a single block as well.
    """
    program, n_groups = trajectory.program, trajectory.program.schedule.n_groups
    replay_steps = dispatch.kernels("replay").replay_steps
    hyper = program.hyper(stage.epoch)
    for stratum in range(n_groups - 1, -1, -1):
        tiles = slice(stratum * n_groups, (stratum + 1) * n_groups + 1)
        bounds = np.clip(program.schedule.pointers[tiles], stage.start, stage.stop)

        def part(start: int, stop: int, bounds: npt.NDArray[np.int64] = bounds) -> None:
            for number in range(start // n_groups, -(-stop // n_groups)):
                block, first = blocks[number], number * n_groups
                replay_steps(
                    block.adjoint,
                    block.squares,
                    program.examples,
                    stage.log,
                    hyper,
                    program.recipe.loss_code,
                    *block.allowed,
                    order,
                    bounds[max(start - first, 0)],
                    bounds[min(stop - first, n_groups)],
                    block.influence,
                )

        if bounds[0] < bounds[-1]:
            work = np.tile(np.diff(bounds), len(blocks)).astype(float)
            dispatch.run_parts(part, dispatch.even_parts(work, 4 * n_threads), n_threads)
