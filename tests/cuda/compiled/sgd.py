"""The kernels of training as production launches them."""

from __future__ import annotations

import itertools

import numpy as np
from toolchain import Compiled
from typed import array, matrix, number, structure

from fastinfluence.kernels.cuda import sgd


def compiled() -> list[Compiled]:
    found = []
    for dtype in ("f4", "f8"):
        tables, examples = structure("Tables", dtype), structure("Examples", dtype)
        hyper, drawn = structure("Hyper", dtype), matrix("i4")
        sums = array("f8", 1)
        steps = (
            tables, tables, examples, array("i8", 1), drawn, hyper, number, number, number,
            structure("Record", dtype), structure("Log", dtype), sums,
        )  # fmt: skip
        losses = (tables, examples, drawn, hyper, number, sums, sums)
        for squared, adagrad in itertools.product((True, False), repeat=2):
            most = sgd.most_threads(adagrad, np.dtype(dtype))
            kernel = sgd.steps_of(squared, adagrad, most)
            threads, shared = sgd.shape(0 if squared else 4, np.dtype(dtype), most)
            note = f"{dtype}, squared={squared}, adagrad={adagrad}"
            found.append(Compiled(kernel, steps, threads, shared, note))
        threads, shared = sgd.shape(4, np.dtype(dtype))
        found.append(Compiled(sgd.example_losses, losses, threads, shared, dtype))
    return found
