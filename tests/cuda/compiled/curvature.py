"""Curvature Rollback's kernels as `roll_back_rows` launches them."""

from __future__ import annotations

import numpy as np
from numba import types
from toolchain import Compiled
from typed import FLAG, array, matrix, number, structure

from fastinfluence.kernels.cuda import curvature, plans

_SHAPE = types.NamedTuple((FLAG, FLAG, *[number] * 4), plans.Shape)


def compiled() -> list[Compiled]:
    """Every way of holding a matrix, each optimizer, and both dtypes: not every pair of them."""
    return [
        *(in_registers(np.float32, width, False) for width in (16, 64, 128)),
        in_registers(np.float32, 64, True),
        in_registers(np.float64, 32, False),
        *(in_memory(np.float64, adagrad) for adagrad in (False, True)),
    ]


def in_registers(dtype: type, width: int, adagrad: bool) -> Compiled:
    threads = curvature.in_registers(width, dtype).threads
    n_floats, n_places = plans.sizes(width, 1, threads)
    return Compiled(
        curvature._in_registers(width, dtype, adagrad),
        (*arguments(dtype), number),
        threads,
        n_floats * np.dtype(dtype).itemsize + n_places * 4,
        f"k={width} {np.dtype(dtype)}{' adagrad' if adagrad else ''}",
    )


def in_memory(dtype: type, adagrad: bool) -> Compiled:
    signature = (
        *arguments(dtype), matrix(np.dtype(dtype).str[1:]), matrix("i4")
    )  # fmt: skip
    threads = curvature.in_memory(dtype).threads
    note = f"k=64 in memory {np.dtype(dtype)}{' adagrad' if adagrad else ''}"
    return Compiled(curvature._in_memory(64, dtype, adagrad), signature, threads, 0, note)


def arguments(dtype: type) -> tuple:
    code = np.dtype(dtype).str[1:]
    return (
        structure("Curvature", code),
        structure("Touches", code),
        _SHAPE,
        structure("Log", code),
        structure("Hyper", code),
        matrix(code),
        array(code, 1),
        number,
    )
