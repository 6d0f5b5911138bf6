"""The kernel that scores pairs as production launches it."""

from __future__ import annotations

from toolchain import Compiled
from typed import array, number, scalar, structure

from fastinfluence.kernels.cuda import predict


def compiled() -> list[Compiled]:
    found = []
    for dtype in ("f4", "f8"):
        codes = array("i4", 1)
        pairs = scalar(dtype), codes, codes, number, number, array(dtype, 1)
        signature = (structure("Tables", dtype), *pairs)
        found.append(Compiled(predict.score_pairs, signature, predict._THREADS, 0, dtype))
    return found
