"""Conjugate gradients for 16 right-hand sides on MovieLens 1M, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastinfluence import dispatch
from fastinfluence.attribution.damping import default_damping
from fastinfluence.attribution.solve import BlockJacobi, solve
from fastinfluence.kernels.structures import LANES

from . import Case, Size
from .hessian import gauss_newton
from .shared import model, plain_torch

__all__ = ["cases"]

RTOL = 1e-3


def cases(size: Size) -> Iterator[Case]:
    """Make them."""
    trajectory = model(size).trajectory_
    here, there = (
        trajectory.program.endpoint(trajectory.end.tables, device=device)
        for device in ("cpu", "cuda")
    )
    damping = default_damping(trajectory)
    plain = gauss_newton(here, trajectory)
    yield _factors(here, damping)
    yield _preconditioning(here, damping)
    yield _solution(here, there, damping, plain)


def _factors(here: Any, damping: float) -> Case:
    memory, n_rows, d = dispatch.memory("cuda"), here.n_rows, here.d
    ours, cpu = (dispatch.kernels("conjugate_gradients", b) for b in ("cuda", "cpu"))
    blocks = here.blocks()
    kept, there = memory.put(blocks), memory.put(blocks)
    divisors = memory.zeros((n_rows, d), here.dtype)
    mine, my_divisors = blocks.copy(), np.zeros((n_rows, d), here.dtype)
    cpu.factor_rows(damping, mine, 0, n_rows, my_divisors)
    plain = plain_torch()
    theirs = plain and plain.Factors(plain.put(blocks), damping)
    again = blocks.copy()
    return Case(
        f"Cholesky factors of {n_rows:,} blocks, k={d - 1}",
        before=lambda: memory.store(there, kept),
        run=lambda: ours.factor_rows(damping, there, 0, n_rows, divisors),
        found=lambda: (np.tril(memory.fetch(there)),),
        expected=(np.tril(mine),),
        tolerance=1e-4,
        n_bytes=n_rows * d * (d + 1) * here.dtype.itemsize,  # a half, there and back
        n_flops=n_rows * d**3 / 3,
        bound="flops",
        cpu=lambda: cpu.factor_rows(damping, again, 0, n_rows, my_divisors),
        torch=plain and (lambda: (theirs.factored(),)),
    )


def _preconditioning(here: Any, damping: float) -> Case:
    memory, n_rows, d = dispatch.memory("cuda"), here.n_rows, here.d
    ours, cpu = (dispatch.kernels("conjugate_gradients", b) for b in ("cuda", "cpu"))
    jacobi = BlockJacobi(here, damping)
    rng = np.random.default_rng(1)
    right = rng.standard_normal((n_rows, d, LANES)).astype(here.dtype)
    mine = jacobi.factors, jacobi.divisors, right, 0, n_rows
    there, out, expected = memory.put(mine), memory.put(right.copy()), np.empty_like(right)
    cpu.precondition_rows(*mine, expected)
    plain = plain_torch()
    theirs = plain and (plain.put(right), plain.put(np.tril(jacobi.factors)))
    return Case(
        f"triangular solves of {n_rows:,} rows times 16, k={d - 1}",
        run=lambda: ours.precondition_rows(*there, out),
        found=lambda: (memory.fetch(out),),
        expected=(expected,),
        tolerance=1e-4,
        # Half of every block, the panel there and back.
        n_bytes=n_rows * (d * (d + 1) / 2 + 2 * d * LANES) * here.dtype.itemsize,
        n_flops=2 * n_rows * d * d * LANES,
        bound="bytes",
        cpu=lambda: cpu.precondition_rows(*mine, expected),
        torch=plain and (lambda: (plain.torch.cholesky_solve(*theirs),)),
    )


def _solution(here: Any, there: Any, damping: float, plain: Any) -> Case:
    memory, n, n_rows, d = dispatch.memory("cuda"), here.n, here.n_rows, here.d
    # Gradients of 16 scores: of some user's row and some item's.
    rng = np.random.default_rng(2)
    right = np.zeros((n_rows, d, LANES), here.dtype)
    for lane in range(LANES):
        user, item = rng.integers(here.n_users), rng.integers(here.n_users, n_rows)
        right[user, :, lane], right[item, :, lane] = here.rows[item], here.rows[user]
        right[[user, item], -1, lane] = 1

    def solution(endpoint: Any, panel: Any) -> Any:
        jacobi = BlockJacobi(endpoint, damping)
        return solve(endpoint, panel, damping=damping, rtol=RTOL, preconditioner=jacobi)

    on, made = memory.put(right), []
    expected, report = solution(here, right)
    theirs = plain and plain_torch().put(right)
    n_iterations = int(report.iterations.max())
    return Case(
        f"solving for 16, preconditioner and all, k={d - 1}",
        before=made.clear,
        run=lambda: made.append(solution(there, on)[0]),
        found=lambda: (memory.fetch(made[0]),),
        expected=(expected,),
        tolerance=5e-3,
        # An iteration: the scores' way as in a product; 15 panels read or written (2 of the
        # product, 3 to damp, 7 to advance, 3 to turn), half of every block.
        n_bytes=n_iterations * here.dtype.itemsize
        * (7 * n * LANES + n_rows * (15 * d * LANES + d * (d + 1) / 2)),
        n_flops=n_iterations * 8 * n * d * LANES + 2 * n * d * (d + 1) + n_rows * d**3 / 3,
        bound="bytes",
        cpu=lambda: solution(here, right),
        torch=plain and (lambda: (plain.solve(theirs, damping, RTOL),)),
        torch_tolerance=2e-2,
        note=f"to a residual of {RTOL:g} in {n_iterations} iterations; torch does not eliminate "
        "the users, and takes about twice as many",
    )  # fmt: skip
