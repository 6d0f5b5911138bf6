"""Solving with a damped Hessian: preconditioned conjugate gradients, honest about convergence."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import NegativeCurvature
from fastinfluence.kernels.structures import LANES
from fastinfluence.memory import aligned_zeros

__all__ = ["BlockJacobi", "SolveReport", "smallest_eigenvalue", "solve"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_RITZ_EVERY = 10  # steps of Lanczos' method
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
        Smallest Ritz value: about the smallest eigenvalue of the preconditioned matrix that the
        right-hand side has a part in. Small values are slow directions, 1 is as good as solved.
        NaN where nothing was iterated.
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
        self.factors: Array = endpoint.blocks()
        diagonal = np.arange(endpoint.d)
        self.factors[:, diagonal, diagonal] += endpoint.dtype.type(damping)
        self.divisors: Array = np.zeros((endpoint.n_rows, endpoint.d), endpoint.dtype)
        kernel = dispatch.kernels("conjugate_gradients").factor_rows

        def part(start: int, stop: int) -> None:
            kernel(self.factors, start, stop, self.divisors)

        parts = dispatch.even_parts(np.ones(endpoint.n_rows), 4 * n_threads)
        dispatch.run_parts(part, parts, n_threads)
        singular = self.divisors[:, 0] == 0
        if singular.any():
            raise NegativeCurvature(
                f"the Gauss-Newton matrix is singular: {int(singular.sum()):,} rows of factors "
                f"(the first is row {int(singular.argmax())}) have directions in which no example "
                f"curves the loss, and the damping is {damping:g}. Give damping > 0, or train "
                "with regularization > 0"
            )


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

    Every lane is an iteration of its own, which ends when ``|b - (H + damping I) x| <= max(rtol
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
    system = _System(endpoint, damping, full, preconditioner, n_threads)
    x = aligned_zeros(right.shape, endpoint.dtype)
    residual = aligned_zeros(right.shape, endpoint.dtype)
    residual[...] = right
    squares = system.squares(right)
    goals = np.maximum(rtol * np.sqrt(squares), atol)
    iterations = np.zeros(LANES, np.int64)
    lanczos = _Lanczos()
    if start is not None:
        x[...] = start
        squares = system.residual_of(x, right, residual)
    norms = np.sqrt(squares)
    before = np.full(LANES, np.inf)
    while True:
        waiting = (norms > goals) & (iterations < max_iterations) & (norms < _STALLED * before)
        if not waiting.any():
            break
        before = norms
        steps = system.iterate(x, residual, waiting, goals, max_iterations - iterations, lanczos)
        iterations += steps
        norms = np.sqrt(system.residual_of(x, right, residual))
    sizes = np.sqrt(system.squares(right))
    relative = np.divide(norms, sizes, out=np.zeros(LANES), where=sizes > 0)
    report = SolveReport(
        converged=norms <= goals,
        iterations=iterations,
        residual=relative,
        smallest_ritz=lanczos.smallest(),
        hessian="full" if full else "gauss-newton",
        damping=damping,
        seconds=time.perf_counter() - begin,
    )
    return x, report


class _System:
    """A damped matrix with its preconditioner, and the passes over rows of an iteration."""

    def __init__(
        self,
        endpoint: Any,
        damping: float,
        full: bool,
        preconditioner: BlockJacobi | None,
        n_threads: int,
    ) -> None:
        self.endpoint, self.damping, self.full = endpoint, damping, full
        self.n_threads = n_threads
        self.kernels = dispatch.kernels("conjugate_gradients")
        self.factors = None if preconditioner is None else preconditioner.factors
        self.divisors = None if preconditioner is None else preconditioner.divisors
        self._parts = dispatch.even_parts(np.ones(endpoint.n_rows), n_threads)
        self._products = np.empty((2, endpoint.n_rows, LANES))

    def _panel(self) -> Array:
        return aligned_zeros((self.endpoint.n_rows, self.endpoint.d, LANES), self.endpoint.dtype)

    def _by_row(self, function: Any, before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
        """Call ``function(*before, start, stop, *after)`` for all rows."""

        def part(start: int, stop: int) -> None:
            function(*before, start, stop, *after)

        dispatch.run_parts(part, self._parts, self.n_threads)

    def squares(self, panel: Array) -> Floats:
        """Squared norms (LANES,)."""
        found = self._products[0]
        self._by_row(self.kernels.inner_products, (panel, panel), (found,))
        total: Floats = found.sum(axis=0)
        return total

    def image(self, panel: Array, out: Array) -> Floats:
        """Write ``(H + damping I) panel`` to `out`; the inner products (LANES,) of both."""
        self.endpoint.product(panel, out, full=self.full)
        found = self._products[0]
        self._by_row(self.kernels.damp, (self.damping, panel), (out, found))
        total: Floats = found.sum(axis=0)
        return total

    def residual_of(self, x: Array, right: Array, residual: Array) -> Floats:
        """Write ``b - (H + damping I) x`` to `residual`; its squared norms (LANES,)."""
        self.image(x, residual)
        np.subtract(right, residual, out=residual)
        return self.squares(residual)

    def iterate(
        self,
        x: Array,
        residual: Array,
        waiting: npt.NDArray[np.bool_],
        goals: Floats,
        most: npt.NDArray[np.int64],
        lanczos: _Lanczos,
    ) -> npt.NDArray[np.int64]:
        """Iterate the lanes in `waiting` until none is; how often each took part."""
        dtype = self.endpoint.dtype
        target, image, direction = self._panel(), self._panel(), self._panel()
        found = self._products
        of_rows = (self.factors, self.divisors, residual)
        self._by_row(self.kernels.precondition_rows, of_rows, (target,))
        direction[...] = target
        self._by_row(self.kernels.inner_products, (residual, target), (found[1],))
        products = found[1].sum(axis=0)
        waiting, done = waiting.copy(), np.zeros(LANES, np.int64)
        keeps = np.zeros(LANES)
        while waiting.any():
            curvatures = self.image(direction, image)
            self._check(curvatures, waiting, direction)
            waiting &= curvatures > 0  # p is 0 to rounding: nothing is left to do
            steps = np.divide(products, curvatures, out=np.zeros(LANES), where=waiting)
            done += waiting
            self._by_row(
                self.kernels.advance,
                (self.factors, self.divisors, steps.astype(dtype), direction, image),
                (x, residual, target, found[0], found[1]),
            )
            squares, after = found.sum(axis=1)
            lanczos.add(waiting, steps, keeps)
            keeps = np.divide(after, products, out=np.zeros(LANES), where=waiting & (products > 0))
            waiting &= (np.sqrt(squares) > goals) & (done < most) & (after > 0)
            products = after
            self._by_row(self.kernels.turn, (keeps.astype(dtype), target), (direction,))
        return done

    def _check(self, curvatures: Floats, waiting: npt.NDArray[np.bool_], direction: Array) -> None:
        """Raise NegativeCurvature where a direction bends the other way, beyond rounding."""
        if not (waiting & (curvatures <= 0)).any():
            return
        squares = self.squares(direction)
        quotients = np.divide(curvatures, squares, out=np.zeros(LANES), where=squares > 0)
        lowest = float(quotients[waiting].min())
        if lowest < 0:
            raise NegativeCurvature(_indefinite(lowest - self.damping, self.damping))


def _indefinite(eigenvalue: float, damping: float) -> str:
    return (
        f"the Hessian is not positive definite: it has an eigenvalue of {eigenvalue:.4g} or less, "
        f"and the damping is {damping:.4g}. A solve would mean nothing: give damping > "
        f"{-eigenvalue:.4g}, or on_negative_curvature='lift' (which does) or 'gauss-newton', or "
        "take hessian='gauss-newton'"
    )


class _Lanczos:
    """The coefficients of an iteration, which are those of Lanczos' on the same matrix."""

    def __init__(self) -> None:
        self._took: list[Array] = []
        self._steps: list[Floats] = []
        self._keeps: list[Floats] = []

    def add(self, took: npt.NDArray[np.bool_], steps: Floats, keeps: Floats) -> None:
        """Take down an iteration: its steps, and what it kept of the direction before."""
        self._took.append(took.copy())
        self._steps.append(steps)
        self._keeps.append(keeps)

    def smallest(self) -> Floats:
        """Smallest eigenvalue (LANES,) of each lane's first run of iterations."""
        from scipy.linalg import eigvalsh_tridiagonal

        found = np.full(LANES, np.nan)
        if not self._took:
            return found
        took, steps, keeps = (np.array(a) for a in (self._took, self._steps, self._keeps))
        for lane in range(LANES):
            m = int(np.argmin(took[:, lane])) if not took[:, lane].all() else len(took)
            fresh = np.flatnonzero(keeps[1:m, lane] == 0)  # started again there
            m = int(fresh[0]) + 1 if len(fresh) else m
            if m == 0:
                continue
            a, b = steps[:m, lane], keeps[1:m, lane]
            diagonal = 1 / a
            diagonal[1:] += b / a[:-1]
            beside = np.sqrt(b) / a[:-1]
            found[lane] = eigvalsh_tridiagonal(diagonal, beside, select="i", select_range=(0, 0))[0]
        return found


def smallest_eigenvalue(
    endpoint: Any, *, full: bool = True, tolerance: float = 1e-2, most: int = 300
) -> float:
    """Estimate the smallest eigenvalue of a Hessian by Lanczos' method, from 16 random starts.

    Parameters
    ----------
    endpoint : Endpoint or GraphEndpoint
    full : bool, default True
        Of the Hessian itself; otherwise of its Gauss-Newton matrix.
    tolerance : float
        Bound on the relative error at which the iteration ends.
    most : int
        Products at most; what is known then is returned.

    Notes
    -----
    The estimate is never below the eigenvalue. The vectors of Lanczos are not orthogonalised
    again: eigenvalues found twice do no harm here.
    """
    from scipy.linalg import eigh_tridiagonal

    system = _System(endpoint, 0.0, full, None, 1)
    shape = (endpoint.n_rows, endpoint.d, LANES)
    vector, before, image = (aligned_zeros(shape, endpoint.dtype) for _ in range(3))
    vector[...] = np.random.default_rng(0).standard_normal(shape)
    vector /= np.sqrt(system.squares(vector)).astype(endpoint.dtype)
    diagonal, beside = np.empty((0, LANES)), np.zeros((0, LANES))
    lowest, bound = np.inf, np.inf
    for step in range(1, most + 1):
        quotients = system.image(vector, image)
        image -= quotients.astype(endpoint.dtype) * vector
        if step > 1:
            image -= beside[-1].astype(endpoint.dtype) * before
        norms = np.sqrt(system.squares(image))
        diagonal, beside = np.vstack([diagonal, quotients]), np.vstack([beside, norms])
        if step % _RITZ_EVERY == 0 or step == most:
            for lane in range(LANES):
                closed = np.flatnonzero(beside[:, lane] == 0)  # on a subspace: all of it is known
                m = int(closed[0]) + 1 if len(closed) else step
                values, vectors = eigh_tridiagonal(
                    diagonal[:m, lane], beside[: m - 1, lane], select="i", select_range=(0, 0)
                )
                if values[0] < lowest:
                    lowest = float(values[0])
                    bound = abs(float(vectors[-1, 0])) * float(beside[m - 1, lane])
            if bound <= tolerance * abs(lowest):
                break
        vector, before, image = image, vector, before
        vector /= np.where(norms > 0, norms, 1).astype(endpoint.dtype)
    return lowest
