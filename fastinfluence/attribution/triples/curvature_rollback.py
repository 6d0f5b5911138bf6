"""Curvature Rollback for models of triples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution import curvature_rollback
from fastinfluence.attribution.objectives import as_objective
from fastinfluence.attribution.triples.base import TripleRowAttribution
from fastinfluence.attribution.triples.method import refuse_unit_norm, warn_of_chaos
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import GraphCurvature
from fastinfluence.memory import aligned_zeros, memory_budget
from fastinfluence.models import KnowledgeGraphModel
from fastinfluence.training.backward import Stage, backward

if TYPE_CHECKING:
    from fastinfluence.training import GraphProgram, Trajectory

__all__ = ["CurvatureRollback"]

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]


class CurvatureRollback(  # type: ignore[misc]  # explains triples, not pairs
    TripleRowAttribution, curvature_rollback.CurvatureRollback, of=KnowledgeGraphModel
):
    """Gradient Rollback corrected by what later training made of each triple's updates.

    As for users and items (`fastinfluence.CurvatureRollback`): a triple's own gradient on the
    rows of its head, its tail and its relation, scaled as the optimizer scaled it, is carried to
    the end of training by the curvature of all later steps on the same row, those where an
    entity is a negative among them. Adagrad's and Adam's scaling is taken as it was.

    `rows` restricts the walk to the rows that these queries (or an objective) are about: of a
    large graph that is hundreds of times faster. Probabilities then leave out how a triple's other
    entities move the sum over all answers.

    An explanation's `amplification` is the greatest root mean square gain that a change of one of
    the query's rows had on its way to the end; beyond `AMPLIFICATION_LIMIT` a `ChaosWarning`
    says that training was chaotic. That is seen here only where a row's own steps overshoot:
    what rows do to each other `Replay` sees.
    """

    def __init__(
        self,
        model: KnowledgeGraphModel,
        *,
        rows: Any = None,
        n_threads: int | None = None,
        device: str = "auto",
        show_progress: bool | None = None,
    ) -> None:
        TripleRowAttribution.__init__(self, model, n_threads=n_threads, device=device)
        refuse_unit_norm(self)
        trajectory = model.trajectory_
        self._held_rows: Rows | None = None
        if rows is not None:
            self._held_rows = _rows_of(self._bind(as_objective(rows)))
        walk = _roll_back(trajectory, self._held_rows, self._n_threads, show_progress)
        self._set_changes(walk.changes)
        self._growth = walk.growth

    def _options_for(self, queries: Any) -> dict[str, Any]:
        return TripleRowAttribution._options_for(self, queries) | {"rows": queries}

    def _check_quantity(self, quantity: Any) -> None:
        """Raise ParameterError unless the rows of these queries were computed; warn of chaos."""
        if quantity.links is not None:
            needed = _rows_of(quantity)
            if self._held_rows is not None:
                missing = needed[~np.isin(needed, self._held_rows)]
                if len(missing):
                    raise ParameterError(
                        f"the rows of {len(missing):,} of the queries' entities and relations were "
                        "not computed: this CurvatureRollback was made with rows= of other "
                        "queries; make one without rows=, or with these"
                    )
            warn_of_chaos(self._amplification(quantity), self.model.trajectory_.recipe)

    def _amplification(self, quantity: Any) -> Array:
        """(n,) float64: the greatest gain of each query's own rows."""
        links, over = quantity.links, quantity.over
        found = np.maximum(self._growth[links.subjects], self._growth[links.relations])
        np.maximum(found, self._growth[links.targets], out=found)
        if over is not None:
            np.maximum(found, self._growth[over.targets], out=found)
        greatest: Array = found
        return greatest

    def self_influence(self) -> npt.NDArray[np.floating[Any]]:
        """Influence (n_train,) of every training triple on the score of itself."""
        if self._held_rows is not None:
            raise ParameterError(
                "self_influence needs the rows of all entities and relations: make the "
                "CurvatureRollback without rows="
            )
        return TripleRowAttribution.self_influence(self)


def _rows_of(quantity: Any) -> Rows:
    """Rows that the queries' own triples have, ascending."""
    if quantity.links is None:
        raise ParameterError("rows= takes queries about triples")
    columns = [quantity.links.subjects, quantity.links.relations, quantity.links.targets]
    if quantity.over is not None:
        columns.append(quantity.over.targets)
    rows: Rows = np.unique(np.concatenate(columns)).astype(np.int64)
    return rows


class _Walk(NamedTuple):
    changes: Array  # (n, S, d), by training index
    growth: Array  # (n_rows,): the greatest gain seen of each row, NaN where not looked at


class _Part(NamedTuple):
    """Some rows on their way back, those of one thread."""

    rows: Rows
    carried: GraphCurvature


def _roll_back(
    trajectory: Trajectory, held: Rows | None, n_threads: int, show_progress: bool | None
) -> _Walk:
    """Changes credited to all triples in all rows, or in some."""
    program: GraphProgram = trajectory.program
    rows = np.arange(program.n_rows) if held is None else held
    changes = program.new_record().changes
    growth = np.full(program.n_rows, np.nan)
    for parts in _chunks(program, rows, n_threads):
        stages = backward(
            trajectory,
            memory_budget=memory_budget() // 4,
            n_threads=n_threads,
            description="curvature",
            show_progress=show_progress,
        )
        for stage in stages:
            _walk(program, stage, parts, changes, n_threads)
        for part in parts:
            growth[part.rows] = part.carried.growth
    return _Walk(changes[trajectory.visits()], growth)


def _chunks(program: GraphProgram, rows: Rows, n_threads: int) -> Iterator[list[_Part]]:
    """Rows whose matrices fit a quarter of memory, dealt to the threads."""
    d, adam = program.recipe.n_factors, "adam" in program.recipe.optimizer
    size = d * d * program.dtype.itemsize * (2 if adam else 1)
    most = max(1, memory_budget() // size)
    for start in range(0, len(rows), most):
        some = rows[start : start + most]
        dealt = [some[thread::n_threads] for thread in range(n_threads)]
        yield [_part(program, own, adam) for own in dealt if len(own)]


def _part(program: GraphProgram, rows: Rows, adam: bool) -> _Part:
    d, n = program.recipe.n_factors, len(rows)
    slots = np.full(program.n_rows, -1, np.int32)
    slots[rows] = np.arange(n)
    matrices = aligned_zeros((n, d, d), program.dtype)
    matrices[:, np.arange(d), np.arange(d)] = 1
    momenta = aligned_zeros((n if adam else 0, d, d), program.dtype)
    carried = GraphCurvature(matrices, momenta, slots, np.zeros(n, np.int64), np.ones(n))
    return _Part(rows, carried)


def _walk(
    program: GraphProgram, stage: Stage, parts: list[_Part], changes: Array, n_threads: int
) -> None:
    roll_back_triples = dispatch.kernels("graph_curvature").roll_back_triples

    def walk(start: int, stop: int) -> None:
        for part in parts[start:stop]:
            roll_back_triples(
                part.carried,
                program.graph,
                program.examples,
                stage.log,
                program.hyper,
                stage.epoch,
                stage.start,
                stage.stop,
                changes,
            )

    dispatch.run_parts(walk, [(n, n + 1) for n in range(len(parts))], n_threads)
