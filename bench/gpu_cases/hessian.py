"""The Gauss-Newton matrix of MovieLens 1M times 16 vectors, its diagonal blocks, and credit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastinfluence import dispatch
from fastinfluence.kernels.structures import LANES

from . import Case, Size
from .shared import model, plain_torch

__all__ = ["cases", "gauss_newton"]


def gauss_newton(endpoint: Any, trajectory: Any) -> Any:
    """The same matrix in plain torch; None without it."""
    plain = plain_torch()
    if plain is None:
        return None
    data, rows, mean = trajectory.data, endpoint.rows, trajectory.program.mean
    items = data.items + np.int32(data.n_users)
    dots = np.einsum("nd,nd->n", rows[data.users, :-1], rows[items, :-1])
    errors = mean + dots + rows[data.users, -1] + rows[items, -1] - data.values
    return plain.GaussNewton(
        rows, data.users, items, errors.astype(np.float32), trajectory.recipe.regularization
    )


def cases(size: Size) -> Iterator[Case]:
    """Make them."""
    trajectory = model(size).trajectory_
    here, there = (
        trajectory.program.endpoint(trajectory.end.tables, device=device)
        for device in ("cpu", "cuda")
    )
    n, n_rows, d = here.n, here.n_rows, here.d
    memory, size = dispatch.memory("cuda"), here.dtype.itemsize
    rng = np.random.default_rng(0)
    panel = rng.standard_normal((n_rows, d, LANES)).astype(here.dtype)
    on, out, expected = memory.put(panel), memory.zeros(panel.shape, panel.dtype), panel.copy()
    plain = gauss_newton(here, trajectory)
    theirs = plain and plain_torch().put(panel)

    here.product(panel, expected)
    yield Case(
        f"Gauss-Newton times 16, k={d - 1}",
        run=lambda: there.product(on, out),
        found=lambda: (memory.fetch(out),),
        expected=(expected,),
        tolerance=1e-5,
        # A number for every rating and lane: written for one end, read and written for the other
        # and for the curvature, read by either end's sum; the panel there and back.
        n_bytes=(7 * n + 2 * n_rows * d) * LANES * size,
        n_flops=8 * n * d * LANES,  # four products of rows and numbers a rating
        bound="bytes",
        cpu=lambda: here.product(panel, expected),
        torch=plain and (lambda: (plain.product(theirs),)),
    )

    made: list[Any] = []
    yield Case(
        f"credit of 16, k={d - 1}",
        before=made.clear,
        run=lambda: made.append(there.credit(on)),
        found=lambda: (memory.fetch(made[0]),),
        expected=(here.credit(panel),),
        tolerance=1e-5,
        # Slopes are written for one end, read and written for the other, read; credit is written.
        n_bytes=(5 * n + n_rows * d) * LANES * size,
        n_flops=4 * n * d * LANES,
        bound="bytes",
        cpu=lambda: here.credit(panel),
        torch=plain and (lambda: (plain.credit(theirs),)),
    )

    yield Case(
        f"diagonal blocks, k={d - 1}",
        before=made.clear,
        run=lambda: made.append(there.blocks()),
        found=lambda: (memory.fetch(made[0]),),
        expected=(here.blocks(),),
        tolerance=1e-5,
        n_bytes=(n_rows * d * d + n_rows * d) * size + 4 * 2 * n,
        n_flops=2 * n * d * (d + 1),  # half of x x' for either end
        bound="flops",
        cpu=here.blocks,
        torch=plain and (lambda: (plain.blocks(),)),
        note="blocks are symmetric, and only a half is counted",
    )
