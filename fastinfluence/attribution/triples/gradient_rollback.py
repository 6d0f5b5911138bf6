"""Gradient Rollback for models of triples."""

from __future__ import annotations

from fastinfluence.attribution import gradient_rollback
from fastinfluence.attribution.triples.base import TripleRowAttribution
from fastinfluence.errors import ParameterError
from fastinfluence.models import KnowledgeGraphModel
from fastinfluence.training.graph_program import CREDITS

__all__ = ["GradientRollback"]


class GradientRollback(  # type: ignore[misc]  # explains triples, not pairs
    TripleRowAttribution, gradient_rollback.GradientRollback, of=KnowledgeGraphModel
):
    """Gradient Rollback of a DistMult or ComplEx model, as published for them.

    As for users and items (`fastinfluence.GradientRollback`): the changes of the rows of its
    head, its tail and its relation are added up for every triple and taken back. With Adam the
    two credits differ: ``update`` is the actual change of a row, as published, in which momentum
    that other triples left takes part; ``gradient`` is the triple's own gradient times what the
    optimizer scaled it with, which has been the more faithful one.
    """

    def __init__(
        self,
        model: KnowledgeGraphModel,
        *,
        credit: str = "update",
        n_threads: int | None = None,
        device: str = "auto",
        show_progress: bool | None = None,
    ) -> None:
        TripleRowAttribution.__init__(self, model, n_threads=n_threads, device=device)
        if credit not in CREDITS:
            raise ParameterError(f"credit={credit!r} is not known: use 'update' or 'gradient'")
        trajectory = model.trajectory_
        if credit == "gradient" and trajectory.recipe.unit_norm:
            raise ParameterError(
                "credit='gradient' adds up steps along gradients, but with unit_norm=True training "
                "also projected the rows: use credit='update', or train with unit_norm=False"
            )
        self.credit = credit
        record = trajectory.record
        if record is None or (credit == "gradient" and "adam" in trajectory.recipe.optimizer):
            record = trajectory.replay(
                n_threads=self._n_threads, show_progress=show_progress, credit=credit
            )
        self._set_changes(record.changes[trajectory.visits()])
