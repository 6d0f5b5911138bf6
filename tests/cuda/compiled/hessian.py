"""Products with the Hessian as an endpoint launches them."""

from __future__ import annotations

from toolchain import Compiled
from typed import FLAG, array, matrix, number

from fastinfluence.kernels.cuda import edge_slopes, edge_sums, hessian

I32, I64 = array("i4", 1), array("i8", 1)


def compiled() -> list[Compiled]:
    return [entry for dtype in ("f4", "f8") for entry in of_dtype(dtype)]


def of_dtype(dtype: str) -> list[Compiled]:
    vector, rows, panel = array(dtype, 1), matrix(dtype), array(dtype, 3)
    places, threads = (I64, I32, I32), hessian.THREADS
    of_examples = (I64, I64, I32, I32, vector, vector)
    numbers = (rows, rows, *of_examples, number, number, vector)
    found = [
        (hessian.bend_examples, (number, I64, vector, number, number, rows, rows)),
        (hessian.credit_examples, (*of_examples, rows, rows, number, number, rows)),
        (hessian.dots_of_rows, (rows, panel, number, number, rows)),
        (hessian.norms_of_gradients, numbers),
        (hessian.credit_of_own, numbers),
    ]
    entries = [Compiled(kernel, signature, threads, 0, dtype) for kernel, signature in found]
    slopes = rows, *places, vector, number, number, FLAG, rows
    entries.append(Compiled(edge_slopes.along_panel, slopes, edge_slopes.THREADS, 0, dtype))
    pull = (rows, *places, rows, *[vector] * 3, *[number] * 3, vector)
    blocks = (
        number, rows, *places, I32, I32, vector, vector, *[number] * 5, panel,
    )  # fmt: skip
    for d in (17, 65, 129):
        note, itemsize = f"{dtype} d={d}", int(dtype[1])
        *_, threads, shared = edge_sums.pull_shape(d, itemsize)
        for full in (False, True):
            about = f"{note} full" if full else note
            entries.append(Compiled(edge_sums.pull_kernel(full), pull, threads, shared, about))
        *_, threads, shared = edge_sums.block_shape(d, itemsize)
        entries.append(Compiled(edge_sums.block_rows, blocks, threads, shared, note))
    return entries
