"""Numba types of what kernels take: structures by name, in a dtype of the tables."""

from __future__ import annotations

from typing import Any

from numba import types

from fastinfluence.kernels import structures

__all__ = ["FLAG", "array", "matrix", "number", "scalar", "structure"]

# Dimensions and dtype of every field; T stands for the dtype of the tables.
_ARRAYS = {
    "Tables": "T2 T2 T1 T1",
    "Examples": "i4-1 i4-1 T1 T1 i8-1",
    "Sampler": "int int i8-1 i4-1 i8-1 i4-1 i4-2",
    "Hyper": "T T T T",
    "Record": "T2 T2 T2",
    "Log": "i4-1 i4-2 T2 T2 T2 T2 T2",
    "Touches": "i8-1 i8-1 i8-1",
    "Curvature": "T3 T2 T2 T1",
    "Adjoint": "T3 T3",
    "Edges": "i8-1 i4-1 i4-1 i8-1 i4-1 i8-1",
    "Side": "T1 i8-1 i8-1",
    "Queries": "i8-1 i4-1 T2",
    "Exclusions": "i8-1 i8-1 i8-1",
    "Top": "T2 i4-2 f8-1",
    "GraphTables": "T2",
    "Graph": "int int bool bool",
    "Links": "i4-1 i4-1 b-1 i4-1",
    "TripleRows": "T3 i4-1 i4-1 i4-1 i8-1 i4-1 i8-1 i4-1",
    "LinkGroups": "i4-1 i4-1 b-1 i4-1 i8-1 i8-1 i4-1 i8-1",
    "Influences": "i8-1 i4-1 T1",
}
_DTYPES = {
    "f4": types.float32,
    "f8": types.float64,
    "i4": types.int32,
    "i8": types.int64,
    "u2": types.uint16,
    "b": types.boolean,
}

number, FLAG = types.int64, types.boolean


def scalar(dtype: str) -> Any:
    """A number of a dtype: "f4", "f8", "i4", "i8", "u2", "b"."""
    return _DTYPES[dtype]


def array(dtype: str, ndim: int) -> Any:
    """A C-contiguous array."""
    return types.Array(_DTYPES[dtype], ndim, "C")


def matrix(dtype: str) -> Any:
    """A C-contiguous array of two dimensions."""
    return array(dtype, 2)


def structure(name: str, dtype: str = "f4", **fields: Any) -> Any:
    """A named tuple of `structures`; `fields` replace the types of some of its fields."""
    kind = getattr(structures, name)
    found = dict(zip(kind._fields, map(_typed(dtype), _ARRAYS[name].split()), strict=True))
    # Of one type throughout it is another type of tuple, as it is for arrays that are launched.
    return types.BaseTuple.from_types(tuple((found | fields).values()), kind)


def _typed(dtype: str) -> Any:
    def typed(code: str) -> Any:
        if code in ("int", "bool"):
            return number if code == "int" else FLAG
        if code == "T":
            return _DTYPES[dtype]
        if code[0] == "T":
            return array(dtype, int(code[1]))
        element, _, ndim = code.partition("-")
        return array(element, int(ndim))

    return typed
