"""The same model, trained again without some of its examples."""

from __future__ import annotations

from typing import TypeVar

import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.memory import memory_budget
from fastinfluence.models.base import Model, trajectory_of
from fastinfluence.training import Trajectory, train

__all__ = ["predrawn", "without"]

Kind = TypeVar("Kind", bound=Model)


def without(model: Kind, examples: npt.ArrayLike) -> Kind:
    """Train again from the same start, in the same order, without some examples.

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
        Fitted; it stays as it is.
    examples : sequence of int
        Training indices. They get the weight 0: nobody else's order or negatives change, they
        still count as known, and training indices remain what they are.

    Returns
    -------
    the same kind of model
        After as many epochs as `model`, with a Trajectory of its own; its parameters are those
        of ``model.trajectory_.retrain(without=examples)`` to the last bit.

    Raises
    ------
    DataError
        An index outside the data, or nothing left to train on.
    FastInfluenceError
        Training without the examples diverged.
    """
    trajectory = trajectory_of(model, "training it again")
    again = train(
        trajectory.reweighted(examples, name="examples"),
        start=trajectory.checkpoints[0],
        n_epochs=trajectory.n_epochs,
        memory_budget=memory_budget(),
        n_threads=dispatch.thread_count(model.n_threads),
        show_progress=False,
    )
    return _at_the_end_of(again, model)


def predrawn(model: Kind) -> Kind:
    """Return the same model with all its negatives drawn, for many calls of `without`."""
    old = trajectory_of(model, "training it again")
    n_threads = dispatch.thread_count(model.n_threads)
    return _at_the_end_of(old.predrawn(memory_budget=memory_budget(), n_threads=n_threads), model)


def _at_the_end_of(trajectory: Trajectory, model: Kind) -> Kind:
    parameters = model.get_params() | {"rng": trajectory.recipe.seed}
    return type(model)(**parameters)._take(trajectory)
