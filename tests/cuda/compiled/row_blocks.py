"""Blocks of single rows and of pairs as a pair endpoint launches them."""

from __future__ import annotations

from toolchain import Compiled
from typed import FLAG, array, matrix, number, scalar

from fastinfluence.kernels.cuda import cholesky, row_blocks, substitution

I32, I64, FLOAT = array("i4", 1), array("i8", 1), scalar("f8")


def compiled() -> list[Compiled]:
    return [entry for dtype in ("f4", "f8") for entry in of_dtype(dtype)]


def of_dtype(dtype: str) -> list[Compiled]:
    vector, rows, blocks = array(dtype, 1), matrix(dtype), array(dtype, 3)
    scratch, definite = array("f8", 3), array("b", 1)
    outs = rows, vector, rows, vector
    gradients = rows, rows, I64, I64, I32, I32, vector, vector, I64, I64, number, number, *outs
    couple = (
        number, FLAG, rows, I64, I32, I32, vector, vector, I64, I64, I64, scratch,
    )  # fmt: skip
    solve = (
        blocks, FLOAT, FLOAT, matrix("i8"), rows, vector, number, number, scratch, matrix("f8"),
        definite,
    )  # fmt: skip
    link = (
        blocks, FLOAT, FLOAT, rows, scratch, I64, I64, scratch, rows, rows, definite,
    )  # fmt: skip
    threads, of_factor = row_blocks.THREADS, cholesky.FACTOR_THREADS
    found = [
        Compiled(row_blocks.gradients_of_examples, gradients, threads, 0, dtype),
        Compiled(row_blocks.link_each, link, of_factor, 0, dtype),
    ]
    for d in (17, 65):
        *_, shared = substitution.rooms(d, "f8", of_factor // 32)
        shared, note = max(shared, 8 * cholesky.FACTOR_ROOM), f"d={d}, {dtype}"
        found += [
            Compiled(row_blocks.couple_pairs, couple, threads, 8 * d, note),
            Compiled(row_blocks.solve_units, solve, of_factor, shared, note),
        ]
    return found
