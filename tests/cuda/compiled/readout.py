"""The kernels of the read-out, and of rows of single examples."""

from __future__ import annotations

import numpy as np
from toolchain import Compiled
from typed import array, matrix, number, scalar, structure

from fastinfluence.kernels.cuda import panels, readout, row_tiles, rows

ELEMENTS = {"f4": np.dtype(np.float32), "f8": np.dtype(np.float64), "u2": np.dtype(np.uint16)}


def compiled() -> list[Compiled]:
    ints, codes = array("i8", 1), array("i4", 1)
    found = [
        Compiled(
            readout._find_pairs,
            (ints, codes, codes, codes, number, number, ints, ints),
            rows.THREADS,
        )
    ]
    for dtype in ("f4", "f8"):
        top = structure("Top", dtype)
        found.append(
            Compiled(
                readout._merge_parts,
                (matrix("i8"), ints, ints, top, top),
                row_tiles.THREADS,
                note=dtype,
            )
        )
    return found + [
        entry
        for dtype, element in (("f4", "f4"), ("f4", "u2"), ("f8", "f8"))
        for entry in _of(dtype, element)
    ]


def _of(dtype: str, element: str) -> list[Compiled]:
    """Kernels for vectors of one dtype and rows of another."""
    note = f"{element} rows"
    ints, codes, kind = array("i8", 1), array("i4", 1), ELEMENTS[element]
    side, top = structure("Side", dtype, rows=array(element, 1)), structure("Top", dtype)
    left_out, vectors = structure("Exclusions"), (matrix(dtype), matrix(dtype))
    packing = (matrix(dtype), array(dtype, 1), ints, ints, number, number, array(element, 1))
    return [
        Compiled(
            readout._reader(ELEMENTS[dtype], kind),
            (scalar(dtype), side, structure("Queries", dtype), left_out, matrix("i8"), top, top),
            row_tiles.THREADS,
            note=note,
        ),
        Compiled(
            readout._own_reader(kind),
            (scalar(dtype), side, side, left_out, ints, *vectors, codes, codes, top),
            rows.THREADS,
            note=note,
        ),
        Compiled(
            rows._self_influence(kind),
            (side, side, ints, ints, *vectors, codes, codes, ints, number, array(dtype, 1)),
            rows.THREADS,
            note=note,
        ),
        Compiled(
            panels._pack_bfloat16 if element == "u2" else panels._pack,
            packing,
            panels._THREADS,
            note=note,
        ),
    ]
