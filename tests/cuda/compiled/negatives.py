"""The kernels that draw negatives as production launches them."""

from __future__ import annotations

from toolchain import Compiled
from typed import array, matrix, number, structure

from fastinfluence.kernels.cuda import negatives


def compiled() -> list[Compiled]:
    examples, sampler, drawn = structure("Examples"), structure("Sampler"), matrix("i4")
    blocks = examples, array("i8", 1), sampler, number, number, number, drawn
    in_turn = examples, sampler, number, drawn
    return [
        Compiled(negatives.draw_blocks, blocks, negatives._THREADS),
        Compiled(negatives.draw_in_turn, in_turn, negatives._THREADS),
    ]
