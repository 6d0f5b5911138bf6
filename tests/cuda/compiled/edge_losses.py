"""Losses and derivatives of examples as an endpoint launches them."""

from __future__ import annotations

from toolchain import Compiled
from typed import array, matrix, number, scalar

from fastinfluence.kernels.cuda import edge_losses

I32, I64 = array("i4", 1), array("i8", 1)


def compiled() -> list[Compiled]:
    return [
        Compiled(edge_losses.losses_of_examples, signature(dtype), edge_losses.THREADS, 0, dtype)
        for dtype in ("f4", "f8")
    ]


def signature(dtype: str) -> tuple[object, ...]:
    vector, float64 = array(dtype, 1), scalar("f8")
    return (
        number, matrix(dtype), I64, I32, I32, vector, vector, float64, scalar(dtype), float64,
        number, number, vector, vector, array("f8", 1),
    )  # fmt: skip
