"""Curvature Rollback: Gradient Rollback that follows what later steps made of each update."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.base import RowAttribution
from fastinfluence.attribution.queries import query_codes
from fastinfluence.attribution.rows import Changes, Grouping, RowStore, only_groups
from fastinfluence.errors import DeviceMemoryError, ParameterError
from fastinfluence.kernels.structures import LANES, Curvature, Tables, Touches
from fastinfluence.memory import aligned_zeros, memory_budget
from fastinfluence.training.backward import Stage, backward

if TYPE_CHECKING:
    from fastinfluence.models import MatrixFactorization
    from fastinfluence.training import Trajectory
    from fastinfluence.training.program import Program

__all__ = ["CurvatureRollback"]

Codes = npt.NDArray[np.int64]

LOG_BUDGET = 2**30
"""Bytes of the log of steps. A constant: the pieces a longer log is cut into show in the last
bits of the result, which must not depend on the machine."""


class CurvatureRollback(RowAttribution):
    """Gradient Rollback with curvature: rows exact to first order, at the same query speed.

    As in `GradientRollback` every example j is credited a change ``gamma_j`` of its user's row
    and of its item's row, and the influence on the score of a query is what the score loses
    when that change is taken back. Here the change is followed to the end of training: every
    later step of the row multiplies it by ``I - lr * (h x x^T + regularization)``, with the
    opposite rows and the curvatures h as training met them. The values are in the units of the
    score (``units = "effect"``). Axes are (n_queries, n_train); positive: training on j raised
    the score.

    What is left out is the detour through other rows: an example's effect on a row it does not
    touch. `Replay` has it.

    Parameters
    ----------
    model : MatrixFactorization
        Fitted.
    rows : queries, optional
        Pairs as for `explain`. Only the rows of their users and items are computed, which for
        few queries takes about as long as training twice; only queries of these users and
        items can be explained.
    row_dtype : {None, "float32", "float64", "bfloat16"}
        Of the stored rows, as for `GradientRollback`.
    path : path-like, optional
        Folder for the rows, which are then memory-mapped; rows of the same model found there
        are used as they are.
    n_threads : int, optional
        All processors by default; it never changes a result.
    device : {"auto", "cpu", "cuda"} or "torch:<device>", default "auto"
        With torch only the read-out is done there, the walk on the CPU.
    show_progress : bool, optional

    Raises
    ------
    NotFittedError
    ReplayMismatch
        Running the Trajectory again did not give the model's parameters.
    DeviceMemoryError
        The GPU has not memory enough for the log, the result and the matrix of one row.

    Notes
    -----
    One backward walk over the Trajectory serves all examples and all queries: 4 k^2
    floating-point operations for every visit and side, k factors. Adagrad's scaling is taken as
    recorded (its dependence on the example is left out). Memory: the log of an epoch (at most
    1 GiB), a (k + 1) x k matrix for every row, and the result; where the matrices exceed a
    quarter of RAM, or half of what a GPU has left, rows are done in several walks.

    The product of curvatures is that of DVEmb (Wang et al., ICLR 2025, arXiv 2412.09538),
    here exact on each embedding row and unprojected; Gradient Rollback is Lawrence, Sztyler &
    Niepert, AAAI 2021, arXiv 2010.05516.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> fi.CurvatureRollback(model).influence([("bob", "y")]).shape
    (1, 3)
    """

    name = "curvature-rollback"
    units = "effect"
    served = ("cpu", "cuda", "torch")

    def __init__(
        self,
        model: MatrixFactorization,
        *,
        rows: Any = None,
        row_dtype: str | None = None,
        path: str | os.PathLike[str] | None = None,
        n_threads: int | None = None,
        device: str = "auto",
        show_progress: bool | None = None,
    ) -> None:
        super().__init__(model, n_threads=n_threads, device=device)
        orders: tuple[Grouping, Grouping] = (self.data.by_user, self.data.by_item)
        held: tuple[Codes, Codes] | None = None
        meta: dict[str, Any] = {"method": self.name}
        if rows is not None:
            users, items = query_codes(rows, self.data)
            held = np.unique(users).astype(np.int64), np.unique(items).astype(np.int64)
            orders = (only_groups(orders[0], held[0]), only_groups(orders[1], held[1]))
            meta["rows"] = [zlib.crc32(codes.tobytes()) for codes in held]

        def changes() -> tuple[Changes, Changes]:
            device = "cuda" if self._device == "cuda" else "cpu"
            return _roll_back(model.trajectory_, held, self._n_threads, show_progress, device)

        self._rows = RowStore.obtain(
            model.trajectory_,
            changes,
            orders,
            meta=meta,
            dtype=row_dtype,
            path=path,
            n_threads=self._n_threads,
        )
        self._held = held

    def _options_for(self, queries: Any) -> dict[str, Any]:
        return super()._options_for(queries) | {"rows": queries}

    def _check_held(self, users: npt.NDArray[Any], items: npt.NDArray[Any]) -> None:
        if self._held is None:
            return
        names = (("user", users, self.data.user_ids), ("item", items, self.data.item_ids))
        for (kind, codes, ids), held in zip(names, self._held, strict=True):
            missing = codes[~np.isin(codes, held)]
            if len(missing):
                raise ParameterError(
                    f"the rows of {kind} {ids[missing[0]].item()!r} were not computed: this "
                    f"CurvatureRollback was made with rows= of {len(held):,} {kind}s; make one "
                    "without rows=, or with these queries"
                )

    def self_influence(self) -> npt.NDArray[np.floating[Any]]:
        """Influence (n_train,) of every training example on the score of its own pair."""
        if self._held is not None:
            raise ParameterError(
                "self_influence needs the rows of all users and items: make the "
                "CurvatureRollback without rows="
            )
        return super().self_influence()


class _Side(NamedTuple):
    """Some rows of the users, or of the items, on their way back."""

    of_users: bool
    lookup: npt.NDArray[np.int32]  # working row -> number here, -1: not here
    state: Curvature


def _roll_back(
    trajectory: Trajectory,
    held: tuple[Codes, Codes] | None,
    n_threads: int,
    show_progress: bool | None,
    device: str,
) -> tuple[Changes, Changes]:
    """Changes credited to all examples, or to those of some users and items."""
    program, examples = trajectory.program, trajectory.program.examples
    if held is None:
        held = np.arange(trajectory.data.n_users), np.arange(trajectory.data.n_items)
    rows = [
        np.sort(place[codes]).astype(np.int64)
        for place, codes in zip(program.places, held, strict=True)
    ]
    if device == "cuda":  # a block a row: the last one to start should not be the longest
        rows = [
            some[np.argsort(-np.bincount(own, minlength=len(place))[some], kind="stable")]
            for some, own, place in zip(
                rows, (examples.users, examples.items), program.places, strict=True
            )
        ]
    most = len(rows[0]) + len(rows[1])
    while True:
        try:
            changes = _rolled_back(trajectory, rows, most, n_threads, show_progress, device)
            break
        except DeviceMemoryError as error:
            if most == 1:
                size = 2 * len(examples.users) * program.recipe.n_factors * program.dtype.itemsize
                raise DeviceMemoryError(
                    "Curvature Rollback does not fit the device, even one row at a time: the log "
                    f"of steps takes up to {LOG_BUDGET / 2**20:,.0f} MiB, the result up to "
                    f"{size / 2**20:,.1f} MiB; use device='cpu', or rows= for some queries only"
                ) from error
            most //= 2
    visits = trajectory.visits()
    by_user, by_item = (side._replace(places=side.places[visits]) for side in changes)
    return by_user, by_item


def _rolled_back(
    trajectory: Trajectory,
    rows: list[Codes],
    most: int,
    n_threads: int,
    show_progress: bool | None,
    device: str,
) -> list[Changes]:
    """Changes of the users' and the items' rows, in walks of at most `most` rows."""
    program, examples = trajectory.program, trajectory.program.examples
    memory = dispatch.memory(device)
    ours = np.isin(examples.users, rows[0]), np.isin(examples.items, rows[1])
    # Negatives may touch a row from any example.
    only = None if program.sampler.n_negatives > 0 else ours[0] | ours[1]
    changes = (
        _no_changes(program, examples.users, ours[0], device),
        _no_changes(program, examples.items, ours[1], device),
    )
    for sides in _chunks(trajectory, rows, most, device):
        _walk_back(trajectory, sides, changes, only, n_threads, show_progress, device)
        del sides  # whose matrices make room for the next ones
    return [
        side._replace(rows=memory.fetch(side.rows), biases=memory.fetch(side.biases))
        for side in changes
    ]


def _walk_back(
    trajectory: Trajectory,
    sides: list[_Side],
    changes: tuple[Changes, Changes],
    only: npt.NDArray[np.bool_] | None,
    n_threads: int,
    show_progress: bool | None,
    device: str,
) -> None:
    """Credit the changes of the rows of some sides, in one walk over the run."""
    program, users = trajectory.program, trajectory.program.examples.users
    stages = backward(
        trajectory,
        memory_budget=LOG_BUDGET,
        only=only,
        n_threads=n_threads,
        device=device,
        description="curvature",
        show_progress=show_progress,
    )
    known: dict[tuple[bool, int], Touches] = {}
    for stage in stages:
        for side in sides:
            credited = changes[0 if side.of_users else 1]
            key = (side.of_users, stage.start)
            touches = known.get(key)
            if touches is None:
                touches = _touches(side, users, stage, credited.places, device)
                if program.sampler.n_negatives == 0:  # the same in every epoch
                    known[key] = touches
            _walk(side, touches, program, stage, credited, n_threads, device)


def _no_changes(
    program: Program,
    rows: npt.NDArray[np.int32],
    ours: npt.NDArray[np.bool_],
    device: str,
) -> Changes:
    """Room for the changes of some visits, row after row: a walk then writes next to itself."""
    count_sort = dispatch.kernels("grouping").count_sort
    order = count_sort(rows, int(rows.max()) + 1)[1]
    order = order[ours[order]]
    places = np.full(len(rows), -1)
    places[order] = np.arange(len(order))
    shape = (len(order), program.recipe.n_factors)
    zeros = dispatch.memory(device).zeros
    return Changes(zeros(shape, program.dtype), zeros(shape[:1], program.dtype), places)


def _chunks(
    trajectory: Trajectory, rows: list[Codes], most: int, device: str
) -> Iterator[list[_Side]]:
    """At most `most` rows whose matrices fit the memory together, with their matrices."""
    k = trajectory.recipe.n_factors
    size = (k + 3) * _padded(k) * trajectory.program.dtype.itemsize
    budget = memory_budget()
    if device == "cuda":
        budget = min(budget, dispatch.memory(device).free_bytes() // 2)
    most = max(1, min(most, budget // size))
    n_users, n = len(rows[0]), len(rows[0]) + len(rows[1])
    end = trajectory.program.on("cpu").enter(trajectory.end).tables
    for start in range(0, n, most):
        users = rows[0][start : start + most]
        items = rows[1][max(0, start - n_users) : max(0, start + most - n_users)]
        chosen = ((True, users), (False, items))
        yield [_side(of_users, some, end, device) for of_users, some in chosen if len(some)]


def _padded(k: int) -> int:
    return -(-k // LANES) * LANES


def _side(of_users: bool, rows: Codes, end: Tables, device: str) -> _Side:
    """Behind the last step: matrices that change nothing, and the rows as training left them."""
    factors = end.user_factors if of_users else end.item_factors
    biases = end.user_biases if of_users else end.item_biases
    k, dtype, n = factors.shape[1], factors.dtype, len(rows)
    width = _padded(k)
    lookup = np.full(len(factors), -1, np.int32)
    lookup[rows] = np.arange(n)
    state = Curvature(
        aligned_zeros((n, k + 1, width), dtype),
        aligned_zeros((n, width + LANES), dtype),
        aligned_zeros((n, width), dtype),
        biases[rows],
    )
    state.matrices[:, np.arange(k), np.arange(k)] = 1
    state.last_rows[:, k] = 1
    state.values[:, :k] = factors[rows]
    return _Side(of_users, lookup, dispatch.memory(device).put(state))


def _touches(
    side: _Side,
    users: npt.NDArray[np.int32],
    stage: Stage,
    places: Codes,
    device: str,
) -> Touches:
    """Which logged steps touched the rows of a side, row after row."""
    memory, log = dispatch.memory(device), stage.log
    n_candidates = log.items.shape[1]
    visits = np.flatnonzero(stage.slots[stage.start : stage.stop] >= 0) + stage.start
    slots = np.arange(len(visits))  # visits are logged one behind the other
    if side.of_users:
        codes, entries, targets = side.lookup[users[visits]], slots * n_candidates, places[visits]
    else:
        items = memory.fetch(log.items)[: len(visits)]
        found = items >= 0
        codes = side.lookup[items[found]]
        entries = (slots[:, None] * n_candidates + np.arange(n_candidates))[found]
        targets = np.full(items.shape, -1)
        targets[:, 0] = places[visits]
        targets = targets[found]
    here = codes >= 0
    if not here.all():
        codes, entries, targets = codes[here], entries[here], targets[here]
    pointers, order = dispatch.kernels("grouping").count_sort(codes, side.state.values.shape[0])
    touches: Touches = memory.put(Touches(pointers, entries[order], targets[order]))
    return touches


def _walk(
    side: _Side,
    touches: Touches,
    program: Program,
    stage: Stage,
    credited: Changes,
    n_threads: int,
    device: str,
) -> None:
    roll_back_rows = dispatch.kernels("curvature", device).roll_back_rows

    def part(start: int, stop: int) -> None:
        roll_back_rows(
            side.state,
            touches,
            side.of_users,
            stage.log,
            program.hyper(stage.epoch),
            program.recipe.loss_code,
            credited.rows,
            credited.biases,
            start,
            stop,
        )

    if device == "cuda":
        part(0, side.state.values.shape[0])
        return
    # Loading and storing a matrix costs about as much as four touches.
    work = np.diff(touches.pointers) + 4.0
    dispatch.run_parts(part, dispatch.even_parts(work, 4 * n_threads), n_threads)
