"""The kernels of the read-out."""

from __future__ import annotations

import numpy as np
from toolchain import Compiled
from typed import array, matrix, number, scalar, structure

from fastinfluence.kernels.cuda import readout, row_tiles, rows

ELEMENTS = {"f4": np.float32, "f8": np.float64, "u2": np.uint16}


def compiled() -> list[Compiled]:
    ints = array("i8", 1)
    codes = array("i4", 1)
    found = [
        Compiled(
            readout._find_pairs, (ints, codes, codes, codes, number, number, ints, ints),
            rows.THREADS,
        )
    ]  # fmt: skip
    for dtype, element in (("f4", "f4"),):
        side = structure("Side", dtype, rows=array(element, 1))
        top, both = structure("Top", dtype), (matrix(dtype), matrix(dtype))
        queries, left_out = structure("Queries", dtype), structure("Exclusions")
        note = f"{element} rows"
        found.append(
            Compiled(
                readout._reader(np.dtype(ELEMENTS[dtype]), np.dtype(ELEMENTS[element])),
                (scalar(dtype), side, queries, left_out, matrix("i8"), top, top),
                row_tiles.THREADS,
                note=note,
            )
        )
        found.append(
            Compiled(
                readout._own_reader(np.dtype(ELEMENTS[element])),
                (scalar(dtype), side, side, left_out, ints, *both, codes, codes, top),
                rows.THREADS,
                note=note,
            )
        )
        if element != "u2":
            found.append(
                Compiled(
                    readout._merge_parts,
                    (matrix("i8"), ints, ints, top, top),
                    row_tiles.THREADS,
                    note=dtype,
                )
            )
    return found
