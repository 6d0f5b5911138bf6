"""The attribution methods by name, for ``explain --method`` and ``evaluate --methods``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastinfluence import attribution, dispatch
from fastinfluence.attribution import CurvatureRollback
from fastinfluence.attribution.base import RowAttribution
from fastinfluence.attribution.method import Attribution
from fastinfluence.attribution.pair_influence import PairInfluence
from fastinfluence.errors import ParameterError
from fastinfluence.models import Model

__all__ = ["METHODS", "check_device", "check_explaining", "explaining", "make_method", "streams"]

METHODS: dict[str, type[Any]] = {  # all of the package, and a scope that is a method of its own
    kind.name: kind
    for kind in (*vars(attribution).values(), PairInfluence)
    if isinstance(kind, type) and issubclass(kind, Attribution)
}


def make_method(
    name: str,
    model: Model,
    queries: Any = None,
    *,
    n_threads: int | None = None,
    device: str = "auto",
) -> Any:
    """Make the attribution object that explains these queries, or any where None."""
    options = {"rows": queries} if name == CurvatureRollback.name else {}  # others take no longer
    return METHODS[name](model, n_threads=n_threads, device=device, **options)


def explaining(model: Model) -> list[str]:
    """Names of the methods that explain models of this kind."""
    return [name for name, method in METHODS.items() if isinstance(model, method.kinds())]


def check_explaining(names: Collection[str], model: Model) -> None:
    """Raise ParameterError where one of the methods does not explain models of this kind."""
    able = explaining(model)
    unable = [name for name in names if name not in able]
    if unable:
        raise ParameterError(
            f"no {', no '.join(unable)} for a {type(model).__name__}: it can be explained by "
            f"{', '.join(able)}"
        )


def check_device(names: Collection[str], model: Model, device: str) -> None:
    """Raise ParameterError or DeviceError where one of the methods cannot be had on a device."""
    for name in names:
        dispatch.choose(device, METHODS[name].variant(model).served)


def streams(name: str) -> bool:
    """Whether a method explains any number of predictions into a folder, in bounded memory."""
    return issubclass(METHODS[name], RowAttribution)
