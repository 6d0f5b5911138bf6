"""Gradient Rollback: add up what each example did to its rows, and take it back."""

from __future__ import annotations

import os

from fastinfluence.attribution.base import RowAttribution
from fastinfluence.attribution.rows import Changes, RowStore, recorded
from fastinfluence.errors import ParameterError
from fastinfluence.models import MatrixFactorization

__all__ = ["GradientRollback"]

CREDITS = ("update", "gradient")


class GradientRollback(RowAttribution):
    """Gradient Rollback (Lawrence, Sztyler & Niepert 2021).

    While training visits example j, the changes of its user's row and its item's row are added
    up over all epochs, ``gamma_j``. The influence of j on the score of a query is ::

        f(theta) - f(theta - gamma_j)

    the score the model has, minus the score it would have with j's own updates taken back. Axes
    are (n_queries, n_train); positive: training on j raised the score. What later steps made of
    j's updates is not followed, so the values order the examples (``units = "rank"``) but
    overstate what retraining without them changes, up to some thirty-fold after long training.

    Negatives drawn for an example belong to it: its user's row is credited with their pull.
    Their own rows are updated but not tracked, as published.

    Parameters
    ----------
    model : MatrixFactorization
        Fitted; with ``fit(record="rollback")`` the rows are there already, otherwise they are
        rebuilt by replaying the Trajectory, bit for bit the same.
    credit : {"update", "gradient"}, default "update"
        ``update`` credits an example with the actual change of its rows, as published;
        ``gradient`` with its own gradient times the optimizer's scaling at that step. With one
        example a step and neither momentum nor Adam the two are one and the same number, so
        for SGD and Adagrad both are read from the same rows.
    row_dtype : {None, "float32", "float64", "bfloat16"}
        Of the stored rows: that of the model (the default), or for a float32 model bfloat16,
        which takes half the memory (three decimal digits).
    path : path-like, optional
        Folder for the rows, which are then memory-mapped; rows of the same model found there
        are used as they are.
    n_threads : int, optional
    device : {"auto", "cpu", "cuda"} or "torch:<device>", default "auto"
        Where the most influential examples are looked for.
    show_progress : bool, optional

    Raises
    ------
    NotFittedError
    ReplayMismatch
        Replaying the Trajectory did not give the model's parameters.

    References
    ----------
    Explaining neural matrix factorization with gradient rollback, AAAI 2021, arXiv 2010.05516.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> why = fi.GradientRollback(model)
    >>> why.explain([("bob", "y")]).train_index.shape
    (1, 10)
    """

    name = "gradient-rollback"
    units = "rank"
    served = ("cpu", "cuda", "torch")

    def __init__(
        self,
        model: MatrixFactorization,
        *,
        credit: str = "update",
        row_dtype: str | None = None,
        path: str | os.PathLike[str] | None = None,
        n_threads: int | None = None,
        device: str = "auto",
        show_progress: bool | None = None,
    ) -> None:
        super().__init__(model, n_threads=n_threads, device=device)
        if credit not in CREDITS:
            raise ParameterError(f"credit={credit!r} is not known: use 'update' or 'gradient'")
        self.credit = credit
        trajectory = model.trajectory_

        def changes() -> tuple[Changes, Changes]:
            record = trajectory.record
            if record is None:
                record = trajectory.replay(n_threads=self._n_threads, show_progress=show_progress)
            return recorded(record, trajectory.visits())

        self._rows = RowStore.obtain(
            trajectory,
            changes,
            (self.data.by_user, self.data.by_item),
            meta={"method": self.name},
            dtype=row_dtype,
            path=path,
            n_threads=self._n_threads,
        )
