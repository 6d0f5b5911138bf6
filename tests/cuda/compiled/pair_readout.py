"""The read-out of pairs that have vectors of their own."""

from __future__ import annotations

import numpy as np
from toolchain import Compiled
from typed import array, matrix, number, scalar, structure

from fastinfluence.kernels.cuda import pair_readout

ELEMENTS = {"f4": np.dtype(np.float32), "f8": np.dtype(np.float64), "u2": np.dtype(np.uint16)}


def compiled() -> list[Compiled]:
    return [
        entry
        for dtype, element in (("f4", "f4"), ("f4", "u2"), ("f8", "f8"))
        for entry in _of(dtype, element)
    ]


def _of(dtype: str, element: str) -> list[Compiled]:
    """Kernels for vectors of one dtype and rows of another."""
    note, kind, threads = f"{element} rows", ELEMENTS[element], pair_readout.THREADS
    ints, codes, vector = array("i8", 1), array("i4", 1), array(dtype, 1)
    side = structure("Side", dtype, rows=array(element, 1))
    asked = side, side, matrix(dtype), matrix(dtype), codes, codes
    top = scalar(dtype), *asked, number, structure("Top", dtype)
    return [
        Compiled(pair_readout._top_reader(ELEMENTS[dtype], kind), top, threads, note=note),
        Compiled(
            pair_readout._sparse_reader(kind), (*asked, ints, codes, vector), threads, note=note
        ),
        Compiled(
            pair_readout._own_reader(kind),
            (*asked, ints, ints, ints, vector),
            pair_readout._EXAMPLES,
            note=note,
        ),
    ]
