"""The attribution methods by name, for ``explain --method`` and ``evaluate --methods``."""

from __future__ import annotations

from typing import Any

from fastinfluence.attribution import CurvatureRollback, GradientRollback, Replay
from fastinfluence.attribution.base import RowAttribution
from fastinfluence.models import Model

__all__ = ["METHODS", "make_method", "streams"]

METHODS: dict[str, type[Any]] = {
    method.name: method for method in (GradientRollback, CurvatureRollback, Replay)
}


def make_method(
    name: str, model: Model, queries: Any = None, *, n_threads: int | None = None
) -> Any:
    """Make the attribution object that explains these queries, or any where None."""
    options = {"rows": queries} if name == CurvatureRollback.name else {}  # others take no longer
    return METHODS[name](model, n_threads=n_threads, **options)


def streams(name: str) -> bool:
    """Whether a method explains any number of predictions into a folder, in bounded memory."""
    return issubclass(METHODS[name], RowAttribution)
