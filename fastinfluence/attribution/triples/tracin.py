"""TracIn for models of triples."""

from __future__ import annotations

from typing import Any

from fastinfluence.attribution import tracin
from fastinfluence.attribution.triples.method import TripleAttribution, refuse_unit_norm
from fastinfluence.errors import ParameterError
from fastinfluence.models import KnowledgeGraphModel

__all__ = ["TracIn"]


class TracIn(TripleAttribution, tracin.TracIn, of=KnowledgeGraphModel):
    """TracIn of a DistMult or ComplEx model, from its checkpoints.

    As for users and items with ``mode="checkpoints"`` (`fastinfluence.TracIn`), which here is the
    default and the only mode: any objective, probabilities among all entities included. The
    rate of an epoch is the mean of its steps'; what Adagrad and Adam make of gradients is not
    followed.
    """

    def __init__(
        self, model: KnowledgeGraphModel, *, mode: str = "checkpoints", **options: Any
    ) -> None:
        if mode == "ideal":
            raise ParameterError(
                "mode='ideal' follows scores of users and items: for a model of triples use "
                "mode='checkpoints'"
            )
        super().__init__(model, mode=mode, **options)
        refuse_unit_norm(self)
