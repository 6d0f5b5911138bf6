"""Replay: go back through training, and find what every example did to a prediction."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.dense import DenseAttribution
from fastinfluence.attribution.quantities import RowGradients
from fastinfluence.errors import DeviceMemoryError, ParameterError
from fastinfluence.kernels.structures import LANES, Adjoint
from fastinfluence.memory import aligned_zeros
from fastinfluence.training.backward import Stage

if TYPE_CHECKING:
    from fastinfluence.training import Program, Trajectory

__all__ = ["Replay"]

Array = npt.NDArray[Any]
Bits = npt.NDArray[np.uint16]

_ALL_LANES = 2**LANES - 1

_STREAMS = 16
"""Blocks of queries that a GPU takes back at a time: one has no more work than for some tens of
its multiprocessors."""


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
    device : {"auto", "cpu", "cuda"}, default "auto"
        On a GPU free memory decides as well, and a result may differ in its last bits.
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
    DeviceError
        The device asked for is not there.

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
    served: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

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
        visits, n = self.model.trajectory_.visits(), len(quantity)
        begin = self._beginning(quantity)
        at_once, first = self._blocks_at_once(), 0
        all_facts = []
        while first < n:
            starts = range(first, min(first + LANES * at_once, n), LANES)
            try:
                found = self._walk_back([begin(start) for start in starts], show_progress)
            except DeviceMemoryError:  # others may have taken what was free
                if len(starts) == 1:
                    raise
                at_once = len(starts) // 2
                continue
            first = starts.stop
            for start in starts:
                influence, facts = found.pop(0)
                m = min(LANES, n - start)
                all_facts.append({name: array[:m] for name, array in facts.items()})
                influence = dispatch.memory(self._device).fetch(influence)
                yield start, _by_query(influence, visits, m), all_facts[-1]
        self._conclude(all_facts)

    def _walk_back(
        self, blocks: list[Any], show_progress: bool | None
    ) -> list[tuple[Any, dict[str, Array]]]:
        """Take blocks from the last step to the first; the influence and the facts of each."""
        only = self._visits_of(blocks) if self.hops else None
        for stage in self._stages(only, show_progress):
            self._step_back(stage, blocks)
        # Their adjoints are of no more use.
        return [(block.influence, self._facts(block)) for block in blocks]

    def _beginning(self, quantity: Any) -> Callable[[int], Any]:
        """Make the block of the queries from a first one on, behind the last step."""
        trajectory = self.model.trajectory_
        gradients = quantity.gradients(*self._parameters)
        return lambda start: _start(trajectory, gradients, start, self.hops, self._device)

    def _visits_of(self, blocks: list[Any]) -> npt.NDArray[np.bool_] | None:
        allowed = [dispatch.memory(self._device).fetch(block.allowed) for block in blocks]
        return _visits_of(self.model.trajectory_, allowed)

    def _step_back(self, stage: Stage, blocks: list[Any]) -> None:
        program = self.model.trajectory_.program.on(self._device)
        _step_back(program, stage, self._order, blocks, self._n_threads)

    def _facts(self, block: Any) -> dict[str, Array]:
        """What is known of each lane's query besides its influence."""
        return {}

    def _conclude(self, facts: list[dict[str, Array]]) -> None:
        """Say once what all queries together give reason to say."""

    @cached_property
    def _order(self) -> Any:
        return _order(self.model.trajectory_.program.on(self._device))

    def _blocks_at_once(self) -> int:
        program, data = self.model.trajectory_.program, self.data
        tables = 2 if program.recipe.optimizer == "adagrad" else 1
        rows = tables * (data.n_users + data.n_items)
        # Twice the influence: once more while it is brought into the order of the data.
        numbers = rows * (program.recipe.n_factors + 1) + 2 * len(data)
        size = LANES * program.dtype.itemsize * numbers
        fitting = self._fitting(size, self._log_bytes)
        if self._device == "cpu":
            return fitting
        free = dispatch.memory(self._device).free_bytes() - self._log_bytes
        return max(1, min(fitting, int(free // size)))


class _Block(NamedTuple):
    """Queries that go back side by side, one a lane; arrays on the device."""

    adjoint: Adjoint
    squares: Adjoint | None  # of Adagrad's sums
    allowed: tuple[Bits, Bits]  # lanes that may live on each user's, each item's row
    influence: Any  # (n, LANES), by visit


def _start(
    trajectory: Trajectory, gradients: RowGradients, start: int, hops: int | None, device: str
) -> _Block:
    """The block of the queries from `start` on, behind the last step."""
    program, data, memory = trajectory.program, trajectory.data, dispatch.memory(device)
    shapes = [(n, program.recipe.n_factors + 1, LANES) for n in (data.n_users, data.n_items)]
    adjoint = Adjoint(*(aligned_zeros(shape, program.dtype) for shape in shapes))
    for table, places, (queries, codes, rows) in zip(
        adjoint, program.places, (gradients[:3], gradients[3:]), strict=True
    ):
        ours = (queries >= start) & (queries < start + LANES)
        at: Any = (places[codes[ours]], slice(None), queries[ours] - start)
        np.add.at(table, at, rows[ours])
    squares = None
    if program.recipe.optimizer == "adagrad":
        squares = Adjoint(*(memory.zeros(shape, program.dtype) for shape in shapes))
    return _Block(
        memory.put(adjoint),
        squares,
        memory.put(_allowed(trajectory, adjoint, hops)),
        memory.zeros((len(data), LANES), program.dtype),
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


def _visits_of(
    trajectory: Trajectory, allowed: list[tuple[Bits, Bits]]
) -> npt.NDArray[np.bool_] | None:
    """Visits that touch a row some lane may live on; None: all, as negatives may touch any."""
    program = trajectory.program
    if program.sampler.n_negatives:
        return None
    users, items = (np.logical_or.reduce([bits[side] != 0 for bits in allowed]) for side in (0, 1))
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


def _order(program: Program) -> Any:
    """The visits (n,) on the program's device, to be gone through from the last to the first."""
    if program.sampler.n_negatives:
        order = np.arange(len(program.data), dtype=np.int32)
        return dispatch.memory(program.device).put(order)
    return dispatch.kernels("replay", program.device).walk_order(
        program.placed.examples,
        program.placed.pointers,
        program.data.n_users,
        program.data.n_items,
    )


def _step_back(
    program: Program, stage: Stage, order: Any, blocks: list[_Block], n_threads: int
) -> None:
    """Take all blocks back over a stage, the strata of each one after the other.

    The tiles of a stratum share no row, negatives included, so its groups of users may go back
    side by side as they trained side by side: threads find work in a single block as well. A
    GPU takes a stratum of a block at once, and several blocks side by side.
    """
    n_groups = program.schedule.n_groups
    replay_steps = dispatch.kernels("replay", program.device).replay_steps
    hyper = program.hyper(stage.epoch)
    bounds = np.clip(program.schedule.pointers, stage.start, stage.stop)
    placed_bounds = dispatch.memory(program.device).put(bounds)

    def step_back(block: _Block, start: int, stop: int, **launch: bool) -> None:
        replay_steps(
            block.adjoint,
            block.squares,
            program.placed.examples,
            stage.log,
            hyper,
            program.recipe.loss_code,
            *block.allowed,
            order,
            placed_bounds,
            start,
            stop,
            block.influence,
            **launch,
        )

    strata = [
        range(first, first + n_groups)
        for first in range((n_groups - 1) * n_groups, -1, -n_groups)
        if bounds[first] < bounds[first + n_groups]
    ]
    if program.device != "cpu":

        def whole(start: int, stop: int) -> None:
            for block, tiles in itertools.product(blocks[start:stop], strata):
                step_back(block, tiles.start, tiles.stop, wait=tiles == strata[-1])

        parts = dispatch.even_parts(np.ones(len(blocks)), _STREAMS)
        dispatch.run_parts(whole, parts, _STREAMS)
        return
    for tiles in strata:

        def part(start: int, stop: int, first: int = tiles.start) -> None:
            for number in range(start // n_groups, -(-stop // n_groups)):
                at = first - number * n_groups
                ours = max(start + at, first), min(stop + at, first + n_groups)
                step_back(blocks[number], *ours)

        work = np.tile(np.diff(bounds[tiles.start : tiles.stop + 1]), len(blocks)).astype(float)
        dispatch.run_parts(part, dispatch.even_parts(work, 4 * n_threads), n_threads)
