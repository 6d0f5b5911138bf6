"""How kernels of conjugate gradients are launched, for rows of 17 and 65 numbers."""

from __future__ import annotations

from toolchain import Compiled
from typed import array, number, scalar

from fastinfluence.kernels.cuda import cholesky
from fastinfluence.kernels.cuda import conjugate_gradients as kernels

LANES = 16


def compiled() -> list[Compiled]:
    """Every kernel in either dtype; the rows' lengths are no constants of the compiler."""
    found = []
    for dtype in ("f4", "f8"):
        panel, lanes, sums = array(dtype, 3), array(dtype, 1), array("f8", 2)
        factors, one = (array(dtype, 3), array(dtype, 2)), scalar(dtype)
        rows, size = (number, number), one.bitwidth // 8
        advance = (
            number, *factors, lanes, panel, panel, *rows, panel, panel, panel, sums, sums
        )  # fmt: skip
        for d in (17, 65):
            of_warp = -(-d // 8) * 8 * LANES * size
            warps = min(4, 48 * 1024 // of_warp)
            note = f"d={d}, {dtype}"
            found += [
                Compiled(kernel, signature, 32 * warps, warps * of_warp, note)
                for kernel, signature in (
                    (kernels.precondition_row, (number, *factors, panel, *rows, panel)),
                    (kernels.advance_row, advance),
                )
            ]
        flat = lanes
        for kernel, signature, threads in (
            (kernels.factor_row, (one, factors[0], number, factors[1]), cholesky.FACTOR_THREADS),
            (kernels.damp_row, (one, panel, *rows, panel, sums), 128),
            (kernels.multiply_row, (panel, panel, *rows, sums), 128),
            (kernels.turn_quads, (lanes, flat, *rows, flat), 256),
            (kernels.step_quads, (lanes, flat, *rows, flat), 256),
            (kernels.subtract_quads, (flat, *rows, flat), 256),
            (kernels.scale_quads, (lanes, *rows, flat), 256),
            (kernels.clear_quads, (*rows, flat), 256),
        ):
            found.append(Compiled(kernel, signature, threads, 0, dtype))
    sums = array("f8", 2)
    return [*found, Compiled(kernels.add_rows, (sums, number, number, sums), 256)]
