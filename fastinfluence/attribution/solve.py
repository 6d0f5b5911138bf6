"""Solving with a damped Hessian: preconditioned conjugate gradients, honest about convergence."""

from __future__ import annotations

import queue
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.lanczos import Ritz
from fastinfluence.attribution.systems import ReducedSystem, System, row_parts
from fastinfluence.errors import ConvergenceWarning, DeviceMemoryError, NegativeCurvature
from fastinfluence.kernels.structures import LANES

__all__ = [
    "BlockJacobi",
    "SolveReport",
    "block_bytes",
    "solve",
    "solve_queries",
    "warn_of_unsolved",
]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_PANELS = 8  # of the size of the parameters that a solve of 16 queries holds
_CUDA_AT_ONCE = 2  # blocks of 16: one computes while Python sees to the launches of the other
_STALLED = 0.5  # a restart that leaves more than this of the residual has met the rounding


@dataclass(frozen=True, kw_only=True)
class SolveReport:
    """How well some systems ``(H + damping I) x = b`` were solved.

    Attributes
    ----------
    converged : (m,) bool
        Whether the residual reached the tolerance.
    iterations : (m,) int64
        Products with H that each right-hand side took part in.
    residual : (m,) float64
        ``|b - (H + damping I) x| / |b|``, computed from x itself behind the last iteration; 0
        where b is 0.
    smallest_ritz : (m,) float64
        Smallest Ritz value: about the smallest eigenvalue, of those that the right-hand side has
        a part in, of the matrix that was iterated on (preconditioned, users eliminated). Small
        values are slow directions, 1 is as good as solved. NaN where nothing was iterated.
    hessian : str
        "gauss-newton" or "full".
    damping : float
    seconds : float
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("converged", "iterations", "residual", "smallest_ritz")
    SCALARS: ClassVar[tuple[str, ...]] = ("hessian", "damping", "seconds")

    converged: npt.NDArray[np.bool_]
    iterations: npt.NDArray[np.int64]
    residual: Floats
    smallest_ritz: Floats
    hessian: str
    damping: float
    seconds: float

    def __len__(self) -> int:
        return len(self.converged)

    def __repr__(self) -> str:
        unsolved = int(np.count_nonzero(~self.converged))
        outcome = f"{unsolved:,} not converged" if unsolved else "all converged"
        most = int(self.iterations.max(initial=0))
        worst = float(self.residual.max(initial=0.0))
        return (
            f"SolveReport({len(self):,} systems, {outcome}, at most {most} iterations, residual "
            f"at most {worst:.2g}, {self.hessian} Hessian, damping {self.damping:.4g}, "
            f"{self.seconds:.3g} s)"
        )

    def first(self, m: int) -> SolveReport:
        """Return the report of the first m systems."""
        columns: dict[str, Any] = {name: getattr(self, name)[:m] for name in self.COLUMNS}
        return replace(self, **columns)

    @classmethod
    def joined(cls, reports: list[SolveReport]) -> SolveReport:
        """Return the report of all systems, one after the other."""
        columns: dict[str, Any] = {
            n: np.concatenate([getattr(r, n) for r in reports]) for n in cls.COLUMNS
        }
        return replace(reports[-1], **columns, seconds=sum(report.seconds for report in reports))


class BlockJacobi:
    """The diagonal blocks of a damped Gauss-Newton matrix, one a row, and their Cholesky factors.

    They are arrays of the endpoint's device.

    Parameters
    ----------
    endpoint : Endpoint or GraphEndpoint
    damping : float
    n_threads : int, default 1

    Raises
    ------
    NegativeCurvature
        A block is singular: there is neither damping nor regularization, and fewer examples than
        numbers in the row.
    """

    def __init__(self, endpoint: Any, damping: float, *, n_threads: int = 1) -> None:
        self.identity = getattr(endpoint, "identity", None), damping
        self.factors: Array = endpoint.blocks()
        memory = dispatch.memory(endpoint.device)
        self.divisors: Array = memory.zeros((endpoint.n_rows, endpoint.d), endpoint.dtype)
        kernel = dispatch.kernels("conjugate_gradients", endpoint.device).factor_rows

        def part(start: int, stop: int) -> None:
            kernel(damping, self.factors, start, stop, self.divisors)

        parts = row_parts(endpoint.n_rows, 4 * n_threads, endpoint.device)
        dispatch.run_parts(part, parts, n_threads)
        singular = memory.fetch(self.divisors)[:, 0] == 0
        if singular.any():
            raise NegativeCurvature(
                f"the Gauss-Newton matrix is singular: {int(singular.sum()):,} rows of factors "
                f"(the first is row {int(singular.argmax())}) have directions in which no example "
                f"curves the loss, and the damping is {damping:g}. Give damping > 0, or train "
                "with regularization > 0"
            )

    def solves_users_of(self, endpoint: Any, damping: float) -> bool:
        """Whether the factors are exactly those of the rows that H does not join."""
        identity = getattr(endpoint, "identity", None)
        return identity is not None and self.identity == (identity, damping)


def solve(
    endpoint: Any,
    right: Array,
    *,
    damping: float,
    rtol: float = 1e-3,
    atol: float = 0.0,
    max_iterations: int = 200,
    full: bool = False,
    preconditioner: BlockJacobi | None = None,
    start: Array | None = None,
    n_threads: int = 1,
) -> tuple[Array, SolveReport]:
    """Solve ``(H + damping I) x = b`` for 16 right-hand sides in lock step.

    Panels, of right-hand sides and solutions, are arrays of the endpoint's device. Every lane is
    an iteration of its own, which ends when ``|b - (H + damping I) x| <= max(rtol
    |b|, atol)``; one that has ended waits, unchanged, for the others. The residual is then
    computed from x, and where rounding has hidden that it is larger the iteration starts again
    from there.

    Parameters
    ----------
    endpoint : Endpoint or GraphEndpoint
        H is the Hessian of its loss.
    right : (n_rows, d, LANES)
    damping : float
    rtol, atol : float
    max_iterations : int
    full : bool, default False
        The Hessian itself; otherwise its Gauss-Newton matrix.
    preconditioner : BlockJacobi, optional
        Where it was made of this endpoint and damping, the rows of users are eliminated with it.
    start : (n_rows, d, LANES), optional
        First x; 0 by default.
    n_threads : int, default 1

    Returns
    -------
    x : (n_rows, d, LANES)
    report : SolveReport
        Of all lanes.

    Raises
    ------
    NegativeCurvature
        A direction p with ``p' (H + damping I) p <= 0`` was met.

    References
    ----------
    Hestenes & Stiefel, Methods of conjugate gradients for solving linear systems, 1952.
    """
    begin = time.perf_counter()
    kind: type[System] = System
    if preconditioner is not None and preconditioner.solves_users_of(endpoint, damping):
        kind = ReducedSystem
    system = kind(endpoint, damping, full, preconditioner, n_threads)
    x, residual = system.panel(), system.panel()
    system.memory.store(residual, right)
    squares = system.squares(right)
    sizes = np.sqrt(squares)
    goals = np.maximum(rtol * sizes, atol)
    iterations = np.zeros(LANES, np.int64)
    lanczos = Ritz()
    if start is not None:
        system.memory.store(x, start)
        squares = system.residual_of(x, right, residual)
    norms, before = np.sqrt(squares), np.full(LANES, np.inf)
    while True:
        waiting = (norms > goals) & (iterations < max_iterations) & (norms < _STALLED * before)
        if not waiting.any():
            break
        before = norms
        most = max_iterations - iterations
        iterations += system.iterate(x, residual, waiting, goals, most, lanczos)
        norms = np.sqrt(system.residual_of(x, right, residual))
    report = SolveReport(
        converged=norms <= goals,
        iterations=iterations,
        residual=np.divide(norms, sizes, out=np.zeros(LANES), where=sizes > 0),
        smallest_ritz=lanczos.smallest(),
        hessian="full" if full else "gauss-newton",
        damping=damping,
        seconds=time.perf_counter() - begin,
    )
    return x, report


def solve_queries(
    endpoint: Any,
    quantity: Any,
    preconditioner: BlockJacobi,
    *,
    at_once: int,
    n_threads: int,
    **options: Any,
) -> Iterator[tuple[int, Array, SolveReport]]:
    """Solve for the gradients of queries, 16 at a time; once where there are none.

    Where there are several blocks of 16, each is one thread's: nothing has to wait. On a device
    out of memory one block is tried at a time.

    Parameters
    ----------
    endpoint : Endpoint or GraphEndpoint
    quantity : Quantity
    preconditioner : BlockJacobi
    at_once : int
        Blocks that may be worked on side by side; on a device there are two at most.
    n_threads : int
        Threads of a block where it is the only one.
    **options
        Of `solve`.

    Yields
    ------
    start : int
        First query of the block.
    x : (n_rows, d, LANES)
        On the endpoint's device.
    report : SolveReport
        Of the queries that there are.

    Raises
    ------
    DeviceMemoryError
        There is no room for 16 queries on the device.
    """
    starts = range(0, max(1, len(quantity)), LANES)
    at_once = _side_by_side(endpoint, min(at_once, len(starts)))
    solved, short = 0, True
    while short:
        short = False
        blocks = _solve_blocks(
            endpoint, quantity, preconditioner, starts[solved:], at_once, n_threads, options
        )
        try:
            for found in blocks:
                solved += 1
                yield found
        except DeviceMemoryError as error:
            if at_once == 1:
                raise DeviceMemoryError(
                    f"{LANES} queries take about {block_bytes(endpoint) / 2**20:,.0f} MiB on the "
                    f"device beside the preconditioner, which is too much: use device='cpu', or "
                    f"fewer factors ({error})"
                ) from error
            at_once, short = 1, True


def _solve_blocks(
    endpoint: Any,
    quantity: Any,
    preconditioner: BlockJacobi,
    starts: range,
    at_once: int,
    n_threads: int,
    options: dict[str, Any],
) -> Iterator[tuple[int, Array, SolveReport]]:
    """Solve for the blocks of queries that begin at `starts`, so many at once, in order."""
    free: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(at_once):
        free.put(endpoint if at_once == 1 else endpoint.twin())
    within = n_threads if at_once == 1 else 1

    def block(start: int) -> tuple[int, Array, SolveReport]:
        right, own = endpoint.panel(quantity, start), free.get()
        try:
            x, report = solve(
                own, right, preconditioner=preconditioner, n_threads=within, **options
            )
        finally:
            free.put(own)
        return start, x, report.first(len(quantity) - start)

    return dispatch.in_order(block, starts, at_once)


def _side_by_side(endpoint: Any, at_once: int) -> int:
    """Blocks of 16 queries to work on at once, of so many that are wanted."""
    if endpoint.device == "cuda":
        fitting = dispatch.memory("cuda").free_bytes() // block_bytes(endpoint)
        at_once = min(at_once, _CUDA_AT_ONCE, fitting)
    elif endpoint.device != "cpu":
        at_once = 1  # torch queues its work: there is nothing to wait for
    return max(1, at_once)


def block_bytes(endpoint: Any) -> int:
    """Memory that 16 queries take while they are solved, and their influence on all examples."""
    numbers = _PANELS * endpoint.n_rows * endpoint.d + 2 * endpoint.n
    size: int = LANES * endpoint.dtype.itemsize * numbers + getattr(endpoint, "scratch_bytes", 0)
    return size


def warn_of_unsolved(
    report: SolveReport, rtol: float, max_iterations: int, float64: str, *, stacklevel: int
) -> None:
    """Give a ConvergenceWarning where queries were not solved.

    Parameters
    ----------
    report : SolveReport
    rtol : float
    max_iterations : int
    float64 : str
        How to have float64 numbers, where these are not: rounding may be the reason.
    stacklevel : int
        As for `warnings.warn`, seen from the caller.
    """
    unsolved = int(np.count_nonzero(~report.converged))
    if not unsolved:
        return
    hint = f", or {float64}: rounding hides smaller residuals" if float64 else ""
    warnings.warn(
        f"{unsolved:,} of {len(report):,} queries were not solved to rtol={rtol:g} within "
        f"{max_iterations} iterations (largest residual {report.residual.max():.2g}); their "
        f"influence is rough. Raise max_iterations, damping (now {report.damping:.4g}) or "
        f"rtol{hint}",
        ConvergenceWarning,
        stacklevel=stacklevel + 1,
    )
