"""HYDRA for models of triples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution import hydra
from fastinfluence.attribution.hydra import Block, Entries
from fastinfluence.attribution.triples.method import TripleAttribution, refuse_unit_norm
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import LANES
from fastinfluence.models import KnowledgeGraphModel
from fastinfluence.training.backward import Stage

__all__ = ["Hydra"]

Array = npt.NDArray[Any]


class Hydra(TripleAttribution, hydra.Hydra, of=KnowledgeGraphModel):
    """HYDRA of a DistMult or ComplEx model, without Hessians.

    As for users and items (`fastinfluence.Hydra`): SGD, with `momentum` and `weight_decay`, and as
    trained Adagrad and both kinds of Adam, where a step's gradient is scaled as Adam scaled it in
    that step, its momentum left out (the ``credit="gradient"`` of `GradientRollback`). With
    ``weight_decay=None`` the rows of subject, relation and answer forget what regularization took
    of them. ``hessian="forward"`` is left to `Replay`.
    """

    def __init__(
        self, model: KnowledgeGraphModel, *, hessian: str | None = None, **options: Any
    ) -> None:
        if hessian == "forward":
            raise ParameterError(
                "hessian='forward' follows training of users and items only: use Replay, which "
                "gives the same numbers for triples"
            )
        super().__init__(model, hessian=hessian, **options)
        refuse_unit_norm(self)

    @property
    def _shape(self) -> tuple[int, int]:
        program = self.model.trajectory_.program
        return program.n_rows, program.recipe.n_factors

    def _entries(self, quantity: Any) -> Callable[[int], Entries]:
        def entries(start: int) -> Entries:
            stop = min(start + LANES, len(quantity))
            return Entries(*quantity.gradients(*self._parameters, start, stop))

        return entries

    def _visits_of(self, blocks: list[Block]) -> None:
        """All: negatives may touch any row."""

    def _steps(self, epoch: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        program = self.model.trajectory_.program
        n = len(self.data) * program.hyper.sides
        sizes = dispatch.kernels("row_optimizers").step_sizes(program.hyper, epoch * n, n)
        return sizes[1:], np.repeat(program.examples.weights != 0, program.hyper.sides)

    def _credit(self, block: Block, stage: Stage, factors: Array) -> None:
        program = self.model.trajectory_.program
        dispatch.kernels("graph_hydra").hydra_triples(
            block.rows,
            block.left,
            block.slots,
            program.graph,
            program.examples,
            stage.log,
            program.hyper,
            stage.epoch,
            factors,
            self.weight_decay is None,
            stage.start,
            stage.stop,
            block.influence,
        )
