"""Influence functions as one writes them in plain torch: conjugate gradients, and LiSSA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastinfluence as fi

CHUNK = 2**15  # ratings a batch: four times as many are slower


class GaussNewton:
    """The damped least squares problem around a model, all parameters in one vector.

    Its matrix is the Gauss-Newton matrix of the sum of all losses, with the regularization as it
    was trained with and the damping on top: positive definite, where the Hessian of factors is
    indefinite away from a perfect fit (conjugate gradients meet a negative curvature within ten
    iterations). The vector is users' factors, items' factors, users' biases, items' biases.
    """

    def __init__(self, model: fi.MatrixFactorization, damping: float) -> None:
        import torch

        torch.set_num_threads(1)
        data, tables = model.data_, model.trajectory_.end.tables
        self.mean, self.regularization = model.global_mean_, model.regularization
        self.users, self.items = (
            torch.tensor(codes.astype(np.int64)) for codes in (data.users, data.items)
        )
        self.values = torch.tensor(np.array(data.values, np.float32))
        self.parts = [slice(a, a + CHUNK) for a in range(0, len(data), CHUNK)]
        self.shapes = [(len(table), table[0].size) for table in tables]
        self.parameters = torch.cat([torch.tensor(table).ravel() for table in tables])
        degrees = [
            torch.bincount(codes, minlength=n)
            for codes, (n, _) in zip((self.users, self.items), self.shapes, strict=False)
        ] * 2
        self.diagonal = damping + self.regularization * torch.cat(
            [d.repeat_interleave(width) for d, (_, width) in zip(degrees, self.shapes, strict=True)]
        )

    def rows(self, parameters: Any, users: Any, items: Any) -> list[Any]:
        """Factors (n, k) and biases (n, 1): of the users, of the items, again of both."""
        from torch.nn.functional import embedding

        tables = parameters.split([n * width for n, width in self.shapes])
        return [
            embedding(codes, table.view(shape))
            for codes, table, shape in zip((users, items) * 2, tables, self.shapes, strict=True)
        ]

    def scores(self, parameters: Any, users: Any, items: Any) -> Any:
        """(n,)."""
        p, q, b_u, b_i = self.rows(parameters, users, items)
        return self.mean + (b_u + b_i).sum(1) + (p * q).sum(1)

    def losses(self, parameters: Any, part: slice) -> Any:
        """Of some ratings (n,), regularization included."""
        pairs = self.users[part], self.items[part]
        errors = self.scores(parameters, *pairs) - self.values[part]
        norms = sum((row * row).sum(1) for row in self.rows(parameters, *pairs))
        return 0.5 * (errors * errors + self.regularization * norms)

    def score_gradient(self, user: int, item: int) -> Any:
        """Gradient of one score by all parameters."""
        import torch

        pair = torch.tensor([user]), torch.tensor([item])
        return torch.func.grad(lambda at: self.scores(at, *pair).sum())(self.parameters)

    def curvature(self, vector: Any, part: Any) -> Any:
        """Gauss-Newton matrix of some ratings' errors times a vector: forward mode, then reverse.

        The regularization and the damping are in `diagonal`.
        """
        import torch

        def scores(at: Any) -> Any:
            return self.scores(at, self.users[part], self.items[part])

        _, along = torch.func.jvp(scores, (self.parameters,), (vector,))
        return torch.func.vjp(scores, self.parameters)[1](along)[0]

    def product(self, vector: Any) -> Any:
        """The matrix times a vector."""
        return self.diagonal * vector + sum(self.curvature(vector, part) for part in self.parts)

    def residual(self, x: Any, right: Any) -> float:
        """``|A x - right| / |right|``."""
        return float((self.product(x) - right).norm() / right.norm())

    def solve(self, right: Any, n_iterations: int, rtol: float = 0.0) -> tuple[Any, int]:
        """Conjugate gradients from zero to a relative residual: x, and the iterations it took."""
        x, residual = right * 0, right.clone()
        direction, norm = right.clone(), right @ right
        enough = rtol**2 * norm
        for iteration in range(n_iterations):
            if norm <= enough:
                return x, iteration
            image = self.product(direction)
            step = norm / (direction @ image)
            x += step * direction
            residual -= step * image
            before, norm = norm, residual @ residual
            direction = residual + norm / before * direction
        return x, n_iterations

    def lissa(self, right: Any, n_iterations: int, scale: float, seed: int = 0) -> Any:
        """LiSSA: a truncated Neumann series, a batch of ratings for every term.

        ``x <- right + x - A_batch x / scale``, and ``x / scale`` at the end; the scale has to be
        beyond the largest eigenvalue of any batch's matrix.
        """
        import torch

        generator = torch.Generator().manual_seed(seed)
        n = len(self.values)
        x = right.clone()
        for _ in range(n_iterations):
            batch = torch.randint(n, (LISSA_BATCH,), generator=generator)
            image = self.diagonal * x + n / LISSA_BATCH * self.curvature(x, batch)
            x = right + x - image / scale
        return x / scale

    def largest_eigenvalue(self, n_iterations: int = 20) -> float:
        """By powers, from below."""
        import torch

        x = torch.ones_like(self.parameters)
        for _ in range(n_iterations):
            x = self.product(x / x.norm())
        return float(x.norm())

    def influence(self, solution: Any) -> Any:
        """(n_train,) ``-solution . grad loss_j``."""
        import torch

        def of(part: slice) -> Any:
            losses: Callable[[Any], Any] = lambda at: self.losses(at, part)  # noqa: E731
            return torch.func.jvp(losses, (self.parameters,), (solution,))[1]

        return -torch.cat([of(part) for part in self.parts])


LISSA_BATCH = 2**10
