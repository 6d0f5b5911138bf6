"""PyKEEN's triples factories as columns, by what they offer: PyKEEN is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import DataError

__all__ = ["factory_columns"]


def factory_columns(factory: Any, validation: Any = None, test: Any = None) -> dict[str, Any]:
    """Arguments of `Triples.from_arrays` from one factory and those of its splits."""
    found: dict[str, Any] = {}
    for kind in ("entity", "relation"):
        found[f"{kind}_ids"] = _labels_in_order(_id_map(factory, kind), kind)
    for split, other in (("validation", validation), ("test", test)):
        if other is None:
            continue
        for kind in ("entity", "relation"):
            if _id_map(other, kind) != _id_map(factory, kind):
                raise DataError(
                    f"the {split} factory has another {kind}_to_id: make it with the {kind}_to_id "
                    "of the training factory"
                )
        found[split] = _mapped_triples(other)
    heads, relations, tails = _mapped_triples(factory).T
    return {"heads": heads, "relations": relations, "tails": tails, **found}


def _id_map(factory: Any, kind: str) -> Mapping[str, int]:
    name = f"{kind}_to_id"
    if not hasattr(factory, "mapped_triples") or not isinstance(
        getattr(factory, name, None), Mapping
    ):
        raise DataError(
            f"a {type(factory).__name__} is no PyKEEN TriplesFactory: it lacks mapped_triples or "
            f"{name}"
        )
    ids: Mapping[str, int] = getattr(factory, name)
    return ids


def _labels_in_order(ids: Mapping[str, int], kind: str) -> list[str]:
    labels = sorted(ids, key=ids.__getitem__)
    if [ids[label] for label in labels] != list(range(len(ids))):
        raise DataError(f"{kind}_to_id must number the {kind} names 0 to {len(ids) - 1:,}")
    return labels


def _mapped_triples(factory: Any) -> npt.NDArray[np.int64]:
    triples = factory.mapped_triples
    triples = np.asarray(triples.cpu() if hasattr(triples, "cpu") else triples)
    if triples.ndim != 2 or triples.shape[1] != 3:
        raise DataError(f"mapped_triples must be (n, 3), not of shape {triples.shape}")
    return triples
