"""Eigenvalues of Hessians: those an iteration has seen, and the smallest by Lanczos' method."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.kernels.structures import LANES

__all__ = ["Ritz", "smallest_eigenvalue"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_RITZ_EVERY = 10  # steps of Lanczos' method


class Ritz:
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

    passes = _Passes(endpoint)
    vector, before, image = (passes.panel() for _ in range(3))
    start = np.random.default_rng(0).standard_normal(vector.shape).astype(endpoint.dtype)
    passes.memory.store(vector, start)
    passes.divide(vector, np.sqrt(passes.products(vector, vector)))
    diagonal, beside = np.empty((0, LANES)), np.zeros((0, LANES))
    lowest, bound = np.inf, np.inf
    for step in range(1, most + 1):
        endpoint.product(vector, image, full=full)
        quotients = passes.products(vector, image)
        passes.subtract(quotients, vector, image)
        if step > 1:
            passes.subtract(beside[-1], before, image)
        norms = np.sqrt(passes.products(image, image))
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
        passes.divide(vector, np.where(norms > 0, norms, 1))
    return lowest


class _Passes:
    """Passes over all rows of panels, lane by lane, where the arrays of an endpoint are."""

    def __init__(self, endpoint: Any) -> None:
        self._kernels = dispatch.kernels("conjugate_gradients", endpoint.device)
        self.memory = dispatch.memory(endpoint.device)
        self._shape, self._dtype = (endpoint.n_rows, endpoint.d, LANES), endpoint.dtype
        self._of_rows = self.memory.zeros((endpoint.n_rows, LANES), np.float64)

    def panel(self) -> Array:
        """Zeros (n_rows, d, LANES)."""
        found: Array = self.memory.zeros(self._shape, self._dtype)
        return found

    def products(self, left: Array, right: Array) -> Floats:
        """Inner products (LANES,) of two panels."""
        self._kernels.inner_products(left, right, 0, self._shape[0], self._of_rows)
        total: Floats = self._kernels.total(self._of_rows, 0, self._shape[0])
        return total

    def divide(self, panel: Array, divisors: Floats) -> None:
        """Divide a panel by numbers (LANES,)."""
        self._kernels.scale((1 / divisors).astype(self._dtype), 0, self._shape[0], panel)

    def subtract(self, factors: Floats, panel: Array, out: Array) -> None:
        """Take a panel times numbers (LANES,) from another one."""
        steps = -factors.astype(self._dtype)
        self._kernels.take_steps(steps, panel, 0, self._shape[0], out)
