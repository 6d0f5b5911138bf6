"""The kernel that looks through arrays as production launches it."""

from __future__ import annotations

from toolchain import Compiled
from typed import array

from fastinfluence.kernels.cuda import memory


def compiled() -> list[Compiled]:
    return [
        Compiled(memory.look_for_nan, (array(dtype, 1), array("i4", 1)), memory._THREADS, 0, dtype)
        for dtype in ("f4", "f8")
    ]
