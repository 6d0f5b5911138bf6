"""The damping of influence functions: what stands for training that stopped early."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from fastinfluence.errors import ParameterError

if TYPE_CHECKING:
    from fastinfluence.training import Trajectory

__all__ = ["check_damping", "default_damping"]


def default_damping(trajectory: Trajectory) -> float:
    """Damping that stands for training which stopped before the minimum.

    One over the sum of the epochs' learning rates: gradient flow of that length leaves as much of
    a direction of curvature c unlearned, to first order, as damping does (SOURCE with a single
    segment, arXiv 2405.12186). Adagrad's and Adam's rates are those of the mean coordinate.
    """
    program = trajectory.program
    total: float = sum(program.rate(epoch) for epoch in range(trajectory.n_epochs))
    squares = trajectory.end.squares
    stretch = 1.0
    if squares is not None and len(squares):
        tables = squares if isinstance(squares, tuple) else (squares,)
        roots = np.concatenate([np.sqrt(table[table > 0], dtype=np.float64) for table in tables])
        # Adagrad's sums grow with the steps: its mean rate is about twice its last.
        growing = 2.0 if program.recipe.optimizer == "adagrad" else 1.0
        stretch = float(roots.mean()) / growing if len(roots) else 1.0
    return stretch / total


def check_damping(damping: float | None, trajectory: Trajectory) -> float:
    """Return the damping, that of the trajectory for None.

    Raises
    ------
    ParameterError
        It is no finite number >= 0.
    """
    if damping is None:
        return default_damping(trajectory)
    if isinstance(damping, bool) or not isinstance(damping, Real) or not 0 <= damping < np.inf:
        raise ParameterError(f"damping must be a finite number >= 0, not {damping!r}")
    return float(damping)
