"""Curvature Rollback's kernels as `roll_back_rows` launches them."""

from __future__ import annotations

import numpy as np
from numba import types
from toolchain import Compiled
from typed import FLAG, array, matrix, number, structure

from fastinfluence.kernels.cuda import curvature, plans

_SHAPE = types.NamedTuple((FLAG, FLAG, *[number] * 4), plans.Shape)
_FAST = [(np.float32, width) for width in (16, 32, 64, 128)] + [
    (np.float64, width) for width in (16, 32)
]


def compiled() -> list[Compiled]:
    return [
        *(in_registers(dtype, width, False) for dtype, width in _FAST),
        *(in_registers(np.float32, width, True) for width in (16, 128)),
        *(in_memory(dtype, True) for dtype in (np.float32, np.float64)),
    ]


def in_registers(dtype: type, width: int, adagrad: bool) -> Compiled:
    threads = curvature.in_registers(width, dtype).threads
    n_numbers, n_places = curvature._sizes(width, 1, threads)
    return Compiled(
        curvature._in_registers(width, dtype, adagrad),
        (*arguments(dtype), number, number),
        threads,
        n_numbers * np.dtype(dtype).itemsize + n_places * 8,
        f"k={width} {np.dtype(dtype)}{' adagrad' if adagrad else ''}",
    )


def in_memory(dtype: type, adagrad: bool) -> Compiled:
    signature = (
        *arguments(dtype), number, number, matrix(np.dtype(dtype).str[1:]), array("i8", 2)
    )  # fmt: skip
    threads = curvature.in_memory(dtype).threads
    note = f"{np.dtype(dtype)}{' adagrad' if adagrad else ''}"
    return Compiled(curvature._in_memory(dtype, adagrad), signature, threads, 0, note)


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
