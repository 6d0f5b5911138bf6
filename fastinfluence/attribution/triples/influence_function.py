"""Influence functions for models of triples."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from fastinfluence.attribution import influence_function
from fastinfluence.attribution.triples.method import TripleAttribution, refuse_unit_norm
from fastinfluence.models import KnowledgeGraphModel

__all__ = ["InfluenceFunction"]


class InfluenceFunction(
    TripleAttribution, influence_function.InfluenceFunction, of=KnowledgeGraphModel
):
    """Influence functions of a DistMult or ComplEx model.

    As for users and items (`fastinfluence.InfluenceFunction`), ``scope="global"`` only: the loss
    of a triple is that of all the questions training asks about it, its negatives those of the last
    epochs on average, and every triple may have influence on every query. Negatives and what they
    do to probabilities are part of it. An iteration goes through the triples, sides, epochs
    averaged and candidates once for 16 queries; where training took few epochs `Replay`, which
    leaves nothing to an assumption, is not slower.
    """

    served = ("cpu",)

    def __init__(self, model: KnowledgeGraphModel, **options: Any) -> None:
        super().__init__(model, **options)
        refuse_unit_norm(self)

    @cached_property
    def _endpoint(self) -> Any:
        trajectory = self.model.trajectory_
        return trajectory.program.endpoint(trajectory.end.tables, n_threads=self._within)
