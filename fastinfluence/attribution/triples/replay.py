"""Replay for models of triples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution import replay
from fastinfluence.attribution.triples.method import (
    TripleAttribution,
    refuse_unit_norm,
    warn_of_chaos,
)
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import LANES, RowAdjoint
from fastinfluence.memory import aligned_zeros
from fastinfluence.models import KnowledgeGraphModel
from fastinfluence.training.backward import Stage

if TYPE_CHECKING:
    from fastinfluence.training import GraphProgram

__all__ = ["Replay"]

Array = npt.NDArray[Any]


class Replay(TripleAttribution, replay.Replay, of=KnowledgeGraphModel):
    """The exact derivative of a prediction by the weight of every training triple.

    As for users and items (`fastinfluence.Replay`), through SGD, Adagrad, Adam on touched rows
    and dense Adam. `hops` may be None (exact) or 1, which follows influence only in the rows of
    the query's own entities and relation.

    An explanation's `amplification` is the greatest norm that the derivative by all rows had at
    the end of an epoch, over that at the end of training. Beyond `AMPLIFICATION_LIMIT` training
    was chaotic, and a `ChaosWarning` says so.
    """

    served: ClassVar[tuple[str, ...]] = ("cpu",)

    def __init__(self, model: KnowledgeGraphModel, *, hops: int | None = None, **options: Any):
        super().__init__(model, hops=hops, **options)
        if hops == 2:
            raise ParameterError(
                "hops must be 1 or None (exact) for triples: entities drawn as negatives are "
                "neighbours of everything, so two hops are all rows"
            )
        refuse_unit_norm(self)

    def _beginning(self, quantity: Any) -> Callable[[int], _Block]:
        program = self.model.trajectory_.program

        def begin(start: int) -> _Block:
            stop = min(start + LANES, len(quantity))
            adjoint = _zeros(program)
            adjoint.rows[:, :, : stop - start] = quantity.dense_gradient(
                start, stop, *self._parameters
            )
            allowed = np.full(program.n_rows, 2**LANES - 1, np.uint16)
            if self.hops == 1:
                allowed[:] = 0
                for rows in _rows_of(quantity):
                    bits = np.uint16(1) << np.arange(stop - start, dtype=np.uint16)
                    np.bitwise_or.at(allowed, rows[start:stop], bits)
                _keep(adjoint.rows, allowed)
            influence = aligned_zeros((len(self.data), LANES), program.dtype)
            norms = _norms(adjoint)
            return _Block(adjoint, allowed, influence, norms, norms.copy())

        return begin

    def _visits_of(self, blocks: list[_Block]) -> None:
        """All: negatives may touch any row."""

    def _blocks_at_once(self) -> int:
        program = self.model.trajectory_.program
        tables = 1 + (program.recipe.optimizer != "sgd") + ("adam" in program.recipe.optimizer)
        numbers = tables * program.n_rows * program.recipe.n_factors + 2 * len(self.data)
        return self._fitting(LANES * program.dtype.itemsize * numbers, self._log_bytes)

    def _step_back(self, stage: Stage, blocks: list[_Block]) -> None:
        program = self.model.trajectory_.program
        replay_triples = dispatch.kernels("graph_replay").replay_triples

        def part(start: int, stop: int) -> None:
            for block in blocks[start:stop]:
                replay_triples(
                    block.adjoint,
                    program.graph,
                    program.examples,
                    stage.log,
                    program.hyper,
                    stage.epoch,
                    stage.start,
                    stage.stop,
                    block.allowed,
                    block.influence,
                )
                np.maximum(block.greatest, _norms(block.adjoint), out=block.greatest)

        parts = [(number, number + 1) for number in range(len(blocks))]
        dispatch.run_parts(part, parts, self._n_threads)

    def _facts(self, block: _Block) -> dict[str, Array]:
        asked = block.norms > 0
        amplification = np.ones(LANES)
        np.divide(block.greatest, block.norms, out=amplification, where=asked)
        amplification[np.isnan(amplification)] = np.inf  # beyond all numbers
        return {"amplification": amplification}

    def _conclude(self, facts: list[dict[str, Array]]) -> None:
        amplification = np.concatenate([some["amplification"] for some in facts])
        warn_of_chaos(amplification, self.model.trajectory_.recipe)


class _Block(NamedTuple):
    """Queries that go back side by side, one a lane."""

    adjoint: RowAdjoint
    allowed: npt.NDArray[np.uint16]  # (n_rows,) lanes that may live on each row
    influence: Array  # (n, LANES), by visit
    norms: Array  # (LANES,): of the derivative by all rows, behind the last step
    greatest: Array  # (LANES,): the greatest since


def _zeros(program: GraphProgram) -> RowAdjoint:
    shape, optimizer = (program.recipe.n_factors, LANES), program.recipe.optimizer

    def zeros(kept: bool) -> Array:
        return aligned_zeros((program.n_rows if kept else 0, *shape), program.dtype)

    return RowAdjoint(zeros(True), zeros("adam" in optimizer), zeros(optimizer != "sgd"))


def _norms(adjoint: RowAdjoint) -> Array:
    """Norms (LANES,) of the derivatives by all rows."""
    squares = np.einsum("rdq,rdq->q", adjoint.rows, adjoint.rows, dtype=np.float64)
    norms: Array = np.sqrt(squares)
    return norms


def _rows_of(quantity: Any) -> list[npt.NDArray[np.int32]]:
    """Rows (n,) of every query's own entities and relation."""
    links = quantity.links
    if links is None:
        raise ParameterError("hops=1 needs queries about triples: use hops=None")
    others = [] if quantity.over is None else [quantity.over.targets]
    return [links.subjects, links.relations, links.targets, *others]


def _keep(rows: Array, allowed: npt.NDArray[np.uint16]) -> None:
    """Zero the lanes that may not live on a row."""
    bits = (allowed[:, None] >> np.arange(LANES, dtype=np.uint16)) & 1
    rows *= bits[:, None, :].astype(rows.dtype)
