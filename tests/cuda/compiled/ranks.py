"""The kernels that count ranks."""

from __future__ import annotations

from toolchain import Compiled
from typed import array, matrix, number, structure

from fastinfluence.kernels.cuda import ranks, tiles


def compiled() -> list[Compiled]:
    return [entry for dtype in ("f4", "f8") for entry in _of(dtype)]


def _of(dtype: str) -> list[Compiled]:
    flat, counts = array(dtype, 1), (array("i8", 1), array("i8", 1))
    return [
        Compiled(tiles._pack, (matrix(dtype), number, number, flat), 256, note=dtype),
        Compiled(
            ranks._start_counts,
            (flat, number, matrix(dtype), array("i4", 1), structure("Exclusions"), number, number,
             flat, *counts),
            256,
            note=dtype,
        ),
        Compiled(
            ranks._count_tiles,
            (flat, number, flat, flat, number, number, *counts),
            256,
            note=dtype,
        ),
    ]  # fmt: skip
